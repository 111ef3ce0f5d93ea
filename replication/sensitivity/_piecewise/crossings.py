"""Where units cross kinks between rows, and the rows with the crossings among them.

Rows are points of polylines; between neighbouring ones every unit is affine in the position.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from replication.sensitivity._piecewise.program import ROUNDING, UNKNOWN, Activation, MaxPool


@dataclass(frozen=True)
class Rows:
    """Consecutive points of polylines, possibly several, one after another.

    `places` (rows, 2) float64 are the number of the segment, over all polylines, and the fraction
    of it, in [0, 1]; the last vertex of each polyline has a number of its own. `ends` are the rows
    that are such a last vertex, so that the next row lies elsewhere.
    """

    places: Tensor
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, block: slice) -> "Rows":
        places = self.places[block]
        ends = [end - block.start for end in self.ends if end >= block.start]
        return Rows(places, tuple(end for end in ends if end < len(places)))

    def gaps(self) -> list[int]:
        """Return the rows between which and the next there is nothing."""
        return [end for end in self.ends if end < len(self) - 1]

    def runs(self) -> list[tuple[int, int, bool]]:
        """Return first and last row of what belongs to one polyline, and whether it ends there."""
        runs, first = [], 0
        for end in self.ends:
            runs.append((first, end, True))
            first = end + 1
        runs.append((first, len(self) - 1, False))
        return [run for run in runs if run[0] < run[1]]


class Crossings(NamedTuple):
    """Where units cross kinks, (n,) each: `weight` of the way from row `left` to the next.

    The weight is known to +- `rounding`; `unit` is to have `value` there.
    """

    left: Tensor
    weight: Tensor
    rounding: Tensor
    unit: Tensor
    value: Tensor

    def where(self, chosen: Tensor | slice) -> "Crossings":
        return Crossings(*[part[chosen] for part in self])

    @staticmethod
    def join(several: list["Crossings"]) -> "Crossings":
        return Crossings(*map(torch.cat, zip(*several, strict=True)))


def kinks(
    step: Activation, rows: Rows, x: Tensor, magnitude: Tensor
) -> tuple[Tensor, bool, Crossings, Tensor]:
    """Put units on the kinks they are within rounding of, and find where others cross one.

    Others cross a threshold where they are strictly on opposite sides, a and b, of it: at the
    fraction a / (a - b), which is known to +- rounding / |a - b|. Returns x (rows, ...) with units
    on kinks, the same tensor if there are none; whether there are; the crossings; and what no |x|
    exceeds, (rows,).
    """
    z, on_kinks, crossings = x.flatten(1), False, []
    largest = x.new_full((len(x),), torch.inf)
    eps, units = ROUNDING * torch.finfo(x.dtype).eps, z.shape[1]
    top, gaps = magnitude.amax(), rows.gaps()
    for threshold in step.thresholds:
        side = z - threshold if threshold else z
        distance = side.abs()
        reached = distance.amax(1)
        if threshold:
            reached += abs(threshold)
        largest = torch.minimum(largest, reached)
        bound = eps * torch.addcmul(step.offset + abs(threshold), step.scale, top)
        if (distance.amin(0) <= bound).any():
            index = (distance <= bound).flatten().nonzero()[:, 0]
            row, unit = index // units, index % units
            terms = step.scale[unit] * magnitude[row] + step.offset[unit] + abs(threshold)
            index = index[side.reshape(-1)[index].abs() <= eps * terms]
            if not on_kinks:  # another branch may share it
                z = z.clone(memory_format=torch.contiguous_format)
            side = side if threshold else z
            z.view(-1)[index], side.view(-1)[index] = threshold, 0
            on_kinks = True
        del distance
        above = side > 0
        flips = above[1:] != above[:-1]
        flips[gaps] = False
        index, side = flips.flatten().nonzero()[:, 0], side.reshape(-1)
        a, b = side[index], side[index + units]
        strict = (a != 0) & (b != 0)
        index, a, b = index[strict], a[strict], b[strict]
        left = index // units
        unit, span = index - units * left, a - b
        rounding, value = bound[unit] / span.abs(), torch.full_like(a, threshold)
        crossings.append(Crossings(left, a / span, rounding, unit, value))
    return (z.view(x.shape) if on_kinks else x), on_kinks, Crossings.join(crossings), largest


def switches(step: MaxPool, rows: Rows, x: Tensor, magnitude: Tensor) -> Crossings:
    """Return where another input becomes the largest of a window; their value is of no use.

    The inputs are lines on a segment, and their maximum is followed from line to line: the next is
    the steeper one that meets the present one first.
    """
    lines = step.candidates(x)
    attained = step.attains(lines, magnitude)
    # A line that is the largest at both ends is so between them: the maximum is convex.
    changing = ~(attained[1:] & attained[:-1]).any(2)
    changing[rows.gaps()] = False
    left, window = changing.nonzero(as_tuple=True)
    a, b, at_end = lines[left, window], lines[left + 1, window], attained[left + 1, window]
    slope = b - a
    terms = step.scale[window] * torch.maximum(magnitude[left], magnitude[left + 1])
    rounding = ROUNDING * torch.finfo(x.dtype).eps * (terms + step.offset[window])
    present = slope.where(attained[left, window], -torch.inf).argmax(1, keepdim=True)
    position = torch.zeros_like(rounding)
    crossings = [Crossings(left, position, rounding, window, position).where(slice(0))]
    for _ in range(lines.shape[2] - 1):
        steeper = slope - slope.gather(1, present)
        meeting = ((a.gather(1, present) - a) / steeper).clamp(min=position[:, None])
        position, following = meeting.where(steeper > 0, torch.inf).min(1)
        gain = steeper.gather(1, following[:, None])[:, 0]
        on = (position < 1) & ~at_end.gather(1, present)[:, 0]
        crossings.append(Crossings(left, position, rounding / gain, window, position).where(on))
        left, window, position, rounding = (x[on] for x in (left, window, position, rounding))
        a, slope, at_end, present = a[on], slope[on], at_end[on], following[on, None]
    return Crossings.join(crossings)


@dataclass(frozen=True)
class Cut:
    """Rows with new ones among them, n in all.

    A row is the old row `left` plus `weight` times its difference from the next one, (n,) both,
    None where there is no new row. At the rows `where`, sorted, these units have these values.
    """

    rows: Rows
    left: Tensor | None = None
    weight: Tensor = UNKNOWN
    where: Tensor | None = None
    unit: Tensor = UNKNOWN
    value: Tensor = UNKNOWN

    def at(self, block: slice, x: Tensor, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (old rows, ...) and its magnitude at a block of the rows."""
        if self.left is None:
            return x[block], magnitude[block]
        left, weight = self.left[block], self.weight[block].view(-1, *[1] * (x.ndim - 1))
        start = x.index_select(0, left).contiguous()
        return start.lerp_(x.index_select(0, left + 1), weight), self.largest(magnitude, block)

    def largest(self, size: Tensor, block: slice) -> Tensor:
        """Return the larger `size` (old rows,) of the two old rows that a row lies between."""
        if self.left is None:
            return size[block]
        return torch.maximum(size[:-1], size[1:])[self.left[block]]

    def settle(self, x: Tensor, block: slice) -> None:
        """Give the crossing units of x (rows of the block, ...) their values, in place."""
        if self.where is not None:
            ends = torch.tensor([block.start, block.start + len(x)], device=x.device)
            chosen = slice(*torch.searchsorted(self.where, ends).tolist())
            row = self.where[chosen] - block.start
            x.view(len(x), -1)[row, self.unit[chosen]] = self.value[chosen]


def cut(rows: Rows, crossings: Crossings) -> Cut:
    """Return the rows with one more for every place of a crossing, in order.

    Neighbouring crossings that are nearer than the roundings of both share a row, the first one's,
    and crossings at a row to a few units of precision share that.
    """
    if not len(crossings.left):
        return Cut(rows)
    order = crossings.weight.argsort()
    crossings = crossings.where(order[crossings.left[order].argsort(stable=True)])
    eps = 4 * torch.finfo(crossings.weight.dtype).eps
    on_row = (crossings.weight <= eps) | (crossings.weight >= 1 - eps)
    left, weight, rounding, *_ = crossings.where(~on_row)
    is_new = torch.ones_like(left, dtype=torch.bool)
    is_new[1:] = (weight.diff() > torch.minimum(rounding[1:], rounding[:-1])) | (left.diff() != 0)
    group, left, weight = is_new.cumsum(0) - 1, left[is_new], weight[is_new]
    numbers = torch.arange(max(len(rows), len(left)), device=left.device)
    old = torch.searchsorted(left, numbers[: len(rows)]) + numbers[: len(rows)]
    new = left + numbers[: len(left)] + 1

    total = len(rows) + len(left)
    all_left, all_weight = left.new_empty(total), weight.new_zeros(total)
    all_left[old], all_left[new], all_weight[new] = numbers[: len(rows)], left, weight
    all_left[-1], all_weight[-1] = len(rows) - 2, 1  # the last row has no next one
    between, stop = rows.places[left], rows.places[left + 1]
    end = stop[:, 1].where(stop[:, 0] == between[:, 0], 1)
    between[:, 1].lerp_(end, weight.double())
    places = rows.places.new_empty(total, 2)
    places[old], places[new] = rows.places, between
    ends = tuple(old[list(rows.ends)].tolist()) if rows.ends else ()
    where = old[crossings.left + (crossings.weight > 0.5)]
    where[~on_row] = new[group]
    where, order = where.sort(stable=True)
    unit, value = crossings.unit[order], crossings.value[order]
    return Cut(Rows(places, ends), all_left, all_weight, where, unit, value)
