"""What a notebook runs: a measuring function, and the specs that it is called with."""

import functools
import inspect
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

import pandas as pd

from replication import data, sweeps
from replication._core import paths
from replication._core.profiles import EVIDENCE, PROFILES
from replication.sweeps import evidence


@dataclass(frozen=True)
class Experiment:
    """One sweep of a notebook.

    Attributes
    ----------
    measure, specs, batch
        As in `sweeps.run`, whose ``fn`` `measure` is: it takes a spec, or with `batch` a list of
        so many, and returns rows.
    options
        Keywords of `measure` that do not decide its results and name none: the device.
    scale
        Ours over the paper's, 1 where it is reached: ``images`` trained on, ``width``,
        ``training`` (steps; 1 at the paper's accuracy) and ``networks`` (1 where there are enough
        to show the smallest effect at 80% power).
    measured
        Share of `specs` that there are results of, as `results` has found them.
    """

    measure: Callable
    specs: Sequence[Mapping[str, Any]]
    batch: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)
    measured: float = 1.0

    def run(
        self,
        store: str | Path,
        cluster: Any = None,
        progress: bool = True,
        evidence: str | Path | None = None,
        compute: bool = True,
    ) -> pd.DataFrame:
        """Return the rows of all specs: see `sweeps.run`."""
        measure = update_wrapper(partial(self.measure, **self.options), self.measure)
        where = {"store": store, "cluster": cluster, "evidence": evidence, "progress": progress}
        return sweeps.run(measure, self.specs, batch=self.batch, compute=compute, **where)

    @property
    def fidelity(self) -> str:
        """A: every ratio of `scale` at least 1/2; B: the width, and the others 1/10; C: below.

        Networks count as far as they are measured.
        """
        ratios = [*self.scale.values(), self.scale.get("networks", 1) * self.measured]
        if not self.scale or min(ratios) < 0.1 or self.scale.get("width", 1) < 0.5:
            return "C"
        return "A" if min(ratios) >= 0.5 else "B"


def results(
    experiments: dict[str, Experiment], notebook: str, profile: str, cluster: Any = None
) -> pd.DataFrame:
    """Return the rows of all experiments of a notebook, with their names as outer index.

    What the profiles smoke and quick lack is computed. At full and paper nothing is: the rows are
    the committed evidence and what ``python -m replication run`` has stored since, and what is
    missing is printed, and counted in `experiments` (see `Experiment.measured`).
    """
    committed = profile in EVIDENCE
    where = {"store": paths.runs() / notebook, "cluster": cluster, "compute": not committed}
    if committed:
        where["evidence"] = paths.evidence() / notebook
    tables = {}
    for name, experiment in list(experiments.items()):
        with warnings.catch_warnings():
            if not committed:  # few examples are the scale there, as the stamp says
                few = ".* (ranks that add up to|spans all)"
                warnings.filterwarnings("ignore", few, UserWarning)
            tables[name] = experiment.run(**where)
        if left := tables[name].attrs["missing"]:
            print(f"{name}: {left} of {len(experiment.specs)} not measured yet")
            share = 1 - left / len(experiment.specs)
            experiments[name] = replace(experiment, measured=share)
    return pd.concat(tables)


def network_key(net: Mapping[str, Any], key: Callable[[], str], notebook: str) -> str:
    """Return the key of a network's training, which holds a digest of its data.

    Where the data set ``net["dataset"]`` cannot be had, it is the key under which the notebook's
    evidence has a network of these settings, so that `results` finds it all the same.
    """
    if _at_hand(net["dataset"]):
        return key()
    return _committed_networks(notebook).get(json.dumps(net), "its data are not here")


@functools.cache
def _at_hand(dataset: str) -> bool:
    """Tell whether a data set is here or can be downloaded, asked once."""
    try:
        data.load(dataset, subset=(10, 10))
    except ValueError:
        if data.locate(dataset):  # it is damaged
            raise
        return False
    return True


@functools.cache
def _committed_networks(notebook: str) -> dict[str, str]:
    """Return the keys of the networks in a notebook's evidence by their settings as JSON."""
    known = {}
    for path in (paths.evidence() / notebook).glob("*.parquet"):
        for table in evidence.read(path.parent, path.stem).values():
            spec = json.loads(table["spec"][0].as_py())
            if {"net", "network"} <= spec.keys():
                known[json.dumps(spec["net"])] = spec["network"]
    return known


def by_profile(table: Mapping[str, Mapping[str, Sequence]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return settings by profile, part and name, from values in the order of `PROFILES`.

    `table` has a row of such values for each part and name; None leaves a setting out.
    """
    settings: dict[str, dict[str, dict[str, Any]]] = {profile: {} for profile in PROFILES}
    for part, rows in table.items():
        for name, values in rows.items():
            for profile, value in zip(PROFILES, values, strict=True):
                if value is not None:
                    settings[profile].setdefault(part, {})[name] = value
    return settings


def overview(experiments: Mapping[str, Experiment], by: str | None = None) -> pd.DataFrame:
    """Return a table of experiments: what each measures, of how many specs, and what varies.

    Settings within settings are named with a dot, those of a list's entries without their place.
    With `by`, each experiment has a row for each value of this setting.
    """
    rows = {}
    for name, experiment in experiments.items():
        measures = (inspect.getdoc(experiment.measure) or "").partition("\n")[0]
        parts: dict[str, list[Mapping[str, Any]]] = {}
        for spec in experiment.specs:
            parts.setdefault(name if by is None else f"{name}: {spec[by]}", []).append(spec)
        for part, specs in parts.items():
            rows[part] = {"measures": measures, "specs": len(specs), "varied": _varied(specs)}
    return pd.DataFrame.from_dict(rows, orient="index")


def _varied(specs: Sequence[Mapping[str, Any]]) -> str:
    """Return the settings that differ between specs, with their values where these are short."""
    values: dict[str, dict[str, None]] = {}
    for key, value in _settings(specs):
        values.setdefault(key, {})[str(value)] = None
    varied = []
    for key, texts in values.items():
        if len(texts) > 1:
            listed = ", ".join(texts)
            varied.append(f"{key}: {listed if len(listed) <= 60 else f'{len(texts)} values'}")
    return "; ".join(varied)


def _settings(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of all settings in a spec, or in a list of specs."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _settings(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, Sequence) and value and all(isinstance(v, Mapping) for v in value):
        for inner in value:
            yield from _settings(inner, name)
    else:
        yield name, value


def cifar10(profile: str, dataset: str = "auto", subset: Any = None) -> data.Split:
    """Load CIFAR-10 for ``"auto"`` where its files are (at ``paper`` always), else `dataset`."""
    if dataset == "auto" and (profile == "paper" or data.locate("cifar10")):
        dataset = "cifar10"
    return data.load(dataset, subset=subset)


def stamp(profile: str, split: data.Split | Iterable[data.Split], *notes: str) -> str:
    """Return what a figure stands on: profile and data sets, and on a second line the notes."""
    splits = [split] if isinstance(split, data.Split) else split
    sets = " · ".join(dict.fromkeys(part.describe() for part in splits))
    text = f"profile {profile} · {sets}"
    return text + "\n" + " · ".join(notes) if notes else text
