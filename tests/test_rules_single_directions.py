"""The statistics of S1 to S7 and C1 to C4 on made-up tables: each verdict comes out both ways."""

import math

import numpy as np
import pandas as pd
import pytest
from _settling import settle_all
from scipy.stats import rankdata, spearmanr

from replication.papers import single_directions as rules
from replication.papers.single_directions import CLAIMS

SEEDS = (0, 1, 2, 3)
WIGGLE = (0.0, 0.004, -0.004, 0.002)
SHARES = np.linspace(0, 1, 11)
EPOCHS = (0, 1, 3, 10, 30, 100)
MEMBERS = 60


def nothing(*_):
    return {}


def curve(rate, level):
    """Return accuracy under ablation: flat up to `rate`, then falling, faster at a higher level."""
    return np.clip(1 - (0.6 + level) * np.maximum(SHARES - rate, 0), 0, 1)


def world(
    network=nothing,
    ablated=lambda rate, level, seed: curve(rate, level),
    member=nothing,
    checkpoint=nothing,
    setting=nothing,
    unit=nothing,
    seeds=SEEDS,
    members=MEMBERS,
):
    """Return the tables of a world in which every claim but those changed holds."""
    names = ("networks", "dropout", "population", "training", "sweep", "units")
    tables = {name: [] for name in names}
    for s in seeds:
        w = WIGGLE[s]
        for norm, levels in ((False, (0.0, 0.25, 0.5, 0.75, 1.0)), (True, (0.0, 1.0))):
            for level in levels:
                row = {"seed": s, "corruption": level, "batch_norm": norm, "train_accuracy": 1.0}
                row |= {"auc": 0.7 - 0.2 * level + 0.1 * norm + w, "auc_mean": 0.6 - 0.2 * level}
                row |= {"noise_auc": 0.8 - 0.3 * level + w, "selectivity": 0.5 - 0.1 * norm + w}
                row |= {"information": 0.9 + 0.2 * norm + w * norm}
                tables["networks"].append(row | network(norm, level, s))
        for rate in (0.0, 0.1, 0.2, 0.3):
            for level in (0.0, 1.0):
                accuracy = ablated(rate, level, s) + w * rate
                row = {"seed": s, "dropout": rate, "corruption": level, "train_accuracy": 1.0}
                rows = [
                    row | {"share": share, "accuracy": a}
                    for share, a in zip(SHARES, accuracy, strict=True)
                ]
                tables["dropout"] += rows
        for epoch, auc, loss in zip(
            EPOCHS, (0.1, 0.5, 0.6, 0.7, 0.6, 0.5), (2.3, 0.8, 0.5, 0.3, 0.5, 0.6), strict=True
        ):
            row = {"seed": s, "epoch": epoch, "auc": auc + w, "test_loss": loss}
            tables["training"].append(row | checkpoint(epoch, s))
        for index in range(24):
            row = {"seed": s, "setting": index, "auc": 0.3 + index / 60}
            row["test_accuracy"] = 0.8 + index / 240 + w * (index % 3 - 1)
            tables["sweep"].append(row | setting(index, s))
        tables["units"] += _units(s, unit)
    source = np.random.default_rng(0)
    for varied in (False, True):
        noise = source.normal(0, 0.3, members)
        for index in range(members):
            row = {"varied": varied, "train_accuracy": 1.0, "auc": 0.5 + index / members / 5}
            row["generalisation_error"] = 0.1 - 0.02 * (index / members + noise[index])
            tables["population"].append(row | member(varied, index))
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def _units(seed, unit):
    """Return two layers where importance has little to do with selectivity, class damage much.

    Within a layer selective units matter a little more; the second layer is more selective and
    matters less.
    """
    source, rows = np.random.default_rng(seed), []
    for depth, layer in enumerate(("act1", "act2")):
        selectivity = source.random(100)
        for index in range(100):
            row = {"seed": seed, "layer": layer, "selectivity": selectivity[index] + depth / 2}
            row["information"] = source.random()
            row["loss_rise"] = 0.35 * selectivity[index] + source.random() - depth / 2
            row["accuracy_drop"] = source.random()
            row["class_drop"] = selectivity[index] + source.random()
            rows.append(row | unit(row, source))
    return rows


def settle(tables):
    return settle_all(CLAIMS, rules.statistics(**tables))


def test_claims_are_s1_to_s7_and_the_criticism():
    assert [c.id for c in CLAIMS] == [*(f"S{i}" for i in range(1, 8)), "C1", "C2", "C3", "C4"]


def test_all_claims_hold_in_a_world_made_for_them():
    verdicts = {name: found.verdict for name, found in settle(world()).items()}
    assert verdicts == {claim.id: "reproduced" for claim in CLAIMS}


def one_cloud(unit, source):
    """Return the change of a unit whose loss does not know of its layer."""
    return {"loss_rise": unit["selectivity"] % 0.5 + source.random() / 9}


def members(varied):
    """Return a change by which robust networks generalise worse, on one of the arms."""
    return lambda own, i: {"generalisation_error": 0.1 + i / 1000} if own == varied else {}


# claim, the part that decides (from 0), and what is otherwise in that world
OTHER_WORLDS = [
    ("S1", 0, {"network": lambda n, c, s: {"auc": 0.5 + 0.2 * c + 0.1 * n}}),
    ("S1", 1, {"network": lambda n, c, s: {"noise_auc": 0.5 + 0.2 * c}}),
    ("S2", 0, {"member": members(True)}),
    ("S3", 0, {"checkpoint": lambda e, s: {"auc": 1 / (2 + e), "test_loss": 1 / (1 + e)}}),
    ("S3", 1, {"checkpoint": lambda e, s: {"auc": 0.8 + WIGGLE[s]} if e == 100 else {}}),
    ("S4", 0, {"setting": lambda i, s: {"test_accuracy": 0.9 - i / 2400}}),
    ("S4", 1, {"setting": lambda i, s: {"test_accuracy": 0.6 + WIGGLE[s]} if i == 23 else {}}),
    ("S5", 0, {"ablated": lambda r, c, s: curve(0.3 - r, c)}),
    ("S5", 1, {"ablated": lambda r, c, s: np.maximum(1 - 2 * SHARES + r, 0.2)}),
    ("S5", 2, {"ablated": lambda r, c, s: curve(r, 1 - c)}),
    ("S6", 0, {"network": lambda n, c, s: {"auc": 0.5 - 0.1 * n - 0.1 * c + WIGGLE[s] * n}}),
    ("S6", 1, {"network": lambda n, c, s: {"selectivity": 0.5 + (0.1 + WIGGLE[s]) * n}}),
    ("S6", 2, {"network": lambda n, c, s: {"information": 0.9 - (0.1 + WIGGLE[s]) * n}}),
    ("S7", 0, {"unit": lambda u, r: {"loss_rise": -u["selectivity"] + r.random() / 9}}),
    ("S7", 1, {"unit": lambda u, r: {"loss_rise": u["information"] + r.random() / 9}}),
    ("C1", 0, {"unit": lambda u, r: {"class_drop": r.random() - u["selectivity"]}}),
    ("C1", 1, {"unit": lambda u, r: {"accuracy_drop": u["selectivity"] + r.random() / 9}}),
    ("C2", 0, {"unit": lambda u, r: {"selectivity": u["selectivity"] % 0.5} | one_cloud(u, r)}),
    ("C3", 0, {"member": members(False)}),
    ("C4", 0, {"network": lambda n, c, s: {"auc_mean": 0.9 + WIGGLE[s]}}),
]


@pytest.mark.parametrize(("name", "part", "changed"), OTHER_WORLDS)
def test_each_part_of_each_claim_is_refuted_where_it_does_not_hold(name, part, changed):
    found = settle(world(**changed))[name]
    assert found.verdict == found.parts[part].verdict == "not reproduced"


def test_two_seeds_and_a_few_networks_settle_nothing():
    tables = world(seeds=(0, 1), members=19)
    tables["sweep"] = tables["sweep"].query("setting < 19")
    assert {found.verdict for found in settle(tables).values()} == {"inconclusive"}


def test_a_population_without_relation_settles_nothing():
    found = settle(world(member=lambda own, i: {"generalisation_error": 0.1 + i * 7 % 60 / 1000}))
    assert found["S2"].verdict == found["C3"].verdict == "inconclusive"


# ------------------------------------------------------------------ networks that did not fit


def test_networks_that_did_not_fit_do_not_count():
    def network(norm, level, seed):
        failed = level == 1 and not norm
        return {"train_accuracy": 0.98, "auc": 0.9, "noise_auc": 0.9} if failed else {}

    tables = world(network=network)
    assert rules.excluded(tables["networks"]) == len(SEEDS)
    assert settle(tables)["S1"].verdict == "reproduced"  # from the levels that remain
    assert len(rules.fitted(pd.DataFrame({"train_accuracy": [0.99, 0.989, math.nan, 1.0]}))) == 2


def test_members_of_the_population_that_did_not_fit_do_not_count():
    def member(varied, i):
        return {"train_accuracy": 0.5, "auc": 0.1, "generalisation_error": -0.3} if i < 10 else {}

    found = rules.statistics(**world(member=member))
    assert len(found["S2"]) == len(found["C3"]) == MEMBERS - 10


def test_what_needs_networks_that_are_all_excluded_is_undefined():
    tables = world()
    tables["networks"]["train_accuracy"] = tables["dropout"]["train_accuracy"] = 0.5
    found = settle(tables)
    for name in ("S1", "S5", "S6", "C4"):
        assert found[name].verdict == "inconclusive"
        assert found[name].parts[0].dropped == len(SEEDS)


def test_no_units_and_no_members_are_undefined_too():
    tables = world()
    tables["units"], tables["population"] = tables["units"][:0], tables["population"][:0]
    found = settle(tables)
    assert {found[name].verdict for name in ("S2", "S7", "C1", "C2", "C3")} == {"inconclusive"}


def test_losses_that_never_part_leave_s3_undefined():
    tables = world(checkpoint=lambda e, s: {"test_loss": 1 / (1 + e)})
    change = rules.statistics(**tables)["S3"][1]
    assert all(math.isnan(value) for value in change)


# ------------------------------------------------------------------ the numbers themselves


def test_statistics_are_the_ones_their_rules_name():
    found = rules.statistics(**world())
    first = {name: [v[0] for v in found[name]] for name in ("S1", "S3", "S5", "S6")}
    assert first["S1"] == pytest.approx([-1, -1])
    assert first["S3"][1] == pytest.approx(0.5 - 0.7)
    assert first["S3"][0] == pytest.approx(spearmanr([5, 6, 7, 6, 5], [8, 5, 3, 5, 6]).statistic)
    # falls by 0.6 (clean) or 1.6 (shuffled) a share; gains what the rate would have cost
    assert first["S5"] == pytest.approx([1.1 * 0.2, 1.1, 0.3])
    assert first["S6"] == pytest.approx([0.1, -0.1, 0.2])
    assert found["C4"][0] == pytest.approx(0.1)
    # the highest AUC is the best setting, but for the wiggle
    assert found["S4"][1] == pytest.approx([0.0] * 4, abs=0.01)


def test_members_average_to_the_correlation_and_vary_as_it_does():
    source = np.random.default_rng(1)
    x = source.normal(size=100)
    y = 0.6 * x + source.normal(size=100)
    values = rules.correlation_by_member(x, y)
    assert np.mean(values) == pytest.approx(spearmanr(x, y).statistic)
    resampled = [
        spearmanr(x[chosen], y[chosen]).statistic for chosen in source.integers(0, 100, (1000, 100))
    ]
    assert np.std(values) / 10 == pytest.approx(np.std(resampled), rel=0.15)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1, 2], [1, 2]), ([1, 2, 3, 4], [1, 1, 1, 1])])
def test_undefined_correlations_are_nan(x, y):
    assert math.isnan(rules.correlation(x, y))
    assert np.isnan(rules.correlation_by_member(x, y)).all()


def test_partial_correlation_is_that_of_the_residuals_of_ranks():
    source = np.random.default_rng(2)
    z = source.normal(size=200)
    x, y = z + source.normal(size=200), -z + source.normal(size=200)
    ranks = [rankdata(v) - 100.5 for v in (x, y, z)]
    left, right = (r - (r @ ranks[2]) / (ranks[2] @ ranks[2]) * ranks[2] for r in ranks[:2])
    expected = left @ right / math.sqrt((left @ left) * (right @ right))
    assert rules.partial_correlation(x, y, z) == pytest.approx(expected)
    assert rules.correlation(x, y) < -0.3 < rules.partial_correlation(x, y, z)
    assert math.isnan(rules.partial_correlation(z, y, 2 * z))


def test_selection_counts_how_often_the_pick_is_among_the_best():
    settings = pd.DataFrame({"setting": range(40), "auc": range(40), "test_accuracy": range(40)})
    good = rules.selection(settings)
    assert good.picked.tolist() == [1, 1, 1] and good.best.tolist() == [1, 5, 10]
    assert good.chance.tolist() == pytest.approx([0.05, 0.25, 0.5])
    bad = rules.selection(settings.assign(auc=-settings.auc))
    assert bad.picked.tolist() == [0, 0, 0]
    blind = rules.selection(settings.assign(auc=np.random.default_rng(0).permutation(40)))
    assert 0 < blind.picked[1] < 1
    few = rules.selection(settings[:4])
    assert few.chance.tolist() == [0.5, 1, 1]
