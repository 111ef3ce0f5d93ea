"""The collection as a static site: what `make html` writes into ``site/``.

Nothing is run and nothing is fetched: the pages show the notebooks as they lie there, executed,
and the claims in the figures folder. The pages ask for nothing outside the folder, so that it can
be read from a disk as well as from a server: formulas are MathML, the one style sheet and the one
script lie beside the pages, and without the script only the sorting, the filters and the switch
between light and dark are missing.
"""

import glob
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import replication
from replication import _site_pictures, claims, paths, scorecard
from replication._files import is_abandoned, mark
from replication._site_notebooks import FILES, Body, read

__all__ = ["build"]

SYMBOLS = dict(zip(claims.VERDICTS, "✔✘○", strict=True))
STATIC = ("site.css", "site.js")
FRONT = "index.html"
MARK = ".inner-activations-site"  # a folder that holds files, but not this one, is left alone


@dataclass(frozen=True)
class Tally:
    """How many claims came out how, at one profile: (verdict, symbol, count) of each verdict."""

    label: str
    profile: str
    verdicts: tuple[tuple[str, str, int], ...]


def build(target: str | os.PathLike | None = None) -> Path:
    """Write the site into a folder and return its front page.

    The folder appears whole or not at all, in place of a site that was there.

    Parameters
    ----------
    target : path, optional
        By default ``site/`` beside ``notebooks/``.

    Raises
    ------
    ValueError
        If there are no notebooks, one of them or a ``claims.json`` is malformed, `target` holds
        something other than a site, or the packages that convert notebooks are missing.
    """
    target = Path(target) if target is not None else paths.root() / "site"
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"target: {target} is a file; expected a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / MARK).is_file():
        raise ValueError(
            f"target: {target} holds something other than a site of ours; it stays as it is"
        )
    _require()
    from replication import _notebook_files

    bodies = [read(path) for path in _notebook_files.select(None)]
    written = any(paths.figures().glob(f"*/*/{claims.FILE}"))
    rows = scorecard.select(scorecard.collect()) if written else []
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target)
    folder = target.with_name(f".{target.name}.{mark()}")
    try:
        _write(folder, bodies, rows)
        if target.exists():
            shutil.rmtree(target)
        os.replace(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target / FRONT


def _remove_stale(target: Path) -> None:
    """Remove what builds of `target` left that were killed."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if folder.is_dir() and is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _require() -> None:
    try:
        import jinja2  # noqa: F401
        import latex2mathml  # noqa: F401
        import nbconvert  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"the site needs {error.name}: pip install -e '.[notebooks]'") from None


def _write(folder: Path, bodies: Sequence[Body], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all pages, and what they need, into a new folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from replication import _site_api

    environment = Environment(
        loader=FileSystemLoader(FILES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def page(name: str, template: str, **content: Any) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        common = {
            "up": "../" * name.count("/"),
            "version": replication.__version__,
            "symbols": SYMBOLS,
        }
        text = environment.get_template(template).render(**common, **content)
        path.write_text(text, encoding="utf-8")

    of = {body.stem: [row for row in rows if row["notebook"] == body.stem] for body in bodies}
    cards = [
        {
            "body": body,
            "thumbnail": _site_pictures.thumbnail(body),
            "papers": sorted({row["paper"] for row in of[body.stem]}),
            "tallies": tallies(of[body.stem], "notebook"),
        }
        for body in bodies
    ]
    for card in cards:
        _site_pictures.write(folder, card["body"], card["thumbnail"])
    summary: dict[str, dict[str, Tally]] = {}
    for tally in tallies(rows, "paper"):
        summary.setdefault(tally.label, {})[tally.profile] = tally
    shown = scorecard.columns(rows)
    found = scorecard.by_claim(rows)
    page(FRONT, "index.html.j2", cards=cards, summary=summary, profiles=shown, claims=len(found))
    for i, card in enumerate(cards):
        page(
            f"notebooks/{card['body'].stem}.html",
            "notebook.html.j2",
            **card,
            before=cards[i - 1]["body"] if i else None,
            after=cards[i + 1]["body"] if i + 1 < len(cards) else None,
        )
    run = [profile for profile, has_run in shown if has_run]
    options = {"paper": list(dict.fromkeys(row["paper"] for row in rows)), "profile": run}
    options["verdict"] = [verdict for verdict in claims.VERDICTS if rows]
    options["notebook"] = sorted({row["notebook"] for row in rows})
    page(
        "scorecard.html",
        "scorecard.html.j2",
        claims=[{p: {**row, "ours": claims.ours(row)} for p, row in c.items()} for c in found],
        profiles=run,
        options=options,
        pages={body.stem for body in bodies},
    )
    page("api.html", "api.html.j2", modules=_site_api.modules())
    for name in STATIC:
        shutil.copyfile(FILES / name, folder / name)
    (folder / MARK).touch()


def tallies(rows: Sequence[Mapping[str, Any]], key: str) -> list[Tally]:
    """Count the verdicts of `rows` by the value of `key`, and by profile, in their order."""
    counts = Counter((row[key], row["profile"], row["verdict"]) for row in rows)
    groups = dict.fromkeys((row[key], row["profile"]) for row in rows)
    return [
        Tally(
            label,
            profile,
            tuple(
                (verdict, SYMBOLS[verdict], counts[label, profile, verdict]) for verdict in SYMBOLS
            ),
        )
        for label, profile in groups
    ]
