"""What changes along paths, from one piece or point to the next."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from replication.sensitivity._cuts import nonzero
from replication.sensitivity._program import Activation, Affine, MaxPool, Program
from replication.sensitivity._segments import Stretch


@dataclass
class Tally:
    """The changes of one layer's codes along paths, which come in order, part by part.

    Attributes
    ----------
    closed : bool
        Whether the end of a path is compared with its start.
    differs : callable
        Of two tensors of codes (n, ...), which units changed, (n, units).
    """

    closed: bool
    differs: Callable[[Tensor, Tensor], Tensor]
    _start: tuple[Tensor, Tensor] | None = None  # place and code of the start of the present path
    _end: Tensor | None = None  # code at the end of what was seen of it, (1, ...)
    # Rows of segment, fraction and unit. It grows by doubling: many small tensors, some from each
    # block, would lie scattered in memory and keep the allocator from using its gaps again.
    _changes: Tensor | None = None
    _count: int = 0

    def note(self, places: Tensor, units: Tensor) -> None:
        """Count changes of `units` at `places` (changes, 2)."""
        count = self._count + len(units)
        if self._changes is None or count > len(self._changes):
            changes = places.new_empty(max(64, 2 * count), 3)
            if self._changes is not None:
                changes[: self._count] = self._changes[: self._count]
            self._changes = changes
        self._changes[self._count : count, :2] = places
        self._changes[self._count : count, 2] = units
        self._count = count

    def join(self, place: Tensor, start: Tensor, end: Tensor, closes: bool) -> None:
        """Count what changes where the next part meets the one before, and where a path closes.

        Parameters
        ----------
        place : (1, 2)
            Where the part starts.
        start, end : (1, ...)
            Codes there and at its end.
        closes : bool
            Whether its end is that of the path; the next part then starts another.
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
        units = self.differs(before, after)[0].nonzero()[:, 0]
        self.note(place.expand(len(units), 2), units)

    def add(self, places: Tensor, codes: Tensor, runs: list[tuple[int, int, bool]]) -> None:
        """Count the changes between items with `codes` (items, ...), which begin at `places`.

        Only within `runs`: first and last item of one path, and whether it ends with that.
        """
        changed = self.differs(codes[:-1], codes[1:])
        for first, last, closes in runs:
            within = changed[first:last]
            index = nonzero(within)
            row = index // within.shape[1]
            self.note(places[first + 1 + row], index - row * within.shape[1])
            self.join(places[first : first + 1], codes[first, None], codes[last, None], closes)

    def changes(self) -> Tensor:
        """Return the segment, fraction and unit of every change, (changes, 3) float64."""
        return torch.zeros(0, 3).double() if self._changes is None else self._changes[: self._count]


def new_tallies(program: Program, closed: bool) -> dict[str, Tally]:
    """Return an empty tally for every nonlinear layer, by name."""
    return {
        step.name: Tally(closed, _differing if isinstance(step, Activation) else _disjoint)
        for step in program.steps
        if not isinstance(step, Affine)
    }


def count_changes(tallies: dict[str, Tally], stretch: Stretch) -> None:
    """Add what changes in a stretch of the paths to its layer's tally."""
    count = _count_states if isinstance(stretch.step, Activation) else _count_switches
    count(tallies[stretch.step.name], stretch)


def _count_states(tally: Tally, stretch: Stretch) -> None:
    """Count the units that change state: where they cross a kink, and where they leave one."""
    step, z, runs = stretch.step, stretch.x.flatten(1), stretch.rows.runs()
    if stretch.cut.where is not None:
        tally.note(stretch.cut.rows.places[stretch.cut.where], stretch.cut.unit)
    if stretch.on_kinks:
        inner = torch.zeros(len(z), 1, dtype=torch.bool, device=z.device)
        for first, last, _ in runs:
            inner[first + 1 : last] = True
        for number, threshold in enumerate(step.thresholds):
            index = nonzero((z == threshold) & inner)
            row = index // z.shape[1]
            unit = index - row * z.shape[1]
            before, after = z[row - 1, unit], z[row + 1, unit]
            moved = _behind(before, threshold, number) != _behind(after, threshold, number)
            tally.note(stretch.rows.places[row[moved]], unit[moved])
    for first, last, closes in runs:
        start, end = (
            _states_beside(step, z[row, None], z[neighbour, None])
            if stretch.on_kinks
            else step.states(z[row, None])
            for row, neighbour in ((first, first + 1), (last, last - 1))
        )
        tally.join(stretch.rows.places[first, None], start, end, closes)


def _behind(z: Tensor, threshold: float, number: int) -> Tensor:
    """Return whether units are behind a threshold; on the second they are, on the first not."""
    return z >= threshold if number else z > threshold


def _states_beside(step: Activation, here: Tensor, beside: Tensor) -> Tensor:
    """Return the states right beside a row, on the side of its neighbour."""
    behind = [
        _behind(here, threshold, number).where(
            here != threshold, _behind(beside, threshold, number)
        )
        for number, threshold in enumerate(step.thresholds)
    ]
    return behind[0] if len(behind) == 1 else behind[0].to(torch.int8).add_(behind[1])


def _count_switches(tally: Tally, stretch: Stretch) -> None:
    """Count the windows in which no input is the largest both before and behind a row."""
    step: MaxPool = stretch.step
    attained = step.attains(step.candidates(stretch.x), stretch.magnitude)
    pieces = [(first, last - 1, closes) for first, last, closes in stretch.rows.runs()]
    tally.add(stretch.rows.places[:-1], attained[:-1] & attained[1:], pieces)


def _differing(before: Tensor, after: Tensor) -> Tensor:
    """Return which units are in another state, (n, units)."""
    return before != after


def _disjoint(before: Tensor, after: Tensor) -> Tensor:
    """Return which windows have no input that is the largest in both, (n, W)."""
    return ~(before & after).any(-1)
