"""Layers whitened by their covariance, several times faster than by a QR, where that is safe."""

from dataclasses import dataclass

import torch
from torch import Tensor

from replication.similarity._linalg import (
    Subspace,
    centred_and_size,
    default_tolerance,
    gram,
    subspace,
)


@dataclass(frozen=True)
class Whitening:
    """A layer and what makes its columns orthonormal: ``basis @ weights`` is a basis.

    Attributes
    ----------
    basis : (examples, rank) tensor
        The centred columns that are not 0.
    weights : (rank, rank) tensor
        Inverse of the Cholesky root of the Gram matrix of `basis`.
    """

    basis: Tensor
    weights: Tensor

    @property
    def rank(self) -> int:
        """The number of independent directions."""
        return len(self.weights)

    def equals(self, other: object) -> bool:
        """Tell a copy of the layer, whose correlations are to be 1 exactly."""
        return (
            isinstance(other, Whitening)
            and torch.equal(self.weights, other.weights)  # small, and nearly always enough to tell
            and torch.equal(self.basis, other.basis)
        )


def whitening(x: Tensor, tolerance: float | None = None) -> Subspace | Whitening:
    """Return what whitens the layer by its covariance where that is safe, else its `subspace`.

    This takes a fifth of the time of a QR. It loses as many digits as the smallest eigenvalue
    of the unit columns' Gram matrix has behind the point; beyond three the QR is taken.
    """
    columns, size = centred_and_size(x)
    live = size[0] > 0
    size = size[0, live]
    info = torch.finfo(x.dtype)
    squares = len(size) and info.tiny**0.25 < size.min() and size.max() < info.max**0.25
    if not (squares and len(size) < len(x) - 1):  # squares that leave the range; or rank
        return subspace(x, tolerance)
    columns = columns if live.all() else columns[:, live]
    square = gram(columns).double()
    scale = square.diagonal().sqrt()
    square = square / scale / scale[:, None]
    values = torch.linalg.eigvalsh(square)
    cut = default_tolerance(x) if tolerance is None else tolerance
    if not values[0] > max(1e-3, cut**2 * values[-1]):
        return subspace(x, tolerance)
    root, unit = torch.linalg.cholesky(square).mT, torch.eye(len(square)).to(square)
    inverse = torch.linalg.solve_triangular(root, unit, upper=True)
    return Whitening(columns, (inverse / scale[:, None]).to(x.dtype))
