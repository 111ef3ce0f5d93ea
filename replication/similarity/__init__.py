"""Similarity of representations: how alike two layers are over the same examples.

An index takes two layers x and y, tensors or NumPy arrays (examples, neurons) of the same examples
in the same order. It answers in kind, with a 0-d tensor or NumPy float, on the layers' device
(computed on the CPU, with a UserWarning, where that has no float64, as Apple's MPS) and in the
wider of their dtypes (half types count as float32, integers as float64). A similarity is 1 for
equal layers, a distance 0, exactly.

Constant neurons, copies and more neurons than examples are no errors. A constant layer is similar
to nothing: 0, or the largest distance, with a UserWarning. Where ranks make an index meaningless a
UserWarning says so. Permutations of y's examples (`null`, drawn by `seed`) show what unrelated
layers of these shapes would give.

All raise a ValueError that names the argument for layers that are empty, have other dimensions,
fewer than 2 examples, NaN or infinity, or differ in examples or device, and for options out of
range. Examples assume ``import torch`` and ``from replication.similarity import *``.
"""

from replication.similarity.baselines import (
    linear_regression_r2,
    mutual_knn,
    procrustes,
    ridge_r2,
    rsa,
    unit_matching,
)
from replication.similarity.cca import CCAResult, cca, pwcca, svcca
from replication.similarity.cka import cka
from replication.similarity.compare import SimilarityGrid, compare
from replication.similarity.fourier import FourierCCAResult, dft_cca
from replication.similarity.streaming import Accumulator, minibatch_cka

VERSION = 1  # of the numbers: raise it when they change

__all__ = [
    "Accumulator", "CCAResult", "FourierCCAResult", "SimilarityGrid", "cca", "cka", "compare",
    "dft_cca", "linear_regression_r2", "minibatch_cka", "mutual_knn", "procrustes", "pwcca",
    "ridge_r2", "rsa", "svcca", "unit_matching",
]  # fmt: skip
