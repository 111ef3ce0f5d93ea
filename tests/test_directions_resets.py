"""Resets of layers, batch statistics measured anew, distances of weights."""

import copy
import math

import pytest
import torch
from torch import nn

from replication import models
from replication.directions import resets


@pytest.fixture
def pair():
    """Return a network and another of the same architecture."""
    return [models.build("mlp", seed, inputs=4, widths=(5, 6), classes=3) for seed in (0, 1)]


@pytest.mark.parametrize("layers", [[], ["fc2"], ["fc1", "fc3"], ["fc1", "fc2", "fc3"]])
def test_reset_changes_its_layers_and_nothing_else(pair, layers):
    model, other = pair
    before = copy.deepcopy(model.state_dict())
    changed = resets.reset(model, other.state_dict(), layers).state_dict()
    for name, value in changed.items():
        source = other.state_dict() if name.split(".")[0] in layers else before
        assert torch.equal(value, source[name])
        assert torch.equal(model.state_dict()[name], before[name])
        assert value.data_ptr() != source[name].data_ptr()


def test_a_block_goes_with_all_in_it_and_its_statistics(pair):
    x = torch.rand(7, 4)
    torch.testing.assert_close(resets.recalibrate(pair[0], x)(x), pair[0](x))  # no batch norm
    model, other = (models.build("resnet", seed, depth=8, width=0.25) for seed in (0, 1))
    with torch.no_grad():
        other.train()(torch.rand(8, 3, 8, 8))
    changed = resets.reset(model, other.state_dict(), ["block2_1"]).state_dict()
    for name, value in changed.items():
        inside = name.startswith("block2_1.")
        assert torch.equal(value, (other if inside else model).state_dict()[name])
    mean = "block2_1.bn1.running_mean"
    assert not torch.equal(changed[mean], model.state_dict()[mean])


def test_distances_are_those_of_the_concatenated_weights(pair):
    first, second = (model.state_dict() for model in pair)
    found = resets.weight_distance(first, second, ["fc1", "fc2"])
    names = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    apart = torch.cat([(first[n] - second[n]).double().flatten() for n in names])
    assert found.l2 == pytest.approx(apart.norm().item())
    assert found.linf == pytest.approx(apart.abs().max().item())
    assert found.rms == pytest.approx(found.l2 / math.sqrt(len(apart)))
    assert resets.weight_distance(first, first, ["fc1"]) == resets.Distance(0, 0, 0)
    state = models.build("resnet", 0, depth=8, width=0.25).state_dict()  # statistics are no weights
    moved = {name: value + (100 if "running" in name else 0) for name, value in state.items()}
    assert resets.weight_distance(state, moved, ["bn1", "block1_1"]).l2 == 0


def test_recalibrated_statistics_are_those_of_the_images():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[1].running_mean += 50
    x = torch.rand(64, 3)
    changed = resets.recalibrate(model.train(), x, batch_size=64)
    inner = model[0](x)
    torch.testing.assert_close(changed[1].running_mean, inner.mean(0))
    torch.testing.assert_close(changed[1].running_var, inner.var(0))
    assert not any(module.training for module in changed.modules())
    assert model.training and model[1].running_mean.mean() > 40 and changed[1].momentum == 0.1
    batches = resets.recalibrate(model, x, batch_size=10)
    torch.testing.assert_close(batches[1].running_mean, inner.mean(0), rtol=0.05, atol=0.01)


def test_recalibration_makes_the_scale_of_the_layer_before_irrelevant():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, eps=1e-30)).double()
    x = torch.rand(50, 3, dtype=torch.float64)
    before = resets.recalibrate(model, x)(x)
    with torch.no_grad():
        model[0].weight *= 7
        model[0].bias += 3
    torch.testing.assert_close(resets.recalibrate(model, x)(x), before)
    assert not torch.allclose(model.eval()(x), before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, s: resets.reset(m, s, ["fc9"]), "layers: no weights in 'fc9'.*fc"),
        (lambda m, s: resets.reset(m, s, ["act1"]), "layers: no weights in 'act1'"),
        (lambda m, s: resets.reset(m, {}, ["fc1"]), "state: expected 'fc1.weight'.*none"),
        (lambda m, s: resets.reset(m, {k: v[:1] for k, v in s.items()}, ["fc1"]), "state:.*shape"),
        (lambda m, s: resets.weight_distance(s, {}, ["fc1"]), "second: expected 'fc1.weight'"),
        (lambda m, s: resets.recalibrate(m, torch.rand(1, 4)), "images: expected at least 2"),
    ],
)
def test_bad_input_is_named(pair, call, message):
    with pytest.raises(ValueError, match=message):
        call(pair[0], pair[1].state_dict())
