"""Files that are either whole or not there."""

import functools
import hashlib
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARK = re.compile(r"\.([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}(\.[^.]*)?$")
LONGEST = 86_400  # seconds that a temporary file of an unknown process may go without a change
_cleared: set[Path] = set()


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to `path` when the block ends well.

    A block that raises, or a process that is killed, leaves `path` as it was. An OSError, as of a
    full disk, names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_for(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename is None:  # of a write, which knows no name
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def temporary_for(path: Path) -> Path:
    """Return a hidden name beside `path`, with a `mark`; remove what dead processes left there."""
    if path.parent not in _cleared:  # once a process: a folder may hold many files
        _cleared.add(path.parent)
        for entry in os.scandir(path.parent):
            if entry.name.startswith(".") and entry.is_file() and is_abandoned(Path(entry)):
                Path(entry).unlink(missing_ok=True)
    return path.with_name(f".{path.stem}.{mark()}{path.suffix}")


def mark() -> str:
    """Return what tells in a file's name which process made it, different at every call."""
    return f"{_place()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def is_abandoned(path: Path) -> bool:
    """Return whether the process that made `path`, whose name ends with a `mark`, is dead.

    Of a process elsewhere, a day without a change is taken for its death.
    """
    if not (found := MARK.search(path.name)):
        return False
    if found[1] == _place() and os.name == "posix":
        try:
            os.kill(int(found[2]), 0)
        except ProcessLookupError:
            return True
        except OSError:  # it lives, and is another user's
            pass
        return False
    try:
        return path.stat().st_mtime < time.time() - LONGEST
    except OSError:  # gone meanwhile
        return False


@functools.cache
def _place() -> str:
    """Return 8 hex digits that name the machine, or the container, where process ids are unique."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return hashlib.blake2b(f"{platform.node()} {space}".encode(), digest_size=4).hexdigest()


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused."""
    with atomic(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike) -> Any:
    """Read JSON; a file that is not JSON raises ``ValueError`` naming it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        what = f"{path} is not readable as JSON ({error}); delete it and run again"
        raise ValueError(what) from error
