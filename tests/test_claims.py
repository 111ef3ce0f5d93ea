"""Verdicts and intervals of claims, from the numbers of the seeds."""

import math
import warnings

import numpy as np
import pytest
from _settling import WHERE, claim, rule
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from replication.claims import Claim, Rule, ours, settle

R, N, X = "reproduced", "not reproduced", "inconclusive"
TESTS = ("t", "sign", "bootstrap", "every")


def settled(values, *args, note="", **more):
    return settle(claim(rule(*args, **more)), values, note=note, **WHERE)


def verdict(values, *args, **more):
    return settled(values, *args, **more).verdict


# --- the three verdicts, both ways -------------------------------------------------------------

UP = {
    "t": [1.0, 1.1, 0.9],
    "sign": [0.5, 1.0, 2.0, 0.1, 3.0, 1.5],
    "bootstrap": [1.0, 1.1, 0.9, 1.2, 0.8],
    "every": [1.0, 2.0, 0.1],
}
UNDECIDED = {
    "t": [1.0, -1.0, 0.2],
    "sign": [0.5, 1.0, 2.0, -0.1, -3.0, -1.5],
    "bootstrap": [1.0, -1.0, 0.2, -0.3, 0.1],
}


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("offset", [0.0, 5.0, -5.0])
def test_verdict_turns_with_the_data_and_with_the_direction(test, offset):
    up = np.array(UP[test])
    for turn, direction, expected in ((1, ">", R), (-1, ">", N), (1, "<", N), (-1, "<", R)):
        assert verdict(offset + turn * up, direction, offset, test) == expected


@pytest.mark.parametrize("direction", "<>")
def test_values_on_both_sides_are_inconclusive_and_refute_every(direction):
    for test, values in UNDECIDED.items():
        assert verdict(values, direction, 0.0, test) == X
    assert verdict([1.0, 2.0, -0.1], direction, 0.0, "every") == N


def test_every_gives_the_worst_value_and_takes_the_threshold_for_the_other_side():
    on = settled([0.0, 1.0, 2.0], ">", 0.0, "every")
    assert (on.verdict, on.value, on.interval) == (N, 0.0, (0.0, 2.0))
    assert settled([1.0, 3.0, 2.0], "<", 9.0, "every").value == 3.0
    assert settled([1.0, 3.0, 2.0], ">", 0.0, "every").value == 1.0


def test_an_interval_that_just_touches_the_threshold_is_inconclusive():
    low, high = settled([1.0, 2.0, 3.0]).interval
    assert verdict([1.0, 2.0, 3.0], ">", low) == verdict([1.0, 2.0, 3.0], ">", high) == X
    assert verdict([1.0, 2.0, 3.0], ">", np.nextafter(low, -9.0)) == R
    assert verdict([1.0, 2.0, 3.0], ">", np.nextafter(high, 9.0)) == N


# --- closed forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("direction", "<>")
def test_t_interval_equals_the_formula(direction, confidence):
    v = np.array([0.3, 0.5, 0.4, 0.75])
    half = stats.t.ppf((1 + confidence) / 2, 3) * v.std(ddof=1) / math.sqrt(4)
    result = settled(v, direction, confidence=confidence)
    assert result.value == pytest.approx(v.mean(), rel=1e-14)
    assert result.interval == pytest.approx((v.mean() - half, v.mean() + half), rel=1e-13)


def test_t_interval_of_nearly_equal_values_is_accurate():
    # the textbook formula loses the spread in the offset; the deviations are multiples of 2**-20
    v = 2.0**30 + np.array([0.0, 1.0, 2.0]) * 2.0**-20
    low, high = settled(v, threshold=2.0**30).interval
    half = stats.t.ppf(0.975, 2) / math.sqrt(3) * 2.0**-20
    assert high - low == pytest.approx(2 * half, rel=0.06)  # half an ulp of 2**30 is 2**-23


@pytest.mark.parametrize("k", range(8))
def test_sign_interval_is_clopper_pearson(k, n=7):
    result = settled([1.0] * k + [-1.0] * (n - k), test="sign")
    low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = stats.beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    assert result.value == pytest.approx(k / n)
    assert result.interval == pytest.approx((low, high), abs=1e-9)
    assert result.verdict == (R if low > 0.5 else N if high < 0.5 else X)


@pytest.mark.parametrize("n", range(1, 10))
def test_unanimous_signs_agree_with_the_binomial_test(n):
    result = settled([1.0] * n, test="sign", minimum_seeds=1)
    assert (result.verdict == R) == (stats.binomtest(n, n).pvalue <= 0.05) == (n >= 6)
    assert ("cannot decide" in result.note) == (n < 6)


def test_sign_leaves_out_ties():
    tied = settled([0.0, 0.0, *UP["sign"]], test="sign")
    assert (tied.value, tied.verdict, tied.seeds) == (1.0, R, 8)
    assert "2 of 8 values tie" in tied.note
    nothing = settled([0.0] * 8, test="sign")
    assert (nothing.value, nothing.interval, nothing.verdict) == (None, None, X)


def test_bootstrap_repeats_and_is_close_to_the_t_interval_for_many_values():
    v = np.random.default_rng(0).normal(1.0, 1.0, 400)
    once, again = (settled(v, test="bootstrap").interval for _ in range(2))
    assert once == again == pytest.approx(settled(v).interval, abs=0.01)


# --- error rates -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 5])
def test_false_verdicts_of_t_are_as_rare_as_the_confidence_says(n):
    draws, rng = 2000, np.random.default_rng(n)
    verdicts = [verdict(v, threshold=0.7) for v in rng.normal(0.7, 2.0, (draws, n))]
    low, high = stats.binom.ppf([0.0005, 0.9995], draws, 0.025)
    assert low <= verdicts.count(R) <= high
    assert low <= verdicts.count(N) <= high


def test_false_reproduced_of_two_parts_needs_no_correction_but_not_reproduced_has_none():
    draws, rng = 1500, np.random.default_rng(1)
    two = claim(rule(), rule())
    verdicts = [settle(two, v, **WHERE).verdict for v in rng.normal(0.0, 1.0, (draws, 2, 4))]
    assert verdicts.count(R) <= stats.binom.ppf(0.9995, draws, 0.025)
    assert verdicts.count(N) <= stats.binom.ppf(0.9995, draws, 2 * 0.025)
    assert verdicts.count(N) > stats.binom.ppf(0.975, draws, 0.025)


# --- properties --------------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3))
series = st.lists(numbers, min_size=3, max_size=9)
some = settings(max_examples=60, deadline=None)


@some
@given(series, numbers, st.sampled_from(TESTS), st.sampled_from("<>"), st.randoms())
def test_mirrored_data_mirror_the_interval_and_the_order_does_not_matter(v, c, test, side, random):
    original, shuffled = (settled(x, side, c, test) for x in (v, random.sample(v, len(v))))
    mirror = settled([-x for x in v], {"<": ">", ">": "<"}[side], -c, test)
    value, interval = original.value, original.interval
    assert (shuffled.value, shuffled.interval) == (value, interval)
    assert shuffled.verdict == mirror.verdict == original.verdict
    if test == "sign":  # a share of seeds, which the mirror leaves as it is
        assert (mirror.value, mirror.interval) == (value, interval)
    else:
        assert (mirror.value, mirror.interval) == (
            -value,
            interval and (-interval[1], -interval[0]),
        )


@some
@given(series, numbers, st.sampled_from(("t", "sign", "every")))
def test_a_claim_and_its_opposite_are_never_both_reproduced(v, c, test):
    both = {verdict(v, ">", c, test), verdict(v, "<", c, test)}
    assert both != {R}
    if test != "every":
        assert both in ({R, N}, {X}) or (both == {N} and len(set(v)) == 1)


@some
@given(series, numbers)
def test_a_seed_at_the_mean_narrows_the_t_interval(v, c):
    before = settled(v, ">", c)
    low, high = settled([*v, before.value], ">", c).interval
    slack = 1e-9 * (1 + max(map(abs, v)))
    assert before.interval[0] - slack <= low <= high <= before.interval[1] + slack


@some
@given(st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=6), st.sampled_from(TESTS))
def test_any_finite_values_give_finite_results_without_warnings(v, test):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = settled(v, ">", 0.0, test, minimum_seeds=2)
    assert result.value is None or math.isfinite(result.value)
    assert result.interval is None or all(map(math.isfinite, result.interval))


# --- NaN, no spread, few seeds -----------------------------------------------------------------


@pytest.mark.parametrize("test", ["t", "sign", "bootstrap"])
@pytest.mark.parametrize("hole", [math.nan, None])
def test_undefined_seeds_are_dropped_and_counted(test, hole):
    result = settled([hole, *UP[test], hole], test=test, note="seen")
    without = settled(UP[test], test=test)
    assert (result.value, result.interval, result.verdict) == (without.value, without.interval, R)
    assert (result.seeds, result.parts[0].dropped) == (len(UP[test]), 2)
    assert result.note.startswith("seen; the statistic is undefined for 2 of ")


def test_an_undefined_seed_keeps_every_from_being_reproduced_not_from_being_refuted():
    assert verdict([1.0, 1.0, 1.0, math.nan], ">", 0.0, "every") == X
    assert verdict([1.0, 1.0, -1.0, math.nan], ">", 0.0, "every") == N


@pytest.mark.parametrize("test", TESTS)
def test_all_undefined_is_inconclusive(test):
    result = settled([math.nan] * 4, test=test)
    assert (result.verdict, result.value, result.interval, result.seeds) == (X, None, None, 0)
    assert ours(result.as_dict()) == "undefined"


@pytest.mark.parametrize("test", ["t", "bootstrap", "every"])
def test_equal_values_have_an_interval_without_width(test):
    result = settled([0.1] * 5, test=test)
    assert (result.value, result.interval, result.verdict) == (0.1, (0.1, 0.1), R)
    assert verdict([-0.1] * 5, ">", 0.0, test) == N
    assert verdict([0.1] * 5, ">", 0.1, test) == verdict([0.1] * 5, "<", 0.1, test) == N


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("sign", [1, -1])
def test_too_few_seeds_are_inconclusive_and_say_so(test, sign):
    values = sign * np.array(UP[test])
    result = settled(values, test=test, minimum_seeds=len(values) + 1)
    assert result.verdict == X and f"at least {len(values) + 1} needed" in result.note
    assert verdict(values, test=test, minimum_seeds=len(values)) == (R if sign > 0 else N)


def test_the_bootstrap_needs_five_values_and_t_two():
    four = settled([1.0, 1.1, 0.9, 1.2], test="bootstrap")
    assert (four.verdict, four.interval) == (X, None) and "at least 5 needed" in four.note
    single = settled([1.0], minimum_seeds=1)
    assert (single.verdict, single.value, single.interval) == (X, 1.0, None)
    assert verdict([1.0], ">", 0.0, "every", minimum_seeds=1) == R


# --- several rules -----------------------------------------------------------------------------

GOOD, BAD, OPEN = [1.0, 1.1, 0.9], [-2.0, -2.1, -1.9], [1.0, -1.0, 0.2]


@pytest.mark.parametrize(
    ("values", "expected", "deciding"),
    [
        ((GOOD, GOOD), R, 0),
        ((GOOD, BAD), N, 1),
        ((BAD, GOOD), N, 0),
        ((GOOD, OPEN), X, 1),
        ((OPEN, BAD), N, 1),
        ((BAD, OPEN), N, 0),
        ((OPEN, OPEN), X, 0),
    ],
)
def test_all_parts_must_hold_and_the_one_that_decides_is_shown(values, expected, deciding):
    both = settle(claim(rule(), rule()), values, **WHERE)
    alone = settled(values[deciding])
    assert both.verdict == expected
    assert (both.value, both.interval, both.seeds) == (alone.value, alone.interval, 3)
    assert ours(both.as_dict()).endswith(f"(part {deciding + 1} of 2)")


def test_parts_may_have_different_seeds_and_say_which_is_short():
    both = settle(claim(rule(), rule("<", 9.0)), [GOOD, [1.0, 2.0]], **WHERE)
    assert both.verdict == X
    assert both.note == "part 2: 2 seeds with a value, at least 3 needed"
    assert settle(Claim("B1", "p", "s", (rule(),)), [GOOD], **WHERE).verdict == R


# --- bad input ---------------------------------------------------------------------------------


def test_a_rule_is_read_as_it_is_written():
    assert Rule.read("a > b < 0.25", "every") == Rule("a > b", "<", 0.25, "every")
    assert Rule.read("a > -0.02") == Rule("a", ">", -0.02)
    for text in ("a", "a = 1", "> 1"):
        with pytest.raises(ValueError, match="text: expected 'statistic > threshold'"):
            Rule.read(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": ">="}, "direction is '>='; expected '>' or '<'"),
        ({"threshold": math.nan}, "threshold"),
        ({"threshold": "0"}, "threshold"),
        ({"test": "z"}, "test is 'z'; expected one of t, sign, bootstrap, every"),
        ({"minimum_seeds": 0}, "minimum_seeds"),
        ({"minimum_seeds": 2.5}, "minimum_seeds"),
        ({"confidence": 95}, "confidence"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_a_bad_rule_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Rule(**({"statistic": "x", "direction": ">", "threshold": 0.0} | change))


@pytest.mark.parametrize("name", ["id", "paper", "statement", "rule", "paper_value"])
def test_a_bad_claim_is_refused(name):
    good = {"id": "B1", "paper": "p", "statement": "s", "rule": rule(), "paper_value": "1"}
    with pytest.raises(ValueError, match=f"^{name} is"):
        Claim(**(good | {name: () if name == "rule" else ""}))


TWO = (rule(), rule())


@pytest.mark.parametrize(
    ("rules", "values", "message"),
    [
        ((rule(),), [], r"has shape \(0,\)"),
        ((rule(),), 3.0, r"has shape \(\)"),
        ((rule(),), [[1.0, 2.0]], r"has shape \(1, 2\)"),
        ((rule(),), [1.0, math.inf, 2.0], "holds inf"),
        ((rule(),), [1.0, -math.inf, math.nan], "holds -inf"),
        ((rule(),), "123", r"has shape \(\)"),
        (TWO, [1.0, 2.0, 3.0], "has 3 series; expected 2"),
        (TWO, [1.0, 2.0], r"part 1 has shape \(\)"),
        (TWO, [GOOD], "has 1 series; expected 2"),
        (TWO, [GOOD, []], r"part 2 has shape \(0,\)"),
    ],
)
def test_bad_values_are_refused(rules, values, message):
    with pytest.raises(ValueError, match=f"values of claim B1.*{message}"):
        settle(claim(*rules), values, **WHERE)
