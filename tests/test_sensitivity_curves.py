"""The output along a path and its regions; the distance to the nearest boundary."""

import math

import numpy as np
import pytest
import torch
from _random_networks import dense, gaussian, line, scaled_mlp
from torch import nn

from replication.sensitivity import nearest_boundary, output_curve, transitions


def corner(turn):
    """Return x -> a line that turns by an angle at 1, through one unit."""
    layers = dense([[1.0], [1.0]], [9.0, -1.0]), nn.ReLU()
    cos, sin = math.cos(turn), math.sin(turn)
    return nn.Sequential(*layers, dense([[1.0, cos - 1], [0, sin]], [-9.0, 0]))


@pytest.mark.parametrize("turn", [1e-7, 1.0, 3.0, math.pi])
def test_one_corner(turn):
    found = output_curve(corner(turn), line(0, 3), closed=False)
    torch.testing.assert_close(found.positions, line(0, 1 / 3, 1)[:, 0])
    assert (found.activation_regions, found.linear_regions) == (2, 2)


def test_a_polygon_without_units_is_one_region():
    path = torch.tensor([[0.0, 0], [1, 0], [2, 0], [2, 2], [0, 1]])
    found = output_curve(nn.Linear(2, 2), path)
    assert (found.activation_regions, found.linear_regions) == (1, 1)
    square = output_curve(nn.Sequential(dense([[1.0, 0], [0, 1]], [0.0, 0])), path)
    torch.testing.assert_close(square.outputs, path.double())


@pytest.mark.parametrize("activation", ["relu", "hardtanh"])
def test_the_output_is_the_networks_and_straight_between(activation):
    model, path = scaled_mlp(1, activation=activation), 2 * gaussian(4, 3)
    found, counted = output_curve(model, path), transitions(model, path)
    assert int(found.changes.sum()) == int(counted)
    assert found.activation_regions == len(counted.positions.unique())
    ring = torch.cat([path, path[:1]])
    ends = torch.cat([found.positions, torch.ones(1, dtype=torch.float64)]) * 4
    for share in (0.0, 0.3):
        at = ends[:-1] + share * ends.diff()
        start = at.long().clamp(max=3)
        with torch.no_grad():
            output = model(torch.lerp(ring[start], ring[start + 1], (at - start)[:, None]))
        expected = found.outputs + share * (found.outputs.roll(-1, 0) - found.outputs)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-9)
    in_blocks = output_curve(model, path, memory=1)
    torch.testing.assert_close(in_blocks.outputs, found.outputs)
    assert in_blocks.linear_regions == found.linear_regions


@pytest.mark.parametrize("seed", range(6))
def test_pieces_with_the_same_slope_are_one_linear_region(seed):
    # narrow and deep, so that units often change while all behind them is off
    model, ends = scaled_mlp(seed, widths=(3,) * 6), 20 * gaussian(2, 3, seed=seed)
    found = output_curve(model, ends, closed=False)
    middles = torch.lerp(*ends, ((found.positions[1:] + found.positions[:-1]) / 2)[:, None])
    jacobians = [torch.autograd.functional.jacobian(model, x[None])[0, :, 0] for x in middles]
    slopes = torch.stack(jacobians) @ (ends[1] - ends[0])
    differ = (slopes.diff(dim=0).abs() > 1e-9 * slopes.abs().max()).any(1)
    assert found.linear_regions == 1 + int(differ.sum())
    assert found.activation_regions == 1 + int(transitions(model, ends, closed=False))


def test_units_nobody_listens_to_bend_nothing():
    deaf = nn.Sequential(dense([[1.0], [1.0]], [-1.0, -2.0]), nn.ReLU(), dense([[0.0, 1]], [0.0]))
    found = output_curve(deaf, line(0, 3), closed=False)
    assert (found.activation_regions, found.linear_regions) == (3, 2)
    cancelling = nn.Sequential(
        dense([[1.0], [1.0]], [-1.0] * 2), nn.ReLU(), dense([[0.1, -0.1]], [0.3])
    )
    found = output_curve(cancelling, line(0, 3), closed=False)
    assert (found.activation_regions, found.linear_regions) == (2, 1)


def test_max_pooling_bends():
    model = nn.Sequential(nn.MaxPool2d((1, 2)), nn.Flatten())
    path = torch.tensor([[0.0, 1], [2, 1]]).view(2, 1, 1, 2)
    found = output_curve(model, path, closed=False)
    assert found.positions.tolist() == [0, 0.5, 1] and found.linear_regions == 2


def test_a_path_of_one_point_and_other_kinds():
    found = output_curve(scaled_mlp(0), np.ones((3, 3)))
    assert found.positions.tolist() == [0]
    assert (found.activation_regions, found.linear_regions) == (1, 1)
    with pytest.raises(ValueError, match="path: expected one tensor or array, found a list"):
        output_curve(scaled_mlp(0), [np.ones((3, 3))])
    with pytest.raises(ValueError, match="smooth"):
        output_curve(scaled_mlp(0, activation="tanh"), gaussian(3, 3))


def test_hyperplanes():
    model = nn.Sequential(dense([[3.0, 4], [0, 1], [0, 0]], [-5.0, -8, 1]), nn.Hardtanh(-9, 5))
    points = torch.tensor([[0.0, 0], [10, 0], [0, 0]])
    assert nearest_boundary(model, points).tolist() == pytest.approx([0.8, 1, 0.8])


@pytest.mark.parametrize("activation", ["relu", "relu6", "hardtanh"])
def test_the_first_breakpoint_of_all_rays(activation):
    model, points = scaled_mlp(4, activation=activation, inputs=2), gaussian(5, 2)
    angles = torch.arange(0, 2 * math.pi, 1e-2, dtype=torch.float64)
    around = torch.stack([angles.cos(), angles.sin()], 1)
    least = []
    for point in points:
        rays = [torch.stack([point, point + 10 * u]) for u in around]
        firsts = [t.positions[:1] for t in transitions(model, rays, closed=False)]
        least.append(10 * torch.cat(firsts).min())
    found = nearest_boundary(model, points)
    torch.testing.assert_close(torch.stack(least), found, rtol=1e-4, atol=0)
    torch.testing.assert_close(nearest_boundary(model, points, memory=1), found)


def test_on_a_boundary_and_in_one_dimension():
    model = nn.Sequential(dense([[1.0], [0]], [-0.3, 0]), nn.ReLU())
    points = line(0.3, 0.1 + 0.2, 1, -1)
    assert nearest_boundary(model, points).tolist() == pytest.approx([0, 0, 0.7, 1.3])
    assert nearest_boundary(nn.Linear(1, 1), points).tolist() == [math.inf] * 4


def test_max_pooling_has_boundaries():
    model = nn.Sequential(nn.MaxPool2d((1, 2), padding=(0, 1)), nn.Flatten())
    point = torch.tensor([1.0, 5, 2]).view(1, 1, 1, 3)
    assert nearest_boundary(model, point).tolist() == pytest.approx([3 / 2**0.5])
