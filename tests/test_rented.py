"""What a rented GPU does: the order, the division of its time, what is kept, and all of it dry."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import rented
from benchmarks.rented import SPENT, Step
from replication.papers import _figures, _run, experiment

ROOT = Path(__file__).resolve().parent.parent


def divided(seconds, shares, needed):
    """Return the turns (step, limit) of steps that need so many seconds, and go on when called."""
    now, turns = 0.0, []

    def execute(step, limit):
        nonlocal now
        turns.append((step.name, round(limit)))
        taken = min(limit, needed[step.name])
        now += taken
        needed[step.name] -= taken
        return SPENT if needed[step.name] > 0 else 3 * (step.name == "fails")

    todo = [Step(name, share, ()) for name, share in shares.items()]
    rented.go_on(todo, seconds, execute, lambda: now)
    return turns


def test_time_is_divided_by_shares_and_what_is_left_goes_to_those_after_and_the_unfinished():
    shares = {"a": 1, "fails": 2, "b": 3}
    turns = divided(1200, shares, {"a": 500, "fails": 40, "b": 700})
    assert turns == [("a", 200), ("fails", 400), ("b", 960), ("a", 260)]
    turns = divided(1200, shares, {"a": 1e4, "fails": 40, "b": 1e4})
    assert turns == [("a", 200), ("fails", 400), ("b", 960)]
    assert divided(120, shares, dict.fromkeys(shares, 1e4)) == [("a", 90)]  # and 30 s are too few


def test_the_order_is_that_of_value_and_all_titles_exist(monkeypatch):
    monkeypatch.setattr(experiment, "_at_hand", lambda dataset: False)  # no images are decoded
    names = [step.name for step in rented.steps(Path("out"), dry=False)]
    runs = ("07-full", "01-paper", "02-paper", "02-full", "08-full", "06-full")
    assert names == ["tests", "benchmarks", *(f"run{n}-{run}" for n, run in enumerate(runs, 1))]
    for _, notebook, profile, *titles in (*rented.RUNS, *rented.DRY):
        (path,) = _figures.select([notebook])
        assert set(titles) <= set(_run.module(path).plan(profile))


def test_a_command_has_its_status_or_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(rented, "GRACE", 0.2)
    command, seen = [sys.executable, "-c"], []
    leave = "import sys; print('here', flush=True); sys.exit(3)"
    assert rented.run([*command, leave], 60, tmp_path / "a.log", lambda: seen.append(1)) == 3
    assert (tmp_path / "a.log").read_text() == "here\n" and seen
    stay = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"
    assert rented.run([*command, stay], 2, tmp_path / "b.log", lambda: None) == SPENT


def test_the_evidence_that_was_added_is_kept_up_to_a_size(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))
    monkeypatch.setattr(rented, "MOST", 250)
    held, out = tmp_path / "data" / "evidence" / "01_a", tmp_path / "out"
    held.mkdir(parents=True)
    for name, when in (("old", 5), ("one", 20), ("two", 20), ("zoo", 20)):
        (held / f"{name}.parquet").write_bytes(b"x" * 100)
        os.utime(held / f"{name}.parquet", (when, when))
    (held / ".one.half.parquet").touch()
    assert rented.keep(out, since=10) == [str(held / "zoo.parquet")]
    kept = out / "evidence" / "01_a"
    assert sorted(path.name for path in kept.iterdir()) == ["one.parquet", "two.parquet"]
    (held / "one.parquet").write_bytes(b"y")
    assert rented.keep(out, since=10) == []
    assert (kept / "one.parquet").read_bytes() == b"y" and (kept / "zoo.parquet").exists()
    copy = shutil.copyfile

    def replaced_meanwhile(source, target):
        copy(source, target)
        Path(source).write_bytes(b"newer")
        os.utime(source, (40, 40))

    (held / "two.parquet").write_bytes(b"new")
    os.utime(held / "two.parquet", (30, 30))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", replaced_meanwhile)
        rented.keep(out, since=10)
    rented.keep(out, since=10)
    assert (kept / "two.parquet").read_bytes() == b"newer"


def test_without_a_gpu_nothing_is_done(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmarks.main(["rented", "--out", str(tmp_path)]) == rented.NOTHING_DONE
    assert list(tmp_path.iterdir()) == [] and "--dry" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        rented.main(["--minutes", "0"])
    assert "--minutes: expected at least 1, found 0" in capsys.readouterr().err


def test_a_step_that_fails_costs_no_other_and_is_told(tmp_path, monkeypatch):
    for name in ("REPLICATION_ROOT", "REPLICATION_DATA", "REPLICATION_WORKERS", "TQDM_DISABLE"):
        monkeypatch.setenv(name, "1")  # to be put back
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    todo = [Step("tests", 1, ("absent",)), Step("run", 1, ("also_absent",), resumes=True)]
    monkeypatch.setattr(rented, "steps", lambda out, dry: [*todo, Step("last", 1, ("platform",))])
    names = ["tests", "run", "last"]
    for _ in range(2):  # a benchmark that failed is not repeated, a run is
        assert rented.main(["--dry", "--out", str(tmp_path)]) == 1
        notes = json.loads((tmp_path / "log.json").read_text())["steps"]
        assert [note["step"] for note in notes] == names
        assert [note["status"] for note in notes] == [1, 1, 0, 1][: len(names)]
        assert notes[1]["command"][-1].endswith("s") and "absent" in notes[0]["command"]
        names.append("run")
    assert "No module named absent" in (tmp_path / "tests.log").read_text()


@pytest.mark.slow
def test_a_dry_run_that_is_killed_goes_on_and_leaves_all_of_it_in_one_folder(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "rented", "--dry", "--out", str(tmp_path)]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}

    def log():
        path = tmp_path / "log.json"
        return json.loads(path.read_text())["steps"] if path.exists() else []

    first = subprocess.Popen(command, **options)
    end = time.monotonic() + 200
    while len(log()) < 2:
        assert first.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert [(note["step"], note["status"]) for note in log()] == [
        ("tests", 0),
        ("benchmarks", None),
    ]
    again = subprocess.run(command, timeout=300, **options)
    assert again.returncode == 0, again.stdout
    names = [step.name for step in rented.steps(tmp_path, dry=True)]
    assert [note["step"] for note in log()] == ["tests", "benchmarks", *names[1:]]
    assert all(note["status"] == 0 and note["seconds"] > 0 for note in log()[2:])
    assert all((tmp_path / f"{name}.log").stat().st_size for name in names)
    assert json.loads((tmp_path / "gpu-cpu.json").read_text())["versions"]
    kept = [str(p.relative_to(tmp_path / "evidence")) for p in tmp_path.glob("evidence/*/*")]
    assert sorted(kept) == [
        *("01_random_labels/losses.parquet", "01_random_labels/train.parquet"),
        *("07_which_similarity_metric/probes.parquet", "07_which_similarity_metric/train.parquet"),
    ]
