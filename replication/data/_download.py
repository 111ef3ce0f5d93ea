"""Download data sets through torchvision, never leaving half a data set behind."""

import errno
import os
import queue
import shutil
import socket
import threading
import time
import urllib.request
from pathlib import Path

from replication._core import files, paths
from replication.data import _locations

_failures: dict[str, str] = {}  # why a download failed, by data set; "" when nothing answered


class UnavailableError(ValueError):
    """A data set cannot be downloaded; `silent` when the network gave no answer at all."""

    def __init__(self, reason: str, silent: bool = False):
        super().__init__(reason)
        self.silent = silent


def fetch(name: str, timeout: float = 10.0) -> Path:
    """Do what `replication.data.fetch` says, for a known `name`."""
    root = paths.data()
    location, _ = _locations.find(name, [("data/", root)])
    if location is not None and not location.fault:
        return location.folder
    if os.environ.get("REPLICATION_OFFLINE", "0") not in ("", "0"):
        raise UnavailableError("REPLICATION_OFFLINE is set")
    from replication._core.vision import datasets

    info = _locations.INFO[name]
    kind = getattr(datasets, info.torchvision)
    if info.meta:
        first_answer([kind.url], timeout)
    else:
        file = kind.resources[0][0]
        first = first_answer([mirror + file for mirror in kind.mirrors], timeout)
        mirrors = sorted(kind.mirrors, key=lambda mirror: mirror + file != first)
        kind = type(kind.__name__, (kind,), {"mirrors": mirrors})
    partial = root / f".partial-{name}.{files.mark()}"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UnavailableError(
            f"data/ cannot be written to ({error.strerror}): make it so, or put the files into "
            "another folder and name that in $REPLICATION_DATA"
        ) from error
    before = socket.getdefaulttimeout()
    try:
        _clear(root)
        socket.setdefaulttimeout(timeout)
        kind(partial, train=False, download=True)
        return _move(partial / info.folder, root / info.folder)
    except Exception as error:  # torchvision, urllib and tarfile raise many kinds
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UnavailableError(
                f"the download failed: {os.strerror(error.errno)} for data/; free some, or name a "
                "folder that holds the data set in $REPLICATION_DATA"
            ) from error
        what = " ".join(str(error).replace(str(root), "data").split()) or type(error).__name__
        raise UnavailableError(f"the download failed: {what}") from error
    finally:
        socket.setdefaulttimeout(before)
        shutil.rmtree(partial, ignore_errors=True)


def fetch_once(name: str) -> None:
    """Download `name`, unless that failed before in this process or the network was silent."""
    for key in (name, ""):
        if key in _failures:
            raise UnavailableError(_failures[key])
    try:
        fetch(name)
    except UnavailableError as error:
        if "REPLICATION_OFFLINE" not in str(error):
            _failures["" if error.silent else name] = str(error)
        raise


def first_answer(urls: list[str], timeout: float) -> str:
    """Return the first of `urls` that answers; name lookup and connecting count as waiting too."""
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def ask(url: str) -> None:
        request = urllib.request.Request(url, headers={"User-Agent": "pytorch/vision"})
        try:
            with urllib.request.urlopen(request, timeout=timeout):
                answers.put((url, None))
        except Exception as error:  # handed to the thread that waits
            answers.put((url, error))

    deadline = time.monotonic() + timeout
    for url in urls:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    silent, refusals = False, []
    for _ in urls:
        try:
            url, error = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            silent = True
            break
        if error is None:
            return url
        reason = getattr(error, "reason", error)
        silent |= isinstance(reason, TimeoutError)
        refusals.append(str(reason) or type(reason).__name__)
    if silent:
        raise UnavailableError(f"no answer from the network within {timeout:g} s", silent=True)
    raise UnavailableError(f"no network: {'; '.join(dict.fromkeys(refusals))}")


def _clear(root: Path) -> None:
    """Remove what downloads that died left behind, or into which nothing came for an hour."""
    for left in root.glob(".partial-*"):
        if files.is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
            continue
        try:
            newest = max(entry.stat().st_mtime for entry in (left, *left.rglob("*")))
        except OSError:  # another process is at work in it
            continue
        if newest < time.time() - 3600:
            shutil.rmtree(left, ignore_errors=True)


def _move(source: Path, target: Path) -> Path:
    """Move a complete folder into place: in one step, or file by file where a folder is there."""
    for archive in source.glob("*.gz"):
        archive.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except OSError:
        target.mkdir(exist_ok=True)
        for file in source.iterdir():
            os.replace(file, target / file.name)
    return target
