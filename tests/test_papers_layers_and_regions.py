"""L1 to L4 and R1 to R4 on made-up tables: each verdict comes out both ways; and what is run."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from _settling import settle_all
from torch import nn

from replication import data, models
from replication.papers import layers_and_regions as paper
from replication.papers.layers_and_regions import ARCHS, CLAIMS, EARLY, LABELS, RANDOM, TRUE

INITIAL, TRAINED = paper.INITIAL, paper.TRAINED
WHOLE, SINGLE, JOINT = paper.WHOLE, paper.SINGLE, paper.JOINT
WIGGLE = (0.0, 0.01, -0.01, 0.005)


def reset_rows(seeds):
    """Return resets of which only the first layer's is critical, and only early on.

    Distances say nothing; |J| of the softmax falls with what is lost, that of the logits rises.
    """
    kinds = [(WHOLE, math.nan, math.nan)]
    kinds += [(SINGLE, *at) for at in product(range(4), (0.0, EARLY, math.nan))]
    places = [(*at, *kind) for at in product(ARCHS, LABELS, range(seeds)) for kind in kinds]
    rows = pd.DataFrame(places, columns=["arch", "labels", "seed", "kind", "position", "share"])
    lost = rows.position.map({0: 0.6, 1: 0.03, 2: 0.02, 3: 0.01}).where(rows.share == 0, 0.0)
    lost[(rows.share == EARLY) & (rows.position == 0)] = 0.05
    rows["wiggle"] = rows.seed.map(dict(enumerate(WIGGLE)))
    rows["test_accuracy"] = 0.9 + rows.wiggle - lost
    fresh = rows.position.notna() & rows.share.isna()
    rows.loc[fresh, "test_accuracy"] = 0.1 + rows.wiggle
    rows["rms"] = rows.position.map({0: 0.2, 1: 0.4, 2: 0.3, 3: 0.1})
    rows["linf"] = 3 * rows.rms
    rows["train_accuracy"] = (rows.test_accuracy + 0.05).where(rows.kind == SINGLE, 1.0)
    damage = 1 - rows.train_accuracy
    return rows.assign(jacobian=2 - damage, logit_jacobian=20 + damage, transitions=100.0)


def region_rows(seeds):
    """Return networks whose counts are what the claims say, up to a constant."""
    places = product((1, 2, 4), (32, 64, 128), LABELS, (INITIAL, "between", TRAINED), range(seeds))
    rows = pd.DataFrame(places, columns=["depth", "neurons", "labels", "stage", "seed"])
    rows["train_accuracy"] = np.where(rows.stage == TRAINED, 1.0, 0.1)
    wiggle = rows.seed.map(dict(enumerate(WIGGLE)))
    factor = np.where(rows.stage == TRAINED, 1.3, 1) * np.exp(wiggle * np.log(rows.neurons) / 4)
    distance = 0.3 / rows.neurons / factor
    line, plane = 0.4 * rows.neurons * factor, 0.3 * rows.neurons**2 / 2 * factor
    return rows.assign(line=line, plane=plane, distance=distance, along=70 * distance)


def world(where="seed >= 0", seeds=4, **columns):
    """Return the tables of a world in which every claim holds, but for `columns` of some rows."""
    tables = reset_rows(seeds), region_rows(seeds)
    for name, value in columns.items():
        table = tables[name in ("line", "plane", "distance", "along") or "stage" in where]
        rows = table.query(where)
        table.loc[rows.index, name] = rows.eval(value) if isinstance(value, str) else value
    return tables


def settle(tables):
    return settle_all(CLAIMS, paper.statistics(*tables))


def test_all_claims_hold_in_a_world_made_for_them_and_two_seeds_settle_nothing():
    verdicts = {name: settled.verdict for name, settled in settle(world()).items()}
    assert verdicts == {f"{c}{i}": "reproduced" for c in "LR" for i in range(1, 5)}
    assert {s.verdict for s in settle(world(seeds=2)).values()} == {"inconclusive"}


@pytest.mark.parametrize(
    ("name", "part", "where", "columns"),
    [
        ("L1", 0, "share != share and position == 2", {"test_accuracy": "0.7 + wiggle"}),
        ("L2", 0, "share == 0 and position == 0", {"test_accuracy": "0.85"}),
        ("L2", 1, "share == 0 and position == 3", {"test_accuracy": "0.7"}),
        ("L3", 0, "share == 0.1 and position == 0", {"test_accuracy": "0.35"}),
        ("L4", 0, "position >= 0", {"rms": "4 - position"}),
        ("L4", 1, "position >= 0", {"linf": "4 - position"}),
        ("R1", 0, "seed >= 0", {"line": "line * (neurons / 64) ** 0.5"}),
        ("R1", 1, "seed >= 0", {"line": "line * 4 ** (depth - 1)"}),  # exponential in depth
        ("R2", 0, "seed >= 0", {"plane": "plane * (neurons / 64) ** 0.9"}),
        ("R2", 1, "seed >= 0", {"plane": "0.05 * plane"}),
        ("R3", 0, "seed >= 0", {"distance": "distance * (neurons / 64) ** 0.5"}),
        ("R3", 1, "seed >= 0", {"along": "along * (neurons / 64) ** -0.5"}),
        *(
            ("R4", part, f"stage == 'trained' and labels == '{labels}'", {what: f"10 * {what}"})
            for part, (what, labels) in enumerate(product(("line", "plane"), LABELS))
        ),
    ],
)
def test_each_part_of_each_claim_is_refuted_where_it_does_not_hold(name, part, where, columns):
    settled = settle(world(where, **columns))[name]
    assert (
        settled.verdict in ("partly", "not reproduced")
        and settled.parts[part].verdict == "not reproduced"
    )
    others = [p.verdict for i, p in enumerate(settled.parts) if i != part]
    assert others == ["reproduced"] * (len(settled.parts) - 1)


def test_statistics_are_the_ones_their_rules_name():
    found = paper.statistics(*world())
    assert found["L1"][0] == pytest.approx(0.1)
    assert [part[0] for part in found["L2"]] == pytest.approx([0.6, 0.03])
    assert found["L3"][0] == pytest.approx(1 - 0.05 / 0.6)
    # losses rank 4 3 2 1, distances 2 4 3 1
    assert found["L4"][0][0] == found["L4"][1][0] == pytest.approx(0.4)
    assert [part[0] for part in found["R1"] + found["R3"]] == pytest.approx([0] * 4)
    assert found["R1"][0][1] == pytest.approx(0.01 / 4)
    assert [part[0] for part in found["R2"]] == pytest.approx([0, -math.log(0.3)])
    assert [part[0] for part in found["R4"]] == pytest.approx([math.log(1.3)] * 4)


@pytest.mark.parametrize(
    ("where", "columns"),
    [
        ("labels == 'random'", {"test_accuracy": "0.5"}),  # nothing of L1 to L4
        ("stage == 'between'", {"line": "1", "plane": "1e9", "distance": "1", "along": "1"}),
    ],
)
def test_other_labels_and_stages_settle_nothing(where, columns):
    assert paper.statistics(*world(where, **columns)) == paper.statistics(*world())


def test_what_is_undefined_is_nan():
    harmless = {"test_accuracy": "0.89 + wiggle"}
    resets, regions = world("share == 0 and position == 0", **harmless)
    assert np.isnan(paper.statistics(resets, regions)["L3"]).all()  # nothing to restore
    usual = paper.statistics(*world())
    some = resets[(resets.seed > 0) | (resets.arch != "resnet")]  # L4 needs all three networks
    assert np.isnan(paper.statistics(some, regions)["L4"]).tolist() == 2 * [[True] + 3 * [False]]
    few = settle(world("neurons == 128", plane=math.nan))["R2"]  # planes that were not counted
    assert few.verdict == "reproduced"
    assert settle(world(plane=math.nan))["R2"].verdict == "inconclusive"
    # networks that did not memorise, of which none or some are left
    where = "stage == 'trained' and labels == 'random'"
    none = paper.statistics(*world(where, train_accuracy="0.9"))["R4"]
    assert np.isnan(none[1] + none[3]).all() and none[::2] == usual["R4"][::2]
    bad = {"line": "99 * line", "plane": "99 * plane", "train_accuracy": "0.98"}
    left = paper.statistics(*world(f"{where} and neurons == 32", **bad))["R4"]
    assert left[1] == pytest.approx(usual["R4"][1]) and left[3] == pytest.approx(usual["R4"][3])
    empty = paper.statistics(resets[:0], regions[:0])
    assert all(np.isnan(np.ravel(values)).all() for values in empty.values())


def test_slopes_need_two_sizes_and_counts_above_zero():
    rows = world()[1].query("seed == 0 and stage == 'initial' and labels == 'true'")
    assert math.isnan(paper.slope_error(rows[rows.neurons == 32], "line", 1))
    assert math.isnan(paper.slope_error(rows.assign(distance=0.0), "distance", -1))
    assert math.isnan(paper.depth_effect(rows[rows.depth == 1], "line"))
    steeper = rows.assign(line=rows.neurons**1.5 * rows.depth.map({1: 2.0, 2: 14.0, 4: 1.0}))
    assert paper.slope_error(steeper, "line", 1) == pytest.approx(0.5)
    assert paper.depth_effect(steeper, "line") == pytest.approx(math.log(7))


def test_open_question_ranks_within_seeds_and_compares_with_the_trained_network():
    resets = world()[0]
    joint = resets[resets.kind == SINGLE].assign(kind=JOINT, position=math.nan)
    changes = paper.with_changes(pd.concat([resets, joint]))
    assert len(changes) == 2 * len(joint)
    np.testing.assert_allclose(changes.jacobian_ratio, 1 - changes.lost / 2)
    table = paper.sensitivity_of_resets(changes).set_index(["arch", "labels", "measure"])
    assert len(table) == 3 * 2 * 3
    falls, rises, flat = (table.loc[(paper.FCN, TRUE, name)] for name in paper.MEASURES)
    assert [falls.spearman, rises.spearman] == pytest.approx([-1, 1])
    assert falls.low <= falls.spearman <= falls.high and falls.seeds == 4
    assert math.isnan(flat.spearman) and flat.seeds == 0 and flat.ratio_when_broken == 1
    assert falls.ratio_when_broken < 1 < rises.ratio_when_broken
    single = paper.sensitivity_of_resets(changes[changes.seed == 0])
    assert single.spearman.notna().any() and single.low.isna().all()


# ------------------------------------------------------------------ what is run


def test_layers_are_dense_layers_convolutions_and_blocks_with_their_normalisation():
    resnet = models.build("resnet", depth=8, width=0.0625, channels=3)
    layers = paper.layers_of(resnet)
    assert layers["conv1"] == ["conv1", "bn1"] and list(layers)[-1] == "fc"
    of_layers = {
        f"{module}.{name}"
        for modules in layers.values()
        for module in modules
        for name, _ in resnet.get_submodule(module).named_parameters()
    }
    assert of_layers == {name for name, _ in resnet.named_parameters()}


def test_plan_runs_what_its_settings_say():
    split = data.load("mnist5k", subset=(40, 20))
    small = paper.averaged(split, 2)
    assert small.train.images.shape == (40, 1, 14, 14) and "14×14" in small.describe()
    assert small.test.images[3, 0, 0, 1] == split.test.images[3, 0, :2, 2:4].mean()
    experiments = paper.plan("smoke", "mnist5k", "cpu")
    resnet = [spec for spec in experiments["resets"].specs if spec["arch"] == "resnet"]
    assert {spec["inputs"] for spec in resnet} == {28 * 28} and len(resnet) == 2
    untrained = [s for s in experiments["regions"].specs if s["init"] == paper.DEFAULT]
    assert len(untrained) == 4 and not any(spec["epochs"] for spec in untrained)


def test_one_network_of_each_experiment_gives_its_rows():
    experiments = paper.plan("smoke", "mnist5k", "cpu")
    rows = paper.reset_networks(experiments["resets"].specs[-1], "cpu")  # the FCN
    assert rows.kind.value_counts().to_dict() == {WHOLE: 1, SINGLE: 4 * 2, JOINT: 3}
    known = rows[rows.share == 0]
    np.testing.assert_allclose(known.rms, known.l2 / np.sqrt([784 * 256 + 256, 65792, 65792, 2570]))
    spec = next(s for s in experiments["regions"].specs if s["labels"] == RANDOM)
    rows = paper.region_rows(spec, "cpu")
    assert rows.stage.tolist() == [INITIAL, TRAINED] and rows.epoch.tolist() == [0, 4]
    assert (rows.linear <= rows.line).all() and rows.certified.eq(1).all()


def test_networks_of_regions_start_as_in_the_paper_and_train_in_place():
    split = data.load("mnist5k", subset=(200, 20))
    spec = {"neurons": 512, "depth": 2, "seed": 0, "init": paper.HE}
    model = paper.region_network(spec, split.train, 10)
    for layer in (layer for layer in model if isinstance(layer, nn.Linear)):
        assert layer.weight.std().item() == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.05)
        assert layer.bias.std().item() < 0.002
    spec |= {"epochs": 4, "batch_size": 50}
    before, unchanged = model[1].weight.clone(), []
    for at in paper.train_to((0.0, 0.5, 1.0), model, spec, split.train):
        unchanged.append((*at, torch.equal(model[1].weight, before)))
    assert unchanged == [(0.0, 0, True), (0.5, 2, False), (1.0, 4, False)]
