"""The tests of a similarity metric, against SciPy and by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, spearmanr

from replication.papers import grounding


def grid(values, networks=2, layers=3):
    """Return the tidy grid of a function of (first, layer, second, other)."""
    axes = [range(networks), range(layers)] * 2
    index = pd.MultiIndex.from_product(axes, names=["first", "layer", "second", "other"])
    rows = index.to_frame(index=False).assign(metric="m")
    return rows.assign(value=[values(*key) for key in index])


@pytest.mark.parametrize(
    ("values", "accuracy", "specificity"),
    [
        (lambda a, i, b, j: -abs(i - j), [1, 1], [1, 1]),
        (lambda a, i, b, j: -abs(i - j) + 5 * (a == i == 0) * j, [2 / 3, 1], [2 / 3, 1]),
        # within a network every layer is itself: it must not be looked at
        (lambda a, i, b, j: 9.0 * (i == j) if a == b else i != j, [0, 0], [0, 0]),
        (lambda a, i, b, j: 1.0, [1 / 3, 1 / 3], [0.5, 0.5]),  # ties count in part
    ],
)
def test_identification_counts_layers_that_find_themselves(values, accuracy, specificity):
    rows = grounding.identification(grid(values))
    assert list(rows.seed) == [0, 1]
    assert list(rows.accuracy) == pytest.approx(accuracy)
    assert list(rows.specificity) == pytest.approx(specificity)


def test_detection_is_where_the_distance_passes_that_of_seeds():
    kept = np.arange(1, 10)
    deleted = pd.DataFrame({"layer": "a", "width": 10, "kept": kept, "value": kept / 10})
    assert grounding.detection(deleted, {"a": 0.35}) == pytest.approx(0.4)
    assert grounding.detection(deleted, {"a": 0.95}) == 1
    assert grounding.detection(deleted, {"a": -1.0}) == pytest.approx(0.1)
    both = pd.concat([deleted, deleted.assign(layer="b")])
    assert grounding.detection(both, {"a": 0.35, "b": 0.95}) == pytest.approx(0.7)


def population(n=30, noise=0.5, seed=0):
    """Return similarities and functionality of representations on a line, blurred."""
    source = np.random.default_rng(seed)
    does = source.random(n)
    distance = np.abs(does[:, None] - does) + noise * source.random((n, n))
    return 1 - (distance + distance.T) / 2, does


def test_rank_correlations_are_those_of_scipy():
    values, does = population()
    best = does.argmax()
    others = np.arange(30) != best
    x, y = 1 - values[best, others], does[best] - does[others]
    result = grounding.with_reference(values, does, np.arange(30))
    for name, statistic in (("rho", spearmanr(x, y)), ("tau", kendalltau(x, y))):
        assert result[name] == pytest.approx(statistic.statistic)
        assert result[f"{name}_low"] < result[name] < result[f"{name}_high"]
    each = [
        spearmanr(1 - np.delete(values[i], i), np.abs(does[i] - np.delete(does, i))).statistic
        for i in range(30)
    ]
    assert grounding.every_reference(values, does) == pytest.approx(np.mean(each))


def test_weights_are_repeats_and_ties_share_a_rank():
    source = np.random.default_rng(0)
    x, y = source.random((2, 12)).round(1)
    weights = source.integers(0, 3, 12)
    drawn = np.repeat(np.arange(12), weights)
    for mine, other in (
        (grounding.kendall, kendalltau),
        (grounding.weighted_spearman, spearmanr),
    ):
        expected = other(x[drawn], y[drawn]).statistic
        assert mine(x, y, weights[None].astype(float))[0] == pytest.approx(expected)
    assert grounding.kendall(x, y)[0] == pytest.approx(kendalltau(x, y).statistic)
    assert grounding.spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)


def test_a_metric_that_knows_is_told_from_one_that_does_not():
    values, does = population(noise=0.1)
    knows = grounding.with_reference(values, does, np.arange(30))
    shuffled = np.random.default_rng(1).permutation(does)
    not_so = grounding.with_reference(values, shuffled, np.arange(30))
    assert knows["p"] < 1e-3 < 0.05 < not_so["p"]
    assert knows["rho_low"] > 0.5 > not_so["rho_high"]


def test_networks_are_drawn_whole():
    values, does = population(10)
    alone = grounding.with_reference(values, does, np.arange(10))
    index = np.repeat(np.arange(10), 4)  # four copies of each network say nothing new
    copies = grounding.with_reference(values[np.ix_(index, index)], does[index], index)
    assert copies["rho_high"] - copies["rho_low"] > 0.6 * (alone["rho_high"] - alone["rho_low"])


def test_influence_values_average_to_the_correlation():
    values, does = population()
    network = np.repeat(np.arange(10), 3)
    own = grounding.by_network(values, does, network)
    assert len(own) == 10 and own.std() > 0
    assert own.mean() == pytest.approx(grounding.every_reference(values, does))
    # 0 counts for more than 9 where the correlation is lower without it
    without = [grounding.every_reference(values[k, k], does[k]) for k in (slice(3, 30), slice(27))]
    assert own[0] - own[9] == pytest.approx(9 * (without[1] - without[0]))
    assert np.isnan(grounding.by_network(values[:6, :6], does[:6], network[:6])).all()


def test_a_constant_functionality_has_no_correlation():
    values, _ = population(8)
    result = grounding.with_reference(values, np.ones(8), np.arange(8))
    assert math.isnan(result["rho"]) and math.isnan(result["tau"]) and math.isnan(result["p"])
    assert np.isnan(grounding.by_network(values, np.ones(8), np.arange(8))).all()


def test_holm_is_the_step_down_method():
    assert grounding.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert grounding.holm([0.6, math.nan, 0.9])[[0, 2]] == pytest.approx([1, 1])
    assert math.isnan(grounding.holm([0.6, math.nan])[1])


def test_the_benchmark_takes_representations_in_the_order_of_their_functionality():
    values, does = population(12)
    keys = [(i, "a") for i in range(12)]
    table = grid(lambda a, i, b, j: values[a, b], 12, 1).assign(layer="a", other="a")
    shuffled = table.sample(frac=1, random_state=0)
    rows, influence, similarities = grounding.benchmark(
        {"task": shuffled}, {"task": dict(zip(keys, does, strict=True))}, ["absent", "m"]
    )
    assert np.array_equal(similarities["task", "m"], values)
    assert influence["task"]["m"].mean() == pytest.approx(rows.every[0])
    assert rows.every[0] == grounding.every_reference(values, does)
    assert rows.every_low[0] < rows.every[0] < rows.every_high[0]
    assert len(rows) == 1 and rows.p_holm[0] == rows.p[0]
