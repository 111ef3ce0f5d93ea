"""How far a network's output moves with its input: norms of the Jacobian, point by point.

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

from replication._core import inputs, modules
from replication._core.inputs import Array, Kind
from replication.sensitivity._evaluation import (
    as_logits,
    chunks,
    forward_bytes,
    plain_evaluation,
    to_model,
)

ELEMENTWISE = {*modules.ELEMENTWISE, nn.PReLU, nn.Threshold, nn.Tanhshrink, nn.LogSigmoid}
SKIPPED = (nn.Identity, nn.Dropout, nn.AlphaDropout, nn.Sequential)  # the last where it is empty

PullBack = Callable[[Tensor], Tensor]  # covectors (n, K, C) -> rows (n, K, d)


def jacobian_norm(
    model: nn.Module, images: Kind, output: str = "softmax", *, memory: int | None = None
) -> Kind:
    """Return each point's Frobenius norm of the input Jacobian, (N,).

        |J|_F = sqrt(sum_{c,i} (d s_c / d x_i)^2),   s = softmax(f(x)), or s = f(x), the logits

    (Novak et al. 2018, section 3, where s is the softmax), in units of the output per unit of
    length of the input. In float32 each norm above 1e-38 is within 1e-4 of float64's, relative,
    however confident the network is; below, it goes to 0. Two things remain: an error d of the
    logits is a relative error of about d here, and a point within rounding of a kink of the
    activations may fall on its other side.

    Parameters
    ----------
    model : torch.nn.Module
        Gives logits (N, classes). Runs in eval mode, on its own device, in its own dtype, float32
        or float64. An MLP of standard layers in `nn.Sequential` is done in closed form, anything
        else by one backward pass a class. At kinks the slope is torch's.
    images : (N, ...) tensor or array
    output : "softmax" or "logits"
    memory : int, optional
        Bytes that the working tensors may take, about, beside the model, of one point at least. By
        default 32 MiB on a CPU, fastest as it is near a processor's cache, and 1 GiB on a GPU.

    Raises
    ------
    ValueError
        If the model does not give finite logits (N, classes), is of another dtype or normalises by
        statistics of the batch even in eval mode; for bad `images`, `output` or `memory`.

    Examples
    --------
    >>> import torch
    >>> from replication import sensitivity
    >>> linear = torch.nn.Linear(3, 2, bias=False).double()
    >>> norms = sensitivity.jacobian_norm(linear, torch.randn(5, 3, dtype=torch.float64), "logits")
    >>> torch.allclose(norms, linear.weight.norm().expand(5))
    True
    """
    return inputs.like(images)(_norms(model, images, output, None, memory))


def jacobian_row_norm(
    model: nn.Module,
    images: Kind,
    labels: Array,
    output: str = "softmax",
    *,
    memory: int | None = None,
) -> Kind:
    """Return each point's norm of the gradient of the output of its own class y, (N,).

        |J_y| = sqrt(sum_i (d s_y / d x_i)^2)

    with y the `labels` (N,), from 0 to classes - 1 (Novak et al. 2018, the study of single points).
    All else as in `jacobian_norm`.
    """
    labels = inputs.as_inputs(labels, "labels")
    return inputs.like(images)(_norms(model, images, output, labels, memory))


def _norms(
    model: nn.Module, images: Array, output: str, labels: Array | None, memory: int | None
) -> Tensor:
    """Return the norms (N,) of all points, of all outputs or that of the label, as many as fit.

    With J (K, inputs) the Jacobian of a point's K outputs, its rows R (K, d) times e^log_scales
    (K,) have R R^T = J J^T. They are J itself or, where the first layer has so few neurons that it
    pays, J Q with Q an orthonormal basis of what that layer sees.
    """
    points = inputs.as_inputs(images, "images")
    if points.ndim < 2:
        raise ValueError(f"images: expected (N, ...), found shape {tuple(points.shape)}")
    inputs.as_choice(output, "output", ("softmax", "logits"))
    if memory is not None:
        inputs.as_integer(memory, "memory", 1)
    if labels is not None:  # small types would wrap in a comparison
        labels = inputs.as_labels(labels, len(points)).long()
    layers = mlp_layers(inputs.as_model(model), points.ndim)
    with plain_evaluation(model):
        first = to_model(model, points[:1])
        memory = memory or (2**25 if first.device.type == "cpu" else 2**30)
        classes = as_logits(model(first.clone()), 1).shape[1]  # an in-place layer may come first
        if labels is not None:
            inputs.require_classes(labels, classes)
        count = classes if labels is None else 1
        if layers is None:
            size = forward_bytes(model, first) + count * first.nbytes
        else:
            factor = _first_factor(layers, count * len(points))
            widths = [first.numel()]
            for layer in layers:
                widths.append(layer.out_features if type(layer) is nn.Linear else widths[-1])
            size = first.itemsize * ((3 * count + 4) * max(widths) + sum(widths))
        size += 6 * first.itemsize * count * classes  # the covectors
        pieces = []
        for where in chunks(len(points), memory // size):
            batch = to_model(model, points[where])
            if layers is None:
                logits, pull_back = _by_autograd(model, batch)
            else:
                logits, pull_back = _by_products(layers, factor, batch)
            chosen = torch.arange(classes).expand(len(batch), -1)
            chosen = (chosen if labels is None else labels[where, None]).to(logits.device)
            covectors = softmax_rows if output == "softmax" else _logit_rows
            vectors, log_scales = covectors(as_logits(logits, len(batch)), chosen)
            pieces.append(_frobenius(pull_back(vectors), log_scales))
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
    neurons, width = linear.weight.shape
    if rows * (width - neurons) < 3 * neurons * width:
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


def _frobenius(rows: Tensor, log_scales: Tensor) -> Tensor:
    """Return the norm of each point's rows e^log_scales, (n,), from rows (n, K, d)."""
    largest = log_scales.amax(1, keepdim=True)
    lengths, size = torch.linalg.vector_norm(rows, dim=2), 1
    info = torch.finfo(rows.dtype)
    low, high = info.tiny**0.5 / info.eps, info.max**0.5 * info.eps
    if not ((low < lengths) & (lengths < high)).all():  # squares leave the range, or all are 0
        size = torch.maximum(rows.amax((1, 2)), -rows.amin((1, 2)))
        size = size.where(size > 0, 1)
        lengths = torch.linalg.vector_norm(rows / size[:, None, None], dim=2)
    norm = torch.linalg.vector_norm(lengths * (log_scales - largest).exp(), dim=1) * size
    half = (largest[:, 0] / 2).exp()  # the whole may underflow where the product does not
    return norm * half * half
