"""A convex polygon on a plane, cut by every unit's kinks into the regions of a network.

In each piece all units are affine, u x + v y + w, and so are those of the next layer once the piece
is cut where one of them crosses a kink. Pieces stay convex.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from replication.sensitivity._program import ROUNDING, Activation, Affine, Program

# Coefficients u, v, w of units in every polygon, (polygons, 3, ...), and the size of their terms
Planes = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Polygons:
    """Convex polygons.

    Attributes
    ----------
    corners : (polygons, most, 2)
        Counter-clockwise; the last one is repeated where there are fewer than most.
    number : (polygons,) int64
        How many corners each has.
    codes : (polygons, words) int64
        The states of all units so far, packed.
    """

    corners: Tensor
    number: Tensor
    codes: Tensor

    def __len__(self) -> int:
        return len(self.number)

    def __getitem__(self, chosen: slice | Tensor) -> "Polygons":
        return Polygons(self.corners[chosen], self.number[chosen], self.codes[chosen])

    def areas(self) -> Tensor:
        """Return the area of each, by the shoelace formula."""
        x, y = self.corners.unbind(2)
        return (x * y.roll(-1, 1) - x.roll(-1, 1) * y).sum(1) / 2


def pack(states: Tensor, count: int) -> Tensor:
    """Return states (rows, units), of which there are `count`, as integers (rows, words)."""
    bits = states > 0 if count == 2 else torch.cat([states > 0, states > 1], 1)
    words = -(-bits.shape[1] // 62)
    padded = bits.new_zeros(len(bits), 62 * words)
    padded[:, : bits.shape[1]] = bits
    places = 2 ** torch.arange(62, device=bits.device)
    return torch.stack([(word * places).sum(1) for word in padded.split(62, 1)], 1)


def regions(
    program: Program, polygons: Polygons, live: dict[int, Planes], limit: int, first: int = 0
) -> Iterator[Polygons]:
    """Yield the pieces of polygons in which no unit changes state.

    Parameters
    ----------
    program : Program
        Of affine steps and activations.
    polygons : Polygons
        Within the square [-1, 1]^2.
    live : dict
        Slot to coefficients in each polygon, of all slots that steps from number `first` on read.
    limit : int
        Polygons at a time.
    first : int
    """
    for index in range(first, len(program.steps)):
        step = program.steps[index]
        if isinstance(step, Affine):
            values, sizes = zip(*[live[slot] for slot in step.sources], strict=True)
            moved = step.linear(*[value[:, :2].flatten(0, 1) for value in values])
            constant = step.forward(*[value[:, 2] for value in values])
            value = torch.cat([moved.unflatten(0, (-1, 2)), constant[:, None]], 1)
            live = {s: v for s, v in live.items() if s not in step.released}
            live[index + 1] = value, torch.stack(sizes).amax(0)
            continue
        z, size = live[step.sources[0]]
        pieces, parent, states = _cut(step, polygons, z.flatten(2), size)
        largest = z.flatten(2).abs().sum(1).amax(1)
        live = {s: v for s, v in live.items() if s not in step.released}
        for block in torch.arange(len(pieces), device=parent.device).split(limit):
            origin = parent[block]
            here = {s: (value[origin], terms[origin]) for s, (value, terms) in live.items()}
            if index + 1 < len(program.steps):
                slope, intercept = step.coefficients(states[block])
                value = z.flatten(2)[origin] * slope[:, None]
                value[:, 2] += intercept
                here[index + 1] = value.view(-1, *z.shape[1:]), largest[origin]
            yield from regions(program, pieces[block], here, limit, index + 1)
        return
    yield polygons


def _cut(
    step: Activation, polygons: Polygons, z: Tensor, size: Tensor
) -> tuple[Polygons, Tensor, Tensor]:
    """Return the pieces, which polygon each is part of, and the state of every unit in it."""
    parent = torch.arange(len(polygons), device=z.device)
    states = torch.zeros(len(polygons), z.shape[2], dtype=torch.int8, device=z.device)
    pieces = polygons
    rounding = ROUNDING * torch.finfo(z.dtype).eps
    for number, threshold in enumerate(step.thresholds):
        slack = rounding * (torch.outer(size, step.scale) + step.offset + abs(threshold))
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
    codes = torch.cat([pieces.codes, pack(states, len(step.pieces))], 1)
    return replace(pieces, codes=codes), parent, states


def _part(polygons: Polygons, height: Tensor) -> Polygons:
    """Return the part of polygons where a height, given at their corners, is not negative."""
    corners, number = polygons.corners, polygons.number
    index = torch.arange(corners.shape[1], device=number.device)
    real = index < number[:, None]
    following = (index + 1).where(index + 1 < number[:, None], 0)
    height_after = height.gather(1, following)
    after = corners.gather(1, following[..., None].expand_as(corners))
    crossing = real & (height * height_after < 0)
    weight = (height / (height - height_after)).where(crossing, 0)
    points = torch.stack([corners, torch.lerp(corners, after, weight[..., None])], 2).flatten(1, 2)
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
