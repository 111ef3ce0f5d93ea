"""The panels of the front page: each draws one notebook's plotted numbers and names what is seen.

A colour means the same in all of them: see `MEANING`.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap

from replication import plotting

TRUE, RANDOM, BETWEEN = plotting.COLOURS[:3]
INITIAL = "0.5"
MEANING = {"true labels": TRUE, "random labels": RANDOM, "before training": INITIAL}
CORRUPTION = LinearSegmentedColormap.from_list("corruption", [TRUE, "0.72", RANDOM])
GROUPS = {
    "at init": (INITIAL, "-"),
    "between": (BETWEEN, "--"),
    "memorising": (RANDOM, "-"),
    "generalising": (TRUE, "-"),
}
METRICS = {  # as the notebook names them, and as there is room for
    "CCA ρ": "CCA",
    "SVCCA ρ": "SVCCA",
    "PWCCA": "PWCCA",
    "CKA linear": "CKA",
    "RSA Euclidean": "RSA",
    "regression": "regression",
    "Procrustes": "Procrustes",
}


def own_models(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw CKA between the layers of two networks (notebook 00)."""
    _matrix(ax, rows[rows.metric == "cka"])
    ax.set_title("Similarity (CKA) of the\nlayers of two networks")
    ax.set(xlabel="layer of B", ylabel="layer of A")


def random_labels(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw accuracy over epochs, true and random labels (Zhang et al. 2017)."""
    for kind, colour in (("true labels", TRUE), ("random labels", RANDOM)):
        for measured, line in (("train_accuracy", "-"), ("test_accuracy", "--")):
            runs = rows[rows.kind == kind].pivot(index="seed", columns="epoch", values=measured)
            plotting.band(ax, runs.columns, runs, color=colour, linestyle=line)
    ax.set_title("Accuracy on training images\n(solid), test images (dashed)")
    ax.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1.03))


def ablation(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw accuracy as units are clamped to 0, by share of random labels (Morcos et al. 2018)."""
    for share, some in rows.groupby("corruption"):
        curves = some.pivot(index="seed", columns="share", values="accuracy")
        plotting.band(ax, curves.columns, curves, color=CORRUPTION(share))
    ax.set_title("Units set to 0, in nets of 0,\n25, 50, 75, 100% random labels")
    ax.set(xlabel="share of units set to 0", ylabel="train accuracy", ylim=(0, 1.03))


def panes(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw layers during training against layers at the end (Raghu et al. 2017)."""
    share = min(rows.share.unique(), key=lambda share: abs(share - 0.35))
    _matrix(ax, rows[rows.share == share])
    ax.set_title(f"Similarity of layers after {share:.0%}\nof training to those at the end")
    ax.set(xlabel="layer at the end", ylabel=f"layer at {share:.0%}")


def noise(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw the first component's share of noisy copies, layer by layer (the post)."""
    rows = rows[rows.images == "train"]
    layers = list(dict.fromkeys(rows.layer))
    first, last = rows.epoch == rows.epoch.min(), rows.epoch == rows.epoch.max()
    for some, colour in (
        (rows[first], INITIAL),
        (rows[last & (rows.arm == "true labels")], TRUE),
        (rows[last & (rows.arm == "random labels")], RANDOM),
    ):
        table = some.pivot_table(index="seed", columns="layer", values="ev1")[layers]
        plotting.band(ax, range(len(layers)), table, color=colour, marker=".")
    ax.set_title("Share of the first component\nof noisy copies of an image")
    ax.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
    ax.set_ylabel("share (EV$_1$)")


def gap(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw the generalisation gap against the Jacobian norm (Novak et al. 2018)."""
    rows = rows[rows.dataset == "mnist"]
    for labels, colour in (("true", TRUE), ("random", RANDOM)):
        some = rows[rows.labels == labels]
        ax.scatter(some.jacobian, some.gap, s=7, color=colour, alpha=0.5, linewidth=0)
    plotting.log_x(ax)
    ax.set_title(f"Generalisation gap against\nJacobian norm, {len(rows)} networks")
    ax.set(xlabel="Jacobian norm", ylabel="train − test accuracy", ylim=(0, 1))


def groups(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw distances within and between groups of networks (Morcos, Raghu & Bengio 2018)."""
    rows = rows[(rows.metric == "PWCCA") & (rows.probe == "test")]
    for name, (colour, line) in GROUPS.items():
        some = rows[rows.line == name]
        table = some.pivot_table(index="seed", columns="layer", values="distance")
        plotting.band(ax, table.columns, table, color=colour, linestyle=line)
    ax.set_title("PWCCA distance of two nets\n(dashed: one of each kind)")
    ax.set(xlabel="layer", ylabel="distance", ylim=(0, None), xticks=range(1, 12, 2))


def sanity(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw how often a metric finds the same layer in another network (Kornblith et al. 2019)."""
    rows = rows[rows.family == "convnet"]
    for place, metric in enumerate(METRICS):
        values = rows.accuracy[rows.metric == metric]
        ax.plot([values.min(), values.max()], [place, place], color=TRUE)
        ax.plot(values.mean(), place, "o", color=TRUE, markersize=4)
    ax.set_title("How often the most similar layer\nof another net is the same one")
    ax.set_yticks(range(len(METRICS)), METRICS.values(), fontsize=7)
    ax.set(xlabel="accuracy", xlim=(-0.03, 1.03))


def regions(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw activation regions in a plane through three images (Hanin and Rolnick 2019)."""
    counts = rows.groupby("network").polygon.nunique()
    rows = rows[rows.network == "trained, random labels"]
    polygons = [some[["x", "y"]].to_numpy() for _, some in rows.groupby("polygon")]
    shades = np.random.default_rng(0).permutation(len(polygons)) / len(polygons)
    colours = LinearSegmentedColormap.from_list("regions", ["#fff6ee", RANDOM, "#5c2600"])(shades)
    ax.add_collection(PolyCollection(polygons, facecolors=colours, edgecolors="w", linewidths=0.2))
    ax.set(xlim=(rows.x.min(), rows.x.max()), ylim=(rows.y.min(), rows.y.max()))
    before, random, true = counts
    ax.set_title(f"{random} activation regions\n({before} before, {true} for true labels)")
    ax.set(xticks=[], yticks=[], xlabel="plane through 3 images")
    ax.grid(False)


def _matrix(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw the mean over seeds of `value` by row and column, without their names."""
    order = list(dict.fromkeys(rows.column))
    table = rows.pivot_table(index="row", columns="column", values="value").loc[order, order]
    image = ax.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax, ticks=[0, 0.5, 1], fraction=0.08)
