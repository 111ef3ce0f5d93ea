"""The statistics of P1 to P7 on made-up tables: each verdict must come out both ways."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from _settling import settle_all

from replication.papers import cca_insights as rules
from replication.papers.cca_insights import CLAIMS, GENERALISING, MEMORISING

SEEDS = range(4)
JITTER = [0.0, 0.003, -0.003, 0.001]
LAYERS = range(1, 12)
EPOCHS = (0, 1, 5, 10, 11, 15, 20)
DEFAULT = {
    # distances of a pair in a layer: (is it late?, seed)
    "generalising": lambda late, s: 0.3 if late else 0.1,
    "memorising": lambda late, s: 0.5 + JITTER[s] if late else 0.11,
    "mixed": lambda late, s: 0.51 if late else 0.12,
    "train_accuracy": lambda labels, s: 1.0,
    "width": lambda w, trained, s: (0.5 - 0.2 * w if trained else 0.65 - 0.04 * w) + JITTER[s] * w,
    "test_accuracy": lambda w, s: 0.6 + 0.1 * w + JITTER[s],
    "place": lambda i, s: float(i // 4),  # of a network on a line along which distances are taken
    "rate": lambda i, s: 0.002 * 1.3**i,
    "most": lambda e, s: 0.2,
    "least": lambda e, s: 0.0 if e == 10 else 0.7 + JITTER[s],
    "layer": lambda depth, s: 0.1 * depth + JITTER[s] * depth,
    "toy": {"mean CCA": 0.5, "SVCCA": 0.3, "PWCCA": 0.1},
}


def pair_table(world):
    """Return every ordered pair of networks at every layer."""
    rows = []
    members = list(itertools.product((GENERALISING, MEMORISING), SEEDS))
    for (a, s), (b, r) in itertools.permutations(members, 2):
        kind = a if a == b else "mixed"
        for layer in LAYERS:
            value = world[kind](layer > 8, s) / 2 + world[kind](layer > 8, r) / 2
            row = {"labels_a": a, "seed_a": s, "labels_b": b, "seed_b": r}
            rows.append(row | {"layer": layer, "distance": value})
    accuracy = [
        {"labels": a, "seed": s, "train_accuracy": world["train_accuracy"](a, s)}
        for a, s in members
    ]
    return pd.DataFrame(rows), pd.DataFrame(accuracy)


def population_table(world):
    """Return populations of twenty networks on a line, five clusters of four by default."""
    rows = []
    for s in SEEDS:
        at = np.array([world["place"](i, s) for i in range(20)]) / 10
        at = at + np.random.default_rng(s).uniform(0, 0.01, 20)
        distances = np.abs(at[:, None] - at)
        rows += [
            {"seed": s, "network": i, "learning_rate": world["rate"](i, s), "distances": line}
            for i, line in enumerate(distances.tolist())
        ]
    return pd.DataFrame(rows)


def tables(**changed):
    """Return the tables of a world in which every claim but those changed holds."""
    world = DEFAULT | changed
    pairs, networks = pair_table(world)
    widths = [
        {"seed": s, "width": w, "trained": end, "distance": world["width"](w, end, s)}
        | {"test_accuracy": world["test_accuracy"](w, s)}
        for s, w, end in itertools.product(SEEDS, (0.25, 0.5, 1.0), (True, False))
    ]
    fate = [
        # only the last three layers may be looked at
        {"seed": s, "layer": layer, "epoch": e, "group": group}
        | {"distance": world[group](e, s) if layer > 8 else 9.0}
        for s, layer, e, group in itertools.product(SEEDS, LAYERS, EPOCHS, ("most", "least"))
    ]
    recurrent = [
        {"seed": s, "layer": layer, "epoch": e}
        | {"distance": world["layer"](layer, s) if 0 < e < 20 else 1.0 / layer}
        for s, layer, e in itertools.product(SEEDS, (1, 2, 3), EPOCHS)
    ]
    toy = [
        {"seed": s, "signal": k, "metric": metric, "distance": distance + JITTER[s] * distance}
        for s, k in itertools.product(SEEDS, (20, 100))
        for metric, distance in world["toy"].items()
    ]
    rest = (pd.DataFrame(rows) for rows in (fate, recurrent, toy))
    return pairs, networks, pd.DataFrame(widths), population_table(world), *rest


def verdicts(found):
    return {name: claim.verdict for name, claim in settle_all(CLAIMS, found).items()}


def settled(**changed):
    return verdicts(rules.statistics(*tables(**changed)))


def test_claims_are_p1_to_p7():
    assert [claim.id for claim in CLAIMS] == [f"P{i}" for i in range(1, 8)]


def test_all_claims_hold_in_a_world_made_for_them():
    assert settled() == {claim.id: "reproduced" for claim in CLAIMS}


OTHER_WORLDS = [
    ("P1", {"memorising": lambda late, s: 0.28 + JITTER[s]}),
    ("P1", {"mixed": lambda late, s: 0.7 if late else 0.1}),
    ("P1", {"memorising": lambda late, s: (0.5 if late else 0.3) + JITTER[s]}),
    ("P2", {"width": lambda w, end, s: 0.3 + (0.2 * w if end else 0.1) + JITTER[s] * w}),
    ("P2", {"width": lambda w, end, s: 0.6 - (0.1 if end else 0.2) * w + JITTER[s] * w}),
    ("P3", {"test_accuracy": lambda w, s: 0.7 - 0.1 * w + JITTER[s]}),
    ("P4", {"place": lambda i, s: np.random.default_rng(i).normal()}),
    ("P4", {"rate": lambda i, s: 0.002 * 1.3 ** (i % 4)}),
    ("P5", {"most": lambda e, s: 0.8 + JITTER[s]}),
    ("P5", {"least": lambda e, s: 0.35 + (0.6 + JITTER[s]) * (e == 20) - 0.35 * (e == 10)}),
    ("P6", {"layer": lambda depth, s: 0.5 - 0.1 * depth + JITTER[s] * depth}),
    ("P7", {"toy": {"mean CCA": 0.5, "SVCCA": 0.1, "PWCCA": 0.2}}),
    ("P7", {"toy": {"mean CCA": 0.3, "SVCCA": 0.4, "PWCCA": 0.2}}),
]


@pytest.mark.parametrize(("name", "world"), OTHER_WORLDS)
def test_each_claim_is_refuted_where_it_does_not_hold(name, world):
    assert settled(**world)[name] == "not reproduced"


def test_two_seeds_settle_nothing():
    def first(rows):
        members = rows[["seed_a", "seed_b"]] if "seed_a" in rows else rows[["seed"]]
        return rows[(members < 2).all(axis=1)]

    few = map(first, tables())
    assert set(verdicts(rules.statistics(*few)).values()) == {"inconclusive"}


def test_networks_that_did_not_fit_their_labels_do_not_count():
    found = rules.statistics(
        *tables(
            train_accuracy=lambda labels, s: 0.9 if labels == MEMORISING and s == 1 else 1.0,
            memorising=lambda late, s: 9.0 if s == 1 else 0.5 if late else 0.1,
        )
    )
    assert found["P1"][0] == pytest.approx([0.2] * 3)
    none = rules.statistics(*tables(train_accuracy=lambda labels, s: 0.5))
    assert all(math.isnan(v) for series in none["P1"] for v in series)
    assert verdicts(none)["P1"] == "inconclusive"


def test_statistics_are_the_ones_their_rules_name():
    found = rules.statistics(*tables())
    # seed 0, without jitter of its own; its partners' is 0.001 / 3 on average over two
    partners = np.mean(JITTER[1:]) / 2
    assert found["P1"][0][0] == pytest.approx(0.2 + partners)
    assert found["P1"][1][0] == pytest.approx(abs(0.01 - partners))
    assert found["P1"][2][0] == pytest.approx(0.01)
    assert found["P2"][0][0] == pytest.approx(-1)
    assert found["P2"][1][0] == pytest.approx(0.15 - 0.03)
    assert found["P3"][0] == pytest.approx(-1)
    assert found["P5"][0][0] == pytest.approx(0.5)
    assert found["P5"][1][0] == pytest.approx(1)
    assert found["P6"][0] == pytest.approx(0.2)
    assert [series[0] for series in found["P7"]] == pytest.approx([0.2, 0.2])


def test_mean_over_pairs_takes_both_orders_and_no_pair_twice():
    row = {"labels_a": "x", "labels_b": "x", "layer": 1}
    pairs = pd.DataFrame(
        [
            row | {"seed_a": 0, "seed_b": 1, "distance": 0.2},
            row | {"seed_a": 1, "seed_b": 0, "distance": 0.4},
            row | {"seed_a": 1, "seed_b": 1, "distance": 9.0},  # with itself: no pair
        ]
    )
    networks = pd.DataFrame({"labels": "x", "seed": [0, 1], "train_accuracy": 1.0})
    assert rules.by_network(pairs, networks).distance.tolist() == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize("statistic", ["_widths", "_accuracy"])
def test_two_widths_are_too_few(statistic):
    widths = tables()[2]
    found = getattr(rules, statistic)(widths[(widths.seed == 0) & (widths.width < 1)])
    assert np.isnan(found).all()


def test_clusters_and_silhouette_of_blocks():
    at = np.repeat([0.0, 1.0, 5.0], [3, 2, 1])
    distances = np.abs(at[:, None] - at)
    labels = rules.clusters(distances, 3)
    assert pd.Series(labels).groupby(at).nunique().tolist() == [1, 1, 1]
    # members of a block lie on each other: 1, but for the cluster of one
    assert rules.silhouette(distances, labels) == pytest.approx(5 / 6)
    assert math.isnan(rules.silhouette(distances, np.ones(6)))
    assert rules.silhouette(np.zeros((4, 4)), [1, 1, 2, 2]) == 0


def test_silhouette_by_hand():
    at = np.array([0.0, 1.0, 4.0, 6.0])
    # a, b of the four: (1, 5), (1, 4), (2, 3.5), (2, 5.5)
    expected = np.mean([4 / 5, 3 / 4, 1.5 / 3.5, 3.5 / 5.5])
    assert rules.silhouette(np.abs(at[:, None] - at), [1, 1, 2, 2]) == pytest.approx(expected)


def test_explained_share_is_that_of_an_analysis_of_variance():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    assert rules.explained_share([1, 1, 2, 2], values) == pytest.approx(9 / 14)
    assert rules.explained_share([1, 2, 3, 4], values) == pytest.approx(1)
    assert math.isnan(rules.explained_share([1, 1, 2, 2], np.ones(4)))


def test_permuted_shares_are_those_of_chance_and_repeat():
    labels = np.repeat([1, 2, 3, 4, 5], 6)
    found = rules.permuted_shares(labels, np.arange(30.0))
    assert found.mean() == pytest.approx(4 / 29, abs=0.01)  # (groups - 1) / (n - 1)
    np.testing.assert_array_equal(found, rules.permuted_shares(labels, np.arange(30.0)))
