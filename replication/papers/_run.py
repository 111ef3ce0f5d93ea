"""``python -m replication run``: what notebooks train and measure, without Jupyter.

Network after network is trained and measured in full, so that a machine that is lost takes little
with it; where specs name no network, experiment after experiment. All results are kept below
``data/runs/``, one small file a spec, and training at least every half minute: a run may be killed
at any moment and the same command goes on. Those of the full and the paper profile are brought into
``data/evidence/`` after each network, to be committed.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np

from replication._core import paths
from replication._core.profiles import EVIDENCE
from replication.papers import _evidence
from replication.papers.experiment import Experiment
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
    only: Sequence[str] | None = None,
) -> int:
    """Run all experiments of notebooks, network after network; what is stored is not done again.

    `profile`, `dataset` and `device` are arguments of each paper's `plan` (None leaves its own
    default), `only` titles of experiments, without the others, `cluster` one of `sweeps.run`: by
    default at full and paper a process a core where Dask is installed, as two threads are no
    faster, and far slower beside another job. Returns `COMPLETE`, or `SPENT` if `limit` seconds are
    over or SIGINT or SIGTERM came: call again.
    """
    if cluster is None and profile in EVIDENCE and importlib.util.find_spec("distributed"):
        cluster = "local"
    start, given = time.monotonic(), {"dataset": dataset, "device": device}
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        with _stopped_by_signals(limit):
            plans = _plans(notebooks, profile, chosen, set(only or ()))
            for name, plan in list(plans) if only else plans:  # no wrong title is told hours later
                _run_one(name, plan, only or list(plan), cluster, profile in EVIDENCE)
    except Stopped as reason:
        print(f"{reason} after {time.monotonic() - start:.0f} s: all that is done is in")
        print(f"{paths.runs()}: the same command goes on")
        return SPENT
    return COMPLETE


def _plans(
    notebooks: Sequence[Path], profile: str, chosen: Mapping, only: set[str]
) -> Iterator[tuple[str, dict[str, Experiment]]]:
    """Yield name and plan of each notebook that has one; ValueError for unknown titles."""
    for path in notebooks:
        if (paper := module(path)) is None:
            print(f"{path.stem}: has no experiments of its own; `figures` runs it")
            continue
        plan = paper.plan(profile, **chosen)
        if unknown := only - plan.keys():
            raise ValueError(
                f"only: {path.stem} has no {', '.join(map(repr, sorted(unknown)))} at "
                f"{profile}; it has {', '.join(map(repr, plan))}"
            )
        yield path.stem, plan


def _connected(cluster: str) -> AbstractContextManager[Any]:
    """Return a context of a client of `cluster`, the same one for all stages of a notebook."""
    try:
        from replication.sweeps._dask import connected
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"cluster: needs {error.name}: pip install -e '.[cluster]'", name=error.name
        ) from None
    return connected(cluster)


def module(notebook: Path) -> ModuleType | None:
    """Return the paper's module of a notebook, None where it has none."""
    name = f"replication.papers.{notebook.stem.partition('_')[2]}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _run_one(
    name: str, plan: dict[str, Experiment], titles: Sequence[str], cluster: str | None, commit: bool
) -> None:
    """Run those of a plan's experiments; with `commit` bring its results into ``data/evidence``."""
    experiments = {title: plan[title] for title in plan if title in titles}
    store, scratch = paths.runs() / name, paths.runs() / "unfinished" / name
    before, start = os.environ.copy(), time.monotonic()
    os.environ[SCRATCH] = str(scratch.absolute())  # before workers start, as theirs is a copy
    left, computed = sum(len(experiment.specs) for experiment in experiments.values()), 0
    try:
        with nullcontext() if cluster is None else _connected(cluster) as client:
            at_once = 1 if client is None else max(len(client.nthreads()), 1)
            for part in stages(experiments, at_once):
                try:
                    for experiment in part.values():
                        rows = experiment.run(store, client, False, paths.evidence() / name)
                        computed += rows.attrs["computed"]
                        left -= len(experiment.specs)
                finally:
                    if commit:
                        _evidence.collect(name, plan)
                hours = (time.monotonic() - start) / 3600
                ahead = f", about {hours / computed * left:.1f} h" if computed else ""
                print(
                    f"{name}: {computed} results in {hours:.2f} h, {left} left{ahead}", flush=True
                )
    finally:
        os.environ.clear()
        os.environ.update(before)
    if experiments == plan:  # all results of these networks are stored
        shutil.rmtree(scratch, ignore_errors=True)


def stages(experiments: Mapping[str, Experiment], at_once: int) -> Iterator[dict[str, Experiment]]:
    """Yield the experiments for `at_once` networks after the other.

    Networks come in the order of the first experiment that has them, and then of their seeds. Specs
    without an entry ``network`` are of their ``net``, the last of ``nets``, and the largest seed.
    Those that name none are measured experiment after experiment, as one may need networks of all
    seeds that another trains.
    """
    parts: dict[Any, dict[str, list]] = {}
    order: dict[str, tuple[int, int]] = {}
    for number, (title, experiment) in enumerate(experiments.items()):
        size = experiment.batch or 1
        for first in range(0, len(experiment.specs), size):
            specs = experiment.specs[first : first + size]
            seed = max(seed for spec in specs for seed in _seeds(spec))
            last = specs[0].get("net", specs[0].get("nets", [title])[-1])
            network = specs[0].get("network", json.dumps([last, seed]))
            order.setdefault(network, (number, seed))
            parts.setdefault(network, {}).setdefault(title, []).extend(specs)
    networks = sorted(parts, key=order.__getitem__)
    for first in range(0, len(networks), at_once):
        chosen = [parts[network] for network in networks[first : first + at_once]]
        joined = {
            title: [s for part in chosen for s in part.get(title, ())] for title in experiments
        }
        yield {t: replace(experiments[t], specs=specs) for t, specs in joined.items() if specs}


def _seeds(settings: Any) -> Iterator[int]:
    """Yield 0 and all seeds within a spec."""
    yield 0
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if key in ("seed", "seeds"):
                yield from np.ravel(value).tolist()
            else:
                yield from _seeds(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _seeds(value)


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
