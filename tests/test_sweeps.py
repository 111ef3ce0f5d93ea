"""Sweeps: every configuration is computed once, in whatever way the last run of them ended."""

import functools
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from replication import _files, sweeps

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


# --- errors ------------------------------------------------------------------------------------


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


def test_a_result_may_not_repeat_a_column_of_its_spec(tmp_path):
    def fn(spec):
        return {"seed": 1, "value": 2}

    for _ in range(2):
        with pytest.raises(ValueError, match=r"repeats columns of the spec: \['seed'\]"):
            run(fn, store=tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("result", [None, 3.5, [1, 2], "abc", np.zeros(3)], ids=repr)
def test_a_result_must_be_a_table(result, tmp_path):
    def fn(spec):
        return result

    with pytest.raises(ValueError, match="fn: expected a mapping"):
        run(fn, store=tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_failing_spec_leaves_what_was_finished(tmp_path):
    broken = [True]

    @Counted
    def fragile(spec):
        if broken and spec == SPECS[2]:
            raise RuntimeError("out of memory")
        return measure.fn(spec)

    with pytest.raises(RuntimeError, match="out of memory"):
        run(fragile, store=tmp_path)
    assert len(list(tmp_path.rglob("*.parquet"))) == 2
    broken.clear()
    fragile.calls.clear()
    equal(run(fragile, store=tmp_path), expected())
    assert fragile.calls == SPECS[2:]


# --- files -------------------------------------------------------------------------------------


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
    assert [warning.filename for warning in caught] == [__file__]  # the caller's line
    equal(table, expected())
    assert measure.calls == [SPECS[1]]
    equal(run(measure, store=tmp_path), expected())  # whole again: no warning, which would raise
    assert measure.calls == [SPECS[1]]


def test_a_result_is_in_place_whole_or_not_at_all(tmp_path, monkeypatch):
    written = []

    def fail(source, target):
        written.append((Path(source), Path(target)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_files.os, "replace", fail)
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
from test_sweeps import MANY, measure, run

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
    program = KILLED.format(tests=str(Path(__file__).parent), store=str(tmp_path), seed=3)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    print(done.stdout, done.stderr)  # shown when the test fails
    assert done.returncode == 0, done.stderr
    for store in tmp_path.iterdir():
        if store.name == "warm":
            continue
        missing = len(MANY) - len([*store.rglob("[!.]*.parquet")])
        measure.calls.clear()
        equal(run(measure, MANY, store=store), expected(MANY))
        assert len(measure.calls) == missing


def test_specs_are_stored_under_their_json(tmp_path):
    """A tuple is a list to JSON: both find the same result."""

    @Counted
    def fn(spec):
        return {"n": len(spec["widths"])}

    run(fn, [{"widths": (1, 2)}], store=tmp_path)
    run(fn, [json.loads(json.dumps({"widths": (1, 2)}))], store=tmp_path)
    assert len(fn.calls) == 1
