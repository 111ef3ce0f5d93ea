"""``python -m replication evidence`` and ``verify``: what is committed, and whether it comes again.

A number comes again if it differs by at most `EXACT` of its size or of the spread of its column; on
another processor, where a network's training takes another course after some steps, by `SPREAD` of
that spread (docs/determinism.md).
"""

import json
import random
import tempfile
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from replication._core import paths
from replication.papers.experiment import Experiment
from replication.sweeps import SweepError, evidence, fingerprint
from replication.sweeps._store import processor

EXACT, SPREAD = 1e-6, 1.0


def collect(name: str, experiments: Mapping[str, Experiment]) -> pd.DataFrame:
    """Bring what the store has of a notebook into its evidence; a row a measuring function."""
    specs: dict[str, list] = {}
    functions = {}
    for experiment in experiments.values():
        functions[experiment.measure.__name__] = experiment.measure
        specs.setdefault(experiment.measure.__name__, []).extend(experiment.specs)
    store, folder = paths.runs() / name, paths.evidence() / name
    table = pd.DataFrame(
        {key: evidence.collect(fn, specs[key], store, folder) for key, fn in functions.items()}
    ).T
    sizes = {path.stem: path.stat().st_size / 1e6 for path in folder.glob("*.parquet")}
    return table.assign(MB=table.index.map(sizes))


def report(name: str, experiments: Mapping[str, Experiment]) -> None:
    """Print what the evidence of a notebook holds, by measuring function and by experiment."""
    counts = collect(name, experiments)
    print(f"{name}: {len(counts)} measuring functions\n{counts.to_string(float_format='%.2f')}")
    for key in counts.index:
        tables = evidence.read(paths.evidence() / name, key).values()
        origin = {column: {t[column][0].as_py() for t in tables} for column in evidence.ORIGIN[3:]}
        days = sorted(origin["measured_on"])
        if days:
            print(f"  {key}: {days[0]} to {days[-1]}, {', '.join(sorted(origin['processor']))}")
    grades = {title: experiment.fidelity for title, experiment in experiments.items()}
    print("  fidelity: " + ", ".join(f"{title} {grade}" for title, grade in grades.items()))


def verify(name: str, experiments: Mapping[str, Experiment], sample: int, seed: int) -> int:
    """Compute some committed results anew, compare, and return how many differ."""
    known = []
    for title, experiment in experiments.items():
        held = evidence.read(paths.evidence() / name, experiment.measure.__name__)
        code, _ = fingerprint(experiment.measure)
        by_spec = {t["spec"][0].as_py(): t for t in held.values() if t["code"][0].as_py() == code}
        texts = [(json.dumps(dict(spec)), spec) for spec in experiment.specs]
        known += [(title, spec, by_spec[text]) for text, spec in texts if text in by_spec]
    chosen = random.Random(seed).sample(known, min(sample, len(known)))
    differing = left = 0
    for title, spec, table in chosen:
        try:
            with tempfile.TemporaryDirectory() as store:
                anew = replace(experiments[title], specs=[spec]).run(store)
        except SweepError as error:
            if not isinstance(error.__cause__, ModuleNotFoundError):
                raise
            left += 1  # it needs an extra, and says which
            print(f"{name}: {title}: not computed anew: {error.__cause__}")
            continue
        anew = anew.drop(columns=list(spec))
        same = table["processor"][0].as_py() == processor()
        others = [rows for other, _, rows in known if other == title]
        spread = pd.concat([evidence.rows(rows) for rows in others]).std(numeric_only=True)
        worst = difference(evidence.rows(table), anew, spread)
        differs = worst > (EXACT if same else SPREAD)
        differing += differs
        machine = "same processor" if same else "another processor"
        verdict = "DIFFERS" if differs else "comes again"
        print(f"{name}: {title}: {verdict} ({worst:.1e} of the spread, {machine}): {spec}")
    print(f"{name}: {len(chosen) - left} of {len(known)} results computed anew, {differing} differ")
    return differing


def difference(rows: pd.DataFrame, anew: pd.DataFrame, spread: pd.Series) -> float:
    """Return the largest difference of numbers, in units of the column's spread or of their size.

    Infinite where tables are not of one shape, or texts or missing values differ.
    """
    if list(rows.columns) != list(anew.columns) or len(rows) != len(anew):
        return np.inf
    worst = 0.0
    for column in rows:
        a, b = rows[column].to_numpy(), anew[column].to_numpy()
        if not pd.api.types.is_numeric_dtype(rows[column]):
            if [str(v) for v in a] != [str(v) for v in b]:
                return np.inf
            continue
        a, b = a.astype(float), b.astype(float)
        if (np.isnan(a) != np.isnan(b)).any():
            return np.inf
        unit = np.maximum(np.nan_to_num(spread.get(column, 0.0)), np.abs(a))
        unequal = ~((a == b) | np.isnan(a))
        if unequal.any():
            worst = max(worst, float(np.max(np.abs(a - b)[unequal] / unit[unequal])))
    return worst
