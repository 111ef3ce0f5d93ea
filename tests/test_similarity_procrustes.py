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


def unit(x):
    x = x - x.mean(0)
    return x / np.linalg.norm(x)


def orthonormal(n, k):
    """Return orthonormal columns of mean 0."""
    return np.linalg.qr(np.c_[np.ones(n), np.random.default_rng(0).normal(size=(n, k))])[0][:, 1:]


@pytest.mark.parametrize(("dx", "dy"), [(1, 1), (4, 4), (3, 9), (9, 3), (5, 60), (50, 60)])
def test_procrustes_is_scipys(dx, dy):
    x, y = related(20, dx, dy)
    a, b = (np.pad(unit(z), ((0, 0), (0, max(dx, dy) - z.shape[1]))) for z in (x, y))
    best, nuclear = scipy.linalg.orthogonal_procrustes(a, b)
    assert procrustes(x, y) == pytest.approx(np.linalg.norm(a @ best - b) ** 2, abs=1e-13)
    assert procrustes(x, y) == pytest.approx(2 - 2 * nuclear, abs=1e-13)
    assert procrustes(x, y, angular=True) == pytest.approx(math.acos(nuclear), abs=1e-13)
    if dx == dy > 1:  # SciPy's disparity also fits the scale, 1 - |A^T B|_*^2
        disparity = scipy.spatial.procrustes(x, y)[2]
        assert math.sin(procrustes(x, y, angular=True)) ** 2 == pytest.approx(disparity, abs=1e-13)


@pytest.mark.parametrize("true", [1e-1, 1e-3, 1e-6, 1e-9, 1e-12])
def test_small_angles_keep_their_digits(true):
    """Of two orthogonal unit layers P and R, P and cos(t) P + sin(t) R may be t apart at most."""
    q = orthonormal(50, 2)
    x, y = q[:, :1], math.cos(true) * q[:, :1] + math.sin(true) * q[:, 1:]
    assert procrustes(x, y, angular=True) == pytest.approx(true, rel=1e-9, abs=1e-15)
    assert procrustes(x, y) == pytest.approx(4 * math.sin(true / 2) ** 2, rel=1e-3, abs=1e-30)
    wide = np.c_[x, np.zeros((50, 4))] @ rotation(5)
    assert procrustes(wide, y, angular=True) == pytest.approx(true, rel=1e-9, abs=5e-15)
    assert procrustes(q[:, :1], q[:, 1:]) == pytest.approx(2, abs=1e-14)
    assert procrustes(q[:, :1], q[:, 1:], angular=True) == pytest.approx(math.pi / 2, abs=1e-14)


def test_both_forms_of_the_distance_agree_where_they_meet():
    """The residual below 0.1, the nuclear norm above."""
    x, noise = related(40, 6, 6)[0], np.random.default_rng(9).normal(size=(40, 6))
    values = []
    for size in np.linspace(0.5, 0.9, 30):
        values.append(procrustes(x, x + size * noise))
        nuclear = np.linalg.svd(unit(x).T @ unit(x + size * noise), compute_uv=False).sum()
        assert values[-1] == pytest.approx(2 - 2 * nuclear, abs=1e-14)
    assert min(values) < 0.1 < max(values)


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


@pytest.mark.parametrize(("dx", "dy"), [(1, 1), (3, 9), (9, 3), (5, 60)])
def test_r2_is_that_of_least_squares_with_an_intercept(dx, dy):
    x, y = related(30, dx, dy)
    design = np.c_[np.ones(30), x]
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    expected = 1 - (residual**2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert linear_regression_r2(x, y) == pytest.approx(expected, abs=1e-12)
    assert linear_regression_r2(np.ones((30, 3)), y) == 0


@pytest.mark.parametrize("n", [2, 10])
def test_r2_warns_where_x_fits_anything(n):
    with pytest.warns(UserWarning, match=f"^x: spans all {n} centred examples"):
        assert linear_regression_r2(gaussian(n, 12), gaussian(n, 3, seed=1)) == 1


def ties():
    r = np.random.default_rng(0)
    return r.integers(0, 2, (30, 4)) / 7, r.integers(0, 2, (30, 3)) * 1e9


@pytest.mark.parametrize(
    ("x", "y", "distance"),
    [
        *(
            (*related(*shape), distance)
            for shape in ((3, 4, 5), (20, 3, 9), (25, 60, 4))
            for distance in ("correlation", "euclidean")
        ),
        (*ties(), "euclidean"),
    ],
)
def test_rsa_is_scipys(x, y, distance):
    distances = [scipy.spatial.distance.pdist(layer, distance) for layer in (x, y)]
    expected = scipy.stats.spearmanr(*distances).statistic
    assert rsa(x, y, distance) == pytest.approx(expected, abs=1e-12)


@DISTANCES
def test_rsa_of_unrelated_layers_is_about_0(distance):
    r = np.random.default_rng(0)
    values = [rsa(*r.normal(size=(2, 40, 200)), distance) for _ in range(20)]
    assert abs(np.mean(values)) < 0.03 and min(values) < 0 < max(values)


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
    with pytest.warns(UserWarning, match="^x, y: constant, or without structure"):
        assert rsa(x[:2], y[:2], distance) == 0
    with pytest.warns(UserWarning, match="^x: constant, or without structure"):
        assert rsa(x[:, :1], y, "correlation") == 0
    assert rsa(x[:, :1], y, "euclidean") != 0


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
