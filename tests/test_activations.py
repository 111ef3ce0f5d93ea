"""What `activations.record` promises: names, values, copies, modes, hooks, memory."""

import re
import warnings
import weakref
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from _random_networks import gaussian
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from replication import activations, directions, models, similarity
from replication._core.vision import models as torchvision_models
from replication.activations import record
from replication.similarity import Accumulator

PICTURES = gaussian(7, 1, 8, 8)


def convnet():
    """Every kind of layer that a hand-run can follow: batch norm, dropout, in-place ReLU, views."""
    parts = {"conv": nn.Conv2d(1, 4, 3), "norm": nn.BatchNorm2d(4), "relu": nn.ReLU(inplace=True)}
    parts |= {"drop": nn.Dropout(0.5), "pool": nn.AvgPool2d(2), "flatten": nn.Flatten()}
    parts |= {"identity": nn.Identity(), "fc": nn.Linear(36, 3)}
    return nn.Sequential(OrderedDict(parts)).double()


class Calls(nn.Module):
    """A network whose forward pass is the given function of (self, x)."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def assert_clean(model):
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def assert_equal(left, right, atol=0.0):
    assert list(left) == list(right)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=atol)


def test_every_layer_in_forward_order_with_its_values_and_without_training():
    model = convnet()
    model.norm.running_mean.fill_(0.3)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = record(model, PICTURES)
    assert_equal(dict(model.state_dict()), state)
    assert model.training
    for batch_size in (1, 3, 100):
        assert_equal(record(model, PICTURES, None, batch_size), outputs, atol=1e-12)
    x, expected = PICTURES, {}
    with torch.no_grad():
        for name, child in model.eval().named_children():
            x = child(x.clone())
            expected[name] = x.clone()
    assert_equal(outputs, expected, atol=1e-12)
    normed = (outputs["conv"] - 0.3) / (1 + model.norm.eps) ** 0.5
    torch.testing.assert_close(outputs["norm"], normed, rtol=0, atol=1e-12)
    assert torch.equal(outputs["drop"], outputs["relu"])


def test_forward_order_is_that_of_the_calls_and_containers_come_only_when_asked():
    inner = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Tanh()))
    model = Calls(lambda self, x: self.head(self.body(x)), head=nn.Linear(2, 1), body=inner)
    images = gaussian(4, 2, dtype=torch.float32)
    outputs = record(model, images)
    assert list(outputs) == ["body.a", "body.b", "head"]
    assert_equal(record(model, images, layers=["body"]), {"body": outputs["body.b"]})
    chosen = record(model, images, layers=["head", "body.a"])
    assert_equal(chosen, {name: outputs[name] for name in ("body.a", "head")})
    assert torch.equal(record(nn.Sequential(nn.Tanh()), images)["0"], images.tanh())


def test_a_module_called_again_has_a_number():
    parts = {"one": nn.Linear(3, 4), "two": nn.Linear(4, 5), "relu": nn.ReLU()}
    model = Calls(lambda self, x: self.relu(self.two(self.relu(self.one(x)))), **parts).double()
    images = gaussian(5, 3)
    outputs = record(model, images, batch_size=2)  # numbers start again with every batch
    assert list(outputs) == ["one", "relu", "two", "relu#2"]
    assert torch.equal(outputs["relu"], outputs["one"].relu())
    assert torch.equal(outputs["relu#2"], outputs["two"].relu())
    assert list(record(model, images, layers=["relu"])) == ["relu", "relu#2"]
    assert list(record(model, images, layers=["relu#2"])) == ["relu#2"]
    with pytest.raises(ValueError, match=r"layers: 'relu#3' gave no output"):
        record(model, images, layers=["relu#3"])


def test_a_module_under_two_names_counts_under_its_first():
    shared = nn.Linear(3, 3)
    model = Calls(lambda self, x: self.b(self.a(x)), a=shared, b=shared).double()
    outputs = record(model, gaussian(2, 3))
    assert list(outputs) == ["a", "a#2"]
    with torch.no_grad():
        torch.testing.assert_close(outputs["a#2"], shared(outputs["a"]), rtol=0, atol=1e-12)
    asked = record(model, gaussian(2, 3), layers=["b", "a#2"])
    assert list(asked) == ["b", "a#2", "b#2"] and torch.equal(asked["b"], outputs["a"])
    with pytest.raises(ValueError, match=r"layers: 'b' gave \['b', 'b#2'\]; expected one tensor"):
        directions.unit_ablation(model, gaussian(2, 3), torch.tensor([0, 1]), ["b"])


def test_resnet_blocks_are_recorded():
    model, images = torchvision_models.resnet18(weights=None).double(), gaussian(2, 3, 32, 32)
    outputs = record(model, images)
    names = list(outputs)
    assert names[:4] == ["conv1", "bn1", "relu", "maxpool"] and names[-2:] == ["avgpool", "fc"]
    model.eval()
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        for stage in (1, 2, 3, 4):
            for block in (0, 1):
                x = model.get_submodule(f"layer{stage}.{block}")(x)
                torch.testing.assert_close(outputs[f"layer{stage}.{block}"], x, rtol=0, atol=1e-10)
        torch.testing.assert_close(outputs["fc"], model(images), rtol=0, atol=1e-10)
    first = outputs["layer1.0.bn1"]  # a block's one ReLU is in place and runs twice
    assert (first < 0).any() and torch.equal(outputs["layer1.0.relu"], first.relu())
    assert torch.equal(outputs["layer1.0.relu#2"], outputs["layer1.0"])


def recurrent(layers):
    return Calls(lambda self, x: self.lstm(x)[0], lstm=nn.LSTM(3, 4, layers, batch_first=True))


def test_lstm_outputs_and_hidden_states():
    model, images = recurrent(2), gaussian(5, 6, 3, dtype=torch.float32)
    with pytest.warns(UserWarning, match="left out") as caught:
        outputs = record(model, images)
    with torch.no_grad():
        assert_equal(outputs, {"lstm[0]": model(images)}, atol=1e-6)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2 and "'lstm[1][0]' gave shape (2, 5, 4) for 5 examples" in messages[0]
    assert {warning.filename for warning in caught} == {__file__}
    assert list(record(model, images, layers=["lstm[0]"])) == ["lstm[0]"]
    for name in ("lstm[1][0]", "lstm"):
        with pytest.raises(ValueError, match=r"layers: 'lstm\[1\]\[0\]' gave shape \(2, 5, 4\)"):
            record(model, images, layers=[name])
    assert_clean(model)


@pytest.mark.parametrize(("examples", "layers", "batch_size"), [(4, 3, 3), (5, 1, 2)])
def test_hidden_states_with_as_many_rows_as_one_batch_are_left_out(examples, layers, batch_size):
    images = gaussian(examples, 6, 3, dtype=torch.float32)
    with pytest.warns(UserWarning, match="left out") as caught:
        outputs = record(recurrent(layers), images, batch_size=batch_size)
    assert {name: len(value) for name, value in outputs.items()} == {"lstm[0]": examples}
    assert len(caught) == 2  # once each, whatever the number of batches


def test_dicts_lists_nesting_numbers_and_other_objects():
    def outputs(self, x):
        return {"a": x, "deep": [x + 1, (None, {"z": x + 2})], "text": "no tensor", "none": None}

    model = Calls(lambda self, x: self.part(x)["a"], part=Calls(outputs))
    images = gaussian(3, 2)
    expected = {"part[a]": images, "part[deep][0]": images + 1, "part[deep][1][1][z]": images + 2}
    assert_equal(record(model, images), expected)
    assert list(record(model, images, layers=["part[deep][0]"])) == ["part[deep][0]"]

    model = Calls(lambda self, x: self.loss(x), loss=Calls(lambda self, x: x.sum()))
    with pytest.warns(UserWarning, match=r"'loss' gave shape \(\) for 3 examples"):
        assert record(model, images) == {}
    with pytest.raises(ValueError, match=r"layers: 'loss' gave shape \(\)"):
        record(model, images, layers=["loss"])


def test_tokens_and_transformer_layers():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(OrderedDict(embed=nn.Embedding(20, 8), encoder=encoder)).double()
    tokens = torch.randint(0, 20, (4, 5))
    outputs = record(model, tokens, batch_size=3)
    assert torch.equal(outputs["embed"], model.embed.weight.detach()[tokens])
    assert outputs["encoder.linear1"].shape == (4, 5, 16)  # also where torch has a fast path
    expected = model.eval()(tokens).detach()
    torch.testing.assert_close(outputs["encoder"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fails", [False, True])
def test_eval_mode_during_the_pass_and_own_modes_and_hooks_after(fails):
    seen = []

    def look(self, x):
        seen.append([m.training for m in model.modules()])
        assert model.body[0]._forward_hooks  # the check of hooks below can fail
        if fails:
            raise RuntimeError("in the forward pass")
        return x

    body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).double()
    model = Calls(lambda self, x: self.tail(self.body(x)), body=body, tail=Calls(look))
    own = model.body[2].register_forward_hook(lambda *_: seen.append("own"))
    body[1].eval()  # partly frozen
    before = [m.training for m in model.modules()]
    assert len(set(before)) == 2
    if fails:
        with pytest.raises(RuntimeError, match="in the forward pass"):
            record(model, gaussian(3, 2))
    else:
        record(model, gaussian(3, 2))
    assert seen == ["own", [False] * len(before)]
    assert [m.training for m in model.modules()] == before
    own.remove()
    assert_clean(model)


OPERATIONS = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn


def precisions():
    return [operation.fp32_precision for operation in OPERATIONS]


@contextmanager
def put_back(name, *owners):
    before = [getattr(owner, name) for owner in owners]
    try:
        yield
    finally:
        for owner, value in zip(owners, before, strict=True):
            setattr(owner, name, value)


def test_what_a_precision_was_inherited_from_stays_in_charge():
    with put_back("fp32_precision", torch.backends, *OPERATIONS):
        for general in ("tf32", "ieee"):
            torch.backends.fp32_precision = general
            with activations.evaluating(convnet()):
                assert set(precisions()) == {"ieee"}
            assert set(precisions()) == {general}


@pytest.mark.parametrize("allowed", [True, False])
def test_evaluating_keeps_tf32_out_and_restores_it_after_an_exception(allowed):
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    with put_back("allow_tf32", *flags):
        for flag in flags:
            flag.allow_tf32 = allowed
        kept = precisions()
        with pytest.raises(KeyError), activations.evaluating(convnet()):
            assert set(precisions()) == {"ieee"}
            raise KeyError
        assert precisions() == kept and [flag.allow_tf32 for flag in flags] == [allowed, allowed]


def test_neither_an_in_place_layer_nor_the_caller_changes_what_is_the_networks():
    part = Calls(lambda self, x: self.memory)
    part.register_buffer("memory", gaussian(3, 2))
    record(Calls(lambda self, x: self.part(x), part=part), gaussian(3, 2))["part"].zero_()
    assert torch.equal(part.memory, gaussian(3, 2))
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 3), nn.ReLU(inplace=True)).double()
    images = gaussian(4, 2)
    outputs, arrays = record(model, images), record(model, images.numpy(), batch_size=3)
    assert torch.equal(images, gaussian(4, 2)) and (images < 0).any()
    assert (outputs["1"] < 0).any() and torch.equal(outputs["2"], outputs["1"].relu())
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert_equal({name: torch.from_numpy(array) for name, array in arrays.items()}, outputs, 1e-12)


@pytest.mark.parametrize("batch_size", [2, 7])
@pytest.mark.parametrize("reduction", [None, "flatten", "spatial_mean", lambda output: output])
def test_results_are_ordinary_tensors_of_their_own(batch_size, reduction):
    images = PICTURES.clone().requires_grad_()
    model = nn.Sequential(OrderedDict(start=nn.Identity(), **dict(convnet().named_children())))
    outputs = record(model, images, batch_size=batch_size, reduction=reduction)
    pointers = {tensor.untyped_storage().data_ptr() for tensor in outputs.values()}
    assert len(pointers) == len(outputs)
    assert images.untyped_storage().data_ptr() not in pointers
    for tensor in outputs.values():
        assert not tensor.is_inference() and not tensor.requires_grad
        weight = torch.ones_like(tensor, requires_grad=True)
        (weight * tensor).sum().backward()
        assert torch.equal(weight.grad, tensor)
        tensor += 1
    assert torch.equal(images, PICTURES) and images.grad is None


def test_flatten_spatial_mean_and_a_callable_that_gives_fewer_rows():
    model, images = convnet(), PICTURES[:6]
    whole = record(model, images)
    flat = record(model, images, reduction="flatten", batch_size=4)
    mean = record(model, images, reduction="spatial_mean", batch_size=4)
    pairs = record(
        model, images, batch_size=4, reduction=lambda o: o.flatten(1).unflatten(0, (-1, 2)).mean(1)
    )
    for name, output in whole.items():
        expected = output.mean((2, 3)) if output.ndim == 4 else output
        rows = output.reshape(6, -1)
        torch.testing.assert_close(flat[name], rows, rtol=0, atol=1e-12)
        torch.testing.assert_close(mean[name], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(pairs[name], (rows[::2] + rows[1::2]) / 2)
    assert activations.flatten(torch.ones(3)).shape == (3, 1)
    assert activations.spatial_mean(torch.ones(3)).shape == (3,)
    with pytest.raises(ValueError, match=r"spatial_mean' found shape \(2, 3, 4\).*tokens"):
        activations.spatial_mean(gaussian(2, 3, 4))


def test_a_reduction_bounds_what_is_held():
    model, images = models.build("mlp", widths=(400, 400, 400), inputs=50), gaussian(40, 50).float()
    alive, most, rows = [], 0, set()

    def reduce(output):
        nonlocal most
        rows.add(len(output))
        alive.append(weakref.ref(output))
        most = max(most, sum(ref() is not None for ref in alive))
        return output[:, :2]  # a view, which must not keep the whole alive

    outputs = record(model, images, batch_size=4, reduction=reduce)
    assert rows == {4}
    assert most <= 4 < len(alive) == 10 * len(outputs)  # those in use in the pass, no more
    held = sum(tensor.untyped_storage().nbytes() for tensor in outputs.values())
    assert held == len(outputs) * 40 * 2 * 4
    alive.clear()
    record(model, images, ["fc1"], 40, reduce)
    assert len(alive) == 1  # layers that are not asked for are not held


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": "conv"}, "layers: expected a sequence, found 'conv'"),
        ({"layers": ["conv", "qqq"]}, "layers: no layer 'qqq'; expected one of: conv, norm, relu"),
        ({"layers": ["conv?"]}, "layers: no layer 'conv[?]'; did you mean 'conv'"),
        ({"mask": "mask"}, "mask: 'mask' is not in images .a tensor"),
    ],
)
def test_bad_arguments(arguments, message):
    model = convnet()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            record(model, **{"images": PICTURES, **arguments})
    assert_clean(model)


@pytest.mark.parametrize("model", [nn.Linear(2, 3), nn.Sequential(), Calls(lambda self, x: x + 1)])
def test_a_model_without_modules_is_its_own_layer(model):
    images = gaussian(5, 2, dtype=torch.float32)
    for layers in (None, [""]):
        assert_equal(record(model, images, layers, 3), {"": model(images)}, atol=1e-6)


@pytest.mark.parametrize("make", [torch.jit.trace, torch.jit.script, torch.export.export])
def test_compiled_networks_are_refused_by_name(make):
    inner, images = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), gaussian(3, 2, dtype=torch.float32)
    with warnings.catch_warnings():  # TorchScript is deprecated
        warnings.simplefilter("ignore")
        compiled = make(inner) if make is torch.jit.script else make(inner, (images,))
    if make is torch.export.export:
        with pytest.raises(ValueError, match=r"model: GraphModule: .*eval"):
            record(compiled.module(), images)
        return
    whole = nn.Sequential(OrderedDict(body=compiled, head=nn.Linear(2, 1)))
    cases = (compiled, None, "0"), (whole, None, "body"), (whole, ["body"], "body")
    for model, layers, name in cases:
        with pytest.raises(ValueError, match=f"model: '{name}' is compiled by torch.jit"):
            record(model, images, layers)
    assert_equal(record(whole, images, ["head"]), {"head": whole(images).detach()}, atol=1e-6)


def test_sparse_outputs_are_dense_and_bfloat16_is_float32_in_arrays():
    parts = {"a": Calls(lambda self, x: x.to_sparse()), "b": Calls(lambda self, x: x.to_dense())}
    model, images = nn.Sequential(OrderedDict(**parts, c=nn.Linear(2, 2).double())), gaussian(5, 2)
    assert_equal(record(model, images, ["a", "b"], 3), {"a": images, "b": images})
    labels = torch.arange(5) % 2
    assert directions.unit_ablation(model, images, labels, ["b"]).accuracy.shape == (2,)
    with pytest.raises(ValueError, match=r"layers: 'a' has torch.sparse_coo; expected dense"):
        directions.unit_ablation(model, images, labels, ["a"])
    half = nn.Linear(2, 3).bfloat16()
    found, expected = record(half, images.numpy())[""], record(half, images)[""]
    assert found.dtype == np.float32 and (torch.from_numpy(found) == expected).all()


def test_a_kernel_s_own_failure_is_not_laid_on_the_integers():
    def fails(self, x):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        record(Calls(fails, one=nn.Linear(2, 2)), torch.ones(3, 2, dtype=torch.int64))


def test_a_layer_that_is_never_called():
    model = Calls(lambda self, x: self.used(x), used=nn.Linear(2, 2), unused=nn.Linear(2, 2))
    images = gaussian(3, 2, dtype=torch.float32)
    assert list(record(model, images)) == ["used"]
    for layer in ("unused", "un*"):
        told = f"layers: {layer!r} gave no output in this pass (seen: used)"
        with pytest.raises(ValueError, match=re.escape(told)):
            record(model, images, layers=["used", layer])


class Tokens(nn.Module):
    """A transformer of dict batches, with attention masks."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids, mask):
        hidden = self.block(self.embed(ids), src_key_padding_mask=mask == 0)
        return {"hidden": hidden, "pooled": F.relu(hidden[:, 0])}


def test_dict_batches_and_masked_tokens():
    net, ids = Tokens().eval(), torch.randint(9, (7, 5))
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 2, 5, 4, 2])[:, None]
    batch = {"ids": ids, "mask": mask.long()}
    acts = record(net, batch, ["embed", "block", ""], batch_size=3, mask="mask")
    assert list(acts) == ["embed", "block", "[hidden]", "[pooled]"]
    assert torch.equal(acts["embed"], net.embed(ids)[mask])
    alone = torch.cat([net(i[None, :k], m[None, :k])["hidden"][0]
                       for i, m, k in zip(ids, mask.long(), mask.sum(1), strict=True)])  # fmt: skip
    assert torch.allclose(acts["block"], alone, atol=1e-5)  # padding changes nothing
    assert acts["[pooled]"].shape == (7, 8)
    arrays = record(net, {n: v.numpy() for n, v in batch.items()}, [""], mask="mask")
    assert np.allclose(arrays["[hidden]"], acts["[hidden]"], atol=1e-6)
    with pytest.raises(ValueError, match=r"mask: 'm' is not in images .ids, mask."):
        record(net, batch, mask="m")
    with pytest.raises(ValueError, match=r"mask: expected .N, tokens., found shape .7, 1, 1, 5."):
        record(net, batch | {"mask": mask[:, None, None]}, mask="mask")
    one_less, options = batch | {"short": mask[:, 1:]}, {"batch_size": 7, "mask": "short"}
    net.forward = lambda ids, **masks: {"hidden": net.embed(ids), "pooled": net.embed(ids[:, 0])}
    with pytest.raises(ValueError, match=r"mask: no layer has the .N, tokens. of 'short', .7, 4."):
        record(net, one_less, [""], **options)
    assert record(net, one_less, ["[pooled]"], **options)["[pooled]"].shape == (7, 8)
    with pytest.raises(ValueError, match=r"as many examples in each entry, found .*'mask': 3"):
        record(net, batch | {"mask": mask[:3]})


def test_batches_of_a_loader_in_memory_and_from_disk(tmp_path):
    net, images = models.build("mlp", 0, inputs=12, widths=[6, 5], classes=3), torch.rand(20, 12)
    loader = DataLoader(TensorDataset(images, torch.arange(20)), batch_size=8)
    whole, layers = record(net, images), ["act1", "act2"]
    assert list(whole) == list(record(net, loader))
    torch.testing.assert_close(record(net, loader), whole)
    activations.save(tmp_path / "acts", activations.batches(net, loader, layers))
    read = list(activations.load(tmp_path / "acts", ["act2"]))
    assert [set(part) for part in read] == [{"act2"}] * 3
    torch.testing.assert_close(torch.cat([part["act2"] for part in read]), whole["act2"])
    streamed = Accumulator()
    for part in activations.load(tmp_path / "acts"):
        streamed.update(part)
    exact = similarity.cka(whole["act1"].double(), whole["act2"].double())
    assert streamed.result("cka").values[0, 1].item() == pytest.approx(exact.item(), abs=1e-6)
    for call, told in (
        (lambda: activations.save(tmp_path / "acts", []), "folder: expected an empty one"),
        (lambda: next(activations.load(tmp_path / "acts", ["act3"])), "layers: no layer 'act3'"),
        (lambda: next(activations.load(tmp_path / "acts", "act2")), "layers: expected a sequence"),
        (lambda: record(net, []), "images: expected at least one batch, found none"),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_a_save_that_is_broken_off_leaves_nothing_to_load(tmp_path):
    def parts(last):
        yield {"a": torch.zeros(3, 2)}
        yield {"a": torch.ones(2, 2) / last}

    with pytest.raises(TypeError):
        activations.save(tmp_path, parts("no number"))
    (tmp_path / ".killed").mkdir()
    with pytest.raises(ValueError, match="expected files of `save`, found none"):
        next(activations.load(tmp_path))
    activations.save(tmp_path, parts(1))
    assert [len(part["a"]) for part in activations.load(tmp_path)] == [3, 2]
    (tmp_path / "000000.safetensors").unlink()  # which comes last
    with pytest.raises(ValueError, match="expected files of `save`, found not all"):
        next(activations.load(tmp_path))


def test_layers_by_pattern():
    net = convnet()
    assert [*record(net, PICTURES, ["conv", "f*"])] == ["conv", "flatten", "fc"]
    assert [*record(net, PICTURES, [re.compile("(norm|pool)"), ""])] == ["norm", "pool", ""]
    assert torch.equal(record(net, PICTURES, [""])[""], record(net, PICTURES, ["fc"])["fc"])
    with pytest.raises(ValueError, match=r"layers: no layer re.compile..con..; expected one of"):
        record(net, PICTURES, [re.compile("con")])
