"""Procrustes: parity with SciPy, invariances, accuracy near 0, degenerate input."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch
from _random_layers import related, rotation
from _random_networks import gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.similarity.procrustes import procrustes

ANGULAR = pytest.mark.parametrize("angular", [False, True])
SHAPES = pytest.mark.parametrize(("dx", "dy"), [(1, 1), (4, 4), (3, 9), (9, 3), (5, 60), (50, 60)])


def unit(x):
    x = x - x.mean(0)
    return x / np.linalg.norm(x)


# -- values --------------------------------------------------------------------------------------


@SHAPES
def test_is_2_minus_2_nuclear_norms(dx, dy):
    x, y = related(20, dx, dy)
    nuclear = np.linalg.svd(unit(x).T @ unit(y), compute_uv=False).sum()
    assert procrustes(x, y) == pytest.approx(2 - 2 * nuclear, abs=1e-13)
    assert procrustes(x, y, angular=True) == pytest.approx(math.acos(nuclear), abs=1e-13)


@SHAPES
def test_scipy_orthogonal_procrustes(dx, dy):
    x, y = related(20, dx, dy)
    width = max(dx, dy)
    a, b = (np.pad(unit(layer), ((0, 0), (0, width - layer.shape[1]))) for layer in (x, y))
    best, nuclear = scipy.linalg.orthogonal_procrustes(a, b)
    assert procrustes(x, y) == pytest.approx(np.linalg.norm(a @ best - b) ** 2, abs=1e-13)
    assert procrustes(x, y) == pytest.approx(2 - 2 * nuclear, abs=1e-13)


@pytest.mark.parametrize("d", [2, 5])
def test_scipy_spatial_procrustes(d):
    """SciPy's disparity also fits the scale, 1 - |A^T B|_*^2."""
    x, y = related(30, d, d)
    disparity = scipy.spatial.procrustes(x, y)[2]
    assert math.sin(procrustes(x, y, angular=True)) ** 2 == pytest.approx(disparity, abs=1e-13)


def test_one_neuron_each_is_the_correlation():
    x, y = related(50, 1, 1)
    r = np.corrcoef(x[:, 0], y[:, 0])[0, 1]
    assert procrustes(x, y) == pytest.approx(2 - 2 * abs(r), abs=1e-14)


def test_orthogonal_layers_are_farthest():
    q = np.linalg.qr(np.c_[np.ones(100), np.random.default_rng(0).normal(size=(100, 6))])[0]
    assert procrustes(q[:, 1:4], q[:, 4:]) == pytest.approx(2, abs=1e-14)
    assert procrustes(q[:, 1:4], q[:, 4:], angular=True) == pytest.approx(math.pi / 2, abs=1e-14)


@ANGULAR
@pytest.mark.parametrize("d", [1, 4, 20, 70])
def test_equal_layers_are_exactly_0(d, angular):
    for seed in range(5):
        x = related(20, d, d, seed)[0].astype(["f4", "f8"][seed % 2])
        assert procrustes(x, x.copy(), angular) == 0


@pytest.mark.parametrize("true", [1e-1, 1e-3, 1e-6, 1e-9, 1e-12])
def test_small_angles_keep_their_digits(true):
    """Of two orthogonal unit layers P and R, P and cos(t) P + sin(t) R may be t apart at most."""
    q = np.linalg.qr(np.c_[np.ones(50), np.random.default_rng(0).normal(size=(50, 2))])[0]
    x, y = q[:, 1:2], math.cos(true) * q[:, 1:2] + math.sin(true) * q[:, 2:3]
    assert procrustes(x, y, angular=True) == pytest.approx(true, rel=1e-9, abs=1e-15)
    assert procrustes(x, y) == pytest.approx(4 * math.sin(true / 2) ** 2, rel=1e-3, abs=1e-30)
    wide = np.c_[x, np.zeros((50, 4))] @ rotation(5)
    assert procrustes(wide, y, angular=True) == pytest.approx(true, rel=1e-9, abs=5e-15)


def test_both_forms_of_the_distance_agree_where_they_meet():
    """The residual below 0.1, the nuclear norm above."""
    x, noise = related(40, 6, 6)[0], np.random.default_rng(9).normal(size=(40, 6))
    sizes = np.linspace(0.5, 0.9, 30)
    values = [procrustes(x, x + size * noise) for size in sizes]
    assert min(values) < 0.1 < max(values)
    for size, value in zip(sizes, values, strict=True):
        nuclear = np.linalg.svd(unit(x).T @ unit(x + size * noise), compute_uv=False).sum()
        assert value == pytest.approx(2 - 2 * nuclear, abs=1e-14)


# -- invariances ---------------------------------------------------------------------------------


@ANGULAR
@pytest.mark.parametrize("d", [6, 40])
def test_ignores_rotation_scaling_translation_and_permutation(d, angular):
    x, y = related(30, d, 9)
    value = procrustes(x, y, angular)
    r = np.random.default_rng(1)
    moved = {
        "rotation": x @ rotation(d),
        "scaling": -7.5 * x,
        "translation": x + 10 * r.normal(size=d),
        "permutation": x[:, r.permutation(d)],
        "zero columns": np.c_[x, np.zeros((30, 50))],
    }
    for name, other in moved.items():
        assert procrustes(other, y, angular) == pytest.approx(value, abs=1e-13), name
        assert procrustes(other, x, True) == pytest.approx(0, abs=1e-14), name


@ANGULAR
def test_sees_invertible_maps_and_shuffled_examples(angular):
    x, y = related(200, 6, 6)
    value = procrustes(x, y, angular)
    assert procrustes(x * np.array([100, 1, 1, 1, 1, 1]), y, angular) > value + 0.05
    assert procrustes(x[np.random.default_rng(0).permutation(200)], y, angular) > value + 0.2


def test_the_angle_obeys_the_triangle_inequality():
    r = np.random.default_rng(0)
    for seed in range(50):
        x, y = related(12, *r.integers(1, 20, 2), seed=seed)
        z = related(12, 1, int(r.integers(1, 20)), seed=seed + 1)[1]
        through = procrustes(x, z, angular=True) + procrustes(z, y, angular=True)
        assert procrustes(x, y, angular=True) <= through + 1e-12


# -- degenerate input ----------------------------------------------------------------------------


def test_constant_neurons_duplicates_and_rank_deficiency():
    x, y = related(30, 4, 5)
    value = procrustes(x, y)
    assert procrustes(np.c_[x, np.full((30, 40), 7.3)], y) == pytest.approx(value, abs=1e-13)
    assert procrustes(np.c_[x, x], y) == pytest.approx(value, abs=1e-13)
    deficient = x @ np.linalg.qr(np.random.default_rng(1).normal(size=(25, 4)))[0].T
    assert procrustes(deficient, y) == pytest.approx(value, abs=1e-13)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scales(scale, dtype):
    x, y = (layer.astype(dtype) for layer in related(30, 4, 40))
    value, atol = procrustes(x, y), 1e-5 if dtype == "f4" else 1e-13
    for u, v in ((x * scale, y), (x, y * scale), (x * scale, y / scale)):
        assert procrustes(u.astype(dtype), v.astype(dtype)) == pytest.approx(value, abs=atol)
    mixed = (x * np.array([1e-12, 1e12, 1, 1e-6])).astype(dtype)
    loudest = procrustes(mixed[:, 1:2], y)
    assert procrustes(mixed, y) == pytest.approx(loudest, abs=max(atol, 1e-11))


@ANGULAR
def test_constant_layer_is_farthest_with_a_warning(angular):
    x, _ = related(30, 3, 3)
    farthest = math.pi / 2 if angular else 2
    for other in (np.full((30, 2), 0.1), np.full((30, 50), 0.1)):
        with pytest.warns(UserWarning, match="^y: constant"):
            assert procrustes(x, other, angular) == pytest.approx(farthest)
        with pytest.warns(UserWarning, match="^x, y: constant"):
            assert procrustes(other, other, angular) == pytest.approx(farthest)
        with pytest.warns(UserWarning, match="^x, y: constant"):
            assert procrustes(other, other[:, :1], angular) == pytest.approx(farthest)


def test_two_examples_are_always_alike():
    r = np.random.default_rng(0)
    x, y = r.normal(size=(2, 3)), r.normal(size=(2, 5))
    assert procrustes(x, y, angular=True) == pytest.approx(0, abs=1e-14)


def test_wide_layers_stay_small():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 10, 100_000, generator=g)  # 40 GB as d x d
    assert 0 < procrustes(x, y) < 2


# -- kinds and precision -------------------------------------------------------------------------


@pytest.mark.parametrize(("dx", "dy"), [(20, 30), (20, 300), (300, 200), (1000, 1000)])
def test_float32_is_close_to_float64(dx, dy):
    x, y = (layer.astype("f4") for layer in related(100, dx, dy))
    assert procrustes(x, y) == pytest.approx(procrustes(x.astype("f8"), y.astype("f8")), abs=3e-6)
    turned = (x @ rotation(dx)).astype("f4")
    assert procrustes(x, turned, angular=True) < 1e-5


def test_returns_the_callers_kind_and_dtype():
    x, y = related(30, 3, 4)
    assert type(procrustes(x, y)) is np.float64
    assert type(procrustes(x.astype("f4"), y.astype("f4"), angular=True)) is np.float32
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        value = procrustes(tx.to(dtype), ty.to(dtype))
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert (value.dtype, value.ndim, value.device) == (expected, 0, tx.device)
    assert isinstance(procrustes(tx, y), torch.Tensor)


@ANGULAR
@pytest.mark.parametrize(("dx", "dy"), [(3, 4), (4, 3), (15, 4), (15, 16)])
def test_gradient(dx, dy, angular):
    x, y = (torch.from_numpy(layer).requires_grad_() for layer in related(10, dx, dy))
    assert torch.autograd.gradcheck(lambda x, y: procrustes(x, y, angular), (x, y))
    near = (x.detach() + 0.1 * gaussian(10, dx)).requires_grad_()
    assert procrustes(x, near) < 0.1
    assert torch.autograd.gradcheck(lambda x, y: procrustes(x, y, angular), (x, near))


def test_bad_input_names_the_argument():
    x, y = related(30, 3, 3)
    nan = x.copy()
    nan[0, 0] = np.nan
    cases = [
        ("x: expected finite", lambda: procrustes(nan, y)),
        ("y: expected finite", lambda: procrustes(x, nan)),
        ("y: expected the 30 examples", lambda: procrustes(x, y[:20])),
        ("x: expected .*examples >= 2", lambda: procrustes(x[:1], y[:1])),
        ("x: expected a torch tensor", lambda: procrustes(x.tolist(), y)),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.filterwarnings("ignore:.*constant")
@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(2, 15),
    dx=st.integers(1, 20),
    dy=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([2, 3, 1000]),
)
def test_range_symmetry_and_formula(n, dx, dy, seed, levels):
    r = np.random.default_rng(seed)
    x, y = r.integers(0, levels, (n, dx)) / 7, r.integers(0, levels, (n, dy)) / 3
    value, angle = procrustes(x, y), procrustes(x, y, angular=True)
    assert 0 <= value <= 2
    assert 0 <= angle <= math.pi / 2 + 1e-15
    assert value == pytest.approx(2 - 2 * math.cos(angle), abs=1e-14)
    assert procrustes(y, x) == pytest.approx(value, abs=1e-13)
    if np.ptp(x, axis=0).any() and np.ptp(y, axis=0).any():
        nuclear = np.linalg.svd(unit(x).T @ unit(y), compute_uv=False).sum()
        assert value == pytest.approx(2 - 2 * nuclear, abs=1e-13)
        assert procrustes(x, x.copy()) == 0


@pytest.mark.gpu
@ANGULAR
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gpu_equals_cpu(dtype, angular):
    x, y = (torch.from_numpy(layer).to(dtype) for layer in related(200, 30, 400))
    value = procrustes(x.cuda(), y.cuda(), angular)
    assert value.device.type == "cuda"
    atol = 1e-5 if dtype == torch.float32 else 1e-12
    assert value.item() == pytest.approx(procrustes(x, y, angular).item(), abs=atol)
    assert procrustes(x.cuda(), x.cuda(), angular) == 0
