"""Notebook files: which there are, what one declares, and an executed one written back stripped."""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from replication._core import paths
from replication._core.files import atomic

# What of a cell's metadata is the author's; all else is left there by the tools that ran it.
KEPT_METADATA = ("tags", "jupyter", "slideshow", "editable")
WIDGET = "application/vnd.jupyter.widget-view+json"


class Failed(Exception):
    """A notebook did not run, or ran into an error; the message is for the user."""


def select(wanted: Sequence[str] | None) -> list[Path]:
    """Return the notebooks whose names begin with one of `wanted`; all of them for None.

    Raises
    ------
    ValueError
        If there are no notebooks, or none begins with one of the names.
    """
    folder = paths.notebooks()
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise ValueError(f"there are no notebooks in {folder}")
    if wanted is None:
        return found
    chosen = set()
    for name in wanted:
        matches = [path for path in found if name and path.name.startswith(name)]
        if not matches:
            there = ", ".join(path.stem for path in found)
            raise ValueError(f"there is no notebook {name!r}; there are {there}")
        chosen.update(matches)
    return sorted(chosen)


def read(path: Path) -> Any:
    """Return the notebook at `path` as nbformat has it; `Failed` where it is none."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat raises nearly anything for what is no notebook
        reason = first_line(str(error)) or type(error).__name__
        raise Failed(f"not readable as a notebook ({reason})") from None
    return notebook


def parameters_of(notebook: Any) -> list[str]:
    """Return the names that the cell tagged ``parameters`` assigns."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            break
    else:
        raise Failed("not run: it has no code cell tagged 'parameters'")
    try:
        statements = ast.parse(cell.source).body
    except SyntaxError as error:
        raise Failed(f"not run: its parameters cell is not valid Python ({error})") from None
    names = []
    for statement in statements:
        if isinstance(statement, ast.AnnAssign):
            names.append(statement.target)
        elif isinstance(statement, ast.Assign):
            names.extend(statement.targets)
    return [name.id for name in names if isinstance(name, ast.Name)]


def first_line(text: str) -> str:
    """Return the first line of `text` that is not blank."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


def write_back(path: Path, notebook: Any, executed: Any) -> None:
    """Write the outputs of `executed` into the notebook at `path`, without volatile metadata.

    Sources, ids and attachments stay the author's: only outputs and counts are taken over.
    """
    import nbformat

    for index, (cell, ran) in enumerate(zip(notebook.cells, executed.cells, strict=True)):
        if "id" not in cell:  # written before ids existed: one that stays
            cell["id"] = f"cell-{index:02d}"
        cell.metadata = nbformat.from_dict(
            {
                name: cell.metadata[name]
                for name in KEPT_METADATA
                if cell.metadata.get(name) not in (None, [], {})
            }
        )
        if cell.cell_type == "code":
            cell.execution_count = ran.execution_count
            cell.outputs = [output for output in map(_stripped, ran.outputs) if output]
    notebook.nbformat, notebook.nbformat_minor = 4, max(5, notebook.nbformat_minor)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    nbformat.validate(notebook)
    with atomic(path) as temporary:
        text = nbformat.writes(notebook, version=nbformat.NO_CONVERT)
        temporary.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def _stripped(output: Any) -> Any:
    """Return an output without what changes from run to run; None if nothing is left of it."""
    output.pop("transient", None)
    # A widget's state is not kept, and without it its view is an empty box.
    return None if WIDGET in output.get("data", {}) else output
