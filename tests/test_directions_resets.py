"""Resets of layers, distances of weights."""

import copy
import math

import pytest
import torch

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


def test_a_block_goes_with_all_in_it_and_its_statistics():
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, s: resets.reset(m, s, ["fc9"]), "layers: no weights in 'fc9'.*fc"),
        (lambda m, s: resets.reset(m, s, ["act1"]), "layers: no weights in 'act1'"),
        (lambda m, s: resets.reset(m, {}, ["fc1"]), "state: expected 'fc1.weight'.*none"),
        (lambda m, s: resets.reset(m, {k: v[:1] for k, v in s.items()}, ["fc1"]), "state:.*shape"),
        (lambda m, s: resets.weight_distance(s, {}, ["fc1"]), "second: expected 'fc1.weight'"),
    ],
)
def test_bad_input_is_named(pair, call, message):
    with pytest.raises(ValueError, match=message):
        call(pair[0], pair[1].state_dict())
