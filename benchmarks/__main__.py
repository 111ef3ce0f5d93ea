"""Run benchmarks and print one Markdown table."""

import importlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from replication._core.processes import KEPT_MEMORY

AVAILABLE = (
    "spectra",
    "similarity",
    "fourier",
    "training",
    "populations",
    "sweeps",
    "directions",
    "sensitivity",
    "regions",
    "peers",
)


def processor() -> str:
    """Return the processor's name as Linux tells it, or what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(names: list[str]) -> int:
    """Print the table of the named benchmarks, by default of all that need no GPU."""
    if names[:1] == ["gpu"]:
        return importlib.import_module("benchmarks.gpu").main(names[1:])
    if names[:1] == ["rented"]:
        return importlib.import_module("benchmarks.rented").main(names[1:])
    if names in (["statistics"], ["precision"]):
        return importlib.import_module(f"benchmarks.{names[0]}").main()
    if unknown := set(names) - set(AVAILABLE):
        known = ", ".join((*AVAILABLE, "gpu", "precision", "rented", "statistics"))
        print(f"benchmarks: error: no {', '.join(sorted(unknown))}; there are {known}")
        return 2
    if not os.environ.keys() & KEPT_MEMORY.keys():  # under which `run` trains
        again = [sys.executable, "-m", "benchmarks", *names]
        os.execve(sys.executable, again, os.environ | KEPT_MEMORY)
    rows = []
    for name in tqdm(names or AVAILABLE, desc="benchmarks", leave=False):
        rows += importlib.import_module(f"benchmarks.{name}").rows()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "scipy"))
    print(f"{processor()}; Python {platform.python_version()}, {versions}")
    print("Ratios of CPU time, one thread, median of turns taken side by side.\n")
    print("| what | against | times faster | target | largest error |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.baseline} | {row.ratio:.1f} | {row.target} | {row.agreement} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
