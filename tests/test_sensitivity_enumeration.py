"""Exact counts of regions against an enumeration of patterns that shares no code with them.

``python tests/test_sensitivity_enumeration.py`` enumerates all networks and writes what it counts
to `reference/regions_27.json`.
"""

import json
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from replication.sensitivity import output_curve, plane_regions

FILE = Path(__file__).parent / "reference" / "regions_27.json"
MADE = "by tests/test_sensitivity_enumeration.py run as a script: regions of a segment and a square"


def layers_of(name):
    """Return the layers of a network: ``mlp DEPTH WIDTH BIAS INPUTS`` or ``POOLING SEED``."""
    kind, *numbers = name.split()
    if kind == "mlp":
        depth, width, bias, inputs = map(int, numbers)
        sizes = [inputs] + [width] * depth
        return [
            x for a, b in pairwise(sizes) for x in (nn.Linear(a, b, bias=bool(bias)), nn.ReLU())
        ]
    end = [nn.Flatten(), nn.Linear(4, 3), nn.ReLU()]
    return {
        "rectified": [nn.Conv2d(1, 1, 3), nn.ReLU(), nn.MaxPool2d(2), *end],
        "signed": [nn.Conv2d(1, 1, 3), nn.MaxPool2d(2), nn.ReLU(), *end],
        "tied": [nn.Conv2d(1, 1, 3), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, 1), nn.ReLU(), *end],
        "twice": [nn.MaxPool2d(3, 2, 1), nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2, 1), end[0]],
    }[kind]


MLPS = [f"mlp {depth} {width} {bias} {2 + (depth + width // 2) % 3}"
        for depth, width, bias in product((1, 2, 3), (2, 4, 6), (0, 1))]  # fmt: skip
POOLED = ["rectified 0", "rectified 1", "rectified 2", "signed 0", "signed 1", "tied 0",
          "tied 1", "twice 0", "twice 1"]  # fmt: skip
NAMES = MLPS + POOLED


def network(name):
    """Return a network, a corner of a square in its input space and the two sides from there."""
    source = torch.Generator().manual_seed(NAMES.index(name))
    model = nn.Sequential(*layers_of(name)).double().requires_grad_(False)
    for parameter in model.parameters():
        spread = 1.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.5
        parameter.copy_(spread * torch.randn(parameter.shape, generator=source).double())
    shape = (int(name.split()[4]),) if name in MLPS else (1, 6, 6)
    directions = torch.randn(torch.Size(shape).numel(), 3, generator=source).double()
    sides = 4 * torch.linalg.qr(directions[:, :2])[0].mT
    corner = 0.5 * directions[:, 2] - sides.sum(0) / 2
    return model, corner.view(shape), sides.view(2, *shape)


def counted(name):
    """Return what the package counts on the diagonal of the square and in the square."""
    model, corner, sides = network(name)
    line = torch.stack([corner, corner + sides.sum(0)])
    square = plane_regions(model, corner, corner + sides[0], corner + sides[1], margin=0)
    assert square.certified
    return [output_curve(model, line, closed=False).activation_regions, square.count]


def enumerated(name):
    """Return the same, counted pattern by pattern."""
    model, corner, sides = network(name)
    places = [torch.stack([corner, sides.sum(0)]), torch.stack([corner, *sides])]
    return [patterns(list(model), place, np.zeros((0, len(place)))) for place in places]


def patterns(layers, values, rows):
    """Count the patterns of layers where ``rows @ (1, x) > 0``, x in [0, 1]^d.

    All is affine there: of what layers take, `values` (1 + d, ...) are constant and slopes.
    """
    if not layers:
        return 1
    layer, values = layers[0], values.unsqueeze(1)
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.Flatten):
        moved = [layer(value) - layer(0 * value) for value in values[1:]]
        return patterns(layers[1:], torch.cat([layer(values[0]), *moved]), rows)
    units = values.flatten(1).mT.numpy()  # (n, 1 + d)
    if isinstance(layer, nn.ReLU):  # the larger one of 0 and z
        choices = [np.stack([0 * unit, unit]) for unit in units]
    else:
        choices = [units[window] for window in windows(layer, values.shape[2:])]

    def descend(number, chosen, rows):
        if number == len(choices):
            shape = layer(values[0]).shape[1:]
            return patterns(layers[1:], torch.tensor(np.array(chosen)).mT.reshape(-1, *shape), rows)
        total = 0
        for which, unit in enumerate(choices[number]):
            more = leads(choices[number], which)
            if more is not None and feasible(stricter := np.concatenate([rows, more])):
                total += descend(number + 1, [*chosen, unit], stricter)
        return total

    return descend(0, [], rows)


def windows(pool, shape):
    """Yield the flat numbers of the inputs of every window of a square pool."""
    (channels, height, width), size, free = shape, pool.kernel_size, pool.padding
    tops, lefts = (range(-free, n + free - size + 1, pool.stride) for n in (height, width))
    for channel, top, left in product(range(channels), tops, lefts):
        ys, xs = (
            range(max(top, 0), min(top + size, height)),
            range(max(left, 0), min(left + size, width)),
        )
        yield [(channel * height + y) * width + x for y, x in product(ys, xs)]


def leads(functions, which):
    """Return by what (n, 1 + d) a function leads the others, None if it never does all.

    Of functions that are the same the first is to lead.
    """
    lead = functions[which] - functions
    fixed = (np.abs(lead[:, 1:]) < 1e-12).all(1)
    same = fixed & (np.abs(lead[:, 0]) < 1e-12)
    if same[:which].any() or (fixed & ~same & (lead[:, 0] < 0)).any():
        return None
    return lead[~fixed]


def feasible(rows):
    """Return whether some x in [0, 1]^d has a distance over 1e-9 to where any row is 0."""
    rows = rows / np.linalg.norm(rows[:, 1:], axis=1, keepdims=True)
    dimensions = rows.shape[1] - 1
    bounds = [(0, 1)] * dimensions + [(None, 1)]
    objective = [0] * dimensions + [-1]
    above = np.column_stack([-rows[:, 1:], np.ones(len(rows))])
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    return -linprog(objective, above, rows[:, 0], bounds=bounds, options=options).fun > 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_as_many_regions_as_were_enumerated(name):
    assert counted(name) == json.loads(FILE.read_text())["regions"][name]


@pytest.mark.parametrize("name", ["mlp 1 6 1 3", "mlp 2 2 0 2", "rectified 0", "tied 1"])
def test_the_enumeration_gives_the_kept_numbers(name):
    assert enumerated(name) == json.loads(FILE.read_text())["regions"][name]


if __name__ == "__main__":
    regions = {name: enumerated(name) for name in NAMES}
    FILE.write_text(json.dumps({"made": MADE, "regions": regions}, indent=1) + "\n")
