"""What holds for every network: sizes, names, seeds, options; and the MLP and the MNIST convnet."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from replication import activations, models

# Every network, made small, for images of 1x28x28; and what differs for 3x32x32.
MNIST = {
    "mlp": {"widths": (6, 5), "batch_norm": True, "dropout": 0.2},
    "mnist_convnet": {"channels": (2, 3)},
    "small_alexnet": {"channels": 1, "width": 0.05, "dropout": 0.2},
    "small_inception": {"channels": 1, "width": 0.05, "dropout": 0.2},
    "morcos_convnet": {"channels": 1, "width": 0.05, "dropout": 0.2},
    "svcca_convnet": {"channels": 1, "size": 28, "width": 0.1},
    "tiny10": {"channels": 1, "width": 0.3},
    "plain": {"channels": 1, "width": 0.08, "depth": 18},
    "resnet": {"channels": 1, "width": 0.3, "depth": 8},
    "row_lstm": {"units": 6},
    "vit": {"channels": 1, "size": 28, "width": 12, "heads": 3, "depth": 2},
}
SIZED = {"small_alexnet", "svcca_convnet", "row_lstm", "vit"}
every_model = pytest.mark.parametrize("name", MNIST)


def small(name, seed=0, dtype=torch.float64, **options):
    return models.build(name, seed, dtype, **{**MNIST[name], **options})


def draw(*size, dtype=torch.float32):
    return torch.randn(*size, generator=torch.Generator().manual_seed(3), dtype=dtype)


def digits(count, dtype=torch.float64):
    return draw(count, 1, 28, 28, dtype=dtype)


def count(model, norms=True):
    kinds = () if norms else (nn.BatchNorm1d, nn.BatchNorm2d)
    return sum(
        parameter.numel()
        for module in model.modules()
        if not isinstance(module, kinds)
        for parameter in module.parameters(recurse=False)
    )


def shapes(model, *size):
    """Return the shapes of the layers of the top level, without the examples, as they ran."""
    recorded = activations.record(model, torch.zeros(2, *size))
    return {key: tuple(value.shape[1:]) for key, value in recorded.items() if "." not in key}


def test_the_mnist_convnet_is_the_notebook_s():
    model = models.build("mnist_convnet")
    names = ["conv1", "relu1", "conv2", "relu2", "pool", "flatten", "fc1", "relu3", "fc2"]
    sizes = [(32, 26, 26)] * 2 + [(64, 24, 24)] * 2 + [(64, 12, 12), (9216,), (128,), (128,), (10,)]
    assert shapes(model, 1, 28, 28) == dict(zip(names, sizes, strict=True))
    own = shapes(models.build("mnist_convnet", classes=3, channels=(2, 5)), 1, 28, 28)
    assert (own["conv1"][0], own["conv2"][0], own["fc2"]) == (2, 5, (3,))


def test_he_weights_keep_the_size_of_signals_in_a_deep_mlp():
    inputs = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    sizes = {
        init: models.build("mlp", inputs=300, widths=[300] * 15, bias=bias, init=init)(inputs).std()
        for init, bias in (("torch", False), ("he", True))
    }
    assert sizes["torch"] < 1e-4 and 0.3 < sizes["he"] < 5
    assert models.build("mlp", init="he").fc1.bias.abs().max() == 0


@pytest.mark.parametrize(("name", "last"), [("morcos_convnet", "act11"), ("tiny10", "act8")])
def test_he_weights_keep_the_size_of_signals_without_batch_norm(name, last):
    sizes = {}
    for init in ("torch", "he"):
        model = models.build(name, batch_norm=False, init=init)
        maps = activations.record(model, draw(20, 3, 32, 32), [last])[last]
        sizes[init] = (maps - maps.mean(0)).std()  # what tells examples apart
    assert sizes["torch"] < 0.01 and 0.1 < sizes["he"] < 5
    assert model.conv1.bias.abs().max() == 0 and model.fc.bias.abs().max() > 0
    with pytest.raises(ValueError, match=r"^init: .*'hee'"):
        models.build(name, init="hee")


@pytest.mark.parametrize(
    ("widths", "bias", "extra"),
    [((), True, ("bn", "drop")), ((7, 5, 3), False, ()), ((7, 5), True, ("bn", "drop"))],
)
def test_an_mlp_has_the_layers_asked_for(widths, bias, extra):
    regular = {"batch_norm": "bn" in extra, "dropout": 0.25 * ("drop" in extra)}
    model = models.build("mlp", inputs=64, widths=widths, classes=4, bias=bias, **regular)
    sizes = [64, *widths, 4]
    norms = 2 * sum(widths) * ("bn" in extra)
    assert count(model) == sum((a + bias) * b for a, b in pairwise(sizes)) + norms
    kinds = [kind for kind in ("fc", "bn", "act", "drop") if kind in ("fc", "act", *extra)]
    hidden = [f"{kind}{i}" for i in range(1, len(widths) + 1) for kind in kinds]
    layers = shapes(model, 1, 8, 8)
    assert list(layers) == ["flatten", *hidden, f"fc{len(widths) + 1}"]
    assert [layers[f"fc{i}"] for i in range(1, len(sizes))] == [(size,) for size in sizes[1:]]


FUNCTIONS = {
    "relu": lambda x: x.clamp(min=0),
    "relu6": lambda x: x.clamp(0, 6),
    "tanh": torch.tanh,
    "hardtanh": lambda x: x.clamp(-1, 1),
    "hardsigmoid": lambda x: ((x + 3) / 6).clamp(0, 1),
}


def test_activations_are_what_their_names_say():
    assert set(models.ACTIVATIONS) == set(FUNCTIONS) and set(models.MODELS) == set(MNIST)
    x = torch.linspace(-8, 8, 101)
    for name, function in FUNCTIONS.items():
        torch.testing.assert_close(models.build("mlp", activation=name).act1(x), function(x))


@every_model
def test_a_seed_means_the_same_weights(name):
    def weights(seed, dtype=torch.float32):
        return torch.cat([p.detach().flatten() for p in small(name, seed, dtype).parameters()])

    first = weights(1)
    torch.rand(5)  # whatever else is drawn in between
    state = torch.get_rng_state()
    assert torch.equal(first, weights(1)) and not torch.equal(first, weights(2))
    assert torch.equal(first.double(), weights(1, torch.float64))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("switch", [{"batch_norm": True}, {"dropout": 0.5}])
@pytest.mark.parametrize("name", ["mlp", "morcos_convnet", "small_inception"])
def test_networks_with_and_without_a_regulariser_start_from_the_same_weights(name, switch):
    off = {"batch_norm": False, "dropout": 0.0}
    without, regular = (small(name, 5, **{**off, **added}).state_dict() for added in ({}, switch))
    assert len(without) < len(regular) or "dropout" in switch
    assert all(torch.equal(without[key], regular[key]) for key in without)


@pytest.mark.parametrize("size", [(1, 28, 28), (3, 32, 32)], ids=["mnist", "cifar10"])
@every_model
def test_logits_for_the_images_of_mnist_and_cifar10(name, size):
    options = {"classes": 7}
    if size[0] == 3:
        if name == "mnist_convnet":
            pytest.skip("made for MNIST only")
        options |= {"inputs": 3072} if name == "mlp" else {"channels": 3}
        options |= {"size": 32} if name in SIZED else {}
    model = small(name, 0, torch.float32, **options)
    assert model(draw(3, *size)).shape == (3, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_model
def test_a_step_of_training_is_finite_and_reaches_every_parameter(name, dtype):
    model, images, labels = small(name, 0, dtype), digits(6, dtype), torch.arange(6)
    before = copy.deepcopy(model.state_dict())
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).step()
    assert loss.dtype == dtype and loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for key, parameter in model.named_parameters():
        assert parameter.ndim == 1 or not torch.equal(parameter, before[key])


@every_model
def test_in_eval_mode_logits_depend_on_nothing_but_the_example_and_the_state(name):
    model, images = small(name), digits(5)
    model(images)  # running means are part of the state
    logits = model.eval()(images)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(logits, alone, rtol=0, atol=1e-12)
    assert alone.std(0).max() > 1e-9  # and do depend on the example
    other = small(name, 1).eval()
    assert not torch.equal(other(images), logits)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images), logits)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images), logits, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@every_model
def test_networks_run_as_one_batched_program(name, train):
    off = {} if "dropout" not in MNIST[name] else {"dropout": 0.0}  # masks would differ
    members, images = [small(name, seed, **off).train(train) for seed in range(3)], digits(4)
    parameters, buffers = stack_module_state(members)

    def forward(own_parameters, own_buffers):
        return functional_call(members[0], (own_parameters, own_buffers), (images,))

    together = vmap(forward)(parameters, buffers)
    alone = torch.stack([model(images) for model in members])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


@every_model
def test_layers_are_recorded_in_the_order_in_which_they_stand(name):
    model = small(name, 0, torch.float32)
    assert not any(getattr(module, "inplace", False) for module in model.modules())
    assert isinstance(model, nn.Sequential)
    recorded = activations.record(model, torch.zeros(2, 1, 28, 28))
    top = [key for key in recorded if "." not in key]
    assert top == [key for key, _ in model.named_children()]
    leaves = {key for key, module in model.named_modules() if key and not list(module.children())}
    assert leaves <= set(recorded)  # nothing is hidden in a fused kernel, nothing is unused


@pytest.mark.gpu
@every_model
def test_a_gpu_gives_the_logits_of_the_cpu(name):
    model, images = small(name).eval(), digits(4)
    expected = model(images)
    logits = model.to("cuda", memory_format=torch.channels_last)(images.cuda())
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-8, atol=1e-10)


def test_initial_weights_fill_the_interval_of_the_fan_in():
    modules = [*models.build("mlp").modules(), *models.build("mnist_convnet").modules()]
    layers = [module for module in modules if isinstance(module, nn.Linear | nn.Conv2d)]
    assert len(layers) == 6
    for layer in layers:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        for values in (layer.weight, layer.bias):
            assert values.abs().max() <= bound
        spread = layer.weight.std().item() / (bound / math.sqrt(3))  # 1 for a uniform one
        assert spread == pytest.approx(1, abs=5 / math.sqrt(layer.weight.numel()))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist_convnett", {}, "^model: .*did you mean 'mnist_convnet'"),
        ("mlp", {"width": 5}, "^model_options: .*width"),
        ("mlp", {"activation": "rellu", "widths": ()}, "^activation: .*did you mean 'relu'"),
        ("mlp", {"widths": (5, 0)}, "^widths: .*>= 1.*0"),
        ("mlp", {"bias": "no"}, "^bias: .*True or False.*'no'"),
        ("mlp", {"dropout": 1.0}, r"^dropout: .*\[0, 1\).*1.0"),
        ("small_inception", {"width": 0}, "^width: .*finite.*> 0.*found 0"),
        ("morcos_convnet", {"dropout": True}, "^dropout: .*True"),
        ("svcca_convnet", {"size": 3}, "^size: .*>= 4.*3"),
        ("plain", {"depth": 20}, "^depth: .*8n \\+ 2.*20"),
        ("resnet", {"depth": 18}, "^depth: .*6n \\+ 2.*18"),
        ("resnet", {"classes": 0}, "^classes: .*0"),
        ("vit", {"patch": 5}, "^patch: .*size 32.*5"),
        ("vit", {"heads": 3}, "^heads: .*width 64.*3"),
    ],
)
def test_what_does_not_exist_is_named(name, options, message):
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        models.build(name, **options)
    assert torch.equal(state, torch.get_rng_state())
