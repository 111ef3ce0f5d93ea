"""Claims V1 to V8 of Raghu et al. 2017 (SVCCA), and what settles each.

Similarities are mean correlations: of SVCCA, positions counting as examples, for one layer in two
networks or at two times; of DFT-CCA for different layers. A null is the same with the examples of
one side permuted. Accuracies are on test images. For claims about two networks a seed is a network
and the one with the next seed, so that each network is in two pairs.
"""

import math
from collections.abc import Callable, Mapping

import pandas as pd

from replication.claims import Claim, Rule
from replication.papers import _svcca_dynamics as per_seed
from replication.papers._svcca_dynamics import (
    COMPRESSED,
    CONVNET_DEPTH,
    DIRECTIONS,
    NEURONS,
    THRESHOLD,
    TOY_DIRECTIONS,
    WIDTH,
    bottom_up,
    correlation,
    passing,
)

__all__ = [
    "CLAIMS",
    "COMPRESSED",
    "CONVNET_DEPTH",
    "DIRECTIONS",
    "NEURONS",
    "THRESHOLD",
    "TOY_DIRECTIONS",
    "WIDTH",
    "bottom_up",
    "correlation",
    "passing",
    "statistics",
]


def _claim(id: str, statement: str, *rules: Rule, figure: str, shown: str) -> Claim:
    rule = rules[0] if len(rules) == 1 else rules
    return Claim(id, "Raghu et al. 2017", statement, rule, figure, shown)


CLAIMS: tuple[Claim, ...] = (
    _claim(
        "V1",
        "A few SVCCA directions of a layer carry the network's accuracy, and many more neurons do "
        "not",
        Rule(
            f"accuracy with fc1 projected on its top {DIRECTIONS['keep']} SVCCA directions minus "
            "with all neurons",
            ">",
            -0.02,
        ),
        Rule(
            f"accuracy on {DIRECTIONS['few']} SVCCA directions minus on {NEURONS:.0%} of the "
            "neurons, the most active or random ones, whichever is better",
            ">",
            0.0,
        ),
        figure="Fig. 2",
        shown="25 of 512 directions keep the accuracy, 100 neurons fall short of 20 directions",
    ),
    _claim(
        "V2",
        f"{TOY_DIRECTIONS} of 200 SVCCA directions give the full output of the toy network",
        Rule(
            f"share of the output's variance kept on {TOY_DIRECTIONS} directions of the last "
            "hidden layer",
            ">",
            0.99,
        ),
        figure="Figs. 1, 3",
        shown="curves, no number",
    ),
    _claim(
        "V3",
        "Layers reach their final representation from the bottom up; batch norm resembles the "
        "layer before it, and residual networks show grids",
        Rule(
            "convnet: Spearman correlation of depth with the epoch from which similarity to the "
            f"final layer stays above {THRESHOLD:g}, logits left out",
            ">",
            0.0,
        ),
        Rule("ResNet: the same, over outputs of blocks", ">", 0.0),
        Rule(
            "convnet: similarity of batch norm and the layer before it, minus the greater one of "
            "the two with a layer around them, mean over batch norm layers",
            ">",
            0.0,
        ),
        Rule(
            "ResNet: similarity of successive blocks' outputs minus of the first output and the "
            "second's inside, mean over blocks that keep the size",
            ">",
            0.0,
        ),
        figure="Fig. 4",
        shown="panes, no number",
    ),
    _claim(
        "V4",
        "Freezing layers from the bottom up during training costs no accuracy and less compute",
        Rule("test accuracy with freeze training minus without", ">", -0.01),
        Rule(
            "multiply-adds of forward and backward passes, share of those without freezing",
            "<",
            1.0,
            "every",
        ),
        figure="Fig. 5",
        shown="curves; slightly higher accuracy",
    ),
    _claim(
        "V5",
        "Between two initialisations first and last layers are alike and middle ones less; between "
        "a ResNet and a convnet low layers are alike and similarity falls with depth",
        Rule("similarity beyond the null, first layer minus mean of the middle ones", ">", 0.0),
        Rule("similarity beyond the null, logits minus mean of the middle ones", ">", 0.0),
        Rule(
            "Spearman correlation of depth in the convnet with the similarity beyond the null of "
            "the best matching layer of the ResNet",
            "<",
            0.0,
        ),
        figure="Fig. 7, App. 3",
        shown="heatmaps, no number",
    ),
    _claim(
        "V6",
        "Logits of like classes have nearly one curve of similarity over layers; an unlike class "
        "differs and rises earlier",
        Rule(
            "mean distance over layers of the two like classes' curves minus of the unlike ones' "
            "to their mean",
            "<",
            0.0,
        ),
        Rule("unlike minus like classes, mean over the lower half of the layers", ">", 0.0),
        figure="Fig. 6",
        shown="curves, no number",
    ),
    _claim(
        "V7",
        f"The last {COMPRESSED} layers are cut to {WIDTH:g} of their width with little loss",
        Rule(
            "accuracy with the layers projected together on their SVCCA directions minus with none "
            "projected",
            ">",
            -0.05,
        ),
        figure="App. Fig.",
        shown="curve, no number",
    ),
    _claim(
        "V8",
        "Units of two initialisations look unrelated; aligned directions match and switch on for "
        "whole classes",
        Rule(
            "|correlation| of units of equal number in two networks, on held-out examples, mean",
            "<",
            0.3,
        ),
        Rule("|correlation| of the top 9 aligned directions, as above", ">", 0.8),
        Rule(
            "share of variance that classes explain, top 9 directions minus units, mean", ">", 0.0
        ),
        figure="reference page",
        shown="pictures, no number",
    ),
)


def statistics(tables: Mapping[str, pd.DataFrame]) -> dict[str, list]:
    """Return, for every claim, one number a seed; a list of such lists for several rules.

    NaN says that a statistic is undefined for a seed. Every table has the column seed.

    Parameters
    ----------
    tables : mapping of name to DataFrame
        ``projected`` (V1): layer, width, method ("SVCCA", "most active", "random", "all neurons"),
        k, accuracy. ``toy`` (V2): method, k, kept. ``curves`` (V3): model ("convnet", "resnet"),
        layer, depth, epoch, value; without logits and layers that repeat others. ``panes`` (V3):
        model, row, column, value, at the end of training. ``freezing`` (V4): frozen, step,
        test_accuracy, operations (so far). ``pairs`` (V5): layer, depth, value, null. ``cross``
        (V5): row (ResNet), column, depth (of the column), value, null. ``classes`` (V6): role
        ("alike" for two classes, "unlike"), name, layer, depth, value. ``compressed`` (V7): partner
        ("network"), layers, share, accuracy. ``alignment`` (V8): kind ("unit", "direction"),
        correlation, class_share; one row a unit or direction.
    """
    toy = {"method": "SVCCA", "k": TOY_DIRECTIONS}
    of: dict[str, list[tuple[pd.DataFrame, Callable, int]]] = {
        "V1": [(tables["projected"], per_seed.low_dimension, 2)],
        "V2": [(tables["toy"], lambda rows: per_seed.at(rows, "kept", **toy), 1)],
        "V3": [
            (_of_model(tables["curves"], "convnet"), per_seed.bottom_up, 1),
            (_of_model(tables["curves"], "resnet"), per_seed.bottom_up, 1),
            (_of_model(tables["panes"], "convnet"), per_seed.blocks, 1),
            (_of_model(tables["panes"], "resnet"), per_seed.grid, 1),
        ],
        "V4": [(tables["freezing"], per_seed.freezing, 2)],
        "V5": [
            (tables["pairs"], per_seed.initialisations, 2),
            (tables["cross"], per_seed.architectures, 1),
        ],
        "V6": [(tables["classes"], per_seed.sensitivity, 2)],
        "V7": [(tables["compressed"], per_seed.compression, 1)],
        "V8": [(tables["alignment"], per_seed.interpretability, 3)],
    }
    found = {}
    for id, parts in of.items():
        series = [each for part in parts for each in _series(*part)]
        found[id] = series if len(series) > 1 else series[0]
    return found


def _of_model(table: pd.DataFrame, model: str) -> pd.DataFrame:
    return table[table.model == model]


def _series(table: pd.DataFrame, statistic: Callable, parts: int) -> list[list[float]]:
    """Return one list a part, with one number a seed."""
    each = [statistic(rows) for _, rows in table.groupby("seed")]
    if not each:
        return [[math.nan]] * parts
    return [list(part) for part in zip(*each, strict=True)] if parts > 1 else [each]
