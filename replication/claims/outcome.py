"""What a rule gives for the numbers of the seeds: an estimate, its interval and a verdict.

The tests, for values v_1 .. v_n with mean m and standard deviation s (n - 1 in the denominator),
threshold c, confidence 1 - a:

``"t"``
    m -+ t(n - 1, 1 - a/2) s / sqrt(n), Student's interval of the mean (Student 1908).
``"bootstrap"``
    The bias-corrected and accelerated bootstrap interval of the mean (Efron 1987), from 9999
    resamples of at least 5 values. Makes no assumption of normality, but is too narrow for few
    values: meant for 20 and more.
``"sign"``
    k of the n values differing from c lie on the claimed side; the exact interval of the share
    k / n (Clopper and Pearson 1934) is compared with 1/2. At 95% it needs 6 values to decide.
``"every"``
    No inference, for facts that hold or do not: min and max of the values; one value on or beyond
    the threshold refutes the claim.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from replication.claims.rule import Rule

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
INCONCLUSIVE = "inconclusive"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE)

# the fewest values for which the test has an interval at all
_FEWEST = {"t": 2, "sign": 1, "bootstrap": 5, "every": 1}
# beyond this an interval could overflow
_LARGEST = 1e300


@dataclass(frozen=True)
class Outcome:
    """What one rule gave.

    Attributes
    ----------
    rule
        The rule.
    values
        The seeds' numbers as they were given; NaN where the statistic is undefined.
    value, interval
        The estimate and its (low, high): the mean for ``"t"`` and ``"bootstrap"``, the share of
        seeds on the claimed side for ``"sign"``, the worst value and the range for ``"every"``.
        None where they cannot be computed.
    seeds, dropped
        How many values were used, and how many were NaN.
    verdict
        One of `VERDICTS`.
    reason
        What limits the verdict, or "".
    """

    rule: Rule
    values: tuple[float, ...]
    value: float | None
    interval: tuple[float, float] | None
    seeds: int
    dropped: int
    verdict: str
    reason: str = ""


def gravest(verdicts: Sequence[str]) -> int:
    """Return the index of the part that decides a claim: the first of the gravest verdict."""
    gravity = (NOT_REPRODUCED, INCONCLUSIVE, REPRODUCED)
    return verdicts.index(min(verdicts, key=gravity.index))


def decide(rule: Rule, values: Sequence[float | None], name: str) -> Outcome:
    """Apply `rule` to one number a seed, NaN or None where the statistic is undefined.

    Raises
    ------
    ValueError
        If there are no values, not one a seed, or an infinite one; it calls them `name`.
    """
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 1 or series.size == 0:
        raise ValueError(f"{name} has shape {series.shape}; expected one number a seed: (seeds,)")
    if np.any(np.abs(series) > _LARGEST):
        raise ValueError(
            f"{name} holds {series[np.abs(series) > _LARGEST][0]}; expected finite numbers, or NaN "
            "for a seed for which the statistic is undefined"
        )

    # Sorted and turned so that the claim reads "greater": neither the order of the seeds nor the
    # sign of the statistic can change a verdict, the bootstrap's resamples included.
    turn = 1.0 if rule.direction == ">" else -1.0
    used = np.sort(turn * series[~np.isnan(series)])
    bar, n, dropped = turn * rule.threshold, used.size, series.size - used.size
    value, interval, reasons = _estimate(rule, used, bar)
    if rule.test == "sign":  # a share, which has no direction
        turn, bar = 1.0, 0.5

    if dropped:
        reasons.insert(0, f"the statistic is undefined for {dropped} of {series.size} seeds")
    fewest = max(rule.minimum_seeds, _FEWEST[rule.test])
    if n < fewest:
        reasons.append(f"{n} seed{'' if n == 1 else 's'} with a value, at least {fewest} needed")
    if n < fewest or interval is None:
        verdict = INCONCLUSIVE
    elif rule.test == "every":
        verdict = _verdict_of_every(interval[0] > bar, dropped)
    else:
        verdict = _verdict(*interval, bar)

    # + 0.0 turns -0.0 into 0.0
    if value is not None:
        value = float(turn * value + 0.0)
    if interval is not None:
        low, high = sorted(float(turn * end + 0.0) for end in interval)
        interval = (low, high)
    given = tuple(float(v) for v in series)
    return Outcome(rule, given, value, interval, n, dropped, verdict, "; ".join(reasons))


def _verdict(low: float, high: float, bar: float) -> str:
    if low > bar:
        return REPRODUCED
    return NOT_REPRODUCED if high < bar or low == high == bar else INCONCLUSIVE


def _verdict_of_every(holds: bool, dropped: int) -> str:
    if not holds:
        return NOT_REPRODUCED
    # a seed without a value cannot be said to agree
    return INCONCLUSIVE if dropped else REPRODUCED


def _estimate(
    rule: Rule, used: np.ndarray, bar: float
) -> tuple[float | None, tuple[float, float] | None, list[str]]:
    """Return the value, the interval and what limits them, for sorted values without NaN."""
    if not used.size:
        return None, None, []
    if rule.test == "every":
        return used[0], (used[0], used[-1]), []
    if rule.test == "sign":
        return _share_above(used, bar, rule.confidence)
    # the mean of deviations: exact for equal values
    mean = used[0] + (used - used[0]).mean()
    if used.size < _FEWEST[rule.test]:
        return mean, None, []
    interval = _mean_interval(used, rule.test, rule.confidence)
    if not np.all(np.isfinite(interval)):
        return mean, None, ["the interval cannot be computed from these values"]
    return mean, interval, []


def _share_above(
    used: np.ndarray, bar: float, confidence: float
) -> tuple[float | None, tuple[float, float] | None, list[str]]:
    """Return the share of `used` above `bar`, its exact interval, and what limits them."""
    kept, reasons = used[used != bar], []
    if kept.size < used.size:
        ties = used.size - kept.size
        reasons.append(f"{ties} of {used.size} values tie with the threshold and are left out")
    if not kept.size:
        return None, None, reasons
    if 0.5**kept.size > (1 - confidence) / 2:
        reasons.append(f"{kept.size} values cannot decide, were they all on one side")
    test = stats.binomtest(int((kept > bar).sum()), kept.size)
    found = test.proportion_ci(confidence, method="exact")
    return test.statistic, (found.low, found.high), reasons


def _mean_interval(values: np.ndarray, test: str, confidence: float) -> tuple[float, float]:
    """Return (low, high) of the mean for "t" and "bootstrap"; NaN where the bootstrap has none."""
    start, spread = values.min(), np.ptp(values)
    if spread == 0:
        return start, start
    # on [0, 1] nothing cancels, overflows or underflows, however large the offset
    scaled = (values - start) / spread
    if test == "t":
        found = stats.ttest_1samp(scaled, 0.0).confidence_interval(confidence)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                (scaled,),
                np.mean,
                confidence_level=confidence,
                n_resamples=9999,
                method="BCa",
                random_state=np.random.default_rng(0),
            ).confidence_interval
    return start + spread * found.low, start + spread * found.high
