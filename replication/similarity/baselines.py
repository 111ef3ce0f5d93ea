"""The plainer indices that CKA and Procrustes are compared with: regression R2 and RSA."""

import math
import warnings

import torch
from torch import Tensor

from replication._core.inputs import Array, like, nearest
from replication._core.precision import full_precision
from replication.similarity._linalg import as_pair, centred, subspace
from replication.similarity.procrustes import normalised

DISTANCES = ("correlation", "euclidean")


def linear_regression_r2(x: Array, y: Array) -> Array:
    """Return the share of y's variance that a linear map of x explains, a similarity.

    x predicts y, with an intercept: with Q an orthonormal basis of the centred columns of x and Y
    centred,

        R2 = |Q^T Y|_F^2 / |Y|_F^2 = 1 - |Y - Q Q^T Y|_F^2 / |Y|_F^2.

    It ignores invertible affine maps of x, but of y only orthogonal maps, isotropic scaling and
    translation, and is not symmetric. (In Kornblith et al. Y predicts X: their R2_LR(X, Y) is this
    function of (Y, X).)

    Parameters
    ----------
    x : (examples, features) tensor or array
        The predictors.
    y : (examples, features) tensor or array
        What is predicted.

    Returns
    -------
    0-d tensor or NumPy float
        In [0, 1]; exactly 1 for equal layers. 0 for a constant x; 0 with a UserWarning for a
        constant y, where it is undefined.

    Raises
    ------
    ValueError
        For NaN or infinity, wrong dimensions, different numbers of examples, or fewer than 2.

    Warns
    -----
    UserWarning
        If x has rank examples - 1: it then fits any y, and R2 is 1 whatever y is.

    References
    ----------
    Kornblith et al. 2019, section 3.

    Examples
    --------
    >>> import torch
    >>> from replication import similarity
    >>> x = torch.randn(300, 10, dtype=torch.float64)
    >>> round(float(similarity.linear_regression_r2(x, x[:, :5])), 6)  # all of y is in x
    1.0
    """
    first, second = as_pair(x, y)
    basis, target = subspace(first).basis, normalised(second)
    value = explained(basis, target)
    if not target.any():
        _warn("y: constant; R2 is undefined, 0 returned")
    elif basis.shape[1] >= len(first) - 1:
        _warn(f"x: of rank {len(first) - 1} with {len(first)} examples: it fits any y")
    return like(x)(value)[()]


def rsa(x: Array, y: Array, distance: str = "correlation") -> Array:
    """Return the representational similarity of two layers, a rank correlation.

    Spearman's correlation, ties sharing their mean rank, between the distances of all pairs of
    examples in x and those in y. With "euclidean" distances it ignores orthogonal maps, isotropic
    scaling and translation. With "correlation" distances, 1 - r of the two examples' activations
    over the features, it ignores per example a positive scale and a shift common to all features,
    but not rotations. Not differentiable.

    Parameters
    ----------
    x, y : (examples, features) tensor or array
    distance : "correlation" or "euclidean"

    Returns
    -------
    0-d tensor or NumPy float
        In [-1, 1]; exactly 1 for equal layers. 0 with a UserWarning where all distances of a layer
        are equal, as for a constant layer, 2 examples, or one feature with "correlation". An
        example whose features are all equal has correlation distance 1 to every other.

    Raises
    ------
    ValueError
        For an unknown distance, NaN or infinity, wrong dimensions, different numbers of examples,
        or fewer than 2.

    References
    ----------
    Kriegeskorte, Mur & Bandettini 2008.

    Examples
    --------
    >>> import torch
    >>> from replication import similarity
    >>> x = torch.randn(50, 10, dtype=torch.float64)
    >>> round(float(similarity.rsa(x, 2 * x, distance="euclidean")), 6)
    1.0
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance: unknown {distance!r}; {nearest(str(distance), DISTANCES)}")
    first, second = as_pair(x, y)
    a, b = distance_ranks(first, distance), distance_ranks(second, distance)
    if empty := [name for name, ranks in (("x", a), ("y", b)) if not ranks.any()]:
        _warn(f"{', '.join(empty)}: all distances are equal; RSA is undefined, 0 returned")
    return like(x)(rank_correlation(a, b).to(first.dtype))[()]


def explained(basis: Tensor, target: Tensor) -> Tensor:
    """Return R2 of a `normalised` target on an orthonormal basis, both (examples, ...)."""
    with full_precision():
        residual = target - basis @ (basis.mT @ target)
    total = target.square().sum()
    ratio = residual.square().sum() / total.where(total > 0, 1)
    return (1 - ratio).clamp(0, 1) * (total > 0)


def distance_ranks(x: Tensor, distance: str) -> Tensor:
    """Return the ranks of the distances of all pairs i < j minus their mean, float64 (pairs,)."""
    values = _distances(x.detach(), distance)
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2 - (len(values) + 1) / 2)[group]


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlation of two `distance_ranks`; 0 where one is all ties."""
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return ((a * b).sum() / scale.where(scale > 0, 1)).clamp(-1, 1)


def _distances(x: Tensor, distance: str) -> Tensor:
    """Return a value for each pair i < j that grows with the distance, (pairs,)."""
    if distance == "euclidean":
        # A power of 2 rounds nothing: equal distances stay equal.
        return torch.pdist(torch.ldexp(x, -torch.frexp(x.abs().amax()).exponent))
    # Rows of mean 0 and length 1 have |z_i - z_j|^2 = 2 (1 - r).
    rows = centred(x.mT).mT
    largest = rows.abs().amax(1, keepdim=True)
    rows = rows / largest.where(largest > 0, 1)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    result = torch.pdist(rows / length.where(length > 0, 1))
    constant = length[:, 0] == 0
    if constant.any():
        i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
        result = result.masked_fill(constant[i] | constant[j], math.sqrt(2))
    return result


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)
