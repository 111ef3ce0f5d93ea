"""A plane through three inputs, and a convex polygon on it, cut by every unit's kinks.

In each piece all units are affine, u x + v y + w, and so are those of the next layer once the piece
is cut where one of them crosses a kink, or where another input becomes the largest of a window of
max pooling. Pieces stay convex.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from replication._core.inputs import Array, as_number, as_tensor
from replication.sensitivity._piecewise.program import (
    ROUNDING,
    Activation,
    Affine,
    MaxPool,
    Program,
    after,
)

Extent = tuple[float, float, float, float]
"""Left, right, bottom and top."""

# Coefficients u, v, w of units in every polygon, (polygons, 3, ...), and the size of their terms
Planes = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Plane:
    """``origin + x basis[0] + y basis[1]``, the basis (2, ...) orthonormal; `points` (3, 2)."""

    origin: Tensor
    basis: Tensor
    points: Tensor

    def to(self, device: torch.device) -> "Plane":
        return Plane(*(x.to(device) for x in (self.origin, self.basis, self.points)))

    def inputs(self, coordinates: Tensor) -> Tensor:
        """Return the inputs (n, ...) at coordinates (n, 2)."""
        return self.origin + torch.tensordot(coordinates, self.basis, 1)


def plane_through(a: Array, b: Array, c: Array, margin: float) -> tuple[Plane, Extent]:
    """Return the plane through three inputs, and the box around them with its margin."""
    a, b, c = (as_tensor(x, name).double() for x, name in ((a, "a"), (b, "b"), (c, "c")))
    if not a.shape == b.shape == c.shape:
        shapes = f"{tuple(a.shape)}, {tuple(b.shape)} and {tuple(c.shape)}"
        raise ValueError(f"a, b, c: expected one shape, found {shapes}")
    margin = as_number(margin, "margin")
    b, c = (b - a).flatten(), (c.to(a.device) - a).flatten()
    width = b.norm()
    first = b / width.where(width > 0, 1)
    across = c @ first
    second = c - across * first
    second -= (second @ first) * first
    height = second.norm()
    if not (width > 0 and height > 1e-9 * c.norm()):
        raise ValueError("a, b, c: expected three inputs that are not on one line")
    points = b.new_zeros(3, 2)
    points[1, 0], points[2, 0], points[2, 1] = width, across, height
    basis = torch.stack([first, second / height]).view(2, *a.shape)
    low, high = points.amin(0), points.amax(0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    return Plane(a, basis, points), box(low, high)


def box(low: Tensor, high: Tensor) -> Extent:
    """Return the extent from the lower left corner (2,) to the upper right one."""
    return (low[0].item(), high[0].item(), low[1].item(), high[1].item())


def as_convex(polygon: Array) -> Tensor:
    """Return the argument `polygon`, convex, as corners counter-clockwise, (corners, 2)."""
    corners = as_tensor(polygon, "polygon").double()
    if corners.ndim != 2 or len(corners) < 3 or corners.shape[1] != 2:
        raise ValueError(f"polygon: expected (corners >= 3, 2), found {tuple(corners.shape)}")
    side = corners.roll(-1, 0) - corners
    following = side.roll(-1, 0)
    turn = side[:, 0] * following[:, 1] - side[:, 1] * following[:, 0]
    angle = torch.atan2(turn, (side * following).sum(1)).sum().abs()
    if not ((turn > 0).all() or (turn < 0).all()) or angle > 7:  # round more than once
        raise ValueError("polygon: expected a convex one, without corners on a straight side")
    return corners if turn[0] > 0 else corners.flip(0)


@dataclass(frozen=True)
class Polygons:
    """Convex polygons: `number` (n,) of `corners` (n, most, 2), counter-clockwise.

    The last corner is repeated where there are fewer than most. `codes` (n, words) are the states
    of all units and windows so far, packed.
    """

    corners: Tensor
    number: Tensor
    codes: Tensor

    def __len__(self) -> int:
        return len(self.number)

    def __getitem__(self, chosen: slice | Tensor) -> "Polygons":
        return Polygons(self.corners[chosen], self.number[chosen], self.codes[chosen])

    def real(self) -> Tensor:
        """Return which corners are no repetitions, (n, most)."""
        places = torch.arange(self.corners.shape[1], device=self.number.device)
        return places < self.number[:, None]

    def areas(self) -> Tensor:
        """Return the area of each, by the shoelace formula."""
        x, y = self.corners.unbind(2)
        return (x * y.roll(-1, 1) - x.roll(-1, 1) * y).sum(1) / 2


def pack(states: Tensor, count: int) -> Tensor:
    """Return states (rows, units), of which there are `count`, as integers (rows, words)."""
    bits = torch.cat([states > state for state in range(max(1, count - 1))], 1)
    words = -(-bits.shape[1] // 62)
    padded = bits.new_zeros(len(bits), 62 * words)
    padded[:, : bits.shape[1]] = bits
    places = 2 ** torch.arange(62, device=bits.device)
    return torch.stack([(word * places).sum(1) for word in padded.split(62, 1)], 1)


def pieces_of(
    program: Program, polygons: Polygons, live: dict[int, Planes], limit: int, first: int = 0
) -> Iterator[Polygons]:
    """Yield the pieces of polygons in [-1, 1]^2 in which no unit or window changes state.

    By the steps from number `first` on, of which `live` has all slots that they read; `limit`
    polygons at a time. Polygons are on the CPU, what `live` has on any device.
    """
    for index in range(first, len(program.steps)):
        step = program.steps[index]
        if isinstance(step, Affine):
            values, sizes = zip(*[live[slot] for slot in step.sources], strict=True)
            moved = step.linear(*[value[:, :2].flatten(0, 1) for value in values])
            constant = step.forward(*[value[:, 2] for value in values])
            value = torch.cat([moved.unflatten(0, (-1, 2)), constant[:, None]], 1)
            live = after(live, step, (value, torch.stack(sizes).amax(0)))
            continue
        z, size = live[step.sources[0]]
        shape = step.forward(z[:1, 2]).shape[1:]
        if isinstance(step, Activation):
            z = z.flatten(2)
            pieces, parent, states = _cut(step, polygons, z, size)
            size = z.abs().sum(1).amax(1)
        else:
            z = _inputs(step, z)
            pieces, parent, states = _cells(step, polygons, z, size)
        for block in torch.arange(len(pieces)).split(limit):
            origin, state = parent[block].to(z.device), states[block].to(z.device)
            inside = {slot: (value[origin], terms[origin]) for slot, (value, terms) in live.items()}
            if isinstance(step, Activation):
                slope, intercept = step.coefficients(state)
                value = z[origin] * slope[:, None]
                value[:, 2] += intercept
            else:
                chosen = state[:, None, :, None].expand(-1, 3, -1, 1)
                value = z[origin].gather(3, chosen)
            inside = after(inside, step, (value.view(-1, 3, *shape), size[origin]))
            yield from pieces_of(program, pieces[block], inside, limit, index + 1)
        return
    yield polygons


def _cut(
    step: Activation, polygons: Polygons, z: Tensor, size: Tensor
) -> tuple[Polygons, Tensor, Tensor]:
    """Return the pieces, which polygon each is part of, and the state of every unit in it.

    From the coefficients z (polygons, 3, units) and the size of their terms (polygons,), which come
    to the host: every unit's step depends on how many pieces the one before has left.
    """
    parent = torch.arange(len(polygons))
    states = torch.zeros(len(polygons), z.shape[2], dtype=torch.int8)
    pieces, rounding = polygons, ROUNDING * torch.finfo(z.dtype).eps
    terms, z = (torch.outer(size, step.scale) + step.offset).cpu(), z.cpu()
    for number, threshold in enumerate(step.thresholds):
        slack = rounding * (terms + abs(threshold))
        heights = torch.einsum("pcn,pmc->pmn", z[:, :2], polygons.corners) + z[:, 2:] - threshold
        behind = heights.amax(1) > slack if number == 0 else heights.amin(1) >= -slack
        crossed = (heights.amax(1) > slack) & (heights.amin(1) < -slack)
        states += behind[parent] & ~crossed[parent]
        for unit in crossed.any(0).nonzero()[:, 0].tolist():
            near = crossed[parent, unit].nonzero()[:, 0]
            origin = parent[near]
            plane = z[origin, :, unit]
            height = (pieces.corners[near] * plane[:, None, :2]).sum(2) + plane[:, 2:] - threshold
            height = height.where(height.abs() > slack[origin, unit, None], 0)
            above, below = height.amax(1) > 0, height.amin(1) < 0
            states[near, unit] += above if number == 0 else ~below
            both = above & below
            split = near[both]
            if not len(split):
                continue
            high = _part(pieces[split], height[both])
            low = _part(pieces[split], -height[both])
            pieces = _replaced(pieces, split, high, low)
            parent = torch.cat([parent, parent[split]])
            lower = states[split]
            lower[:, unit] = number
            states = torch.cat([states, lower])
            states[split, unit] = number + 1
    codes = torch.cat([pieces.codes, pack(states, step.choices)], 1)
    return Polygons(pieces.corners, pieces.number, codes), parent, states


def _cells(
    step: MaxPool, polygons: Polygons, z: Tensor, size: Tensor
) -> tuple[Polygons, Tensor, Tensor]:
    """Return the same for max pooling: the state of a window is the number of its largest input.

    From the coefficients z (polygons, 3, W, k). Of inputs that are equal in all of a piece it is
    the first one. A polygon is replaced by one cell, which is convex, for each input that is the
    largest somewhere in it.
    """
    parent = torch.arange(len(polygons))
    slack = ROUNDING * torch.finfo(z.dtype).eps * (torch.outer(size, step.scale) + step.offset)
    slack, z = slack.cpu(), z.cpu()
    heights = torch.einsum("pcwk,pmc->pmwk", z[:, :2], polygons.corners) + z[:, None, 2]
    everywhere = (heights >= (heights.amax(3) - slack[:, None])[..., None]).all(1)
    pieces, states = polygons, everywhere.byte().argmax(2)
    crossed = ~everywhere.any(2)
    for window in crossed.any(0).nonzero()[:, 0].tolist():
        whole = crossed[parent, window].nonzero()[:, 0].repeat_interleave(z.shape[3])
        state = torch.arange(z.shape[3]).repeat(len(whole) // z.shape[3])
        cells = pieces[whole]
        for other in range(z.shape[3]):
            origin = parent[whole]
            lead = z[origin, :, window, state] - z[origin, :, window, other]
            height = (cells.corners * lead[:, None, :2]).sum(2) + lead[:, 2:]
            height = height.where(height.abs() > slack[origin, window, None], 0)
            kept = (height.amax(1) > 0) | ((height.amin(1) == 0) & (state <= other))
            whole, state, cells = whole[kept], state[kept], _part(cells[kept], height[kept])
        more = whole == whole.roll(1)  # cells of one polygon follow one another
        more[0] = False
        pieces = _replaced(pieces, whole[~more], cells[~more], cells[more])
        new = states[whole[more]]
        new[:, window], states[whole[~more], window] = state[more], state[~more]
        states, parent = torch.cat([states, new]), torch.cat([parent, parent[whole[more]]])
    codes = torch.cat([pieces.codes, pack(states, step.choices)], 1)
    return Polygons(pieces.corners, pieces.number, codes), parent, states


def _inputs(step: MaxPool, z: Tensor) -> Tensor:
    """Return coefficients z (polygons, 3, ...) by windows, (polygons, 3, W, k)."""
    lines = step.candidates(z.flatten(0, 1)).unflatten(0, (-1, 3))
    lines[:, :2].masked_fill_(step.windows == z[0, 0].numel(), 0)  # the filler is low everywhere
    return lines


def _part(polygons: Polygons, height: Tensor) -> Polygons:
    """Return the part of polygons where a height, given at their corners, is not negative."""
    corners, number = polygons.corners, polygons.number
    index = torch.arange(corners.shape[1], device=number.device)
    real = polygons.real()
    following = (index + 1).where(index + 1 < number[:, None], 0)
    height_after = height.gather(1, following)
    next_corners = corners.gather(1, following[..., None].expand_as(corners))
    crossing = real & (height * height_after < 0)
    weight = (height / (height - height_after)).where(crossing, 0)
    crossed = torch.lerp(corners, next_corners, weight[..., None])
    points = torch.stack([corners, crossed], 2).flatten(1, 2)
    kept = torch.stack([real & (height >= 0), crossing], 2).flatten(1, 2)
    number = kept.sum(1)
    order = (~kept).byte().argsort(dim=1, stable=True)[:, : int(number.max())]
    index = torch.arange(order.shape[1], device=number.device)
    order = order.gather(1, torch.minimum(index.expand_as(order), number[:, None] - 1))
    points = points.gather(1, order[..., None].expand(-1, -1, 2))
    return Polygons(points, number, polygons.codes)


def _replaced(pieces: Polygons, where: Tensor, high: Polygons, low: Polygons) -> Polygons:
    """Return the pieces with those at `where` replaced by `high`, and `low` behind them."""
    most = max(part.corners.shape[1] for part in (pieces, high, low))
    old, high_corners, low_corners = (
        torch.cat([c, c[:, -1:].expand(-1, most - c.shape[1], -1)], 1)
        for c in (pieces.corners, high.corners, low.corners)
    )
    corners = torch.cat([old, low_corners])
    corners[where] = high_corners
    number = torch.cat([pieces.number, low.number])
    number[where] = high.number
    return Polygons(corners, number, torch.cat([pieces.codes, low.codes]))
