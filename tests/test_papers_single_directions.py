"""The statistics of S1 to S7 and C1 to C4 on made-up tables: each verdict comes out both ways."""

import math

import numpy as np
import pandas as pd
import pytest
from _settling import settle_all, table
from scipy.stats import rankdata, spearmanr

from replication.papers import correlation, partial_correlation
from replication.papers import single_directions as paper
from replication.papers._correlation import correlation_by_member

WIGGLE = (0.0, 0.004, -0.004, 0.002)  # by seed
MEMBERS = 60


def fall(share, rate, level):
    """Return accuracy under ablation: flat up to `rate`, then falling, faster at a higher level."""
    return (1 - (0.6 + level) * (share - rate).clip(lower=0)).clip(0, 1)


def world(seeds=4, members=MEMBERS, **changed):
    """Return the tables of a world in which every claim but those `changed` by table holds.

    Within a layer selective units matter a little more; the second layer is more selective and
    matters less. Of damage to a class selectivity says much.
    """
    draw = np.random.default_rng(0).random
    levels, norms = [0, 0.25, 0.5, 0.75, 1], [False, True]
    population = pd.DataFrame({"varied": norms * members, "train_accuracy": 1.0})
    tables = {
        "networks": table(WIGGLE[:seeds], corruption=levels, batch_norm=norms).assign(
            auc=lambda t: 0.7 - 0.2 * t.corruption + 0.1 * t.batch_norm + t.w,
            auc_mean=lambda t: 0.6 - 0.2 * t.corruption,
            noise_auc=lambda t: 0.8 - 0.3 * t.corruption + t.w,
            selectivity=lambda t: 0.5 - 0.1 * t.batch_norm + t.w,
            information=lambda t: 0.9 + (0.2 + t.w) * t.batch_norm,
        ),
        "dropout": table(
            WIGGLE[:seeds], dropout=[0, 0.1, 0.2, 0.3], corruption=[0, 1], share=np.arange(11) / 10
        ).assign(accuracy=lambda t: fall(t.share, t.dropout, t.corruption) + t.w * t.dropout),
        "population": population.assign(
            place=lambda t: t.index // 2 / members,
            auc=lambda t: 0.5 + t.place / 5,
            generalisation_error=lambda t: 0.1 - 0.02 * (t.place + draw(len(t))),
        ),
        "training": table(WIGGLE[:seeds], epoch=[0, 1, 3, 10, 30, 100]).assign(
            auc=lambda t: [0.1, 0.5, 0.6, 0.7, 0.6, 0.5] * seeds + t.w,
            test_loss=[2.3, 0.8, 0.5, 0.3, 0.5, 0.6] * seeds,
        ),
        "sweep": table(WIGGLE[:seeds], setting=range(24)).assign(
            auc=lambda t: 0.3 + t.setting / 60,
            test_accuracy=lambda t: 0.8 + t.setting / 240 + t.w * (t.setting % 3 - 1),
        ),
        "units": table(WIGGLE[:seeds], depth=[0, 0.5], unit=range(100)).assign(
            layer=lambda t: t.depth.map({0: "act1", 0.5: "act2"}),
            within=lambda t: draw(len(t)),
            noise=lambda t: draw(len(t)) / 9,
            selectivity=lambda t: t.within + t.depth,
            information=lambda t: draw(len(t)),
            loss_rise=lambda t: 0.35 * t.within + draw(len(t)) - t.depth,
            accuracy_drop=lambda t: draw(len(t)),
            class_drop=lambda t: t.within + draw(len(t)),
        ),
    }  # fmt: skip
    return tables | {name: tables[name].assign(**columns) for name, columns in changed.items()}


def settle(tables):
    return settle_all(paper.CLAIMS, paper.statistics(**tables))


def test_all_claims_hold_in_a_world_made_for_them():
    ids = [*(f"S{i}" for i in range(1, 8)), "C1", "C2", "C3", "C4"]
    assert [claim.id for claim in paper.CLAIMS] == ids
    verdicts = {id: settled.verdict for id, settled in settle(world()).items()}
    assert verdicts == dict.fromkeys(ids, "reproduced")


def worse(varied):
    """Return errors by which robust networks generalise worse, on one arm of the population."""
    return lambda t: t.generalisation_error.where(t.varied != varied, 0.1 + t.place)


# claim, the part that decides (from 0), and which column of which table is otherwise
OTHER_WORLDS = [
    ("S1", 0, "networks", "auc", lambda t: 0.5 + 0.2 * t.corruption + 0.1 * t.batch_norm),
    ("S1", 1, "networks", "noise_auc", lambda t: 0.5 + 0.2 * t.corruption),
    ("S2", 0, "population", "generalisation_error", worse(True)),
    ("S3", 0, "training", "test_loss", lambda t: t.auc),
    ("S3", 1, "training", "auc", lambda t: t.auc.where(t.epoch < 100, 0.8 + t.w)),
    ("S4", 0, "sweep", "test_accuracy", lambda t: 0.9 - t.setting / 2400),
    ("S4", 1, "sweep", "test_accuracy", lambda t: t.test_accuracy.where(t.setting < 23, 0.6 + t.w)),
    ("S5", 0, "dropout", "accuracy", lambda t: fall(t.share, 0.3 - t.dropout, t.corruption)),
    ("S5", 1, "dropout", "accuracy", lambda t: (1 - 2 * t.share + t.dropout).clip(lower=0.2)),
    ("S5", 2, "dropout", "accuracy", lambda t: fall(t.share, t.dropout, 1 - t.corruption)),
    ("S6", 0, "networks", "auc", lambda t: 0.5 - 0.1 * t.corruption - (0.1 + t.w) * t.batch_norm),
    ("S6", 1, "networks", "selectivity", lambda t: 0.5 + (0.1 + t.w) * t.batch_norm),
    ("S6", 2, "networks", "information", lambda t: 0.9 - (0.1 + t.w) * t.batch_norm),
    ("S7", 0, "units", "loss_rise", lambda t: t.noise - t.selectivity),
    ("S7", 1, "units", "loss_rise", lambda t: t.noise + t.information),
    ("C1", 0, "units", "class_drop", lambda t: t.noise - t.selectivity),
    ("C1", 1, "units", "accuracy_drop", lambda t: t.noise + t.selectivity),
    ("C2", 0, "units", "loss_rise", lambda t: t.noise + t.selectivity),  # one cloud
    ("C3", 0, "population", "generalisation_error", worse(False)),
    ("C4", 0, "networks", "auc_mean", lambda t: 0.9 + t.w),
]


@pytest.mark.parametrize(("id", "part", "name", "column", "values"), OTHER_WORLDS)
def test_each_part_of_each_claim_is_refuted_where_it_does_not_hold(id, part, name, column, values):
    settled = settle(world(members=20, **{name: {column: values}}))[id]
    assert (
        settled.verdict in ("partly", "not reproduced")
        and settled.parts[part].verdict == "not reproduced"
    )


def test_too_little_settles_nothing():
    tables = world(seeds=2, members=19)
    tables["sweep"] = tables["sweep"].query("setting < 19")
    assert {settled.verdict for settled in settle(tables).values()} == {"inconclusive"}
    unrelated = settle(world(population={"generalisation_error": lambda t: t.index // 2 * 7 % 60}))
    assert unrelated["S2"].verdict == unrelated["C3"].verdict == "inconclusive"


def test_networks_that_did_not_fit_do_not_count():
    tables = world()
    for name, failed in (
        ("networks", "corruption == 1 and not batch_norm"),
        ("population", "index < 20"),
    ):
        rows = tables[name].query(failed).index
        tables[name].loc[rows, ["train_accuracy", "auc"]] = 0.98, 0.9
    assert paper.excluded(tables["networks"]) == 4
    values = paper.statistics(**tables)
    assert values["S1"][0] == pytest.approx([-1] * 4)  # from the levels that remain
    assert len(values["S2"]) == len(values["C3"]) == MEMBERS - 10
    assert len(paper.fitted(pd.DataFrame({"train_accuracy": [0.99, 0.989, math.nan, 1.0]}))) == 2


def test_what_has_no_networks_or_units_is_undefined():
    none = {"train_accuracy": 0.5}
    tables = world(networks=none, dropout=none, training={"test_loss": lambda t: 1 / (1 + t.epoch)})
    tables["units"], tables["population"] = tables["units"][:0], tables["population"][:0]
    settled = settle(tables)
    assert [settled[id].parts[0].dropped for id in ("S1", "S5", "S6", "C4")] == [4] * 4
    assert [settled[id].parts[-1].dropped for id in ("S2", "S7", "C1", "C2", "C3")] == [1] * 5
    assert settled["S3"].parts[1].dropped == 4  # train and test loss never part


def test_statistics_are_the_ones_their_rules_name():
    values = paper.statistics(**world())
    first = {id: [series[0] for series in values[id]] for id in ("S1", "S3", "S5", "S6")}
    assert first["S1"] == pytest.approx([-1, -1])
    rank = spearmanr([5, 6, 7, 6, 5], [8, 5, 3, 5, 6]).statistic
    assert first["S3"] == pytest.approx([rank, 0.5 - 0.7])
    # falls by 0.6 (clean) or 1.6 (shuffled) a share; gains what the rate would have cost
    assert first["S5"] == pytest.approx([1.1 * 0.2, 1.1, 0.3])
    assert first["S6"] == pytest.approx([0.1, -0.1, 0.2])
    assert values["C4"][0] == pytest.approx(0.1)
    # the highest AUC is the best setting, but for the wiggle
    assert values["S4"][1] == pytest.approx([0.0] * 4, abs=0.01)


def test_members_average_to_the_correlation_and_vary_as_it_does():
    source = np.random.default_rng(1)
    x = source.normal(size=100)
    y = 0.6 * x + source.normal(size=100)
    values = correlation_by_member(x, y)
    assert np.mean(values) == pytest.approx(spearmanr(x, y).statistic)
    resampled = [spearmanr(x[c], y[c]).statistic for c in source.integers(0, 100, (500, 100))]
    assert np.std(values) / 10 == pytest.approx(np.std(resampled), rel=0.15)
    outlier = correlation_by_member(range(10), [99, *range(1, 10)])
    assert np.argmin(outlier) == 0  # the member that lowers the correlation


@pytest.mark.parametrize(("x", "y"), [([], []), ([1, 2], [1, 2]), ([1, 2, 3, 4], [1, 1, 1, 1])])
def test_undefined_correlations_are_nan(x, y):
    assert math.isnan(correlation(x, y)) and np.isnan(correlation_by_member(x, y)).all()


def test_partial_correlation_is_that_of_the_residuals_of_ranks():
    source = np.random.default_rng(2)
    z = source.normal(size=200)
    x, y = z + source.normal(size=200), -z + source.normal(size=200)
    ranks = [rankdata(v) - 100.5 for v in (x, y, z)]
    left, right = (r - (r @ ranks[2]) / (ranks[2] @ ranks[2]) * ranks[2] for r in ranks[:2])
    expected = left @ right / math.sqrt((left @ left) * (right @ right))
    assert partial_correlation(x, y, z) == pytest.approx(expected)
    assert correlation(x, y) < -0.3 < partial_correlation(x, y, z)
    assert math.isnan(partial_correlation(z, y, 2 * z))


def test_selection_counts_how_often_the_pick_is_among_the_best():
    settings = pd.DataFrame({"setting": range(40), "auc": range(40), "test_accuracy": range(40)})
    good = paper.selection(settings)
    assert good.picked.tolist() == [1, 1, 1] and good.chance.tolist() == [0.05, 0.25, 0.5]
    assert paper.selection(settings.assign(auc=-settings.auc)).picked.tolist() == [0, 0, 0]
    assert paper.selection(settings[:4]).chance.tolist() == [0.5, 1, 1]


def test_units_and_their_means_leave_the_dead_out():
    network = {"arm": "corruption", "seed": 0, "corruption": 0.0, "batch_norm": False}
    network |= {"dropout": 0.0, "learning_rate": 0.02, "unit_layer": ["a", "a", "b"]}
    lists = {name: [1.0, 2.0, 9.0] for name in (*paper.MEASURES, *paper.DAMAGE)}
    rows = pd.DataFrame([network | lists | {"dead": [False, False, True]}])
    assert paper.units_of(rows).layer.tolist() == ["a", "a", "b"]
    assert paper.summary(rows)[[*paper.MEASURES]].values.tolist() == [[1.5, 1.5]]


def test_plan_has_every_network_once():
    specs = [spec for e in paper.plan("smoke", "mnist5k").values() for spec in e.specs]
    assert len({str(spec) for spec in specs}) == len(specs) == 31
    with pytest.raises(ValueError, match="made for MNIST"):
        paper.load("smoke", "cifar10")
