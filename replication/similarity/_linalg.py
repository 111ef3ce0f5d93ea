"""Checks, centring, rank and orthonormal bases of layers: what the similarity indices share."""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from numbers import Real

import torch
from torch import Tensor

from replication._core.inputs import Array, as_integer, as_tensor, generator

CHANCE = 0.1  # the biased CKA of unrelated layers above which a warning is given


def as_layer(value: object, name: str, least: int = 2, maps: bool = False) -> Tensor:
    """Return a floating layer (examples >= least, neurons), or with `maps` convolutional too."""
    layer = as_tensor(value, name)
    if layer.ndim not in ((2, 4) if maps else (2,)) or len(layer) < least:
        other = " or (examples, channels, height, width)" if maps else ""
        raise ValueError(
            f"{name}: expected (examples >= {least}, neurons){other}, found {tuple(layer.shape)}"
        )
    return layer if layer.is_floating_point() else layer.double()


def require_alike(layers: Mapping[str, Tensor], sizes: bool = False) -> None:
    """Raise a ValueError unless layers have the examples and device of the first (and its size)."""
    (name, first), *others = layers.items()
    for label, layer in others:
        pairs = {"examples": (len(first), len(layer)), "device": (first.device, layer.device)}
        if sizes:
            pairs["size"] = (tuple(first.shape[2:]), tuple(layer.shape[2:]))
        for what, (expected, actual) in pairs.items():
            if actual != expected:
                raise ValueError(
                    f"{label}: expected the {what} of {name}, {expected}, found {actual}"
                )


def as_pair(x: Array, y: Array, maps: bool = False) -> tuple[Tensor, Tensor]:
    """Return two layers, checked as above, in the wider of their dtypes."""
    first, second = as_layer(x, "x", maps=maps), as_layer(y, "y", maps=maps)
    require_alike({"x": first, "y": second})
    dtype = promoted((first, second))
    return first.to(dtype), second.to(dtype)


def promoted(layers: Iterable[Tensor]) -> torch.dtype:
    """Return the widest dtype among the layers."""
    return reduce(torch.promote_types, [layer.dtype for layer in layers])


def warn(
    ranks: Mapping[str, int],
    examples: float = math.inf,
    chance: float = 0.0,
    level: int = 3,
    correlated: Iterable[tuple[str, str]] = (),
) -> None:
    """Warn of layers that are constant (rank 0) or span all examples, and of CKA by chance.

    Of pairs that are `correlated`, warn of the one that most shares directions of necessity.
    """
    constant = ", ".join(name for name, rank in ranks.items() if rank == 0)
    full = ", ".join(name for name, rank in ranks.items() if rank >= examples - 1)
    sums = {
        pair: sum(ranks[name] for name in pair)
        for pair in correlated
        if all(ranks[name] < examples - 1 for name in pair)
    }
    most = max(sums, key=lambda pair: sums[pair], default=("", ""))
    messages = {
        f"{constant}: constant, or without structure of its own; similar to nothing": constant,
        f"{full}: spans all {examples} centred examples, so that the values say nothing; take more "
        "examples, or unbiased CKA": full,
        f"{' and '.join(most)}: ranks that add up to {sums.get(most)} with {examples} examples, so "
        "that some correlations are 1 whatever the layers; take more examples, fewer directions "
        "(svcca by dims) or unbiased CKA": sums.get(most, 0) >= examples,
        f"few examples; unrelated layers like these have a biased CKA of {chance:.2f} on average. "
        "Use unbiased=True or more examples": chance > CHANCE,
    }
    for message, applies in messages.items():
        if applies:
            warnings.warn(message, UserWarning, stacklevel=level)


def permutation(examples: int, draw: int, seed: int, groups: Tensor | None = None) -> Tensor:
    """Return the random order (examples,) of a draw of the null, the same for all indices.

    With `groups`, integers (examples,), each example takes the place of one of its own group.
    """
    order = torch.randperm(examples, generator=generator(seed, "null", draw))
    if groups is None:
        return order
    result = torch.empty_like(order)
    result[groups.argsort(stable=True)] = order[groups[order].argsort(stable=True)]
    return result


def centred(x: Tensor) -> Tensor:
    """Return x (..., examples, neurons) minus its mean over examples, constant neurons exactly 0.

    Of those rounding leaves about eps |mean|, which scaling would blow up to pure noise.
    """
    mean = x.mean(-2, keepdim=True)
    result = x - mean
    floor = 4 * torch.finfo(x.dtype).eps * mean.abs()
    constant = (largest(result) <= floor) & (floor > 0)
    return result * ~constant if constant.any() else result


def largest(x: Tensor) -> Tensor:
    """Return the largest magnitude in each column of x, (..., 1, neurons), without gradient."""
    x = x.detach()  # amax and amin apart: aminmax along examples is many times slower
    return torch.maximum(x.amax(-2, keepdim=True), -x.amin(-2, keepdim=True))


def default_tolerance(x: Tensor) -> float:
    """Return max(examples, neurons) eps, below which a relative singular value counts as 0."""
    return max(x.shape[-2:]) * torch.finfo(x.dtype).eps


@dataclass(frozen=True)
class Subspace:
    """The centred columns of a layer, ``basis @ coordinates * scale``, the basis orthonormal."""

    basis: Tensor  # (examples, rank)
    coordinates: Tensor  # (rank, neurons)
    scale: Tensor  # (neurons,)
    examples: int  # more than the basis has where the layer was streamed

    @property
    def rank(self) -> int:
        """The number of independent directions."""
        return self.basis.shape[-1]

    def solve(self, rotation: Tensor) -> Tensor:
        """Return weights (neurons, k): the centred layer times them is ``basis @ rotation``."""
        live = self.coordinates.any(0)
        if self.rank == live.sum():  # solve exactly; a dead neuron has weight 0
            weights = rotation.new_zeros(len(self.scale), rotation.shape[1])
            weights[live] = torch.linalg.solve(self.coordinates[:, live], rotation)
        else:  # the rows of coordinates are orthogonal
            squares = self.coordinates.square().sum(1, keepdim=True)
            weights = self.coordinates.mT @ (rotation / squares)
        return weights / self.scale[:, None]


def subspace(x: Tensor, tolerance: float | None = None) -> Subspace:
    """Return an orthonormal basis of the space that the centred columns of x span.

    Its rank: how many singular values are above `tolerance` (by default `default_tolerance`) of the
    largest, columns being scaled to length 1, so that the neurons' units do not matter.
    """
    columns = centred(x)
    scale = _lengths(columns)
    columns = columns / scale
    live = columns.detach().any(0)
    tolerance = default_tolerance(x) if tolerance is None else tolerance
    q, r = torch.linalg.qr(columns if live.all() else columns[:, live])
    full = 0 < r.shape[1] < len(x) and norm_product(r.detach()) * tolerance < 1
    if full and live.all():
        return Subspace(q, r, scale, len(x))
    if not full:
        u, s, vh = torch.linalg.svd(r, full_matrices=False)
        rank = _rank(s, len(x), tolerance)
        q, r = q @ u[:, :rank], s[:rank, None] * vh[:rank]
    coordinates = r.new_zeros(len(r), len(live))
    coordinates[:, live] = r
    return Subspace(q, coordinates, scale, len(x))


def norm_product(r: Tensor, least: float = 0.0) -> Tensor:
    """Return max(|R|, least) |R^-1| of upper triangular (..., k, k), above s_1 / s_k."""
    unit = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device).expand_as(r)
    inverse = torch.linalg.solve_triangular(r, unit, upper=True)
    return torch.linalg.matrix_norm(r).clamp(min=least) * torch.linalg.matrix_norm(inverse)


def principal_subspace(
    x: Tensor, variance: float = 0.99, dims: int | None = None, squares: bool = False
) -> Subspace:
    """Return the first singular directions of the centred layer, in the neurons' own units.

    `dims`, or those with the share `variance` of the sum of the singular values (or `squares`).
    """
    if not (isinstance(variance, Real) and 0 < variance <= 1):
        raise ValueError(f"variance: expected a number in (0, 1], found {variance!r}")
    columns = centred(x)
    scale = largest(columns).max()
    in_range = _squares_stay_in_range(scale, scale)
    scale = (torch.ones_like(scale) if in_range else scale.where(scale > 0, 1)).expand(x.shape[1])
    columns = columns if in_range else columns / scale
    if dims is not None:
        as_integer(dims, "dims", 1)
        if top := _top_directions(columns, dims):
            return Subspace(*top, scale, len(x))
    q, r = torch.linalg.qr(columns)
    u, s, vh = torch.linalg.svd(r, full_matrices=False)
    kept = _rank(s, len(x), default_tolerance(x))
    if dims is not None:
        kept = min(kept, dims)
    elif kept:
        share = (s.square() if squares else s)[:kept].double().cumsum(0)
        # The last share is the whole, whatever its rounding.
        kept = min(kept, 1 + int((share < variance * share[-1]).sum()))
    return Subspace(q @ u[:, :kept], s[:kept, None] * vh[:kept], scale, len(x))


def _top_directions(columns: Tensor, dims: int) -> tuple[Tensor, Tensor] | None:
    """Return the projection Q R on the top directions, (examples, dims) and (dims, neurons).

    From X^T X in float64, or X X^T where examples are fewer, a third of the time of a QR of X, and
    as good as that to 1e-10 where the singular values are above 1e-3 of the largest; else None.
    """
    if not dims < min(columns.shape[1], len(columns) - 1):
        return None
    few = len(columns) < columns.shape[1]
    values, vectors = torch.linalg.eigh(_gram((columns.mT if few else columns).double(), 64))
    if not values[-dims] > 1e-6 * values[-1]:
        return None
    if few:
        q = torch.linalg.qr(vectors[:, -dims:].flip(1).to(columns.dtype))[0]
        return q, q.mT @ columns
    vectors = vectors[:, -dims:].flip(1).to(columns.dtype)
    q, r = torch.linalg.qr(columns @ vectors)
    return q, r @ vectors.mT


@dataclass(frozen=True)
class Whitening:
    """A layer's live columns, centred (examples, rank), that (rank, rank) weights whiten."""

    basis: Tensor
    weights: Tensor

    @property
    def rank(self) -> int:
        """The number of independent directions."""
        return len(self.weights)


def whitening(x: Tensor, tolerance: float | None = None) -> Subspace | Whitening:
    """Return the layer and the inverse Cholesky root of its Gram matrix, or else its `subspace`.

    A fifth of the time of a QR, taken where it loses at most three digits: as many as the smallest
    eigenvalue of the unit columns' Gram matrix has behind the point.
    """
    columns = centred(x)
    size = largest(columns)[0]
    live = size > 0
    columns, size = columns if live.all() else columns[:, live], size[live]
    if 0 < len(size) < len(x) - 1 and _squares_stay_in_range(size.min(), size.max()):
        square = _gram(columns).double()
        scale = square.diagonal().sqrt()
        square = square / scale / scale[:, None]
        values = torch.linalg.eigvalsh(square)
        cut = default_tolerance(x) if tolerance is None else tolerance
        if values[0] > max(1e-3, cut**2 * values[-1]):
            root, unit = torch.linalg.cholesky(square).mT, torch.eye(len(square)).to(square)
            inverse = torch.linalg.solve_triangular(root, unit, upper=True)
            return Whitening(columns, (inverse / scale[:, None]).to(x.dtype))
    return subspace(x, tolerance)


def _gram(x: Tensor, block: int = 128) -> Tensor:
    """Return x^T x (neurons, neurons), most of its blocks taken once and not twice."""
    width = x.shape[1]
    if width <= block or x.requires_grad:
        return x.mT @ x
    result = x.new_empty(width, width)
    for start in range(0, width, block):
        stop = start + block
        result[start:stop, start:] = x[:, start:stop].mT @ x[:, start:]
        result[stop:, start:stop] = result[start:stop, stop:].mT
    return result


def _squares_stay_in_range(smallest: Tensor, largest: Tensor) -> bool:
    info = torch.finfo(largest.dtype)
    return bool((info.tiny**0.25 < smallest) & (largest < info.max**0.25))


def _lengths(columns: Tensor) -> Tensor:
    """Return the length of each column (neurons,), 1 for a column of zeros."""
    length = torch.linalg.vector_norm(columns, dim=0)
    info = torch.finfo(columns.dtype)
    if ((length < info.tiny**0.5 / info.eps) | ~length.isfinite()).any():
        # Dead, or squares that leave the range, as those of 1e-200 or 1e200 do.
        size = columns.abs().amax(0)
        size = size.where(size > 0, 1)
        length = torch.linalg.vector_norm(columns / size, dim=0)
        return size * length.where(length > 0, 1)
    return length


def _rank(singular_values: Tensor, examples: int, tolerance: float) -> int:
    """Count the singular values above rounding; centring takes one direction off the examples."""
    largest = singular_values[0] if len(singular_values) else 0
    return min(examples - 1, int((singular_values > tolerance * largest).sum()))
