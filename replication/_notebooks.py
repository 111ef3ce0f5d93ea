"""Run notebooks through papermill, remember which are up to date, write them back stripped."""

import ast
import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from replication import _kernels, paths, profiles
from replication._files import atomic, read_json, temporary_for, write_json

PACKAGE = Path(__file__).resolve().parent
# What of a cell's metadata is the author's; all else is left there by the tools that ran it.
KEPT_METADATA = ("tags", "jupyter", "slideshow", "editable")
WIDGET = "application/vnd.jupyter.widget-view+json"


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


def run(
    notebooks: Sequence[Path],
    profile: str,
    parameters: Mapping[str, Any],
    force: bool = False,
    in_place: bool = False,
) -> int:
    """Run notebooks one after the other and return 1 if one of them failed, else 0.

    Parameters
    ----------
    notebooks : sequence of Path
        What `select` returned.
    profile : str
        The scale; it is given to every notebook as the parameter ``profile``.
    parameters : mapping
        Further parameters. A notebook that does not declare one of them fails unrun, since
        papermill would ignore it.
    force : bool
        Run also what is up to date.
    in_place : bool
        Pass no parameters, only the environment, and write the result back to `notebooks`.
    """
    _require_papermill()
    from tqdm import tqdm

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what went wrong is told below
    parameters = {"profile": profile, **parameters}
    surroundings = _surroundings()
    failed = []
    with (
        _environment(profile),
        tqdm(
            total=len(notebooks),
            unit="notebook",
            file=sys.stderr,
            dynamic_ncols=True,
            disable=False,  # whatever TQDM_DISABLE says to the kernels
        ) as bar,
    ):
        for path in notebooks:
            bar.set_description(path.stem)
            try:
                line = _run_one(path, profile, parameters, surroundings, force, in_place, bar)
            except (_Failed, OSError) as failure:
                failed.append(path.stem)
                line = f"{path.stem}: {failure}"
            bar.write(line, file=sys.stdout)
            bar.set_postfix_str("", refresh=False)
            bar.update()
    if any(paths.figures().glob("*/*/claims.json")):
        from replication import scorecard

        try:
            scorecard.write()
        except (ValueError, OSError) as error:
            failed.append(f"the scorecard ({error})")
    if failed:
        print(f"replication: error: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


class _Failed(Exception):
    """A notebook did not run, or ran into an error; the message is for the user."""


def _run_one(
    path: Path,
    profile: str,
    parameters: dict[str, Any],
    surroundings: dict[str, Any],
    force: bool,
    in_place: bool,
    bar: Any,
) -> str:
    import nbformat

    notebook = _read(path)
    declared = _declared(notebook)
    if unknown := [name for name in parameters if name not in declared]:
        has = ", ".join(declared) or "none"
        raise _Failed(f"not run: it has no parameter {', '.join(unknown)} (it has {has})")

    folder = paths.figures() / profile / path.stem
    output = folder / path.name
    record = folder / "run.json"
    key = _key(notebook, parameters, surroundings)
    if not (force or in_place) and _up_to_date(record, output, key):
        return f"{path.stem}: up to date (--force runs it again)"

    # From here until run.json is written again, a killed run counts as not having been.
    record.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    _execute(path, output, {} if in_place else parameters, len(notebook.cells), bar)
    seconds = time.perf_counter() - start
    if in_place:
        _write_back(path, notebook, nbformat.read(output, as_version=4))
    files = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    )
    write_json(
        record,
        {
            "key": key,
            "parameters": parameters,
            "seconds": round(seconds, 1),
            "versions": surroundings["versions"],
            "files": files,
        },
    )
    return f"{path.stem}: done in {seconds:.1f} s"


def _read(path: Path) -> Any:
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat raises nearly anything for what is no notebook
        reason = _first_line(str(error)) or type(error).__name__
        raise _Failed(f"not readable as a notebook ({reason})") from None
    return notebook


def _execute(path: Path, output: Path, parameters: dict[str, Any], cells: int, bar: Any) -> None:
    """Run a notebook in a kernel of this interpreter; keep it at `output`, failed or not."""
    import papermill
    from papermill.exceptions import PapermillException, PapermillExecutionError

    partial = temporary_for(output)
    start = time.perf_counter()

    def told(cell_index: int, **_: Any) -> None:
        if sys.stderr.isatty():
            bar.set_postfix_str(f"cell {cell_index + 1} of {cells}")

    try:
        papermill.execute_notebook(
            _escaped(path),
            _escaped(partial),
            parameters=parameters,
            kernel_name="python3",
            language="python",
            kernel_manager_class=_kernels.own(),
            on_cell_start=told,
            progress_bar=False,
            log_output=False,
            cwd=str(paths.root()),
        )
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {_first_line(error.evalue)} (In [{error.exec_count}])"
    except (PapermillException, RuntimeError, TimeoutError, ValueError) as error:
        reason = f"{type(error).__name__}: {_first_line(str(error))}"
    except OSError as error:  # it may be what wrote the notebook that failed, in the middle of it
        partial.unlink(missing_ok=True)
        reason = f"{output}: {error}"
    else:
        reason = ""
    finally:
        if written := partial.exists():
            os.replace(partial, output)
    if reason:
        seconds = time.perf_counter() - start
        kept = f"\n    kept with its error: {output}" if written else ""
        raise _Failed(f"failed after {seconds:.1f} s: {reason}{kept}")


def _require_papermill() -> None:
    try:
        import ipykernel  # noqa: F401
        import papermill  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"running notebooks needs {error.name}: pip install -e '.[notebooks]'"
        ) from None


def _escaped(path: Path) -> str:
    """Return a path that papermill, which formats its paths, leaves as it is."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


@contextmanager
def _environment(profile: str) -> Iterator[None]:
    """Set what the kernels inherit, and put it back afterwards."""
    before = dict(os.environ)
    os.environ[profiles.VARIABLE] = profile
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # debugpy's notice on frozen modules
    os.environ["TQDM_DISABLE"] = "1"  # nobody watches, and a bar would stay in the notebook
    os.environ.pop("MPLBACKEND", None)  # figures belong into the notebook
    # The kernel runs this very package, also where it is not installed, ...
    python_path = [str(PACKAGE.parent), *filter(None, [before.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(python_path)
    # ... and in another working directory, where relative paths would mean something else.
    for name in ("REPLICATION_ROOT", "REPLICATION_DATA"):
        if before.get(name):
            os.environ[name] = str(Path(before[name]).expanduser().resolve())
    for root in (paths.root(), PACKAGE.parent):
        if (root / ".ipython" / "profile_default" / "ipython_kernel_config.py").is_file():
            os.environ["IPYTHONDIR"] = str(root / ".ipython")
            break
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _declared(notebook: Any) -> list[str]:
    """Return the names that the cell tagged ``parameters`` assigns."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            break
    else:
        raise _Failed("not run: it has no code cell tagged 'parameters'")
    try:
        statements = ast.parse(cell.source).body
    except SyntaxError as error:
        raise _Failed(f"not run: its parameters cell is not valid Python ({error})") from None
    names = []
    for statement in statements:
        if isinstance(statement, ast.AnnAssign):
            names.append(statement.target)
        elif isinstance(statement, ast.Assign):
            names.extend(statement.targets)
    return [name.id for name in names if isinstance(name, ast.Name)]


def _surroundings() -> dict[str, Any]:
    """Return what the results depend on besides the notebook and its parameters."""
    from replication import data

    def located(name: str) -> str:
        found = data.locate(name)
        return f"{found} {found.fingerprint}" if found else "absent"

    versions = {}
    for name in ("torch", "numpy", "scipy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return {
        "sources": {
            file.relative_to(PACKAGE).as_posix(): hashlib.blake2b(file.read_bytes()).hexdigest()
            for file in sorted(PACKAGE.rglob("*.py"))
        },
        "data": {name: located(name) for name in data.NAMES},
        "versions": versions,
    }


def _key(notebook: Any, parameters: Mapping[str, Any], surroundings: Mapping[str, Any]) -> str:
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    text = repr((code, sorted(parameters.items()), sorted(surroundings.items())))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _up_to_date(record: Path, output: Path, key: str) -> bool:
    """Tell whether `record` is of a run like this one, all of whose files are still there."""
    try:
        known = read_json(record)
        return (
            known["key"] == key
            and output.is_file()
            and all((record.parent / name).is_file() for name in known["files"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_back(path: Path, notebook: Any, executed: Any) -> None:
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
