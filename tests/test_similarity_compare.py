"""Grids of layers: every pair as its function gives it, each layer reduced once."""

import math
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from _random_networks import gaussian

from replication import plotting
from replication._core.inputs import generator
from replication._core.progress import bar
from replication.similarity import (
    _metrics,
    _whitening,
    cca,
    cka,
    compare,
    dft_cca,
    linear_regression_r2,
    procrustes,
    pwcca,
    rsa,
    svcca,
)

FUNCTIONS = {
    "cca": lambda x, y, **options: cca(x, y, **options).mean,
    "svcca": lambda x, y, **options: svcca(x, y, **options).mean,
    "pwcca": pwcca,
    "cka": cka,
    "procrustes": procrustes,
    "regression": linear_regression_r2,
    "rsa": rsa,
    "dft_cca": lambda x, y: dft_cca(x, y).mean,
}
CASES = [
    ("cca", {}),
    ("svcca", {}),
    ("svcca", {"dims": 3}),
    ("svcca", {"variance": 0.8, "squares": True}),
    ("pwcca", {}),
    ("pwcca", {"symmetric": True}),
    ("cka", {}),
    ("cka", {"unbiased": True}),
    ("cka", {"kernel": "rbf", "sigma": 0.7}),
    ("cka", {"kernel": "rbf", "unbiased": True}),
    ("procrustes", {}),
    ("procrustes", {"angular": True}),
    ("regression", {}),
    ("rsa", {}),
    ("rsa", {"distance": "euclidean"}),
    ("dft_cca", {}),
]


def network(seed=0, n=150):
    """Layers of a random network, the first two convolutional and of different sizes."""
    wide = gaussian(n, 3, 4, 4) + 0.3 * gaussian(n, 3, 4, 4, seed=seed + 10)
    narrow = (wide[..., ::2, ::2] + wide[..., 1::2, 1::2]).relu()[:, [0, 1, 2, 0]]
    narrow = narrow + 0.2 * gaussian(n, 4, 2, 2, seed=seed + 11)
    dense = torch.tanh(narrow.mean((2, 3)) @ gaussian(4, 6, seed=seed + 1))
    return {"conv1": wide, "conv2": narrow, "fc": dense + 0.1 * gaussian(n, 6, seed=seed + 12)}


def averaged(layer):
    return layer.mean((2, 3)) if layer.ndim == 4 else layer


# ------------------------------------------------------------------ every pair


@pytest.mark.filterwarnings("ignore:x, y. few examples", "ignore:few examples")
@pytest.mark.parametrize(("metric", "options"), CASES)
def test_every_pair_is_the_function_of_that_name(metric, options):
    a, b = network(0), network(5)
    found = compare(a, b, metric, **options)
    assert (found.rows, found.columns, found.metric) == (tuple(a), tuple(b), metric)
    own = compare(a, metric=metric, **options)
    for i, x in enumerate(a.values()):
        for columns, grid in ((b, found), (a, own)):
            for j, y in enumerate(columns.values()):
                pair = (x, y) if metric == "dft_cca" else (averaged(x), averaged(y))
                expected = FUNCTIONS[metric](*pair, **options)
                assert grid.values[i, j] == pytest.approx(expected.item(), abs=1e-12), (i, j)


@pytest.mark.parametrize("metric", ["pwcca", "regression"])
def test_rows_are_x_and_columns_y(metric):
    values = compare(network(), metric=metric).values
    assert (values - values.T).abs().max() > 0.01


@pytest.mark.parametrize("metric", [m for m in FUNCTIONS if m != "rsa"])
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
    layers = dict(zip("xy", stretched(smallest, dtype), strict=True))
    exact = cca(layers["x"].double(), layers["y"].double()).mean
    with_dead = {"x": torch.cat([layers["x"], torch.full((600, 3), 0.1, dtype=dtype)], 1)}
    if smallest >= 1e-4 or dtype == torch.float64:  # beyond, float32 data do not hold the layer
        assert abs(compare(layers, metric="cca").values[0, 1] - exact) < bound
        assert abs(compare(with_dead, layers, metric="cca").values[0, 1] - exact) < bound
    taken = isinstance(_whitening.whitening(layers["x"]), _whitening.Whitening)
    assert taken == (smallest > 1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [1, 2, 40, 200])
def test_copies_are_exactly_alike_also_through_the_covariance(width, dtype):
    x = stretched(2e-3, dtype, width=width)[0]
    assert compare({"x": x}, {"copy": x.clone()}, metric="cca").values == 1


@pytest.mark.parametrize("metric", FUNCTIONS)
@pytest.mark.parametrize("null", [0, 3])
def test_each_layer_is_reduced_once(monkeypatch, metric, null):
    calls = []
    chosen = _metrics.find(metric, {})

    def counted(layer):
        calls.append(layer)
        return chosen.reduce(layer)

    monkeypatch.setitem(_metrics.METRICS, metric, lambda: replace(chosen, reduce=counted))
    a, b = network(0), network(5)
    for arguments, layers in (((a,), 3), ((a, b), 6), ((a, a), 3), (({1: a, 2: b},), 6)):
        calls.clear()
        compare(*arguments, metric=metric, null=null)
        assert len(calls) == layers
    calls.clear()
    compare({1: a, 2: b}, network(9), metric=metric, null=null)
    assert len(calls) == 9


def test_a_symmetric_pair_is_multiplied_once(monkeypatch):
    pairs = []
    chosen = _metrics.find("cca", {})

    def counted(a, b):
        pairs.append((a, b))
        return chosen.pair(a, b)

    monkeypatch.setitem(_metrics.METRICS, "cca", lambda: replace(chosen, pair=counted))
    compare(network(), metric="cca")
    assert len(pairs) == 6


# ------------------------------------------------------------------ checkpoints


def test_checkpoints_against_the_last_or_another():
    stages = {0: network(0), 10: network(5), "end": network(9)}
    found = compare(stages, metric="pwcca")
    assert found.values.shape == (3, 3, 3)
    assert found.checkpoints == (0, 10, "end")
    other = compare(stages, network(1), metric="pwcca")
    for grid, target in ((found, stages["end"]), (other, network(1))):
        for k, layers in enumerate(stages.values()):
            expected = compare(layers, target, metric="pwcca").values
            torch.testing.assert_close(grid.values[k], expected, atol=1e-12, rtol=0)


def test_a_single_checkpoint_keeps_its_axis():
    found = compare({"only": network()}, metric="cka")
    assert found.values.shape == (1, 3, 3)
    assert found.checkpoints == ("only",)


# ------------------------------------------------------------------ convolutional layers


def test_positions_are_examples():
    x, y = gaussian(40, 3, 2, 5), gaussian(40, 4, 2, 5, seed=1)
    by_hand = [torch.stack([z[n, :, h, w] for n in range(40) for h in range(2) for w in range(5)])
               for z in (x, y)]  # fmt: skip
    found = compare({"x": x}, {"y": y}, "cca", conv="positions").values.item()
    assert found == pytest.approx(cca(*by_hand).mean.item(), abs=1e-12)


def test_positions_are_neurons():
    x, y = gaussian(90, 3, 2, 2), gaussian(90, 4, 1, 2, seed=1)
    by_hand = [torch.stack([row.reshape(-1) for row in z]) for z in (x, y)]
    found = compare({"x": x}, {"y": y}, "svcca", conv="flatten", dims=4).values.item()
    assert found == pytest.approx(svcca(*by_hand, dims=4).mean.item(), abs=1e-12)


def test_dft_is_a_policy_of_cca():
    layers = network()
    found = compare(layers, metric="cca", conv="dft")
    assert torch.equal(found.values, compare(layers, metric="dft_cca").values)
    assert found.metric == "dft_cca"
    expected = dft_cca(layers["conv1"], layers["fc"]).mean
    assert found.values[0, 2] == pytest.approx(expected.item(), abs=1e-12)


def test_integer_images_are_averaged_in_float64():
    x = torch.randint(0, 255, (50, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    found = compare({"x": x.byte()}, {"y": gaussian(50, 4)}, "cca")
    expected = cca(x.double().mean((2, 3)), gaussian(50, 4)).mean
    assert found.values.item() == pytest.approx(expected.item(), abs=1e-12)


# ------------------------------------------------------------------ callables


def test_a_callable_gets_the_layers_and_its_options():
    def covariance(x, y, power=1):
        return ((x - x.mean(0)).T @ (y - y.mean(0))).norm().item() ** power

    layers = {"a": gaussian(20, 3), "b": gaussian(20, 4, seed=1)}
    found = compare(layers, metric=covariance, power=2)
    assert found.metric == "covariance"
    assert found.values[0, 1].item() == pytest.approx(
        covariance(*layers.values()) ** 2, rel=1e-15
    )  # a Python float keeps its digits
    assert found.values[1, 0] == pytest.approx(found.values[0, 1].item())


def test_a_callable_may_return_a_cca_result():
    layers = network()
    assert torch.equal(
        compare(layers, metric=cca).values,
        compare(layers, metric=lambda x, y: cca(x, y).mean).values,
    )
    unnamed = compare(layers, metric=type("M", (), {"__call__": lambda self, x, y: 1})())
    assert unnamed.metric == "metric"


def test_a_callable_must_return_a_number():
    with pytest.raises(ValueError, match=r"metric: expected a number, found shape \(4,\)"):
        compare(network(), metric=lambda x, y: torch.zeros(4))


def test_an_error_of_a_callable_names_the_layers():
    def picky(x, y):
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"acts_a\['conv1'\] and acts_b\['conv1'\]: no"):
        compare(network(), network(1), picky)


# ------------------------------------------------------------------ null


@pytest.mark.filterwarnings("ignore:x, y. few examples", "ignore:few examples")
@pytest.mark.parametrize("metric", ["cca", "svcca"])
def test_null_is_that_of_the_function(metric):
    a, b = network(0), network(5)
    found = compare(a, b, metric, null=4, seed=3)
    for i, x in enumerate(a.values()):
        for j, y in enumerate(b.values()):
            function = {"cca": cca, "svcca": svcca}[metric]
            expected = function(averaged(x), averaged(y), null=4, seed=3).null.mean()
            assert found.null[i, j] == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.filterwarnings("ignore:few examples", "ignore:x, y. few examples")
@pytest.mark.parametrize("conv", ["spatial_mean", "flatten", "positions"])
@pytest.mark.parametrize(("metric", "options"), CASES)
def test_reordered_forms_are_those_of_reordered_layers(metric, options, conv):
    if conv != "spatial_mean" and metric == "dft_cca":
        pytest.skip("has no policy")
    a = {"x": gaussian(25, 2, 2, 1), "y": gaussian(25, 3, 2, 1, seed=1)}
    found = compare(a, metric=metric, conv=conv, null=1, seed=2, **options).null
    order = torch.randperm(25, generator=generator(2, "null", 0))
    b = {name: layer[order] for name, layer in a.items()}
    expected = compare(a, b, metric, conv=conv, **options).values
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_null_of_checkpoints_is_low_where_values_are_high():
    stages = {0: network(0, 400), 1: network(5, 400)}
    found = compare(stages, metric="cka", null=3)
    assert found.null.shape == found.values.shape
    assert (found.values.diagonal(dim1=1, dim2=2) > 5 * found.null.diagonal(dim1=1, dim2=2)).all()
    assert torch.equal(found.null, compare(stages, metric="cka", null=3).null)
    assert not torch.equal(found.null, compare(stages, metric="cka", null=3, seed=1).null)
    assert compare(stages, metric="cka").null is None


# ------------------------------------------------------------------ kinds and dtypes


@pytest.mark.parametrize("metric", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kind_and_dtype_are_the_layers(metric, dtype):
    layers = {name: layer.to(dtype) for name, layer in network().items()}
    found = compare(layers, metric=metric, null=1)
    assert found.values.dtype == found.null.dtype == dtype
    arrays = compare({n: x.numpy() for n, x in layers.items()}, metric=metric)
    assert isinstance(arrays.values, np.ndarray)
    np.testing.assert_array_equal(arrays.values, found.values.numpy())
    exact = compare(network(), metric=metric).values
    torch.testing.assert_close(found.values.double(), exact, atol=2e-5, rtol=0)


def test_mixed_dtypes_and_kinds():
    a, b = network(0), network(5)
    mixed = {"conv1": a["conv1"].float(), "conv2": a["conv2"].numpy(), "fc": a["fc"].half()}
    found = compare(mixed, b, "cca")
    assert found.values.dtype == torch.float64
    expected = cca(averaged(a["conv1"].float()).double(), averaged(b["fc"])).mean
    assert found.values[0, 2] == pytest.approx(expected.item(), abs=1e-6)
    assert isinstance(compare({"a": b["fc"].numpy()}, {"a": b["fc"]}, "cka").values, np.ndarray)
    assert isinstance(compare({"a": b["fc"]}, {"a": b["fc"].numpy()}, "cka").values, torch.Tensor)


def test_gradients_pass():
    x = gaussian(60, 3).requires_grad_()
    compare({"x": x}, {"y": gaussian(60, 4, seed=1)}, "cka").values.sum().backward()
    assert x.grad.abs().max() > 0


# ------------------------------------------------------------------ warnings


def test_constant_layers_are_named_once():
    layers = {**network(), "dead": torch.ones(150, 4).double(), "off": torch.zeros(150, 2).double()}
    for metric in FUNCTIONS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = compare(layers, metric=metric)
        (warning,) = caught
        assert str(warning.message).startswith("acts_a['dead'], acts_a['off']: constant"), metric
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
    with pytest.warns(UserWarning, match="few examples; unrelated layers like these") as one:
        compare(layers, metric="cka")
    with pytest.warns(UserWarning, match="few examples") as other:
        cka(*layers.values())
    assert str(one[0].message).split()[-8:] == str(other[0].message).split()[-8:]
    compare(layers, metric="cka", unbiased=True)


# ------------------------------------------------------------------ bad input


LAYER = gaussian(10, 2)


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ({}, None, {}, "acts_a: expected a mapping of names to layers, found an empty one"),
        ({"a": LAYER}, {}, {}, "acts_b: expected a mapping of names to layers, found an empty"),
        ({1: {}}, None, {}, "acts_a: expected a mapping of names to layers, found an empty one"),
        (LAYER, None, {}, "acts_a: expected a mapping of names to layers, found Tensor"),
        ({"a": LAYER}, LAYER, {}, "acts_b: expected a mapping of names to layers, found Tensor"),
        ({1: {"a": LAYER}, 2: LAYER}, None, {}, "acts_a: expected a mapping .* found Tensor"),
        (
            {1: {"a": LAYER}, 2: {"b": LAYER}},
            None,
            {},
            r"acts_a: expected the layers \('a',\) at every checkpoint, found \('b',\)",
        ),
        ({"a": [1.0]}, None, {}, r"acts_a\['a'\]: expected a torch tensor or NumPy array"),
        ({"a": LAYER}, {"b": {"c": LAYER}}, {}, r"acts_b\['b'\]: expected a torch tensor"),
        ({"a": LAYER}, {"a": LAYER * math.nan}, {}, r"acts_b\['a'\]: expected finite numbers"),
        ({3: {"a": LAYER * math.nan}}, None, {}, r"acts_a\[3\]\['a'\]: expected finite numbers"),
        ({"a": LAYER[:1]}, None, {}, r"acts_a\['a'\]: expected real \(examples >= 2, neurons\)"),
        (
            {"a": LAYER[:, :, None]},
            None,
            {},
            r"acts_a\['a'\]: expected real .*channels, height, width.*found shape \(10, 2, 1\)",
        ),
        ({"a": LAYER + 1j}, None, {}, "expected real .* found .*complex128"),
        (
            {"a": LAYER},
            {"a": LAYER[1:]},
            {},
            r"acts_b\['a'\]: expected the 10 examples of acts_a\['a'\], found 9",
        ),
        (
            {"a": LAYER, "b": LAYER[:4]},
            None,
            {"metric": "dft_cca"},
            r"acts_a\['b'\]: expected the 10 examples of acts_a\['a'\], found 4",
        ),
        (
            {"a": gaussian(9, 2, 4, 4), "b": gaussian(9, 2, 2, 2)},
            None,
            {"conv": "positions"},
            r"acts_a\['b'\]: conv='positions' expected the size \(4, 4\) of acts_a\['a'\], "
            r"found \(2, 2\)",
        ),
        ({"a": LAYER}, None, {"metric": "ckaa"}, "metric: found 'ckaa'; did you mean 'cka'"),
        ({"a": LAYER}, None, {"metric": ["cka"]}, "metric: found .'cka'."),
        ({"a": LAYER}, None, {"conv": "mean"}, "conv: found 'mean'.*spatial_mean"),
        ({"a": LAYER}, None, {"conv": "dft"}, "conv: found 'dft' for 'svcca'"),
        ({"a": LAYER}, None, {"dim": 3}, "options: svcca takes variance, dims, squares, found dim"),
        (
            {"a": LAYER},
            None,
            {"metric": "cka", "confounder": LAYER},
            "options: cka takes kernel, unbiased, sigma, found confounder",
        ),
        ({"a": LAYER}, None, {"metric": "cka", "kernel": "rfb"}, "kernel: unknown 'rfb'"),
        ({"a": LAYER}, None, {"metric": "rsa", "distance": "cosine"}, "distance: found 'cosine'"),
        ({"a": LAYER}, None, {"variance": 2}, "variance"),
        ({"a": LAYER}, None, {"null": -1}, "null: expected an integer >= 0"),
    ],
)
def test_bad_input(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        compare(a, b, **options)


# ------------------------------------------------------------------ the grid itself


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


def test_plot_of_one_grid():
    found = compare(network(), metric="cka")
    fig = found.plot()
    (heatmap, bar) = fig.axes
    assert [text.get_text() for text in heatmap.get_yticklabels()] == ["conv1", "conv2", "fc"]
    np.testing.assert_array_equal(heatmap.images[0].get_array(), found.values)
    assert heatmap.images[0].get_clim() == (0, 1)
    assert bar.get_ylabel() == "cka"
    plotting.close(fig)


def test_plot_of_checkpoints():
    stages = {f"step {k}": network(k) for k in range(5)}
    found = compare(stages, metric="procrustes")
    fig = found.plot(limits=(0, 1.5))
    panels = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title() for ax in panels] == list(stages)
    assert {ax.images[0].get_clim() for ax in panels} == {(0, 1.5)}
    for ax, values in zip(panels, found.values, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), values)
    named = [bool(ax.get_xticklabels()[0].get_text()) for ax in panels]
    assert named == [False, True, True, True, True]  # the lowest of each column
    fig.draw_without_rendering()
    plotting.close(fig)


def test_progress_reaches_the_end(monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    bars = []

    def kept(**options):
        bars.append(bar(**options))
        return bars[-1]

    monkeypatch.setattr(sys.modules[compare.__module__], "bar", kept)
    compare(network(), metric="cka")
    assert bars[0].disable and not capsys.readouterr().err
    compare({1: network(), 2: network(5)}, metric="cka", null=2, progress=True)
    assert bars[1].n == bars[1].total == 18
    assert "0/18" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("metric", FUNCTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_gpu_agrees(metric, dtype, tolerance):
    layers = {name: layer.to(dtype) for name, layer in network().items()}
    found = compare({n: x.cuda() for n, x in layers.items()}, metric=metric, null=1)
    expected = compare(layers, metric=metric, null=1)
    assert found.values.is_cuda and found.null.is_cuda
    torch.testing.assert_close(found.values.cpu(), expected.values, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.null.cpu(), expected.null, atol=tolerance, rtol=0)


@pytest.mark.gpu
def test_devices_must_agree():
    with pytest.raises(ValueError, match=r"acts_b\['a'\]: expected the device of acts_a\['a'\]"):
        compare({"a": LAYER}, {"a": LAYER.cuda()})
