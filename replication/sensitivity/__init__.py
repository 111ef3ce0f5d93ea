"""Sensitivity of a network to its input: Jacobian norms, linear regions, paths to look along."""

from replication.sensitivity import trajectories
from replication.sensitivity.boundary import nearest_boundary
from replication.sensitivity.bounds import (
    CrossEntropyBounds,
    cross_entropies,
    cross_entropy_bounds,
    fraction_inside,
    mean_square_gradient,
)
from replication.sensitivity.curves import OutputCurve, output_curve
from replication.sensitivity.jacobian import jacobian_norm, jacobian_row_norm
from replication.sensitivity.planes import PlaneRegions, RegionMap, plane_regions, region_map
from replication.sensitivity.regions import Transitions, transitions

VERSION = 1  # of the numbers: raise it when they change

__all__ = [
    "CrossEntropyBounds",
    "OutputCurve",
    "PlaneRegions",
    "RegionMap",
    "Transitions",
    "cross_entropies",
    "cross_entropy_bounds",
    "fraction_inside",
    "jacobian_norm",
    "jacobian_row_norm",
    "mean_square_gradient",
    "nearest_boundary",
    "output_curve",
    "plane_regions",
    "region_map",
    "trajectories",
    "transitions",
]
