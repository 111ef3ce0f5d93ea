"""Linear regression R2 and RSA: parity with NumPy and SciPy, invariances, degenerate input."""

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from _random_layers import related, rotation
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.similarity.baselines import linear_regression_r2, rsa

DISTANCES = pytest.mark.parametrize("distance", ["correlation", "euclidean"])


# -- linear regression ---------------------------------------------------------------------------


@pytest.mark.parametrize(("dx", "dy"), [(1, 1), (3, 9), (9, 3), (5, 60)])
def test_r2_is_that_of_least_squares_with_an_intercept(dx, dy):
    x, y = related(30, dx, dy)
    design = np.c_[np.ones(30), x]
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    expected = 1 - (residual**2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert linear_regression_r2(x, y) == pytest.approx(expected, abs=1e-12)


def test_r2_of_one_neuron_each_is_the_squared_correlation():
    x, y = related(50, 1, 1)
    r = np.corrcoef(x[:, 0], y[:, 0])[0, 1]
    assert linear_regression_r2(x, y) == pytest.approx(r**2, abs=1e-14)
    assert linear_regression_r2(y, x) == pytest.approx(r**2, abs=1e-14)


def test_r2_x_predicts_y():
    x, _ = related(100, 5, 1)
    assert linear_regression_r2(x, x[:, :2]) == 1
    assert linear_regression_r2(x[:, :2], x) < 0.95


def test_r2_ignores_affine_maps_of_x_and_rotations_of_y_only():
    x, y = related(60, 5, 6)
    value = linear_regression_r2(x, y)
    r = np.random.default_rng(1)
    assert linear_regression_r2(x @ r.normal(size=(5, 5)) + 9, y) == pytest.approx(value, abs=1e-12)
    assert linear_regression_r2(x, -3 * y @ rotation(6) + 9) == pytest.approx(value, abs=1e-12)
    stretched = y * np.array([100, 1, 1, 1, 1, 1])
    assert abs(linear_regression_r2(x, stretched) - value) > 0.01


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_r2_of_degenerate_layers(dtype):
    x, y = (layer.astype(dtype) for layer in related(60, 4, 5))
    value, atol = linear_regression_r2(x, y), 1e-5 if dtype == "f4" else 1e-12
    assert linear_regression_r2(x, x.copy()) == 1
    for other in (np.c_[x, x], np.c_[x, np.full((60, 2), 7.3, dtype)], x * [1e-12, 1e12, 1, 1e-6]):
        assert linear_regression_r2(other.astype(dtype), y) == pytest.approx(value, abs=atol)
    for scale in (1e-12, 1e12):
        scaled = (y * scale).astype(dtype)
        assert linear_regression_r2(x, scaled) == pytest.approx(value, abs=atol)
    assert linear_regression_r2(np.ones((60, 3), dtype), y) == 0
    with pytest.warns(UserWarning, match="^y: constant"):
        assert linear_regression_r2(x, np.full((60, 3), 0.1, dtype)) == 0


@pytest.mark.parametrize("n", [2, 10])
def test_r2_warns_where_x_fits_anything(n):
    r = np.random.default_rng(0)
    with pytest.warns(UserWarning, match=f"x: of rank {n - 1} with {n} examples: it fits any y"):
        assert linear_regression_r2(r.normal(size=(n, 12)), r.normal(size=(n, 3))) == 1


# -- RSA -----------------------------------------------------------------------------------------


@DISTANCES
@pytest.mark.parametrize(("n", "dx", "dy"), [(3, 4, 5), (20, 3, 9), (25, 60, 4)])
def test_rsa_is_scipys(n, dx, dy, distance):
    x, y = related(n, dx, dy)
    dissimilarities = [scipy.spatial.distance.pdist(layer, distance) for layer in (x, y)]
    expected = scipy.stats.spearmanr(*dissimilarities).statistic
    assert rsa(x, y, distance) == pytest.approx(expected, abs=1e-12)


def test_rsa_shares_the_ranks_of_ties():
    r = np.random.default_rng(0)
    x, y = r.integers(0, 2, (30, 4)) / 7, r.integers(0, 2, (30, 3)) * 1e9
    dissimilarities = [scipy.spatial.distance.pdist(layer, "euclidean") for layer in (x, y)]
    expected = scipy.stats.spearmanr(*dissimilarities).statistic
    assert rsa(x, y, "euclidean") == pytest.approx(expected, abs=1e-12)


@DISTANCES
def test_rsa_of_equal_layers_is_exactly_1(distance):
    for seed in range(5):
        x = related(20, 6, 6, seed)[0].astype(["f4", "f8"][seed % 2])
        assert rsa(x, x.copy(), distance) == 1


def test_rsa_invariances():
    x, y = related(20, 6, 5)
    r = np.random.default_rng(1)
    value = rsa(x, y, "euclidean")
    assert rsa(3 * x @ rotation(6) + r.normal(size=6), y, "euclidean") == pytest.approx(value)
    assert rsa(x * [100, 1, 1, 1, 1, 1], y, "euclidean") != pytest.approx(value, abs=1e-3)
    value = rsa(x, y)
    moved = x * r.uniform(1, 9, size=(20, 1)) + r.normal(size=(20, 1))
    assert rsa(moved, y) == pytest.approx(value, abs=1e-12)
    assert rsa(x @ rotation(6), y) != pytest.approx(value, abs=1e-3)
    order = r.permutation(6)
    assert rsa(x[:, order], y) == pytest.approx(value, abs=1e-12)


@DISTANCES
def test_rsa_of_unrelated_layers_is_about_0(distance):
    r = np.random.default_rng(0)
    values = [rsa(*r.normal(size=(2, 40, 200)), distance) for _ in range(20)]
    assert abs(np.mean(values)) < 0.03
    assert min(values) < 0 < max(values)


def test_rsa_example_without_a_pattern_is_at_distance_1():
    x, y = related(12, 5, 4)
    x[3], x[7] = 0, 2.5
    centred = x - x.mean(1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    centred = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0)
    dissimilarity = (1 - centred @ centred.T)[np.triu_indices(12, 1)]
    expected = scipy.stats.spearmanr(
        dissimilarity, scipy.spatial.distance.pdist(y, "correlation")
    ).statistic
    assert rsa(x, y) == pytest.approx(expected, abs=1e-12)


@DISTANCES
def test_rsa_undefined_is_0_with_a_warning(distance):
    x, y = related(12, 5, 4)
    with pytest.warns(UserWarning, match="^y: all distances are equal"):
        assert rsa(x, np.full((12, 3), 0.1), distance) == 0
    with pytest.warns(UserWarning, match="^x, y: all distances are equal"):
        assert rsa(x[:2], y[:2], distance) == 0
    if distance == "correlation":
        with pytest.warns(UserWarning, match="^x: all distances"):
            assert rsa(x[:, :1], y, distance) == 0
    else:
        assert rsa(x[:, :1], y, distance) != 0


@DISTANCES
@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_rsa_scales(dtype, scale, distance):
    x, y = (layer.astype(dtype) for layer in related(20, 6, 5))
    value = rsa(x, y, distance)
    assert rsa((x * scale).astype(dtype), y, distance) == pytest.approx(value, abs=1e-3)
    mixed = (x * np.array([1e-12, 1e12, 1, 1e-6, 1, 1])).astype(dtype)
    assert -1 <= rsa(mixed, y, distance) <= 1


# -- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [linear_regression_r2, rsa])
def test_returns_the_callers_kind_and_dtype(index):
    x, y = related(30, 3, 4)
    assert type(index(x, y)) is np.float64
    assert type(index(x.astype("f4"), y.astype("f4"))) is np.float32
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        value = index(tx.to(dtype), ty.to(dtype))
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert (value.dtype, value.ndim, value.device) == (expected, 0, tx.device)
    assert isinstance(index(tx, y), torch.Tensor)
    exact = index(x.astype("f4").astype("f8"), y.astype("f4").astype("f8"))
    assert index(x.astype("f4"), y.astype("f4")) == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("index", [linear_regression_r2, rsa])
def test_bad_input_names_the_argument(index):
    x, y = related(30, 3, 3)
    nan = x.copy()
    nan[0, 0] = np.nan
    cases = [
        ("x: expected finite", lambda: index(nan, y)),
        ("y: expected finite", lambda: index(x, nan)),
        ("y: expected the 30 examples", lambda: index(x, y[:20])),
        ("x: expected .*examples >= 2", lambda: index(x[:1], y[:1])),
        ("distance: .*did you mean 'euclidean'", lambda: rsa(x, y, "euclidian")),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(2, 15),
    dx=st.integers(1, 20),
    dy=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([2, 3, 1000]),
)
def test_range_and_symmetry(n, dx, dy, seed, levels):
    r = np.random.default_rng(seed)
    x, y = r.integers(0, levels, (n, dx)) / 7, r.integers(0, levels, (n, dy)) / 3
    assert 0 <= linear_regression_r2(x, y) <= 1
    assert linear_regression_r2(x, x.copy()) in (0, 1)
    for distance in ("correlation", "euclidean"):
        assert -1 <= rsa(x, y, distance) <= 1
        assert rsa(x, y, distance) == rsa(y, x, distance)
        assert rsa(x, x.copy(), distance) in (0, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index", [linear_regression_r2, rsa])
def test_gpu_equals_cpu(index, dtype):
    x, y = (torch.from_numpy(layer).to(dtype) for layer in related(200, 30, 40))
    value = index(x.cuda(), y.cuda())
    assert value.device.type == "cuda"
    atol = 1e-4 if dtype == torch.float32 else 1e-10
    assert value.item() == pytest.approx(index(x, y).item(), abs=atol)
    assert index(x.cuda(), x.cuda()) == 1
