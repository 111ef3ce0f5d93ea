"""``python -m replication figures``: run notebooks through papermill, as many at once as cores."""

import hashlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from replication import data
from replication._core import paths, profiles
from replication._core.files import atomic, read_json, temporary_for, write_json
from replication._core.processes import KEPT_MEMORY
from replication.claims import scorecard
from replication.papers import _audit

PACKAGE = Path(__file__).resolve().parent.parent
# What of a cell's metadata is the author's; all else is left there by the tools that ran it.
KEPT_METADATA = ("tags", "jupyter", "slideshow", "editable")
WIDGET = "application/vnd.jupyter.widget-view+json"


def select(wanted: Sequence[str] | None) -> list[Path]:
    """Return the notebooks whose names begin with one of `wanted`; all of them for None."""
    folder = paths.notebooks()
    notebooks = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise ValueError(f"there are no notebooks in {folder}")
    for name in wanted or ():
        if not name or not any(path.name.startswith(name) for path in notebooks):
            there = ", ".join(path.stem for path in notebooks)
            raise ValueError(f"there is no notebook {name!r}; there are {there}")
    return [path for path in notebooks if wanted is None or path.name.startswith(tuple(wanted))]


def run(
    notebooks: Sequence[Path],
    profile: str,
    parameters: Mapping[str, Any],
    force: bool = False,
    in_place: bool = False,
    jobs: int | None = None,
) -> int:
    """Run notebooks, each into ``figures/PROFILE/NAME/``; return 1 if one of them failed, else 0.

    A notebook gets ``profile`` and `parameters`; one that does not declare all of them fails unrun,
    since papermill would ignore them. With `in_place` it gets none, only the environment, and its
    outputs are written back to it. `force` runs also what is up to date. `jobs` run at a time, by
    default as many as cores, in a process of one thread each.
    """
    try:
        import ipykernel  # noqa: F401
        import papermill  # noqa: F401
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        extra = "pip install -e '.[notebooks]'"
        raise ValueError(f"running notebooks needs {error.name}: {extra}") from None

    parameters = {"profile": profile, **parameters}
    around = _surroundings()
    tasks = [(path, parameters, around, force, in_place) for path in notebooks]
    jobs = min(jobs or cores(), len(tasks))
    failed = []
    with (
        _environment(profile),
        multiprocessing.get_context("spawn").Pool(jobs, _start_worker, maxtasksperchild=1) as pool,
        tqdm(total=len(tasks), unit="notebook", dynamic_ncols=True, disable=False) as bar,
    ):
        for name, line, succeeded in pool.imap_unordered(_run_one, tasks):
            if not succeeded:
                failed.append(name)
            bar.write(f"{name}: {line}", file=sys.stdout)
            bar.update()
    try:
        if _changes_scorecard(profile):
            scorecard.write(history=_audit.told())
    except (ValueError, OSError) as error:
        failed.append(f"the scorecard ({error})")
    if failed:
        print(f"replication: error: failed: {', '.join(sorted(failed))}", file=sys.stderr)
    return int(bool(failed))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    def die_with_parent() -> None:  # and the kernel with this process, when the parent was killed
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the parent, which ends the pool
    threading.Thread(target=die_with_parent, daemon=True).start()
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what went wrong is told in a line


def _run_one(task: tuple) -> tuple[str, str, bool]:
    """Return the notebook's name, a line about its run, and whether it succeeded."""
    name = task[0].stem
    try:
        return name, _run_or_skip(*task), True
    except (RuntimeError, OSError) as failure:
        return name, str(failure), False


def _run_or_skip(path: Path, parameters: dict, around: dict, force: bool, in_place: bool) -> str:
    import nbformat

    notebook = _read(path, parameters)
    folder = paths.figures() / parameters["profile"] / path.stem
    output, record = folder / path.name, folder / "run.json"
    key = _digest(notebook, parameters, around)
    if not (force or in_place) and _up_to_date(record, output, key):
        return "up to date (--force runs it again)"
    # From here until run.json is written again, a killed run counts as not having been.
    record.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    _execute(path, output, {} if in_place else parameters)
    seconds = time.perf_counter() - start
    if in_place:
        _write_back(path, notebook, nbformat.read(output, as_version=4))
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("[!.]*")]
    result = {"key": key, "parameters": parameters, "seconds": round(seconds, 1)}
    write_json(record, result | {"versions": around["versions"], "files": sorted(files)})
    return f"done in {seconds:.1f} s"


def _read(path: Path, parameters: Mapping[str, Any]) -> Any:
    """Return the notebook; RuntimeError where it is none or lacks one of `parameters`."""
    import nbformat
    from papermill.translators import PythonTranslator

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat raises nearly anything for what is no notebook
        raise RuntimeError(f"not readable as a notebook ({_first_line(error)})") from None
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    declared = [each.name for cell in tagged[:1] for each in PythonTranslator.inspect(cell)]
    if unknown := [name for name in parameters if name not in declared]:
        has = ", ".join(declared) or "none"
        raise RuntimeError(f"not run: it has no parameter {', '.join(unknown)} (it has {has})")
    return notebook


def _execute(path: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Run a notebook in a kernel of this interpreter; keep it at `output`, failed or not."""
    import papermill
    from papermill.exceptions import PapermillException, PapermillExecutionError

    from replication.papers import _kernels

    partial = temporary_for(output)
    start, reason = time.perf_counter(), ""
    try:  # with doubled braces, since papermill formats its paths
        papermill.execute_notebook(
            *(str(file).replace("{", "{{").replace("}", "}}") for file in (path, partial)),
            parameters=parameters,
            kernel_name="python3",
            language="python",
            kernel_manager_class=_kernels.own(),
            progress_bar=False,
            log_output=False,
            cwd=str(paths.root()),
        )
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {_first_line(error.evalue)} (In [{error.exec_count}])"
    except (PapermillException, RuntimeError, TimeoutError, ValueError) as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
    except OSError as error:  # it may be what wrote the notebook that failed, in the middle of it
        partial.unlink(missing_ok=True)
        reason = f"{output}: {error}"
    finally:
        if written := partial.exists():
            os.replace(partial, output)
    if reason:
        seconds = time.perf_counter() - start
        kept = f"\n    kept with its error: {output}" if written else ""
        raise RuntimeError(f"failed after {seconds:.1f} s: {reason}{kept}")


def _write_back(path: Path, notebook: Any, executed: Any) -> None:
    """Write the outputs of `executed` into the notebook at `path`, without volatile metadata."""
    import nbformat

    for cell, ran in zip(notebook.cells, executed.cells, strict=True):
        kept = {k: cell.metadata[k] for k in KEPT_METADATA if cell.metadata.get(k)}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            cell.execution_count = ran.execution_count
            # A widget's state is not kept, and without it its view is an empty box.
            cell.outputs = [out for out in ran.outputs if WIDGET not in out.get("data", {})]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    language = {"name": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": language})
    nbformat.validate(notebook)
    with atomic(path) as temporary:
        nbformat.write(notebook, temporary, version=nbformat.NO_CONVERT)


@contextmanager
def _environment(profile: str) -> Iterator[None]:
    """Set what the kernels inherit, and put it back afterwards."""
    before = dict(os.environ)
    # The kernel runs this very package, also where it is not installed, ...
    python_path = filter(None, [str(PACKAGE.parent), before.get("PYTHONPATH")])
    os.environ |= {
        profiles.VARIABLE: profile,
        "PYTHONPATH": os.pathsep.join(python_path),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # debugpy's notice on frozen modules
        "TQDM_DISABLE": "1",  # nobody watches, and a bar would stay in the notebook
    }
    for name, value in {"OMP_NUM_THREADS": "1", **KEPT_MEMORY}.items():
        os.environ.setdefault(name, value)  # a second thread would wait for its neighbours
    os.environ.pop("MPLBACKEND", None)  # figures belong into the notebook
    # ... and in another working directory, where relative paths would mean something else.
    for name in ("REPLICATION_ROOT", "REPLICATION_DATA"):
        if before.get(name):
            os.environ[name] = str(Path(before[name]).expanduser().resolve())
    for folder in (PACKAGE.parent / ".ipython", paths.root() / ".ipython"):  # the latter wins
        if (folder / "profile_default" / "ipython_kernel_config.py").is_file():
            os.environ["IPYTHONDIR"] = str(folder)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _surroundings() -> dict[str, Any]:
    """Return what the results depend on besides the notebook and its parameters."""
    sources = hashlib.blake2b()
    for file in sorted(PACKAGE.rglob("*.py")):
        sources.update(f"{file.relative_to(PACKAGE).as_posix()} {file.stat().st_size} ".encode())
        sources.update(file.read_bytes())
    located = {name: data.locate(name) for name in data.NAMES}
    return {
        "sources": sources.hexdigest(),
        "data": {name: f"{at} {at.fingerprint}" for name, at in located.items() if at},
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "scipy")},
    }


def _digest(notebook: Any, parameters: Mapping[str, Any], around: Mapping[str, Any]) -> str:
    """Return a digest of a notebook's code, its parameters and what `_surroundings` found."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    text = repr((code, sorted(parameters.items()), sorted(around.items())))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _up_to_date(record: Path, output: Path, key: str) -> bool:
    """Tell whether `record` is of a run like this one, all of whose files are still there."""
    try:
        known = read_json(record)
        files = [output, *(record.parent / name for name in known["files"])]
        return known["key"] == key and all(file.is_file() for file in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _changes_scorecard(profile: str) -> bool:
    """Tell whether the scorecard shows claims of `profile`, and there are some."""
    known = {path.parts[-3] for path in paths.figures().glob("*/*/claims.json")}
    evidence = set(profiles.EVIDENCE)
    return bool(known) and (profile in evidence or not known & evidence)


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()
