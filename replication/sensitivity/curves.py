"""What a piecewise-linear network makes of a path: its output piece by piece, and its regions."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from replication._core.inputs import Array, as_integer, like
from replication.sensitivity._evaluation import plain_evaluation
from replication.sensitivity._piecewise import MEMORY
from replication.sensitivity._piecewise.paths import as_paths, as_polylines
from replication.sensitivity._piecewise.program import ROUNDING
from replication.sensitivity._piecewise.trace import trace
from replication.sensitivity._piecewise.walk import tallies_of, walk


@dataclass(frozen=True, eq=False)
class OutputCurve:
    """The output along a path: a polyline, whose corners are these points.

    Attributes
    ----------
    positions : (points,) float64
        As in `Transitions`. All vertices are among them, and of an open path its end.
    outputs : (points, outputs)
    changes : (points,) int64
        How many units change state there, and windows of max pooling their largest input.
    bends : (points,) bool
        Whether the network itself bends there. It may not where units change: nothing that they
        lead to may be on, or they may make up for one another. At a vertex, where the path itself
        turns, it is taken to bend if a unit changes.
    """

    positions: Array = field(repr=False)
    outputs: Array = field(repr=False)
    changes: Array = field(repr=False)
    bends: Array = field(repr=False)
    closed: bool

    @property
    def activation_regions(self) -> int:
        """Number of pieces of the path within which no unit changes state."""
        return self._pieces(self.changes > 0)

    @property
    def linear_regions(self) -> int:
        """Number of pieces of the path within which the network does not bend."""
        return self._pieces(self.bends)

    def _pieces(self, cuts: Array) -> int:
        return max(1, int(cuts.sum()) + (not self.closed))


def output_curve(
    model: nn.Module, path: Array, closed: bool = True, *, memory: int = MEMORY
) -> OutputCurve:
    """Return the output along a path at all its breakpoints, in float64: exact in between.

    Pieces of constant activity codes are activation regions; neighbours on which the network is one
    affine function are one linear region (Hanin and Rolnick 2019, both papers).

    Parameters
    ----------
    model, path, closed, memory
        As in `transitions`, and so the errors; the path is a single one. To look at lines, give
        their two ends and ``closed=False``.

    Examples
    --------
    >>> import torch
    >>> from replication import sensitivity
    >>> net = torch.nn.ReLU()
    >>> line = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    >>> curve = sensitivity.output_curve(net, line, closed=False)  # bends once, at 0
    >>> curve.positions.tolist(), curve.linear_regions
    ([0.0, 0.5, 1.0], 2)
    """
    memory = as_integer(memory, "memory", 1)
    if isinstance(path, list | tuple):
        raise ValueError(f"path: expected one tensor or array, found a {type(path).__name__}")
    polylines = as_polylines(path)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with plain_evaluation(model):
        program = trace(model, polylines[0][0], torch.float64, "path", output=True)
        paths, limit = as_paths(polylines, closed, program.device), program.rows(memory)
        tallies = tallies_of(program, closed)
        for rows, live in paths.blocks(program, limit):
            walk(program, rows, live, limit, tallies, parts)
    # The first row of a part is the last of the one before.
    pieces = [[x[number > 0 :] for x in part] for number, part in enumerate(parts)]
    table, outputs, magnitude = (torch.cat(columns) for columns in zip(*pieces, strict=True))
    outputs = outputs.flatten(1)
    terms = torch.outer(magnitude, program.scale) + program.offset
    rounding = ROUNDING * torch.finfo(torch.float64).eps * terms
    changes = torch.zeros(len(table), dtype=torch.int64, device=program.device)
    for tally in tallies.values():
        at = torch.searchsorted(table.sum(1), tally.changes[:, :2].sum(1))
        changes += torch.bincount(at, minlength=len(table))
    bends = _bends(table, outputs, rounding, changes)

    points = slice(0, max(1, len(table) - closed))  # a closed path's end is its start
    segments = paths.place[table[points, 0].long()]
    if closed:
        segments %= paths.lengths[0]
    positions = (segments + table[points, 1]) / paths.lengths[0]
    outputs, changes, bends = (like(path)(x[points]) for x in (outputs, changes, bends))
    return OutputCurve(like(path)(positions), outputs, changes, bends, closed)


def _bends(table: Tensor, outputs: Tensor, rounding: Tensor, changes: Tensor) -> Tensor:
    """Return at which rows (rows,) the network bends: places (rows, 2), outputs (rows, outputs)."""
    bends, pieces = changes > 0, outputs.diff(dim=0)
    if len(pieces) < 2:
        return bends
    share = table[1:, 1].where(table[1:, 0] == table[:-1, 0], 1) - table[:-1, 1]

    # Within a segment, between two pieces: their slopes are the same up to rounding?
    before, after, shares = pieces[:-1], pieces[1:], (share[:-1, None], share[1:, None])
    eps = torch.finfo(outputs.dtype).eps
    slack = 2 * rounding[1:-1] * (shares[0] + shares[1]) + 4 * eps * (before.abs() + after.abs())
    bent = ((before * shares[1] - after * shares[0]).abs() > slack).any(1)
    bends[1:-1] &= bent | (table[1:-1, 1] == 0)
    return bends
