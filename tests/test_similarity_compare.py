"""Grids of layers: every pair as its function gives it, each layer reduced once."""

import math
import sys
import warnings
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from _random_networks import gaussian

from replication import plotting, similarity
from replication._core.inputs import generator
from replication._core.progress import bar
from replication.similarity import _linalg, cca, cka, compare, dft_cca, procrustes, svcca

GRIDS = sys.modules[compare.__module__]  # the function hides the module
METRICS = ("cca", "svcca", "pwcca", "cka", "procrustes", "regression", "rsa", "dft_cca")
METRICS += ("ridge", "mutual_knn", "unit_matching")
CASES = [(metric, {}) for metric in METRICS] + [
    ("svcca", {"dims": 3}),
    ("svcca", {"variance": 0.8, "squares": True}),
    ("pwcca", {"missing": "zero"}),
    ("cka", {"unbiased": True}),
    ("cka", {"kernel": "rbf", "sigma": 0.7}),
    ("cka", {"angular": True}),
    ("cka", {"kernel": "rbf", "unbiased": True}),
    ("procrustes", {"angular": True}),
    ("rsa", {"distance": "euclidean"}),
]
few_examples = pytest.mark.filterwarnings("ignore:few examples")


def number(metric, x, y, **options):
    """Return what the function of a metric's name gives."""
    name = {"regression": "linear_regression_r2", "ridge": "ridge_r2"}.get(metric, metric)
    found = getattr(similarity, name)(x, y, **options)
    return (found if isinstance(found, torch.Tensor) else found.mean).item()


def network(seed=0, n=150):
    """Layers of a random network, the first two convolutional and of different sizes."""
    wide = gaussian(n, 3, 4, 4) + 0.3 * gaussian(n, 3, 4, 4, seed=seed + 10)
    narrow = (wide[..., ::2, ::2] + wide[..., 1::2, 1::2]).relu()[:, [0, 1, 2, 0]]
    narrow = narrow + 0.2 * gaussian(n, 4, 2, 2, seed=seed + 11)
    dense = torch.tanh(narrow.mean((2, 3)) @ gaussian(4, 6, seed=seed + 1))
    return {"conv1": wide, "conv2": narrow, "fc": dense + 0.1 * gaussian(n, 6, seed=seed + 12)}


def averaged(layer):
    return layer.mean((2, 3)) if layer.ndim == 4 else layer


def assert_close(found, expected, atol=1e-12):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@few_examples
@pytest.mark.parametrize(("metric", "options"), CASES)
def test_every_pair_is_the_function_of_that_name(metric, options):
    a, b = network(0), network(5)
    found, own = compare(a, b, metric, **options), compare(a, metric=metric, **options)
    assert (found.rows, found.columns, found.metric) == (tuple(a), tuple(b), metric)
    for grid, columns in ((found, b), (own, a)):
        for i, x in enumerate(a.values()):
            for j, y in enumerate(columns.values()):
                pair = (x, y) if metric == "dft_cca" else (averaged(x), averaged(y))
                expected = number(metric, *pair, **options)
                assert grid.values[i, j].item() == pytest.approx(expected, abs=1e-12), (i, j)
    if metric in ("regression", "pwcca") and not options:  # rows are x and columns y
        assert (own.values - own.values.T).abs().max() > 0.01


@pytest.mark.parametrize("metric", [m for m in METRICS if m not in ("rsa", "ridge")])
def test_the_diagonal_is_exact(metric):
    layers = network()
    expected = 0 if metric == "procrustes" else 1
    copies = {name: layer.clone() for name, layer in layers.items()}
    assert (compare(layers, metric=metric).values.diagonal() == expected).all()
    assert (compare(layers, copies, metric=metric).values.diagonal() == expected).all()


def stretched(smallest, dtype=torch.float64, n=600, width=40):
    """Two correlated layers; the smallest eigenvalue of their columns' Gram is about `smallest`."""
    factors = torch.ones(width, dtype=torch.float64)
    factors[-1] = smallest**0.5
    mixing = torch.linalg.qr(gaussian(width, width, seed=3))[0]
    x = gaussian(n, width)
    y = x + gaussian(n, width, seed=1)
    return [(layer * factors @ mixing).to(dtype) for layer in (x, y)]


@pytest.mark.parametrize("smallest", [1e-1, 3e-3, 3e-4, 1e-8])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 5e-4)])
def test_the_covariance_is_taken_only_where_it_is_as_good_as_a_qr(smallest, dtype, bound):
    x, y = stretched(smallest, dtype)
    exact = cca(x.double(), y.double()).mean
    dead = torch.cat([x, torch.full((600, 3), 0.1, dtype=dtype)], 1)
    if smallest >= 1e-4 or dtype == torch.float64:  # beyond, float32 data do not hold the layer
        found = compare({"x": x, "dead": dead}, {"y": y}, "cca").values
        assert (found - exact).abs().max() < bound
    assert isinstance(_linalg.whitening(x), _linalg.Whitening) == (smallest > 1e-3)
    for width in (1, 40, 65, 129, 200):  # one more than a block, too
        layer = stretched(2e-3, dtype, width=width)[0]
        copy = {"copy": layer.clone()}
        assert compare({"x": layer}, copy, "cca").values == 1
        assert compare({"x": layer}, copy, "svcca", dims=3).values == pytest.approx(1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("null", [0, 3])
def test_layers_are_reduced_once_and_symmetric_pairs_multiplied_once(monkeypatch, metric, null):
    chosen = GRIDS.find(metric, {})
    reduce, pair = Mock(wraps=chosen.reduce), Mock(wraps=chosen.pair)
    counted = replace(chosen, reduce=reduce, pair=pair)
    monkeypatch.setitem(GRIDS.METRICS, metric, lambda: counted)
    a, b = network(0), network(5)
    own = 6 if chosen.symmetric else 9
    for arguments, layers, products in (
        ((a,), 3, own),
        ((a, b), 6, 9),
        (({1: a, 2: b},), 6, 9 + own),
        (({1: a, 2: b}, network(9)), 9, 18),
    ):
        reduce.reset_mock()
        pair.reset_mock()
        compare(*arguments, metric=metric, null=null)
        stages = 2 if 1 in arguments[0] else 1
        assert (reduce.call_count, pair.call_count) == (layers, products + 9 * null * stages)


def test_checkpoints_against_the_last_or_another():
    stages = {0: network(0), 10: network(5), "end": network(9)}
    found = compare(stages, metric="pwcca")
    assert found.values.shape == (3, 3, 3)
    assert found.checkpoints == (0, 10, "end")
    other = compare(stages, network(1), metric="pwcca")
    for grid, target in ((found, stages["end"]), (other, network(1))):
        for k, layers in enumerate(stages.values()):
            assert_close(grid.values[k], compare(layers, target, metric="pwcca").values)


def test_policies_of_convolutional_layers():
    x, y = gaussian(90, 3, 2, 5), gaussian(90, 4, 2, 5, seed=1)
    rows = [
        torch.stack([z[n, :, h, w] for n in range(90) for h in range(2) for w in range(5)])
        for z in (x, y)
    ]
    flat = [torch.stack([row.reshape(-1) for row in z]) for z in (x, y)]
    for conv, metric, options, expected in (
        ("positions", "cca", {}, cca(*rows).mean),
        ("flatten", "svcca", {"dims": 4}, svcca(*flat, dims=4).mean),
        ("flatten", "dft_cca", {}, dft_cca(x, y).mean),
    ):
        found = compare({"x": x}, {"y": y}, metric, conv=conv, **options)
        assert found.values.item() == pytest.approx(expected.item(), abs=1e-12)
    assert found.metric == "dft_cca"
    x = torch.randint(0, 255, (50, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    found = compare({"x": x.byte()}, {"y": gaussian(50, 4)}, "cca")  # averaged in float64
    expected = cca(x.double().mean((2, 3)), gaussian(50, 4)).mean
    assert found.values.item() == pytest.approx(expected.item(), abs=1e-12)


def test_a_callable_gets_the_layers_and_its_options():
    def covariance(x, y, power=1):
        return ((x - x.mean(0)).T @ (y - y.mean(0))).norm().item() ** power

    layers = {"a": gaussian(20, 3), "b": gaussian(20, 4, seed=1)}
    found = compare(layers, metric=covariance, power=2)
    expected = covariance(*layers.values()) ** 2
    assert found.metric == "covariance"
    assert found.values[0, 1].item() == pytest.approx(expected, rel=1e-15)  # no digit is lost
    assert found.values[1, 0] == pytest.approx(found.values[0, 1].item())
    exact = compare(layers, metric=lambda x, y: cca(x, y).mean).values
    assert torch.equal(compare(layers, metric=cca).values, exact)
    assert compare(layers, metric=Mock(spec=["__call__"], return_value=1)).metric == "metric"
    with pytest.raises(ValueError, match=r"metric: expected a number, found shape \(4,\)"):
        compare(layers, metric=lambda x, y: torch.zeros(4))
    with pytest.raises(ValueError, match=r"acts_a\['a'\] and acts_b\['a'\]: no"):
        compare(layers, dict(layers), Mock(side_effect=ValueError("no")))


@pytest.mark.parametrize("metric", ["cca", "svcca"])
def test_null_is_that_of_the_function(metric):
    a, b = network(0), network(5)
    found = compare(a, b, metric, null=4, seed=3).null
    for i, x in enumerate(a.values()):
        for j, y in enumerate(b.values()):
            null = getattr(similarity, metric)(averaged(x), averaged(y), null=4, seed=3).null
            assert found[i, j] == pytest.approx(null.mean().item(), abs=1e-12)


@few_examples
@pytest.mark.parametrize("conv", ["spatial_mean", "flatten", "positions"])
@pytest.mark.parametrize(("metric", "options"), CASES)
def test_reordered_forms_are_those_of_reordered_layers(metric, options, conv):
    a = {"x": gaussian(25, 2, 2, 1), "y": gaussian(25, 3, 2, 1, seed=1)}
    found = compare(a, metric=metric, conv=conv, null=1, seed=2, **options).null
    order = torch.randperm(25, generator=generator(2, "null", 0))
    b = {name: layer[order] for name, layer in a.items()}
    assert_close(found, compare(a, b, metric, conv=conv, **options).values)


def test_null_of_checkpoints_is_low_where_values_are_high():
    stages = {0: network(0, 400), 1: network(5, 400)}
    found, other = (compare(stages, metric="cka", null=3, seed=seed) for seed in (0, 1))
    values, null = (z.diagonal(dim1=1, dim2=2) for z in (found.values, found.null))
    assert (values > 5 * null).all() and not torch.equal(found.null, other.null)
    assert compare(stages, metric="cka").null is None


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kind_and_dtype_are_the_layers(metric, dtype):
    layers = {name: layer.to(dtype) for name, layer in network().items()}
    found = compare(layers, metric=metric, null=1)
    assert found.values.dtype == found.null.dtype == dtype
    arrays = compare({n: x.numpy() for n, x in layers.items()}, metric=metric)
    assert isinstance(arrays.values, np.ndarray)
    np.testing.assert_array_equal(arrays.values, found.values.numpy())
    assert_close(found.values.double(), compare(network(), metric=metric).values, 2e-5)
    mixed = {**layers, "conv2": network()["conv2"].numpy(), "fc": layers["fc"].half()}
    assert compare(mixed, metric=metric).values.dtype == torch.float64
    if metric in ("cca", "svcca", "pwcca", "cka", "procrustes", "regression"):
        x = gaussian(60, 3).to(dtype).requires_grad_()
        compare({"x": x}, {"y": gaussian(60, 4, seed=1)}, metric).values.sum().backward()
        assert x.grad.abs().max() > 0


@pytest.mark.parametrize("metric", METRICS)
def test_constant_layers_are_named_once(metric):
    layers = {**network(), "dead": torch.ones(150, 4).double(), "off": torch.zeros(150, 2).double()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = compare(layers, metric=metric)
    (warning,) = caught
    assert str(warning.message).startswith("acts_a['dead'], acts_a['off']: constant")
    assert warning.filename == __file__
    assert (found.values[3] == (2 if metric == "procrustes" else 0)).all()


@pytest.mark.parametrize("metric", ["cca", "svcca", "pwcca", "regression", "dft_cca"])
def test_layers_of_full_rank_are_named(metric):
    options = {"variance": 1.0} if metric == "svcca" else {}
    layers = {"narrow": gaussian(20, 3), "wide": gaussian(20, 25, seed=1)}
    named = r"^acts_a\[1\]\['wide'\], acts_a\[2\]\['wide'\]: spans all 20 centred examples"
    with pytest.warns(UserWarning, match=named) as caught:
        compare({1: layers, 2: dict(layers)}, metric=metric, **options)
    assert len(caught) == 1


def test_biased_cka_of_few_examples_warns_as_the_function_does():
    layers = {"x": gaussian(30, 12), "y": gaussian(30, 9, seed=1)}
    with pytest.warns(UserWarning, match="few examples; unrelated layers like these") as grid:
        compare(layers, metric="cka")
    with pytest.warns(UserWarning, match="few examples") as single:
        cka(*layers.values())
    assert str(grid[0].message) == str(single[0].message)
    compare(layers, metric="cka", unbiased=True)


LAYER = gaussian(10, 2)
A = {"a": LAYER}
MAPS = {"a": gaussian(9, 2, 4, 4), "b": gaussian(9, 2, 2, 2)}


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ({}, None, {}, "acts_a: expected a mapping of names to layers, found an empty one"),
        (A, {}, {}, "acts_b: expected a mapping of names to layers, found an empty"),
        (LAYER, None, {}, "acts_a: expected a mapping of names to layers, found Tensor"),
        ({1: A, 2: LAYER}, None, {}, r"acts_a\[2\]: expected a mapping .* found Tensor"),
        ({1: A, 2: {"b": LAYER}}, None, {}, r"acts_a: .*layers \('a',\) at every .*\('b',\)"),
        ({3: {"a": LAYER * math.nan}}, None, {}, r"acts_a\[3\]\['a'\]: expected finite numbers"),
        ({"a": LAYER[:, :, None]}, None, {}, r"acts_a\['a'\]: .*height, width\), found \(10, 2"),
        (A, {"a": LAYER[1:]}, {}, r"acts_b\['a'\]: .*examples of acts_a\['a'\], 10, found 9"),
        (MAPS, None, {"conv": "positions"}, r"acts_a\['b'\]: .*size of .*\(4, 4\), found \(2, 2"),
        (A, None, {"metric": "ckaa"}, "metric: found 'ckaa'; did you mean 'cka'"),
        (A, None, {"conv": "dft"}, "conv: found 'dft'"),
        (A, None, {"dim": 3}, "options: svcca takes variance, dims, squares, found dim"),
        (A, None, {"metric": "cka", "confounder": LAYER}, "options: .*angular, found confounder"),
        (A, None, {"metric": "cka", "kernel": "rfb"}, "kernel: found 'rfb'"),
        (A, None, {"metric": "rsa", "distance": "cosine"}, "distance: found 'cosine'"),
    ],
)
def test_bad_input(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        compare(a, b, **options)


def test_to_frame():
    a, b = {"p": gaussian(30, 2), "q": gaussian(30, 3, seed=1)}, {"p": gaussian(30, 4, seed=2)}
    frame = compare(a, b, "cca").to_frame()
    assert list(frame.columns) == ["row", "column", "value"]
    assert frame["row"].tolist() == ["p", "q"]
    assert frame["value"][1] == pytest.approx(cca(a["q"], b["p"]).mean.item())
    found = compare({"s": a, "t": a}, b, "cca", null=2)
    frame = found.to_frame().set_index(["checkpoint", "row", "column"])
    assert len(frame) == 4
    assert frame.loc[("t", "q", "p"), "null"] == pytest.approx(found.null[1, 1, 0].item())


def test_plot():
    stages = {f"step {k}": network(k) for k in range(5)}
    for found in (compare(network(), metric="cka"), compare(stages, metric="procrustes")):
        fig = found.plot()
        *panels, scale = (ax for ax in fig.axes if ax.axison)
        kind = "a distance" if found.metric == "procrustes" else "a similarity"
        assert scale.get_ylabel() == f"{found.metric}, {kind}"
        assert [text.get_text() for text in panels[0].get_yticklabels()] == ["conv1", "conv2", "fc"]
        assert {ax.images[0].get_clim() for ax in panels} == {
            (0, max(1, found.values.max().item()))
        }
        for ax, values in zip(panels, found.values.view(-1, 3, 3), strict=True):
            np.testing.assert_array_equal(ax.images[0].get_array(), values)
        fig.draw_without_rendering()
        plotting.close(fig)
    assert [ax.get_title() for ax in panels] == list(stages)
    named = [ax.xaxis.get_major_ticks()[0].label1.get_visible() for ax in panels]
    assert named == [False, True, True, True, True]  # the lowest of each column


@pytest.mark.filterwarnings("ignore:.*constant")
@pytest.mark.parametrize(
    "metric", ["cka", "procrustes", "rsa", cka, procrustes, lambda x, y: 2 - 2 * cka(x, y)]
)
def test_colours_run_one_way_and_it_is_said_which(metric):
    x, y = gaussian(2, 100, 3)
    found = compare({"zero": 0 * x, "x": x, "y": y}, metric=metric)
    name = getattr(metric, "__name__", metric)
    assert found.kind == ("similarity" if name in ("cka", "rsa") else "distance")
    fig = found.plot()
    colour = fig.axes[0].images[0].to_rgba(found.values.numpy())[..., :3].mean(-1)
    assert colour[1, 1] == colour[2, 2] > colour[1, 2] + 0.05  # bright is alike
    plotting.close(fig)


def test_progress_reaches_the_end(monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    bars = []
    kept = Mock(side_effect=lambda **options: bars.append(bar(**options)) or bars[-1])
    monkeypatch.setattr(GRIDS, "bar", kept)
    compare(network(), metric="cka")
    assert bars.pop().disable and not capsys.readouterr().err
    compare({1: network(), 2: network(5)}, metric="cka", null=2, progress=True)
    assert bars[0].n == bars[0].total == 18
    assert "0/18" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_gpu_agrees(metric, dtype, tolerance):
    layers = {name: layer.to(dtype) for name, layer in network().items()}
    found = compare({n: x.cuda() for n, x in layers.items()}, metric=metric, null=1)
    expected = compare(layers, metric=metric, null=1)
    assert found.values.is_cuda and found.null.is_cuda
    assert_close(found.values.cpu(), expected.values, tolerance)
    assert_close(found.null.cpu(), expected.null, tolerance)
    with pytest.raises(ValueError, match=r"acts_b\['a'\]: expected the device of acts_a\['a'\]"):
        compare({"a": LAYER}, {"a": LAYER.cuda()})


def unrelated(trial, count=6, examples=60):
    source = torch.Generator().manual_seed(trial)
    draw = torch.randn(2, count, examples, 5, dtype=torch.float64, generator=source)
    return ({str(i): z for i, z in enumerate(side)} for side in draw)


def test_the_null_of_the_maximum_holds_for_the_best_of_a_grid():
    found = [compare(*unrelated(t), "cka", null=19, seed=t) for t in range(60)]
    best = np.array([grid.p_values.min().item() for grid in found])
    assert (best <= 0.05).mean() <= 0.12  # 0.05, and what 60 trials scatter
    alone = [(g.maxima[:, None, None] >= 0).float().mean() for g in found]  # all maxima count
    assert np.allclose(alone, 1) and all((g.maxima >= g.null.max()).all() for g in found)


def test_calibrated_scores_keep_what_is_alike_and_drop_what_is_not():
    first, second = unrelated(0)
    second["0"] = first["0"]
    grid = compare(first, second, "cka", null=39)
    assert grid.p_values[0, 0] == pytest.approx(1 / 40)
    scores = grid.calibrated()
    assert scores[0, 0] == pytest.approx(1) and (scores.flatten()[1:] < 0.1).all()
    kept = grid.maxima.sort(descending=True).values[1]  # 5% of 40
    expected = ((grid.values - kept) / (1 - kept)).clamp(0)
    assert torch.allclose(scores, expected)
    with pytest.raises(ValueError, match="permutation"):
        _ = compare(first, metric="cka").p_values


def test_permutations_within_groups_leave_what_groups_share():
    labels = torch.arange(60) % 3
    centres = 5 * torch.randn(3, 5, dtype=torch.float64, generator=torch.manual_seed(0))
    first, second = ({n: z + centres[labels] for n, z in side.items()} for side in unrelated(3, 2))
    free = compare(first, second, "cka", null=9)
    kept = compare(first, second, "cka", null=9, within=labels)
    assert (free.null < 0.3).all() and (kept.null > 0.9 * kept.values).all()
    with pytest.raises(ValueError, match="within"):
        compare(first, second, "cka", null=1, within=labels[:5])
