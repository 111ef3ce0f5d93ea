"""What `layers_and_regions` computes of one seed's rows, and the open question's correlations."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import stats

from replication.papers._correlation import correlation

FCN, CONVNET, RESNET = "fcn", "convnet", "resnet"
TRUE, RANDOM = "true", "random"
WHOLE, SINGLE, JOINT = "trained", "single", "joint"
INITIAL, TRAINED = "initial", "trained"
EARLY = 0.1  # share of the training from which the critical layer is taken
LEAST = 0.02  # accuracy lost below which there is nothing to restore
FITTED = 0.99  # train accuracy from which a network counts as having memorised its labels


def by_seed(table: pd.DataFrame, statistic: Callable[[pd.DataFrame], float]) -> list[float]:
    """Return a statistic of each seed's rows; one NaN where there are none."""
    found = [float(statistic(rows)) for _, rows in table.groupby("seed")]
    return found or [math.nan]


# ------------------------------------------------------------------ resets


def _singles(rows: pd.DataFrame, share: float) -> pd.DataFrame:
    """Return the networks with one layer reset to a share of training, by position."""
    chosen = rows[(rows.kind == SINGLE) & (rows.share == share)]
    return chosen.set_index("position").sort_index()


def _lost(rows: pd.DataFrame, share: float) -> pd.Series:
    """Return the test accuracy lost by resetting each layer, by position."""
    return _accuracy(rows) - _singles(rows, share).test_accuracy


def _accuracy(rows: pd.DataFrame) -> float:
    whole = rows.test_accuracy[rows.kind == WHOLE]
    return float(whole.iloc[0]) if len(whole) else math.nan


def redrawn(rows: pd.DataFrame) -> float:
    """L1: largest over layers of the test accuracy with that layer drawn anew."""
    fresh = rows[(rows.kind == SINGLE) & rows.share.isna()]
    return fresh.groupby("position").test_accuracy.mean().max()


def first_lost(rows: pd.DataFrame) -> float:
    """L2: test accuracy lost by re-initialising the first layer."""
    return _lost(rows, 0.0).get(0, math.nan)


def others_lost(rows: pd.DataFrame) -> float:
    """L2: largest test accuracy lost by re-initialising one of the others."""
    return _lost(rows, 0.0).drop(0, errors="ignore").max()


def restored(rows: pd.DataFrame) -> float:
    """L3: share of the first layer's loss that an early checkpoint gives back."""
    lost, early = first_lost(rows), _lost(rows, EARLY).get(0, math.nan)
    return 1 - early / lost if lost >= LEAST else math.nan


def predicted(rows: pd.DataFrame, distance: str) -> float:
    """L4: correlation over layers of accuracy lost and distance, mean of the three networks.

    NaN for a seed without all three.
    """
    if set(rows.arch) != {FCN, CONVNET, RESNET}:
        return math.nan
    found = [
        correlation(_lost(one, 0.0), _singles(one, 0.0)[distance])
        for _, one in rows.groupby("arch")
    ]
    return pd.Series(found, dtype=float).mean()


def with_changes(resets: pd.DataFrame) -> pd.DataFrame:
    """Return the reset networks with what they lost, and their sensitivity over that before.

    Adds lost (train accuracy, on the labels trained on), jacobian_ratio, logit_jacobian_ratio and
    transitions_ratio, each over the trained network's of the same arch, labels and seed.
    """
    keys = ["arch", "labels", "seed"]
    measures = ["jacobian", "logit_jacobian", "transitions"]
    whole = resets.loc[resets.kind == WHOLE, [*keys, "train_accuracy", *measures]]
    joined = resets[resets.kind != WHOLE].merge(whole, on=keys, suffixes=("", "_before"))
    joined["lost"] = joined.train_accuracy_before - joined.train_accuracy
    for measure in measures:
        joined[f"{measure}_ratio"] = joined[measure] / joined[f"{measure}_before"]
    return joined.drop(columns=[f"{name}_before" for name in ["train_accuracy", *measures]])


def sensitivity_of_resets(resets: pd.DataFrame) -> pd.DataFrame:
    """Return how the sensitivity of reset networks goes with the accuracy that they lost.

    A row an architecture, kind of labels and measure: the Spearman correlation over reset networks
    of accuracy lost and measure, its mean over seeds with the 95% t interval (low, high; NaN for
    one seed), the number of seeds, and the median ratio of the measure to that of the trained
    network among networks that lost at least half of what can be lost, down to chance 0.1.
    """
    rows = []
    changes = with_changes(resets)
    whole = resets[resets.kind == WHOLE].set_index(["arch", "labels", "seed"]).train_accuracy
    whole = whole.sort_index()
    for (arch, labels), part in changes.groupby(["arch", "labels"], sort=False):
        for measure in ("jacobian", "logit_jacobian", "transitions"):
            ratio = f"{measure}_ratio"
            seeds = [correlation(one.lost, one[ratio]) for _, one in part.groupby("seed")]
            known = np.array([value for value in seeds if not math.isnan(value)])
            mean = float(known.mean()) if len(known) else math.nan
            low = high = math.nan
            if len(known) > 1:
                width = stats.t.ppf(0.975, len(known) - 1) * stats.sem(known)
                low, high = mean - width, mean + width
            most = part.seed.map(whole[arch, labels]) - 0.1
            broken = part.loc[part.lost > most / 2, ratio].median()
            row = {"arch": arch, "labels": labels, "measure": measure, "spearman": mean}
            row |= {"low": low, "high": high, "seeds": len(known), "ratio_when_broken": broken}
            rows.append(row)
    return pd.DataFrame(rows)


# ------------------------------------------------------------------ regions


def slope_error(rows: pd.DataFrame, column: str, expected: float) -> float:
    """Return the largest over depths of |log-log slope on the number of neurons - expected|."""
    errors = []
    for _, one in rows[rows[column].notna()].groupby("depth"):
        if one.neurons.nunique() < 2 or not (one[column] > 0).all():
            return math.nan
        fit = np.polyfit(np.log(one.neurons), np.log(one[column]), 1)
        errors.append(abs(fit[0] - expected))
    return max(errors, default=math.nan)


def depth_effect(rows: pd.DataFrame, column: str) -> float:
    """Return the largest |ln of a count over that of the shallowest network of as many neurons|."""
    table = np.log(rows.pivot_table(index="neurons", columns="depth", values=column))
    if table.shape[1] < 2:
        return math.nan
    return table.sub(table.iloc[:, 0], axis=0).abs().max().max()


def plane_ratio(rows: pd.DataFrame) -> float:
    """R2: largest |ln(regions in a plane / (N^2 / 2))|."""
    return np.log(rows.plane / (rows.neurons**2 / 2)).abs().max()


def changed(rows: pd.DataFrame, column: str, labels: str) -> float:
    """R4: mean |ln(count after over before training)|, random labels only where fitted."""
    some = rows[rows.labels == labels].set_index(["depth", "neurons"])
    before, after = (some[some.stage == stage] for stage in (INITIAL, TRAINED))
    if labels == RANDOM:
        after = after[after.train_accuracy >= FITTED - 1e-9]
    return np.log(after[column] / before[column].reindex(after.index)).abs().mean()
