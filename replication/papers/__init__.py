"""The papers, a module each: settings, measuring functions, claims and the rules that settle them.

``papers.<name>`` belongs to the notebook whose name ends with it. Each has ``SETTINGS`` (a scale
by profile, beside the paper's), ``plan`` (its experiments by name), ``CLAIMS``, and ``statistics``
(one number an independent unit, for each claim).
"""

from replication._core.paths import figures, runs
from replication._core.profiles import resolve
from replication.papers._correlation import correlation, partial_correlation
from replication.papers.experiment import Experiment, cifar10, overview, results, stamp

__all__ = [
    "Experiment",
    "cifar10",
    "correlation",
    "figures",
    "overview",
    "partial_correlation",
    "resolve",
    "results",
    "runs",
    "stamp",
]
