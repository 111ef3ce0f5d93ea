"""``python -m replication audit``: whether rules are older than the evidence they judge.

`REGISTER` holds every claim's rule in a line of its own, so that git knows the commit that last
changed it; a test holds it equal to the code. A claim is *confirmatory* if all results of its
notebook were measured after that commit, else *exploratory*.
"""

import importlib
import json
import pkgutil
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from replication import papers
from replication._core import paths
from replication._core.files import atomic
from replication.claims import Claim

REGISTER = "data/evidence/rules.json"
UNCOMMITTED = "0" * 40


def claims() -> Iterator[tuple[str, Claim]]:
    """Yield the notebook and the claim, for all claims of all papers."""
    for module in pkgutil.iter_modules(papers.__path__):
        if not module.name.startswith("_"):
            paper = importlib.import_module(f"{papers.__name__}.{module.name}")
            if hasattr(paper, "NOTEBOOK") and hasattr(paper, "CLAIMS"):
                yield from ((paper.NOTEBOOK, claim) for claim in paper.CLAIMS)


def lines() -> list[str]:
    """Return the lines of the register as the code has the rules, sorted by id."""
    texts = {claim.id: [notebook, claim.sentences] for notebook, claim in claims()}
    entries = [f" {json.dumps(key)}: {json.dumps(texts[key])}" for key in sorted(texts)]
    return ["{", *(f"{entry}," for entry in entries[:-1]), *entries[-1:], "}"]


def register() -> Path:
    """Write down the rules as they are now; to be committed before they judge."""
    path = paths.root() / REGISTER
    with atomic(path) as temporary:
        temporary.write_text("\n".join(lines()) + "\n", encoding="utf-8")
    return path


def changed() -> list[str]:
    """Return the ids whose rules are not those of the register."""
    path = paths.root() / REGISTER
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    now = json.loads("\n".join(lines()))
    return sorted(key for key in kept.keys() | now.keys() if kept.get(key) != now.get(key))


def audit() -> pd.DataFrame:
    """Return a row a claim: the commit of its rule, the time of its evidence, and its status.

    Raises
    ------
    ValueError
        If this is no git checkout, or the register is not committed.
    """
    committed, rows = _blame(), {}
    spans = {notebook: _measured(notebook) for notebook in {n for n, _ in claims()}}
    for notebook, claim in claims():
        commit, when = committed.get(claim.id, (UNCOMMITTED, None))
        first, last = spans[notebook]
        known = first is not None and when is not None and commit != UNCOMMITTED
        status = "confirmatory" if known and first >= when else "exploratory"
        rows[claim.id] = {
            "notebook": notebook,
            "rule of": commit[:9] if commit != UNCOMMITTED else "not committed",
            "committed": f"{when:%Y-%m-%d %H:%M}" if when and commit != UNCOMMITTED else "",
            "measured from": f"{first:%Y-%m-%d %H:%M}" if first else "no evidence",
            "to": f"{last:%Y-%m-%d %H:%M}" if last else "",
            "status": status if first else "",
            "corrected": claim.corrected,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def told() -> dict[str, tuple[str, str]]:
    """Return by claim the commit of its rule, and when its notebook was measured, in words.

    Nothing where there is no history. `claims.scorecard` shows it.
    """
    try:
        table = audit()
    except ValueError:
        return {}
    table = table[table.committed != ""]
    rules = "rule of " + table["rule of"] + ", " + table.committed.str[:10]
    spans = "measured " + table["measured from"].str[:10] + " to " + table.to.str[:10]
    return dict(zip(table.index, zip(rules, spans, strict=True), strict=True))


def _blame() -> dict[str, tuple[str, datetime]]:
    """Return the commit that last changed each line of the register, and its time, by claim."""
    command = ["git", "blame", "--line-porcelain", REGISTER]
    try:
        text = subprocess.run(
            command, cwd=paths.root(), check=True, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"audit: {REGISTER} has no history: git blame failed") from error
    history, commit, when = {}, "", datetime.min
    for line in text.splitlines():
        words = line.split()
        if line.startswith("\t"):
            if line.startswith('\t "'):
                history[json.loads(line.strip().partition(": ")[0])] = (commit, when)
        elif words and len(words[0]) == 40:
            commit = words[0]
        elif words and words[0] == "committer-time":
            when = datetime.fromtimestamp(int(words[1]), UTC)
    return history


def _measured(notebook: str) -> tuple[datetime | None, datetime | None]:
    """Return when the first and the last committed result of a notebook were measured."""
    files: Sequence[Path] = sorted((paths.evidence() / notebook).glob("*.parquet"))
    texts = [pq.read_table(file, columns=["measured_on"])["measured_on"].unique() for file in files]
    times = [datetime.fromisoformat(str(value)) for column in texts for value in column.to_pylist()]
    return (min(times), max(times)) if times else (None, None)
