"""Rules, verdicts and intervals, from the numbers of the units."""

import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks import statistics as simulated
from replication.claims import Claim, Gate, Rule, inference, seen, settle, settle_all
from replication.claims.rule import combine, decide

R, P, N, X = "reproduced", "partly", "not reproduced", "inconclusive"
CLOSED = "not testable at this scale"
WHERE = {"dataset": "MNIST", "profile": "full", "notebook": "04_noise_svd_mnist"}
SIX = [1.0, 1.1, 0.9, 1.2, 0.8, 1.05]


def rule(test="t", smallest=None, **more):
    return Rule("rise", smallest, "made up" if smallest else "", test, **more)


def claim(*rules, **more):
    return Claim("B1", "Novak et al. 2018", "it rises", rules if rules[1:] else rules[0], **more)


def verdict(values, *args, **more):
    return decide(rule(*args, **more), values).verdict


@pytest.mark.parametrize("test", ["t", "sign", "permutation"])
def test_an_effect_is_judged_by_its_sign_and_by_its_size(test):
    up = np.array(SIX)
    cases = [(up, R, R, N), (-up, N, N, N), (up + 3, R, R, X), (up - 1, X, N, N)]
    cases += [(4 * (up - 1.01) - 0.35, X, X, N)]  # below 0.5, and below -0.5 too
    for values, direction_only, half, five in cases:  # up lies within 4.1 by equivalence
        assert verdict(values, test) == direction_only
        assert verdict(values, test, 0.5) == half
        assert verdict(values, test, 4.1) == five
    assert verdict(up + 9, test, 4.1) == R


def test_the_same_is_shown_within_and_refuted_outside_never_by_a_lack_of_difference():
    for turn in (1, -1):
        near, far = turn * np.array([0.01, 0.02, 0.0]), turn * np.array(SIX)
        assert verdict(near, "equivalence", 0.1) == R
        assert verdict(far, "equivalence", 0.1) == N
        assert verdict(far, "equivalence", 1.0) == X
    noisy = [1.0, -1.0, 0.2]
    assert verdict(noisy, "equivalence", 0.1) == verdict(noisy, "t") == X


def test_a_direction_may_say_how_little_is_no_effect():
    near, more = np.array([0.01, -0.02, 0.0]), {"source": "made up", "none": 0.1}
    assert verdict(near, "t") == X
    assert decide(Rule("rise", **more), near).verdict == N
    assert decide(Rule("rise", **more), near + 0.06).verdict == R  # little, but above 0
    assert "within ±0.1 (made up) there is no effect" in str(Rule("rise", **more))
    for wrong in ({"none": 0.1}, more | {"none": 0.0}, more | {"smallest": 0.2}):
        with pytest.raises(ValueError, match=r"none is|source is"):
            Rule("rise", **wrong)


def test_a_share_is_compared_with_its_bar():
    assert verdict([1] * 20, "share", 0.8) == R  # all alike, and still a share: 0.83 to 1
    assert verdict([1] * 19 + [0], "share", 0.8) == X
    assert verdict([0] * 20, "share", 0.2) == N
    for values in ([0.5] * 20, {"a": [1] * 20}):
        with pytest.raises(ValueError, match="expected 0 or 1 a unit"):
            decide(rule("share", 0.5), values)


def test_every_value_counts_and_an_undefined_one_does_not_agree():
    part = decide(rule("every"), [1.0, 2.0, 0.1])
    assert (part.verdict, part.value, part.interval) == (R, 0.1, (0.1, 2.0))
    assert verdict([1.0, 0.0], "every") == verdict([1.0, -1.0, math.nan], "every") == N
    assert verdict([1.0, math.nan], "every") == X
    assert verdict([1.0, 0.4], "every", 0.5) == N and verdict([0.6], "every", 0.5) == R


@pytest.mark.parametrize("test", ["t", "correlation", "sign", "permutation", "equivalence"])
@pytest.mark.parametrize("value", [0.3, 0.1 + 0.2, -0.3, 0.0])
def test_nothing_is_decided_without_a_spread(test, value):
    values = [value] * 19 + [value * (1 + 2e-16)]
    part = decide(rule(test, 0.9), values)
    assert (part.verdict, part.interval, part.p) == (X, None, None)
    assert part.value == pytest.approx(value) and "no spread" in part.reason


@pytest.mark.parametrize(("test", "fewest"), [*inference.FEWEST.items()][:6])
def test_too_few_units_decide_nothing_and_the_reason_says_so(test, fewest):
    values = [1.0] * fewest if test == "share" else list(np.linspace(0.89, 0.91, fewest))
    assert verdict(values, test, 0.99 if test == "equivalence" else 0.1) == R
    few = decide(rule(test, 0.1), values[1:])
    assert few.verdict == X and f"the rule asks for {fewest}" in few.reason
    assert verdict(values, test, 0.1, minimum=fewest + 1) == X
    holes = [*values, math.nan, None]
    assert decide(rule(test, 0.1), holes).dropped == 2
    assert decide(rule(test, 0.1), [*values[1:], math.nan]).verdict == X
    assert decide(rule(test, 0.1), [math.nan]).value is None


def test_inconclusive_says_what_could_have_been_shown():
    values = np.array([1.0, -1.0, 0.2, 0.5])
    part = decide(rule("t", 0.3), values)
    error = values.std(ddof=1) / 2
    df, critical = 3, stats.t.ppf(0.975, 3)
    power = stats.nct.sf(critical, df, (part.detectable - 0.3) / error)
    assert power == pytest.approx(0.8, abs=1e-6)
    assert part.reason == f"4 units could have shown {part.detectable:.2g}"
    same = decide(rule("equivalence", 0.3), values)
    assert "could have shown equivalence within" in same.reason
    assert stats.nct.sf(critical, df, same.detectable / error) == pytest.approx(0.9, abs=1e-6)
    for test, value in (("sign", 1.38), ("permutation", 1.0)):  # in standard deviations
        x = np.random.default_rng(0).normal(size=10)
        part = decide(rule(test), (x - x.mean()) / x.std(ddof=1))
        assert part.detectable == pytest.approx(value, abs=0.01)
        reached = simulated.power(test, part.detectable, 10, 500)
        assert reached == pytest.approx(0.8, abs=0.06)


def test_t_is_that_of_scipy_and_accurate_far_from_zero():
    values = [0.3, 0.5, 0.4, 0.75]
    result, part = stats.ttest_1samp(values, 0.1, alternative="greater"), decide(rule(), values)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert part.interval == pytest.approx((low, high), rel=1e-12)
    assert decide(rule("t", 0.1), values).p == pytest.approx(result.pvalue, rel=1e-10)
    far = 2.0**30 + np.array([0.0, 1.0, 2.0]) * 2.0**-20  # the textbook formula loses the spread
    low, high = inference.on_scale(inference.student, far).interval
    assert high - low == pytest.approx(2 * 4.3027 / math.sqrt(3) * 2.0**-20, rel=0.06)


def logit(x):
    return np.log(x / (1 - x)) / 2


SCALES = {(-1.0, 1.0): (np.arctanh, np.tanh), (-1.0, None): (np.log1p, np.expm1)}
SCALES[0.0, 1.0] = logit, lambda z: 1 / (1 + np.exp(-2 * z))


@pytest.mark.parametrize("ends", SCALES)
def test_a_range_is_a_log_or_logit_scale_and_fishers_for_correlations(ends):
    to, back = SCALES[ends]
    values = np.array([0.3, 0.5, 0.4, 0.75])
    ours = decide(rule("t", 0.2, range=ends), values)
    plain = decide(rule("t"), to(values) - to(0.2))
    moved = [back(z + to(0.2)) for z in (plain.value, *plain.interval)]
    assert (ours.value, *ours.interval) == pytest.approx(moved)
    assert ours.p == pytest.approx(plain.p)
    if ends == (-1.0, 1.0):
        per_unit = decide(rule("correlation", 0.2), values)
        assert (per_unit.interval, per_unit.p) == (ours.interval, ours.p)


def test_one_correlation_is_that_of_scipy_and_ranks_are_wider():
    x = np.random.default_rng(0).normal(size=(2, 24))
    x[1] += x[0]
    known = stats.pearsonr(*x)
    given = {"r": known.statistic, "n": 24}
    part, ranked = (decide(rule("correlation", 0.1), v) for v in (given, given | {"rank": True}))
    assert part.interval == pytest.approx(known.confidence_interval(), abs=1e-6)
    assert (part.units, part.verdict) == (24, R)
    assert ranked.interval[0] < part.interval[0] < part.interval[1] < ranked.interval[1]
    assert decide(rule("correlation"), {"r": 0.9, "n": 4}).verdict == X
    assert decide(rule("correlation"), given | {"n": 9, "rank": True}).verdict == X
    assert decide(rule("correlation"), {"r": math.nan, "n": 24}).verdict == X


@pytest.mark.parametrize("n", [6, 7, 10, 15])
def test_sign_is_exact_and_its_interval_lies_between_order_statistics(n):
    x = np.sort(np.random.default_rng(n).normal(0.4, 1.0, n))
    part = decide(rule("sign"), x)
    exact = stats.binomtest(int((x > 0).sum()), n, alternative="greater")
    assert part.p == pytest.approx(exact.pvalue) and part.value == pytest.approx(np.median(x))
    wide = stats.quantile_test(x).confidence_interval(0.95)
    assert wide.low <= part.interval[0] < part.interval[1] <= wide.high
    k = list(x).index(wide.low)
    assert part.interval[0] < x[k + 1] and part.interval[1] > x[n - k - 2]
    tied = decide(rule("sign"), [0.0, *np.ones(7), 2.0])  # a tie counts against
    assert tied.p == pytest.approx(stats.binomtest(8, 9, alternative="greater").pvalue)


@pytest.mark.parametrize("n", [6, 10, 13, 18])
def test_permutation_is_that_of_scipy_and_its_interval_inverts_the_test(n):
    x = np.random.default_rng(n).normal(0.3, 1.0, n)
    part = decide(rule("permutation"), x)
    known = stats.permutation_test(
        (x,), np.mean, permutation_type="samples", alternative="greater", rng=0, n_resamples=2**13
    )
    exact = n <= 13  # drawn beyond
    assert part.p == pytest.approx(known.pvalue, abs=1e-12 if exact else 0.02)
    estimate = inference.permutation(x)
    low, high = estimate.interval
    for end, p in ((low, estimate.below), (high, estimate.above)):
        away = 1e-9 if end == low else -1e-9
        assert p(end - away) <= 0.025 < p(end + away)


@pytest.mark.parametrize("k", [0, 1, 13, 20])
def test_share_is_clopper_and_pearsons(k, n=20):
    part = decide(rule("share", 0.4), [1] * k + [0] * (n - k))
    known = stats.binomtest(k, n, 0.4, alternative="greater")
    assert part.p == pytest.approx(known.pvalue)
    exact = stats.binomtest(k, n).proportion_ci(0.95, "exact")
    assert part.interval == pytest.approx((exact.low, exact.high), abs=1e-9)


few = settings(max_examples=60, deadline=None)
series = st.lists(st.floats(-0.98, 0.98).map(lambda x: round(x, 3)), min_size=6, max_size=9)
RANGES = [None, (-1.0, 1.0), (-1.0, None)]
tests = st.sampled_from(["t", "correlation", "sign", "permutation", "equivalence"])


@few
@given(series, tests, st.sampled_from([None, 0.3]), st.sampled_from(RANGES), st.randoms())
def test_neither_order_nor_side_matters_and_interval_p_and_verdict_agree(v, test, bar, ends, rng):
    bar = 0.3 if test == "equivalence" else bar
    one = rule(test, bar, range=ends)
    part, other = decide(one, v), decide(one, rng.sample(v, len(v)))
    mirrored = decide(one, [-x for x in v])
    assert part.verdict == other.verdict
    assert {part.verdict, mirrored.verdict} != {R} or test == "equivalence"
    if part.interval is None:
        return
    low, high = part.interval
    assert -1 <= low <= high <= 1 or ends != (-1.0, 1.0)
    assert low >= -1 or ends is None
    assert part.interval == pytest.approx(other.interval, abs=1e-12)
    assert mirrored.interval == pytest.approx((-high, -low), abs=1e-9) or ends == (-1.0, None)
    if test == "sign":  # exact: at least as strict as its interpolated interval
        assert low >= (bar or 0) - 1e-9 or part.verdict != R
    elif test != "equivalence" and abs(low - (bar or 0)) > 1e-9:
        assert (part.verdict == R) == (low > (bar or 0)) == (part.p <= 0.025)


def test_the_range_binds_the_values_and_its_ends_decide_nothing():
    for values in ([0.5, 1.0, 0.9], {"r": 1.0, "n": 20}):
        part = decide(rule("correlation"), values)
        assert part.verdict == X and "end of its range" in part.reason
    with pytest.raises(ValueError, match=r"lie in \[0.5, 1.1\]; expected \[-1, 1\]"):
        decide(rule("correlation"), [0.5, 1.1, 0.9])


@few
@example([0.0] * 5 + [5e-324], "t")
@example([0.0] * 5 + [1.1125369292536007e-308], "t")
@given(st.lists(st.floats(-1e300, 1e300), min_size=6, max_size=7), tests)
def test_any_finite_values_give_finite_results_without_warnings(v, test):
    if test == "correlation":
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        part = decide(rule(test, 0.5), v)
    assert all(map(math.isfinite, [part.value, *(part.interval or ())]))


def test_clusters_are_averaged_and_do_not_grow_by_repetition():
    means = [1.0, 1.2, 0.9]
    part = decide(rule(), {"a": [0.5, 1.5, None], "b": [1.2] * 9, "c": [0.9], "d": [math.nan]})
    plain = decide(rule(), means)
    assert (part.units, part.dropped) == (3, 2)
    assert (part.interval, part.verdict) == (pytest.approx(plain.interval), plain.verdict)


GATES = [(0.9, None, 0.9, True), (0.9, None, 0.89, False), (None, 0.99, 0.995, False)]
GATES += [(0.1, 0.9, 0.5, True), (0.9, None, None, False), (0.9, None, math.nan, False)]


@pytest.mark.parametrize(("least", "most", "measured", "is_open"), GATES)
def test_a_closed_gate_is_no_verdict_and_shows_what_was_measured(least, most, measured, is_open):
    gated = claim(rule(), gate=Gate("train accuracy", least, most))
    settled = settle(gated, SIX, gate=measured, **WHERE)
    assert settled.verdict == (R if is_open else CLOSED)
    assert (settled.p is None) != is_open and settled.value == pytest.approx(np.mean(SIX))
    assert f"gate {'open' if is_open else 'closed'}: train accuracy at" in settled.note
    assert settled.note.endswith(f"measured {measured}")


UP, DOWN, OPEN = [1.0, 1.1, 0.9], [-1.0, -1.1, -0.9], [1.0, -1.0, 0.2]
WEAK = [1.0, 1.5, 0.7]  # p = 0.022: enough for one part, too little for one of two


PARTS = [([UP, UP], R), ([WEAK, WEAK], R), ([UP, DOWN], P), ([OPEN, UP], P), ([OPEN, WEAK], X)]
PARTS += [([DOWN, DOWN], N), ([DOWN, OPEN], N), ([OPEN, np.negative(WEAK)], X)]
PARTS += [([[math.nan], UP], P), ([OPEN, OPEN, OPEN], X)]


@pytest.mark.parametrize(("series", "expected"), PARTS)
def test_parts_are_combined(series, expected):
    settled = settle(claim(*[rule()] * len(series)), series, **WHERE)
    assert settled.verdict == expected
    assert settled.value == settled.parts[0].value  # the main part, not the weakest
    known = [part.p for part in settled.parts]
    assert settled.p == (None if None in known else max(known))
    assert combine(settled.parts[:1]) == settled.parts[0].verdict


def test_settle_all_takes_what_is_under_the_ids():
    gated = claim(rule(), gate=Gate("accuracy", 0.9))
    (one,) = settle_all([gated], {"B1": UP}, {}, {"B1": 0.95}, scale={"B1": "small"}, **WHERE)
    assert (one.verdict, one.scale, one.fidelity) == (R, "small", "C")
    (one,) = settle_all([gated], {"B1": UP}, {"B1": "seen"}, **WHERE, fidelity="A")
    assert (one.verdict, one.fidelity) == (CLOSED, "A") and one.note.startswith("seen; gate closed")
    assert seen([UP, {"a": [3.0], "b": [1.0]}], "first", "second") == "seen: first 1, second 2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": "z"}, "test is 'z'; expected one of t, correlation"),
        ({"smallest": 0.0, "source": "x"}, "smallest is 0.0"),
        ({"smallest": math.inf, "source": "x"}, "smallest is inf"),
        ({"smallest": 0.1}, "source is ''"),
        ({"test": "equivalence"}, "smallest is None"),
        ({"test": "share"}, "smallest is None"),
        ({"test": "share", "smallest": 1.0, "source": "x"}, "smallest is 1.0"),
        ({"range": (0.0, 1.0)}, "smallest is None"),
        ({"range": (None, 1.0)}, "range is"),
        ({"range": (0.0, 1.0), "test": "equivalence", "smallest": 0.1, "source": "x"}, "range is"),
        ({"skewed": True}, "test is 't'; expected sign, or a half-open range"),
        ({"skewed": True, "range": (-1.0, 1.0)}, "test is 't'"),
    ],
)
def test_a_rule_that_could_not_decide_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rule("rise", **arguments)
    rule("sign", skewed=True), rule("t", skewed=True, range=(-1.0, None))  # may decide


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"id": ""}, "id is ''"),
        ({"rule": ()}, r"rule is \(\)"),
        ({"rule": (rule(), "rise")}, "rule is"),
        ({"kind": "fact"}, "kind is 'fact'; expected one of empirical, sanity, theorem"),
        ({"rule": rule("every")}, "kind is 'empirical'; expected sanity or theorem"),
        ({"status": "sure"}, "status is 'sure'"),
    ],
)
def test_a_claim_says_what_it_lacks(more, message):
    with pytest.raises(ValueError, match=message):
        Claim(**{"id": "B1", "paper": "p", "statement": "s", "rule": rule()} | more)


@pytest.mark.parametrize("values", [[], [[1.0]], 1.0, [1.0, math.inf], {}, {"a": []}, [1e301]])
def test_values_that_are_none_are_refused(values):
    with pytest.raises(ValueError, match="values of claim B1"):
        settle(claim(rule()), values, **WHERE)
    with pytest.raises(ValueError, match="has 3 series; expected 2"):
        settle(claim(rule(), rule()), [UP] * 3, **WHERE)


ROWS = {row[0]: row for row in simulated.ERRORS}
DRAWS = 800
MOST = stats.binom.ppf(0.9999, DRAWS, 0.025) / DRAWS  # of a rate of 2.5%; below 5%


@pytest.mark.parametrize("n", [3, 10])
@pytest.mark.parametrize("name", [name for name in ROWS if "wrong" not in name])
def test_false_verdicts_are_rare(name, n):
    rates = simulated.verdicts(ROWS[name], n, DRAWS)
    assert rates[R] <= MOST < 0.05
    if "two of them large" in name:
        assert rates[P] > 0.9
    else:
        assert rates[P] <= MOST and rates[N] <= MOST


def test_numbers_of_a_cluster_taken_for_units_would_be_wrong_far_too_often():
    (name,) = (name for name in ROWS if "wrong" in name)
    assert simulated.verdicts(ROWS[name], 5, 200)[R] > 0.1


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("row", [r for r in simulated.COVERAGE if "share" not in r[0]])
def test_intervals_cover_93_to_97_percent_or_are_not_offered(row, n):
    draws = 800
    rate = simulated.coverage(row, n, draws)
    slack = 4 * math.sqrt(0.95 * 0.05 / draws)
    if "refused" in row[0]:  # what the refusal is for
        assert rate < 0.93
    elif not math.isnan(rate):
        assert 0.935 - slack <= rate <= 0.955 + slack
    assert not math.isnan(rate) or n < 10


def test_the_page_of_statistics_holds_what_the_script_prints():
    page = (Path(__file__).parent.parent / "docs" / "statistics.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", page, re.M))
    assert {row[0] for row in [*simulated.COVERAGE, *simulated.ERRORS]} <= set(rows)
    assert rows["t, normal"].startswith(f"{100 * simulated.coverage(simulated.COVERAGE[0], 3):.1f}")
