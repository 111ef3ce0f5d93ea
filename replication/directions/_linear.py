"""The next linear layer behind an ablated one, taken apart into what each unit gives to it.

Between the two there may be modules that treat every unit by itself (a nonlinearity, batch norm in
eval mode, pooling, flattening): g. With x_u the ablated layer's unit u, c_u its clamp and W_u the
linear layer's weights from it, the pre-activation with the units of a set S kept is

    z_S = z_clamped + sum_{u in S} W_u (g(x_u) - g(c_u)),

a sum over what is kept. Cumulative ablation adds units to z_clamped, last ablated first, so that
nothing cancels: z has the rounding error of any sum of that many terms, and does not drift.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replication.directions._network import Cut, chained

ELEMENTWISE = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign),
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
}
NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
POOLS = {  # and the dimensions of their outputs
    **dict.fromkeys((nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d), 3),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), 4),
    **dict.fromkeys((nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d), 5),
}
CONVOLUTIONS = {nn.Conv1d: (3, F.conv1d), nn.Conv2d: (4, F.conv2d), nn.Conv3d: (5, F.conv3d)}


@dataclass(frozen=True)
class NextLinear:
    """The next linear layer by unit of the ablated one.

    Attributes
    ----------
    between : tuple of modules
        g.
    linear : nn.Linear or convolution
    rest : tuple of modules
        What comes after it.
    weight : (units, inputs of a unit, outputs), or (units, outputs, ...) for a convolution
    level : (1, units, ...)
        g(c).
    constant : (1, outputs, ...)
        z_clamped.
    """

    between: tuple[nn.Module, ...]
    linear: nn.Module
    rest: tuple[nn.Module, ...]
    weight: Tensor
    level: Tensor
    constant: Tensor

    def kept(self, x: Tensor) -> Tensor:
        """Return g(x) - g(c), (N, units, ...), of the ablated layer's output (may change it)."""
        units = self.weight.shape[0]
        return (chained(self.between, x) - self.level).reshape(
            len(x), units, *self.level.shape[2:] if self.convolves else (-1,)
        )

    @property
    def convolves(self) -> bool:
        """Whether the linear layer is a convolution."""
        return not isinstance(self.linear, nn.Linear)

    def add(self, z: Tensor, kept: Tensor, weight: Tensor, sign: int = 1) -> Tensor:
        """Return z plus (or minus) what some units give, from their part of `kept` and `weight`."""
        if not self.convolves:
            return torch.addmm(z, kept.flatten(1), weight.flatten(0, 1), alpha=sign)
        layer = self.linear
        convolve = CONVOLUTIONS[type(layer)][1]
        given = convolve(
            kept, weight.transpose(0, 1), None, layer.stride, layer.padding, layer.dilation
        )
        return z.add(given, alpha=sign)


def next_linear(cut: Cut, values: list[Tensor]) -> NextLinear | None:
    """Return the linear layer behind the cut, if only what treats units by themselves precedes it.

    None where another kind of module, a hook or another ablated layer comes first.
    """
    if cut.first is None:
        return None
    shape = cut.shapes[cut.first]
    level = values[cut.first].reshape(-1, *(1,) * (len(shape) - 1)).expand(shape)[None]
    ablated = {module for _, module in cut.hooked}
    for place, module in enumerate(cut.tail):
        if module in ablated or module._forward_hooks or module._forward_pre_hooks:
            return None
        weight = _weight_by_unit(module, level, shape[0])
        if weight is not None:
            return NextLinear(
                between=cut.tail[:place],
                linear=module,
                rest=cut.tail[place + 1 :],
                weight=weight,
                level=level,
                constant=module(level),
            )
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
    """Return whether `module` treats every unit by itself."""
    kind = type(module)
    if kind is nn.Flatten:
        return module.start_dim == 1 and module.end_dim in (-1, level.ndim - 1)
    if kind in NORMS:
        return module.running_mean is not None
    return kind in ELEMENTWISE or POOLS.get(kind) == level.ndim
