"""Rows of a network's input Jacobian, a chunk of points at a time.

A covector v (C,) on the logits f(x) pulls back to the row v^T df/dx on the input. For an MLP that
is v^T W_L D_{L-1} W_{L-1} ... D_1 W_1, with D_l the slopes of the activations at x, one matrix
product a layer for all points and covectors; for any other network it is a backward pass.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from replication._core.inputs import as_model
from replication.sensitivity._evaluation import (
    as_logits,
    chunks,
    default_memory,
    forward_bytes,
    plain_evaluation,
    to_model,
)

# What acts on each number by itself in eval mode.
ELEMENTWISE = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Threshold, nn.Hardtanh, nn.Hardsigmoid),
    *(nn.Hardswish, nn.Tanh, nn.Sigmoid, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.LogSigmoid),
}
SKIPPED = {nn.Identity, nn.Dropout, nn.AlphaDropout}

# logits (n, C), which points these are -> covectors (n, K, C), logarithms of their scales (n, K)
Covectors = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
# covectors (n, K, C) -> rows (n, K, d)
PullBack = Callable[[Tensor], Tensor]


def reduced_rows(
    model: nn.Module,
    images: Tensor,
    covectors: Covectors,
    reduce: Callable[[Tensor, Tensor], Tensor],
    memory: int | None,
) -> Tensor:
    """Return ``reduce(rows, log_scales)`` of all points, from as many at a time as fit in `memory`.

    With J (K, inputs) the pullbacks of a point's K covectors, its rows R (K, d) have
    R R^T = J J^T, and so the norms and singular values of J. They are J itself, or, where the first
    layer has so few neurons that it pays, J Q with Q an orthonormal basis of what that layer sees.

    Parameters
    ----------
    model : torch.nn.Module
    images : (N, ...) tensor
        Brought to the model's device and dtype a chunk at a time.
    covectors, reduce : callable
    memory : int or None
        Bytes for a chunk, about, beside the model; a chunk has at least one point.
    """
    layers = mlp_layers(as_model(model), images.ndim)
    with plain_evaluation(model):
        first = to_model(model, images[:1])
        memory = memory or default_memory(first)
        logits = as_logits(model(first.clone()), 1)  # an in-place layer may come first
        count = covectors(logits, slice(0, 1))[0].shape[1]
        if layers is None:
            size = forward_bytes(model, first) + count * first.nbytes
        else:
            factor = _first_factor(layers, count * len(images))
            width, total = _widths(layers, first.numel())
            size = first.itemsize * ((3 * count + 4) * width + total)
        size += 6 * first.itemsize * count * logits.shape[1]  # the covectors
        pieces = []
        for where in chunks(len(images), memory // size):
            batch = to_model(model, images[where])
            if layers is None:
                logits, pull_back = _by_autograd(model, batch)
            else:
                logits, pull_back = _by_products(layers, factor, batch)
            vectors, log_scales = covectors(as_logits(logits, len(batch)), where)
            pieces.append(reduce(pull_back(vectors), log_scales))
        return torch.cat(pieces)


def mlp_layers(model: nn.Module, ndim: int) -> list[nn.Module] | None:
    """Return the layers in order if `model` is an MLP in closed form, for images of `ndim` axes.

    That is flatten, linear and elementwise layers, batch normalisation by running statistics and
    dropout, in `nn.Sequential`s nested at will. Subclasses, parametrised layers and layers with
    hooks may do something else; there, and for all else, the answer is None.
    """
    layers, flat = [], ndim == 2
    for layer in _unrolled(model):
        if layer is None:
            return None
        if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            flat = True
        elif not flat or type(layer) not in ELEMENTWISE | {nn.Linear, nn.BatchNorm1d}:
            return None
        layers.append(layer)
    return layers


def _unrolled(module: nn.Module) -> Iterator[nn.Module | None]:
    if module._forward_hooks or module._forward_pre_hooks:
        yield None
    elif type(module) is nn.Sequential:
        for child in module:
            yield from _unrolled(child)
    elif type(module) not in SKIPPED:
        yield module


def _widths(layers: list[nn.Module], inputs: int) -> tuple[int, int]:
    """Return the width of the widest layer, the input included, and the sum of all widths."""
    widths = [inputs]
    for layer in layers:
        widths.append(layer.out_features if type(layer) is nn.Linear else widths[-1])
    return max(widths), sum(widths)


def _first_factor(layers: list[nn.Module], rows: int) -> Tensor | None:
    """Return R^T (h, h) where W = R^T Q^T is the first layer's weight (h, inputs), if that pays.

    |v^T W| = |v^T R^T|, so that no row as long as the input is formed. R^T is a square root of the
    Gram matrix W W^T that never squares the condition number.
    """
    linear = next((layer for layer in layers if type(layer) is not nn.Flatten), None)
    if type(linear) is not nn.Linear:
        return None
    neurons, inputs = linear.weight.shape
    if rows * (inputs - neurons) < 3 * neurons * inputs:
        return None
    return torch.linalg.qr(linear.weight.detach().mT, mode="r")[1].mT.contiguous()


def _by_products(
    layers: list[nn.Module], factor: Tensor | None, batch: Tensor
) -> tuple[Tensor, PullBack]:
    """Return an MLP's logits and its pullback, which may write on the covectors."""
    value = batch.flatten(1)
    steps: list[Tensor] = []  # weights (out, in), slopes (n or 1, 1, width)
    for layer in layers:
        if type(layer) is nn.Linear:
            value = layer(value)
            steps.append(factor if factor is not None and not steps else layer.weight)
        elif type(layer) is nn.BatchNorm1d:
            value = layer(value)
            slope = (layer.running_var + layer.eps).rsqrt()
            steps.append((slope if layer.weight is None else slope * layer.weight)[None, None])
        elif type(layer) in ELEMENTWISE:
            value, slope = _with_slope(layer, value)
            steps.append(slope[:, None])

    def pull_back(covectors: Tensor) -> Tensor:
        rows = covectors
        for step in reversed(steps):
            rows = rows @ step if step.ndim == 2 else rows.mul_(step)
        return rows

    return value, pull_back


def _with_slope(layer: nn.Module, value: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = value.clone().requires_grad_()
        output = layer(leaf.clone())  # which may be in place
        (slope,) = torch.autograd.grad(output.sum(), leaf)
    return output.detach(), slope


def _by_autograd(model: nn.Module, batch: Tensor) -> tuple[Tensor, PullBack]:
    """Return any network's logits and its pullback: one backward pass a covector for all points.

    On a CPU that is as fast as passes batched over covectors, for a K-th of the memory.
    """
    with torch.enable_grad():
        leaf = batch.clone().requires_grad_()
        logits = model(leaf.clone())  # an in-place layer may come first

    def pull_back(covectors: Tensor) -> Tensor:
        rows = leaf.new_empty(len(leaf), covectors.shape[1], leaf[0].numel())
        for k, vectors in enumerate(covectors.unbind(1)):
            (gradient,) = torch.autograd.grad(logits, leaf, vectors, retain_graph=True)
            rows[:, k] = gradient.flatten(1)
        return rows

    return logits.detach(), pull_back
