"""What `activations.record` promises: names, values, copies, modes, hooks, memory."""

import warnings
import weakref
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from replication import activations, models
from replication._core.vision import models as torchvision_models
from replication.activations import record


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


pytestmark = pytest.mark.usefixtures("own_random_numbers")


def convnet():
    """Every kind of layer that a hand-run can follow: batch norm, dropout, in-place ReLU, views."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 4, 3),
            norm=nn.BatchNorm2d(4),
            relu=nn.ReLU(inplace=True),
            drop=nn.Dropout(0.5),
            pool=nn.AvgPool2d(2),
            flatten=nn.Flatten(),
            identity=nn.Identity(),
            fc=nn.Linear(36, 3),
        )
    ).double()


def by_hand(model, x):
    """Return what each child of a Sequential gives in eval mode, each from a copy of its input."""
    modes = [m.training for m in model.modules()]
    model.eval()
    found = {}
    with torch.no_grad():
        for name, child in model.named_children():
            x = child(x.clone())
            found[name] = x.clone()
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return found


def assert_clean(model):
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Calls(nn.Module):
    """A network whose forward pass is the given function of (self, x)."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


# --- names, order, values ----------------------------------------------------------------------


def test_every_layer_in_forward_order_with_its_values():
    model, images = convnet(), draw(5, 1, 8, 8)
    expected = by_hand(model, images)
    found = record(model, images)
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12)
    assert {name: tuple(v.shape[1:]) for name, v in found.items()} == {
        **dict.fromkeys(("conv", "norm", "relu", "drop"), (4, 6, 6)),
        "pool": (4, 3, 3),
        "flatten": (36,),
        "identity": (36,),
        "fc": (3,),
    }


def test_forward_order_is_that_of_the_calls_and_not_of_the_definition():
    model = Calls(
        lambda self, x: self.first(self.second(x)), first=nn.Linear(2, 2), second=nn.Linear(2, 2)
    )
    assert list(record(model, draw(3, 2, dtype=torch.float32))) == ["second", "first"]


def test_a_block_comes_after_its_parts_and_containers_only_when_asked():
    inner = nn.Sequential(OrderedDict(a=nn.Linear(2, 3), b=nn.Tanh()))
    model = nn.Sequential(OrderedDict(body=inner, head=nn.Linear(3, 1)))
    images = draw(4, 2, dtype=torch.float32)
    assert list(record(model, images)) == ["body.a", "body.b", "head"]
    asked = record(model, images, layers=["body"])
    assert list(asked) == ["body"]
    assert torch.equal(asked["body"], record(model, images)["body.b"])


def test_layers_chooses_and_keeps_forward_order():
    model, images = convnet(), draw(5, 1, 8, 8)
    found = record(model, images, layers=["fc", "conv"])
    assert list(found) == ["conv", "fc"]
    assert torch.equal(found["fc"], record(model, images)["fc"])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 7, 100, np.int64(3)])
def test_the_batch_size_does_not_matter(batch_size):
    model, images = convnet(), draw(7, 1, 8, 8)
    whole = record(model, images, batch_size=7)
    parts = record(model, images, batch_size=batch_size)
    assert list(parts) == list(whole)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-12)


def test_a_model_without_parameters():
    found = record(nn.Sequential(nn.Tanh()), draw(3, 2))
    assert torch.equal(found["0"], draw(3, 2).tanh())


def test_a_module_called_again_has_a_number():
    model = Calls(
        lambda self, x: self.relu(self.two(self.relu(self.one(x)))),
        one=nn.Linear(3, 4),
        two=nn.Linear(4, 5),
        relu=nn.ReLU(),
    ).double()
    images = draw(5, 3)
    found = record(model, images, batch_size=2)  # numbers start again with every batch
    assert list(found) == ["one", "relu", "two", "relu#2"]
    assert torch.equal(found["relu"], found["one"].relu())
    assert torch.equal(found["relu#2"], found["two"].relu())
    assert list(record(model, images, layers=["relu"])) == ["relu", "relu#2"]
    assert list(record(model, images, layers=["relu#2"])) == ["relu#2"]
    with pytest.raises(ValueError, match=r"layers: 'relu#3' gave no output"):
        record(model, images, layers=["relu#3"])


def test_a_module_under_two_names_counts_under_its_first():
    shared = nn.Linear(3, 3)
    model = Calls(lambda self, x: self.b(self.a(x)), a=shared, b=shared).double()
    found = record(model, draw(2, 3))
    assert list(found) == ["a", "a#2"]
    with torch.no_grad():
        torch.testing.assert_close(found["a#2"], shared(found["a"]), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"layers: no layer 'b'"):
        record(model, draw(2, 3), layers=["b"])


def test_resnet_blocks_are_recorded():
    model = torchvision_models.resnet18(weights=None).double()
    images = draw(2, 3, 32, 32)
    found = record(model, images)
    names = list(found)
    assert names[:4] == ["conv1", "bn1", "relu", "maxpool"] and names[-2:] == ["avgpool", "fc"]
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [name for name in names if name in blocks] == blocks
    model.eval()
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            for block in stage:
                x = block(x)
                torch.testing.assert_close(found[blocks.pop(0)], x, rtol=0, atol=1e-10)
        torch.testing.assert_close(found["fc"], model(images), rtol=0, atol=1e-10)
    # A block's one ReLU is in place and runs twice.
    first = found["layer1.0.bn1"]
    assert (first < 0).any() and torch.equal(found["layer1.0.relu"], first.relu())
    assert torch.equal(found["layer1.0.relu#2"], found["layer1.0"])


# --- outputs that are not one tensor -----------------------------------------------------------


def test_lstm_outputs_and_hidden_states():
    model = Calls(lambda self, x: self.lstm(x)[0], lstm=nn.LSTM(3, 4, 2, batch_first=True))
    images = draw(5, 6, 3, dtype=torch.float32)
    with pytest.warns(UserWarning, match="left out") as caught:
        found = record(model, images)
    assert list(found) == ["lstm[0]"] and found["lstm[0]"].shape == (5, 6, 4)
    with torch.no_grad():
        torch.testing.assert_close(found["lstm[0]"], model(images))
    messages = [str(w.message) for w in caught]
    assert len(messages) == 2 and "'lstm[1][0]' gave shape (2, 5, 4) for 5 examples" in messages[0]
    assert {w.filename for w in caught} == {__file__}
    assert list(record(model, images, layers=["lstm[0]"])) == ["lstm[0]"]
    for name in ("lstm[1][0]", "lstm"):
        with pytest.raises(ValueError, match=r"layers: 'lstm\[1\]\[0\]' gave shape \(2, 5, 4\)"):
            record(model, images, layers=[name])
    assert_clean(model)


@pytest.mark.parametrize("examples", [4, 5])  # 2 + 2 and 2 + 2 + 1
def test_hidden_states_with_as_many_rows_as_one_batch_are_left_out(examples):
    layers = 1 if examples == 5 else 3
    model = Calls(lambda self, x: self.lstm(x)[0], lstm=nn.LSTM(3, 4, layers, batch_first=True))
    images = draw(examples, 6, 3, dtype=torch.float32)
    with pytest.warns(UserWarning, match="left out") as caught:
        found = record(model, images, batch_size=2 if layers == 1 else 3)
    assert {name: len(v) for name, v in found.items()} == {"lstm[0]": examples}
    assert len(caught) == 2  # once each, whatever the number of batches


def test_dicts_lists_nesting_none_and_other_objects():
    def outputs(self, x):
        return {"a": x, "deep": [x + 1, (None, {"z": x + 2})], "text": "no tensor", "none": None}

    part = Calls(outputs)
    model = Calls(lambda self, x: self.part(x)["a"], part=part)
    images = draw(3, 2)
    found = record(model, images)
    assert list(found) == ["part[a]", "part[deep][0]", "part[deep][1][1][z]"]
    assert torch.equal(found["part[deep][0]"], images + 1)
    assert torch.equal(found["part[deep][1][1][z]"], images + 2)
    assert list(record(model, images, layers=["part[deep][0]"])) == ["part[deep][0]"]


def test_a_number_is_left_out():
    model = Calls(lambda self, x: self.loss(x), loss=Calls(lambda self, x: x.sum()))
    with pytest.warns(UserWarning, match=r"'loss' gave shape \(\) for 3 examples"):
        assert record(model, draw(3, 2)) == {}
    with pytest.raises(ValueError, match=r"layers: 'loss' gave shape \(\)"):
        record(model, draw(3, 2), layers=["loss"])


def test_tokens_and_transformer_layers():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(OrderedDict(embed=nn.Embedding(20, 8), encoder=encoder)).double()
    tokens = torch.randint(0, 20, (4, 5))
    found = record(model, tokens, batch_size=3)
    assert torch.equal(found["embed"], model.embed.weight.detach()[tokens])
    assert found["encoder.linear1"].shape == (4, 5, 16)  # also where torch has a fast path
    model.eval()
    torch.testing.assert_close(found["encoder"], model(tokens).detach(), rtol=0, atol=1e-12)


# --- modes and hooks ---------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_eval_mode_during_the_pass_and_own_modes_after(fails):
    seen = []

    def look(self, x):
        seen.append([m.training for m in model.modules()])
        if fails:
            raise RuntimeError("in the forward pass")
        return x

    model = Calls(
        lambda self, x: self.tail(self.body(x)),
        body=nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)),
        tail=Calls(look),
    ).double()
    model.body[1].eval()  # partly frozen
    before = [m.training for m in model.modules()]
    assert len(set(before)) == 2
    if fails:
        with pytest.raises(RuntimeError, match="in the forward pass"):
            record(model, draw(3, 2))
    else:
        record(model, draw(3, 2))
    assert seen == [[False] * len(before)]
    assert [m.training for m in model.modules()] == before
    assert_clean(model)


def test_batch_norm_and_dropout_do_not_train():
    model, images = convnet(), draw(5, 1, 8, 8)
    model.norm.running_mean.fill_(0.3)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    found = record(model, images)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(found["drop"], found["relu"])
    expected = (found["conv"] - 0.3) / (1 + model.norm.eps) ** 0.5
    torch.testing.assert_close(found["norm"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("allowed", [True, False])
def test_evaluating_keeps_tf32_out(allowed):
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = allowed
        kept = [setting.fp32_precision for setting in settings]
        with activations.evaluating(nn.Linear(2, 2)):
            assert {setting.fp32_precision for setting in settings} == {"ieee"}
        assert [setting.fp32_precision for setting in settings] == kept
        assert [flag.allow_tf32 for flag in flags] == [allowed, allowed]
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def test_evaluating_restores_after_an_exception():
    model = convnet()
    model.drop.eval()
    before = [m.training for m in model.modules()]
    with pytest.raises(KeyError), activations.evaluating(model):
        assert not any(m.training for m in model.modules())
        raise KeyError
    assert [m.training for m in model.modules()] == before


def test_hooks_are_gone_after_success_and_after_a_failing_reduction():
    model, images = convnet(), draw(3, 1, 8, 8)
    record(model, images)
    assert_clean(model)

    def fail(output):
        assert model.conv._forward_hooks  # the check below can fail
        raise RuntimeError("in the reduction")

    with pytest.raises(RuntimeError, match="in the reduction"):
        record(model, images, reduction=fail)
    assert_clean(model)
    assert all(m.training for m in model.modules())


def test_the_callers_own_hooks_stay():
    model, calls = convnet(), []
    handle = model.conv.register_forward_hook(lambda *_: calls.append(1))
    record(model, draw(2, 1, 8, 8))
    assert calls == [1] and len(model.conv._forward_hooks) == 1
    handle.remove()


# --- copies ------------------------------------------------------------------------------------


def test_an_in_place_layer_changes_neither_what_came_before_nor_the_images():
    model = nn.Sequential(OrderedDict(first=nn.ReLU(inplace=True), fc=nn.Linear(2, 3)))
    model.append(nn.ReLU(inplace=True)).double()
    images = draw(4, 2)
    found = record(model, images)
    assert torch.equal(images, draw(4, 2)) and (images < 0).any()
    assert (found["fc"] < 0).any() and torch.equal(found["2"], found["fc"].relu())
    array = draw(4, 2).numpy()
    record(model, array)
    assert np.array_equal(array, draw(4, 2).numpy())


@pytest.mark.parametrize("batch_size", [2, 4])
@pytest.mark.parametrize("reduction", [None, "flatten", "spatial_mean", lambda output: output])
def test_results_are_ordinary_tensors_of_their_own(batch_size, reduction):
    images = draw(4, 1, 8, 8)
    model = nn.Sequential(OrderedDict(start=nn.Identity(), **dict(convnet().named_children())))
    found = record(model, images, batch_size=batch_size, reduction=reduction)
    pointers = {tensor.untyped_storage().data_ptr() for tensor in found.values()}
    assert len(pointers) == len(found)
    assert images.untyped_storage().data_ptr() not in pointers
    for tensor in found.values():
        assert not tensor.is_inference() and not tensor.requires_grad
        weight = torch.ones_like(tensor, requires_grad=True)
        (weight * tensor).sum().backward()
        assert torch.equal(weight.grad, tensor)
        tensor += 1
    assert torch.equal(images, draw(4, 1, 8, 8))


def test_a_buffer_that_a_module_returns_is_copied():
    part = Calls(lambda self, x: self.memory)
    part.register_buffer("memory", draw(3, 2))
    model = Calls(lambda self, x: self.part(x), part=part)
    record(model, draw(3, 2))["part"].zero_()
    assert torch.equal(part.memory, draw(3, 2))


def test_images_that_require_gradients():
    images = draw(3, 1, 8, 8).requires_grad_()
    assert not any(v.requires_grad for v in record(convnet(), images).values())
    assert images.grad is None


def test_numpy_in_numpy_out():
    model, images = convnet(), draw(3, 1, 8, 8)
    arrays = record(model, images.numpy(), batch_size=2)
    tensors = record(model, images, batch_size=2)
    assert list(arrays) == list(tensors)
    for name, array in arrays.items():
        assert isinstance(array, np.ndarray) and np.array_equal(array, tensors[name].numpy())


# --- reductions and memory ---------------------------------------------------------------------


def test_flatten_and_spatial_mean():
    model, images = convnet(), draw(5, 1, 8, 8)
    whole = record(model, images)
    flat = record(model, images, reduction="flatten", batch_size=2)
    mean = record(model, images, reduction="spatial_mean", batch_size=2)
    for name, output in whole.items():
        expected = output.mean((2, 3)) if output.ndim == 4 else output
        torch.testing.assert_close(flat[name], output.reshape(5, -1), rtol=0, atol=1e-12)
        torch.testing.assert_close(mean[name], expected, rtol=0, atol=1e-12)
    assert activations.flatten(torch.ones(3)).shape == (3, 1)
    assert activations.spatial_mean(torch.ones(3)).shape == (3,)
    with pytest.raises(ValueError, match=r"spatial_mean' found shape \(2, 3, 4\).*tokens"):
        activations.spatial_mean(draw(2, 3, 4))


def test_a_callable_may_give_fewer_rows():
    model, images = convnet(), draw(8, 1, 8, 8)
    found = record(
        model, images, batch_size=4, reduction=lambda o: o.flatten(1).unflatten(0, (-1, 2)).mean(1)
    )
    expected = record(model, images, reduction="flatten")
    for name, pairs in found.items():
        assert pairs.shape == (4, expected[name].shape[1])
        torch.testing.assert_close(pairs, (expected[name][::2] + expected[name][1::2]) / 2)


def test_a_reduction_bounds_what_is_held():
    model, images = models.build("mlp", widths=(400, 400, 400), inputs=50), draw(40, 50).float()
    alive, most, rows = [], 0, set()

    def reduce(output):
        nonlocal most
        rows.add(len(output))
        alive.append(weakref.ref(output))
        most = max(most, sum(ref() is not None for ref in alive))
        return output[:, :2]  # a view, which must not keep the whole alive

    found = record(model, images, batch_size=4, reduction=reduce)
    assert rows == {4}
    assert most <= 4 < len(alive) == 10 * len(found)  # those in use in the pass, no more
    held = sum(tensor.untyped_storage().nbytes() for tensor in found.values())
    assert held == len(found) * 40 * 2 * 4


def test_layers_that_are_not_asked_for_are_not_held():
    seen = []
    record(convnet(), draw(2, 1, 8, 8), ["fc"], reduction=lambda o: seen.append(o.shape) or o)
    assert seen == [(2, 3)]


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": draw(3, 1, 8, 8).log()}, "images: expected finite numbers"),
        ({"images": np.full((2, 1, 8, 8), np.inf)}, "images: expected finite numbers"),
        ({"images": torch.empty(0, 1, 8, 8)}, r"images: expected at least one entry.*\(0, 1, 8, 8"),
        ({"images": [[1.0]]}, "images: expected a torch tensor or NumPy array, found list"),
        ({"batch_size": 0}, "batch_size: expected an integer >= 1, found 0"),
        ({"batch_size": 1.5}, "batch_size: expected an integer >= 1, found 1.5"),
        ({"layers": "conv"}, "layers: expected a sequence of names, found the string 'conv'"),
        ({"layers": ["cnv"]}, "layers: no layer 'cnv'; did you mean 'conv'"),
        ({"layers": ["conv", "qqq"]}, "layers: no layer 'qqq'; expected one of: conv, norm, relu"),
        ({"layers": [""]}, "layers: no layer ''"),
        ({"reduction": "mean"}, "reduction: found 'mean'; did you mean 'spatial_mean'"),
    ],
)
def test_bad_arguments(arguments, message):
    model = convnet()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            record(model, **{"images": draw(2, 1, 8, 8), **arguments})
    assert_clean(model)


def test_a_layer_that_is_never_called():
    model = Calls(lambda self, x: self.used(x), used=nn.Linear(2, 2), unused=nn.Linear(2, 2))
    images = draw(3, 2, dtype=torch.float32)
    assert list(record(model, images)) == ["used"]
    message = r"layers: 'unused' gave no output in this pass \(seen: used\)"
    with pytest.raises(ValueError, match=message):
        record(model, images, layers=["used", "unused"])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_gpu_equals_cpu(kind):
    model, images = convnet(), draw(7, 1, 8, 8)
    cpu = record(model, images)
    gpu = record(model.cuda(), images.numpy() if kind == "array" else images, batch_size=3)
    assert list(gpu) == list(cpu)
    for name, value in gpu.items():
        if kind == "tensor":
            assert value.is_cuda
        torch.testing.assert_close(torch.as_tensor(value).cpu(), cpu[name], rtol=0, atol=1e-12)
