"""Sensitivity of a network to its input: Jacobian norms, their bounds, paths to look along."""

from replication.sensitivity import trajectories
from replication.sensitivity.bounds import (
    CrossEntropyBounds,
    cross_entropies,
    cross_entropy_bounds,
    fraction_inside,
    mean_square_gradient,
)
from replication.sensitivity.jacobian import (
    finite_difference_norm,
    jacobian_norm,
    jacobian_row_norm,
    spectral_norm,
)

__all__ = [
    "CrossEntropyBounds",
    "cross_entropies",
    "cross_entropy_bounds",
    "finite_difference_norm",
    "fraction_inside",
    "jacobian_norm",
    "jacobian_row_norm",
    "mean_square_gradient",
    "spectral_norm",
    "trajectories",
]
