"""What the networks of `models` are made of: checked options, named layers, small modules."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from replication._core.inputs import as_choice, as_integer, as_number

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "tanh": nn.Tanh,
    "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid,
}


def activate(name: str) -> nn.Module:
    """Return the activation called `name`; an unknown one is a ValueError."""
    return ACTIVATIONS[as_choice(name, "activation", ACTIVATIONS)]()


def as_flag(value: bool, name: str) -> bool:
    """Return `value` as a bool; anything but True or False is a ValueError."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: expected True or False, found {value!r}")
    return bool(value)


def scaled(units: int, width: float) -> int:
    """Return `units` times the multiplier `width`, to the nearest integer and at least 1."""
    return max(1, round(units * as_number(width, "width", positive=True)))


def dropout_layer(share: float, name: str) -> dict[str, nn.Module]:
    """Return the layer `name` that drops a share of its input, or nothing where the share is 0."""
    if isinstance(share, bool) or not (isinstance(share, Real) and 0 <= share < 1):
        raise ValueError(f"dropout: expected a number in [0, 1), found {share!r}")
    return {name: nn.Dropout(float(share))} if share else {}


def initialise(network: nn.Module, draw: Callable[[Tensor], object], *kinds: Any) -> None:
    """Draw the weights of the layers of some `kinds`; their biases are 0."""
    for layer in network.modules():
        if isinstance(layer, kinds):
            draw(layer.weight)
            nn.init.zeros_(layer.bias)


def unit(
    name: str,
    affine: nn.Linear | nn.Conv2d,
    index: int | str,
    batch_norm: bool = False,
    dropout: float = 0.0,
    activation: str = "relu",
) -> dict[str, nn.Module]:
    """Return `affine` under its name, then ``bn, act, drop`` with `index`; what is off is absent.

    Batch normalisation comes before the activation as in Ioffe & Szegedy 2015, section 3.2.
    """
    layers: dict[str, nn.Module] = {name: affine}
    if as_flag(batch_norm, "batch_norm"):
        norm = nn.BatchNorm2d if isinstance(affine, nn.Conv2d) else nn.BatchNorm1d
        layers[f"bn{index}"] = norm(len(affine.weight))
    layers[f"act{index}"] = activate(activation)
    return layers | dropout_layer(dropout, f"drop{index}")


def sequence(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    """Return the named layers as one network."""
    return nn.Sequential(OrderedDict(layers))


def pooled_readout(features: int, classes: int, dropout: float = 0.0) -> dict[str, nn.Module]:
    """Return ``pool, flatten, drop, fc``: mean over positions, (N, features, H, W) to logits."""
    pool = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    readout = nn.Linear(features, as_integer(classes, "classes", 1))
    return pool | dropout_layer(dropout, "drop") | {"fc": readout}


class Concatenation(nn.Module):
    """Named branches of one input, their outputs side by side in the channel dimension."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the branches, (N, sum of their channels, H, W)."""
        return torch.cat([branch(x) for branch in self.children()], dim=1)
