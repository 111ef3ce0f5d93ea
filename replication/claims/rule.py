"""The rule that settles one part of a claim, and what it gives for the numbers of the units."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from replication.claims import inference
from replication.claims.inference import ALPHA, FEWEST, POWER, Estimate, on_scale

VERDICTS = ("reproduced", "partly", "not reproduced", "inconclusive", "not testable at this scale")
REPRODUCED, PARTLY, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTABLE = VERDICTS

Values = Sequence[float | None] | Mapping[str, Any]  # of the units; of clusters or a correlation

_TESTS = {
    "t": (inference.student, "the 95% t interval of the mean{scale} lies above {bar}"),
    "correlation": (inference.student, "the 95% interval by Fisher's z lies above {bar}"),
    "equivalence": (inference.student, "the 95% t interval of the mean{scale} lies within ±{bar}"),
    "sign": (inference.sign, "the exact sign test puts the median above {bar}"),
    "permutation": (inference.permutation, "the exact sign-flip test puts the centre above {bar}"),
    "share": (inference.share, "the 95% Clopper-Pearson interval of the share lies above {bar}"),
    "every": (inference.every, "every value lies above {bar}"),
}
_SCALED = ("t", "correlation", "equivalence")  # work on the scale of the rule's range
_LARGEST = 1e300  # beyond this an interval could overflow
_NO_SPREAD = 1e-9  # of the largest value: what rounding leaves between equal units


@dataclass(frozen=True)
class Rule:
    """One signed statistic, positive as the paper has it, and how it decides.

    ``docs/statistics.md`` says what each test assumes. ``ValueError`` if a field is none of its
    kind, or the test is not offered for such a statistic.
    """

    statistic: str  #: what is computed for each independent unit (a trained network), in words
    smallest: float | None = None  #: effect of interest, None: a direction only; a share's bar
    source: str = ""  #: where `smallest` or `none` comes from, e.g. "a tick of Fig. 3"
    test: str = "t"  #: "correlation", "sign", "permutation", "equivalence", "share", "every"
    #: (low, high), high None where open: "t" and "equivalence" work on its logit or log scale
    range: tuple[float, float | None] | None = None
    skewed: bool = False  #: known to be so: needs "sign" or a range with an open end
    paper: float | None = None  #: the paper's number of this statistic
    minimum: int = 0  #: the fewest units planned, where that is more than the test needs
    none: float | None = None  #: of a direction: within ±this there is no effect, not reproduced
    turn: tuple[float, float] | None = None  # in files of former rules, whose values are turned

    def __post_init__(self):
        given = {"correlation": (-1.0, 1.0), "share": (0.0, 1.0)}.get(self.test, self.range)
        object.__setattr__(self, "range", given and tuple(given))
        low, high = self.ends
        small, signed = self.smallest, low < 0 and self.test not in ("equivalence", "share")
        log = self.range is not None and None in self.range and self.test in _SCALED
        symmetric = self.test in (*_SCALED, "permutation") and not log
        for name, ok, expected in (
            ("test", self.test in _TESTS, f"one of {', '.join(_TESTS)}"),
            ("range", low < high, "(low, high) with low < high, or (low, None)"),
            ("range", self.test != "equivalence" or low < 0, "low < 0 for equivalence"),
            ("smallest", signed if small is None else 0 < small < high, "a number in its range"),
            ("none", self.none is None or (small is None and self.none > 0), "> 0, no smallest"),
            ("source", (small or self.none) is None or self.source, "where the number comes from"),
            ("test", not (self.skewed and symmetric), "sign, or a half-open range, where skewed"),
        ):
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    @property
    def ends(self) -> tuple[float, float]:
        """The range, infinite where it is open."""
        low, high = self.range or (-math.inf, None)
        return math.nan if low is None else low, math.inf if high is None else high

    def __str__(self) -> str:
        scale = "" if self.range is None else " (log scale)" if None in self.range else " (logit)"
        bar = f"{self.smallest:g} ({self.source})" if self.smallest else "0"
        fewest = f"; at least {max(FEWEST[self.test], self.minimum)} units" * (self.test != "every")
        none = f"; within ±{self.none:g} ({self.source}) there is no effect" if self.none else ""
        how = _TESTS[self.test][1].format(scale=scale, bar=bar)
        return f"{self.statistic}: {how}{none}{fewest}."


@dataclass(frozen=True)
class Part:
    """What one rule gave.

    `value` and `interval` are the test's estimate ("every": the least value and the extremes), or
    None. `units` independent ones were used, `dropped` numbers undefined. `p` and `p_not` are the
    one-sided p values that decide for *reproduced* and *not reproduced*, `detectable` is the least
    effect that so many units show with 80% power, `reason` says what limits the verdict.
    """

    rule: Rule
    values: Values
    value: float | None
    interval: tuple[float, float] | None
    units: int
    dropped: int
    verdict: str = INCONCLUSIVE
    p: float | None = None
    p_not: float | None = None
    detectable: float | None = None
    reason: str = ""


def numbers(values: Values, name: str) -> tuple[np.ndarray, int]:
    """Return one number a unit, clusters averaged, and how many numbers were undefined."""
    clusters = list(values.values()) if isinstance(values, Mapping) else [values]
    series = [np.asarray(cluster, dtype=np.float64) for cluster in clusters]
    wrong = [s for s in series if s.ndim != 1 or (np.abs(s) > _LARGEST).any()]
    if wrong or not any(map(len, series)):
        expected = "one finite number a unit, NaN where undefined, or clusters of them"
        raise ValueError(f"{name} are {str(values)[:60]}; expected {expected}")
    defined = [s[~np.isnan(s)] for s in series]
    dropped = sum(map(len, series)) - sum(map(len, defined))
    if isinstance(values, Mapping):
        return np.array([s.mean() for s in defined if s.size]), dropped
    return defined[0], dropped


def decide(rule: Rule, values: Values, name: str = "values") -> Part:
    """Apply `rule` to `values`, which are as `settle` takes them; errors call them `name`."""
    one: Mapping[str, Any] = {}  # correlation over pairs
    if rule.test == "correlation" and isinstance(values, Mapping) and "r" in values:
        one = values
    x, dropped = numbers([one["r"]] if one else values, name)
    units, fewest = len(x), FEWEST[rule.test]
    if one:
        units, ranks = int(one["n"]), bool(one.get("rank"))
        fewest = FEWEST["ranks" if ranks else "pairs"]
    (low, high), fewest = rule.ends, max(fewest, rule.minimum)
    if ((x < low) | (x > high)).any():
        raise ValueError(f"{name} lie in [{x.min():g}, {x.max():g}]; expected [{low:g}, {high:g}]")
    if rule.test == "share" and (isinstance(values, Mapping) or not np.isin(x, (0, 1)).all()):
        raise ValueError(f"{name} are {str(values)[:60]}; expected 0 or 1 a unit for a share")

    part = Part(rule, values, float(x.mean()) if x.size else None, None, units, dropped)
    reasons = [f"undefined for {dropped} of {dropped + len(x)} numbers"] if dropped else []
    exact = one or rule.test in ("share", "every")  # not from the spread between units
    if units < fewest or not x.size:
        reasons.append(f"{units} unit{'s' * (units != 1)}, the rule asks for {fewest}")
    elif not exact and np.ptp(x) <= _NO_SPREAD * np.abs(x).max():
        reasons.append("no spread between units, nothing to decide by")
    elif rule.test in _SCALED and ((x <= low) | (x >= high)).any():
        reasons.append("a value on the end of its range, where this test cannot decide")
    else:
        test = _TESTS[rule.test][0]
        if one:
            estimate = inference.fisher(float(x[0]), units, ranks)
        else:
            scale = rule.range if rule.test in _SCALED else None
            estimate = test(x) if exact else on_scale(test, x, scale)
        part = _decided(part, estimate)
        if part.verdict == INCONCLUSIVE and rule.test != "every":
            within = "equivalence within " * (rule.test == "equivalence")
            reasons.append(f"{units} units could have shown {within}{part.detectable:.2g}")
    return replace(part, reason="; ".join(reasons))


def _decided(part: Part, estimate: Estimate) -> Part:
    """Return the part with its estimate, p values, verdict and the effect it could have shown."""
    below, above, small = estimate.below, estimate.above, part.rule.smallest
    power, bar = POWER, small or 0.0
    p, p_not = below(bar), above(0.0)
    if margin := small or part.rule.none:
        p_not = min(p_not, max(below(-margin), above(margin)))
    if part.rule.test == "equivalence":
        p, p_not = max(below(-bar), above(bar)), min(below(bar), above(-bar))
        power, bar = (1 + POWER) / 2, 0.0  # both tests, where there is no effect
    if part.rule.test == "every" and part.dropped:
        p = 1.0  # an undefined value does not agree
    verdict = REPRODUCED if p <= ALPHA else NOT_REPRODUCED if p_not <= ALPHA else INCONCLUSIVE
    value, p, p_not, least = map(float, (estimate.value, p, p_not, estimate.shown(bar, power)))
    low, high = map(float, estimate.interval)
    found = replace(part, value=value, interval=(low, high), verdict=verdict)
    return replace(found, p=p, p_not=p_not, detectable=least)


def combine(parts: Sequence[Part]) -> str:
    """Return the verdict on a claim of several parts.

    Reproduced where all parts are: an intersection-union test, which needs no correction (Berger
    1982, Technometrics 24, 295-300). Of some parts only, *partly* and *not reproduced* hold by the
    smallest p value times the number of parts (the first step of Holm 1979).
    """
    if len({part.verdict for part in parts}) == 1:
        return parts[0].verdict
    for p, verdict in (("p", PARTLY), ("p_not", NOT_REPRODUCED)):
        known = [getattr(part, p) for part in parts if getattr(part, p) is not None]
        if known and min(known) * len(parts) <= ALPHA:
            return verdict
    return INCONCLUSIVE
