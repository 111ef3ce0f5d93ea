"""All that a rented GPU is wanted for, in the order of value: ``python -m benchmarks rented``.

The tests marked gpu, ``benchmarks gpu``, then what no CPU reaches of the notebooks' runs. Each step
has a share of the time; what one leaves is for those after it, and once all had their turn for the
unfinished. What is to be brought back lies in one folder of at most 60 MB: logs, the benchmark's
JSON, and the evidence that was added. Killed at any moment, the same command goes on.
"""

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu import NOTHING_DONE
from replication._core import paths
from replication._core.files import atomic, read_json, write_json
from replication.papers._run import SPENT

ROOT = Path(__file__).resolve().parent.parent
MOST = 60e6  # bytes in the folder
LEAST, GRACE, OFTEN = 90.0, 30.0, 15.0  # seconds: of a step, to stop in, between copies
RUNS = (  # share of the time, notebook, profile, titles of experiments
    (3, "07", "full", "plain", "plain grids", "plain probes", "depths"),  # Plain-66
    (3, "01", "paper", "five kinds", "losses"),  # Inception at full width
    (2, "02", "paper", "convnets", "convnet units"),  # 11 layers at full width
    (2, "02", "full", "population"),  # 200 networks
    (2, "08", "full", "convnet"),  # as VGG, of 11 layers
    (1, "06", "full", "population"),  # of those 200 networks of 02
)
DRY = ((1, "07", "smoke", "plain", "plain probes"), (1, "01", "smoke", "five kinds", "losses"))


class Step(NamedTuple):
    """A command for ``python -m``, with its share of the time; `resumes`, it is told its time."""

    name: str
    share: float
    command: tuple[str, ...]
    resumes: bool = False


def steps(out: Path, dry: bool) -> list[Step]:
    """Return all there is to do, in the order of value."""
    device, runs = ("cpu", DRY) if dry else ("cuda", RUNS)
    files = sorted((ROOT / "tests").glob("test_*.py"))
    tests = [f"tests/{path.name}" for path in files if "mark.gpu" in path.read_text()]
    marked = ["pytest", "-q", "-rfE", "-m", "gpu", "-p", "no:xdist", "-p", "no:cacheprovider"]
    gpu = ("benchmarks", "gpu", "--device", device, "--out", str(out))
    todo = [Step("tests", 2, (*marked, *tests)), Step("benchmarks", 3, gpu)]
    for number, (share, notebook, profile, *titles) in enumerate(runs, 1):
        run = ("replication", "run", notebook, "--profile", profile, "--device", device)
        name = f"run{number}-{notebook}-{profile}"
        todo.append(Step(name, share, (*run, "--only", *titles, "--for"), True))
    if dry:  # at full and paper `run` itself collects
        collect = ("replication", "evidence", *(run[1] for run in runs), "--profile", "smoke")
        todo.append(Step("evidence", 1, collect))
    return todo


def go_on(
    todo: Sequence[Step],
    seconds: float,
    execute: Callable[[Step, float], int],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Give each step its share of the time left, at least `LEAST`; again those that it spent."""
    end = clock() + seconds
    while todo:
        spent = []
        for place, step in enumerate(todo):
            if (left := end - clock()) < LEAST:
                return
            share = left * step.share / sum(other.share for other in todo[place:])
            if execute(step, max(share, LEAST)) == SPENT:
                spent.append(step)
        todo = spent


def run(command: Sequence[str], limit: float, printed: Path, meanwhile: Callable[[], Any]) -> int:
    """Return the status of a command, or `SPENT` if it had to be stopped within `limit` seconds."""
    end = time.monotonic() + limit - GRACE / 2
    with printed.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        while process.poll() is None and (left := end - time.monotonic()) > 0:
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(left, OFTEN))
            meanwhile()
    finally:
        if late := process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE / 2)
            process.kill()
            process.wait()
    return SPENT if late else process.returncode


def keep(out: Path, since: float) -> list[str]:
    """Copy the evidence changed after `since`, each file whole; return what is beyond `MOST`."""
    beyond = []
    for path in sorted(p for p in paths.evidence().glob("*/[!.]*") if p.stat().st_mtime > since):
        target, found = out / "evidence" / path.relative_to(paths.evidence()), path.stat()
        others = [p.stat().st_size for p in out.rglob("*") if p.is_file() and p != target]
        if sum(others) + found.st_size > MOST:
            beyond.append(str(path))
        elif not target.exists() or target.stat().st_mtime_ns != found.st_mtime_ns:
            with atomic(target) as temporary:
                shutil.copyfile(path, temporary)
                # of before, so that what is replaced meanwhile is copied the next time
                os.utime(temporary, ns=(found.st_atime_ns, found.st_mtime_ns))
    return beyond


def main(arguments: Sequence[str]) -> int:
    """Do what is not done yet at this commit: 0 all is done, 75 time was up, 1 a step failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks rented")
    parser.add_argument(
        "--minutes", type=float, default=30, help="in all; 15 for some of each step"
    )
    parser.add_argument("--out", type=Path, default=paths.data() / "rented", help="the folder")
    parser.add_argument("--dry", action="store_true", help="a little of it on the CPU, as a test")
    options = parser.parse_args(arguments)
    if not 1 <= options.minutes < math.inf:
        parser.error(f"--minutes: expected at least 1, found {options.minutes:g}")
    if not options.dry and not torch.cuda.is_available():
        print("benchmarks rented: nothing done: no CUDA device here (--dry tests it on the CPU)")
        return NOTHING_DONE
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    workers = str(min(8, os.cpu_count() or 1))  # of one device
    defaults = {"REPLICATION_DATA": str(paths.data()), "REPLICATION_WORKERS": workers}
    os.environ |= defaults | os.environ | {"TQDM_DISABLE": "1"}
    if options.dry:  # nothing of it is evidence
        os.environ["REPLICATION_ROOT"] = str(out / "dry")
        (out / "dry").mkdir(exist_ok=True)
        with suppress(FileExistsError):
            (out / "dry" / "notebooks").symlink_to(ROOT / "notebooks")
    git = {"cwd": ROOT, "shell": True, "capture_output": True, "text": True}
    commit = subprocess.run("git rev-parse HEAD", **git).stdout.strip()  # nothing without git
    path = out / "log.json"
    log = read_json(path) if path.exists() else {"since": time.time(), "steps": []}

    def ended() -> dict[str, int]:
        last = {note["step"]: note["status"] for note in log["steps"] if note["commit"] == commit}
        return {name: status for name, status in last.items() if status is not None}

    def execute(step: Step, limit: float) -> int:
        command = [sys.executable, "-m", *step.command]
        command += [f"{max(1.0, limit - GRACE):.0f}s"] * step.resumes
        note: dict[str, Any] = {"step": step.name, "command": command, "commit": commit}
        note |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "limit": round(limit)}
        log["steps"].append(note | {"status": None})
        write_json(path, log)
        start, meanwhile = time.monotonic(), lambda: keep(out, log["since"])
        status = run(command, limit, out / f"{step.name}.log", meanwhile)
        note |= {"seconds": round(time.monotonic() - start, 1), "left out": meanwhile()}
        log["steps"][-1] = note | {"status": status}
        write_json(path, log)
        print(f"{step.name}: status {status} after {note['seconds']:.0f} s", flush=True)
        return status

    todo, before = steps(out, options.dry), ended()
    over = {name for name, status in before.items() if status == 0}
    over |= {step.name for step in todo if not step.resumes and before.get(step.name) == 1}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    go_on([step for step in todo if step.name not in over], 60 * options.minutes, execute)
    found = [ended().get(step.name, SPENT) for step in todo]
    print(f"{found.count(0)} of {len(todo)} steps done; to be brought back: {out}")
    return 1 if set(found) - {0, SPENT} else max(found)
