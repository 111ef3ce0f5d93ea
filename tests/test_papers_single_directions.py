"""The claims on single directions on made-up tables: each verdict must come out both ways."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from _settling import settled_apart, table
from scipy.stats import spearmanr
from torch import nn

from replication import directions, models
from replication.papers import direction_measurements as measured
from replication.papers import single_directions as paper

WIGGLE = (0.0, 0.004, -0.004, 0.002)  # by seed
SHARE = np.linspace(0, 1, 11)
RATES, NORMS = [1, 2, 4], [False, True]


def fall(rate, level):
    """Return a curve of ablation: flat up to `rate`, then falling, faster at a higher level."""
    return [(1 - (0.1 + 1.5 * level) * (SHARE - rate).clip(min=0)).clip(min=0)]


def near(values, noise=0.3):
    """Return `values` with noise that leaves their order mostly as it is."""
    draw = np.random.default_rng(len(values)).normal(size=len(values))
    return np.asarray(values) + noise * np.std(values) * draw


def with_units(layers):
    """Return units of which those that say more cost less, but more of one class."""
    size = list(range(40))
    return table(WIGGLE, batch_norm=NORMS, layer=layers, unit=size).assign(
        say=lambda t: near(t.unit / 40 + 0.01 * t.w),
        depth=lambda t: 0.02 * t.layer + 0.01 * ((7 * t.layer + t.seed * t.layer) % 11),
        selectivity=lambda t: t.say + 0.3 * ~t.batch_norm + t.depth + t.w,
        information=lambda t: t.say + (0.5 + t.w) * t.batch_norm,
        loss_rise=lambda t: near(-t.say, 0.5) - t.layer,
        weight=lambda t: near(-t.say, 0.4 + t.w),
        class_drop=lambda t: near(t.say, 0.4 + t.w),
        accuracy_drop=lambda t: near(t.unit * 7 % 40),
        test_accuracy=0.8,
    )


def world(**changed):
    """Return the tables of a world in which all claims hold, but for columns `changed` by table."""
    levels = [0.0, 0.5, 1.0]
    kinds = table(WIGGLE, corruption=levels, batch_norm=NORMS).assign(
        auc=lambda t: 0.7 - (0.2 + t.w) * t.corruption + (0.1 + t.w) * t.batch_norm,
        auc_mean=lambda t: t.auc - 0.1 - t.w,
        noise_mean=lambda t: 0.7 - (0.3 + t.w) * t.corruption,
    )
    nets = table(range(40), rate=RATES).assign(
        generalisation_error=lambda t: t.seed / 200 + 0.1 * t.rate,
        auc=lambda t: near(-t.generalisation_error),
    )
    sweep = table(WIGGLE, rate=range(12), batch=range(8)).assign(
        test_accuracy=lambda t: 0.15 + (8 * t.rate + t.batch) / 120,
        auc=lambda t: near(t.test_accuracy, 0.05 + t.w),
    )
    followed = table(WIGGLE, epoch=np.arange(1, 61) / 4).assign(
        test_loss=lambda t: 0.1 + 0.01 * (t.epoch - 2.5 - t.w) ** 2,
        auc=lambda t: near(-t.test_loss, 0.01),
    )
    followed["auc"] += 0.2 * (followed.epoch == 2.5)
    areas = table(WIGGLE, measure=paper.MEASURES, layers=["1", "2", "1+2"]).assign(
        area=lambda t: np.where(t.layers == "1+2", 0.0, 0.1 + t.w)
    )
    made = {
        "corruption": kinds[~kinds.batch_norm],
        "convnets": kinds,
        "population": nets,
        "label noise": nets[nets.rate == 1],
        "sweep": sweep,
        "training": followed,
        "dropout": dropout(lambda rate, level: fall(rate, level)),
        "units": with_units([1, 2]),
        "convnet units": with_units(range(1, 12)),
        "ordered": areas,
    }
    return made | {name: made[name].assign(**columns) for name, columns in changed.items()}


def parts_of(values):
    """Return the series of a claim's rules as arrays, correlations over pairs as their value."""
    several = isinstance(values, list) and not all(isinstance(v, float) for v in values)
    each = values if several else [values]
    return [np.atleast_1d(v["r"] if isinstance(v, dict) else v) for v in each]


def dropout(curve, auc=0.9):
    """Return networks with dropout of which `curve` gives the curves."""
    nets = table(WIGGLE, corruption=[0.0, 1.0], dropout=[0.0, 0.1, 0.2, 0.3])
    curves = [curve(r.dropout, r.corruption)[0] + r.w * SHARE for r in nets.itertuples()]
    aucs = auc + nets.w * nets.dropout
    return nets.assign(share=[SHARE] * len(nets), accuracy=curves, auc=aucs)


def verdicts(groups):
    """Return the verdicts of the parts of every claim, gates left aside."""
    settled = settled_apart(paper, groups)
    return {id: [part.verdict for part in item.parts] for id, item in settled.items()}


def test_all_claims_hold_in_a_world_made_for_them():
    held = {c.id: ["reproduced"] * len(c.rules) for c in paper.CLAIMS}
    assert verdicts(world()) == held
    gates = paper.gates(world())
    assert all(c.gate.is_open(gates[c.id]) for c in paper.CLAIMS if c.gate)
    assert {c.id for c in paper.CLAIMS} == set(paper.STANDS_ON)


def turned(column):
    return lambda t: -t[column]


KINDS = {
    "auc": lambda t: 0.5 + (0.2 + t.w) * t.corruption - (0.1 + t.w) * t.batch_norm,
    "noise_mean": lambda t: 0.5 + (0.3 + t.w) * t.corruption,
    "auc_mean": lambda t: 0.5 + (0.2 + t.w) * t.corruption,
}
AREAS = {"area": lambda t: np.where(t.layers == "1+2", 0.2 + 2 * t.w, -0.1 + t.w)}
LAYERED = {
    "selectivity": lambda t: t.say + 0.3 * t.batch_norm - t.depth + t.w,
    "information": lambda t: t.say - (0.5 + t.w) * t.batch_norm,
    "loss_rise": lambda t: near(t.say, 0.5) + 0.1 * t.layer,
    "weight": lambda t: near(t.say, 0.4 + t.w),
    "class_drop": lambda t: near(-t.say, 0.4 + t.w),
    "accuracy_drop": lambda t: near(t.say, 0.4 + t.w),
}
OPPOSITES = {  # claim: the tables that are otherwise, and the parts that must then fail
    "S1": ({"corruption": KINDS, "convnets": KINDS}, 3),
    "S8": ({"corruption": KINDS, "convnets": KINDS}, 2),
    "S13": ({"corruption": KINDS, "convnets": KINDS}, 2),
    "S2": ({"population": {"auc": turned("auc")}}, 1),
    "C3": ({name: {"auc": turned("auc")} for name in ("population", "label noise")}, 2),
    "S3": ({"training": {"auc": lambda t: near(t.test_loss, 0.01)}}, 2),
    "S4": ({"sweep": {"auc": turned("auc")}}, 2),
    "S14": ({"sweep": {"auc": turned("auc")}}, 2),
    "S6": ({"convnets": KINDS, "convnet units": LAYERED}, 3),
    "S7": ({"units": LAYERED, "convnet units": LAYERED}, 4),
    "S9": ({"convnet units": LAYERED}, 1),
    "S10": ({"convnet units": LAYERED}, 1),
    "S11": ({"convnet units": LAYERED}, 1),
    "C1": ({"convnet units": LAYERED}, 2),
    "C2": ({"ordered": AREAS}, 4),
    "C4": ({"convnets": {"auc_mean": lambda t: t.auc + 0.1 + t.w}}, 1),
}


@pytest.mark.parametrize("claim", OPPOSITES)
def test_each_claim_is_not_reproduced_where_the_opposite_holds(claim):
    changed, parts = OPPOSITES[claim]
    assert verdicts(world(**changed))[claim] == ["not reproduced"] * parts


def test_dropout_claims_are_not_reproduced_where_the_opposite_holds():
    early = dropout(lambda rate, level: [1 - SHARE * (2 - 1.5 * level)])
    early["auc"] = 0.5 + early.dropout * (1 + early.w)
    other = verdicts(world() | {"dropout": early})
    assert other["S5"] == ["not reproduced"] * 3
    # A curve with a bend of its own, dropout or not, shows no bend of dropout.
    assert other["S12"] == ["not reproduced"]
    bent = dropout(lambda rate, level: fall(0.2, level))
    assert verdicts(world() | {"dropout": bent})["S12"] == ["not reproduced"]


def test_without_measurements_nothing_is_decided():
    values = paper.statistics({})
    assert {claim.id for claim in paper.CLAIMS} == set(values)
    assert all(np.isnan(np.ravel(series)).all() for series in values.values())
    assert paper.gates({}) == {} and paper.second_cases({}).empty


@pytest.mark.parametrize("name", world())
def test_a_part_of_the_measurements_decides_what_it_can(name):
    rows = world()[name].query("seed < 10")
    found = paper.statistics({name: rows})
    assert paper.gates({name: rows}).keys() <= {claim.id for claim in paper.CLAIMS}
    assert set(paper.second_cases({name: rows}).claim) <= found.keys()
    known = {id for id, v in found.items() if not all(np.isnan(x).all() for x in parts_of(v))}
    expected = {id for id, where in paper.STANDS_ON.items() if name in where}
    assert known == expected - {"S6"}  # which needs two of them


def test_c2_stands_beside_on_the_other_data_sets():
    rows = world()["ordered"].assign(data="cifar10")
    found = paper.second_cases({"ordered elsewhere": rows})
    means = [np.mean(part) for part in paper.statistics({"ordered": rows})["C2"]]
    assert found.claim.tolist() == 4 * ["C2"] and found.value.tolist() == pytest.approx(means)
    nets = [spec["net"] for spec in paper.plan("full")["ordered elsewhere"].specs]
    assert {net["data"] for net in nets} == {"fashion_mnist", "cifar10"}
    recipe = measured.training_spec(nets[-1])
    assert models.build(recipe.model, **recipe.model_options).fc1.in_features == 3072


def test_columns_of_other_experiments_leave_types_as_they_were():
    net = {"seed": 0, "images": [60, 60]}
    parts = {
        "units": pd.DataFrame({"net": [net], "layer": [1], "dead": [True]}),
        "convnets": pd.DataFrame({"net": [net], "train_accuracy": 1.0, "test_accuracy": 0.7}),
    }
    groups = paper.tables(pd.concat(parts))
    assert groups["units"].dtypes[["layer", "dead"]].tolist() == [np.dtype(int), np.dtype(bool)]
    assert groups["convnets"].generalisation_error.tolist() == pytest.approx([0.3])


def test_networks_that_did_not_fit_do_not_count():
    groups = world()
    rows = groups["corruption"]
    failed = rows.corruption == 1.0
    groups["corruption"] = rows.assign(train_accuracy=np.where(failed, 0.98, 1.0))
    values = paper.statistics(groups)
    assert np.isnan(values["S1"][0]).all()  # none is fully corrupted
    assert values["S1"][1] == pytest.approx([(0.2 + w) / 2 for w in WIGGLE])
    none = {name: rows.assign(train_accuracy=0.5) for name, rows in world().items()}
    found = paper.statistics(none)
    left = {"S3", "S4", "S14"}  # are about training and settings, fitted or not
    assert all(np.isnan(np.ravel(found[id])).all() for id in found.keys() - left)


def test_correlations_within_rates_are_pooled_by_fishers_z():
    rows = world()["population"]
    found = paper.within(rows)
    each = [spearmanr(t.auc, t.generalisation_error).statistic for _, t in rows.groupby("rate")]
    assert found["r"] == pytest.approx(-math.tanh(np.mean(np.arctanh(each))))
    assert found["n"] == 3 * (40 - 3) + 3
    # What all rates have in common does not count.
    flat = rows.assign(auc=lambda t: t.rate + near(t.seed * 7 % 40, 0.1) / 1e3)
    assert abs(paper.within(flat)["r"]) < 0.3 < abs(spearmanr(flat.auc, flat.rate).statistic)


def test_selection_counts_how_often_the_pick_is_among_the_best():
    settings = pd.DataFrame({"rate": range(40), "batch": 1, "auc": range(40)})
    good = paper.selection(settings.assign(test_accuracy=settings.auc / 100))
    assert good.picked.tolist() == [1, 1, 1] and good.chance.tolist() == [0.05, 0.25, 0.5]
    assert good.lost.tolist() == [0, 0, 0]
    bad = paper.selection(settings.assign(test_accuracy=-settings.auc / 100))
    assert bad.picked.tolist() == [0, 0, 0]


def test_dropout_statistics_are_those_of_straight_lines():
    rows = dropout(fall).query("seed == 0")
    lost, faster, spread, bend = measured.dropout_statistics(rows)
    assert lost == pytest.approx(0.05)  # nothing is lost up to the share
    assert faster == pytest.approx(1.5 * np.mean([0.4, 0.3, 0.2]))
    assert spread == pytest.approx(0.05)
    # Slopes beyond 1.6, up to 0; without dropout 1.6 throughout, until nothing is left.
    assert bend == pytest.approx(1.6)


@pytest.fixture(scope="module")
def net():
    network = models.build("mlp", 0, inputs=12, widths=[6, 5], classes=3).eval()
    source = torch.Generator().manual_seed(0)
    return network, torch.randn(40, 12, generator=source), torch.arange(40) % 3


def test_zero_in_the_centred_network_is_the_mean_in_the_network(net):
    network, images, labels = net
    layers, means = ["act1", "act2"], ["act1_centred", "act2_centred"]
    centred = measured.centred(network, images, layers)
    assert torch.allclose(centred(images), network(images), atol=1e-5)
    expected = directions.cumulative_ablation(network, images, labels, layers, 3, "mean")
    found = directions.cumulative_ablation(centred, images, labels, means, 3)
    assert torch.allclose(found.accuracy, expected.accuracy, atol=0.03)
    maps = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    pictures = torch.rand(6, 1, 5, 5)
    with torch.no_grad():  # each element of a map has its own
        shifted = measured.centred(maps, pictures, ["1"])[:3](pictures)
    assert shifted.mean(0).abs().max() < 1e-6 < maps(pictures).mean((0, 2, 3)).max()


@pytest.mark.parametrize("profile", ["smoke", "full"])
def test_plan_names_each_network_by_its_training(profile):
    experiments = paper.plan(profile, "mnist5k") if profile == "smoke" else paper.plan(profile)
    specs = [str(spec) for e in experiments.values() for spec in e.specs]
    assert len(set(specs)) >= len(specs) - len(experiments["units"].specs)  # read in two ways
    own = experiments["training"].specs
    assert len({s["network"] for s in own}) == len({s["net"]["seed"] for s in own}) < len(own)
    changed = own[0]["net"] | {"rate": 0.5}
    assert measured.named(changed)["network"] != own[0]["network"]
    assert all(0 < v <= 1 for e in experiments.values() for v in e.scale.values())


def test_other_data_sets_are_refused():
    with pytest.raises(ValueError, match="made for MNIST"):
        paper.plan("smoke", "cifar10")
