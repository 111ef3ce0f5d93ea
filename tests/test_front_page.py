"""The README's figure and thumbnails: drawn from the committed numbers, whole, and up to date."""

import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from replication import _front_panels, claims, cli, front_page, plotting
from replication._files import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "figures"
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PANELS = {panel.number: panel for panel in front_page.PANELS}

each_panel = pytest.mark.parametrize("panel", front_page.PANELS, ids=lambda panel: panel.number)


@pytest.fixture
def axes():
    plt.switch_backend("agg")
    with plotting.style(), plt.rc_context({"axes.titlelocation": "left"}):
        fig, ax = plt.subplots()
        yield ax
        plt.close(fig)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return a collection that has the panels' numbers and claims, and nothing else."""
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))
    for panel in front_page.PANELS:
        target = (tmp_path / "figures" / panel.source).parent
        target.mkdir(parents=True)
        shutil.copy(FIGURES / panel.source, target)
        if panel.claim:
            shutil.copy((FIGURES / panel.source).with_name(claims.FILE), target)
    return tmp_path


def test_every_notebook_has_its_panel():
    assert [panel.notebook for panel in front_page.PANELS] == NOTEBOOKS


def test_what_is_committed_is_drawn_from_the_committed_numbers():
    drawn = pd.read_parquet(FIGURES / "front.parquet")
    pd.testing.assert_frame_equal(drawn, front_page.digests(), check_dtype=False)


def test_the_command_writes_the_figure_and_the_thumbnails(root, capsys):
    assert cli.main(["front-page"]) == 0
    assert str(root / "figures" / "front.png") in capsys.readouterr().out
    made = {str(path.relative_to(root / "figures")) for path in (root / "figures").glob("*.*")}
    assert made == {"front.png", "front.svg", "front.parquet"}
    text = (root / "figures" / "front.svg").read_text(encoding="utf-8")
    assert "profile full" in text and "CIFAR-10" in text and "MNIST" in text
    for number in PANELS:
        path = root / "figures" / "thumbnails" / f"{number}.png"
        assert path.stat().st_size < 30_000
        with Image.open(path) as image:
            assert image.size == (440, 330)
            assert len(re.findall(r"[^\W\d]{2,}", image.info["Description"])) >= 3
            corner = image.convert("RGB").getpixel((1, 1))
        assert corner == (255, 255, 255)  # opaque: legible on a dark page


@each_panel
def test_missing_numbers_are_named(root, capsys, panel):
    (root / "figures" / panel.source).unlink()
    assert cli.main(["front-page"]) == 2
    told = capsys.readouterr().err
    assert panel.source in told and f"NOTEBOOK={panel.number}" in told
    assert not (root / "figures" / "front.png").exists()


def test_a_missing_claim_is_named(root, capsys):
    file = (root / "figures" / PANELS["06"].source).with_name(claims.FILE)
    rows = read_json(file)
    write_json(file, [row for row in rows if row["id"] != "P1"])
    assert cli.main(["front-page"]) == 2
    told = capsys.readouterr().err
    assert str(file) in told and "expected claim P1" in told


@pytest.mark.parametrize("width", [440, 900])
def test_no_texts_overlap_or_are_cut(width):
    tables = {p: pd.read_parquet(FIGURES / p.source) for p in front_page.PANELS if p.claim}
    plt.switch_backend("agg")
    with plotting.style(), plt.rc_context({"axes.titlelocation": "left"}):
        fig = front_page._composite(tables)
        fig.set_dpi(width / fig.get_figwidth())
        fig.draw_without_rendering()
        boxes = []
        for ax in fig.axes:
            texts = [text for text in ax.get_children() if isinstance(text, Text)]
            for axis in (ax.xaxis, ax.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
                texts += [
                    axis.label,
                    *(text for tick in ticks for text in (tick.label1, tick.label2)),
                ]
            shown = [text for text in texts if text.get_text() and text.get_visible()]
            boxes += [(text.get_text(), text.get_window_extent()) for text in shown]
        whole = fig.bbox
        plt.close(fig)
    assert len(boxes) > 80
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= whole.x1 and box.y0 >= 0 and box.y1 <= whole.y1, text
        for other, its in boxes[i + 1 :]:
            assert not box.overlaps(its), (text, other)


# The panels, on made-up numbers


def test_random_labels_draws_means_of_the_seeds(axes):
    rows = [
        {"kind": kind, "seed": seed, "epoch": epoch, "train_accuracy": a, "test_accuracy": b}
        for kind, a, b in (("true labels", 0.9, 0.8), ("random labels", 0.7, 0.1))
        for seed in range(2)
        for epoch in range(3)
    ]
    other = {**rows[0], "kind": "gaussian", "train_accuracy": 0.3}
    _front_panels.random_labels(axes, pd.DataFrame([*rows, other]))
    assert [line.get_ydata()[0] for line in axes.lines] == pytest.approx([0.9, 0.8, 0.7, 0.1])
    colours = [line.get_color() for line in axes.lines]
    assert colours == [_front_panels.TRUE] * 2 + [_front_panels.RANDOM] * 2


def test_panes_takes_the_share_of_training_that_is_nearest(axes):
    rows = pd.DataFrame(
        [
            {"seed": seed, "share": share, "row": row, "column": column, "value": value + seed}
            for share, value in ((0.0, 9.0), (0.3, 1.0), (1.0, 9.0))
            for seed in (0, 2)
            for row in "ba"
            for column in "ba"
        ]
    )
    rows.loc[(rows.share == 0.3) & (rows.row == "a") & (rows.column == "b"), "value"] = 5.0
    _front_panels.panes(axes, rows)
    assert np.asarray(axes.images[0].get_array()).tolist() == [[2.0, 2.0], [5.0, 2.0]]
    assert "30%" in axes.get_title(loc="left")


def test_regions_counts_polygons(axes):
    counts = {"at initialisation": 2, "trained, random labels": 3, "trained, true labels": 1}
    rows = [
        {"network": name, "polygon": i, "x": x + i, "y": y}
        for name, count in counts.items()
        for i in range(count)
        for x, y in ((0, 0), (1, 0), (0, 1))
    ]
    _front_panels.regions(axes, pd.DataFrame(rows))
    assert re.findall(r"\d+", axes.get_title(loc="left")) == ["3", "2", "1"]
    assert len(axes.collections[0].get_paths()) == 3
