"""A network as a list of steps, affine or piecewise linear, on rows of examples.

Every step knows how large the terms are that its output is a sum of: of z = Wx + b they are at most
|W| 1 r + |b| where no |x_j| exceeds r. Rounding moves z by a few units of precision of that, and
what is nearer than that to a kink is on it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

ROUNDING = 32
"""Units of precision, of the terms of a sum, below which a number is rounding."""


@dataclass(frozen=True)
class Affine:
    """An affine function of rows of examples.

    `linear` is `forward` without its constant, and `absolute` is `linear` with absolute weights.
    """

    sources: tuple[int, ...]
    forward: Callable[..., Tensor]
    linear: Callable[..., Tensor]
    absolute: Callable[..., Tensor]
    released: tuple[int, ...] = ()


@dataclass(frozen=True)
class Activation:
    """A piecewise-linear function of each unit z, the same for all.

    Attributes
    ----------
    name : str
    sources : tuple with one slot
    forward : callable
    thresholds : tuple of 1 or 2
        Where its slope changes. The state is 0 for z <= the first, 1 behind it and 2 for z >= the
        second, so that on a threshold the slope is torch's.
    pieces : tuple of (slope, intercept), one a state
    scale, offset : (units,)
        The terms of z are at most ``scale * r + offset``, r being that of its row.
    """

    name: str
    sources: tuple[int]
    forward: Callable[[Tensor], Tensor]
    thresholds: tuple[float, ...]
    pieces: tuple[tuple[float, float], ...]
    scale: Tensor | None = None
    offset: Tensor | None = None
    released: tuple[int, ...] = ()

    def states(self, z: Tensor) -> Tensor:
        """Return the state of every unit: bool, or int8 where there are three."""
        states = z > self.thresholds[0]
        if len(self.thresholds) == 1:
            return states
        return states.to(torch.int8).add_(z >= self.thresholds[1])

    def coefficients(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return slopes and intercepts of units in these states."""
        pieces = torch.tensor(self.pieces, dtype=self.scale.dtype, device=states.device)
        return pieces[states.long()].unbind(-1)


@dataclass(frozen=True)
class MaxPool:
    """A maximum over windows; `windows` (W, k) holds flat input units, their number as filler.

    `scale` and `offset` are those of its windows, (W,), as `Activation` has them of its units.
    """

    name: str
    sources: tuple[int]
    forward: Callable[[Tensor], Tensor]
    windows: Tensor
    scale: Tensor | None = None
    offset: Tensor | None = None
    released: tuple[int, ...] = ()

    def candidates(self, x: Tensor) -> Tensor:
        """Return the input (rows, ...) by windows, (rows, W, k), a low number as filler."""
        filler = x.new_full((len(x), 1), -torch.finfo(x.dtype).max / 4)
        return torch.cat([x.flatten(1), filler], 1)[:, self.windows]

    def attains(self, candidates: Tensor, magnitude: Tensor) -> Tensor:
        """Return which candidates are the largest of their window up to rounding."""
        rounding = ROUNDING * torch.finfo(candidates.dtype).eps
        slack = rounding * torch.addcmul(self.offset, magnitude[:, None], self.scale)
        return candidates >= (candidates.amax(2) - slack)[..., None]


Step = Affine | Activation | MaxPool


@dataclass(frozen=True)
class Program:
    """Steps in order; step i reads its sources and writes slot i + 1. The input is slot 0.

    Attributes
    ----------
    steps : tuple of steps
        Each names the slots that nothing behind it reads as `released`.
    output : int or None
        Slot of the network's output; None if only what happens inside is asked for.
    scale, offset : (outputs,)
        The terms of the output are at most ``scale * r + offset``, r being that of its row.
    row_size : int
        About how many numbers one example takes that is kept at every nonlinear step.
    """

    steps: tuple[Step, ...]
    output: int | None
    scale: Tensor
    offset: Tensor
    row_size: int

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights and all that is worked out."""
        return self.scale.dtype

    @property
    def device(self) -> torch.device:
        """That of the weights."""
        return self.scale.device

    @property
    def activations(self) -> list[Activation]:
        """The steps whose units have states."""
        return [step for step in self.steps if isinstance(step, Activation)]

    def hidden(self) -> "Program":
        """Return the program up to the input of the last nonlinear step."""
        nonlinear = [i for i, step in enumerate(self.steps) if not isinstance(step, Affine)]
        return replace(self, steps=self.steps[: max(nonlinear, default=-1) + 1], output=None)

    def rows(self, memory: int) -> int:
        """Return how many rows fit into `memory` bytes, 2 at least."""
        return max(2, memory // (self.row_size * self.dtype.itemsize))
