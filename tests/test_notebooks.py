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


def unchecked(notebook):
    checked = [
        cell
        for cell in code_cells(notebook)
        if "nbval-check-output" in cell.metadata.get("tags", []) and cell.outputs
    ]
    return [] if checked else ["no cell with an output is tagged 'nbval-check-output'"]


def unreadable(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    problems = [f"a code cell of {max(lengths)} lines"] if max(lengths) > 40 else []
    if statistics.median(lengths) > 15:
        problems.append(f"half of the code cells have {statistics.median(lengths)} lines or more")
    source = "\n".join(cell.source for cell in code_cells(notebook))
    return problems + re.findall(r"^.*import.* _\w+.*|^from [\w.]*\._.*", source, re.MULTILINE)


CHECKS = [
    not_valid,
    not_executed,
    errors,
    machine_paths,
    bad_parameters,
    volatile,
    unchecked,
    unreadable,
]


def test_there_are_notebooks():
    assert NOTEBOOKS
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name) for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_committed(path, check):
    assert check(nbformat.read(path, as_version=4)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_is_small(path):
    assert path.stat().st_size < MAX_BYTES, "run it with smaller figures"


@pytest.fixture
def good():
    notebook = V4.new_notebook(
        metadata={
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    first = 'profile: str = "full"  # the scale\nseeds = 3'
    notebook.cells = [
        V4.new_markdown_cell("# Title, a map $f:\\mathbb{R}\\to\\mathbb{R}$, mean/work/ratio"),
        V4.new_code_cell(first, execution_count=1, metadata={"tags": ["parameters"]}),
        V4.new_code_cell(
            "print(1)",
            execution_count=2,
            metadata={"tags": ["nbval-check-output"]},
            outputs=[
                V4.new_output("stream", name="stdout", text="1\n"),
                V4.new_output("display_data", data={"image/png": "AA/tmp/AA"}),
            ],
        ),
    ]
    return notebook


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_good_notebook_passes(good, check):
    assert check(good) == []


def spoil(notebook, kind):
    title, first, last = notebook.cells
    if kind == "schema":
        last["extra"] = 1
    elif kind == "not run":
        last.execution_count = None
    elif kind == "gap":
        last.execution_count = 4
    elif kind == "no code":
        notebook.cells = [title]
    elif kind == "error":
        last.outputs.append(V4.new_output("error", ename="ValueError", evalue="", traceback=[]))
    elif kind == "stderr":
        last.outputs.append(V4.new_output("stream", name="stderr", text="a warning"))
    elif kind == "path in source":
        last.source = "open('/home/me/x')"
    elif kind == "path in output":
        last.outputs[0].text = "saved to /tmp/x\n"
    elif kind == "path in html":
        last.outputs[1].data["text/html"] = "<a href='/Users/me/x'>"
    elif kind == "path of windows":
        title.source = "C:\\Users\\me"
    elif kind == "untagged":
        first.metadata.tags = []
    elif kind == "computed":
        first.source += "\nsteps = 2 * seeds"
    elif kind == "import":
        first.source += "\nimport os"
    elif kind == "no profile":
        first.source = "seeds = 3"
    elif kind == "papermill":
        notebook.metadata.papermill = {}
    elif kind == "timing":
        last.metadata.execution = {}
    elif kind == "kernel":
        notebook.metadata.kernelspec.name = "mine"
    elif kind == "widget":
        last.outputs[1].data[WIDGET] = {}
    elif kind == "no check":
        last.metadata.tags = []
    elif kind == "nothing to check":
        last.outputs = []
    elif kind == "long cell":
        last.source = "x\n" * 41
    elif kind == "long cells":
        first.source = last.source = "x\n" * 16
    elif kind == "private import":
        last.source = "from replication._core import paths"
    elif kind == "private name":
        last.source = "from replication.sweeps import load, _store"


@pytest.mark.parametrize(
    ("check", "kind"),
    [
        (not_valid, "schema"),
        (not_executed, "not run"),
        (not_executed, "gap"),
        (not_executed, "no code"),
        (errors, "error"),
        (errors, "stderr"),
        (machine_paths, "path in source"),
        (machine_paths, "path in output"),
        (machine_paths, "path in html"),
        (machine_paths, "path of windows"),
        (bad_parameters, "untagged"),
        (bad_parameters, "computed"),
        (bad_parameters, "import"),
        (bad_parameters, "no profile"),
        (volatile, "papermill"),
        (volatile, "timing"),
        (volatile, "kernel"),
        (volatile, "widget"),
        (unchecked, "no check"),
        (unchecked, "nothing to check"),
        (unreadable, "long cell"),
        (unreadable, "long cells"),
        (unreadable, "private import"),
        (unreadable, "private name"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_bad_notebook_is_found(good, check, kind):
    spoil(good, kind)
    assert check(good)
