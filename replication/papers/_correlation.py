"""What several notebooks' statistics are made of: one number a seed, and a rank correlation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation; NaN for fewer than 3 pairs or a constant."""
    x, y = (np.asarray(list(values), float) for values in (x, y))
    known = ~(np.isnan(x) | np.isnan(y))
    if known.sum() < 3 or not (np.ptp(x[known]) > 0 and np.ptp(y[known]) > 0):
        return math.nan
    return float(spearmanr(x[known], y[known]).statistic)


def by_seed(table: pd.DataFrame, statistic: Callable, *arguments: Any) -> list:
    """Return ``statistic(rows, *arguments)`` of each seed's rows; one NaN for an empty table."""
    return [statistic(rows, *arguments) for _, rows in table.groupby("seed")] or [math.nan]


def parts_by_seed(table: pd.DataFrame, statistic: Callable, parts: int) -> list[list[float]]:
    """Return, for a statistic of that many parts, a list a part, as `by_seed` has one."""
    values = [statistic(rows) for _, rows in table.groupby("seed")]
    return [list(part) for part in zip(*values, strict=True)] or [[math.nan]] * parts
