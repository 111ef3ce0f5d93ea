"""What several notebooks' statistics are made of: numbers by seed, and a rank correlation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation; NaN for fewer than 3 pairs or a constant."""
    x, y = (np.asarray(list(values), float) for values in (x, y))
    known = ~(np.isnan(x) | np.isnan(y))
    if known.sum() < 3 or not (np.ptp(x[known]) > 0 and np.ptp(y[known]) > 0):
        return math.nan
    return float(spearmanr(x[known], y[known]).statistic)


def partial_correlation(x: Sequence[float], y: Sequence[float], z: Sequence[float]) -> float:
    """Return Spearman's correlation of x and y at equal z (Kendall 1942).

    (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)); NaN where one of them is undefined or z
    orders x or y completely.
    """
    xy, xz, yz = correlation(x, y), correlation(x, z), correlation(y, z)
    left = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / math.sqrt(left) if left > 1e-12 else math.nan


def correlation_by_member(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """Return one value a member of a population, with Spearman's correlation as their mean.

        v_i = r + (n - 1) (mean_j r_(-j) - r_(-i))

    where r_(-i) is the correlation without member i: r and its jackknife influence values (Efron &
    Tibshirani 1993, section 11.5), so that an interval of the mean of v is one of r over members.
    NaN for every member where r is undefined or hangs on one member.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    whole, members = correlation(x, y), np.arange(len(x))
    without = np.array([correlation(x[members != i], y[members != i]) for i in members])
    if math.isnan(whole) or np.isnan(without).any():
        return [math.nan] * max(1, len(x))
    return list(whole + (len(x) - 1) * (without.mean() - without))


def by_seed(table: pd.DataFrame, statistic: Callable, *arguments: Any) -> list:
    """Return ``statistic(rows, *arguments)`` of each seed's rows; one NaN for an empty table."""
    return [statistic(rows, *arguments) for _, rows in table.groupby("seed")] or [math.nan]


def parts_by_seed(table: pd.DataFrame, statistic: Callable, parts: int) -> list[list[float]]:
    """Return, for a statistic of that many parts, a list a part, as `by_seed` has one."""
    values = [statistic(rows) for _, rows in table.groupby("seed")]
    return [list(part) for part in zip(*values, strict=True)] or [[math.nan]] * parts


def by_network(pairs: pd.DataFrame | None, statistic: Callable, parts: int) -> list[list[float]]:
    """Return, for a statistic of that many parts, a value a network, their mean that of all pairs.

    `pairs` has networks as ``seed`` and ``other``. With m the mean over pairs and m_i that over
    those without network i, n m - (n - 1) m_i: the jackknife's pseudo-values (Arvesen 1969, Annals
    of Mathematical Statistics 40, 2076-2100), as pairs that share a network are not independent.
    NaN for fewer than 3 networks.
    """
    if pairs is None or len(seeds := sorted({*pairs.seed, *pairs.other})) < 3:
        return [[math.nan]] * parts
    values = {pair: np.array(statistic(own)) for pair, own in pairs.groupby(["seed", "other"])}
    means = [np.mean([v for pair, v in values.items() if i not in pair], 0) for i in seeds]
    whole, n = np.mean(list(values.values()), 0), len(seeds)
    return np.transpose([n * whole - (n - 1) * mean for mean in means]).tolist()
