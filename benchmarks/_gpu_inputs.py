"""Fixed inputs on which every numerical function must give on a GPU what it gives on the CPU.

Inputs are float32 numbers, held in float64 too: both dtypes see the same ones, and what is left is
the error of the arithmetic.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from replication import models

CONVOLUTION = 5e-3  # in the caller's hands torch lets cuDNN convolve float32 in TF32, with 10 bits
EVALUATED = 1e-4  # the functions that run a network themselves switch that off
ONE_FLIP = 0.02  # one of 64 images classified otherwise, for shares of images


@dataclass(frozen=True)
class Place:
    """Where a case runs, and in which dtype."""

    device: torch.device
    dtype: torch.dtype

    def __call__(self, value: Tensor | nn.Module) -> Tensor | nn.Module:
        """Return a copy of a tensor or network there; of integers, only the device changes."""
        if isinstance(value, nn.Module):
            return copy.deepcopy(value).to(self.device, self.dtype)
        return value.to(self.device, self.dtype if value.is_floating_point() else None)


@dataclass(frozen=True)
class Case:
    """A call whose numbers are compared, and the largest error allowed in each dtype."""

    function: str
    what: str
    run: Callable[[Place], Sequence[Tensor | float]]
    float64: float = 1e-10
    float32: float = 1e-4
    by_dtype: bool = False  # whether random numbers depend on the dtype: compared within it


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return Gaussian numbers that float32 holds exactly, in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@cache
def layers(kind: str) -> tuple[Tensor, Tensor]:
    """Return two layers: healthy, degenerate, or of more neurons than examples."""
    examples, width = (24, 40) if kind == "wide" else (400, 20)
    x = draw(examples, width)
    y = (
        x @ draw(width, width - 4, seed=1) / width**0.5 + draw(examples, width - 4, seed=2)
    ).float()
    if kind == "degenerate":
        x, y = x.clone(), y.clone()
        x[:, 0], x[:, 1], x[:, 2] = 0, 3, x[:, 3]  # dead, constant, a copy
        x[:, 4], x[:, 5] = x[:, 6] * 2**-20, x[:, 7] * 2**20  # copies at other scales
        y = y[:, :1]  # one neuron
    return x, y.double()


@cache
def maps() -> tuple[Tensor, Tensor]:
    """Return two convolutional layers, one with a dead and a copied channel."""
    x, y = draw(120, 6, 8, 8), draw(120, 4, 8, 8, seed=1)
    y[:, :3] += x[:, :3]
    y = y.float().double()
    x[:, 0], x[:, 1] = 0, x[:, 2]
    return x, y


@cache
def mlp() -> nn.Module:
    """Return a network of 36-16-16-5 whose weights are larger than usual, for many regions."""
    model = models.build("mlp", inputs=36, widths=(16, 16), classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2
    return model.double()


@cache
def convnet(pool: type[nn.Module] = nn.MaxPool2d) -> nn.Module:
    """Return a small convolutional network for images of 10 x 10."""
    shapes = {"conv1": (4, 1, 3, 3), "conv2": (6, 4, 3, 3), "fc": (5, 24)}
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 4, 3),
            act1=nn.ReLU(),
            pool=pool(2),
            conv2=nn.Conv2d(4, 6, 3),
            act2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc=nn.Linear(24, 5),
        )
    ).double()
    with torch.no_grad():
        for seed, (name, shape) in enumerate(shapes.items()):
            layer = model.get_submodule(name)
            layer.weight.copy_(draw(*shape, seed=seed) * 0.5)
            layer.bias.copy_(draw(shape[0], seed=seed + 10) * 0.5)
    return model


def pictures(count: int = 64, size: int = 6) -> Tensor:
    """Return one-channel images."""
    return draw(count, 1, size, size, seed=5)


def labels(count: int = 64, classes: int = 5) -> Tensor:
    """Return the classes in turn, so that each occurs."""
    return torch.arange(count) % classes


def states(model: nn.Module) -> list[Tensor]:
    """Return the parameters and the other floating numbers of a network."""
    return [value for value in model.state_dict().values() if value.is_floating_point()]


def scaled(model: nn.Module, factor: float) -> nn.Module:
    """Return a copy of the network with its last layer's weights multiplied."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        list(model.parameters())[-2].mul_(factor)
    return model.float().double()
