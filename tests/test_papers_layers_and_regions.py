"""L1 to L10 and R1 to R7 on made-up tables: each verdict comes out both ways; and what is run."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from _settling import verdicts
from torch import nn

from replication import data, models
from replication.papers import layer_measurements as measured
from replication.papers import layers_and_regions as paper
from replication.papers.layer_measurements import HE, JOINT, RANDOM, SINGLE, TRUE, WHOLE, ZERO
from replication.papers.layers_and_regions import CLAIMS, DEPTHS, FIVE, PLANE

WIGGLE = (0.0, 0.01, -0.01, 0.005, -0.005)  # what tells seeds apart
SEEDS = range(len(WIGGLE))
DIGITS = data.load("mnist5k", subset=(200, 20))


def network(group, seed, losses, fresh=(), early=(), joint=(), names=None, width=256, top=0.98):
    """Return the rows of a network that loses so much at the reset of each layer."""
    own = {"group": group, "seed": seed, "network": f"{group} {width} {seed}", "width": width}
    w, rows = WIGGLE[seed], [own | {"kind": WHOLE, "test_accuracy": top, "train_accuracy": 1.0}]
    for kind, share in ((losses, 0.0), (early, paper.EARLY), (fresh, math.nan)):
        for position, lost in enumerate(kind):
            layer = names[position] if names else f"fc{position + 1}"
            row = {"kind": SINGLE, "layer": layer, "position": position, "share": share}
            row |= {"rms": 0.1 + 0.1 * position + w, "linf": 0.5 + 0.1 * position + w}
            rows.append(own | row | {"test_accuracy": top - lost - w, "train_accuracy": 1 - lost})
    for layers, lost in joint:
        row = {"kind": JOINT, "layer": " ".join(layers), "share": 0.0}
        rows.append(own | row | {"test_accuracy": top - lost - w, "train_accuracy": 1 - lost})
    return rows


def resets():
    """Return what resets do in a world in which L1 to L10 hold."""
    rows, blocks = [], ["conv1", "block1_1", "block1_2", "fc"]
    plain = [0.01 * (p + (p % 3)) for p in range(12)]  # rises with the distances, not perfectly
    for seed in SEEDS:
        w = WIGGLE[seed]
        first, chance = (0.36 + w, 0.06, 0.01, 0.04), (0.88, 0.88, 0.88, 0.81)
        rows += network("fcn", seed, first, chance, (0.04, 0, 0, 0))
        rows += network("widths", seed, (0.5, 0.5, 0.5, 0.5), width=16)
        rows += network("widths", seed, (0.4, *3 * (0.2 + 3 * w,)), width=64)
        rows += network("cifar", seed, (0.6, *3 * (0.1 + w,)), width=16)  # turned, as the paper's
        rows += network("cifar", seed, (0.6, *3 * (0.7 + w,)), width=64)
        together = ((FIVE, 0.87 + w), (FIVE[::2], 0.08))
        rows += network("deep", seed, (0.3, *5 * (0.03,)), joint=together)
        joint, drawn = [(("block1_2",), 0.6)], (0.5, 0.05, 0.06, 0.7 + w)
        rows += network(
            "resnet", seed, (0.3, 0.02, 0.03, 0.1), drawn, joint=joint, names=blocks, top=0.85
        )
        rows += network("resnet frozen", seed, (0.3,), names=["conv1"], top=0.8)
        rows += network("convnet", seed, plain[seed % 2 :] + plain[: seed % 2])
    return pd.DataFrame(rows)


def regions():
    """Return networks whose counts are what R1 to R7 say, up to a constant."""
    columns = ["depth", "neurons", "labels", "epoch", "seed"]
    grid = pd.DataFrame(product(DEPTHS, (48, 96, 192), (TRUE, RANDOM), (0, 1, 40), SEEDS))
    grid = grid.set_axis(columns, axis=1).assign(rate=paper.RATE, group="regions")
    wiggle = grid.seed.map(dict(enumerate(WIGGLE)))
    factor = np.where(grid.epoch > 0, 1.3 + wiggle, 1) * np.exp(wiggle * np.log(grid.neurons) / 4)
    counts = {
        "line": 0.4 * grid.neurons * factor * grid.depth**wiggle,
        "distance": 0.3 / grid.neurons / factor,
    }
    grid = grid.assign(**counts, **{PLANE: 0.6 * grid.neurons**2 / 2 * factor})
    grid = grid.assign(test_accuracy=0.9 + wiggle)
    rates = grid[(grid.neurons == 96) & (grid.depth == 3)].assign(group="rates")
    slow = rates[rates.labels == TRUE]
    slow = slow.assign(rate=paper.LOW, **{PLANE: 0.5 * slow[PLANE] * (1 + WIGGLE[1] * slow.seed)})
    fast = slow.assign(rate=paper.HIGH, test_accuracy=0.1)
    starts = grid[(grid.epoch == 0) & (grid.labels == TRUE)].assign(group="starts")
    few = starts.assign(start=ZERO, origin=2 * starts.line)
    tables = [
        grid,
        rates,
        slow,
        fast,
        starts.assign(start=HE, origin=(1 + wiggle) * starts[PLANE]),
        few,
    ]
    table = pd.concat(tables, ignore_index=True)
    return table.assign(network=table.group + table.start.fillna("") + table.seed.astype(str))


WORLD = pd.concat([resets(), regions()], ignore_index=True)


def world(*edits):
    """Return the tidy results in which all holds but what the edits (where, columns) say."""
    table = WORLD.assign(wiggle=WORLD.seed.map(dict(enumerate(WIGGLE))), plane=WORLD[PLANE])
    for where, columns in edits:
        rows = table.query(where)
        assert len(rows), where
        for name, value in columns.items():
            table.loc[rows.index, PLANE if name == "plane" else name] = rows.eval(value)
    return measured.tidy(table.set_index("group", append=True).swaplevel())


def test_all_claims_hold_in_a_world_made_for_them():
    assert verdicts(paper, world()) == {claim.id: "reproduced" for claim in CLAIMS}


FIRST = "group == 'fcn' and position == 0 and share == "
FRESH = "group == '{}' and {} and kind == 'single' and share != share"
UPPER = "group in ('widths', 'fcn') and position > 0 and share == 0"
NEAR = "1.1 - position / 4 + wiggle"
OPPOSITES = {
    "L1": [(FRESH.format("fcn", "position == 2"), {"test_accuracy": "0.6 + wiggle"})],
    "L2": [
        (FIRST + "0", {"test_accuracy": "0.97 + wiggle"}),
        ("group == 'fcn' and position == 3 and share == 0", {"test_accuracy": "0.5 + 2*wiggle"}),
    ],
    "L3": [(FIRST + "0.01", {"test_accuracy": "0.64 - wiggle"})],
    "L4": [("group == 'fcn' and position >= 0", {"rms": NEAR, "linf": NEAR})],
    "L4v": [("group == 'convnet' and position >= 0", {"rms": "2 - position / 10"})],
    "L5": [(UPPER, {"test_accuracy": "1 - width / 999 - wiggle * (width == 64)"})],
    "L6": [
        ("group == 'deep' and kind == 'joint'", {"test_accuracy": "0.96 + wiggle / 2"}),
        ("group == 'deep' and layer == 'fc2 fc4 fc6'", {"test_accuracy": "0.5 + wiggle"}),
    ],
    "L7": [("group == 'cifar' and position > 0", {"test_accuracy": "0.9 + wiggle"})],
    "L9": [
        (FRESH.format("resnet", "position < 3"), {"test_accuracy": "0.1 + wiggle"}),
        (FRESH.format("resnet", "position == 3"), {"test_accuracy": "0.7"}),
    ],
    "L10": [("group == 'resnet frozen' and kind == 'trained'", {"test_accuracy": "0.2"})],
    "R1": [("group == 'regions'", {"line": "line * (neurons * depth) ** 0.5 * depth"})],
    "R2": [("group == 'regions'", {"plane": "0.05 * plane"})],
    "R3": [("group == 'regions'", {"distance": "distance * neurons ** 0.5"})],
    "R4": [("group == 'regions' and epoch > 0", {"line": "9 * line", "plane": "9 * plane"})],
    "R5": [("group == 'rates'", {"plane": "9 * plane"})],
    "R6": [
        ("group == 'rates' and rate < 0.001", {"plane": "9 * plane"}),
        ("group == 'rates' and rate > 0.001", {"test_accuracy": "0.95 + 2 * wiggle"}),
    ],
    "R7": [("group == 'starts'", {"origin": "plane * (1 + 0.01 * wiggle * (start == @ZERO))"})],
}  # fmt: skip


@pytest.mark.parametrize("claim", [claim.id for claim in CLAIMS])
def test_each_claim_is_not_reproduced_where_the_opposite_holds(claim):
    assert verdicts(paper, world(*OPPOSITES[claim]))[claim] == "not reproduced"


def test_statistics_are_the_ones_their_rules_name():
    found = paper.statistics(world())
    assert found["L1"][0] == pytest.approx(0.07)
    assert [part[0] for part in found["L2"]] == pytest.approx([0.3, 0.06])
    assert found["L3"][0] == pytest.approx(1 - 0.04 / 0.36)
    assert [part[0] for part in found["L4"]] == pytest.approx([math.log(4), math.log(8 / 5)])
    assert [part[0] for part in found["L6"]] == pytest.approx([0.84, 0.08])
    assert found["L7"][0] == pytest.approx(0.5)
    assert found["L9"][0] == pytest.approx(0.7 - 0.055)
    assert found["L10"][0] == pytest.approx(0.8 - 0.25)
    assert [part[1] for part in found["R1"]] == pytest.approx([*4 * [0.01 / 4], 0.01 * math.log(6)])
    assert [part[0] for part in found["R2"]] == pytest.approx(4 * [math.log(0.6)])
    assert [part[0] for part in found["R4"]] == pytest.approx(8 * [math.log(1.3)])
    assert found["R5"][0] == pytest.approx(math.log(3 / 0.6 / 1.3))
    assert found["R6"][0][0] == pytest.approx(math.log(2))


def test_what_is_undefined_is_nan_and_what_is_missing_decides_nothing():
    found = paper.statistics(world((FIRST + "0", {"test_accuracy": "0.97"})))
    assert np.isnan(found["L3"]).all()  # nothing to give back
    missed = world(("group == 'resnet'", {"test_accuracy": "test_accuracy - 0.2"}))
    found = verdicts(paper, missed)
    assert found["L9"] == found["L10"] == "not testable at this scale"
    for table in (world().loc[["resnet frozen"]], measured.tidy(pd.DataFrame())):
        values = paper.statistics(table)
        assert all(np.isnan(np.ravel(values[claim.id]).astype(float)).all() for claim in CLAIMS)


# ------------------------------------------------------------------ what is run


def test_square_is_around_the_circumcircle():
    triangle = torch.tensor([[1.0, 1, 5], [4, 1, 5], [1, 5, 5]])  # right-angled, radius 2.5
    corners = measured.square(triangle, 2)
    assert corners.mean(0).tolist() == pytest.approx([1.5, 2])
    assert (corners.amax(0) - corners.amin(0)).tolist() == pytest.approx([10, 10])


def test_plan_names_each_network_by_its_key_and_has_no_network_in_two_experiments_of_resets():
    experiments = paper.plan("smoke", "mnist5k", "cpu")
    resets = [
        s["network"] for e in experiments.values() if e.measure is measured.resets for s in e.specs
    ]
    assert len(resets) == len(set(resets))
    shared = {spec["network"]: spec for spec in experiments["regions"].specs}
    again = [spec for spec in experiments["rates"].specs if spec["network"] in shared]
    assert again and all(
        shared[s["network"]]["net"]["training"] == s["net"]["training"] for s in again
    )
    assert "cifar" not in experiments  # without its images


def test_resets_restore_the_state_that_they_name():
    spec = paper.plan("smoke", "mnist5k", "cpu")["fcn"].specs[0]
    rows = measured.resets(spec, "cpu")
    single = rows[rows.kind == SINGLE]
    assert single.layer.value_counts().to_dict() == {f"fc{i}": 6 + 2 for i in range(1, 5)}
    assert rows[rows.kind == JOINT].layer.tolist() == 2 * ["fc2 fc3 fc4"] + 2 * ["fc3 fc4"]
    count = [784 * 32 + 32, 32 * 32 + 32, 32 * 32 + 32, 32 * 10 + 10]
    known = single[single.share == 0]
    np.testing.assert_allclose(known.rms, known.l2 / np.sqrt(count))
    run = measured.network(spec["net"], "cpu")
    changed = run.model()
    changed.fc1.load_state_dict({k[4:]: v for k, v in run.state(0).items() if k[:4] == "fc1."})
    images = measured.split_of(spec["net"]).test
    share = (changed(images.images).argmax(1) == images.labels).float().mean().item()
    assert known.test_accuracy.iloc[0] == pytest.approx(share)


def test_networks_of_regions_start_as_in_the_paper_with_the_same_weights_without_biases():
    built = [models.build("mlp", 0, widths=[256, 256], **measured.STARTS[s]) for s in (HE, ZERO)]
    for small, none in zip(*built, strict=True):
        if isinstance(small, nn.Linear):
            assert small.weight.std().item() == pytest.approx((2 / small.in_features) ** 0.5, 0.05)
            assert 0.0005 < small.bias.std().item() < 0.002 and not none.bias.any()
            assert torch.equal(small.weight, none.weight)


def test_without_biases_a_plane_through_0_has_two_sectors_a_neuron():
    model = models.build("mlp", 0, widths=[24], init="he")
    reading = {"lines": 2, "planes": 1, "sizes": [1.25], "around_zero": True, "points": 2}
    row = measured.count_regions(model, DIGITS, reading, 0)
    assert row["origin"] == 48 and row["linear"] <= row["line"] <= 25
    assert row == measured.count_regions(model, DIGITS, reading, 0)


def test_pictures_of_a_plane_agree_with_a_grid():
    spec = paper.plan("smoke", "mnist5k", "cpu")["plane"].specs[0]
    rows = measured.picture(spec, "cpu")
    grid, polygons = (part for _, part in rows[rows.epoch == 0].groupby("part"))
    assert len(grid) == 40**2 and polygons.polygon.nunique() == polygons["count"].iloc[0]
    assert set(grid.polygon) - {-1} <= set(polygons.polygon)
    assert rows.certified.all() and not (rows["split"] + rows.merged).any()
    assert (rows.met <= rows["count"]).all()


def test_the_solution_of_least_norm_interpolates_and_is_scaled_to_the_train_loss():
    model = models.build("mlp", 0, widths=[400])
    hidden = model.fc1.weight.clone()
    solved = measured.least_norm(model, DIGITS.train)
    targets = nn.functional.one_hot(DIGITS.train.labels).float()
    torch.testing.assert_close(solved(DIGITS.train.images), targets, atol=1e-2, rtol=0)
    solved = measured.scaled(solved, DIGITS.train, 0.2)
    loss = nn.functional.cross_entropy(solved(DIGITS.train.images), DIGITS.train.labels).item()
    assert 0.19 < loss <= 0.2001 and torch.equal(solved.fc1.weight, hidden)
    narrow = measured.least_norm(models.build("mlp", 0, widths=[2]), DIGITS.train)
    assert measured.scaled(narrow, DIGITS.train, 0.2) is None  # too few features to fit


def test_a_resnet_without_batch_norm_has_none_and_a_plain_convnet_keeps_the_size_of_its_signal():
    resnet = models.build("resnet", depth=8, batch_norm=False)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in resnet.modules())
    assert resnet.block1_1.conv1.bias is not None
    plain = {"width": 0.25, "batch_norm": False}
    x = torch.randn(8, 3, 32, 32)
    he, default = (models.build("morcos_convnet", 0, init=i, **plain)[:-3] for i in ("he", "torch"))
    assert he(x).var(0).mean() > 100 * default(x).var(0).mean()
