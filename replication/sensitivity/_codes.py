"""What changes along paths, from one piece or point to the next."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from replication.sensitivity._cuts import nonzero
from replication.sensitivity._program import Activation, Affine, MaxPool, Program
from replication.sensitivity._segments import Stretch


@dataclass(frozen=True)
class Runs:
    """The parts of a stretch of rows, pieces or points that belong to one path each, in order.

    Attributes
    ----------
    first, last : (runs,) int64
        Where they start and end.
    opens, closes : (runs,) bool
        Whether the start is that of its path, and the end its end.
    """

    first: Tensor
    last: Tensor
    opens: Tensor
    closes: Tensor


@dataclass
class Tally:
    """The changes of one layer's codes along paths that come in order, stretch by stretch.

    Attributes
    ----------
    closed : bool
        Whether the end of a path is compared with its start.
    differs : callable
        Of two tensors of codes (n, ...), which units changed, (n, units).
    """

    closed: bool
    differs: Callable[[Tensor, Tensor], Tensor]
    _end: Tensor | None = None  # code at the end of what was seen, (1, ...)
    _start: tuple[Tensor, Tensor] | None = None  # place and code of an unfinished path's start
    # Rows of segment, fraction and unit. It grows by doubling: many small tensors, some from each
    # block, would lie scattered in memory and keep the allocator from using its gaps again.
    _changes: Tensor | None = None
    _count: int = 0

    def note(self, places: Tensor, units: Tensor) -> None:
        """Count changes of `units` at `places` (changes, 2 or more)."""
        count = self._count + len(units)
        if self._changes is None or count > len(self._changes):
            changes = places.new_empty(max(64, 2 * count), 3)
            if self._changes is not None:
                changes[: self._count] = self._changes[: self._count]
            self._changes = changes
        self._changes[self._count : count, :2] = places[:, :2]
        self._changes[self._count : count, 2] = units
        self._count = count

    def join(self, places: Tensor, starts: Tensor, ends: Tensor, runs: Runs) -> None:
        """Count what changes where the next runs meet the one before, and where paths close.

        Parameters
        ----------
        places : (runs, 2 or more)
            Where they start.
        starts, ends : (runs, ...)
            Codes there and at their ends.
        runs : Runs
        """
        if not len(starts):
            return
        if not runs.opens[0]:
            self._compare(places[:1], self._end, starts[:1])
        self._end = ends[-1:].clone()  # a view would keep the stretch
        places, starts = places[runs.opens], starts[runs.opens]
        if self._start is not None:
            places, starts = (
                torch.cat([self._start[0], places]),
                torch.cat([self._start[1], starts]),
            )
        ends = ends[runs.closes]
        if self.closed:
            self._compare(places[: len(ends)], ends, starts[: len(ends)])
        places, starts = places[len(ends) :], starts[len(ends) :]
        self._start = (places, starts) if len(starts) else None

    def _compare(self, places: Tensor, before: Tensor, after: Tensor) -> None:
        row, unit = self.differs(before, after).nonzero(as_tuple=True)
        self.note(places[row], unit)

    def add(self, places: Tensor, codes: Tensor, runs: Runs) -> None:
        """Count the changes between consecutive items, which begin at `places`."""
        changed = self.differs(codes[:-1], codes[1:])
        changed[runs.last[runs.last < len(changed)]] = False
        changed[runs.first[runs.first > 0] - 1] = False
        index = nonzero(changed)
        row = index // changed.shape[1]
        self.note(places[row + 1], index - row * changed.shape[1])
        self.join(places[runs.first], codes[runs.first], codes[runs.last], runs)

    def changes(self) -> Tensor:
        """Return the segment, fraction and unit of every change, (changes, 3) float64."""
        return torch.zeros(0, 3).double() if self._changes is None else self._changes[: self._count]


def count_changes(tallies: dict[str, Tally], stretch: Stretch, runs: Runs) -> None:
    """Add what changes in a stretch of the paths to its layer's tally."""
    count = _count_states if isinstance(stretch.step, Activation) else _count_switches
    count(tallies[stretch.step.name], stretch, runs)


def _count_states(tally: Tally, stretch: Stretch, runs: Runs) -> None:
    """Count the units that change state: where they cross a kink, and where they leave one."""
    step, z, table = stretch.step, stretch.x.flatten(1), stretch.rows.table
    if stretch.cut.where is not None:
        tally.note(stretch.cut.rows.table[stretch.cut.where], stretch.cut.unit)
    if stretch.on_kinks:
        inner = torch.ones(len(z), 1, dtype=torch.bool, device=z.device)
        inner[runs.first] = inner[runs.last] = False
        for number, threshold in enumerate(step.thresholds):
            index = nonzero((z == threshold) & inner)
            row = index // z.shape[1]
            unit = index - row * z.shape[1]
            before, after = z[row - 1, unit], z[row + 1, unit]
            moved = _behind(before, threshold, number) != _behind(after, threshold, number)
            tally.note(table[row[moved]], unit[moved])
    starts = _states_beside(step, z[runs.first], z[runs.first + 1])
    ends = _states_beside(step, z[runs.last], z[runs.last - 1])
    tally.join(table[runs.first], starts, ends, runs)


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


def _count_switches(tally: Tally, stretch: Stretch, runs: Runs) -> None:
    """Count the windows in which no input is the largest both before and behind a row."""
    step: MaxPool = stretch.step
    attained = step.attains(step.candidates(stretch.x), stretch.magnitude)
    pieces = Runs(runs.first, runs.last - 1, runs.opens, runs.closes)
    tally.add(stretch.rows.table[:-1], attained[:-1] & attained[1:], pieces)


def new_tallies(program: Program, closed: bool) -> dict[str, Tally]:
    """Return an empty tally for every nonlinear layer, by name."""
    return {
        step.name: Tally(closed, _differing if isinstance(step, Activation) else _disjoint)
        for step in program.steps
        if not isinstance(step, Affine)
    }


def _differing(before: Tensor, after: Tensor) -> Tensor:
    """Return which units are in another state, (n, units)."""
    return before != after


def _disjoint(before: Tensor, after: Tensor) -> Tensor:
    """Return which windows have no input that is the largest in both, (n, W)."""
    return ~(before & after).any(-1)
