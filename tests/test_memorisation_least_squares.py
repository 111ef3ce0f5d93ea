"""Least squares with more weights than examples, and gradient descent on it."""

import numpy as np
import pytest
import torch
from _random_networks import classes, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.memorisation import gradient_descent_path, minimum_norm_solution

# ------------------------------------------------------------------ least squares


def wide(n=12, p=30, rank=12, seed=0):
    return gaussian(n, rank, seed=seed) @ gaussian(rank, p, seed=seed + 1)


@pytest.mark.parametrize(("n", "p", "rank"), [(12, 30, 12), (12, 30, 5), (30, 12, 12), (9, 9, 4)])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_minimum_norm_solution_is_the_pseudoinverse(n, p, rank, shape):
    x, y = wide(n, p, rank), gaussian(n, *shape, seed=5)
    torch.testing.assert_close(
        minimum_norm_solution(x, y), torch.linalg.pinv(x) @ y, atol=1e-9, rtol=0
    )


def test_minimum_norm_solution_with_a_ridge():
    x, y = wide(), gaussian(12, 2)
    expected = torch.linalg.solve(x.T @ x + 0.7 * torch.eye(30).double(), x.T @ y)
    torch.testing.assert_close(minimum_norm_solution(x, y, 0.7), expected)


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


# ------------------------------------------------------------------ gradient descent


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
    w = torch.zeros(8).double()
    for _ in range(3):
        w = w - 0.1 / 5 * x.T @ (x @ w - y)
    found = gradient_descent_path(x, y, [3, 1, 3], learning_rate=0.1)
    torch.testing.assert_close(found.weights, w)
    assert found.steps == (1, 3)
    # examples of equal length at right angles: the default rate arrives in one step
    q = torch.linalg.qr(gaussian(8, 5)).Q.T
    assert gradient_descent_path(q, y, [1]).distance[0] < 1e-12


def test_minibatches_are_seeded():
    x, y = gaussian(10, 20), gaussian(10, seed=1)
    runs = [gradient_descent_path(x, y, [7], 2, seed=seed).weights for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_examples_of_zeros_teach_nothing():
    found = gradient_descent_path(torch.zeros(4, 6), gaussian(4), [0, 5])
    assert not found.weights.any() and not found.distance.any()


# ------------------------------------------------------------------ kinds and bad input

CALLS = {
    "minimum_norm_solution": minimum_norm_solution,
    "gradient_descent_path": lambda x, y: gradient_descent_path(x, y, [3], 2).distance,
}


@pytest.mark.parametrize("name", CALLS)
def test_any_kind_of_input_is_computed_in_float64(name):
    x, y = gaussian(8, 1, 3, 5, dtype=torch.float16), classes(8)
    expected = CALLS[name](x.double(), y)
    assert expected.dtype == torch.float64
    torch.testing.assert_close(CALLS[name](x, y), expected)
    array = CALLS[name](x.float().numpy(), y.numpy())
    assert isinstance(array, np.ndarray)
    np.testing.assert_allclose(array, expected)


X, Y = gaussian(6, 4), classes(6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: minimum_norm_solution(X, Y, -1), "ridge: expected a finite number >= 0"),
        (lambda: gradient_descent_path(X, Y, []), "steps: expected at least one"),
        (lambda: gradient_descent_path(X, Y, [1.5]), "steps: expected an integer"),
        (lambda: gradient_descent_path(X, Y, [1], 0), "batch_size: expected an integer >= 1"),
        (lambda: gradient_descent_path(X, Y, [1], start=X), "start: expected the shape"),
        (lambda: gradient_descent_path(X, Y, [9000], learning_rate=9.0), "learning_rate: .* grow"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_gpu_equals_cpu(name):
    x, y = gaussian(8, 15), classes(8)
    found = CALLS[name](x.cuda(), y.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), CALLS[name](x, y))
