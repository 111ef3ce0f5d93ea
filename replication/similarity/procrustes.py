"""Orthogonal Procrustes: how far two layers stay apart under the best rotation, a distance."""

import torch
from torch import Tensor

from replication._core.inputs import Array, like
from replication._core.precision import full_precision
from replication.similarity._linalg import as_pair, centred, warn


def procrustes(x: Array, y: Array, angular: bool = False) -> Array:
    """Return the Procrustes distance of two layers: 0 for equal ones, 2 for orthogonal ones.

    With A and B the layers centred and divided by their Frobenius norms, the narrower one padded
    with zero columns, Q orthogonal and |.|_* the sum of singular values (Ding et al. 2021, sec. 2),

        d = min_Q |A Q - B|_F^2 = 2 - 2 |A^T B|_*.

    It ignores orthogonal maps, isotropic scaling and translation. Differentiable in both layers
    (the angle: except where it is 0).

    Parameters
    ----------
    x, y : (examples, features) tensor or array
    angular : bool, return the angle arccos |A^T B|_*, a metric (Williams et al. 2021)

    Returns
    -------
    0-d tensor or NumPy float in [0, 2], or in [0, pi/2] radians

    Examples
    --------
    >>> x = torch.randn(300, 10, dtype=torch.float64)
    >>> round(float(procrustes(x, 3 * x.flip(1) + 1)), 6)
    0.0
    """
    first, second = as_pair(x, y)
    with full_precision():
        a = normalised(first, narrow=True)
        b = a if torch.equal(first, second) else normalised(second, narrow=True)
        distance = distance_of(a, b, angular)
    warn({"x": int(a.any()), "y": int(b.any())})
    return like(x)(distance)[()]


def normalised(x: Tensor, narrow: bool = False) -> Tensor:
    """Return a layer centred and of Frobenius norm 1, or 0 where it is constant.

    With `narrow`, one of more features than examples is turned onto a basis of its rows.
    """
    x = centred(x)
    largest = x.detach().abs().amax()
    x = x / largest.where(largest > 0, 1)
    norm = torch.linalg.vector_norm(x)
    x = x / norm.where(norm > 0, 1)
    if narrow and x.shape[1] > len(x):
        # The rows lie in the span of Q, which may be held fixed: as the rotation, for gradients.
        x = x @ torch.linalg.qr(x.detach().mT).Q
    return x


def distance_of(a: Tensor, b: Tensor, angular: bool = False) -> Tensor:
    """Return 2 - 2 |A^T B|_* of two layers `normalised` and narrow, or the angle.

    Below 0.1 from the residual A Q - B, and the angle as 2 arcsin(sqrt(d) / 2), whose error near 0
    is about 10 eps of the dtype; that of arccos would be sqrt(eps).
    """
    if a is b:
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
