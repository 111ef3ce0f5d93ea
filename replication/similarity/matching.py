"""Indices that match: examples to their nearest neighbours, units of one layer to the other's."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from replication._core.inputs import Array, as_integer, like
from replication._core.precision import full_precision
from replication.similarity._linalg import as_pair, centred, warn


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
        value = matched(a, a if torch.equal(a, b) else b)
    warn({"x": a.shape[1], "y": b.shape[1]})
    return like(x)(value.to(first.dtype))[()]


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
    if a is b or not a.numel() or not b.numel():
        return a.new_tensor(float(a.numel() > 0 and b.numel() > 0))
    r = a.mT @ b
    rows, columns = linear_sum_assignment(r.cpu().numpy(), maximize=True)
    return r[rows, columns].mean().clamp(-1, 1)
