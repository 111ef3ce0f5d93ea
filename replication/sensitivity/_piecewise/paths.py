"""Polylines as rows of vertices, and as points on them, a block at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from replication._core.inputs import as_tensor
from replication.sensitivity._piecewise.crossings import Rows
from replication.sensitivity._piecewise.program import Program
from replication.sensitivity._piecewise.walk import Values


@dataclass(frozen=True)
class Paths:
    """Several polylines, one after another, on the device of the model but for `vertices`.

    A segment's number is that of the row of its first vertex; the last vertex of a polyline, where
    it is closed the first once more, has a row of its own.
    """

    vertices: Tensor  # (V, ...), each vertex of all polylines once
    vertex: Tensor  # (rows,) which vertex a row is,
    path: Tensor  # of which polyline,
    place: Tensor  # and of which of its segments it is the start
    last: Tensor  # (rows,) bool, whether it is the last row of its polyline
    moving: Tensor  # (rows,) bool, whether it is the start of a segment that has a length
    lengths: Tensor  # (paths,) segments in each
    closed: bool

    def inputs(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the vertices of rows, (len(rows), ...), on the device of the model."""
        chosen = self.vertices[self.vertex[rows].to(self.vertices.device)]
        return chosen.to(rows.device, dtype)

    def blocks(self, program: Program, limit: int) -> Iterator[tuple[Rows, dict[int, Values]]]:
        """Yield the vertices, at most `limit` at a time, as `walk` takes them.

        A vertex that the next one repeats is left out, and so no segment has length 0.
        """
        rows = (self.moving | self.last).nonzero()[:, 0]
        for start in range(0, max(1, len(rows) - 1), limit - 1):
            chosen = rows[start : start + limit]
            x = self.inputs(chosen, program.dtype)
            places = torch.zeros(len(chosen), 2, dtype=torch.float64, device=x.device)
            places[:, 0] = chosen
            ends = tuple(self.last[chosen].nonzero()[:, 0].tolist())
            yield Rows(places, ends), {0: (x, x.flatten(1).abs().amax(1))}

    def points(
        self, k: int, dtype: torch.dtype, limit: int
    ) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Yield k points of each path, equidistant in length, at most `limit` at a time.

        As places (points, 2), segment and fraction, inputs (points, ...), and whether the last of
        them is the last of its path.
        """
        for number in range(len(self.lengths)):
            rows = (self.path == number).nonzero()[:, 0]
            length = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
            for block in rows[:-1].split(limit):
                side = self.inputs(block + 1, length.dtype) - self.inputs(block, length.dtype)
                length[block + 1 - rows[0]] = side.flatten(1).norm(dim=1)
            reached = length.cumsum(0)
            apart = reached[-1] / (k if self.closed else k - 1)
            for start in range(0, k, limit):
                index = torch.arange(start, min(start + limit, k), device=rows.device)
                end = torch.searchsorted(reached, index * apart, right=True)
                end = end.clamp(1, len(rows) - 1)
                whole = length[end].where(length[end] > 0, 1)
                fraction = ((index * apart - reached[end - 1]) / whole).clamp(0, 1)
                segment = rows[end - 1]
                x = self.inputs(segment, dtype)
                weight = fraction.to(dtype).view(-1, *[1] * (x.ndim - 1))
                x = torch.lerp(x, self.inputs(segment + 1, dtype), weight)
                yield torch.stack([segment.double(), fraction], 1), x, start + limit >= k


def as_polylines(path: object) -> list[Tensor]:
    """Return the argument `path`, one polyline (V, ...) or a list of them, as a list of tensors."""
    polylines = [as_tensor(p, "path") for p in (path if isinstance(path, list | tuple) else [path])]
    if not polylines:
        raise ValueError(f"path: expected at least one path, found an empty {type(path).__name__}")
    shape = polylines[0].shape[1:]
    for vertices in polylines:
        if vertices.ndim < 2 or len(vertices) < 2 or vertices.shape[1:] != shape:
            raise ValueError(
                "path: expected vertices (V, ...), V >= 2, all of one shape, found shape "
                f"{tuple(vertices.shape)}"
            )
    return polylines


def as_paths(polylines: list[Tensor], closed: bool, device: torch.device) -> Paths:
    """Return polylines as rows of vertices, for a model on `device`."""
    lengths = torch.tensor([len(vertices) - 1 + closed for vertices in polylines], device=device)
    starts = torch.tensor([0, *map(len, polylines)], device=device).cumsum(0)
    path = torch.arange(len(polylines), device=device).repeat_interleave(lengths + 1)
    first_rows = (lengths + 1).cumsum(0) - (lengths + 1)
    place = torch.arange(len(path), device=device) - first_rows[path]
    vertex = starts[path] + place % starts.diff()[path]
    last = place == lengths[path]

    vertices = polylines[0]
    if len(polylines) > 1:
        vertices = torch.cat([more.to(vertices.device) for more in polylines])
    moving = torch.zeros_like(last)
    moves = [(p != p.roll(-1, 0)).flatten(1).any(1)[: len(p) - 1 + closed] for p in polylines]
    moving[~last] = torch.cat([move.to(device) for move in moves])
    return Paths(vertices, vertex, path, place, last, moving, lengths, closed)
