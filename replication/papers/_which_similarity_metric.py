"""What `which_similarity_metric` computes: from grids of similarities to one number a network."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata

EDGE = 3  # layers that count as early, or late
RESEMBLES = 0.8  # CKA from which a layer resembles the last one
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
    for (metric, first), some in grid[grid["first"] != grid.second].groupby(["metric", "first"]):
        hits, wins = [], []
        for (layer, _), found in some.groupby(["layer", "second"]):
            own = found.value[found.other == layer].iloc[0]
            others = found.value[found.other != layer]
            hits.append(0.0 if (others > own).any() else 1 / (1 + (others == own).sum()))
            wins.append(((own > others) + (own == others) / 2).mean())
        row = {"metric": metric, "seed": first}
        rows.append(row | {"accuracy": np.mean(hits), "specificity": np.mean(wins)})
    return pd.DataFrame(rows, columns=["metric", "seed", "accuracy", "specificity"])


def pairs(values: np.ndarray, functionality: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the dissimilarities and |differences of functionality|, (references, others), NaN i=i.

    `values` are similarities, (n, n).
    """
    functionality = np.asarray(functionality, float)
    distance = 1 - np.asarray(values, float)
    difference = np.abs(functionality[:, None] - functionality)
    distance, difference = distance.copy(), difference.copy()
    np.fill_diagonal(distance, np.nan)
    np.fill_diagonal(difference, np.nan)
    return distance, difference


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each row of x with that of y; NaN for a constant row."""
    a, b = (rankdata(rows, axis=-1) for rows in (x, y))
    a, b = (rows - rows.mean(-1, keepdims=True) for rows in (a, b))
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.divide((a * b).sum(-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def kendall(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return Kendall's tau-b of two vectors, for each row of `weights`: how often each is drawn."""
    weights = np.ones((1, len(x))) if weights is None else weights
    a, b = (np.sign(v[:, None] - v) for v in (np.asarray(x, float), np.asarray(y, float)))
    total, left, right = (((weights @ matrix) * weights).sum(1) for matrix in (a * b, a * a, b * b))
    scale = np.sqrt(left * right)
    return np.divide(total, scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def every_reference(values: np.ndarray, functionality: Sequence[float]) -> float:
    """Return Spearman's correlation with each representation as the reference, their mean."""
    n = len(values)
    distance, difference = pairs(values, functionality)
    others = ~np.eye(n, dtype=bool)
    found = spearman(distance[others].reshape(n, n - 1), difference[others].reshape(n, n - 1))
    return float(np.mean(found))


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
    resampled = _weighted_spearman(x, y, weights)
    taus = kendall(x, y, weights)
    rho = float(spearman(x, y))
    (low, high), (tau_low, tau_high) = (_interval(v) for v in (resampled, taus))
    spread = np.nanstd(resampled) if np.isfinite(resampled).any() else math.nan
    return {
        "rho": rho,
        "rho_low": low,
        "rho_high": high,
        "tau": float(kendall(x, y)[0]),
        "tau_low": tau_low,
        "tau_high": tau_high,
        "p": float(norm.sf(rho / spread)) if spread > 0 else math.nan,
    }


def holm(p: Sequence[float]) -> np.ndarray:
    """Return p-values adjusted for as many tests by Holm's step-down method (1979); NaN stays."""
    p = np.asarray(p, float)
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return adjusted


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


def edges(rows: pd.DataFrame, column: str) -> tuple[float, float]:
    """Return the means of a column over the first and over the last layers, by `depth`."""
    layers = rows.groupby("depth")[column].mean().sort_index()
    return float(layers.iloc[:EDGE].mean()), float(layers.iloc[-EDGE:].mean())


def order_of_widths(rows: pd.DataFrame) -> tuple[float, float]:
    """K3: rank correlation of width and CKA; early layers minus late ones, mean over widths."""
    means = rows.groupby("width").value.mean()
    rho = spearman(means.index.to_numpy(float), means.to_numpy()) if len(means) > 2 else math.nan
    early, late = edges(rows, "value")
    return float(rho), early - late


def resembling(rows: pd.DataFrame) -> tuple[float, float]:
    """K2: share of layers that resemble the last, deepest network; that minus the shallowest.

    `rows`: depth (of the network), value (CKA of a layer other than the last with the last).
    """
    share = (rows.value > RESEMBLES).groupby(rows.depth).mean().sort_index()
    if len(share) < 2:
        return math.nan, math.nan
    return float(share.iloc[-1]), float(share.iloc[-1] - share.iloc[0])


def tasks(rows: pd.DataFrame) -> tuple[float, float]:
    """K4: early layers, other task minus untrained; what the other task costs, late minus early."""
    kinds = {kind: edges(some, "cka") for kind, some in rows.groupby("kind")}
    same, other, untrained = (kinds[k] for k in ("same task", "other task", "untrained"))
    cost = [s - o for s, o in zip(same, other, strict=True)]
    return other[0] - untrained[0], cost[1] - cost[0]


def confounded(rows: pd.DataFrame) -> tuple[float, float]:
    """CU1: what deconfounding takes from trained against untrained; more than from trained."""
    fall = (rows.cka - rows.deconfounded).groupby(rows.kind).mean()
    return float(fall["untrained"]), float(fall["untrained"] - fall["same task"])


def few_examples(rows: pd.DataFrame) -> dict[str, float]:
    """K5, MU1: at the fewest examples, by metric, `matched` minus `shuffled`, and `shuffled`."""
    fewest = rows[rows.examples == rows.examples.min()]
    wide = fewest.pivot(index="metric", columns="kind", values="value")
    gap = wide.matched - wide.shuffled
    return {f"{m} gap": gap[m] for m in wide.index} | {
        f"{m} shuffled": wide.shuffled[m] for m in wide.index
    }


def moved(rows: pd.DataFrame) -> tuple[float, float, float]:
    """DA1: linear CKA with a subset moved far, what the probe loses by it, CKA with an outlier."""
    far = rows[rows.distance == rows.distance.max()].set_index(["change", "metric"]).value
    start = rows[rows.distance == rows.distance.min()].set_index(["change", "metric"]).value
    loss = start["subset", "probe"] - far["subset", "probe"]
    return far["subset", "CKA linear"], float(loss), far["one example", "CKA linear"]


def _weighted_ranks(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean ranks of x, (rows of weights, n), each value there as often as it weighs."""
    below, equal = ((x[None] < x[:, None]), (x[None] == x[:, None]))
    return weights @ below.T.astype(float) + (weights @ equal.T.astype(float) + 1) / 2


def _weighted_spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation for each row of weights; NaN where one side is constant."""
    total = weights.sum(1, keepdims=True)
    a, b = (_weighted_ranks(v, weights) for v in (x, y))
    a, b = (ranks - (weights * ranks).sum(1, keepdims=True) / total for ranks in (a, b))
    scale = np.sqrt((weights * a**2).sum(1) * (weights * b**2).sum(1))
    shared = (weights * a * b).sum(1)
    return np.divide(shared, scale, out=np.full(len(scale), np.nan), where=scale > 1e-9)


def _interval(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
