"""What `sensitivity` computes: rows of one seed in, a number a rule out; pairs; correlations."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, mannwhitneyu, rankdata

TRUE, RANDOM = "true", "random"
MNIST, FASHION, CIFAR = "mnist", "fashion_mnist", "cifar10"
STAND_INS = {"mnist5k": MNIST}  # the embedded digits count as MNIST; the scale says so
BASE = "baseline"
LABELS, AUGMENTATION = "random labels", "augmentation"
ACTIVATION, FULL_BATCH = "HardSigmoid", "full batch"
FACTORS = (LABELS, AUGMENTATION, ACTIVATION, FULL_BATCH)
TRAINED, INITIAL = "after training", "before training"
DIFFERENT, SAME, NOISE = "different classes", "same class", "noise"
WINDOW = 15.0  # degrees on either side of a point, or of the middle between two
FEWEST_NETWORKS = 10  # for a correlation
FEWEST_POINTS = 20  # near the peak of |J_y|
UNDECIDED = (0.05, 0.95)  # probabilities of the right class that count as near the peak
MEASURED = ["gap", "jacobian", "transitions", "test_accuracy", "train_accuracy"]


def fitted(networks: pd.DataFrame) -> pd.Series:
    """Tell which networks (rows) have a train accuracy of 100%; one that diverged has not."""
    return networks.train_accuracy >= 1 - 1e-9


# ------------------------------------------------------------------ along ellipses


def along(paths: pd.DataFrame, column: str) -> dict[str, float]:
    """Return what N1 to N3 look at, of one seed's network after training.

    ``dip``: ln of the mean of `column` at the three points over that between them, different
    classes. ``flatness``: its coefficient of variation along ellipses of noise over that along
    those of different classes. ``same``: ln of its mean between points of the same class over that
    between points of different classes. NaN if the network has not fitted its training set.
    """
    rows = paths[(paths.stage == TRAINED) & fitted(paths)]
    curves = {kind: rows[rows.kind == kind] for kind in (DIFFERENT, SAME, NOISE)}
    if any(curve.empty for curve in curves.values()):
        return dict.fromkeys(("dip", "flatness", "same"), math.nan)
    off = {kind: _distance_to_point(curve.angle) for kind, curve in curves.items()}
    between = {k: curve[column][off[k] >= 60 - WINDOW].mean() for k, curve in curves.items()}
    at = curves[DIFFERENT][column][off[DIFFERENT] <= WINDOW].mean()
    spread = {k: _variation(curve[column]) for k, curve in curves.items()}
    return {
        "dip": _log_ratio(at, between[DIFFERENT]),
        "flatness": spread[NOISE] / spread[DIFFERENT] if spread[DIFFERENT] > 0 else math.nan,
        "same": _log_ratio(between[SAME], between[DIFFERENT]),
    }


def _distance_to_point(angle: pd.Series) -> pd.Series:
    """Return the degrees to the nearest of the three points, at 0, 120 and 240: 0 to 60."""
    return ((angle + 60) % 120 - 60).abs()


def _variation(values: pd.Series) -> float:
    mean = float(values.mean())
    return float(values.std(ddof=0)) / mean if mean > 0 else math.nan


def _log_ratio(a: float, b: float) -> float:
    return math.log(a / b) if a > 0 and b > 0 else math.nan


# ------------------------------------------------------------------ pairs of networks


def pairs(arms: pd.DataFrame) -> pd.DataFrame:
    """Return the networks that differ in one factor only, side by side: a row a pair.

    Of each pair both networks have fitted their labels, but for an augmented one, which need not
    (as in Novak et al. 2018, Fig. 4). The columns ``..._worse`` are of the network that the paper
    expects to have the larger gap, ``..._better`` of the other.

    Parameters
    ----------
    arms : DataFrame
        A row a network: arm (`BASE` or one of `FACTORS`), seed, width, depth and `MEASURED`.
    """
    keys = ["seed", "width", "depth"]
    base = arms[(arms.arm == BASE) & fitted(arms)]
    tables = []
    for factor in FACTORS:
        other = arms[arms.arm == factor]
        if factor != AUGMENTATION:
            other = other[fitted(other)]
        sides = [base, other] if factor == AUGMENTATION else [other, base]
        left, right = (side[[*keys, *MEASURED]] for side in sides)
        both = left.merge(right, on=keys, suffixes=("_worse", "_better"), validate="1:1")
        tables.append(both.assign(factor=factor))
    return pd.concat(tables, ignore_index=True)


def differences(paired: pd.DataFrame, factor: str, column: str, selected: bool = False) -> list:
    """Return `column` of the worse minus that of the better network, one number a pair.

    With `selected`, of the pairs whose worse network has the lower test accuracy.
    """
    rows = paired[paired.factor == factor]
    if selected:
        rows = rows[rows.test_accuracy_worse < rows.test_accuracy_better]
    found = (rows[f"{column}_worse"] - rows[f"{column}_better"]).tolist()
    return found or [math.nan]


# ------------------------------------------------------------------ all networks


def rank_correlation(networks: pd.DataFrame, measure: str) -> float:
    """Return Spearman's correlation of `measure` with the gap, of the fitted; NaN for too few."""
    rows = networks[fitted(networks)].dropna(subset=[measure, "gap"])
    if len(rows) < FEWEST_NETWORKS:
        return math.nan
    return float(_correlation(rankdata(rows[measure]), rankdata(rows.gap)))


def best_gap_lost(networks: pd.DataFrame) -> float:
    """N13: the least gap at the smallest width minus that at the largest, true labels."""
    rows = networks[fitted(networks) & (networks.labels == TRUE)]
    widths = networks.width.min(), networks.width.max()
    small, large = (rows.gap[rows.width == width].min() for width in widths)
    return float(small - large) if widths[0] < widths[1] else math.nan


def correlations(
    networks: pd.DataFrame,
    measures: Sequence[str],
    setting: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how well each measure ranks the fitted networks by their gap.

    Parameters
    ----------
    networks : DataFrame
        A row a network: dataset, labels (`TRUE` or `RANDOM`), gap, train_loss, the measures.
    measures : sequence of str
        Columns.
    setting : sequence of str
        Columns that the networks of one setting share; they differ by their seed. The bootstrap
        draws settings, as networks of one are alike.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        A row a data set, measure and group of networks (all, true, random): networks, spearman with
        the 95% percentile interval low, high (Efron 1979), kendall (tau-b), partial (Spearman's
        given train loss). NaN where fewer than 10 networks are left, or one of the two is constant.
    """
    rows = []
    for dataset, each in networks[fitted(networks)].groupby("dataset", sort=False):
        groups = {"all": each, TRUE: each[each.labels == TRUE], RANDOM: each[each.labels == RANDOM]}
        for measure in measures:
            for group, members in groups.items():
                members = members.dropna(subset=[measure, "gap"])
                row = {"dataset": dataset, "measure": measure, "labels": group}
                row |= {"networks": len(members)}
                if len(members) >= FEWEST_NETWORKS:
                    row |= _correlations(members, measure, setting, resamples, seed)
                rows.append(row)
    columns = ["dataset", "measure", "labels", "networks", "spearman", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "kendall", "partial"])


def _correlations(
    rows: pd.DataFrame, measure: str, setting: Sequence[str], resamples: int, seed: int
) -> dict[str, float]:
    x, y, z = (rows[column].to_numpy(float) for column in (measure, "gap", "train_loss"))
    members = list(rows.reset_index(drop=True).groupby(list(setting)).indices.values())
    source = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = source.integers(len(members), size=len(members))
        index = np.concatenate([members[i] for i in chosen])
        drawn.append(_correlation(rankdata(x[index]), rankdata(y[index])))
    known = np.array(drawn)[~np.isnan(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    x, y, z = rankdata(x), rankdata(y), rankdata(z)
    xy, xz, yz = _correlation(x, y), _correlation(x, z), _correlation(y, z)
    rest = math.sqrt(max(0.0, (1 - xz**2) * (1 - yz**2))) if not math.isnan(xz + yz) else 0.0
    return {
        "spearman": xy,
        "low": float(low),
        "high": float(high),
        "kendall": math.nan if math.isnan(xy) else float(kendalltau(x, y).statistic),
        "partial": (xy - xz * yz) / rest if rest > 1e-9 else math.nan,
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else math.nan


# ------------------------------------------------------------------ single points


def misclassified(points: pd.DataFrame) -> tuple[float, float]:
    """N11: how often |J| is higher on a misclassified point, and how many of these have little.

    The share of pairs (misclassified, correct) in which the former has the larger |J|, ties half;
    and the share of misclassified points whose |J| is below the mean over all points.
    """
    wrong, right = (points.norm[points.correct == value] for value in (False, True))
    if not fitted(points).all() or wrong.empty or right.empty:
        return math.nan, math.nan
    larger = mannwhitneyu(wrong, right).statistic / (len(wrong) * len(right))
    return float(larger), float((wrong < points.norm.mean()).mean())


def peak(points: pd.DataFrame) -> float:
    """N12: the cross-entropy at which |J_y| is largest, by a fit to the undecided points.

        ln |J_y| = c + a ln p + b ln(1 - p),   p = e^-l in [0.05, 0.95]

    by least squares; where this is largest in that range. NaN for fewer than 20 such points.
    """
    p = np.exp(-points.cross_entropy)
    rows = points[(p >= UNDECIDED[0]) & (p <= UNDECIDED[1]) & (points.row_norm > 0)]
    if not fitted(points).all() or len(rows) < FEWEST_POINTS:
        return math.nan

    def terms(p: np.ndarray) -> np.ndarray:
        return np.stack([np.ones_like(p), np.log(p), np.log1p(-p)], axis=1)

    p = np.exp(-rows.cross_entropy.to_numpy(float))
    found = np.linalg.lstsq(terms(p), np.log(rows.row_norm.to_numpy(float)), rcond=None)[0]
    grid = np.linspace(*UNDECIDED, 901)
    return float(-np.log(grid[(terms(grid) @ found).argmax()]))


def by_seed(table: pd.DataFrame, statistic: Callable[[pd.DataFrame], object]) -> list:
    """Return `statistic` of each seed's rows; one NaN for a table without rows."""
    return [statistic(rows) for _, rows in table.groupby("seed")] or [math.nan]
