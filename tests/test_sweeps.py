"""Sweeps: every configuration is computed once, in whatever way the last run of them ended."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from replication import data, sweeps, training
from replication._core import progress

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


def test_one_tidy_table_in_the_order_of_the_specs(tmp_path):
    table = run(measure, store=tmp_path)
    equal(table, expected())
    assert list(table.columns) == ["sigma", "seed", "k", "value"]
    assert table.index.tolist() == list(range(8))
    assert measure.calls == SPECS


def test_what_is_stored_is_not_computed_again(tmp_path):
    first = run(measure, store=tmp_path)
    measure.calls.clear()
    equal(run(measure, store=str(tmp_path)), first)
    assert measure.calls == []
    equal(run(measure, SPECS[::-1], store=tmp_path), expected(SPECS[::-1]))
    equal(run(measure, SPECS[1:2], store=tmp_path), expected(SPECS[1:2]))
    assert measure.calls == []


def test_only_what_is_missing_is_computed(tmp_path):
    run(measure, SPECS[1:3], store=tmp_path)
    measure.calls.clear()
    equal(run(measure, store=tmp_path), expected())
    assert measure.calls == [SPECS[0], SPECS[3]]


def test_a_spec_that_comes_twice_is_computed_once(tmp_path):
    specs = [SPECS[0], SPECS[1], dict(reversed(SPECS[0].items()))]  # order says nothing
    equal(run(measure, specs, store=tmp_path), expected(specs))
    assert len(measure.calls) == 2


def test_specs_may_come_from_a_generator_and_be_none(tmp_path):
    equal(run(measure, (spec for spec in SPECS), store=tmp_path), expected())
    assert run(measure, [], store=tmp_path).empty


def test_another_version_another_function_and_another_spec_are_computed(tmp_path):
    run(measure, SPECS[:1], store=tmp_path)
    run(measure, SPECS[:1], store=tmp_path, version=2)
    run(measure, [SPECS[0] | {"sigma": 0.3}], store=tmp_path)
    assert len(measure.calls) == 3

    @Counted
    def other(spec):
        return {"value": -1}

    assert run(other, SPECS[:1], store=tmp_path).value.tolist() == [-1]
    run(measure, SPECS[:1], store=tmp_path)
    run(measure, SPECS[:1], store=tmp_path, version=2)
    assert len(measure.calls) == 3


def test_keys_are_those_of_results_that_are_stored_already(tmp_path):
    """Another key would compute all stored results again."""
    run(measure, [{"sigma": 0.1, "seed": 1, "layers": ["a", None]}], store=tmp_path)
    (file,) = tmp_path.rglob("*.*")
    assert file.relative_to(tmp_path) == Path("measure/89324e8bfd01722c67b288e8.parquet")


def test_specs_are_stored_under_their_json(tmp_path):
    """A tuple is a list to JSON: both find the same result."""

    @Counted
    def fn(spec):
        return {"n": len(spec["widths"])}

    run(fn, [{"widths": (1, 2)}], store=tmp_path)
    run(fn, [json.loads(json.dumps({"widths": (1, 2)}))], store=tmp_path)
    assert len(fn.calls) == 1


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

    def fn(spec):
        return pd.DataFrame(
            {
                "small": np.array([1, 2], np.int8),
                "half": np.array([0.1, np.nan], np.float32),
                "pair": [(1, 2), (3, 4)],
                "kind": pd.Categorical(["a", "b"]),
            }
        )

    specs = [{"layer": "fc1"}]
    first, second = run(fn, specs, store=tmp_path), run(fn, specs, store=tmp_path)
    equal(first, second)
    assert type(first.pair[0]) is type(second.pair[0])
    assert first.small.dtype == np.int8
    assert first.half.dtype == np.float32


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


def test_nan_and_infinity_are_results(tmp_path):
    @Counted
    def fn(spec):
        return {"loss": np.nan, "norm": np.inf, "accuracy": 0.1}

    table = run(fn, SPECS[:2], store=tmp_path)
    assert table.loss.isna().all()
    assert np.isinf(table.norm).all()
    equal(run(fn, SPECS[:2], store=tmp_path), table)
    assert len(fn.calls) == 2


def test_training_that_diverges_is_recorded_as_such(tmp_path):
    source = torch.Generator().manual_seed(0)
    images, labels = torch.rand(64, 1, 4, 4, generator=source), torch.arange(64) % 10
    examples = data.Examples(images, labels)
    split = data.Split(examples, examples, "toy", tuple("0123456789"), "made up")

    def train(spec):
        settings = {"model": "mlp", "model_options": {"inputs": 16, "widths": (8,)}, "epochs": 3}
        done = training.fit(training.Spec(**settings, **spec), split, progress=False)
        last = done.history.iloc[-1]
        return {"status": done.status, "loss": last.train_loss}

    specs = [{"learning_rate": rate, "seed": 0} for rate in (0.1, 1e30)]
    table = run(train, specs, store=tmp_path)
    assert table.status.tolist() == ["finished", "diverged"]
    assert table.loss.isna().tolist() == [False, True]
    equal(sweeps.load(train, tmp_path), table)


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

    with pytest.warns(UserWarning, match="1 of 4 specs failed"):
        table = run(fn, store=tmp_path, batch=3, on_error="warn")
    equal(table, expected([SPECS[0], *SPECS[2:]]))
    assert fn.calls == [SPECS[:3], *([spec] for spec in SPECS)]


@pytest.mark.parametrize("results", [[{"a": 1}], {"a": 1}, pd.DataFrame({"a": [1, 2]}), None])
def test_a_batch_has_a_result_for_each_spec(results, tmp_path):
    def fn(specs):
        return results

    with pytest.raises(ValueError, match="fn: expected as many results as specs with batch, 2"):
        run(fn, SPECS[:2], store=tmp_path, batch=2)


# --- progress ----------------------------------------------------------------------------------


def test_progress_counts_what_is_finished_already(tmp_path, monkeypatch):
    bars = []

    def bar(**options):
        bars.append(progress.bar(**options | {"show": True}, file=io.StringIO()))
        return bars[-1]

    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.setattr(sys.modules["replication.sweeps.run"], "bar", bar)
    run(measure, SPECS[:1], store=tmp_path)
    run(measure, store=tmp_path)
    assert [(bar.total, bar.initial, bar.n) for bar in bars] == [(1, 0, 1), (4, 1, 4)]
