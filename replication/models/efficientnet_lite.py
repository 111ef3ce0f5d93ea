"""EfficientNet-lite0, a network for ImageNet (Tan & Le 2019; the lite family: Liu 2020)."""

from torch import Tensor, nn
from torch.nn import functional as F

from replication.models._layers import pooled_readout, sequence

# Blocks, channels, kernel, stride of the first block, channels within over the input's
_STAGES = (
    (1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6), (3, 80, 3, 2, 6), (3, 112, 5, 1, 6),
    (4, 192, 5, 2, 6), (1, 320, 3, 1, 6),
)  # fmt: skip
_STEM, _HEAD, _EPSILON = 32, 1280, 1e-3


class SameConv2d(nn.Conv2d):
    """A convolution without bias, zeros around as TensorFlow's "same": the odd one last."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(fan_in, fan_out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, fan_out, H / stride, W / stride), rounded up, of (N, fan_in, H, W)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, right = (max(kernel - (n % stride or stride), 0) for n in x.shape[2:])
        return super().forward(F.pad(x, (right // 2, right - right // 2, down // 2, -(-down // 2))))


class InvertedBlock(nn.Module):
    """MBConv without squeeze and excitation: wide, by channel, narrow, plus x where sizes agree.

    bn3(project(act2(bn2(depthwise(act1(bn1(expand(x))))))); without `expand` where `ratio` is 1.
    """

    def __init__(self, fan_in: int, fan_out: int, kernel: int, stride: int, ratio: int) -> None:
        super().__init__()
        inner, self.widens = fan_in * ratio, ratio > 1
        if self.widens:
            self.expand = SameConv2d(fan_in, inner, 1)
            self.bn1 = nn.BatchNorm2d(inner, _EPSILON)
            self.act1 = nn.ReLU6()
        self.depthwise = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self.bn2 = nn.BatchNorm2d(inner, _EPSILON)
        self.act2 = nn.ReLU6()
        self.project = SameConv2d(inner, fan_out, 1)
        self.bn3 = nn.BatchNorm2d(fan_out, _EPSILON)
        self.adds = stride == 1 and fan_in == fan_out

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, fan_out, H / stride, W / stride), rounded up, of (N, fan_in, H, W)."""
        wide = self.act1(self.bn1(self.expand(x))) if self.widens else x
        wide = self.act2(self.bn2(self.depthwise(wide)))
        narrow = self.bn3(self.project(wide))
        return narrow + x if self.adds else narrow


def efficientnet_lite0(classes: int = 1000) -> nn.Sequential:
    """Return EfficientNet-lite0, for 3 x 224 x 224; torch's own weights, of the global generator.

    Layers: ``conv1, bn1, act1, block1, ..., block16, conv2, bn2, act2, pool, flatten, fc``; in a
    block ``expand, bn1, act1, depthwise, bn2, act2, project, bn3``. 4,652,008 parameters.
    """
    fan_in = _STEM
    layers: dict[str, nn.Module] = {
        "conv1": SameConv2d(3, fan_in, 3, 2),
        "bn1": nn.BatchNorm2d(fan_in, _EPSILON),
        "act1": nn.ReLU6(),
    }
    for blocks, fan_out, kernel, stride, ratio in _STAGES:
        for place in range(blocks):
            first = stride if place == 0 else 1
            number = len(layers) - 2
            layers[f"block{number}"] = InvertedBlock(fan_in, fan_out, kernel, first, ratio)
            fan_in = fan_out
    layers["conv2"] = SameConv2d(fan_in, _HEAD, 1)
    layers |= {"bn2": nn.BatchNorm2d(_HEAD, _EPSILON), "act2": nn.ReLU6()}
    return sequence(layers | pooled_readout(_HEAD, classes))
