"""Rows of the softmax Jacobian without cancellation, and norms of rows that carry their scale.

The softmax probabilities p of the logits f(x) have the Jacobian J = S df/dx with
S = diag(p) - p p^T. On a point with p_y near 1, diag(p) - p p^T and 1 - p_y are differences of
nearly equal numbers: in float32 nothing is left of them from p_y > 1 - 1e-7 on. But

    S_cc = p_c sum_{j != c} p_j,   S_cj = -p_c p_j,

the Laplacian of the complete graph with edge weights p_c p_j, holds products and sums of positive
numbers only. Each row is formed from differences of logits and carries its scale as a logarithm,
so that nothing underflows before the result itself does.
"""

from warnings import warn

import torch
from torch import Tensor

from replication._core.inputs import generator


def softmax_rows(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of S = diag(p) - p p^T, each scaled to a largest off-diagonal entry of -1.

    Parameters
    ----------
    logits : (n, C) tensor
    classes : (n, K) tensor
        Which rows.

    Returns
    -------
    rows : (n, K, C) tensor
    log_scales : (n, K) tensor
        S = rows e^log_scales.
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


def logit_rows(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `softmax_rows` does for the identity in place of S."""
    unit = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    return unit[classes], logits.new_zeros(classes.shape)


def frobenius(rows: Tensor, log_scales: Tensor) -> Tensor:
    """Return the norm of each point's rows e^log_scales, (n,), from rows (n, K, d)."""
    relative, log_scale = _relative(log_scales)
    lengths = torch.linalg.vector_norm(rows, dim=2)
    info = torch.finfo(rows.dtype)
    if info.tiny**0.5 / info.eps < lengths.min() and lengths.max() < info.max**0.5 * info.eps:
        return _scaled(torch.linalg.vector_norm(lengths * relative, dim=1), log_scale)
    size = _size(rows)  # squares leave the range, or there is nothing
    lengths = torch.linalg.vector_norm(rows / size[:, None, None], dim=2)
    return _scaled(torch.linalg.vector_norm(lengths * relative, dim=1) * size, log_scale)


def largest_singular_value(
    rows: Tensor, log_scales: Tensor, tolerance: float, iterations: int, seed: int
) -> Tensor:
    """Return the largest singular value of each point's rows e^log_scales, (n,), as frobenius.

    Writes on `rows`.
    """
    relative, log_scale = _relative(log_scales)
    rows *= relative[:, :, None]
    size = _size(rows)
    rows /= size[:, None, None]
    gram = rows @ rows.mT
    start = torch.randn(gram.shape[1], generator=generator(seed, "power"), dtype=torch.float64)
    vector = (start / start.norm()).to(gram).expand(gram.shape[:2])
    growth = max(2 * tolerance, 4 * torch.finfo(gram.dtype).eps)  # of the square, beyond rounding
    value = gram.new_zeros(len(gram))
    for _ in range(iterations):
        image = (gram @ vector[:, :, None])[:, :, 0]
        before, value = value, (vector * image).sum(1)
        moving = value - before > growth * value
        if not moving.any():
            break
        length = torch.linalg.vector_norm(image, dim=1, keepdim=True)
        vector = image / length.where(length > 0, 1)
    else:
        warn(
            f"spectral_norm: {int(moving.sum())} of {len(value)} points of a chunk were still "
            f"moving after {iterations} iterations",
            stacklevel=5,  # the caller of spectral_norm
        )
    return _scaled(value.clamp_min(0).sqrt() * size, log_scale)


def _relative(log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales (n, K) over the largest of each point, and the logarithm of that one."""
    largest = log_scales.amax(1, keepdim=True)
    return (log_scales - largest).exp(), largest[:, 0]


def _size(rows: Tensor) -> Tensor:
    """Return each point's largest absolute entry, 1 where all are 0."""
    size = torch.maximum(rows.amax((1, 2)), -rows.amin((1, 2)))
    return size.where(size > 0, 1)


def _scaled(value: Tensor, log_scale: Tensor) -> Tensor:
    half = (log_scale / 2).exp()  # the whole may underflow where the product does not
    return value * half * half
