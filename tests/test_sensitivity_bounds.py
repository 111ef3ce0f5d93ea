"""Cross-entropy bounds: exact where their premises hold, digits at both ends, controls."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from replication.sensitivity import (
    cross_entropies,
    cross_entropy_bounds,
    fraction_inside,
    jacobian_norm,
    jacobian_row_norm,
    mean_square_gradient,
)


def orthogonal(classes, length=3.0, inputs=20, scale=1.0, dtype=torch.float64):
    """Return logits of orthogonal gradients of one length, and points with their classes."""
    source = torch.Generator().manual_seed(classes)
    weight = torch.linalg.qr(torch.randn(inputs, classes, generator=source, dtype=dtype))[0].mT
    model = nn.Linear(inputs, classes, bias=False, dtype=dtype)
    model.load_state_dict({"weight": length * weight})
    points = scale * torch.randn(200, inputs, generator=source, dtype=dtype)
    labels = torch.randint(classes, (200,), generator=source)
    return model, points, labels


def measured(model, points, labels):
    """Return cross-entropies, |J_y|, |J|_F and M."""
    with torch.no_grad():
        loss = cross_entropies(model(points), labels)
    m = mean_square_gradient(jacobian_norm(model, points, "logits"), model.out_features)
    return loss, jacobian_row_norm(model, points, labels), jacobian_norm(model, points), m


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 1, 5])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_bounds_hold_at_every_point_where_the_premises_do(classes, scale, dtype):
    model, points, labels = orthogonal(classes, scale=scale, dtype=dtype)
    loss, rows, _, m = measured(model, points, labels)
    assert m == pytest.approx(9, rel=1e-5)
    bounds = cross_entropy_bounds(loss, m, classes)
    assert bounds.lower.dtype == dtype
    assert fraction_inside(rows, bounds) == 1
    # without the 1 / n of M they do not
    assert fraction_inside(rows, cross_entropy_bounds(loss, classes * m, classes)) < 0.5


def test_of_gradients_of_other_lengths_few_are_inside():
    model, points, labels = orthogonal(10)
    lengths = torch.linspace(0.1, 5, 10, dtype=torch.float64)
    model.load_state_dict({"weight": model.weight * lengths[:, None]})
    loss, rows, _, m = measured(model, points, labels)
    assert fraction_inside(rows, cross_entropy_bounds(loss, m, 10)) < 0.5


def with_probabilities(p):
    """Return a network of orthogonal gradients, with its point of probabilities p."""
    model, *_ = orthogonal(len(p))
    return model, (torch.tensor(p, dtype=torch.float64).log() @ model.weight / 9).detach()[None]


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("own", [1e-3, 0.2, 0.5, 0.999])
def test_where_bounds_and_approximation_are_reached(classes, own):
    label = torch.zeros(1, dtype=torch.int64)
    shared = [own] + [(1 - own) / (classes - 1)] * (classes - 1)
    loss, row, whole, m = measured(*with_probabilities(shared), label)
    assert loss.item() == pytest.approx(-math.log(own))
    bounds = cross_entropy_bounds(loss, m, classes)
    torch.testing.assert_close(bounds.lower, row)
    torch.testing.assert_close(bounds.approximation, whole)
    if classes > 2:
        rest = 1e-9
        alone = [own, 1 - own - rest * (classes - 2)] + [rest] * (classes - 2)
        loss, row, whole, m = measured(*with_probabilities(alone), label)
        bounds = cross_entropy_bounds(loss, m, classes)
        torch.testing.assert_close(bounds.upper, row, rtol=1e-5, atol=0)
        assert (whole / bounds.approximation - 1).abs() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_digits_are_kept_at_both_ends(dtype):
    loss = torch.tensor([0, 1e-30, 1e-9, 1, 30, 80], dtype=dtype)
    lower, upper, approximation = cross_entropy_bounds(loss, 4.0, 5)
    e, rest = (-loss.double()).exp(), -torch.expm1(-loss.double())
    close = {"rtol": 1e-5, "atol": 0, "check_dtype": False}
    torch.testing.assert_close(lower, 5**0.5 * e * rest, **close)
    torch.testing.assert_close(upper, 8**0.5 * e * rest, **close)
    torch.testing.assert_close(approximation, 0.5 * rest * (25 * e * e + 3).sqrt(), **close)
    # of two classes, e^-2l alone is under the root, and out of float32's range at 80
    two = cross_entropy_bounds(loss, 4.0, 2).approximation
    torch.testing.assert_close(two, 4 * e * rest, **close)
    vanished = cross_entropy_bounds(loss.new_tensor([1e4]), 4.0, 5)
    assert [float(z) for z in vanished] == pytest.approx([0, 0, 3**0.5 / 2])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=8), st.data())
def test_cross_entropies_are_the_usual_ones(logits, data):
    label = data.draw(st.integers(0, len(logits) - 1))
    values = torch.tensor([logits], dtype=torch.float64)
    y = torch.tensor([label])
    expected = nn.functional.cross_entropy(values, y, reduction="none")
    torch.testing.assert_close(cross_entropies(values, y), expected, rtol=1e-12, atol=1e-13)


def test_cross_entropies_keep_their_digits_in_float32():
    margins = torch.tensor([0.0, 5, 20, 60, 80, -10, -1e4])
    logits = torch.stack([margins + 7, torch.full_like(margins, 7.0)], 1)
    y = torch.zeros(7, dtype=torch.int64)
    expected = [max(-x, 0) + math.log1p(math.exp(-abs(x))) for x in margins.tolist()]
    assert cross_entropies(logits, y).tolist() == pytest.approx(expected, rel=1e-6, abs=0)
    usual = nn.functional.cross_entropy(logits, y, reduction="none")
    assert usual[2] != pytest.approx(expected[2], rel=0.1)  # nothing is left of it


def test_confident_points_are_inside_in_float32():
    model, points, _ = orthogonal(10, scale=20, dtype=torch.float32)
    labels = model(points).argmax(1)
    loss, rows, _, m = measured(model, points, labels)
    confident = (loss < 1e-7) & (rows > 1e-37)
    assert confident.sum() > 50
    bounds = cross_entropy_bounds(loss[confident], m, 10)
    assert fraction_inside(rows[confident], bounds, tolerance=1e-3) == 1


def test_numbers_or_one_a_point():
    loss = torch.tensor([0.1, 2.0])
    bounds = cross_entropy_bounds(loss, 1.5, 3)
    each = cross_entropy_bounds(loss, torch.tensor([1.5, 1.5]), 3)
    torch.testing.assert_close(each.lower, bounds.lower)
    assert mean_square_gradient(torch.tensor([3.0, 1.0]), 5) == 1
    assert fraction_inside((bounds.lower + bounds.upper) / 2, bounds) == 1
    outside = torch.stack([bounds.upper[0] * 1.01, bounds.lower[1]])
    assert fraction_inside(outside, bounds) == 0.5
