"""What the notebooks left behind; run by .ci/run after them, and not collected otherwise.

The profile is that of ``REPLICATION_PROFILE``, smoke by default.
"""

import os

import pytest

from replication import claims
from replication._core import paths

PROFILE = os.environ.get("REPLICATION_PROFILE", "smoke")
NOTEBOOKS = sorted(paths.notebooks().glob("[0-9][0-9]_*.ipynb"))


def test_there_are_notebooks_and_a_scorecard():
    assert NOTEBOOKS
    assert (paths.figures() / "SCORECARD.md").read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_claims_are_valid_and_every_figure_has_its_vector_graphic_and_its_numbers(name):
    folder = paths.figures() / PROFILE / name
    if name.startswith("00_"):  # for networks of the reader's own: it settles nothing
        assert not (folder / claims.FILE).exists()
    else:
        assert {row["profile"] for row in claims.load(folder / claims.FILE)} == {PROFILE}
    pictures = sorted(folder.rglob("*.png"))
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size > 0
        assert picture.with_suffix(".svg").is_file(), picture
        numbers = [picture.with_suffix(suffix) for suffix in (".json", ".parquet")]
        assert any(path.is_file() for path in numbers), picture
