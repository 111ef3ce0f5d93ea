"""Networks from files and data from folders: what is read, and what is refused and how."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file, save_model
from torch import nn
from torch.utils.data import TensorDataset

from replication import activations, data
from replication.papers import own_models


def mlp(hidden=5):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, hidden), nn.ReLU(), nn.Linear(hidden, 3))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


class Odd(nn.Module):
    """Tokens, dicts, something idle, and an output without the examples first."""

    class Body(nn.Module):
        def forward(self, x):
            return {"low": x, "high": x.mean(1)}

    class Turned(nn.Module):
        def forward(self, x):
            return x.transpose(0, 1)

    def __init__(self):
        super().__init__()
        self.embedding, self.drop = nn.Embedding(7, 4), nn.Dropout()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.body, self.turned = self.Body(), self.Turned()

    def forward(self, tokens):
        maps = self.body(self.encoder(self.drop(self.embedding(tokens))))
        self.turned(maps["low"])
        return {"logits": maps["high"]}


def write(folder, count, size=(6, 6), mode="RGB"):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        colour = index if mode == "L" else (index, 0, 255)
        Image.new(mode, size, colour).save(folder / f"{index}.png")


def first_batch(source, *arguments, batch_size=2000, **options):
    dataset = own_models.load_dataset(source, *arguments, **options)
    return next(own_models.batches(dataset, batch_size))


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(mlp().state_dict(), path)
    return path


# --- weights -----------------------------------------------------------------------------------


def test_weights_are_those_of_the_file(tmp_path):
    model, path = mlp().double(), tmp_path / "a.safetensors"
    save_file(model.state_dict(), path)
    loaded, transform = own_models.load(path, mlp)
    assert transform is None and not loaded.training
    for own, other in zip(loaded.parameters(), model.float().parameters(), strict=True):
        assert torch.equal(own, other)
    assert own_models.load(path, lambda: (mlp(), len))[1] is len
    tied = Tied()  # weights that share memory need to be there once
    save_model(tied, path)
    assert torch.equal(own_models.load(path, Tied)[0](torch.ones(2, 4)), tied(torch.ones(2, 4)))


def test_a_header_that_begins_like_a_pickle_is_none(tmp_path):
    # The length of the header, in its first bytes, is a multiple of 8 that grows with the names.
    path, seen = tmp_path / "a.safetensors", set()
    for length in range(8, 300, 8):
        save_file({"x": torch.rand(2), "y" * length: torch.rand(1)}, path)
        seen.add(path.read_bytes()[0])
        with pytest.raises(ValueError, match="not in the network: x, yy"):
            own_models.load(path, nn.ReLU)
    assert 0x80 in seen


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nets_of_mine", "expected module:function, found 'nets_of_mine'"),
        ("nets_of_mine:biuld", "no function 'biuld' in nets_of_mine; did you mean 'build'"),
        ("nets_of_yours:build", "there is no module 'nets_of_yours' here"),
        ("needs_more:build", "module 'needs_more' needs 'nowhere_to_be_found'"),
    ],
)
def test_functions_are_found_by_name(tmp_path, monkeypatch, reference, message):
    (tmp_path / "nets_of_mine.py").write_text("def build(): return 3\nimport math\n")
    (tmp_path / "needs_more.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert own_models.find("nets_of_mine:build")() == 3
    with pytest.raises(ValueError, match=message):
        own_models.find(reference)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(12, 5), r"missing: bias, weight; not in the network: 1\.bias"),
        (
            lambda: mlp(4),
            r"of other shapes: 1\.bias \(5,\) for \(4,\), 1\.weight \(5, 12\) for \(4, 12\)",
        ),
        (lambda width: mlp(), "called without arguments: missing a required argument: 'width'"),
        (lambda: "text", "torch.nn.Module or a pair of it and a transform, found str"),
        (lambda: (mlp(), 3), "found tuple"),
    ],
)
def test_what_does_not_fit_is_named(weights, build, message):
    with pytest.raises(ValueError, match=message):
        own_models.load(weights, build)


def test_pickles_and_other_files_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    for name, zipped in (("zip.safetensors", True), ("old.pt", False)):
        torch.save(Trap(), tmp_path / name, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=f"{name} is a pickle"):
            own_models.load(tmp_path / name, mlp)
    assert not (tmp_path / "run").exists()
    (tmp_path / "text").write_text("not what it says, and long enough")
    for read in (lambda path: own_models.load(path, mlp), own_models.load_dataset):
        with pytest.raises(ValueError, match="is not a safetensors file"):
            read(tmp_path / "text")
    with pytest.raises(ValueError, match="there is no file"):
        own_models.load(tmp_path / "none.safetensors", mlp)


# --- data --------------------------------------------------------------------------------------


def test_a_folder_of_classes_and_a_flat_one(tmp_path):
    write(tmp_path / "classes" / "cat", 3)
    write(tmp_path / "classes" / "dog", 2)
    inputs, labels = first_batch(tmp_path / "classes")
    assert inputs.shape == (5, 3, 6, 6) and labels.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(inputs[2, :, 0, 0], torch.tensor([2 / 255, 0, 1]))
    write(tmp_path / "flat", 4, mode="L")
    inputs, labels = first_batch(str(tmp_path / "flat"))
    assert inputs.shape == (4, 3, 6, 6) and labels.tolist() == [0] * 4


def test_a_transform_gets_pil_images(tmp_path):
    def side(image):
        assert isinstance(image, Image.Image)
        return torch.full((1,), float(image.size[0]))

    write(tmp_path / "a", 1)
    write(tmp_path / "a" / "b", 2, (9, 4))
    assert sorted(first_batch(tmp_path / "a", side)[0][:, 0].tolist()) == [6, 9, 9]
    with pytest.raises(ValueError, match="inputs differ in size; give a transform"):
        first_batch(tmp_path / "a")
    assert first_batch("mnist5k", side, examples=3)[0][:, 0].tolist() == [28, 28, 28]


def test_sets_by_name_are_test_images():
    split = data.load("mnist5k")
    inputs, labels = first_batch("mnist5k")
    assert torch.equal(inputs, split.test.images) and torch.equal(labels, split.test.labels)


def test_examples_are_drawn_by_seed():
    pair = (torch.arange(50), torch.arange(50) % 3)
    draws = [first_batch(pair, examples=20, seed=seed)[0].tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) == 20
    with pytest.raises(ValueError, match="examples: expected at most the 50 there are, found 51"):
        own_models.load_dataset(pair, examples=51)


def test_tensors_from_a_file(tmp_path):
    path = tmp_path / "t.safetensors"
    for tensors, count in (
        ({"anything": torch.rand(4, 2)}, 1),
        ({"inputs": torch.rand(4, 2), "other": torch.rand(3)}, 1),
        ({"images": torch.rand(4, 2), "labels": torch.arange(4)}, 2),
    ):
        save_file(tensors, path)
        batch = first_batch(path)
        assert len(batch) == count and torch.equal(batch[0], next(iter(tensors.values())))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": torch.rand(4), "y": torch.rand(4)}, "expected one tensor in .*found x, y"),
        ({"labels": torch.arange(4)}, "found none"),
        ({"x": torch.rand(4, 2), "labels": torch.arange(3)}, r"labels: expected \(4,\)"),
        ({"x": torch.tensor([[float("nan")]])}, "data: expected finite numbers"),
    ],
)
def test_tensors_that_cannot_be_data(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match=message):
        own_models.load_dataset(tmp_path / "t.safetensors")


def test_data_that_are_not_there(tmp_path):
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    for source, message in (
        (tmp_path / "empty", "no images in"),
        (tmp_path / "empty" / "folder", "no images in"),
        ("mnist5", "no folder or file mnist5, and no data set of that name; did you mean"),
    ):
        with pytest.raises(ValueError, match=message):
            own_models.load_dataset(source)


# --- recording ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [3, 64])
def test_recording_batch_by_batch_is_recording(batch_size):
    model, images = mlp(), torch.rand(10, 3, 2, 2)
    recorded = own_models.record(model, TensorDataset(images), batch_size=batch_size)
    expected = activations.record(model, images)
    assert list(recorded) == list(expected)
    for layer, values in expected.items():
        torch.testing.assert_close(recorded[layer], values)


def test_tokens_dicts_and_what_is_left_out():
    tokens = torch.randint(0, 7, (10, 6), generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="left out: 'turned'"):
        recorded = own_models.record(Odd().double(), TensorDataset(tokens), batch_size=6)
    # 'turned' looks like examples in the first batch, of as many as there are tokens.
    assert "turned" not in recorded and not any("drop" in key for key in recorded)
    assert {"embedding", "encoder", "body[low]", "body[high]"} < set(recorded)
    assert all(values.shape[0] == 10 and values.ndim == 2 for values in recorded.values())
    torch.testing.assert_close(recorded["body[low]"], recorded["body[high]"])


def test_inputs_take_the_dtype_of_the_model_and_a_failure_is_told_in_one_line():
    recorded = own_models.record(mlp().double(), TensorDataset(torch.rand(4, 12)), ["3"])
    assert recorded["3"].dtype == torch.float64 and list(recorded) == ["3"]
    with pytest.raises(ValueError, match=r"Sequential failed on inputs of shape \(4, 5\), torch"):
        own_models.record(mlp(), TensorDataset(torch.rand(4, 5)))


@pytest.mark.parametrize(
    ("shape", "kept"), [((4,), None), ((4, 3), None), ((4, 5, 3), 1), ((4, 3, 2, 2), (2, 3))]
)
def test_units(shape, kept):
    output = torch.arange(np.prod(shape)).reshape(shape)
    expected = output.double().mean(kept) if kept else output.double().reshape(4, -1)
    torch.testing.assert_close(own_models.units(output), expected)


# --- pretrained weights ------------------------------------------------------------------------


def test_pretrained_weights_come_from_the_cache(tmp_path, monkeypatch):
    models = own_models.torchvision().models
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("REPLICATION_OFFLINE", "1")
    with pytest.raises(ValueError, match="REPLICATION_OFFLINE is set"):
        own_models.pretrained("squeezenet1_1")
    with pytest.raises(ValueError, match="found 'resnet19'; did you mean"):
        own_models.pretrained("resnet19")
    network = models.squeezenet1_1()
    name = Path(models.SqueezeNet1_1_Weights.DEFAULT.url).name
    file = tmp_path / "hub" / "checkpoints" / name
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    loaded = own_models.pretrained("squeezenet1_1")
    assert torch.equal(loaded.model.state_dict()["classifier.1.bias"], network.classifier[1].bias)
    assert len(loaded.classes) == 1000 and not loaded.model.training
    assert loaded.transform(Image.new("RGB", (300, 260))).shape == (3, 224, 224)


def test_a_silent_network_is_given_up_soon(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("REPLICATION_OFFLINE", raising=False)

    def refuse(request, timeout):
        raise TimeoutError

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(ValueError, match="no answer from the network within 3 s"):
        own_models.pretrained("squeezenet1_1", timeout=3)


MODES = {  # of an image of two pixels, black and half bright: values, file
    "16 bits": (np.array([[0, 32768]], dtype=np.uint16), "x.png"),
    "16 bits, big end first": (np.array([[0, 32768]], dtype=">u2"), "x.tiff"),
    "32 bits": (np.array([[0, 32768]], dtype=np.int32), "x.tiff"),
    "floats": (np.array([[0, 0.5]], dtype=np.float32), "x.tiff"),
    "grey": (np.array([[0, 128]], dtype=np.uint8), "x.png"),
    "grey, transparent": (np.array([[[0, 255], [128, 9]]], dtype=np.uint8), "x.png"),
    "transparent": (np.array([[[0] * 4, [128] * 3 + [9]]], dtype=np.uint8), "x.png"),
}


@pytest.mark.parametrize("kind", MODES)
def test_brightness_is_read_by_the_range_of_an_image_s_mode(kind, tmp_path):
    values, name = MODES[kind]
    Image.fromarray(values).save(tmp_path / name)
    (pixels,) = first_batch(tmp_path)[:1]
    assert pixels.shape == (1, 3, 1, 2)
    torch.testing.assert_close(
        pixels[0, :, 0], torch.tensor([[0, 128 / 255]] * 3), rtol=0, atol=1e-6
    )


def test_palettes_print_colours_and_what_cannot_be_read(tmp_path):
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png", transparency=1)
    assert own_models.read_image(tmp_path / "a.png").getpixel((0, 0)) == (10, 20, 30)
    Image.new("CMYK", (1, 1), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = own_models.read_image(tmp_path / "a.jpg").getpixel((0, 0))
    assert red > 200 > 60 > max(green, blue)
    Image.fromarray(np.array([[0.0, 7.0]], dtype=np.float32)).save(tmp_path / "b.tiff")
    with pytest.raises(ValueError, match=r"b\.tiff: expected pixels in \[0, 1\], found 0 to 7"):
        own_models.read_image(tmp_path / "b.tiff")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"c\.png is not a whole image"):
        own_models.read_image(tmp_path / "c.png")
