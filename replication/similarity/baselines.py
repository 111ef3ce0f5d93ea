"""The indices that CCA and CKA are compared with: Procrustes, regression, distances, matchings."""

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from replication._core.inputs import Array, as_choice, as_integer, like
from replication._core.precision import full_precision
from replication.similarity._linalg import as_pair, centred, permutation, subspace, warn

DISTANCES = ("correlation", "euclidean")


def procrustes(x: Array, y: Array, angular: bool = False) -> Array:
    """Return the Procrustes distance of two layers, from 0 for equal to 2 for orthogonal ones.

    With A and B the layers centred and divided by their Frobenius norms, the narrower one padded
    with zero columns, Q orthogonal and |.|_* the sum of singular values (Ding et al. 2021, sec. 2),

        d = min_Q |A Q - B|_F^2 = 2 - 2 |A^T B|_*.

    With `angular` it is the angle arccos |A^T B|_* in [0, pi/2] radians, a metric (Williams et al.
    2021). It ignores orthogonal maps, isotropic scaling and translation. Differentiable, the angle
    except where it is 0.

    Examples
    --------
    >>> x = torch.randn(300, 10, dtype=torch.float64)
    >>> round(float(procrustes(x, 3 * x.flip(1) + 1)), 6)
    0.0
    """
    first, second = as_pair(x, y)
    with full_precision():
        a, b = (normalised(z, narrow=True) for z in (first, second))
        distance = distance_of(a, b, angular)
    warn({"x": int(a.any()), "y": int(b.any())})
    return like(x)(distance)[()]


def linear_regression_r2(x: Array, y: Array) -> Array:
    """Return the share of y's variance that a linear map of x explains, in [0, 1].

    With Q an orthonormal basis of the centred columns of x, and Y centred,

        R2 = 1 - |Y - Q Q^T Y|_F^2 / |Y|_F^2.

    It ignores invertible affine maps of x, but of y only similarities. The R2_LR(X, Y) of Kornblith
    et al. 2019, section 3, is this function of (Y, X). For an x of rank examples - 1 it is 1, with
    a UserWarning, whatever y is.

    Examples
    --------
    >>> x = torch.randn(300, 10, dtype=torch.float64)
    >>> round(float(linear_regression_r2(x, x[:, :5])), 6)  # all of y is in x
    1.0
    """
    first, second = as_pair(x, y)
    with full_precision():
        basis, target = subspace(first).basis, normalised(second)
        value = explained(basis, target)
    if not target.any():
        warn({"y": 0})
    elif rank := basis.shape[1]:
        warn({"x": rank}, len(first))
    return like(x)(value)[()]


def ridge_r2(x: Array, y: Array, folds: int = 5, seed: int = 0) -> Array:
    """Return the share of y's variance that ridge regression on x predicts of held-out examples.

    1 - sum |y_i - p_i|^2 / sum |y_i - m_i|^2, where prediction p_i and mean m_i are of the folds
    without example i. The penalty, of 13 from 1e-6 to 1e6 times x's largest squared singular value,
    is the one of least error by leaving one out within these (Golub, Heath & Wahba 1979).
    Of x and y it ignores orthogonal maps, isotropic scaling and translation. Unlike
    `linear_regression_r2` it says something with more features than examples; of equal layers it is
    a little below 1, of unrelated ones about 0 or a little below it.

    Parameters
    ----------
    folds : int
        Parts that the examples, permuted by `seed`, fall into; equal ones up to the last, and so
        fewer where there are few examples: of 12 examples 5 folds are 4 of 3.

    Examples
    --------
    >>> x = torch.randn(300, 10, dtype=torch.float64)
    >>> round(float(ridge_r2(x, x[:, :5])), 4)
    1.0
    """
    first, second = as_pair(x, y)
    with full_precision():
        a, b = normalised(first), normalised(second)
        value = predicted(a, b, folds, seed)
    warn({"x": int(a.any()), "y": int(b.any())})
    return like(x)(value.to(first.dtype))[()]


def rsa(x: Array, y: Array, distance: str = "correlation") -> Array:
    """Return the representational similarity of two layers, in [-1, 1].

    Spearman's correlation, ties sharing their mean rank, between the distances of all pairs of
    examples in x and those in y (Kriegeskorte et al. 2008); 0 with a UserWarning where all of a
    layer are equal, as of 2 examples. With "euclidean" distances it ignores orthogonal maps,
    isotropic scaling and translation; with "correlation" distances, 1 - r over the features (1
    where all features of an example are equal), per example a positive scale and a common shift,
    but not rotations. Not differentiable.

    Examples
    --------
    >>> x = torch.randn(50, 10, dtype=torch.float64)
    >>> round(float(rsa(x, 2 * x, distance="euclidean")), 6)
    1.0
    """
    as_choice(distance, "distance", DISTANCES)
    first, second = as_pair(x, y)
    a, b = distance_ranks(first, distance), distance_ranks(second, distance)
    warn({"x": int(a.any()), "y": int(b.any())})
    return like(x)(rank_correlation(a, b).to(first.dtype))[()]


def mutual_knn(x: Array, y: Array, k: int = 10) -> Array:
    """Return the mean share of an example's k nearest neighbours in x that it also has in y.

    Neighbours by Euclidean distance, so that it ignores orthogonal maps, isotropic scaling and
    translation; of layers with rows of length 1 it is the index of Huh et al. 2024, section 3. In
    [0, 1], of unrelated layers about k / (examples - 1). Of examples at equal distance the first
    counts, which rounding decides. Not differentiable.

    Examples
    --------
    >>> x = torch.randn(50, 10, dtype=torch.float64)
    >>> float(mutual_knn(x, 3 * x.flip(1) + 1, k=5))
    1.0
    """
    first, second = as_pair(x, y)
    with full_precision():
        a, b = neighbours(first, k), neighbours(second, k)
        warn({"x": int(a[0, 0] >= 0), "y": int(b[0, 0] >= 0)})
        return like(x)(shared(a, b).to(first.dtype))[()]


def unit_matching(x: Array, y: Array) -> Array:
    """Return the mean correlation of matched units, each of the narrower layer with another's.

    The matching has the largest sum of correlations (Li et al. 2015, bipartite; solved by SciPy on
    the CPU). Constant units are left out. In [-1, 1], below 0 where most units oppose one another.
    It ignores permutations, scaling by positive numbers and translation of units, but no rotation.
    Not differentiable.

    Examples
    --------
    >>> x = torch.randn(50, 10, dtype=torch.float64)
    >>> round(float(unit_matching(x, 3 * x.flip(1) + 1)), 6)
    1.0
    """
    first, second = as_pair(x, y)
    with full_precision():
        a, b = standardised(first), standardised(second)
        value = matched(a, b)
    warn({"x": a.shape[1], "y": b.shape[1]})
    return like(x)(value.to(first.dtype))[()]


def normalised(x: Tensor, narrow: bool = False) -> Tensor:
    """Return a layer centred and of norm 1; `narrow` turns a wide one onto a basis of its rows."""
    x = centred(x)
    size = x.detach().abs().amax()
    x = x / size.where(size > 0, 1)
    norm = torch.linalg.vector_norm(x)
    x = x / norm.where(norm > 0, 1)
    if narrow and x.shape[1] > len(x):
        # The rows lie in the span of Q, which may be held fixed: as the rotation, for gradients.
        x = x @ torch.linalg.qr(x.detach().mT).Q
    return x


def distance_of(a: Tensor, b: Tensor, angular: bool = False) -> Tensor:
    """Return 2 - 2 |A^T B|_* of two layers `normalised` and narrow, or the angle.

    Below 0.1 from the residual A Q - B, and the angle by arcsin, as near 0 neither loses digits.
    """
    if a is b or torch.equal(a, b):
        # Zero with the right gradient; a constant layer has norm 0.
        distance = (a - b).square().sum() + 2 * (~a.any())
    else:
        if a.shape[1] > b.shape[1]:
            a, b = b, a
        product = a.mT @ b
        # At the best rotation its own change does not count, so no gradient goes through the SVD.
        u, _, vh = torch.linalg.svd(product.detach(), full_matrices=False)
        rotation = u @ vh
        distance = 2 - 2 * (product * rotation).sum()
        if distance < 0.1:
            distance = (a @ rotation - b).square().sum()
        distance = distance.clamp(0, 2)
    return 2 * torch.asin(distance.sqrt() / 2) if angular else distance


def explained(basis: Tensor, target: Tensor) -> Tensor:
    """Return R2 of a `normalised` target (examples, features) on a basis (examples, rank)."""
    residual = target - basis @ (basis.mT @ target)
    total = target.square().sum()
    ratio = residual.square().sum() / total.where(total > 0, 1)
    return (1 - ratio).clamp(0, 1) * (total > 0)


def predicted(x: Tensor, y: Tensor, folds: int = 5, seed: int = 0) -> Tensor:
    """Return R2 of held-out y by ridge regression on x, both `normalised`; 0-d float64."""
    if len(x) < 4:
        raise ValueError(f"x: expected at least 4 examples, found {len(x)}")
    if not 2 <= as_integer(folds, "folds", 2) <= len(x) // 2:
        raise ValueError(f"folds: expected 2 to {len(x) // 2}, half the examples, found {folds}")
    error = total = x.new_zeros((), dtype=torch.float64)
    order = permutation(len(x), 0, seed).to(x.device)
    for test in order.chunk(folds):
        train = torch.ones(len(x), dtype=torch.bool, device=x.device)
        train[test] = False
        centre, mean = x[train].mean(0), y[train].mean(0)
        known, target = centred(x[train]), centred(y[train])
        u, s, vh = torch.linalg.svd(known, full_matrices=False)
        if not s[0] > 0:  # nothing to predict from
            return error * 0
        penalties = s[0].square() * torch.logspace(-6, 6, 13, dtype=x.dtype, device=x.device)
        shrink = s.square() / (s.square() + penalties[:, None])  # (penalties, rank)
        seen, left = u.mT @ target, 1 - 1 / len(u) - u.square() @ shrink.mT
        losses = [
            ((target - u @ (keep[:, None] * seen)) / gap[:, None]).square().sum()
            for keep, gap in zip(shrink, left.clamp_min(1e-6).mT, strict=True)
        ]
        best = torch.stack(losses).argmin()
        weights = vh.mT @ ((shrink[best] / s.where(s > 0, 1))[:, None] * seen)
        guess = mean + (x[test] - centre) @ weights
        error = error + (y[test] - guess).double().square().sum()
        total = total + (y[test] - mean).double().square().sum()
    return torch.where(total > 0, 1 - error / total.where(total > 0, 1), 0)


def distance_ranks(x: Tensor, distance: str) -> Tensor:
    """Return the ranks of the distances of all pairs i < j minus their mean, float64 (pairs,)."""
    x = x.detach()
    if distance == "euclidean":
        # A power of 2 rounds nothing: equal distances stay equal.
        values = torch.pdist(torch.ldexp(x, -torch.frexp(x.abs().amax()).exponent))
    else:
        # Rows of mean 0 and length 1 have |z_i - z_j|^2 = 2 (1 - r).
        rows = centred(x.mT).mT
        size = rows.abs().amax(1, keepdim=True)
        rows = rows / size.where(size > 0, 1)
        length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        values = torch.pdist(rows / length.where(length > 0, 1))
        if (flat := length[:, 0] == 0).any():
            i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
            values = values.masked_fill(flat[i] | flat[j], math.sqrt(2))
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2 - (len(values) + 1) / 2)[group]


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlation of two `distance_ranks`; 0 where one is all ties."""
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return ((a * b).sum() / scale.where(scale > 0, 1)).clamp(-1, 1)


def neighbours(x: Tensor, k: int = 10) -> Tensor:
    """Return each example's k nearest others, int64 (examples, k); -1 of a constant layer."""
    if as_integer(k, "k", 1) >= len(x):
        raise ValueError(f"k: expected fewer than the {len(x)} examples, found {k}")
    x = centred(x.detach())
    x = torch.ldexp(x, -torch.frexp(x.abs().amax()).exponent)  # a power of 2 rounds nothing
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(torch.inf)
    nearest = distances.sort(stable=True).indices[:, :k]
    return nearest if x.any() else torch.full_like(nearest, -1)


def shared(a: Tensor, b: Tensor) -> Tensor:
    """Return the share of equal `neighbours`, 0-d float64; 0 where a layer is constant."""
    both = (a[:, :, None] == b[:, None, :]) & (a >= 0)[:, :, None]
    return both.sum(dtype=torch.float64) / a.numel()


def standardised(x: Tensor) -> Tensor:
    """Return the units that are not constant, of mean 0 and norm 1, (examples, units)."""
    x = centred(x.detach())
    x = x[:, x.any(0)]
    x = x / x.abs().amax(0, keepdim=True)
    return x / torch.linalg.vector_norm(x, dim=0, keepdim=True)


def matched(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean correlation of best matched `standardised` units; 0 if there are none."""
    if a is b or not a.numel() or not b.numel() or torch.equal(a, b):
        return a.new_tensor(float(a.numel() > 0 and b.numel() > 0))
    r = a.mT @ b
    rows, columns = linear_sum_assignment(r.cpu().numpy(), maximize=True)
    return r[rows, columns].mean().clamp(-1, 1)
