"""The file ``claims.json`` of a notebook: written, read and checked, and shown to a reader."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from replication._core.files import read_json, write_json
from replication.claims.rule import Rule, decide
from replication.claims.settle import Claim, Gate, Settled

FILE = "claims.json"


def save(settled: Iterable[Settled], folder: str | os.PathLike) -> Path:
    """Write the settled claims of a notebook to ``claims.json`` in `folder`; return its path.

    It is a list with an object a claim, `Settled.as_dict`, written atomically. ``ValueError`` if
    `settled` is empty or holds an id twice.
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

    ``ValueError`` if the file is malformed or a verdict is not the one that the values give; it
    names the file, the claim and what is missing or wrong.
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
    parts, gate = row["parts"], dict(row["gate"] or {})
    measured = gate.pop("value") if gate else None
    texts = {key: row[key] for key in ("id", "paper", "statement", "kind", "status")}
    rules = tuple(Rule(**part["rule"]) for part in parts)
    claim = Claim(rule=rules, gate=Gate(**gate) if gate else None, **texts)
    where = dict.fromkeys(("dataset", "profile", "notebook"), "")
    new = tuple(decide(rule, p["values"]) for rule, p in zip(rules, parts, strict=True))
    again = Settled(claim, new, gate=measured, **where).as_dict()
    said = {**row, "verdicts": [part["verdict"] for part in parts]}
    again["verdicts"] = [part["verdict"] for part in again["parts"]]
    again |= {key: parts[0][key] for key in ("value", "interval")}  # SciPy may move a last digit
    for key, value in again.items():
        if key not in said or (isinstance(value, str) and not isinstance(said[key], str)):
            raise ValueError(f"says {key} {str(row.get(key))[:60]}; expected what `save` writes")
        checked = key in ("value", "interval", "units", "seeds", "verdict", "verdicts")
        if checked and said[key] != value:
            raise ValueError(f"says {key} {said[key]!r}, but its values give {value!r}")


def ours(row: Mapping[str, Any]) -> str:
    """Return what was measured, in few characters, from an object of ``claims.json``.

    For example ``-0.21 [-0.26, -0.16]``, and for several parts all of them with their verdicts.
    """
    texts = []
    for i, part in enumerate(row["parts"], 1):
        text = "undefined" if part["value"] is None else f"{part['value']:.4g}"
        if part["interval"]:
            text += " [{:.4g}, {:.4g}]".format(*part["interval"])
        text = {"share": "share ", "every": "least "}.get(part["rule"]["test"], "") + text
        texts.append(text if len(row["parts"]) == 1 else f"({i}) {text} {part['verdict']}")
    return "; ".join(texts)


def draw(settled: Settled | Mapping[str, Any]) -> Figure:
    """Draw the main part on one small axis; of a settled claim or an object of ``claims.json``.

    The paper's number is a diamond, ours a point with its interval; what lies within the smallest
    effect of interest is shaded.
    """
    row = settled.as_dict() if isinstance(settled, Settled) else settled
    part, rule = row["parts"][0], row["parts"][0]["rule"]
    figure = Figure(figsize=(2.4, 0.4))
    axes = figure.add_axes((0.04, 0.5, 0.92, 0.5), yticks=[], ylim=(-1, 1))
    axes.axvline(0.0, color="0.6", linewidth=0.8)
    if small := rule["smallest"]:
        axes.axvspan(max(-small, (rule["range"] or [-small])[0]), small, color="0.88")
    if part["value"] is not None:
        axes.plot(part["interval"] or [part["value"]] * 2, [0, 0], color="C0")
        axes.plot(part["value"], 0, "o", color="C0", markersize=4)
    if rule["paper"] is not None:
        axes.plot(rule["paper"], 0, "D", color="C1", markersize=4)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.tick_params(labelsize=6)
    return figure


class _Table(pd.DataFrame):
    """A data frame that a notebook shows with whole sentences and without the index."""

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            return self.to_html(index=False)


def table(settled: Iterable[Settled]) -> pd.DataFrame:
    """Return the settled claims as a table for a notebook: one row a claim, in the order given."""
    rows = [
        (row["id"], row["statement"], row["paper_value"], ours(row), row["verdict"])
        for row in (item.as_dict() for item in settled)
    ]
    return _Table(rows, columns=["Claim", "Statement", "Paper", "Ours", "Verdict"])


def rules(claims: Iterable[Claim]) -> pd.DataFrame:
    """Return what settles each claim as a table for a notebook, before any number is known."""
    rows = [
        (c.id, c.statement, f"{c.paper_value} ({c.figure or c.paper})", c.sentences) for c in claims
    ]
    return _Table(rows, columns=["Claim", "Statement", "Paper", "Rule"])
