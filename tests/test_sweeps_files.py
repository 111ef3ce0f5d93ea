"""Stored results of sweeps: whole or not there, read as written, loaded without their function."""

import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from _tiny_runs import run_killer
from test_sweeps import SPECS, Counted, equal, expected, measure, run

from replication import sweeps
from replication._core import files
from replication.sweeps import _store


@pytest.fixture(autouse=True)
def no_calls_yet():
    measure.calls.clear()


def file_of(spec, store):
    before = set(store.rglob("*.parquet"))
    run(measure, [spec], store=store)
    (file,) = set(store.rglob("*.parquet")) - before
    return file


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
    "cut at the start": cut(0.2),
    "cut in the middle": cut(0.5),
    "cut at the end": cut(0.99),
    "no Parquet": lambda content: b"PAR1 but not at all",
    "another name in the metadata": in_metadata(b"numpy_type", b"numpy_typo"),
    "another type in the metadata": in_metadata(b"float64", b"fkoat64"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_result_is_computed_again_with_a_warning(damage, tmp_path):
    file = file_of(SPECS[1], tmp_path)
    run(measure, store=tmp_path)
    measure.calls.clear()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=f"computed again: {file.name}") as caught:
        table = run(measure, store=tmp_path)
    assert [warning.filename for warning in caught] == [run.__code__.co_filename]  # the caller's
    equal(table, expected())
    assert measure.calls == [SPECS[1]]
    equal(run(measure, store=tmp_path), expected())  # whole again: no warning, which would raise
    assert measure.calls == [SPECS[1]]


def test_files_are_read_as_pandas_reads_them(tmp_path):
    def fn(spec):
        columns = {"s": ["a", None], "f": [0.5, np.nan], "i": [1, 2], "l": [[1], [2, 3]]}
        times = pd.to_datetime(["2020-01-01", "2021-01-01"])
        return pd.DataFrame(columns | {"t": times, "c": pd.Categorical(["x", "y"])})

    table = run(fn, [{}], store=tmp_path)
    (file,) = tmp_path.rglob("*.parquet")
    equal(table, pd.read_parquet(file))


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

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import pandas as pd
from test_sweeps_files import MANY, measure, run

def visible(store):
    return [f for f in store.rglob("*.parquet") if not f.name.startswith(".")]

store, source = Path({store!r}), random.Random({seed})
run(measure, MANY[:1], store=store / "warm")
start = time.perf_counter()
run(measure, MANY, store=store / "undisturbed")
duration = time.perf_counter() - start
print("seed", {seed}, "a sweep takes", round(duration, 3), "s", flush=True)
partial = 0
number = 0
while partial < 8:  # each time the child was too fast, the next is given less time
    child = os.fork()
    if not child:
        run(measure, MANY, store=store / str(number))
        os._exit(0)
    delay = source.uniform(0, duration)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    killed = os.waitpid(child, 0)[1] == signal.SIGKILL
    files = visible(store / str(number))
    for file in files:
        pd.read_parquet(file)
    partial += 0 < len(files) < len(MANY)
    print("killed" if killed else "done", round(delay, 3), len(files), flush=True)
    if len(files) == len(MANY):
        number, duration = number + 1, 0.9 * duration
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_sweep_survives_kill_9(tmp_path):
    run_killer(KILLED, tmp_path, seed=3)
    for store in tmp_path.iterdir():
        if store.name == "warm":
            continue
        missing = len(MANY) - len([*store.rglob("[!.]*.parquet")])
        measure.calls.clear()
        equal(run(measure, MANY, store=store), expected(MANY))
        assert len(measure.calls) == missing


# --- load --------------------------------------------------------------------------------------


def test_all_stored_results_are_loaded_in_the_order_of_their_specs(tmp_path):
    specs = [{"sigma": s, "seed": seed} for seed in (10, 9, 2) for s in (1, 0.5)]
    run(measure, specs, store=tmp_path)
    run(measure, specs[:3], store=tmp_path, version=2)
    wanted = expected(sorted(specs, key=lambda spec: list(spec.values())))
    equal(sweeps.load(measure, tmp_path), wanted)
    equal(sweeps.load("measure", str(tmp_path)), wanted)
    assert len(sweeps.load(measure, tmp_path, version=2)) == 6
    assert sweeps.load(measure, tmp_path, version=3).empty


def test_specs_of_several_kinds_are_loaded_into_one_table(tmp_path):
    def fn(spec):
        return {"n": len(spec)}

    specs = [{"a": None}, {"a": "x", "b": [1, 2]}, {"a": 3}]
    run(fn, specs, store=tmp_path)
    table = sweeps.load(fn, tmp_path)
    assert table.a.tolist() == [3, "x", None]
    assert table.b.tolist()[1] == [1, 2]
    assert table.n.tolist() == [1, 2, 1]


def test_results_that_do_not_name_their_spec_are_found_by_run_alone(tmp_path):
    """As files of earlier releases, which `load` cannot tell apart."""
    run(measure, store=tmp_path)
    key = _store.key("measure", 1, SPECS[0])
    old = tmp_path / "measure" / f"{key}.parquet"
    pd.read_parquet(old).to_parquet(old)
    measure.calls.clear()
    equal(run(measure, store=tmp_path), expected())
    assert measure.calls == []
    with pytest.warns(UserWarning, match="left out: 1 results whose files do not name their spec"):
        table = sweeps.load(measure, tmp_path)
    assert len(table) == 6


def test_loading_leaves_out_what_is_damaged_or_half_written(tmp_path):
    run(measure, store=tmp_path)
    damaged = tmp_path / "measure" / f"{_store.key('measure', 1, SPECS[0])}.parquet"
    (damaged.parent / f".{damaged.name}").write_bytes(b"killed before it was whole")
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.warns(UserWarning, match=f"left out: {damaged.name}"):
        assert len(sweeps.load(measure, tmp_path)) == 6


def test_an_unknown_function_has_no_results(tmp_path):
    with pytest.raises(ValueError, match=r"fn: .* has no results of 'measure'$"):
        sweeps.load(measure, tmp_path / "nowhere")
    run(measure, store=tmp_path)
    with pytest.raises(ValueError, match="did you mean 'measure'"):
        sweeps.load("mesure", tmp_path)
