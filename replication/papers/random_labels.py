"""Claims Z1 to Z8 of Zhang et al. 2017 and Arpit et al.'s A1, A2, and what settles each.

All data sets have ten classes. Train accuracy is measured on the labels trained on, corrupted or
not; test accuracy and test error on clean labels; all are shares. A run has fitted its labels when
its train accuracy reaches 99%. A run that has not is never dropped: where a claim says that labels
are fitted it counts against it; its time to fit is longer than its budget and otherwise unknown, so
that an order of times is undefined only where this leaves it open.

`statistics` says which tables it needs; what stands in their columns are the constants exported
here.
"""

from collections.abc import Callable

import pandas as pd

from replication.claims import Claim, Rule
from replication.papers import _random_labels as per_seed
from replication.papers._random_labels import (
    ALEXNET,
    AT_LEAST,
    FEATURES,
    FITTED,
    GAUSSIAN,
    KERNEL,
    KINDS,
    PIXELS,
    RANDOM,
    SHUFFLED,
    TRUE,
    time_to_fit,
)

__all__ = [
    "ALEXNET",
    "CLAIMS",
    "FEATURES",
    "FITTED",
    "GAUSSIAN",
    "KERNEL",
    "KINDS",
    "PIXELS",
    "RANDOM",
    "SHUFFLED",
    "TRUE",
    "early_stopping_gain",
    "statistics",
    "time_to_fit",
    "unfitted",
]

ZHANG, ARPIT = "Zhang et al. 2017", "Arpit et al. 2017"
REACHED = FITTED - AT_LEAST  # 99% itself is reached


def _claim(id: str, statement: str, *rules: Rule, figure: str, shown: str) -> Claim:
    paper = ZHANG if id.startswith("Z") else ARPIT
    rule = rules[0] if len(rules) == 1 else rules
    return Claim(id, paper, statement, rule, figure, shown)


CLAIMS: tuple[Claim, ...] = (
    _claim(
        "Z1",
        "Every model fits random labels, and its test accuracy is then chance",
        Rule(
            "lowest train accuracy on random labels, of all models (99.3% counts)",
            ">",
            0.993 - AT_LEAST,
            "every",
        ),
        Rule("|test error after random labels, mean of the models, minus 0.9|", "<", 0.02),
        figure="Table 1",
        shown="train accuracy 99.34% to 100%, test accuracy 9.78% to 10.61%",
    ),
    _claim(
        "Z2",
        "True labels are fitted first, random pixels and Gaussian images before random labels, and "
        "fitting ends soon after it starts",
        Rule("log2 of the earliest other time to fit over that of true labels", ">", 0.0),
        Rule(
            "log2 of the time to fit random labels over the later of those of random pixels and "
            "Gaussian images",
            ">",
            0.0,
        ),
        Rule(
            "random labels: share of the time to fit that passes after the train loss is first "
            "below 90% of ln 10",
            "<",
            0.5,
        ),
        figure="Fig. 1a",
        shown="curves, no number",
    ),
    _claim(
        "Z3",
        "At every level of label corruption the training set is fitted, more slowly at higher "
        "levels, and test error rises to chance",
        Rule("lowest train accuracy, of all models and levels (99% counts)", ">", REACHED, "every"),
        Rule(
            "Kendall's tau of level and time to fit, runs that never fit last and tied, mean of "
            "the models",
            ">",
            0.0,
        ),
        Rule("Kendall's tau of level and test error, mean of the models", ">", 0.8),
        Rule("|test error at level 1, mean of the models, minus 0.9|", "<", 0.02),
        figure="Fig. 1b, 1c",
        shown="train error 0 at every level; test error rises to 90%",
    ),
    _claim(
        "Z4",
        "Turning explicit regularisers or batch norm off costs little test accuracy",
        Rule(
            "true labels: best test accuracy with crop, weight decay or dropout minus that with "
            "none of them, largest of the models",
            "<",
            0.10,
        ),
        Rule(
            "true labels, no other regulariser: test accuracy with batch norm minus that without, "
            "largest of the models",
            "<",
            0.10,
        ),
        figure="Table 1, Fig. 2",
        shown="Inception loses 3.3 points, AlexNet 5.2; without batch norm 3 to 4",
    ),
    _claim(
        "Z5",
        "Random labels are fitted under crop or weight decay too, but not by AlexNet with weight "
        "decay",
        Rule(
            "random labels: lowest train accuracy with crop or weight decay and without dropout, "
            "of all models, except AlexNet with weight decay (99% counts)",
            ">",
            REACHED,
            "every",
        ),
        Rule(
            "random labels: highest train accuracy of AlexNet with weight decay",
            "<",
            REACHED,
            "every",
        ),
        figure="Table 4",
        shown="Inception 99.28% to 100%; AlexNet with weight decay fails to converge",
    ),
    _claim(
        "Z6",
        "A two-layer ReLU network of 2n + d weights fits any labels of n images",
        Rule("largest |output minus label| over all n, in float64", "<", 0.01, "every"),
        figure="Theorem 1",
        shown="a proof",
    ),
    _claim(
        "Z7",
        "Interpolation of least norm in a Gaussian kernel's space generalises, better from random "
        "convolutional features, and less error does not come with a smaller norm",
        Rule("test error from pixels over 0.9, largest of the data sets", "<", 0.75),
        Rule("test error from features minus from pixels, mean of the data sets", "<", 0.0),
        Rule(
            "log2 of the norm of the interpolant, of these two, that errs less over the norm of "
            "the other, mean of the data sets",
            ">",
            0.0,
        ),
        figure="Section 5",
        shown="MNIST 1.2%, CIFAR-10 46% from pixels, 17% from features; on MNIST the norm rises "
        "from 220 to 390 while the error halves",
    ),
    _claim(
        "Z8",
        "SGD from 0 on under-determined least squares converges to the solution of least norm",
        Rule("distance to it after the last step, as a share of its norm", "<", 0.01, "every"),
        Rule(
            "largest part of the weights outside the span of the data, as a share of that norm",
            "<",
            1e-8,
            "every",
        ),
        figure="Section 5",
        shown="an argument, no number",
    ),
    _claim(
        "A1",
        "Simple patterns first: which examples are right early depends on the example for true "
        "labels, and more on luck for random labels",
        Rule(
            "correlation between repeats of which training examples are right after the first "
            "epoch, true labels minus random labels",
            ">",
            0.0,
        ),
        figure="Fig. 1",
        shown="curves, no number",
    ),
    _claim(
        "A2",
        "Dropout hurts the fitting of noise without hurting generalisation on real data",
        Rule(
            "train accuracy on random labels lost to dropout minus test accuracy on true labels "
            "lost to dropout, mean of the models",
            ">",
            0.0,
        ),
        Rule("test accuracy on true labels lost to dropout, mean of the models", "<", 0.02),
        figure="",
        shown="curves, no number",
    ),
)


def statistics(
    curves: pd.DataFrame,
    corruption: pd.DataFrame,
    regularisers: pd.DataFrame,
    theorem: pd.DataFrame,
    kernel: pd.DataFrame,
    descent: pd.DataFrame,
    learning: pd.DataFrame,
) -> dict[str, list]:
    """Return, for every claim, one number a seed, or one such list for each of its rules.

    NaN says that a statistic is undefined for a seed: its rows are missing, or its runs leave it
    open. The seeds are those of the table that a claim is settled by.

    Parameters
    ----------
    curves : DataFrame
        Z2. Columns seed, kind (one of `KINDS`), epoch, train_loss, train_accuracy: one model, a row
        an evaluation from epoch 0 to the end of the run or to its fit, `time_to_fit`.
    corruption : DataFrame
        Z1 (level 1), Z3. Columns seed, model, fraction (the level, 0 to 1), epochs_to_fit (NaN:
        not within the budget), train_accuracy, test_error: one row a run, at its end.
    regularisers : DataFrame
        Z4, Z5, A2. Columns seed, model, labels (`TRUE` or `RANDOM`), crop, weight_decay, dropout,
        batch_norm (booleans), train_accuracy, test_accuracy: one row a run, at its end. A model
        that has runs with batch norm is meant with it unless a rule says otherwise.
    theorem : DataFrame
        Z6. Columns seed, n, error.
    kernel : DataFrame
        Z7. Columns seed, dataset, method (`KERNEL`, `FEATURES` or others, which no rule looks at),
        n, ridge, error (on test images), norm (in a space whose kernel has k(x, x) = 1). Each data
        set's largest n counts, at ridge 0.
    descent : DataFrame
        Z8. Columns seed, step, distance, outside, norm: of `memorisation.gradient_descent_path`,
        norm that of the solution.
    learning : DataFrame
        A1. Columns seed, labels (`TRUE` or `RANDOM`), repeat, example, correct (boolean): after the
        first epoch. Repeats (at least 2) differ in initial weights and order, not in labels.
    """
    regularisers = regularisers.astype(dict.fromkeys([*per_seed.FLAGS, "batch_norm"], bool))
    of: dict[str, tuple[pd.DataFrame, Callable]] = {
        "Z1": (corruption, per_seed.memorisation),
        "Z2": (curves, per_seed.order_of_times),
        "Z3": (corruption, per_seed.levels),
        "Z4": (regularisers, per_seed.cost_of_turning_off),
        "Z5": (regularisers, per_seed.regularised_noise),
        "Z6": (theorem, per_seed.largest_error),
        "Z7": (kernel, per_seed.interpolants),
        "Z8": (descent, per_seed.descent),
        "A1": (learning, per_seed.consistency),
        "A2": (regularisers, per_seed.cost_of_dropout),
    }
    found: dict[str, list] = {}
    for claim in CLAIMS:
        table, statistic = of[claim.id]
        each = [statistic(rows) for _, rows in table.groupby("seed")]
        several = isinstance(claim.rule, tuple)  # then one series a rule
        found[claim.id] = [list(v) for v in zip(*each, strict=True)] if several else each
    return found


def unfitted(corruption: pd.DataFrame) -> pd.DataFrame:
    """Return the runs (rows of `corruption`) that did not fit their labels within their budget."""
    return corruption[~(corruption.train_accuracy >= REACHED)]


def early_stopping_gain(early: pd.DataFrame) -> pd.DataFrame:
    """Return what stopping at the best moment would have gained, in test accuracy.

    Parameters
    ----------
    early : DataFrame
        Columns seed, batch_norm, best (over training) and final (test accuracy): one row a run.

    Returns
    -------
    DataFrame
        A row a seed, a column a value of batch_norm. It belongs to no claim.
    """
    return early.assign(gain=early.best - early.final).pivot(
        index="seed", columns="batch_norm", values="gain"
    )
