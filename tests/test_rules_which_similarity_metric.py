"""The statistics of notebook 07 on made-up tables: each verdict must come out both ways."""

import math

import numpy as np
import pandas as pd
import pytest
from _settling import settle_all
from scipy.stats import kendalltau, spearmanr

from replication.papers import _which_similarity_metric as parts
from replication.papers import which_similarity_metric as rules
from replication.papers.which_similarity_metric import CLAIMS, SUBTASKS

SEEDS = (0, 1, 2, 3, 4)
WIGGLE = (0.0, 0.004, -0.004, 0.002, -0.001)
ACCURACY = {
    "convnet": {"CKA linear": 0.95, "regression": 0.5, "PWCCA": 0.2, "CCA ρ": 0.1}
    | dict.fromkeys(("CCA ρ²", "SVCCA ρ", "SVCCA ρ²"), 0.15),
    "transformer": {"CKA linear": 0.97, "regression": 0.9, "PWCCA": 0.9, "CCA ρ": 0.85},
}
BENCHMARK = {"Procrustes": 0.5, "CKA linear": 0.4, "PWCCA": 0.54, "CCA ρ": 0.3, "regression": 0.2}


def nothing(*_):
    return {}


def world(
    accuracy=nothing,
    specificity=nothing,
    unnoticed=nothing,
    width=lambda d, w, s: 0.95 - 0.05 * d + 0.02 * w * (1 + d) / 2,
    depth=lambda d, i, s: 0.9 if (d == 66 and i > 20) or (d == 10 and i > 7) else 0.5,
    cka=nothing,
    few=nothing,
    moved=nothing,
    benchmark=lambda subtask, metric: BENCHMARK[metric],
    seeds=SEEDS,
):
    """Return the tables of a world in which every claim but those changed holds."""
    rows = {name: [] for name in ("sanity", "sensitivity", "width", "depth", "tasks", "few")}
    rows["moved"] = []
    for s in seeds:
        w = WIGGLE[s]
        for family, values in ACCURACY.items():
            special = {"CKA linear": 0.98, "CCA ρ": 0.6}
            for metric, value in (values | accuracy(family)).items():
                own = (special | specificity(s)).get(metric, 0.7) + w
                row = {"family": family, "metric": metric, "seed": s, "specificity": own}
                rows["sanity"].append(row | {"accuracy": value + w})
        missed = {"CKA linear": 0.8, "CCA, missing 0": 0.3} | unnoticed(s)
        for metric, value in missed.items():
            rows["sensitivity"].append({"seed": s, "metric": metric, "unnoticed": value + w})
        for d in range(1, 9):
            for factor in (0.25, 0.5, 1.0):
                row = {"seed": s, "width": factor, "depth": d}
                rows["width"].append(row | {"value": width(d, factor, s) + w})
            levels = {"same task": 0.9, "other task": 0.88 - 0.05 * d, "untrained": 0.4} | cka(d)
            # The input makes up most of what trained and untrained share, little of the rest.
            input_is = {"same task": 0.05, "other task": 0.1, "untrained": 0.3} | cka("input")
            for kind, value in levels.items():
                if kind in input_is:
                    left = value - input_is[kind] - w
                    row = {"seed": s, "kind": kind, "depth": d, "cka": value}
                    rows["tasks"].append(row | {"deconfounded": left})
        for d in (10, 66):
            for i in range(1, d - 2):
                rows["depth"].append({"seed": s, "depth": d, "layer": i, "value": depth(d, i, s)})
        numbers = {
            ("CCA ρ", "matched"): 1.0,
            ("CCA ρ", "shuffled"): 1.0,
            ("CKA debiased", "matched"): 0.6 + w,
            ("CKA debiased", "shuffled"): w,
            ("CKA linear", "matched"): 0.7,
            ("CKA linear", "shuffled"): 0.5 + w,
        } | few(s)
        for (metric, kind), value in numbers.items():
            row = {"seed": s, "kind": kind, "metric": metric}
            rows["few"] += [row | {"examples": 20, "value": value}]
            rows["few"] += [row | {"examples": 500, "value": 0.0}]  # must not be looked at
        numbers = {
            ("subset", "CKA linear"): 0.1 + w,
            ("subset", "probe"): 0.6,
            ("one example", "CKA linear"): 0.2 + w,
        } | moved(s)
        for (change, metric), value in numbers.items():
            row = {"seed": s, "change": change, "metric": metric}
            start = 0.6 + w / 10 if metric == "probe" else 1.0
            rows["moved"] += [row | {"distance": 0, "value": start}]
            rows["moved"] += [row | {"distance": 50, "value": value}]
    source = np.random.default_rng(0)
    influence = {}
    for subtask, fewest in SUBTASKS.items():
        members = max(fewest, len(seeds)) if len(seeds) > 2 else len(seeds)
        noise = 0.02 * source.normal(size=members)
        influence[subtask] = {m: benchmark(subtask, m) + noise - noise.mean() for m in BENCHMARK}
        # What a metric has beyond the noise that all share, so that differences have a width.
        for values in influence[subtask].values():
            extra = 0.01 * source.normal(size=members)
            values += extra - extra.mean()
    return {name: pd.DataFrame(values) for name, values in rows.items()} | {"benchmark": influence}


def settle(tables):
    return settle_all(CLAIMS, rules.statistics(**tables))


def test_claims_are_those_of_two_papers_and_three_critics():
    expected = [*(f"K{i}" for i in range(1, 7)), "D1", "D2", "D3", "DA1", "CU1", "MU1"]
    assert [claim.id for claim in CLAIMS] == expected


def test_all_claims_hold_in_a_world_made_for_them():
    verdicts = {name: found.verdict for name, found in settle(world()).items()}
    assert verdicts == {claim.id: "reproduced" for claim in CLAIMS}


def wide(value):
    """Return a change of `few`: other numbers for some of its keys, with the seed's wiggle."""
    return lambda s: {key: number + WIGGLE[s] for key, number in value.items()}


def led(subtask):
    """Return a benchmark in which CCA is far ahead of Procrustes in one subtask."""
    return lambda t, m: 0.9 if (t, m) == (subtask, "CCA ρ") else 0.5


# claim, the part that decides (from 0), and what is otherwise in that world
OTHER_WORLDS = [
    ("K1", 0, {"accuracy": lambda f: {"CKA linear": 0.4}}),
    ("K1", 1, {"accuracy": lambda f: {"SVCCA ρ": 0.8} if f == "convnet" else {}}),
    ("K2", 0, {"depth": lambda d, i, s: 0.9 if d == 66 and i > 40 + s % 2 else 0.5}),
    ("K2", 1, {"depth": lambda d, i, s: 0.9 if d == 10 or i > 20 + s % 2 else 0.5}),
    ("K3", 0, {"width": lambda d, w, s: 0.9 - 0.05 * d - 0.05 * w}),
    ("K3", 1, {"width": lambda d, w, s: 0.5 + 0.05 * d + 0.05 * w + WIGGLE[s] * d}),
    ("K4", 0, {"cka": lambda d: {"untrained": 0.95} if d != "input" else {}}),
    ("K4", 1, {"cka": lambda d: {"other task": 0.5 + 0.03 * d} if d != "input" else {}}),
    ("K5", 0, {"few": wide({("CCA ρ", "shuffled"): 0.7})}),
    ("K5", 1, {"few": wide({("CKA debiased", "matched"): 0.05})}),
    ("K6", 0, {"accuracy": lambda f: {"CCA ρ": 0.95 if f == "convnet" else 0.85}}),
    ("K6", 1, {"accuracy": lambda f: {"PWCCA": 0.95 if f == "convnet" else 0.85}}),
    ("K6", 2, {"accuracy": lambda f: {"PWCCA": 0.6} if f == "transformer" else {}}),
    ("D1", 0, {"specificity": lambda s: {"CCA ρ": 0.99 + WIGGLE[s]}}),
    ("D1", 1, {"unnoticed": lambda s: {"CCA, missing 0": 0.9 + WIGGLE[s]}}),
    ("D1", 2, {"unnoticed": lambda s: {"CKA linear": 0.4}}),
    *(("D2", part, {"benchmark": led(subtask)}) for part, subtask in enumerate(SUBTASKS)),
    ("D3", 0, {"benchmark": lambda t, m: 0.8 if m == "regression" else 0.5}),
    ("DA1", 0, {"moved": lambda s: {("subset", "CKA linear"): 0.9 + WIGGLE[s]}}),
    ("DA1", 1, {"moved": lambda s: {("subset", "probe"): 0.5}}),
    ("DA1", 2, {"moved": lambda s: {("one example", "CKA linear"): 0.9 + WIGGLE[s]}}),
    ("CU1", 0, {"cka": lambda d: {"untrained": -0.1, "same task": -0.3} if d == "input" else {}}),
    ("CU1", 1, {"cka": lambda d: {"same task": 0.6, "untrained": 0.1} if d == "input" else {}}),
    ("MU1", 0, {"few": wide({("CKA linear", "shuffled"): 0.05})}),
    ("MU1", 1, {"few": wide({("CKA debiased", "shuffled"): -0.3})}),
]


@pytest.mark.parametrize(("name", "part", "changed"), OTHER_WORLDS)
def test_each_part_is_refuted_where_it_does_not_hold(name, part, changed):
    found = settle(world(**changed))[name]
    assert found.parts[part].verdict == "not reproduced", found.parts
    assert found.verdict == "not reproduced"


def test_two_networks_settle_nothing():
    verdicts = {name: found.verdict for name, found in settle(world(seeds=(0, 1))).items()}
    # "every" of K5 is no inference, but its second part asks for three networks.
    assert set(verdicts.values()) == {"inconclusive"}


def test_an_absent_population_is_inconclusive():
    tables = world()
    tables["benchmark"] = {"layers, convnet": tables["benchmark"]["layers, convnet"]}
    found = settle(tables)
    assert found["D2"].verdict == found["D3"].verdict == "inconclusive"
    assert math.isnan(found["D3"].parts[0].values[0])


def grid(values, networks=2, layers=3):
    """Return the tidy grid of a function of (first, layer, second, other)."""
    rows = [
        {
            "metric": "m",
            "first": a,
            "layer": i,
            "second": b,
            "other": j,
            "value": values(a, i, b, j),
        }
        for a in range(networks)
        for i in range(layers)
        for b in range(networks)
        for j in range(layers)
    ]
    return pd.DataFrame(rows)


def test_identification_counts_layers_that_find_themselves():
    perfect = rules.identification(grid(lambda a, i, b, j: -abs(i - j)))
    assert perfect[["accuracy", "specificity"]].to_numpy() == pytest.approx(1)
    assert list(perfect.seed) == [0, 1]
    one_wrong = rules.identification(grid(lambda a, i, b, j: -abs(i - j) + 5 * (a == i == 0) * j))
    assert one_wrong.accuracy.tolist() == pytest.approx([2 / 3, 1])
    assert one_wrong.specificity.tolist() == pytest.approx([2 / 3, 1])
    # within a network every layer is itself: it must not be looked at
    fooled = rules.identification(grid(lambda a, i, b, j: 9.0 * (i == j) if a == b else i != j))
    assert fooled.accuracy.tolist() == fooled.specificity.tolist() == [0, 0]


def test_ties_count_in_part():
    found = rules.identification(grid(lambda a, i, b, j: 1.0))
    assert found.accuracy.tolist() == pytest.approx([1 / 3, 1 / 3])
    assert found.specificity.tolist() == [0.5, 0.5]


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
    found = rules.with_reference(values, does, np.arange(30))
    assert found["rho"] == pytest.approx(spearmanr(x, y).statistic)
    assert found["tau"] == pytest.approx(kendalltau(x, y).statistic)
    assert found["rho_low"] < found["rho"] < found["rho_high"]
    assert found["tau_low"] < found["tau"] < found["tau_high"]
    each = [
        spearmanr(1 - np.delete(values[i], i), np.abs(does[i] - np.delete(does, i))).statistic
        for i in range(30)
    ]
    assert rules.every_reference(values, does) == pytest.approx(np.mean(each))
    tied = np.round(does, 1)
    expected = kendalltau(tied, [*x.round(1).tolist(), 0]).statistic
    assert parts.kendall(tied, np.append(x.round(1), 0))[0] == pytest.approx(expected)


def test_weights_are_repeats():
    source = np.random.default_rng(0)
    x, y = source.random((2, 12)).round(1)
    weights = source.integers(0, 3, 12)
    index = np.repeat(np.arange(12), weights)
    expected = kendalltau(x[index], y[index]).statistic
    assert parts.kendall(x, y, weights[None].astype(float))[0] == pytest.approx(expected)
    expected = spearmanr(x[index], y[index]).statistic
    found = parts._weighted_spearman(x, y, weights[None].astype(float))
    assert found[0] == pytest.approx(expected)


def test_a_metric_that_knows_is_told_from_one_that_does_not():
    knows = rules.with_reference(*population(noise=0.1), np.arange(30))
    values, does = population(noise=0.1)
    shuffled = np.random.default_rng(1).permutation(does)
    not_so = rules.with_reference(values, shuffled, np.arange(30))
    assert knows["p"] < 1e-3 < 0.05 < not_so["p"]
    assert knows["rho_low"] > 0.5 > not_so["rho_high"]


def test_influence_values_average_to_the_correlation():
    values, does = population()
    network = np.repeat(np.arange(10), 3)
    found = rules.by_network(values, does, network)
    assert len(found) == 10
    assert found.mean() == pytest.approx(rules.every_reference(values, does))
    assert found.std() > 0
    assert np.isnan(rules.by_network(values[:6, :6], does[:6], network[:6])).all()


def test_a_constant_functionality_has_no_correlation():
    values, _ = population(8)
    found = rules.with_reference(values, np.ones(8), np.arange(8))
    assert math.isnan(found["rho"]) and math.isnan(found["tau"]) and math.isnan(found["p"])
    assert np.isnan(rules.by_network(values, np.ones(8), np.arange(8))).all()


def test_holm_is_the_step_down_method():
    assert rules.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert rules.holm([0.6, math.nan, 0.9])[[0, 2]] == pytest.approx([1, 1])
    assert math.isnan(rules.holm([0.6, math.nan])[1])


def test_detection_is_where_the_distance_passes_that_of_seeds():
    kept = np.arange(1, 10)
    deleted = pd.DataFrame({"layer": "a", "width": 10, "kept": kept, "value": kept / 10})
    assert rules.detection(deleted, {"a": 0.35}) == pytest.approx(0.4)
    assert rules.detection(deleted, {"a": 0.95}) == 1
    assert rules.detection(deleted, {"a": -1.0}) == pytest.approx(0.1)
    both = pd.concat([deleted, deleted.assign(layer="b")])
    assert rules.detection(both, {"a": 0.35, "b": 0.95}) == pytest.approx(0.7)
