"""Images and labels, and the training and test half of a data set."""

import dataclasses
import functools
import hashlib
from dataclasses import dataclass

import torch

from replication.data import _locations


@dataclass(frozen=True, eq=False)
class Examples:
    """Images, float32 in [0, 1], (N, C, H, W), and their labels, int64, (N,)."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Split:
    """Training and test examples of one data set and where they come from.

    `source` says where the images were found and what is special about them, without any path of
    the machine. `substitute` is true when another data set than the one asked for is used.
    `available` counts the training and test images that the source holds, `preprocessing` says
    what `preprocess` did to the images.
    """

    train: Examples
    test: Examples
    name: str
    classes: tuple[str, ...]
    source: str
    substitute: bool = False
    available: tuple[int, int] | None = None
    preprocessing: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @functools.cached_property
    def digest(self) -> str:
        """Hex digest (BLAKE2b) of the shapes and bytes of the four tensors, on whatever device."""
        state = hashlib.blake2b(digest_size=16)
        for half in (self.train, self.test):
            for tensor in (half.images, half.labels):
                state.update(repr((str(tensor.dtype), tuple(tensor.shape))).encode())
                state.update(tensor.cpu().contiguous().numpy().data)
        return state.hexdigest()

    def describe(self) -> str:
        """Return one line such as "MNIST, 2,000 of 60,000 training and 10,000 test images"."""
        sizes = len(self.train), len(self.test)
        train, test = (
            f"{n:,}" if n == of else f"{n:,} of {of:,}"
            for n, of in zip(sizes, self.available or sizes, strict=True)
        )
        title = _locations.INFO[self.name].title if self.name in _locations.INFO else self.name
        note = " (a substitute for MNIST)" if self.substitute else ""
        done = "".join(f", {step}" for step in self.preprocessing)
        return f"{title}, {train} training and {test} test images{note}{done}"

    def to(self, device: str | torch.device) -> "Split":
        """Return the same split with its tensors on `device`."""
        train, test = (
            Examples(half.images.to(device), half.labels.to(device))
            for half in (self.train, self.test)
        )
        moved = dataclasses.replace(self, train=train, test=test)
        if "digest" in self.__dict__:
            moved.__dict__["digest"] = self.digest
        return moved
