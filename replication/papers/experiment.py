"""What a notebook runs: a measuring function, and the specs that it is called with."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

import pandas as pd

from replication import data, sweeps
from replication._core.profiles import PROFILES


@dataclass(frozen=True)
class Experiment:
    """One sweep of a notebook.

    Attributes
    ----------
    measure
        Takes a spec, or with `batch` a list of them, and returns rows: `sweeps.run`'s ``fn``.
    specs
        Everything that decides each result, as JSON-able settings.
    batch
        How many specs `measure` is given at a time; None: one, not in a list.
    version
        Raised when `measure` has changed and its stored results no longer hold.
    options
        Keywords of `measure` that do not decide its results and name none: the device.
    """

    measure: Callable
    specs: Sequence[Mapping[str, Any]]
    batch: int | None = None
    version: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, store: str | Path, cluster: Any = None, progress: bool = True) -> pd.DataFrame:
        """Return the rows of all specs, computing only what `store` has not: see `sweeps.run`."""
        measure = update_wrapper(partial(self.measure, **self.options), self.measure)
        return sweeps.run(
            measure,
            self.specs,
            store=store,
            version=self.version,
            cluster=cluster,
            batch=self.batch,
            progress=progress,
        )


def by_profile(table: Mapping[str, Mapping[str, Sequence]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return settings by profile, part and name, from values in the order of `PROFILES`.

    `table` has a row of such values for each part and name; None leaves a setting out.
    """
    settings = {}
    for i, profile in enumerate(PROFILES):
        parts = {
            part: {name: values[i] for name, values in rows.items() if values[i] is not None}
            for part, rows in table.items()
        }
        settings[profile] = {part: scale for part, scale in parts.items() if scale}
    return settings


def overview(experiments: Mapping[str, Experiment], by: str | None = None) -> pd.DataFrame:
    """Return a table of experiments: what each measures, of how many specs, and what varies.

    Settings within settings are named with a dot, those of a list's entries without their place.
    With `by`, each experiment has a row for each value of this setting.
    """
    if by is not None:
        experiments = {
            f"{name}: {value}": replace(
                experiment, specs=[spec for spec in experiment.specs if spec[by] == value]
            )
            for name, experiment in experiments.items()
            for value in dict.fromkeys(spec[by] for spec in experiment.specs)
        }
    rows = {}
    for name, experiment in experiments.items():
        values: dict[str, dict[str, None]] = {}
        for key, value in _settings(experiment.specs):
            values.setdefault(key, {})[str(value)] = None
        varied = [
            f"{key}: {', '.join(texts) if len(', '.join(texts)) <= 60 else f'{len(texts)} values'}"
            for key, texts in values.items()
            if len(texts) > 1
        ]
        rows[name] = {
            "measures": (inspect.getdoc(experiment.measure) or "").partition("\n")[0],
            "specs": len(experiment.specs),
            "varied": "; ".join(varied),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


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
