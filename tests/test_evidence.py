"""Committed results: what is collected of a store, how it is read, and whether it comes again."""

from collections import deque

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from replication import papers, sweeps
from replication._core import paths
from replication.papers import _evidence
from replication.sweeps import evidence

NAME = "01_made_up"
calls = deque()  # no constant of the function
FACTOR = 1.0  # changed by tests, as a formula is by an edit


def measure(spec):
    calls.append(spec)
    rng = np.random.default_rng(spec["seed"])
    rows = [{"layer": name, "value": FACTOR * rng.normal()} for name in ("a", "b")]
    return rows if spec["seed"] else [row | {"first": np.nan} for row in rows]


def other(spec):
    return {"count": spec["seed"] * 2}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))
    calls.clear()
    return tmp_path


def plan(count=4, **scale):
    specs = [{"seed": seed, "net": {"width": 3}} for seed in range(count)]
    both = papers.Experiment(measure, specs, scale=scale), papers.Experiment(other, specs[:2])
    return dict(zip(("values", "counts"), both, strict=True))


def compute(experiments):
    for experiment in experiments.values():
        experiment.run(paths.runs() / NAME, progress=False)


def test_rows_come_back_as_they_were_measured_and_nothing_is_computed():
    compute(plan())
    stored = papers.results(plan(), NAME, "full")
    counts = _evidence.collect(NAME, plan())
    assert counts.loc["measure", ["results", "rows", "missing"]].tolist() == [4, 8, 0]
    paths.runs().rename(paths.data() / "elsewhere")
    calls.clear()
    pd.testing.assert_frame_equal(papers.results(plan(), NAME, "full"), stored)
    assert not calls


def test_each_row_names_its_origin_and_its_spec():
    compute(plan())
    _evidence.collect(NAME, plan())
    path = paths.evidence() / NAME / "measure.parquet"
    table = pd.read_parquet(path)
    assert set(evidence.ORIGIN) < set(table.columns)
    assert table.code.unique().tolist() == [sweeps.fingerprint(measure)[0]]
    assert table.spec[2] == '{"seed": 1, "net": {"width": 3}}'
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_what_is_not_measured_is_told_and_left_out(capsys):
    compute(plan(2))
    table = papers.results(plan(4), NAME, "full")
    assert "values: 2 of 4 not measured yet" in capsys.readouterr().out
    assert table.loc["values"].seed.unique().tolist() == [0, 1]
    assert len(calls) == 2
    assert papers.results(plan(4), NAME, "quick").loc["values"].seed.nunique() == 4


def test_results_of_older_code_are_kept_apart_until_there_are_new_ones(monkeypatch):
    compute(plan(3))
    _evidence.collect(NAME, plan(3))
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    experiments = plan(3)
    assert papers.results(experiments, NAME, "full").loc["counts"].shape[0] == 2
    assert "values" not in papers.results(experiments, NAME, "full").index
    first = {"values": papers.Experiment(measure, experiments["values"].specs[:1])}
    compute(first)
    counts = _evidence.collect(NAME, experiments)
    assert counts.loc["measure", ["results", "older", "missing"]].tolist() == [1, 2, 0]
    assert papers.results(experiments, NAME, "full").loc["values"].seed.unique().tolist() == [0]


def test_evidence_grows_by_what_another_machine_or_profile_has_measured():
    specs = plan(4)["values"].specs
    both = [{"values": papers.Experiment(measure, part)} for part in (specs[:2], specs[2:])]
    for number, experiments in enumerate(both):
        compute(experiments)
        _evidence.collect(NAME, experiments)
        paths.runs().rename(paths.data() / f"elsewhere{number}")
    for experiments in both:
        assert papers.results(experiments, NAME, "full").loc["values"].seed.nunique() == 2
    path = paths.evidence() / NAME / "measure.parquet"
    before = path.read_bytes()
    for order in (specs, specs[::-1]):
        experiments = {"values": papers.Experiment(measure, order)}
        assert _evidence.collect(NAME, experiments).loc["measure", "results"] == 4
        assert path.read_bytes() == before


def test_a_spec_of_two_experiments_is_one_result():
    twice = plan(2) | {"again": plan(2)["values"]}
    compute(twice)
    counts = _evidence.collect(NAME, twice)
    assert counts.loc["measure", "results"] == 2
    once = papers.results(plan(2), NAME, "full").loc["values"]
    paths.runs().rename(paths.data() / "elsewhere")
    table = papers.results(twice, NAME, "full")
    assert len(table.loc["values"]) == len(table.loc["again"]) == len(once)


def test_a_result_that_comes_again_and_one_that_does_not(monkeypatch, capsys):
    compute(plan())
    _evidence.collect(NAME, plan())
    assert _evidence.verify(NAME, plan(), sample=9, seed=0) == 0
    assert "6 of 6 results computed anew, 0 differ" in capsys.readouterr().out
    assert not (paths.runs() / NAME / "verify").exists()
    kept = sweeps.fingerprint(measure)
    monkeypatch.setattr(_evidence, "fingerprint", lambda fn: kept)
    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: real(seed + 100))
    assert _evidence.verify(NAME, {"values": plan()["values"]}, sample=3, seed=0) == 3


def test_what_needs_an_extra_that_is_not_here_is_left(monkeypatch, capsys):
    def lacking(seed):
        raise ModuleNotFoundError("pip install it")

    compute(plan())
    _evidence.collect(NAME, plan())
    kept = {fn: sweeps.fingerprint(fn) for fn in (measure, other)}
    monkeypatch.setattr(_evidence, "fingerprint", kept.get)
    monkeypatch.setattr(np.random, "default_rng", lacking)
    assert _evidence.verify(NAME, plan(), sample=9, seed=0) == 0
    printed = capsys.readouterr().out
    assert printed.count("values: not computed anew: pip install it") == 4
    assert "2 of 6 results computed anew, 0 differ" in printed


def test_what_counts_as_a_difference():
    rows = pd.DataFrame({"name": ["a", "b"], "x": [1.0, np.nan], "n": [3, 4]})
    spread = pd.Series({"x": 0.5, "n": 2.0})
    assert _evidence.difference(rows, rows.copy(), spread) == 0
    assert _evidence.difference(rows, rows.assign(x=[1.1, np.nan]), spread) == pytest.approx(0.1)
    for changed in (rows.assign(name=["a", "c"]), rows.assign(x=[1.0, 2.0]), rows[:1]):
        assert _evidence.difference(rows, changed, spread) == np.inf


def test_damaged_evidence_is_named():
    compute(plan())
    _evidence.collect(NAME, plan())
    path = paths.evidence() / NAME / "measure.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"measure\.parquet is not readable as evidence"):
        papers.results(plan(), NAME, "full")


@pytest.mark.parametrize(
    ("scale", "grade"),
    [
        ({}, "C"),
        ({"images": 1, "width": 1, "training": 0.5, "networks": 1}, "A"),
        ({"images": 0.5, "width": 1, "training": 0.1, "networks": 1}, "B"),
        ({"images": 1, "width": 0.49, "training": 1}, "C"),
        ({"images": 0.09, "width": 1}, "C"),
    ],
)
def test_fidelity_is_the_least_ratio_of_ours_to_the_papers(scale, grade):
    assert plan(**scale)["values"].fidelity == grade
