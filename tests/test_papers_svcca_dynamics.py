"""The statistics of V1 to V8 on made-up tables: each verdict comes out both ways."""

import math

import numpy as np
import pandas as pd
import pytest
from _settling import settle_all

from replication.papers import svcca_dynamics as rules
from replication.papers.svcca_dynamics import CLAIMS, CONVNET_DEPTH

SEEDS = (0, 1, 2, 3)
WIGGLE = (0.0, 0.004, -0.004, 0.002)
EPOCHS = np.arange(0, 11.0)
CONVNET = ["c1", "c2", "bn1", "p1", "c3", "c4", "c5", "bn2", "p2"]
CONVNET += ["fc1", "bn3", "fc2", "bn4", "logits"]
BEFORE = {"bn1": "c2", "bn2": "c5", "bn3": "fc1", "bn4": "fc2"}
BLOCKS = [f"block{stage}_{i}" for stage in (1, 2, 3) for i in (1, 2)]
RESNET = ["act1", *[part for b in BLOCKS for part in (f"{b}.act1", b)], "fc"]


def world(seeds=SEEDS, **changed):
    """Return the tables of a world in which every claim but those changed holds.

    Each function in `changed` gives the value of one kind, with the wiggle of the seed added.
    """
    of = {
        "accuracy": lambda method, k: 0.7 if method == "SVCCA" and k >= 20 else 0.5,
        "kept": lambda k: 1.0 - 0.1 * (k < 30),
        "passes": lambda model, depth: 2 + depth,
        "block": lambda norm: 1.0,
        "grid": lambda inside: 0.5 if inside else 0.8,
        "frozen": lambda: (0.0, 0.75),
        "pair": lambda depth: 0.9 if depth in (0, 7) else 0.4,
        "cross": lambda depth: 0.9 - 0.05 * depth,
        "class": lambda role, name, depth: 0.3 * (role == "unlike") + depth / 30,
        "compressed": lambda layers, share: 0.7 - 0.005 * layers,
        "unit": lambda: (0.1, 0.2),
        "direction": lambda: (0.95, 0.8),
    } | changed
    tables = {name: [] for name in TABLES}
    for s in seeds:
        w, own = WIGGLE[s], {"seed": s}
        layer = own | {"layer": "fc1", "width": 128}
        for k in (10, 20, 25, 26, 50):
            for method in ("SVCCA", "most active", "random"):
                row = {"method": method, "k": k, "accuracy": of["accuracy"](method, k) + w}
                tables["projected"].append(layer | row)
        row = {"method": "all neurons", "k": 128, "accuracy": 0.7}
        tables["projected"] += [layer | row, layer | {"layer": "p2", "accuracy": 9.0} | row]
        for k in (15, 30):
            row = {"method": "SVCCA", "k": k, "kept": of["kept"](k) + w / 10}
            tables["toy"] += [own | row, own | row | {"method": "random", "kept": 0.0}]
        for model, layers in (("convnet", CONVNET_DEPTH), ("resnet", ["act1", *BLOCKS])):
            for depth, name in enumerate(layers):
                at = of["passes"](model, depth)
                row = own | {"model": model, "layer": name, "depth": depth}
                for epoch in EPOCHS:
                    value = min(1.0, 0.5 + 0.4 * epoch / at)  # 0.9 at epoch `at`
                    tables["curves"].append(row | {"epoch": epoch, "value": value})
        tables["panes"] += _panes("convnet", CONVNET, s, lambda a, b: _pair(a, b, of["block"]))
        tables["panes"] += _panes("resnet", RESNET, s, lambda a, b: of["grid"](b.endswith(".act1")))
        gain, share = of["frozen"]()
        for step in (0, 100):
            plain = own | {"frozen": False, "step": step, "operations": 10.0 * step}
            tables["freezing"].append(plain | {"test_accuracy": 0.1 + step / 200})
            row = {"frozen": True, "test_accuracy": 0.1 + step / 200 + gain + w}
            tables["freezing"].append(plain | row | {"operations": 10 * step * share})
        for depth, name in enumerate([*CONVNET_DEPTH, "logits"]):
            row = {"layer": name, "depth": depth, "value": of["pair"](depth) + w * (depth % 7 > 0)}
            tables["pairs"].append(own | row | {"null": 0.1})
            for resnet in ("act1", "fc"):
                value = of["cross"](depth) - 0.2 * (resnet == "fc")
                row = {"row": resnet, "column": name, "depth": depth, "value": value, "null": 0.1}
                tables["cross"].append(own | row)
        for role, names in (("alike", ("cat", "dog")), ("unlike", ("truck", "ship"))):
            for name in names:
                for depth in range(8):
                    value = of["class"](role, name, depth) + (w if role == "unlike" else 0)
                    row = {"role": role, "name": name, "layer": str(depth), "depth": depth}
                    tables["classes"].append(own | row | {"value": value})
        for layers in range(6):
            for share in (0.35, 0.5) if layers else (1.0,):
                row = {"partner": "network", "layers": layers, "share": share}
                value = of["compressed"](layers, share) + w * (layers > 0)
                tables["compressed"].append(own | row | {"accuracy": value})
                tables["compressed"].append(own | row | {"partner": "logits", "accuracy": 0.1})
        for kind in ("unit", "direction"):
            correlation, share = of[kind]()
            row = {"kind": kind, "correlation": correlation + w, "class_share": share + w}
            tables["alignment"] += [own | row | {"index": 0}, own | row | {"index": 1}]
    return {name: pd.DataFrame(rows, columns=TABLES[name]) for name, rows in tables.items()}


TABLES = {
    "projected": ["seed", "layer", "width", "method", "k", "accuracy"],
    "toy": ["seed", "method", "k", "kept"],
    "curves": ["seed", "model", "layer", "depth", "epoch", "value"],
    "panes": ["seed", "model", "row", "column", "value"],
    "freezing": ["seed", "frozen", "step", "test_accuracy", "operations"],
    "pairs": ["seed", "layer", "depth", "value", "null"],
    "cross": ["seed", "row", "column", "depth", "value", "null"],
    "classes": ["seed", "role", "name", "layer", "depth", "value"],
    "compressed": ["seed", "partner", "layers", "share", "accuracy"],
    "alignment": ["seed", "kind", "index", "correlation", "class_share"],
}


def _pair(a, b, block):
    if a == b:
        return 1.0
    return block(b) if BEFORE.get(b) == a else block(a) if BEFORE.get(a) == b else 0.7


def _panes(model, layers, seed, value):
    row = {"seed": seed, "model": model}
    return [row | {"row": a, "column": b, "value": value(a, b)} for a in layers for b in layers]


def settle(tables):
    return settle_all(CLAIMS, rules.statistics(tables))


def test_claims_are_v1_to_v8():
    assert [claim.id for claim in CLAIMS] == [f"V{i}" for i in range(1, 9)]


def test_all_claims_hold_in_a_world_made_for_them():
    verdicts = {name: found.verdict for name, found in settle(world()).items()}
    assert verdicts == {claim.id: "reproduced" for claim in CLAIMS}


# claim, the part that decides (from 0), and what is otherwise in that world
OTHER_WORLDS = [
    ("V1", 0, {"accuracy": lambda m, k: 0.6 if m == "SVCCA" else 0.5}),
    ("V1", 1, {"accuracy": lambda m, k: 0.9 if m == "random" else 0.7}),
    ("V1", 1, {"accuracy": lambda m, k: 0.9 if m == "most active" else 0.7}),
    ("V2", 0, {"kept": lambda k: 0.95}),
    ("V3", 0, {"passes": lambda m, d: 9 - d if m == "convnet" else 2 + d}),
    ("V3", 1, {"passes": lambda m, d: 9 - d if m == "resnet" else 2 + d}),
    ("V3", 2, {"block": lambda norm: 0.6}),
    ("V3", 3, {"grid": lambda inside: 0.8 if inside else 0.5}),
    ("V4", 0, {"frozen": lambda: (-0.03, 0.75)}),
    ("V4", 1, {"frozen": lambda: (0.02, 1.0)}),
    ("V5", 0, {"pair": lambda d: 0.9 if d == 7 else 0.2 if d == 0 else 0.4}),
    ("V5", 1, {"pair": lambda d: 0.9 if d == 0 else 0.2 if d == 7 else 0.4}),
    ("V5", 2, {"cross": lambda d: 0.3 + 0.05 * d}),
    ("V6", 0, {"class": lambda r, n, d: 0.1 * (r == "unlike") + 0.9 * (n == "cat")}),
    ("V6", 1, {"class": lambda r, n, d: -0.3 * (r == "unlike") + d / 30}),
    ("V7", 0, {"compressed": lambda layers, share: 0.7 - 0.1 * (layers == 5 and share == 0.35)}),
    ("V8", 0, {"unit": lambda: (0.6, 0.2)}),
    ("V8", 1, {"direction": lambda: (0.5, 0.8)}),
    ("V8", 2, {"unit": lambda: (0.1, 0.9)}),
]


@pytest.mark.parametrize(("name", "part", "changed"), OTHER_WORLDS)
def test_each_part_of_each_claim_is_refuted_where_it_does_not_hold(name, part, changed):
    found = settle(world(**changed))[name]
    assert found.parts[part].verdict == "not reproduced"
    assert found.verdict == "not reproduced"


def test_two_seeds_settle_nothing():
    assert {found.verdict for found in settle(world(seeds=(0, 1))).values()} == {"inconclusive"}


def test_nothing_measured_is_undefined():
    found = settle(world(seeds=()))
    assert {item.verdict for item in found.values()} == {"inconclusive"}


# ------------------------------------------------------------------ the numbers themselves


def test_statistics_are_the_ones_their_rules_name():
    found = rules.statistics(world())
    first = {id: [part[0] for part in series] for id, series in found.items() if id not in "V2 V7"}
    assert first["V1"] == pytest.approx([0.0, 0.2])
    assert found["V2"][0] == 1.0
    assert first["V3"] == pytest.approx([1, 1, 0.3, 0.3])
    assert first["V4"] == pytest.approx([0.0, 0.75])
    assert first["V5"] == pytest.approx([0.5, 0.5, -1])
    assert first["V6"] == pytest.approx([-0.3, 0.3])
    assert found["V7"][0] == pytest.approx(-0.025)
    assert first["V8"] == pytest.approx([0.1, 0.95, 0.6])


def curve(values):
    return pd.DataFrame({"epoch": range(len(values)), "value": values})


@pytest.mark.parametrize(
    ("values", "epoch"),
    [
        ([0.5, 0.8, 1.0, 1.0], 1.5),  # between checkpoints
        ([0.5, 0.95, 0.8, 1.0], 2.5),  # for good, not for once
        ([0.95, 0.9, 1.0, 1.0], 0.0),  # from the start
        ([0.1, 0.2, 0.3, 0.4], math.nan),
    ],
)
def test_a_layer_passes_when_it_stays_above(values, epoch):
    found = rules.passing(curve(values)[::-1])  # whatever the order of the rows
    assert found == pytest.approx(epoch, nan_ok=True)


def test_the_relative_score_does_not_see_where_a_layer_began():
    values = np.array([0.0, 0.2, 0.8, 1.0])
    plain = rules.passing(curve(values), 0.5, relative=True)
    assert plain == pytest.approx(1.5)
    assert rules.passing(curve(0.7 + 0.3 * values), 0.5, relative=True) == pytest.approx(plain)
    assert math.isnan(rules.passing(curve(np.ones(4)), 0.5, relative=True))  # no way to go


def test_layers_that_never_pass_or_tie_leave_the_order_to_the_others():
    tables = world(passes=lambda model, depth: 40 if depth > 4 else 2 + depth)
    own = tables["curves"].query("seed == 0 and model == 'convnet'")
    assert rules.bottom_up(own) == pytest.approx(1)
    assert math.isnan(rules.bottom_up(own[own.depth < 2]))
    assert math.isnan(rules.bottom_up(own[:0]))


def test_grids_are_read_where_the_size_stays():
    panes = _panes("resnet", RESNET, 0, lambda a, b: 0.0 if "2_1" in b or "3_1" in b else 0.5)
    keep = {"block1_1", "block1_2", "block2_2", "block3_2"}
    for row in panes:
        if row["column"] in keep:
            before = RESNET[RESNET.index(row["column"]) - 2]
            row["value"] = 0.9 if row["row"] == before else 0.0
    assert rules._grid(pd.DataFrame(panes)) == pytest.approx(0.4)


def test_more_or_fewer_than_two_like_classes_are_undefined():
    tables = world()
    tables["classes"] = tables["classes"].query("name != 'dog'")
    assert settle(tables)["V6"].verdict == "inconclusive"
