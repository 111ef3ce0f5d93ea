"""The file ``claims.json`` of a notebook: written, read and checked, and shown to a reader."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from replication._core.files import read_json, write_json
from replication.claims.rule import Rule, decide, gravest
from replication.claims.settle import Claim, Settled

FILE = "claims.json"
_TEXTS = ("id", "paper", "figure", "statement", "paper_value", "rule", "dataset", "scale")
_TEXTS += ("profile", "notebook", "note")
_RESULTS = ("verdict", "value", "interval", "seeds")  # those of the part that decides


def save(settled: Iterable[Settled], folder: str | os.PathLike) -> Path:
    """Write the settled claims of a notebook to ``claims.json`` in `folder`, atomically.

    Its path is returned. It holds a list with an object a claim, `Settled.as_dict`, without NaN.

    Raises
    ------
    ValueError
        If `settled` is empty or holds an id twice.
    """
    rows = [item.as_dict() for item in settled]
    if not rows:
        raise ValueError("settled is empty; expected at least one settled claim")
    _refuse_twice(rows, "settled")
    path = Path(folder) / FILE
    write_json(path, rows)
    return path


def load(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read and check a ``claims.json``; every verdict is computed again from the stored values.

    Raises
    ------
    ValueError
        If the file is malformed or a verdict is not the one that the values give; it names the
        file, the claim and what is missing or wrong.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} is not a list of claims; delete it and run the notebook again")
    for i, row in enumerate(rows, 1):
        try:
            _check(row)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            wrong = error if isinstance(error, ValueError) else f"is malformed ({error!r})"
            raise ValueError(
                f"{path}: claim {row.get('id', f'number {i}')} {wrong}; "
                "delete the file and run the notebook again"
            ) from error
    _refuse_twice(rows, path)
    return rows


def _refuse_twice(rows: Sequence[Mapping[str, Any]], name: str | os.PathLike) -> None:
    ids = [row["id"] for row in rows]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise ValueError(f"{name} holds the id {', '.join(twice)} more than once; expected once")


def _check(row: Mapping[str, Any]) -> None:
    """Raise an error saying what is wrong with one object of ``claims.json``."""
    if missing := [key for key in (*_TEXTS, *_RESULTS, "parts", "values") if key not in row]:
        raise ValueError(f"lacks {', '.join(missing)}")
    for key in _TEXTS:
        if not isinstance(row[key], str):
            raise ValueError(f"says {key} {str(row[key])[:60]}; expected a text")
    if not row["parts"]:
        raise ValueError("has no parts")
    for i, part in enumerate(row["parts"], 1):
        # Only the verdict: another version of SciPy may differ in an interval's last digits.
        verdict = decide(Rule(**part["rule"]), part["values"], f"values of part {i}").verdict
        if part["verdict"] != verdict:
            said = part["verdict"]
            raise ValueError(f"says {said!r} of part {i}, but its values give {verdict!r}")
    part = row["parts"][gravest([part["verdict"] for part in row["parts"]])]
    for key in _RESULTS:
        if row[key] != part[key]:
            raise ValueError(f"says {key} {row[key]!r}, but its parts give {part[key]!r}")


def ours(row: Mapping[str, Any]) -> str:
    """Return what was measured, in few characters, from an object of ``claims.json``.

    For example ``-0.210 [-0.260, -0.160]``; a share of seeds, a worst seed and a part of several
    are called so.
    """
    if row["value"] is None:
        return "undefined"
    parts = row["parts"]
    i = gravest([part["verdict"] for part in parts])
    label = {"sign": "share of seeds ", "every": "worst seed "}.get(parts[i]["rule"]["test"], "")
    which = f" (part {i + 1} of {len(parts)})" if len(parts) > 1 else ""
    return label + _digits(row["value"], row["interval"]) + which


def _digits(value: float, interval: Sequence[float] | None) -> str:
    """Return "value [low, high]" with three digits of the interval's width."""
    numbers = [value, *(interval or ())]
    size = max(map(abs, numbers))
    width = interval[1] - interval[0] if interval else 0.0
    if width > 0 and 1e-4 <= size < 1e6:
        decimals = min(max(2 - math.floor(math.log10(width)), 0), 8)
        texts = [f"{round(number, decimals) + 0.0:.{decimals}f}" for number in numbers]
    else:
        texts = [f"{number:.4g}" for number in numbers]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if interval else texts[0]


class _Table(pd.DataFrame):
    """A data frame that a notebook shows with whole sentences and without the index."""

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            return self.to_html(index=False)


def table(settled: Iterable[Settled]) -> pd.DataFrame:
    """Return the settled claims as a table for a notebook: one row a claim, in the order given."""
    rows = [
        (s.claim.id, s.claim.statement, s.claim.paper_value, ours(s.as_dict()), s.verdict)
        for s in settled
    ]
    return _Table(rows, columns=["Claim", "Statement", "Paper", "Ours", "Verdict"])


def rules(claims: Iterable[Claim]) -> pd.DataFrame:
    """Return what settles each claim as a table for a notebook, before any number is known."""
    rows = [
        (c.id, c.statement, f"{c.paper_value} ({c.figure or c.paper})", c.sentences) for c in claims
    ]
    return _Table(rows, columns=["Claim", "Statement", "Paper", "Rule"])
