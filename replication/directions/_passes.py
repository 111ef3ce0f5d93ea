"""Outcomes of a batch of examples under one clamped copy after another.

`logits` is what `Cut.altered` gives; with `linear` (see `_linear`) most of the pass is spared.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from replication.directions._linear import NextLinear
from replication.directions._network import Clamp, Cut, chained

Logits = Callable[[Tensor, int], Tensor]


def cumulative(
    network: Cut,
    linear: NextLinear | None,
    clamp: Clamp,
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    orders: Tensor,
    counts: list[int],
    copies: int,
) -> Iterator[Tensor]:
    """Yield, for each order, which examples are right by number of ablated units: (counts, N)."""
    kept = None if linear is None else linear.kept(x)
    for order in orders:
        if linear is None:
            rank = order.argsort()
            numbers = torch.tensor(counts, device=rank.device)[:, None]
            parts = []
            for chosen in numbers.split(copies):
                clamp.masks = rank < chosen
                parts.append(logits(x, len(chosen)).argmax(-1) == labels)
            yield torch.cat(parts)
        else:
            yield _by_addition(network, linear, clamp, kept, labels, order, counts, copies)


def _by_addition(
    network: Cut,
    linear: NextLinear,
    clamp: Clamp,
    kept: Tensor,
    labels: Tensor,
    order: Tensor,
    counts: list[int],
    copies: int,
) -> Tensor:
    """Return which examples are right, (counts, N), going from the largest count to the smallest.

    An example on which none of the units added since the last count differs from its clamp keeps
    its logits and is not run again, if no layer further on is ablated as well.
    """
    columns = network.columns(network.first)
    mine = (order >= columns.start) & (order < columns.stop)
    units = order[mine] - columns.start
    kept, weight = kept[:, units], linear.weight[units]
    ahead = [0, *mine.cumsum(0).tolist()]  # the layer's units among the first k of the order
    bounds = [*(ahead[k] for k in counts), len(units)]
    spare = bool(linear.rest) and not network.hooked
    moved = kept.flatten(2).any(2) if spare else None
    rank = order.argsort()

    right = torch.empty(len(counts), len(labels), dtype=torch.bool, device=kept.device)
    z = linear.constant.expand(len(kept), *linear.constant.shape[1:])
    for stop in range(len(counts), 0, -copies):
        chosen = range(max(0, stop - copies), stop)
        stack = []
        for start, end in reversed(list(pairwise(bounds[chosen.start : stop + 1]))):
            if end > start:
                z = linear.add(z, kept[:, start:end], weight[start:end])
            stack.append(z)
        # A copy, here or by the mask below: what follows may work in place, and z is still needed.
        stack = stack[0][None] if spare and len(stack) == 1 else torch.stack(stack[::-1])
        if not spare:
            numbers = torch.tensor(counts[chosen.start : stop], device=rank.device)
            clamp.masks = rank < numbers[:, None]
            found = chained(linear.rest, stack.flatten(0, 1)).argmax(1)
            right[chosen.start : stop] = found.unflatten(0, (len(chosen), -1)) == labels
            continue
        new = torch.stack([moved[:, bounds[t] : bounds[t + 1]].any(1) for t in chosen])
        if stop == len(counts):
            new[-1] = True
        if new.any():
            found = chained(linear.rest, stack[new]).argmax(1)
            right[chosen.start : stop][new] = found == labels.expand_as(new)[new]
        for t in reversed(chosen):
            if t + 1 < len(counts):
                right[t] = torch.where(new[t - chosen.start], right[t], right[t + 1])
    return right


def one_by_one(
    network: Cut,
    linear: NextLinear | None,
    clamp: Clamp,
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    copies: int,
) -> Iterator[tuple[int, Tensor]]:
    """Yield 1 + a first unit, and outcomes (2, units, N) for it and the next ones clamped alone.

    The outcomes are whether the example is right, and its cross-entropy. Number 0 is without clamp.
    """
    units = torch.arange(network.units, device=labels.device)
    if linear is None:
        for chosen in torch.cat([units.new_tensor([-1]), units]).split(copies):
            clamp.masks = chosen[:, None] == units
            found = logits(x, len(chosen)).flatten(0, 1)
            outcomes = _outcomes(found, labels.repeat(len(chosen)))
            yield 1 + int(chosen[0]), outcomes.unflatten(1, (len(chosen), -1))
        return
    kept = linear.kept(x)
    whole = linear.constant.expand(len(kept), *linear.constant.shape[1:])
    whole = linear.add(whole, kept, linear.weight)
    baseline = _outcomes(chained(linear.rest, whole.clone()), labels)[:, None]
    yield 0, baseline
    moved = kept.flatten(2).any(2).T
    for chosen in units.split(copies):
        parts = [linear.add(whole, kept[:, u, None], linear.weight[u, None], -1) for u in chosen]
        new = moved[chosen]
        outcomes = baseline.repeat(1, len(chosen), 1)
        if new.any():
            found = chained(linear.rest, torch.stack(parts)[new])
            outcomes[:, new] = _outcomes(found, labels.expand_as(new)[new])
        yield 1 + int(chosen[0]), outcomes


def _outcomes(logits: Tensor, labels: Tensor) -> Tensor:
    """Return, as float64 (2, N), whether the largest logit is the label's, and cross-entropy."""
    right = logits.argmax(1) == labels
    return torch.stack([right.double(), F.cross_entropy(logits, labels, reduction="none").double()])
