"""The papers' convolutional networks: parameter counts, names, shapes, what the layers compute."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replication import activations, models, similarity
from replication._core.vision import models as torchvision_models
from replication.models._layers import scaled
from replication.models.resnet import PaddedShortcut


def draw(*size, dtype=torch.float32):
    return torch.randn(*size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def count(model, norms=True):
    kinds = () if norms else (nn.BatchNorm1d, nn.BatchNorm2d)
    return sum(
        parameter.numel()
        for module in model.modules()
        if not isinstance(module, kinds)
        for parameter in module.parameters(recurse=False)
    )


def shapes(model, *size):
    """Return the shapes of the layers of the top level, without the examples."""
    recorded = activations.record(model, torch.zeros(2, *size))
    return {key: tuple(value.shape[1:]) for key, value in recorded.items() if "." not in key}


def convolutions(model):
    """Return channels out, kernel, stride and padding of every convolution on the main path."""
    return [
        (m.out_channels, m.kernel_size[0], m.stride[0], m.padding[0])
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and "shortcut" not in name
    ]


# --- Zhang et al. 2017, Table 1 ----------------------------------------------------------------

TABLE_1 = [
    ("mlp", {"inputs": 2352, "widths": (512,)}, 1_209_866),
    ("mlp", {"inputs": 2352, "widths": (512, 512, 512)}, 1_735_178),
    ("small_alexnet", {}, 1_387_786),
    ("small_inception", {}, 1_649_402),
    ("small_inception", {"batch_norm": False}, 1_649_402),
]


@pytest.mark.parametrize(("name", "options", "expected"), TABLE_1)
def test_the_parameter_counts_of_zhang_et_al(name, options, expected):
    assert count(models.build(name, **options), norms=False) == expected


def test_the_layers_of_the_small_alexnet():
    assert shapes(models.build("small_alexnet", width=0.25), 3, 28, 28) == {
        "conv1": (16, 28, 28),
        "act1": (16, 28, 28),
        "pool1": (16, 14, 14),
        "norm1": (16, 14, 14),
        "conv2": (16, 14, 14),
        "act2": (16, 14, 14),
        "pool2": (16, 7, 7),
        "norm2": (16, 7, 7),
        "flatten": (16 * 49,),
        "fc1": (96,),
        "act3": (96,),
        "fc2": (48,),
        "act4": (48,),
        "fc3": (10,),
    }
    regular = models.build("small_alexnet", width=0.1, batch_norm=True, dropout=0.5, size=32)
    names = (
        "conv1 bn1 act1 pool1 norm1 conv2 bn2 act2 pool2 norm2 flatten "
        "fc1 bn3 act3 drop1 fc2 bn4 act4 drop2 fc3"
    )
    assert list(shapes(regular, 3, 32, 32)) == names.split()


def test_local_response_normalisation_divides_by_the_neighbouring_channels():
    model, x = models.build("small_alexnet"), draw(2, 64, 3, 3, dtype=torch.float64) * 20
    padded = F.pad(x.square(), (0, 0, 0, 0, 4, 4))
    total = sum(padded[:, i : i + 64] for i in range(9))
    torch.testing.assert_close(model.norm1(x), x / (1 + 0.001 / 9 * total) ** 0.75)


@pytest.mark.parametrize(("size", "sides"), [(28, (28, 14, 7)), (32, (32, 16, 8))])
def test_the_layers_of_the_small_inception(size, sides):
    model = models.build("small_inception")
    top, middle, low = ((side, side) for side in sides)
    expected = {
        "conv1": (96, *top),
        "bn1": (96, *top),
        "act1": (96, *top),
        "inc1": (64, *top),
        "inc2": (80, *top),
        "down1": (160, *middle),
        "inc3": (160, *middle),
        "inc4": (160, *middle),
        "inc5": (160, *middle),
        "inc6": (144, *middle),
        "down2": (240, *low),
        "inc7": (336, *low),
        "inc8": (336, *low),
        "pool": (336, 1, 1),
        "flatten": (336,),
        "fc": (10,),
    }
    assert shapes(model, 3, size, size) == expected


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


# --- plain rows of convolutions ----------------------------------------------------------------


def test_the_eleven_layers_of_morcos_et_al():
    model = models.build("morcos_convnet")
    maps = [64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512]
    strides = [1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1]
    assert convolutions(model) == [(m, 3, s, 1) for m, s in zip(maps, strides, strict=True)]
    fans = zip([3, *maps], maps, strict=False)
    assert count(model) == sum((9 * a + 1) * b + 2 * b for a, b in fans) + 513 * 10 == 7_793_610
    bare = models.build("morcos_convnet", batch_norm=False, dropout=0.1, width=0.1)
    kinds = ("conv", "act", "drop")
    names = [f"{kind}{index}" for index in range(1, 12) for kind in kinds]
    found = shapes(bare, 3, 32, 32)
    assert list(found) == [*names, "pool", "flatten", "fc"]
    assert [found[f"act{i}"][1] for i in (1, 3, 6, 9, 11)] == [32, 16, 8, 4, 4]


def test_tiny_10_is_table_e1():
    model = models.build("tiny10")
    assert convolutions(model) == [
        (16, 3, 1, 1),
        (16, 3, 1, 1),
        (32, 3, 2, 1),
        (32, 3, 1, 1),
        (32, 3, 1, 1),
        (64, 3, 2, 1),
        (64, 3, 1, 0),
        (64, 1, 1, 0),
    ]
    assert count(model) == 86_778
    found = shapes(model, 3, 32, 32)
    names = [f"{kind}{index}" for index in range(1, 9) for kind in ("conv", "bn", "act")]
    assert list(found) == [*names, "pool", "flatten", "fc"]
    assert (found["act6"], found["act8"]) == ((64, 8, 8), (64, 6, 6))


@pytest.mark.parametrize("depth", [10, 18, 34])
def test_the_plain_networks_are_table_e2(depth):
    n = (depth - 2) // 8
    found = convolutions(models.build("plain", depth=depth))
    assert len(found) == depth - 2
    assert [c[0] for c in found] == 3 * n * [96] + (5 * n) * [192]
    assert [i for i, c in enumerate(found, 1) if c[2] == 2] == [3 * n, 6 * n]
    assert [i for i, c in enumerate(found, 1) if c[1] == 1] == list(range(7 * n + 1, 8 * n + 1))
    assert [i for i, c in enumerate(found, 1) if c[1] == 3 and c[3] == 0] == [7 * n]


def test_the_default_plain_network_has_ten_layers():
    assert count(models.build("plain")) == 1_372_234


SVCCA = "c1 c2 bn1 p1 c3 c4 c5 bn2 p2 fc1 bn3 fc2 bn4 logits"  # the axes of Figure App. 3


def test_the_layers_of_the_svcca_convnet():
    model = models.build("svcca_convnet")
    found = shapes(model, 3, 32, 32)
    assert [name for name in found if "act" not in name and name != "flatten"] == SVCCA.split()
    acts = {name: list(found)[i - 1] for i, name in enumerate(found) if "act" in name}
    assert acts == {
        "act1": "c1",
        "act2": "bn1",
        "act3": "c3",
        "act4": "c4",
        "act5": "bn2",
        "act6": "bn3",
        "act7": "bn4",
    }
    assert [found[name] for name in ("c1", "p1", "p2")] == [(32, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert [found[name] for name in ("flatten", "fc1", "fc2")] == [(4096,), (512,), (256,)]
    assert count(model) == 2_335_786


def test_batch_normalisation_is_affine_in_the_layer_before_it():
    """What makes the 2x2 blocks in the paper's Figure 4."""
    model = models.build("svcca_convnet", 0, torch.float64, width=0.05, channels=1, size=8)
    model(draw(50, 1, 8, 8, dtype=torch.float64))  # running means other than 0
    found = activations.record(
        model, draw(400, 1, 8, 8, dtype=torch.float64), reduction="spatial_mean"
    )
    for before, after in (("c2", "bn1"), ("c5", "bn2"), ("fc1", "bn3"), ("fc2", "bn4")):
        assert similarity.cca(found[before], found[after]).mean == pytest.approx(1, abs=1e-8)


# --- residual networks -------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_a_residual_network_of_6n_plus_2_layers(depth):
    model = models.build("resnet", depth=depth)
    n = (depth - 2) // 6
    blocks = [f"block{stage}_{block}" for stage in (1, 2, 3) for block in range(1, n + 1)]
    found = shapes(model, 3, 32, 32)
    assert list(found) == ["conv1", "bn1", "act1", *blocks, "pool", "flatten", "fc"]
    for stage, expected in enumerate([(16, 32, 32), (32, 16, 16), (64, 8, 8)], start=1):
        assert {found[name] for name in blocks if name.startswith(f"block{stage}")} == {expected}
    assert len(convolutions(model)) + 1 == depth
    weights = 9 * (3 * 16 + 2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2)
    weights += 9 * (32 * 64 + (2 * n - 1) * 64**2) + 650
    assert count(model) == weights + 2 * (16 + 2 * n * (16 + 32 + 64))
    assert depth != 20 or count(model) == 269_722


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


def test_resnet_18_is_torchvision_s_but_for_its_first_layer():
    ours = models.build("resnet18", 0, torch.float64)
    theirs = torchvision_models.resnet18(weights=None, num_classes=10).double()
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False).double()
    theirs.maxpool = nn.Identity()
    state = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(state))
    x = draw(3, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))  # batch statistics
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))  # running ones
    assert count(ours) == 11_173_962


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "width", "expected"), [(64, 1.0, 64), (64, 0.25, 16), (16, 0.001, 1), (96, 7, 672)]
)
def test_the_width_multiplier_rounds_and_leaves_a_unit(units, width, expected):
    assert scaled(units, width) == expected


@pytest.mark.parametrize("name", sorted(set(models.MODELS) - {"mnist_convnet", "row_lstm", "vit"}))
@pytest.mark.parametrize("activation", sorted(models.ACTIVATIONS))
def test_every_activation_is_the_one_asked_for(name, activation):
    size = {} if name == "mlp" else {"width": 0.02}
    model = models.build(name, activation=activation, **size)
    found = [m for key, m in model.named_modules() if key.split(".")[-1].startswith("act")]
    assert found and {type(m) for m in found} == {models.ACTIVATIONS[activation]}
