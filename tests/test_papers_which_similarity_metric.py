"""Notebook 07: each verdict on made-up tables must come out both ways."""

import functools
import math

import numpy as np
import pandas as pd
import pytest
from _settling import settle_all

from replication.papers import which_similarity_metric as paper
from replication.papers.which_similarity_metric import CLAIMS, SUBTASKS

SEEDS = range(5)
SANITY = ["CKA linear", "regression", *paper.CCA]
SMALL = 1e-4  # what seeds differ by, below the least threshold
# Tables, by the values of their columns, in which every claim holds; then other values of a column:
# table, the rows that have them, column, value as an expression of the other columns.
AXES = {
    "sanity": {"family": ["convnet", "transformer"], "metric": SANITY},
    "sensitivity": {"metric": ["CKA linear", "CCA, missing 0"]},
    "width": {"width": [0.25, 0.5, 1.0], "depth": range(1, 9)},
    "depth": {"depth": [10, 66], "layer": range(1, 64)},
    "tasks": {"kind": ["same task", "other task", "untrained"], "depth": range(1, 9)},
    "few": {
        "examples": [20, 500],
        "kind": ["matched", "shuffled"],
        "metric": ["CCA ρ", "CKA linear", "CKA debiased"],
    },
    "moved": {
        "change": ["subset", "one example"],
        "metric": ["CKA linear", "probe"],
        "distance": [0, 50],
    },
}
WORLD = [
    ("sanity", "", "accuracy", "0.15"),
    ("sanity", "metric == 'CKA linear'", "accuracy", "0.95"),
    ("sanity", "metric == 'regression'", "accuracy", "0.5"),
    ("sanity", "family == 'transformer' and metric in ['PWCCA', 'CCA ρ']", "accuracy", "0.85"),
    ("sanity", "", "specificity", "0.6"),
    ("sanity", "metric == 'CKA linear'", "specificity", "0.98"),
    ("sensitivity", "", "unnoticed", "0.8"),
    ("sensitivity", "metric != 'CKA linear'", "unnoticed", "0.3"),
    ("width", "", "value", "0.95 - 0.05 * depth + 0.01 * width * (1 + depth)"),
    ("depth", "", "value", "0.5"),
    ("depth", "(depth == 66 and layer > 20) or (depth == 10 and layer == 7)", "value", "0.9"),
    # The input makes up most of what trained and untrained share, little of the rest.
    ("tasks", "", "cka", "0.9"),
    ("tasks", "kind == 'other task'", "cka", "0.88 - 0.05 * depth"),
    ("tasks", "kind == 'untrained'", "cka", "0.4"),
    ("tasks", "", "deconfounded", "cka - 0.05"),
    ("tasks", "kind == 'untrained'", "deconfounded", "cka - 0.3"),
    ("few", "", "value", "0.0"),  # must not be looked at but for the fewest examples
    ("few", "examples == 20 and metric == 'CCA ρ'", "value", "1.0"),
    ("few", "examples == 20 and metric != 'CCA ρ' and kind == 'matched'", "value", "0.6"),
    ("few", "examples == 20 and metric == 'CKA linear' and kind == 'shuffled'", "value", "0.5"),
    ("moved", "", "value", "1.0"),
    ("moved", "metric == 'probe'", "value", "0.6"),
    ("moved", "metric != 'probe' and distance == 50", "value", "0.2"),
]
INFLUENCE = {"Procrustes": 0.5, "CKA linear": 0.4, "PWCCA": 0.54, "CCA ρ": 0.3, "regression": 0.2}


def changed(tables, changes):
    source, tables = np.random.default_rng(0), {name: t.copy() for name, t in tables.items()}
    for name, where, column, value in changes:
        rows = tables[name]
        chosen = rows.eval(where) if where else np.ones(len(rows), bool)
        numbers = pd.Series(rows.eval(value), rows.index)  # also where `value` is a number
        rows.loc[chosen, column] = numbers[chosen] + SMALL * source.normal(size=chosen.sum())
    return tables


@functools.cache
def tables_of(seeds):
    product = {
        name: pd.MultiIndex.from_product([seeds, *axes.values()], names=["seed", *axes])
        for name, axes in AXES.items()
    }
    return changed({name: index.to_frame(index=False) for name, index in product.items()}, WORLD)


def world(changes=(), benchmark=lambda subtask, metric: INFLUENCE[metric], seeds=SEEDS):
    source = np.random.default_rng(0)
    influence = {
        subtask: {
            m: benchmark(subtask, m) + 0.01 * source.normal(size=count if len(seeds) > 2 else 2)
            for m in INFLUENCE
        }
        for subtask, count in SUBTASKS.items()
    }
    return changed(tables_of(seeds), changes) | {"benchmark": influence}


def settle(tables):
    return settle_all(CLAIMS, paper.statistics(**tables))


def test_all_claims_hold_in_a_world_made_for_them():
    verdicts = {name: item.verdict for name, item in settle(world()).items()}
    assert verdicts == {claim.id: "reproduced" for claim in CLAIMS}


# claim, the part that decides (from 0), and what is otherwise in that world
ONE = "examples == 20 and kind == '{}' and metric == '{}'"
OTHER_WORLDS = [
    ("K1", 0, "sanity", "metric == 'CKA linear'", "accuracy", "0.4"),
    ("K1", 1, "sanity", "metric == 'SVCCA ρ' and family == 'convnet'", "accuracy", "0.8"),
    ("K2", 0, "depth", "depth == 66 and layer < 41 + seed % 2", "value", "0.5"),
    ("K2", 1, "depth", "depth == 10 and layer > seed % 2", "value", "0.9"),
    ("K3", 0, "width", "", "value", "0.9 - 0.05 * depth - 0.05 * width"),
    ("K3", 1, "width", "", "value", "0.5 + 0.05 * depth + 0.05 * width"),
    ("K4", 0, "tasks", "kind == 'untrained'", "cka", "0.95"),
    ("K4", 1, "tasks", "kind == 'other task'", "cka", "0.5 + 0.03 * depth"),
    ("K5", 0, "few", ONE.format("shuffled", "CCA ρ"), "value", "0.7"),
    ("K5", 1, "few", ONE.format("matched", "CKA debiased"), "value", "0.05"),
    *(
        ("K6", part, "sanity", f"metric == '{metric}' and family == 'convnet'", "accuracy", "0.95")
        for part, metric in enumerate(("CCA ρ", "PWCCA"))
    ),
    ("K6", 2, "sanity", "metric == 'PWCCA' and family == 'transformer'", "accuracy", "0.6"),
    ("D1", 0, "sanity", "metric == 'CCA ρ'", "specificity", "0.99"),
    ("D1", 1, "sensitivity", "metric != 'CKA linear'", "unnoticed", "0.9"),
    ("D1", 2, "sensitivity", "metric == 'CKA linear'", "unnoticed", "0.4"),
    ("DA1", 0, "moved", "change == 'subset' and metric != 'probe'", "value", "0.9"),
    ("DA1", 1, "moved", "metric == 'probe' and distance == 50", "value", "0.5"),
    ("DA1", 2, "moved", "change != 'subset'", "value", "0.9"),
    ("CU1", 0, "tasks", "", "deconfounded", "cka + 0.1"),
    ("CU1", 1, "tasks", "kind == 'same task'", "deconfounded", "cka - 0.6"),
    ("MU1", 0, "few", ONE.format("shuffled", "CKA linear"), "value", "0.05"),
    ("MU1", 1, "few", ONE.format("shuffled", "CKA debiased"), "value", "-0.3"),
]


@pytest.mark.parametrize(("name", "part", "change"), [(n, p, c) for n, p, *c in OTHER_WORLDS])
def test_each_part_is_refuted_where_it_does_not_hold(name, part, change):
    item = settle(world([change]))[name]
    assert item.verdict in ("partly", "not reproduced")
    assert item.parts[part].verdict == "not reproduced", item.parts


@pytest.mark.parametrize(("part", "led"), list(enumerate(SUBTASKS)))
def test_procrustes_far_behind_in_one_subtask_refutes_d2_and_a_good_metric_d3(part, led):
    settled = settle(world(benchmark=lambda s, m: 0.9 if (s, m) == (led, "CCA ρ") else 0.5))
    verdicts = [item.verdict for item in settled["D2"].parts]
    assert verdicts.pop(part) == "not reproduced" and set(verdicts) == {"reproduced"}
    hardest = led == paper.POPULATIONS[0]
    assert settled["D3"].verdict == ("not reproduced" if hardest else "reproduced")


def test_two_networks_or_an_absent_population_settle_nothing():
    assert {i.verdict for i in settle(world(seeds=range(2))).values()} == {"inconclusive"}
    tables = world()
    tables["benchmark"] = {"layers, convnet": tables["benchmark"]["layers, convnet"]}
    settled = settle(tables)
    assert (settled["D2"].verdict, settled["D3"].verdict) == ("partly", "inconclusive")
    assert math.isnan(settled["D3"].parts[0].values[0])
