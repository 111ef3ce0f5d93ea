"""Download data sets through torchvision, never leaving half a data set behind."""

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
    """Download a data set through torchvision, which checks it, into ``data/``; return its folder.

    It is moved into place when complete. What is whole in ``data/`` is not downloaded again. The
    `timeout`, in seconds, is for an answer of the network, and for each further piece of data.
    ValueError if nothing answers, the network refuses, ``REPLICATION_OFFLINE`` is set, or what came
    does not have the checksum that torchvision knows.
    """
    name, root = _locations.known(name), paths.data()
    location, _ = _locations.find(name, [("data/", root)])
    if location is not None and not location.fault:
        return location.folder
    refuse_offline()
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
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        partial.mkdir(parents=True)
        for left in filter(files.is_abandoned, root.glob(".partial-*")):
            shutil.rmtree(left, ignore_errors=True)
        kind(partial, train=False, download=True)
        return _move(partial / info.folder, root / info.folder)
    except Exception as error:  # torchvision, urllib and tarfile raise many kinds
        what = " ".join(str(error).replace(str(root), "data").split()) or type(error).__name__
        raise UnavailableError(
            f"the download into data/ failed: {what}; a folder that holds the data set may be "
            "named in $REPLICATION_DATA"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
        shutil.rmtree(partial, ignore_errors=True)


def fetch_once(name: str) -> None:
    """Download `name`, unless that failed before in this process or the network was silent."""
    refuse_offline()
    for key in (name, ""):
        if key in _failures:
            raise UnavailableError(_failures[key])
    try:
        fetch(name)
    except UnavailableError as error:
        _failures["" if error.silent else name] = str(error)
        raise


def refuse_offline() -> None:
    """Raise an UnavailableError if the environment keeps the package off the network."""
    if os.environ.get("REPLICATION_OFFLINE", "0") not in ("", "0"):
        raise UnavailableError("REPLICATION_OFFLINE is set")


def first_answer(urls: list[str], timeout: float) -> str:
    """Return the first of `urls` that answers; name lookup and connecting count as waiting too."""
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def ask(url: str) -> None:
        request = urllib.request.Request(url, headers={"User-Agent": "pytorch/vision"})
        try:
            with urllib.request.urlopen(request, timeout=timeout):
                answers.put((url, None))
        except Exception as error:  # handed to the thread that waits
            answers.put((url, getattr(error, "reason", error)))

    deadline = time.monotonic() + timeout
    for url in urls:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    refusals = []
    for _ in urls:
        try:
            url, error = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            url, error = "", TimeoutError()
        if error is None:
            return url
        refusals.append(error)
    if any(isinstance(error, TimeoutError) for error in refusals):
        raise UnavailableError(f"no answer from the network within {timeout:g} s", silent=True)
    reasons = dict.fromkeys(str(error) or type(error).__name__ for error in refusals)
    raise UnavailableError(f"no network: {'; '.join(reasons)}")


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
