"""The rank correlation that several notebooks' statistics are made of."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation; NaN for fewer than 3 pairs or a constant."""
    x, y = (np.asarray(list(values), float) for values in (x, y))
    known = ~(np.isnan(x) | np.isnan(y))
    if known.sum() < 3 or not (np.ptp(x[known]) > 0 and np.ptp(y[known]) > 0):
        return math.nan
    return float(spearmanr(x[known], y[known]).statistic)
