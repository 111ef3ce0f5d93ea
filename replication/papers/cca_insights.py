"""Claims P1 to P7 of Morcos, Raghu and Bengio 2018, and the statistic a seed that settles each.

Distances are 1 minus a similarity. Unless a rule says otherwise they are PWCCA's, of spatial means
of feature maps after the nonlinearity, on training images. Of a group of networks, a seed's
distance is the mean over its pairs with the other networks, in both orders, so that seeds of one
group share pairs and their intervals are somewhat too narrow. A network has fitted its labels when
its train accuracy, on the labels it was given, is at least 99%; P1 leaves out those that have not.
"""

import math
from collections.abc import Callable

import pandas as pd

from replication.claims import Claim, Rule
from replication.papers import _cca_insights as per_seed
from replication.papers._cca_insights import (
    CLUSTERS,
    EARLY,
    FITTED,
    GENERALISING,
    LATE,
    MEMORISING,
    METRICS,
    by_network,
    clusters,
    explained_share,
    fitted,
    group_gaps,
    permuted_shares,
    silhouette,
)

__all__ = [
    "CLAIMS",
    "CLUSTERS",
    "EARLY",
    "FITTED",
    "GENERALISING",
    "LATE",
    "MEMORISING",
    "METRICS",
    "by_network",
    "clusters",
    "explained_share",
    "fitted",
    "group_gaps",
    "permuted_shares",
    "silhouette",
    "statistics",
]

MORCOS = "Morcos, Raghu & Bengio 2018"


def _claim(id: str, statement: str, *rules: Rule, figure: str, shown: str) -> Claim:
    return Claim(id, MORCOS, statement, rules[0] if len(rules) == 1 else rules, figure, shown)


CLAIMS: tuple[Claim, ...] = (
    _claim(
        "P1",
        "In later layers networks that generalise are closer to each other than networks that "
        "memorise, which are as far from each other as from those that generalise; early layers "
        "do not differ",
        Rule("last three layers: memorising pairs minus generalising pairs", ">", 0.0),
        Rule("last three layers: |mixed pairs minus memorising pairs|", "<", 0.05),
        Rule("first three layers: |memorising pairs minus generalising pairs|", "<", 0.05),
        figure="Figs. 3, A9, A10",
        shown="curves, no number",
    ),
    _claim(
        "P2",
        "Wider networks converge to more similar solutions, and it is training that does it",
        Rule(
            "Spearman correlation of width with the distance of trained networks, the same number "
            "of random filters at every width, mean of the last three layers",
            "<",
            0.0,
        ),
        Rule(
            "that distance at the least minus at the largest width, trained minus at init",
            ">",
            0.0,
        ),
        figure="Figs. 4, A7",
        shown="0.47 to 0.28 trained, 0.67 to 0.63 at init",
    ),
    _claim(
        "P3",
        "Over widths, networks that are closer to each other have the higher test accuracy",
        Rule("Pearson correlation over widths of test accuracy with the distance of P2", "<", 0.0),
        figure="Fig. 4b",
        shown="correlation -0.96",
    ),
    _claim(
        "P4",
        "Networks of one topology and varied learning rate fall into clusters of similar "
        "solutions, and the clusters track the learning rate",
        Rule(
            f"mean silhouette of {CLUSTERS} clusters (average linkage) of the last hidden layer, "
            "a population counts as a seed",
            ">",
            0.25,
        ),
        Rule(
            "share of the variance of log learning rate that lies between the clusters, minus the "
            "95th percentile of the same with learning rates permuted",
            ">",
            0.0,
        ),
        figure="Fig. 5",
        shown="200 networks, five clusters",
    ),
    _claim(
        "P5",
        "Directions that have converged half-way through training stay, those that have not "
        "decorrelate quickly",
        Rule(
            "last three layers: distance of the least minus of the most converged directions to "
            "the layer at other checkpoints, mean of all but the first, half-way and last",
            ">",
            0.0,
        ),
        Rule(
            "last three layers: that distance for the least converged at the checkpoint after "
            "half-way, over the same at the end",
            ">",
            0.5,
        ),
        figure="Fig. 1",
        shown="curves, no number",
    ),
    _claim(
        "P6",
        "The layers of a recurrent network converge from the bottom up",
        Rule(
            "distance of a layer to its final state, states at all rows, mean over the checkpoints "
            "between first and last: last layer minus first",
            ">",
            0.0,
        ),
        figure="Fig. 6",
        shown="curves, no number",
    ),
    _claim(
        "P7",
        "PWCCA is more robust to noise dimensions than SVCCA, and SVCCA than mean CCA",
        Rule("toy: distance by SVCCA minus by PWCCA, mean over signal ratios", ">", 0.0),
        Rule("toy: distance by mean CCA minus by SVCCA, mean over signal ratios", ">", 0.0),
        figure="Fig. 2",
        shown="curves, no number",
    ),
)


def statistics(
    pairs: pd.DataFrame,
    networks: pd.DataFrame,
    widths: pd.DataFrame,
    populations: pd.DataFrame,
    directions: pd.DataFrame,
    recurrent: pd.DataFrame,
    toy: pd.DataFrame,
) -> dict[str, list]:
    """Return, for every claim, one number a seed, or one such list for each of its rules.

    NaN says that a statistic is undefined, for example because too few networks fitted.

    Parameters
    ----------
    pairs : DataFrame
        P1. Columns labels_a, seed_a, labels_b, seed_b ("generalising" or "memorising" and a seed),
        layer (1 is the first), distance: one row a layer and ordered pair of trained networks.
    networks : DataFrame
        P1. Columns labels, seed, train_accuracy: one row a network.
    widths : DataFrame
        P2, P3. Columns seed, width, trained (bool), distance, test_accuracy: one row a network,
        trained and at init.
    populations : DataFrame
        P4. Columns seed, network, learning_rate, distances (to all networks of the population, in
        order): one row a network.
    directions : DataFrame
        P5. Columns seed, layer, epoch, group ("most", "least"), distance.
    recurrent : DataFrame
        P6. Columns seed, layer (1 is the first), epoch, distance.
    toy : DataFrame
        P7. Columns seed, signal, metric (of `METRICS`), distance.
    """
    gaps = group_gaps(pairs, networks)
    of: dict[str, tuple[pd.DataFrame, Callable]] = {
        "P2": (widths, per_seed.widths),
        "P3": (widths, per_seed.accuracy),
        "P4": (populations, per_seed.population),
        "P5": (directions, per_seed.stability),
        "P6": (recurrent, per_seed.bottom_up),
        "P7": (toy, per_seed.robustness),
    }
    found: dict[str, list] = {
        "P1": [gaps[name].tolist() or [math.nan] for name in ("late", "mixed", "early")]
    }
    for claim in CLAIMS:
        if claim.id not in of:
            continue
        table, statistic = of[claim.id]
        each = [statistic(rows) for _, rows in table.groupby("seed")]
        several = len(claim.rules) > 1  # then one series a rule
        found[claim.id] = [list(v) for v in zip(*each, strict=True)] if several else each
    return found
