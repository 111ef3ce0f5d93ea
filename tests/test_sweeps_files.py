"""Stored results of sweeps: whole or not there, read as written, loaded without their function."""

import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from _tiny_runs import kill_at_random
from test_sweeps import SPECS, Counted, equal, expected, measure, run

from replication._core import files
from replication.sweeps import _store


@pytest.fixture(autouse=True)
def no_calls_yet():
    measure.calls.clear()


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
    file = tmp_path / "measure" / f"{_store.key('measure', 1, SPECS[1])}.parquet"
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
    kill_at_random("test_sweeps_files", tmp_path, seed=3)
    for store in tmp_path.iterdir():
        missing = len(MANY) - len([*store.rglob("[!.]*.parquet")])
        measure.calls.clear()
        equal(work(store), expected(MANY))
        assert len(measure.calls) == missing
