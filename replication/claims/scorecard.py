"""One page of all claims: ``figures/SCORECARD.md``, and its summary for the README."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from replication import claims
from replication._core import paths
from replication._core.files import atomic
from replication._core.profiles import EVIDENCE, PROFILES

FILE = "SCORECARD.md"
BEGIN, END = "<!-- scorecard:begin -->", "<!-- scorecard:end -->"

# a shape as well as a word, for readers who cannot tell the colours
_SYMBOLS = {claims.REPRODUCED: "✔", claims.NOT_REPRODUCED: "✘", claims.INCONCLUSIVE: "○"}
_BEFORE = ("Claim", "Figure", "Statement", "The paper reports")  # then a column a profile
_AFTER = ("Data set, scale and seeds", "Notebook", "Rule")
_NOT_RUN, _DOT = "not run", " · "


def _natural(text: str) -> list[Any]:
    """Return a sorting key that puts B2 before B10."""
    return [int(p) if p.isdecimal() else p.casefold() for p in re.split(r"([0-9]+)", text)]


def _profile_order(profile: str) -> tuple[int, str]:
    """Return a sorting key: the known profiles by size, then any other."""
    known = PROFILES.index(profile) if profile in PROFILES else len(PROFILES)
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
    rows: Iterable[Mapping[str, Any]], profiles: Sequence[str] = EVIDENCE
) -> list[Mapping[str, Any]]:
    """Return the rows of the given profiles; where there is none, all rows."""
    rows = list(rows)
    return [row for row in rows if row["profile"] in profiles] or rows


def columns(
    rows: Iterable[Mapping[str, Any]], profiles: Sequence[str] = EVIDENCE
) -> list[tuple[str, bool]]:
    """Return the profiles that a table of `rows` has a column for, and whether each has been run.

    Those of the rows by size; where one of `profiles` is among them, also the others of these.
    """
    found = {row["profile"] for row in rows}
    shown = found | set(profiles) if found & set(profiles) else found
    return [(profile, profile in found) for profile in sorted(shown, key=_profile_order)]


def summary(rows: Iterable[Mapping[str, Any]], profiles: Sequence[str] = EVIDENCE) -> str:
    """Return a Markdown table: how many claims of each paper came out how, a column a profile.

    Beside a profile of `profiles` that has been run, the others have a column too and say so where
    they have not.
    """
    rows = list(rows)
    counts = Counter((row["paper"], row["profile"], row["verdict"]) for row in rows)
    papers = sorted({row["paper"] for row in rows}, key=_natural)
    shown = columns(rows, profiles)

    def cells(chosen: Sequence[str]) -> list[str]:
        found = [
            [sum(counts[p, profile, v] for p in chosen) for v in claims.VERDICTS]
            for profile, _ in shown
        ]
        return [_DOT.join(map(str, numbers)) if any(numbers) else _NOT_RUN for numbers in found]

    lines = [[_escape(paper), *cells([paper])] for paper in papers]
    if len(papers) > 1:
        lines.append(["**All**", *cells(papers)])
    symbols = _DOT.join(_SYMBOLS[verdict] for verdict in claims.VERDICTS)
    heads = [f"{_escape(name)} {symbols}" if run else _escape(name) for name, run in shown]
    legend = ", ".join(f"{_SYMBOLS[verdict]} {verdict}" for verdict in claims.VERDICTS)
    return _table(["Paper", *heads], lines) + f"\n{legend}.\n"


def by_claim(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Mapping[str, Any]]]:
    """Return each claim's rows by profile, in the order of `rows`.

    Rows are of one claim if they have its paper, its id and its notebook in common.
    """
    found: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["paper"], row["id"], row["notebook"]), {})[row["profile"]] = row
    return list(found.values())


def _result(row: Mapping[str, Any] | None) -> str:
    """Return the cell of a claim at one profile: verdict, number with interval, note."""
    if row is None:
        return _NOT_RUN
    lines = [f"{_SYMBOLS[row['verdict']]} {row['verdict']}", _escape(claims.ours(row))]
    return "<br>".join([*lines, *([_escape(row["note"])] if row["note"] else [])])


def _evidence(row: Mapping[str, Any]) -> str:
    """Return what a result rests on: data set, scale and number of seeds."""
    parts = [row["scale"]] if row["dataset"] in row["scale"] else [row["dataset"], row["scale"]]
    count = row["seeds"]
    return "; ".join([*filter(None, parts), f"{count} seed{'s' * (count != 1)}"])


def _shared(texts: Mapping[str, str]) -> str:
    """Return a cell that profiles share, with a line for each where they differ."""
    if len(set(texts.values())) == 1:
        return _escape(next(iter(texts.values())))
    return "<br>".join(f"{_escape(profile)}: {_escape(text)}" for profile, text in texts.items())


def _line(runs: Mapping[str, Mapping[str, Any]], profiles: Sequence[str]) -> list[str]:
    """Return the cells of one claim, from its rows by profile."""
    first = next(iter(runs.values()))

    def shared(key: str) -> str:
        return _shared({profile: row[key] for profile, row in runs.items()})

    return [
        *(_escape(first["id"]), *map(shared, ("figure", "statement", "paper_value"))),
        *(_result(runs.get(profile)) for profile in profiles),
        _shared({profile: _evidence(row) for profile, row in runs.items()}),
        f"[{_escape(first['notebook'])}](<../notebooks/{first['notebook']}.ipynb>)",
        shared("rule"),
    ]


def write(
    figures_folder: str | os.PathLike | None = None, profiles: Sequence[str] = EVIDENCE
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
            f"Run `make figures PROFILE={profiles[0] if profiles else EVIDENCE[0]}` for that.\n"
        )
    text.append(
        "Each rule was fixed in code before the run; each verdict is computed from the seeds. "
        "A claim is reproduced when the whole interval lies on the claimed side of the threshold, "
        "not reproduced when it lies on the other side, and inconclusive otherwise. Intervals are "
        "those of a single claim, not corrected for the number of claims. Where a first run at "
        "full left claims of a notebook inconclusive, the seeds they rest on were doubled once, "
        "and all are counted; the notebook says so. This page is written by "
        "`python -m replication scorecard`.\n"
    )
    text.append(summary(rows, profiles))
    header = [*_BEFORE, *(f"Ours at {_escape(profile)}" for profile in found), *_AFTER]
    for paper in sorted({row["paper"] for row in rows}, key=_natural):
        text.append(f"## {_escape(paper)}\n")
        mine = by_claim(row for row in rows if row["paper"] == paper)
        text.append(_table(header, [_line(runs, found) for runs in mine]))
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
