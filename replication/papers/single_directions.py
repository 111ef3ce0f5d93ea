"""Claims S1 to S7 of Morcos et al. 2018, the criticism C1 to C4, and what settles each.

A network has fitted its labels when its train accuracy, on the labels trained on, is at least 99%;
one that has not is excluded and counted (`excluded`), except from S3 and S4, which are about
training and hyper-parameters. AUC is the area under accuracy on the training images against the
share of ablated units, clamped to zero, mean over orders. Selectivity, information and the rise of
the loss when a unit alone is ablated, its importance, are measured on training images; drops of
accuracy, on all classes or one, on test images. Dead units are left out.
"""

import math
from collections.abc import Callable

import pandas as pd

from replication.claims import Claim, Rule
from replication.papers import _single_directions as per_seed
from replication.papers._single_directions import (
    BEYOND,
    FITTED,
    MEASURES,
    by_layer,
    correlation,
    correlation_by_member,
    excluded,
    fitted,
    partial_correlation,
    selection,
)

__all__ = [
    "BEYOND",
    "CLAIMS",
    "FITTED",
    "MEASURES",
    "by_layer",
    "correlation",
    "correlation_by_member",
    "excluded",
    "fitted",
    "partial_correlation",
    "selection",
    "statistics",
]

MORCOS = "Morcos et al. 2018"
POPULATION = 20  # networks, or settings of a sweep, below which a correlation settles nothing


def _claim(
    id: str, statement: str, *rules: Rule, figure: str, shown: str, paper: str = MORCOS
) -> Claim:
    return Claim(id, paper, statement, rules[0] if len(rules) == 1 else rules, figure, shown)


def _over(population: str, what: str, direction: str) -> Rule:
    statistic = f"Spearman correlation of {what}, over {population} (each counts as a seed here)"
    return Rule(statistic, direction, 0.0, "bootstrap", POPULATION)


CLAIMS: tuple[Claim, ...] = (
    _claim(
        "S1",
        "At equal ablation and at equal noise, accuracy falls faster the more labels were "
        "corrupted",
        Rule("Spearman correlation of the corrupted fraction with the ablation AUC", "<", 0.0),
        Rule(
            "Spearman correlation of the corrupted fraction with the mean accuracy over noise "
            "scales",
            "<",
            0.0,
        ),
        figure="Figs. 1, 2",
        shown="curves, no number",
    ),
    _claim(
        "S2",
        "Among networks of one topology on clean labels, those that generalise better are more "
        "robust to ablation",
        _over("networks of varied learning rate", "AUC and generalisation error", "<"),
        figure="Fig. 3",
        shown="200 networks, curves and a scatter plot",
    ),
    _claim(
        "S3",
        "Over training, AUC falls where train and test loss part",
        Rule("Spearman correlation of AUC and test loss over checkpoints after epoch 0", "<", 0.0),
        Rule("AUC at the end minus AUC at the checkpoint of least test loss", "<", 0.0),
        figure="Fig. 4a, 4b",
        shown="Spearman -0.728",
    ),
    _claim(
        "S4",
        "Over a hyper-parameter sweep, AUC goes with test accuracy, and picking the highest AUC "
        "nearly picks the best setting",
        _over("settings", "AUC and test accuracy, each the mean of its repeats", ">"),
        Rule("test accuracy lost by the setting of highest AUC against the best", "<", 0.02),
        figure="Fig. 4c",
        shown="Spearman 0.914",
    ),
    _claim(
        "S5",
        "Dropout makes networks robust up to the trained share and not beyond, where those "
        "trained on corrupted labels drop faster",
        Rule(
            "accuracy at the trained share of ablated units, with dropout minus without, mean of "
            "rates and labels",
            ">",
            0.0,
        ),
        Rule(
            f"accuracy lost per share ablated, over the {BEYOND:g} beyond the trained share minus "
            "up to it, mean of rates and labels",
            ">",
            0.0,
        ),
        Rule(
            f"accuracy lost over the {BEYOND:g} beyond the trained share, corrupted labels minus "
            "clean, mean of rates",
            ">",
            0.0,
        ),
        figure="Fig. 5a",
        shown="curves, no number",
    ),
    _claim(
        "S6",
        "Batch norm makes networks more robust to ablation, units less selective, and their "
        "mutual information with the class higher",
        Rule("AUC with batch norm minus without, clean labels", ">", 0.0),
        Rule("mean selectivity of units with batch norm minus without, clean labels", "<", 0.0),
        Rule("mean mutual information (bits) of units, as above", ">", 0.0),
        figure="Figs. 5b, 6",
        shown="curves and histograms, no number",
    ),
    _claim(
        "S7",
        "Selectivity and mutual information are poor predictors of a unit's importance",
        *[
            Rule(
                f"size of the Spearman correlation of {measure} with the rise of the training loss "
                "when a unit is ablated, units of all layers pooled",
                "<",
                0.5,
            )
            for measure in ("selectivity", "mutual information")
        ],
        figure="Fig. 7",
        shown="Spearman 0.095 on MNIST, -0.428 on CIFAR-10",
    ),
    _claim(
        "C1",
        "Selectivity predicts the damage to a single class, and better than the damage to all",
        Rule(
            "Spearman correlation of selectivity with the largest drop of a class's accuracy, mean "
            "of the layers",
            ">",
            0.0,
        ),
        Rule("that minus the correlation with the drop of accuracy on all classes", ">", 0.0),
        figure="",
        shown="correlations, no number kept here",
        paper="Zhou et al. 2018",
    ),
    _claim(
        "C2",
        "Pooling units of several layers misleads about selectivity and importance",
        Rule(
            "|pooled Spearman correlation of selectivity with the rise of the training loss minus "
            "the mean of the layers' correlations|",
            ">",
            0.1,
        ),
        figure="",
        shown="an argument with plots",
        paper="Amjad et al. 2018",
    ),
    _claim(
        "C3",
        "S2 is not the learning rate's doing: it holds at one learning rate too",
        _over("networks of one learning rate", "AUC and generalisation error", "<"),
        figure="Fig. 3",
        shown="not separated: the learning rate varies",
    ),
    _claim(
        "C4",
        "Clamping to the mean does more damage than clamping to zero",
        Rule("AUC clamped to zero minus AUC clamped to the mean, clean labels", ">", 0.0),
        figure="Appendix",
        shown="stated, no number kept here",
    ),
)


def statistics(
    networks: pd.DataFrame,
    dropout: pd.DataFrame,
    population: pd.DataFrame,
    training: pd.DataFrame,
    sweep: pd.DataFrame,
    units: pd.DataFrame,
) -> dict[str, list]:
    """Return, for every claim, one number a seed (S2, C3, S4's first: a member of the population).

    A list of such lists for a claim of several rules. NaN says that a statistic is undefined, for
    example because too few networks fitted their labels.

    Parameters
    ----------
    networks : DataFrame
        S1, S6, C4. Columns seed, corruption, batch_norm, train_accuracy, auc, auc_mean, noise_auc,
        selectivity, information: one row a network, the last two means over its live units.
    dropout : DataFrame
        S5. Columns seed, dropout (rate, 0 among them), corruption (two levels), train_accuracy,
        share, accuracy: one row a network and ablated share.
    population : DataFrame
        S2, C3. Columns varied (whether the learning rate is), train_accuracy, auc,
        generalisation_error (train minus test accuracy): one row a network.
    training : DataFrame
        S3. Columns seed, epoch, auc, test_loss: one row a checkpoint.
    sweep : DataFrame
        S4. Columns seed, setting, auc, test_accuracy: one row a network.
    units : DataFrame
        S7, C1, C2. Columns seed, layer, selectivity, information, loss_rise, accuracy_drop,
        class_drop (largest over classes): one row a live unit of a network trained on clean labels.
    """
    members = fitted(population).groupby("varied")[["auc", "generalisation_error"]]
    members = {varied: (rows.auc, rows.generalisation_error) for varied, rows in members}
    settings = sweep.groupby("setting")[["auc", "test_accuracy"]].mean()
    found: dict[str, list] = {
        "S2": correlation_by_member(*members.get(True, ((), ()))),
        "S4": [
            correlation_by_member(settings.auc, settings.test_accuracy),
            [per_seed.regret(rows) for _, rows in sweep.groupby("seed")],
        ],
        "C3": correlation_by_member(*members.get(False, ((), ()))),
    }
    of: dict[str, tuple[pd.DataFrame, Callable]] = {
        "S1": (networks, per_seed.corruption),
        "S3": (training, per_seed.over_training),
        "S5": (dropout, per_seed.dropout),
        "S6": (networks, per_seed.batch_norm),
        "S7": (units, per_seed.importance),
        "C1": (units, per_seed.class_damage),
        "C2": (units, per_seed.pooling),
        "C4": (networks, per_seed.clamping),
    }
    for claim in CLAIMS:
        if claim.id in of:
            table, statistic = of[claim.id]
            each = [statistic(rows) for _, rows in table.groupby("seed")]
            several = len(claim.rules)  # then one series a rule
            if not each:
                found[claim.id] = [[math.nan]] * several if several > 1 else [math.nan]
            else:
                found[claim.id] = (
                    [list(v) for v in zip(*each, strict=True)] if several > 1 else each
                )
    return found
