"""A network as a list of steps, affine or piecewise linear, on rows of examples.

Every step knows how large the terms are that its output is a sum of: of z = Wx + b they are at most
|W| 1 r + |b| where no |x_j| exceeds r, as ``scale * r + offset``. Rounding moves z by a few units
of precision of that, and what is nearer than that to a kink is on it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 32
"""Units of precision, of the terms of a sum, below which a number is rounding."""


UNKNOWN = torch.empty(0)  # before the step's place in the network is known


@dataclass(frozen=True, kw_only=True)
class Step:
    """Reads the slots `sources` and writes the slot `target`; slot 0 is the network's input.

    No later step reads those that it has `released`.
    """

    sources: tuple[int, ...] = ()
    target: int = 0
    released: tuple[int, ...] = ()


@dataclass(frozen=True)
class Affine(Step):
    """An affine function; `linear` is without its constant, `absolute` also of absolute weights."""

    forward: Callable[..., Tensor]
    linear: Callable[..., Tensor]
    absolute: Callable[..., Tensor]


@dataclass(frozen=True)
class Activation(Step):
    """A piecewise-linear function of each unit z, the same for all.

    `thresholds` are where its slope changes, 1 or 2: the state is 0 for z <= the first, 1 behind it
    and 2 for z >= the second, so that on a threshold the slope is torch's. `pieces` are slope and
    intercept of every state. `scale` and `offset` (units,) are of the terms of z.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    thresholds: tuple[float, ...]
    pieces: tuple[tuple[float, float], ...]
    scale: Tensor = UNKNOWN
    offset: Tensor = UNKNOWN

    @property
    def choices(self) -> int:
        """How many states there are."""
        return len(self.pieces)

    def behind(self, z: Tensor, number: int) -> Tensor:
        """Return whether units are behind a threshold; on the second they are, on the first not."""
        threshold = self.thresholds[number]
        return z >= threshold if number else z > threshold

    def states(self, z: Tensor, beside: Tensor | None = None) -> Tensor:
        """Return the state of every unit: bool, or int8 where there are three.

        With `beside`, of units on a threshold the state right beside it, on the side of `beside`.
        """
        behind = [self.behind(z, number) for number in range(len(self.thresholds))]
        if beside is not None:
            for number, threshold in enumerate(self.thresholds):
                off = z != threshold
                behind[number] = behind[number].where(off, self.behind(beside, number))
        return behind[0] if len(behind) == 1 else behind[0].to(torch.int8).add_(behind[1])

    def coefficients(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return slopes and intercepts of units in these states."""
        pieces = torch.tensor(self.pieces, dtype=self.scale.dtype, device=states.device)
        slopes, intercepts = pieces[states.long()].unbind(-1)
        return slopes, intercepts


@dataclass(frozen=True)
class MaxPool(Step):
    """A maximum over windows; `windows` (W, k) holds flat input units, their number as filler.

    `scale` and `offset` (W,) are of the terms of a window's inputs.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    windows: Tensor
    scale: Tensor = UNKNOWN
    offset: Tensor = UNKNOWN

    @property
    def choices(self) -> int:
        """How many states a window has: the numbers of its inputs."""
        return self.windows.shape[1]

    def candidates(self, x: Tensor) -> Tensor:
        """Return the input (rows, ...) by windows, (rows, W, k), a low number as filler."""
        filler = x.new_full((len(x), 1), -torch.finfo(x.dtype).max / 4)
        return torch.cat([x.flatten(1), filler], 1)[:, self.windows]

    def attains(self, candidates: Tensor, magnitude: Tensor) -> Tensor:
        """Return which candidates are the largest of their window up to rounding."""
        rounding = ROUNDING * torch.finfo(candidates.dtype).eps
        slack = rounding * torch.addcmul(self.offset, magnitude[:, None], self.scale)
        return candidates >= (candidates.amax(2) - slack)[..., None]

    def states(self, x: Tensor, magnitude: Tensor) -> Tensor:
        """Return which input of x (rows, ...) is the largest of each window, the first of equals.

        Equal up to rounding, as of two that are the same function either may come out larger.
        """
        return self.attains(self.candidates(x), magnitude).byte().argmax(2)


AnyStep = Affine | Activation | MaxPool


def after(live: dict, step: Step, output: object) -> dict:
    """Return what is still to be read after a step, by slot, its output among it."""
    kept = {slot: value for slot, value in live.items() if slot not in step.released}
    return kept | {step.target: output}


@dataclass(frozen=True)
class Program:
    """Steps in order.

    `output` is the slot of the network's output, or None if only what happens inside is asked for;
    then the last step is not affine. `scale` and `offset` (outputs,) are of the terms of the
    output; `row_size` is about how many numbers an example takes that is kept at every nonlinear
    step.
    """

    steps: tuple[AnyStep, ...]
    output: int | None
    scale: Tensor
    offset: Tensor
    row_size: int

    @property
    def dtype(self) -> torch.dtype:
        return self.scale.dtype

    @property
    def device(self) -> torch.device:
        return self.scale.device

    @property
    def activations(self) -> list[str]:
        """Names of the steps whose units have states."""
        return [step.name for step in self.steps if isinstance(step, Activation)]

    @property
    def pools(self) -> list[str]:
        """Names of the max-pooling steps."""
        return [step.name for step in self.steps if isinstance(step, MaxPool)]

    def rows(self, memory: int) -> int:
        """Return how many rows fit into `memory` bytes, 2 at least."""
        return max(2, memory // (self.row_size * self.dtype.itemsize))

    def states(self, x: Tensor) -> Iterator[tuple[Activation, Tensor]]:
        """Yield each activation with the states (n, units) of its units at examples x (n, ...)."""
        live = {0: x}
        for step in self.steps:
            inputs = [live[slot] for slot in step.sources]
            if isinstance(step, Activation):
                yield step, step.states(inputs[0].flatten(1))
            live = after(live, step, step.forward(*inputs))

    def codes(self, x: Tensor) -> Iterator[tuple[Activation | MaxPool, Tensor]]:
        """Yield as `states` does, and max pooling with the states (n, W) of its windows."""
        live = {0: (x, x.flatten(1).abs().amax(1))}
        for step in self.steps:
            values, sizes = zip(*[live[slot] for slot in step.sources], strict=True)
            size = torch.stack(sizes).amax(0)
            if isinstance(step, Activation):
                yield step, step.states(values[0].flatten(1))
                size = values[0].flatten(1).abs().amax(1)
            elif isinstance(step, MaxPool):
                yield step, step.states(values[0], size)
            live = after(live, step, (step.forward(*values), size))
