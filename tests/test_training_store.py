"""Runs in a store: found again, gone on with, and made again where a file is damaged."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from _tiny_runs import forbid_steps, interrupt, random_split, run_killer
from safetensors import SafetensorError
from safetensors.torch import load_file
from test_training import COLUMNS, REGULAR, SPLIT, assert_same, fit, make, same_weights

from replication import training
from replication._core import files
from replication.training import _checkpoint, trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_stored_run_is_loaded_without_training(tmp_path, monkeypatch):
    spec = make(checkpoints=(0.25, 1), label_corruption=0.3)
    expected = fit(spec)
    first = fit(spec, store=tmp_path)
    assert_same(first, expected)
    forbid_steps(monkeypatch)
    again = fit(spec, store=str(tmp_path))
    assert_same(again, expected)
    assert again.key == first.key == spec.key(SPLIT)
    images = SPLIT.test.images
    assert torch.equal(again.model(1)(images), expected.model(1)(images))
    with pytest.raises(AssertionError, match="a step was taken"):
        fit(dataclasses.replace(spec, learning_rate=0.2), store=tmp_path)
    with pytest.raises(AssertionError, match="a step was taken"):
        fit(spec, random_split(60, 40, seed=1), store=tmp_path)


def test_what_a_stored_run_is_made_of(tmp_path):
    spec = make(checkpoints=(0.25,))
    run = fit(spec, store=tmp_path)
    folder = tmp_path / run.key
    steps = {f"step-{step:07d}.safetensors" for step in (0, 1, 8)}
    assert {file.name for file in folder.iterdir()} == steps | {"run.json"}
    saved = json.loads((folder / "run.json").read_text())
    assert saved["spec"] == json.loads(json.dumps(dataclasses.asdict(spec)))
    assert saved["data"] == "made up"
    assert saved["checkpoints"] == [[0, 0], [0.25, 1], [2, 8]]
    assert list(saved["history"][0]) == COLUMNS
    assert same_weights(load_file(folder / "step-0000008.safetensors"), run.state())


OPTIMIZERS = [
    name
    for name in dir(torch.optim)
    if name[0].isupper() and name not in ("Optimizer", "SparseAdam", "Muon")
]  # SparseAdam needs sparse gradients, Muon takes no biases


def count_steps(monkeypatch):
    taken, advance = [], trainer.Trainer.advance

    def spy(self):
        taken.append(self.step)
        advance(self)

    monkeypatch.setattr(trainer.Trainer, "advance", spy)
    return taken


RESUMED = {
    "momentum": {"optimizer_options": {"momentum": 0.9}},
    "dropout and batch norm": {**REGULAR, "optimizer": "Adam"},
    "augmentation": {"augment": {"shift": 1, "flip": 0.5}, "schedule": "cosine"},
    "corruption": {"label_corruption": 0.5, "image_corruption": "random_pixels"},
    **{name: {"optimizer": name, "learning_rate": 0.01} for name in OPTIMIZERS},
    **{f"{n}, float64": {"optimizer": n, "dtype": "float64"} for n in ("NAdam", "LBFGS", "Adam")},
}


@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(changes, tmp_path, monkeypatch):
    spec = make(epochs=2.5, evaluate_every=0.75, checkpoints=(0.5,), **changes)
    expected = fit(spec)
    interrupt(monkeypatch, spec, SPLIT, tmp_path, step=7)
    taken = count_steps(monkeypatch)
    assert_same(fit(spec, store=tmp_path), expected)
    assert taken == [6, 7, 8, 9]  # from the last evaluation


def test_a_convolutional_network_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    split = random_split(20, 10, 28)
    spec = training.Spec(
        model="mnist_convnet",
        optimizer_options={"momentum": 0.9},
        batch_size=5,
        epochs=1,
        evaluate_every=0.5,
    )
    expected = fit(spec, split)
    interrupt(monkeypatch, spec, split, tmp_path, step=3)
    taken = count_steps(monkeypatch)
    assert_same(fit(spec, split, store=tmp_path), expected)
    assert taken == [2, 3]


def busy():
    return make(
        **REGULAR,
        optimizer="Adam",
        learning_rate=0.01,
        evaluate_every=0.5,
        checkpoints=(0.25, 1),
    )


@pytest.mark.parametrize("step", range(8))
def test_a_run_may_break_off_before_any_step(step, tmp_path, monkeypatch):
    interrupt(monkeypatch, busy(), SPLIT, tmp_path, step)
    assert_same(fit(busy(), store=tmp_path), fit(busy()))


def test_a_run_may_break_off_before_and_after_any_file_is_in_place(tmp_path, monkeypatch):
    """Every file comes into being by a rename: fail before and after each, until none is left."""
    expected, replace = fit(busy()), os.replace
    for when in ("before", "after"):
        for fatal in range(100):
            store, calls = tmp_path / f"{when} {fatal}", []

            def fragile(source, target, fatal=fatal, when=when, calls=calls):
                calls.append(target)
                if when == "after" or len(calls) != fatal + 1:
                    replace(source, target)
                if len(calls) == fatal + 1:
                    raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(files.os, "replace", fragile)
                try:
                    fit(busy(), store=store)
                except KeyboardInterrupt:
                    pass
                else:
                    break
            assert_same(fit(busy(), store=store), expected)
        assert len(calls) == 11  # 4 checkpoints, 6 evaluations, run.json


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)  # as here, and a forked child has no pool of them
sys.path.insert(0, {tests!r})
from test_training_store import LONG, fit
import safetensors, json

def whole(path):
    if path.suffix == ".json":
        return bool(json.loads(path.read_text()))
    with safetensors.safe_open(path, "pt"):
        return True

fit(LONG)  # the first takes longer
start = time.perf_counter()
fit(LONG, store=Path({store!r}) / "undisturbed")
duration = time.perf_counter() - start
source, number, broken = random.Random({seed}), 0, 0
print("seed", {seed}, "a run takes", round(duration, 3), "s", flush=True)
while broken < 7:  # each time the child was too fast, the next is given less time
    store = Path({store!r}) / str(number)
    delay = source.uniform(0, duration)
    child = os.fork()
    if not child:
        fit(LONG, store=store)
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    killed = os.waitpid(child, 0)[1] == signal.SIGKILL
    files = [f for f in store.rglob("*.*") if f.is_file() and not f.name.startswith(".")]
    assert all(whole(f) for f in files), files
    broken += killed and bool(files) and not any(f.name == "run.json" for f in files)
    print("killed" if killed else "done", round(delay, 3), len(files), flush=True)
    if any(f.name == "run.json" for f in files):
        number, duration = number + 1, 0.9 * duration
print("stores", number + 1, "broken off", broken, flush=True)
"""

LONG = make(
    model_options={"inputs": 64, "widths": (64, 64)},
    optimizer="Adam",
    learning_rate=0.01,
    epochs=15,
    evaluate_every=0.5,
    checkpoints=tuple(range(15)),
    augment={"flip": 0.5},
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_survives_kill_9(tmp_path):
    run_killer(KILLED, tmp_path, seed=20)
    expected = fit(LONG)
    for store in tmp_path.iterdir():
        assert_same(fit(LONG, store=store), expected)


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize(
    "name", ["run.json", "step-0000000.safetensors", "step-0000008.safetensors"]
)
def test_a_cut_file_of_a_finished_run_is_made_again(name, share, tmp_path, monkeypatch):
    run = fit(store=tmp_path)
    cut(tmp_path / run.key / name, share)
    taken = count_steps(monkeypatch)
    assert_same(fit(store=tmp_path), fit())
    assert taken[:8] == list(range(8))
    assert_same(fit(store=tmp_path), run)
    assert len(taken) == 16  # the second in memory, none for the last


@pytest.mark.parametrize(
    "content", ["", "null", "[]", "{}", '{"checkpoints": [[0, 0]]}', "\x00\xff"]
)
def test_a_damaged_summary_is_made_again(content, tmp_path):
    run = fit(store=tmp_path)
    (tmp_path / run.key / "run.json").write_text(content, encoding="latin-1")
    assert_same(fit(store=tmp_path), fit())


def test_a_missing_checkpoint_is_made_again(tmp_path):
    run = fit(store=tmp_path)
    (tmp_path / run.key / "step-0000000.safetensors").unlink()
    assert_same(fit(store=tmp_path), fit())


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_cut_resume_file_starts_the_run_again(share, tmp_path, monkeypatch):
    interrupt(monkeypatch, busy(), SPLIT, tmp_path, step=5)
    cut(tmp_path / busy().key(SPLIT) / "resume.safetensors", share)
    taken = count_steps(monkeypatch)
    assert_same(fit(busy(), store=tmp_path), fit(busy()))
    assert taken[0] == 0


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: cut(path, 0.9)])
def test_a_run_is_not_resumed_past_a_checkpoint_that_is_lost(damage, tmp_path, monkeypatch):
    interrupt(monkeypatch, busy(), SPLIT, tmp_path, step=5)
    damage(tmp_path / busy().key(SPLIT) / "step-0000001.safetensors")
    assert_same(fit(busy(), store=tmp_path), fit(busy()))


def test_a_resume_file_that_another_process_replaces_is_read_as_one(tmp_path, monkeypatch):
    files = {}
    for step in (3, 7):
        interrupt(monkeypatch, busy(), SPLIT, tmp_path, step)
        files[step] = (tmp_path / busy().key(SPLIT) / "resume.safetensors").read_bytes()
    path = tmp_path / busy().key(SPLIT) / "resume.safetensors"
    path.write_bytes(files[3])
    newer, replaced, safe_open = tmp_path / "newer", [], _checkpoint.safe_open
    newer.write_bytes(files[7])

    def opened(*args):
        handle = safe_open(*args)
        if not replaced:
            replaced.append(os.replace(newer, path))
        return handle

    monkeypatch.setattr(_checkpoint, "safe_open", opened)
    assert_same(fit(busy(), store=tmp_path), fit(busy()))
    assert replaced


def test_safetensors_notices_any_length_but_the_right_one(tmp_path):
    """The tests of cut files rest on it."""
    path = tmp_path / "x.safetensors"
    _checkpoint.save_tensors({"a": torch.rand(5), "b": torch.zeros(())}, path, {"c": "d"})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(SafetensorError), _checkpoint.safe_open(path, "pt"):
            pass
    path.write_bytes(content + b"0")
    with pytest.raises(SafetensorError), _checkpoint.safe_open(path, "pt"):
        pass
