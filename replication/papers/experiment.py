"""What a notebook runs: a measuring function, and the specs that it is called with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

import pandas as pd

from replication import data, sweeps


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


def overview(experiments: Mapping[str, Experiment]) -> pd.DataFrame:
    """Return a table of experiments: how many specs each has, and what varies between them."""
    rows = {}
    for name, experiment in experiments.items():
        values: dict[str, dict[str, None]] = {}
        for spec in experiment.specs:
            for key, value in spec.items():
                values.setdefault(key, {})[str(value)] = None
        varied = [
            f"{key}: {', '.join(found) if len(found) <= 6 else f'{len(found)} values'}"
            for key, found in values.items()
            if len(found) > 1
        ]
        rows[name] = {"specs": len(experiment.specs), "varied": "; ".join(varied)}
    return pd.DataFrame.from_dict(rows, orient="index")


def stamp(profile: str, split: data.Split, *notes: str) -> str:
    """Return what a figure stands on: profile and data set, and on a second line the notes."""
    text = f"profile {profile} · {split.describe()}"
    return text + "\n" + " · ".join(notes) if notes else text
