"""Notebook 07: each verdict on made-up tables must come out both ways."""

import functools

import numpy as np
import pandas as pd
import pytest
from _settling import UNDECIDED, settled_apart

from replication.papers import similarity_measurements as measured
from replication.papers import which_similarity_metric as paper

PAIRS = paper._pairs(10)
BODY = [f"act{i}" for i in range(1, 9)]
LAYERS = [*BODY, "pool"]
SPREAD = [0.0, 0.01, -0.01, 0.02, -0.02]  # what tells units apart, below every smallest effect
METRICS = [*paper.TABLE, "SVCCA 0.5", "Procrustes", "PWCCA, missing 0", "PC 1-2", "PC 9-10"]
METRICS += ["eigenvectors"]
# The share of layers for which the same one is the most similar.
RIGHT = dict.fromkeys(METRICS, 0.1) | {"regression": 0.5, "CKA linear": 1.0, "Procrustes": 0.9}


def grid(pairs, layers, others=None, **columns):
    """Return a row a pair, layer and other layer, with columns of functions of (unit, i, j)."""
    rows = []
    for unit, seeds in enumerate(pairs):
        for i, a in enumerate(layers):
            for j, b in enumerate(others or layers):
                row = {"seeds": list(seeds), "layer": a, "other": b}
                rows.append(row | {name: f(unit, i, j) for name, f in columns.items()})
    return pd.DataFrame(rows)


def finding(share, seeds=PAIRS, layers=LAYERS):
    """Return a grid in which about `share` of layers find themselves, and what units differ by."""

    def value(unit, i, j):
        right = (i + unit) % len(layers) < share * len(layers) - (unit % 2) * (share < 1)
        return 0.6 + 0.1 * right - 0.3 * abs(i - j) / len(layers) + 0.2 * (not right) * (i != j)

    return grid(seeds, layers, value=value)


def by_metric(right, **changed):
    """Return a table of `indices` for networks in which metrics find layers as `right` says."""
    parts = [finding(share, **changed).assign(metric=m) for m, share in right.items()]
    table = pd.concat(parts, ignore_index=True)
    for metric, level in (("PC 1-2", 0.9), ("PC 9-10", 0.3), ("eigenvectors", 10.0)):
        rows = table.metric == metric
        units = (table.seeds[rows].str[0] // 2).astype(int) % 5
        table.loc[rows, "value"] = level + np.take(SPREAD, units.to_numpy())
    return table


def nets(depth):
    return {"recipe": {"model_options": {"depth": depth}}}


def depths(same_as_last, flat_from):
    """Return grids and probes of plain nets: which share of layers is like the last, by depth."""
    grids, probes = [], []
    for depth in (10, 18, 66):
        names = [f"act{i}" for i in range(1, depth - 1)]
        for seed in range(3):
            start = (1 - same_as_last[depth]) * len(names) - seed
            table = grid([(seed, seed)], names, cka=lambda u, i, j, s=start: 0.3 + 0.65 * (i >= s))
            grids.append(table.assign(nets=[[nets(depth)] * 2] * len(table)))
            reached = flat_from * len(names) + seed
            probe = [0.5 + 0.4 * (i >= reached) for i in range(len(names))]
            rows = pd.DataFrame({"layer": names, "probe": probe, "seed": seed})
            probes.append(rows.assign(net=[nets(depth)] * len(names)))
    return pd.concat(grids, ignore_index=True), pd.concat(probes, ignore_index=True)


def widths(late, gap, sign=1):
    """Return CKA at equal width and to the widest, saturated by 2^(late x depth)."""
    ring, tables = paper._ring(3), ([], [])
    for n in (1, 2, 4, 8, 16, 32, 64):
        for table, less in zip(tables, (0, gap), strict=True):

            def cka(u, i, j, n=n, less=less):
                reach = min(6.0, late * i + 0.02 * u)
                done = min(1, (np.log2(n) + 0.2) / (reach + 0.2)) if sign > 0 else 1
                slope = 0.02 * (1 + 0.1 * u) * (6 - np.log2(n)) * (sign < 0)
                return 0.5 + 0.4 * done + slope + 0.01 * np.sin(n + i) - less

            table.append(grid(ring, BODY, cka=cka).assign(units=n))
    return [pd.concat(table, ignore_index=True) for table in tables]  # fmt: skip


def tasks(untrained=0.3, cost=0.5, taken=0.2):
    parts = []
    for kind in ("same task", "other task", "untrained", "both untrained"):

        def cka(u, i, j, kind=kind):
            other = 0.9 - 0.05 - cost * i / 8 + np.take(SPREAD, u % 5)
            return {"same task": 0.9, "other task": other}.get(kind, untrained + SPREAD[u % 5])

        less = taken if kind == "both untrained" else 0.1
        table = grid(paper._ring(5), BODY, cka=cka).assign(kind=kind)
        parts.append(table.assign(deconfounded=table.cka - less * (1 + 0.1 * table.seeds.str[0])))
    return pd.concat(parts, ignore_index=True)  # fmt: skip


def resnet(sums=0.8, within=0.95):
    names = [n for s in (1, 2, 3) for b in (1, 2) for n in (f"block{s}_{b}.act1", f"block{s}_{b}")]

    def cka(u, i, j):
        both = (i % 2) + (j % 2)  # sums stand at odd places
        own = within if i // 4 == j // 4 else sums
        return (own if both == 2 else 0.3) + SPREAD[u]

    return grid(
        [(i, i) for i in range(3)], ["act1", *names], cka=lambda u, i, j: cka(u, i - 1, j - 1)
    )


def order(cka, cca):
    """Return indices between networks whose best matches go with depth as `cka` and `cca` say."""

    def table(sign, metric):
        def value(u, i, j):
            return -abs((i if sign > 0 else 7 - i) - j)

        return grid([(i, i) for i in range(3)], BODY, value=value).assign(metric=metric)

    parts = [table(cca, m) for m in paper.CCA]
    return pd.concat([table(cka, "CKA linear"), *parts], ignore_index=True)  # fmt: skip


def batch_norm(same=0.9, last=0.5, other=0.3):
    return grid([(i, i) for i in range(5)], BODY, cka=lambda u, i, j:
                SPREAD[u] + ((last if i == 7 else same) if i == j else other))  # fmt: skip


def population(good, units=10, each=10, noise=0.02, seed=0):
    """Return similarities by metric and what items do, which metrics know as `good` says."""
    source = np.random.default_rng(seed)
    does = source.random(units * each)
    gap = np.abs(does[:, None] - does)
    values = {}
    for number, metric in enumerate(paper.THREE):
        blur = np.random.default_rng(seed + 1 + number).random(gap.shape)
        values[metric] = 1 - good[metric] * gap - (1 - good[metric]) * blur
    return values, does, np.repeat(np.arange(units), each)


def bench(good, seeds, each=8, units=10, **columns):
    values, does, unit = population(good, units, each)
    rows = []
    for metric, matrix in values.items():
        for i, row in enumerate(matrix):
            at = {"unit": unit[i], "layer": f"act{1 + i % each}", "kept": 64, "metric": metric}
            half = {"first": does[i] + 1e-3, "second": does[i] - 1e-3}
            rows.append(at | half | {"values": row, "seeds": seeds} | columns)
    return pd.DataFrame(rows), does


NEAR = dict.fromkeys(paper.THREE, 0.95)


def crossed(within):
    """Return tables in which dissimilarity tells within pre-trainings, or across them, only."""
    seeds = [[p, f] for p in range(10) for f in range(10)]
    table, does = bench(NEAR, seeds, each=10, layers=[["act8"]])
    table["layers"], table["unit"] = [["act8"]] * len(table), np.tile(range(100), 3)
    unit = np.repeat(np.arange(10), 10)
    source = np.random.default_rng(5)
    if within:  # across pre-trainings dissimilarity is another one's
        apart = unit[:, None] != unit
        stack = np.stack(table["values"]).reshape(len(paper.THREE), 100, 100)
        noise = source.random((100, 100)) * 0.9
        values = np.where(apart, noise, stack)
    else:
        near, apart = np.stack(table["values"]).reshape(3, 100, 100), unit[:, None] != unit
        values = np.where(apart, near, source.random(near.shape))
    table["values"] = list(values.reshape(-1, 100))
    rows = [
        {"seed": s, "stress": stress, "first": d + 1e-3, "second": d - 1e-3}
        for stress in ("none", *measured.STRESS)
        for s, d in zip(seeds, does, strict=True)
    ]
    return {"crossed": table, "fine-tunings": pd.DataFrame(rows)}


def cut(cka_notices=0.96, pwcca_notices=0.2):
    rows = []
    for seed in range(10):
        for layer in LAYERS:
            for share in paper.DELETED:
                at = {"seed": seed, "layer": layer, "deleted": share}
                cka = 0.99 if share + SPREAD[seed % 5] / 2 < cka_notices else 0.0
                pwcca = 0.99 if share + SPREAD[seed % 5] < pwcca_notices else 0.0
                rows += [at | {"metric": "CKA linear", "value": cka}]
                rows += [at | {"metric": "PWCCA, missing 0", "value": pwcca}]
    return pd.DataFrame(rows)


def few(cca=1.0, biased=0.5, debiased=0.0):
    levels = {"CCA mean": (1.0, cca), "CKA linear": (0.8, biased), "CKA debiased": (0.6, debiased)}
    return pd.DataFrame([
        {"seeds": list(pair), "metric": metric, "count": 20, "value": value,
         "null": null + SPREAD[unit] * (metric != "CCA mean")}
        for unit, pair in enumerate(PAIRS) for metric, (value, null) in levels.items()
    ])  # fmt: skip


def moved(level=0.2):
    return pd.DataFrame([
        {"seed": s, "change": change, "distance": 50, "metric": "CKA linear",
         "value": level + SPREAD[s]}
        for s in range(5) for change in ("one class", "one example")
    ])  # fmt: skip


def tokens(cca=1.0, cka=0.75):
    right = dict.fromkeys(("CCA mean", "PWCCA", "regression"), cca) | {"CKA linear": cka}
    return pd.concat([by_metric(right, layers=BODY).assign(read=p) for p in measured.PLACES])


@functools.cache
def world():
    grids, probes = depths({66: 0.8, 18: 0.4, 10: 0.2}, 0.3)
    equal, widest = widths(0.75, 0.2)
    within = grid(PAIRS, BODY, cka=lambda u, i, j: 1 - 0.1 * abs(i - j))
    noise = np.random.default_rng(0).normal(size=len(within)) * 0.02
    five = by_metric({"eigenvectors": 0.1})
    five["value"] = 5 + np.take(SPREAD, five.seeds.str[0] // 2)
    members = {name: bench(NEAR, None)[0] for name in paper.OTHERS}
    train = pd.DataFrame({"test_accuracy": [0.9, 0.9]})
    plain = pd.DataFrame({"net": [nets(18), nets(66)], "test_accuracy": [0.9, 0.8]})
    return {
        "convnets": train, "trained resnets": train, "no batch norm": train,
        "plain": plain[:1], "deep plain": plain[1:],
        "flattened": by_metric(RIGHT), "truncated": cut(), "tokens": tokens(),
        "spatial means": by_metric({"eigenvectors": 0.1}), "five classes, means": five,
        "batch norm": batch_norm(), "within classes": within.assign(within=within.cka + noise),
        "plain grids": grids, "plain probes": probes, "same width": equal, "widest": widest,
        "tasks": tasks(), "resnets": resnet(), "depths": order(1, -1),
        "convnet and resnet": order(1, -1), "few examples": few(), "moved points": moved(),
        **members, **crossed(within=True),
    }  # fmt: skip


def settle(tables):
    return settled_apart(paper, tables, paper.gates(tables))


def test_all_claims_hold_in_a_world_made_for_them():
    found = settle(world())
    assert {n: item.verdict for n, item in found.items()} == {
        claim.id: "reproduced" for claim in paper.CLAIMS
    }, {n: [p.values for p in i.parts] for n, i in found.items() if i.verdict != "reproduced"}


ALL_WRONG = RIGHT | {"CKA linear": 0.1, "regression": 0.5, "SVCCA mean": 1.0}
FLAT_WRONG = {
    "K1": lambda: {"flattened": by_metric(ALL_WRONG)},
    "K11": lambda: {"flattened": by_metric(ALL_WRONG)},
    "K7": lambda: {"flattened": world()["flattened"].replace(
        {"metric": {"PC 1-2": "PC 9-10", "PC 9-10": "PC 1-2"}})},
    "K2": lambda: dict(zip(("plain grids", "plain probes"), depths(
        {66: 0.2, 18: 0.4, 10: 0.7}, 0.85), strict=True)),
    "K3": lambda: dict(zip(("same width", "widest"), widths(0.75, -0.2, -1), strict=True)),
    "K4": lambda: {"tasks": tasks(untrained=0.95, cost=-0.5)},
    "CU1": lambda: {"tasks": tasks(taken=0.01)},
    "K5": lambda: {"few examples": few(cca=0.5)},
    "MU1": lambda: {"few examples": few(biased=0.0, debiased=0.4)},
    "K6": lambda: {"tokens": tokens(cca=0.1, cka=0.9)},
    "K8": lambda: {"resnets": resnet(sums=0.1, within=0.0)},
    "K9": lambda: {"depths": order(-1, 1), "convnet and resnet": order(-1, 1)},
    "K10": lambda: {"five classes, means": world()["five classes, means"].assign(
        value=lambda t: t.value + 9)},
    "K12": lambda: {"batch norm": batch_norm(same=0.2, last=0.9, other=0.6)},
    "K13": lambda: {"within classes": world()["within classes"].assign(
        within=lambda t: -t.within)},
    "D1": lambda: {"truncated": cut(0.1, 0.9),
                   "flattened": by_metric(RIGHT | {"CKA linear": 0.1, "PWCCA, missing 0": 1.0})},
    "D2": lambda: {name: bench(NEAR | {"Procrustes": 0.05}, None)[0] for name in paper.OTHERS},
    "D3": lambda: crossed(within=False),
    "D4": lambda: crossed(within=False),
    "DA1": lambda: {"moved points": moved(1.1)},
}  # fmt: skip


@pytest.mark.parametrize("claim", [claim.id for claim in paper.CLAIMS])
def test_each_claim_is_not_reproduced_where_the_opposite_holds(claim):
    item = settle(world() | FLAT_WRONG[claim]())[claim]
    refuted = [part for part in item.parts if part.verdict == "not reproduced"]
    assert item.verdict == ("partly" if claim == "D2" else "not reproduced"), item.parts
    assert len(refuted) == (3 if claim == "D2" else len(item.parts))


def test_gates_close_where_accuracy_order_or_reliability_is_missing():
    of = {claim.id: claim.gate for claim in paper.CLAIMS}

    def is_open(claim, **tables):
        gates = paper.gates(world() | {n.replace("_", " "): t for n, t in tables.items()})
        return of[claim].is_open(gates[claim])

    assert all(is_open(claim) for claim in of if of[claim])
    few = pd.DataFrame({"test_accuracy": [0.6]})
    assert not is_open("K1", convnets=few) and is_open("K12", convnets=few)
    assert not is_open("K12", no_batch_norm=few) and is_open("K1", no_batch_norm=few)
    shallow = pd.DataFrame({"net": [nets(18), nets(66)], "test_accuracy": [0.8, 0.9]})
    for depths in (shallow, shallow.assign(test_accuracy=[0.8, 0.1])):
        assert not is_open("K2", plain=depths[:1], deep_plain=depths[1:])
    assert not is_open("K3", same_width=world()["same width"].query("units > 1"))
    noise = np.random.default_rng(0).random(300)
    tunings = world()["fine-tunings"].assign(second=noise)
    item = settle(world() | {"fine-tunings": tunings})["D3"]
    assert item.verdict == "not testable at this scale"


def test_reliability_within_pre_trainings_is_not_that_between_them():
    tunings = world()["fine-tunings"]
    between = 10.0 * tunings.seed.str[0]  # all that the halves agree on
    noise = np.random.default_rng(0).random((2, len(tunings)))
    tunings = tunings.assign(first=between + noise[0], second=between + noise[1])
    tables = world() | {"fine-tunings": tunings}
    found, gates = paper.reliabilities(tables), paper.gates(tables)
    assert found["crossed, noise"] > 0.99 and found["fine-tuning, noise"] < 0.5
    assert gates["D2"] == gates["D3"] == gates["D4"] == min(found.values()) < 0.5
    loose = world()["layers, convnet"].assign(second=lambda t: -t.second)
    gates = paper.gates(world() | {"layers, convnet": loose})
    assert gates["D2"] == gates["D3"] < 0 and gates["D4"] > 0.9  # which does not use it
    assert np.isnan(paper.gates({n: world()[n] for n in paper.OTHERS})["D2"])


def test_nothing_measured_decides_nothing():
    assert {item.verdict for item in settle({}).values()} <= UNDECIDED


def test_what_is_there_of_an_unfinished_run_is_no_error():
    some = {name: world()[name] for name in ("flattened", "tasks", "tokens", "same width")}
    some["tasks"] = some["tasks"].query("kind == 'same task'")
    some["tokens"] = some["tokens"].query("read == 'layer norm'")
    nothing = {"truncated": world()["truncated"][:0], "widest": world()["widest"][:0]}
    found = paper.statistics(some | nothing)
    assert np.isnan([*found["K4"][0], *found["CU1"][0], *found["D1"][1], *found["D3"][0]]).all()
    assert np.isfinite(found["K6"][0]).all() and np.isnan(found["K6"][4]).all()
    assert np.isfinite([*found["D1"][0], *found["K1"][0], *found["K3"][0]]).all()


def test_what_the_plan_measures_is_of_networks_that_it_trains():
    plan = paper.plan("smoke", "mnist5k", "cpu")
    assert {paper.MEASURED[claim.id] for claim in paper.CLAIMS} <= set(plan)
    trained = {(str(s["net"]), s["seed"]) for n in plan for s in plan[n].specs
               if plan[n].measure is measured.train}  # fmt: skip
    for name in ("flattened", "tokens", "tasks", "widest", "convnet and resnet"):
        for spec in plan[name].specs:
            read = zip(map(str, spec["nets"]), spec["seeds"], strict=True)
            assert set(read) <= trained


def test_long_networks_come_last_and_what_they_learn_with():
    plan = paper.plan("full", "cifar10", "cpu")
    order = ["convnets", "transformers", "trained resnets", "five classes", "fine-tunings"]
    order += ["no batch norm", "plain", "width", "deep plain"]
    assert [name for name in plan if name in order] == order
    depths = [s["net"]["recipe"]["model_options"]["depth"] for s in plan["plain"].specs]
    assert depths == sorted(depths) and max(depths) == 18
    decays = {}
    for spec in (s for e in plan.values() if e.measure is measured.train for s in e.specs):
        recipe = spec["net"].get("recipe", {})
        if recipe.get("optimizer") == "SGD":
            bare = not recipe["model_options"].get("batch_norm", True)
            key = recipe["model"], recipe["model_options"].get("init", "torch"), bare
            decays.setdefault(key, set()).add(recipe["optimizer_options"]["weight_decay"])
    assert decays == {
        ("tiny10", "torch", False): {2e-4},
        ("tiny10", "he", True): {1e-4},
        ("plain", "torch", False): {5e-4},
    }
