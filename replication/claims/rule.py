"""The rule that settles a claim, and what it gives for the numbers of the seeds."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import numpy as np
from scipy import stats

VERDICTS = ("reproduced", "not reproduced", "inconclusive")
REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = VERDICTS

_CRITERIA = {
    "t": "the {percent:g}% t interval of the mean lies {place}",
    "sign": "{place} in most seeds (sign test: the {percent:g}% exact binomial interval of "
    "their share lies above 1/2)",
    "bootstrap": "the {percent:g}% bootstrap interval (BCa) of the mean lies {place}",
    "every": "{place} in every seed",
}
# the fewest values for which the test has an interval at all
_FEWEST = {"t": 2, "sign": 1, "bootstrap": 5, "every": 1}
_LARGEST = 1e300  # beyond this an interval could overflow


@dataclass(frozen=True)
class Rule:
    """How one statistic decides: fixed before the run.

    Parameters
    ----------
    statistic
        What is computed for each seed, in words, e.g. "change of EV1 from initialisation to the
        end, mean of conv1 and conv2".
    direction
        The side of `threshold` on which the claim holds: ``">"`` or ``"<"``, both strict.
    threshold
        In the units of the statistic.
    test
        For values v_1 .. v_n with mean m and standard deviation s (n - 1 in the denominator),
        threshold c and confidence 1 - a:

        ``"t"``
            m -+ t(n - 1, 1 - a/2) s / sqrt(n), Student's interval of the mean (Student 1908).
        ``"bootstrap"``
            The bias-corrected and accelerated bootstrap interval of the mean (Efron 1987), from
            9999 resamples of at least 5 values. Assumes no normality, but is too narrow for few
            values: meant for 20 and more.
        ``"sign"``
            k of the n values differing from c lie on the claimed side; the exact interval of the
            share k / n (Clopper and Pearson 1934) is compared with 1/2. At 95% it needs 6 values
            to decide.
        ``"every"``
            No inference, for facts that hold or do not: min and max of the values; one value on or
            beyond the threshold refutes the claim.
    minimum_seeds
        With fewer defined values the rule is inconclusive.
    confidence
        Of the two-sided interval, between 0 and 1. Not used by ``"every"``.

    Raises
    ------
    ValueError
        If an argument other than `statistic` is not one of the above.
    """

    statistic: str
    direction: Literal[">", "<"]
    threshold: float
    test: Literal["t", "sign", "bootstrap", "every"] = "t"
    minimum_seeds: int = 3
    confidence: float = 0.95

    def __post_init__(self):
        finite = isinstance(self.threshold, Real) and math.isfinite(self.threshold)
        whole = isinstance(self.minimum_seeds, int) and self.minimum_seeds >= 1
        for name, ok, expected in (
            ("direction", self.direction in (">", "<"), "'>' or '<'"),
            ("threshold", finite, "a finite number"),
            ("test", self.test in _CRITERIA, f"one of {', '.join(_CRITERIA)}"),
            ("minimum_seeds", whole, "a whole number of at least 1"),
            ("confidence", 0 < self.confidence < 1, "a number between 0 and 1"),
        ):
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    @classmethod
    def read(cls, text: str, test: str = "t", **more: float) -> "Rule":
        """Return the rule written as ``"statistic > threshold"``, or with ``<``.

        >>> Rule.read("test accuracy with freezing minus without > -0.01").threshold
        -0.01
        """
        match text.rsplit(" ", 2):
            case statistic, (">" | "<") as direction, threshold:
                return cls(statistic, direction, float(threshold), test, **more)
        raise ValueError(f"text: expected 'statistic > threshold', found {text!r}")

    def __str__(self) -> str:
        place = f"{'above' if self.direction == '>' else 'below'} {self.threshold:g}"
        criterion = _CRITERIA[self.test].format(percent=100 * self.confidence, place=place)
        plural = "" if self.minimum_seeds == 1 else "s"
        return f"{self.statistic}: {criterion}; at least {self.minimum_seeds} seed{plural}."


@dataclass(frozen=True)
class Outcome:
    """What one rule gave.

    `values` are the seeds' numbers as they were given, NaN where undefined; `seeds` of them were
    used and `dropped` were NaN. `value` and `interval` are the estimate and its (low, high): the
    mean for ``"t"`` and ``"bootstrap"``, the share of seeds on the claimed side for ``"sign"``, the
    worst value and the range for ``"every"``; None where they cannot be computed. `reason` says
    what limits the verdict, or is "".
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
    """Apply `rule` to one number a seed; errors call the values `name`."""
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
    verdict, every = INCONCLUSIVE, rule.test == "every"
    if n >= fewest and interval is not None:
        low, high = interval
        if low > bar and not (every and dropped):  # a seed without a value does not agree
            verdict = REPRODUCED
        elif high < bar or low == high == bar or (every and low <= bar):
            verdict = NOT_REPRODUCED

    if value is not None:
        value = float(turn * value + 0.0)  # + 0.0 turns -0.0 into 0.0
    if interval is not None:
        interval = tuple(sorted(float(turn * end + 0.0) for end in interval))
    given = tuple(float(v) for v in series)
    return Outcome(rule, given, value, interval, n, dropped, verdict, "; ".join(reasons))


def _estimate(
    rule: Rule, used: np.ndarray, bar: float
) -> tuple[float | None, tuple[float, float] | None, list[str]]:
    """Return the value, the interval and what limits them, for (n,) sorted values without NaN."""
    if not used.size:
        return None, None, []
    if rule.test == "every":
        return used[0], (used[0], used[-1]), []
    if rule.test == "sign":
        kept, reasons = used[used != bar], []
        if kept.size < used.size:
            ties = used.size - kept.size
            reasons.append(f"{ties} of {used.size} values tie with the threshold and are left out")
        if not kept.size:
            return None, None, reasons
        if 0.5**kept.size > (1 - rule.confidence) / 2:
            reasons.append(f"{kept.size} values cannot decide, were they all on one side")
        test = stats.binomtest(int((kept > bar).sum()), kept.size)
        exact = test.proportion_ci(rule.confidence, method="exact")
        return test.statistic, (exact.low, exact.high), reasons
    mean = used[0] + (used - used[0]).mean()  # of deviations: exact for equal values
    if used.size < _FEWEST[rule.test]:
        return mean, None, []
    interval = _mean_interval(used, rule.test, rule.confidence)
    if not np.all(np.isfinite(interval)):
        return mean, None, ["the interval cannot be computed from these values"]
    return mean, interval, []


def _mean_interval(values: np.ndarray, test: str, confidence: float) -> tuple[float, float]:
    """Return (low, high) of the mean for "t" and "bootstrap"; NaN where the bootstrap has none."""
    start, spread = values.min(), np.ptp(values)
    if spread == 0:
        return start, start
    # on [0, 1] nothing cancels, overflows or underflows, however large the offset
    scaled = (values - start) / spread
    if test == "t":
        ends = stats.ttest_1samp(scaled, 0.0).confidence_interval(confidence)
    else:
        settings = {"confidence_level": confidence, "n_resamples": 9999, "method": "BCa"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            ends = stats.bootstrap(
                (scaled,), np.mean, **settings, random_state=np.random.default_rng(0)
            ).confidence_interval
    return start + spread * ends.low, start + spread * ends.high
