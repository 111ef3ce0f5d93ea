"""What `single_directions` computes: for one seed, or one value a network of a population."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from replication.papers._correlation import correlation

FITTED = 0.99  # train accuracy from which a network counts as having fitted its labels
BEYOND = 0.3  # share of units ablated beyond the share that dropout trained for
MEASURES = ("selectivity", "information")


def fitted(networks: pd.DataFrame) -> pd.DataFrame:
    """Return the networks whose train accuracy, on the labels trained on, is at least 99%."""
    return networks[networks.train_accuracy >= FITTED - 1e-9]


def excluded(networks: pd.DataFrame) -> int:
    """Return how many networks (rows) did not fit their labels."""
    return len(networks) - len(fitted(networks))


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


def corruption(rows: pd.DataFrame) -> tuple[float, float]:
    """S1: correlation of corruption with robustness to ablation, and to noise."""
    rows = fitted(rows[~rows.batch_norm])
    return correlation(rows.corruption, rows.auc), correlation(rows.corruption, rows.noise_auc)


def over_training(rows: pd.DataFrame) -> tuple[float, float]:
    """S3: correlation of AUC and test loss, and what AUC loses after the least test loss."""
    rows = rows[rows.epoch > 0].sort_values("epoch")
    best = int(rows.test_loss.to_numpy().argmin())
    parts = best < len(rows) - 1  # else train and test loss have not parted
    change = rows.auc.iloc[-1] - rows.auc.iloc[best] if parts else math.nan
    return correlation(rows.auc, rows.test_loss), float(change)


def regret(rows: pd.DataFrame) -> float:
    """S4: test accuracy lost by picking the setting of highest AUC."""
    return float(rows.test_accuracy.max() - rows.test_accuracy[rows.auc.idxmax()])


def dropout(rows: pd.DataFrame) -> tuple[float, float, float]:
    """S5: gain at the trained share, steeper fall beyond it, and that of corrupted labels."""
    rows = fitted(rows)
    curves = {
        key: (curve.share.to_numpy(), curve.accuracy.to_numpy())
        for key, curve in rows.sort_values("share").groupby(["corruption", "dropout"])
    }
    gains, bends, faster = [], [], []
    levels, rates = sorted(rows.corruption.unique()), sorted(set(rows.dropout) - {0})
    for rate in rates:
        falls = {}
        for level in levels:
            if (level, rate) not in curves or (level, 0) not in curves:
                continue
            whole, here, there = np.interp([0, rate, rate + BEYOND], *curves[level, rate])
            falls[level] = here - there
            gains.append(here - np.interp(rate, *curves[level, 0]))
            bends.append((here - there) / BEYOND - (whole - here) / rate)
        if len(falls) == 2:
            faster.append(falls[levels[1]] - falls[levels[0]])
    return _mean(gains), _mean(bends), _mean(faster)


def batch_norm(rows: pd.DataFrame) -> tuple[float, float, float]:
    """S6: with batch norm minus without: ablation AUC, mean selectivity, mean information."""
    rows = fitted(rows[rows.corruption == 0]).set_index("batch_norm")
    if set(rows.index) != {True, False}:
        return (math.nan,) * 3
    columns = ["auc", "selectivity", "information"]
    return tuple((rows.loc[True, columns] - rows.loc[False, columns]).astype(float))


def importance(units: pd.DataFrame) -> tuple[float, float]:
    """S7: size of the correlations of selectivity and information with the rise of the loss."""
    return tuple(abs(correlation(units[measure], units.loss_rise)) for measure in MEASURES)


def class_damage(units: pd.DataFrame) -> tuple[float, float]:
    """C1: correlation of selectivity with the damage to one class; less that with all classes."""
    one = by_layer(units, "selectivity", "class_drop").mean()
    return float(one), float(one - by_layer(units, "selectivity", "accuracy_drop").mean())


def pooling(units: pd.DataFrame) -> float:
    """C2: how far the pooled correlation is from the mean of the layers' correlations."""
    pooled = correlation(units.selectivity, units.loss_rise)
    return float(abs(pooled - by_layer(units, "selectivity", "loss_rise").mean()))


def clamping(rows: pd.DataFrame) -> float:
    """C4: AUC clamped to zero minus AUC clamped to the mean."""
    rows = fitted(rows[(rows.corruption == 0) & ~rows.batch_norm])
    return float((rows.auc - rows.auc_mean).mean())


def by_layer(units: pd.DataFrame, measure: str, damage: str) -> pd.Series:
    """Return the correlation of two columns within each layer."""
    layers = units.groupby("layer", sort=False)
    return pd.Series({name: correlation(rows[measure], rows[damage]) for name, rows in layers})


def selection(
    sweep: pd.DataFrame, best: tuple[int, ...] = (1, 5, 10), draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Return how often the highest AUC picks one of the best settings of a random half of them.

    Parameters
    ----------
    sweep : DataFrame
        As for `statistics`; AUC and test accuracy are averaged over the repeats of a setting.
    best : numbers of settings
    draws : int
        Random halves.
    seed : int

    Returns
    -------
    DataFrame
        Columns best, picked (share of the halves in which the pick is among the best by test
        accuracy) and chance (that of a random pick).
    """
    settings = sweep.groupby("setting")[["auc", "test_accuracy"]].mean()
    auc, accuracy = settings.auc.to_numpy(), settings.test_accuracy.to_numpy()
    half = -(-len(settings) // 2)
    source = np.random.default_rng(seed)
    ranks = []
    for _ in range(draws):
        chosen = source.permutation(len(settings))[:half]
        pick = chosen[auc[chosen].argmax()]
        ranks.append((accuracy[chosen] > accuracy[pick]).sum())
    picked = [float(np.mean(np.array(ranks) < k)) for k in best]
    chance = [min(1.0, k / half) for k in best]
    return pd.DataFrame({"best": best, "picked": picked, "chance": chance})


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan
