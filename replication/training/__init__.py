"""Train networks from specifications, with checkpoints, and never lose what is done.

Every use of randomness has its own seed, derived from the specification's seed, the use and the
step: initial weights, corrupted labels, minibatch order, augmentation, dropout. A run interrupted
at any step therefore goes on as if nothing had happened.
"""

from replication.training.fit import Run, fit
from replication.training.population import fit_population
from replication.training.spec import VERSION as VERSION
from replication.training.spec import Spec
from replication.training.trainer import evaluate, training_labels

__all__ = ["Run", "Spec", "evaluate", "fit", "fit_population", "training_labels"]
