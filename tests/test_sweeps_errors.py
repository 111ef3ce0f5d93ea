"""Sweeps that fail or are killed: what is said, and that every stored result is whole."""

import functools
import io
import os
import re
import subprocess
import sys
import time
import traceback
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from _tiny_runs import kill_at_random
from test_sweeps import SPECS, Counted, equal, expected, measure, run

from replication import sweeps
from replication._core import files
from replication.sweeps import _store


@pytest.fixture(autouse=True)
def no_calls_yet():
    measure.calls.clear()


@pytest.mark.parametrize(
    "bad",
    [{"x": object()}, {"x": np.int64(1)}, {"x": float("nan")}, {1: 2}, {"x": {1, 2}}, 5],
    ids=["object", "NumPy", "nan", "key", "set", "number"],
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
        *({"batch": 0}, {"batch": 2.5}, {"cluster": 5}, {"cluster": "somewhere"}),
        {"cluster": "local", "resources": {"GPU": 1}},
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


def always(spec):
    raise OSError(str(spec["n"]))


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
    equal(run(fn, store=tmp_path, compute=False), expected([SPECS[1], SPECS[3]]))
    fn.calls.clear()
    fn.broken.clear()
    equal(run(fn, store=tmp_path), expected())
    assert fn.calls == [SPECS[0], SPECS[2]]


def test_of_many_failing_specs_five_are_named(tmp_path):
    many = [SPECS[0] | {"n": n} for n in range(8)]
    with pytest.raises(sweeps.SweepError, match=r"^8 of 8 (.|\n)*OSError: 4\n  and 3 more$"):
        run(always, many, store=tmp_path)


@pytest.mark.parametrize("batch", [None, 3])
def test_a_member_without_memory_does_not_sink_the_others(batch, tmp_path):
    broken = deque([True])  # no constant, which would be in the key

    @Counted
    def fn(specs):
        for spec in specs if batch else [specs]:
            if broken and spec == SPECS[1]:
                raise MemoryError
        return [{"value": spec["sigma"]} for spec in specs] if batch else {"value": specs["sigma"]}

    with pytest.raises(sweeps.SweepError, match=r"^1 of 4 specs failed(.|\n)*MemoryError"):
        run(fn, store=tmp_path, batch=batch)
    broken.clear()
    fn.calls.clear()
    table = run(fn, store=tmp_path, batch=batch)
    assert table.value.tolist() == [spec["sigma"] for spec in SPECS]
    assert fn.calls == [[SPECS[1]] if batch else SPECS[1]]


def test_an_interrupt_leaves_a_clean_store(tmp_path):
    @Counted
    def fn(spec):
        if len(fn.calls) == 3:
            raise KeyboardInterrupt
        return measure.fn(spec)

    with pytest.raises(KeyboardInterrupt):
        run(fn, store=tmp_path)
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(stored) == 2 and not any(path.name.startswith(".") for path in stored)
    equal(run(fn, store=tmp_path), expected())
    assert fn.calls[3:] == SPECS[2:]


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


# --- files -------------------------------------------------------------------------------------


def cut(share):
    return lambda content: content[: int(share * len(content))]


def in_metadata(old, new):
    """Damage what pandas writes about the columns; Parquet itself still finds the file sound."""

    def damage(content):
        table, out = pq.read_table(io.BytesIO(content)), io.BytesIO()
        notes = table.schema.metadata[b"pandas"].replace(old, new)
        pq.write_table(table.replace_schema_metadata({b"pandas": notes}), out)
        return out.getvalue()

    return damage


DAMAGES = {
    "empty": cut(0),
    "cut in the middle": cut(0.5),
    "cut at the end": cut(0.99),
    "no Parquet": lambda content: b"PAR1 but not at all",
    "another name in the metadata": in_metadata(b"numpy_type", b"numpy_typo"),
    "another type in the metadata": in_metadata(b"float64", b"fkoat64"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_result_is_computed_again_with_a_warning(damage, tmp_path):
    run(measure, store=tmp_path)
    code, _ = sweeps.fingerprint(measure)
    file = tmp_path / "measure" / f"{_store.key('measure', code, SPECS[1])}.parquet"
    measure.calls.clear()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=f"computed again: {file.name}") as caught:
        table = run(measure, store=tmp_path)
    assert [warning.filename for warning in caught] == [run.__code__.co_filename]  # the caller's
    equal(table, expected())
    assert measure.calls == [SPECS[1]]
    equal(run(measure, store=tmp_path), expected())  # whole again: no warning, which would raise
    assert measure.calls == [SPECS[1]]


def test_racing_runs_end_with_the_same_table(tmp_path):
    """They meet in the middle: what one has stored, the other takes."""

    @Counted
    def slow(spec):
        time.sleep(0.005)
        return measure.fn(spec)

    with ThreadPoolExecutor(2) as pool:
        ways = [MANY, MANY[::-1]]
        tables = list(pool.map(lambda specs: run(slow, specs, store=tmp_path), ways))
    equal(tables[0], expected(MANY))
    equal(tables[1], expected(MANY[::-1]))
    assert len(MANY) <= len(slow.calls) < 2 * len(MANY)


def test_a_result_is_in_place_whole_or_not_at_all(tmp_path, monkeypatch):
    written = []

    def fail(source, target):
        written.append((Path(source), Path(target)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            run(measure, store=tmp_path)
    ((source, target),) = written
    assert source.parent == target.parent  # the same file system: a rename is atomic
    assert not list(tmp_path.rglob("*.parquet"))
    assert len(measure.calls) == 1
    equal(run(measure, store=tmp_path), expected())
    assert measure.calls == [SPECS[0], *SPECS]


MANY = [{"sigma": i / 8, "seed": i} for i in range(40)]


def work(store):
    return run(measure, MANY, store=store)


def progress(store):
    files = list(store.rglob("[!.]*.parquet"))
    for file in files:
        pd.read_parquet(file)
    return bool(files), len(files) == len(MANY)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_sweep_survives_kill_9(tmp_path):
    kill_at_random("test_sweeps_errors", tmp_path, seed=3)
    for store in tmp_path.iterdir():
        missing = len(MANY) - len([*store.rglob("[!.]*.parquet")])
        measure.calls.clear()
        equal(work(store), expected(MANY))
        assert len(measure.calls) == missing
