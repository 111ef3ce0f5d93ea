"""The collection in one figure, a panel a notebook, and the thumbnails of the notebook index.

Everything is drawn from the committed numbers of ``figures/full``: nothing is run.
"""

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from replication import _front_panels as draw
from replication import claims, paths, plotting
from replication._files import atomic
from replication._site_pictures import THUMBNAILS

__all__ = ["write"]

PROFILE = "full"
FIGURE = "front"


@dataclass(frozen=True)
class Panel:
    """A notebook's picture: its plotted numbers, what draws them, and the claim it belongs to.

    A panel without a claim is a thumbnail only.
    """

    notebook: str
    table: str
    draw: Callable[[Axes, pd.DataFrame], None]
    claim: str = ""

    @property
    def number(self) -> str:
        """The notebook's two digits."""
        return self.notebook[:2]

    @property
    def source(self) -> str:
        """The file of the plotted numbers, below the figures folder."""
        return f"{PROFILE}/{self.notebook}/{self.table}.parquet"


PANELS = (
    Panel("00_compare_your_own_models", "similarity", draw.own_models),
    Panel("01_random_labels", "fig1a_loss", draw.random_labels, "Z1"),
    Panel("02_single_directions", "ablation_by_corruption", draw.ablation, "S1"),
    Panel("03_svcca_dynamics", "panes_convnet", draw.panes, "V3"),
    Panel("04_noise_svd_mnist", "random_labels", draw.noise, "B12"),
    Panel("05_jacobian_vs_gap", "fig5_gap", draw.gap, "N9"),
    Panel("06_cca_insights", "groups", draw.groups, "P1"),
    Panel("07_which_similarity_metric", "sanity_check", draw.sanity, "K1"),
    Panel("08_layers_and_regions", "fig7_plane", draw.regions, "R4"),
)


def write() -> Path:
    """Write ``figures/front.png``, ``.svg`` and the thumbnails, and return the PNG's path.

    ``front.parquet`` holds the digest of every table that was drawn.

    Raises
    ------
    ValueError
        If a table of plotted numbers or a notebook's claims are missing; it names the file.
    """
    tables = {panel: _table(panel) for panel in PANELS}
    shown = {panel: table for panel, table in tables.items() if panel.claim}
    stamp = _stamp(list(shown))
    with plotting.style(), plt.rc_context({"axes.titlelocation": "left"}):
        fig = _composite(shown)
        plotting.save(fig, FIGURE, paths.figures(), digests(), stamp)
        plotting.close(fig)
        for panel, table in tables.items():
            _thumbnail(panel, table)
    return paths.figures() / f"{FIGURE}.png"


def digests() -> pd.DataFrame:
    """Return the SHA-256 of every table that is drawn, as it lies there."""
    files = [panel.source for panel in PANELS]
    contents = [(paths.figures() / file).read_bytes() for file in files]
    return pd.DataFrame(
        {"file": files, "sha256": [hashlib.sha256(c).hexdigest() for c in contents]}
    )


def _table(panel: Panel) -> pd.DataFrame:
    path = paths.figures() / panel.source
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: `make figures PROFILE={PROFILE} NOTEBOOK={panel.number}` writes it"
        )
    return pd.read_parquet(path)


def _stamp(shown: list[Panel]) -> str:
    """Return what the figure stands on; the data sets are those of the panels' claims."""
    of: dict[str, list[str]] = {}
    for panel in shown:
        file = paths.figures() / PROFILE / panel.notebook / claims.FILE
        rows = claims.load(file) if file.is_file() else []
        found = [row["dataset"] for row in rows if row["id"] == panel.claim]
        if not found:
            raise ValueError(f"{file}: expected claim {panel.claim} in it, found none")
        of.setdefault(re.split(r",\s", found[0])[0], []).append(panel.number)
    sets = " · ".join(f"{', '.join(numbers)}: {name}" for name, numbers in of.items())
    return (
        f"profile {PROFILE}: smaller networks and fewer images than the papers' · {sets}\n"
        "lines and dots: means over seeds; bands and bars: their range · sizes, seeds and "
        "intervals: in the notebooks"
    )


def _composite(tables: Mapping[Panel, pd.DataFrame]) -> Figure:
    fig, axes = plt.subplots(2, len(tables) // 2, figsize=(8.6, 4.9))
    for ax, (panel, table) in zip(axes.flat, tables.items(), strict=True):
        panel.draw(ax, table)
        # begins above the axis's numbers: there is no room for it to the right
        ax.set_title(f"$\\bf{{{panel.number}}}$  {ax.get_title(loc='left')}", x=-0.27, fontsize=7.5)
    handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in draw.MEANING.values()]
    fig.legend(handles, list(draw.MEANING), loc="outside upper center", ncols=3, fontsize=8)
    fig.get_layout_engine().set(wspace=0.04, hspace=0.06)
    return fig


def _thumbnail(panel: Panel, table: pd.DataFrame) -> None:
    """Write one panel, 440 pixels wide; what it shows becomes the file's description."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    fig, ax = plt.subplots(figsize=(2.2, 1.65))
    panel.draw(ax, table)
    about = PngInfo()
    about.add_text("Description", " ".join(ax.get_title(loc="left").split()))
    ax.set_title("")
    drawn = io.BytesIO()
    fig.savefig(drawn)
    plotting.close(fig)
    with (
        Image.open(drawn) as image,
        atomic(paths.figures() / THUMBNAILS / f"{panel.number}.png") as temporary,
    ):
        few = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        few.save(temporary, optimize=True, pnginfo=about)
