"""One style for every figure, and figures that carry their numbers and their provenance.

Colours are Okabe and Ito's (2008), which people with any colour vision tell apart; ordered things,
such as layers, take `depth_colours` from the perceptually uniform map viridis.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, StrMethodFormatter

from replication._core.files import atomic

COLUMN = 3.4  # width of a paper's column, inches
PAGE = 7.0  # width of a paper's page, inches
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
ALIKE = {"similarity": "viridis", "distance": "viridis_r"}  # colour maps: bright is alike in both
STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "svg.hashsalt": "replication",  # the same figure gives the same file
    "svg.fonttype": "none",
}


def style() -> AbstractContextManager:
    """Return the style as a context: ``with plotting.style(): ...``."""
    return mpl.rc_context(STYLE)


def use_style() -> None:
    """Set the style for the rest of a notebook."""
    mpl.rcParams.update(STYLE)


def depth_colours(count: int) -> list[tuple[float, ...]]:
    """Return `count` colours from dark (first layer) to light (last)."""
    return [tuple(colour) for colour in mpl.colormaps["viridis"](np.linspace(0, 0.92, count))]


def band(ax: Axes, x: Sequence[float], values: np.ndarray, label: str = "", **line) -> None:
    """Draw the mean over seeds, and a band from the smallest to the largest seed.

    `values` is (seeds, points); NaN where a seed has no value. `line` goes to ``ax.plot``.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or values.shape[1] != len(x):
        raise ValueError(f"values: expected (seeds, {len(x)}), found {values.shape}")
    frame = pd.DataFrame(values)  # its mean, min and max pass over NaN without a warning
    (drawn,) = ax.plot(x, frame.mean(), label=label, **line)
    ax.fill_between(x, frame.min(), frame.max(), color=drawn.get_color(), alpha=0.2, linewidth=0)


def heatmap(
    ax: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    limits: tuple[float, float] | None = None,
    cmap: str = "viridis",
) -> None:
    """Draw a matrix with its rows and columns named and one colour bar labelled `label`."""
    values = np.asarray(values, dtype=float)
    expected = len(rows), len(columns)
    if values.shape != expected:
        raise ValueError(f"values: expected shape {expected}, found {values.shape}")
    low, high = limits or (None, None)
    image = ax.imshow(values, vmin=low, vmax=high, cmap=cmap, aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=90 if len(columns) > 6 else 0)
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax, label=label)


def log_x(ax: Axes) -> None:
    """Make the x axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    ax.set_xscale("log")
    _plain_numbers(ax.xaxis)


def log_y(ax: Axes) -> None:
    """Make the y axis logarithmic, as `log_x`."""
    ax.set_yscale("log")
    _plain_numbers(ax.yaxis)


def _plain_numbers(axis: Axis) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_outside(fig: Figure, handles: Sequence, labels: Sequence[str], **options) -> None:
    """Put one legend to the right of all panels."""
    fig.legend(handles, labels, **{"loc": "outside right upper", **options})


def save(
    fig: Figure,
    name: str,
    folder: str | Path,
    numbers: pd.DataFrame | Mapping[str, Sequence],
    stamp: str,
) -> None:
    """Write the figure as PNG and SVG, the plotted numbers as Parquet, and a stamp at its foot.

    `name` is that of the files without ending. `numbers` are tidy, one row a point. The stamp says
    profile, data set, seeds, any substitute or smaller scale; too long lines of it are broken.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"name: expected a plain file name, found {name!r}")
    if not stamp:
        raise ValueError("stamp: expected what the figure stands on, found an empty text")
    # 20 characters of this size an inch; lines of the stamp's own stay.
    width = int(20 * fig.get_figwidth())
    stamp = "\n".join(textwrap.fill(line, width) for line in stamp.splitlines())
    if fig.get_supxlabel() != stamp:  # set anew, it would leave the place the layout gave it
        fig.supxlabel(stamp, fontsize=5.5, color="#555555", x=0.01, ha="left")
    _keep_apart(fig)
    folder = Path(folder)
    svg = {key: value for key, value in STYLE.items() if key.startswith("svg.")}
    for ending, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        with atomic(folder / f"{name}{ending}") as temporary, mpl.rc_context(svg):
            fig.savefig(temporary, metadata=metadata)
        with mpl.rc_context({"figure.constrained_layout.use": False, "figure.autolayout": False}):
            fig.set_layout_engine()  # laid out once, not again for each file
    with atomic(folder / f"{name}.parquet") as temporary:
        pd.DataFrame(numbers).to_parquet(temporary, index=False)


def _keep_apart(fig: Figure) -> None:
    """Break a title that would reach into the legend, and thin the numbers of short log axes."""
    words = [len(text.get_text()) for legend in fig.legends for text in legend.get_texts()]
    legend, whole = 0.5 + 0.055 * max(words) if words else 0.0, fig.get_figwidth()  # inches, about
    title, width = fig.get_suptitle(), max(20, int(13 * (whole - legend)))
    for text in fig.texts:
        if title and text.get_text() == title:
            text.set(text=textwrap.fill(title, width), x=(1 - legend / whole) / 2)
    if len(fig.axes) == 1 and (single := fig.axes[0].get_title()):
        fig.axes[0].set_title(textwrap.fill(single, width))
    for axis in (axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        chosen = isinstance(axis.get_major_locator(), FixedLocator)  # by `set_xticks`
        if axis.get_scale() == "log" and high < 30 * low and not chosen:
            _plain_numbers(axis)


def close(fig: Figure) -> None:
    """Close `fig`, so that a notebook does not draw it a second time."""
    plt.close(fig)
