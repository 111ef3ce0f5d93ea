"""Sweeps that fail: what is said, when, and that everything else is kept."""

import functools
import re
import subprocess
import sys
import traceback
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_sweeps import SPECS, Counted, equal, expected, measure, run

from replication import sweeps


@pytest.fixture(autouse=True)
def no_calls_yet():
    measure.calls.clear()


@pytest.mark.parametrize(
    "bad",
    [{"x": object()}, {"x": np.int64(1)}, {"x": float("nan")}, {1: 2}, {"x": {1, 2}}, 5],
    ids=str,
)
def test_a_spec_must_be_json_and_is_checked_before_anything_is_computed(bad, tmp_path):
    with pytest.raises(ValueError, match="specs: expected JSON-able values"):
        run(measure, [SPECS[0], bad], store=tmp_path)
    assert measure.calls == []


@pytest.mark.parametrize("fn", [lambda spec: {"a": 1}, functools.partial(measure)])
def test_a_function_needs_a_name_to_keep_its_results_by(fn, tmp_path):
    with pytest.raises(ValueError, match="fn: expected a function with a name"):
        run(fn, store=tmp_path)


TABLE = "expected a mapping"


@pytest.mark.parametrize(
    ("result", "batch", "message"),
    [
        ({"seed": 1, "value": 2}, None, r"its result repeats columns of the spec: \['seed'\]"),
        *((result, None, TABLE) for result in (None, 3.5, [1, 2], "abc", np.zeros(3))),
        *((r, 2, "expected as many results as specs with batch, 2") for r in ([{}], {}, None)),
        (pd.DataFrame({"a": [1, 2]}), 2, "expected as many results as specs with batch, 2"),
    ],
)
def test_what_is_no_result_is_said_at_once(result, batch, message, tmp_path):
    def fn(spec):
        return result

    with pytest.raises(ValueError, match=f"^fn: {message}"):
        run(fn, store=tmp_path, batch=batch)
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    "options",
    [
        *({"batch": 0}, {"batch": 2.5}, {"retries": -1}, {"on_error": "ignore"}, {"cluster": 5}),
        *({"cluster": "somewhere"}, {"cluster": "local", "resources": {"GPU": 1}}),
    ],
    ids=str,
)
def test_other_arguments_are_checked_before_anything_is_computed(options, tmp_path):
    if "cluster" in options:
        pytest.importorskip("distributed")
    with pytest.raises(ValueError, match=f"^{list(options)[-1]}: "):
        run(measure, store=tmp_path, **options)
    assert measure.calls == []


@pytest.mark.parametrize("missing", ["dask.system", "distributed"])
def test_a_cluster_needs_its_extra(missing, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "replication.sweeps._dask", raising=False)
    monkeypatch.delattr("replication.sweeps._dask", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install -e '.[cluster]'")):
        run(measure, store=tmp_path, cluster="local")
    assert measure.calls == []
    run(measure, store=tmp_path)
    assert run(measure, store=tmp_path, cluster="local").equals(expected())  # nothing to compute


def test_a_serial_sweep_does_without_dask(tmp_path):
    code = f"""import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_sweeps import measure, run
run(measure, store={str(tmp_path)!r})
print([name for name in ("dask", "distributed") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def fragile():
    """A function that fails for two of the specs while `.broken` has an entry."""

    @Counted
    def fragile(spec):
        if fragile.broken and spec in (SPECS[0], SPECS[2]):
            raise OSError(f"no space for {spec['seed']}")
        return measure.fn(spec)

    fragile.broken = [True]
    return fragile


def test_failing_specs_are_named_at_the_end_and_do_not_sink_the_rest(tmp_path):
    fn = fragile()
    with pytest.raises(sweeps.SweepError, match=r"^2 of 4 specs failed") as caught:
        run(fn, store=tmp_path)
    assert "{'sigma': 0.2, 'seed': 1}: OSError: no space for 1" in str(caught.value)
    assert [spec for spec, _ in caught.value.failures] == [SPECS[0], SPECS[2]]
    assert caught.value.__cause__ is caught.value.failures[0][1]
    assert fn.calls == SPECS
    fn.calls.clear()
    fn.broken.clear()
    equal(run(fn, store=tmp_path), expected())
    assert fn.calls == [SPECS[0], SPECS[2]]


def test_failing_specs_may_be_left_out_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="2 of 4 specs failed") as caught:
        table = run(fragile(), store=tmp_path, on_error="warn")
    assert [warning.filename for warning in caught] == [run.__code__.co_filename]
    equal(table, expected([SPECS[1], SPECS[3]]))
    with pytest.warns(UserWarning, match="2 of 2 specs failed"):
        assert run(fragile(), [SPECS[0], SPECS[2]], store=tmp_path, on_error="warn").empty


def test_only_the_first_failures_are_written_out(tmp_path):
    def fn(spec):
        raise OSError(str(spec["seed"]))

    with pytest.raises(sweeps.SweepError, match=r"OSError: 4\n  and 3 more$") as caught:
        run(fn, [{"seed": seed} for seed in range(8)], store=tmp_path)
    assert len(caught.value.failures) == 8


def test_a_failing_spec_frees_its_memory_before_the_next(tmp_path):
    """What ran out of memory on a GPU must not keep it."""
    held = []

    def fill():
        tensor = np.zeros(3)
        held.append(weakref.ref(tensor))
        raise MemoryError

    def fn(spec):
        assert not any(ref() is not None for ref in held)
        try:
            fill()
        except MemoryError as error:
            raise RuntimeError("out of memory") from error

    def caller():
        local = "for the debugger"
        raise KeyError(local)

    try:
        caller()
    except KeyError as handled:
        with pytest.raises(sweeps.SweepError) as caught:
            run(fn, store=tmp_path)
        *_, (frame, _) = traceback.walk_tb(handled.__traceback__)
        assert frame.f_locals == {"local": "for the debugger"}
    assert len(held) == 4
    assert all(type(error) is RuntimeError for _, error in caught.value.failures)


def test_an_interrupt_leaves_a_clean_store(tmp_path):
    @Counted
    def fn(spec):
        if len(fn.calls) == 3:
            raise KeyboardInterrupt
        return measure.fn(spec)

    with pytest.raises(KeyboardInterrupt):
        run(fn, store=tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert not any(path.name.startswith(".") for path in files)
    equal(run(fn, store=tmp_path), expected())
    assert fn.calls[3:] == SPECS[2:]
