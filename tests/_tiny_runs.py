"""Small data sets, and networks trained in milliseconds, that several tests share."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from replication import data, training
from replication.training import trainer


def tiny():
    """Return eight random images of four pixels, of two classes."""
    source = torch.Generator().manual_seed(0)
    images = torch.rand(8, 1, 2, 2, generator=source)
    half = data.Examples(images, torch.arange(8) % 2)
    return data.Split(half, half, "toy", ("0", "1"), "made up")


def random_split(train, test, size=8, seed=0):
    """Return random images with random labels of ten classes."""
    source = torch.Generator().manual_seed(seed)

    def examples(count):
        images = torch.rand(count, 1, size, size, generator=source)
        return data.Examples(images, torch.randint(10, (count,), generator=source))

    return data.Split(examples(train), examples(test), "toy", tuple("0123456789"), "made up")


def fit(store):
    """Train on `tiny`, kept in `store`."""
    options = {"inputs": 4, "widths": (3,), "classes": 2}
    spec = training.Spec(model="mlp", model_options=options, epochs=2, batch_size=4)
    return training.fit(spec, tiny(), store=store, progress=False)


def interrupt(monkeypatch, spec, split, store, step):
    """Start a run and break it off before `step`."""
    advance = trainer.Trainer.advance

    def fragile(self):
        if self.step == step:
            raise KeyboardInterrupt
        advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "advance", fragile)
        with pytest.raises(KeyboardInterrupt):
            training.fit(spec, split, store=store, progress=False)


def forbid_steps(monkeypatch):
    """Let no network be trained from now on, but as a member of a population."""

    def advance(self):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(trainer.Trainer, "advance", advance)


def run_killer(program, store, seed):
    """Run a program that starts and kills others on `store`; it fails with what it printed."""
    source = program.format(tests=str(Path(__file__).parent), store=str(store), seed=seed)
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=300
    )
    print(done.stdout, done.stderr)  # shown when the test fails
    assert done.returncode == 0, done.stderr
