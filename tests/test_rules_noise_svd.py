"""The statistics of B1 to B12 on made-up curves: each verdict must come out both ways."""

import math

import numpy as np
import pandas as pd
import pytest
from _settling import settle_all

from replication.papers import noise_svd_mnist
from replication.papers.noise_svd_mnist import CLAIMS, LAYERS

EPOCHS = np.array([0, 0.5, *range(1, 21)], dtype=float)
SEEDS = (0, 1, 2, 3)
CONVERGED = 6.0  # the test loss of `history` reaches its minimum's neighbourhood here


def approach(start, end, epoch):
    """Return a curve that goes straight from `start` to `end` at `epoch`, then stays."""
    return start + (end - start) * np.minimum(EPOCHS / epoch, 1)


def world(**changed):
    """Return spectra, history and accuracy in which every claim but those changed holds.

    Each function in `changed` gives, for (depth, seed), the curve of that column over EPOCHS.
    """
    wiggle = [1.0, 1.02, 0.98, 1.01]
    curves = {
        # EV1 falls, by less in later layers; what it loses goes to EV2 and the rest
        "ev1": lambda d, s: 0.9 - approach(0, 0.2 - 0.02 * d, 5 + d) * wiggle[s],
        "ev2": lambda d, s: 0.04 + approach(0, 0.1 - 0.01 * d, 5 + d) * wiggle[s],
        "rest": lambda d, s: 0.06 + approach(0, 0.1 - 0.01 * d, 5 + d) * wiggle[s],
        # s1 dips early, returns by convergence, then rises slowly
        "s1": lambda d, s: np.interp(EPOCHS, [0, 1, 6, 20], [1, 0.7, 1, 1.2 * wiggle[s]]),
        "clean_s1": lambda d, s: approach(1, 2 * wiggle[s], 20),
        "clean_s2": lambda d, s: 0 * EPOCHS,
        "pair_ev1": lambda d, s: 0.95 * wiggle[s] ** 0.1,  # true labels
        "random_ev1": lambda d, s: 0.85 * wiggle[s] ** 0.1,
        "train_accuracy": lambda s: 1.0,
        "noisy_accuracy": lambda s: 0.95 - 0.001 * s,
    } | changed
    rows, history, accuracy = [], [], []
    for s in SEEDS:
        for d, layer in enumerate(LAYERS):
            keys = {"seed": s, "layer": layer}
            columns = {c: curves[c](d, s) for c in ("ev1", "ev2", "rest", "s1")}
            clean = {"s1": curves["clean_s1"](d, s), "s2": curves["clean_s2"](d, s)}
            for i, epoch in enumerate(EPOCHS):
                at = keys | {"arm": "protocol", "epoch": epoch}
                rows.append(at | {"sigma": 0.2, "s2": 0.1} | {c: v[i] for c, v in columns.items()})
                rows.append(at | {"sigma": 0.01, "ev1": 0.5, "s1": 7.0})  # must not be looked at
                rows.append(at | {"sigma": 0.0, "ev1": 1.0} | {c: v[i] for c, v in clean.items()})
            for arm, column in (("true labels", "pair_ev1"), ("random labels", "random_ev1")):
                value = curves[column](d, s)
                rows.append(keys | {"arm": arm, "epoch": 0, "sigma": 0.2, "ev1": 0.9})
                rows.append(keys | {"arm": arm, "epoch": 30, "sigma": 0.2, "ev1": value})
        loss = np.interp(EPOCHS, [0, CONVERGED, 20], [2.3, 0.2, 0.21])
        for epoch, value in zip(EPOCHS, loss, strict=True):
            history.append({"arm": "protocol", "seed": s, "epoch": epoch, "test_loss": value})
        fitted = {"train_accuracy": curves["train_accuracy"](s), "test_loss": 3.0}
        history.append({"arm": "random labels", "seed": s, "epoch": 30} | fitted)
        accuracy.append({"seed": s, "sigma": 0.0, "accuracy": 0.953 - 0.001 * s})
        accuracy.append({"seed": s, "sigma": 0.2, "accuracy": curves["noisy_accuracy"](s)})
    return pd.DataFrame(rows), pd.DataFrame(history), pd.DataFrame(accuracy)


def verdicts(tables):
    found = settle_all(CLAIMS, noise_svd_mnist.statistics(*tables))
    return {name: claim.verdict for name, claim in found.items()}


def test_claims_are_b1_to_b12():
    assert [claim.id for claim in CLAIMS] == [f"B{i}" for i in range(1, 13)]


def test_all_claims_hold_in_a_world_made_for_them():
    assert verdicts(world()) == {claim.id: "reproduced" for claim in CLAIMS}


SPREAD = [0.0, 0.002, -0.002, 0.001]
OTHER_WORLDS = {
    "B1": {"ev1": lambda d, s: approach(0.7, 0.9 + SPREAD[s], 5 + d)},
    "B2": {"ev1": lambda d, s: 0.9 - approach(0, 0.02 + 0.02 * d + SPREAD[s], 5 + d)},
    "B3": {"ev2": lambda d, s: 0.1 - approach(0, 0.05 + SPREAD[s], 5 + d)},
    "B4": {"rest": lambda d, s: 0.06 + approach(0, 0.1 + SPREAD[s], 16 + d % 3)},
    "B5": {"rest": lambda d, s: 0.06 + approach(0, 0.1 + SPREAD[s], 19 - 2 * d)},
    "B6": {"s1": lambda d, s: approach(1, 1.3 + SPREAD[s], 20)},
    "B7": {"s1": lambda d, s: np.interp(EPOCHS, [0, 1, 6, 20], [1, 0.7, 1, 0.8 + SPREAD[s]])},
    "B8": {"s1": lambda d, s: np.interp(EPOCHS, [0, 10, 20], [1, 1, 2 + SPREAD[s]])},
    "B9": {"noisy_accuracy": lambda s: 0.8 + SPREAD[s]},
    "B10": {"clean_s2": lambda d, s: 1e-3 + 0 * EPOCHS},
    "B11": {"clean_s1": lambda d, s: approach(1, 0.5 + SPREAD[s], 20)},
    "B12": {"random_ev1": lambda d, s: 0.99 + SPREAD[s]},
}


@pytest.mark.parametrize("name", OTHER_WORLDS)
def test_each_claim_is_refuted_where_it_does_not_hold(name):
    assert verdicts(world(**OTHER_WORLDS[name]))[name] == "not reproduced"


def test_b2_needs_a_fall_and_not_only_an_order():
    rise = verdicts(world(ev1=lambda d, s: 0.5 + approach(0, 0.1 + 0.02 * d + SPREAD[s], 5)))
    assert rise["B1"] == rise["B2"] == "not reproduced"


def test_nets_that_did_not_memorise_do_not_count():
    tables = world(train_accuracy=lambda s: 0.5 if s < 2 else 1.0)
    found = noise_svd_mnist.statistics(*tables)["B12"]
    assert [math.isnan(value) for value in found] == [True, True, False, False]
    assert verdicts(tables)["B12"] == "inconclusive"
    assert noise_svd_mnist.memorised(tables[1]) == [2, 3]


def test_nothing_after_convergence_leaves_b7_undefined():
    spectra, history, accuracy = world()
    history.loc[history.arm == "protocol", "test_loss"] = 3 - history.epoch / 10
    assert all(math.isnan(v) for v in noise_svd_mnist.statistics(spectra, history, accuracy)["B7"])


def test_noise_around_the_threshold_is_inconclusive():
    swing = [0.1, -0.1, 0.08, -0.08]
    tables = world(ev1=lambda d, s: 0.8 + approach(0, swing[s], 5))
    assert verdicts(tables)["B1"] == "inconclusive"


def test_statistics_are_the_ones_their_rules_name():
    found = noise_svd_mnist.statistics(*world())
    # seed 0: wiggle 1, conv1 is depth 0 and conv2 depth 2
    assert found["B1"][0] == pytest.approx((0.20 + 0.16) / 2)
    assert found["B2"][1][0] == pytest.approx(-1)
    assert found["B3"][0] == pytest.approx((0.10 + 0.08) / 2)
    assert found["B5"][0] == pytest.approx(0.99, abs=0.02)
    assert found["B6"][0] == pytest.approx(-0.3)
    assert found["B7"][0] == pytest.approx(1.2 / np.interp(6, [1, 6], [0.7, 1]) - 1)
    assert found["B9"][0] == pytest.approx(0.003)
    assert found["B10"][0] == 0
    assert found["B11"][0] == pytest.approx(1)
    assert found["B12"][0] == pytest.approx(0.1)


def test_convergence_is_the_first_epoch_near_the_minimum():
    history = pd.DataFrame({"epoch": [3, 0, 1, 2], "test_loss": [1.0, 2.0, 1.06, 1.05]})
    assert noise_svd_mnist.convergence_epoch(history) == 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2, 3], 3),
        ([0, 9.5, 10, 10], 1),
        ([0, 10, 5, 10], 3),
        ([10, 10, 0, 10], 3),
        ([10, 9.5, 0.5, 0.1], 2),
    ],
)
def test_plateau_is_where_the_curve_stays_near_its_end(values, expected):
    assert noise_svd_mnist.plateau_epoch(pd.Series(values, index=range(4))) == expected


def test_a_flat_curve_has_no_plateau_epoch():
    assert math.isnan(noise_svd_mnist.plateau_epoch(pd.Series([1.0, 1.0, 1.0])))
