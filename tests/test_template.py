"""The template of a notebook runs as it is, and is what CONTRIBUTING.md says a notebook is."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from test_notebooks import CHECKS, bad_parameters, volatile

from replication import __main__, claims

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "templates" / "notebook.ipynb"
NAME = "99_template"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a collection of the template alone, run at smoke and written back."""
    folder = tmp_path_factory.mktemp("collection")
    (folder / "notebooks").mkdir()
    shutil.copy(TEMPLATE, folder / "notebooks" / f"{NAME}.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPLICATION_ROOT", str(folder))
        patch.setenv("REPLICATION_OFFLINE", "1")
        assert __main__.main(["figures", "--profile", "smoke", "--in-place"]) == 0
    return folder


def test_as_it_lies_there():
    notebook = nbformat.read(TEMPLATE, as_version=4)
    assert bad_parameters(notebook) == [] and volatile(notebook) == []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert f'NAME = "{NAME}"' in "\n".join(cell.source for cell in code)


@pytest.mark.slow
def test_once_run_it_is_like_the_committed_ones_with_its_figure_and_its_claims(root):
    notebook = nbformat.read(root / "notebooks" / f"{NAME}.ipynb", as_version=4)
    assert {check.__name__: check(notebook) for check in CHECKS if check(notebook)} == {}
    folder = root / "figures" / "smoke" / NAME
    assert all((folder / f"fig1_accuracy.{end}").is_file() for end in ("png", "svg", "parquet"))
    (row,) = claims.load(folder / claims.FILE)
    assert row["id"] == "T1" and len(row["values"]) == 2
    assert row["verdict"] == claims.INCONCLUSIVE  # two seeds are too few for any other


def test_what_the_guide_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= set(targets)
    named = re.findall(r"`((?:templates|tests|replication)/[\w/.]+\.\w+)`", text)
    assert named and all((ROOT / name).is_file() for name in named)
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope = {}
    exec(example, scope)
    assert scope["CLAIMS"][0].id == "B1"
