"""Projections: closed forms, what they leave alone, networks that go on from them."""

import numpy as np
import pytest
import torch
from torch import nn

from replication import similarity
from replication.directions.projection import onto_directions, onto_neurons, projected


def layer(examples=60, neurons=6, seed=0, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    mixed = torch.randn(neurons, neurons, generator=source, dtype=dtype)
    return torch.randn(examples, neurons, generator=source, dtype=dtype) @ mixed + 3


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-4), (torch.float64, 1e-10)], ids=["float32", "float64"]
)
def test_it_is_the_least_squares_fit_of_the_neurons(dtype, rtol):
    x = layer(dtype=dtype)
    directions = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=dtype)
    found = onto_directions(x, directions)(x)
    design = np.c_[np.ones(len(x)), (x @ directions).numpy()]
    expected = design @ np.linalg.lstsq(design, x.numpy(), rcond=None)[0]
    assert found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), expected, rtol=rtol, atol=100 * rtol)


def test_all_directions_change_nothing_and_it_is_a_projection():
    x = layer()
    torch.testing.assert_close(onto_directions(x.numpy(), np.eye(6))(x), x)
    once = onto_directions(x, torch.eye(6)[:, :3])
    torch.testing.assert_close(once(once(x)), once(x))
    torch.testing.assert_close(once(x)[:, :3], x[:, :3])  # what spans the directions is kept


def test_directions_of_cca_keep_their_correlations():
    x, y = layer(200), layer(200, seed=3)
    y[:, :2] = x[:, :2] + 0.1 * y[:, :2]
    found = similarity.cca(x, y)
    kept = onto_directions(x, found.x_directions[:, :2])(x)
    rho = similarity.cca(kept, y).correlations
    assert len(rho) == 2  # that is all the rank that is left
    torch.testing.assert_close(rho, found.correlations[:2])


def test_copies_zeros_and_a_constant_neuron_are_passed_over():
    x = layer()
    x[:, 5] = 7
    w = torch.eye(6, dtype=x.dtype)[:, :2]
    expected = onto_directions(x, w)(x)
    several = torch.cat([w, 2 * w, torch.zeros(6, 1, dtype=x.dtype), torch.eye(6)[:, 5:]], 1)
    torch.testing.assert_close(onto_directions(x, several)(x), expected)
    assert (expected[:, 5] == 7).all()
    nothing = onto_directions(x, torch.zeros(6, 1))(x)
    torch.testing.assert_close(nothing, x.mean(0).expand_as(x))


def test_neurons_are_kept_and_the_others_held_at_their_mean():
    x = layer()
    found = onto_neurons(x, [4, 1])(x)
    torch.testing.assert_close(found[:, [1, 4]], x[:, [1, 4]])
    torch.testing.assert_close(found[:, [0, 2, 3, 5]], x.mean(0)[[0, 2, 3, 5]].expand(60, 4))


def test_maps_are_projected_position_by_position_or_as_a_whole():
    maps = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    vectors = maps.movedim(1, -1).reshape(-1, 3)
    by_channel = onto_directions(vectors, torch.eye(3)[:, :2])
    torch.testing.assert_close(by_channel(maps).movedim(1, -1).reshape(-1, 3), by_channel(vectors))
    whole = onto_neurons(maps.flatten(1), [0])
    torch.testing.assert_close(whole(maps).flatten(1), whole(maps.flatten(1)))


def test_a_network_goes_on_from_projected_layers_and_is_itself_afterwards():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(20, 4)
    hidden = model[:2](x)
    some = onto_neurons(hidden, [0, 3])
    with projected(model, {"1": some}) as changed, torch.no_grad():
        torch.testing.assert_close(changed(x), model[2](some(hidden)))
        assert not torch.allclose(changed(x), model[2](hidden))
    torch.testing.assert_close(model(x), model[2](hidden))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: onto_directions(x, torch.eye(5)), "directions: .*6 neurons.*5, 5"),
        (lambda x: onto_neurons(x, [0, 6]), "neurons: expected 0 to 5, found 6"),
        (lambda x: onto_neurons(x, [0])(x[:, :4]), "x: expected 6 neurons"),
        (lambda x: projected(nn.Sequential(), {"fc": None}).__enter__(), "layers: no layer 'fc'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(layer())
