"""Centred kernel alignment (CKA): linear and RBF, biased and unbiased, deconfounded.

An index compares two kernel matrices K and L, each (examples, examples):

    CKA = <K, L> / sqrt(<K, K> <L, L>),

where <K, L> is the biased or the unbiased HSIC up to a factor that cancels. `prepare` reduces a
layer once, `product` gives <K, L> of two prepared layers, and `index` the ratio; a grid of layers
needs no more than these. All is differentiable in both layers, RBF CKA at a fixed bandwidth.
"""

import math
import numbers
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from replication._core.inputs import Array, like, nearest
from replication._core.precision import full_precision
from replication.similarity._linalg import as_layer, as_pair, centred

KERNELS = ("linear", "rbf")
CHANCE = 0.1
"""`cka` warns where unrelated layers would score more than this on average."""


@dataclass(frozen=True)
class Prepared:
    """A layer as HSIC needs it.

    `values` is the centred layer (examples, features) divided by `scale`, its largest entry, or
    where `is_kernel` its centred kernel matrix. `diagonal`, float64, is that of the kernel matrix,
    for a linear kernel |x_i|^2. `square` is <K, K>, 0 for a layer without structure.
    """

    values: Tensor
    is_kernel: bool
    unbiased: bool
    diagonal: Tensor
    square: Tensor
    scale: Tensor


def prepare(
    x: Tensor, kernel: str = "linear", unbiased: bool = False, sigma: float = 0.5
) -> Prepared:
    """Centre and scale a checked layer; build its kernel matrix where that is the smaller form.

    A linear layer with fewer features than examples stays (examples, features), any other becomes
    (examples, examples). Biased kernel matrices are centred, H K H with H = I - 1 1^T / n. Unbiased
    ones are U-centred (Székely & Rizzo 2014): for i != j, with the diagonal of K left out of sums,

        K_ij - sum_l K_il / (n - 2) - sum_l K_lj / (n - 2) + sum_lm K_lm / ((n - 1) (n - 2)),

    and 0 on the diagonal, so that <K, L> is n (n - 3) times HSIC_1 of Song et al. 2012 (eq. 5).
    """
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
        with full_precision():
            raw = x @ x.mT if kernel == "linear" else _rbf(x, sigma)
        values = _centred_kernel(raw, unbiased)
        diagonal = (raw if kernel == "linear" else values).diagonal().double()
        rounding = (eps * len(x) * raw.detach().abs().amax().double()) ** 2
    layer = Prepared(values, values is not x, unbiased, diagonal, diagonal, scale.double())
    square = product(layer, layer)
    return replace(layer, square=square.where(square > rounding, 0))


def product(x: Prepared, y: Prepared) -> Tensor:
    """Return <K, L>, a 0-d float64 tensor: (n - 1)^2 HSIC_0, or unbiased n (n - 3) HSIC_1.

    Of two centred layers, X and Y, |X^T Y|_F^2 is the biased value. U-centring forgets a layer's
    mean, so the unbiased one follows from it with p_i = |x_i|^2 and q_i = |y_i|^2:

        |X^T Y|_F^2 - n / (n - 2) sum_i p_i q_i + sum_i p_i sum_i q_i / ((n - 1) (n - 2)).

    Of a layer and a kernel matrix, to centre the matrix is enough: <K, L> = tr(X^T L X).
    """
    with full_precision():
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
) -> Array:
    """Return the centred kernel alignment of two layers, a similarity.

    CKA = <K, L> / sqrt(<K, K> <L, L>); linear, biased and centred this is |X^T Y|_F^2 / (|X^T X|_F
    |Y^T Y|_F). It ignores orthogonal maps, isotropic scaling and translation. A linear kernel needs
    no (examples, examples) matrix for a layer with fewer features than examples, and no (features,
    features) one for any other.

    Parameters
    ----------
    x, y : (examples, features) tensor or array
    kernel : "linear" or "rbf"
        RBF: K_ij = exp(-|x_i - x_j|^2 / (2 (sigma m)^2)), m the median distance of two different
        examples (where most distances are 0, the median of the others).
    unbiased : bool
        HSIC_1, the U-statistic of Song et al., in place of HSIC_0: about 0 for unrelated layers
        however few the examples.
    sigma : float
        The RBF kernel's width in units of m.
    confounder : (examples, features) tensor or array, optional
        Usually the flattened input: its centred kernel matrix C is regressed out of both layers',
        K - (<K, C> / <C, C>) C. Negative eigenvalues that this leaves are kept, the default of the
        authors' code; the index is then the partial correlation of K and L given C.

    Returns
    -------
    0-d tensor or NumPy float
        In [0, 1], or in [-1, 1] with `unbiased` or a confounder; exactly 1 for equal layers. 0 with
        a UserWarning where undefined: a constant layer, one that equals the confounder, or with
        `unbiased` one whose only structure is a single example apart from equal ones.

    Raises
    ------
    ValueError
        For an unknown kernel, a sigma that is not positive, layers that do not fit, or `unbiased`
        with fewer than 4 examples.

    Warns
    -----
    UserWarning
        If biased and tr K tr L / ((n - 1) |K| |L|), what the layers score on average when the
        examples of one are shuffled, is above 0.1. For Gaussian layers of d features this is about
        d / (n + d): fewer than 9 examples a feature (Murphy et al. 2024).

    References
    ----------
    Kornblith et al. 2019, section 3; Song et al. 2012, eq. 5; Cui et al. 2022; Murphy et al. 2024.

    Examples
    --------
    >>> import torch
    >>> from replication import similarity
    >>> x = torch.randn(300, 10, dtype=torch.float64)
    >>> turn = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64)).Q
    >>> round(float(similarity.cka(x, 3 * x @ turn + 1)), 6)  # rotations, scale and shift are free
    1.0
    """
    check_kernel(kernel, sigma)
    a, b, terms = _terms(x, y, kernel, unbiased, sigma)
    chance = index(terms[3], terms[1], terms[2])
    if confounder is not None:
        layer, n, device = as_layer(confounder, "confounder"), len(a.values), a.values.device
        if (len(layer), layer.device) != (n, device):
            found = f"{len(layer)} on {layer.device}"
            raise ValueError(f"confounder: expected {n} examples on {device}, found {found}")
        c = prepare(layer.to(a.values.dtype), kernel, unbiased, sigma)
        xc, yc = product(a, c), product(b, c)
        shared = torch.stack([xc * yc, xc * xc, yc * yc]) / c.square.where(c.square > 0, math.inf)
        rest = terms[:3] - shared
        rounding = 64 * torch.finfo(a.values.dtype).eps * terms[:3].abs()
        terms = rest.where(rest.abs() > rounding, 0)
    xy, xx, yy = terms[:3]
    warn_about(xx, yy, unbiased, chance)
    lowest = 0.0 if confounder is None and not unbiased else -1.0
    return like(x)(index(xy, xx, yy, lowest).to(a.values.dtype))[()]


def check_kernel(kernel: str, sigma: float) -> None:
    """Raise a ValueError for an unknown kernel or a sigma that is not positive and finite."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel: unknown {kernel!r}; {nearest(str(kernel), KERNELS)}")
    if not (isinstance(sigma, numbers.Real) and 0 < sigma < math.inf):
        raise ValueError(f"sigma: expected a positive finite number, found {sigma!r}")


def _terms(x: Array, y: Array, *how: str | bool | float) -> tuple[Prepared, Prepared, Tensor]:
    """Return both layers prepared, <K, L>, <K, K>, <L, L>, and the mean of <K, L> if shuffled."""
    first, second = as_pair(x, y)
    a = prepare(first, *how)
    b = a if torch.equal(first, second) else prepare(second, *how)
    xy = a.square if b is a else product(a, b)
    shuffled = a.diagonal.sum() * b.diagonal.sum() / (len(first) - 1)
    return a, b, torch.stack([xy, a.square, b.square, shuffled])


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
    """Return the kernel matrix centred, or U-centred where unbiased."""
    n = len(kernel)
    if unbiased:
        diagonal = torch.eye(n, dtype=torch.bool, device=kernel.device)
        kernel = kernel.masked_fill(diagonal, 0)
    rows = kernel.sum(1) / (n - 2 if unbiased else n)
    kernel = kernel - rows[:, None] - rows + rows.sum() / (n - 1 if unbiased else n)
    return kernel.masked_fill(diagonal, 0) if unbiased else kernel


def warn_about(xx: Tensor, yy: Tensor, unbiased: bool, chance: Tensor) -> None:
    """Warn where the index is undefined or, biased, of little worth."""
    if empty := [name for name, square in (("x", xx), ("y", yy)) if square <= 0]:
        names = ", ".join(empty)
        message = f"{names}: constant, or without structure of its own; CKA is undefined, 0 here"
        warnings.warn(message, UserWarning, stacklevel=3)
    if not unbiased and chance > CHANCE:
        message = (
            f"x, y: few examples; unrelated layers like these have a biased CKA of {chance:.2f} on "
            "average. Use unbiased=True or more examples"
        )
        warnings.warn(message, UserWarning, stacklevel=3)
