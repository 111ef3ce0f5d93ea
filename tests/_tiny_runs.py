"""Small data sets, and networks trained in milliseconds, that several tests share."""

import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from replication import data, training
from replication._core import progress
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


def interrupt(monkeypatch, spec, split, store, step, device="cpu"):
    """Start a run and break it off before `step`."""
    advance = trainer.Trainer.advance

    def fragile(self):
        if self.step == step:
            raise KeyboardInterrupt
        advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "advance", fragile)
        with pytest.raises(KeyboardInterrupt):
            training.fit(spec, split, store=store, device=device, progress=False)


def forbid_steps(monkeypatch):
    """Let no network be trained from now on, but as a member of a population."""

    def advance(self):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(trainer.Trainer, "advance", advance)


def wait(condition, seconds=200):
    """Wait until a condition holds; fail if it does not within so many seconds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


def watch_bars(monkeypatch, module):
    """Return a list to which the progress bars of a module are added as they come, unseen."""
    bars = []

    def bar(**options):
        bars.append(progress.bar(**options | {"show": True}, file=io.StringIO()))
        return bars[-1]

    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.setattr(module, "bar", bar)
    return bars


def kill_at_random(module, folder, seed, wanted=7):
    """Kill `module.work(store)` at random moments, on stores below `folder`, again and again.

    `module.progress(store)` fails if a file is not whole, and returns whether anything is stored,
    and whether all is. Goes on until `wanted` runs were broken off between the two. The killer is a
    process of its own: children are forked, which does not go with threads.
    """
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import _tiny_runs, {module} as module;"
    code += f"_tiny_runs.kill_here(module, _tiny_runs.Path({str(folder)!r}), {seed}, {wanted})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout, done.stderr)


def kill_here(module, folder, seed, wanted):
    torch.set_num_threads(1)  # a forked child has no pool of them
    module.work(folder / "warm")  # the first takes longer
    start = time.perf_counter()
    module.work(folder / "undisturbed")
    duration, source = time.perf_counter() - start, random.Random(seed)
    number = broken = 0
    while broken < wanted:  # each time the child was too fast, the next is given less time
        store, delay = folder / str(number), source.uniform(0, duration)
        if not (child := os.fork()):
            module.work(store)
            os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        begun, finished = module.progress(store)
        broken += begun and not finished
        print(store.name, round(delay, 3), begun, finished, flush=True)
        if finished:
            number, duration = number + 1, 0.9 * duration
