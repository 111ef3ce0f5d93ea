"""The statistics of P1 to P12 on made-up results: each verdict must come out both ways."""

import math
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
import torch
from _settling import verdicts
from numpy.testing import assert_allclose

from replication import claims, sweeps
from replication.papers import _run, single_directions
from replication.papers import cca_insights as paper
from replication.papers.cca_insights import CLAIMS, CONTROLS, MAIN, MIXED, PERMUTED, SOFTMAX, TRUE

SEEDS, LAYERS = range(10), (1, 9, 11, SOFTMAX)
WIDTHS, SHARES = (1 / 8, 1 / 2, 1), (0, 0.05, 0.1, 0.2, 0.4, 0.5, 0.7, 0.9, 1)


def distance(metric, kind, layer, probe):
    """Return the distance of a pair of networks where P1 and P9 to P11 hold."""
    if layer == SOFTMAX:
        return 0.5 if probe == "test" and kind != TRUE else 0.1
    if metric in CONTROLS:
        return 0.4
    if layer < 9 or kind != TRUE:
        return {MAIN: 0.2, "SVCCA": 0.4, "mean CCA": 0.5}[metric] if layer < 9 else 0.7
    return 0.4 - 0.1 * (layer - 9) if metric != "mean CCA" else 0.5


HOLDS = {  # the numbers of a world in which every claim holds
    "distance": distance,
    "fitted": lambda labels: 1,
    "width": lambda w, end, metric: 0.5 - (0.2 * w if end else 0.02 * w) * (metric == "PWCCA"),
    "accuracy": lambda w: 0.5 + 0.1 * w,
    "place": lambda rate: 10.0 * rate,  # of a network on a line along which distances are taken
    "curve": lambda rate: 10.0 * rate,
    "most": lambda share: 0.1,
    "least": lambda share: 0.7 * (share != 0.5),
    "below": lambda share: 0.5 if share < 0.8 else 0.0,
    "final": lambda share: 7 if share >= 0.4 else 3,
    "layer": lambda layer, share: (0.2 + 0.2 * layer) * (1 - share ** (1 + layer)),
    "toy": lambda metric: {"PWCCA": 0.1, "SVCCA": 0.3, "mean CCA": 0.5}[metric],
    "CCA": lambda step: 0.0,
    "control": lambda step: 0.9,
}
MEMBERS = list(product((TRUE, PERMUTED), SEEDS))
PAIRS = [(a[0] if a[0] == b[0] else MIXED, (a[1], b[1])) for a, b in combinations(MEMBERS, 2)]
NETS = [(kind, pair, *rest) for (kind, pair), *rest in product(
    PAIRS, LAYERS, (MAIN, "SVCCA", "mean CCA", *CONTROLS), ("train", "test"))]  # fmt: skip
WIDE = product(WIDTHS, (True, False), ("PWCCA", *CONTROLS), combinations(SEEDS, 2))
METRICS, CASE = ("PWCCA", "SVCCA", "mean CCA"), ("characters",)
TABLES = {  # experiment: columns, their values, and columns by number and what it is made of
    "groups": ("kind pair layer metric probe", NETS,
               {"distance": "distance metric kind layer probe"}),
    "widths": ("width trained metric pair", list(WIDE),
               {"distance": "width width trained metric", "accuracy": "accuracy width"}),
    "networks": ("labels seed", MEMBERS, {"train_accuracy": "fitted labels"}),
    "recurrent": ("seed layer share data", list(product(SEEDS, (1, 2, 3), SHARES, CASE)),
                  {"PWCCA": "layer layer share"}),
    "toy": ("seed signal noise metric", list(product(SEEDS, (20, 199), (0.1, 0.3), METRICS)),
            {"distance": "toy metric"}),
    "rotation": ("seed alpha step steps", list(product(SEEDS, (0, 1), (0, 9), (9,))),
                 {"CCA": "CCA step", "cosine": "control step", "Euclidean": "control step"}),
    "directions": ("seed layer share early",
                   list(product(SEEDS, (9, 10, 11), SHARES, (math.nan, 0.05, 0.1))),
                   {"most": "most share", "least": "least share", "accuracy": "final share",
                    "below": "below share"}),
    "population": ("population rate network", list(product(range(3), range(1, 5), range(6))),
                   {"place": "place rate", "curve": "curve rate", "train_accuracy": "fitted rate"}),
}  # fmt: skip


def results(*names, **changed):
    """Return the experiments of those names in a world where all claims but the changed hold."""
    of, source, frames = HOLDS | changed, np.random.default_rng(0), {}
    for name in names or TABLES:
        columns, levels, made = TABLES[name]
        rows = frames[name] = pd.DataFrame(levels, columns=columns.split())
        for column, (key, *arguments) in ((c, text.split()) for c, text in made.items()):
            values = pd.Series([of[key](*v) for v in zip(*(rows[a] for a in arguments))])  # noqa: B905
            varies = values.dtype == float  # integers do not
            rows[column] = values + source.normal(0, 0.01, len(rows)) * varies
        if "pair" in rows:
            rows["a"], rows["b"] = zip(*rows.pop("pair"), strict=True)
        if name == "directions":
            cut = (100 * rows.pop("below")).round().astype(int).clip(0)
            rows["rho"] = [[0.5] * n + [0.99] * (100 - n) for n in cut]
        if name == "population":
            rows.loc[24, "place"] += 10  # a network or two in another cluster
            rows.loc[48, "curve"] += 10
            places = rows.groupby("population").place.transform(lambda p: [p.to_numpy()] * len(p))
            rows["distances"] = [abs(at - own) for at, own in zip(places, rows.place, strict=True)]
            rows["curve"], rows["rate"] = [[v, 0.0] for v in rows.curve], np.exp(rows.rate)
    return pd.concat(frames)


def test_all_claims_hold_in_a_world_made_for_them():
    assert verdicts(paper, results()) == {f"P{i}": "reproduced" for i in range(1, 13)}


def moved(by, *kinds, layers=LAYERS, metric=None, probe=None):
    """Return the distances of pairs where those of some kinds, layers, a metric are larger."""

    def shifted(name, kind, layer, images):
        chosen = kind in (kinds or (kind,)) and layer in layers
        chosen &= name == (metric or name) and images == (probe or images)
        return distance(name, kind, layer, images) + by * chosen

    return {"distance": shifted}


RESTS_ON = {
    "P2": "widths",
    "P3": "widths",
    "P4": "population",
    "P5": "directions",
    "P6": "recurrent",
}
RESTS_ON |= {"P7": "toy", "P8": "rotation", "P12": "directions"}
LATE = (9, 11)
BACKWARDS = {"layer": lambda layer, share: (0.8 - 0.2 * layer) * (1 - share ** (4 - layer))}
OTHER_WORLDS = [
    ("P1", "not reproduced", moved(-0.4, PERMUTED, layers=LATE)),
    ("P1", "partly", moved(0.2, MIXED, layers=LATE)),
    ("P1", "partly", moved(0.2, PERMUTED, layers=(1,))),
    ("P2", "not reproduced", {"width": lambda w, end, metric: 0.5 - 0.2 * w}),
    ("P2", "not reproduced", {"width": lambda w, end, metric: 0.5 + 0.1 * w * end}),
    ("P3", "not reproduced", {"accuracy": lambda w: 0.7 - 0.1 * w}),
    ("P4", "not reproduced", {"place": lambda rate: 0.0, "curve": lambda rate: 0.0}),
    ("P5", "partly", {"most": lambda share: 0.8}),
    ("P5", "partly", {"most": lambda share: 0.5 * share}),
    ("P5", "partly", {"least": lambda share: 0.7 * share**2}),
    ("P6", "not reproduced", BACKWARDS),
    ("P7", "not reproduced", {"toy": lambda metric: 0.3}),
    ("P8", "not reproduced", {"CCA": lambda step: 0.9}),
    ("P9", "not reproduced", moved(0.9, PERMUTED, metric="cosine")),
    ("P10", "partly", moved(-0.4, metric="mean CCA", layers=(1,))),
    ("P10", "partly", moved(-0.3, metric="SVCCA")),
    ("P10", "partly", moved(-0.3, metric="mean CCA", layers=(11,))),
    ("P11", "not reproduced", moved(0.6, TRUE, layers=(SOFTMAX,), probe="test")),
    ("P12", "not reproduced", {"below": lambda share: 0.5}),
]


@pytest.mark.parametrize(("id", "verdict", "changed"), OTHER_WORLDS)
def test_each_claim_is_refuted_where_it_does_not_hold(id, verdict, changed):
    rows = results("networks", RESTS_ON.get(id, "groups"), **changed)
    assert verdicts(paper, rows)[id] == verdict


def test_nothing_is_settled_by_networks_that_did_not_fit_or_that_are_not_there():
    closed = verdicts(paper, results("networks", "groups", "population", fitted=lambda labels: 0))
    names = ("P1", "P4", "P9", "P10", "P11")
    assert {closed[id] for id in names} == {claims.NOT_TESTABLE}
    missing = verdicts(paper, results("toy"))
    gated = {claim.id for claim in CLAIMS if claim.gate}
    assert {missing[id] for id in gated} == {claims.NOT_TESTABLE}
    assert {missing[id] for id in set(missing) - gated - {"P7"}} == {claims.INCONCLUSIVE}


def test_the_control_of_p9_is_chosen_once_and_not_anew_for_each_seed():
    both, more = results("groups", "widths"), {}
    known, found = paper.tables(both), paper.statistics(both)["P9"]
    late = paper.over(known["groups"], "train", paper.LAST)
    gaps = paper.contrast(late) / paper.spread(late)
    for metric, rows in known["widths"].groupby("metric"):
        sd = rows[rows.trained].groupby("width").distance.var().mean() ** 0.5
        more[metric] = paper.jackknife(rows, paper._fall) / sd
    for values, own in zip(found, (gaps, pd.DataFrame(more)), strict=True):
        controls, main = own[[*CONTROLS]], own[MAIN if MAIN in own else "PWCCA"].mean()
        assert np.mean(values) == pytest.approx(main - controls.mean().max())
        assert controls.max(axis=1).mean() > controls.mean().max() + 0.01


def test_jackknife_has_the_mean_of_all_pairs_and_the_spread_of_networks():
    a, b = zip(*combinations(range(6), 2), strict=True)
    own = np.random.default_rng(0).normal(size=6)  # a pair's distance is the sum of two networks'
    pairs = pd.DataFrame({"a": a, "b": b, "distance": own[list(a)] + own[list(b)]})
    values = paper.jackknife(pairs, lambda rows: rows.distance.mean())
    assert_allclose(values, 2 * own)
    assert np.isnan(paper.jackknife(pairs[:1], lambda rows: rows.distance.mean())).all()


def test_closeness_is_the_correlation_over_pairs_and_within_widths_another():
    rows = results("widths").droplevel(0)
    chosen = rows[(rows.trained == True) & (rows.metric == "PWCCA")]  # noqa: E712
    assert paper.closeness(rows).mean() == pytest.approx(
        -chosen.distance.corr(chosen.accuracy), abs=0.05
    )
    assert abs(paper.closeness(rows, within=True).mean()) < 0.5


def test_clusters_are_found_where_there_are_some_and_not_in_one_cloud():
    source = np.random.default_rng(0)
    cloud = source.normal(size=(40, 3))
    groups = cloud + 20 * np.repeat(np.eye(3), [14, 14, 12], axis=0)
    for points, several in ((cloud, False), (groups, True)):
        distances = np.linalg.norm(points[:, None] - points, axis=2)
        labels, score = paper.clusters(distances)
        assert (score > paper.one_cluster(distances)) == several
    assert [len(set(part)) for part in np.split(labels, [14, 28])] == [1, 1, 1]
    assert labels.max() == 3


def test_threshold_keeps_what_holds_99_percent_and_controls_are_by_hand():
    x = torch.randn(200, 4, dtype=torch.float64)
    faint = torch.cat([x, 1e-4 * torch.randn(200, 2, dtype=torch.float64)], 1)
    assert torch.linalg.matrix_rank(paper.thresholded(faint)) == 4
    assert_allclose(paper.thresholded(x), x - x.mean(0))
    first, second = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    assert paper.cosine(first, second) == pytest.approx(0.5)
    assert paper.euclidean(first, second) == pytest.approx(math.sqrt(2) / 2 / 1.5)
    values = paper.distances([x, x @ torch.randn(4, 4, dtype=torch.float64)], "PWCCA")
    assert values[0, 0, 1] == pytest.approx(0, abs=1e-6) and values[1, 0, 1] > 0.7


def test_text_windows_are_followed_by_their_next_character():
    split = paper.letters((50, 20))
    assert split.train.images.shape == (50, 1, paper.LENGTH, paper.SYMBOLS)
    assert (split.train.images.sum(3) == 1).all() and split.num_classes == paper.SYMBOLS
    text = "".join(paper.topics.values()).lower()
    codes = [*split.train.images[0, 0].argmax(1), split.train.labels[0]]
    shown = "".join(split.classes[c] if c < paper.SYMBOLS - 1 else "?" for c in codes)
    assert all(a in (b, "?") for a, b in zip(shown, text, strict=False))


def test_toys_are_nearer_to_each_other_than_to_the_unrelated():
    spec = {"points": 500, "dimensions": 20, "signal": 15, "noise": 0.1, "seed": 0}
    rows = pd.DataFrame(paper.toy(spec))
    assert set(rows.metric) >= {"mean CCA", "SVCCA", "PWCCA"}
    assert (rows.distance < 0.4).all() and (rows.null > 0.7).all()
    spec = {"units": 8, "examples": 400, "steps": 5, "alpha": 1.0, "seed": 0}
    rows = pd.DataFrame(paper.rotate(spec))
    assert (rows["CCA, null"] > 0.8).all()
    for metric in ("CCA", *CONTROLS):
        assert rows[metric].iloc[-1] == pytest.approx(0, abs=1e-6)
        assert rows[f"{metric}, null"].iloc[-1] > 0.01


def test_full_plan_needs_no_data_its_code_is_known_and_training_comes_first(monkeypatch):
    monkeypatch.setattr(paper.data, "load", None)
    experiments = paper.plan("full")
    assert all(sweeps.fingerprint(e.measure) for e in experiments.values())
    spec = experiments["groups"].specs[0]
    assert 20 * 512 * spec["width"] <= spec["images"][1]  # images a filter
    order = [title for part in _run.stages(experiments, 2) for title in part]
    for before, after in (("networks", "groups"), ("width networks", "widths")):
        last = len(order) - 1 - order[::-1].index(before)
        assert last < order.index(after)


def recipes(experiments):
    """Return the recipes of all networks that the plan trains itself, by experiment."""
    specs = {title: experiment.specs for title, experiment in experiments.items()}
    return {t: [s["recipe"] for s in own] for t, own in specs.items() if "recipe" in own[0]}


def test_directions_are_followed_at_a_constant_rate_in_networks_of_their_own():
    experiments = paper.plan("full")
    groups, followed = experiments["networks"].specs, experiments["directions"].specs
    assert {r["schedule"] for r in recipes(experiments)["networks"]} == {"cosine"}
    assert {r["schedule"] for r in recipes(experiments)["directions"]} == {"constant"}
    assert len(groups) == 20 and len(followed) == 5
    assert not any(spec["followed"] for spec in groups)
    assert {*followed[0]["chosen at"], 0.5, 1} < {*followed[0]["followed"]}


def test_only_what_becomes_evidence_may_be_trained_in_bfloat16():
    for profile, precision in (("full", "auto"), ("paper", "auto"), ("smoke", "float32")):
        experiments = paper.plan(profile, "auto" if profile != "smoke" else "mnist5k")
        found = recipes(experiments)
        assert {r["precision"] for part in found.values() for r in part} == {precision}
        assert {*found, "population"} == {*experiments} - {"toy", "rotation"}


def test_populations_are_blocks_of_the_seeds_of_notebook_02(monkeypatch):
    specs, theirs = paper.plan("full")["population"].specs, single_directions.plan("full")
    members = [member for spec in specs for member in spec["members"]]
    known = [
        {name: spec[name] for name in ("net", "network")} for spec in theirs["population"].specs
    ]
    assert members == known and len(members) == 200
    seeds = [{member["net"]["seed"] for member in spec["members"]} for spec in specs]
    assert len(specs) == 5 and sum(map(len, seeds)) == len(set.union(*seeds)) == 40
    for spec in specs:
        assert len({member["net"]["rate"] for member in spec["members"]}) == 5
    monkeypatch.setattr(paper.training.spec, "VERSION", 99)
    assert paper.plan("full")["population"].specs[0] != specs[0]  # by the networks' keys


def test_a_population_is_trained_once_for_both_notebooks(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))
    first = single_directions.plan("smoke", "mnist5k", "cpu")["population"]
    for spec in first.specs:
        first.measure(spec, device="cpu")
    trained = sorted((tmp_path / "data" / "runs" / "networks").iterdir())
    (spec,) = paper.plan("smoke", "mnist5k", "cpu")["population"].specs
    rows = pd.DataFrame(paper.populate(spec, "cpu"))
    assert sorted((tmp_path / "data" / "runs" / "networks").iterdir()) == trained
    assert len(rows) == len(trained) == 5 and rows.rate.nunique() == 5
    distances = np.array(rows.distances.tolist())
    assert_allclose(distances, distances.T)
    assert (distances.diagonal() < 1e-3).all() and (distances + np.eye(5) > 1e-3).all()
