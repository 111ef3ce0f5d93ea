"""The statistics of B1 to B12 on made-up curves: each verdict must come out both ways."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from _settling import settle_all

from replication import data, spectra
from replication.papers import noise_svd_mnist as paper
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
    found = settle_all(CLAIMS, paper.statistics(*tables))
    return {name: claim.verdict for name, claim in found.items()}


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
    assert verdicts(world(**OTHER_WORLDS[name]))[name] in ("partly", "not reproduced")


def test_b2_needs_a_fall_and_not_only_an_order():
    rise = verdicts(world(ev1=lambda d, s: 0.5 + approach(0, 0.1 + 0.02 * d + SPREAD[s], 5)))
    assert (rise["B1"], rise["B2"]) == ("not reproduced", "partly")


def test_nets_that_did_not_memorise_do_not_count():
    tables = world(train_accuracy=lambda s: 0.5 if s < 2 else 1.0)
    found = paper.statistics(*tables)["B12"]
    assert [math.isnan(value) for value in found] == [True, True, False, False]
    assert verdicts(tables)["B12"] == "inconclusive"
    assert paper.memorised(tables[1]) == [2, 3]


def test_nothing_after_convergence_leaves_b7_undefined():
    spectra, history, accuracy = world()
    history.loc[history.arm == "protocol", "test_loss"] = 3 - history.epoch / 10
    assert np.isnan(paper.statistics(spectra, history, accuracy)["B7"]).all()


def test_statistics_are_the_ones_their_rules_name():
    values = paper.statistics(*world())
    # seed 0: wiggle 1, conv1 is depth 0 and conv2 depth 2
    expected = {"B1": (0.20 + 0.16) / 2, "B3": (0.10 + 0.08) / 2, "B6": -0.3, "B9": 0.003}
    expected |= {"B7": 1.2 / np.interp(6, [1, 6], [0.7, 1]) - 1, "B10": 0, "B11": 1, "B12": 0.1}
    assert {name: values[name][0] for name in expected} == pytest.approx(expected)
    assert values["B2"][1][0] == pytest.approx(-1)
    assert values["B5"][0] == pytest.approx(0.99, abs=0.02)


def test_convergence_is_the_first_epoch_near_the_minimum():
    history = pd.DataFrame({"epoch": [3, 0, 1, 2], "test_loss": [1.0, 2.0, 1.06, 1.05]})
    assert paper.convergence_epoch(history) == 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2, 3], 3),
        ([0, 9.5, 10, 10], 1),
        ([0, 10, 5, 10], 3),
        ([10, 10, 0, 10], 3),
        ([10, 9.5, 0.5, 0.1], 2),
        ([1, 1, 1, 1], math.nan),
    ],
)
def test_plateau_is_where_the_curve_stays_near_its_end(values, expected):
    epoch = paper.plateau_epoch(pd.Series(values, index=range(4)))
    assert epoch == pytest.approx(expected, nan_ok=True)


def test_measured_rows_are_those_of_the_spectrum(monkeypatch, tmp_path):
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))  # networks are trained there
    where = ("smoke", "mnist5k", "cpu")
    plan = paper.plan(*where)
    spec = plan["random labels"].specs[1]
    run = paper.network("random labels", 0, *where)
    assert spec["network"] == run.key and spec["epoch"] == 2
    assert {s["sigma"] for s in plan["noise"].specs} == set(paper.SIGMAS)
    rows = pd.DataFrame(paper.measure(spec, *where)).set_index(["images", "layer"])
    assert len(rows) == 2 * (1 + len(LAYERS))
    assert np.allclose(rows.ev1 + rows.unexplained, 1)
    assert np.allclose(rows.ev1 + rows.ev2 + rows.rest, 1)
    split, _, std = paper.images(*where)
    shown = paper.first_of_each_class(split.test, 1)
    again = spectra.noise_spectrum(run.model(), shown, 0.2 / std, spec["copies"], ["fc1"])
    s1 = again.singular_values["fc1"][:, 0].double().mean() / spec["copies"] ** 0.5
    assert rows.s1["hold-out", "fc1"] == pytest.approx(s1.item())
    small = paper.arms(*where)["random labels"][1].train
    assert torch.equal(small.images, split.train.images[: paper.SETTINGS["smoke"]["pair_images"]])


def test_images_are_the_first_of_each_class_and_of_mnist_only(monkeypatch):
    labels = torch.arange(10).repeat(3).flip(0)
    examples = data.Examples(torch.arange(30.0).reshape(30, 1, 1, 1), labels)
    chosen = paper.first_of_each_class(examples, 2).flatten().tolist()
    assert chosen == [float(i) for c in range(10) for i in (9 - c, 19 - c)]
    monkeypatch.setattr(data, "load", lambda *_, **__: SimpleNamespace(name="cifar10"))
    with pytest.raises(ValueError, match="made for MNIST, found 'cifar10'"):
        paper.images("smoke", "cifar10")
