"""Convolutional networks of one branch: SVCCA's, Morcos's, Kornblith's. Options: see `build`."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from replication._core.inputs import as_choice, as_integer
from replication.models._layers import initialise, pooled_readout, scaled, sequence, unit


def svcca_convnet(
    classes: int = 10, channels: int = 3, size: int = 32, width: float = 1.0
) -> nn.Sequential:
    """Return the CIFAR-10 convnet of Raghu et al. 2017 (SVCCA; footnote 1, Figures 2 and App. 3).

    Layers, named as in the paper's figures, which leave out the activations: ``c1, act1, c2, bn1,
    act2, p1, c3, act3, c4, act4, c5, bn2, act5, p2, flatten, fc1, bn3, act6, fc2, bn4, act7,
    logits``. `size` is at least 4. Default: 2,335,786 parameters.

    From the paper: the order of the layers, 4096 units in ``p2``, 512 in ``fc1``, 256 in ``fc2``.
    Ours: 3x3 kernels, zero padding, 32, 32, 64, 64, 64 channels, 2x2 max pooling, and the
    activation after batch normalisation.
    """
    size, classes = as_integer(size, "size", 4), as_integer(classes, "classes", 1)
    maps = [as_integer(channels, "channels", 1), *(scaled(n, width) for n in (32, 32, 64, 64, 64))]
    blocks = {2: 1, 5: 2}  # the convolutions with batch normalisation and pooling, by number
    layers: dict[str, nn.Module] = {}
    for index, (fan_in, fan_out) in enumerate(pairwise(maps), start=1):
        layers[f"c{index}"] = nn.Conv2d(fan_in, fan_out, 3, padding=1)
        if index in blocks:
            layers[f"bn{blocks[index]}"] = nn.BatchNorm2d(fan_out)
        layers[f"act{index}"] = nn.ReLU()
        if index in blocks:
            layers[f"p{blocks[index]}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    sizes = [maps[-1] * (size // 4) ** 2, scaled(512, width), scaled(256, width)]
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        layers[f"fc{index}"] = nn.Linear(fan_in, fan_out)
        layers[f"bn{index + 2}"] = nn.BatchNorm1d(fan_out)
        layers[f"act{index + 5}"] = nn.ReLU()
    return sequence(layers | {"logits": nn.Linear(sizes[-1], classes)})


def morcos_convnet(
    classes: int = 10,
    channels: int = 3,
    width: float = 1.0,
    batch_norm: bool = True,
    dropout: float = 0.0,
    init: str = "torch",
) -> nn.Sequential:
    """Return the 11-layer convnet of Morcos et al. 2018 (appendix; also in Morcos et al. 2018b).

    3x3 convolutions; layers ``conv1, bn1, act1, drop1, ..., act11, drop11, pool, flatten, fc``.
    Images of any size. Default: 7,793,610 parameters. Ours, as the papers do not say: zero padding
    of 1, biases beside batch normalisation, the mean over positions before the read-out, dropout of
    single entries and not of whole feature maps. `init`: ``"torch"``, or ``"he"`` (He et al. 2015,
    normal) with biases 0, as so many layers without batch normalisation need.
    """
    maps = (64, 64, *3 * (128,), *3 * (256,), *3 * (512,))
    strides = (1, 1, *3 * (2, 1, 1))
    plan = [(units, 3, stride, 1) for units, stride in zip(maps, strides, strict=True)]
    return _plain(plan, classes, channels, width, batch_norm, dropout, init)


def tiny10(
    classes: int = 10,
    channels: int = 3,
    width: float = 1.0,
    batch_norm: bool = True,
    units: int | None = None,
    init: str = "torch",
) -> nn.Sequential:
    """Return Tiny-10 of Kornblith et al. 2019 (Table E.1), for images of at least 9x9.

    Layers: ``conv1, bn1, act1, ..., conv8, bn8, act8, pool, flatten, fc``. With `units` every
    convolution has so many channels: Width-n (Table E.3). Default: 86,778 parameters. Ours, as the
    paper does not say: biases beside batch normalisation. `init`: as in `morcos_convnet`.
    """
    plan = [(16, 3, 1, 1), (16, 3, 1, 1), (32, 3, 2, 1), (32, 3, 1, 1), (32, 3, 1, 1)]
    plan += [(64, 3, 2, 1), (64, 3, 1, 0), (64, 1, 1, 0)]
    if units is not None:
        maps = as_integer(units, "units", 1)
        plan = [(maps, kernel, stride, pad) for _, kernel, stride, pad in plan]
    return _plain(plan, classes, channels, width, batch_norm, init=init)


def plain(
    depth: int = 10,
    classes: int = 10,
    channels: int = 3,
    width: float = 1.0,
    batch_norm: bool = True,
) -> nn.Sequential:
    """Return Plain-(8n + 2) of Kornblith et al. 2019 (Table E.2), with which depth is studied.

    Layers as in `tiny10`. The paper has `depth` 10, 18, 34 and 66. Default: 1,372,234 parameters.
    """
    n, rest = divmod(as_integer(depth, "depth", 10) - 2, 8)
    if rest:
        raise ValueError(f"depth: expected 8n + 2, such as 10, 18 or 34, found {depth}")
    plan = [*(3 * n - 1) * [(96, 3, 1, 1)], (96, 3, 2, 1)]
    plan += [*(3 * n - 1) * [(192, 3, 1, 1)], (192, 3, 2, 1)]
    plan += [*(n - 1) * [(192, 3, 1, 1)], (192, 3, 1, 0), *n * [(192, 1, 1, 0)]]
    return _plain(plan, classes, channels, width, batch_norm)


def _plain(
    plan: Sequence[tuple[int, int, int, int]],
    classes: int,
    channels: int,
    width: float,
    batch_norm: bool,
    dropout: float = 0.0,
    init: str = "torch",
) -> nn.Sequential:
    """Return convolutions (channels, kernel, stride, padding) in a row and a pooled read-out."""
    layers: dict[str, nn.Module] = {}
    fan_in = as_integer(channels, "channels", 1)
    for index, (units, kernel, stride, padding) in enumerate(plan, start=1):
        fan_out = scaled(units, width)
        convolution = nn.Conv2d(fan_in, fan_out, kernel, stride, padding)
        layers |= unit(f"conv{index}", convolution, index, batch_norm, dropout)
        fan_in = fan_out
    network = sequence(layers | pooled_readout(fan_in, classes))
    if as_choice(init, "init", ("torch", "he")) == "he":
        initialise(network, nn.init.kaiming_normal_, nn.Conv2d)
    return network
