"""Runs in a store: found again, gone on with, and made again where a file is damaged."""

import dataclasses
import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from _tiny_runs import forbid_steps, interrupt, kill_at_random, random_split
from safetensors.torch import load_file
from test_training import COLUMNS, REGULAR, SPLIT, assert_same, fit, make, same_weights

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


CONVNET = {"model": "mnist_convnet", "model_options": {"channels": (2, 3)}}
RESUMED = {
    "convolutions": {**CONVNET, "optimizer_options": {"momentum": 0.9}},
    "momentum": {"optimizer_options": {"momentum": 0.9}},
    "dropout and batch norm": {**REGULAR, "optimizer": "Adam"},
    "augmentation": {"augment": {"shift": 1, "flip": 0.5}, "schedule": "cosine"},
    "corruption": {"label_corruption": 0.5, "image_corruption": "random_pixels"},
    **{name: {"optimizer": name, "learning_rate": 0.01} for name in OPTIMIZERS},
    **{f"{n}, float64": {"optimizer": n, "dtype": "float64"} for n in ("NAdam", "LBFGS", "Adam")},
}
for name in ("LBFGS", "LBFGS, float64"):
    RESUMED[name]["optimizer_options"] = {"max_iter": 4}  # of a step: quicker than torch's 20


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    changes, device, tmp_path, monkeypatch
):
    spec = make(epochs=2.5, evaluate_every=0.75, checkpoints=(0.5,), **changes)
    split = random_split(60, 10, 28) if spec.model == "mnist_convnet" else SPLIT
    expected = fit(spec, split, device=device)
    interrupt(monkeypatch, spec, split, tmp_path, 7, device)
    taken = count_steps(monkeypatch)
    assert_same(fit(spec, split, device=device, store=tmp_path), expected)
    assert taken == [6, 7, 8, 9]  # from the last evaluation


def test_between_evaluations_a_run_is_put_aside_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["replication.training.fit"], "INTERVAL", 0.0)
    spec = make(**REGULAR, optimizer="Adam", evaluate_every=2)
    expected = fit(spec)
    interrupt(monkeypatch, spec, SPLIT, tmp_path, step=5)
    taken = count_steps(monkeypatch)
    assert_same(fit(spec, store=tmp_path), expected)
    assert taken == [5, 6, 7]


def busy():
    adam = {"optimizer": "Adam", "learning_rate": 0.01}
    return make(**REGULAR, **adam, evaluate_every=0.5, checkpoints=(0.25, 1))


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


LONG = make(
    model_options={"inputs": 64, "widths": (64, 64)},
    optimizer="Adam",
    learning_rate=0.01,
    epochs=15,
    evaluate_every=0.5,
    checkpoints=tuple(range(15)),
    augment={"flip": 0.5},
)


def work(store):
    return fit(LONG, store=store)


def progress(store):
    files = [path for path in store.rglob("[!.]*.*") if path.is_file()]
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            load_file(path)
    return bool(files), any(path.name == "run.json" for path in files)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_survives_kill_9(tmp_path):
    kill_at_random("test_training_store", tmp_path, seed=20)
    expected = fit(LONG)
    for store in tmp_path.iterdir():
        assert_same(work(store), expected)


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def rewrite(content):
    return lambda path: path.write_text(content, encoding="latin-1")


SUMMARIES = ("", "null", "[]", "{}", '{"checkpoints": [[0, 0]]}', "\x00\xff")
DAMAGES = [
    *(("run.json", rewrite(content)) for content in SUMMARIES),
    ("run.json", lambda path: rewrite(path.read_text().replace('"step": 4', '"step": 5'))(path)),
    ("step-0000000.safetensors", Path.unlink),
    *((f"step-000000{n}.safetensors", partial(cut, share=s)) for n in (0, 8) for s in (0, 0.99)),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_file_of_a_finished_run_is_made_again(name, damage, tmp_path, monkeypatch):
    run = fit(store=tmp_path)
    damage(tmp_path / run.key / name)
    taken = count_steps(monkeypatch)
    assert_same(fit(store=tmp_path), run)
    assert_same(fit(store=tmp_path), run)
    assert taken == list(range(8))  # none for the last


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("resume.safetensors", partial(cut, share=share)) for share in (0, 0.5, 0.99)),
        ("step-0000001.safetensors", Path.unlink),
        ("step-0000001.safetensors", partial(cut, share=0.9)),
    ],
)
def test_where_a_file_of_an_unfinished_run_is_damaged_it_starts_again(
    name, damage, tmp_path, monkeypatch
):
    interrupt(monkeypatch, busy(), SPLIT, tmp_path, step=5)
    damage(tmp_path / busy().key(SPLIT) / name)
    taken = count_steps(monkeypatch)
    assert_same(fit(busy(), store=tmp_path), fit(busy()))
    assert taken[0] == 0


def test_a_resume_file_that_another_process_replaces_is_read_as_one(tmp_path, monkeypatch):
    path, contents = tmp_path / busy().key(SPLIT) / "resume.safetensors", []
    for step in (3, 7):
        interrupt(monkeypatch, busy(), SPLIT, tmp_path, step)
        contents.append(path.read_bytes())
    path.write_bytes(contents[0])
    newer, replaced, safe_open = tmp_path / "newer", [], _checkpoint.safe_open
    newer.write_bytes(contents[1])

    def opened(*args):
        handle = safe_open(*args)
        if not replaced:
            replaced.append(os.replace(newer, path))
        return handle

    monkeypatch.setattr(_checkpoint, "safe_open", opened)
    assert_same(fit(busy(), store=tmp_path), fit(busy()))
    assert replaced
