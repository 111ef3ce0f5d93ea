"""A piecewise-linear network along polylines, from one breakpoint to the next.

At each nonlinear step the rows are cut where a unit crosses a kink, so that behind it the units are
affine between the new rows too; all rows then go on to the next step. The values at new rows are
interpolated, which is exact. What changes there is counted, layer by layer.

Only strictly opposite sides make a crossing; a unit within rounding of a kink is put on it first.
Crossings nearer to each other than the rounding errors of both positions become one row.
"""

import torch
from torch import Tensor

from replication.sensitivity._piecewise.crossings import Cut, Rows, cut, kinks, switches
from replication.sensitivity._piecewise.program import Activation, Affine, MaxPool, Program, after

# A tensor of the network at the rows, (rows, ...), and the size of the terms behind it, (rows,)
Values = tuple[Tensor, Tensor]


class Tally:
    """The changes of one layer's codes along paths, which come in order, part by part.

    Codes are states (n, units), or of max pooling the inputs that are the largest of their windows,
    (n, W, k). If `closed`, the end of a path is compared with its start.
    """

    def __init__(self, closed: bool, device: torch.device) -> None:
        self.closed = closed
        self._start: tuple[Tensor, Tensor] | None = None  # place and code, of the present path
        self._end = torch.empty(0)  # code at the end of what was seen of it, (1, ...)
        self._table = torch.zeros(0, 3, dtype=torch.float64, device=device)
        self._count = 0

    @property
    def changes(self) -> Tensor:
        """Segment, fraction and unit of every change, (changes, 3) float64."""
        return self._table[: self._count]

    def note(self, places: Tensor, units: Tensor) -> None:
        """Count changes of `units` at `places` (changes, 2)."""
        start, self._count = self._count, self._count + len(units)
        if self._count > len(self._table):
            # By doubling: many small tensors, some from each block, would lie scattered in memory
            # and keep the allocator from using its gaps again.
            grown = self._table.new_empty(max(64, 2 * self._count), 3)
            grown[:start] = self._table[:start]
            self._table = grown
        self._table[start : self._count, :2] = places
        self._table[start : self._count, 2] = units

    def join(self, place: Tensor, start: Tensor, end: Tensor, closes: bool) -> None:
        """Count what changes where the next part meets the one before, and where a path closes.

        The part starts at `place` (1, 2) with the code `start` (1, ...) and ends with `end`; it
        `closes` if its end is that of the path, so that the next part starts another.
        """
        if self._start is None:
            self._start = place.clone(), start.clone()  # as views they would keep the whole
        else:
            self._compare(place, self._end, start)
        self._end = end.clone()
        if closes:
            place, start = self._start
            if self.closed:
                self._compare(place, end, start)
            self._start = None

    def _compare(self, place: Tensor, before: Tensor, after: Tensor) -> None:
        units = _changed(before, after)[0].nonzero()[:, 0]
        self.note(place.expand(len(units), 2), units)

    def add(self, places: Tensor, codes: Tensor, runs: list[tuple[int, int, bool]]) -> None:
        """Count the changes between items with `codes` (items, ...), which begin at `places`.

        Only within `runs`: first and last item of one path, and whether it ends with that.
        """
        changed = _changed(codes[:-1], codes[1:])
        for first, last, closes in runs:
            row, unit = changed[first:last].nonzero(as_tuple=True)
            self.note(places[first + 1 + row], unit)
            self.join(places[first : first + 1], codes[first, None], codes[last, None], closes)

    def add_states(self, step: Activation, rows: Rows, z: Tensor, parts: Cut, on_kinks: bool):
        """Count the units of z (rows, units) that cross a kink, and where they leave one."""
        if parts.where is not None:
            self.note(parts.rows.places[parts.where], parts.unit)
        if on_kinks:
            inner = torch.zeros(len(z), 1, dtype=torch.bool, device=z.device)
            for first, last, _ in rows.runs():
                inner[first + 1 : last] = True
            for number, threshold in enumerate(step.thresholds):
                row, unit = ((z == threshold) & inner).nonzero(as_tuple=True)
                before, following = z[row - 1, unit], z[row + 1, unit]
                moved = step.behind(before, number) != step.behind(following, number)
                self.note(rows.places[row[moved]], unit[moved])
        for first, last, closes in rows.runs():
            start = step.states(z[first, None], beside=z[first + 1, None])
            end = step.states(z[last, None], beside=z[last - 1, None])
            self.join(rows.places[first, None], start, end, closes)

    def add_switches(self, step: MaxPool, rows: Rows, x: Tensor, magnitude: Tensor) -> None:
        """Count the windows of x in which no input is the largest both before and behind a row."""
        attained = step.attains(step.candidates(x), magnitude)
        pieces = [(first, last - 1, closes) for first, last, closes in rows.runs()]
        self.add(rows.places[:-1], attained[:-1] & attained[1:], pieces)


def _changed(before: Tensor, after: Tensor) -> Tensor:
    """Return which units or windows changed, (n, units): a window if no input is in both."""
    return before != after if before.ndim == 2 else ~(before & after).any(-1)


def tallies_of(program: Program, closed: bool) -> dict[str, Tally]:
    """Return an empty tally for every nonlinear layer, by name, in forward order."""
    nonlinear = [step for step in program.steps if not isinstance(step, Affine)]
    return {step.name: Tally(closed, program.device) for step in nonlinear}


def walk(
    program: Program,
    rows: Rows,
    live: dict[int, Values],
    limit: int,
    tallies: dict[str, Tally],
    outputs: list[tuple[Tensor, Tensor, Tensor]] | None = None,
    index: int = 0,
) -> None:
    """Count what changes along the rows at all steps from number `index` on.

    Parts of the paths come in order at each step, each starting at the row with which the one
    before ends. `live` holds the values at `rows` of all slots that these steps read; `limit` is
    rows at a time, 2 at least. If the program has an output, `outputs` gets places (rows, 2),
    output (rows, ...) and magnitude (rows,) at all breakpoints and vertices, part by part.
    """
    while index < len(program.steps):
        step = program.steps[index]
        is_last = index + 1 == len(program.steps) and program.output is None
        index += 1
        if isinstance(step, Affine):
            values, magnitudes = zip(*[live[slot] for slot in step.sources], strict=True)
            live = after(live, step, (step.forward(*values), torch.stack(magnitudes).amax(0)))
            del values  # here and below, so that no more than one block is held at a time
            continue
        source, tally = step.sources[0], tallies[step.name]
        x, magnitude = live[source]
        if isinstance(step, Activation):
            x, on_kinks, crossings, largest = kinks(step, rows, x, magnitude)
            parts = cut(rows, crossings)
            tally.add_states(step, rows, x.flatten(1), parts, on_kinks)
            if is_last:
                return
            # What is interpolated errs as the values at both ends do, however small it is itself.
            live[source], magnitude = (x, magnitude), largest
        else:
            parts = cut(rows, switches(step, rows, x, magnitude))
        x = None
        pieces = max(1, len(parts.rows) - 1)
        size = -(-pieces // -(-pieces // (limit - 1)))  # blocks of one size
        starts = range(0, pieces, size)
        for start in starts:
            block = slice(start, start + size + 1)
            values = {slot: parts.at(block, *value) for slot, value in live.items()}
            if start == starts[-1]:
                live = {}
            y, terms = values[source]
            if isinstance(step, Activation):
                parts.settle(y, block)
                terms = parts.largest(magnitude, block)
            else:
                tally.add_switches(step, parts.rows[block], y, terms)
            if not is_last:
                values, y = after(values, step, (step.forward(y), terms)), None
                if start != starts[-1]:
                    walk(program, parts.rows[block], values, limit, tallies, outputs, index)
        if is_last:
            return
        rows, live, values = parts.rows[block], values, {}
    if program.output is not None and outputs is not None:
        outputs.append((rows.places, *live[program.output]))
