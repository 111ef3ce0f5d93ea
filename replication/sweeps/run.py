"""Many configurations to results: each computed once, kept in a file, never computed again."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from warnings import warn

import pandas as pd

from replication._core.inputs import as_integer
from replication._core.progress import bar
from replication.sweeps import _store
from replication.sweeps import evidence as committed_results
from replication.sweeps._code import fingerprint
from replication.sweeps._store import Job, Result


class SweepError(RuntimeError):
    """Some specs failed, `failures` (spec, exception); the results of all others are stored."""

    def __init__(self, message: str, failures: list[tuple[Mapping, Exception]]):
        super().__init__(message)
        self.failures = failures


def run(
    fn: Callable[[Any], Result | Sequence[Result]],
    specs: Sequence[Mapping],
    *,
    store: str | Path,
    evidence: str | Path | None = None,
    compute: bool = True,
    cluster: Any = None,
    batch: int | None = None,
    resources: Mapping[str, float] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Return the results of `fn` for every spec as one tidy table, computing only what is missing.

    Parameters
    ----------
    fn : callable
        Takes a spec as a dict and returns one row (a mapping), rows, or a DataFrame. It needs a
        name, to tell its results from those of another: no lambda, no partial.
    specs : sequence of mapping
        JSON-able settings by name; all that decides a result, which is found again by the hash of
        the spec and the `fingerprint` of the function's code.
    store : path
        Folder of the results; one Parquet file a spec, written whole or not at all, in a subfolder
        named by the function. Several runs may share it, also at the same time.
    evidence : path, optional
        Folder of committed results, see `sweeps.evidence`, which are taken as if `store` had them.
    compute : bool
        False: only the results that are there, of the others no rows.
    cluster : str or distributed.Client, optional
        None: one spec after another in this process. ``"local"``: on processes of this machine, one
        thread each, as many as cores or as ``REPLICATION_WORKERS`` says, only for this call; in a
        script the call must stand below ``if __name__ == "__main__":``. An address such as
        ``"tcp://host:8786"`` or a client: on that cluster. The function is sent to each worker with
        whatever it refers to; only results come back, and are written here. A spec that fails there
        is tried once more, as the worker may be to blame.
    batch : int, optional
        With it `fn` takes a list of up to `batch` specs and returns as many results; fewer on a
        cluster where every worker would not get some otherwise. If it raises for several specs,
        they are given to it one by one.
    resources : mapping, optional
        What a task needs of its worker on a cluster, such as ``{"GPU": 1}``.
    progress : bool
        Show a progress bar over specs and the link to the cluster's dashboard.

    Returns
    -------
    pandas.DataFrame
        The rows of all results in the order of `specs`, behind a column for each entry of the spec.
        A result that is NaN is a result. ``attrs["missing"]`` says how many specs have no rows,
        ``attrs["computed"]`` how many of them this call has measured.

    Raises
    ------
    ValueError
        Also if a result is no table or repeats a column of its spec.
    SweepError
        If `fn` raised for some specs, once all others are done; the next run tries them again.
        Interrupting a run keeps what was finished, too.

    Warns
    -----
    UserWarning
        Where a stored result is damaged and therefore computed again.
    """
    name = getattr(fn, "__name__", "<none>")
    if not name.isidentifier():  # as that of a lambda; it also names a folder
        raise ValueError(f"fn: expected a function with a name to keep its results by, found {fn}")
    size = 1 if batch is None else as_integer(batch, "batch", 1)
    specs = list(specs)
    code, versions = fingerprint(fn)
    paths = [Path(store) / name / f"{_store.key(name, code, spec)}.parquet" for spec in specs]
    wanted = dict(zip(paths, specs, strict=True))
    tables = {}
    committed = {} if evidence is None else committed_results.read(evidence, name)
    for path in wanted:
        try:
            tables[path], _ = _store.read(path)
        except FileNotFoundError:
            if path.stem in committed:
                tables[path] = committed_results.rows(committed[path.stem])
        except _store.Damaged as error:
            warn(f"computed again: {error}", stacklevel=2)
            path.unlink(missing_ok=True)

    missing = [(path, spec) for path, spec in wanted.items() if path not in tables and compute]
    failures = []
    computation = _store.Computation(fn, name, code, versions, batch is not None)
    span: dict[str, Any] = {"initial": len(tables), "total": len(wanted), "unit": "spec"}
    with bar(show=progress, desc=name, **span) as steps:
        if cluster is None or not missing:
            outcomes = _serial(computation, missing, size)
        else:
            try:
                from replication.sweeps import _dask
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    f"cluster: needs {error.name}: pip install -e '.[cluster]'", name=error.name
                ) from None
            outcomes = _dask.outcomes(computation, missing, cluster, size, resources, steps)
        with closing(outcomes):
            for path, outcome in outcomes:
                if isinstance(outcome, Exception):
                    failures.append((wanted[path], outcome))
                else:
                    if outcome is not None:
                        _store.write(path, outcome)
                    # Read, not as returned: the same types as whenever it is found again.
                    tables[path], _ = _store.read(path)
                steps.update()

    if failures:
        lines = [f"{len(failures)} of {len(wanted)} specs failed; all others are stored:"]
        lines += [f"  {spec}: {type(error).__name__}: {error}" for spec, error in failures[:5]]
        lines += [f"  and {len(failures) - 5} more"] if len(failures) > 5 else []
        raise SweepError("\n".join(lines), failures) from failures[0][1]
    done = zip(paths, specs, strict=True)
    table = _store.tidy([(spec, tables[path]) for path, spec in done if path in tables])
    table.attrs["missing"] = len(wanted) - len(tables)
    table.attrs["computed"] = len(missing)
    return table


def _serial(
    compute: _store.Computation, missing: list[Job], size: int
) -> Generator[tuple[Path, bytes | Exception | None], None, None]:
    """Yield what each spec came to; None where another run has stored it meanwhile."""
    waiting = _store.tasks(missing, size)
    while waiting:
        jobs, stored = _store.part(waiting.popleft())
        yield from ((path, None) for path, _ in stored)
        try:
            contents = compute([spec for _, spec in jobs]) if jobs else []
        except _store.BadResult:
            raise
        except Exception as error:
            if len(jobs) == 1:
                yield jobs[0][0], error
            else:
                waiting.extendleft([job] for job in reversed(jobs))
        else:
            yield from zip((path for path, _ in jobs), contents, strict=True)
