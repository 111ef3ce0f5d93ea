"""Closed paths: where they pass, how they close, equal steps along them."""

import math

import numpy as np
import pytest
import torch
from _random_networks import gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.sensitivity.trajectories import (
    ellipse,
    polyline,
    random_ellipse,
    sample,
    translations,
)


def test_polyline_is_the_points_without_a_repeated_end():
    points = gaussian(4, 2, 3)
    for given_points in (points, list(points), torch.cat([points, points[:1]])):
        assert torch.equal(polyline(given_points), points)
    assert torch.equal(polyline([points[0], points[0]]), points[[0, 0]])  # a path of length 0


def test_translations_of_a_written_out_image():
    image = np.array([[1.0, 2, 3], [4, 5, 6]])
    expected = [[[1, 2, 3], [4, 5, 6]], [[3, 1, 2], [6, 4, 5]], [[2, 3, 1], [5, 6, 4]]]
    np.testing.assert_array_equal(translations(image, shifts=3), expected)


def test_translations_are_a_ring_of_equal_steps_spread_over_the_width():
    ring = translations(gaussian(1, 28, 28))
    assert ring.shape == (28, 1, 28, 28)
    steps = (ring.roll(-1, 0) - ring).flatten(1).norm(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(28))
    image = gaussian(3, 8, 8)
    assert torch.equal(translations(image, 4), translations(image, 8)[::2])
    assert torch.equal(translations(image, 3), translations(image, 8)[[0, 2, 5]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vertices", [3, 12, 300])
def test_ellipse_has_its_three_points_as_vertices(vertices, dtype):
    points = gaussian(3, 1, 4, 5, dtype=dtype)
    path = ellipse(*points, vertices=vertices)
    assert (path.dtype, path.shape) == (dtype, (vertices, 1, 4, 5))
    assert torch.equal(path[:: vertices // 3], points)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 60), st.integers(0, 10_000))
def test_ellipse_is_the_formula_in_the_docstring(vertices, seed):
    a, b, c = gaussian(3, 6, seed=seed)
    t = 2 * math.pi * torch.arange(vertices, dtype=torch.float64)[:, None] / vertices
    m = (a + b + c) / 3
    path = ellipse(a, b, c, vertices)
    torch.testing.assert_close(path, m + (a - m) * t.cos() + (b - c) / 3**0.5 * t.sin())
    torch.testing.assert_close(path.mean(0), m)


def test_ellipses_of_an_equilateral_triangle_and_of_a_line():
    corners = torch.eye(3, dtype=torch.float64)
    radii = (ellipse(*corners, 60) - 1 / 3).norm(dim=1)
    torch.testing.assert_close(radii, torch.full((60,), (2 / 3) ** 0.5, dtype=torch.float64))
    a = gaussian(5)
    assert torch.linalg.matrix_rank(ellipse(a, 2 * a, 4 * a, 30)) == 1
    torch.testing.assert_close(ellipse(a, a, a, 30), a.expand(30, -1))


def test_random_ellipse_is_noise_of_the_images_mean_and_spread():
    images = 3 + 2 * gaussian(50, 1, 20, 20, seed=1, dtype=torch.float32)
    path = random_ellipse(images, vertices=30)
    assert (path.dtype, path.shape) == (torch.float32, (30, 1, 20, 20))
    corners = path[::10]
    assert corners.mean().item() == pytest.approx(3, abs=0.3)
    assert corners.std().item() == pytest.approx(2, rel=0.1)
    torch.testing.assert_close(path, ellipse(*corners, vertices=30))
    assert torch.equal(path, random_ellipse(images, vertices=30, seed=0))
    assert not torch.equal(path, random_ellipse(images, vertices=30, seed=1))
    assert torch.equal(random_ellipse(images * 0, 3), torch.zeros(3, 1, 20, 20))


def test_sample_goes_round_a_square_at_equal_steps():
    square = np.array([[0.0, 0], [2, 0], [2, 2], [0, 2]])
    expected = [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2], [1, 2], [0, 2], [0, 1]]
    # a vertex in the middle of a side, or twice, changes nothing
    for path in (square, square[[0, 0, 1, 2, 2, 2, 3, 3]], np.insert(square, 1, [0.3, 0], 0)):
        np.testing.assert_allclose(sample(path, 8), expected, atol=1e-12)
    np.testing.assert_allclose(sample(square, 1), [[0, 0]])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(1, 40), st.integers(0, 10_000))
def test_samples_lie_on_the_path_where_they_should(count, k, seed):
    path = gaussian(count, 3, seed=seed)
    closed = torch.cat([path, path[:1]])
    lengths = closed.diff(dim=0).norm(dim=1)
    expected = []
    for i in range(k):
        left, piece = i / k * float(lengths.sum()), 0
        while piece < count - 1 and left > lengths[piece]:
            left -= float(lengths[piece])
            piece += 1
        expected.append(closed[piece] + left / lengths[piece] * (closed[piece + 1] - closed[piece]))
    torch.testing.assert_close(sample(path, k), torch.stack(expected))


def test_samples_of_a_path_of_length_zero_and_of_images():
    assert torch.equal(sample(torch.ones(4, 2, 2), 5), torch.ones(5, 2, 2))
    ring = translations(gaussian(1, 6, 6, dtype=torch.float32), 6)
    samples = sample(ring, 12)
    assert (samples.dtype, samples.shape) == (torch.float32, (12, 1, 6, 6))
    torch.testing.assert_close(samples[::2], ring)
    torch.testing.assert_close(samples[1], (ring[0] + ring[1]) / 2)
