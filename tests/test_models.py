"""The papers' networks: their sizes, the names of their layers, where their weights come from."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from replication import activations, models

CONVNET = ["conv1", "relu1", "conv2", "relu2", "pool", "flatten", "fc1", "relu3", "fc2"]


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def shapes(model, *size):
    """The shapes that the layers give, without the examples, in the order in which they ran."""
    recorded = activations.record(model, torch.zeros(2, *size))
    return {name: tuple(output.shape[1:]) for name, output in recorded.items()}


def test_the_mnist_convnet_is_the_notebook_s():
    model = models.build("mnist_convnet")
    assert count(model) == 1_199_882
    assert count(model) == (9 + 1) * 32 + (9 * 32 + 1) * 64 + (9216 + 1) * 128 + (128 + 1) * 10
    found = shapes(model, 1, 28, 28)
    assert list(found) == CONVNET == [name for name, _ in model.named_children()]
    assert found == {
        "conv1": (32, 26, 26),
        "relu1": (32, 26, 26),
        "conv2": (64, 24, 24),
        "relu2": (64, 24, 24),
        "pool": (64, 12, 12),
        "flatten": (9216,),
        "fc1": (128,),
        "relu3": (128,),
        "fc2": (10,),
    }


def test_the_convnet_takes_channels_and_classes():
    model = models.build("mnist_convnet", classes=3, channels=(2, 5))
    found = shapes(model, 1, 28, 28)
    assert (found["conv1"][0], found["conv2"][0], found["fc2"]) == (2, 5, (3,))


def test_the_default_mlp_has_one_hidden_layer_of_512():
    assert count(models.build("mlp")) == (784 + 1) * 512 + (512 + 1) * 10


@pytest.mark.parametrize("widths", [(), (7,), (7, 5, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_an_mlp_has_the_layers_asked_for(widths, bias):
    model = models.build("mlp", inputs=64, widths=widths, classes=4, bias=bias)
    sizes = [64, *widths, 4]
    assert count(model) == sum((a + bias) * b for a, b in pairwise(sizes))
    hidden = [name for i in range(1, len(widths) + 1) for name in (f"fc{i}", f"act{i}")]
    found = shapes(model, 1, 8, 8)
    assert list(found) == ["flatten", *hidden, f"fc{len(widths) + 1}"]
    assert [found[f"fc{i}"] for i in range(1, len(sizes))] == [(size,) for size in sizes[1:]]


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("relu6", lambda x: x.clamp(0, 6)),
        ("tanh", torch.tanh),
        ("hardtanh", lambda x: x.clamp(-1, 1)),
        ("hardsigmoid", lambda x: ((x + 3) / 6).clamp(0, 1)),
    ],
)
def test_activations_are_what_their_names_say(name, function):
    model = models.build("mlp", activation=name)
    x = torch.linspace(-8, 8, 101)
    torch.testing.assert_close(model.act1(x), function(x))


def test_every_activation_is_tested():
    assert set(models.ACTIVATIONS) == {"relu", "relu6", "tanh", "hardtanh", "hardsigmoid"}


@pytest.mark.parametrize("name", ["mlp", "mnist_convnet"])
def test_a_seed_means_the_same_weights(name):
    def weights(seed, dtype=torch.float32):
        return torch.cat(
            [p.detach().flatten() for p in models.build(name, seed, dtype).parameters()]
        )

    state = torch.get_rng_state()
    first = weights(1)
    torch.rand(5)  # whatever else is drawn in between
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))
    assert torch.equal(first.double(), weights(1, torch.float64))
    torch.set_rng_state(state)
    weights(1)
    assert torch.equal(state, torch.get_rng_state())


def test_the_dtype_is_that_of_every_parameter_and_of_the_output():
    model = models.build("mnist_convnet", 0, torch.float64, channels=(2, 2))
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(torch.zeros(1, 1, 28, 28, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("name", ["mlp", "mnist_convnet"])
def test_initial_weights_fill_the_interval_of_the_fan_in(name):
    layers = [m for m in models.build(name).modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers) == {"mlp": 2, "mnist_convnet": 4}[name]
    for layer in layers:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        for values in (layer.weight, layer.bias):
            assert values.abs().max() <= bound
        spread = layer.weight.std().item() / (bound / math.sqrt(3))  # 1 for a uniform one
        assert spread == pytest.approx(1, abs=5 / math.sqrt(layer.weight.numel()))
        assert layer.weight.mean().abs() < 5 * bound / math.sqrt(3 * layer.weight.numel())
        assert layer.weight.abs().max() > 0.95 * bound


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist_convnett", {}, "^model: .*did you mean 'mnist_convnet'"),
        ("mlp", {"width": 5}, "^model_options: .*width"),
        ("mlp", {"widths": 5}, "^model_options"),
        ("mnist_convnet", {"bias": False}, "^model_options: .*bias"),
        ("mlp", {"activation": "rellu"}, "^activation: .*did you mean 'relu'"),
    ],
)
def test_what_does_not_exist_is_named(name, options, message):
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        models.build(name, **options)
    assert torch.equal(state, torch.get_rng_state())
