"""Outcomes of a batch of examples under one clamped copy after another.

Most of a pass is spared where the next linear layer behind the ablated one can be taken apart into
what each unit gives to it. Between the two there may be modules that treat every unit by itself (a
nonlinearity, batch norm in eval mode, pooling, flattening): g. With x_u the ablated layer's unit u,
c_u its clamp and W_u the linear layer's weights from it, the pre-activation with the units of a set
S kept is

    z_S = z_clamped + sum_{u in S} W_u (g(x_u) - g(c_u)),

a sum over what is kept. Cumulative ablation adds units to z_clamped, last ablated first, so that
nothing cancels: z has the rounding error of any sum of that many terms, and does not drift.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replication._core.modules import ELEMENTWISE, IDLE, NORMS, is_hooked
from replication.directions._network import Cut, Perturbation, chained

POOLS = {  # and the dimensions of their outputs
    **dict.fromkeys((nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d), 3),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), 4),
    **dict.fromkeys((nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d), 5),
}
CONVOLUTIONS = {nn.Conv1d: (3, F.conv1d), nn.Conv2d: (4, F.conv2d), nn.Conv3d: (5, F.conv3d)}


@dataclass(frozen=True)
class NextLinear:
    """The next linear layer by unit of the ablated one, in the notation above."""

    between: list[nn.Module]  # g
    linear: nn.Module
    rest: list[nn.Module]  # what comes after it
    weight: Tensor  # (units, inputs of a unit, outputs); (units, outputs, ...) for a convolution
    level: Tensor  # (1, units, ...), g(c)
    constant: Tensor  # (1, outputs, ...), z_clamped

    def kept(self, x: Tensor) -> Tensor:
        """Return g(x) - g(c), (N, units, ...), of the ablated layer's output (may change it)."""
        shape = (-1,) if isinstance(self.linear, nn.Linear) else self.level.shape[2:]
        return (chained(self.between, x) - self.level).reshape(len(x), len(self.weight), *shape)

    def add(self, z: Tensor, kept: Tensor, weight: Tensor, sign: int = 1) -> Tensor:
        """Return z plus (or minus) what some units give, from their part of `kept` and `weight`."""
        layer = self.linear
        if isinstance(layer, nn.Linear):
            return torch.addmm(z, kept.flatten(1), weight.flatten(0, 1), alpha=sign)
        _, convolve = CONVOLUTIONS[type(layer)]
        options = layer.stride, layer.padding, layer.dilation
        return z.add(convolve(kept, weight.transpose(0, 1), None, *options), alpha=sign)


class Clamped(Perturbation):
    """Sets units to constants, (units,) for each layer: those in each row of `masks` for a copy.

    Made and used in eval mode and without gradients; `masks` is (copies, units of all layers).
    """

    def __init__(self, network: Cut, values: list[Tensor]) -> None:
        super().__init__(network)
        self.values, self.masks = values, torch.empty(0)
        self.linear = next_linear(network, values)

    @property
    def copies(self) -> int:
        return len(self.masks)

    @property
    def method(self) -> str:
        """What has to run for each copy; see `ablation`."""
        if self.network.first is None:
            return "hooks"
        return "split" if self.linear is None else "incremental"

    def __call__(self, index: int, output: Tensor) -> Tensor:
        width, rest = output.shape[2], (1,) * (output.ndim - 3)
        mask = self.masks[:, self.network.columns(index)].reshape(-1, 1, width, *rest)
        return torch.where(mask, self.values[index].reshape(width, *rest), output)

    def cumulative(
        self, x: Tensor, labels: Tensor, orders: Tensor, counts: list[int]
    ) -> Iterator[Tensor]:
        """Yield, for each order, which examples are right by number of ablated units: (counts, N).

        `x` is the head's output.
        """
        copies = self.network.copies(x)
        if self.linear is not None:
            kept = self.linear.kept(x)
            yield from (self._by_addition(kept, labels, order, counts, copies) for order in orders)
            return
        numbers = torch.tensor(counts, device=orders.device)[:, None]
        for rank in orders.argsort(1):
            right = []
            for chosen in numbers.split(copies):
                self.masks = rank < chosen
                right.append(self.logits(x).argmax(-1) == labels)
            yield torch.cat(right)

    def _by_addition(
        self, kept: Tensor, labels: Tensor, order: Tensor, counts: list[int], copies: int
    ) -> Tensor:
        """Return which examples are right, (counts, N), going from the largest count down.

        An example on which none of the units added since the last count differs from its clamp
        keeps its logits and is not run again, if no layer further on is ablated as well.
        """
        network, linear = self.network, self.linear
        columns = network.columns(network.first)
        mine = (order >= columns.start) & (order < columns.stop)
        units = order[mine] - columns.start
        kept, weight = kept[:, units], linear.weight[units]
        ahead = [0, *mine.cumsum(0).tolist()]  # the layer's units among the first k of the order
        bounds = [*(ahead[k] for k in counts), len(units)]
        spare = bool(linear.rest) and not network.inner
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
            # A copy, here or by the mask below: what follows may work in place, and z is needed.
            stack = stack[0][None] if spare and len(stack) == 1 else torch.stack(stack[::-1])
            if not spare:
                numbers = torch.tensor(counts[chosen.start : stop], device=rank.device)
                self.masks = rank < numbers[:, None]
                classes = chained(linear.rest, stack.flatten(0, 1)).argmax(1)
                right[chosen.start : stop] = classes.unflatten(0, (len(chosen), -1)) == labels
                continue
            new = torch.stack([moved[:, bounds[t] : bounds[t + 1]].any(1) for t in chosen])
            if stop == len(counts):
                new[-1] = True
            if new.any():
                classes = chained(linear.rest, stack[new]).argmax(1)
                right[chosen.start : stop][new] = classes == labels.expand_as(new)[new]
            for t in reversed(chosen):
                if t + 1 < len(counts):
                    right[t] = torch.where(new[t - chosen.start], right[t], right[t + 1])
        return right

    def one_by_one(self, x: Tensor, labels: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield 1 + a first unit, and `_outcomes` (2, units, N) of it and the next ones alone.

        Number 0 is without clamp.
        """
        linear, copies = self.linear, self.network.copies(x)
        units = torch.arange(self.network.units, device=labels.device)
        if linear is None:
            for chosen in torch.cat([units.new_tensor([-1]), units]).split(copies):
                self.masks = chosen[:, None] == units
                outcomes = _outcomes(self.logits(x).flatten(0, 1), labels.repeat(len(chosen)))
                yield 1 + int(chosen[0]), outcomes.unflatten(1, (len(chosen), -1))
            return
        kept = linear.kept(x)
        whole = linear.constant.expand(len(kept), *linear.constant.shape[1:])
        whole = linear.add(whole, kept, linear.weight)
        baseline = _outcomes(chained(linear.rest, whole.clone()), labels)[:, None]
        yield 0, baseline
        moved = kept.flatten(2).any(2).T
        for chosen in units.split(copies):
            ones = [(kept[:, u, None], linear.weight[u, None]) for u in chosen]
            parts = [linear.add(whole, *unit, -1) for unit in ones]
            new = moved[chosen]
            outcomes = baseline.repeat(1, len(chosen), 1)
            if new.any():
                altered = chained(linear.rest, torch.stack(parts)[new])
                outcomes[:, new] = _outcomes(altered, labels.expand_as(new)[new])
            yield 1 + int(chosen[0]), outcomes


def next_linear(cut: Cut, values: list[Tensor]) -> NextLinear | None:
    """Return the linear layer behind the cut, if only what treats units by themselves precedes it.

    None where another kind of module, a hook or another ablated layer comes first.
    """
    if cut.first is None:
        return None
    shape = cut.shapes[cut.first]
    level = values[cut.first].reshape(-1, *(1,) * (len(shape) - 1)).expand(shape)[None]
    ablated = {module for _, module in cut.inner}
    for place, module in enumerate(cut.tail):
        if module in ablated or is_hooked(module):
            return None
        weight = _weight_by_unit(module, level, shape[0])
        if weight is not None:
            between, rest = cut.tail[:place], cut.tail[place + 1 :]
            return NextLinear(between, module, rest, weight, level, module(level))
        if not _by_itself(module, level):
            return None
        level = module(level.clone())  # it may work in place
    return None


def _weight_by_unit(module: nn.Module, level: Tensor, units: int) -> Tensor | None:
    """Return a linear layer's weights by unit; None if `module` is not one over the units."""
    if type(module) is nn.Linear and level.ndim == 2:
        return module.weight.detach().T.unflatten(0, (units, -1)).contiguous()
    dimensions, _ = CONVOLUTIONS.get(type(module), (0, None))
    plain = dimensions == level.ndim and module.groups == 1 and module.padding_mode == "zeros"
    return module.weight.detach().transpose(0, 1).contiguous() if plain else None


def _by_itself(module: nn.Module, level: Tensor) -> bool:
    """Return whether `module` treats every unit of (1, units, ...) by itself."""
    kind = type(module)
    if kind is nn.Flatten:
        return module.start_dim == 1 and module.end_dim in (-1, level.ndim - 1)
    if kind in NORMS:
        return module.running_mean is not None
    return kind in ELEMENTWISE or kind in IDLE or POOLS.get(kind) == level.ndim


def _outcomes(logits: Tensor, labels: Tensor) -> Tensor:
    """Return, as float64 (2, N), whether the largest logit is the label's, and cross-entropy."""
    right = logits.argmax(1) == labels
    return torch.stack([right.double(), F.cross_entropy(logits, labels, reduction="none").double()])
