"""Similarity of representations: how alike two layers are over the same examples.

Layers are (examples, neurons); every index takes torch tensors or NumPy arrays and answers in kind.
"""

from replication.similarity.baselines import linear_regression_r2, rsa
from replication.similarity.cca import CCAResult, cca, pwcca, svcca
from replication.similarity.cka import cka
from replication.similarity.compare import SimilarityGrid, compare
from replication.similarity.fourier import FourierCCAResult, dft_cca
from replication.similarity.minibatch import minibatch_cka
from replication.similarity.procrustes import procrustes
from replication.similarity.streaming import Accumulator

__all__ = [
    "Accumulator",
    "CCAResult",
    "FourierCCAResult",
    "SimilarityGrid",
    "cca",
    "cka",
    "compare",
    "dft_cca",
    "linear_regression_r2",
    "minibatch_cka",
    "procrustes",
    "pwcca",
    "rsa",
    "svcca",
]
