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
_SYMBOLS = dict(zip(claims.VERDICTS, "✔✘○", strict=True))
_NOT_RUN, _DOT = "not run", " · "
_INTRODUCTION = (
    "Each rule was fixed in code before the run; each verdict is computed from the seeds. "
    "A claim is reproduced when the whole interval lies on the claimed side of the threshold, "
    "not reproduced when it lies on the other side, and inconclusive otherwise. Intervals are "
    "those of a single claim, not corrected for the number of claims. Where a first run at "
    "full left claims of a notebook inconclusive, the seeds they rest on were doubled once, "
    "and all are counted; the notebook says so. This page is written by "
    "`python -m replication scorecard`.\n"
)


def _natural(text: str) -> list[Any]:
    """Return a sorting key that puts B2 before B10."""
    return [int(p) if p.isdecimal() else p.casefold() for p in re.split(r"([0-9]+)", text)]


def _by_size(profile: str) -> tuple[int, str]:
    """Return a sorting key: the known profiles by size, then any other."""
    return PROFILES.index(profile) if profile in PROFILES else len(PROFILES), profile


def _escape(text: str) -> str:
    """Return `text` so that a cell of a Markdown table shows it as it is."""
    text = re.sub(r"([\\|*`])", r"\\\1", " ".join(text.split()))
    return text.replace("<", "&lt;")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def collect(figures_folder: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    """Return the claims of every ``<profile>/<notebook>/claims.json`` of the figures folder.

    They are as `claims.load` gives them, by paper, id, profile and notebook. ``ValueError`` if
    there is none, or a file is malformed or in the folder of another profile or notebook.
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

    def order(row: Mapping[str, Any]) -> tuple[Any, ...]:
        place = _by_size(row["profile"]), row["notebook"]
        return _natural(row["paper"]), _natural(row["id"]), *place

    return sorted(rows, key=order)


def select(
    rows: Iterable[Mapping[str, Any]], profiles: Sequence[str] = EVIDENCE
) -> list[Mapping[str, Any]]:
    """Return the rows of the given profiles; where there is none, all rows."""
    rows = list(rows)
    return [row for row in rows if row["profile"] in profiles] or rows


def summary(rows: Iterable[Mapping[str, Any]], profiles: Sequence[str] = EVIDENCE) -> str:
    """Return a Markdown table: how many claims of each paper came out how, a column a profile.

    Beside a profile of `profiles` that has been run, the others have a column too and say so where
    they have not.
    """
    counts = Counter((row["paper"], row["profile"], row["verdict"]) for row in rows)
    papers = sorted({paper for paper, _, _ in counts}, key=_natural)
    run = {profile for _, profile, _ in counts}
    columns = sorted(run | set(profiles) if run & set(profiles) else run, key=_by_size)
    lines = []
    for name, chosen in [(_escape(paper), [paper]) for paper in papers] + [("**All**", papers)]:
        lines.append([name])
        for profile in columns:
            numbers = [sum(counts[p, profile, v] for p in chosen) for v in claims.VERDICTS]
            lines[-1].append(_DOT.join(map(str, numbers)) if any(numbers) else _NOT_RUN)
    if len(papers) < 2:
        del lines[-1]
    symbols = " " + _DOT.join(_SYMBOLS.values())
    heads = [_escape(name) + symbols * (name in run) for name in columns]
    legend = ", ".join(f"{symbol} {verdict}" for verdict, symbol in _SYMBOLS.items())
    return _table(["Paper", *heads], lines) + f"\n{legend}.\n"


def _line(runs: Mapping[str, Mapping[str, Any]], profiles: Sequence[str]) -> list[str]:
    """Return the cells of one claim, from its rows by profile."""

    def shared(texts: Iterable[str]) -> str:
        """Return a cell for all profiles, with a line for each where they differ."""
        cells = [_escape(text) for text in texts]
        if len(set(cells)) == 1:
            return cells[0]
        lines = zip(map(_escape, runs), cells, strict=True)
        return "<br>".join(": ".join(line) for line in lines)

    def result(row: Mapping[str, Any]) -> str:
        verdict = f"{_SYMBOLS[row['verdict']]} {row['verdict']}"
        return "<br>".join(filter(None, [verdict, _escape(claims.ours(row)), _escape(row["note"])]))

    def evidence(row: Mapping[str, Any]) -> str:
        dataset = "" if row["dataset"] in row["scale"] else row["dataset"]
        seeds = f"{row['seeds']} seed{'s' * (row['seeds'] != 1)}"
        return "; ".join(filter(None, [dataset, row["scale"], seeds]))

    first, keys = next(iter(runs.values())), ("figure", "statement", "paper_value")
    return [
        _escape(first["id"]),
        *(shared(row[key] for row in runs.values()) for key in keys),
        *(result(runs[profile]) if profile in runs else _NOT_RUN for profile in profiles),
        shared(map(evidence, runs.values())),
        f"[{_escape(first['notebook'])}](<../notebooks/{first['notebook']}.ipynb>)",
        shared(row["rule"] for row in runs.values()),
    ]


def write(
    figures_folder: str | os.PathLike | None = None, profiles: Sequence[str] = EVIDENCE
) -> Path:
    """Write ``SCORECARD.md`` into the figures folder, atomically, and return its path.

    It holds the claims of `profiles`; where none has been run, all there are, with a warning on
    top. The same claims give the same bytes. It raises what `collect` does.
    """
    folder = paths.figures() if figures_folder is None else Path(figures_folder)
    rows = select(collect(folder), profiles)
    run = sorted({row["profile"] for row in rows}, key=_by_size)
    text = ["# Scorecard\n"]
    if not set(run) & set(profiles):
        text.append(
            f"**Profile {', '.join(run)} only: a quick look, not the evidence.** "
            f"Run `make figures PROFILE={profiles[0] if profiles else EVIDENCE[0]}` for that.\n"
        )
    text += [_INTRODUCTION, summary(rows, profiles)]
    heads = [f"Ours at {_escape(profile)}" for profile in run]
    header = ["Claim", "Figure", "Statement", "The paper reports", *heads]
    header += ["Data set, scale and seeds", "Notebook", "Rule"]
    for paper in sorted({row["paper"] for row in rows}, key=_natural):
        by_claim: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
        for row in rows:
            if row["paper"] == paper:
                by_claim.setdefault((row["id"], row["notebook"]), {})[row["profile"]] = row
        lines = [_line(runs, run) for runs in by_claim.values()]
        text += [f"## {_escape(paper)}\n", _table(header, lines)]
    with atomic(folder / FILE) as temporary:
        temporary.write_text("\n".join(text), encoding="utf-8")
    return folder / FILE


def update_readme(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put the summary of `rows` between the scorecard's two markers in a README, atomically.

    ``ValueError`` if the two markers are not there, once each and in order.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{path} must hold {BEGIN} and, after it, {END}, once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    with atomic(path) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{summary(rows)}\n{END}{after}", encoding="utf-8")
