"""What each of torch's layers is to a piecewise-linear network."""

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replication._core.modules import CONVOLUTIONS, NORMS
from replication.sensitivity._piecewise.program import Activation, Affine, AnyStep, MaxPool

SUPPORTED = (
    "expected ReLU, LeakyReLU, ReLU6, Hardtanh, Hardsigmoid, MaxPool2d, Linear, convolutions, "
    "average pooling, batch normalisation, Flatten, Dropout, Identity, sums and joins of branches"
)
SMOOTH = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.Softplus)
LINEAR = (nn.Flatten, nn.Unflatten, nn.ZeroPad2d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
LINEAR += (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def step_of(module: nn.Module, value: Tensor, name: str) -> AnyStep:
    """Return the step of a layer in eval mode, on inputs of the shape and dtype of `value`."""
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        return _weighted(module, value)
    if isinstance(module, NORMS):
        return _normalisation(module, value)
    if isinstance(module, LINEAR):
        return Affine(module, module, module)
    if isinstance(module, nn.MaxPool2d) and not module.return_indices:
        return MaxPool(name, module, _windows(module, value))
    if isinstance(module, nn.ReLU):
        return Activation(name, torch.relu, (0.0,), ((0.0, 0.0), (1.0, 0.0)))
    if isinstance(module, nn.LeakyReLU):
        slope = float(module.negative_slope)
        forward = partial(F.leaky_relu, negative_slope=slope)
        return Activation(name, forward, (0.0,), ((slope, 0.0), (1.0, 0.0)))
    if isinstance(module, nn.Hardtanh):  # and ReLU6, which is one
        ends = float(module.min_val), float(module.max_val)
        pieces = ((0.0, ends[0]), (1.0, 0.0), (0.0, ends[1]))
        return Activation(name, partial(torch.clamp, min=ends[0], max=ends[1]), ends, pieces)
    if isinstance(module, nn.Hardsigmoid):
        pieces = ((0.0, 0.0), (1 / 6, 0.5), (0.0, 1.0))
        return Activation(name, F.hardsigmoid, (-3.0, 3.0), pieces)
    reason = f"not supported; {SUPPORTED}"
    if isinstance(module, SMOOTH):
        reason = "smooth: such a network has no linear regions"
    raise ValueError(f"model: {name!r} is a {type(module).__name__}, which is {reason}")


def _weighted(module: Any, value: Tensor) -> Affine:
    weight = module.weight.detach().to(value)
    bias = None if module.bias is None else module.bias.detach().to(value)
    zero = None if bias is None else torch.zeros_like(bias)
    # Of a convolution, what it does itself with its own padding.
    apply = F.linear if isinstance(module, nn.Linear) else module._conv_forward
    return Affine(
        lambda x: apply(x, weight, bias),
        lambda x: apply(x, weight, zero),
        lambda x: apply(x, weight.abs(), zero),
    )


def _normalisation(module: Any, value: Tensor) -> Affine:
    mean, variance = module.running_mean.to(value), module.running_var.to(value)
    slope = (variance + module.eps).rsqrt()
    shift = -mean * slope
    if module.affine:
        weight, bias = module.weight.detach().to(value), module.bias.detach().to(value)
        slope, shift = slope * weight, shift * weight + bias
    slope, shift = (x.view(-1, *[1] * (value.ndim - 2)) for x in (slope, shift))
    return Affine(
        lambda x: torch.addcmul(shift, x, slope),
        partial(torch.mul, slope),
        partial(torch.mul, slope.abs()),
    )


def _windows(pool: nn.MaxPool2d, value: Tensor) -> Tensor:
    """Return the flat input units of every window (W, k), with the number of units as filler."""
    (height, width), (down, right), (dy, dx), (top, left) = (
        (size, size) if isinstance(size, int) else size
        for size in (pool.kernel_size, pool.stride, pool.dilation, pool.padding)
    )
    shape = value.shape[1:]
    rows, columns = pool(value[:1]).shape[2:]
    # Behind the image as much filler as the last windows reach, which ceil_mode may add.
    bottom = (rows - 1) * down + dy * (height - 1) + 1 - shape[1] - top
    end = (columns - 1) * right + dx * (width - 1) + 1 - shape[2] - left
    numbers = torch.arange(1, prod(shape) + 1, dtype=torch.float64, device=value.device)
    padded = F.pad(numbers.view(1, *shape), (left, max(end, 0), top, max(bottom, 0)))
    unfolded = F.unfold(padded, (height, width), (dy, dx), 0, (down, right))
    units = unfolded.view(shape[0], height * width, -1).mT.reshape(-1, height * width).long() - 1
    return units.where(units >= 0, prod(shape))
