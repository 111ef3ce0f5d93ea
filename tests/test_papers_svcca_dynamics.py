"""The statistics of V1 to V8 on made-up tables: each verdict comes out both ways."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from _settling import settle_all

from replication.papers import svcca_dynamics as svcca
from replication.papers.svcca_dynamics import CLAIMS, CONV_LAYERS, CONVNET_DEPTH

WIGGLE = (0.0, 0.004, -0.004, 0.002)  # by seed
BEFORE = {"bn1": "c2", "bn2": "c5", "bn3": "fc1", "bn4": "fc2"}
BLOCKS = [f"block{stage}_{i}" for stage in (1, 2, 3) for i in (1, 2)]
RESNET = ["act1", *[part for b in BLOCKS for part in (f"{b}.act1", b)], "fc"]
LAYERS = {"convnet": CONVNET_DEPTH, "resnet": ["act1", *BLOCKS]}
HOLDS = {  # the value of each kind in a world in which every claim holds
    "accuracy": lambda method, k: 0.7 if method == "SVCCA" and k >= 20 else 0.5,
    "kept": lambda k: 1.0 - 0.1 * (k < 30),
    "passes": lambda model, depth: 2 + depth,
    "block": lambda norm: 1.0,
    "grid": lambda inside: 0.5 if inside else 0.8,
    "frozen": lambda: (0.0, 0.75),
    "pair": lambda depth: 0.9 if depth in (0, 7) else 0.4,
    "cross": lambda depth: 0.9 - 0.05 * depth,
    "class": lambda role, name, d: (role == "unlike") * (0.3 if d < 4 else 0.1) + d / 30,
    "compressed": lambda layers, share: 0.7 - 0.005 * layers,
    "unit": lambda: (0.1, 0.2),
    "direction": lambda: (0.95, 0.8),
}


def similarity_of(a, b, block):
    if a == b:
        return 1.0
    return block(b) if BEFORE.get(b) == a else block(a) if BEFORE.get(a) == b else 0.7


def rows_of(seed, of):
    """Yield (table, values of its columns but the seed) of one seed, its wiggle added."""
    w = WIGGLE[seed]
    for k, method in product((10, 20, 25, 26, 50), ("SVCCA", "most active", "random")):
        yield "projected", ("fc1", 128, method, k, of["accuracy"](method, k) + w)
    yield "projected", ("fc1", 128, "all neurons", 128, 0.7)
    yield "projected", ("p2", 128, "all neurons", 128, 9.0)  # another layer does not count
    for k in (15, 30):
        yield "toy", ("SVCCA", k, of["kept"](k) + w / 10)
        yield "toy", ("random", k, 0.0)
    for model, layers in LAYERS.items():
        for (depth, name), epoch in product(enumerate(layers), np.arange(11.0)):
            value = min(1.0, 0.5 + 0.4 * epoch / of["passes"](model, depth))  # 0.9 when it passes
            yield "curves", (model, name, depth, epoch, value)
    for a, b in product(CONV_LAYERS, repeat=2):
        yield "panes", ("convnet", a, b, similarity_of(a, b, of["block"]))
    for a, b in product(RESNET, repeat=2):
        yield "panes", ("resnet", a, b, of["grid"](b.endswith(".act1")))
    gain, share = of["frozen"]()
    for step in (0, 100):
        yield "freezing", (False, step, 0.1 + step / 200, 10.0 * step)
        yield "freezing", (True, step, 0.1 + step / 200 + gain + w, 10.0 * step * share)
    for depth, name in enumerate([*CONVNET_DEPTH, "logits"]):
        yield "pairs", (name, depth, of["pair"](depth) + w * (depth % 7 > 0), 0.1)
        for resnet in ("act1", "fc"):
            value = of["cross"](depth) if resnet == "act1" else 0.01 * depth  # the best counts
            yield "cross", (resnet, name, depth, value, 0.1)
    for role, names in (("alike", ("cat", "dog")), ("unlike", ("truck", "ship"))):
        for name, depth in product(names, range(8)):
            value = of["class"](role, name, depth) + w * (role == "unlike")
            yield "classes", (role, name, str(depth), depth, value)
    for layers, share in [(0, 1.0), *product(range(1, 6), (0.35, 0.5))]:
        value = of["compressed"](layers, share) + w * (layers > 0)
        yield "compressed", ("network", layers, share, value)
        yield "compressed", ("logits", layers, share, 0.1)
    for kind, index in product(("unit", "direction"), (0, 1)):
        correlation, share = of[kind]()
        yield "alignment", (kind, index, correlation + w, share + w)


TABLES = {
    "projected": ["layer", "width", "method", "k", "accuracy"],
    "toy": ["method", "k", "kept"],
    "curves": ["model", "layer", "depth", "epoch", "value"],
    "panes": ["model", "row", "column", "value"],
    "freezing": ["frozen", "step", "test_accuracy", "operations"],
    "pairs": ["layer", "depth", "value", "null"],
    "cross": ["row", "column", "depth", "value", "null"],
    "classes": ["role", "name", "layer", "depth", "value"],
    "compressed": ["partner", "layers", "share", "accuracy"],
    "alignment": ["kind", "index", "correlation", "class_share"],
}


def world(seeds=range(4), **changed):
    """Return the tables of a world in which every claim but those changed holds."""
    tables = {name: [] for name in TABLES}
    for seed in seeds:
        for name, values in rows_of(seed, HOLDS | changed):
            tables[name].append((seed, *values))
    return {
        name: pd.DataFrame(rows, columns=["seed", *TABLES[name]]) for name, rows in tables.items()
    }


def settle(tables):
    return settle_all(CLAIMS, svcca.statistics(tables))


def test_all_claims_hold_in_a_world_made_for_them():
    verdicts = {id: settled.verdict for id, settled in settle(world()).items()}
    assert verdicts == {f"V{i}": "reproduced" for i in range(1, 9)}


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


@pytest.mark.parametrize(("id", "part", "changed"), OTHER_WORLDS)
def test_each_part_of_each_claim_is_refuted_where_it_does_not_hold(id, part, changed):
    settled = settle(world(**changed))[id]
    assert settled.verdict in ("partly", "not reproduced")
    assert settled.parts[part].verdict == "not reproduced"


@pytest.mark.parametrize("seeds", [(), (0, 1)])
def test_two_seeds_or_none_settle_nothing(seeds):
    assert {item.verdict for item in settle(world(seeds)).values()} == {"inconclusive"}


def test_statistics_are_the_ones_their_rules_name():
    values = svcca.statistics(world())
    assert values["V2"][0] == 1.0
    assert values["V7"][0] == pytest.approx(-0.025)
    first = {id: [part[0] for part in values[id]] for id in ("V1", "V3", "V4", "V5", "V6", "V8")}
    assert first["V1"] == pytest.approx([0.0, 0.2])
    assert first["V3"] == pytest.approx([1, 1, 0.3, 0.3])
    assert first["V4"] == pytest.approx([0.0, 0.75])
    assert first["V5"] == pytest.approx([0.5, 0.5, -1])
    assert first["V6"] == pytest.approx([-0.2, 0.3])
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
    passed = svcca.passing(curve(values)[::-1])  # whatever the order of the rows
    assert passed == pytest.approx(epoch, nan_ok=True)


def test_the_relative_score_does_not_see_where_a_layer_began():
    values = np.array([0.0, 0.2, 0.8, 1.0])
    for begun in (values, 0.7 + 0.3 * values):
        assert svcca.passing(curve(begun), 0.5, relative=True) == pytest.approx(1.5)
    assert math.isnan(svcca.passing(curve(np.ones(4)), 0.5, relative=True))  # no way to go


def test_layers_that_never_pass_or_tie_leave_the_order_to_the_others():
    tables = world(passes=lambda model, depth: 40 if depth > 4 else 2 + depth)
    own = tables["curves"].query("seed == 0 and model == 'convnet'")
    assert svcca.bottom_up(own) == pytest.approx(1)
    assert math.isnan(svcca.bottom_up(own[own.depth < 2]))


def test_grids_are_read_where_the_size_stays():
    panes = world(seeds=[0], grid=lambda inside: 0.5)["panes"].query("model == 'resnet'")
    stay = panes.column.isin(["block1_1", "block1_2", "block2_2", "block3_2"])
    before = panes.column.map({name: RESNET[i - 2] for i, name in enumerate(RESNET)})
    value = np.where(stay, np.where(panes.row == before, 0.9, 0.0), 0.5)
    tables = world() | {"panes": panes.assign(value=value)}
    assert svcca.statistics(tables)["V3"][3] == pytest.approx([0.4])


def test_more_or_fewer_than_two_like_classes_are_undefined():
    tables = world()
    tables["classes"] = tables["classes"].query("name != 'dog'")
    assert settle(tables)["V6"].verdict == "inconclusive"
