"""Procrustes, linear regression R2 and RSA: parity with SciPy and NumPy, invariances, extremes."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats
import torch
from _random_layers import related, rotation
from _random_networks import gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.similarity import linear_regression_r2, procrustes, rsa

ANGULAR = pytest.mark.parametrize("angular", [False, True])
DISTANCES = pytest.mark.parametrize("distance", ["correlation", "euclidean"])
DTYPES = pytest.mark.parametrize(("dtype", "atol"), [("f4", 1e-5), ("f8", 1e-12)])
INDICES = pytest.mark.parametrize("index", [procrustes, linear_regression_r2, rsa])


def unit(x):
    x = x - x.mean(0)
    return x / np.linalg.norm(x)


def orthonormal(n, k):
    """Return orthonormal columns of mean 0."""
    return np.linalg.qr(np.c_[np.ones(n), np.random.default_rng(0).normal(size=(n, k))])[0][:, 1:]


# -- Procrustes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dx", "dy"), [(1, 1), (4, 4), (3, 9), (9, 3), (5, 60), (50, 60)])
def test_procrustes_is_scipys(dx, dy):
    x, y = related(20, dx, dy)
    a, b = (np.pad(unit(z), ((0, 0), (0, max(dx, dy) - z.shape[1]))) for z in (x, y))
    best, nuclear = scipy.linalg.orthogonal_procrustes(a, b)
    assert procrustes(x, y) == pytest.approx(np.linalg.norm(a @ best - b) ** 2, abs=1e-13)
    assert procrustes(x, y) == pytest.approx(2 - 2 * nuclear, abs=1e-13)
    assert procrustes(x, y, angular=True) == pytest.approx(math.acos(nuclear), abs=1e-13)
    if dx == dy:  # SciPy's disparity also fits the scale, 1 - |A^T B|_*^2
        disparity = scipy.spatial.procrustes(x, y)[2] if dx > 1 else 1 - nuclear**2
        assert math.sin(procrustes(x, y, angular=True)) ** 2 == pytest.approx(disparity, abs=1e-13)


def test_orthogonal_layers_are_farthest():
    q = orthonormal(100, 6)
    assert procrustes(q[:, :3], q[:, 3:]) == pytest.approx(2, abs=1e-14)
    assert procrustes(q[:, :3], q[:, 3:], angular=True) == pytest.approx(math.pi / 2, abs=1e-14)


@ANGULAR
@pytest.mark.parametrize("d", [1, 4, 20, 70])
def test_equal_layers_are_exactly_0(d, angular):
    for seed, dtype in enumerate(("f4", "f8", "f4", "f8")):
        x = related(20, d, d, seed)[0].astype(dtype)
        assert procrustes(x, x.copy(), angular) == 0


@pytest.mark.parametrize("true", [1e-1, 1e-3, 1e-6, 1e-9, 1e-12])
def test_small_angles_keep_their_digits(true):
    """Of two orthogonal unit layers P and R, P and cos(t) P + sin(t) R may be t apart at most."""
    q = orthonormal(50, 2)
    x, y = q[:, :1], math.cos(true) * q[:, :1] + math.sin(true) * q[:, 1:]
    assert procrustes(x, y, angular=True) == pytest.approx(true, rel=1e-9, abs=1e-15)
    assert procrustes(x, y) == pytest.approx(4 * math.sin(true / 2) ** 2, rel=1e-3, abs=1e-30)
    wide = np.c_[x, np.zeros((50, 4))] @ rotation(5)
    assert procrustes(wide, y, angular=True) == pytest.approx(true, rel=1e-9, abs=5e-15)


def test_both_forms_of_the_distance_agree_where_they_meet():
    """The residual below 0.1, the nuclear norm above."""
    x, noise = related(40, 6, 6)[0], np.random.default_rng(9).normal(size=(40, 6))
    values = []
    for size in np.linspace(0.5, 0.9, 30):
        values.append(procrustes(x, x + size * noise))
        nuclear = np.linalg.svd(unit(x).T @ unit(x + size * noise), compute_uv=False).sum()
        assert values[-1] == pytest.approx(2 - 2 * nuclear, abs=1e-14)
    assert min(values) < 0.1 < max(values)


@ANGULAR
@pytest.mark.parametrize("d", [6, 40])
def test_procrustes_ignores_rotation_scaling_and_translation_only(d, angular):
    x, y = related(30, d, 9)
    value = procrustes(x, y, angular)
    r = np.random.default_rng(1)
    moved = {
        "rotation": x @ rotation(d),
        "scaling": -7.5 * x,
        "translation": x + 10 * r.normal(size=d),
        "permutation": x[:, r.permutation(d)],
        "constant columns": np.c_[x, np.full((30, 40), 7.3)],
        "copies": np.c_[x, x],
        "more neurons": x @ np.linalg.qr(r.normal(size=(d + 20, d)))[0].T,
    }
    for name, other in moved.items():
        assert procrustes(other, y, angular) == pytest.approx(value, abs=1e-13), name
        assert procrustes(other, x, True) == pytest.approx(0, abs=1e-14), name
    x, y = related(200, 6, 6)
    value = procrustes(x, y, angular)
    assert procrustes(x * np.array([100, 1, 1, 1, 1, 1]), y, angular) > value + 0.05
    assert procrustes(x[r.permutation(200)], y, angular) > value + 0.2


def test_the_angle_obeys_the_triangle_inequality():
    r = np.random.default_rng(0)
    for seed in range(50):
        x, y = related(12, *r.integers(1, 20, 2), seed=seed)
        z = related(12, 1, int(r.integers(1, 20)), seed=seed + 1)[1]
        through = procrustes(x, z, angular=True) + procrustes(z, y, angular=True)
        assert procrustes(x, y, angular=True) <= through + 1e-12


@DTYPES
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_procrustes_scales(scale, dtype, atol):
    x, y = (layer.astype(dtype) for layer in related(30, 4, 40))
    u, v = (x * scale).astype(dtype), (y / scale).astype(dtype)
    assert procrustes(u, v) == pytest.approx(procrustes(x, y), abs=atol)
    mixed = (x * np.array([1e-12, 1e12, 1, 1e-6])).astype(dtype)
    loudest = procrustes(mixed[:, 1:2], y)
    assert procrustes(mixed, y) == pytest.approx(loudest, abs=max(atol, 1e-11))


@ANGULAR
def test_a_constant_layer_is_farthest_with_a_warning(angular):
    x, farthest = related(30, 3, 3)[0], math.pi / 2 if angular else 2
    for other in (np.full((30, 2), 0.1), np.full((30, 50), 0.1)):
        for layers, names in (((x, other), "y"), ((other, other), "x, y")):
            with pytest.warns(UserWarning, match=f"^{names}: constant") as caught:
                assert procrustes(*layers, angular) == pytest.approx(farthest)
            assert caught[0].filename == __file__


def test_two_examples_are_always_alike_and_wide_layers_stay_small():
    x, y = gaussian(2, 3), gaussian(2, 5, seed=1)
    assert procrustes(x, y, angular=True) == pytest.approx(0, abs=1e-14)
    x, y = gaussian(2, 10, 100_000, dtype=torch.float32)  # 40 GB as d x d
    assert 0 < procrustes(x, y) < 2


@ANGULAR
@pytest.mark.parametrize(("dx", "dy"), [(3, 4), (4, 3), (15, 4), (15, 16)])
def test_procrustes_gradient(dx, dy, angular):
    x, y = (torch.from_numpy(layer).requires_grad_() for layer in related(10, dx, dy))
    near = (x.detach() + 0.1 * gaussian(10, dx)).requires_grad_()
    assert procrustes(x, near) < 0.1
    for other in (y, near):
        assert torch.autograd.gradcheck(lambda x, y: procrustes(x, y, angular), (x, other))


# -- linear regression ---------------------------------------------------------------------------


@pytest.mark.parametrize(("dx", "dy"), [(1, 1), (3, 9), (9, 3), (5, 60)])
def test_r2_is_that_of_least_squares_with_an_intercept(dx, dy):
    x, y = related(30, dx, dy)
    design = np.c_[np.ones(30), x]
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    expected = 1 - (residual**2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert linear_regression_r2(x, y) == pytest.approx(expected, abs=1e-12)


def test_r2_x_predicts_y_and_ignores_affine_maps_of_x_and_rotations_of_y_only():
    x, y = related(60, 5, 6)
    assert linear_regression_r2(x, x[:, :2]) == 1
    assert linear_regression_r2(x[:, :2], x) < 0.95
    value = linear_regression_r2(x, y)
    mapped = x @ np.random.default_rng(1).normal(size=(5, 5)) + 9
    assert linear_regression_r2(mapped, y) == pytest.approx(value, abs=1e-12)
    assert linear_regression_r2(x, -3 * y @ rotation(6) + 9) == pytest.approx(value, abs=1e-12)
    stretched = y * np.array([100, 1, 1, 1, 1, 1])
    assert abs(linear_regression_r2(x, stretched) - value) > 0.01


@DTYPES
def test_r2_of_degenerate_layers(dtype, atol):
    x, y = (layer.astype(dtype) for layer in related(60, 4, 5))
    value = linear_regression_r2(x, y)
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
    with pytest.warns(UserWarning, match=f"^x: spans all {n} centred examples"):
        assert linear_regression_r2(gaussian(n, 12), gaussian(n, 3, seed=1)) == 1


# -- RSA -----------------------------------------------------------------------------------------


def spearman(x, y, distance):
    distances = [scipy.spatial.distance.pdist(layer, distance) for layer in (x, y)]
    return scipy.stats.spearmanr(*distances).statistic


@DISTANCES
@pytest.mark.parametrize(("n", "dx", "dy"), [(3, 4, 5), (20, 3, 9), (25, 60, 4)])
def test_rsa_is_scipys(n, dx, dy, distance):
    x, y = related(n, dx, dy)
    assert rsa(x, y, distance) == pytest.approx(spearman(x, y, distance), abs=1e-12)
    assert rsa(x, x.copy(), distance) == rsa(x.astype("f4"), x.astype("f4"), distance) == 1


def test_rsa_shares_the_ranks_of_ties():
    r = np.random.default_rng(0)
    x, y = r.integers(0, 2, (30, 4)) / 7, r.integers(0, 2, (30, 3)) * 1e9
    assert rsa(x, y, "euclidean") == pytest.approx(spearman(x, y, "euclidean"), abs=1e-12)


def test_rsa_invariances():
    x, y = related(20, 6, 5)
    r = np.random.default_rng(1)
    value = rsa(x, y, "euclidean")
    assert rsa(3 * x @ rotation(6) + r.normal(size=6), y, "euclidean") == pytest.approx(value)
    assert rsa(x * [100, 1, 1, 1, 1, 1], y, "euclidean") != pytest.approx(value, abs=1e-3)
    value = rsa(x, y)
    moved = x * r.uniform(1, 9, size=(20, 1)) + r.normal(size=(20, 1))
    assert rsa(moved[:, r.permutation(6)], y) == pytest.approx(value, abs=1e-12)
    assert rsa(x @ rotation(6), y) != pytest.approx(value, abs=1e-3)


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
    distances = (1 - centred @ centred.T)[np.triu_indices(12, 1)]
    other = scipy.spatial.distance.pdist(y, "correlation")
    expected = scipy.stats.spearmanr(distances, other).statistic
    assert rsa(x, y) == pytest.approx(expected, abs=1e-12)


@DISTANCES
def test_rsa_undefined_is_0_with_a_warning(distance):
    x, y = related(12, 5, 4)
    with pytest.warns(UserWarning, match="^y: constant, or without structure"):
        assert rsa(x, np.full((12, 3), 0.1), distance) == 0
    with pytest.warns(UserWarning, match="^x, y: constant, or without structure"):
        assert rsa(x[:2], y[:2], distance) == 0
    if distance == "correlation":
        with pytest.warns(UserWarning, match="^x: constant, or without structure"):
            assert rsa(x[:, :1], y, distance) == 0
    else:
        assert rsa(x[:, :1], y, distance) != 0


@DISTANCES
@DTYPES
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_rsa_scales(scale, dtype, atol, distance):
    x, y = (layer.astype(dtype) for layer in related(20, 6, 5))
    value = rsa(x, y, distance)
    assert rsa((x * scale).astype(dtype), y, distance) == pytest.approx(value, abs=1e-3)
    mixed = (x * np.array([1e-12, 1e12, 1, 1e-6, 1, 1])).astype(dtype)
    assert -1 <= rsa(mixed, y, distance) <= 1


# -- all three -----------------------------------------------------------------------------------


@INDICES
@pytest.mark.parametrize(("dx", "dy"), [(20, 30), (20, 300), (30, 200)])
def test_kind_dtype_and_precision(index, dx, dy):
    x, y = related(100, dx, dy)
    assert type(index(x, y)) is np.float64
    x, y = x.astype("f4"), y.astype("f4")
    value = index(x, y)
    assert type(value) is np.float32
    assert value == pytest.approx(index(x.astype("f8"), y.astype("f8")), abs=1e-5)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        result = index(torch.from_numpy(x).to(dtype), torch.from_numpy(y).to(dtype))
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert (result.dtype, result.ndim) == (expected, 0)


@INDICES
def test_bad_input_names_the_argument(index):
    x, y = related(30, 3, 3)
    for message, arguments in (
        ("x: expected finite", (x * np.inf, y)),
        ("y: expected the examples of x, 30, found 20", (x, y[:20])),
        ("x: expected .*examples >= 2", (x[:1], y[:1])),
    ):
        with pytest.raises(ValueError, match=message):
            index(*arguments)
    with pytest.raises(ValueError, match=r"distance: .*did you mean 'euclidean'"):
        rsa(x, y, "euclidian")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(2, 15),
    widths=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([2, 3, 1000]),
)
def test_range_symmetry_and_formula(n, widths, seed, levels):
    r = np.random.default_rng(seed)
    x, y = (r.integers(0, levels, (n, width)) / 7 for width in widths)
    value, angle = procrustes(x, y), procrustes(x, y, angular=True)
    assert 0 <= value <= 2
    assert 0 <= angle <= math.pi / 2 + 1e-15
    assert value == pytest.approx(2 - 2 * math.cos(angle), abs=1e-14)
    assert procrustes(y, x) == pytest.approx(value, abs=1e-13)
    if np.ptp(x, axis=0).any() and np.ptp(y, axis=0).any():
        nuclear = np.linalg.svd(unit(x).T @ unit(y), compute_uv=False).sum()
        assert value == pytest.approx(2 - 2 * nuclear, abs=1e-13)
        assert procrustes(x, x.copy()) == 0
    assert 0 <= linear_regression_r2(x, y) <= 1
    assert linear_regression_r2(x, x.copy()) in (0, 1)
    for distance in ("correlation", "euclidean"):
        assert -1 <= rsa(x, y, distance) <= 1
        assert rsa(x, y, distance) == rsa(y, x, distance)
        assert rsa(x, x.copy(), distance) in (0, 1)


@pytest.mark.gpu
@INDICES
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_gpu_equals_cpu(index, dtype, atol):
    x, y = (torch.from_numpy(layer).to(dtype) for layer in related(200, 30, 40))
    value = index(x.cuda(), y.cuda())
    assert value.is_cuda
    assert value.item() == pytest.approx(index(x, y).item(), abs=atol)
    assert index(x.cuda(), x.cuda()) == (0 if index is procrustes else 1)
