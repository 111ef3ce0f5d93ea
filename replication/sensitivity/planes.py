"""Activation regions on a plane through three points: as a picture, and counted exactly."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from replication._core.inputs import Array, as_integer, like, nearest
from replication.sensitivity._evaluation import plain_evaluation
from replication.sensitivity._plane import Extent, convex, plane_through
from replication.sensitivity._polygons import Polygons, pack, regions
from replication.sensitivity._program import Activation, MaxPool, Program
from replication.sensitivity._tracing import trace
from replication.sensitivity.regions import MEMORY


@dataclass(frozen=True, eq=False)
class RegionMap:
    """A grid on a plane and the activation region that each of its points lies in.

    Attributes
    ----------
    ids : (resolution, resolution) int64
        Equal where the activity codes are equal, from 0 on; the first row has the lowest y, for
        ``imshow(ids, origin="lower", extent=extent)``.
    count : int
        How many different ones the grid meets; it misses those that lie between its points.
    extent : tuple of 4 floats
        Left, right, bottom and top of the grid, whose outermost points lie half a step inside.
    points : (3, 2) float64
        The three points on the plane: a at (0, 0), b at (|b - a|, 0), c above.
    """

    ids: Array = field(repr=False)
    count: int
    extent: Extent
    points: Array = field(repr=False)

    @property
    def edges(self) -> Array:
        """Whether the right or the upper neighbour lies in another region, bool."""
        edges = self.ids != self.ids  # all False, of the same kind
        edges[:, :-1] |= self.ids[:, 1:] != self.ids[:, :-1]
        edges[:-1] |= self.ids[1:] != self.ids[:-1]
        return edges


@dataclass(frozen=True, eq=False)
class PlaneRegions:
    """All activation regions in a convex polygon on a plane.

    Attributes
    ----------
    count : int
        Different activity codes of the pieces.
    polygons : list of (corners, 2) float64
        The pieces, convex, counter-clockwise, in the plane's coordinates.
    area_error : float
        How far the pieces' areas are from adding up to the polygon's, relative to it.
    extent, points
        As in `RegionMap`, of the box around the polygon.
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

    Two points of the grid have the same number if and only if every unit is in the same state: the
    codes themselves are compared (Novak et al. 2018, figure 3, draws the boundaries in between).

    Parameters
    ----------
    model : torch.nn.Module
        As in `transitions`.
    a, b, c : (...) tensors or arrays
        Single inputs, not on one line.
    resolution : int
        Points along each side of the grid.
    margin : float
        Left free around the three points on every side, in sizes of their box.
    layers : sequence of str, optional
        Activation layers to look at, by default all.
    memory : int
        Bytes that the working tensors may take, about, beside the different codes.

    Returns
    -------
    RegionMap
        Of the kind of `a`, tensors on the model's device.

    Raises
    ------
    ValueError
        If the inputs are on one line or differ in shape, for an unknown layer, or as in
        `transitions`.

    Examples
    --------
    >>> import torch
    >>> from replication import sensitivity
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()).double()
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.eye(2)), net[0].bias.zero_()
    >>> corners = torch.tensor([[-1.0, -1], [1, -1], [-1, 1]], dtype=torch.float64)
    >>> drawn = sensitivity.region_map(net, *corners, resolution=50)
    >>> drawn.count, tuple(drawn.ids.shape)
    (4, (50, 50))
    """
    resolution, memory = as_integer(resolution, "resolution", 1), as_integer(memory, "memory", 1)
    plane, box = plane_through(a, b, c, margin)
    with plain_evaluation(model):
        program = trace(model, plane.origin, torch.float64, "a").hidden()
        _check(layers, [step.name for step in program.activations])
        plane = plane.to(program.device)
        steps = (torch.arange(resolution, device=program.device).double() + 0.5) / resolution
        x, y = (low + (high - low) * steps for low, high in (box[:2], box[2:]))
        found = []
        for chunk in torch.cartesian_prod(y, x).flip(1).split(program.rows(memory)):
            found.append(_unique(_codes(program, plane.inputs(chunk), layers)))
        different, numbers = torch.cat([codes for codes, _ in found]).unique(
            dim=0, return_inverse=True
        )
        parts = numbers.split([len(codes) for codes, _ in found])
        ids = torch.cat([part[ids] for part, (_, ids) in zip(parts, found, strict=True)])
    kind = like(a)
    ids = kind(ids.view(resolution, resolution))
    return RegionMap(ids, len(different), box, kind(plane.points))


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
    plane). Their number grows with the square of that of neurons: for small networks.

    Parameters
    ----------
    model : torch.nn.Module
        As in `transitions`, but without max pooling.
    a, b, c : (...) tensors or arrays
        Single inputs, not on one line.
    polygon : (corners, 2) tensor or array, optional
        Convex, in the plane's coordinates: a at (0, 0), b at (|b - a|, 0), c above. By default the
        rectangle that `region_map` draws.
    margin, memory
        As in `region_map`.

    Returns
    -------
    PlaneRegions
        Of the kind of `a`, tensors on the model's device.

    Raises
    ------
    ValueError
        As in `region_map`; if the polygon is not convex; for max pooling.

    Examples
    --------
    >>> import torch
    >>> from replication import sensitivity
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()).double()
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.eye(2)), net[0].bias.zero_()
    >>> corners = torch.tensor([[-1.0, -1], [1, -1], [-1, 1]], dtype=torch.float64)
    >>> sensitivity.plane_regions(net, *corners).count  # two lines cross: four quadrants
    4
    """
    memory = as_integer(memory, "memory", 1)
    plane, box = plane_through(a, b, c, margin)
    if polygon is None:
        left, right, bottom, top = box
        corners = torch.tensor([[left, bottom], [right, bottom], [right, top], [left, top]])
        corners = corners.double()
    else:
        corners = convex(polygon)
        low, high = corners.amin(0).tolist(), corners.amax(0).tolist()
        box = (low[0], high[0], low[1], high[1])
    with plain_evaluation(model):
        program = trace(model, plane.origin, torch.float64, "a").hidden()
        for step in program.steps:
            if isinstance(step, MaxPool):
                raise ValueError(f"model: {step.name!r} is max pooling; expected none on a plane")
        plane, corners = plane.to(program.device), corners.to(program.device)
        middle = corners.new_tensor([box[0] + box[1], box[2] + box[3]]) / 2
        half = corners.new_tensor([box[1] - box[0], box[3] - box[2]]) / 2
        sides = plane.basis * half.view(2, *[1] * plane.origin.ndim)
        planes = torch.cat([sides, plane.inputs(middle[None])])[None]
        square = ((corners - middle) / half)[None]
        number = torch.tensor([len(corners)], device=program.device)
        whole = Polygons(square, number, number.new_zeros(1, 0))
        size = planes.flatten(2).abs().sum(1).amax(1)
        limit = max(1, program.rows(memory) // 3)
        pieces = list(regions(program, whole, {0: (planes, size)}, limit))
        codes = torch.cat([piece.codes for piece in pieces])
        error = sum(float(piece.areas().sum()) for piece in pieces) / float(whole.areas()) - 1
        count = len(codes.unique(dim=0)) if codes.shape[1] else 1
    kind = like(a)
    polygons = [
        kind(corners[:number] * half + middle)
        for piece in pieces
        for corners, number in zip(piece.corners, piece.number.tolist(), strict=True)
    ]
    return PlaneRegions(count, polygons, abs(error), box, kind(plane.points))


def _unique(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different rows and which of them each row is; neighbours are often the same."""
    heads = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
    heads[1:] = (codes[1:] != codes[:-1]).any(1)
    different, numbers = codes[heads].unique(dim=0, return_inverse=True)
    return different, numbers[heads.cumsum(0) - 1]


def _check(layers: Sequence[str] | None, names: list[str]) -> None:
    for name in layers if layers is not None else ():
        if name not in names:
            raise ValueError(f"layers: no activation layer {name!r}; {nearest(str(name), names)}")


def _codes(program: Program, x: Tensor, layers: Sequence[str] | None) -> Tensor:
    """Return the packed states of all units of these layers, (rows, words)."""
    live, codes = {0: x}, [torch.zeros(len(x), 1, dtype=torch.int64, device=x.device)]
    for index, step in enumerate(program.steps):
        inputs = [live[slot] for slot in step.sources]
        if isinstance(step, Activation) and (layers is None or step.name in layers):
            codes.append(pack(step.states(inputs[0].flatten(1)), len(step.pieces)))
        live = {slot: value for slot, value in live.items() if slot not in step.released}
        live[index + 1] = step.forward(*inputs)
    return torch.cat(codes, 1)
