"""Claims L1 to L4 of Zhang et al. 2019, R1 to R4 of Hanin and Rolnick 2019: what settles each.

L1 to L3 are about the fully connected network with true labels, L4 about all three networks; the
accuracy is that on test images. A layer is reset alone: to its weights at a share of the training,
0 for the initial ones, or to a fresh draw. R1 to R3 are about networks at initialisation, with He
normal weights and small normal biases; counts are exact.

All statistics and thresholds were fixed before the first run at quick or full. What someone may
doubt: with four or five layers a network, L4's correlation of a single network is coarse, so each
seed's is the mean of three networks; "about 1", "O(1)" and "modest" are not numbers, and what
stands below is our reading of them.
"""

import math

import pandas as pd

from replication.claims import Claim, Rule
from replication.papers import _layers_and_regions as own
from replication.papers._layers_and_regions import (
    CONVNET,
    EARLY,
    FCN,
    FITTED,
    INITIAL,
    JOINT,
    RANDOM,
    RESNET,
    SINGLE,
    TRAINED,
    TRUE,
    WHOLE,
    sensitivity_of_resets,
    with_changes,
)

__all__ = [
    "CLAIMS",
    "CONVNET",
    "EARLY",
    "FCN",
    "FITTED",
    "INITIAL",
    "JOINT",
    "RANDOM",
    "RESNET",
    "SINGLE",
    "TRAINED",
    "TRUE",
    "WHOLE",
    "sensitivity_of_resets",
    "statistics",
    "with_changes",
]

ZHANG, HANIN = "Zhang et al. 2019", "Hanin and Rolnick 2019"


def _slope(what: str, expected: int, slack: float) -> Rule:
    statistic = (
        f"largest over depths of |slope of ln {what} on ln number of neurons - ({expected})|"
    )
    return Rule(statistic, "<", slack)


def _changed(what: str, labels: str) -> Rule:
    kept = ", those that fitted them" if labels == RANDOM else ""
    statistic = (
        f"|ln(regions {what} after training over before)|, mean of networks, {labels} labels"
    )
    return Rule(statistic + kept, "<", math.log(3))


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "L1",
        ZHANG,
        "Re-randomising any layer of the fully connected network takes it to chance",
        Rule(
            "test accuracy with one layer drawn anew, mean of draws, largest over layers", "<", 0.2
        ),
        "Heatmaps of the FCN",
        "heatmap, about 0.1",
    ),
    Claim(
        "L2",
        ZHANG,
        "Re-initialising the first layer costs much accuracy, re-initialising a higher one hardly "
        "any",
        (
            Rule("test accuracy lost by re-initialising the first layer", ">", 0.2),
            Rule(
                "test accuracy lost by re-initialising a higher layer, largest over layers",
                "<",
                0.05,
            ),
        ),
        "Heatmaps of the FCN",
        "heatmap, no number kept here",
    ),
    Claim(
        "L3",
        ZHANG,
        "Resetting the critical layer to an early checkpoint, not the initial one, restores the "
        "accuracy",
        Rule(
            "share of the accuracy lost by re-initialising the first layer that is kept when it is "
            f"reset to its weights after {EARLY:.0%} of training",
            ">",
            0.5,
        ),
        "Heatmaps of the FCN",
        "heatmap, no number kept here",
    ),
    Claim(
        "L4",
        ZHANG,
        "How far a layer's weights went does not predict how critical it is",
        tuple(
            Rule(
                "Spearman correlation over layers of the accuracy lost by re-initialisation and "
                f"the distance from the initial weights ({norm}), mean of three networks",
                "<",
                0.5,
            )
            for norm in ("L2 / sqrt(number of weights)", "Linf")
        ),
        "Plots of distances",
        "plots, no number",
    ),
    Claim(
        "R1",
        HANIN,
        "Regions along a line grow linearly with the number of neurons, whatever the depth",
        (
            _slope("regions on a line", 1, 0.25),
            Rule(
                "largest over depths and numbers of neurons of |ln(regions on a line over those of "
                "the shallowest network of as many neurons)|",
                "<",
                math.log(2),
            ),
        ),
        "",
        "curves, no number",
    ),
    Claim(
        "R2",
        HANIN,
        "Regions in a plane are O(1) times N^2 / 2, N the number of neurons",
        (
            _slope("regions in a plane", 2, 0.5),
            Rule(
                "largest over depths and numbers of neurons of |ln(regions in a plane / "
                "(N^2 / 2))|",
                "<",
                math.log(10),
            ),
        ),
        "also in 1906.00904",
        "curves around 1",
    ),
    Claim(
        "R3",
        HANIN,
        "The distance to the nearest boundary is inversely proportional to the number of neurons",
        (
            _slope("mean distance to the nearest boundary", -1, 0.25),
            _slope("median distance along random directions", -1, 0.25),
        ),
        "",
        "curves, no number",
    ),
    Claim(
        "R4",
        HANIN,
        "Training changes the number of regions by a modest factor, even when it memorises",
        tuple(
            _changed(what, labels)
            for what in ("on a line", "in a plane")
            for labels in (TRUE, RANDOM)
        ),
        "also in 1906.00904",
        "curves, a factor of a few",
    ),
)


def statistics(resets: pd.DataFrame, regions: pd.DataFrame) -> dict[str, list]:
    """Return, for every claim, one number a seed, or one such list for each of its rules.

    NaN says that a statistic is undefined for a seed: for example, re-initialising the first layer
    cost no accuracy that could be restored, or no network fitted its random labels.

    Parameters
    ----------
    resets : DataFrame
        L1 to L4. A row a reset network and one for the trained one: arch (`FCN`, `CONVNET`,
        `RESNET`), labels (`TRUE`, `RANDOM`), seed, kind (`WHOLE` for the trained network, `SINGLE`,
        `JOINT`), layer, position (of a single layer, from 0), share (of the training at which its
        weights are from; NaN for a fresh draw), draw, test_accuracy, and for checkpoints rms and
        linf (distances of the weights).
    regions : DataFrame
        R1 to R4. A row a network and stage: seed, labels, depth, neurons, stage (`INITIAL` or
        `TRAINED`; others are passed over), train_accuracy, line (mean regions on a line), plane
        (NaN where not counted), distance, along.
    """
    fcn = resets[(resets.arch == FCN) & (resets.labels == TRUE)]
    true = resets[resets.labels == TRUE]
    # at initialisation labels make no difference
    initial = regions[(regions.stage == INITIAL) & (regions.labels == TRUE)]
    by = own.by_seed
    return {
        "L1": by(fcn, own.redrawn),
        "L2": [by(fcn, own.first_lost), by(fcn, own.others_lost)],
        "L3": by(fcn, own.restored),
        "L4": [by(true, lambda rows, d=d: own.predicted(rows, d)) for d in ("rms", "linf")],
        "R1": [
            by(initial, lambda rows: own.slope_error(rows, "line", 1)),
            by(initial, lambda rows: own.depth_effect(rows, "line")),
        ],
        "R2": [
            by(initial, lambda rows: own.slope_error(rows, "plane", 2)),
            by(initial, own.plane_ratio),
        ],
        "R3": [
            by(initial, lambda rows, d=d: own.slope_error(rows, d, -1))
            for d in ("distance", "along")
        ],
        "R4": [
            by(regions, lambda rows, w=what, x=labels: own.changed(rows, w, x))
            for what in ("line", "plane")
            for labels in (TRUE, RANDOM)
        ],
    }
