"""Sweeps: every configuration is computed once, in whatever way the last run of them ended."""

import sys

import numpy as np
import pandas as pd
import pytest
from _tiny_runs import watch_bars

from replication import sweeps

SPECS = [{"sigma": s, "seed": i} for s in (0.2, 0.1) for i in (1, 0)]


def run(fn, specs=SPECS, **options):
    return sweeps.run(fn, specs, progress=False, **options)


def equal(one, other):
    pd.testing.assert_frame_equal(one, other, check_exact=True)


class Counted:
    """A function that remembers what it was called with."""

    def __init__(self, fn):
        self.fn, self.calls, self.__name__ = fn, [], fn.__name__

    def __call__(self, spec):
        self.calls.append(spec)
        return self.fn(spec)


@Counted
def measure(spec):
    return [{"k": k, "value": spec["sigma"] * 10**k + spec["seed"]} for k in (0, 1)]


@pytest.fixture(autouse=True)
def no_calls_yet():
    measure.calls.clear()


def expected(specs=SPECS):
    rows = [
        {"sigma": s["sigma"], "seed": s["seed"], "k": k, "value": s["sigma"] * 10**k + s["seed"]}
        for s in specs
        for k in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_one_tidy_table_of_which_only_what_is_missing_is_computed(tmp_path):
    equal(run(measure, (spec for spec in SPECS[1:3]), store=tmp_path), expected(SPECS[1:3]))
    equal(run(measure, store=str(tmp_path)), expected())
    assert measure.calls == [SPECS[1], SPECS[2], SPECS[0], SPECS[3]]
    for specs in (SPECS, SPECS[::-1], SPECS[1:2]):
        equal(run(measure, specs, store=tmp_path), expected(specs))
    assert run(measure, [], store=tmp_path).empty
    assert len(measure.calls) == 4


def test_a_spec_that_comes_twice_is_computed_once(tmp_path):
    specs = [SPECS[0], SPECS[1], dict(reversed(SPECS[0].items()))]  # order says nothing
    equal(run(measure, specs, store=tmp_path), expected(specs))
    assert len(measure.calls) == 2

    @Counted
    def depth(spec):
        return {"n": len(spec["widths"])}

    for widths in ((1, 2), [1, 2]):  # a list is what JSON makes of a tuple
        run(depth, [{"widths": widths}], store=tmp_path)
    assert len(depth.calls) == 1


def test_another_function_and_another_spec_are_computed(tmp_path):
    def other(spec):
        return {"value": -1}

    for _ in range(2):
        run(measure, SPECS[:1], store=tmp_path)
        run(measure, [SPECS[0] | {"sigma": 0.3}], store=tmp_path)
        assert run(other, SPECS[:1], store=tmp_path).value.tolist() == [-1]
        assert len(measure.calls) == 2


# --- results -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result",
    [
        {"a": 1, "b": "x"},
        [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
        ({"a": 1, "b": "x"}, {"a": 2, "b": None}),
        pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]}, index=[7, 7, 9]),
    ],
    ids=["mapping", "rows", "tuple of rows", "DataFrame"],
)
def test_kinds_of_results(result, tmp_path):
    def fn(spec):
        return result

    table = run(fn, [{"seed": 1}, {"seed": 2}], store=tmp_path)
    rows = [result] if isinstance(result, dict) else result
    one = pd.DataFrame(rows) if not isinstance(rows, pd.DataFrame) else rows
    wanted = pd.concat([one.assign(seed=seed)[["seed", "a", "b"]] for seed in (1, 2)])
    equal(table, wanted.reset_index(drop=True))
    equal(run(fn, [{"seed": 1}, {"seed": 2}], store=tmp_path), table)


def test_the_table_is_the_same_when_computed_and_when_found(tmp_path):
    """Parquet knows no tuples, say: what comes out must not depend on who computed it."""

    @Counted
    def fn(spec):
        columns = {"small": np.array([1, 2], np.int8), "kind": pd.Categorical(["a", "b"])}
        single = np.array([np.inf, np.nan], np.float32)
        return pd.DataFrame(columns | {"single": single, "pair": [(1, 2), (3, 4)]})

    first, second = (run(fn, [{"layer": "fc1"}], store=tmp_path) for _ in range(2))
    equal(first, second)
    assert len(fn.calls) == 1  # NaN and infinity are results
    assert type(first.pair[0]) is type(second.pair[0])
    assert (first.small.dtype, first.single.dtype) == (np.int8, np.float32)
    (file,) = tmp_path.rglob("*.parquet")
    equal(pd.read_parquet(file), first.drop(columns="layer"))


def test_values_of_a_spec_stand_in_every_row_as_they_are(tmp_path):
    spec = {"widths": [64, 32], "options": {"a": 1, "b": 2}, "none": None, "flag": True, "s": "x"}

    def fn(spec):
        return [{"k": 0}, {"k": 1}]

    table = run(fn, [spec], store=tmp_path)
    assert list(table.columns) == [*spec, "k"]
    for name, value in spec.items():
        assert table[name].tolist() == [value] * 2


def test_a_function_cannot_change_the_spec(tmp_path):
    specs = [{"widths": [1, 2]}]

    def fn(spec):
        spec["widths"].append(3)
        spec["more"] = 1
        return {"n": len(spec["widths"])}

    table = run(fn, specs, store=tmp_path)
    assert specs == [{"widths": [1, 2]}]
    assert table.widths.tolist() == [[1, 2]]
    assert table.n.tolist() == [3]


# --- batches -----------------------------------------------------------------------------------


@Counted
def measure_together(specs):
    return [measure.fn(spec) for spec in specs]


def test_a_batch_is_computed_together_and_stored_apart(tmp_path):
    measure_together.calls.clear()
    equal(run(measure_together, SPECS[1:2], store=tmp_path, batch=3), expected(SPECS[1:2]))
    equal(run(measure_together, store=tmp_path, batch=2), expected())
    equal(run(measure_together, store=tmp_path, batch=2), expected())
    left = [SPECS[0], SPECS[2], SPECS[3]]
    assert measure_together.calls == [SPECS[1:2], left[:2], left[2:]]
    assert len(list(tmp_path.rglob("*.parquet"))) == 4


def test_only_the_culprit_of_a_batch_fails(tmp_path):
    @Counted
    def fn(specs):
        if SPECS[1] in specs:
            raise OSError("broken")
        return measure_together.fn(specs)

    with pytest.raises(sweeps.SweepError, match="1 of 4 specs failed"):
        run(fn, store=tmp_path, batch=3)
    equal(run(fn, store=tmp_path, batch=3, compute=False), expected([SPECS[0], *SPECS[2:]]))
    assert fn.calls == [SPECS[:3], *([spec] for spec in SPECS)]


# --- progress ----------------------------------------------------------------------------------


def test_progress_counts_what_is_finished_already(tmp_path, monkeypatch):
    bars = watch_bars(monkeypatch, sys.modules["replication.sweeps.run"])
    run(measure, SPECS[:1], store=tmp_path)
    run(measure, store=tmp_path)
    assert [(bar.total, bar.initial, bar.n) for bar in bars] == [(1, 0, 1), (4, 1, 4)]
