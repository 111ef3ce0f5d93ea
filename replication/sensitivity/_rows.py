"""Rows of a network's input Jacobian, of its softmax or its logits, a chunk of points at a time.

A covector v (C,) on the logits f(x) pulls back to the row v^T df/dx on the input. For an MLP that
is v^T W_L D_{L-1} W_{L-1} ... D_1 W_1, with D_l the slopes of the activations at x, one matrix
product a layer for all points and covectors; for any other network it is a backward pass.

The covectors of the softmax p are the rows of S = diag(p) - p p^T. On a point with p_y near 1 these
are differences of nearly equal numbers: in float32 nothing is left of them from p_y > 1 - 1e-7 on.
But

    S_cc = p_c sum_{j != c} p_j,   S_cj = -p_c p_j,

the Laplacian of the complete graph with edge weights p_c p_j, holds products and sums of positive
numbers only. Each row is formed from differences of logits and carries its scale as a logarithm,
so that nothing underflows before the result itself does.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from replication._core import modules
from replication._core.inputs import as_model, require_classes
from replication.sensitivity._evaluation import (
    as_logits,
    chunks,
    default_memory,
    forward_bytes,
    plain_evaluation,
    to_model,
)

ELEMENTWISE = {*modules.ELEMENTWISE, nn.PReLU, nn.Threshold, nn.Tanhshrink, nn.LogSigmoid}
SKIPPED = (nn.Identity, nn.Dropout, nn.AlphaDropout, nn.Sequential)  # the last where it is empty

PullBack = Callable[[Tensor], Tensor]  # covectors (n, K, C) -> rows (n, K, d)


def reduced_rows(
    model: nn.Module,
    images: Tensor,
    output: str,
    labels: Tensor | None,
    reduce: Callable[[Tensor, Tensor], Tensor],
    memory: int | None,
) -> Tensor:
    """Return ``reduce(rows, log_scales)`` (N, ...) of all points, as many at a time as fit.

    With J (K, inputs) the Jacobian of a point's K outputs, all or that of its label, the rows
    R (K, d) times e^log_scales (K,) have R R^T = J J^T, and so the norms and singular values of J.
    They are J itself or, where the first layer has so few neurons that it pays, J Q with Q an
    orthonormal basis of what that layer sees.
    """
    layers = mlp_layers(as_model(model), images.ndim)
    with plain_evaluation(model):
        first = to_model(model, images[:1])
        memory = memory or default_memory(first)
        classes = as_logits(model(first.clone()), 1).shape[1]  # an in-place layer may come first
        if labels is not None:
            require_classes(labels, classes)
        count = classes if labels is None else 1
        if layers is None:
            size = forward_bytes(model, first) + count * first.nbytes
        else:
            factor = _first_factor(layers, count * len(images))
            widths = [first.numel()]
            for layer in layers:
                widths.append(layer.out_features if type(layer) is nn.Linear else widths[-1])
            size = first.itemsize * ((3 * count + 4) * max(widths) + sum(widths))
        size += 6 * first.itemsize * count * classes  # the covectors
        pieces = []
        for where in chunks(len(images), memory // size):
            batch = to_model(model, images[where])
            if layers is None:
                logits, pull_back = _by_autograd(model, batch)
            else:
                logits, pull_back = _by_products(layers, factor, batch)
            chosen = torch.arange(classes).expand(len(batch), -1)
            chosen = (chosen if labels is None else labels[where, None]).to(logits.device)
            covectors = softmax_rows if output == "softmax" else _logit_rows
            vectors, log_scales = covectors(as_logits(logits, len(batch)), chosen)
            pieces.append(reduce(pull_back(vectors), log_scales))
        return torch.cat(pieces)


def softmax_rows(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of S, each scaled to a largest off-diagonal entry of -1, and their log scales.

    Of logits (n, C) the rows `classes` (n, K): (n, K, C) and (n, K), S = rows e^log_scales.
    """
    from_top = logits - logits.amax(1, keepdim=True)
    log_total = from_top.exp().sum(1, keepdim=True).log()
    own = classes[:, :, None]
    log_products = from_top.gather(1, classes)[:, :, None] + from_top[:, None]
    log_products.scatter_(2, own, -torch.inf)
    largest = log_products.amax(2).clamp_min(torch.finfo(logits.dtype).min)  # with one class
    products = (log_products - largest[:, :, None]).exp()
    rows = (-products).scatter(2, own, products.sum(2, keepdim=True))
    return rows, largest - 2 * log_total


def _logit_rows(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `softmax_rows` does for the identity in place of S."""
    unit = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    return unit[classes], logits.new_zeros(classes.shape)


def mlp_layers(model: nn.Module, ndim: int) -> list[nn.Module] | None:
    """Return the layers in order if `model` is an MLP in closed form, for images of `ndim` axes.

    That is flatten, linear and elementwise layers, batch normalisation by running statistics and
    dropout, in `nn.Sequential`s nested at will. Subclasses, parametrised layers and layers with
    hooks may do something else; there, and for all else, the answer is None.
    """
    layers, flat = [], ndim == 2
    for _, layer in modules.chain(model):
        if modules.is_altered(layer):
            return None
        if type(layer) in SKIPPED:
            continue
        if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            flat = True
        elif not flat or type(layer) not in ELEMENTWISE | {nn.Linear, nn.BatchNorm1d}:
            return None
        layers.append(layer)
    return layers


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
    """Return an MLP's logits (n, C) and its pullback, which may write on the covectors."""
    value = batch.flatten(1)
    steps: list[Tensor] = []  # weights (out, in), slopes (n or 1, 1, width)
    for layer in layers:
        if type(layer) is nn.Linear:
            value = layer(value)
            steps.append(factor if factor is not None and not steps else layer.weight)
        elif type(layer) is nn.BatchNorm1d:
            assert layer.running_var is not None  # as `as_network` has it
            value = layer(value)
            slope = (layer.running_var + layer.eps).rsqrt()
            steps.append((slope if layer.weight is None else slope * layer.weight)[None, None])
        elif type(layer) in ELEMENTWISE:
            with torch.enable_grad():
                leaf = value.clone().requires_grad_()
                value = layer(leaf.clone())  # which may be in place
                (slope,) = torch.autograd.grad(value.sum(), leaf)
            value = value.detach()
            steps.append(slope[:, None])

    def pull_back(covectors: Tensor) -> Tensor:
        rows = covectors
        for step in reversed(steps):
            rows = rows @ step if step.ndim == 2 else rows.mul_(step)
        return rows

    return value, pull_back


def _by_autograd(model: nn.Module, batch: Tensor) -> tuple[Tensor, PullBack]:
    """Return any network's logits and its pullback: one backward pass a covector for all points.

    On a CPU that is as fast as passes batched over covectors, for a K-th of the memory.
    """
    with modules.differentiable():
        leaf = batch.clone().requires_grad_()
        logits = model(leaf.clone())  # an in-place layer may come first

    def pull_back(covectors: Tensor) -> Tensor:
        rows = leaf.new_empty(len(leaf), covectors.shape[1], leaf[0].numel())
        for k, vectors in enumerate(covectors.unbind(1)):
            rows[:, k] = modules.input_gradient(logits, leaf, vectors).flatten(1)
        return rows

    return logits.detach(), pull_back
