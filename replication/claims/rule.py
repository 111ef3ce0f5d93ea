"""The rule that settles a claim: public as `claims.Rule`."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal

_CRITERIA = {
    "t": "the {percent:g}% t interval of the mean lies {place}",
    "sign": "{place} in most seeds (sign test: the {percent:g}% exact binomial interval of "
    "their share lies above 1/2)",
    "bootstrap": "the {percent:g}% bootstrap interval (BCa) of the mean lies {place}",
    "every": "{place} in every seed",
}


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
        ``"t"``, ``"sign"``, ``"bootstrap"`` or ``"every"``: see `replication.claims.outcome`.
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
