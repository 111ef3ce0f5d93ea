"""What `make figures` left behind; run by .ci/run after it, and not collected otherwise.

The profile is that of ``REPLICATION_PROFILE``, smoke by default.
"""

import os
from pathlib import Path

import nbformat
import pytest

from replication import claims
from replication._core import paths
from replication._core.files import read_json

PROFILE = os.environ.get("REPLICATION_PROFILE", "smoke")
NOTEBOOKS = sorted(paths.notebooks().glob("[0-9][0-9]_*.ipynb"))

notebooks = pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])


def folder(name: str) -> Path:
    return paths.figures() / PROFILE / name


def test_there_are_notebooks_and_a_scorecard():
    assert NOTEBOOKS
    assert (paths.figures() / "SCORECARD.md").read_text(encoding="utf-8").strip()


@notebooks
def test_the_notebook_ran_to_its_end(name):
    assert read_json(folder(name) / "run.json")["parameters"]["profile"] == PROFILE
    executed = nbformat.read(folder(name) / f"{name}.ipynb", as_version=4)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert [o for cell in code for o in cell.outputs if o.output_type == "error"] == []


@notebooks
def test_the_claims_are_valid(name):
    if name.startswith("00_"):  # for networks of the reader's own: it settles nothing
        assert not (folder(name) / "claims.json").exists()
        return
    rows = claims.load(folder(name) / "claims.json")
    assert {row["profile"] for row in rows} == {PROFILE}


@notebooks
def test_every_figure_has_its_vector_graphic_and_its_numbers(name):
    pictures = sorted(folder(name).rglob("*.png"))
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size > 0
        assert picture.with_suffix(".svg").is_file(), picture
        numbers = [picture.with_suffix(suffix) for suffix in (".json", ".parquet")]
        assert any(path.is_file() for path in numbers), picture
