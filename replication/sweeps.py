"""Many configurations to results: each computed once, kept in a file, never computed again."""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from warnings import warn

import pandas as pd

from replication._files import atomic
from replication._progress import bar

Result = pd.DataFrame | Sequence[Mapping] | Mapping


def run(
    fn: Callable[[dict], Result],
    specs: Sequence[Mapping],
    *,
    store: str | Path,
    version: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """Return the results of `fn` for every spec as one tidy table, computing only what is missing.

    Parameters
    ----------
    fn : callable
        Takes a spec as a dict and returns one row (a mapping), rows, or a DataFrame. It needs a
        name: no lambda, no partial, whose results could not be told from those of another.
    specs : sequence of mapping
        JSON-able settings by name. All that decides a result must be in the spec: results are found
        again by the hash of the function's name, `version` and the spec.
    store : path
        Folder of the results; one Parquet file a spec, written whole or not at all, in a subfolder
        named by the function.
    version : int
        Raise it when the function has changed and its stored results no longer hold.
    progress : bool
        Show a progress bar over specs.

    Returns
    -------
    pandas.DataFrame
        The rows of all results in the order of `specs`, behind a column for each entry of the spec.

    Raises
    ------
    ValueError
        If `fn` has no name, a spec is not JSON-able (before anything is computed), or a result is
        no table or repeats a column of its spec. What `fn` raises is raised again; results finished
        before stay in the store.

    Warns
    -----
    UserWarning
        Where a stored result is damaged and therefore computed again.
    """
    name = getattr(fn, "__name__", "<none>")
    if name.startswith("<"):
        raise ValueError(f"fn: expected a function with a name to keep its results by, found {fn}")
    specs = list(specs)
    paths = [Path(store) / name / f"{_key(name, version, spec)}.parquet" for spec in specs]
    tables = []
    for spec, path in bar(list(zip(specs, paths, strict=True)), show=progress, desc=name):
        table = _read(path)
        if table is None:
            result = _table(fn(copy.deepcopy(dict(spec))))
            if repeated := set(result.columns) & set(spec):
                raise ValueError(f"fn: its result repeats columns of the spec: {sorted(repeated)}")
            with atomic(path) as temporary:
                result.to_parquet(temporary)
            table = pd.read_parquet(path)  # the same types now as whenever it is found again
        tables.append(_labelled(spec, table))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _key(name: str, version: int, spec: Mapping) -> str:
    try:
        settings = dict(spec)
        if not all(isinstance(entry, str) for entry in settings):
            raise TypeError("its names are not all strings")
        text = json.dumps([name, version, settings], sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"specs: expected JSON-able values, found {spec} ({error})") from None
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _read(path: Path) -> pd.DataFrame | None:
    if not path.exists():
        return None
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are among these
        warn(f"computed again: {path.name} in the store is damaged ({error})", stacklevel=3)
        return None


def _table(result: Result) -> pd.DataFrame:
    if isinstance(result, pd.DataFrame):
        return result
    rows = [result] if isinstance(result, Mapping) else result
    if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"fn: expected a mapping, several, or a DataFrame, found {result!r}")
    return pd.DataFrame(rows)


def _labelled(spec: Mapping, table: pd.DataFrame) -> pd.DataFrame:
    """Return `table` behind columns that repeat the spec, a list among its values as a whole."""
    settings = {name: [value] * len(table) for name, value in spec.items()}
    index = range(len(table))
    return pd.concat([pd.DataFrame(settings, index), table.set_axis(index)], axis="columns")
