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
# What the numerics stand on, and each other; nothing else of the package.
BELOW = {"_inputs", "_perturbations", "_precision", "_progress", "activations"}
BELOW |= {"similarity", "sensitivity", "directions", "memorisation", "spectra"}


def imported(tree):
    """Yield the modules of this package that are imported when a file is."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            package, _, rest = name.partition(".")
            if package == "replication":
                yield rest.partition(".")[0]


@pytest.mark.parametrize("path", NUMERICS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_numerics_import_nothing_above_them(path):
    assert set(imported(ast.parse(path.read_text(encoding="utf-8")))) <= BELOW


def test_the_check_sees_an_import_that_points_up():
    lines = ("from replication import plotting", "from replication.data import load")
    tree = ast.parse("\n".join((*lines, "import replication._files", "import torch")))
    assert set(imported(tree)) == {"plotting", "data", "_files"}
