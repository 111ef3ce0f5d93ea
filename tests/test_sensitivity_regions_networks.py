"""Transitions of networks of other layers than dense ones, and networks that cannot be followed."""

from itertools import pairwise

import pytest
import torch
from _random_networks import gaussian
from torch import nn
from torch.nn import functional as F

from replication import models
from replication.sensitivity import transitions


def convnet():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"),
        *(nn.LeakyReLU(0.1), nn.BatchNorm2d(3), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)),
        nn.Sequential(nn.Conv2d(3, 4, 2), nn.Identity(), nn.ReLU6()),
        *(nn.AvgPool2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4, 6), nn.ReLU()),
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.relu, self.last = nn.ReLU(inplace=True), nn.Linear(3, 4)

    def forward(self, x):
        y = self.relu(self.first(x))
        y = self.relu(self.second(y)) + y
        y = F.adaptive_avg_pool2d(y, 2).view(x.size(0), 3, -1).mean(2)
        return F.hardtanh(self.last(F.dropout(y, training=self.training)), -0.2, 0.2)


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 3, padding=1)
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))

    def forward(self, x):
        y = torch.cat([self.first(x).relu(), F.relu(input=self.second(x))], dim=1)
        return F.leaky_relu(self.last(torch.flatten(y.mean((2, 3)), 1)), 0.2)


def resnet():
    return models.build("resnet", depth=8, width=0.25, channels=1)


@pytest.mark.parametrize("build", [convnet, Residual, Joined, resnet])
def test_other_layers_agree_with_samples(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean += 0.2
            layer.running_var.fill_(0.3)
    path = 2 * gaussian(3, 1, 7, 7)
    found = transitions(model, path)
    sampled = transitions(model, path, "sampled", 2**14, progress=False)
    assert found.per_layer == sampled.per_layer and int(found) > 100
    assert (sampled.positions - found.positions).abs().max() < 1e-3
    in_blocks = transitions(model, path, memory=10**5)
    assert (in_blocks.per_layer, in_blocks.switches) == (found.per_layer, found.switches)
    if build is Residual:
        assert list(found.per_layer) == ["relu", "relu#2", "hardtanh"]
    if build is resnet:
        assert list(found.per_layer)[:3] == ["act1", "block1_1.act1", "block1_1.act2"]


def test_switches_of_max_pooling():
    with torch.random.fork_rng(devices=[]):  # samples miss a switch and back between two of them
        torch.manual_seed(0)
        model, path = convnet().double(), 2 * gaussian(3, 1, 7, 7)
    weights = torch.arange(5000, dtype=torch.float64).view(-1, 1, 1, 1) / 5000
    x = torch.cat([torch.lerp(*ends, weights) for ends in pairwise([*path, path[0]])])
    with torch.no_grad():
        which = F.max_pool2d(model.eval()[:3](x), 3, 2, 1, 1, True, return_indices=True)[1]
    assert transitions(model, path).switches == {"3": int((which != which.roll(1, 0)).sum())}
    pool = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))  # rectified ties switch nothing
    path = torch.tensor([[-1.0, -1, -1, -1], [2, -1, -1, -1], [2, 3, -1, -1]]).view(3, 1, 2, 2)
    assert transitions(pool, path).switches == {"1": 1}


@pytest.mark.parametrize("closed", [True, False])
def test_several_paths_through_max_pooling_are_as_each_alone(closed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = convnet()
    paths = [2 * gaussian(size, 1, 7, 7, seed=size) for size in (3, 2, 5, 4)]
    alone = [transitions(model, path, closed=closed) for path in paths]
    for memory in (2**26, 10**5):
        together = transitions(model, paths, closed=closed, memory=memory)
        for single, result in zip(alone, together, strict=True):
            assert (single.per_layer, single.switches) == (result.per_layer, result.switches)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Mixing(nn.Module):
    def forward(self, x):
        return torch.relu(x - x.mean(0, keepdim=True))


def mlp(**options):
    return models.build("mlp", **{"inputs": 3, "widths": (4,)} | options)


def spoiled():
    model = mlp(bias=False)
    model.fc1.weight.data[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (mlp(activation="tanh"), "'act1' is a Tanh, which is smooth"),
        (nn.Sequential(nn.LayerNorm(3)), "'0' is a LayerNorm, which is not supported; expected"),
        (nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), "no running statistics"),
        (Branching(), "torch.fx cannot trace"),
        (spoiled(), "finite weights, but 'fc1' gives NaN"),
        (Mixing(), "one row an example|is not supported"),
        (mlp(inputs=4), "path: examples of shape .3,. do not fit the model, whose 'fc1'"),
    ],
)
def test_networks_that_cannot_be_followed(model, message):
    with pytest.raises(ValueError, match=message):
        transitions(model, gaussian(4, 3))
