"""Streaming: what comes in batches has the indices of what lies in memory."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from _random_networks import gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from replication import similarity
from replication.similarity import Accumulator, cca, cka, compare

METRICS = ("cca", "svcca", "pwcca", "cka", "procrustes", "regression")
CASES = [(metric, {}) for metric in METRICS] + [
    ("svcca", {"dims": 3}),
    ("svcca", {"variance": 0.8, "squares": True}),
    ("pwcca", {"missing": "zero"}),
    ("procrustes", {"angular": True}),
]


def in_memory(metric, x, y, **options):
    name = "linear_regression_r2" if metric == "regression" else metric
    return getattr(similarity, name)(x, y, **options)


def pair(n=300, seed=0):
    x = gaussian(n, 7, seed=seed) @ gaussian(7, 7, seed=seed + 1) + 3
    y = torch.tanh(x[:, :4] @ gaussian(4, 5, seed=seed + 2)) + 0.5 * gaussian(n, 5, seed=seed + 3)
    return x, y


def streamed(x, y, sizes=64):
    result = Accumulator()
    for batch in zip(x.split(sizes), y.split(sizes), strict=True):
        result.update(*batch)
    return result


def assert_same(found, expected, tolerance=1e-8):
    """Compare results of any kind."""
    if hasattr(expected, "correlations"):
        assert found.ranks == expected.ranks
        assert (found.widths, found.examples) == (expected.widths, expected.examples)
        found, expected = found.correlations, expected.correlations
    elif hasattr(expected, "rows"):
        assert (found.rows, found.columns) == (expected.rows, expected.columns)
        found, expected = found.values, expected.values
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("sizes", [1, 7, 300, [1, 250, 2, 47]])
@pytest.mark.parametrize(("metric", "options"), CASES)
def test_batches_give_what_the_whole_gives(metric, options, sizes):
    x, y = pair()
    found = streamed(x, y, sizes).result(metric, **options)
    assert_same(found, in_memory(metric, x, y, **options))


@settings(max_examples=20, deadline=None)
@given(cuts=st.sets(st.integers(1, 119), max_size=40), seed=st.integers(0, 10**6))
def test_any_split(cuts, seed):
    x, y = pair(120, seed)
    found = streamed(x, y, np.diff([0, *sorted(cuts), 120]).tolist())
    for metric in ("cca", "pwcca", "procrustes"):
        assert_same(found.result(metric), in_memory(metric, x, y))


def test_identical_layers():
    x, _ = pair()
    found = streamed(x, x)
    assert found.result("cca").mean == 1
    assert found.result("cka") == pytest.approx(1, abs=1e-12)
    assert found.result("procrustes") == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("metric", "options"), CASES)
def test_grids_whatever_the_order_of_names(metric, options):
    x, y = pair()
    layers = {"a": x, "b": y, "conv": gaussian(300, 3, 2, 2, seed=9)}
    found = Accumulator()
    for k, start in enumerate(range(0, 300, 77)):
        batch = [(name, layer[start : start + 77]) for name, layer in layers.items()]
        found.update(dict(batch if k % 2 == 0 else batch[::-1]))
    grid = found.result(metric, **options)
    assert_same(grid, compare(layers, metric=metric, **options))
    assert (grid.metric, grid.checkpoints, grid.null) == (metric, None, None)


@pytest.mark.parametrize("metric", METRICS)
def test_degenerate_layers(metric):
    x, y = pair(400)
    spread = x * torch.logspace(-12, 12, 7, dtype=x.dtype)
    assert_same(streamed(spread, y).result(metric), in_memory(metric, spread, y))
    x = torch.cat([x, x[:, :3], 5 * x[:, :1] - x[:, 1:2], torch.full((400, 2), 0.1).double()], 1)
    y = torch.cat([torch.zeros(400, 1).double(), y, y], 1)
    assert_same(streamed(x, y, 33).result(metric), in_memory(metric, x, y))


def test_many_duplicated_neurons():
    x = gaussian(5000, 150)
    x = torch.cat([x, x[:, :70], (x @ gaussian(150, 40, seed=1))], 1)
    assert streamed(x, gaussian(5000, 6, seed=2), 50).result("cca").ranks == (150, 6)


def test_means_that_dwarf_the_signal_or_drift():
    x, y = pair()
    # a covariance around 0 would lose all digits at 1e7: the squares are 1e14 apart
    drift = torch.linspace(0, 1e3, 300, dtype=x.dtype)[:, None]
    for level, tolerance in ((1e4, 1e-8), (-1e7, 1e-6), (drift, 1e-8)):
        for metric in ("cca", "cka", "procrustes"):
            a, b = x + level, y - level
            assert_same(streamed(a, b, 10).result(metric), in_memory(metric, a, b), tolerance)
    x, y = x.float() + 3e4, y.float() + 3e4  # summed in float64
    assert_same(streamed(x, y).result("cca"), cca(x.double(), y.double()))


@pytest.mark.parametrize("metric", METRICS)
def test_warnings_are_those_in_memory(metric):
    constant, other = torch.full((90, 2), 0.1).double(), gaussian(90, 3)
    wide, narrow = gaussian(20, 25), gaussian(20, 5, seed=1)
    for x, y in ((constant, other), (wide, narrow)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = streamed(x, y, 6).result(metric)
        with warnings.catch_warnings(record=True) as expected:
            warnings.simplefilter("always")
            assert_same(found, in_memory(metric, x, y))
        messages = {str(warning.message) for warning in caught}
        assert messages >= {str(warning.message) for warning in expected}
        assert {warning.filename for warning in caught} <= {__file__}


def test_the_state_does_not_grow_and_holds_no_batch():
    x, y = pair()
    before = x.clone()
    found = streamed(x[:100].requires_grad_(), y[:100], 10)
    size = len(pickle.dumps(found))
    with torch.inference_mode():
        found.update(x[100:200] * 1, y[100:200] * 1)
    found.update(x[200:], y[200:])
    # but for the digits of the number of examples
    assert abs(len(pickle.dumps(found)) - size) <= 4 and size < 8 * 12 * 12 + 2500
    assert torch.equal(x.detach(), before)
    with torch.no_grad():
        x += 100
    assert not found._scatter.requires_grad
    assert_same(found.result("cca"), cca(before, y))


X, Y = gaussian(6, 7), gaussian(6, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, Y[:5]), "y: expected the examples of x, 6, found 5"),
        ((X, Y[:, :4]), "x: expected the widths .'x': 7, 'y': 5., found .'x': 7, 'y': 4"),
        (({"x": X, "z": Y},), "x: expected the widths"),
        ((X, Y / 0), "y: expected finite numbers"),
        ((X, 1e200 * Y), "x: expected numbers whose squares can be summed"),
        ((X,), "x: expected two layers, or a mapping"),
        (({},), "x: expected two layers, or a mapping"),
        ((X[:, :, None], Y), r"x: expected .* found \(6, 7, 1\)"),
        ((X[:, 0], Y), r"x: expected \(examples >= 1, neurons\)"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_failed_update_leaves_everything_as_it_was(arguments, message, first):
    if first and "widths" in message:
        pytest.skip("nothing to differ from")
    x, y = pair()
    found = Accumulator() if first else streamed(x[:100], y[:100])
    before = copy.deepcopy(vars(found))
    with pytest.raises(ValueError, match=message):
        found.update(*arguments)
    for name, value in vars(found).items():
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same(value, before[name]), name
    if first:
        found.update(x[:100], y[:100])
    found.update(x[100:], y[100:])
    assert_same(found.result("cca"), cca(x, y))


@pytest.mark.parametrize("metric", ["cca", "svcca"])
@pytest.mark.parametrize("n", [13, 14, 300])  # the stand-ins have 13 rows
def test_directions_whiten_the_data(metric, n):
    x, y = pair(n)
    found = streamed(x, y, 40).result(metric)
    u, v = (x - x.mean(0)) @ found.x_directions, (y - y.mean(0)) @ found.y_directions
    eye = torch.eye(len(found.correlations), dtype=x.dtype)
    crossed = torch.diag(found.correlations)
    for product, expected in ((u.T @ u, eye), (v.T @ v, eye), (u.T @ v, crossed)):
        torch.testing.assert_close(product / (n - 1), expected, atol=1e-8, rtol=0)
    for name in ("x_variates", "y_variates"):
        with pytest.raises(ValueError, match="streaming does not keep examples"):
            getattr(found, name)


def test_examples_are_counted_and_arrays_give_arrays():
    x, y = pair()
    assert streamed(x, y).result("cca").examples == len(x)
    mixed = streamed((9 * x).int(), y.half()).result("cka")
    assert_same(mixed, cka((9 * x).int(), y.half().double()))
    arrays, grid = Accumulator(), Accumulator()
    arrays.update(x.numpy(), y.numpy())
    grid.update({"x": x.numpy(), "y": y.numpy()})
    assert isinstance(arrays.result("cca").x_directions, np.ndarray)
    assert isinstance(arrays.result("cka"), np.floating)
    assert isinstance(grid.result("cka").values, np.ndarray)


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        ("cka", {"kernel": "rbf"}, "metric: found 'cka' with .'kernel': 'rbf'.*linear and biased"),
        ("cka", {"unbiased": True}, "found 'cka' with .'unbiased': True.*linear and biased"),
        ("rsa", {}, "metric: found 'rsa' .* inner products of neurons only"),
        (cca, {}, "metric: found <function cca"),
        ("svcca", {"dim": 3}, "options: svcca takes variance, dims, squares, found dim"),
    ],
)
def test_what_cannot_be_streamed(metric, options, message):
    found = streamed(*pair())
    with pytest.raises(ValueError, match=message):
        found.result(metric, **options)
    assert_same(found.result("cka", kernel="linear", unbiased=False), cka(*pair()))


def test_too_few_examples():
    found = Accumulator()
    for examples in range(2):
        with pytest.raises(ValueError, match=f"at least 2 examples, found {examples}"):
            found.result("cca")
        found.update(X[:1], Y[:1])
    with pytest.warns(UserWarning):
        found.result("cca")


@pytest.mark.gpu
@pytest.mark.parametrize(("metric", "options"), CASES)
def test_the_gpu_agrees(metric, options):
    x, y = pair()
    found = streamed(x[:100].cuda(), y[:100].cuda())
    with pytest.raises(ValueError, match="x: expected the device cuda:0, found cpu"):
        found.update(x, y)
    found.update(x[100:].cuda(), y[100:].cuda())
    found, expected = (a.result(metric, **options) for a in (found, streamed(x, y)))
    if hasattr(expected, "correlations"):
        found, expected = found.correlations, expected.correlations
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, atol=1e-8, rtol=0)
