"""Centring, rank and orthonormal bases of layers: what the similarity indices share.

A layer is X (examples, neurons). Its subspace is spanned by the centred columns. Bases come from
QR and SVD of X itself; its covariance, which squares the condition number, is never inverted.
"""

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from replication._core.inputs import Array, as_integer, as_tensor


def as_layer(value: Array, name: str) -> Tensor:
    """Return a layer as a floating (examples, neurons) tensor; integers become float64.

    Raises
    ------
    ValueError
        If `value` is not (at least 2 examples, at least 1 neuron) or holds NaN or infinity.
    """
    layer = as_tensor(value, name)
    if not layer.is_floating_point():
        layer = layer.double()
    if layer.ndim != 2 or layer.shape[0] < 2:
        raise ValueError(
            f"{name}: expected (examples >= 2, neurons), found shape {tuple(layer.shape)}"
        )
    return layer


def as_pair(x: Array, y: Array) -> tuple[Tensor, Tensor]:
    """Return two layers of the same examples, in the wider of their dtypes.

    Raises
    ------
    ValueError
        As `as_layer`, and if the numbers of examples or the devices differ.
    """
    first, second = as_layer(x, "x"), as_layer(y, "y")
    if len(first) != len(second):
        raise ValueError(
            f"y: expected the {len(first)} examples of x, found {len(second)} examples"
        )
    if first.device != second.device:
        raise ValueError(f"y: expected the device of x, {first.device}, found {second.device}")
    dtype = torch.promote_types(first.dtype, second.dtype)
    return first.to(dtype), second.to(dtype)


def centred(x: Tensor) -> Tensor:
    """Return x minus its mean over examples, with constant neurons exactly 0.

    Rounding leaves a constant neuron a residue of about eps |mean|, which scaling would blow up to
    a direction of pure noise; a column that small against its mean is set to 0.
    """
    return centred_and_size(x)[0]


def centred_and_size(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return `centred` and the largest magnitude in each of its columns, (..., 1, neurons)."""
    mean = x.mean(-2, keepdim=True)
    result = x - mean
    floor = 4 * torch.finfo(x.dtype).eps * mean.abs()
    values = result.detach()  # amax and amin apart: aminmax along examples is many times slower
    size = torch.maximum(values.amax(-2, keepdim=True), -values.amin(-2, keepdim=True))
    constant = (size <= floor) & (floor > 0)
    if constant.any():
        return result * ~constant, size * ~constant
    return result, size


def default_tolerance(x: Tensor) -> float:
    """Return max(examples, neurons) eps, below which a relative singular value counts as 0."""
    return max(x.shape[-2:]) * torch.finfo(x.dtype).eps


@dataclass(frozen=True)
class Subspace:
    """An orthonormal basis of a layer's centred columns.

    With D = diag(scale), the centred layer is ``basis @ coordinates @ D`` up to the tolerance.

    Attributes
    ----------
    basis : (examples, rank) tensor
    coordinates : (rank, neurons) tensor
    scale : (neurons,) tensor
        What each column was divided by before the decomposition.
    examples : int
        What the rank is to be judged by; more than the rows of `basis` for a streamed layer.
    """

    basis: Tensor
    coordinates: Tensor
    scale: Tensor
    examples: int

    @property
    def width(self) -> int:
        """The number of neurons."""
        return len(self.scale)

    @property
    def rank(self) -> int:
        """The number of independent directions."""
        return self.basis.shape[-1]

    def solve(self, rotation: Tensor) -> Tensor:
        """Return weights (neurons, k): the centred layer times them is ``basis @ rotation``."""
        live = self.coordinates.any(0)
        if self.rank == live.sum():  # solve exactly; a dead neuron has weight 0
            weights = rotation.new_zeros(self.width, rotation.shape[1])
            weights[live] = torch.linalg.solve(self.coordinates[:, live], rotation)
        else:  # the rows of coordinates are orthogonal
            squares = self.coordinates.square().sum(1, keepdim=True)
            weights = self.coordinates.mT @ (rotation / squares)
        return weights / self.scale[:, None]


def subspace(x: Tensor, tolerance: float | None = None) -> Subspace:
    """Return an orthonormal basis of the space that the centred columns of x span.

    Columns are scaled to length 1 first, which changes neither the space nor any index that is
    invariant to invertible maps, and makes the rank independent of the neurons' units. Then
    X = Q R, and the rank is the number of singular values of R above `tolerance` times the largest.

    Parameters
    ----------
    x : (examples, neurons) tensor
    tolerance : float, optional
        By default `default_tolerance`.
    """
    columns, scale, live = unit_columns(x)
    tolerance = default_tolerance(x) if tolerance is None else tolerance
    q, r = torch.linalg.qr(columns)
    if _has_full_rank(r.detach(), len(x), tolerance):
        coordinates = r
        if not live.all():
            coordinates = r.new_zeros(len(r), len(live))
            coordinates[:, live] = r
        return Subspace(q, coordinates, scale, len(x))
    u, s, vh = torch.linalg.svd(r, full_matrices=False)
    rank = _rank(s, len(x), tolerance)
    coordinates = vh.new_zeros(rank, len(live))
    coordinates[:, live] = s[:rank, None] * vh[:rank]
    return Subspace(q @ u[:, :rank], coordinates, scale, len(x))


def unit_columns(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the centred columns of x that are not 0, at length 1; their lengths; which they are.

    A neuron that is constant has length 1 and no column.
    """
    columns = centred(x)
    scale = _lengths(columns)
    columns = columns / scale
    live = columns.detach().any(0)
    return columns if live.all() else columns[:, live], scale, live


def gram(x: Tensor, block: int = 128) -> Tensor:
    """Return x^T x, in blocks of columns, so that most products are taken once, not twice."""
    width = x.shape[1]
    if width <= block or x.requires_grad:
        return x.mT @ x
    result = x.new_empty(width, width)
    for start in range(0, width, block):
        here = slice(start, start + block)
        result[here, start:] = x[:, here].mT @ x[:, start:]
        result[start:, here] = result[here, start:].mT
    return result


def _has_full_rank(r: Tensor, examples: int, tolerance: float) -> bool:
    """Tell whether norms alone prove it: R's singular values are within 1 / |R^-1| and |R|."""
    if not 0 < r.shape[1] < examples:
        return False
    unit = torch.eye(len(r), dtype=r.dtype, device=r.device)
    inverse = torch.linalg.solve_triangular(r, unit, upper=True)
    return bool(torch.linalg.matrix_norm(r) * torch.linalg.matrix_norm(inverse) * tolerance < 1)


def principal_subspace(
    x: Tensor, variance: float = 0.99, dims: int | None = None, squares: bool = False
) -> Subspace:
    """Return the first singular directions of the centred layer, in the neurons' own units.

    As many as `dims`, or as hold the share `variance` of the sum of the singular values (or of
    their squares), and never more than the rank.

    Raises
    ------
    ValueError
        For `variance` outside (0, 1] or `dims` below 1.
    """
    if not (isinstance(variance, Real) and 0 < variance <= 1):
        raise ValueError(f"variance: expected a number in (0, 1], found {variance!r}")
    if dims is not None:
        as_integer(dims, "dims", 1)
    columns, size = centred_and_size(x)
    scale = size.max()
    info = torch.finfo(x.dtype)
    if info.tiny**0.25 < scale < info.max**0.25:  # squares stay in range
        scale = torch.ones_like(scale)
    else:
        scale = scale.where(scale > 0, 1)
        columns = columns / scale
    if dims is not None and (top := _top_directions(columns, dims)):
        return Subspace(*top, scale.expand(x.shape[1]), len(x))
    q, r = torch.linalg.qr(columns)
    u, s, vh = torch.linalg.svd(r, full_matrices=False)
    kept = _rank(s, len(x), default_tolerance(x))
    if dims is None and kept:
        share = (s.square() if squares else s)[:kept].double().cumsum(0)
        # The last share is the whole, whatever its rounding.
        kept = min(kept, 1 + int((share < variance * share[-1]).sum()))
    elif kept:
        kept = min(kept, dims)
    scale = scale.expand(x.shape[1])
    return Subspace(q @ u[:, :kept], s[:kept, None] * vh[:kept], scale, len(x))


def _top_directions(columns: Tensor, dims: int) -> tuple[Tensor, Tensor] | None:
    """Return Q and R with Q R the projection on `dims` singular directions, if these are strong.

    The eigenvectors of X^T X, in float64, are those of X to 1e-10 where the singular values are
    above 1e-3 of the largest; this takes a third of the time of a QR of X.
    """
    if not dims < min(columns.shape[1], len(columns) - 1):
        return None
    double = columns.double()
    values, vectors = torch.linalg.eigh(gram(double, 64))
    if not values[-dims] > 1e-6 * values[-1]:
        return None
    vectors = vectors[:, -dims:].flip(1).to(columns.dtype)
    q, r = torch.linalg.qr(columns @ vectors)
    return q, r @ vectors.mT


def _lengths(columns: Tensor) -> Tensor:
    """Return the length of each column, 1 for a column of zeros."""
    length = torch.linalg.vector_norm(columns, dim=0)
    info = torch.finfo(columns.dtype)
    if ((length < info.tiny**0.5 / info.eps) | ~length.isfinite()).any():
        # Dead, or squares that leave the range, as those of 1e-200 or 1e200 do.
        largest = columns.abs().amax(0)
        largest = largest.where(largest > 0, 1)
        length = torch.linalg.vector_norm(columns / largest, dim=0)
        return largest * length.where(length > 0, 1)
    return length


def _rank(singular_values: Tensor, examples: int, tolerance: float) -> int:
    """Count the singular values above rounding; centring takes one direction off the examples."""
    largest = singular_values[0] if len(singular_values) else 0
    return min(examples - 1, int((singular_values > tolerance * largest).sum()))
