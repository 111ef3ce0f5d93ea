"""Imports point one way: drawing, files and notebooks know the numerics, not the reverse."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "replication"
NUMERICS = [
    PACKAGE / "spectra.py",
    PACKAGE / "activations.py",
    *(
        path
        for folder in ("similarity", "sensitivity", "directions", "memorisation")
        for path in (PACKAGE / folder).glob("*.py")
    ),
]
ABOVE = {"data", "training", "sweeps", "claims", "scorecard", "plotting", "cli", "paths", "rules"}


def imported(tree):
    """Yield the modules of this package that are imported when a file is."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "replication":
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]


@pytest.mark.parametrize("path", NUMERICS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_numerics_import_nothing_above_them(path):
    assert not set(imported(ast.parse(path.read_text(encoding="utf-8")))) & ABOVE


def test_the_check_sees_an_import_that_points_up():
    tree = ast.parse("from replication import plotting\nfrom replication.data import load")
    assert set(imported(tree)) == {"plotting", "data"}
