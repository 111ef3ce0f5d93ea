"""One page of all claims: ``figures/SCORECARD.md``, and its headline for the README."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from scipy import stats

from replication import claims
from replication._core import paths
from replication._core.files import atomic
from replication._core.profiles import EVIDENCE, PROFILES

FILE, AXES = "SCORECARD.md", "axes"
PILOT = "pilot"  # the folder of committed claims and figures of `quick`
BEGIN, END = "<!-- scorecard:begin -->", "<!-- scorecard:end -->"

# a shape as well as a word, for readers who cannot tell the colours
_SYMBOLS = dict(zip(claims.VERDICTS, "✔◐✘○–", strict=True))
_SVG: dict[Any, str] = {"svg.hashsalt": "replication", "svg.fonttype": "none"}  # the same bytes
_INTRODUCTION = """\
Verdicts are computed from independent units (trained networks) by rules fixed in code.
*Reproduced*: the 95% interval lies above the smallest effect of interest, or above 0 where the
paper gives a direction only. *Not reproduced*: below 0, or within the smallest effect. *Partly*:
some parts are. Fidelity: A near the paper's setting, B at least a tenth of it, C below; *quick*:
small networks on few images, a minute a notebook, no evidence, until that is measured. On an axis a
diamond is the paper's number, a point ours with its interval; less than the smallest effect is
shaded. p is one-sided, to be compared with 0.025; Holm and BH (Benjamini-Hochberg) are over all
empirical claims. More in `docs/statistics.md`; written by `python -m replication scorecard`.
"""
_HEADER = ["Claim", "Statement", "The paper reports", "Ours", "Axis", "Verdict", "Evidence"]
_HEADER += ["p; Holm; BH", "Why", "Rule", "Notebook"]


def _natural(text: str) -> list[Any]:
    """Return a sorting key that puts B2 before B10."""
    return [int(p) if p.isdecimal() else p.casefold() for p in re.split(r"([0-9]+)", text)]


def _cell(*texts: str, between: str = "<br>") -> str:
    """Return the texts that are not empty as a cell of a Markdown table."""
    texts = [re.sub(r"([\\|*`])", r"\\\1", " ".join(text.split())) for text in texts if text]
    return between.join(text.replace("<", "&lt;") for text in texts)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def collect(figures_folder: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    """Return the claims of every ``<profile>/<notebook>/claims.json`` of the figures folder.

    They are as `claims.load` gives them, by paper, id and profile. Those of `PILOT` stand for
    ``quick``. ``ValueError`` if there is none, or a file is malformed or in the folder of another
    profile or notebook.
    """
    folder = paths.figures() if figures_folder is None else Path(figures_folder)
    files = {file.parts[-3:-1]: file for file in sorted(folder.glob(f"*/*/{claims.FILE}"))}
    if not files:
        raise ValueError(f"there are no claims in {folder}; run `make figures` first")
    rows = []
    for place, file in files.items():
        if place[0] == "quick" and (PILOT, place[1]) in files:
            continue  # this machine's own, which the committed page does not show
        place = ("quick" if place[0] == PILOT else place[0], place[1])
        for row in claims.load(file):
            if (said := (row["profile"], row["notebook"])) != place:
                raise ValueError(f"{file}: claim {row['id']} is of {said}; its folder says {place}")
            rows.append(row)
    rows.sort(key=lambda row: PROFILES.index(row["profile"]))
    return sorted(rows, key=lambda row: (_natural(row["paper"]), _natural(row["id"])))


def select(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return one row a claim, from the profiles that are evidence where it is measured there.

    Else from ``quick``, or from any profile where no evidence is known at all. Of several the one
    of the best fidelity, then of the largest profile.
    """
    rows = list(rows)
    if any(row["profile"] in EVIDENCE for row in rows):
        rows = [row for row in rows if row["profile"] in ("quick", *EVIDENCE)]
    ranked = sorted(rows, key=lambda row: row["fidelity"], reverse=True)
    ranked.sort(key=lambda row: (row["units"] > 0, row["profile"] in EVIDENCE))
    best = {(row["notebook"], row["id"]): row for row in ranked}
    return [row for row in rows if best[row["notebook"], row["id"]] is row]


def summary(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a Markdown table of the empirical claims by fidelity and verdict, a fact once.

    Those of a profile that is no evidence are counted apart, under its name. Those of which nothing
    is measured yet have no verdict, and their number stands below.
    """
    counted = [r for r in rows if r["kind"] == "empirical" and not r["restates"]]
    grades = [r["fidelity"] if r["profile"] in EVIDENCE else r["profile"] for r in counted]
    counts = Counter(
        (grade, r["verdict"]) for grade, r in zip(grades, counted, strict=True) if r["units"]
    )
    lines = [
        [grade, *(str(counts[grade, verdict]) for verdict in claims.VERDICTS)]
        for grade in sorted({grade for grade, _ in counts})
    ]
    heads = [f"{symbol} {verdict}" for verdict, symbol in _SYMBOLS.items()]
    waiting = sum(not r["units"] for r in counted)
    below = f"\nOf {waiting} more nothing is measured yet.\n" if waiting else ""
    return _table(["Empirical claims at fidelity", *heads], lines) + below


def adjusted(p: Sequence[float]) -> list[tuple[float, float]]:
    """Return each p value as Holm and as Benjamini and Hochberg adjust it."""
    p, order, holm = np.asarray(p), np.argsort(p, kind="stable"), np.empty(len(p))
    holm[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return list(zip(holm, stats.false_discovery_control(p), strict=True)) if len(p) else []


def _line(
    row: Mapping[str, Any], axis: str, corrections: Sequence[float], history: Sequence[str]
) -> list[str]:
    """Return the cells of one claim."""
    status = row["status"]
    if row["profile"] not in EVIDENCE:
        history, status = history[:1], "exploratory"
    evidence = [f"fidelity {row['fidelity']}", f"{row['units']} unit{'s' * (row['units'] != 1)}"]
    evidence += [row["profile"], row["dataset"] * (row["dataset"] not in row["scale"])]
    same = f", restates {row['restates']}" if row["restates"] else ""
    numbers = [] if row["p"] is None else [row["p"], *corrections]
    return [
        _cell(row["id"]),
        _cell(row["statement"], f"{row['kind']}, {status}{same}", row["figure"]),
        _cell(row["paper_value"]),
        _cell(claims.ours(row), row["note"]),
        f"![]({axis})",
        f"{_SYMBOLS[row['verdict']]} {row['verdict']}" if row["units"] else "not measured yet",
        _cell(*evidence, row["scale"], between="; "),
        "; ".join(f"{number:.2g}" for number in numbers),
        _cell(row["why"] * (row["verdict"] != claims.REPRODUCED)),
        _cell(row["rule"], row["corrected"] and f"Corrected: {row['corrected']}", *history),
        f"[{_cell(row['notebook'])}](<../notebooks/{row['notebook']}.ipynb>)",
    ]


def write(
    figures_folder: str | os.PathLike | None = None,
    history: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Write ``SCORECARD.md`` and its axes into the figures folder, atomically; return its path.

    It holds what `select` gives, the same claims in the same bytes, and what `history` says of each
    by its id: of its rule, and of its evidence. It raises what `collect` does.
    """
    folder = paths.figures() if figures_folder is None else Path(figures_folder)
    rows = select(collect(folder))
    text = ["# Scorecard\n"]
    if not {row["profile"] for row in rows} & set(EVIDENCE):
        text.append(f"**Not the evidence: run `make figures PROFILE={EVIDENCE[0]}` for that.**\n")
    text += [summary(rows), _INTRODUCTION]
    inferred = [i for i, r in enumerate(rows) if r["kind"] == "empirical" and r["p"] is not None]
    corrections = dict(zip(inferred, adjusted([rows[i]["p"] for i in inferred]), strict=True))
    lines: dict[str, list] = {}  # by paper, in order
    for i, row in enumerate(rows):
        axis = f"{AXES}/" + re.sub(r"[^\w.-]", "_", f"{row['notebook']}_{row['id']}.svg")
        with rc_context(_SVG), atomic(folder / axis) as temporary:
            claims.draw(row).savefig(temporary, format="svg", metadata={"Date": None})
        cells = _line(row, axis, corrections.get(i, ()), (history or {}).get(row["id"], ()))
        lines.setdefault(row["paper"], []).append(cells)
    for paper, own in lines.items():
        text += [f"## {_cell(paper)}\n", _table(_HEADER, own)]
    with atomic(folder / FILE) as temporary:
        temporary.write_text("\n".join(text), encoding="utf-8")
    return folder / FILE


def update_readme(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put the summary of `rows` between the scorecard's two markers in a README, atomically.

    ``ValueError`` if the two markers are not there, once each and in order.
    """
    path = Path(path)
    before, _, rest = (text := path.read_text(encoding="utf-8")).partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end or text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path} must hold {BEGIN} and, after it, {END}, once each")
    with atomic(path) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{summary(rows)}\n{END}{after}", encoding="utf-8")
