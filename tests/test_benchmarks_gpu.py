"""The benchmark of GPUs: its arithmetic, its cases, and all of it on the CPU at small sizes."""

import json
import math
from unittest.mock import Mock

import pytest
import torch
from test_layering import NUMERICS
from test_public_functions import MODULES, public

from benchmarks import __main__ as benchmarks
from benchmarks import _gpu_cases, _gpu_speed, gpu
from benchmarks._gpu_inputs import Case, Place

CPU = torch.device("cpu")
RIGHT = Case("right.one", "", lambda at: (at(torch.ones(3).double()),))
WRONG = Case("wrong.one", "", lambda at: (torch.rand(3) + 1,))
BROKEN = Case("broken.one", "", lambda at: 1 / 0)


def few(monkeypatch, *cases, speed=()):
    monkeypatch.setattr(_gpu_cases, "cases", lambda: list(cases))
    monkeypatch.setattr(_gpu_speed, "measurements", lambda device, sizes: iter(speed))


def written(folder):
    return json.loads((folder / "gpu-cpu.json").read_text(encoding="utf-8"))


def test_every_public_function_has_a_case_or_a_reason():
    covered = {case.function for case in _gpu_cases.cases()}
    names = set().union(*map(public, (*MODULES, "training", "papers.own_models")))
    assert len(names) > 60 and {*NUMERICS, "activations"} <= set(MODULES)
    assert names - covered <= set(_gpu_cases.EXEMPT) and covered <= names
    assert not covered & set(_gpu_cases.EXEMPT) and all(_gpu_cases.EXEMPT.values())


def test_cases_are_told_apart_and_draw_the_same_numbers_again():
    cases = _gpu_cases.cases()
    assert len({(case.function, case.what) for case in cases}) == len(cases)
    case = next(case for case in cases if case.function == "similarity.cca")
    first, again = (case.run(Place(CPU, torch.float64)) for _ in range(2))
    assert gpu.error(first, again) == 0


@pytest.mark.parametrize(
    ("found", "exact", "expected"),
    [
        ([torch.tensor([1.0, -10.1])], [torch.tensor([1.0, -10.0])], 0.01),
        ([0.5, torch.tensor(2.0)], [0.5, torch.tensor(4.0)], 0.5),
        ([torch.zeros(2)], [torch.zeros(2)], 0.0),
        ([torch.tensor([0.0, 0.5])], [torch.zeros(2)], 0.5),
        ([torch.tensor([math.inf, 1.0])], [torch.tensor([math.inf, 1.0])], 0.0),
        ([torch.tensor([math.nan, 1.0])], [torch.tensor([math.nan, 1.0])], 0.0),
        ([torch.tensor([math.inf, 1.0])], [torch.tensor([2.0, 1.0])], math.inf),
        ([torch.tensor([math.nan, 1.0])], [torch.tensor([2.0, 1.0])], math.inf),
        ([torch.zeros(3)], [torch.zeros(2)], math.inf),
        ([torch.zeros(2)], [torch.zeros(2)] * 2, math.inf),
        ([torch.tensor([3, 4])], [torch.tensor([3, 5])], 0.2),
    ],
)
def test_error(found, exact, expected):
    assert gpu.error(found, exact) == pytest.approx(expected, rel=1e-5)


def test_all_of_it_on_the_cpu(tmp_path, capsys):
    assert gpu.main(["--device", "cpu"], tmp_path) == 0
    told = written(tmp_path)
    rows = told["rows"]
    assert told["sizes"] == "small" and told["versions"]["torch"] == torch.__version__
    assert not [row for row in rows if row.get("failed")]
    correct = [row for row in rows if row["kind"] == "correctness"]
    assert len(correct) == len(_gpu_cases.cases()) and all(row["held"] for row in correct)
    assert all(row["errors"][0] == 0 for row in correct)  # the CPU against itself
    assert sum(row["errors"][1] > 0 for row in correct) > len(correct) / 2  # against float32
    fast = [row for row in rows if row["kind"] == "speed"]
    assert len(fast) == 16 and all(row["ratio"] > 0 and row["seconds"] > 0 for row in fast)
    assert all(row["error"] <= row["bound"] for row in fast if "bound" in row)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(printed) == len(rows) + 1  # a table with a head


@pytest.mark.parametrize("bad", [WRONG, BROKEN])
def test_a_case_beyond_its_bound_or_broken_is_told_and_costs_no_other(
    monkeypatch, tmp_path, capsys, bad
):
    few(monkeypatch, bad, RIGHT)
    assert gpu.main(["--device", "cpu"], tmp_path) == 1
    assert [row["held"] for row in written(tmp_path)["rows"]] == [False, True]
    assert f"Beyond their bounds or failed: {bad.function}\n" in capsys.readouterr().out


def test_a_slow_row_is_told_but_no_failure_and_a_killed_run_keeps_what_is_done(
    monkeypatch, tmp_path, capsys
):
    def slow():
        return [_gpu_speed.row("grid", "loop", 2.0, 1.0, 4)]

    def fails():
        raise RuntimeError("out of | memory\nmore")

    few(monkeypatch, RIGHT, speed=[slow])
    assert gpu.main(["--device", "cpu"], tmp_path) == 0
    assert "Below target: grid" in capsys.readouterr().out
    few(monkeypatch, RIGHT, speed=[fails, slow])
    assert gpu.main(["--device", "cpu"], tmp_path) == 1
    assert "RuntimeError: out of / memory |" in capsys.readouterr().out
    assert [row["what"] for row in written(tmp_path)["rows"]] == ["right.one", "fails", "grid"]
    few(monkeypatch, RIGHT, Case("last", "", Mock(side_effect=KeyboardInterrupt)))
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--device", "cpu"], tmp_path)
    assert [row["what"] for row in written(tmp_path)["rows"]] == ["right.one"]


def test_float32_is_measured_within_its_dtype_where_numbers_depend_on_it(monkeypatch):
    def drawn(at):
        return (torch.rand(3, dtype=at.dtype, generator=torch.Generator().manual_seed(0)),)

    assert gpu.correctness(Case("f", "", drawn, by_dtype=True), CPU)["held"]
    assert not gpu.correctness(Case("f", "", drawn), CPU)["held"]


def test_without_a_gpu_nothing_is_done(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([], tmp_path) == gpu.NOTHING_DONE != 0
    assert capsys.readouterr().out.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert benchmarks.main(["gpu"]) == gpu.NOTHING_DONE
    with pytest.raises(SystemExit) as left:
        gpu.main(["--device", "abacus"], tmp_path)
    assert left.value.code == 2 and "abacus" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning")  # of layers wider than their examples
def test_the_gpu_holds_every_bound():
    rows = [gpu.correctness(case, torch.device("cuda")) for case in _gpu_cases.cases()]
    assert [row for row in rows if not row["held"]] == []
