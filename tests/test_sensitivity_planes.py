"""Regions on planes: lines that cut a square, grids against exact counts, areas, bad input."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from _random_networks import dense, gaussian, scaled_mlp
from torch import nn

from replication import models
from replication.sensitivity import plane_regions, region_map

CORNERS = torch.tensor([[-1.0, -1], [1, -1], [-1, 1]], dtype=torch.float64)

network = partial(scaled_mlp, inputs=2, widths=(8, 8))


def units(weights, biases, activation=nn.ReLU):
    return nn.Sequential(dense(weights, biases), activation())


def area(polygon):
    x, y = torch.as_tensor(polygon).unbind(1)
    return float((x * y.roll(-1) - x.roll(-1) * y).sum() / 2)


def holding(polygon, points):
    """Return which points lie in a counter-clockwise convex polygon."""
    sides = polygon.roll(-1, 0) - polygon
    offsets = points[:, None] - polygon
    return (sides[:, 0] * offsets[..., 1] - sides[:, 1] * offsets[..., 0] > 0).all(1)


def grid(found, resolution):
    left, right, bottom, top = found.extent
    steps = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    return torch.cartesian_prod(bottom + (top - bottom) * steps, left + (right - left) * steps)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_lines_in_general_position(n):
    # n chords of the square that all cross one another inside: 1 + n + n (n - 1) / 2 regions
    angles = [math.pi * (i + 0.3) / n for i in range(n)]
    normals = [[math.cos(t), math.sin(t)] for t in angles]
    model = units(normals, [0.003 * i * i for i in range(n)])
    found = plane_regions(model, *CORNERS, margin=0)
    assert found.count == 1 + n + n * (n - 1) // 2 and found.certified
    assert sum(map(area, found.polygons)) == pytest.approx(4)


def test_parallel_lines_and_the_three_states():
    model = units([[1.0, 0], [1, 0], [0, 0], [3, 0]], [0.0, -0.5, -1, 0])
    assert plane_regions(model, *CORNERS).count == 3  # the first and the last coincide
    found = plane_regions(units([[2.0, 0]], [0.0], nn.Hardtanh), *CORNERS, margin=0)
    assert sorted(round(area(p), 12) for p in found.polygons) == [1, 1, 2]
    assert plane_regions(units([[1.0, 0]], [0.0], nn.Hardtanh), *CORNERS, margin=0).count == 1
    assert plane_regions(nn.Linear(2, 3), *CORNERS).count == 1


def test_through_one_point_and_along_the_edge():
    model = units([[1.0, 0], [0, 1], [1, 1], [1, -1], [1.0, 0]], [0.0, 0, 0, 0, 1])
    found = plane_regions(model, *CORNERS, margin=0)
    assert found.count == 8 and found.certified


def assert_equal_on_a_grid(model, corners, resolution):
    """Assert that polygons and the codes of a grid match one to one, but for small polygons."""
    exact = plane_regions(model, *corners)
    drawn = region_map(model, *corners, resolution)
    assert exact.certified and exact.extent == drawn.extent
    points, ids = grid(exact, resolution).flip(1), drawn.ids.flatten()
    owners = torch.full_like(ids, -1)
    for number, polygon in enumerate(exact.polygons):
        owners[holding(polygon, points)] = number
    inside = owners >= 0  # but for those on an edge, to rounding
    assert inside.float().mean() > 0.999
    pairs = torch.stack([owners[inside], ids[inside]], 1).unique(dim=0)
    assert len(pairs) == len(pairs[:, 0].unique()) == len(pairs[:, 1].unique()) == drawn.count
    step = (exact.extent[1] - exact.extent[0]) / resolution
    widest = [area(p) for i, p in enumerate(exact.polygons) if i not in set(pairs[:, 0].tolist())]
    assert max(widest, default=0) < 20 * step**2
    assert 0.8 * exact.count < drawn.count <= exact.count


@pytest.mark.parametrize("activation", ["relu", "relu6", "hardtanh", "hardsigmoid"])
@pytest.mark.parametrize("widths", [(20,), (7, 7, 7)])
def test_the_grid_meets_all_regions_that_are_not_too_small(activation, widths):
    assert_equal_on_a_grid(network(1, widths=widths, activation=activation), CORNERS, 150)


@pytest.mark.parametrize(
    ("constant", "areas"), [((0, 0), [1, 1.5, 1.5]), ((0.5, -1), [0.875, 0.875, 2.25])]
)
def test_a_window_has_a_cell_for_each_largest_input(constant, areas):
    corners = torch.cat([CORNERS, torch.tensor(constant).double().expand(3, 2)], 1)
    found = plane_regions(nn.MaxPool2d(2), *corners.view(3, 1, 2, 2), margin=0)
    assert found.certified and sorted(round(area(p), 12) for p in found.polygons) == areas


def test_rectified_ties_are_no_regions():
    corners = torch.cat([CORNERS, -torch.ones(3, 2)], 1).view(3, 1, 2, 2)
    model = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
    found = plane_regions(model, *corners, margin=0)
    assert sorted(round(area(p), 12) for p in found.polygons) == [0.5, 0.5, 1, 1, 1]
    assert found.count == region_map(model, *corners, 51, margin=0).count == 5
    assert region_map(model, *corners, 51, margin=0, layers=["0"]).count == 4


def test_mirrored_inputs_of_a_window_are_equal_whatever_their_rounding():
    corners = torch.empty(3, 1, 6, 6).double()
    convolution = nn.Conv2d(1, 2, 3, bias=False).double()
    for symmetric in (corners, convolution.weight.data):
        symmetric[:] = gaussian(*symmetric.shape, seed=1)
        symmetric += symmetric.flip(3)
    assert_equal_on_a_grid(nn.Sequential(convolution, nn.MaxPool2d(4)), corners, 100)


@pytest.mark.parametrize("pool_each", [False, True])
def test_a_convnet_with_max_pooling(pool_each):
    model = models.build("mnist_convnet", 0, channels=(2, 3), pool_each=pool_each)
    images = torch.full((3, 1, 28, 28), -0.4)  # all windows of the background are tied
    images[:, :, 8:20, 8:20] = gaussian(3, 1, 12, 12, dtype=torch.float32)
    corners = images[:1] + 0.02 * (images - images[:1])
    assert_equal_on_a_grid(model, corners, 100)


def test_convolutions_and_the_given_polygon():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 2, 3), nn.LeakyReLU(), nn.AvgPool2d(2), nn.Flatten()),
            *(nn.Linear(8, 5), nn.ReLU6()),
        )
    a, b, c = (3 * gaussian(1, 6, 6, seed=seed) for seed in range(3))
    drawn = region_map(model, a, b, c, 200, margin=0)
    whole = plane_regions(model, a, b, c, margin=0)
    assert whole.certified and whole.count >= drawn.count > 0.7 * whole.count
    parts = [whole.extent[0], sum(whole.extent[:2]) / 2, whole.extent[1]]
    low, high = whole.extent[2:]
    halves = [
        plane_regions(model, a, b, c, np.array([[x, low], [x, high], [y, high], [y, low]]))
        for x, y in (parts[:2], parts[1:])
    ]
    assert all(half.certified for half in halves)
    assert whole.count < sum(half.count for half in halves) < 2 * whole.count
    total = sum(area(p) for half in halves for p in half.polygons)
    assert total == pytest.approx(sum(map(area, whole.polygons)))


def test_a_map_of_two_half_planes():
    found = region_map(units([[1.0, 0]], [-0.21]), *CORNERS, 10, margin=0)
    assert found.count == 2 and found.extent == (0, 2, 0, 2)
    assert found.points.tolist() == [[0, 0], [2, 0], [0, 2]]
    assert (found.ids == found.ids[0]).all() and found.ids.unique().tolist() == [0, 1]
    assert found.edges.nonzero()[:, 1].unique().tolist() == [5]  # from x = 1.1 to 1.3
    other = region_map(units([[0, 1.0]], [-0.21]), *CORNERS, 10, margin=0.5)
    assert other.extent == (-1, 3, -1, 3)
    assert torch.equal(other.ids == other.ids[0, 0], torch.arange(10)[:, None].expand(10, 10) < 6)


def test_points_are_where_they_say():
    a, b, c = (gaussian(3, 4, seed=seed) for seed in range(3))
    found = region_map(network(0, inputs=12), a, b, c, 3)
    distances = torch.cdist(found.points, found.points)
    inputs = torch.stack([a, b, c]).flatten(1)
    torch.testing.assert_close(distances, torch.cdist(inputs, inputs))


def test_a_map_of_some_layers_is_coarser():
    model = network(2, widths=(6, 6))
    whole, first = (region_map(model, *CORNERS, 80, layers=names) for names in (None, ["act1"]))
    assert 1 < first.count < whole.count
    pairs = torch.stack([whole.ids.flatten(), first.ids.flatten()], 1)
    assert len(pairs.unique(dim=0)) == whole.count  # each lies in one of the first layer's


A, B, C = CORNERS


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        *((f, {"c": 2 * B - A}, "not on one line") for f in (region_map, plane_regions)),
        (region_map, {"b": A}, "not on one line"),
        (region_map, {"c": C[:1]}, "a, b, c: expected one shape"),
        (region_map, {"model": network(0, inputs=3)}, "a: examples of shape"),
        (region_map, {"layers": ["act3"]}, "layers: found 'act3'; did you mean"),
    ],
)
def test_bad_input(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(**{"model": network(0), "a": A, "b": B, "c": C} | options)
