"""The statistics of Z1 to Z8, A1 and A2 on made-up tables: each verdict must come out both ways."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from _settling import settle_all, table

from replication.papers import random_labels as paper
from replication.papers.random_labels import ALEXNET, FEATURES, FLAGS, INCEPTION, KERNEL, KINDS

TRUE, RANDOM, SHUFFLED, PIXELS, GAUSSIAN = KINDS
WIGGLE = (0.0, 0.01, -0.01, 0.005)  # by seed
TIMES = {TRUE: 10, SHUFFLED: 15, GAUSSIAN: 30, PIXELS: 40, RANDOM: 60}
NEVER = {"train_accuracy": 0.6, "epochs_to_fit": math.nan}


def curve(kind, fit, start=None, budget=100, **columns):
    """Return a run whose train loss leaves ln 10 at `start` and that fits at `fit`, NaN: never."""
    start = 0.6 * fit if start is None else start
    epochs = np.arange((budget if math.isnan(fit) else fit) + 1)
    loss = np.where(epochs < start, math.log(10), 0.5)
    accuracy = np.where(epochs >= fit, 1.0, 0.5)
    curve = {"kind": kind, "epoch": epochs, "train_loss": loss, "train_accuracy": accuracy}
    return pd.DataFrame(curve | columns)


def world(seeds=4, times=TIMES, start=None, learning=(0.9, 0.1), **changed):
    """Return the tables of a world in which every claim but those changed holds.

    Regularisers bring little, and dropout hinders memorisation. `learning`: how much of what is
    right early depends on the example, for true and random labels. `changed`: columns by table.
    """
    flags = {flag: [False, True] for flag in [*FLAGS, "batch_norm"]}
    regularisers = table(
        WIGGLE[:seeds], model=["mlp", INCEPTION, ALEXNET], labels=[TRUE, RANDOM], **flags
    )
    regularisers = regularisers[(regularisers.model != "mlp") | ~regularisers.batch_norm]
    gains = {"crop": 0.03, "weight_decay": 0.02, "dropout": -0.01, "batch_norm": 0.04}
    draw = np.random.default_rng(0).random
    examples = table(WIGGLE[:seeds], labels=[TRUE, RANDOM], example=range(500)).assign(
        easy=lambda t: draw(len(t)) < 0.5
    )
    tables = {
        "curves": pd.concat(
            curve(kind, times[kind] + s, start, seed=s) for s in range(seeds) for kind in KINDS
        ),
        "corruption": table(
            WIGGLE[:seeds], model=["mlp", INCEPTION, ALEXNET], fraction=[0, 0.25, 0.5, 0.75, 1]
        ).assign(
            epochs_to_fit=lambda t: 10 + 50 * t.fraction,
            test_error=lambda t: 0.2 + 0.7 * t.fraction + t.w,
        ),
        "regularisers": regularisers.assign(
            random=lambda t: t.labels == RANDOM,
            bare=lambda t: ~t[FLAGS].any(axis=1),
            train_accuracy=lambda t: np.where(
                t.random & (t.dropout | (t.model == ALEXNET) & t.weight_decay), 0.4 + t.w, 1.0
            ),
            test_accuracy=lambda t: np.where(t.random, 0.1, 0.8 + t[[*gains]] @ [*gains.values()])
            + t.w * (1 + t.crop),
        ),
        "theorem": table(WIGGLE[:seeds], n=[100, 1000]).assign(error=lambda t: 1e-9 * t.n),
        "kernel": table(
            WIGGLE[:seeds], dataset=["mnist", "cifar10"], n=[500, 1000], ridge=[0.0, 1.0],
            method=[KERNEL, FEATURES, "linear"],
        ).assign(
            better=lambda t: t.method == FEATURES,
            error=lambda t: t.dataset.map({"mnist": 0.03, "cifar10": 0.5}) * 1000 / t.n
            + t.w / 10 - 0.02 * t.better + 9 * ((t.ridge > 0) | (t.method == "linear")),
            norm=lambda t: 200.0 + (100 + t.seed) * t.better,
        ),
        "descents": table(WIGGLE[:seeds], step=[0, 10, 1000]).assign(
            distance=lambda t: t.step.map({0: 3.0, 10: 1.5, 1000: 3e-5}), outside=1e-15, norm=3.0
        ),
        "learning": examples.merge(pd.DataFrame({"repeat": [0, 1]}), how="cross").assign(
            own=lambda t: draw(len(t)) < np.where(t.labels == TRUE, *learning),
            correct=lambda t: np.where(t.own, t.easy, draw(len(t)) < 0.5),
        ),
    }  # fmt: skip
    return tables | {name: tables[name].assign(**columns) for name, columns in changed.items()}


def settle(tables):
    return settle_all(paper.CLAIMS, paper.statistics(**tables))


def test_all_claims_hold_in_a_world_made_for_them():
    ids = [*(f"Z{i}" for i in range(1, 9)), "A1", "A2"]
    assert [claim.id for claim in paper.CLAIMS] == ids
    verdicts = {id: settled.verdict for id, settled in settle(world()).items()}
    assert verdicts == dict.fromkeys(ids, "reproduced")


def runs(name, column, value, where):
    """Return a world where runs that fulfil a condition have other values."""
    return {name: {column: lambda t: t[column].mask(t.eval(where), value(t))}}


def near(value):
    return lambda t: value + t.w


# claim, the part that decides (from 0), and what is otherwise in that world
OTHER_WORLDS = [
    ("Z1", 0, runs("corruption", "train_accuracy", lambda t: 0.9925, "fraction == 1")),
    ("Z1", 1, runs("corruption", "test_error", near(0.7), "fraction == 1")),
    ("Z2", 0, {"times": TIMES | {TRUE: 50}}),
    ("Z2", 1, {"times": TIMES | {PIXELS: 90}}),
    ("Z2", 2, {"start": 2}),
    ("Z3", 0, runs("corruption", "train_accuracy", lambda t: 0.98, "fraction == 0.5")),
    ("Z3", 1, {"corruption": {"epochs_to_fit": lambda t: 90 - 50 * t.fraction + t.seed}}),
    ("Z3", 2, {"corruption": {"test_error": lambda t: 0.9 - t.fraction * (1 - t.fraction) + t.w}}),
    ("Z3", 3, {"corruption": {"test_error": lambda t: 0.2 + 0.4 * t.fraction + t.w}}),
    ("Z4", 0, runs("regularisers", "test_accuracy", near(0.99), "not bare")),
    ("Z4", 1, runs("regularisers", "test_accuracy", near(0.5), "bare and not batch_norm")),
    ("Z5", 0, runs("regularisers", "train_accuracy", near(0.7), "crop")),
    ("Z5", 1, {"regularisers": {"train_accuracy": 1.0}}),
    ("Z6", 0, runs("theorem", "error", lambda t: 0.02, "n == 1000")),
    ("Z7", 0, {"kernel": {"error": lambda t: 0.8 + t.w - 0.1 * t.better}}),
    ("Z7", 1, {"kernel": {"error": lambda t: 0.3 + (0.1 + t.w) * t.better}}),
    ("Z7", 2, {"kernel": {"norm": lambda t: 200.0 - (100 + t.seed) * t.better}}),
    ("Z8", 0, runs("descents", "distance", lambda t: 0.1, "step == 1000")),
    ("Z8", 1, runs("descents", "outside", lambda t: 1e-3, "step == 10")),
    ("A1", 0, {"learning": (0.1, 0.9)}),
    ("A2", 0, {"regularisers": {"train_accuracy": lambda t: 0.9 + (0.05 + t.w) * t.dropout}}),
    ("A2", 1, runs("regularisers", "test_accuracy", near(0.7), "dropout and not random")),
]


@pytest.mark.parametrize(("id", "part", "changed"), OTHER_WORLDS)
def test_each_part_of_each_claim_is_refuted_where_it_does_not_hold(id, part, changed):
    settled = settle(world(**changed))[id]
    assert (
        settled.verdict in ("partly", "not reproduced")
        and settled.parts[part].verdict == "not reproduced"
    )
    assert settle(world(seeds=2, **changed))[id].parts[part].verdict == "inconclusive"


def test_seeds_that_disagree_settle_nothing():
    swing = {0: 0.3, 1: -0.3, 2: 0.25, 3: -0.25}
    error = {"error": lambda t: 0.3 + t.better * t.seed.map(swing)}
    assert settle(world(kernel=error))["Z7"].verdict == "partly"
    assert {settled.verdict for settled in settle(world(seeds=2)).values()} == {"inconclusive"}


def test_bounds_that_may_be_reached_count_as_reached():
    tables = world(corruption={"train_accuracy": lambda t: 0.99 + 0.003 * (t.fraction == 1)})
    settled = settle(tables)
    assert settled["Z1"].verdict == settled["Z3"].verdict == "reproduced"
    assert paper.unfitted(tables["corruption"]).empty


@pytest.mark.parametrize("run", [NEVER, {"train_accuracy": math.nan}], ids=["never", "diverged"])
def test_random_labels_that_are_not_fitted_count_against_the_claims(run):
    tables = world()
    rows = tables["corruption"].query("fraction == 1 and seed == 2").index
    tables["corruption"].loc[rows, [*run]] = [*run.values()]
    settled = settle(tables)
    assert settled["Z1"].verdict == settled["Z3"].verdict == "partly"
    assert settled["Z3"].parts[1].verdict == "reproduced"  # slower they are
    assert len(paper.unfitted(tables["corruption"])) == 3


LATER, PAST_NOISE = math.log2(15 / 10), math.log2(60 / 40)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, (LATER, PAST_NOISE)),
        ({RANDOM: math.nan}, (LATER, math.log2(100 / 40))),  # at least
        ({PIXELS: math.nan}, (LATER, math.log2(60 / 100))),  # at most
        ({PIXELS: math.nan, RANDOM: math.nan}, (LATER, math.nan)),  # open
        ({TRUE: math.nan}, (math.log2(15 / 100), PAST_NOISE)),
        # open between pixels and labels, but Gaussian images refute it anyway
        ({PIXELS: math.nan, RANDOM: 20}, (LATER, math.log2(20 / 100))),
    ],
)
def test_order_of_times_to_fit_with_runs_that_never_fit(changed, expected):
    rows = pd.concat([curve(kind, time) for kind, time in (TIMES | changed).items()])
    assert paper.order_of_times(rows)[:2] == pytest.approx(expected, nan_ok=True)


def test_a_run_that_broke_off_early_says_nothing_about_later_times():
    rows = [curve(kind, time) for kind, time in TIMES.items() if kind != RANDOM]
    rows = pd.concat([*rows, curve(RANDOM, math.nan, start=1, budget=5)])
    assert np.isnan(paper.order_of_times(rows)[:2]).all()


# the last three fail to fit: a share of more than 0.8 is against the claim, more than 0.2 leaves
# it open, and so does a run that never started
SHARES = [(60, 45, 0.25), (math.nan, 20, 0.8), (math.nan, 80, math.nan), (math.nan, 1000, math.nan)]


@pytest.mark.parametrize(("fit", "start", "expected"), SHARES)
def test_share_of_the_time_that_fitting_takes(fit, start, expected):
    share = paper.share_of_fitting(curve(RANDOM, fit, start))
    assert share == pytest.approx(expected, nan_ok=True)


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
    taus = paper.levels(rows.assign(train_accuracy=1.0, test_error=0.9))[1:3]
    assert taus == pytest.approx((expected, 0.0), nan_ok=True)


def test_statistics_are_the_ones_their_rules_name():
    values = paper.statistics(**world())
    expected = {
        "Z1": [1.0, 0.0],
        "Z2": [LATER, PAST_NOISE, 0.4],
        "Z3": [1.0, 1.0, 1.0, 0.0],
        "Z4": [0.05, 0.04],
        "Z5": [1.0, 0.4],
        "Z7": [0.5 / 0.9, -0.02, math.log2(1.5)],
        "Z8": [1e-5, 1e-15 / 3],
        "A2": [0.6 - 0.01, 0.01],
    }
    first = {id: [series[0] for series in values[id]] for id in expected}
    assert first == {id: pytest.approx(numbers) for id, numbers in expected.items()}
    assert values["Z6"] == pytest.approx([1e-6] * 4)
    assert values["A1"] == pytest.approx([0.8] * 4, abs=0.15)


def test_what_was_not_run_is_undefined_and_leaves_the_claim_open():
    tables = world()
    kept = {"regularisers": "model == 'mlp' and not crop", "kernel": f"method == '{KERNEL}'"}
    kept |= {"curves": f"kind != '{SHUFFLED}'", "learning": f"labels == '{TRUE}'"}
    kept |= {"corruption": "fraction == 0.5"}
    tables |= {name: tables[name].query(rows) for name, rows in kept.items()}
    tables["regularisers"] = tables["regularisers"].astype({"dropout": object})
    settled = settle(tables)
    for id, part in (("Z4", 1), ("Z5", 1), ("Z7", 1), ("Z2", 0), ("Z1", 0), ("Z3", 1), ("A1", 0)):
        assert settled[id].verdict != "reproduced"
        assert settled[id].parts[part].verdict == "inconclusive"
    assert settled["Z4"].parts[0].verdict == settled["A2"].verdict == "reproduced"
    largest = world()["kernel"].query("seed == 0 and n == 1000 and ridge == 0")
    with pytest.raises(ValueError, match="uplicate"):
        paper.interpolants(pd.concat([largest, largest]))


def test_time_to_fit_is_the_first_epoch_at_99_percent():
    history = pd.DataFrame({"epoch": [0, 5, 10, 15], "train_accuracy": [0.1, 0.98, 0.99, 0.97]})
    assert paper.time_to_fit(history) == 10
    assert math.isnan(paper.time_to_fit(history[:2]))


def test_plan_trains_every_condition_once():
    specs = paper.plan("smoke", "mnist5k")["train"].specs
    assert len({str(spec) for spec in specs}) == len(specs)
    assert {(s["fraction"], s["kind"]) for s in specs} > set(product([0.0, 1.0], [""]))
    longer = {s["epochs"] for s in specs if s["model"] == ALEXNET and s["crop"] and s["fraction"]}
    assert longer == {4 * paper.SETTINGS["smoke"]["epochs"]}
