"""The tests: what each estimates, its 95% interval, its p values and what it could have shown.

`docs/statistics.md` states their assumptions and their error rates by simulation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import special

ALPHA = 0.025  # of every one-sided decision: what the end of a 95% interval decides
POWER = 0.8
# The fewest units for which simulated 95% intervals cover 93 to 97%, or, of exact tests, for which
# a decision is possible; of one correlation the fewest pairs, raw and ranked.
FEWEST = {"t": 3, "correlation": 3, "equivalence": 3, "sign": 6, "permutation": 6}
FEWEST |= {"share": 20, "every": 1, "pairs": 5, "ranks": 10}
_ENUMERATED, _SUBSETS = 13, 9_999  # units whose sign flips are enumerated; else so many are drawn


@dataclass(frozen=True)
class Estimate:
    """What a test says of a centre: its value, its 95% interval, and functions of a number c.

    `below` and `above` are the one-sided p values of "the centre is at most c" and "at least c";
    ``shown(c, power)`` is the least centre that would have been found above c.
    """

    value: float
    interval: tuple[float, float]
    below: Callable[[float], float]
    above: Callable[[float], float]
    shown: Callable[[float, float], float] = lambda c, power: math.nan


def _location(centre: float, error: float, freedom: float) -> Estimate:
    """Return what Student's t with so many degrees of freedom says of a centre."""
    half = special.stdtrit(freedom, 1 - ALPHA)
    return Estimate(
        centre,
        (centre - half * error, centre + half * error),
        lambda c: special.stdtr(freedom, (c - centre) / error),
        lambda c: special.stdtr(freedom, (centre - c) / error),
        lambda c, power: c + error * special.nctdtrinc(freedom, 1 - power, half),
    )


def student(x: np.ndarray) -> Estimate:
    """Student's t test of the mean of (n,) numbers."""
    return _location(x.mean(), x.std(ddof=1) / math.sqrt(len(x)), len(x) - 1)


def fisher(r: float, pairs: int, ranks: bool) -> Estimate:
    """Fisher's z of one correlation; of ranks with the error of Bonett and Wright.

    Fisher 1921, Metron 1, 3-32; Bonett and Wright 2000, Psychometrika 65, 23-28.
    """
    error = math.sqrt((1 + r * r / 2 if ranks else 1) / (pairs - 3))
    return on_scale(lambda z: _location(0.0, error, 1e8), np.array([r]), (-1.0, 1.0))  # normal


def sign(x: np.ndarray) -> Estimate:
    """Exact sign test of the median of (n,) numbers; those that equal c count against.

    The interval is interpolated between order statistics (Hettmansperger and Sheather 1986,
    Statistics & Probability Letters 4, 75-79). `shown` takes the units for normal.
    """
    n, ordered = len(x), np.sort(x)

    def tail(count: int) -> float:  # the chance of so many or more on one side
        return special.bdtrc(count - 1, n, 0.5) if count else 1.0

    k = next(k for k in range(1, n) if tail(n - k) > ALPHA)  # x_k is low enough, x_k+1 is not
    part = (ALPHA - tail(n + 1 - k)) / (tail(n - k) - tail(n + 1 - k))
    step = (n - k) * part / (k + (n - 2 * k) * part)
    low = ordered[k - 1] + step * (ordered[k] - ordered[k - 1])
    high = ordered[n - k] - step * (ordered[n - k] - ordered[n - k - 1])

    def shown(c: float, power: float) -> float:
        return c + x.std(ddof=1) * special.ndtri(special.betaincinv(n + 1 - k, k, power))

    below, above = (lambda c: tail(np.sum(x > c))), (lambda c: tail(np.sum(x < c)))
    return Estimate(np.median(x), (low, high), below, above, shown)


@lru_cache(maxsize=8)
def _subsets(n: int) -> np.ndarray:
    """Return weights (subsets, n) that average over every subset, or drawn ones, none empty."""
    if n <= _ENUMERATED:
        members = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1
    else:
        members = np.random.default_rng(n).integers(0, 2, (_SUBSETS, n))
        members[~members.any(1)] = 1
    return members / members.sum(1, keepdims=True)


def permutation(x: np.ndarray) -> Estimate:
    """Exact sign-flip test of the centre of (n,) numbers that lie symmetrically about it.

    Flipping the signs of some x - c gives as large a mean as was seen where the mean of those x is
    at most c: the means of subsets are p value and interval (Hartigan 1969, Journal of the
    American Statistical Association 64, 1303-1317). `shown` is that of the t test.
    """
    means = np.sort(_subsets(len(x)) @ x)
    flips = len(means) + 1
    k, near = int(ALPHA * flips), 1e-12 * np.abs(x).max()
    below, above = (
        (lambda c: (1 + np.sum(means <= c + near)) / flips),
        (lambda c: (1 + np.sum(means >= c - near)) / flips),
    )
    return Estimate(x.mean(), (means[k - 1], means[-k]), below, above, student(x).shown)


def share(x: np.ndarray) -> Estimate:
    """Binomial test of the share of ones among (n,) zeros and ones, by Clopper and Pearson."""
    n, k = len(x), int(x.sum())
    low = special.betaincinv(k, n - k + 1, ALPHA) if k else 0.0
    high = special.betaincinv(k + 1, n - k, 1 - ALPHA) if k < n else 1.0

    def shown(c: float, power: float) -> float:
        needed = next((m for m in range(1, n + 1) if special.bdtrc(m - 1, n, c) <= ALPHA), None)
        return special.betaincinv(needed, n - needed + 1, power) if needed else math.nan

    return Estimate(
        k / n,
        (low, high),
        lambda c: special.bdtrc(k - 1, n, np.clip(c, 0, 1)) if k else float(c >= 0),
        lambda c: special.bdtr(k, n, np.clip(c, 0, 1)),
        shown,
    )


def every(x: np.ndarray) -> Estimate:
    """No inference: the least of (n,) numbers and their extremes; p values are 0 or 1."""
    least, most = x.min(), x.max()
    return Estimate(least, (least, most), lambda c: least <= c, lambda c: least > c)


def on_scale(test: Callable[[np.ndarray], Estimate], x: np.ndarray, ends=None) -> Estimate:
    """Return what `test` says of (n,) numbers within `ends`, in their own units.

    It works on log(x - low) for (low, None) and on log((x - low) / (high - x)) / 2 for (low, high),
    Fisher's z for (-1, 1). There the numbers are shifted and stretched to [0, 1], so that nothing
    cancels, overflows or underflows, however large the offset.
    """
    low, high = ends or (None, None)

    @np.errstate(divide="ignore")  # -inf for the end of the range
    def to(c: Any) -> Any:
        if low is None:
            return c
        above = np.log(np.maximum(c - low, 0.0))
        return above if high is None else (above - np.log(np.maximum(high - c, 0.0))) / 2

    def back(y: float) -> float:
        z = start + size * y
        if low is not None:
            z = low + (np.exp(z) if high is None else (high - low) * special.expit(2 * z))
        return float(z) + 0.0  # turns -0.0 into 0.0

    def stretched(c: Any) -> Any:
        return (to(c) - start) / size

    beyond = np.errstate(over="ignore")  # inf for what lies beyond any spread of these numbers
    start, size = to(x).min(), np.ptp(to(x)) or 1.0
    found = test(stretched(x))
    least, most = map(back, found.interval)
    return Estimate(
        back(found.value),
        (least, most),
        beyond(lambda c: found.below(stretched(c))),
        beyond(lambda c: found.above(stretched(c))),
        beyond(lambda c, power: back(found.shown(stretched(c), power))),
    )
