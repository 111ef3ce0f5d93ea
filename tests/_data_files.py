"""Small data sets on disk, and folders of their own to look for them in."""

import gzip
import hashlib
import io
import struct
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from replication.data import _download, _locations

IDX_FILES = (*_locations.INFO["mnist"].train, *_locations.INFO["mnist"].test)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Put both folders into `tmp_path`, forget earlier failures and go offline."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "data").mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.setenv("REPLICATION_ROOT", str(root))
    monkeypatch.setenv("REPLICATION_DATA", str(elsewhere))
    monkeypatch.setenv("REPLICATION_OFFLINE", "1")
    monkeypatch.setattr(_download, "_failures", {})
    sys.modules["replication.data.load"]._announce.cache_clear()
    return elsewhere


def digits(count, classes=10, shape=(28, 28)):
    """Return images sorted by class; the first two pixels of each tell its index."""
    labels = np.sort(np.arange(count) % classes)
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    pixels = images if images.ndim == 4 else images[..., None]
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = np.divmod(np.arange(count), 256)
    return images, labels


def colours(count, classes=10):
    return digits(count, classes, (32, 32, 3))


def indices(images):
    """Return the indices that the first two pixels of images (N, C, H, W) in [0, 1] tell."""
    pixels = (images[:, 0, 0, :2] * 255).round().long()
    return pixels[:, 0] * 256 + pixels[:, 1]


def idx(array):
    """Return the content of an IDX file of bytes."""
    array = np.asarray(array, np.uint8)
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + bytes(array)


def archives(train, test):
    """Return the gzipped files of a small MNIST by name; the same bytes each time."""
    files = {}
    for part, count in (("train", train), ("t10k", test)):
        for name, array in zip(("images-idx3", "labels-idx1"), digits(count), strict=True):
            files[f"{part}-{name}-ubyte.gz"] = gzip.compress(idx(array), 1, mtime=0)
    return files


def checksums(files):
    """Return the names and checksums of files as torchvision's `resources` have them."""
    return [(name, hashlib.md5(content).hexdigest()) for name, content in files.items()]


def write_idx(base, folder="MNIST", train=60, test=30, packed=False):
    raw = base / folder / "raw"
    raw.mkdir(parents=True)
    for name, content in archives(train, test).items():
        file = raw / name.removesuffix("" if packed else ".gz")
        file.write_bytes(content if packed else gzip.decompress(content))
    return raw


def encode(image, form):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    return buffer.getvalue()


def write_parquet(folder, part, images, labels, form="PNG", shards=1, column="img", label="label"):
    folder.mkdir(parents=True, exist_ok=True)
    pieces = zip(np.array_split(images, shards), np.array_split(labels, shards), strict=True)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for shard, (pictures, classes) in enumerate(pieces):
        rows = [{"bytes": encode(image, form), "path": "x"} for image in pictures]
        table = pa.table({column: pa.array(rows, kind), label: pa.array(classes, pa.int64())})
        file = folder / f"{part}-{shard:05}-of-{shards:05}.parquet"
        pq.write_table(table, file, row_group_size=7)


def write_cifar10(folder, **more):
    write_parquet(folder, "train", *colours(50), **more)
    write_parquet(folder, "test", *colours(20))
    return folder


def left(root):
    """Return the names of all that is in the folder, at any depth."""
    return sorted(path.name for path in root.rglob("*"))
