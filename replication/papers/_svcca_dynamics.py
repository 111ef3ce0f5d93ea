"""What `svcca` computes for one seed."""

import math

import numpy as np
import pandas as pd

from replication.papers._correlation import correlation

THRESHOLD = 0.9  # similarity to the final representation from which a layer counts as final
DIRECTIONS = {"keep": 25, "few": 20}  # of the first dense layer
NEURONS = 0.2  # share of the neurons of that layer that the few directions are compared with
TOY_DIRECTIONS = 30
WIDTH = 0.35  # share of the directions that compression keeps
COMPRESSED = 5  # layers
CONVNET_DEPTH = ("c1", "c2", "c3", "c4", "c5", "fc1", "fc2")  # each affine layer but the logits


def at(rows: pd.DataFrame, number: str = "value", **where) -> float:
    """Return the mean of a number over the rows where columns have these values; NaN for none."""
    for name, value in where.items():
        close = np.isclose(rows[name], value) if isinstance(value, float) else rows[name] == value
        rows = rows[close]
    return float(rows[number].mean()) if len(rows) else math.nan


def low_dimension(rows: pd.DataFrame) -> tuple[float, float]:
    """V1: accuracy on 25 directions minus on all; on 20 minus on a fifth of the neurons."""
    rows = rows[rows.layer == "fc1"]
    if not len(rows):
        return (math.nan,) * 2
    whole = at(rows, "accuracy", method="all neurons")
    some = round(NEURONS * rows.width.iloc[0])
    neurons = max(
        at(rows, "accuracy", method=method, k=some) for method in ("most active", "random")
    )
    keep, few = (
        at(rows, "accuracy", method="SVCCA", k=DIRECTIONS[name]) for name in ("keep", "few")
    )
    return keep - whole, few - neurons


def passing(curve: pd.DataFrame, threshold: float = THRESHOLD, relative: bool = False) -> float:
    """Return the epoch at which a layer's similarity to its final state passes for good.

    Linear between checkpoints. With `relative`, similarity is (s - s_0) / (1 - s_0), so that what a
    layer has in common with its own initial state does not count.
    """
    curve = curve.sort_values("epoch")
    epoch, value = curve.epoch.to_numpy(float), curve.value.to_numpy(float)
    if relative:
        value = (value - value[0]) / max(1 - value[0], 1e-12)
    below = np.flatnonzero(value < threshold)
    if not len(below):
        return float(epoch[0])
    last = below[-1]
    if last == len(value) - 1:
        return math.nan
    share = (threshold - value[last]) / (value[last + 1] - value[last])
    return float(epoch[last] + share * (epoch[last + 1] - epoch[last]))


def bottom_up(curves: pd.DataFrame, relative: bool = False) -> float:
    """V3: Spearman's correlation of depth with the epoch at which a layer passes."""
    threshold = 0.5 if relative else THRESHOLD
    layers = [
        (depth, passing(curve, threshold, relative)) for depth, curve in curves.groupby("depth")
    ]
    return correlation(*zip(*layers, strict=True)) if layers else math.nan


def blocks(panes: pd.DataFrame) -> float:
    """V3: similarity of batch norm with the layer before it, minus with what lies around the two.

    Both at the end of training; the mean over batch norm layers.
    """
    around = {"bn1": ("c2", "c1", "p1"), "bn2": ("c5", "c4", "p2")}
    around |= {"bn3": ("fc1", "p2", "fc2"), "bn4": ("fc2", "bn3", "logits")}
    values = []
    for norm, (before, lower, upper) in around.items():
        others = (at(panes, row=lower, column=before), at(panes, row=norm, column=upper))
        values.append(at(panes, row=before, column=norm) - max(others))
    return float(np.mean(values))


def grid(panes: pd.DataFrame) -> float:
    """V3: similarity of successive blocks' outputs minus of the block before and what is within.

    Over the blocks that keep the size; the output lies further, in layers, than the inside.
    """
    layers = list(dict.fromkeys(panes.column))
    values = []
    for place, name in enumerate(layers):
        inside = f"{name}.act1"
        if inside not in layers or (name.endswith("_1") and name != "block1_1"):
            continue
        before = layers[place - 2]
        values.append(at(panes, row=before, column=name) - at(panes, row=before, column=inside))
    return float(np.mean(values)) if values else math.nan


def freezing(rows: pd.DataFrame) -> tuple[float, float]:
    """V4: test accuracy frozen minus not; multiply-adds as a share of those without freezing."""
    base, frozen = (rows[rows.frozen == choice] for choice in (False, True))
    if not len(base) or not len(frozen):
        return (math.nan,) * 2
    base, frozen = (part.sort_values("step").iloc[-1] for part in (base, frozen))
    accuracy = float(frozen.test_accuracy - base.test_accuracy)
    return accuracy, float(frozen.operations / base.operations)


def initialisations(pairs: pd.DataFrame) -> tuple[float, float]:
    """V5: similarity beyond chance of the first layer, and the last, minus of those between."""
    beyond = (pairs.value - pairs.null).groupby(pairs.depth).mean().sort_index()
    if len(beyond) < 3:
        return (math.nan,) * 2
    middle = beyond.iloc[1:-1].mean()
    return float(beyond.iloc[0] - middle), float(beyond.iloc[-1] - middle)


def architectures(cross: pd.DataFrame) -> float:
    """V5: correlation of depth in the convnet with the best match among the ResNet's layers."""
    best = (cross.value - cross.null).groupby(cross.depth).max()
    return correlation(best.index, best)


def sensitivity(rows: pd.DataFrame) -> tuple[float, float]:
    """V6: distance of the alike classes' curves minus of theirs to the unlike; unlike minus alike.

    Distances are mean absolute differences over layers; the second is the mean over the lower half
    of the layers.
    """
    wide = rows.pivot_table(index="depth", columns=["role", "name"], values="value").sort_index()
    if not {"alike", "unlike"} <= set(wide.columns.get_level_values(0)):
        return (math.nan,) * 2
    alike, unlike = wide["alike"], wide["unlike"]
    if alike.shape[1] != 2:
        return (math.nan,) * 2
    middle = alike.mean(axis=1)
    within = (alike.iloc[:, 0] - alike.iloc[:, 1]).abs().mean()
    across = unlike.sub(middle, axis=0).abs().to_numpy().mean()
    rise = unlike.sub(middle, axis=0).iloc[: len(wide) // 2].to_numpy().mean()
    return float(within - across), float(rise)


def compression(rows: pd.DataFrame) -> float:
    """V7: accuracy with five layers at 0.35 of their width minus with none projected."""
    rows = rows[rows.partner == "network"]
    compressed = at(rows, "accuracy", layers=COMPRESSED, share=WIDTH)
    return compressed - at(rows, "accuracy", layers=0)


def interpretability(rows: pd.DataFrame) -> tuple[float, float, float]:
    """V8: |correlation| of raw units, of aligned directions, and what classes explain of both."""
    mean = rows.groupby("kind")[["correlation", "class_share"]].mean()
    if not {"unit", "direction"} <= set(mean.index):
        return (math.nan,) * 3
    unit, direction = mean.loc["unit"], mean.loc["direction"]
    gain = direction.class_share - unit.class_share
    return float(unit.correlation), float(direction.correlation), float(gain)
