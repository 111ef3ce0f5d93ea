"""Exact transitions along rings of translated digits against a million samples in float32.

The network is 784-200x5-10, at its initialisation and after a few hundred steps on digits. Exact
counts are checked unit by unit: the network is evaluated in the middle of every piece, between
breakpoints, and the codes there must differ by just the units that were counted.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._timing import Row, cpu_seconds
from replication import data, models, sensitivity

RINGS = 100
K = 2**20


def trained(model: nn.Module, split: data.Split, steps: int = 400) -> nn.Module:
    """Return a copy of the network after some steps of SGD."""
    model, source = copy.deepcopy(model), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        batch = torch.randint(len(split.train.labels), (64,), generator=source)
        optimizer.zero_grad()
        logits = model(split.train.images[batch])
        F.cross_entropy(logits, split.train.labels[batch]).backward()
        optimizer.step()
    return model


def codes(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return which units of every ReLU are on, by hooks."""
    found = {}

    def hook(name: str):
        return lambda module, inputs, output: found.update({name: inputs[0] > 0})

    relus = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ReLU)]
    handles = [relu.register_forward_hook(hook(name)) for name, relu in relus]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def equal_between_breakpoints(
    model: nn.Module, ring: Tensor, found: sensitivity.Transitions
) -> bool:
    """Return whether codes in the middle of all pieces differ by the units that were counted."""
    vertices = np.stack([np.arange(len(ring)), np.zeros(len(ring))], 1)
    breakpoints = torch.stack([found.segments.double(), found.fractions], 1).numpy()
    places, where = np.unique(np.concatenate([vertices, breakpoints]), axis=0, return_inverse=True)
    segment, start = places.T
    stop = np.where(np.roll(segment, -1) == segment, np.roll(start, -1), 1)
    weight = torch.from_numpy((start + stop) / 2).view(-1, *[1] * (ring.ndim - 1))
    here = torch.from_numpy(segment).long()
    x = torch.lerp(ring.double()[here], ring.double()[(here + 1) % len(ring)], weight)
    counted = torch.from_numpy(where.ravel()[len(ring) :])
    for number, on in enumerate(codes(copy.deepcopy(model).double(), x).values()):
        expected = torch.zeros_like(on)
        layer = found.layers == number
        expected[counted[layer], found.units[layer]] = True
        if not torch.equal(on != on.roll(1, 0), expected):
            return False
    return True


def row(phase: str, model: nn.Module, rings: list[Tensor]) -> Row:
    """Return the row of one network: mean time of a ring, one ring at a time, against a sample."""
    kept = {}

    def exact() -> None:
        kept["exact"] = [sensitivity.transitions(model, ring) for ring in rings]

    def sampled() -> None:
        kept["sampled"] = sensitivity.transitions(
            *(model, rings[0], "sampled", K), dtype=torch.float32, progress=False
        )

    exact()
    seconds = cpu_seconds({"exact": exact, "sampled": sampled}, repeats=2, warm=False)
    checks = [
        equal_between_breakpoints(model, ring, found)
        for ring, found in zip(rings, kept["exact"], strict=True)
    ]
    more = int(kept["sampled"]) - int(kept["exact"][0])
    return Row(
        f"exact transitions on a ring of 28 translations, 784-200x5-10 {phase}",
        "k = 2^20 samples in float32 (torch)",
        seconds["sampled"] * len(rings) / seconds["exact"],
        ">= 300",
        f"{sum(checks)} of {len(rings)} rings equal between breakpoints; sampled {more:+d}",
    )


def rows() -> list[Row]:
    """Return the rows of this benchmark."""
    split = data.load("mnist5k")
    rings = [sensitivity.trajectories.translations(x) for x in split.test.images[:RINGS]]
    model = models.build("mlp", inputs=784, widths=[200] * 5)
    return [
        row("at init", model, rings),
        row("trained", trained(model, split), rings),
    ]
