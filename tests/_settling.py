"""Claims with one made-up rule, and how the claims of a notebook are settled in its tests."""

import numpy as np
import pandas as pd

from replication.claims import Claim, Rule, settle

WHERE = {"dataset": "MNIST", "profile": "full", "notebook": "04_noise_svd_mnist"}


def rule(direction=">", threshold=0.0, test="t", **more):
    return Rule("change of EV1", direction, threshold, test, **more)


def claim(*rules, id="B1", **more):
    return Claim(
        id, "Novak et al. 2018", "EV1 falls", rules if len(rules) > 1 else rules[0], **more
    )


def settle_all(claims, found):
    """Return the settled claims by id, from the statistics that a `rules` module found."""
    return {claim.id: settle(claim, found[claim.id], **WHERE) for claim in claims}


def table(wiggle, **levels):
    """Return a row a seed and combination of levels, with `w` what sets the seeds apart."""
    index = pd.MultiIndex.from_product([range(len(wiggle)), *levels.values()])
    rows = index.set_names(["seed", *levels]).to_frame(index=False)
    return rows.assign(w=np.take(wiggle, rows.seed), train_accuracy=1.0)
