"""Fitting any labels: a network by construction, kernels, random features, least squares.

What Zhang et al. 2017 set beside trained networks, in Theorem 1 and section 5. An argument of
another shape or range, or with NaN or infinity, is a `ValueError` that names it. Examples assume
``import torch`` and ``from replication.memorisation import *``.
"""

from replication.memorisation.features import random_conv_features
from replication.memorisation.finite_sample import FiniteSampleNetwork, finite_sample_network
from replication.memorisation.least_squares import (
    GradientDescentPath,
    gradient_descent_path,
    minimum_norm_solution,
)

VERSION = 1  # of the numbers: raise it when they change

__all__ = [
    "FiniteSampleNetwork", "GradientDescentPath", "finite_sample_network", "gradient_descent_path",
    "minimum_norm_solution", "random_conv_features",
]  # fmt: skip
