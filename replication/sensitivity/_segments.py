"""A piecewise-linear network along polylines, from one breakpoint to the next.

Between neighbouring rows every unit is affine in the position. At each nonlinear step the rows are
cut where a unit crosses a kink, so that behind it the units are affine between the new rows too;
all rows then go on to the next step. The values at new rows are interpolated, which is exact.

Only strictly opposite sides make a crossing; a unit within rounding of a kink is put on it first.
Crossings nearer to each other than the rounding errors of both positions become one row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from replication.sensitivity._cuts import Cut, Rows, cut, kinks, switches
from replication.sensitivity._program import Activation, Affine, MaxPool, Program, Step

# A tensor of the network at the rows, (rows, ...), and the size of the terms behind it, (rows,)
Values = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Stretch:
    """A stretch of the paths at one step of the network.

    Attributes
    ----------
    step : Activation, MaxPool or None
        None stands for the network's output.
    rows : Rows
        Of an activation those before it is cut, of a max pooling those behind, so that between them
        no input takes the place of another as the largest.
    x, magnitude : (rows, ...) and (rows,)
        The step's input, and the size of the terms behind it.
    cut : Cut or None
        Of an activation: where its units cross kinks.
    on_kinks : bool
        Of an activation: whether a unit is on a kink at one of the rows.
    """

    step: Activation | MaxPool | None
    rows: Rows
    x: Tensor
    magnitude: Tensor
    cut: Cut | None = None
    on_kinks: bool = False


def walk(
    program: Program,
    rows: Rows,
    live: dict[int, Values],
    limit: int,
    visit: Callable[[Stretch], None],
    index: int = 0,
) -> None:
    """Show the paths at every nonlinear step, and at the output if the program has one.

    The stretches of a step come in order, and each starts at the row with which the one before
    ends. At the output the rows are all breakpoints and vertices.

    Parameters
    ----------
    program : Program
    rows : Rows
    live : dict
        Slot to values at `rows`, of all slots that steps from number `index` on read.
    limit : int
        Rows at a time, 2 at least.
    visit : callable
    index : int
    """
    while index < len(program.steps):
        step = program.steps[index]
        is_last = index + 1 == len(program.steps) and program.output is None
        if isinstance(step, Affine):
            live = _after(live, step, index, _affine(step, live))
            index += 1
            continue
        x, magnitude = live[step.sources[0]]
        if isinstance(step, Activation):
            x, on_kinks, crossings, largest = kinks(step, rows, x, magnitude)
            parts = cut(rows, crossings)
            visit(Stretch(step, rows, x, magnitude, parts, on_kinks))
            if is_last:
                return
            # What is interpolated errs as the values at both ends do, however small it is itself.
            live[step.sources[0]], magnitude = (x, magnitude), largest
        else:
            parts = cut(rows, switches(step, rows, x, magnitude))
        x = None  # here and below, so that no more than one block is held at a time
        pieces = max(1, len(parts.rows) - 1)
        size = -(-pieces // -(-pieces // (limit - 1)))  # blocks of one size
        starts = range(0, pieces, size)
        for start in starts:
            block = slice(start, start + size + 1)
            here = {slot: parts.at(block, *values) for slot, values in live.items()}
            if start == starts[-1]:
                live = None
            y, terms = here[step.sources[0]]
            if isinstance(step, Activation):
                parts.settle(y, block)
                terms = parts.largest(magnitude, block)
            else:
                visit(Stretch(step, parts.rows[block], y, terms))
            if not is_last:
                here, y = _after(here, step, index, (step.forward(y), terms)), None
                if start != starts[-1]:
                    walk(program, parts.rows[block], here, limit, visit, index + 1)
        if is_last:
            return
        rows, live, here, index = parts.rows[block], here, None, index + 1
    if program.output is not None:
        visit(Stretch(None, rows, *live[program.output]))


def _affine(step: Affine, live: dict[int, Values]) -> Values:
    values, magnitudes = zip(*[live[slot] for slot in step.sources], strict=True)
    magnitude = magnitudes[0]
    for other in magnitudes[1:]:
        magnitude = torch.maximum(magnitude, other)
    return step.forward(*values), magnitude


def _after(live: dict[int, Values], step: Step, index: int, output: Values) -> dict[int, Values]:
    """Return what is still to be read after a step, its output among it."""
    return {s: v for s, v in live.items() if s not in step.released} | {index + 1: output}
