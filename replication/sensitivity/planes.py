"""Activation regions on a plane through three points: as a picture, and counted exactly."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from replication._core.inputs import Array, as_choice, as_integer, like
from replication.sensitivity._evaluation import plain_evaluation
from replication.sensitivity._piecewise import MEMORY
from replication.sensitivity._piecewise.polygons import (
    Extent,
    Polygons,
    as_convex,
    box,
    pack,
    pieces_of,
    plane_through,
)
from replication.sensitivity._piecewise.trace import trace


@dataclass(frozen=True, eq=False)
class RegionMap:
    """A grid on a plane and the activation region that each of its points lies in.

    `ids` (resolution, resolution) are equal where the activity codes are, from 0 on, for
    ``imshow(ids, origin="lower", extent=extent)``; `count` is how many the grid meets, without
    those between its points. The outermost points lie half a step inside the `extent` (left, right,
    bottom, top). `points` (3, 2) are a at (0, 0), b at (|b - a|, 0) and c above.
    """

    ids: Array = field(repr=False)
    count: int
    extent: Extent
    points: Array = field(repr=False)

    @property
    def edges(self) -> Array:
        """Whether the right or the upper neighbour lies in another region, bool."""
        edges: Any = self.ids != self.ids  # all False, of the same kind
        edges[:, :-1] |= self.ids[:, 1:] != self.ids[:, :-1]
        edges[:-1] |= self.ids[1:] != self.ids[:-1]
        return edges


@dataclass(frozen=True, eq=False)
class PlaneRegions:
    """All activation regions in a convex polygon on a plane.

    `count` is the number of different activity codes of the pieces, with the largest inputs of max
    pooling as in `OutputCurve`, `polygons` their corners (corners, 2) float64, counter-clockwise,
    and `area_error` how far their areas are from adding up to the polygon's, relative to it.
    `points` are as in `RegionMap`, and `extent` is the box around the polygon.
    """

    count: int
    polygons: list[Array] = field(repr=False)
    area_error: float
    extent: Extent
    points: Array = field(repr=False)

    @property
    def certified(self) -> bool:
        """Whether the pieces fill the polygon, and no two of them have the same code."""
        return self.area_error < 1e-9 and self.count == len(self.polygons)


def region_map(
    model: nn.Module,
    a: Array,
    b: Array,
    c: Array,
    resolution: int = 200,
    *,
    margin: float = 0.25,
    layers: Sequence[str] | None = None,
    memory: int = MEMORY,
) -> RegionMap:
    """Return the activation regions on the plane through three inputs, on a grid, in float64.

    Two points have the same number if and only if every unit is in the same state (Novak et al.
    2018, figure 3, draws the boundaries in between) and every window of max pooling has the same
    largest input, the first of those that are equal.

    Parameters
    ----------
    model, memory
        As in `transitions`, and so the errors; the different codes need memory of their own.
    a, b, c : (...) tensors or arrays
        Single inputs, not on one line. The result is of the kind of `a`.
    resolution : int
        Points along each side of the grid.
    margin : float
        Left free around the three points on every side, in sizes of their box.
    layers : sequence of str, optional
        Activation and max-pooling layers to look at, by default all.

    Examples
    --------
    >>> import torch
    >>> from replication import sensitivity
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU()).double()
    >>> _ = torch.nn.init.eye_(net[0].weight)
    >>> corners = torch.tensor([[-1.0, -1], [1, -1], [-1, 1]], dtype=torch.float64)
    >>> drawn = sensitivity.region_map(net, *corners, resolution=50)
    >>> drawn.count, tuple(drawn.ids.shape)
    (4, (50, 50))
    """
    resolution, memory = as_integer(resolution, "resolution", 1), as_integer(memory, "memory", 1)
    plane, extent = plane_through(a, b, c, margin)
    with plain_evaluation(model):
        program = trace(model, plane.origin, torch.float64, "a")
        names = [*program.activations, *program.pools]
        chosen = names if layers is None else [as_choice(each, "layers", names) for each in layers]
        plane = plane.to(program.device)
        steps = (torch.arange(resolution, device=program.device).double() + 0.5) / resolution
        x, y = (low + (high - low) * steps for low, high in (extent[:2], extent[2:]))
        different, numbers = [], []  # codes of every chunk, and which of them its points have
        for chunk in torch.cartesian_prod(y, x).flip(1).split(program.rows(memory)):
            codes = [torch.zeros(len(chunk), 1, dtype=torch.int64, device=chunk.device)]
            for step, states in program.codes(plane.inputs(chunk)):
                if step.name in chosen:
                    codes.append(pack(states, step.choices))
            unique, number = torch.cat(codes, 1).unique(dim=0, return_inverse=True)
            different.append(unique)
            numbers.append(number)
        unique, ids = torch.cat(different).unique(dim=0, return_inverse=True)
        parts = ids.split([len(codes) for codes in different])
        ids = torch.cat([part[number] for part, number in zip(parts, numbers, strict=True)])
    kind = like(a)
    return RegionMap(kind(ids.view(resolution, -1)), len(unique), extent, kind(plane.points))


def plane_regions(
    model: nn.Module,
    a: Array,
    b: Array,
    c: Array,
    polygon: Array | None = None,
    *,
    margin: float = 0.25,
    memory: int = MEMORY,
) -> PlaneRegions:
    """Return all activation regions in a convex polygon on the plane through three inputs.

    Exactly, in float64: the polygon is cut along every unit's boundary, a straight line in each
    piece that the layers before have cut it into (Hanin and Rolnick 2019, figures of regions in a
    plane), and by max pooling into a cell for each input that is the largest somewhere. Their
    number grows with the square of that of neurons: for small networks. The cuts are made on the
    CPU, wherever the model is.

    Parameters
    ----------
    model, a, b, c, margin, memory
        As in `region_map`.
    polygon : (corners, 2) tensor or array, optional
        Convex, in the plane's coordinates, in which `RegionMap` has the points. By default the
        rectangle that `region_map` draws.

    Examples
    --------
    >>> import torch
    >>> from replication import sensitivity
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU()).double()
    >>> _ = torch.nn.init.eye_(net[0].weight)
    >>> corners = torch.tensor([[-1.0, -1], [1, -1], [-1, 1]], dtype=torch.float64)
    >>> sensitivity.plane_regions(net, *corners).count  # two lines cross: four quadrants
    4
    """
    memory = as_integer(memory, "memory", 1)
    plane, extent = plane_through(a, b, c, margin)
    if polygon is None:
        left, right, bottom, top = extent
        corners = torch.tensor([[left, bottom], [right, bottom], [right, top], [left, top]])
        corners = corners.double()
    else:
        corners = as_convex(polygon)
        extent = box(corners.amin(0), corners.amax(0))
    with plain_evaluation(model):
        program = trace(model, plane.origin, torch.float64, "a")
        plane, corners = plane.to(program.device), corners.cpu()
        middle = corners.new_tensor([extent[0] + extent[1], extent[2] + extent[3]]) / 2
        half = corners.new_tensor([extent[1] - extent[0], extent[3] - extent[2]]) / 2
        sides = plane.basis * half.to(program.device).view(2, *[1] * plane.origin.ndim)
        planes = torch.cat([sides, plane.inputs(middle[None].to(program.device))])[None]
        number = torch.tensor([len(corners)])
        whole = Polygons(((corners - middle) / half)[None], number, number.new_zeros(1, 0))
        size = planes.flatten(2).abs().sum(1).amax(1)
        limit = max(1, program.rows(memory) // 3)
        parts = list(pieces_of(program, whole, {0: (planes, size)}, limit))
        codes = torch.cat([part.codes for part in parts])
        error = sum(float(part.areas().sum()) for part in parts) / float(whole.areas()) - 1
        count = len(codes.unique(dim=0)) if codes.shape[1] else 1
        real = [part.corners[part.real()] for part in parts]
        numbers = torch.cat([part.number for part in parts]).tolist()
    kind = like(a)
    flat = kind((torch.cat(real) * half + middle).to(program.device))
    polygons = [flat[end - n : end] for n, end in zip(numbers, accumulate(numbers), strict=True)]
    return PlaneRegions(count, polygons, abs(error), extent, kind(plane.points))
