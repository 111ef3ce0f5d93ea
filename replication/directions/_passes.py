"""Outcomes of a batch of examples under one clamped copy after another.

With x_u the ablated layer's unit u, c_u its clamp, g what treats units by themselves up to the next
linear layer (a nonlinearity, batch norm in eval mode, pooling, flattening) and W_u that layer's
weights from u, its pre-activation with the units of a set S kept is

    z_S = z_clamped + sum_{u in S} W_u (g(x_u) - g(c_u)).

Cumulative ablation adds units to z_clamped, last ablated first, so that nothing cancels: z has the
rounding error of any sum of that many terms, and does not drift.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replication._core.modules import CONVOLUTIONS, ELEMENTWISE, IDLE, NORMS, is_altered
from replication.directions._network import Cut, Perturbation, chained

POOLS = ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool")


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
        convolve = getattr(F, f"conv{kept.ndim - 2}d")
        options = layer.stride, layer.padding, layer.dilation
        return z.add(convolve(kept, weight.transpose(0, 1), None, *options), alpha=sign)

    def logits(self, parts: list[Tensor]) -> Tensor:
        """Return (copies, N, classes) from as many pre-activations, which are copied."""
        return chained(self.rest, torch.stack(parts).flatten(0, 1)).unflatten(0, (len(parts), -1))


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

        `x` is the head's output; `orders` are on the CPU.
        """
        linear, copies = self.linear, self.network.copies(x)
        kept = x if linear is None else linear.kept(x)
        numbers = torch.tensor(counts, device=x.device).flip(0)[:, None]
        for order in orders:
            rank, right = order.argsort().to(x.device), []
            added = iter(()) if linear is None else self._added(linear, kept, order, counts)
            for chosen in numbers.split(copies):
                self.masks = rank < chosen
                if linear is None:
                    logits = self.logits(x)
                else:
                    logits = linear.logits([next(added) for _ in chosen])
                right.append(logits.argmax(-1) == labels)
            yield torch.cat(right).flip(0)

    def _added(
        self, linear: NextLinear, kept: Tensor, order: Tensor, counts: list[int]
    ) -> Iterator[Tensor]:
        """Yield z (N, outputs, ...) for each number of ablated units, the largest first."""
        assert self.network.first is not None  # it has a next linear layer
        columns = self.network.columns(self.network.first)
        mine = (order >= columns.start) & (order < columns.stop)
        units = order[mine] - columns.start
        there = units.to(kept.device)
        kept, weight = kept[:, there], linear.weight[there]
        ahead = [0, *mine.cumsum(0).tolist()]  # the layer's units among the first k of the order
        bounds = [*(ahead[k] for k in counts), len(units)]
        z = linear.constant.expand(len(kept), *linear.constant.shape[1:])
        for start, end in reversed(list(pairwise(bounds))):
            if end > start:
                z = linear.add(z, kept[:, start:end], weight[start:end])
            yield z

    def one_by_one(self, x: Tensor, labels: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield 1 + a first unit, and `_outcomes` (2, units, N) of it and the next ones alone.

        Number 0 is without clamp. What a unit does not change keeps exactly the outcome of that.
        """
        linear, copies = self.linear, self.network.copies(x)
        if linear is None:
            units = torch.arange(-1, self.network.units, device=labels.device)
            for start, chosen in zip(count(step=copies), units.split(copies)):
                self.masks = chosen[:, None] == units[1:]
                yield start, _outcomes(self.logits(x), labels.expand(len(chosen), -1))
            return
        kept, weight = linear.kept(x), linear.weight
        constant = linear.constant.expand(len(kept), *linear.constant.shape[1:])
        whole = linear.add(constant, kept, weight)
        baseline = _outcomes(linear.logits([whole]), labels[None])
        yield 0, baseline
        moved = kept.flatten(2).any(2).T.cpu()  # once a batch, as the sizes below depend on it
        for start in range(0, len(moved), copies):
            units = range(start, min(start + copies, len(moved)))
            parts = [linear.add(whole, kept[:, u, None], weight[u, None], -1) for u in units]
            outcomes = baseline.repeat(1, len(units), 1)
            places = moved[start : units.stop].nonzero(as_tuple=True)
            unit, example = (place.to(x.device) for place in places)
            if len(unit):
                altered = chained(linear.rest, torch.stack(parts)[unit, example])
                outcomes[:, unit, example] = _outcomes(altered, labels[example])
            yield 1 + start, outcomes


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
        if module in ablated or is_altered(module):
            return None
        weight = _weight_by_unit(module, level, shape[0])
        if weight is not None:
            between, rest = cut.tail[:place], cut.tail[place + 1 :]
            return NextLinear(between, module, rest, weight, level, module(level))
        if not _by_itself(module, level):
            return None
        level = module(level.clone())  # it may work in place
    return None


def _weight_by_unit(module: Any, level: Tensor, units: int) -> Tensor | None:
    """Return a linear layer's weights by unit; None if `module` is not one over the units."""
    if type(module) not in (nn.Linear, *CONVOLUTIONS) or module.weight.ndim != level.ndim:
        return None
    weight = module.weight.detach().transpose(0, 1)
    if type(module) is nn.Linear:
        return weight.unflatten(0, (units, -1)).contiguous()
    return weight.contiguous() if module.groups == 1 and module.padding_mode == "zeros" else None


def _by_itself(module: Any, level: Tensor) -> bool:
    """Return whether `module` treats every unit of (1, units, ...) by itself."""
    kind = type(module)
    if kind is nn.Flatten:
        return module.start_dim == 1 and module.end_dim in (-1, level.ndim - 1)
    if kind in NORMS:
        return module.running_mean is not None
    pools = [getattr(nn, f"{name}{level.ndim - 2}d", None) for name in POOLS]
    return kind in (*ELEMENTWISE, *IDLE, *pools)


def _outcomes(logits: Tensor, labels: Tensor) -> Tensor:
    """Return, as float64 (2, ...), whether the largest logit is the label's, and cross-entropy."""
    right = logits.argmax(-1) == labels
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return torch.stack([right.double(), losses.double().reshape(right.shape)])
