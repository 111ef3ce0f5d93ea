"""The CIFAR-10 convnets of Zhang et al. 2017. Options: see `build`."""

from torch import nn

from replication._core.inputs import as_integer
from replication.models._layers import (
    Concatenation,
    dropout_layer,
    initialise,
    pooled_readout,
    scaled,
    sequence,
    unit,
)


def small_alexnet(
    classes: int = 10, channels: int = 3, size: int = 28, width: float = 1.0, dropout: float = 0.0
) -> nn.Sequential:
    """Return the small AlexNet of Zhang et al. 2017 (appendix A, Table 1): 1,387,786 parameters.

    Layers: ``conv1, act1, pool1, norm1, conv2, act2, pool2, norm2, flatten, fc1, act3, drop1, fc2,
    act4, drop2, fc3``, where ``norm`` is local response normalisation. Dropout, which the paper has
    not, comes after the hidden dense layers. `size` is 28 after the paper's crop, 32 for whole
    CIFAR-10 images.

    The parameter count fixes 64 channels and 7x7 positions before ``fc1``. Ours: zero padding of 2
    and pooling padded by 1; the normalisation's constants, which are those of the TensorFlow
    tutorial network that has the same layers (9 channels, alpha 0.001/9, beta 0.75, k 1).
    """
    side = as_integer(size, "size", 1)
    maps = scaled(64, width)
    layers: dict[str, nn.Module] = {}
    for index, fan_in in enumerate((as_integer(channels, "channels", 1), maps), start=1):
        convolution = nn.Conv2d(fan_in, maps, 5, padding=2)
        layers |= unit(f"conv{index}", convolution, index)
        layers[f"pool{index}"] = nn.MaxPool2d(3, 2, padding=1)
        layers[f"norm{index}"] = nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0)
        side = (side + 1) // 2
    layers["flatten"] = nn.Flatten()
    fan_in = maps * side**2
    for index, units in enumerate((384, 192), start=1):
        dense = nn.Linear(fan_in, scaled(units, width))
        layers |= unit(f"fc{index}", dense, index + 2) | dropout_layer(dropout, f"drop{index}")
        fan_in = dense.out_features
    return sequence(layers | {"fc3": nn.Linear(fan_in, as_integer(classes, "classes", 1))})


def small_inception(
    classes: int = 10,
    channels: int = 3,
    width: float = 1.0,
    batch_norm: bool = True,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return the small Inception of Zhang et al. 2017 (appendix A, Figure 3; Table 1).

    With every convolution followed by batch normalisation and ReLU: 3x3 with 96 channels,
    Inception (32, 32), (32, 48), downsampling 80, Inception (112, 48), (96, 64), (80, 80),
    (48, 96), downsampling 96, Inception (176, 160) twice, the mean over positions, logits.
    Inception (a, b) is a 1x1 convolution with a channels beside a 3x3 one with b; downsampling c is
    a 3x3 convolution with stride 2 and c channels beside 3x3 max pooling with stride 2.

    Layers: ``conv1, bn1, act1, inc1, inc2, down1, inc3, inc4, inc5, inc6, down2, inc7, inc8, pool,
    flatten, drop, fc``, where ``inc1`` has ``conv1x1`` and ``conv3x3``, each ``conv, bn, act``, and
    ``down1`` has ``conv3x3`` and ``pool3x3``. Dropout, which the paper has not, comes before ``fc``
    only. Images of any size; the paper's are 28x28. 1,649,402 parameters beside those of the batch
    normalisation, as in the paper's table; with them 1,652,826.

    Ours: zero padding of 1 where the stride is 2, and convolutions that start with normal weights
    of variance 2 / fan_in and biases of 0 (He et al. 2015, eq. 10). With torch's default, images
    could hardly be told apart behind so many layers without batch normalisation.
    """

    def convolution(fan_in: int, fan_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
        affine = nn.Conv2d(fan_in, fan_out, kernel, stride, padding=kernel // 2)
        return sequence(unit("conv", affine, "", batch_norm))

    first = nn.Conv2d(as_integer(channels, "channels", 1), scaled(96, width), 3, padding=1)
    layers: dict[str, nn.Module] = unit("conv1", first, 1, batch_norm)
    fan_in = first.out_channels
    stages = (
        *(("inc1", 32, 32), ("inc2", 32, 48), ("down1", 80)),
        *(("inc3", 112, 48), ("inc4", 96, 64), ("inc5", 80, 80), ("inc6", 48, 96), ("down2", 96)),
        *(("inc7", 176, 160), ("inc8", 176, 160)),
    )
    for name, *units in stages:
        maps = [scaled(number, width) for number in units]
        if len(maps) == 2:
            layers[name] = Concatenation(
                conv1x1=convolution(fan_in, maps[0], 1), conv3x3=convolution(fan_in, maps[1], 3)
            )
            fan_in = sum(maps)
        else:
            layers[name] = Concatenation(
                conv3x3=convolution(fan_in, maps[0], 3, stride=2),
                pool3x3=nn.MaxPool2d(3, 2, padding=1),
            )
            fan_in += maps[0]
    model = sequence(layers | pooled_readout(fan_in, classes, dropout))
    initialise(model, nn.init.kaiming_normal_, nn.Conv2d)
    return model
