"""The statistics of B1 to B14 on made-up tables: each verdict must come out both ways."""

import math

import numpy as np
import pandas as pd
import pytest
from _settling import verdicts

from replication._core import paths
from replication.papers import experiment
from replication.papers import noise_svd_mnist as paper
from replication.papers.noise_svd_mnist import CLAIMS, LAYERS, RECIPES, SHOWN

EPOCHS = np.arange(21.0)
SEEDS = range(5)
CONVERGED = 6  # the test loss of `world` comes near its minimum here
NOISE = [0.0, 0.01, -0.01, 0.02, -0.02]  # what tells seeds apart


def approach(start, end, epochs):
    """Return a curve over EPOCHS from epoch 1 to `end`, reached after so many epochs."""
    return start + (end - start) * np.clip((EPOCHS - 1) / epochs, 0, 1)


def bump(depth, seed):
    """Return what keeps layers from lying on one line in every network."""
    return ((3 * depth + 7 * seed) % 5 - 2) / 100


def curves(depth, seed):
    """Return the curves over EPOCHS of a layer in a world in which every claim holds."""
    wiggle, size = 1 + NOISE[seed], 0.2 - 0.02 * depth + 0.2 * bump(depth, seed)
    s1 = np.interp(EPOCHS, [0, 1, 4, 6, 20], [0.2, 1, 0.9, 0.95 * wiggle, 1.2])
    s1 *= 1 + 0.01 * (-1) ** EPOCHS * (EPOCHS < CONVERGED) * wiggle
    return {
        "ev1": 0.9 - approach(0, size * wiggle, 5),
        "ev2": 0.04 + approach(0, 0.5 * size * wiggle, 5),
        "rest": 0.06
        + approach(0, 0.5 * size * wiggle, 3 + 0.4 * depth + 10 * bump(depth, seed))
        + 1e-4 * (1 + 10 * NOISE[seed]) * EPOCHS,
        "s1": s1,
        "unexplained": 0.1 * np.exp(-(0.1 * depth + bump(depth, seed)) * EPOCHS / 20),
        "clean_s1": approach(1, 2 * wiggle, 20),
        "clean_s2": 0 * EPOCHS,
        "held_out": 0.9 - approach(0, size * wiggle, 5) + 0.001 * NOISE[seed] * (EPOCHS > 1),
    }


def world(noisy_accuracy=0.95, random_ev1=0.85, **changed):
    """Return the unpacked results in which all holds but what `changed` curves say."""
    spectra, clean, history, accuracy, labels = [], [], [], [], []
    for recipe in RECIPES:
        for seed in SEEDS:
            net = {"optimizer": recipe, "seed": seed}
            for layer in ("input", *LAYERS):
                place = SHOWN.index(layer) if layer in SHOWN else 0
                made = curves(place, seed)
                made |= {name: new(place, seed) for name, new in changed.items() if name in made}
                for i, epoch in enumerate(EPOCHS):
                    at = net | {"layer": layer, "epoch": epoch}
                    values = {k: made[k][i] for k in ("ev1", "ev2", "rest", "s1", "unexplained")}
                    if layer == "input":
                        values["unexplained"] = 0.3
                    spectra.append(at | values | {"images": "train"})
                    spectra.append(at | values | {"images": "hold-out", "ev1": made["held_out"][i]})
                    s = {"s1": made["clean_s1"][i], "s2": made["clean_s2"][i]}
                    clean.append(at | s | {"images": "train"})
            for epoch in EPOCHS:
                test = np.interp(epoch, [0, CONVERGED, 20], [2.3, 0.2, 0.21])
                train = np.interp(epoch, [0, CONVERGED + 1, 20], [2.3, 0.15, 0.05])
                history.append(net | {"epoch": epoch, "test_loss": test, "train_loss": train})
            for kind in ("train", "hold-out"):
                clear = {"images": kind, "epoch": 20, "sigma": 0.0, "accuracy": 0.955}
                noisy = {"sigma": 0.2, "accuracy": noisy_accuracy + 0.1 * NOISE[seed] / 10}
                accuracy += [net | clear, net | clear | noisy]
    for seed in SEEDS:
        for level, ev1 in ((0.0, 0.95), (1.0, random_ev1 + 0.1 * NOISE[seed])):
            at = {"seed": seed, "labels": level, "ev1": ev1, "images": "train"}
            labels += [at | {"layer": layer} for layer in SHOWN]
    fitted = [{"seed": seed, "labels": 1.0, "epoch": 60, "train_accuracy": 1.0} for seed in SEEDS]
    tables = {"training": history, "noise": spectra, "no noise": clean, "accuracy": accuracy}
    tables |= {"labels": labels, "labels training": fitted}
    return pd.concat({name: pd.DataFrame(rows) for name, rows in tables.items()})


def settled(table):
    return verdicts(paper, table, {"B12": paper.memorised(table)})


def test_all_claims_hold_in_a_world_made_for_them():
    assert settled(world()) == {claim.id: "reproduced" for claim in CLAIMS}


def turned(name):
    """Return the curves that mirror those of `world` around their start."""

    def curve(depth, seed):
        values = curves(depth, seed)[name]
        return 2 * values[1] - values

    return curve


OPPOSITES = {
    "B1": {"ev1": turned("ev1"), "held_out": turned("ev1")},
    "B2": {"ev1": lambda d, s: 0.9 - approach(0, 0.05 + 0.02 * d + 0.2 * bump(d, s), 5)},
    "B3": {"ev2": turned("ev2")},
    "B4": {"rest": lambda d, s: 1e-4 * EPOCHS + 0.01 * np.maximum(EPOCHS - 14, 0) * (1 + NOISE[s])},
    "B5": {"rest": lambda d, s: 0.06 + approach(0, 0.1, 12 - 2 * d + 20 * bump(d, s))},
    "B6": {"s1": lambda d, s: 1 + (0.1 + NOISE[s]) * EPOCHS},
    "B7": {"s1": lambda d, s: np.exp(-(0.05 + NOISE[s] / 10) * EPOCHS)},
    "B8": {"s1": lambda d, s: 1 + (0.1 + NOISE[s]) * (-1) ** EPOCHS * (EPOCHS > CONVERGED)},
    "B9": {"noisy_accuracy": 0.8},
    "B10": {"clean_s2": lambda d, s: 0.001 + 0 * EPOCHS},
    "B11": {"clean_s1": lambda d, s: approach(1, 0.5 + NOISE[s], 20)},
    "B12": {"random_ev1": 0.99},
    "B13": {"unexplained": lambda d, s: 0.1 * np.exp((0.1 * d + bump(d, s)) * EPOCHS / 20)},
    "B14": {"held_out": lambda d, s: 0.9 + 0 * EPOCHS + 0.01 * NOISE[s] * (EPOCHS > 1)},
}


@pytest.mark.parametrize("claim", [claim.id for claim in CLAIMS])
def test_each_claim_is_not_reproduced_where_the_opposite_holds(claim):
    assert settled(world(**OPPOSITES[claim]))[claim] == "not reproduced"


def test_b12_is_not_testable_where_random_labels_were_not_fitted():
    table = world()
    table.loc[table.train_accuracy.notna(), "train_accuracy"] = 0.9
    assert settled(table)["B12"] == "not testable at this scale"


def test_without_measurements_nothing_is_decided():
    values = paper.statistics(world().loc[["labels training"]])
    assert all(np.isnan(np.ravel(values[claim.id]).astype(float)).all() for claim in CLAIMS)


def test_convergence_by_its_three_definitions():
    history = pd.DataFrame({"epoch": [0, 1, 2, 3, 4, 5], "test_loss": [9, 2, 1.04, 1, 1, 1.2]})
    history["train_loss"] = [9, 2, 1, 0.99, 0.98, 0.97]
    assert paper.convergence(history) == {"test loss": 2, "train loss": 2, "gap": 5}


def test_rise_time_is_the_epochs_from_10_to_90_percent():
    line = pd.Series(np.linspace(2, 4, 11), index=range(11))
    assert paper.rise_time(line) == pytest.approx(8)
    assert paper.rise_time(-line) == pytest.approx(8)
    assert math.isnan(paper.rise_time(0 * line))


def test_interval_over_networks_and_images_is_that_of_the_crossed_design():
    rng = np.random.default_rng(0)
    nets, images = rng.normal(0, 1, 6), rng.normal(0, 0.5, 9)
    rows = [
        {"optimizer": "SGD", "seed": n, "image": i, "epoch": epoch, "layer": layer}
        | {"images": "train", "ev1": (nets[n] + images[i]) * (epoch == 1)}
        for n in range(6)
        for i in range(9)
        for epoch in (1, 20)
        for layer in paper.CONV
    ]
    found = paper.crossed(pd.DataFrame(rows)).loc["SGD"]
    variance = nets.var(ddof=1) / 6 + images.var(ddof=1) / 9
    assert found.fall == pytest.approx(nets.mean() + images.mean())
    assert (found.high - found.low) / 2 > 1.96 * variance**0.5
    assert 5 < found.degrees < 14


@pytest.mark.parametrize("profile", ["smoke", "full"])
def test_plan_names_each_network_by_its_key(profile):
    experiments = paper.plan(profile, "mnist5k") if profile == "smoke" else paper.plan(profile)
    specs = experiments["noise"].specs
    assert len({spec["network"] for spec in specs}) == len(experiments["training"].specs)
    for spec in specs[:3]:
        split = paper.split_of(spec["net"])[0]
        assert spec["network"] == paper.training_spec(spec["net"]).key(split)


def test_at_full_committed_results_are_found_also_where_the_images_are_not(monkeypatch):
    monkeypatch.setattr(experiment, "_at_hand", lambda dataset: False)
    monkeypatch.setattr(paper.data, "load", lambda *_, **__: pytest.fail("images were asked for"))
    found = paper.plan("full")["noise"].run(
        "no store", evidence=paths.evidence() / paper.NOTEBOOK, compute=False, progress=False
    )
    assert {"SGD", "Adam"} <= set(paper.unpacked(found).optimizer)
    assert experiment.network_key({"dataset": "x"}, str, paper.NOTEBOOK) == "its data are not here"
