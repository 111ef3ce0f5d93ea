"""The statistics of Z1 to Z13 and A1 to A7 on made-up tables: each must come out both ways."""

import math
import zlib
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from _settling import UNDECIDED, verdicts

from replication.papers import _arpit, _interpolation
from replication.papers import random_labels as paper
from replication.papers.random_labels import (
    ALEXNET,
    DEEP,
    GAUSSIAN,
    INCEPTION,
    KINDS,
    LINEAR,
    MLP,
    MODELS,
    RANDOM,
    TRUE,
)  # fmt: skip

SEEDS = range(4)
WIDTHS, NOISES = (8, 16, 32, 64), ("", "level", "noise")


def jitter(*key):
    """Return what tells one unit from another, within 0.002 of 0, the same each time."""
    return (zlib.crc32(str(key).encode()) % 1000 - 500) / 250_000


def network(name, arm, level, seed):
    """Return how a network ends in a world in which every claim holds."""
    gain = {"none": 0.0, "decay": 0.01, "crop": 0.04, "crop + decay": 0.045, "no BN": -0.03}
    clean = {INCEPTION: 0.85, ALEXNET: 0.75, DEEP: 0.55, MLP: 0.5, LINEAR: 0.4}[name]
    test, own = (1 - level) * (clean + gain.get(arm, 0)) + level * 0.1, (name, arm, level, seed)
    made = {"train": 0.2 if name == LINEAR else 0.999 + jitter(own) / 3, "test": test}
    made |= {"fitted": 1000 * 4**level, "fall": 0.06 * (0 < level < 1), "peak": 0.6}
    return {k: v * (1 + 10 * jitter(own, k) * (k == "fitted")) for k, v in made.items()}


def history(made, **told):
    """Return two rows of a history: where its test accuracy was best, and its end."""
    told = {"strength": 0.0, "noise": 0.0, "width": 1.0, "arm": "none", "dataset": "d"} | told
    told = {"images": 50_000, "network": str(sorted(told.items())), "epoch": 1.0} | told
    test, peak = made["test"] + jitter(told, 1), made["peak"] + jitter(told, 2)
    first = {"step": made["fitted"] / 2, "train_accuracy": peak}
    first["test_accuracy"] = test + made["fall"] + abs(jitter(told, 3))
    last = {"step": made["fitted"], "train_accuracy": made["train"], "test_accuracy": test}
    return [told | first, told | last]


def trained(change):
    """Return the histories of Tables 1 and 4."""
    arms = [(m, "none", p) for m in (*MODELS, LINEAR) for p in (0.0, 0.5, 1.0)]
    arms += [(m, "decay", p) for m in MODELS for p in (0.0, 1.0)]
    arms += [(m, arm, 0.0) for m in (INCEPTION, ALEXNET) for arm in ("crop", "crop + decay")]
    arms += [(INCEPTION, "no BN", 0.0), (INCEPTION, "crop", 1.0)]
    rows = []
    for (name, arm, level), seed in product(arms, SEEDS):
        made = network(name, arm, level, seed) | change(name, arm, level, seed)
        told = {"name": name, "arm": arm, "level": level, "seed": seed}
        rows += history(made, kind=RANDOM if level == 1 else TRUE, **told)
    return rows


def small(numbers):
    """Return the histories of Arpit's networks, by experiment."""
    rows = {"sizes": [], "capacities": [], "widths": [], "strengths": [], "CNNs": []}
    usual = {"test": 0.7, "fall": 0.0, "fitted": 1000, "peak": 0.5, "train": 1.0}
    for seed, kind, x in product(SEEDS, (TRUE, GAUSSIAN, RANDOM), WIDTHS):
        told = {
            "name": "MLP",
            "kind": kind,
            "level": float(kind == RANDOM),
            "seed": seed,
            "width": x,
        }
        steep = (0.2 if kind == TRUE else 1.0) * numbers["slope"] + 10 * jitter(seed, kind)
        rows["sizes"] += history(usual, **told, images=x, epoch=1e4 * float(x) ** steep)
        rows["capacities"] += history(usual, **told, epoch=1e4 * float(x) ** -steep)
    for seed, data, noise, x in product(
        SEEDS, ("mnist", "cifar10"), ("", "level", "noise"), WIDTHS
    ):
        bar = numbers["enough"](data, noise)
        told = {"name": "MLP", "kind": TRUE, "seed": seed, "dataset": data, "width": x / 512}
        told |= {"level": 0.5 * (noise == "level"), "noise": 0.5 * (noise == "noise")}
        rows["widths"] += history(usual | {"test": 0.7 - 0.1 * (x < bar)}, **told)
    for seed, arm, strength, p in product(SEEDS, _arpit.FAMILIES, (5e-4, 0.01, 0.5), (0.0, 1.0)):
        held = numbers["held"](arm, strength) + jitter(seed, arm, strength) if p else 1.0
        told = {"name": ALEXNET, "kind": TRUE, "level": p, "seed": seed, "arm": arm}
        rows["strengths"] += history(usual | {"train": held}, **told, strength=strength)
    for seed in SEEDS:
        told = {"name": ALEXNET, "kind": RANDOM, "level": 1.0, "seed": seed}
        rows["CNNs"] += history(usual | {"train": numbers["control"]}, **told)
    return {name: pd.DataFrame(own) for name, own in rows.items()}


DEFAULT = {  # numbers of a world in which every claim holds
    "start": dict(zip(KINDS, (20, 2000, 40, 600, 300), strict=True)),
    "excess": {TRUE: 0.3, GAUSSIAN: 0.0, RANDOM: 0.05},
    "critical": {TRUE: (0.0, 0.1), GAUSSIAN: (0.2, 0.6), RANDOM: (0.2, 0.5)},
    "gini": {TRUE: 0.7, GAUSSIAN: 0.3, RANDOM: 0.4},
    "slope": 1.0,
    "control": 1.0,
    "enough": lambda data, noise: 32 if noise == "noise" or (noise and data == "mnist") else 16,
    "held": lambda arm, strength: 0.3 if arm == "dropout" else 0.45 if strength == 5e-4 else 0.8,
    "kernel": {"linear": 0.6, "pixels": 0.4, "Gabor": 0.3, "random conv": 0.2},
    "norm": {"pixels": 200.0, "Gabor": 390.0, "random conv": 300.0},
    "both": 4.0, "ridged": -0.02, "error": 1e-9, "weights": 4.5, "last": 1e-4, "outside": 1e-12,
}  # fmt: skip


def world(change=lambda *_: {}, **changed):
    """Return the tables of `split_table` in which all holds but what is changed."""
    numbers = DEFAULT | changed
    rows = {name: [] for name in ("losses", "repeats", "critical", "sensitivity", "kernels")}
    rows |= {"theorem": [], "descent": []}
    for seed, kind in product(SEEDS, KINDS):
        at = numbers["start"][kind] * (1 + 10 * jitter(seed, kind))
        points = ((at / 8, 2.3), (at * 0.999, paper.STARTED), (at * 2, 0.1))
        rows["losses"] += [{"seed": seed, "kind": kind, "step": s, "loss": v} for s, v in points]
    rng = np.random.default_rng(0)
    for seed, kind in product(SEEDS, (TRUE, GAUSSIAN, RANDOM)):
        told = {"seed": seed, "kind": kind}
        spread = numbers["excess"][kind]
        p = np.clip(0.5 + spread * np.where(np.arange(300) % 2, 1, -1), 0, 1)
        shares = rng.binomial(20, p) / 20
        shown = {"at": 1, "repeats": 20, "tested": 0.35}
        rows["repeats"] += [told | shown | {"share": share} for share in shares]
        for epoch, share in zip((0, 1, 40), (0.9, *numbers["critical"][kind]), strict=True):
            found = {"radius": 0.3, "share": share + jitter(seed, kind, epoch)}
            rows["critical"].append(told | found | {"at": epoch})
        gini = numbers["gini"][kind] + jitter(seed, kind)
        rows["sensitivity"].append(told | {"at": 9, "gini": gini})
    for seed, role, features in product(SEEDS, ("digits", "colours"), numbers["kernel"]):
        for ridge in (0.0, 0.1, 1.0):
            error = numbers["kernel"][features] + (ridge > 0) * numbers["ridged"]
            error += jitter(seed, role, features, ridge)
            told = {"seed": seed, "role": role, "features": features, "ridge": ridge}
            norm = numbers["norm"].get(features, math.nan) * (1 + 20 * jitter(seed, role, features))
            told |= {"error": error, "chosen": error + ridge, "norm": norm}
            both = norm * numbers["both"] ** (1 + jitter(seed, role))
            rows["kernels"].append(told | {"both": both})
    for seed, n, layers in product(SEEDS, (100, 1000), (2, 6)):
        told = {"seed": seed, "n": n, "layers": layers, "inputs": 50, "error": numbers["error"]}
        rows["theorem"].append(told | {"weights": numbers["weights"] * (n + 50)})
    for seed, begun, step in product(SEEDS, ("zero", "random"), (0, 10, 1000)):
        told = {"seed": seed, "start": begun, "step": step, "norm": 2.0}
        far = numbers["last"] if begun == "zero" and step == 1000 else 1.0
        rows["descent"].append(told | {"distance": far, "outside": numbers["outside"]})
    tables = {name: pd.DataFrame(own) for name, own in rows.items()}
    return tables | small(numbers) | {"MLPs": pd.DataFrame(trained(change))}


def test_all_claims_hold_in_a_world_made_for_them():
    assert verdicts(paper, world()) == {claim.id: "reproduced" for claim in paper.CLAIMS}


def test_what_holds_noise_back_is_judged_only_where_noise_is_fitted_without():
    tables = world(control=0.5)
    assert verdicts(paper, tables)["A2"] in UNDECIDED
    assert np.isnan(paper.statistics(tables)["Z5"][3]).all()


def test_of_the_swept_decays_the_usual_one_is_judged():
    tables = world()
    swept = tables["MLPs"].query("arm == 'decay' and level == 1")
    swept = swept.assign(strength=1e-3, train_accuracy=0.5, network=swept.network + "swept")
    both = tables | {"MLPs": pd.concat([tables["MLPs"], swept])}
    assert paper.statistics(both) == paper.statistics(tables)


def turned(wanted, **values):
    """Return a world in which the networks that are wanted end otherwise."""
    return {"change": lambda *net: values if wanted(*net[:3]) else {}}


def stalled(name, arm, level, seed):
    """Return where no network fits, later levels sooner, and test accuracy stays."""
    if name == LINEAR or arm != "none":
        return {}
    return {"train": 0.5 + jitter(name, level, seed), "test": 0.3, "fitted": 5000 - 4900 * level}


KERNELS = {"linear": 0.3, "pixels": 0.4, "Gabor": 0.5, "random conv": 0.5}
OPPOSITES = {
    "Z1": {"change": stalled},
    "Z2": {"start": dict(zip(KINDS, (2000, 20, 40, 600, 300), strict=True))},
    "Z3": {"change": lambda *net: stalled(*net)},
    "Z4": {"change": lambda n, a, p, s: {"test": 0.3} if a == "none" else
           {"test": 0.1} if a == "no BN" else {}},
    "Z5": {"change": lambda n, a, p, s: {"train": 0.8 + jitter(n, a, s)} if p == 1 and a != "none"
           else {}, "held": lambda arm, strength: 0.95},
    "Z6": {"error": 0.1},
    "Z7": {"kernel": KERNELS, "norm": DEFAULT["norm"] | {"Gabor": 100.0}, "ridged": 0.05},
    "Z8": {"last": 0.5, "outside": 1e-3},
    "Z9": turned(lambda n, a, p: a == "crop", test=0.4),
    "Z10": turned(lambda n, a, p: n == INCEPTION, fall=0.05),
    "Z11": turned(lambda n, a, p: n == INCEPTION and a == "none", test=0.3),
    "Z12": {"error": 0.1, "weights": 40.0},
    "Z13": {"both": 1.2},
    "A1": {"excess": {TRUE: 0.1, GAUSSIAN: 0.3, RANDOM: 0.4}},
    "A2": {"held": lambda arm, strength: 0.9 if arm == "dropout" else 0.2},
    "A3": turned(lambda n, a, p: 0 < p < 1, fall=0.0, peak=0.99),
    "A4": {"critical": {TRUE: (0.0, 0.7), GAUSSIAN: (0.6, 0.2), RANDOM: (0.6, 0.3)}},
    "A5": {"slope": -1.0},
    "A6": {"enough": lambda data, noise: 16 if noise else 64},
    "A7": {"gini": {TRUE: 0.2, GAUSSIAN: 0.3, RANDOM: 0.4}},
}  # fmt: skip


@pytest.mark.parametrize("claim", [claim.id for claim in paper.CLAIMS])
def test_each_claim_is_not_reproduced_where_the_opposite_holds(claim):
    assert verdicts(paper, world(**OPPOSITES[claim]))[claim] == "not reproduced"


def test_where_a_line_fits_random_labels_too_memorising_cannot_be_tested():
    found = verdicts(paper, world(**turned(lambda n, a, p: n == LINEAR, train=1.0)))
    assert {found[id] for id in ("Z1", "Z3", "Z5")} == {"not testable at this scale"}


def test_without_measurements_nothing_is_decided():
    assert set(verdicts(paper, {}).values()) <= UNDECIDED
    values = paper.statistics({})
    assert all(np.isnan(np.ravel(values[claim.id]).astype(float)).all() for claim in paper.CLAIMS)


def test_start_is_where_the_loss_crosses_nine_tenths_of_guessing():
    bar = paper.STARTED
    curve = pd.DataFrame({"step": [0, 10, 1000], "loss": [9.0, bar + 0.5, bar - 0.5]})
    assert paper.start(curve) == pytest.approx(100)  # half way, in the logarithm of steps
    assert math.isnan(paper.start(curve[:2]))


def test_excess_variance_is_0_of_equal_examples_and_full_where_some_are_always_right():
    rng = np.random.default_rng(0)
    equal = pd.DataFrame({"share": rng.binomial(20, 0.4, 100_000) / 20})
    assert _arpit.excess(equal, 20) == pytest.approx(0, abs=5e-4)
    assert _arpit.excess(pd.DataFrame({"share": [0.0, 1.0] * 500}), 20) == pytest.approx(0.25, 0.01)


def test_gini_of_equal_numbers_and_of_one_that_has_all():
    assert _arpit.gini(np.full(50, 3.0)) == pytest.approx(0)
    assert _arpit.gini(np.eye(50)[0]) == pytest.approx(1 - 1 / 50)


def test_critical_samples_are_found_where_the_other_class_is_within_the_box():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2, bias=False))
    model[1].weight.data = torch.tensor([[1.0], [-1.0]])
    x = torch.tensor([0.1, 0.25, 0.6, -0.1, -0.6]).reshape(5, 1, 1, 1)
    found = _arpit.has_critical(model, x, 0.3, 0.25, 0.05, 10)
    assert found.tolist() == [True, True, False, True, False]


def test_a_kernel_machine_on_parts_shares_no_image_and_fits_its_own():
    spec = {"dataset": "mnist5k", "features": "pixels", "images": 50, "tested": 20, "parts": 2}
    spec |= {"forced": True, "filters": 0, "seed": 0}
    rows = _interpolation.kernels(spec, "cpu")
    assert rows[0]["residual"] < 1e-3 and rows[0]["both"] > rows[0]["norm"] > rows[-1]["norm"]
    assert _interpolation.kernels(spec | {"seed": 1}, "cpu")[0]["norm"] != rows[0]["norm"]


@pytest.mark.parametrize("profile", ["smoke", "full"])
def test_plan_names_networks_by_what_is_trained(profile):
    experiments = paper.plan(profile, "mnist5k" if profile == "smoke" else "auto", "cpu")
    named = [spec for e in experiments.values() for spec in e.specs if "net" in spec]
    keys = {spec["network"] for spec in named}
    assert len(keys) >= len({str(sorted(spec["net"]["training"].items())) for spec in named})
    longer = [
        s["net"]["training"] for s in experiments["Inception"].specs if s["net"]["arm"] == "flips"
    ]
    assert bool(longer) == (profile != "full")
    assert all(net["decay"] > 0.99 and net["label_corruption"] == 1 for net in longer)
    assert set(paper.MEASURED) == {claim.id for claim in paper.CLAIMS}
    assert set(paper.MEASURED.values()) <= set(experiments) | {"losses"}
