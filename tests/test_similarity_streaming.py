"""Streaming: what comes in batches has the indices of what lies in memory."""

import copy
import pickle
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from _random_networks import gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.similarity import (
    Accumulator,
    cca,
    cka,
    compare,
    linear_regression_r2,
    procrustes,
    pwcca,
    svcca,
)

CASES = [
    ("cca", {}),
    ("svcca", {}),
    ("svcca", {"dims": 3}),
    ("svcca", {"variance": 0.8, "squares": True}),
    ("pwcca", {}),
    ("pwcca", {"symmetric": True}),
    ("cka", {}),
    ("procrustes", {}),
    ("procrustes", {"angular": True}),
    ("regression", {}),
]
FUNCTIONS = {
    "cca": cca,
    "svcca": svcca,
    "pwcca": pwcca,
    "cka": cka,
    "procrustes": procrustes,
    "regression": linear_regression_r2,
}


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


# ------------------------------------------------------------------ as in memory


@pytest.mark.parametrize("sizes", [1, 7, 64, 300, [1, 250, 2, 47]])
@pytest.mark.parametrize(("metric", "options"), CASES)
def test_batches_give_what_the_whole_gives(metric, options, sizes):
    x, y = pair()
    assert_same(streamed(x, y, sizes).result(metric, **options), FUNCTIONS[metric](x, y, **options))


@settings(max_examples=30, deadline=None)
@given(cuts=st.sets(st.integers(1, 119), max_size=40), seed=st.integers(0, 10**6))
def test_any_split(cuts, seed):
    x, y = pair(120, seed)
    edges = [0, *sorted(cuts), 120]
    sizes = [stop - start for start, stop in pairwise(edges)]
    found = streamed(x, y, sizes)
    for metric, options in (("cca", {}), ("svcca", {"dims": 3}), ("pwcca", {}), ("procrustes", {})):
        assert_same(found.result(metric, **options), FUNCTIONS[metric](x, y, **options))


@pytest.mark.parametrize(("metric", "options"), CASES)
def test_grids(metric, options):
    x, y = pair()
    layers = {"a": x, "b": y, "conv": gaussian(300, 3, 2, 2, seed=9)}
    found = Accumulator()
    for start in range(0, 300, 77):
        found.update({name: layer[start : start + 77] for name, layer in layers.items()})
    grid = found.result(metric, **options)
    assert_same(grid, compare(layers, metric=metric, **options))
    assert (grid.metric, grid.checkpoints, grid.null) == (metric, None, None)


def test_the_order_of_batches_and_of_names_does_not_matter():
    x, y = pair()
    found = Accumulator()
    for k, batch in enumerate(reversed(x.split(41))):
        rows = y.split(41)[-1 - k]
        found.update({"x": batch, "y": rows} if k % 2 == 0 else {"y": rows, "x": batch})
    assert_same(found.result("pwcca"), compare({"x": x, "y": y}, metric="pwcca"))


@pytest.mark.parametrize("metric", ["cca", "pwcca", "regression", "svcca"])
def test_rank_deficient_layers(metric):
    x, y = pair(400)
    x = torch.cat([x, x[:, :3], 5 * x[:, :1] - x[:, 1:2], torch.full((400, 2), 0.1).double()], 1)
    y = torch.cat([torch.zeros(400, 1).double(), y, y], 1)
    assert_same(streamed(x, y, 33).result(metric), FUNCTIONS[metric](x, y))


def test_many_duplicated_neurons():
    x = gaussian(5000, 150)
    x = torch.cat([x, x[:, :70], (x @ gaussian(150, 40, seed=1))], 1)
    found = streamed(x, gaussian(5000, 6, seed=2), 50).result("cca")
    assert found.ranks == (150, 6)


@pytest.mark.parametrize("metric", FUNCTIONS)
def test_scales_from_1e_12_to_1e12_in_one_layer(metric):
    x, y = pair()
    x = x * torch.logspace(-12, 12, 7, dtype=x.dtype)
    assert_same(streamed(x, y).result(metric), FUNCTIONS[metric](x, y))


@pytest.mark.parametrize("level", [1e4, -1e7])
def test_means_that_dwarf_the_signal(level):
    x, y = pair()
    # a covariance around 0 would lose all digits at 1e7: the squares are 1e14 apart
    for metric in ("cca", "cka", "procrustes"):
        assert_same(
            streamed(x + level, y - level).result(metric),
            FUNCTIONS[metric](x + level, y - level),
            1e-8 if abs(level) < 1e5 else 1e-6,
        )


def test_float32_batches_with_huge_means_are_summed_in_float64():
    x, y = (z.float() + 3e4 for z in pair())
    found = streamed(x, y).result("cca")
    assert_same(found, cca(x.double(), y.double()))


def test_drifting_means():
    # the mean of the first batches is far from that of the whole
    x, y = pair()
    drift = torch.linspace(0, 1e3, 300, dtype=x.dtype)[:, None]
    assert_same(streamed(x + drift, y - drift, 10).result("cca"), cca(x + drift, y - drift))


def test_identical_layers():
    x, _ = pair()
    found = streamed(x, x)
    assert found.result("cca").mean == 1
    assert found.result("cka") == pytest.approx(1, abs=1e-12)
    assert found.result("procrustes") == pytest.approx(0, abs=1e-12)


# ------------------------------------------------------------------ warnings


def test_more_neurons_than_examples_warn_as_in_memory():
    x, y = gaussian(20, 25), gaussian(20, 5, seed=1)
    for metric in ("cca", "pwcca", "regression"):
        with pytest.warns(UserWarning, match="20 centred|with 20 examples|spans all 20"):
            found = streamed(x, y, 6).result(metric)
        with pytest.warns(UserWarning):
            assert_same(found, FUNCTIONS[metric](x, y))
    with pytest.warns(UserWarning, match="few examples; unrelated layers like these") as one:
        found = streamed(x, y, 6).result("cka")
    with pytest.warns(UserWarning, match="few examples") as other:
        assert_same(found, cka(x, y))
    assert str(one[0].message).split()[-13:] == str(other[0].message).split()[-13:]


@pytest.mark.parametrize("metric", FUNCTIONS)
def test_a_constant_layer_warns(metric):
    x, y = torch.full((90, 2), 0.1).double(), gaussian(90, 3)
    with pytest.warns(UserWarning, match="constant"):
        found = streamed(x, y, 11).result(metric)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(found, FUNCTIONS[metric](x, y))


# ------------------------------------------------------------------ merging


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_parts_combine_in_any_order(order):
    x, y = pair()
    parts = [streamed(a, b, 30) for a, b in zip(x.split(110), y.split(110), strict=True)]
    found = Accumulator()
    for k in order:
        before = pickle.dumps(parts[k])
        found.merge(pickle.loads(before))  # as it comes from another process
        found.merge(Accumulator())
        assert pickle.dumps(parts[k]) == before
    assert found.examples == 300
    assert_same(found.result("cca"), cca(x, y))
    assert_same(found.result("procrustes"), procrustes(x, y))


def test_merging_leaves_the_other_alone():
    x, y = pair()
    first, second = streamed(x[:100], y[:100]), Accumulator()
    second.merge(first)
    second.update(x[100:], y[100:])
    assert first.examples == 100
    assert_same(first.result("cca"), cca(x[:100], y[:100]))
    assert_same(second.result("cca"), cca(x, y))


def test_merging_with_itself_is_seeing_everything_twice():
    x, y = pair()
    found = streamed(x, y)
    found.merge(found)
    assert_same(found.result("cca"), cca(torch.cat([x, x]), torch.cat([y, y])))


def test_bad_merges():
    found = streamed(*pair())
    narrow = streamed(pair()[0][:, :2], pair()[1])
    turned = Accumulator()
    turned.update({"y": pair()[1], "x": pair()[0]})
    for other in (narrow, turned):
        with pytest.raises(ValueError, match=r"other: expected the widths .'x': 7, 'y': 5"):
            found.merge(other)
    with pytest.raises(ValueError, match="other: expected an Accumulator, found dict"):
        found.merge({})
    assert_same(found.result("cca"), cca(*pair()))


# ------------------------------------------------------------------ state


def test_the_state_does_not_grow():
    x, y = pair()
    found = streamed(x[:100], y[:100], 10)
    size = len(pickle.dumps(found))
    for _ in range(20):
        for batch in zip(x.split(60), y.split(60), strict=True):
            found.update(*batch)
    # but for the digits of the number of examples
    assert abs(len(pickle.dumps(found)) - size) <= 4 and size < 8 * 12 * 12 + 2500
    assert found.examples == 6100


def test_batches_are_neither_changed_nor_kept():
    x = gaussian(50, 4)
    before = x.clone()
    found = Accumulator()
    found.update({"a": x})
    assert torch.equal(x, before)
    x += 100
    found.update({"a": before})
    assert_same(found.result("cca"), compare({"a": before}, metric="cca"))


def test_gradients_do_not_pile_up():
    x, y = pair()
    found = streamed(x.clone().requires_grad_(), y)
    assert not found._scatter.requires_grad
    assert_same(found.result("cca"), cca(x, y))


def test_inference_mode():
    x, y = pair()
    found = Accumulator()
    with torch.inference_mode():
        found.update(x[:100] * 1, y[:100] * 1)
    found.update(x[100:], y[100:])
    assert_same(found.result("cca"), cca(x, y))


X, Y = gaussian(6, 7), gaussian(6, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, Y[:5]), "x: expected the same examples in all layers, found .'x': 6, 'y': 5"),
        ((X, Y[:, :4]), "x: expected the widths .'x': 7, 'y': 5., found .'x': 7, 'y': 4"),
        (({"x": X, "z": Y},), "x: expected the widths"),
        ((X, Y / 0), "y: expected finite numbers"),
        ((X, 1e200 * Y), "x: expected numbers whose squares can be summed"),
        ((X,), "x: expected two layers, or a mapping"),
        (({},), "x: expected two layers, or a mapping"),
        ((X, [1.0]), "y: expected a torch tensor or NumPy array, found list"),
        ((X[:0], Y[:0]), "x: expected at least one entry"),
        ((X[:, :, None], Y), r"x: expected real .* found shape \(6, 7, 1\)"),
        ((X + 1j, Y), "x: expected real .*complex128"),
        ((X[:, 0], Y), r"x: expected real \(examples, neurons\)"),
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


# ------------------------------------------------------------------ results


def test_numpy_in_numpy_out():
    x, y = (z.numpy() for z in pair())
    found = Accumulator()
    found.update(x, y)
    assert isinstance(found.result("cca").correlations, np.ndarray)
    assert isinstance(found.result("cca").x_directions, np.ndarray)
    assert isinstance(found.result("cka"), np.floating)
    grid = Accumulator()
    grid.update({"x": x, "y": y})
    assert isinstance(grid.result("cka").values, np.ndarray)


def test_integers_and_half_types():
    x, y = pair()
    found = Accumulator()
    found.update((9 * x).int(), y.half())
    assert_same(found.result("cka"), cka((9 * x).int(), y.half().double()))


@pytest.mark.parametrize("metric", ["cca", "svcca"])
@pytest.mark.parametrize("n", [13, 14, 300])  # the stand-ins have 13 rows
def test_directions_whiten_the_data(metric, n):
    x, y = pair(n)
    found = streamed(x, y, 40).result(metric)
    u, v = (x - x.mean(0)) @ found.x_directions, (y - y.mean(0)) @ found.y_directions
    eye = torch.eye(len(found.correlations), dtype=x.dtype)
    torch.testing.assert_close(u.T @ u / (n - 1), eye, atol=1e-8, rtol=0)
    torch.testing.assert_close(v.T @ v / (n - 1), eye, atol=1e-8, rtol=0)
    cross = torch.diag(found.correlations)
    torch.testing.assert_close(u.T @ v / (n - 1), cross, atol=1e-8, rtol=0)
    for name in ("x_variates", "y_variates"):
        with pytest.raises(ValueError, match="streaming does not keep examples"):
            getattr(found, name)


def test_p_values_count_the_examples():
    x, y = pair()
    expected = cca(x, y).p_values()
    assert streamed(x, y).result("cca").p_values() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        ("cka", {"kernel": "rbf"}, "metric: found 'cka' with .'kernel': 'rbf'.*linear and biased"),
        ("cka", {"unbiased": True}, "found 'cka' with .'unbiased': True.*linear and biased"),
        ("rsa", {}, "metric: found 'rsa' .* inner products of neurons only"),
        ("dft_cca", {}, "metric: found 'dft_cca'"),
        ("ccka", {}, "metric: found 'ccka'"),
        (["cca"], {}, "metric: found .'cca'."),
        (cca, {}, "metric: found <function cca"),
        ("svcca", {"dim": 3}, "options: svcca takes variance, dims, squares, found dim"),
        ("svcca", {"dims": 0}, "dims"),
    ],
)
def test_what_cannot_be_streamed(metric, options, message):
    with pytest.raises(ValueError, match=message):
        streamed(*pair()).result(metric, **options)


def test_explicit_linear_biased_cka_is_allowed():
    found = streamed(*pair()).result("cka", kernel="linear", unbiased=False)
    assert_same(found, cka(*pair()))


def test_too_few_examples():
    found = Accumulator()
    for examples in range(2):
        with pytest.raises(ValueError, match=f"at least 2 examples, found {examples}"):
            found.result("cca")
        found.update(X[:1], Y[:1])
    with pytest.warns(UserWarning):
        found.result("cca")


# ------------------------------------------------------------------ GPU


@pytest.mark.gpu
@pytest.mark.parametrize(("metric", "options"), CASES)
def test_the_gpu_agrees(metric, options):
    x, y = pair()
    found = streamed(x.cuda(), y.cuda()).result(metric, **options)
    expected = streamed(x, y).result(metric, **options)
    if hasattr(expected, "correlations"):
        found, expected = found.correlations, expected.correlations
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, atol=1e-8, rtol=0)


@pytest.mark.gpu
def test_devices():
    x, y = pair()
    found = streamed(x[:100], y[:100])
    with pytest.raises(ValueError, match="x: expected one device, found cpu, cuda:0"):
        found.update(x.cuda(), y.cuda())
    found.merge(streamed(x[100:].cuda(), y[100:].cuda()))
    assert_same(found.result("cca"), cca(x, y))
