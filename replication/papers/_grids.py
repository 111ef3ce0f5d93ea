"""Grids of similarities as the rows of results."""

import pandas as pd
import torch

from replication.similarity import SimilarityGrid


def tidy(grid: SimilarityGrid) -> pd.DataFrame:
    """Return a row a pair: row, column, value; with a null also null, p and calibrated.

    The last two allow for all pairs of the grid: see `SimilarityGrid`.
    """
    table = grid.to_frame()
    if grid.maxima is None:
        return table
    p, calibrated = (
        torch.as_tensor(z).flatten().double().cpu().numpy()
        for z in (grid.p_values, grid.calibrated())
    )
    grids = 1 + torch.as_tensor(grid.maxima).shape[-1]
    # In float32 0.05 is above 0.05.
    return table.assign(p=(p * grids).round() / grids, calibrated=calibrated)
