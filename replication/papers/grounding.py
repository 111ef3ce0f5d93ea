"""The tests that a similarity metric is put to by Kornblith et al. 2019 and Ding et al. 2021.

Does a layer find itself in another network; does a metric notice components that are deleted; and
does dissimilarity go with differences in what representations do? For the last, a population of n
representations has similarities, (n, n), 1 for equal; a functionality, (n,), as the accuracy of a
probe; and, (n,), the network that each representation belongs to.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata, sem, t

RESAMPLES = 2000


def identification(grid: pd.DataFrame) -> pd.DataFrame:
    """Return, for each metric and network, how well a layer finds itself in the other networks.

    Parameters
    ----------
    grid : DataFrame
        Columns metric, first, layer, second, other, value: the similarity of `layer` in network
        `first` to `other` in network `second`; all layers of all ordered pairs of networks.

    Returns
    -------
    DataFrame
        Columns metric, seed (the first network), accuracy: the share of (layer, second network)
        whose most similar layer is the same one, a tie counting as a share of it (Kornblith et al.
        2019, section 6.1); specificity: the share of (layer, second network, other layer) in which
        the same layer is more similar than the other, a tie as half.
    """
    rows = []
    between = grid[grid["first"] != grid.second]
    for (metric, first), network in between.groupby(["metric", "first"]):
        hits, wins = [], []
        for (layer, _), values in network.groupby(["layer", "second"]):
            own = values.value[values.other == layer].iloc[0]
            others = values.value[values.other != layer]
            hits.append(0.0 if (others > own).any() else 1 / (1 + (others == own).sum()))
            wins.append(((own > others) + (own == others) / 2).mean())
        row = {"metric": metric, "seed": first}
        rows.append(row | {"accuracy": np.mean(hits), "specificity": np.mean(wins)})
    return pd.DataFrame(rows, columns=["metric", "seed", "accuracy", "specificity"])


def detection(deleted: pd.DataFrame, between: Mapping[str, float]) -> float:
    """Return the share of components that can be deleted before a metric notices, mean over layers.

    A metric notices when the distance of a layer to its low-rank version exceeds `between`, by
    layer: the mean distance of the same layer in two networks (Ding et al. 2021, section 4).
    Components go in the order of their variance, the smallest first; 1 if nothing is noticed as
    long as one component is left.

    Parameters
    ----------
    deleted : DataFrame
        One metric and network: columns layer, kept, width, value (a similarity).
    """
    shares = []
    for layer, rows in deleted.groupby("layer"):
        noticed = rows[1 - rows.value > between[layer]]
        width = rows.width.iloc[0]
        shares.append((width - noticed.kept.max()) / width if len(noticed) else 1.0)
    return float(np.mean(shares))


def pairs(values: np.ndarray, functionality: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the dissimilarities and |differences of functionality|, (references, others), NaN i=i.

    `values` are similarities, (n, n).
    """
    functionality = np.asarray(functionality, float)
    distance = 1 - np.asarray(values, float)
    difference = np.abs(functionality[:, None] - functionality)
    np.fill_diagonal(distance, np.nan)
    np.fill_diagonal(difference, np.nan)
    return distance, difference


def _cosine(a: np.ndarray, b: np.ndarray, weights: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Return sum(w a b) / sqrt(sum(w a^2) sum(w b^2)) of rows; NaN for a scale up to `least`."""
    scale = np.sqrt((weights * a**2).sum(-1) * (weights * b**2).sum(-1))
    shared = (weights * a * b).sum(-1)
    return np.divide(shared, scale, out=np.full(scale.shape, np.nan), where=scale > least)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each row of x with that of y; NaN for a constant row."""
    a, b = (rankdata(rows, axis=-1) for rows in (x, y))
    a, b = (rows - rows.mean(-1, keepdims=True) for rows in (a, b))
    return _cosine(a, b, np.ones(1))


def weighted_spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of two vectors, for each row of `weights`: repeats of each."""
    ranks = []
    for v in (x, y):
        below, equal = ((v[None] < v[:, None]), (v[None] == v[:, None]))
        rank = weights @ below.T.astype(float) + (weights @ equal.T.astype(float) + 1) / 2
        mean = (weights * rank).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
        ranks.append(rank - mean)
    return _cosine(*ranks, weights, 1e-9)


def kendall(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return Kendall's tau-b of two vectors, for each row of `weights`: repeats of each."""
    weights = np.ones((1, len(x))) if weights is None else weights
    a, b = (np.sign(v[:, None] - v) for v in (np.asarray(x, float), np.asarray(y, float)))
    total, left, right = (((weights @ matrix) * weights).sum(1) for matrix in (a * b, a * a, b * b))
    scale = np.sqrt(left * right)
    return np.divide(total, scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def every_reference(values: np.ndarray, functionality: Sequence[float]) -> float:
    """Return Spearman's correlation with each representation as the reference, their mean."""
    n = len(values)
    others = ~np.eye(n, dtype=bool)
    rows = (table[others].reshape(n, n - 1) for table in pairs(values, functionality))
    return float(np.mean(spearman(*rows)))


def by_network(
    values: np.ndarray, functionality: Sequence[float], network: Sequence[int]
) -> np.ndarray:
    """Return one value a network, with `every_reference` as their mean.

        v_i = r + (g - 1) (mean_j r_(-j) - r_(-i))

    with r_(-i) that of all representations but those of network i: the jackknife's influence values
    (Efron & Tibshirani 1993, section 11.5), for intervals over networks. One NaN where there are
    fewer than 3 networks.
    """
    network, functionality = np.asarray(network), np.asarray(functionality, float)
    names = np.unique(network)
    if len(names) < 3:
        return np.array([math.nan])
    whole = every_reference(values, functionality)
    kept = [np.flatnonzero(network != name) for name in names]
    without = np.array([every_reference(values[np.ix_(k, k)], functionality[k]) for k in kept])
    return whole + (len(names) - 1) * (without.mean() - without)


def with_reference(
    values: np.ndarray, functionality: Sequence[float], network: Sequence[int], seed: int = 0
) -> dict[str, float]:
    """Return Ding's statistics with the representation of best functionality as the reference.

    Returns
    -------
    dict
        rho, rho_low, rho_high, tau, tau_low, tau_high: Spearman's and Kendall's correlation of the
        dissimilarity to the reference with the loss of functionality, and percentile intervals from
        2,000 resamples of the networks (all representations of a network are drawn together);
        p: one-sided, of rho = 0, from the normal approximation of the bootstrap.
    """
    functionality, network = np.asarray(functionality, float), np.asarray(network)
    reference = int(functionality.argmax())
    others = np.flatnonzero(np.arange(len(functionality)) != reference)
    x = 1 - np.asarray(values, float)[reference, others]
    y = functionality[reference] - functionality[others]
    names, group = np.unique(network[others], return_inverse=True)
    source = np.random.default_rng(seed)
    drawn = source.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    weights = drawn[:, group].astype(float)
    rhos = weighted_spearman(x, y, weights)
    row = {}
    for name, value, resampled in (
        ("rho", spearman(x, y), rhos),
        ("tau", kendall(x, y)[0], kendall(x, y, weights)),
    ):
        known = resampled[np.isfinite(resampled)]
        low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
        row |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    spread = np.nanstd(rhos) if np.isfinite(rhos).any() else math.nan
    return row | {"p": float(norm.sf(row["rho"] / spread)) if spread > 0 else math.nan}


def holm(p: Sequence[float]) -> np.ndarray:
    """Return p-values adjusted for as many tests by Holm's step-down method (1979); NaN stays."""
    p = np.asarray(p, float)
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return adjusted


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the 95% t interval over networks; NaN for fewer than two."""
    values = np.asarray(values, float)
    half = t.ppf(0.975, len(values) - 1) * sem(values) if len(values) > 1 else math.nan
    return values.mean(), half


def matrix(grid: pd.DataFrame, order: Sequence[tuple]) -> np.ndarray:
    """Return the values of one metric's grid as a matrix; `order` holds pairs (network, layer)."""
    values = grid.set_index(["first", "layer", "second", "other"]).value
    return np.array([[values[(*a, *b)] for b in order] for a in order])


def benchmark(
    grids: Mapping[str, pd.DataFrame],
    functionality: Mapping[str, Mapping[tuple, float]],
    metrics: Sequence[str],
) -> tuple[pd.DataFrame, dict[str, dict[str, np.ndarray]], dict[tuple[str, str], np.ndarray]]:
    """Return how well each metric does in each subtask.

    Parameters
    ----------
    grids : mapping of subtask to DataFrame
        Columns metric, first, layer, second, other, value: all pairs of representations.
    functionality : mapping of subtask to mapping of (network, layer) to number
        What each representation can do.
    metrics : sequence of str
        Those that `grids` lacks are left out.

    Returns
    -------
    table : DataFrame
        A row a subtask and metric: `every_reference` as every (every_low, every_high),
        `with_reference`, and p_holm.
    influence : dict of subtask to dict of metric to array
        `by_network` of each.
    similarities : dict of (subtask, metric) to (n, n) array
    """
    rows, influence, similarities = [], {}, {}
    for subtask, grid in grids.items():
        order = list(functionality[subtask])
        does = np.array(list(functionality[subtask].values()))
        network = [i for i, _ in order]
        influence[subtask] = {}
        for metric in [m for m in metrics if m in set(grid.metric)]:
            values = similarities[subtask, metric] = matrix(grid[grid.metric == metric], order)
            own = influence[subtask][metric] = by_network(values, does, network)
            every, half = every_reference(values, does), interval(own)[1]
            row = {"subtask": subtask, "metric": metric, "every": every}
            row |= {"every_low": every - half, "every_high": every + half}
            rows.append(row | with_reference(values, does, network))
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table.p)
    return table, influence, similarities
