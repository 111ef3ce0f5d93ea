"""Figures that carry their numbers and their stamp, and look the same twice."""

import xml.etree.ElementTree as ET

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from replication import plotting

NUMBERS = {"epoch": [0, 1, 2], "layer": ["conv1", "conv1", "fc2"], "ev1": [0.1, float("nan"), 1e-9]}
STAMP = "smoke, MNIST <1,000 & fewer>, seeds 0–2"


@pytest.fixture(autouse=True)
def quiet_backend():
    backend = plt.get_backend()
    plt.switch_backend("Agg")
    with plotting.style():
        yield
    plt.close("all")
    plt.switch_backend(backend)


def draw():
    fig, axes = plt.subplots(1, 2, figsize=(plotting.PAGE, 2.5))
    plotting.band(axes[0], [0, 1, 2], [[1, 2, 3], [2, 3, 5]], "first")
    plotting.band(axes[1], [0, 1, 2], [[10, 20, 300]], "second")
    plotting.log_y(axes[1])
    return fig, axes


def svg_text(path):
    texts = ET.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()).strip() for text in texts]


@pytest.mark.parametrize("kind", [dict, lambda numbers: pd.DataFrame(numbers, index=[7, 8, 9])])
def test_save_writes_the_pictures_and_their_numbers_without_an_index(tmp_path, kind):
    fig, _ = draw()
    folder = tmp_path / "new" / "folder"
    plotting.save(fig, "curves", folder, kind(NUMBERS), STAMP)
    names = ["curves.parquet", "curves.png", "curves.svg"]
    assert sorted(p.name for p in folder.iterdir()) == names
    stored = pd.read_parquet(folder / "curves.parquet")
    pd.testing.assert_frame_equal(stored, pd.DataFrame(NUMBERS), check_dtype=False)
    assert STAMP in svg_text(folder / "curves.svg")
    pixels = plt.imread(folder / "curves.png")
    assert pixels.shape[:2] == (500, 1400)  # 200 dots an inch
    assert pixels[..., :3].min() < 0.5


@pytest.mark.parametrize("again", ["the same figure", "drawn anew", "with another title"])
@pytest.mark.parametrize("settings", [{}, {"svg.hashsalt": None, "svg.fonttype": "path"}])
def test_the_same_figure_gives_the_same_files_and_another_others(tmp_path, again, settings):
    for folder in "ab":
        if folder == "a" or again != "the same figure":
            fig, axes = draw()
            plotting.legend_outside(fig, *axes[0].get_legend_handles_labels())
            if again == "with another title":
                axes[0].set_title(folder)
        with mpl.rc_context(settings):  # also where the caller has left the style
            plotting.save(fig, "curves", tmp_path / folder, NUMBERS, STAMP)
    for ending in ("png", "svg"):
        left, right = (tmp_path / x / f"curves.{ending}" for x in "ab")
        assert (left.read_bytes() == right.read_bytes()) == (again != "with another title"), ending
    assert STAMP in svg_text(tmp_path / "b" / "curves.svg")


def test_another_stamp_replaces_the_first_and_none_is_refused(tmp_path):
    fig, _ = draw()
    with pytest.raises(ValueError, match="stamp: expected what the figure stands on"):
        plotting.save(fig, "curves", tmp_path / "new", NUMBERS, "")
    assert list(tmp_path.iterdir()) == []
    for stamp in ("one", "two"):
        plotting.save(fig, "curves", tmp_path, NUMBERS, stamp)
    texts = svg_text(tmp_path / "curves.svg")
    assert "two" in texts and "one" not in texts


@pytest.mark.parametrize("text", [STAMP, "a second\nline", 60 * "Wide words, "])
def test_the_stamp_lies_below_the_panels_and_inside_the_figure(text, tmp_path):
    fig, axes = draw()
    for ax in axes:
        ax.set_xlabel("epoch")
    plotting.save(fig, "curves", tmp_path, NUMBERS, text)
    fig.draw_without_rendering()
    (stamp,) = (t.get_window_extent() for t in fig.texts if t.get_text() == fig.get_supxlabel())
    assert all(stamp.y1 <= ax.get_tightbbox().y0 for ax in axes)
    assert stamp.x0 >= 0 and stamp.y0 >= 0 and stamp.x1 <= fig.bbox.x1
    assert fig.get_supxlabel().count("\n") >= text.count("\n")


def test_a_failing_write_leaves_the_old_files(tmp_path, monkeypatch):
    fig, _ = draw()
    plotting.save(fig, "curves", tmp_path, NUMBERS, STAMP)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def half(path, **more):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(fig, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        plotting.save(fig, "curves", tmp_path, NUMBERS, "another")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_style_is_a_context_and_use_style_stays():
    _, ax = plt.subplots()
    drawn = [ax.plot([0, 1])[0].get_color() for _ in plotting.COLOURS]
    assert drawn == list(plotting.COLOURS)
    with mpl.rc_context():
        mpl.rcdefaults()
        plain = mpl.rcParams["font.size"]
        with plotting.style():
            assert mpl.rcParams["font.size"] == 8 != plain
        assert mpl.rcParams["font.size"] == plain
        plotting.use_style()
        assert mpl.rcParams["font.size"] == 8


def test_depth_colours_grow_lighter():
    colours = plotting.depth_colours(9)
    light = [np.dot(c[:3], (0.2126, 0.7152, 0.0722)) for c in colours]
    assert len(set(colours)) == 9 and light == sorted(light) and len(plotting.depth_colours(1)) == 1


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "mean", "extent"),
    [
        ([[1, 5, 2], [3, 1, 4], [2, 0, 9]], [2, 2, 5], {1: (1, 3), 2: (0, 5), 4: (2, 9)}),
        ([[3, 4, 5]], [3, 4, 5], {1: (3, 3), 2: (4, 4), 4: (5, 5)}),
        ([[1, NAN, NAN], [3, 2, NAN]], [2, 2, NAN], {1: (1, 3), 2: (2, 2)}),
    ],
)
def test_band_draws_the_mean_and_the_range_over_seeds(values, mean, extent):
    fig, ax = plt.subplots()
    plotting.band(ax, [1, 2, 4], values, "conv1", color="#D55E00")
    (line,), (area,) = ax.lines, ax.collections
    assert line.get_label() == "conv1" and line.get_color() == "#D55E00"
    assert list(line.get_xdata()) == [1, 2, 4]
    np.testing.assert_array_equal(line.get_ydata(), mean)
    x, y = area.get_paths()[0].vertices.T
    assert {at: (y[x == at].min(), y[x == at].max()) for at in np.unique(x)} == extent
    assert area.get_facecolor()[0][:3] == pytest.approx(to_rgba("#D55E00")[:3])
    fig.draw_without_rendering()
    _, unlabelled = plt.subplots()
    plotting.band(unlabelled, [1, 2, 4], values)
    assert unlabelled.get_legend_handles_labels() == ([], [])
    with pytest.raises(ValueError, match=r"values: expected \(seeds, 2\), found \("):
        plotting.band(ax, [1, 2], values)


@pytest.mark.parametrize("limits", [None, (0, 1)])
def test_heatmap(limits):
    fig, ax = plt.subplots()
    values = np.array([[0.1, 0.2, 0.3], [0.4, np.nan, 0.6]])
    with pytest.raises(ValueError, match=r"values: expected shape \(2, 3\), found \(3, 2\)"):
        plotting.heatmap(ax, values.T, ["a", "b"], ["x", "y", "z"], "CKA")
    plotting.heatmap(ax, values, ["a", "b"], ["x", "y", "z"], "CKA", limits)
    fig.draw_without_rendering()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["x", "y", "z"]
    assert list(ax.get_xticks()) == [0, 1, 2] and list(ax.get_yticks()) == [0, 1]
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array().filled(np.nan), values)
    assert image.get_clim() == (limits or (0.1, 0.6))
    assert len(fig.axes) == 2 and fig.axes[1].get_ylabel() == "CKA"
    assert fig.axes[1].get_ylim() == pytest.approx(image.get_clim())


@pytest.mark.parametrize(
    ("axis", "limits", "expected"),
    [
        ("x", (0.9, 110), ["1", "2", "5", "10", "20", "50", "100"]),
        ("y", (0.0009, 0.011), ["0.001", "0.002", "0.005", "0.01"]),
        ("x", (1.5, 5.5), ["2", "5"]),  # so narrow that matplotlib would name the minor ticks
    ],
)
def test_logarithmic_axes_have_plain_numbers(axis, limits, expected):
    fig, ax = plt.subplots()
    ax.plot(*([1, 2], limits)[:: 1 if axis == "y" else -1])
    getattr(plotting, f"log_{axis}")(ax)
    ax.set(**{f"{axis}lim": limits})
    fig.draw_without_rendering()
    drawn = getattr(ax, f"{axis}axis")
    pairs = zip(drawn.get_ticklocs(), drawn.get_ticklabels(), strict=True)
    assert drawn.get_scale() == "log"
    assert [t.get_text() for at, t in pairs if limits[0] <= at <= limits[1]] == expected
    assert not any(label.get_text() for label in drawn.get_ticklabels(minor=True))


@pytest.mark.parametrize("options", [{}, {"title": "layer", "ncols": 2}])
def test_the_legend_lies_outside_the_panels(tmp_path, options):
    fig, axes = draw()
    both = zip(*(a.get_legend_handles_labels() for a in axes), strict=True)
    plotting.legend_outside(fig, *(left + right for left, right in both), **options)
    plotting.save(fig, "curves", tmp_path, NUMBERS, STAMP)
    fig.draw_without_rendering()
    (legend,) = fig.legends
    box = legend.get_window_extent()
    assert [t.get_text() for t in legend.get_texts()] == ["first", "second"]
    assert legend.get_title().get_text() == options.get("title", "")
    assert not any(box.overlaps(ax.get_tightbbox()) for ax in axes)
    assert box.x0 >= 0 and box.x1 <= fig.bbox.x1
    plotting.close(fig)
    assert not plt.fignum_exists(fig.number)


def test_titles_keep_off_the_legend_and_numbers_of_a_short_log_axis_apart(tmp_path):
    fig, (ax, other) = plt.subplots(1, 2, figsize=(5, 2))
    for panel in (ax, other):
        panel.plot([1, 2], [3, 4], label="a")
        panel.set_yscale("log")
    ax.set_xscale("log")
    ax.set_xticks([1, 2], ["one", "two"])
    other.set_ylim(1e-3, 1e3)
    plotting.legend_outside(fig, *ax.get_legend_handles_labels())
    fig.suptitle("a title of many words " * 5, fontsize=9)
    plotting.save(fig, "x", tmp_path, {"a": [1]}, "stamp")
    fig.canvas.draw()
    (title,) = (text for text in fig.texts if text.get_text().startswith("a title"))
    assert title.get_window_extent().x1 < fig.legends[0].get_window_extent().x0
    labels = [text.get_text() for text in ax.get_yticklabels(minor=True)]
    assert not any(labels) and all(len(t.get_text()) <= 3 for t in ax.get_yticklabels())
    assert [text.get_text() for text in ax.get_xticklabels()] == ["one", "two"]  # as they were set
    assert other.get_yticklabels()[1].get_text().startswith("$")  # powers of ten, as ever
