"""The statistics of P1 to P7, a seed at a time, and the clusters of P4."""

import math

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import spearmanr
from sklearn.metrics import silhouette_score

from replication._core.inputs import derive_seed

METRICS = ("mean CCA", "SVCCA", "PWCCA")
GENERALISING, MEMORISING = "generalising", "memorising"
FITTED = 0.99  # train accuracy
EARLY = LATE = 3  # layers at either end
CLUSTERS = 5  # as in the paper's Figure 5
PERMUTATIONS = 1999


def fitted(networks: pd.DataFrame) -> pd.DataFrame:
    """Return the networks that fitted the labels they were given."""
    return networks[networks.train_accuracy >= FITTED]


def by_network(pairs: pd.DataFrame, networks: pd.DataFrame) -> pd.DataFrame:
    """Return the mean distance of each fitted network to each fitted group, at each layer.

    Columns labels, seed, other (the labels of the group), layer, distance; both orders of a pair
    count, a network is no member of its own group.
    """
    known = set(fitted(networks)[["labels", "seed"]].itertuples(index=False, name=None))
    sides = [list(zip(pairs[f"labels_{s}"], pairs[f"seed_{s}"], strict=True)) for s in "ab"]
    keep = [a in known and b in known and a != b for a, b in zip(*sides, strict=True)]
    kept = pairs[keep]
    swap = {"a": "b", "b": "a"}
    turned = kept.rename(columns=lambda c: c[:-1] + swap[c[-1]] if c[-2:] in ("_a", "_b") else c)
    both = pd.concat([kept, turned]).rename(
        columns={"labels_a": "labels", "seed_a": "seed", "labels_b": "other"}
    )
    keys = ["labels", "seed", "other", "layer"]
    return both.groupby(keys, as_index=False).distance.mean()


def group_gaps(pairs: pd.DataFrame, networks: pd.DataFrame) -> pd.DataFrame:
    """Return P1's three statistics, one row a seed that fitted both kinds of labels.

    Columns late, mixed and early as in the rules; the mixed pairs of a seed are those of its
    memorising network.
    """
    found = by_network(pairs, networks)
    last = pairs.layer.max()

    def mean(labels: str, other: str, early: bool) -> pd.Series:
        at = found.layer <= EARLY if early else found.layer > last - LATE
        rows = found[at & (found.labels == labels) & (found.other == other)]
        return rows.groupby("seed").distance.mean()

    memorising = mean(MEMORISING, MEMORISING, False)
    return pd.DataFrame(
        {
            "late": memorising - mean(GENERALISING, GENERALISING, False),
            "mixed": (mean(MEMORISING, GENERALISING, False) - memorising).abs(),
            "early": (
                mean(MEMORISING, MEMORISING, True) - mean(GENERALISING, GENERALISING, True)
            ).abs(),
        }
    ).dropna()


def widths(rows: pd.DataFrame) -> tuple[float, float]:
    """Return P2's statistics of one seed."""
    by_width = rows.pivot(index="width", columns="trained", values="distance").sort_index()
    if len(by_width) < 3:
        return math.nan, math.nan
    if by_width[True].nunique() < 2:
        return 0.0, 0.0
    fall = by_width.iloc[0] - by_width.iloc[-1]
    rho = spearmanr(by_width.index, by_width[True]).statistic
    return float(rho), float(fall[True] - fall[False])


def accuracy(rows: pd.DataFrame) -> float:
    """Return P3's statistic of one seed; NaN for fewer than three widths or nothing that varies."""
    trained = rows[rows.trained]
    if len(trained) < 3 or min(trained.distance.nunique(), trained.test_accuracy.nunique()) < 2:
        return math.nan
    return float(np.corrcoef(trained.test_accuracy, trained.distance)[0, 1])


def clusters(distances: np.ndarray, count: int = CLUSTERS) -> np.ndarray:
    """Return (networks,) labels 1, 2, ...: average linkage of symmetrised distances, cut once."""
    distances = np.asarray(distances, dtype=float)
    symmetric = (distances + distances.T) / 2
    np.fill_diagonal(symmetric, 0)
    tree = linkage(squareform(symmetric, checks=False), "average")
    return fcluster(tree, count, criterion="maxclust")


def silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of (b - a) / max(a, b), in [-1, 1]; NaN for a single cluster.

    a is a member's mean distance to the others of its cluster, b to the nearest other cluster; a
    cluster of one has 0 (Rousseeuw 1987).
    """
    distances, count = np.asarray(distances, dtype=float), len(np.unique(labels))
    if not 1 < count < len(distances):
        return math.nan if count < 2 else 0.0
    symmetric = (distances + distances.T) / 2
    np.fill_diagonal(symmetric, 0)
    return float(silhouette_score(symmetric, labels, metric="precomputed"))


def explained_share(labels: np.ndarray, values: np.ndarray) -> float:
    """Return eta squared, the share of the variance of `values` that lies between clusters."""
    values = np.asarray(values, dtype=float)
    total = ((values - values.mean()) ** 2).sum()
    if total == 0:
        return math.nan
    means = pd.Series(values).groupby(np.asarray(labels)).transform("mean")
    return float(((means - values.mean()) ** 2).sum() / total)


def permuted_shares(labels: np.ndarray, values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return `explained_share` for `PERMUTATIONS` random orders of `values`."""
    source = np.random.default_rng(derive_seed(seed, "permuted shares"))
    values = np.asarray(values, dtype=float)
    names, members = np.unique(np.asarray(labels), return_inverse=True)
    belongs = np.eye(len(names))[members]
    centred = np.stack([source.permutation(values) for _ in range(PERMUTATIONS)]) - values.mean()
    between = ((centred @ belongs) ** 2 / belongs.sum(0)).sum(1)
    total = (centred[0] ** 2).sum()
    return between / total if total > 0 else np.full(len(between), math.nan)


def population(rows: pd.DataFrame) -> tuple[float, float]:
    """Return P4's statistics of one population."""
    rows = rows.sort_values("network")
    distances = np.array(rows.distances.tolist(), dtype=float)
    labels = clusters(distances)
    rates = np.log(rows.learning_rate.to_numpy())
    beyond = np.quantile(permuted_shares(labels, rates), 0.95)
    return silhouette(distances, labels), explained_share(labels, rates) - beyond


def stability(rows: pd.DataFrame) -> tuple[float, float]:
    """Return P5's statistics of one seed; NaN where there is no checkpoint to look at."""
    last = rows.layer.max()
    curves = rows[rows.layer > last - LATE].pivot_table(
        index="epoch", columns="group", values="distance", aggfunc="mean"
    )
    end = curves.index.max()
    between = curves[(curves.index > 0) & (curves.index < end) & (curves.index != end / 2)]
    after = curves[curves.index > end / 2]
    if between.empty or len(after) < 2 or not after.least.iloc[-1] > 0:
        return math.nan, math.nan
    gap = (between.least - between.most).mean()
    return float(gap), float(after.least.iloc[0] / after.least.iloc[-1])


def bottom_up(rows: pd.DataFrame) -> float:
    """Return P6's statistic of one seed."""
    inner = rows[(rows.epoch > 0) & (rows.epoch < rows.epoch.max())]
    by_layer = inner.groupby("layer").distance.mean()
    return float(by_layer.iloc[-1] - by_layer.iloc[0]) if len(by_layer) > 1 else math.nan


def robustness(rows: pd.DataFrame) -> tuple[float, float]:
    """Return P7's statistics of one draw."""
    mean = rows.groupby("metric").distance.mean()
    return float(mean["SVCCA"] - mean["PWCCA"]), float(mean["mean CCA"] - mean["SVCCA"])
