"""A time after which no new work is begun: training puts itself aside, sweeps hand out no more.

Nothing is asked of the code in between: what runs under `limited` looks here whether time is up.
"""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

UNITS = {"s": 1, "m": 60, "h": 3600}


class BudgetSpent(BaseException):
    """The time is up; all that was done is stored, and the same call goes on from there.

    Like an interrupt at the keyboard no `Exception`, so that no function takes it for a failure of
    its own and stores that.
    """


@dataclass
class _Budget:
    until: float  # of time.monotonic()
    scratch: Path
    progressed: bool = False
    used: list[Path] = field(default_factory=list)


_current: ContextVar[_Budget | None] = ContextVar("budget", default=None)
Terms = tuple[float, str]  # of a budget, for another process: the end in time.time(), the scratch


def seconds(text: str) -> float:
    """Return the length of a budget such as "90s", "9m" or "2h" in seconds.

    Raises
    ------
    ValueError
        If it is none, or less than a second.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    value = float(found[1]) * UNITS[found[2]] if found else 0
    if value < 1:
        raise ValueError(f"expected a time of at least 1s such as 90s, 9m or 2h, found {text!r}")
    return value


@contextmanager
def limited(length: float, scratch: str | Path) -> Iterator[None]:
    """Let work in the block end by `BudgetSpent` once `length` seconds are over.

    Sweeps begin no further spec; training stops where it is and stores that. Whatever the time, one
    spec or one epoch is done, so that repeated calls come to an end.

    Parameters
    ----------
    length : float
        Seconds.
    scratch : path
        Folder in which training without a store of its own is put aside; the caller's to remove.
        What a spec has left there goes once its result is there, but for specs on a cluster.
    """
    token = _current.set(_Budget(time.monotonic() + length, Path(scratch)))
    try:
        yield
    finally:
        _current.reset(token)


def is_spent() -> bool:
    """Return whether new work is to be left to another call."""
    budget = _current.get()
    return budget is not None and budget.progressed and time.monotonic() >= budget.until


def may_pause(taken: int, epoch: int) -> bool:
    """Return whether training may stop here, `taken` steps after it began; an epoch is progress."""
    if taken >= epoch:
        progressed()
    return is_spent()


def is_limited() -> bool:
    """Return whether there is a budget."""
    return _current.get() is not None


def progressed() -> None:
    """Note that something was done that another call need not do again."""
    if (budget := _current.get()) is not None:
        budget.progressed = True


def folder_of(store: str | Path | None, key: str) -> Path | None:
    """Return where a run is kept: below `store`, or without one, in the scratch of a budget."""
    if store is not None:
        return Path(store) / key
    if (budget := _current.get()) is None:
        return None
    folder = budget.scratch / key
    budget.used.append(folder)
    return folder


def terms() -> Terms | None:
    """Return what `task` needs to hold to this budget in another process."""
    if (budget := _current.get()) is None:
        return None
    return time.time() + budget.until - time.monotonic(), str(budget.scratch.absolute())


@contextmanager
def task(agreed: Terms | None) -> Iterator[None]:
    """Hold to a budget in the block, and remove what was put aside if it comes to its end.

    On a worker that stays, as another may be at the same run: whoever set the budget removes it.
    """
    if agreed is None:
        yield
    elif (budget := _current.get()) is None:
        with limited(agreed[0] - time.time(), agreed[1]):
            yield
    else:
        budget.used.clear()
        yield
        for folder in budget.used:
            shutil.rmtree(folder, ignore_errors=True)
