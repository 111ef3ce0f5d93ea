"""Images and labels, and the training and test half of a data set."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from replication.data import _locations


@dataclass(frozen=True, eq=False)
class Examples:
    """Images, float32 in [0, 1], (N, C, H, W), and their labels, int64, (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Split:
    """Training and test examples of one data set and where they come from."""

    train: Examples
    test: Examples
    name: str
    classes: tuple[str, ...]
    source: str  #: where the images were found and what is special about them, without a path
    substitute: bool = False  #: whether another data set than the one asked for is used
    available: tuple[int, int] | None = None  #: training and test images that the source holds
    preprocessing: tuple[str, ...] = ()  #: what `preprocess` did to the images

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

    def with_images(self, change: Callable[[Tensor], Tensor]) -> "Split":
        """Return the split with what `change` makes of its training and of its test images.

        On the CPU, so that the digest is the same wherever they lie.
        """

        def half(old: Examples) -> Examples:
            return Examples(change(old.images.cpu()).to(old.images.device), old.labels)

        return dataclasses.replace(self, train=half(self.train), test=half(self.test))
