"""Many configurations to results: each computed once, kept in a file, never computed again."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from warnings import warn

import pandas as pd
from tqdm.auto import tqdm

from replication._files import atomic

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
        Takes a spec as a dict and returns one row (a mapping), rows, or a DataFrame.
    specs : sequence of mapping
        JSON-able settings. All that decides a result must be in the spec: results are found again
        by the hash of the function's name, `version` and the spec.
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
        If a spec is not JSON-able or a result repeats a column of its spec. What `fn` raises is
        raised again; results finished before stay in the store.
    """
    name = getattr(fn, "__name__", type(fn).__name__)
    silent = {} if progress else {"disable": True}  # not False: TQDM_DISABLE then has its say
    tables = []
    for spec in tqdm(specs, desc=name, leave=False, **silent):
        path = Path(store) / name / f"{_key(name, version, spec)}.parquet"
        table = _read(path)
        if table is None:
            table = _table(fn(dict(spec)))
            if repeated := set(table.columns) & set(spec):
                raise ValueError(f"fn: its result repeats columns of the spec: {sorted(repeated)}")
            with atomic(path) as temporary:
                table.to_parquet(temporary)
        tables.append(table.assign(**spec)[[*spec, *table.columns]])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _key(name: str, version: int, spec: Mapping) -> str:
    try:
        text = json.dumps([name, version, spec], sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"specs: expected JSON-able values, found {dict(spec)} ({error})"
        ) from None
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _read(path: Path) -> pd.DataFrame | None:
    if not path.exists():
        return None
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are among these
        warn(f"computed again: {path.name} in the store is damaged ({error})", stacklevel=3)
        return None


def _table(result: Result) -> pd.DataFrame:
    if isinstance(result, Mapping):
        result = [result]
    return result if isinstance(result, pd.DataFrame) else pd.DataFrame(list(result))
