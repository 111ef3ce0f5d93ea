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


def verdict(values, *args, **more):
    return settle(claim(rule(*args, **more)), values, **WHERE).verdict


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
    assert verdict(offset + up, ">", offset, test) == R
    assert verdict(offset - up, ">", offset, test) == N
    assert verdict(offset + up, "<", offset, test) == N
    assert verdict(offset - up, "<", offset, test) == R


@pytest.mark.parametrize("test", sorted(UNDECIDED))
@pytest.mark.parametrize("direction", "<>")
def test_values_on_both_sides_are_inconclusive(test, direction):
    assert verdict(UNDECIDED[test], direction, 0.0, test) == X


@pytest.mark.parametrize("direction", "<>")
def test_every_is_refuted_by_one_seed(direction):
    assert verdict([1.0, 2.0, -0.1], direction, 0.0, "every") == N


def test_every_takes_a_value_on_the_threshold_for_the_other_side():
    found = settle(claim(rule(">", 0.0, "every")), [0.0, 1.0, 2.0], **WHERE)
    assert (found.verdict, found.value, found.interval) == (N, 0.0, (0.0, 2.0))


def test_every_gives_the_worst_value_of_either_direction():
    assert settle(claim(rule("<", 9.0, "every")), [1.0, 3.0, 2.0], **WHERE).value == 3.0
    assert settle(claim(rule(">", 0.0, "every")), [1.0, 3.0, 2.0], **WHERE).value == 1.0


def test_an_interval_that_just_touches_the_threshold_is_inconclusive():
    low, high = settle(claim(rule()), [1.0, 2.0, 3.0], **WHERE).interval
    assert verdict([1.0, 2.0, 3.0], ">", low) == X
    assert verdict([1.0, 2.0, 3.0], ">", np.nextafter(low, -9.0)) == R
    assert verdict([1.0, 2.0, 3.0], ">", high) == X
    assert verdict([1.0, 2.0, 3.0], ">", np.nextafter(high, 9.0)) == N


# --- closed forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("direction", "<>")
def test_t_interval_equals_the_formula(direction, confidence):
    v = np.array([0.3, 0.5, 0.4, 0.75])
    half = stats.t.ppf((1 + confidence) / 2, 3) * v.std(ddof=1) / math.sqrt(4)
    found = settle(claim(rule(direction, confidence=confidence)), v, **WHERE)
    assert found.value == pytest.approx(v.mean(), rel=1e-14)
    assert found.interval == pytest.approx((v.mean() - half, v.mean() + half), rel=1e-13)


def test_t_interval_of_nearly_equal_values_is_accurate():
    # the textbook formula loses the spread in the offset; the deviations are multiples of 2**-20
    v = 2.0**30 + np.array([0.0, 1.0, 2.0]) * 2.0**-20
    low, high = settle(claim(rule(threshold=2.0**30)), v, **WHERE).interval
    half = stats.t.ppf(0.975, 2) / math.sqrt(3) * 2.0**-20
    assert high - low == pytest.approx(2 * half, rel=0.06)  # half an ulp of 2**30 is 2**-23


@pytest.mark.parametrize("k", range(8))
def test_sign_interval_is_clopper_pearson(k):
    n = 7
    values = [1.0] * k + [-1.0] * (n - k)
    found = settle(claim(rule(test="sign")), values, **WHERE)
    low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = stats.beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    assert found.value == pytest.approx(k / n)
    assert found.interval == pytest.approx((low, high), abs=1e-9)
    assert found.verdict == (R if low > 0.5 else N if high < 0.5 else X)


@pytest.mark.parametrize("n", range(1, 10))
def test_unanimous_signs_agree_with_the_binomial_test(n):
    found = settle(claim(rule(test="sign", minimum_seeds=1)), [1.0] * n, **WHERE)
    assert (found.verdict == R) == (stats.binomtest(n, n).pvalue <= 0.05) == (n >= 6)
    assert ("cannot decide" in found.note) == (n < 6)


def test_sign_leaves_out_ties():
    tied = settle(claim(rule(test="sign")), [0.0, 0.0, *UP["sign"]], **WHERE)
    assert (tied.value, tied.verdict, tied.seeds) == (1.0, R, 8)
    assert "2 of 8 values tie" in tied.note
    nothing = settle(claim(rule(test="sign")), [0.0] * 8, **WHERE)
    assert (nothing.value, nothing.interval, nothing.verdict) == (None, None, X)


def test_bootstrap_repeats_and_is_close_to_the_t_interval_for_many_values():
    v = np.random.default_rng(0).normal(1.0, 1.0, 400)
    one, two = (settle(claim(rule(test="bootstrap")), v, **WHERE).interval for _ in range(2))
    assert one == two
    assert one == pytest.approx(settle(claim(rule()), v, **WHERE).interval, abs=0.01)


# --- error rates -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 5])
def test_false_verdicts_of_t_are_as_rare_as_the_confidence_says(n):
    draws, rng = 2000, np.random.default_rng(n)
    c = claim(rule(threshold=0.7))
    found = [settle(c, v, **WHERE).verdict for v in rng.normal(0.7, 2.0, (draws, n))]
    low, high = stats.binom.ppf([0.0005, 0.9995], draws, 0.025)
    assert low <= found.count(R) <= high
    assert low <= found.count(N) <= high


def test_false_reproduced_of_two_parts_needs_no_correction_but_not_reproduced_has_none():
    draws, rng = 1500, np.random.default_rng(1)
    c = claim(rule(), rule())
    found = [settle(c, v, **WHERE).verdict for v in rng.normal(0.0, 1.0, (draws, 2, 4))]
    assert found.count(R) <= stats.binom.ppf(0.9995, draws, 0.025)
    assert found.count(N) <= stats.binom.ppf(0.9995, draws, 2 * 0.025)
    assert found.count(N) > stats.binom.ppf(0.975, draws, 0.025)


# --- properties --------------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3))
series = st.lists(numbers, min_size=3, max_size=9)


@settings(max_examples=60, deadline=None)
@given(series, numbers, st.sampled_from(TESTS), st.sampled_from("<>"))
def test_mirrored_data_give_the_mirrored_interval_and_the_same_verdict(v, c, test, direction):
    other = {"<": ">", ">": "<"}[direction]
    one = settle(claim(rule(direction, c, test)), v, **WHERE)
    two = settle(claim(rule(other, -c, test)), [-x for x in v], **WHERE)
    assert one.verdict == two.verdict
    if test == "sign":  # a share of seeds, which the mirror leaves as it is
        assert (one.value, one.interval) == (two.value, two.interval)
    else:
        turned = two.interval and (-two.interval[1], -two.interval[0])
        assert (one.value, one.interval) == (-two.value, turned)


@settings(max_examples=60, deadline=None)
@given(series, numbers, st.sampled_from(TESTS), st.randoms())
def test_the_order_of_the_seeds_does_not_matter(v, c, test, random):
    shuffled = random.sample(v, len(v))
    one, two = (settle(claim(rule(">", c, test)), x, **WHERE) for x in (v, shuffled))
    assert (one.value, one.interval, one.verdict) == (two.value, two.interval, two.verdict)


@settings(max_examples=60, deadline=None)
@given(series, numbers, st.sampled_from(("t", "sign", "every")))
def test_a_claim_and_its_opposite_are_never_both_reproduced(v, c, test):
    found = {verdict(v, ">", c, test), verdict(v, "<", c, test)}
    assert found != {R}
    if test != "every":
        assert found in ({R, N}, {X}) or (found == {N} and len(set(v)) == 1)


@settings(max_examples=60, deadline=None)
@given(series, numbers)
def test_a_seed_at_the_mean_narrows_the_t_interval(v, c):
    one = settle(claim(rule(">", c)), v, **WHERE)
    two = settle(claim(rule(">", c)), [*v, one.value], **WHERE)
    slack = 1e-9 * (1 + max(map(abs, v)))
    assert one.interval[0] - slack <= two.interval[0] <= two.interval[1]
    assert two.interval[1] <= one.interval[1] + slack


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=6), st.sampled_from(TESTS))
def test_any_finite_values_give_finite_results_without_warnings(v, test):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = settle(claim(rule(">", 0.0, test, minimum_seeds=2)), v, **WHERE)
    assert found.value is None or math.isfinite(found.value)
    assert found.interval is None or all(map(math.isfinite, found.interval))


# --- NaN, no spread, few seeds -----------------------------------------------------------------


@pytest.mark.parametrize("test", ["t", "sign", "bootstrap"])
@pytest.mark.parametrize("hole", [math.nan, None])
def test_undefined_seeds_are_dropped_and_counted(test, hole):
    found = settle(claim(rule(test=test)), [hole, *UP[test], hole], note="seen", **WHERE)
    without = settle(claim(rule(test=test)), UP[test], **WHERE)
    assert (found.value, found.interval, found.verdict) == (without.value, without.interval, R)
    assert (found.seeds, found.parts[0].dropped) == (len(UP[test]), 2)
    assert found.note.startswith("seen; the statistic is undefined for 2 of ")


def test_an_undefined_seed_keeps_every_from_being_reproduced_not_from_being_refuted():
    assert verdict([1.0, 1.0, 1.0, math.nan], ">", 0.0, "every") == X
    assert verdict([1.0, 1.0, -1.0, math.nan], ">", 0.0, "every") == N


def test_all_undefined_is_inconclusive():
    for test in TESTS:
        found = settle(claim(rule(test=test)), [math.nan] * 4, **WHERE)
        assert (found.verdict, found.value, found.interval, found.seeds) == (X, None, None, 0)
        assert ours(found.as_dict()) == "undefined"


@pytest.mark.parametrize("test", ["t", "bootstrap", "every"])
def test_equal_values_have_an_interval_without_width(test):
    found = settle(claim(rule(test=test)), [0.1] * 5, **WHERE)
    assert (found.value, found.interval, found.verdict) == (0.1, (0.1, 0.1), R)
    assert verdict([-0.1] * 5, ">", 0.0, test) == N
    assert verdict([0.1] * 5, ">", 0.1, test) == N
    assert verdict([0.1] * 5, "<", 0.1, test) == N


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("sign", [1, -1])
def test_too_few_seeds_are_inconclusive_and_say_so(test, sign):
    values = sign * np.array(UP[test])
    found = settle(claim(rule(test=test, minimum_seeds=len(values) + 1)), values, **WHERE)
    assert found.verdict == X
    assert f"at least {len(values) + 1} needed" in found.note
    enough = settle(claim(rule(test=test, minimum_seeds=len(values))), values, **WHERE)
    assert enough.verdict == (R if sign > 0 else N)


def test_the_bootstrap_needs_five_values_and_t_two():
    found = settle(claim(rule(test="bootstrap")), [1.0, 1.1, 0.9, 1.2], **WHERE)
    assert (found.verdict, found.interval) == (X, None) and "at least 5 needed" in found.note
    found = settle(claim(rule(minimum_seeds=1)), [1.0], **WHERE)
    assert (found.verdict, found.value, found.interval) == (X, 1.0, None)
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
    found = settle(claim(rule(), rule()), values, **WHERE)
    alone = settle(claim(rule()), values[deciding], **WHERE)
    assert found.verdict == expected
    assert (found.value, found.interval, found.seeds) == (alone.value, alone.interval, 3)
    assert ours(found.as_dict()).endswith(f"(part {deciding + 1} of 2)")


def test_parts_may_have_different_seeds_and_say_which_is_short():
    found = settle(claim(rule(), rule("<", 9.0)), [GOOD, [1.0, 2.0]], **WHERE)
    assert found.verdict == X
    assert found.note == "part 2: 2 seeds with a value, at least 3 needed"


def test_a_tuple_of_one_rule_takes_one_series():
    found = settle(Claim("B1", "p", "s", (rule(),)), [GOOD], **WHERE)
    assert found.verdict == R


# --- bad input ---------------------------------------------------------------------------------


def test_a_rule_is_read_as_it_is_written():
    assert Rule.read("a > b < 0.25", "every") == Rule("a > b", "<", 0.25, "every")
    assert Rule.read("a > -0.02") == Rule("a", ">", -0.02)
    for text in ("a", "a = 1", "> 1"):
        with pytest.raises(ValueError, match="text: expected 'statistic > threshold'"):
            Rule.read(text)


@pytest.mark.parametrize(
    ("change", "named"),
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
def test_a_bad_rule_is_refused(change, named):
    with pytest.raises(ValueError, match=named):
        Rule(**({"statistic": "x", "direction": ">", "threshold": 0.0} | change))


@pytest.mark.parametrize("name", ["id", "paper", "statement", "rule", "paper_value"])
def test_a_bad_claim_is_refused(name):
    good = {"id": "B1", "paper": "p", "statement": "s", "rule": rule(), "paper_value": "1"}
    with pytest.raises(ValueError, match=f"^{name} is"):
        Claim(**(good | {name: () if name == "rule" else ""}))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ([], r"shape \(0,\)"),
        (3.0, r"shape \(\)"),
        ([[1.0, 2.0]], r"shape \(1, 2\)"),
        ([1.0, math.inf, 2.0], "holds inf"),
        ([1.0, -math.inf, math.nan], "holds -inf"),
        ("123", r"shape \(\)"),
    ],
)
def test_bad_values_are_refused(values, named):
    with pytest.raises(ValueError, match=f"values of claim B1.* {named}"):
        settle(claim(rule()), values, **WHERE)


def test_bad_values_of_several_rules_are_refused():
    two = claim(rule(), rule())
    with pytest.raises(ValueError, match="has 3 series; expected 2"):
        settle(two, [1.0, 2.0, 3.0], **WHERE)
    with pytest.raises(ValueError, match=r"part 1 has shape \(\)"):
        settle(two, [1.0, 2.0], **WHERE)
    with pytest.raises(ValueError, match="has 1 series; expected 2"):
        settle(two, [GOOD], **WHERE)
    with pytest.raises(ValueError, match=r"part 2 has shape \(0,\)"):
        settle(two, [GOOD, []], **WHERE)
