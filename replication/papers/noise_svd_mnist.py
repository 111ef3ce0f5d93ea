"""Claims B1 to B12 of the noise-SVD post, and the statistic a seed that settles each.

Unless a rule says otherwise: Gaussian noise of sigma 0.2 on raw pixels, training images, true
labels, the mean over images; "the layers" are all but the input, in forward order.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from replication.claims import Claim, Rule

POST = "Post: From Generalization to Inner Activations"
LAYERS = ("conv1", "relu1", "conv2", "relu2", "pool", "fc1", "relu3", "fc2")
CONV = ("conv1", "conv2")
SIGMA = 0.2
MEMORISED = 0.99  # train accuracy from which a net counts as having fitted its random labels
NEAR_MINIMUM = 0.05  # convergence: test loss within this share of its minimum
NEAR_FINAL = 0.10  # plateau: within this share of the curve's range from its final value


def _claim(number: int, statement: str, *rules: Rule, shown: str = "a plot, no number") -> Claim:
    rule = rules[0] if len(rules) == 1 else rules
    return Claim(f"B{number}", POST, statement, rule, paper_value=shown)


_FALL = Rule("EV1 at init minus EV1 at the end, mean of conv1 and conv2", ">", 0.0)

CLAIMS: tuple[Claim, ...] = (
    _claim(1, "EV1 of convolutional layers falls with training", _FALL),
    _claim(
        2,
        "The fall of EV1 is smaller in later layers",
        _FALL,
        Rule("Spearman correlation of depth with the fall of EV1, over the layers", "<", 0.0),
    ),
    _claim(
        3,
        "EV2 of convolutional layers rises with training",
        Rule("EV2 at the end minus EV2 at init, mean of conv1 and conv2", ">", 0.0),
    ),
    _claim(
        4,
        "The remaining components plateau around the epoch of convergence",
        Rule(
            "|plateau epoch of 1 - EV1 - EV2 minus convergence epoch| over epochs trained, "
            "mean of conv1 and conv2",
            "<",
            0.1,
        ),
    ),
    _claim(
        5,
        "The remaining components plateau later in later layers",
        Rule("Spearman correlation of depth with the plateau epoch, over the layers", ">", 0.0),
    ),
    _claim(
        6,
        "s1 of perturbed groups drops in the first epochs",
        Rule(
            "lowest s1 up to the convergence epoch, relative to init, minus 1; "
            "s1 relative to init averaged over the layers",
            "<",
            -0.01,
        ),
    ),
    _claim(
        7,
        "s1 of perturbed groups rises after convergence",
        Rule(
            "s1 at the end over s1 at the convergence epoch, minus 1, mean of the layers", ">", 0.0
        ),
    ),
    _claim(
        8,
        "s1 of perturbed groups varies more in early training",
        Rule(
            "mean |change of ln s1| from epoch to epoch, first half of training minus second half, "
            "mean of the layers",
            ">",
            0.0,
        ),
    ),
    _claim(
        9,
        "Accuracy is hardly changed by the noise",
        Rule("test accuracy on clean images minus that under the noise, at the end", "<", 0.01),
    ),
    _claim(
        10,
        "Without noise, all singular values but the first are 0",
        Rule("largest s2 / s1 at sigma 0 over layers and epochs", "<", 1e-6, test="every"),
    ),
    _claim(
        11,
        "s1 without noise grows with training",
        Rule("s1 at the end over s1 at init, minus 1, at sigma 0, mean of the layers", ">", 0.0),
    ),
    _claim(
        12,
        "EV1 is higher in generalising than in memorising nets",
        Rule(
            "EV1 of the net trained on true labels minus EV1 of the net that fitted random labels "
            "(train accuracy >= 99%, else undefined), same seed and images, mean of the layers",
            ">",
            0.0,
        ),
        shown="expected, not reported",
    ),
)


def convergence_epoch(history: pd.DataFrame) -> float:
    """Return the first epoch whose test loss is within 5% of the lowest test loss of the run."""
    history = history.sort_values("epoch")
    near = history.test_loss <= (1 + NEAR_MINIMUM) * history.test_loss.min()
    return float(history.epoch[near].iloc[0])


def plateau_epoch(curve: pd.Series) -> float:
    """Return the first epoch (index) from which `curve` stays near its final value.

    Near means within 10% of the curve's range (largest minus smallest value). NaN for a curve
    without range.
    """
    curve = curve.sort_index()
    spread = curve.max() - curve.min()
    if not spread > 0:
        return math.nan
    away = (curve - curve.iloc[-1]).abs() > NEAR_FINAL * spread
    last_away = np.flatnonzero(away)[-1] if away.any() else -1
    return float(curve.index[last_away + 1])


def statistics(
    spectra: pd.DataFrame, history: pd.DataFrame, accuracy: pd.DataFrame
) -> dict[str, list]:
    """Return, for every claim, one number a seed, or one such list for each of its rules.

    Parameters
    ----------
    spectra : DataFrame
        Columns arm ("protocol", "true labels", "random labels"), seed, epoch, sigma, layer, ev1,
        ev2, rest, s1, s2; one row each. Raw scale, Gaussian noise, training images only.
    history : DataFrame
        Columns arm, seed, epoch, train_accuracy, test_loss.
    accuracy : DataFrame
        Columns seed, sigma, accuracy: test accuracy of the protocol's nets at the end.
    """
    seeds = sorted(spectra[spectra.arm == "protocol"].seed.unique())
    each = [_one_seed(spectra, history, accuracy, seed) for seed in seeds]
    found: dict[str, list] = {}
    for claim in CLAIMS:
        values = [one[claim.id] for one in each]
        several = isinstance(claim.rule, tuple)  # then one series a rule
        found[claim.id] = [list(v) for v in zip(*values, strict=True)] if several else values
    return found


def _one_seed(
    spectra: pd.DataFrame, history: pd.DataFrame, accuracy: pd.DataFrame, seed: int
) -> dict[str, float | tuple[float, ...]]:
    spectra, history = spectra[spectra.seed == seed], history[history.seed == seed]
    accuracy = accuracy[accuracy.seed == seed].set_index("sigma").accuracy
    noisy = spectra[(spectra.arm == "protocol") & (spectra.sigma == SIGMA)]
    clean = spectra[(spectra.arm == "protocol") & (spectra.sigma == 0)]
    ev1, ev2, rest, s1 = (_curves(noisy, column) for column in ("ev1", "ev2", "rest", "s1"))
    clean_s1 = _curves(clean, "s1")
    trained = float(ev1.index[-1])
    converged = convergence_epoch(history[history.arm == "protocol"])
    plateau = rest.apply(plateau_epoch)
    fall = ev1.iloc[0] - ev1.iloc[-1]
    relative = (s1 / s1.iloc[0]).mean(axis=1)
    early = relative[(relative.index > 0) & (relative.index <= converged)]
    return {
        "B1": fall[list(CONV)].mean(),
        "B2": (fall[list(CONV)].mean(), _depth_correlation(fall)),
        "B3": (ev2.iloc[-1] - ev2.iloc[0])[list(CONV)].mean(),
        "B4": ((plateau - converged).abs() / trained)[list(CONV)].mean(skipna=False),
        "B5": _depth_correlation(plateau),
        "B6": early.min() - 1 if len(early) else math.nan,
        "B7": _rise_after(s1, converged),
        "B8": _early_minus_late(s1),
        "B9": accuracy[0.0] - accuracy[SIGMA],
        "B10": (clean.s2 / clean.s1).max(),
        "B11": (clean_s1.iloc[-1] / clean_s1.iloc[0] - 1).mean(),
        "B12": _memorisation_gap(spectra, history),
    }


def _curves(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return epochs x layers, in the order of training and of depth."""
    return table.pivot(index="epoch", columns="layer", values=column).sort_index()[list(LAYERS)]


def _depth_correlation(values: pd.Series) -> float:
    values = values[list(LAYERS)].reset_index(drop=True).dropna()
    if len(values) < 3 or values.nunique() < 2:
        return math.nan
    return float(spearmanr(values.index, values).statistic)


def _rise_after(s1: pd.DataFrame, converged: float) -> float:
    """Return the mean relative change of s1 after convergence; NaN if nothing comes after it."""
    before = s1[s1.index <= converged]
    if len(before) == len(s1):
        return math.nan
    return float((s1.iloc[-1] / before.iloc[-1] - 1).mean())


def _early_minus_late(s1: pd.DataFrame) -> float:
    whole = s1[[float(epoch).is_integer() for epoch in s1.index]]
    rates = np.log(whole).diff().iloc[1:].abs().div(np.diff(whole.index), axis=0).mean(axis=1)
    early = rates[rates.index <= whole.index[-1] / 2]
    late = rates[rates.index > whole.index[-1] / 2]
    return float(early.mean() - late.mean()) if len(early) and len(late) else math.nan


def _memorisation_gap(spectra: pd.DataFrame, history: pd.DataFrame) -> float:
    random = history[history.arm == "random labels"].sort_values("epoch")
    if random.empty or random.train_accuracy.iloc[-1] < MEMORISED:
        return math.nan
    last = {
        arm: _curves(spectra[(spectra.arm == arm) & (spectra.sigma == SIGMA)], "ev1").iloc[-1]
        for arm in ("true labels", "random labels")
    }
    return float((last["true labels"] - last["random labels"]).mean())


def memorised(history: pd.DataFrame) -> Sequence[int]:
    """Return the seeds whose random-label net fitted its labels."""
    last = history[history.arm == "random labels"].sort_values("epoch").groupby("seed").last()
    return sorted(int(seed) for seed in last.index[last.train_accuracy >= MEMORISED])
