"""The statistics of N1 to N13 on made-up tables: each verdict must come out both ways."""

import math

import numpy as np
import pandas as pd
import pytest
from _settling import settle_all
from scipy.stats import kendalltau, spearmanr

from replication.papers import _jacobian_vs_gap as own
from replication.papers import jacobian_vs_gap
from replication.papers.jacobian_vs_gap import (
    ACTIVATION,
    AUGMENTATION,
    BASE,
    CIFAR,
    CLAIMS,
    DATASETS,
    DIFFERENT,
    FACTORS,
    FULL_BATCH,
    INITIAL,
    LABELS,
    MNIST,
    NOISE,
    RANDOM,
    SAME,
    TRAINED,
    TRUE,
)

SEEDS = (0, 1, 2, 3)
WIGGLE = (0.0, 0.01, -0.01, 0.005)
ANGLES = np.arange(0, 360, 5)
NEAR = (1 + np.cos(3 * np.radians(ANGLES))) / 2  # 1 at the three points, 0 between them


def ellipses(kind, seed):
    """Return |J| and density along an ellipse: a dip at points, between them less for one class."""
    level = {DIFFERENT: 2.0, SAME: 1.0, NOISE: 3.0}[kind] + WIGGLE[seed]
    curve = level - (0.02 if kind == NOISE else 0.9 * level) * NEAR
    return {"norm": curve, "density": 100 * curve}


def single_points(seed):
    """Return points whose |J_y| is p (1 - p); those below p = 1/2 are misclassified."""
    p = np.concatenate([np.linspace(0.02, 0.98, 97), np.full(400, 0.999), np.full(4, 1e-4)])
    row = p * (1 - p) * (1 + WIGGLE[seed])
    return {"cross_entropy": -np.log(p), "correct": p > 0.5, "norm": 1.3 * row, "row_norm": row}


def network(dataset, labels, width, member, seed):
    """Return a network whose |J| rises with its gap and whose transitions do not know of it."""
    gap = (0.2 if labels == TRUE else 0.8) + 0.02 * member + WIGGLE[seed] - width / 4000
    turn = (member * 7 + (labels == RANDOM) * 3 + width // 64) % 5
    return {"gap": gap, "jacobian": gap**2, "transitions": 100 + turn, "train_loss": 0.1 + turn}


SHIFTS = {  # what each factor adds to the baseline: gap, |J|, transitions, test accuracy
    LABELS: (0.5, 1.0, 50, -0.5),
    AUGMENTATION: (-0.1, -0.2, -20, 0.1),
    ACTIVATION: (0.1, 0.2, 20, -0.1),
    FULL_BATCH: (0.1, 0.2, -20, -0.1),
}


def world(ellipse=None, point=None, net=None, arm=None, seeds=SEEDS, pair_seeds=5, drop=()):
    """Return the tables of a world in which every claim but those changed holds.

    The functions in the arguments return columns that replace those of the functions above.
    """

    def other(function, *at):
        return function(*at) if function is not None else {}

    fit = {"train_accuracy": 1.0}
    paths, points, networks, arms = [], [], [], []
    for s in seeds:
        for kind in (DIFFERENT, SAME, NOISE):
            at = fit | {"seed": s, "kind": kind, "angle": ANGLES}
            curve = at | {"stage": TRAINED} | ellipses(kind, s) | other(ellipse, kind, s)
            before = at | {"stage": INITIAL, "norm": 5 + NEAR, "density": 5 + NEAR}
            paths += [pd.DataFrame(curve), pd.DataFrame(before)]
        at = fit | {"seed": s} | single_points(s)
        points.append(pd.DataFrame(at | other(point, s)))
        for dataset in DATASETS:
            for labels in (TRUE, RANDOM):
                for width in (64, 128, 256):
                    for member in range(4):
                        at = (dataset, labels, width, member, s)
                        names = ("dataset", "labels", "width", "member", "seed")
                        row = dict(zip(names, at, strict=True)) | fit
                        networks.append(row | network(*at) | other(net, *at))
    for s in range(pair_seeds):
        for width in (64, 128, 256):
            for depth in (2, 4):
                for name in (BASE, *FACTORS):
                    moved = SHIFTS.get(name, (0, 0, 0, 0))
                    row = {"arm": name, "seed": s, "width": width, "depth": depth} | fit
                    values = np.array([0.3, 0.5, 100, 0.7]) + moved
                    row |= dict(zip(own.MEASURED[:4], values, strict=True))
                    arms.append(row | other(arm, name, s, width, depth))
    networks = pd.DataFrame(networks)
    networks = networks[~networks.dataset.isin(drop)]
    paired = jacobian_vs_gap.pairs(pd.DataFrame(arms))
    return networks, paired, pd.concat(paths), pd.concat(points)


def settle(tables):
    return settle_all(CLAIMS, jacobian_vs_gap.statistics(*tables))


def verdicts(tables):
    return {name: settled.verdict for name, settled in settle(tables).items()}


def test_claims_are_n1_to_n13():
    assert [claim.id for claim in CLAIMS] == [f"N{i}" for i in range(1, 14)]


def test_all_claims_hold_in_a_world_made_for_them():
    assert verdicts(world()) == {claim.id: "reproduced" for claim in CLAIMS}


def curve(quantity, of):
    """Change `quantity` along the ellipses of the kinds in `of`, a function of the seed each."""
    return {"ellipse": lambda kind, s: {quantity: of[kind](s)} if kind in of else {}}


def arms(name, **moved):
    """Change the networks of one arm."""
    return {"arm": lambda arm, *_: moved if arm == name else {}}


def networks_of(dataset, change):
    return {"net": lambda d, *at: change(*at) if d == dataset else {}}


def up(s):
    return 2 + NEAR + WIGGLE[s]


def rising(labels, width, member, s):
    return {"transitions": 1000 * network(MNIST, labels, width, member, s)["gap"]}


# claim, the part that decides (from 0), and what is otherwise in that world
OTHER_WORLDS = [
    ("N1", 0, curve("norm", {DIFFERENT: up})),
    ("N1", 1, curve("norm", {NOISE: lambda s: 2 + WIGGLE[s] - 1.8 * NEAR})),
    ("N2", 0, curve("density", {DIFFERENT: up})),
    ("N2", 1, curve("density", {NOISE: lambda s: 2 + WIGGLE[s] - 1.8 * NEAR})),
    ("N3", 0, curve("norm", {SAME: lambda s: 4 + WIGGLE[s] - NEAR})),
    ("N3", 1, curve("density", {SAME: lambda s: 400 + WIGGLE[s] - NEAR})),
    ("N4", 0, arms(LABELS, gap=0.2)),
    ("N4", 1, arms(LABELS, jacobian=0.4)),
    ("N5", 0, arms(AUGMENTATION, gap=0.4)),
    ("N5", 1, arms(AUGMENTATION, jacobian=0.6)),
    ("N6", 0, arms(ACTIVATION, gap=0.2)),
    ("N6", 1, arms(ACTIVATION, jacobian=0.4)),
    ("N7", 0, arms(FULL_BATCH, gap=0.2)),
    ("N7", 1, arms(FULL_BATCH, jacobian=0.4)),
    ("N8", 0, arms(LABELS, transitions=50)),
    ("N8", 1, arms(AUGMENTATION, transitions=200)),
    ("N8", 2, arms(ACTIVATION, transitions=0)),
    ("N8", 3, arms(FULL_BATCH, transitions=200)),
    *(
        (
            "N9",
            part,
            networks_of(
                dataset, lambda labels, w, m, s: {"jacobian": (labels == TRUE) + m / 99 + s}
            ),
        )
        for part, dataset in enumerate(DATASETS)
    ),
    *(("N10", part, networks_of(dataset, rising)) for part, dataset in enumerate(DATASETS)),
    ("N11", 0, {"point": lambda s: {"norm": np.exp(-single_points(s)["cross_entropy"])}}),
    ("N11", 1, {"point": lambda s: {"norm": 1 - 0.99 * single_points(s)["correct"]}}),
    ("N12", 0, {"point": lambda s: {"row_norm": np.exp(-single_points(s)["cross_entropy"])}}),
    ("N13", 0, networks_of(CIFAR, lambda labels, w, m, s: {"gap": w / 400 + WIGGLE[s] + m / 99})),
]


@pytest.mark.parametrize(("name", "part", "changed"), OTHER_WORLDS)
def test_each_part_of_each_claim_is_refuted_where_it_does_not_hold(name, part, changed):
    settled = settle(world(**changed))[name]
    assert settled.verdict == settled.parts[part].verdict == "not reproduced"


def test_selected_pairs_of_augmentation_are_those_it_helped():
    """Of half the pairs augmentation raised the test accuracy, and in these |J| as well."""

    def arm(name, seed, width, depth):
        helped = depth == 2
        moved = {"test_accuracy": 0.8 if helped else 0.6, "jacobian": 0.6 if helped else 0.1}
        return moved if name == AUGMENTATION else {}

    tables = world(arm=arm, pair_seeds=7)
    parts = settle(tables)["N5"].parts
    assert [part.seeds for part in parts] == [42, 42, 21]
    assert parts[2].verdict == "not reproduced"


def test_two_seeds_and_nineteen_pairs_settle_nothing():
    tables = world(seeds=(0, 1), pair_seeds=4)
    few = tables[1].groupby("factor").head(19)
    found = settle((tables[0], few, *tables[2:]))
    assert {settled.verdict for settled in found.values()} == {"inconclusive"}
    enough = tables[1].groupby("factor").head(20)
    assert verdicts((tables[0], enough, *tables[2:]))["N4"] == "reproduced"


def test_missing_data_sets_leave_their_claims_open():
    found = settle(world(drop=(MNIST,)))
    assert found["N9"].verdict == found["N10"].verdict == "inconclusive"
    assert [part.verdict for part in found["N9"].parts] == ["inconclusive", *["reproduced"] * 2]
    assert settle(world(drop=(CIFAR,)))["N13"].verdict == "inconclusive"
    tables = world(drop=DATASETS[1:])
    tables[0].dataset = "mnist5k"  # the embedded digits stand in for MNIST
    assert settle(tables)["N9"].parts[0].verdict == "reproduced"


# ------------------------------------------------------------------ 100% train accuracy


def test_networks_that_did_not_fit_do_not_count():
    def unfit(dataset, labels, width, member, seed):
        bad = {"train_accuracy": 0.99, "jacobian": -1.0, "gap": 5.0, "transitions": 0}
        return bad if member == 0 else {}

    tables = world(net=unfit)
    assert verdicts(tables) == verdicts(world())
    kept = tables[0][jacobian_vs_gap.fitted(tables[0])]
    assert len(kept) == 0.75 * len(tables[0])
    assert (
        jacobian_vs_gap.statistics(*tables)["N9"]
        == jacobian_vs_gap.statistics(kept, *tables[1:])["N9"]
    )


def test_a_single_network_that_did_not_fit_is_undefined():
    networks, paired, paths, points = world()
    paths.loc[paths.seed < 2, "train_accuracy"] = points.loc[points.seed < 2, "train_accuracy"] = (
        0.9
    )
    found = settle((networks, paired, paths, points))
    for name in ("N1", "N2", "N3", "N11", "N12"):
        assert found[name].verdict == "inconclusive"
        assert [part.seeds for part in found[name].parts] == [2] * len(found[name].parts)


@pytest.mark.parametrize("accuracy", [0.99, math.nan])
def test_pairs_need_both_to_fit_but_for_the_augmented(accuracy):
    def arm(name, seed, width, depth):
        return {"train_accuracy": accuracy} if name != BASE and seed == 0 else {}

    paired = world(arm=arm)[1]
    counts = paired.factor.value_counts()
    assert counts[AUGMENTATION] == 30
    assert {counts[factor] for factor in FACTORS if factor != AUGMENTATION} == {24}
    base = world(arm=lambda name, seed, *_: {"train_accuracy": 0.9} if name == BASE else {})[1]
    assert base.empty


def test_no_pairs_at_all_leave_the_claims_open():
    networks, paired, paths, points = world()
    found = settle((networks, paired[:0], paths, points))
    assert {found[f"N{i}"].verdict for i in range(4, 9)} == {"inconclusive"}


# ------------------------------------------------------------------ the numbers themselves


def test_statistics_are_the_ones_their_rules_name():
    found = jacobian_vs_gap.statistics(*world())
    at, between = NEAR[[0, 1, 2, 3, -1, -2, -3]].mean(), NEAR[9:16].mean()
    dip = math.log((2 - 1.8 * at) / (2 - 1.8 * between))
    assert [found["N1"][0][0], found["N2"][0][0]] == pytest.approx([dip, dip])
    spread = [0.02 / (3 - 0.01), 1.8 / (2 - 0.9)]
    assert found["N1"][1][0] == pytest.approx(spread[0] / spread[1])
    assert found["N3"][0][0] == pytest.approx(math.log(0.5))
    assert found["N4"][0] == pytest.approx([0.5] * 30)
    assert found["N5"][1] == pytest.approx([0.2] * 30)
    assert found["N8"][2] == pytest.approx([20] * 30)
    assert found["N8"][3] == [0.0] * 30
    assert found["N9"][0] == pytest.approx([1.0] * 4)
    assert found["N11"][1][0] == pytest.approx(np.mean([*[True] * 4, *[False] * 49]), abs=0.2)
    assert found["N12"] == pytest.approx([0] * 4, abs=2e-3)
    assert found["N13"] == pytest.approx([(256 - 64) / 4000] * 4)


def test_correlation_of_few_networks_is_undefined():
    networks = world()[0]
    some = networks[(networks.dataset == MNIST) & (networks.seed == 0)]
    assert not math.isnan(own.rank_correlation(some[:10], "jacobian"))
    assert math.isnan(own.rank_correlation(some[:9], "jacobian"))
    assert math.isnan(own.rank_correlation(some.assign(jacobian=1.0), "jacobian"))
    smooth = some.assign(transitions=math.nan)
    assert math.isnan(own.rank_correlation(smooth, "transitions"))
    expected = spearmanr(some.transitions, some.gap).statistic
    assert own.rank_correlation(some, "transitions") == pytest.approx(expected)


def test_best_gap_is_of_networks_with_true_labels_that_fitted():
    rows = [(64, TRUE, 0.5, 1.0), (64, TRUE, 0.4, 1.0), (64, RANDOM, 0.0, 1.0)]
    rows += [(256, TRUE, 0.3, 1.0), (256, TRUE, 0.1, 0.9), (128, TRUE, 0.0, 1.0)]
    table = pd.DataFrame(rows, columns=["width", "labels", "gap", "train_accuracy"])
    assert own.best_gap_lost(table) == pytest.approx(0.1)
    assert math.isnan(own.best_gap_lost(table[table.width == 64]))
    assert math.isnan(own.best_gap_lost(table[table.gap != 0.3]))


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 1.0), (1.0, 3.0)])
def test_peak_of_a_curve_of_the_family_is_found(a, b):
    p = np.linspace(0.01, 0.99, 99)
    table = {"cross_entropy": -np.log(p), "row_norm": 7 * p**a * (1 - p) ** b}
    found = own.peak(pd.DataFrame(table).assign(train_accuracy=1.0))
    assert found == pytest.approx(-math.log(a / (a + b)), abs=5e-3)


def test_peak_needs_undecided_points_and_may_lie_at_the_end_of_the_range():
    p = np.linspace(0.1, 0.9, 20)
    table = pd.DataFrame({"cross_entropy": -np.log(p), "row_norm": p, "train_accuracy": 1.0})
    assert own.peak(table) == pytest.approx(-math.log(0.95))
    assert math.isnan(own.peak(table[:19]))
    assert math.isnan(own.peak(table.assign(row_norm=0.0)))


def test_without_misclassified_points_n11_is_undefined():
    table = world()[3]
    found = own.misclassified(table[table.correct])
    assert all(math.isnan(value) for value in found)
    norms = pd.DataFrame({"correct": [True, True, False, False], "norm": [1.0, 2.0, 2.0, 0.5]})
    assert own.misclassified(norms.assign(train_accuracy=1.0)) == (3 / 8, 0.5)


def test_a_flat_or_empty_curve_is_undefined():
    paths = world()[2]
    rows = paths[paths.seed == 0]
    flat = own.along(rows.assign(norm=1.0), "norm")
    assert flat["dip"] == flat["same"] == 0 and math.isnan(flat["flatness"])
    zero = own.along(rows.assign(density=0.0), "density")
    assert all(math.isnan(value) for value in zero.values())
    missing = own.along(rows[rows.kind != SAME], "norm")
    assert all(math.isnan(value) for value in missing.values())


# ------------------------------------------------------------------ correlations


def test_correlations_within_and_across_labels():
    networks = world()[0]
    table = jacobian_vs_gap.correlations(
        networks, ["jacobian", "transitions"], ["width", "member"], 99
    )
    assert len(table) == 3 * 2 * 3
    rows = table.set_index(["dataset", "measure", "labels"])
    assert rows.loc[(MNIST, "jacobian", "all"), "networks"] == 96
    whole = networks[networks.dataset == MNIST]
    for labels, some in (("all", whole), (TRUE, whole[whole.labels == TRUE])):
        row = rows.loc[(MNIST, "transitions", labels)]
        assert row.spearman == pytest.approx(spearmanr(some.transitions, some.gap).statistic)
        assert row.kendall == pytest.approx(kendalltau(some.transitions, some.gap).statistic)
        assert row.low <= row.spearman <= row.high
    ones = rows.loc[(CIFAR, "jacobian", "all")]
    assert ones[["spearman", "low", "high", "kendall", "partial"]].to_list() == pytest.approx(
        [1] * 5
    )


def test_correlations_of_the_few_or_constant_are_undefined():
    networks = world()[0]
    few = networks[networks.dataset == MNIST][:9]
    found = jacobian_vs_gap.correlations(few, ["jacobian"], ["width"], 9)
    assert found.networks[0] == 9 and found.spearman.isna().all()
    same = networks.assign(jacobian=1.0)
    assert jacobian_vs_gap.correlations(same, ["jacobian"], ["width"], 9).spearman.isna().all()
    assert jacobian_vs_gap.correlations(networks[:0], ["jacobian"], ["width"], 9).empty


def test_partial_correlation_takes_out_what_train_loss_explains():
    source = np.random.default_rng(0)
    loss = source.normal(size=4000)
    table = pd.DataFrame({"train_loss": loss, "dataset": MNIST, "labels": TRUE})
    table = table.assign(train_accuracy=1.0, seed=0, setting=range(4000))
    table["gap"] = loss + source.normal(size=4000)
    table["jacobian"] = loss + source.normal(size=4000)
    row = jacobian_vs_gap.correlations(table, ["jacobian"], ["setting"], 20).iloc[0]
    assert row.spearman > 0.4 and abs(row.partial) < 0.05


def test_interval_counts_settings_and_not_their_copies():
    source = np.random.default_rng(1)
    table = pd.DataFrame(source.normal(size=(40, 3)), columns=["gap", "jacobian", "train_loss"])
    table = table.assign(dataset=MNIST, labels=TRUE, train_accuracy=1.0, setting=range(40))
    copies = pd.concat([table] * 25, ignore_index=True)
    one, many = (
        jacobian_vs_gap.correlations(t, ["jacobian"], ["setting"], 400).iloc[0]
        for t in (table, copies)
    )
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.25)
