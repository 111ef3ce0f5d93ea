"""Stored results of sweeps: one Parquet file a spec, named by a hash, that knows its spec."""

import copy
import functools
import hashlib
import io
import json
import platform
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from replication._core.files import atomic

NOTE = b"replication.sweeps"  # where the metadata of a file name function, code, spec, origin

Job = tuple[Path, Mapping]  # where a result belongs, and its spec
Result: TypeAlias = pd.DataFrame | Sequence[Mapping] | Mapping


class BadResult(ValueError):
    """A function returned what is no table: none of its results would be one."""


class Damaged(ValueError):
    """A stored result cannot be read."""


def key(name: str, code: str, spec: Mapping) -> str:
    """Return the hash, 24 hex digits, that names the result; ValueError if `spec` is not JSON."""
    try:
        settings = dict(spec)
        if not all(isinstance(entry, str) for entry in settings):
            raise TypeError("its names are not all strings")
        text = json.dumps([name, code, settings], sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"specs: expected JSON-able values, found {spec} ({error})") from None
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def tasks(jobs: Sequence[Job], size: int) -> deque[Sequence[Job]]:
    """Return `jobs` in parts of at most `size`."""
    return deque(jobs[start : start + size] for start in range(0, len(jobs), size))


def part(jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    """Return which of `jobs` are to be computed, and which another run has stored meanwhile."""
    stored = [job for job in jobs if job[0].exists()]
    return [job for job in jobs if job not in stored], stored


@dataclass(frozen=True)
class Computation:
    """A function called with one spec, or `together` with several, here or on a worker.

    It returns the content of each spec's file. `versions` are those of the parts that `code`, a
    `_code.fingerprint`, stands on.
    """

    fn: Callable
    name: str
    code: str
    versions: Mapping[str, int]
    together: bool

    def __call__(self, specs: Sequence[Mapping]) -> list[bytes]:
        before = sys.exception()
        own = [copy.deepcopy(dict(spec)) for spec in specs]  # a function may not change a spec
        start = time.monotonic()
        try:
            results = self.fn(own) if self.together else [self.fn(spec) for spec in own]
        except Exception as error:
            _forget_locals(error, before)
            raise
        if not isinstance(results, Sequence) or len(results) != len(specs):
            found = len(results) if isinstance(results, Sequence) else type(results).__name__
            raise BadResult(
                f"fn: expected as many results as specs with batch, {len(specs)}, found {found}"
            )
        seconds = round((time.monotonic() - start) / len(specs), 3)
        pairs = zip(specs, results, strict=True)
        return [self._content(spec, result, seconds) for spec, result in pairs]

    def _content(self, spec: Mapping, result: Result, seconds: float) -> bytes:
        """Return `result` as Parquet, `spec` and where it comes from in its metadata."""
        rows = [result] if isinstance(result, Mapping) else result
        if isinstance(rows, pd.DataFrame):
            table = rows
        elif isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows):
            table = pd.DataFrame(rows)
        else:
            raise BadResult(f"fn: expected a mapping, several, or a DataFrame, found {result!r}")
        if repeated := set(table.columns) & set(spec):
            raise BadResult(f"fn: its result repeats columns of the spec: {sorted(repeated)}")
        arrow = pa.Table.from_pandas(table)
        note: dict[str, Any] = {"function": self.name, "code": self.code, "spec": dict(spec)}
        note |= {"versions": dict(self.versions), "seconds": seconds} | provenance()
        arrow = arrow.replace_schema_metadata(
            {**arrow.schema.metadata, NOTE: json.dumps(note).encode()}
        )
        content = io.BytesIO()
        pq.write_table(arrow, content, write_page_checksum=True)
        return content.getvalue()


def provenance() -> dict[str, str]:
    """Return the time (UTC), processor or GPU, and version of torch, that a result is of."""
    now = datetime.now(UTC).isoformat(timespec="minutes")
    gpu = torch.cuda.is_initialized() and torch.cuda.get_device_name()
    return {"date": now, "processor": gpu or processor(), "torch": torch.__version__}


@functools.cache
def processor() -> str:
    """Return the name of the processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _forget_locals(error: BaseException | None, before: BaseException | None) -> None:
    """Free what the frames of `error` hold: out of memory in one spec must not last to the next.

    What was being handled `before` is left alone.
    """
    while error is not None and error is not before:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def write(path: Path, content: bytes) -> None:
    """Write `content` whole or not at all; what another run has put there meanwhile stands."""
    if not path.exists():
        with atomic(path) as temporary:
            temporary.write_bytes(content)


def read(path: Path) -> tuple[pd.DataFrame, dict]:
    """Return the table at `path`, and its function, code, spec and origin by these names.

    A file that cannot be read is `Damaged`.
    """
    try:
        # As pd.read_parquet does, at half the time for a small file.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            arrow = file.read(use_threads=False)
        note = json.loads(arrow.schema.metadata[NOTE])
        if path.stem != key(note["function"], note["code"], note["spec"]):
            raise ValueError("it is not of the spec that its name is the hash of")
        return arrow.to_pandas(use_threads=False), note
    except FileNotFoundError:
        raise
    except Exception as error:  # pyarrow and pandas raise nearly anything
        raise Damaged(f"{path.name} in the store is damaged ({error})") from error


def tidy(results: Sequence[tuple[Mapping, pd.DataFrame]]) -> pd.DataFrame:
    """Return the rows of all tables behind columns that repeat their specs.

    A list among a spec's values stands as a whole in every row. Successive specs of the same names
    and types share one step, which is several times faster and gives the same types.
    """
    parts = []
    for names, group in groupby(results, lambda pair: [(k, type(v)) for k, v in pair[0].items()]):
        pairs = list(group)
        settings = {
            name: [spec[name] for spec, table in pairs for _ in range(len(table))]
            for name, _ in names
        }
        rows = pd.concat([table for _, table in pairs], ignore_index=True)
        parts.append(pd.concat([pd.DataFrame(settings, rows.index), rows], axis="columns"))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
