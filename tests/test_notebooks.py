"""The committed notebooks, as they lie there: executed, whole, and of no particular machine.

nbval runs them, but passes one that was never executed; hence these checks.
"""

import ast
import re
import statistics
from pathlib import Path

import nbformat
import pytest

from replication.papers._figures import KEPT_METADATA, WIDGET

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|work|tmp|Users)/|\bC:\\")
MAX_BYTES = 3_000_000
V4 = nbformat.v4


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def not_valid(notebook):
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return [str(error).splitlines()[0]]
    return []


def not_executed(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    expected = list(range(1, len(counts) + 1))
    return [] if counts == expected and counts else [f"execution counts {counts}"]


def errors(notebook):
    return [
        f"{output.output_type} {output.get('ename', output.get('text', ''))}"
        for output in outputs(notebook)
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


def machine_paths(notebook):
    texts = [cell.source for cell in notebook.cells]
    for output in outputs(notebook):
        texts.append(output.get("text", ""))
        texts.extend(output.get("traceback", []))
        texts.extend(
            str(value)
            for kind, value in output.get("data", {}).items()
            if kind == "image/svg+xml" or not kind.startswith("image/")  # the others are base64
        )
    return [text[:200] for text in texts if MACHINE_PATH.search(text)]


def bad_parameters(notebook):
    first = code_cells(notebook)[0] if code_cells(notebook) else None
    if first is None or "parameters" not in first.metadata.get("tags", []):
        return ["the first code cell is not tagged 'parameters'"]
    names, problems = [], []
    for statement in ast.parse(first.source).body:
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        if not (
            isinstance(statement, ast.Assign | ast.AnnAssign)
            and len(targets) == 1
            and isinstance(targets[0], ast.Name)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str | int | float | None)
        ):
            problems.append(f"not a plain constant: {ast.unparse(statement)}")
        else:
            names.append(targets[0].id)
    return problems if "profile" in names else [*problems, "no parameter 'profile'"]


def volatile(notebook):
    found = sorted(set(notebook.metadata) - {"kernelspec", "language_info"})
    for cell in notebook.cells:
        found += sorted(set(cell.metadata) - set(KEPT_METADATA))
    found += [WIDGET for output in outputs(notebook) if WIDGET in output.get("data", {})]
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("kernelspec")
    return found


def checked(notebook):
    cells = [cell for cell in code_cells(notebook) if cell.outputs]
    return [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", [])]


def unchecked(notebook):
    return [] if checked(notebook) else ["no cell with an output is tagged 'nbval-check-output'"]


def unreadable(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    problems = [f"a code cell of {max(lengths)} lines"] if max(lengths) > 40 else []
    if statistics.median(lengths) > 15:
        problems.append(f"half of the code cells have {statistics.median(lengths)} lines or more")
    source = "\n".join(cell.source for cell in code_cells(notebook))
    return problems + re.findall(r"^.*import.* _\w+.*|^from [\w.]*\._.*", source, re.MULTILINE)


CHECKS = [not_valid, not_executed, errors, machine_paths, bad_parameters, volatile, unchecked]
CHECKS.append(unreadable)


def test_there_are_notebooks():
    assert NOTEBOOKS
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name) for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_committed(path, check):
    assert check(nbformat.read(path, as_version=4)) == []
    assert path.stat().st_size < MAX_BYTES, "run it with smaller figures"


ERROR = V4.new_output("error", ename="ValueError", evalue="", traceback=[])


@pytest.fixture
def good():
    """Three cells of a committed notebook, which pass: a text, its parameters, and one checked."""
    notebook = nbformat.read(NOTEBOOKS[1], as_version=4)
    last = checked(notebook)[0]
    picture = V4.new_output("display_data", data={"image/png": "AA/tmp/AA"})
    last.update(execution_count=2, outputs=[*last.outputs, picture])
    notebook.cells = [notebook.cells[0], code_cells(notebook)[0], last]
    assert [check(notebook) for check in CHECKS] == [[]] * len(CHECKS)
    return notebook


# What is changed of a good notebook: of its first code cell, its last, or elsewhere.
BAD = [
    (not_valid, lambda n, first, last: last.update(extra=1)),
    (not_executed, lambda n, first, last: last.update(execution_count=None)),
    (not_executed, lambda n, first, last: n.update(cells=n.cells[:1])),
    (errors, lambda n, first, last: last.outputs.append(ERROR)),
    (errors, lambda n, first, last: last.outputs[0].update(name="stderr")),
    (machine_paths, lambda n, first, last: last.update(source="open('/home/me/x')")),
    (machine_paths, lambda n, first, last: last.outputs[0].update(text="saved to /tmp/x\n")),
    (machine_paths, lambda n, first, last: last.outputs[1].data.update({"text/html": "/Users/me"})),
    (machine_paths, lambda n, first, last: n.cells[0].update(source="C:\\Users\\me")),
    (bad_parameters, lambda n, first, last: first.metadata.update(tags=[])),
    (bad_parameters, lambda n, first, last: first.update(source=f"{first.source}\ns = 2 * seeds")),
    (bad_parameters, lambda n, first, last: first.update(source="seeds = 3")),
    (volatile, lambda n, first, last: n.metadata.update(papermill={})),
    (volatile, lambda n, first, last: last.metadata.update(execution={})),
    (volatile, lambda n, first, last: n.metadata.kernelspec.update(name="mine")),
    (volatile, lambda n, first, last: last.outputs[1].data.update({WIDGET: {}})),
    (unchecked, lambda n, first, last: last.metadata.update(tags=[])),
    (unchecked, lambda n, first, last: last.update(outputs=[])),
    (unreadable, lambda n, first, last: last.update(source="x\n" * 41)),
    (unreadable, lambda n, first, last: [c.update(source="x\n" * 16) for c in (first, last)]),
    (unreadable, lambda n, first, last: last.update(source="from replication._core import paths")),
    (unreadable, lambda n, first, last: last.update(source="from x.sweeps import load, _store")),
]


@pytest.mark.parametrize(("check", "spoil"), BAD)
def test_a_bad_notebook_is_found(good, check, spoil):
    spoil(good, *good.cells[1:])
    assert check(good)
