"""Kill real commands at random moments, and see what the next run makes of what is left.

``python -m tests.faults --kills 50 --seed 0`` works on a copy of this checkout with its own data,
runs and figures. After each kill every file under a final name must be whole: the old one or that
of the undisturbed run. Then the same command runs again, sometimes to be killed again; when it ends
well, all results must be those of the undisturbed run, and no temporary file may be left. Files are
compared byte by byte; those of a population, whose company may differ afterwards, to rounding.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle, islice
from multiprocessing import get_context
from multiprocessing.context import ForkProcess as Process
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file

from replication.claims import scorecard
from tests._fault_commands import download, fit, population, serve, sweep, sweep_on_a_cluster

HERE = Path(__file__).resolve().parent.parent
COPIED = ("replication", "notebooks", ".ipython", "pyproject.toml", "README.md")
LIMIT = 3600  # seconds that an undisturbed run may take, on however busy a machine


def command(*arguments: str) -> Callable[[], None]:
    """Return what becomes ``python -m replication`` with the arguments."""
    return lambda: os.execv(sys.executable, [sys.executable, "-m", "replication", *arguments])


TASKS = {
    **{"sweep": sweep, "fit": fit, "population": population, "download": download},
    "scorecard": command("scorecard"),
    "cluster": sweep_on_a_cluster,
    "figures": command("figures", "--only", "04", "--profile", "smoke"),
    "run": command("run", "04", "--profile", "smoke"),
}


def prepare(root: Path) -> None:
    """Copy the checkout to `root`, with the committed claims but neither data nor runs."""
    for name in COPIED:
        if (HERE / name).is_dir():
            shutil.copytree(HERE / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(HERE / name, root / name)
    for file in HERE.glob("figures/full/*/claims.json"):
        (root / file.relative_to(HERE)).parent.mkdir(parents=True)
        shutil.copy(file, root / file.relative_to(HERE))
    reset(root)


def reset(root: Path) -> None:
    """Remove what the commands make; the page of claims and the README are those of an old run."""
    shutil.rmtree(root / "data", ignore_errors=True)
    shutil.rmtree(root / "figures" / "smoke", ignore_errors=True)
    (root / "figures" / "SCORECARD.md").write_text("an old page\n")
    text = (root / "README.md").read_text(encoding="utf-8")
    before, after = text.split(scorecard.BEGIN)[0], text.split(scorecard.END)[1]
    text = f"{before}{scorecard.BEGIN}\nold\n{scorecard.END}{after}"
    (root / "README.md").write_text(text, encoding="utf-8")


def made(root: Path) -> list[Path]:
    """Return all files that a command may have made, hidden ones among them."""
    found = [*(root / "data").rglob("*"), *(root / "figures").rglob("*"), *root.glob("*")]
    return [path for path in found if path.is_file()]


def rows_or_bytes(path: Path) -> bytes:
    """Return what a file holds: of a stored result its rows, as it notes the time as well."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_json().encode()
    return path.read_bytes()


def contents(root: Path) -> dict[str, Any]:
    """Return the content of each file under a final name, to be compared; raise if one is broken.

    Times are left out, and outputs of notebooks, in which there are some; so is what training needs
    to go on.
    """
    found: dict[str, Any] = {}
    for path in made(root):
        name = path.relative_to(root).as_posix()
        unfinished = name.startswith("data/runs/unfinished/")  # gone once it is measured
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        if path.name == "resume.safetensors" or (unfinished and path.suffix == ".safetensors"):
            load_file(path)
        elif name.endswith(".ipynb") or unfinished:
            json.loads(path.read_text(encoding="utf-8"))
        elif name.endswith(".json"):
            found[name] = json.loads(path.read_text(encoding="utf-8"))
            if path.name == "run.json":  # a digest of numbers knows no rounding
                found[name].pop("seconds" if name.startswith("figures") else "digest")
        elif name.endswith(".safetensors"):
            found[name] = {k: v.tolist() for k, v in load_file(path).items()}
        else:
            found[name] = hashlib.blake2b(rows_or_bytes(path)).hexdigest()
    return found


def same(one: object, other: object, rounding: float) -> bool:
    """Return whether two contents are equal, numbers to `rounding`."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= rounding
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k], rounding) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other, [rounding] * len(one)))
    return one == other


def temporary(root: Path) -> list[str]:
    """Return what no finished command may leave."""
    names = [path.relative_to(root) for path in made(root)]
    return [
        str(name)
        for name in names
        if name.name == "resume.safetensors" or any(part.startswith(".") for part in name.parts)
    ]


def start(job: Callable[[], None], root: Path, log: Path) -> Process:
    """Start a command in a process, and a group of processes, of its own."""

    def run() -> None:
        os.setsid()
        os.chdir(root)
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        job()

    process = get_context("fork").Process(target=run)
    process.start()
    return process


def end(process: Process, seconds: float) -> int:
    """Wait for a process and return its status; it is an error if it takes longer."""
    process.join(seconds)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        raise SystemExit(f"a run took more than {seconds} s")
    return process.exitcode


def complete(job: Callable[[], None], root: Path, log: Path) -> dict[str, object]:
    """Run a command to its end and return what it has made."""
    if status := end(start(job, root, log), LIMIT):
        raise SystemExit(f"the run ended with status {status}:\n{log.read_text()[-3000:]}")
    if left := temporary(root):
        raise SystemExit(f"a run that ended well left {left}")
    return contents(root)


def torment(job: Callable[[], None], name: str, kills: int, source: random.Random, root: Path):
    """Kill a command that many times; yield a line for each."""
    log, rounding = root.parent / "log", 1e-9 if name == "population" else 0.0
    reset(root)
    before, begun = contents(root), time.perf_counter()
    expected = complete(job, root, log)
    seconds = time.perf_counter() - begun
    yield f"{name}: {seconds:.1f} s undisturbed, {len(expected)} files"
    while kills:
        reset(root)
        while kills:
            delay, alone = source.uniform(0, seconds), source.random() < 0.5
            process = start(job, root, log)
            time.sleep(delay)
            (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
            if end(process, 10) != -signal.SIGKILL:  # it was quicker: not so long the next time
                seconds *= 0.7
                break
            kills -= 1
            found, left = contents(root), temporary(root)
            for file, content in found.items():
                whole = (before.get(file), expected.get(file))
                if not any(same(content, other, rounding) for other in whole):
                    raise SystemExit(f"{name}: killed after {delay:.3f} s, {file} is neither")
            which = "it alone" if alone else "its group"
            new = sum(content != before.get(file) for file, content in found.items())
            yield f"{name}: {which} after {delay:.3f} s; {new} files new, {len(left)} temporary"
            if source.random() < 0.6:
                break
        now = complete(job, root, log)
        for file in {*now, *expected}:
            if not same(now.get(file), expected.get(file), rounding):
                raise SystemExit(f"{name}: after the kill the next run gave another {file}")
        with suppress(ProcessLookupError):  # a kernel whose command is gone ends by itself, soon
            os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    """Run as the head of this file says."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked child has no pool of threads
    counts = Counter(islice(cycle(options.only), options.kills))
    print("seed", options.seed, dict(counts), flush=True)
    server = serve()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        root = Path(folder) / "checkout"
        os.environ |= {"REPLICATION_ROOT": str(root), "REPLICATION_WORKERS": "2", "no_proxy": "*"}
        os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        os.environ |= {"TMPDIR": folder, "JUPYTER_RUNTIME_DIR": f"{folder}/jupyter"}
        os.environ.pop("REPLICATION_DATA", None)
        try:
            prepare(root)
            for name, kills in counts.items():
                source = random.Random(f"{options.seed} {name}")
                if name != "download":
                    os.environ["REPLICATION_OFFLINE"] = "1"
                for line in torment(TASKS[name], name, kills, source, root):
                    print(line, flush=True)
                os.environ.pop("REPLICATION_OFFLINE", None)
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
    print(f"{counts.total()} kills: every next run gave the undisturbed results")


if __name__ == "__main__":
    main()
