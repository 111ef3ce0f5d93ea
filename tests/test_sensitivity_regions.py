"""Transitions: known breakpoints, codes between them, degenerate places, samples, interface."""

import copy
from functools import partial

import pytest
import torch
from _random_networks import dense, gaussian, line, scaled_mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from replication import data, models
from replication._core.modules import hooked
from replication.sensitivity import trajectories, transitions
from replication.sensitivity._piecewise import walk

KINKS = {nn.ReLU: (0,), nn.LeakyReLU: (0,), nn.ReLU6: (0, 6), nn.Hardsigmoid: (-3, 3)}

network = partial(scaled_mlp, classes=2)


def units(weights, biases, activation=nn.ReLU):
    """Return one layer of units on one input."""
    return nn.Sequential(dense([[float(weight)] for weight in weights], biases), activation())


def states(model, x):
    """Return the states of all activation layers, from hooks."""
    names, codes = {layer: name for name, layer in model.named_modules()}, {}

    def note(layer, inputs, output):
        z = inputs[0].flatten(1)
        first, *second = KINKS.get(type(layer)) or (layer.min_val, layer.max_val)
        codes[names[layer]] = sum([z > first, *(z >= kink for kink in second)], 0 * z)

    kinked = [layer for layer in names if isinstance(layer, (*KINKS, nn.Hardtanh))]
    with torch.no_grad(), hooked((layer, note) for layer in kinked):
        model(x)
    return codes


def assert_equal_between_breakpoints(model, path, found):
    """Codes in the middle of every piece differ by just the units counted in between."""
    counted = list(zip(found.segments.tolist(), found.fractions.tolist(), strict=True))
    places = sorted({*counted, *((i, 0.0) for i in range(len(path)))})
    following = [*places[1:], (len(path), 0.0)]
    middle = [
        (start + (stop if there == here else 1)) / 2
        for (here, start), (there, stop) in zip(places, following, strict=True)
    ]
    here = torch.tensor([segment for segment, _ in places])
    weight = torch.tensor(middle, dtype=torch.float64).view(-1, *[1] * (path.ndim - 1))
    x = torch.lerp(path.double()[here], path.double()[(here + 1) % len(path)], weight)
    numbers = {place: number for number, place in enumerate(places)}
    where = torch.tensor([numbers[place] for place in counted], dtype=torch.int64)
    codes = states(copy.deepcopy(model).double(), x)
    assert list(codes) == list(found.per_layer)
    for number, (name, code) in enumerate(codes.items()):
        expected = torch.zeros(code.shape, dtype=torch.bool)
        layer = torch.as_tensor(found.layers) == number
        expected[where[layer], found.units[layer]] = True
        assert torch.equal(code != code.roll(1, 0), expected)
        assert found.per_layer[name] == int(expected.sum())
    assert int(found) == sum(found.per_layer.values())


def test_units_on_a_line():
    found = transitions(units([1, 2, -1, 1], [-1, -5, 1, -9]), line(0, 4), closed=False)
    assert int(found) == 3 and found.per_layer == {"1": 3}
    assert found.positions.tolist() == [0.25, 0.25, 0.625]  # two units turn at 1, one at 2.5
    assert found.units.tolist() in ([0, 2, 1], [2, 0, 1])
    back = transitions(units([1, 2, -1, 1], [-1, -5, 1, -9]), line(0, 4))
    assert back.positions.tolist() == [0.125, 0.125, 0.3125, 0.6875, 0.875, 0.875]
    assert back.segments.tolist() == [0, 0, 0, 1, 1, 1]
    unharmed = line(-1, 1e-17, 1)
    assert transitions(nn.ReLU(), unharmed).total == 2 and unharmed[1] == 1e-17


def tents(depth):
    """Return x -> 1 - |1 - 2x| applied again and again: 2 relu(x) - 4 relu(x - 1/2)."""
    fold = dense([[1.0], [1.0]], [0, -0.5]), nn.ReLU(), dense([[2, -4.0]])
    return nn.Sequential(*(copy.deepcopy(layer) for _ in range(depth) for layer in fold))


def test_tents_fold_the_line_and_touch_zero_without_a_change():
    found = transitions(tents(6), line(0, 1), closed=False)
    assert list(found.per_layer.values()) == [2**i for i in range(6)]
    assert found.positions.tolist() == [i / 64 for i in range(1, 64)]
    back_and_forth = transitions(tents(6), line(0, 1))
    assert int(back_and_forth) == 2 * 63  # at the ends it touches 0 as well


@pytest.mark.parametrize("activation", ["relu", "relu6", "hardtanh", "hardsigmoid"])
@pytest.mark.parametrize(
    ("vertices", "reach", "widths"),
    [(40, 3, (16, 16, 16)), (3, 1e6, (8,) * 5), (5, 1e-6, (10, 10)), (2, 30, (6, 20))],
)
def test_codes_between_breakpoints(activation, vertices, reach, widths):
    model = network(vertices, widths=widths, activation=activation, scale=3.0)
    path = reach * gaussian(vertices, 3, seed=vertices)
    found = transitions(model, path)
    assert_equal_between_breakpoints(model, path, found)
    in_blocks = transitions(model, path, memory=10**5)
    assert in_blocks.per_layer == found.per_layer
    torch.testing.assert_close(in_blocks.positions, found.positions, rtol=0, atol=1e-9)


@pytest.mark.parametrize("activation", ["relu", "hardtanh"])
def test_codes_between_breakpoints_on_rings_of_digits(activation):
    split = data.load("mnist5k")
    model = models.build("mlp", 0, inputs=784, widths=(60, 60, 60), activation=activation)
    rings = [trajectories.translations(image) for image in split.test.images[:4]]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(41):
        if step % 40 == 0:
            for ring, found in zip(rings, transitions(model, rings), strict=True):
                assert_equal_between_breakpoints(model, ring, found)
        batch = slice(64 * step, 64 * step + 64)
        optimizer.zero_grad()
        F.cross_entropy(model(split.train.images[batch]), split.train.labels[batch]).backward()
        optimizer.step()
    assert int(found) > 100


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_what_the_count_does_not_depend_on(seed):
    model, path = network(seed, activation="relu6"), 3 * gaussian(5, 3, seed=seed)
    expected = transitions(model, path).per_layer
    halved = torch.stack([path, (path + path.roll(-1, 0)) / 2], 1).flatten(0, 1)
    for same in (path.roll(2, 0), path.flip(0), halved):
        assert transitions(model, same).per_layer == expected


@pytest.mark.parametrize("slope", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("corner", [0.3, 0.1 + 0.2])
def test_to_touch_a_kink_is_no_change(slope, corner):
    # |x - 0.3| through two units, seen by a third and, upside down, by a fourth
    both = dense([[slope, slope], [-slope, -slope]])
    model = nn.Sequential(*units([1, -1], [-corner, 0.3]), both, nn.ReLU())
    found = transitions(model, line(0, 1), closed=False)
    assert found.per_layer == {"1": 2, "3": 0}
    path = line(0.3, 0.5, 0.3, -1)  # turns back on the kink, at a vertex
    assert transitions(units([1], [-0.3]), path).per_layer == {"1": 2}
    assert transitions(units([1], [-0.3]), path[:3]).total == 0


def test_units_that_coincide_count_one_each_at_one_place():
    weights = torch.tensor([1, 1, 3, -1 / 3, 1e-8, -1e8], dtype=torch.float64)
    found = transitions(units(weights, -0.7 * weights), line(0, 1), closed=False)
    assert int(found) == 6 and found.positions.unique().tolist() == pytest.approx([0.7])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ([0, 1, 2], 2),  # goes through at a vertex, and back from 2 to 0
        ([1, 2, 0], 2),  # through at the vertex that closes the path
        ([1, 2], 0),  # touches there
        ([1, 0], 0),
        ([0, 1, 1, 1, 2], 2),  # stays at a repeated vertex
        ([1, 1, 2, 0, 1], 2),
        ([1, 1, 1], 0),
    ],
)
def test_a_vertex_on_a_kink(path, expected):
    assert transitions(units([1], [-1]), line(*path)).total == expected
    assert transitions(units([-1], [1]), line(*path)).total == expected
    assert transitions(units([1], [-1]), line(*path), memory=1).total == expected


def test_a_unit_that_rests_on_its_kink_is_off_there():
    model = nn.Sequential(*units([-1, 1], [1, -2]), dense([[1.0, 1.0]]), nn.ReLU())
    found = transitions(model, line(0, 3), closed=False)
    assert found.per_layer == {"1": 2, "3": 2}
    torch.testing.assert_close(found.positions, line(1, 1, 2, 2)[:, 0] / 3)


def test_rounding_on_a_kink_is_no_change():
    model = nn.Sequential(dense([[0.1, 0.1]], -0.1), nn.ReLU())
    x = 10 * gaussian(30)
    path = torch.stack([x, 1 - x], 1)
    assert transitions(model, path, "sampled", 1000, progress=False).total > 10
    assert transitions(model, path).total == 0


def test_dead_units_and_none_at_all():
    assert transitions(units([0, 0, 1], [-1, 0, -99]), line(0, 1, 2)).total == 0
    found = transitions(nn.Linear(1, 3), line(0, 1))
    assert (found.total, found.per_layer, len(found.positions)) == (0, {}, 0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_without_biases_regions_are_cones(scale):
    model = network(1, bias=False, widths=(10, 10, 10), scale=1.0)
    x = scale * gaussian(3)
    assert transitions(model, torch.stack([0.1 * x, x, 7 * x])).total == 0
    through = transitions(model, torch.stack([-x, 3 * x]), closed=False)
    assert through.per_layer["act1"] == 10
    assert through.positions.unique().tolist() == pytest.approx([0.25])
    path = gaussian(6, 3, seed=2)
    assert transitions(model, scale * path).per_layer == transitions(model, path).per_layer


def test_three_states():
    model = units([1, 2], [0, 0], nn.Hardtanh)
    found = transitions(model, line(-3, 3), closed=False)
    torch.testing.assert_close(found.positions, line(2, 2.5, 3.5, 4)[:, 0] / 6)
    assert transitions(model, line(-1, 1)).total == 4  # unit 1 only touches
    assert transitions(model, line(-3, -1, 0, 1, 3)).total == 8
    assert transitions(units([1], [0], nn.Hardsigmoid), line(-4, 4)).total == 4
    assert transitions(units([1], [0], nn.ReLU6), line(0, 6, 7, 6, 5)).total == 2
    assert transitions(units([1], [0], nn.LeakyReLU), line(-1, 1)).total == 2


def test_samples_are_equidistant_and_miss_what_lies_between():
    model, path = units([1, -1], [-1, 9]), line(0, 12)
    for k, expected in ((2, 4), (3, 2), (4, 4), (24, 4)):
        assert transitions(model, path, "sampled", k, progress=False).total == expected
    narrow = units([1, 1], [-5.1, -5.2])
    assert transitions(narrow, line(0, 12), "sampled", 5, closed=False, progress=False).total == 2
    assert transitions(narrow, line(0, 5.15, 0), "sampled", 3, progress=False).total == 0
    found = transitions(units([1], [-2.5]), line(0, 1, 4), "sampled", 9, closed=False)
    assert found.segments.tolist() == [1]  # the sample after 2.5 is at 3
    assert found.fractions.tolist() == pytest.approx([2 / 3])


def test_samples_in_chunks_and_precisions():
    model, path = network(3), 3 * gaussian(7, 3)
    exact = transitions(model, path)
    for options in ({"memory": 10**5}, {}, {"dtype": torch.float32}):
        found = transitions(model, path, "sampled", 2**15, progress=False, **options)
        assert found.per_layer == exact.per_layer
        assert (found.positions - exact.positions).abs().max() < 1e-3
    assert transitions(model, path, dtype=torch.float32).per_layer == exact.per_layer


def test_several_paths_are_as_each_alone():
    model = network(5)
    paths = [2 * gaussian(size, 3, seed=size) for size in (2, 9, 3, 30)]
    paths.insert(2, torch.ones(4, 3, dtype=torch.float64))
    for closed in (True, False):
        alone = [transitions(model, path, closed=closed) for path in paths]
        for memory in (2**26, 5000, 1):
            for one, found in zip(
                alone, transitions(model, paths, "exact", 2, closed, memory=memory), strict=True
            ):
                assert one.per_layer == found.per_layer
                assert one.segments.tolist() == found.segments.tolist()
                torch.testing.assert_close(one.positions, found.positions)
        sampled = transitions(model, paths, "sampled", 2**15, closed, progress=False)
        assert [s.per_layer for s in sampled] == [one.per_layer for one in alone]


def test_memory_bounds_the_rows_whatever_the_path(monkeypatch):
    rows, kinks = [], walk.kinks
    monkeypatch.setattr(
        walk, "kinks", lambda step, r, *xs: rows.append(len(r)) or kinks(step, r, *xs)
    )
    model, memory = network(0, widths=(20, 20, 20)), 200_000
    for vertices in (2, 50, 3000):
        transitions(model, 10 * gaussian(vertices, 3), memory=memory)
        assert max(rows) * 20 * 8 * 4 < memory


def test_density_along_the_path():
    found = transitions(units([1, 1, 1], [-0.5, -1.5, -1.75]), line(0, 1, 2), closed=False)
    assert found.density(4).tolist() == [0, 4, 0, 8]
    found = transitions(network(2), gaussian(9, 3))
    assert float(found.density(7).mean()) == pytest.approx(int(found))
