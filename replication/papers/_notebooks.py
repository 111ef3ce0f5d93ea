"""Run notebooks through papermill, each unless it is up to date."""

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from replication._core import paths
from replication._core.files import temporary_for, write_json
from replication._core.profiles import EVIDENCE
from replication.papers import _kernels
from replication.papers._notebook_files import Failed, first_line, parameters_of, read, write_back
from replication.papers._notebook_surroundings import (
    digest,
    environment,
    find_surroundings,
    up_to_date,
)


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
        What `_notebook_files.select` returned.
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
    surroundings = find_surroundings()
    failed = []
    with (
        environment(profile),
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
            except (Failed, OSError) as failure:
                failed.append(path.stem)
                line = f"{path.stem}: {failure}"
            bar.write(line, file=sys.stdout)
            bar.set_postfix_str("", refresh=False)
            bar.update()
    if _changes_scorecard(profile):
        from replication.claims import scorecard

        try:
            scorecard.write()
        except (ValueError, OSError) as error:
            failed.append(f"the scorecard ({error})")
    if failed:
        print(f"replication: error: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _changes_scorecard(profile: str) -> bool:
    """Tell whether the scorecard shows claims of `profile`, and there are some."""
    known = {path.parts[-3] for path in paths.figures().glob("*/*/claims.json")}
    return bool(known) and (profile in EVIDENCE or not known & set(EVIDENCE))


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

    notebook = read(path)
    declared = parameters_of(notebook)
    if unknown := [name for name in parameters if name not in declared]:
        has = ", ".join(declared) or "none"
        raise Failed(f"not run: it has no parameter {', '.join(unknown)} (it has {has})")

    folder = paths.figures() / profile / path.stem
    output = folder / path.name
    record = folder / "run.json"
    key = digest(notebook, parameters, surroundings)
    if not (force or in_place) and up_to_date(record, output, key):
        return f"{path.stem}: up to date (--force runs it again)"

    # From here until run.json is written again, a killed run counts as not having been.
    record.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    _execute(path, output, {} if in_place else parameters, len(notebook.cells), bar)
    seconds = time.perf_counter() - start
    if in_place:
        write_back(path, notebook, nbformat.read(output, as_version=4))
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
        reason = f"{error.ename}: {first_line(error.evalue)} (In [{error.exec_count}])"
    except (PapermillException, RuntimeError, TimeoutError, ValueError) as error:
        reason = f"{type(error).__name__}: {first_line(str(error))}"
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
        raise Failed(f"failed after {seconds:.1f} s: {reason}{kept}")


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
