"""Networks, kernels and weights that fit any labels, random features: closed forms, references."""

import math

import numpy as np
import pytest
import torch
from _random_networks import classes, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from replication import data
from replication.memorisation import (
    blocked,
    features,
    finite_sample,
    finite_sample_network,
    gradient_descent_path,
    minimum_norm_solution,
    random_conv_features,
)
from replication.memorisation.blocked import interpolate, squared_distances
from replication.memorisation.features import gabor_features
from replication.memorisation.finite_sample import deep_outputs


@pytest.fixture
def tiny_chunks(monkeypatch):
    for module in (finite_sample, features):
        monkeypatch.setattr(module, "CHUNK", 1)


def triangle(net, x, place=1.0):
    """Return the matrix of the theorem, thresholds at the share `place` of the way down a gap."""
    z = (x.flatten(1) @ net.a).sort().values
    return (z[:, None] - (z - place * (z - net.b))).clamp_min(0)


def test_random_labels_of_real_images_are_fitted_exactly():
    split = data.load("mnist5k", subset=(1000, 10))
    x, y = split.train.images, data.corrupt_labels(split.train.labels, 1.0, 10, seed=0)
    net = finite_sample_network(x, y)
    assert net.error < 1e-5
    assert torch.equal(net(x).round().long(), y)
    assert sum(part.numel() for part in (net.a, net.b, net.w)) == 2 * 1000 + 784


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**20))
def test_any_real_labels_are_fitted(n, d, seed):
    x, y = gaussian(n, d, seed=seed), 100 * gaussian(n, seed=seed + 1)
    net = finite_sample_network(x, y, seed)
    torch.testing.assert_close(net(x), y, rtol=0, atol=max(1e-9, 1e-15 * net.condition * 100))
    assert float((net(x) - y).abs().max()) == pytest.approx(net.error, rel=0.5, abs=1e-12)


def test_thresholds_interleave_and_weights_solve_the_triangular_system():
    x, y = gaussian(60, 4, 5), gaussian(60, seed=1)
    net = finite_sample_network(x, y, seed=3)
    z, order = (x.flatten(1) @ net.a).sort()
    assert (net.b < z).all() and torch.equal(net.b[1:], z[:-1])
    a = triangle(net, x)
    assert torch.equal(a, a.tril())
    expected = torch.linalg.solve_triangular(a, y[order, None], upper=False)[:, 0]
    torch.testing.assert_close(net.w, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 50, 300])
def test_condition_number_is_exact(n):
    x = gaussian(n, 10)
    net = finite_sample_network(x, classes(n))
    a = triangle(net, x)
    assert net.condition == pytest.approx(float(torch.linalg.cond(a, 1)), rel=1e-4)
    if n == 50:  # no other place of the thresholds is better conditioned
        places = [float(torch.linalg.cond(triangle(net, x, t), 1)) for t in (1, 0.9, 0.5, 0.3)]
        assert places == sorted(places) and places[-1] > 1e5 * places[0]


def test_the_network_is_its_formula_and_its_projection_depends_on_the_seed_alone(tiny_chunks):
    x, new = gaussian(30, 6), gaussian(7, 6, seed=1)
    net = finite_sample_network(x, classes(30))
    expected = [
        sum(w * max(float(image @ net.a - b), 0) for b, w in zip(net.b, net.w, strict=True))
        for image in new
    ]
    np.testing.assert_allclose(net(new), expected, rtol=1e-8)
    again = finite_sample_network(2 * x, classes(30))
    assert torch.equal(net.a, again.a) and net.condition == pytest.approx(again.condition)
    assert not torch.equal(net.a, finite_sample_network(x, classes(30), seed=1).a)


def test_images_that_cannot_be_told_apart_are_named():
    x = gaussian(300, 50, dtype=torch.float32)
    x[41] = x[7]
    with pytest.raises(ValueError, match="images: 7 and 41 are identical"):
        finite_sample_network(x, classes(300))
    near = torch.tensor([[3.0], [1.0], [1.0 + 2e-16]], dtype=torch.float64)
    with pytest.raises(ValueError, match="images: 1 and 2 have the same projection"):
        finite_sample_network(near, classes(3))


def test_the_kernel_is_its_formula():
    x = gaussian(25, 4)
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    median = torch.pdist(x).sort().values[149]  # the lower of two, as torch has it
    expected = torch.exp(-4 * (distances / median) ** 2)  # exp(-4) at the median distance
    found = blocked.gaussian(squared_distances([x], 25), 25)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_closed_forms_of_the_interpolant():
    kernel = torch.tensor([[1, math.exp(-0.5)], [math.exp(-0.5), 1]])
    found = interpolate(kernel, torch.tensor([[1.0], [-1.0]]))
    assert found.norm == pytest.approx(math.sqrt(2 / (1 - math.exp(-0.5))))
    same = interpolate(torch.ones(2, 2), torch.tensor([[1.0], [3.0]]), 1e-3)
    assert same(torch.ones(2, 2))[0].item() == pytest.approx(2, rel=1e-3)  # targets are averaged
    x = torch.cat([torch.zeros(1500, 5), gaussian(2500, 5)]).double()  # a median from everywhere
    squares = squared_distances([x], 4000)
    median = -4 * squares[-1, -2] / blocked.gaussian(squares.clone(), 4000)[-1, -2].log()
    assert median == pytest.approx(float(torch.pdist(x).median()) ** 2, rel=0.1)


def test_no_interpolant_has_a_smaller_norm():
    x, y = gaussian(15, 2), gaussian(15, 1, seed=2)
    kernel = blocked.gaussian(squared_distances([x], 15), 15)
    least = interpolate(kernel[:12, :12], y[:12], tolerance=1e-9)
    other = interpolate(kernel, y, tolerance=1e-9)  # goes through three more
    assert least.residual < 1e-3 and other.residual < 1e-3 and least.norm < other.norm


def pictures(n=12, channels=3, side=9, seed=0, dtype=torch.float64):
    return gaussian(n, channels, side, side, seed=seed, dtype=dtype).cumsum(2).cumsum(3)


def test_features_are_pooled_rectified_convolutions(tiny_chunks):
    x = pictures()
    weight, bias = features._filters(x, 5, 4, seed=2)
    maps = F.conv2d(x, weight.view(5, 3, 4, 4), bias)  # (12, 5, 6, 6)
    parts = []
    for sign in (1, -1):
        soft = (sign * maps - 0.5).clamp_min(0)
        cells = [soft[:, :, i : i + 3, j : j + 3].mean((2, 3)) for i in (0, 3) for j in (0, 3)]
        parts.append(torch.stack(cells, 2).flatten(1))
    found = random_conv_features(x, 5, 4, seed=2)
    torch.testing.assert_close(found, torch.cat(parts, 1))
    assert found.std() > 0.01


def test_filters_are_whitened():
    """Brightness and contrast of the whole set change nothing; responses have unit variance."""
    x = pictures(200)
    found, changed = random_conv_features(x, 8, 3), random_conv_features(3 * x + 7, 8, 3)
    torch.testing.assert_close(changed, found, rtol=1e-8, atol=1e-10)
    weight, bias = features._filters(x, 50, 4, seed=0)
    std = F.conv2d(x, weight.view(50, 3, 4, 4), bias).std((0, 2, 3))
    assert std.min() > 0.3 and std.max() < 1.2


def test_filters_come_from_the_source():
    x, new = pictures(), pictures(4, seed=1)
    both = random_conv_features(torch.cat([x, new]), 6, 3, source=x)
    torch.testing.assert_close(both[:12], random_conv_features(x, 6, 3))
    torch.testing.assert_close(both[12:], random_conv_features(new, 6, 3, source=x))
    assert not torch.allclose(both[12:], random_conv_features(new, 6, 3))
    assert not torch.allclose(both[:12], random_conv_features(x, 6, 3, seed=1))


def test_sizes_of_features_and_images_without_contrast():
    x = pictures(3, channels=1, side=10)
    assert random_conv_features(x, 7, 3, grid=3).shape == (3, 2 * 7 * 9)
    one, four = (random_conv_features(x, 7, 3, grid=grid) for grid in (1, 2))
    torch.testing.assert_close(one, four.unflatten(1, (14, 4)).mean(2))
    assert not random_conv_features(torch.full((3, 1, 8, 8), 0.7), 4, 3).any()


def wide(n=12, p=30, rank=12, seed=0):
    return gaussian(n, rank, seed=seed) @ gaussian(rank, p, seed=seed + 1)


@pytest.mark.parametrize(("n", "p", "rank"), [(12, 30, 12), (12, 30, 5), (30, 12, 12), (9, 9, 4)])
def test_minimum_norm_solution_is_the_pseudoinverse(n, p, rank):
    x, y = wide(n, p, rank), gaussian(n, 3, seed=5)
    expected = torch.linalg.pinv(x) @ y
    torch.testing.assert_close(minimum_norm_solution(x, y), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(minimum_norm_solution(x, y[:, 0]), expected[:, 0], atol=1e-9, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20))
def test_every_other_solution_is_longer(seed):
    x, y = wide(seed=seed), gaussian(12, seed=seed + 7)
    w = minimum_norm_solution(x, y)
    torch.testing.assert_close(x @ w, y, atol=1e-7, rtol=0)
    move = gaussian(30, seed=seed + 8)
    move = move - minimum_norm_solution(x, x @ move)  # what no example sees
    torch.testing.assert_close(x @ (w + move), y, atol=1e-7, rtol=0)
    assert (w + move).norm() > w.norm()


def test_dead_features_and_examples_that_occur_twice():
    x = wide()
    x[:, 3] = 0
    x[7] = x[2]
    w = minimum_norm_solution(x, torch.arange(12).double())
    assert abs(float(w[3])) < 1e-14
    assert float(x[2] @ w) == pytest.approx(4.5)  # the mean of 2 and 7
    assert not minimum_norm_solution(torch.zeros(4, 6), gaussian(4)).any()


@pytest.mark.parametrize("batch_size", [None, 3])
def test_descent_from_0_goes_to_the_minimum_norm_solution(batch_size):
    x, y = gaussian(10, 200), classes(10)
    found = gradient_descent_path(x, y, [0, 10, 3000], batch_size)
    assert found.steps == (0, 10, 3000)
    norm = float(minimum_norm_solution(x, y).norm())
    assert float(found.distance[0]) == pytest.approx(norm)
    assert found.distance[0] > found.distance[1] > found.distance[2]
    assert found.distance[2] < 1e-8 * norm
    assert found.outside.max() < 1e-12 * norm
    assert found.residual[2] < 1e-6 < found.residual[1]
    torch.testing.assert_close(found.weights, found.solution, atol=1e-7, rtol=0)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_descent_from_elsewhere_keeps_what_no_example_sees(batch_size):
    x, y, start = gaussian(10, 200), gaussian(10, seed=1), gaussian(200, seed=2)
    found = gradient_descent_path(x, y, [0, 5, 3000], batch_size, start=start)
    unseen = float((start - torch.linalg.pinv(x) @ (x @ start)).norm())
    assert found.outside.tolist() == pytest.approx([unseen] * 3)
    assert float(found.distance[2]) == pytest.approx(unseen)
    assert found.residual[2] < 1e-6


def test_steps_are_those_of_the_formula():
    x, y = gaussian(5, 8), gaussian(5, seed=1)
    w, rate = torch.zeros(8).double(), 5 / torch.linalg.eigvalsh(x @ x.T)[-1]
    for _ in range(3):
        w = w - rate / 5 * x.T @ (x @ w - y)
    found = gradient_descent_path(x, y, [3, 1, 3])
    torch.testing.assert_close(found.weights, w)
    assert found.steps == (1, 3)
    # examples of equal length at right angles: the default rate arrives in one step
    q = torch.linalg.qr(gaussian(8, 5)).Q.T
    assert gradient_descent_path(q, y, [1]).distance[0] < 1e-12


def test_minibatches_are_seeded_and_examples_of_zeros_teach_nothing():
    found = gradient_descent_path(torch.zeros(4, 6), gaussian(4), [0, 5])
    assert not found.weights.any() and not found.distance.any()
    x, y = gaussian(10, 20), gaussian(10, seed=1)
    runs = [gradient_descent_path(x, y, [7], 2, seed=seed).weights for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


CALLS = {
    "finite_sample_network": lambda x, y: finite_sample_network(x, y)(x),
    "minimum_norm_solution": minimum_norm_solution,
    "gradient_descent_path": lambda x, y: gradient_descent_path(x, y, [3], 2).distance,
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_given_as_an_array_comes_back_as_one_in_float64(name):
    x, y = gaussian(8, 1, 3, 5, dtype=torch.float32), classes(8)
    array = CALLS[name](x.numpy(), y.numpy())
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, CALLS[name](x.double(), y))


def test_features_keep_their_kind():
    x = pictures(dtype=torch.float32)
    found, array = random_conv_features(x, 3, 3), random_conv_features(x.numpy(), 3, 3)
    assert found.dtype == torch.float32 and isinstance(array, np.ndarray)


X, Y = gaussian(6, 4), classes(6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: finite_sample_network(X, Y[:5]), r"labels: expected \(6,\)"),
        (lambda: finite_sample_network(X, X), r"labels: expected the shape \(n,\)"),
        (lambda: finite_sample_network(X, Y)(X[:, :3]), "images: expected 4 numbers each, found 3"),
        (lambda: minimum_norm_solution(X, Y - 20), "targets: expected 0 to 65535"),
        (lambda: blocked.gaussian(torch.zeros(3, 3), 3), "squares: .* median distance of 0"),
        (lambda: random_conv_features(pictures(), 3, 9), "size: expected room for 2 x 2 patches"),
        (lambda: random_conv_features(X, 3), "images: expected floating"),
        (lambda: random_conv_features(pictures(), 3, source=pictures(2, 1)), "source: expected"),
        (lambda: gradient_descent_path(X, Y, []), "steps: expected at least one"),
        (lambda: gradient_descent_path(X, Y, [1], start=X), "start: expected the shape"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("square", [False, True])
def test_squared_distances_are_summed_over_blocks_and_mirrored(monkeypatch, square):
    monkeypatch.setattr(blocked, "ROWS", 7)
    x = gaussian(31, 12).float() + 5
    found = squared_distances(x.split(5, 1), 20, square)
    expected = torch.cdist(x.double(), x.double()).square()[:, : 31 if square else 20]
    assert found.shape == expected.shape
    assert torch.allclose(found.double(), expected, atol=1e-4)


def test_conjugate_gradients_find_the_interpolant_that_a_solver_finds():
    x, z = gaussian(60, 5).float(), gaussian(9, 5, seed=1).float()
    y = F.one_hot(classes(60, 3), 3).float()
    gram = blocked.gaussian(squared_distances([torch.cat([x, z])], 60), 60)
    for ridge in (0.0, 0.5):
        k = gram[:60].double()
        exact = torch.linalg.solve(k + ridge * torch.eye(60).double(), y.double())
        found = interpolate(gram[:60], y, ridge, tolerance=1e-5)
        assert found.residual < 1e-5
        assert torch.allclose(found(gram[60:]).double(), gram[60:].double() @ exact, atol=1e-3)
        assert found.norm == pytest.approx((exact * (k @ exact)).sum().sqrt().item(), rel=1e-3)


def test_too_few_steps_say_so_by_their_residual():
    x = gaussian(60, 5).float()
    gram = blocked.gaussian(squared_distances([x], 60), 60)
    assert interpolate(gram, torch.eye(60)[:, :2], most=1).residual > 0.01


def test_gabor_wavelets_answer_to_stripes_of_their_direction_and_not_to_grey():
    across = torch.arange(28.0).mul(2 * math.pi / 6).cos().expand(1, 1, 28, 28)
    options = {"orientations": 2, "wavelengths": (6,), "grid": 1}
    upright, level = gabor_features(across, **options)[0]
    assert upright > 5 * level
    turned = gabor_features(across.mT, **options)[0]
    assert torch.allclose(turned, torch.stack([level, upright]), atol=1e-5)
    inner = gabor_features(torch.ones(1, 1, 28, 28), 2, (4,), 7).unflatten(1, (2, 7, 7))[
        ..., 2:5, 2:5
    ]
    assert inner.abs().max() < 1e-5


@pytest.mark.parametrize("depth", [1, 3, 40])
def test_a_deep_network_computes_what_the_two_layers_of_theorem_1_do(depth):
    x = gaussian(30, 6)
    net = finite_sample_network(x, classes(30))
    assert torch.allclose(deep_outputs(net, x, depth), net(x), atol=1e-8)
    assert torch.allclose(deep_outputs(net, x[:4] + 1, depth), net(x[:4] + 1), atol=1e-6)
