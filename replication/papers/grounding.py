"""The tests that an index of similarity is put to by Kornblith et al. 2019 and Ding et al. 2021.

Does a layer find itself in another network; does an index notice components that are deleted; and
does dissimilarity go with differences in what representations do?
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from replication.papers._correlation import correlation

RESAMPLES = 1000


def identification(grid: pd.DataFrame) -> pd.DataFrame:
    """Return how well layers find themselves in the other network, by metric and pair of networks.

    Parameters
    ----------
    grid : DataFrame
        Columns metric, pair, layer, other, value: `layer` of the pair's first network, `other` of
        its second; all of both, by the same names.

    Returns
    -------
    DataFrame
        Columns metric, pair, accuracy: the share of layers of either network whose most similar
        layer in the other is the same one, a tie counting as a share of it (Kornblith et al. 2019,
        section 6.1); specificity: the share of (layer, another layer) in which the same layer is
        more similar than the other, a tie as half.
    """
    rows = []
    for (metric, pair), own in grid.groupby(["metric", "pair"], sort=False):
        values = own.pivot(index="layer", columns="other", values="value")
        values = values[values.index].to_numpy(float)
        hits, wins, others = [], [], ~np.eye(len(values), dtype=bool)
        for table in (values, values.T):
            rivals = table[others].reshape(len(table), -1)
            ties = (rivals == table.diagonal()[:, None]).sum(1)
            beaten = (rivals > table.diagonal()[:, None]).any(1)
            hits += list(np.where(beaten, 0, 1 / (1 + ties)))
            wins += list((table.diagonal()[:, None] > rivals).mean(1) + ties / rivals.shape[1] / 2)
        row = {"metric": metric, "pair": pair, "accuracy": np.mean(hits)}
        rows.append(row | {"specificity": np.mean(wins)})
    return pd.DataFrame(rows, columns=["metric", "pair", "accuracy", "specificity"])


def detection(cut: pd.DataFrame, between: Mapping[str, float]) -> float:
    """Return the share of components that can be deleted before an index notices, mean of layers.

    It notices where the distance of a layer to its cut version exceeds `between`, by layer: the
    distance of the same layer in two networks (Ding et al. 2021, section 4); 1 if it never does.
    `cut` has columns layer, deleted (a share), value (a similarity).
    """
    shares = []
    for layer, rows in cut.groupby("layer"):
        noticed = rows.deleted[1 - rows.value > between[layer]]
        shares.append(noticed.min() if len(noticed) else 1.0)
    return float(np.mean(shares))


class Population(NamedTuple):
    """Representations that differ in what they do: n of them, of a few independent units."""

    values: Mapping[str, np.ndarray]  # similarities by index, (n, n), rows the reference's side
    does: np.ndarray  # (n,) functionality
    units: np.ndarray  # (n,) the network, or pre-training, that each belongs to
    candidates: np.ndarray  # (n,) whether it may be the reference


def rank_correlation(
    populations: Sequence[Population], metric: str, without: int | None = None, every: bool = False
) -> float:
    """Return Spearman's correlation of dissimilarity with the loss of functionality.

    The reference is the candidate of best functionality, or with `every` each one in turn; the mean
    over references and populations (Ding et al. 2021, section 3). A unit can be left out.
    """
    found = []
    for values, does, units, candidates in populations:
        kept = units != without
        some = np.flatnonzero(kept & candidates)
        if not every and len(some):
            some = some[[does[some].argmax()]]
        for reference in some:
            others = kept & (np.arange(len(does)) != reference)
            distance = 1 - np.asarray(values[metric])[reference, others]
            found.append(correlation(distance, np.abs(does[reference] - does[others])))
    return float(np.mean(found)) if found else math.nan


def jackknife(statistic: Callable[[int | None], float], units: int) -> list[float]:
    """Return one value a unit, n s - (n - 1) s_(-i): pseudo-values (Arvesen 1969) of a statistic.

    `statistic` takes the unit that is left out, or None. One NaN for fewer than 3 units.
    """
    if units < 3:
        return [math.nan]
    whole = statistic(None)
    return [units * whole - (units - 1) * statistic(i) for i in range(units)]


def two_way_bootstrap(
    population: Population, metric: str, seeds: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """Return a 95% percentile interval of the correlation, units and `seeds` (n,) both resampled.

    That is pre-trainings and fine-tunings (Ding et al. 2021, section 5; Sellam et al. 2022).
    """
    source, found = np.random.default_rng(seed), []
    values, does, units, _ = population
    for _ in range(RESAMPLES if np.ptp(does) > 0 else 0):
        weights = np.ones(len(does), int)
        for factor in (units, seeds):
            names, place = np.unique(factor, return_inverse=True)
            weights *= source.multinomial(len(names), [1 / len(names)] * len(names))[place]
        drawn = np.flatnonzero(weights)
        if len(drawn) > 3:
            best = drawn[does[drawn].argmax()]
            others = np.repeat(drawn, weights[drawn])
            others = others[others != best]
            distance = 1 - np.asarray(values[metric])[best, others]
            found.append(correlation(distance, does[best] - does[others]))
    found = [value for value in found if not math.isnan(value)]
    return tuple(np.percentile(found, [2.5, 97.5])) if found else (math.nan, math.nan)


def reliability(first: Sequence[float], second: Sequence[float]) -> float:
    """Return that of the mean of two halves, 2 r / (1 + r), at least -1; NaN below 3 items.

    Spearman 1910, Brown 1910.
    """
    if len(first) < 3 or not (np.ptp(first) > 0 and np.ptp(second) > 0):
        return math.nan
    r = np.corrcoef(first, second)[0, 1]
    return float(max(-1.0, 2 * r / (1 + r))) if r > -1 else -1.0
