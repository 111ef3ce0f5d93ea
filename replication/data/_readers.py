"""Read the data sets that `replication.data._locations` finds.

Images are decoded only for the indices asked for. CIFAR's pickles are read by torchvision, after
its md5 check; IDX files here, since torchvision neither takes gzip nor checks the size of images.
"""

import functools
import gzip
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from replication.data._locations import INFO, Location, again

# Takes indices, or None for all; gives the images (n, C, H, W), uint8, and whether one was a JPEG.
Images = Callable[[np.ndarray | None], tuple[np.ndarray, bool]]


def read(location: Location, part: str) -> tuple[np.ndarray, Images]:
    """Return the labels (N,), int64, of the ``"train"`` or ``"test"`` half, and its images.

    A file that is missing, truncated or not what it should be is a ValueError that names it.
    """
    name, info = location.name, INFO[location.name]
    if location.fault:
        raise ValueError(f"{location.fault}; {again(name)}")
    files = location.train if part == "train" else location.test
    if location.layout == "parquet":
        return _parquet(name, files)
    if location.layout == "embedded":
        images, labels = _embedded(files[0], part)
    elif info.meta:
        images, labels = _pickled(location, part)
    else:
        with _naming(files[0], name):
            images = _idx(files[0], 3)[:, None]
        with _naming(files[1], name):
            labels = _checked(_idx(files[1], 1), name)
            if images.shape != (len(labels), *info.shape):
                given = f"{len(images):,} images of {images.shape[2]} x {images.shape[3]} pixels"
                raise ValueError(
                    f"it holds {len(labels):,} labels and {files[0].name} holds {given}"
                )

    def held(indices: np.ndarray | None) -> tuple[np.ndarray, bool]:
        return (images if indices is None else images[indices]), False

    return labels.astype(np.int64), held


@contextmanager
def _naming(file: Path, name: str) -> Iterator[None]:
    """Name the file in whatever error reading it raises, and say how to get it again."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{file} cannot be read ({error}); {again(name)}") from error


def _checked(labels: np.ndarray, name: str) -> np.ndarray:
    """Return `labels`, (N,), when there are some and all name a class."""
    classes = len(INFO[name].classes)
    if not len(labels):
        raise ValueError("it holds no examples")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(f"it holds the label {wrong[0]}, expected 0 to {classes - 1}")
    return labels


def _idx(file: Path, dimensions: int) -> np.ndarray:
    """Return an IDX file of bytes, gzipped or not, as an array of so many dimensions."""
    with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as source:
        content = source.read()
    header = 4 * (dimensions + 1)
    magic, *shape = struct.unpack(f">{dimensions + 1}I", content[:header])
    if magic != 0x800 + dimensions:
        raise ValueError(f"it is not an IDX file of bytes in {dimensions} dimension(s)")
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise ValueError(f"it holds {len(content):,} bytes, expected {expected:,} for {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _pickled(location: Location, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Let torchvision read CIFAR's pickles; it unpickles nothing whose md5 is not the known one."""
    from replication._core.vision import datasets

    kind = getattr(datasets, INFO[location.name].torchvision)
    for file, md5 in [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]:
        with _naming(location.folder / file, location.name):
            if not datasets.utils.check_integrity(location.folder / file, md5):
                raise ValueError(f"its md5 is not {md5}: truncated or damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy >= 2.4 warns of the old pickles' dtype
        held = kind(location.folder.parent, train=part == "train")
    return held.data.transpose(0, 3, 1, 2), np.asarray(held.targets)


def _parquet(name: str, files: tuple[Path, ...]) -> tuple[np.ndarray, Images]:
    """Read Parquet files with a column `img` or `image` {bytes, path} and one of labels."""
    shape, labels, encoded, places = INFO[name].shape, [], [], []
    for file in files:
        with _naming(file, name), pq.ParquetFile(file) as shard:
            columns = shard.schema_arrow.names
            image = "img" if "img" in columns else "image"
            label = "fine_label" if name == "cifar100" and "fine_label" in columns else "label"
            table = shard.read(columns=[f"{image}.bytes", label])
            if set(table.column_names) != {image, label}:
                expected = f"img or image, a struct with bytes, and {label}"
                raise ValueError(f"its columns are {', '.join(columns)}; expected {expected}")
            if not pa.types.is_integer(table[label].type) or table[label].null_count:
                raise ValueError(f"column {label} is not made of integers without gaps")
            labels.append(_checked(table[label].to_numpy(), name).astype(np.int64))
            encoded += table[image].flatten()[0].to_pylist()
            places += [(row, file) for row in range(len(table))]

    def images(indices: np.ndarray | None) -> tuple[np.ndarray, bool]:
        indices = range(len(encoded)) if indices is None else indices
        pixels, jpeg = np.empty((len(indices), *shape), np.uint8), False
        for slot, index in enumerate(indices):
            try:
                pixels[slot], lossy = _decode(encoded[index], shape)
            except ValueError as error:
                row, file = places[index]
                raise ValueError(f"image {row:,} of {file} {error}; {again(name)}") from error
            jpeg |= lossy
        return pixels, jpeg

    return np.concatenate(labels), images


def _decode(content: bytes | None, shape: tuple[int, int, int]) -> tuple[np.ndarray, bool]:
    """Decode one PNG or JPEG to (C, H, W) bytes; the size is checked before anything is decoded."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content or b""), formats=("PNG", "JPEG")) as image:
            size, jpeg = image.size, image.format == "JPEG"
            if size == (shape[2], shape[1]):
                pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB"))
                return pixels.reshape(*shape[1:], shape[0]).transpose(2, 0, 1), jpeg
    except Exception as error:  # a damaged image makes Pillow raise nearly anything
        raise ValueError("cannot be decoded as PNG or JPEG") from error
    raise ValueError(f"has {size[0]} x {size[1]} pixels, expected {shape[2]} x {shape[1]}")


@functools.lru_cache(maxsize=2)
def _embedded(file: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return 400 training or 100 test images a class of the 5,000 digits, always the same."""
    table = np.loadtxt(file, np.uint8, delimiter=",")  # mnist_data() takes five times longer
    labels = table[:, -1]
    source = np.random.RandomState(5000)  # whose stream is frozen
    members = [source.permutation(np.flatnonzero(labels == c)) for c in range(10)]
    train = source.permutation(np.concatenate([m[:400] for m in members]))
    test = source.permutation(np.concatenate([m[400:] for m in members]))
    chosen = train if part == "train" else test
    return table[chosen, :-1].reshape(-1, 1, 28, 28), labels[chosen]
