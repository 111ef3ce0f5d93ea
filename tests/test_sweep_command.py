"""`sweep`: notebooks as scripts, ended by a budget and taken up again, found by `figures` later."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch

from replication import _budget, _sweep_command, cli, data, sweeps, training

PARAMETERS = "profile = 'quick'\ndevice = 'cpu'\ncluster = None"
LOAD = """\
from pathlib import Path
from IPython.display import Image, display
from replication import data, paths, profiles, sweeps, training
profile = profiles.resolve(profile)
split = data.load("mnist5k", subset=(40, 20), device=device)
folder = paths.figures() / profile / "01_tiny"
"""
TRAIN = """\
def train(specs):
    with Path("calls").open("a") as calls:
        calls.write("x")
    options = {"inputs": 784, "widths": [8]}
    kind = {"model": "mlp", "model_options": options, "epochs": 4, "batch_size": 10}
    plans = [training.Spec(**kind, **spec) for spec in specs]
    runs = training.fit_population(plans, split, device=device, progress=False)
    return [{"loss": float(run.history.train_loss.iloc[-1])} for run in runs]


specs = [{"seed": seed} for seed in range(4)]
table = sweeps.run(train, specs, store=paths.runs() / "01_tiny", cluster=cluster, batch=2)
"""
DRAW = """\
folder.mkdir(parents=True, exist_ok=True)
table.to_parquet(folder / "table.parquet")
display(table, Image)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))
    return tmp_path


def make(root, name, *cells, parameters=PARAMETERS):
    """Write a notebook, by hand: nbformat is not needed to run it either."""
    sources = ["# Title", parameters, *cells]
    notebook = {"metadata": {}, "nbformat": 4, "nbformat_minor": 5, "cells": []}
    for i, source in enumerate(sources):
        cell = {"id": f"c{i}", "cell_type": "code" if i else "markdown", "metadata": {}}
        cell["source"] = source.splitlines(keepends=True)
        cell |= {"outputs": [], "execution_count": None} if i else {}
        notebook["cells"].append(cell)
    notebook["cells"][1]["metadata"]["tags"] = ["parameters"]
    path = root / "notebooks" / f"{name}.ipynb"
    path.write_text(json.dumps(notebook))
    return path


def sweep(*arguments):
    return cli.main(["sweep", *arguments, "--profile", "smoke"])


def table(root):
    return pd.read_parquet(root / "figures" / "smoke" / "01_tiny" / "table.parquet")


def calls(root):
    return len((root / "calls").read_text())


@contextmanager
def cut_off(folder, match):
    """Expect a budget of no time to end the block, scratch and all in `folder`."""
    with (
        pytest.raises(sweeps.BudgetSpent, match=match),
        _budget.limited(1e-9, folder / "scratch"),
    ):
        yield


def spend(call, scratch):
    """Return what `call` does, cut off as often as can be, and how often it was."""
    for count in range(100):
        try:
            with _budget.limited(1e-9, scratch):
                return call(), count
        except _budget.BudgetSpent as pause:
            assert str(pause)
    raise AssertionError("no end")


def test_what_a_budget_ends_goes_on_to_the_same_result(root, tmp_path, capsys):
    path = make(root, "01_tiny", LOAD, TRAIN, DRAW)
    statuses = []
    while len(statuses) < 20 and _sweep_command.COMPLETE not in statuses:
        statuses.append(_sweep_command.run([path], "smoke", {}, budget=1e-9))
    # Two tasks of four epochs each, and one epoch a call.
    assert 5 <= len(statuses) <= 10 and statuses[-1] == _sweep_command.COMPLETE == 0
    assert statuses[0] == 75
    out = capsys.readouterr().out
    assert "train: 4 of 4 specs left; mlp, seed 0: step 4 of 16" in out
    assert "train: 2 of 4 specs left" in out and "01_tiny: complete after" in out
    assert not (root / "data" / "runs" / "unfinished" / "01_tiny").exists()
    resumed = table(root)

    for file in (root / "data" / "runs" / "01_tiny" / "train").iterdir():
        file.unlink()
    (root / "data" / "runs" / "scripts" / "smoke" / "01_tiny.json").unlink()
    assert sweep("01") == 0
    pd.testing.assert_frame_equal(table(root), resumed, check_exact=True)


def test_it_runs_without_jupyter_and_papermill_finds_the_results(root, capfd):
    make(root, "01_tiny", LOAD, TRAIN, DRAW)
    blocked = ["IPython", "papermill", "nbformat", "nbclient", "ipykernel", "jupyter_client"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "from replication.cli import main\n"
        "sys.exit(main(['sweep', '--profile', 'smoke', '--budget', '1h']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "01_tiny: complete after" in done.stdout
    script = table(root)
    assert calls(root) == 2

    assert cli.main(["figures", "--profile", "smoke"]) == 0  # in a kernel, by papermill
    assert calls(root) == 2
    pd.testing.assert_frame_equal(table(root), script, check_exact=True)
    capfd.readouterr()
    assert sweep("01") == 0
    assert capfd.readouterr().out == "01_tiny: complete already\n"


def test_a_failure_tells_cell_and_line_and_the_others_go_on(root, capsys):
    make(root, "01_raises", "value = 0\n\n\ndef fails():\n    1 / value", "\nfails()")
    make(root, "02_syntax", "a = 1\nb = = 2")
    make(root, "03_works", "print(profile, __name__, device)")
    assert sweep("--device", "cpu") == 1
    out, err = capsys.readouterr()
    assert "01_raises: failed in cell 4 of 4, line 2: ZeroDivisionError" in out
    assert "02_syntax: failed in cell 3 of 3, line 2: SyntaxError" in out
    assert "smoke __main__ cpu\n03_works: complete" in out
    assert 'File "01_raises.ipynb, cell 3", line 5, in fails\n    1 / value' in err
    assert "_script.py" not in err
    assert err.endswith("replication: error: failed: 01_raises, 02_syntax\n")
    assert sys.modules["__main__"].__dict__.get("value") is None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("profile = ''", "not run: it has no parameter cluster (it has profile)"),
        ("profile = ", "not run: its parameters cell is not valid Python"),
    ],
)
def test_an_unknown_parameter_is_refused(root, capsys, parameters, message):
    make(root, "01_lacks", "open('ran', 'w')", parameters=parameters)
    assert sweep("01", "--cluster", "local") == 1
    assert message in capsys.readouterr().out
    assert not (root / "ran").exists()


def test_a_file_that_is_no_notebook(root, capsys):
    (root / "notebooks" / "01_broken.ipynb").write_text('{"cells": [{}]}')
    assert sweep() == 1
    assert "not readable as a notebook" in capsys.readouterr().out


def test_the_surroundings_are_put_back(root):
    before = dict(os.environ), Path.cwd(), sys.modules["__main__"]
    load = "import matplotlib.pyplot as plt"
    changed, plain = (f"plt.rcParams['savefig.dpi'] {how} 77" for how in ("=", "!="))
    make(root, "01_one", f"{load}\nplt.figure()\n{changed}", f"assert not ({plain})")
    make(root, "02_two", f"{load}\nassert not plt.get_fignums()\nassert {plain}")
    assert sweep() == 0
    assert (dict(os.environ), Path.cwd(), sys.modules["__main__"]) == before


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("9m", 540), ("2h", 7200), ("1.5m", 90)]
)
def test_a_budget_in_seconds(text, seconds):
    assert _budget.seconds(text) == seconds


@pytest.mark.parametrize("text", ["9", "m", "-1m", "0s", "0.5s", "1d", "9 minutes", ""])
def test_a_bad_budget_is_told_with_the_usage(root, capsys, text):
    with pytest.raises(ValueError, match="expected a time of at least 1s"):
        _budget.seconds(text)
    with pytest.raises(SystemExit) as ended:
        sweep("01", f"--budget={text}")
    assert ended.value.code == 2
    assert "90s, 9m or 2h" in capsys.readouterr().err


def specs_of(model, epochs=2, count=3):
    options = {"mlp": {"inputs": 784, "widths": [8]}, "mnist_convnet": {}}[model]
    rest = {"optimizer": "Adam", "checkpoints": (1.5,), "evaluate_every": 2, "batch_size": 10}
    rest |= {"model": model, "model_options": options}
    return [training.Spec(epochs=epochs, seed=s, **rest) for s in range(count)]


@pytest.mark.parametrize("stored", [True, False], ids=["store", "scratch"])
@pytest.mark.parametrize("model", ["mlp", "mnist_convnet"])  # as one program, one by one
def test_training_put_aside_ends_as_if_undisturbed(tmp_path, model, stored):
    split = data.load("mnist5k", subset=(30, 20))
    specs = specs_of(model, epochs=3)
    fit = lambda store: training.fit_population(specs, split, store=store, progress=False)  # noqa: E731
    expected = fit(None)
    found, pauses = spend(lambda: fit(tmp_path / "store" if stored else None), tmp_path / "scratch")
    assert pauses >= 2
    assert (tmp_path / "scratch").exists() != stored
    for run, other in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(run.history, other.history, check_exact=True)
        assert run.checkpoints == other.checkpoints
        for epoch in run.checkpoints:
            one, two = run.state(epoch), other.state(epoch)
            assert one.keys() == two.keys()
            assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_call_makes_at_least_an_epoch_unless_another_has_made_progress(tmp_path):
    split = data.load("mnist5k", subset=(30, 20))
    spec = specs_of("mlp")[0]
    for progressed in (False, True):
        with _budget.limited(1e-9, tmp_path):
            if progressed:
                _budget.progressed()
            with pytest.raises(_budget.BudgetSpent, match="mlp, seed 0: step 3 of 6"):
                training.fit(spec, split, progress=False)


def square(spec):
    return {"square": spec["x"] ** 2}


@pytest.mark.parametrize("cluster", [None, "local"])
def test_a_sweep_hands_out_no_more_specs(tmp_path, monkeypatch, cluster):
    monkeypatch.setenv("REPLICATION_WORKERS", "1")
    specs = [{"x": x} for x in range(3)]
    options = {"store": tmp_path / "store", "cluster": cluster, "progress": False}
    with cut_off(tmp_path, r"square: 2 of 3 specs left$"):
        sweeps.run(square, specs, **options)
    assert len(list((tmp_path / "store" / "square").iterdir())) == 1
    options["cluster"] = None
    found, pauses = spend(lambda: sweeps.run(square, specs, **options), tmp_path / "scratch")
    assert pauses == 1  # the second call of it does the last
    assert found.square.tolist() == [0, 1, 4]


def trained(spec):
    split = data.load("mnist5k", subset=(30, 20))
    return {
        "loss": training.fit(specs_of("mlp")[0], split, progress=False).history.test_loss.iloc[-1]
    }


def test_workers_hold_to_the_budget(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLICATION_WORKERS", "1")
    options = {"store": tmp_path / "store", "progress": False}
    with cut_off(tmp_path, r"2 of 2 specs left"):
        sweeps.run(trained, [{"a": 1}, {"a": 2}], cluster="local", **options)
    assert len(list((tmp_path / "scratch").iterdir())) == 1  # put aside by the worker
    found, _ = spend(
        lambda: sweeps.run(trained, [{"a": 1}, {"a": 2}], **options), tmp_path / "scratch"
    )
    assert found.loss.nunique() == 1 and found.loss[0] == trained({})["loss"]
    assert not list((tmp_path / "scratch").iterdir())


def test_failures_are_told_and_no_function_takes_the_end_for_one(tmp_path):
    def fails(spec):
        try:
            training.fit(specs_of("mlp")[0], data.load("mnist5k", subset=(30, 20)), progress=False)
        except Exception:
            return {"value": 0}
        raise KeyError("after training")

    def run():
        return sweeps.run(fails, [{"a": 1}, {"a": 2}], store=tmp_path / "s", progress=False)

    with cut_off(tmp_path, r"2 of 2 specs left; mlp, seed 0: step 3 of 6"):
        run()
    with cut_off(tmp_path, r"1 of 2 specs left; 1 failed, the first: KeyError"):
        run()


def test_without_a_budget_nothing_is_put_aside(tmp_path):
    assert not _budget.is_spent() and _budget.terms() is None
    assert _budget.folder_of(None, "key") is None
    with _budget.limited(3600, tmp_path):
        _budget.progressed()
        assert not _budget.is_spent()
