"""Data files that are damaged, missing or not what they should be: named, with what to do."""

import _data_files
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _data_files import (
    IDX_FILES,
    colours,
    digits,
    encode,
    idx,
    write_cifar10_parquet,
    write_idx,
    write_parquet,
)

from replication import data

place = _data_files.place


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


@pytest.mark.parametrize("missing", IDX_FILES[:2])
def test_labels_without_images_are_a_fault_and_images_alone_too(place, missing):
    (write_idx(place) / missing).unlink()
    assert data.locate("mnist").fault and "incomplete" in str(data.locate("mnist"))
    with pytest.raises(ValueError, match=rf"{missing} missing in .*{again()}"):
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


@pytest.mark.parametrize("bad", ["cut", b"", b"not an image", None])
def test_undecodable_images_are_named(place, bad):
    folder = write_cifar10_parquet(place)
    good = encode(colours(1)[0][0], "PNG")
    bad = good[: len(good) // 2] if bad == "cut" else bad
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
