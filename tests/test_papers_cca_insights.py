"""The statistics of P1 to P7 on made-up tables: each verdict must come out both ways."""

import math
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
from _settling import settle_all

from replication.papers import cca_insights as cca
from replication.papers.cca_insights import CLAIMS, GENERALISING, MEMORISING

SEEDS = range(4)
JITTER = [0.0, 0.003, -0.003, 0.001]
LAYERS = range(1, 12)
EPOCHS = (0, 1, 5, 10, 11, 15, 20)
HOLDS = {  # the value of each kind in a world in which every claim holds
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


def population_of(seed, of):
    """Return twenty networks on a line, five clusters of four where the claim holds."""
    at = np.array([of["place"](i, seed) for i in range(20)]) / 10
    at = at + np.random.default_rng(seed).uniform(0, 0.01, 20)
    rates = [of["rate"](i, seed) for i in range(20)]
    distances = np.abs(at[:, None] - at).tolist()
    rows = {"seed": seed, "network": range(20), "learning_rate": rates, "distances": distances}
    return pd.DataFrame(rows)


def tables(**changed):
    """Return the tables of a world in which every claim but those changed holds."""
    of = HOLDS | changed

    def table(columns, rows):
        return pd.DataFrame(list(rows), columns=columns.split())

    members = list(product((GENERALISING, MEMORISING), SEEDS))
    kinds = [(a, b, of[a[0] if a[0] == b[0] else "mixed"]) for a, b in permutations(members, 2)]
    return {
        "pairs": table(
            "labels_a seed_a labels_b seed_b layer distance",
            (
                (*a, *b, layer, kind(layer > 8, a[1]) / 2 + kind(layer > 8, b[1]) / 2)
                for (a, b, kind), layer in product(kinds, LAYERS)
            ),
        ),
        "networks": table(
            "labels seed train_accuracy", ((*m, of["train_accuracy"](*m)) for m in members)
        ),
        "widths": table(
            "seed width trained distance test_accuracy",
            (
                (s, w, end, of["width"](w, end, s), of["test_accuracy"](w, s))
                for s, w, end in product(SEEDS, (0.25, 0.5, 1.0), (True, False))
            ),
        ),
        "populations": pd.concat([population_of(s, of) for s in SEEDS]),
        "directions": table(
            "seed layer epoch group distance",
            (  # only the last three layers may be looked at
                (s, layer, e, group, of[group](e, s) if layer > 8 else 9.0)
                for s, layer, e, group in product(SEEDS, LAYERS, EPOCHS, ("most", "least"))
            ),
        ),
        "recurrent": table(
            "seed layer epoch distance",
            (
                (s, layer, e, of["layer"](layer, s) if 0 < e < 20 else 1.0 / layer)
                for s, layer, e in product(SEEDS, (1, 2, 3), EPOCHS)
            ),
        ),
        "toy": table(
            "seed signal metric distance",
            (
                (s, k, metric, distance * (1 + JITTER[s]))
                for s, k, (metric, distance) in product(SEEDS, (20, 100), of["toy"].items())
            ),
        ),
    }


def verdicts(world):
    settled = settle_all(CLAIMS, cca.statistics(**world))
    return {id: claim.verdict for id, claim in settled.items()}


def test_all_claims_hold_in_a_world_made_for_them():
    assert verdicts(tables()) == {f"P{i}": "reproduced" for i in range(1, 8)}


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


@pytest.mark.parametrize(("id", "changed"), OTHER_WORLDS)
def test_each_claim_is_refuted_where_it_does_not_hold(id, changed):
    assert verdicts(tables(**changed))[id] in ("partly", "not reproduced")


def test_two_seeds_settle_nothing():
    few = {
        name: rows[(rows.filter(regex="^seed") < 2).all(axis=1)] for name, rows in tables().items()
    }
    assert set(verdicts(few).values()) == {"inconclusive"}


def test_networks_that_did_not_fit_their_labels_do_not_count():
    world = tables(
        train_accuracy=lambda labels, s: 0.9 if labels == MEMORISING and s == 1 else 1.0,
        memorising=lambda late, s: 9.0 if s == 1 else 0.5 if late else 0.1,
    )
    assert cca.statistics(**world)["P1"][0] == pytest.approx([0.2] * 3)
    none = tables(train_accuracy=lambda labels, s: 0.5)
    assert all(math.isnan(v) for series in cca.statistics(**none)["P1"] for v in series)
    assert verdicts(none)["P1"] == "inconclusive"


def test_statistics_are_the_ones_their_rules_name():
    values = cca.statistics(**tables())
    # seed 0, without jitter of its own; its partners' counts half
    partners = np.mean(JITTER[1:]) / 2
    first = {id: [part[0] for part in values[id]] for id in ("P1", "P2", "P5", "P7")}
    assert first["P1"] == pytest.approx([0.2 + partners, abs(0.01 - partners), 0.01])
    assert first["P2"] == pytest.approx([-1, 0.15 - 0.03])
    assert values["P3"][0] == pytest.approx(-1)
    assert first["P5"] == pytest.approx([0.5, 1])
    assert values["P6"][0] == pytest.approx(0.2)
    assert first["P7"] == pytest.approx([0.2, 0.2])


def test_mean_over_pairs_takes_both_orders_and_no_pair_twice():
    pairs = pd.DataFrame({"seed_a": [0, 1, 1], "seed_b": [1, 0, 1], "distance": [0.2, 0.4, 9.0]})
    pairs = pairs.assign(labels_a="x", labels_b="x", layer=1)  # the last, with itself, is no pair
    networks = pd.DataFrame({"labels": "x", "seed": [0, 1], "train_accuracy": 1.0})
    assert cca.by_network(pairs, networks).distance.tolist() == pytest.approx([0.3, 0.3])


def test_two_widths_are_too_few():
    world = tables()
    world["widths"] = world["widths"].query("width < 1")
    values = cca.statistics(**world)
    assert np.isnan(values["P2"]).all() and np.isnan(values["P3"]).all()


def test_clusters_and_silhouette_of_blocks():
    at = np.repeat([0.0, 1.0, 5.0], [3, 2, 1])
    distances = np.abs(at[:, None] - at)
    labels = cca.clusters(distances, 3)
    assert pd.Series(labels).groupby(at).nunique().tolist() == [1, 1, 1]
    # members of a block lie on each other: 1, but for the cluster of one
    assert cca.silhouette(distances, labels) == pytest.approx(5 / 6)
    assert math.isnan(cca.silhouette(distances, np.ones(6)))
    assert cca.silhouette(np.zeros((4, 4)), [1, 1, 2, 2]) == 0


def test_silhouette_by_hand():
    at = np.array([0.0, 1.0, 4.0, 6.0])
    # a, b of the four: (1, 5), (1, 4), (2, 3.5), (2, 5.5)
    expected = np.mean([4 / 5, 3 / 4, 1.5 / 3.5, 3.5 / 5.5])
    assert cca.silhouette(np.abs(at[:, None] - at), [1, 1, 2, 2]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "values", "share"),
    [
        ([1, 1, 2, 2], [1.0, 2.0, 3.0, 6.0], 9 / 14),
        ([1, 2, 3, 4], [1.0, 2.0, 3.0, 6.0], 1),
        ([1, 1, 2, 2], [1.0] * 4, math.nan),
    ],
)
def test_explained_share_is_that_of_an_analysis_of_variance(labels, values, share):
    assert cca.explained_share(labels, values) == pytest.approx(share, nan_ok=True)


def test_permuted_shares_are_those_of_chance_and_repeat():
    labels = np.repeat([1, 2, 3, 4, 5], 6)
    shares = cca.permuted_shares(labels, np.arange(30.0))
    assert shares.mean() == pytest.approx(4 / 29, abs=0.01)  # (groups - 1) / (n - 1)
    np.testing.assert_array_equal(shares, cca.permuted_shares(labels, np.arange(30.0)))
