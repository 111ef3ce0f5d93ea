"""What holds for every network: sizes, names, seeds, options; and the MLP and the MNIST convnet."""

import copy
import math
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from replication import activations, models

CONVNET = ["conv1", "relu1", "conv2", "relu2", "pool", "flatten", "fc1", "relu3", "fc2"]

# Every network, made small, for images of 1x28x28 and of 3x32x32; None where it takes no such size.
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
    "resnet18": {"channels": 1, "width": 0.05},
    "row_lstm": {"units": 6},
    "vit": {"channels": 1, "size": 28, "width": 12, "heads": 3, "depth": 2},
}
CIFAR = {
    "mlp": {**MNIST["mlp"], "inputs": 3072},
    "mnist_convnet": None,
    "small_alexnet": {**MNIST["small_alexnet"], "channels": 3, "size": 32},
    "svcca_convnet": {**MNIST["svcca_convnet"], "channels": 3, "size": 32},
    "row_lstm": {**MNIST["row_lstm"], "channels": 3, "size": 32},
    "vit": {**MNIST["vit"], "channels": 3, "size": 32},
    **{
        name: {**MNIST[name], "channels": 3}
        for name in ("small_inception", "morcos_convnet", "tiny10", "plain", "resnet", "resnet18")
    },
}
every_model = pytest.mark.parametrize("name", MNIST)


def small(name, seed=0, dtype=torch.float64, **options):
    return models.build(name, seed, dtype, **{**MNIST[name], **options})


def draw(count, dtype=torch.float64, size=(1, 28, 28)):
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(3), dtype=dtype)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def shapes(model, *size):
    """Return the shapes that the layers give, without the examples, in the order they ran in."""
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
@pytest.mark.parametrize("extra", [(), ("bn",), ("drop",), ("bn", "drop")])
def test_an_mlp_has_the_layers_asked_for(widths, bias, extra):
    regular = {"batch_norm": "bn" in extra, "dropout": 0.25 * ("drop" in extra)}
    model = models.build("mlp", inputs=64, widths=widths, classes=4, bias=bias, **regular)
    sizes = [64, *widths, 4]
    norms = 2 * sum(widths) * ("bn" in extra)
    assert count(model) == sum((a + bias) * b for a, b in pairwise(sizes)) + norms
    kinds = [kind for kind in ("fc", "bn", "act", "drop") if kind in ("fc", "act", *extra)]
    hidden = [f"{kind}{i}" for i in range(1, len(widths) + 1) for kind in kinds]
    found = shapes(model, 1, 8, 8)
    assert list(found) == ["flatten", *hidden, f"fc{len(widths) + 1}"]
    assert [found[f"fc{i}"] for i in range(1, len(sizes))] == [(size,) for size in sizes[1:]]


FUNCTIONS = {
    "relu": lambda x: x.clamp(min=0),
    "relu6": lambda x: x.clamp(0, 6),
    "tanh": torch.tanh,
    "hardtanh": lambda x: x.clamp(-1, 1),
    "hardsigmoid": lambda x: ((x + 3) / 6).clamp(0, 1),
}


@pytest.mark.parametrize(("name", "function"), FUNCTIONS.items(), ids=FUNCTIONS)
def test_activations_are_what_their_names_say(name, function):
    model = models.build("mlp", activation=name)
    x = torch.linspace(-8, 8, 101)
    torch.testing.assert_close(model.act1(x), function(x))


def test_every_activation_is_tested():
    assert set(models.ACTIVATIONS) == set(FUNCTIONS)


@every_model
def test_a_seed_means_the_same_weights(name):
    def weights(seed, dtype=torch.float32):
        return torch.cat([p.detach().flatten() for p in small(name, seed, dtype).parameters()])

    state = torch.get_rng_state()
    first = weights(1)
    torch.rand(5)  # whatever else is drawn in between
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))
    assert torch.equal(first.double(), weights(1, torch.float64))
    torch.set_rng_state(state)
    weights(1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("switch", [{"batch_norm": True}, {"dropout": 0.5}])
@pytest.mark.parametrize("name", ["mlp", "small_alexnet", "morcos_convnet", "small_inception"])
def test_networks_with_and_without_a_regulariser_start_from_the_same_weights(name, switch):
    off = {"batch_norm": False, "dropout": 0.0}
    one, other = (small(name, 5, **{**off, **added}).state_dict() for added in ({}, switch))
    assert len(one) < len(other) or "dropout" in switch
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("table", "size"), [(MNIST, (1, 28, 28)), (CIFAR, (3, 32, 32))], ids=["mnist", "cifar10"]
)
@every_model
def test_logits_for_the_images_of_mnist_and_cifar10(name, table, size):
    if table[name] is None:
        pytest.skip("made for MNIST only")
    model = models.build(name, **table[name], classes=7)
    assert model(draw(3, torch.float32, size)).shape == (3, 7)


def test_the_tables_above_name_every_model():
    assert set(MNIST) == set(CIFAR) == set(models.MODELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_model
def test_a_step_of_training_is_finite_and_reaches_every_parameter(name, dtype):
    model, images, labels = small(name, 0, dtype), draw(6, dtype), torch.arange(6)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    assert loss.dtype == dtype and loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    weights = {key for key, p in model.named_parameters() if p.ndim > 1}
    assert weights <= moved


@every_model
def test_an_example_s_logits_do_not_depend_on_its_batch(name):
    model, images = small(name).eval(), draw(5)
    one_by_one = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), one_by_one, rtol=0, atol=1e-12)
    assert one_by_one.std(0).max() > 1e-9  # and do depend on the example


@every_model
def test_weights_and_modules_can_be_stored(name):
    model, images = small(name, 0), draw(4)
    model(images)  # running means are part of the state
    model.eval()
    other = small(name, 1).eval()
    assert not torch.equal(other(images), model(images))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images), model(images))
    assert torch.equal(pickle.loads(pickle.dumps(model))(images), model(images))


@every_model
def test_the_layout_in_memory_changes_nothing(name):
    model, images = small(name).eval(), draw(4)
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@every_model
def test_networks_run_as_one_batched_program(name, train):
    off = {} if "dropout" not in MNIST[name] else {"dropout": 0.0}  # masks would differ
    members, images = [small(name, seed, **off).train(train) for seed in range(3)], draw(4)
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
    found = shapes(model, 1, 28, 28)
    top = [key for key in found if "." not in key]
    assert top == [key for key, _ in model.named_children()]
    leaves = {key for key, module in model.named_modules() if key and not list(module.children())}
    assert leaves <= set(found)  # nothing is hidden in a fused kernel, nothing is unused


@pytest.mark.gpu
@every_model
def test_a_gpu_gives_the_logits_of_the_cpu(name):
    model, images = small(name).eval(), draw(4)
    expected = model(images)
    found = model.to("cuda", memory_format=torch.channels_last)(images.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-8, atol=1e-10)


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
        ("mlp", {"activation": "rellu", "widths": ()}, "^activation: "),
        ("mlp", {"activation": None}, "^activation: .*None"),
        ("mlp", {"widths": (5, 0)}, "^widths: .*>= 1.*0"),
        ("mlp", {"inputs": 2.5}, "^inputs: .*2.5"),
        ("mlp", {"bias": "no"}, "^bias: .*True or False.*'no'"),
        ("mlp", {"batch_norm": 1}, "^batch_norm: .*True or False.*1"),
        ("mlp", {"dropout": 1.0}, r"^dropout: .*\[0, 1\).*1.0"),
        ("small_alexnet", {"size": 0}, "^size: .*0"),
        ("small_alexnet", {"dropout": -0.1}, "^dropout: .*-0.1"),
        ("small_inception", {"channels": 0}, "^channels: .*0"),
        ("small_inception", {"width": 0}, "^width: .*finite.*> 0.*found 0"),
        ("morcos_convnet", {"width": float("inf")}, "^width: .*finite.*found inf"),
        ("morcos_convnet", {"dropout": True}, "^dropout: .*True"),
        ("svcca_convnet", {"size": 3}, "^size: .*>= 4.*3"),
        ("tiny10", {"activation": "gelu"}, "^activation: .*'gelu'"),
        ("plain", {"depth": 20}, "^depth: .*8n \\+ 2.*20"),
        ("plain", {"depth": 2}, "^depth: .*>= 10.*2"),
        ("resnet", {"depth": 18}, "^depth: .*6n \\+ 2.*18"),
        ("resnet18", {"classes": 0}, "^classes: .*0"),
        ("row_lstm", {"units": 0}, "^units: .*0"),
        ("row_lstm", {"layers": 0}, "^layers: .*0"),
        ("vit", {"patch": 5}, "^patch: .*size 32.*5"),
        ("vit", {"heads": 3}, "^heads: .*width 64.*3"),
        ("vit", {"mlp_ratio": -1}, "^mlp_ratio: .*-1"),
        ("vit", {"depth": 0}, "^depth: .*0"),
    ],
)
def test_what_does_not_exist_is_named(name, options, message):
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        models.build(name, **options)
    assert torch.equal(state, torch.get_rng_state())
