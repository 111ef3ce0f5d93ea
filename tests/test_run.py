"""`python -m replication run`: experiments without Jupyter, stopped and taken up at any moment."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace as Namespace

import pandas as pd
import pytest
from _tiny_runs import wait
from safetensors import safe_open

from replication import __main__
from replication.papers import Experiment, _run

ROOT = Path(__file__).resolve().parent.parent

# A paper's module of two experiments: the first trains without a store, the second only measures.
PAPER = """
import dataclasses, time
from replication import data, papers, training
import torch

def toy():
    source = torch.Generator().manual_seed(0)
    images, labels = torch.rand(64, 1, 8, 8, generator=source), torch.arange(64) % 10
    half = data.Examples(images, labels)
    return data.Split(half, half, "toy", tuple("0123456789"), "made up")

def train(spec):
    options = {"inputs": 64, "widths": (8,)}
    network = training.Spec(model="mlp", model_options=options, evaluate_every=spec["epochs"])
    run = training.fit(dataclasses.replace(network, **spec), toy(), progress=False)
    return {"weights": run.state()["fc1.weight"].double().sum().item()}

def measure(spec):
    print("measured", spec["k"], flush=True)
    time.sleep(spec["pause"])
    return {"value": spec["k"] ** 2}

def plan(profile, dataset="auto", device="auto"):
    scale = {"smoke": (20, 0.0), "quick": (60000, 0.0), "full": (20, 90.0)}[profile]
    nets = [{"epochs": scale[0], "seed": seed} for seed in range(2)]
    return {
        "networks": papers.Experiment(train, nets),
        "squares": papers.Experiment(measure, [{"k": k, "pause": scale[1]} for k in range(3)]),
    }
"""
DRIVER = """
import sys
import replication.training
sys.modules["replication.training.fit"].INTERVAL = 0.2
import made_up_paper
sys.modules["replication.papers.made_up"] = made_up_paper
from replication.papers import Experiment, _run
_run.module = lambda path: made_up_paper
from replication.__main__ import main
sys.exit(main(["run", *sys.argv[1:]]))
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts `run` on the made-up paper in a folder of its own."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_made_up.ipynb").touch()
    (tmp_path / "made_up_paper.py").write_text(PAPER)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    settings = {"REPLICATION_ROOT": str(tmp_path), "PYTHONPATH": path, "TQDM_DISABLE": "1"}
    settings["REPLICATION_WORKERS"] = "1"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def begin(*arguments):
        command = [sys.executable, "-c", DRIVER, "01", *arguments]
        return subprocess.Popen(command, env=os.environ | settings, **pipes)

    return begin


def ended(process):
    out, err = process.communicate(timeout=300)
    assert err == ""
    return process.returncode, out


def step_of(resume):
    with safe_open(resume, "pt") as file:
        return json.loads(file.metadata()["progress"])["step"]


def results(root):
    return sorted((root / "data" / "runs" / "01_made_up").rglob("[!.]*.parquet"))


@pytest.mark.slow
def test_what_is_stored_is_not_computed_again(start, tmp_path):
    status, out = ended(start("--profile", "smoke"))
    assert status == _run.COMPLETE
    assert out.count("measured") == 3
    assert "0 left" in out.splitlines()[-1]
    assert len(results(tmp_path)) == 5
    assert not (tmp_path / "data" / "runs" / "unfinished" / "01_made_up").exists()
    status, out = ended(start("--profile", "smoke"))
    assert status == _run.COMPLETE and "measured" not in out


def test_networks_come_one_after_the_other_with_all_that_is_measured_of_each():
    nets = [{"network": name, "net": {"seed": seed}} for seed in (0, 1) for name in "ab"]
    for net in nets:
        net["network"] += str(net["net"]["seed"])
    readings = [net | {"epoch": epoch} for epoch in (0, 1) for net in nets]
    pairs = [{"nets": ["x", "y"], "seeds": [0, 1]}, {"net": "y", "seed": 1}, {"seed": 0}]
    plan = {"a": nets[::-1], "b": readings, "c": pairs}
    plan = {title: Experiment(len, specs) for title, specs in plan.items()}
    found = list(_run.stages(plan, 1))
    assert [part["a"].specs[0]["network"] for part in found[:4]] == ["b0", "a0", "b1", "a1"]
    for part in found[:4]:
        names = {spec["network"] for experiment in part.values() for spec in experiment.specs}
        assert len(names) == 1 and len(part["b"].specs) == 2
    assert [part["c"].specs for part in found[4:]] == [[pairs[2]], pairs[:2]]
    together = list(_run.stages(plan, 2))
    assert [len(part.get("a", part.get("c")).specs) for part in together] == [2, 2, 3]
    several = {"d": Experiment(len, [{"seed": s} for s in range(5)], batch=2)}
    assert [len(part["d"].specs) for part in _run.stages(several, 1)] == [2, 2, 1]


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_where_specs_name_no_network_experiments_come_one_after_the_other(at_once):
    seeds = [{"seed": seed} for seed in range(4)]
    specs = {"networks": seeds, "pairs": [{"of": 4, "on": part} for part in "ab"], "more": seeds}
    plan = {title: Experiment(len, own) for title, own in specs.items()}
    found = [
        (t, s) for part in _run.stages(plan, at_once) for t, e in part.items() for s in e.specs
    ]
    assert found == [(title, spec) for title, own in specs.items() for spec in own]


@pytest.mark.slow
def test_workers_keep_networks_in_training_where_the_run_says(start, tmp_path):
    paper = tmp_path / "made_up_paper.py"
    told = 'return {"value": __import__("os").environ["REPLICATION_SCRATCH"]}'
    paper.write_text(PAPER.replace('return {"value": spec["k"] ** 2}', told).replace("90.0", "0.0"))
    status, _ = ended(start("--profile", "full"))
    found = pd.concat([pd.read_parquet(path) for path in results(tmp_path)])
    scratch = tmp_path / "data" / "runs" / "unfinished" / "01_made_up"
    assert status == _run.COMPLETE and set(found.value.dropna()) == {str(scratch)}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_goes_on_from_the_very_step(number, start, tmp_path):
    scratch = tmp_path / "data" / "runs" / "unfinished" / "01_made_up"
    running = start("--profile", "quick")
    wait(lambda: any(step_of(path) > 0 for path in scratch.glob("*/resume.safetensors")))
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == (-9 if number == signal.SIGKILL else _run.SPENT), err
    assert ("the same command goes on" in out) == (number != signal.SIGKILL)
    (resume,) = scratch.glob("*/resume.safetensors")
    assert results(tmp_path) == []
    first = step_of(resume)
    running = start("--profile", "quick")
    wait(lambda: step_of(resume) != first)
    assert step_of(resume) > first
    running.terminate()
    assert ended(running)[0] == _run.SPENT


@pytest.mark.slow
def test_the_time_is_up_in_the_middle_of_a_measurement(start, tmp_path):
    status, out = ended(start("--profile", "full", "--for", "60s"))
    assert status == _run.SPENT and out.count("measured") == 1
    assert len(results(tmp_path)) == 2  # the networks, which come first


def test_times():
    assert [_run.seconds(text) for text in ("90s", "9m", "1.5h", " 2h ")] == [90, 540, 5400, 7200]
    for text in ("", "9", "m", "0s", "0.5s", "-1m", "1d", "nan"):
        with pytest.raises(ValueError, match="expected a time of at least 1s such as 90s, 9m or"):
            _run.seconds(text)


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("0[1-9]_*.ipynb")))
def test_every_paper_has_a_plan_at_every_profile(notebook):
    paper = _run.module(notebook)
    for profile in ("smoke", "quick", "full"):
        plan = paper.plan(profile)
        assert plan and all(len(experiment.specs) for experiment in plan.values())
        names = [experiment.measure.__name__ for experiment in plan.values()]
        assert all(name.isidentifier() for name in names)
    assert isinstance(paper.SETTINGS, dict) and notebook.stem == paper.NOTEBOOK


def measured(spec):
    return {"value": spec["k"]}


def also_measured(spec):
    return {"value": -spec["k"]}


def test_only_the_experiments_named_are_run_and_others_keep_their_networks(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))
    monkeypatch.setattr(_run.importlib.util, "find_spec", lambda name: None)  # no Dask
    plan = {"a b": Experiment(measured, [{"k": 1}]), "c": Experiment(also_measured, [{"k": 2}])}
    monkeypatch.setattr(_run, "module", lambda path: Namespace(plan=lambda profile: plan))
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_made_up.ipynb").touch()
    scratch = tmp_path / "data" / "runs" / "unfinished" / "01_made_up"
    scratch.mkdir(parents=True)
    assert __main__.main(["run", "01", "--profile", "full", "--only", "d", "c"]) == 2
    assert "only: 01_made_up has no 'd' at full; it has 'a b', 'c'" in capsys.readouterr().err
    other = tmp_path / "notebooks" / "02_other.ipynb"
    other.touch()
    plans = {"01_made_up": plan, "02_other": {"e": plan["c"]}}
    with monkeypatch.context() as patch:
        patch.setattr(_run, "module", lambda path: Namespace(plan=lambda profile: plans[path.stem]))
        assert __main__.main(["run", "01", "02", "--profile", "full", "--only", "c"]) == 2
    assert "only: 02_other has no 'c'" in capsys.readouterr().err and not results(tmp_path)
    other.unlink()
    assert __main__.main(["run", "01", "--profile", "full", "--only", "a b"]) == _run.COMPLETE
    assert [path.parent.name for path in results(tmp_path)] == ["measured"] and scratch.exists()
    held = tmp_path / "data" / "evidence" / "01_made_up"
    assert [path.stem for path in held.iterdir()] == ["measured"]
    assert __main__.main(["run", "01", "--profile", "full"]) == _run.COMPLETE
    assert len(results(tmp_path)) == 2 and not scratch.exists()


def test_a_notebook_without_experiments_is_said(capsys):
    assert __main__.main(["run", "00", "--profile", "smoke"]) == 0
    assert "figures" in capsys.readouterr().out


def test_signals_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(_run.Stopped, match="SIGTERM"), _run._stopped_by_signals(60):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
