"""How long the training of notebooks would take here: their own plans, times a few steps of each.

`_planned` finds what a notebook would train; here some steps of every kind of network are timed on
the device at hand.
"""

import functools
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from replication import _planned, data, models, populations
from replication._inputs import choose_device
from replication._planned import Row
from replication._steps import Training, new_model

LIMIT = 20.0  # seconds for timing, whatever there is to time
EACH = 0.15  # seconds for the steps of one kind of network
AFFORDED = 2_000_000_000  # multiply-adds that are timed in one step on a CPU; more are scaled up
LABEL = "estimate: training only; measurements come on top"


@dataclass(frozen=True)
class Estimate:
    """What a notebook's training takes.

    Attributes
    ----------
    networks : int
    steps : int
        Of the optimiser, all networks together; fewer where a rule stops them.
    seconds : float
        For one network, or one population, after another on one device.
    share : float
        Of the arithmetic: that of kinds of steps that were timed. Another takes as long as the one
        most like it, in proportion to their multiply-adds.
    memory : int or None
        Bytes at the peak, images of the data set included; None on a CPU.
    """

    networks: int
    steps: int
    seconds: float
    share: float
    memory: int | None


class _Timing(NamedTuple):
    seconds: float
    memory: int | None  # bytes at the peak


def text(notebooks: Sequence[Path], parameters: Mapping[str, Any]) -> str:
    """Return a table of what the training of each notebook takes on this machine.

    Parameters
    ----------
    notebooks : sequence of Path
    parameters : mapping
        As the notebooks will be given them; ``device`` is where steps are timed.
    """
    began = time.monotonic()
    device = choose_device(parameters.get("device", "auto"))
    plans = {path.stem: _planned.rows(path, parameters) for path in notebooks}
    found = estimates(plans, device)
    lines = [f"{LABEL}\n{machine(str(device))}, timed in {time.monotonic() - began:.0f} s"]
    for name, one in found.items():
        if not one.networks:
            lines.append(f"  {name:<28} no network of `training`: minutes at most")
            continue
        memory = "not measured" if one.memory is None else f"{one.memory / 1e9:.1f} GB at the peak"
        part = "" if one.share > 0.995 else f", from {one.share:.0%} of the work"
        lines.append(
            f"  {name:<28} {one.networks:>5,} networks {one.steps:>13,} steps   about "
            f"{duration(one.seconds)}{part}; memory {memory}"
        )
    total = sum(one.seconds for one in found.values())
    return "\n".join([*lines, f"  {'in all':<28} about {duration(total)}"])


def estimates(
    plans: Mapping[str, Sequence[Row]], device: torch.device, limit: float = LIMIT
) -> dict[str, Estimate]:
    """Return the estimate of each plan; what costs it most is timed first, until `limit` is over.

    One kind of step of every plan is timed in any case. On a CPU none is whose single image is too
    much, unless there is no other.
    """
    until, timed = time.monotonic() + limit, {}
    orders = []
    for rows in plans.values():
        small = [row for row in rows if device.type == "cuda" or _arithmetic(row) <= AFFORDED]
        small = small or sorted(rows, key=_arithmetic)[:1]
        orders.append(sorted(small, key=_work, reverse=True))
    for place, round_ in enumerate(zip_longest(*orders)):
        for row in filter(None, round_):
            if _kind(row) not in timed and (place == 0 or time.monotonic() < until):
                with suppress(torch.OutOfMemoryError):
                    timed[_kind(row)] = _timed(row, device)
    return {name: _estimate(rows, timed) for name, rows in plans.items()}


def _kind(row: Row) -> str:
    """Return what decides the time of a step."""
    spec = row.spec
    options = {name: value for name, value in spec.model_options.items() if name != "dropout"}
    batch, together = min(spec.batch_size, row.images), row.together
    return json.dumps([spec.model, options, spec.optimizer, batch, spec.dtype, row.shape, together])


def _work(row: Row) -> float:
    """Return the multiply-adds of all steps of `row`; each call costs as much as a million."""
    return row.steps * (1e6 + _arithmetic(row) * min(row.spec.batch_size, row.images))


def _arithmetic(row: Row) -> int:
    """Return the multiply-adds of one image, forward and backward."""
    options = json.dumps(dict(row.spec.model_options))
    side = row.spec.augment.get("crop")
    shape = (row.shape[0], side, side) if side else row.shape
    return 3 * _operations(row.spec.model, options, shape)


@functools.cache
def _operations(model: str, options: str, shape: tuple[int, ...]) -> int:
    """Return the multiply-adds of one image forward."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        models.build(model, **json.loads(options)).eval()(torch.empty(1, *shape))
    return counter.get_total_flops() // 2


def _timed(row: Row, device: torch.device) -> _Timing:
    """Time a step of one network, or one network's share of a step of several."""
    size = min(row.spec.batch_size, row.images)
    count = size if device.type == "cuda" else min(size, max(1, AFFORDED // _arithmetic(row)))
    spec = replace(
        row.spec, batch_size=count, epochs=1_000_000, checkpoints=(), image_corruption=None
    )
    examples = data.Examples(torch.rand(count, *row.shape), torch.arange(count) % 2)
    split = data.Split(examples, examples, "random", tuple("0123456789"), "timing")
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    members = populations.members_at_once(new_model(spec, device), spec, row.together, device)
    seconds = (
        _of_one(spec, split, device) if members == 1 else _of_many(spec, split, device, members)
    )
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return _Timing(seconds * size / count, memory)


def _of_one(spec: Any, split: data.Split, device: torch.device) -> float:
    run = Training(spec, split, device)
    run.advance()  # the first is slower
    _wait(device)
    start, seconds, steps = time.perf_counter(), 0.0, 0
    while seconds < EACH and steps < 100:
        run.advance()
        _wait(device)
        seconds, steps = time.perf_counter() - start, steps + 1
    return seconds / steps


def _of_many(spec: Any, split: data.Split, device: torch.device, members: int) -> float:
    """Return what one network's share of a step takes: of two lengths, the difference."""
    taken = []
    for steps in (1, 1, 11):  # the first of all is slower
        specs = [replace(spec, epochs=steps, evaluate_every=steps, seed=s) for s in range(members)]
        start = time.perf_counter()
        populations.fit_population(specs, split, device=str(device), progress=False)
        _wait(device)
        taken.append(time.perf_counter() - start)
    return max(taken[2] - taken[1], 1e-6) / 10 / members


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _estimate(rows: Sequence[Row], timed: Mapping[str, _Timing]) -> Estimate:
    known = [row for row in rows if _kind(row) in timed]
    seconds = sum(timed[_kind(row)].seconds * row.steps for row in known)
    for row in (row for row in rows if _kind(row) not in timed):
        seconds += _as_the_next(row, known, timed) * row.steps
    sizes = [t.memory for row in known if (t := timed[_kind(row)]).memory is not None]
    images = max((row.images * math.prod(row.shape) for row in rows), default=0)
    work = sum(map(_work, rows))
    return Estimate(
        networks=sum(row.networks for row in rows),
        steps=sum(row.steps for row in rows),
        seconds=seconds,
        share=sum(map(_work, known)) / work if work else 1.0,
        memory=max(sizes) + 8 * images if sizes else None,  # the images, and a copy scaled
    )


def _as_the_next(row: Row, known: Sequence[Row], timed: Mapping[str, _Timing]) -> float:
    """Return the seconds of a step that was not timed, from the timed one most like it."""

    def ratio(other: Row) -> float:
        return (_work(row) / row.steps) / (_work(other) / other.steps)

    if not known:
        return math.nan
    nearest = min(known, key=lambda other: abs(math.log(ratio(other))))
    return timed[_kind(nearest)].seconds * ratio(nearest)


def duration(seconds: float) -> str:
    """Return seconds in words, to two digits or so."""
    if math.isnan(seconds):
        return "unknown"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{seconds:.0f} s"


def machine(device: str) -> str:
    """Return the name of the device on which networks would be trained."""
    target = choose_device(device)
    if target.type == "cuda":
        return torch.cuda.get_device_name(target)
    return f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
