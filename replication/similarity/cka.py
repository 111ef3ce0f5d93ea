"""Centred kernel alignment (CKA): <K, L> / sqrt(<K, K> <L, L>) of two layers' kernel matrices.

<K, L> is the biased or unbiased HSIC up to a factor that cancels.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from replication._core.inputs import Array, as_choice, as_number, like
from replication._core.precision import full_precision
from replication.similarity._linalg import as_layer, as_pair, centred, require_alike, warn


@dataclass(frozen=True)
class Prepared:
    """A layer as HSIC needs it."""

    values: Tensor  # centred, (examples, features) over `scale`, or (examples, examples)
    is_kernel: bool
    unbiased: bool
    diagonal: Tensor  # (examples,) of the kernel matrix, |x_i|^2 if linear
    square: Tensor  # <K, K>, 0 for a layer without structure
    scale: Tensor  # the layer's largest entry


def prepare(
    x: Tensor, kernel: str = "linear", unbiased: bool = False, sigma: float = 0.5
) -> Prepared:
    """Centre and scale a layer; a linear one of few features does not become its kernel matrix."""
    if unbiased and len(x) < 4:
        raise ValueError(f"x: expected at least 4 examples where unbiased, found {len(x)}")
    x = centred(x)
    scale = x.detach().abs().amax()
    x = x / scale.where(scale > 0, 1)
    eps = 64 * torch.finfo(x.dtype).eps
    if kernel == "linear" and x.shape[1] < len(x):
        values, diagonal = x, x.square().sum(1, dtype=torch.float64)
        rounding = eps * diagonal.detach().sum() ** 2 / x.shape[1] if unbiased else 0.0
    else:
        raw = x @ x.mT if kernel == "linear" else _rbf(x, sigma)
        values = _centred_kernel(raw, unbiased)
        diagonal = (raw if kernel == "linear" else values).diagonal().double()
        rounding = (eps * len(x) * raw.detach().abs().amax().double()) ** 2
    layer = Prepared(values, values is not x, unbiased, diagonal, diagonal, scale.double())
    square = product(layer, layer)
    return replace(layer, square=square.where(square > rounding, 0))


def product(x: Prepared, y: Prepared) -> Tensor:
    """Return <K, L>, a 0-d float64 tensor: (n - 1)^2 HSIC_0, or unbiased n (n - 3) HSIC_1.

    That is |X^T Y|_F^2, unbiased - n / (n - 2) sum_i p_i q_i + sum_i p_i sum_i q_i / ((n - 1)
    (n - 2)) with p_i = |x_i|^2 and q_i = |y_i|^2; of a layer and a kernel matrix tr(X^T L X).
    """
    if x.is_kernel and y.is_kernel:
        return (x.values * y.values).sum(dtype=torch.float64)
    if x.is_kernel or y.is_kernel:
        matrix, layer = (x.values, y.values) if x.is_kernel else (y.values, x.values)
        return (layer * (matrix @ layer)).sum(dtype=torch.float64)
    total = (x.values.mT @ y.values).double().square().sum()
    if not x.unbiased:
        return total
    n = len(x.values)
    shared = x.diagonal.dot(y.diagonal)
    traces = x.diagonal.sum() * y.diagonal.sum()
    return total - n / (n - 2) * shared + traces / ((n - 1) * (n - 2))


def index(xy: Tensor, xx: Tensor, yy: Tensor, lowest: float = -1.0) -> Tensor:
    """Return xy / sqrt(xx yy) within [lowest, 1], elementwise; 0 where a square is 0."""
    defined = (xx > 0) & (yy > 0)
    value = xy / (xx * yy).where(defined, 1).sqrt()
    return value.where(defined, 0).clamp(lowest, 1)


def cka(
    x: Array,
    y: Array,
    kernel: str = "linear",
    unbiased: bool = False,
    sigma: float = 0.5,
    confounder: Array | None = None,
    angular: bool = False,
) -> Array:
    """Return the centred kernel alignment of two layers, a similarity.

    Linear and biased it is |X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F) of the centred layers (Kornblith et
    al. 2019, section 3). It ignores orthogonal maps, isotropic scaling and translation, and is
    differentiable, RBF CKA at a fixed bandwidth. No matrix is larger than the layers, RBF apart.

    Parameters
    ----------
    kernel : "linear" or "rbf"
        RBF: K_ij = exp(-|x_i - x_j|^2 / (2 (sigma m)^2)), m the median distance of two different
        examples (where most distances are 0, the median of the others).
    unbiased : bool
        HSIC_1 (Song et al. 2012, eq. 5) in place of HSIC_0: about 0 for unrelated layers however
        few the examples, of which there must be 4.
    confounder : (examples, features) tensor or array, optional
        Usually the flattened input: its kernel matrix C is regressed out of both layers',
        K - (<K, C> / <C, C>) C (Cui et al. 2022), negative eigenvalues kept as in their code.
    angular : bool
        Return the angle arccos CKA, a metric where CKA is biased (Williams et al. 2021); near 0 it
        has half the digits.

    Returns
    -------
    In [0, 1], or in [-1, 1] with `unbiased` or a confounder; of `angular` the angle of that. 0 with
    a UserWarning also for a layer that equals the confounder, or with `unbiased` has only a single
    example apart.

    Warns
    -----
    UserWarning
        Where biased CKA is above 0.1 for shuffled examples, on average tr K tr L / ((n - 1) |K|
        |L|): about d / (n + d) for Gaussian layers of d features (Murphy et al. 2024).

    Examples
    --------
    >>> x = torch.randn(300, 10, dtype=torch.float64)
    >>> round(float(cka(x, 3 * x.flip(1) + 1)), 6)  # rotations, scale and shift are free
    1.0
    """
    check_kernel(kernel, sigma)
    first, second = as_pair(x, y)
    options = kernel, unbiased, sigma
    with full_precision():
        a = prepare(first, *options)
        b = a if torch.equal(first, second) else prepare(second, *options)
        terms = torch.stack([a.square if b is a else product(a, b), a.square, b.square])
        chance = 0.0 if unbiased else index(shuffled(a, b, len(first)), a.square, b.square).item()
        if confounder is not None:
            layer = as_layer(confounder, "confounder")
            require_alike({"x": first, "confounder": layer})
            c = prepare(layer.to(first.dtype), *options)
            xc, yc = product(a, c), product(b, c)
            shared = torch.stack([xc * yc, xc * xc, yc * yc])
            rest = terms - shared / c.square.where(c.square > 0, math.inf)
            rounding = 64 * torch.finfo(first.dtype).eps * terms.abs()
            terms = rest.where(rest.abs() > rounding, 0)
    warn({"x": int(terms[1] > 0), "y": int(terms[2] > 0)}, chance=chance)
    lowest = 0.0 if confounder is None and not unbiased else -1.0
    value = index(terms[0], terms[1], terms[2], lowest)
    return like(x)((value.arccos() if angular else value).to(first.dtype))[()]


def check_kernel(kernel: str, sigma: float) -> None:
    """Raise a ValueError for an unknown kernel or a wrong width."""
    as_choice(kernel, "kernel", ("linear", "rbf"))
    as_number(sigma, "sigma", positive=True)


def shuffled(x: Prepared, y: Prepared, examples: int) -> Tensor:
    """Return what <K, L> is on average, biased, when the examples of one layer are shuffled."""
    return x.diagonal.sum() * y.diagonal.sum() / (examples - 1)


def _rbf(x: Tensor, sigma: float) -> Tensor:
    """Return the RBF kernel matrix minus 1, which centring forgets and rounding does not."""
    gram = x @ x.mT
    squares = gram.diagonal()[:, None] + gram.diagonal()
    distances = squares - 2 * gram
    # The distance of duplicates is 0 and not what rounding leaves.
    distances = distances * (distances > 8 * torch.finfo(x.dtype).eps * squares)
    # All entries but the diagonal: each pair twice, which leaves the median as it is.
    pairs = distances.detach().flatten()[1:].view(len(x) - 1, len(x) + 1)[:, :-1].flatten().sqrt()
    if pairs.kthvalue(pairs.numel() // 2 + 1).values == 0:
        pairs = pairs[pairs > 0]
        if not len(pairs):
            return torch.zeros_like(gram)
    half = pairs.numel() // 2
    median = (pairs.kthvalue(half).values + pairs.kthvalue(half + 1).values) / 2
    return torch.expm1(distances / (-2 * (sigma * median) ** 2))


def _centred_kernel(kernel: Tensor, unbiased: bool) -> Tensor:
    """Return K (n, n) centred, or U-centred (Székely & Rizzo 2014) with 0 on the diagonal."""
    n = len(kernel)
    if unbiased:
        diagonal = torch.eye(n, dtype=torch.bool, device=kernel.device)
        kernel = kernel.masked_fill(diagonal, 0)
    rows = kernel.sum(1) / (n - 2 if unbiased else n)
    kernel = kernel - rows[:, None] - rows + rows.sum() / (n - 1 if unbiased else n)
    return kernel.masked_fill(diagonal, 0) if unbiased else kernel
