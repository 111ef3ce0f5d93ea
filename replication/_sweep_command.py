"""Behind ``python -m replication sweep``: notebooks without Jupyter, as long as a budget lasts.

A notebook computes all that takes long through `sweeps.run`, `training.fit` and
`training.fit_population`, which keep what is done below ``data/runs/``. These files are all that
another machine, or `figures` later, needs to go on from there.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from replication import _budget, _notebook_files, _notebook_surroundings, _script, paths
from replication._files import read_json, write_json

COMPLETE, FAILED, SPENT = 0, 1, os.EX_TEMPFAIL if hasattr(os, "EX_TEMPFAIL") else 75
WORTH_TELLING = 2.0  # seconds of a cell


def run(
    notebooks: Sequence[Path],
    profile: str,
    parameters: Mapping[str, Any],
    budget: float | None = None,
    estimate: bool = False,
) -> int:
    """Run notebooks as scripts, one after the other; figures and claims are written as they say.

    Parameters
    ----------
    notebooks : sequence of Path
        What `_notebook_files.select` returned.
    profile : str
        The scale; every notebook's parameter ``profile``.
    parameters : mapping
        Further parameters. A notebook that does not declare one of them fails unrun.
    budget : float, optional
        Seconds for all of them. What is done is kept, and a later call goes on; one that is
        complete and has not changed is then not run again.
    estimate : bool
        Print, before anything is run, how long the training takes.

    Returns
    -------
    int
        `COMPLETE`; `SPENT` if the budget is spent and something is left; `FAILED` if a notebook
        failed, the others notwithstanding.
    """
    start, failed = time.monotonic(), []
    parameters = {"profile": profile, **parameters}
    records = paths.runs() / "scripts" / profile
    if estimate:
        print(_estimated(notebooks, parameters, records / "estimate.json"), flush=True)
    surroundings = _notebook_surroundings.find_surroundings()
    limit, begun = math.inf if budget is None else budget, False
    for path in notebooks:
        began, folder = time.monotonic(), paths.figures() / profile / path.stem
        record = records / f"{path.stem}.json"
        try:
            notebook = _script.read(path)
            key = _checked(notebook, parameters, surroundings)
            if _is_complete(record, key, folder):
                line = "complete already"
            else:
                left = limit - (began - start)
                if begun and left <= 0:  # the first goes on, whatever the time
                    raise _budget.BudgetSpent("not begun")
                begun = True
                _run_one(path, notebook, parameters, None if budget is None else left)
                _complete(record, key, folder)
                line = f"complete after {time.monotonic() - began:.1f} s: {folder}"
        except _budget.BudgetSpent as pause:
            line = f"budget spent after {time.monotonic() - start:.0f} s; {pause}"
            print(f"{path.stem}: {line}\nall that is done is in {paths.runs()}: call again")
            return _tell(failed) if failed else SPENT
        except (_notebook_files.Failed, ValueError) as error:
            failed.append(path.stem)
            line = str(error)
        except _script.CellError as error:
            failed.append(path.stem)
            print(_script.shown(error), file=sys.stderr, end="")
            line = f"failed in {error}: {type(error.__cause__).__name__}"
        print(f"{path.stem}: {line}", flush=True)
    return _tell(failed) if failed else COMPLETE


def _tell(failed: Sequence[str]) -> int:
    print(f"replication: error: failed: {', '.join(failed)}", file=sys.stderr)
    return FAILED


def _checked(notebook: Any, parameters: Mapping[str, Any], surroundings: Mapping) -> str:
    """Return what tells a notebook, its parameters and the code around from any other."""
    declared = _notebook_files.parameters_of(notebook)
    if unknown := [name for name in parameters if name not in declared]:
        has = ", ".join(declared) or "none"
        raise _notebook_files.Failed(
            f"not run: it has no parameter {', '.join(unknown)} (it has {has})"
        )
    return _notebook_surroundings.digest(notebook, parameters, surroundings)


def _is_complete(record: Path, key: str, folder: Path) -> bool:
    """Return whether `record` is of this notebook, and all that it wrote is still there."""
    try:
        known = read_json(record)
        return known["key"] == key and all((folder / name).exists() for name in known["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _complete(record: Path, key: str, folder: Path) -> None:
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    write_json(record, {"key": key, "files": sorted(files)})


def _estimated(notebooks: Sequence[Path], parameters: Mapping[str, Any], record: Path) -> str:
    """Return an estimate, measured once for the same notebooks, parameters and machine."""
    from replication import _estimates

    machine = _estimates.machine(parameters.get("device", "auto"))
    asked = json.dumps([[path.stem for path in notebooks], parameters, machine])
    with suppress(OSError, ValueError, KeyError, TypeError):
        if (known := read_json(record))["asked"] == asked:
            return known["text"]
    found = _estimates.text(notebooks, parameters)
    write_json(record, {"asked": asked, "text": found})
    return found


def _run_one(
    path: Path, notebook: Any, parameters: Mapping[str, Any], budget: float | None
) -> None:
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("agg")
    scratch = paths.runs() / "unfinished" / path.stem
    clock = time.monotonic()

    def after_cell(number: int) -> None:
        nonlocal clock
        pyplot.close("all")  # as a kernel does
        if (seconds := time.monotonic() - clock) > WORTH_TELLING:
            print(
                f"{path.stem}: cell {number} of {len(notebook.cells)}: {seconds:.1f} s", flush=True
            )
        clock = time.monotonic()

    limits = nullcontext() if budget is None else _budget.limited(budget, scratch)
    with _surrounded(parameters["profile"]), matplotlib.rc_context(), limits:
        _script.run(notebook, path.name, parameters, after_cell)
    shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _surrounded(profile: str) -> Iterator[None]:
    """Set the environment and the folder that `figures` gives a kernel, but for who looks on."""
    silent = os.environ.get("TQDM_DISABLE", "0" if sys.stderr.isatty() else "1")
    root = paths.root()
    with _notebook_surroundings.environment(profile), chdir(root):
        os.environ |= {"TQDM_DISABLE": silent, "MPLBACKEND": "agg"}
        yield
