"""The tests of an index of similarity, against SciPy and by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from replication.papers import grounding
from replication.papers.grounding import Population


def grid(values, layers=3):
    """Return the tidy grid of a function of (layer, other) for one pair of networks."""
    index = pd.MultiIndex.from_product([range(layers)] * 2, names=["layer", "other"])
    rows = index.to_frame(index=False).assign(metric="m", pair=0)
    return rows.assign(value=[float(values(*key)) for key in index])


@pytest.mark.parametrize(
    ("values", "accuracy", "specificity"),
    [
        (lambda i, j: -abs(i - j), 1, 1),
        (lambda i, j: 1.0, 1 / 3, 1 / 2),  # ties count in part
        (lambda i, j: i != j, 0, 0),
        # row 0 takes column 2; of the columns only 2 has another best
        (lambda i, j: 5.0 * (i == 0 and j == 2) - abs(i - j), 4 / 6, 10 / 12),
    ],
)
def test_identification_counts_layers_that_find_themselves_from_both_sides(
    values, accuracy, specificity
):
    found = grounding.identification(grid(values)).iloc[0]
    assert found.accuracy == pytest.approx(accuracy)
    assert found.specificity == pytest.approx(specificity)


def test_detection_is_where_the_distance_passes_that_of_seeds():
    deleted = np.arange(1, 10) / 10
    cut = pd.DataFrame({"layer": "a", "deleted": deleted, "value": 1 - deleted})
    assert grounding.detection(cut, {"a": 0.35}) == pytest.approx(0.4)
    assert grounding.detection(cut, {"a": 0.95}) == 1
    both = pd.concat([cut, cut.assign(layer="b")])
    assert grounding.detection(both, {"a": 0.35, "b": 0.95}) == pytest.approx(0.7)


def population(n=30, noise=0.5, seed=0, each=3):
    source = np.random.default_rng(seed)
    does = source.random(n)
    distance = np.abs(does[:, None] - does) + noise * source.random((n, n))
    units = np.repeat(np.arange(n // each), each)
    return Population({"m": 1 - distance}, does, units, np.ones(n, bool))


def test_rank_correlations_are_those_of_scipy():
    one = population()
    values, does, best = one.values["m"], one.does, one.does.argmax()
    each = [
        spearmanr(1 - np.delete(values[i], i), np.abs(does[i] - np.delete(does, i))).statistic
        for i in range(30)
    ]
    assert grounding.rank_correlation([one], "m") == pytest.approx(each[best])
    assert grounding.rank_correlation([one], "m", every=True) == pytest.approx(np.mean(each))
    few = one._replace(candidates=np.arange(30) == 4)
    assert grounding.rank_correlation([few], "m") == pytest.approx(each[4])
    assert grounding.rank_correlation([one, few], "m") == pytest.approx((each[best] + each[4]) / 2)
    rest = one.units != 2
    part = Population({"m": values[np.ix_(rest, rest)]}, does[rest], one.units[rest], rest[rest])
    without = grounding.rank_correlation([one], "m", without=2)
    assert without == pytest.approx(grounding.rank_correlation([part], "m"))


def test_the_jackknife_of_a_mean_gives_the_values_themselves():
    values = np.array([0.3, 0.9, 0.1, 0.5])
    found = grounding.jackknife(lambda i: values[np.arange(4) != i].mean(), 4)
    assert found == pytest.approx(values)
    assert np.isnan(grounding.jackknife(lambda i: 1.0, 2)).all()


def test_two_way_intervals_hold_units_and_seeds_both_fixed_to_none():
    one, seeds = population(noise=0.1), np.tile(np.arange(3), 10)
    low, high = grounding.two_way_bootstrap(one, "m", seeds)
    assert 0.5 < low < grounding.rank_correlation([one], "m") < high <= 1
    shuffled = one._replace(does=np.random.default_rng(1).permutation(one.does))
    low, high = grounding.two_way_bootstrap(shuffled, "m", seeds)
    assert low < 0 < high
    assert np.isnan(grounding.two_way_bootstrap(one._replace(does=one.does * 0), "m", seeds)).all()


def test_reliability_is_that_of_both_halves_together():
    first = np.array([0.1, 0.4, 0.5, 0.9])
    assert grounding.reliability(first, first + 1) == pytest.approx(1)
    r = np.corrcoef(first, [0.2, 0.3, 0.7, 0.6])[0, 1]
    found = grounding.reliability(first, [0.2, 0.3, 0.7, 0.6])
    assert found == pytest.approx(2 * r / (1 + r)) and grounding.reliability(first, -first) == -1
    assert math.isnan(grounding.reliability(first, first * 0))
