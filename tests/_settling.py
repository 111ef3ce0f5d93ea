"""How the claims of a notebook are settled in its tests, and made-up tables."""

from dataclasses import replace

import numpy as np
import pandas as pd

from replication import claims

WHERE = {"dataset": "MNIST", "profile": "full", "notebook": "04_noise_svd_mnist"}
UNDECIDED = {claims.INCONCLUSIVE, claims.NOT_TESTABLE}


def settled(paper, tables, gates=None):
    """Return the claims of a paper's module by id, settled from made-up tables."""
    gates = paper.gates(tables) if gates is None else gates
    found = claims.settle_all(paper.CLAIMS, paper.statistics(tables), {}, gates, **WHERE)
    return {item.claim.id: item for item in found}


def verdicts(paper, tables, gates=None):
    """Return the verdicts by id."""
    return {name: item.verdict for name, item in settled(paper, tables, gates).items()}


def settled_apart(paper, tables, gates=None):
    """Return the claims as `settled` does, with a spread for made-up networks that agree.

    Nothing is decided without one. Without `gates`, every claim can be tested.
    """

    def spread(rule, values):
        if isinstance(values, dict):
            return values
        values = np.array(values, dtype=float)
        equal = len(set(values[~np.isnan(values)].round(9))) == 1
        return values + 1e-6 * np.arange(values.size) * (equal and rule.test != "every")

    found, series = paper.statistics(tables), {}
    for claim in paper.CLAIMS:
        if isinstance(claim.rule, tuple):
            parts = zip(claim.rule, found[claim.id], strict=True)
            series[claim.id] = [spread(rule, values) for rule, values in parts]
        else:
            series[claim.id] = spread(claim.rule, found[claim.id])
    tested = paper.CLAIMS
    if gates is None:
        tested, gates = [replace(claim, gate=None) for claim in paper.CLAIMS], {}
    items = claims.settle_all(tested, series, {}, gates, **WHERE)
    return {item.claim.id: item for item in items}


def table(wiggle, **levels):
    """Return a row a seed and combination of levels, with `w` what sets the seeds apart."""
    index = pd.MultiIndex.from_product([range(len(wiggle)), *levels.values()])
    rows = index.set_names(["seed", *levels]).to_frame(index=False)
    return rows.assign(w=np.take(wiggle, rows.seed), train_accuracy=1.0)
