"""The statistics of Z1 to Z8, A1 and A2 on made-up tables: each verdict must come out both ways."""

import inspect
import math

import numpy as np
import pandas as pd
import pytest
from _settling import settle_all

from replication.papers import _random_labels as per_seed
from replication.papers import random_labels
from replication.papers.random_labels import (
    ALEXNET,
    CLAIMS,
    FEATURES,
    GAUSSIAN,
    KERNEL,
    KINDS,
    PIXELS,
    RANDOM,
    SHUFFLED,
    TRUE,
)

SEEDS = (0, 1, 2, 3)
WIGGLE = (0.0, 0.01, -0.01, 0.005)
BUDGET = 100
TIMES = {TRUE: 10, SHUFFLED: 15, GAUSSIAN: 30, PIXELS: 40, RANDOM: 60}
FLAGS = ("crop", "weight_decay", "dropout", "batch_norm")
MODELS = ("mlp", "small_inception", ALEXNET)


def curve(kind, fit, start=None, budget=BUDGET):
    """Return a run whose train loss leaves ln 10 at `start` and that fits at `fit`, NaN: never."""
    start = 0.6 * fit if start is None else start
    epochs = np.arange(0, (budget if math.isnan(fit) else fit) + 1)
    loss = np.where(epochs < start, math.log(10), 0.5)
    accuracy = np.where(epochs >= fit, 1.0, 0.5)
    columns = {"kind": kind, "epoch": epochs, "train_loss": loss, "train_accuracy": accuracy}
    return pd.DataFrame(columns)


def regularised(model, labels, crop, weight_decay, dropout, batch_norm, wiggle):
    """Return a run where regularisers bring little and dropout hinders memorisation."""
    test = 0.8 + 0.03 * crop + 0.02 * weight_decay - 0.01 * dropout + 0.04 * batch_norm
    failing = (model == ALEXNET and weight_decay) or dropout
    random = labels == RANDOM
    return {
        "train_accuracy": 0.4 + wiggle if random and failing else 1.0,
        "test_accuracy": (0.1 if random else test) + wiggle * (1 + crop),
    }


def world(
    times=lambda kind, seed: TIMES[kind] + seed,
    start=None,
    level=lambda p, seed: {},
    regular=lambda run, seed: {},
    error=lambda n, seed: 1e-9 * n,
    interpolant=lambda method, seed: {},
    path=lambda step, seed: {},
    learning=lambda labels, seed: 0.9 if labels == TRUE else 0.1,
    seeds=SEEDS,
):
    """Return the tables of a world in which every claim but those changed holds."""
    tables = {name: [] for name in inspect.signature(random_labels.statistics).parameters}
    for s in seeds:
        w = WIGGLE[s]
        for kind in KINDS:
            tables["curves"].append(curve(kind, times(kind, s), start).assign(seed=s))
        for model in MODELS:
            for p in (0.0, 0.25, 0.5, 0.75, 1.0):
                run = {"train_accuracy": 1.0, "epochs_to_fit": 10 + 50 * p}
                run |= {"test_error": 0.2 + 0.7 * p + w} | level(p, s)
                tables["corruption"].append(run | {"seed": s, "model": model, "fraction": p})
            for labels in (TRUE, RANDOM):
                for bits in range(16):
                    flags = [bool(bits >> i & 1) for i in range(4)]
                    if flags[3] and model == "mlp":
                        continue
                    run = dict(zip(FLAGS, flags, strict=True))
                    run |= {"model": model, "labels": labels, "seed": s}
                    run |= regularised(model, labels, *flags, w)
                    tables["regularisers"].append(run | regular(run, s))
        for n in (100, 1000):
            tables["theorem"].append({"seed": s, "n": n, "error": error(n, s), "condition": 1e9})
        for dataset, base in (("mnist", 0.03), ("cifar10", 0.5)):
            for n in (500, 1000):
                run = {"seed": s, "dataset": dataset, "n": n}
                at = {"error": base * 1000 / n + w / 10, "norm": 200.0}
                better = {"error": at["error"] - 0.02, "norm": 300.0 + s}
                at, better = at | interpolant(KERNEL, s), better | interpolant(FEATURES, s)
                tables["kernel"] += [
                    run | {"method": KERNEL, "ridge": 0.0} | at,
                    run | {"method": FEATURES, "ridge": 0.0} | better,
                    run | {"method": FEATURES, "ridge": 1.0, "error": 0.99, "norm": 1.0},
                    run | {"method": "linear", "ridge": 0.0, "error": 0.99, "norm": 1e9},
                ]
        for step, distance in ((0, 1.0), (10, 0.5), (1000, 1e-5)):
            run = {"seed": s, "step": step, "distance": 3 * distance, "outside": 1e-15, "norm": 3.0}
            tables["descent"].append(run | path(step, s))
        source = np.random.default_rng(s)
        for labels in (TRUE, RANDOM):
            easy = source.random(500) < 0.5
            for repeat in range(2):
                own = source.random(500) < learning(labels, s)
                right = np.where(own, easy, source.random(500) < 0.5)
                columns = {"example": range(500), "correct": right}
                run = pd.DataFrame(columns).assign(seed=s, labels=labels, repeat=repeat)
                tables["learning"].append(run)
    return {
        name: pd.concat(rows) if isinstance(rows[0], pd.DataFrame) else pd.DataFrame(rows)
        for name, rows in tables.items()
    }


def settle(tables):
    return settle_all(CLAIMS, random_labels.statistics(**tables))


def verdicts(tables):
    return {name: settled.verdict for name, settled in settle(tables).items()}


def test_claims_are_z1_to_z8_and_the_qualification():
    assert [claim.id for claim in CLAIMS] == [*(f"Z{i}" for i in range(1, 9)), "A1", "A2"]
    assert {claim.paper[:6] for claim in CLAIMS} == {"Zhang ", "Arpit "}


def test_all_claims_hold_in_a_world_made_for_them():
    assert verdicts(world()) == {claim.id: "reproduced" for claim in CLAIMS}


def random_only(**columns):
    return lambda p, s: columns if p == 1 else {}


def when(condition, **columns):
    """Change the columns of the regularised runs that `condition` holds for, a little by seed."""
    return lambda run, s: {k: v + WIGGLE[s] for k, v in columns.items()} if condition(run) else {}


def bare(run):
    return not (run["crop"] or run["weight_decay"] or run["dropout"])


# claim, the part that decides (from 0), and what is otherwise in that world
OTHER_WORLDS = [
    ("Z1", 0, {"level": random_only(train_accuracy=0.9925)}),
    ("Z1", 1, {"level": lambda p, s: {"test_error": 0.7 + WIGGLE[s]} if p == 1 else {}}),
    ("Z2", 0, {"times": lambda kind, s: 50 + s if kind == TRUE else TIMES[kind]}),
    ("Z2", 1, {"times": lambda kind, s: 90 + s if kind == PIXELS else TIMES[kind]}),
    ("Z2", 2, {"start": 2}),
    ("Z3", 0, {"level": lambda p, s: {"train_accuracy": 0.98} if p == 0.5 else {}}),
    ("Z3", 1, {"level": lambda p, s: {"epochs_to_fit": 90 - 50 * p + s}}),
    ("Z3", 2, {"level": lambda p, s: {"test_error": 0.9 - 0.5 * p * (1 - p) + WIGGLE[s]}}),
    ("Z3", 3, {"level": lambda p, s: {"test_error": 0.2 + 0.4 * p + WIGGLE[s]}}),
    ("Z4", 0, {"regular": when(lambda r: not bare(r), test_accuracy=0.99)}),
    ("Z4", 1, {"regular": when(lambda r: bare(r) and not r["batch_norm"], test_accuracy=0.5)}),
    ("Z5", 0, {"regular": when(lambda r: r["crop"], train_accuracy=0.7)}),
    ("Z5", 1, {"regular": lambda r, s: {"train_accuracy": 1.0}}),
    ("Z6", 0, {"error": lambda n, s: 0.02 if n == 1000 else 0.0}),
    ("Z7", 0, {"interpolant": lambda m, s: {"error": 0.8 + WIGGLE[s] - 0.1 * (m == FEATURES)}}),
    ("Z7", 1, {"interpolant": lambda m, s: {"error": 0.3 + (m == FEATURES) * (0.1 + WIGGLE[s])}}),
    ("Z7", 2, {"interpolant": lambda m, s: {"norm": 200.0 - (100 + s) * (m == FEATURES)}}),
    ("Z8", 0, {"path": lambda step, s: {"distance": 0.1} if step == 1000 else {}}),
    ("Z8", 1, {"path": lambda step, s: {"outside": 1e-3} if step == 10 else {}}),
    ("A1", 0, {"learning": lambda labels, s: 0.1 if labels == TRUE else 0.9}),
    (
        "A2",
        0,
        {"regular": lambda r, s: {"train_accuracy": 0.9 + (0.05 + WIGGLE[s]) * r["dropout"]}},
    ),
    ("A2", 1, {"regular": when(lambda r: r["dropout"] and r["labels"] == TRUE, test_accuracy=0.7)}),
]


@pytest.mark.parametrize(("name", "part", "changed"), OTHER_WORLDS)
def test_each_part_of_each_claim_is_refuted_where_it_does_not_hold(name, part, changed):
    settled = settle(world(**changed))[name]
    assert settled.verdict == settled.parts[part].verdict == "not reproduced"


def test_two_seeds_settle_nothing():
    assert set(verdicts(world(seeds=(0, 1))).values()) == {"inconclusive"}
    for name, part, changed in OTHER_WORLDS:
        settled = settle(world(seeds=(0, 1), **changed))[name]
        assert settled.parts[part].verdict == "inconclusive"


def test_seeds_that_disagree_settle_nothing():
    swing = [0.3, -0.3, 0.25, -0.25]
    tables = world(
        learning=lambda labels, s: 0.5 + (swing[s] if labels == TRUE else 0),
        interpolant=lambda m, s: {"error": 0.3 + (m == FEATURES) * swing[s]},
    )
    found = settle(tables)
    assert found["A1"].verdict == found["Z7"].verdict == "inconclusive"


def test_bounds_that_may_be_reached_count_as_reached():
    tables = world(level=lambda p, s: {"train_accuracy": 0.993 if p == 1 else 0.99})
    assert verdicts(tables)["Z1"] == verdicts(tables)["Z3"] == "reproduced"
    assert random_labels.unfitted(tables["corruption"]).empty


# ------------------------------------------------------------------ runs that never fit


def test_random_labels_that_are_not_fitted_count_against_the_claims():
    never = {"train_accuracy": 0.6, "epochs_to_fit": math.nan}
    tables = world(level=lambda p, s: never if p == 1 and s == 2 else {})
    found = settle(tables)
    assert found["Z1"].verdict == found["Z3"].verdict == "not reproduced"
    assert found["Z3"].parts[1].verdict == "reproduced"  # slower they are
    assert len(random_labels.unfitted(tables["corruption"])) == len(MODELS)


def test_a_run_that_diverged_has_not_fitted():
    tables = world(level=lambda p, s: {"train_accuracy": math.nan} if p == 1 and s == 2 else {})
    assert verdicts(tables)["Z1"] == verdicts(tables)["Z3"] == "not reproduced"
    assert len(random_labels.unfitted(tables["corruption"])) == len(MODELS)


def times_of(**changed):
    named = {"true": TRUE, "random": RANDOM, "pixels": PIXELS, "gaussian": GAUSSIAN}
    return TIMES | {named[name]: time for name, time in changed.items()}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, (math.log2(1.5), math.log2(1.5))),
        ({"random": math.nan}, (math.log2(1.5), math.log2(100 / 40))),  # at least
        ({"pixels": math.nan}, (math.log2(1.5), math.log2(60 / 100))),  # at most
        ({"pixels": math.nan, "random": math.nan}, (math.log2(1.5), math.nan)),  # open
        ({"true": math.nan}, (math.log2(15 / 100), math.log2(1.5))),
        # open between pixels and labels, but Gaussian images refute it anyway
        ({"pixels": math.nan, "random": 20}, (math.log2(1.5), math.log2(20 / 100))),
    ],
)
def test_order_of_times_to_fit_with_runs_that_never_fit(changed, expected):
    rows = pd.concat([curve(kind, time) for kind, time in times_of(**changed).items()])
    after_true, after_noise, _ = per_seed.order_of_times(rows)
    assert (after_true, after_noise) == pytest.approx(expected, nan_ok=True)


def test_a_run_that_broke_off_early_says_nothing_about_later_times():
    rows = [curve(kind, time) for kind, time in TIMES.items() if kind != RANDOM]
    rows = pd.concat([*rows, curve(RANDOM, math.nan, start=1, budget=5)])
    after_true, after_noise, _ = per_seed.order_of_times(rows)
    assert math.isnan(after_true) and math.isnan(after_noise)


@pytest.mark.parametrize(
    ("fit", "start", "expected"),
    [
        (60, 45, 0.25),
        (math.nan, 20, 0.8),  # more than that: against the claim
        (math.nan, 80, math.nan),  # more than 0.2: open
        (math.nan, 1000, math.nan),  # never started
    ],
)
def test_share_of_the_time_that_fitting_takes(fit, start, expected):
    found = per_seed._share_of_fitting(curve(RANDOM, fit, start))
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([5, 6, 7, 8], 1.0),
        ([5, 6, math.nan, math.nan], 5 / math.sqrt(6 * 5)),  # the last two tie: tau-b
        ([math.nan, 6, 7, 8], 0.0),  # 3 pairs up, 3 down
        ([5, 5, 5, 5], 0.0),
        ([math.nan] * 4, math.nan),
    ],
)
def test_slowing_with_runs_that_never_fit(times, expected):
    rows = pd.DataFrame({"fraction": [0, 0.3, 0.6, 1], "epochs_to_fit": times, "model": "mlp"})
    found = per_seed.levels(rows.assign(train_accuracy=1.0, test_error=0.9))
    assert found[1:3] == pytest.approx((expected, 0.0), nan_ok=True)


# ------------------------------------------------------------------ the numbers themselves


def test_statistics_are_the_ones_their_rules_name():
    found = random_labels.statistics(**world())
    first = {name: [v[0] for v in values] for name, values in found.items() if len(values) < 4}
    assert first["Z1"] == pytest.approx([1.0, 0.0])
    assert first["Z2"] == pytest.approx([math.log2(1.5), math.log2(1.5), 0.4])
    assert [v[0] for v in found["Z3"]] == pytest.approx([1.0, 1.0, 1.0, 0.0])
    assert first["Z4"] == pytest.approx([0.05, 0.04])
    assert first["Z5"] == pytest.approx([1.0, 0.4])
    assert found["Z6"] == pytest.approx([1e-6] * 4)
    assert first["Z7"] == pytest.approx([0.5 / 0.9, -0.02, math.log2(1.5)])
    assert first["Z8"] == pytest.approx([1e-5, 1e-15 / 3])
    assert found["A1"] == pytest.approx([0.8] * 4, abs=0.15)
    assert first["A2"] == pytest.approx([0.6 - 0.01, 0.01])


def test_each_claim_has_a_series_a_rule():
    found = random_labels.statistics(**world())
    for claim in CLAIMS:
        series = found[claim.id] if isinstance(claim.rule, tuple) else [found[claim.id]]
        assert [len(values) for values in series] == [len(SEEDS)] * len(claim.rules)


def test_what_was_not_run_is_undefined_and_leaves_the_claim_open():
    tables = world()
    runs = tables["regularisers"]
    tables["regularisers"] = runs[(runs.model == "mlp") & ~runs.crop].astype({"dropout": object})
    tables["kernel"] = tables["kernel"][tables["kernel"].method == KERNEL]
    tables["curves"] = tables["curves"][tables["curves"].kind != SHUFFLED]
    tables["corruption"] = tables["corruption"][tables["corruption"].fraction == 0.5]
    tables["learning"] = tables["learning"][tables["learning"].labels == TRUE]
    settled = settle(tables)
    for name, part in (("Z4", 1), ("Z5", 1), ("Z7", 1), ("Z2", 0), ("Z1", 0), ("Z3", 1)):
        assert settled[name].verdict == settled[name].parts[part].verdict == "inconclusive"
    assert settled["A1"].verdict == "inconclusive"
    assert settled["Z4"].parts[0].verdict == settled["A2"].verdict == "reproduced"


def test_only_the_largest_n_and_no_ridge_count_for_kernels():
    rows = world()["kernel"]
    expected = per_seed.interpolants(rows[rows.seed == 0])
    few = rows[(rows.seed == 0) & (rows.n == 1000) & (rows.ridge == 0)]
    assert per_seed.interpolants(few) == expected
    with pytest.raises(ValueError, match="uplicate"):
        per_seed.interpolants(pd.concat([few, few]))


def test_time_to_fit_is_the_first_epoch_at_99_percent():
    history = pd.DataFrame({"epoch": [0, 5, 10, 15], "train_accuracy": [0.1, 0.98, 0.99, 0.97]})
    assert random_labels.time_to_fit(history) == 10
    assert math.isnan(random_labels.time_to_fit(history[:2]))


def test_gain_of_early_stopping():
    early = pd.DataFrame(
        {
            "seed": [0, 0, 1, 1],
            "batch_norm": [True, False] * 2,
            "best": [0.8, 0.7, 0.8, 0.7],
            "final": [0.8, 0.6, 0.75, 0.7],
        }
    )
    found = random_labels.early_stopping_gain(early)
    np.testing.assert_allclose(found[True], [0, 0.05], atol=1e-12)
    np.testing.assert_allclose(found[False], [0.1, 0], atol=1e-12)
