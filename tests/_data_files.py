"""Small data sets on disk, and folders of their own to look for them in."""

import gzip
import io
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from replication import data
from replication.data import _download, _locations

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
    """Return images sorted by class; the first two pixels of each tell its index."""
    labels = np.sort(np.arange(count) % classes)
    images = np.random.default_rng(first).integers(0, 256, (count, *shape), dtype=np.uint8)
    pixels = images if images.ndim == 4 else images[..., None]
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = np.divmod(np.arange(count), 256)
    return images, labels


def idx(array):
    """Return the content of an IDX file of bytes."""
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


def left(root):
    """Return the names of all that is in the folder, at any depth."""
    return sorted(path.name for path in root.rglob("*"))
