"""Orthogonal Procrustes: how far two layers stay apart under the best rotation, a distance."""

import warnings

import torch
from torch import Tensor

from replication._core.inputs import Array, like
from replication._core.precision import full_precision
from replication.similarity._linalg import as_pair, centred


def procrustes(x: Array, y: Array, angular: bool = False) -> Array:
    """Return the Procrustes distance of two layers: 0 for equal ones, 2 for orthogonal ones.

    With A and B the layers centred and divided by their Frobenius norms, and |.|_* the nuclear norm
    (the sum of singular values),

        d = min_Q |A Q - B|_F^2 = |A|_F^2 + |B|_F^2 - 2 |A^T B|_* = 2 - 2 |A^T B|_*,

    Q orthogonal, the narrower layer padded with zero columns. It ignores orthogonal maps, isotropic
    scaling and translation, and nothing else. Differentiable in both layers (the angle: except
    where it is 0).

    A layer with more features than examples is first expressed in an orthonormal basis of its rows,
    (examples, examples), so that the decomposition has the smaller size.

    Parameters
    ----------
    x, y : (examples, features) tensor or array
        The numbers of features may differ.
    angular : bool
        Return the angle arccos |A^T B|_* in 0..pi/2, a metric with the triangle inequality
        (Williams et al. 2021).

    Returns
    -------
    0-d tensor or NumPy float
        In [0, 2], or in [0, pi/2] radians; exactly 0 for equal layers. A constant layer has no
        direction: it is as far from everything as can be, 2 or pi/2, with a UserWarning.
        Where d < 0.1 it is taken from the residual A Q - B and the angle as 2 arcsin(sqrt(d) / 2):
        the angle's absolute error is then about 10 eps of the dtype also near 0, where that of
        arccos would be sqrt(eps).

    Raises
    ------
    ValueError
        For NaN or infinity, wrong dimensions, different numbers of examples, or fewer than 2.

    References
    ----------
    Ding, Denain & Steinhardt 2021, section 2; Williams et al. 2021, section 2.

    Examples
    --------
    >>> import torch
    >>> from replication import similarity
    >>> x = torch.randn(300, 10, dtype=torch.float64)
    >>> turn = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64)).Q
    >>> abs(float(similarity.procrustes(x, 3 * x @ turn + 1))) < 1e-6
    True
    """
    first, second = as_pair(x, y)
    same = torch.equal(first, second)
    with full_precision():
        a = narrowed(normalised(first))
        b = a if same else narrowed(normalised(second))
        distance = distance_of(a, b)
    if empty := [name for name, layer in (("x", a), ("y", b)) if not layer.any()]:
        message = f"{', '.join(empty)}: constant; the distance is undefined, its maximum returned"
        warnings.warn(message, UserWarning, stacklevel=2)
    result = 2 * torch.asin(distance.sqrt() / 2) if angular else distance
    return like(x)(result)[()]


def normalised(x: Tensor) -> Tensor:
    """Return a layer centred and of Frobenius norm 1; a constant one is 0."""
    x = centred(x)
    largest = x.detach().abs().amax()
    x = x / largest.where(largest > 0, 1)
    norm = torch.linalg.vector_norm(x)
    return x / norm.where(norm > 0, 1)


def narrowed(x: Tensor) -> Tensor:
    """Return a layer with as many columns as examples at most, up to an orthogonal map."""
    if x.shape[1] > len(x):
        # The rows lie in the span of Q, which may be held fixed: as the rotation, for gradients.
        x = x @ torch.linalg.qr(x.detach().mT).Q
    return x


def distance_of(a: Tensor, b: Tensor) -> Tensor:
    """Return 2 - 2 |A^T B|_* in [0, 2] for two layers `normalised` and `narrowed`."""
    if a is b:
        # Zero with the right gradient; a constant layer has norm 0.
        return (a - b).square().sum() + 2 * (~a.any())
    if a.shape[1] > b.shape[1]:
        a, b = b, a
    product = a.mT @ b
    # At the best rotation its own change does not count, so no gradient goes through the SVD.
    u, _, vh = torch.linalg.svd(product.detach(), full_matrices=False)
    rotation = u @ vh
    distance = 2 - 2 * (product * rotation).sum()
    if distance < 0.1:
        distance = (a @ rotation - b).square().sum()
    return distance.clamp(0, 2)
