"""One page of all claims: ``figures/SCORECARD.md``, and its summary for the README."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from replication import claims, paths
from replication._files import atomic

FILE = "SCORECARD.md"
COMMITTED = ("full", "paper")
BEGIN, END = "<!-- scorecard:begin -->", "<!-- scorecard:end -->"

# a shape as well as a word, for readers who cannot tell the colours
_SYMBOLS = {claims.REPRODUCED: "✔", claims.NOT_REPRODUCED: "✘", claims.INCONCLUSIVE: "○"}
_PROFILES = ("smoke", "quick", "full", "paper")
_COLUMNS = (
    *("Claim", "Figure", "Statement", "The paper reports", "Ours, with interval", "Verdict"),
    *("Data set", "Profile and scale", "Seeds", "Notebook", "Rule"),
)


def _natural(text: str) -> list[Any]:
    """Return a sorting key that puts B2 before B10."""
    return [int(p) if p.isdecimal() else p.casefold() for p in re.split(r"([0-9]+)", text)]


def _profile_order(profile: str) -> tuple[int, str]:
    """Return a sorting key: the known profiles by size, then any other."""
    known = _PROFILES.index(profile) if profile in _PROFILES else len(_PROFILES)
    return known, profile


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (
        *(_natural(row["paper"]), _natural(row["id"])),
        *(_profile_order(row["profile"]), row["notebook"]),
    )


def _escape(text: str) -> str:
    """Return `text` so that a cell of a Markdown table shows it as it is."""
    text = re.sub(r"([\\|*`])", r"\\\1", " ".join(text.split()))
    return text.replace("<", "&lt;")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def collect(figures_folder: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    """Read every ``<profile>/<notebook>/claims.json`` of the figures folder.

    Returns
    -------
    list of dict
        The claims as `claims.load` gives them, by paper, id, profile and notebook.

    Raises
    ------
    ValueError
        If there is no such folder or no claim in it, or a file is malformed or lies in the folder
        of another profile or notebook.
    """
    folder = paths.figures() if figures_folder is None else Path(figures_folder)
    files = sorted(folder.glob(f"*/*/{claims.FILE}"))
    if not files:
        raise ValueError(f"there are no claims in {folder}; run `make figures` first")
    rows = []
    for file in files:
        notebook, profile = file.parent.name, file.parent.parent.name
        for row in claims.load(file):
            if (row["profile"], row["notebook"]) != (profile, notebook):
                raise ValueError(
                    f"{file}: claim {row['id']} is of profile {row['profile']!r} and notebook "
                    f"{row['notebook']!r}; its folder says {profile!r} and {notebook!r}"
                )
            rows.append(row)
    return sorted(rows, key=_order)


def select(
    rows: Iterable[Mapping[str, Any]], profiles: Sequence[str] = COMMITTED
) -> list[Mapping[str, Any]]:
    """Return the rows of the given profiles; where there is none, all rows."""
    rows = list(rows)
    return [row for row in rows if row["profile"] in profiles] or rows


def summary(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a Markdown table: how many claims of each paper were reproduced, by profile."""
    rows = list(rows)
    counts = Counter((row["paper"], row["profile"], row["verdict"]) for row in rows)
    papers = sorted({row["paper"] for row in rows}, key=_natural)
    profiles = sorted({row["profile"] for row in rows}, key=_profile_order)
    lines = []
    for paper in papers:
        for profile in profiles:
            found = [counts[paper, profile, verdict] for verdict in claims.VERDICTS]
            if sum(found):
                lines.append([_escape(paper), _escape(profile), *map(str, found)])
    if len(papers) > 1:
        for profile in profiles:
            found = [sum(counts[p, profile, v] for p in papers) for v in claims.VERDICTS]
            lines.append(["**All**", _escape(profile), *map(str, found)])
    verdicts = [f"{_SYMBOLS[verdict]} {verdict}" for verdict in claims.VERDICTS]
    return _table(["Paper", "Profile", *verdicts], lines)


def _line(row: Mapping[str, Any]) -> list[str]:
    verdict = f"{_SYMBOLS[row['verdict']]} {row['verdict']}"
    if row["note"]:
        verdict += f"<br>{_escape(row['note'])}"
    profile = _escape(row["profile"])
    if row["scale"]:
        profile += f": {_escape(row['scale'])}"
    link = f"[{_escape(row['notebook'])}](<../notebooks/{row['notebook']}.ipynb>)"
    cells = [row["id"], row["figure"], row["statement"], row["paper_value"], claims.ours(row)]
    return [
        *map(_escape, cells),
        *(verdict, _escape(row["dataset"]), profile, str(row["seeds"]), link),
        _escape(row["rule"]),
    ]


def write(
    figures_folder: str | os.PathLike | None = None, profiles: Sequence[str] = COMMITTED
) -> Path:
    """Write ``SCORECARD.md`` into the figures folder, atomically, and return its path.

    It holds the claims of `profiles`; where none has been run, all there are, with a warning on
    top. The same claims give the same bytes.

    Raises
    ------
    ValueError
        As `collect`.
    """
    folder = paths.figures() if figures_folder is None else Path(figures_folder)
    rows = select(collect(folder), profiles)
    found = sorted({row["profile"] for row in rows}, key=_profile_order)
    text = ["# Scorecard\n"]
    if not set(found) & set(profiles):
        text.append(
            f"**Profile {', '.join(found)} only: a quick look, not the evidence.** "
            f"Run `make figures PROFILE={profiles[0] if profiles else COMMITTED[0]}` for that.\n"
        )
    text.append(
        "Each rule was fixed in code before the run; each verdict is computed from the seeds. "
        "A claim is reproduced when the whole interval lies on the claimed side of the threshold, "
        "not reproduced when it lies on the other side, and inconclusive otherwise. Intervals are "
        "those of a single claim, not corrected for the number of claims. This page is written by "
        "`python -m replication scorecard`.\n"
    )
    text.append(summary(rows))
    for paper in sorted({row["paper"] for row in rows}, key=_natural):
        text.append(f"## {_escape(paper)}\n")
        text.append(_table(_COLUMNS, [_line(row) for row in rows if row["paper"] == paper]))
    path = folder / FILE
    with atomic(path) as temporary:
        temporary.write_text("\n".join(text), encoding="utf-8")
    return path


def update_readme(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put the summary of `rows` between the scorecard's two markers in a README, atomically.

    Raises
    ------
    ValueError
        If the two markers are not there, once each and in order.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{path} must hold {BEGIN} and, after it, {END}, once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    with atomic(path) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{summary(rows)}\n{END}{after}", encoding="utf-8")
