"""CPU time of functions that do the same work, measured side by side in one run."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits


@dataclass(frozen=True)
class Row:
    """One line of the table: how many times faster than the baseline, and how close to it."""

    what: str
    baseline: str
    ratio: float
    target: str
    agreement: str


def cpu_seconds(
    functions: Mapping[str, Callable], repeats: int = 5, warm: bool = True
) -> dict[str, float]:
    """Return the median CPU seconds of each function at one thread.

    The functions take turns, so that a slow moment of the machine meets all of them; with
    `warm` a first turn does not count.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in functions}
    try:
        with threadpool_limits(1):  # NumPy's BLAS
            for turn in range(not warm, repeats + 1):
                for name, function in functions.items():
                    start = time.process_time()
                    function()
                    if turn:
                        taken[name].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
