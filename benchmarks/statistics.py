"""Error rates, coverage and power of the claims' tests by simulation: `docs/statistics.md`.

``python -m benchmarks statistics`` prints the tables of that page in about five minutes, the same
at every call. A draw is one experiment, settled by `claims.rule.decide` as the notebooks' are.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from scipy import special, stats

from replication.claims import NOT_REPRODUCED, PARTLY, REPRODUCED, Rule
from replication.claims.inference import ALPHA
from replication.claims.rule import combine, decide
from replication.claims.scorecard import adjusted

DRAWS = 10_000
UNITS = (3, 5, 6, 10, 20)
Draw = Callable[[np.random.Generator, int, int], Sequence]  # (rng, draws, n) -> values of each


def rule(test: str = "t", smallest: float | None = None, **more) -> Rule:
    """Return a rule of some statistic."""
    return Rule("x", smallest, "made up" if smallest else "", test, **more)


def iid(name: str, *parameters: float) -> Draw:
    """Return a draw of independent units of one of NumPy's distributions."""
    return lambda rng, draws, n: getattr(rng, name)(*parameters, size=(draws, n))


def z_normal(rng: np.random.Generator, draws: int, n: int) -> np.ndarray:
    """Return a correlation a unit, normal on Fisher's scale about 0.5."""
    return np.tanh(rng.normal(0.5, 0.5, (draws, n)))


def pairs(correlation: float, rank: bool = False) -> Draw:
    """Return a draw of one correlation over n pairs of normal numbers."""

    def draw(rng: np.random.Generator, draws: int, n: int) -> list[dict]:
        x, noise = rng.normal(size=(2, draws, n))
        y = correlation * x + np.sqrt(1 - correlation**2) * noise
        x, y = (stats.rankdata(v, axis=1) if rank else v for v in (x, y))
        return [{"r": r, "n": n, "rank": rank} for r in stats.pearsonr(x, y, axis=1).statistic]

    return draw


def clusters(rng: np.random.Generator, draws: int, n: int, size: int = 4) -> list[dict]:
    """Return n clusters of numbers about 0, correlated 0.8 within a cluster."""
    x = np.sqrt(0.8) * rng.normal(size=(draws, n, 1)) + np.sqrt(0.2) * rng.normal(
        size=(draws, n, size)
    )
    return [dict(zip("abcdefghijklmnopqrstuvwxyz", draw, strict=False)) for draw in x]


def parts(correlation: float, *means: float) -> Draw:
    """Return a draw of a part a mean, normal numbers correlated between parts."""

    def draw(rng: np.random.Generator, draws: int, n: int) -> np.ndarray:
        own = rng.normal(size=(draws, len(means), n))
        x = np.sqrt(correlation) * rng.normal(size=(draws, 1, n)) + np.sqrt(1 - correlation) * own
        return x + np.reshape(means, (-1, 1))

    return draw


SPEARMAN = 6 / np.pi * np.arcsin(0.8 / 2)  # of normal pairs
EXPONENTIAL = np.exp(special.digamma(1))  # centre on the log scale
BETA = special.expit(special.digamma(8) - special.digamma(2))  # centre on the logit scale
LOG, LOGIT, TINY = {"range": (0.0, None)}, {"range": (0.0, 1.0)}, 1e-9  # 0 is the end of the range
# what, the rule, how its values are drawn, and what the interval should cover
COVERAGE: list[tuple[str, Rule, Draw, float]] = [
    ("t, normal", rule(), iid("normal"), 0.0),
    ("t, exponential: refused where declared skewed", rule(), iid("exponential", 1.0), 1.0),
    ("t on the log scale, exponential", rule("t", TINY, **LOG), iid("exponential"), EXPONENTIAL),
    ("t on the log scale, log-normal", rule("t", TINY, **LOG), iid("lognormal"), 1.0),
    ("t on the logit scale, Beta(2, 2)", rule("t", TINY, **LOGIT), iid("beta", 2, 2), 0.5),
    ("t on the logit scale, Beta(8, 2)", rule("t", TINY, **LOGIT), iid("beta", 8, 2), BETA),
    ("t, normal, clusters of 4", rule(), clusters, 0.0),
    ("correlation, one a unit", rule("correlation"), z_normal, np.tanh(0.5)),
    ("correlation over pairs, 0.8", rule("correlation"), pairs(0.8), 0.8),
    ("correlation over ranks, 0.8", rule("correlation"), pairs(0.8, True), SPEARMAN),
    ("sign, normal", rule("sign"), iid("normal"), 0.0),
    ("sign, exponential", rule("sign"), iid("exponential", 1.0), np.log(2)),
    ("sign, Beta(8, 2)", rule("sign"), iid("beta", 8, 2), stats.beta(8, 2).median()),
    ("permutation, normal", rule("permutation"), iid("normal"), 0.0),
    ("permutation, Beta(2, 2)", rule("permutation"), iid("beta", 2, 2), 0.5),
    ("share, 0.75", rule("share", 0.5), iid("binomial", 1, 0.75), 0.75),
    ("share, 0.9", rule("share", 0.5), iid("binomial", 1, 0.9), 0.9),
]  # fmt: skip
T, SOME = rule(), rule("t", 0.5)
# what, the rules of its parts, and how their values are drawn: the truth is at the bar
ERRORS: list[tuple[str, Sequence[Rule], Draw]] = [
    ("t, no effect", [T], iid("normal")),
    ("t, the smallest effect", [SOME], iid("normal", 0.5)),
    ("t on the logit scale, the smallest effect", [rule("t", 0.5, **LOGIT)], iid("beta", 2, 2)),
    ("t, no effect, clusters of 4", [T], clusters),
    ("the same, their numbers taken for units (wrong)", [T],
     lambda rng, draws, n: [np.concatenate([*c.values()]) for c in clusters(rng, draws, n)]),
    ("correlation, none, over pairs", [rule("correlation")], pairs(0.0)),
    ("sign, no effect", [rule("sign")], iid("normal")),
    ("sign, the smallest effect, skewed", [rule("sign", np.log(2))], iid("exponential", 1.0)),
    ("permutation, no effect", [rule("permutation")], iid("normal")),
    ("equivalence, the effect that matters", [rule("equivalence", 0.5)], iid("normal", 0.5, 0.1)),
    ("share at the bar, 0.75", [rule("share", 0.75)], iid("binomial", 1, 0.75)),
    *((f"{k} parts, correlated {c}, no effect", [T] * k, parts(c, *[0.0] * k))
      for k, c in ((2, 0.5), (5, 0.0), (5, 0.5), (5, 0.9))),
    ("3 parts, two of them large, one without effect", [T] * 3, parts(0.5, 9.0, 9.0, 0.0)),
]  # fmt: skip


def coverage(row: tuple, n: int, draws: int = DRAWS) -> float:
    """Return the share of intervals that hold the truth; NaN where the test is not offered."""
    _, one, draw, truth = row
    drawn = draw(np.random.default_rng(n), draws, n)
    intervals = [decide(one, values).interval for values in drawn]
    if None in intervals:
        return np.nan
    return np.mean([low <= truth <= high for low, high in intervals])


def verdicts(row: tuple, n: int, draws: int = DRAWS // 2) -> Counter:
    """Return the share of each verdict; none where the test is not offered."""
    _, rules, draw = row
    counts = Counter()
    for values in draw(np.random.default_rng(n), draws, n):
        series = values if len(rules) > 1 else [values]
        settled = [decide(r, v) for r, v in zip(rules, series, strict=True)]
        if settled[0].p is None:
            return Counter()
        counts[combine(settled)] += 1 / draws
    return counts


def power(test: str, effect: float, n: int, draws: int = DRAWS // 10) -> float:
    """Return the chance of *reproduced* for normal units with an effect in standard deviations."""
    return verdicts(("", [rule(test)], iid("normal", effect)), n, draws)[REPRODUCED]


def scorecards(draws: int, claims: int = 80) -> list[tuple[str, float]]:
    """Return how often a scorecard of claims without effect has a p value below 0.025."""
    rng = np.random.default_rng(0)
    smallest = []
    for _ in range(draws):
        x = parts(0.3, *[0.0] * claims)(rng, 1, 5)[0]
        p = np.array([decide(T, units).p for units in x])
        holm, bh = np.transpose(adjusted(p))
        smallest.append([p.min(), holm.min(), bh.min()])
    rates = (np.array(smallest) <= ALPHA).mean(0)
    return list(zip(("p", "Holm", "Benjamini-Hochberg"), rates, strict=True))


def main() -> int:
    """Print the tables of the page."""

    def show(head: str, columns: Sequence, rows: Sequence[tuple[str, Sequence[str]]]) -> None:
        print(f"| {head} | " + " | ".join(map(str, columns)) + " |")
        print("|---" * (len(columns) + 1) + "|")
        for name, cells in rows:
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        print()

    def percent(number: float) -> str:
        return "not offered" if np.isnan(number) else f"{100 * number:.1f}"

    heads = [f"n = {n}" for n in UNITS]
    rows = ((row[0], [percent(coverage(row, n)) for n in UNITS]) for row in COVERAGE)
    show("Coverage of 95% intervals, %", heads, rows)

    def wrong(row: tuple, n: int) -> str:
        rates = verdicts(row, n)
        if not rates:
            return "not offered"
        return "; ".join(f"{100 * rates[v]:.1f}" for v in (REPRODUCED, PARTLY, NOT_REPRODUCED))

    rows = ((row[0], [wrong(row, n) for n in UNITS]) for row in ERRORS)
    show("*Reproduced*; *partly*; *not reproduced*, %", heads, rows)

    effects = (0.5, 1.0, 2.0, 3.0)
    rows = (
        (f"{test}, effect {effect}", [percent(power(test, effect, n) or np.nan) for n in UNITS])
        for test, effect in itertools.product(("t", "sign", "permutation"), effects)
    )
    show("*Reproduced*, %, by effect in standard deviations", heads, rows)

    def least(test: str, n: int) -> str:
        x = np.random.default_rng(0).normal(size=n)
        shown = decide(rule(test), (x - x.mean()) / x.std(ddof=1)).detectable
        return f"{shown:.2f}" if shown else "not offered"

    rows = ((test, [least(test, n) for n in UNITS]) for test in ("t", "sign"))
    show("Least effect shown at 80% power, in standard deviations", heads, rows)

    rows = ((name, [percent(rate)]) for name, rate in scorecards(DRAWS // 20))
    show("80 correlated claims without effect: some below 0.025, % of scorecards", ["n = 5"], rows)
    return 0
