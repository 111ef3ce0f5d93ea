"""The papers' networks one by one: parameter counts, names, shapes, what the layers compute."""

import pytest
import torch
from test_models import count, draw, shapes
from torch import nn
from torch.nn import functional as F

from replication import activations, models, similarity
from replication._core.vision import models as torchvision_models
from replication.models.resnet import PaddedShortcut, ResidualBlock
from replication.models.sequences import Attention, LSTMLayer, MLPSublayer, Rows


def convolutions(model):
    """Return channels out, kernel, stride and padding of every convolution on the main path."""
    return [
        (m.out_channels, m.kernel_size[0], m.stride[0], m.padding[0])
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and "shortcut" not in name
    ]


COUNTS = [
    ("mlp", {"inputs": 2352, "widths": (512,)}, 1_209_866),  # Table 1 of Zhang et al., ...
    ("mlp", {"inputs": 2352, "widths": (512, 512, 512)}, 1_735_178),
    ("small_alexnet", {}, 1_387_786),
    ("small_inception", {}, 1_649_402),
    ("small_inception", {"batch_norm": False}, 1_649_402),  # ... without normalisation
    ("mnist_convnet", {}, 1_199_882),
    ("morcos_convnet", {}, 7_793_610),
    ("tiny10", {}, 86_778),
    ("plain", {}, 1_372_234),
    ("svcca_convnet", {}, 2_335_786),
    ("resnet", {"depth": 20}, 269_722),
    ("row_lstm", {}, 214_282),
    ("row_lstm", {"units": 6, "layers": 3, "channels": 3, "size": 10}, 1_654),
    ("vit", {}, 208_970),
]


@pytest.mark.parametrize(("name", "options", "expected"), COUNTS)
def test_parameter_counts(name, options, expected):
    norms = name not in ("small_alexnet", "small_inception")
    assert count(models.build(name, **options), norms) == expected


def test_the_layers_of_the_small_alexnet():
    layers = shapes(models.build("small_alexnet", width=0.25), 3, 28, 28)
    names = "conv1 act1 pool1 norm1 conv2 act2 pool2 norm2 flatten fc1 act3 fc2 act4 fc3"
    sides = [28, 28, 14, 14, 14, 14, 7, 7]
    flat = [(16 * 49,), (96,), (96,), (48,), (48,), (10,)]
    assert layers == dict(zip(names.split(), [*((16, n, n) for n in sides), *flat], strict=True))
    regular = models.build("small_alexnet", width=0.1, dropout=0.5, size=32)
    maps = "conv1 act1 pool1 norm1 conv2 act2 pool2 norm2 flatten"
    dense = "fc1 act3 drop1 fc2 act4 drop2 fc3"
    assert list(shapes(regular, 3, 32, 32)) == f"{maps} {dense}".split()
    model, x = models.build("small_alexnet"), draw(2, 64, 3, 3, dtype=torch.float64) * 20
    padded = F.pad(x.square(), (0, 0, 0, 0, 4, 4))
    total = sum(padded[:, i : i + 64] for i in range(9))
    torch.testing.assert_close(model.norm1(x), x / (1 + 0.001 / 9 * total) ** 0.75)


@pytest.mark.parametrize("size", [28, 32])
def test_the_layers_of_the_small_inception(size):
    layers = shapes(models.build("small_inception"), 3, size, size)
    names = "conv1 bn1 act1 inc1 inc2 down1 inc3 inc4 inc5 inc6 down2 inc7 inc8 pool flatten fc"
    assert list(layers) == names.split()
    maps = [96, 96, 96, 64, 80, 160, 160, 160, 160, 144, 240, 336, 336, 336, 336, 10]
    sides = [*5 * [size], *5 * [size // 2], *3 * [size // 4], 1]
    assert [shape[0] for shape in layers.values()] == maps
    assert [shape[1:] for shape in layers.values()] == [*((n, n) for n in sides), (), ()]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_images_stay_apart_through_the_small_inception(batch_norm):
    model = models.build("small_inception", batch_norm=batch_norm).train()
    features = model[:-1](draw(16, 3, 28, 28))  # what the read-out gets
    apart = features.std(0).mean() / features.mean()  # 0.001 with torch's default initialisation
    assert apart > 0.02


def test_an_inception_module_puts_its_branches_side_by_side():
    model = models.build("small_inception", width=0.1, dropout=0.3).eval()
    found = activations.record(model, draw(2, 3, 28, 28))
    one, three = found["inc1.conv1x1.act"], found["inc1.conv3x3.act"]
    assert torch.equal(found["inc1"], torch.cat([one, three], 1))
    assert one.shape[1] == three.shape[1] == 3
    pooled = F.max_pool2d(found["inc2"], 3, 2, 1)
    assert torch.equal(found["down1"], torch.cat([found["down1.conv3x3.act"], pooled], 1))
    assert list(found)[-4:] == ["pool", "flatten", "drop", "fc"]


def test_the_eleven_layers_of_morcos_et_al():
    model = models.build("morcos_convnet")
    maps = [64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512]
    strides = [1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1]
    assert convolutions(model) == [(m, 3, s, 1) for m, s in zip(maps, strides, strict=True)]
    bare = models.build("morcos_convnet", batch_norm=False, dropout=0.1, width=0.1)
    kinds = ("conv", "act", "drop")
    names = [f"{kind}{index}" for index in range(1, 12) for kind in kinds]
    found = shapes(bare, 3, 32, 32)
    assert list(found) == [*names, "pool", "flatten", "fc"]
    assert [found[f"act{i}"][1] for i in (1, 3, 6, 9, 11)] == [32, 16, 8, 4, 4]


def test_tiny_10_is_table_e1():
    model = models.build("tiny10")
    first = [(16, 3, 1, 1), (16, 3, 1, 1), (32, 3, 2, 1), (32, 3, 1, 1), (32, 3, 1, 1)]
    assert convolutions(model) == [*first, (64, 3, 2, 1), (64, 3, 1, 0), (64, 1, 1, 0)]
    found = shapes(model, 3, 32, 32)
    names = [f"{kind}{index}" for index in range(1, 9) for kind in ("conv", "bn", "act")]
    assert list(found) == [*names, "pool", "flatten", "fc"]
    assert (found["act6"], found["act8"]) == ((64, 8, 8), (64, 6, 6))


@pytest.mark.parametrize("depth", [10, 18])
def test_the_plain_networks_are_table_e2(depth):
    n = (depth - 2) // 8
    found = convolutions(models.build("plain", depth=depth))
    assert len(found) == depth - 2
    assert [c[0] for c in found] == 3 * n * [96] + (5 * n) * [192]
    assert [i for i, c in enumerate(found, 1) if c[2] == 2] == [3 * n, 6 * n]
    assert [i for i, c in enumerate(found, 1) if c[1] == 1] == list(range(7 * n + 1, 8 * n + 1))
    assert [i for i, c in enumerate(found, 1) if c[1] == 3 and c[3] == 0] == [7 * n]


SVCCA = "c1 c2 bn1 p1 c3 c4 c5 bn2 p2 fc1 bn3 fc2 bn4 logits"  # the axes of Figure App. 3


def test_the_layers_of_the_svcca_convnet():
    model = models.build("svcca_convnet")
    found = shapes(model, 3, 32, 32)
    assert [name for name in found if "act" not in name and name != "flatten"] == SVCCA.split()
    acts = {name: list(found)[i - 1] for i, name in enumerate(found) if "act" in name}
    assert list(acts.values()) == ["c1", "bn1", "c3", "c4", "bn2", "bn3", "bn4"]
    assert [found[name] for name in ("c1", "p1", "p2")] == [(32, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert [found[name] for name in ("flatten", "fc1", "fc2")] == [(4096,), (512,), (256,)]


def test_batch_normalisation_is_affine_in_the_layer_before_it():
    """What makes the 2x2 blocks in the paper's Figure 4."""
    model = models.build("svcca_convnet", 0, torch.float64, width=0.05, channels=1, size=8)
    images = draw(400, 1, 8, 8, dtype=torch.float64)
    model(images[:50])  # running means other than 0
    found = activations.record(model, images, reduction="spatial_mean")
    for before, after in (("c2", "bn1"), ("c5", "bn2"), ("fc1", "bn3"), ("fc2", "bn4")):
        assert similarity.cca(found[before], found[after]).mean == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("depth", [8, 20])
def test_a_residual_network_of_6n_plus_2_layers(depth):
    model = models.build("resnet", depth=depth)
    n = (depth - 2) // 6
    blocks = [f"block{stage}_{block}" for stage in (1, 2, 3) for block in range(1, n + 1)]
    found = shapes(model, 3, 32, 32)
    assert list(found) == ["conv1", "bn1", "act1", *blocks, "pool", "flatten", "fc"]
    for stage, expected in enumerate([(16, 32, 32), (32, 16, 16), (64, 8, 8)], start=1):
        assert {found[name] for name in blocks if name.startswith(f"block{stage}")} == {expected}
    assert len(convolutions(model)) + 1 == depth


def test_the_parameter_free_shortcut_subsamples_and_adds_zeros():
    x = draw(2, 3, 5, 4)
    found = PaddedShortcut(2, 4)(x)
    assert found.shape == (2, 7, 3, 2)
    assert torch.equal(found[:, :3], x[:, :, ::2, ::2])
    assert not found[:, 3:].any()


def test_a_block_without_its_convolutions_passes_its_input_on():
    model = models.build("resnet", depth=8, width=0.5).eval()
    for name in ("block1_1", "block2_1"):
        getattr(model, name).conv2.weight.data.zero_()
    found = activations.record(model, draw(2, 3, 16, 16))
    assert torch.equal(found["block1_1"], found["act1"])
    assert torch.equal(found["block2_1"][:, :8], found["block1_1"][:, :, ::2, ::2])


@pytest.mark.parametrize(("stride", "fan_out"), [(1, 3), (2, 7)])
def test_a_residual_block_is_torchvision_s(stride, fan_out):
    shortcut = PaddedShortcut(stride, fan_out - 3) if stride > 1 else None
    ours = ResidualBlock(3, fan_out, stride, batch_norm=True).double()
    theirs = torchvision_models.resnet.BasicBlock(3, fan_out, stride, shortcut).double()
    theirs.load_state_dict(ours.state_dict())
    x = draw(3, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))  # batch statistics
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))  # running ones


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_lstm_layer_is_torch_s(dtype):
    ours = LSTMLayer(5, 7).to(dtype)
    theirs = nn.LSTM(5, 7, batch_first=True).to(dtype)
    theirs.load_state_dict({f"{key}_l0": value for key, value in ours.state_dict().items()})
    x = draw(4, 9, 5, dtype=dtype)
    torch.testing.assert_close(ours(x), theirs(x)[0])
    for result in (ours(x), theirs(x)[0]):
        result.square().sum().backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_initial_weights_and_rows_from_the_top_with_all_their_channels():
    for parameter in LSTMLayer(50, 100).parameters():
        assert 0.095 < parameter.abs().max() <= 0.1
    image = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    rows = Rows()(image)
    assert rows.shape == (2, 4, 15)
    assert torch.equal(rows[1, 2], torch.cat([image[1, c, 2] for c in range(3)]))


def test_the_layers_of_the_lstm():
    model = models.build("row_lstm", units=6, layers=3, channels=3, size=10)
    stack = dict.fromkeys(("lstm1", "lstm2", "lstm3"), (8, 6))
    expected = {"rows": (8, 30), **stack, "last": (6,), "fc": (10,)}
    assert list(shapes(model, 3, 8, 10).items()) == list(expected.items())


def test_logits_come_from_the_last_row():
    model, images = models.build("row_lstm", units=6).eval(), draw(2, 1, 28, 28)
    found = activations.record(model, images)
    assert torch.equal(found["last"], found["lstm2"][:, -1])
    other = images.clone()
    other[:, :, -1] = 0
    changed = activations.record(model, other)["lstm2"]
    assert torch.equal(changed[:, :-1], found["lstm2"][:, :-1])
    assert not torch.equal(changed[:, -1], found["lstm2"][:, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_block_is_torch_s_encoder_layer(dtype):
    attention, mlp = Attention(12, 3).to(dtype), MLPSublayer(12, 20).to(dtype)
    theirs = nn.TransformerEncoderLayer(
        12, 3, 20, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).to(dtype)
    for own, other in (
        (attention.norm, theirs.norm1),
        (attention.project, theirs.self_attn.out_proj),
        (mlp.norm, theirs.norm2),
        (mlp.fc1, theirs.linear1),
        (mlp.fc2, theirs.linear2),
    ):
        other.load_state_dict(own.state_dict())
    theirs.self_attn.in_proj_weight.data.copy_(attention.qkv.weight)
    theirs.self_attn.in_proj_bias.data.copy_(attention.qkv.bias)
    x = draw(4, 6, 12, dtype=dtype)
    torch.testing.assert_close(mlp(attention(x)), theirs(x))


def test_the_layers_of_the_transformer():
    model = models.build("vit", depth=2, width=8, heads=2, patch=8)
    stream = ("tokens", "attention1", "mlp1", "attention2", "mlp2", "norm")
    expected = {"patches": (8, 4, 4), **dict.fromkeys(stream, (17, 8)), "first": (8,), "fc": (10,)}
    assert list(shapes(model, 3, 32, 32).items()) == list(expected.items())


def test_every_sublayer_adds_to_the_residual_stream():
    model = models.build("vit", 0, torch.float64, depth=2, width=8, heads=2, patch=8)
    found = activations.record(model, draw(3, 3, 32, 32, dtype=torch.float64))
    stream = found["tokens"]
    for block in (1, 2):
        for name, last in ((f"attention{block}", "project"), (f"mlp{block}", "fc2")):
            torch.testing.assert_close(found[name], stream + found[f"{name}.{last}"])
            stream = found[name]
    assert torch.equal(found["first"], found["norm"][:, 0])


def test_patches_are_equals_but_for_their_positions():
    model = models.build("vit", 0, torch.float64, depth=2, width=8, heads=2, patch=8).eval()
    images = draw(2, 3, 32, 32, dtype=torch.float64)
    swapped = images.roll(8, dims=3)  # whole patches change places
    assert not torch.allclose(model(swapped), model(images))
    assert not model.tokens.class_token.any()
    assert model.tokens.positions.std().item() == pytest.approx(0.02, rel=0.2)
    model.tokens.positions.data.zero_()
    torch.testing.assert_close(model(swapped), model(images))
