"""How the claims of a notebook are settled in its tests, and made-up tables."""

import numpy as np
import pandas as pd

from replication.claims import settle

WHERE = {"dataset": "MNIST", "profile": "full", "notebook": "04_noise_svd_mnist"}


def settle_all(claims, found):
    """Return the settled claims by id, from the statistics that a `rules` module found.

    Made-up networks that agree get a spread: nothing is decided without one.
    """

    def spread(rule, values):
        values = np.array(values, dtype=float)
        equal = len(set(values[~np.isnan(values)].round(9))) == 1
        return values + 1e-6 * np.arange(values.size) * (equal and rule.test != "every")

    settled = {}
    for claim in claims:
        several = isinstance(claim.rule, tuple)
        series = found[claim.id] if several else [found[claim.id]]
        series = [spread(rule, v) for rule, v in zip(claim.rules, series, strict=True)]
        settled[claim.id] = settle(claim, series if several else series[0], **WHERE)
    return settled


def table(wiggle, **levels):
    """Return a row a seed and combination of levels, with `w` what sets the seeds apart."""
    index = pd.MultiIndex.from_product([range(len(wiggle)), *levels.values()])
    rows = index.set_names(["seed", *levels]).to_frame(index=False)
    return rows.assign(w=np.take(wiggle, rows.seed), train_accuracy=1.0)
