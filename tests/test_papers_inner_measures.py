"""Notebook 09's measures against closed forms, and its claims settled both ways."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from replication import claims, models
from replication.papers import inner_measures as paper
from replication.papers.inner_measures import ARMS, BASELINES, INNER, LABELS, RECIPES, SIGNS


def test_path_norm_is_the_sum_over_paths_of_squared_weights():
    net = models.build("mlp", 0, inputs=3, widths=[4, 2], classes=2)
    first, second, third = (getattr(net, f"fc{i}").weight.double() for i in (1, 2, 3))
    paths = torch.einsum("ok,kj,ji->okji", third, second, first).square().sum()
    assert paper.path_norm(net, torch.rand(1, 3)) == pytest.approx(paths.log().item() / 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_path_norm_takes_batch_norm_as_the_map_that_it_is():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()).eval()
    net[1].running_var.uniform_(0.5, 2)
    net[1].running_mean.normal_()
    net[1].weight.data.uniform_(-1, 1)
    scale = net[1].weight / (net[1].running_var + net[1].eps).sqrt()
    folded = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten())
    folded[0].weight.data = net[0].weight.data * scale[:, None, None, None].data
    image = torch.rand(1, 2, 5, 5)
    assert paper.path_norm(net, image) == pytest.approx(paper.path_norm(folded, image))


def test_margin_is_free_of_the_logits_scale_and_negative_of_mistakes():
    net = models.build("mlp", 0, inputs=6, widths=[5], classes=3)
    images = torch.randn(50, 6)
    labels = net(images).argmax(1)
    value = paper.margin(net, images, labels)
    with torch.no_grad():
        net.fc2.weight *= 7
        net.fc2.bias *= 7
    assert value == pytest.approx(paper.margin(net, images, labels), rel=1e-5) and value > 0
    assert paper.margin(net, images, (labels + 1) % 3) < 0


NAMES = [*paper.architectures(paper.SETTINGS["full"]["networks"])]


def made_up(order, arms=ARMS, seeds=3, spread=0.3):
    """Return networks whose measures order the gap as `order` says of (arm, architecture, name)."""
    rows, source = {}, np.random.default_rng(0)
    for arm in arms:
        for seed in range(seeds):
            for name in NAMES:
                gaps = np.linspace(0.1, 0.1 + spread, 8)
                for i, gap in enumerate(gaps):
                    own = {"architecture": name, "net": {"seed": seed}, "gap": gap}
                    own |= {"train_accuracy": 1.0}
                    for kind, sign in SIGNS.items():
                        value = order(arm, name, kind)
                        own[kind] = sign * (-value * gap + (1 - abs(value)) * source.normal())
                    rows[arm, seed, name, i] = own
    table = pd.DataFrame(list(rows.values()))
    table.index = pd.MultiIndex.from_tuples([(arm, i) for i, (arm, *_) in enumerate(rows)])
    return table


def verdicts(table):
    where = {"dataset": "made up", "profile": "full", "notebook": paper.NOTEBOOK}
    found = paper.statistics(table)
    settled = claims.settle_all(paper.CLAIMS, found, {}, paper.gates(table), **where)
    return {item.claim.id: item.verdict for item in settled}


def test_measures_that_order_networks_reproduce_and_those_that_do_not_do_not():
    inner = made_up(lambda arm, name, kind: 0.97 if kind in INNER else -0.97)
    assert set(verdicts(inner).values()) == {"reproduced"}
    outer = made_up(lambda arm, name, kind: -0.97 if kind in INNER else 0.97)
    assert set(verdicts(outer).values()) == {"not reproduced"}
    assert "reproduced" not in verdicts(made_up(lambda arm, name, kind: 0.0)).values()
    found = verdicts(made_up(lambda arm, name, kind: 0.97 * (arm == LABELS)))
    assert found["G1"] == found["G3"] == "reproduced" != found["G2"]
    few = verdicts(made_up(lambda arm, name, kind: 1.0, spread=0.01))
    assert {few[id] for id in ("G2", "G5", "G6")} == {"not testable at this scale"}


def test_what_is_held_out_is_not_chosen_on():
    only = dict(zip(NAMES, INNER, strict=False))
    table = made_up(lambda arm, name, kind: 1.0 if only[name] == kind else -1.0)
    held = paper.held_out(paper.taus(table.loc[[LABELS]]), [*INNER])
    assert held.tolist() == pytest.approx([-1.0] * 12)  # each has a measure of its own
    assert paper.held_out(paper.taus(table[table.architecture == NAMES[0]]), [*INNER]).empty


def test_a_measure_may_order_within_architectures_and_not_across_them():
    table = made_up(lambda arm, name, kind: 1.0, arms=(LABELS,))
    table["EV1"] += 10.0 * table.architecture.map(NAMES.index)
    rows = paper.side_by_side(table)
    within = rows.loc[(LABELS, "EV1"), ["tau", "low", "high", "units"]]
    assert within.tolist() == pytest.approx([1, 1, 1, 12])
    assert rows.loc[(LABELS, "EV1"), "tau across"] < 0.3
    assert rows.loc[(LABELS, "margin"), "tau across"] > 0.99
    assert rows.loc[RECIPES].isna().to_numpy().all()
    few = paper.side_by_side(table[table.architecture == NAMES[0]])
    assert few.loc[(LABELS, "EV1"), "units"] == 3 and math.isnan(few.loc[(LABELS, "EV1"), "low"])


def test_networks_that_did_not_fit_are_left_out_and_close_the_gate():
    table = made_up(lambda arm, name, kind: 1.0)
    gates = paper.gates(table)
    assert (gates["G1"], gates["G5"]) == (1, pytest.approx(0.3))
    table["EV1"] = np.nan  # undefined: no tau of it
    assert "EV1" not in set(paper.taus(table).measure)
    table["train_accuracy"] = 0.5
    assert paper.taus(table).empty and paper.gates(table)["G1"] == 0
    assert all(math.isnan(v) for part in paper.statistics(table)["G1"] for v in part)


def test_a_network_is_measured_whole():
    specs = paper.plan("smoke", "mnist5k")[LABELS].specs
    rows = [paper.measure(dict(spec), "cpu") for spec in (specs[0], specs[3])]
    for row in rows:
        assert {*SIGNS, "gap"} <= row.keys() and all(map(math.isfinite, (row[k] for k in SIGNS)))
        assert row["gap"] == pytest.approx(row["train_accuracy"] - row["test_accuracy"])
    assert {*BASELINES}.isdisjoint(INNER) and RECIPES in ARMS
