"""Results that are committed: one Parquet file (zstd) a measuring function, in a notebook's folder.

A row a row of a result: its own columns, and before them `ORIGIN`: the result's key; spec and
versions as JSON; the hash of the code; time, seconds, processor or GPU, and torch; and the names of
the result's own columns, as results of one function may differ in these.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from replication._core.files import atomic
from replication.sweeps import _store
from replication.sweeps._code import fingerprint

ORIGIN = ("key", "spec", "code", "versions", "measured_on", "measured_in", "processor", "torch")
NOTES = dict(zip(ORIGIN[4:], ("date", "seconds", "processor", "torch"), strict=True))


def collect(
    fn: Callable, specs: Sequence[Mapping], store: str | Path, folder: str | Path
) -> pd.Series:
    """Bring the results that `store` has of `fn` into its file in `folder`; return what is there.

    Results that only the file has stay, those of specs of another profile too. Those of older code
    stay until there are new ones of their spec, or the spec is wanted no more. The numbers are of
    ``results``, ``rows``, ``older`` results, and of those that are ``missing``.
    """
    path, (code, _) = Path(folder) / f"{fn.__name__}.parquet", fingerprint(fn)
    before = read(folder, fn.__name__)
    old = [table for table in before.values() if table["code"][0].as_py() != code]
    older = {table["spec"][0].as_py(): table for table in old}
    tables, counts = [], dict.fromkeys(("results", "rows", "older", "missing"), 0)
    wanted = {_store.key(fn.__name__, code, spec): spec for spec in specs}  # once each
    for key, spec in wanted.items():
        stored = Path(store) / fn.__name__ / f"{key}.parquet"
        text = json.dumps(dict(spec))
        if stored.exists():
            table = _with_origin(*_store.read(stored), key)
        elif key in before:
            table = before[key]
        elif text in older:
            tables.append(older[text])
            counts["older"] += 1
            continue
        else:
            counts["missing"] += 1
            continue
        tables.append(table)
        counts["results"] += 1
        counts["rows"] += len(table)
    tables += [t for key, t in before.items() if key not in wanted and t["code"][0].as_py() == code]
    if tables and {t["key"][0].as_py(): t for t in tables} != before:  # in whatever order
        with atomic(path) as temporary:
            whole = pa.concat_tables(tables, promote_options="permissive")
            pq.write_table(whole, temporary, compression="zstd", compression_level=15)
    return pd.Series(counts)


def _with_origin(rows: pd.DataFrame, note: Mapping, key: str) -> pa.Table:
    """Return a stored result with its origin in columns before its own."""
    origin = {"key": key, "spec": json.dumps(note["spec"]), "code": note["code"]}
    origin |= {"versions": json.dumps(note["versions"])}
    origin |= {column: note[name] for column, name in NOTES.items()}
    origin |= {"columns": json.dumps(list(rows.columns))}
    table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    for place, (name, value) in enumerate(origin.items()):
        table = table.add_column(place, name, pa.array([value] * len(rows)))
    return table


def read(folder: str | Path, name: str) -> dict[str, pa.Table]:
    """Return the committed results of the function of that name by their keys, {} if none."""
    path = Path(folder) / f"{name}.parquet"
    return _read(path, path.stat().st_mtime_ns) if path.exists() else {}


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> dict[str, pa.Table]:
    try:
        table = pq.read_table(path)
        keys = table["key"].to_pandas()
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ValueError(f"{path} is not readable as evidence ({error})") from error
    places = keys.groupby(keys, sort=False).indices
    return {key: table.take(pa.array(index)) for key, index in places.items()}


def rows(table: pa.Table) -> pd.DataFrame:
    """Return the rows of a committed result as they were measured."""
    return table.select(json.loads(table["columns"][0].as_py())).to_pandas()
