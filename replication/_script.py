"""A notebook as a plain script: its code cells one after another in this process, no Jupyter."""

import importlib.util
import json
import linecache
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class CellError(Exception):
    """A cell raised; its exception is the cause, the message says which cell and line."""


def read(path: Path) -> SimpleNamespace:
    """Return the notebook at `path`: `cells`, each with `cell_type`, `metadata` and `source`.

    Raises
    ------
    ValueError
        If the file is not a notebook of format 4.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found = [
            SimpleNamespace(
                cell_type=cell["cell_type"],
                metadata=cell["metadata"],
                source="".join(cell["source"]),  # a string, or a list of lines
            )
            for cell in cells
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not readable as a notebook ({error})") from None
    return SimpleNamespace(cells=found)


def sources(
    notebook: SimpleNamespace, parameters: Mapping[str, Any]
) -> Iterator[tuple[int, str | Mapping[str, Any]]]:
    """Yield each code cell's place, from 1, and source; after the tagged one, `parameters`."""
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code":
            yield number, cell.source
            if "parameters" in cell.metadata.get("tags", []):
                yield number, parameters


def run(
    notebook: SimpleNamespace,
    name: str,
    parameters: Mapping[str, Any],
    after_cell: Callable[[int], None] = lambda number: None,
) -> None:
    """Execute the code cells of a notebook, its parameters set as papermill would.

    They run in a fresh module ``__main__``, as in a kernel: functions of the notebook have the
    names by which `sweeps` keeps their results, and reach the workers of a cluster. The value of a
    cell's last line is not shown.

    Raises
    ------
    CellError
        From what a cell raised.
    """
    with main_module() as namespace, quiet_display(namespace):
        for number, source in sources(notebook, parameters):
            if isinstance(source, Mapping):
                namespace.update(source)
                continue
            try:
                execute(source, f"{name}, cell {number}", namespace)
            except Exception as error:
                line = _line(error, f"{name}, cell {number}")
                raise CellError(f"cell {number} of {len(notebook.cells)}, line {line}") from error
            after_cell(number)


def execute(source: str, name: str, namespace: dict[str, Any]) -> None:
    """Execute one cell; tracebacks show its lines under `name`."""
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    exec(compile(source, name, "exec"), namespace)


def shown(error: CellError) -> str:
    """Return the traceback of what a cell raised, from the cell on."""
    cause = error.__cause__
    here = cause.__traceback__
    while here is not None and here.tb_frame.f_code.co_filename == __file__:
        here = here.tb_next
    return "".join(traceback.format_exception(type(cause), cause, here))


def _line(error: Exception, name: str) -> int:
    """Return the line of the cell from which `error` came, 1 if none can be told."""
    if isinstance(error, SyntaxError) and error.filename == name:
        return error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 1 for frame in frames if frame.filename == name), 1)


@contextmanager
def main_module() -> Iterator[dict[str, Any]]:
    """Yield the namespace of a new ``__main__``, there while the block lasts."""
    before, module = sys.modules["__main__"], ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        yield module.__dict__
    finally:
        sys.modules["__main__"] = before


@contextmanager
def quiet_display(namespace: dict[str, Any]) -> Iterator[None]:
    """Provide `display`, as a kernel does; without IPython, one that shows nothing."""
    if importlib.util.find_spec("IPython") is not None:
        from IPython.display import display

        namespace["display"] = display
        yield
        return

    def nothing(*args: Any, **options: Any) -> None:
        """Show nothing: nobody looks."""

    def other(name: str) -> Any:
        """Return what else is imported, such as Image; not `__file__`, which `inspect` asks for."""
        if name.startswith("__"):
            raise AttributeError(name)
        return nothing

    package, stub = ModuleType("IPython"), ModuleType("IPython.display")
    package.display, package.get_ipython, package.version_info = stub, lambda: None, (9, 0)
    stub.__getattr__ = other
    namespace["display"] = nothing
    before = {name: sys.modules.get(name, ...) for name in ("IPython", "IPython.display")}
    sys.modules |= {"IPython": package, "IPython.display": stub}
    try:
        yield
    finally:
        for name, module in before.items():
            if module is ...:
                del sys.modules[name]
            else:
                sys.modules[name] = module
