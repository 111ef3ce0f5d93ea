"""Where units cross kinks between rows, and the rows with the crossings among them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from replication.sensitivity._program import ROUNDING, Activation, MaxPool


@dataclass(frozen=True)
class Rows:
    """Consecutive points of polylines, possibly several, one after another.

    Attributes
    ----------
    places : (rows, 2) float64
        The number of the segment a point lies on, and the fraction of it, in [0, 1]. Segments are
        numbered over all polylines; the last vertex of each has a number of its own.
    ends : tuple of int
        Which rows are the last vertex of their polyline, so that the next row lies elsewhere.
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


@dataclass(frozen=True)
class Crossings:
    """Where units cross kinks: `weight` of the way from row `left` to the next, +- `rounding`.

    There, `unit` is to have `value`, one for all or one each; of a pooling layer they are None.
    """

    left: Tensor
    weight: Tensor
    rounding: Tensor
    unit: Tensor | None = None
    value: Tensor | float | None = None

    def __getitem__(self, chosen: Tensor) -> "Crossings":
        parts = vars(self).values()
        return Crossings(*[part[chosen] if isinstance(part, Tensor) else part for part in parts])

    @staticmethod
    def join(several: list["Crossings"]) -> "Crossings":
        """Return them all, one after another."""
        if len(several) == 1:
            return several[0]
        parts = zip(*[vars(crossings).values() for crossings in several], strict=True)
        return Crossings(*[None if part[0] is None else torch.cat(part) for part in parts])


def nonzero(mask: Tensor) -> Tensor:
    """Return the flat indices of a bool tensor's few true entries, in order.

    Several times faster than `Tensor.nonzero`, as eight entries are looked at together.
    """
    flat = mask.reshape(-1)
    whole = len(flat) // 8 * 8
    words = flat[:whole].view(torch.int64).nonzero()
    index = (8 * words + torch.arange(8, device=mask.device)).view(-1)
    if whole < len(flat):
        index = torch.cat([index, torch.arange(whole, len(flat), device=mask.device)])
    return index[flat[index]]


def kinks(
    step: Activation, rows: Rows, x: Tensor, magnitude: Tensor
) -> tuple[Tensor, bool, Crossings, Tensor]:
    """Put units on the kinks they are within rounding of, and find where others cross one.

    Rounding is `ROUNDING` units of precision of the terms that a unit is a sum of. Others cross a
    threshold where they are strictly on opposite sides, a and b, of it: at the fraction
    a / (a - b), which is known to +- rounding / |a - b|.

    Returns
    -------
    x : (rows, ...) tensor
        With units on kinks; the same tensor if there are none.
    on_kinks : bool
        Whether there are.
    crossings : Crossings
    largest : (rows,) tensor
        What no |x| exceeds.
    """
    z, on_kinks, found, largest = x.flatten(1), False, [], None
    eps, units = ROUNDING * torch.finfo(x.dtype).eps, z.shape[1]
    top, gaps = magnitude.amax(), rows.gaps()
    for threshold in step.thresholds:
        side = z - threshold if threshold else z
        distance = side.abs()
        reached = distance.amax(1)
        if threshold:
            reached += abs(threshold)
        largest = reached if largest is None else torch.minimum(largest, reached)
        bound = eps * torch.addcmul(step.offset + abs(threshold), step.scale, top)
        if (distance.amin(0) <= bound).any():
            index = nonzero(distance <= bound)
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
        if gaps:
            flips[gaps] = False
        index, side = nonzero(flips), side.reshape(-1)
        a, b = side[index], side[index + units]
        if on_kinks:
            strict = (a != 0) & (b != 0)
            index, a, b = index[strict], a[strict], b[strict]
        left = index // units
        unit, span = index - units * left, a - b
        value = threshold if len(step.thresholds) == 1 else torch.full_like(a, threshold)
        found.append(Crossings(left, a / span, bound[unit] / span.abs(), unit, value))
    return (z.view(x.shape) if on_kinks else x), on_kinks, Crossings.join(found), largest


def switches(step: MaxPool, rows: Rows, x: Tensor, magnitude: Tensor) -> Crossings:
    """Return where another input becomes the largest of a window.

    The inputs are lines on a segment, and their maximum is followed from line to line: the next is
    the steeper one that meets the present one first.
    """
    lines = step.candidates(x)
    attained = step.attains(lines, magnitude)
    # A line that is the largest at both ends is so between them: the maximum is convex.
    changing = ~(attained[1:] & attained[:-1]).any(2)
    if gaps := rows.gaps():
        changing[gaps] = False
    left, window = changing.nonzero(as_tuple=True)
    a, b, at_end = lines[left, window], lines[left + 1, window], attained[left + 1, window]
    slope = b - a
    terms = step.scale[window] * torch.maximum(magnitude[left], magnitude[left + 1])
    rounding = ROUNDING * torch.finfo(x.dtype).eps * (terms + step.offset[window])
    present = slope.where(attained[left, window], -torch.inf).argmax(1, keepdim=True)
    position = torch.zeros_like(rounding)
    found = [Crossings(left[:0], position[:0], rounding[:0])]
    for _ in range(lines.shape[2] - 1):
        steeper = slope - slope.gather(1, present)
        meeting = ((a.gather(1, present) - a) / steeper).clamp(min=position[:, None])
        position, following = meeting.where(steeper > 0, torch.inf).min(1)
        gain = steeper.gather(1, following[:, None])[:, 0]
        on = (position < 1) & ~at_end.gather(1, present)[:, 0]
        found.append(Crossings(left, position, rounding / gain)[on])
        left, position, rounding, at_end = (x[on] for x in (left, position, rounding, at_end))
        a, slope, present = a[on], slope[on], following[on, None]
    return Crossings.join(found)


@dataclass(frozen=True)
class Cut:
    """Rows with new ones among them.

    Attributes
    ----------
    rows : Rows
        Old and new, n of them.
    left, weight : (n,) or None
        A row is the old row `left` plus `weight` times its difference from the next one. None where
        there is no new row.
    where, unit, value : tensors or None
        The crossings: these units have these values at the rows `where`, which are sorted.
    """

    rows: Rows
    left: Tensor | None = None
    weight: Tensor | None = None
    where: Tensor | None = None
    unit: Tensor | None = None
    value: Tensor | float | None = None

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
        if self.where is None:
            return
        where, unit, value = self.where, self.unit, self.value
        if len(x) < len(self.rows):
            ends = torch.tensor([block.start, block.start + len(x)], device=x.device)
            chosen = slice(*torch.searchsorted(where, ends).tolist())
            where, unit = where[chosen] - block.start, unit[chosen]
            value = value[chosen] if isinstance(value, Tensor) else value
        x.view(len(x), -1)[where, unit] = value


def cut(rows: Rows, crossings: Crossings) -> Cut:
    """Return the rows with one more for every place of a crossing, in order.

    Neighbouring crossings that are nearer than the roundings of both share a row, the first one's,
    and crossings at a row to a few units of precision share that.
    """
    if not len(crossings.left):
        return Cut(rows)
    weight, order = crossings.weight.sort()
    lowest, highest = weight[0].item(), weight[-1].item()
    crossings = crossings[order[crossings.left[order].argsort(stable=True)]]
    eps, inner, on_row = 4 * torch.finfo(weight.dtype).eps, crossings, None
    if lowest <= eps or highest >= 1 - eps:
        on_row = (crossings.weight <= eps) | (crossings.weight >= 1 - eps)
        inner = crossings[~on_row]
    left, weight, rounding = inner.left, inner.weight, inner.rounding
    merged = (weight.diff() <= torch.minimum(rounding[1:], rounding[:-1])) & (left.diff() == 0)
    group = None
    if merged.any():
        is_head = torch.cat([torch.ones_like(merged[:1]), ~merged])
        group = is_head.cumsum(0) - 1
        left, weight = left[is_head], weight[is_head]
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
    result = Cut(Rows(places, ends), all_left, all_weight)
    if crossings.unit is None:
        return result
    where = new if group is None else new[group]
    if on_row is not None:
        mixed = old[crossings.left + (crossings.weight > 0.5)]
        mixed[~on_row] = where
        where, order = mixed.sort()
        crossings = crossings[order]
    return replace(result, where=where, unit=crossings.unit, value=crossings.value)
