"""N1 to N13 on made-up tables: each verdict comes out both ways; and what is run."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from _settling import settle_all
from scipy.stats import kendalltau, spearmanr

from replication import data
from replication.papers import jacobian_vs_gap as paper
from replication.papers.jacobian_vs_gap import (
    AUGMENTATION,
    CIFAR,
    CLAIMS,
    DATASETS,
    FACTORS,
    LABELS,
    MNIST,
    RANDOM,
    TRUE,
)

WIGGLE = pd.Series([0.0, 0.01, -0.01, 0.005])
LEVELS = {paper.DIFFERENT: 2.0, paper.SAME: 1.0, paper.NOISE: 3.0}
ANGLES = np.arange(0, 360, 5)
NEAR = (1 + np.cos(3 * np.radians(ANGLES))) / 2  # 1 at the three points, 0 between them


def path_rows(seeds):
    """Return curves with a dip at the points; between them they are lower for one class."""
    places = product(range(seeds), (paper.TRAINED, paper.INITIAL), LEVELS, ANGLES)
    rows = pd.DataFrame(places, columns=["seed", "stage", "kind", "angle"])
    rows["near"] = (1 + np.cos(3 * np.radians(rows.angle))) / 2
    level = rows.kind.map(LEVELS) + rows.seed.map(WIGGLE)
    norm = level - np.where(rows.kind == paper.NOISE, 0.02, 0.9 * level) * rows.near
    norm = norm.where(rows.stage == paper.TRAINED, 5 + rows.near)
    return rows.assign(norm=norm, density=100 * norm, train_accuracy=1.0, level=level)


def point_rows(seeds):
    """Return points whose |J_y| is p (1 - p); those below p = 1/2 are misclassified."""
    p = np.concatenate([np.linspace(0.02, 0.98, 97), np.full(400, 0.999), np.full(4, 1e-4)])
    rows = pd.DataFrame(product(range(seeds), p), columns=["seed", "p"])
    rows["row_norm"] = rows.p * (1 - rows.p) * (1 + rows.seed.map(WIGGLE))
    rows = rows.assign(cross_entropy=-np.log(rows.p), correct=rows.p > 0.5, train_accuracy=1.0)
    return rows.assign(norm=1.3 * rows.row_norm)


def network_rows(seeds):
    """Return networks whose |J| rises with their gap and whose transitions do not know of it."""
    places = product(DATASETS, (TRUE, RANDOM), (64, 128, 256), range(4), range(seeds))
    rows = pd.DataFrame(places, columns=["dataset", "labels", "width", "member", "seed"])
    random = rows.labels == RANDOM
    rows["gap"] = np.where(random, 0.8, 0.2) + 0.02 * rows.member - rows.width / 4000
    rows["gap"] += rows.seed.map(WIGGLE)
    turn = (rows.member * 7 + random * 3 + rows.width // 64) % 5
    rows = rows.assign(transitions=100 + turn, train_loss=0.1 + turn, train_accuracy=1.0)
    return rows.assign(jacobian=rows.gap**2)


def arm_rows(seeds):
    """Return networks of each factor beside a baseline."""
    moved = {  # gap, |J|, transitions, test accuracy
        paper.BASE: (0, 0, 0, 0),
        LABELS: (0.5, 1.0, 50, -0.5),
        AUGMENTATION: (-0.1, -0.2, -20, 0.1),
        paper.ACTIVATION: (0.1, 0.2, 20, -0.1),
        paper.FULL_BATCH: (0.1, 0.2, -20, -0.1),
    }
    places = product(moved, range(seeds), (64, 128, 256), (2, 4))
    rows = pd.DataFrame(places, columns=["arm", "seed", "width", "depth"])
    values = np.array([0.3, 0.5, 100, 0.7]) + np.array([moved[arm] for arm in rows.arm])
    rows[paper.MEASURED[:4]] = values
    return rows.assign(train_accuracy=1.0)


TABLES = {"net": network_rows, "arm": arm_rows, "path": path_rows, "point": point_rows}


def tables(which="net", where="seed >= 0", seeds=4, pair_seeds=5, **columns):
    """Return a world in which every claim holds, but for `columns` of some rows of one table."""
    made = {k: rows(pair_seeds if k == "arm" else seeds) for k, rows in TABLES.items()}
    for name, value in columns.items():
        rows = made[which].query(where)
        value = rows.eval(value) if isinstance(value, str) else value
        made[which][name] = made[which][name].astype(float)
        made[which].loc[rows.index, name] = value
    return made


def world(*at, **columns):
    made = tables(*at, **columns)
    return made["net"], paper.pairs(made["arm"]), made["path"], made["point"]


def settle(world):
    return settle_all(CLAIMS, paper.statistics(*world))


def verdicts(world):
    return {name: settled.verdict for name, settled in settle(world).items()}


def test_all_claims_hold_in_a_world_made_for_them():
    assert verdicts(world()) == {f"N{i}": "reproduced" for i in range(1, 14)}


def test_two_seeds_and_nineteen_pairs_settle_nothing():
    networks, paired, *rest = world(seeds=2, pair_seeds=4)
    few = paired.groupby("factor").head(19)
    assert set(verdicts((networks, few, *rest)).values()) == {"inconclusive"}
    assert verdicts((networks, paired.groupby("factor").head(20), *rest))["N4"] == "reproduced"
    assert verdicts((networks, paired[:0], *rest))["N4"] == "inconclusive"
    empty = paper.statistics(networks[:0], paired[:0], *(table[:0] for table in rest))
    assert all(np.isnan(np.concatenate([np.ravel(v) for v in values])).all()
               for values in empty.values())  # fmt: skip


def arm(name, part, factor, **columns):
    return name, part, "arm", f"arm == '{factor}'", columns


@pytest.mark.parametrize(
    ("name", "part", "which", "where", "columns"),
    [
        ("N1", 0, "path", "kind == 'different classes'", {"norm": "level + near"}),
        ("N1", 1, "path", "kind == 'noise'", {"norm": "level - 1 - 1.8 * near"}),
        ("N2", 0, "path", "kind == 'different classes'", {"density": "level + near"}),
        ("N2", 1, "path", "kind == 'noise'", {"density": "level - 1 - 1.8 * near"}),
        ("N3", 0, "path", "kind == 'same class'", {"norm": "level + 3 - near"}),
        ("N3", 1, "path", "kind == 'same class'", {"density": "level + 399 - near"}),
        arm("N4", 0, LABELS, gap=0.2),
        arm("N4", 1, LABELS, jacobian=0.4),
        arm("N5", 0, AUGMENTATION, gap=0.4),
        arm("N5", 1, AUGMENTATION, jacobian=0.6),
        arm("N6", 0, paper.ACTIVATION, gap=0.2),
        arm("N6", 1, paper.ACTIVATION, jacobian=0.4),
        arm("N7", 0, paper.FULL_BATCH, gap=0.2),
        arm("N7", 1, paper.FULL_BATCH, jacobian=0.4),
        arm("N8", 0, LABELS, transitions=50),
        arm("N8", 1, AUGMENTATION, transitions=200),
        arm("N8", 2, paper.ACTIVATION, transitions=0),
        arm("N8", 3, paper.FULL_BATCH, transitions=200),
        *(("N9", i, "net", f"dataset == '{x}'", {"jacobian": "-(gap ** 2)"})
          for i, x in enumerate(DATASETS)),
        *(("N10", i, "net", f"dataset == '{x}'", {"transitions": "1000 * gap"})
          for i, x in enumerate(DATASETS)),
        ("N11", 0, "point", "seed >= 0", {"norm": "p"}),
        ("N11", 1, "point", "seed >= 0", {"norm": "1 - 0.99 * correct"}),
        ("N12", 0, "point", "seed >= 0", {"row_norm": "p"}),
        ("N13", 0, "net", "dataset == 'cifar10'", {"gap": "width / 400 + member / 99"}),
    ],
)  # fmt: skip
def test_each_part_of_each_claim_is_refuted_where_it_does_not_hold(
    name, part, which, where, columns
):
    settled = settle(world(which, where, **columns))[name]
    assert (
        settled.verdict in ("partly", "not reproduced")
        and settled.parts[part].verdict == "not reproduced"
    )


def test_statistics_are_the_ones_their_rules_name():
    found = paper.statistics(*world())
    at, between = NEAR[[0, 1, 2, 3, -1, -2, -3]].mean(), NEAR[9:16].mean()
    dip = math.log((2 - 1.8 * at) / (2 - 1.8 * between))
    assert [found["N1"][0][0], found["N2"][0][0]] == pytest.approx([dip, dip])
    assert found["N1"][1][0] == pytest.approx(0.02 / (3 - 0.01) / (1.8 / (2 - 0.9)))
    assert found["N3"][0][0] == pytest.approx(math.log(0.5))
    assert found["N4"][0] == pytest.approx([0.5] * 30)
    assert found["N5"][1] == pytest.approx([0.2] * 30)
    assert found["N8"][2] == pytest.approx([20] * 30) and found["N8"][3] == [0.0] * 30
    assert found["N9"][0] == pytest.approx([1.0] * 4)
    assert found["N11"][1][0] == pytest.approx(4 / 53, abs=0.2)
    assert found["N12"] == pytest.approx([0] * 4, abs=2e-3)
    assert found["N13"] == pytest.approx([(256 - 64) / 4000] * 4)


def test_selected_pairs_of_augmentation_are_those_it_helped():
    """Of half the pairs augmentation raised the test accuracy, and in these |J| as well."""
    columns = {"test_accuracy": "0.6 + 0.2 * (depth == 2)", "jacobian": "0.1 + 0.5 * (depth == 2)"}
    parts = settle(world("arm", "arm == 'augmentation'", pair_seeds=7, **columns))["N5"].parts
    assert [part.units for part in parts] == [42, 42, 21]
    assert parts[2].verdict == "not reproduced"


def test_missing_data_sets_leave_their_claims_open():
    networks, *rest = world()
    found = settle((networks[networks.dataset != MNIST], *rest))
    assert [part.verdict for part in found["N9"].parts] == ["inconclusive", *["reproduced"] * 2]
    assert settle((networks[networks.dataset != CIFAR], *rest))["N13"].verdict == "inconclusive"
    digits = networks[networks.dataset == MNIST].assign(dataset="mnist5k")  # stand in for MNIST
    assert settle((digits, *rest))["N9"].parts[0].verdict == "reproduced"


# ------------------------------------------------------------------ 100% train accuracy


def test_networks_that_did_not_fit_do_not_count():
    bad = {"train_accuracy": 0.99, "jacobian": -1.0, "gap": 5.0, "transitions": 0}
    networks, *rest = world("net", "member == 0", **bad)
    kept = networks[paper.fitted(networks)]
    assert len(kept) == 0.75 * len(networks)
    assert verdicts((networks, *rest)) == verdicts(world())
    assert paper.statistics(networks, *rest)["N9"] == paper.statistics(kept, *rest)["N9"]
    networks, paired, paths, points = world()
    for rows in (paths, points):
        rows.loc[rows.seed < 2, "train_accuracy"] = 0.9
    found = settle((networks, paired, paths, points))
    for name in ("N1", "N2", "N3", "N11", "N12"):
        assert {part.units for part in found[name].parts} == {2}


@pytest.mark.parametrize("accuracy", [0.99, math.nan])
def test_pairs_need_both_to_fit_but_for_the_augmented(accuracy):
    arms = tables("arm", "arm != 'baseline' and seed == 0", train_accuracy=accuracy)["arm"]
    counts = paper.pairs(arms).factor.value_counts()
    assert counts.to_dict() == dict.fromkeys(FACTORS, 24) | {AUGMENTATION: 30}
    assert paper.pairs(tables("arm", "arm == 'baseline'", train_accuracy=0.9)["arm"]).empty


# ------------------------------------------------------------------ the numbers themselves


def test_best_gap_is_of_networks_with_true_labels_that_fitted():
    rows = [(64, TRUE, 0.5, 1.0), (64, TRUE, 0.4, 1.0), (64, RANDOM, 0.0, 1.0)]
    rows += [(256, TRUE, 0.3, 1.0), (256, TRUE, 0.1, 0.9), (128, TRUE, 0.0, 1.0)]
    table = pd.DataFrame(rows, columns=["width", "labels", "gap", "train_accuracy"])
    assert paper.best_gap_lost(table) == pytest.approx(0.1)
    assert math.isnan(paper.best_gap_lost(table[table.width == 64]))
    assert math.isnan(paper.best_gap_lost(table[table.gap != 0.3]))


@pytest.mark.parametrize(
    ("a", "b", "p"), [(1, 1, 1 / 2), (2, 1, 2 / 3), (1, 3, 1 / 4), (1, 0, 0.95)]
)
def test_peak_of_a_curve_of_the_family_is_found(a, b, p):
    grid = np.linspace(0.05, 0.95, 20)
    table = pd.DataFrame(
        {"cross_entropy": -np.log(grid), "row_norm": 7 * grid**a * (1 - grid) ** b}
    )
    table["train_accuracy"] = 1.0
    assert paper.peak(table) == pytest.approx(-math.log(p), abs=5e-3)
    assert math.isnan(paper.peak(table[:19])) and math.isnan(paper.peak(table.assign(row_norm=0)))


def test_what_is_undefined_is_nan():
    points, paths = point_rows(1), path_rows(1)
    assert np.isnan(paper.misclassified(points[points.correct])).all()
    norms = pd.DataFrame({"correct": [True, True, False, False], "norm": [1.0, 2.0, 2.0, 0.5]})
    assert paper.misclassified(norms.assign(train_accuracy=1.0)) == (3 / 8, 0.5)
    dip, flatness, same = paper.along(paths.assign(norm=1.0), "norm")
    assert dip == same == 0 and math.isnan(flatness)
    assert np.isnan(paper.along(paths.assign(density=0.0), "density")).all()
    assert np.isnan(paper.along(paths[paths.kind != paper.SAME], "norm")).all()


# ------------------------------------------------------------------ correlations


def test_correlations_within_and_across_labels():
    networks = network_rows(4)
    table = paper.correlations(networks, ["jacobian", "transitions"], ["width", "member"], 99)
    assert len(table) == 3 * 2 * 3
    rows = table.set_index(["dataset", "measure", "labels"])
    assert rows.loc[(MNIST, "jacobian", "all"), "networks"] == 96
    whole = networks[networks.dataset == MNIST]
    for labels, some in (("all", whole), (TRUE, whole[whole.labels == TRUE])):
        row = rows.loc[(MNIST, "transitions", labels)]
        assert row.spearman == pytest.approx(spearmanr(some.transitions, some.gap).statistic)
        assert row.kendall == pytest.approx(kendalltau(some.transitions, some.gap).statistic)
        assert row.low <= row.spearman <= row.high
    ones = rows.loc[(CIFAR, "jacobian", "all")].drop("networks")
    assert ones.to_list() == pytest.approx([1] * 5)


def test_correlations_of_the_few_or_constant_are_undefined():
    networks = network_rows(1)
    some = networks[networks.dataset == MNIST]
    assert not math.isnan(paper.rank_correlation(some[:10], "jacobian"))
    assert math.isnan(paper.rank_correlation(some[:9], "jacobian"))
    assert math.isnan(paper.rank_correlation(some.assign(transitions=math.nan), "transitions"))
    for rows in (some[:9], some.assign(jacobian=1.0)):
        assert paper.correlations(rows, ["jacobian"], ["width"], 9).spearman.isna().all()
    assert paper.correlations(some[:0], ["jacobian"], ["width"], 9).empty


def test_partial_correlation_takes_out_what_train_loss_explains():
    normal = np.random.default_rng(0).normal
    loss = normal(size=4000)
    table = pd.DataFrame({"train_loss": loss, "dataset": MNIST, "labels": TRUE})
    table = table.assign(train_accuracy=1.0, setting=range(4000))
    table = table.assign(gap=loss + normal(size=4000), jacobian=loss + normal(size=4000))
    row = paper.correlations(table, ["jacobian"], ["setting"], 20).iloc[0]
    assert row.spearman > 0.4 and abs(row.partial) < 0.05


def test_interval_counts_settings_and_not_their_copies():
    values = np.random.default_rng(1).normal(size=(40, 3))
    table = pd.DataFrame(values, columns=["gap", "jacobian", "train_loss"])
    table = table.assign(dataset=MNIST, labels=TRUE, train_accuracy=1.0, setting=range(40))
    single, many = (
        paper.correlations(rows, ["jacobian"], ["setting"], 400).iloc[0]
        for rows in (table, pd.concat([table] * 25, ignore_index=True))
    )
    assert many.high - many.low == pytest.approx(single.high - single.low, rel=0.25)


# ------------------------------------------------------------------ what is run


def test_pairs_differ_in_one_factor_and_networks_give_a_row_each():
    experiments = paper.plan("smoke", "mnist5k", "cpu")
    base, stopped, *others = experiments["factors"].specs
    differing = [{k for k in base if base[k] != spec[k]} for spec in (stopped, *others)]
    assert differing == [{"stop"}, {"labels"}, {"augment"}, {"activation"}, {"batch_size"}]
    short = {"epochs": 1, "train_images": 40, "test_images": 20, "points": 5, "paths": 1}
    specs = [base | short, others[2] | short, base | short | {"activation": "tanh"}]
    rows = pd.DataFrame(paper.networks(specs, "cpu"))
    assert (rows.gap == rows.train_accuracy - rows.test_accuracy).all()
    assert rows.transitions.isna().tolist() == [False, False, True]  # tanh has no regions
    assert (rows.parameters == 784 * 16 + 16 + 16 * 16 + 16 + 170).all()


def test_paths_run_through_three_points_and_are_followed_by_the_angle():
    split = data.load("mnist5k", subset=(60, 20))
    scale = {"widths": (8,), "epochs": 1, "seeds": 1}
    run = paper.single_networks(split, scale, store=None, device="cpu")[0]
    for kind, classes in ((paper.DIFFERENT, 3), (paper.SAME, 1)):
        path = paper.closed_paths(split, kind, 3, 1)[0]
        corners = path[[0, 120, 240]].flatten(1)
        apart = (corners[:, None] - split.train.images.flatten(1)).norm(dim=2)
        assert apart.min(1).values.max() < 1e-4 and apart.argmin(1).unique().numel() == 3
        assert split.train.labels[apart.argmin(1)].unique().numel() == classes
        norms = paper.sensitivity.jacobian_norm(run.model(), path).roll(2).view(72, 5).mean(1)
        rows = paper.follow(run.model(), split, kind, 3, 1)
        np.testing.assert_allclose(rows.norm, norms, rtol=1e-5)
        assert rows.angle[24] == 120
    points = paper.single_points(run.model(), split.test)
    assert len(points) == 20 and (points.row_norm <= points.norm * (1 + 1e-5)).all()
