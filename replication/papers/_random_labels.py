"""What `random_labels` computes for one seed: the rows of one seed in, a number a rule out."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

TRUE, RANDOM, SHUFFLED = "true labels", "random labels", "shuffled pixels"
PIXELS, GAUSSIAN = "random pixels", "gaussian"
KINDS = (TRUE, RANDOM, SHUFFLED, PIXELS, GAUSSIAN)
KERNEL, FEATURES = "Gaussian kernel, pixels", "Gaussian kernel, random conv features"
ALEXNET = "small_alexnet"
FITTED = 0.99  # train accuracy from which labels count as fitted
AT_LEAST = 1e-9  # rules are strict: what lies on a bound that may be reached is this far beyond it
CHANCE_ERROR = 0.9
STARTED = 0.9 * math.log(10)  # train loss below which fitting has started; guessing has ln 10
FLAGS = ["crop", "weight_decay", "dropout"]


def time_to_fit(history: pd.DataFrame) -> float:
    """Return the first epoch with a train accuracy of at least 99%; NaN if there is none.

    `history` has the columns epoch and train_accuracy, as `training.Run.history` has.
    """
    return float(history.epoch[history.train_accuracy >= FITTED - AT_LEAST].min())


def memorisation(rows: pd.DataFrame) -> tuple[float, float]:
    """Z1: the lowest train accuracy on random labels, and how far test error is from chance."""
    random = rows[rows.fraction == 1]
    return _lowest_accuracy(random), _from_chance(random)


def order_of_times(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Z2: how much later than true labels, than unstructured images, and the share of fitting."""
    curves = {kind: rows[rows.kind == kind].sort_values("epoch") for kind in KINDS}
    after_true = [_log2_ratio(curves[kind], curves[TRUE]) for kind in KINDS if kind != TRUE]
    after_noise = [_log2_ratio(curves[RANDOM], curves[kind]) for kind in (PIXELS, GAUSSIAN)]
    return _least(after_true), _least(after_noise), _share_of_fitting(curves[RANDOM])


def levels(rows: pd.DataFrame) -> tuple[float, float, float, float]:
    """Z3: lowest train accuracy, tau of level with time and with error, distance from chance."""
    models = [runs for _, runs in rows.groupby("model")]
    slower = [
        _tau(runs.fraction, runs.epochs_to_fit.fillna(math.inf))
        if runs.epochs_to_fit.notna().any()
        else math.nan
        for runs in models
    ]
    worse = [_tau(runs.fraction, runs.test_error) for runs in models]
    ends = _from_chance(rows[rows.fraction == 1])
    return _lowest_accuracy(rows), float(np.mean(slower)), float(np.mean(worse)), ends


def cost_of_turning_off(rows: pd.DataFrame) -> tuple[float, float]:
    """Z4: the largest test accuracies lost without regularisers, and without batch norm."""
    true = rows[rows.labels == TRUE]
    plain = ~true[FLAGS].any(axis=1)
    own = _own_batch_norm(true)
    best = true[own & ~plain].groupby("model").test_accuracy.max()
    regularisers = best - true[own & plain].groupby("model").test_accuracy.mean()
    batch_norm = _difference(true[plain], "batch_norm", "test_accuracy")
    return float(regularisers.max()), float(batch_norm.max())


def regularised_noise(rows: pd.DataFrame) -> tuple[float, float]:
    """Z5: lowest train accuracy on random labels, regularised; highest of AlexNet with decay."""
    random = rows[(rows.labels == RANDOM) & ~rows.dropout & (rows.crop | rows.weight_decay)]
    exception = (random.model == ALEXNET) & random.weight_decay
    highest = random[exception].train_accuracy.fillna(0).max()
    return _lowest_accuracy(random[~exception]), float(highest)


def largest_error(rows: pd.DataFrame) -> float:
    """Z6: the largest error over all n."""
    return float(rows.error.max(skipna=False))


def interpolants(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Z7: error against chance, gain by features, and norm of the better over the other's."""
    errors, gains, norms = [], [], []
    rows = rows[(rows.ridge == 0) & rows.method.isin([KERNEL, FEATURES])]
    for _, found in rows.groupby("dataset"):
        largest = found[found.n == found.n[found.method == KERNEL].max()]
        if largest.empty:
            continue
        table = largest.pivot(index="n", columns="method", values=["error", "norm"]).iloc[0]
        error, norm = table["error"], table["norm"]
        errors.append(error[KERNEL] / CHANCE_ERROR)
        if FEATURES in error:
            gains.append(error[FEATURES] - error[KERNEL])
            sign = np.sign(gains[-1])  # of two that err alike neither is the better one
            norms.append(sign * math.log2(norm[KERNEL] / norm[FEATURES]) if sign else math.nan)
    return max(errors, default=math.nan), _mean(gains), _mean(norms)


def descent(rows: pd.DataFrame) -> tuple[float, float]:
    """Z8: the last distance and the largest part outside the span, over the solution's norm."""
    rows = rows.sort_values("step")
    shares = rows[["distance", "outside"]].div(rows.norm.where(rows.norm > 0), axis=0)
    return float(shares.distance.iloc[-1]), float(shares.outside.max(skipna=False))


def consistency(rows: pd.DataFrame) -> float:
    """A1: mean correlation of two repeats' correct examples, true minus random labels."""
    found = {}
    for labels in (TRUE, RANDOM):
        some = rows[rows.labels == labels].astype({"correct": float})
        runs = some.pivot(index="example", columns="repeat", values="correct")
        found[labels] = _mean(runs.corr().to_numpy()[np.triu_indices(runs.shape[1], 1)])
    return found[TRUE] - found[RANDOM]


def cost_of_dropout(rows: pd.DataFrame) -> tuple[float, float]:
    """A2: train accuracy on noise minus test accuracy on real data lost to dropout; the latter."""
    plain = rows[_own_batch_norm(rows) & ~rows.crop & ~rows.weight_decay]
    noise = -_difference(plain[plain.labels == RANDOM], "dropout", "train_accuracy")
    real = -_difference(plain[plain.labels == TRUE], "dropout", "test_accuracy")
    return float((noise - real).mean()), float(real.mean())


def _lowest_accuracy(rows: pd.DataFrame) -> float:
    """Return the lowest train accuracy; a run without one, which diverged, has fitted nothing."""
    return float(rows.train_accuracy.fillna(0).min())


def _from_chance(rows: pd.DataFrame) -> float:
    return float(abs(rows.test_error.mean(skipna=False) - CHANCE_ERROR))


def _log2_ratio(late: pd.DataFrame, early: pd.DataFrame) -> float:
    """Return log2 of time to fit, late over early; a bound if that settles the sign, else NaN."""
    if late.empty or early.empty:
        return math.nan
    times = [time_to_fit(curve) for curve in (late, early)]
    bounds = [
        max(curve.epoch) if math.isnan(time) else time
        for curve, time in zip((late, early), times, strict=True)
    ]
    if not min(bounds) > 0:
        return math.nan
    ratio = math.log2(bounds[0] / bounds[1])
    late_open, early_open = map(math.isnan, times)  # the ratio is more, or less, than this
    unknown = (late_open and (early_open or ratio < 0)) or (early_open and ratio > 0)
    return math.nan if unknown else ratio


def _least(ratios: list[float]) -> float:
    """Return the least ratio; NaN if one is unknown, unless a known one refutes the order."""
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    settled = known and (len(known) == len(ratios) or min(known) <= 0)
    return min(known) if settled else math.nan


def _share_of_fitting(curve: pd.DataFrame) -> float:
    """Return the share of the time to fit that passes after fitting starts; a bound, or NaN."""
    start, end = curve.epoch[curve.train_loss < STARTED].min(), time_to_fit(curve)
    if not math.isnan(end):
        return float(1 - start / end) if end > 0 else math.nan
    share = float(1 - start / curve.epoch.max()) if len(curve) else math.nan
    return share if share >= 0.5 else math.nan  # it is more than this


def _tau(levels: pd.Series, values: pd.Series) -> float:
    """Return Kendall's tau-b; 0 for values that are all equal, NaN for a single level."""
    if levels.nunique() < 2 or values.isna().any():
        return math.nan
    return float(kendalltau(levels, values).statistic) if values.nunique() > 1 else 0.0


def _own_batch_norm(rows: pd.DataFrame) -> pd.Series:
    """Say which runs have batch norm exactly if some run of their model has."""
    return rows.batch_norm == rows.groupby("model").batch_norm.transform("any")


def _difference(rows: pd.DataFrame, flag: str, column: str) -> pd.Series:
    """Return, for the models that have both, `column` with `flag` minus that without."""
    means = rows.groupby(["model", flag])[column].mean().unstack()
    return (means.reindex(columns=[True, False]) @ [1.0, -1.0]).dropna()


def _mean(values: Iterable[float]) -> float:
    values = [value for value in values if not math.isnan(value)]
    return float(np.mean(values)) if values else math.nan
