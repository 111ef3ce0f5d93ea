"""``python -m replication run``: what notebooks train and measure, without Jupyter.

All results are kept below ``data/runs/``, one small file a spec, and training at least every half
minute, so that a run may be killed at any moment and the same command goes on. Those of the full
and the paper profile are brought into ``data/evidence/``, to be committed.
"""

import importlib.util
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType

from replication._core import paths
from replication._core.profiles import EVIDENCE
from replication.papers import _evidence
from replication.training.fit import SCRATCH

COMPLETE, SPENT = 0, 75  # EX_TEMPFAIL: call again
UNITS = {"s": 1, "m": 60, "h": 3600}


class Stopped(BaseException):
    """A signal came or the time is up. Like an interrupt, nothing takes it for a failure."""


def seconds(text: str) -> float:
    """Return the length of a time such as "90s", "9m" or "2h" in seconds, at least one."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    value = float(match[1]) * UNITS[match[2]] if match else 0
    if value < 1:
        raise ValueError(f"expected a time of at least 1s such as 90s, 9m or 2h, found {text!r}")
    return value


def run(
    notebooks: Sequence[Path],
    profile: str,
    dataset: str | None = None,
    device: str | None = None,
    cluster: str | None = None,
    limit: float | None = None,
) -> int:
    """Run all experiments of notebooks, one after the other; what is stored is not done again.

    `profile`, `dataset` and `device` are arguments of each paper's `plan` (None leaves its own
    default), `cluster` one of `sweeps.run`: by default at full and paper a process a core where
    Dask is installed, as two threads are no faster, and far slower beside another job. Returns
    `COMPLETE`, or `SPENT` if `limit` seconds are over or SIGINT or SIGTERM came: call again.
    """
    if cluster is None and profile in EVIDENCE and importlib.util.find_spec("distributed"):
        cluster = "local"
    start, given = time.monotonic(), {"dataset": dataset, "device": device}
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        with _stopped_by_signals(limit):
            for path in notebooks:
                if (paper := module(path)) is None:
                    print(f"{path.stem}: has no experiments of its own; `figures` runs it")
                    continue
                _run_one(path.stem, paper.plan(profile, **chosen), cluster, profile in EVIDENCE)
    except Stopped as reason:
        print(f"{reason} after {time.monotonic() - start:.0f} s: all that is done is in")
        print(f"{paths.runs()}: the same command goes on")
        return SPENT
    return COMPLETE


def module(notebook: Path) -> ModuleType | None:
    """Return the paper's module of a notebook, None where it has none."""
    name = f"replication.papers.{notebook.stem.partition('_')[2]}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _run_one(name: str, experiments: dict, cluster: str | None, commit: bool) -> None:
    """Run a notebook's experiments; with `commit` bring their results into ``data/evidence``."""
    store, scratch = paths.runs() / name, paths.runs() / "unfinished" / name
    before = os.environ.copy()
    os.environ[SCRATCH] = str(scratch.absolute())
    try:
        for number, (title, experiment) in enumerate(experiments.items(), 1):
            start = time.monotonic()
            rows = experiment.run(store, cluster, evidence=paths.evidence() / name)
            print(
                f"{name}: {title} ({number} of {len(experiments)}): {len(experiment.specs)} specs, "
                f"{len(rows)} rows, {time.monotonic() - start:.0f} s",
                flush=True,
            )
    finally:
        if commit:
            _evidence.collect(name, experiments)
        os.environ.clear()
        os.environ.update(before)
    shutil.rmtree(scratch, ignore_errors=True)  # all results of these networks are stored


@contextmanager
def _stopped_by_signals(limit: float | None) -> Iterator[None]:
    """Raise `Stopped` in the block on SIGINT, SIGTERM, or after `limit` seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped("time is up" if number == alarm else signal.Signals(number).name)

    alarm = getattr(signal, "SIGALRM", None)
    if limit is not None and alarm is None:
        raise ValueError("--for needs the timer signal of a POSIX system")
    numbers = [signal.SIGINT, signal.SIGTERM, *([] if alarm is None else [alarm])]
    before = {number: signal.signal(number, stop) for number in numbers}
    if limit is not None:
        signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        if limit is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
