"""Residual networks for small images (He et al. 2016). Options: see `build`."""

from torch import Tensor, nn
from torch.nn import functional as F

from replication._core.inputs import as_integer
from replication.models._layers import as_flag, pooled_readout, scaled, sequence


class PaddedShortcut(nn.Module):
    """Every `stride`-th position, `extra` channels of zeros added: He et al. 2016, option A."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C + extra, H / stride, W / stride) of (N, C, H, W)."""
        kept = x[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, 0, self.extra))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: act2(bn2(conv2(act1(bn1(conv1(x))))) + shortcut(x)).

    There is a module ``shortcut`` only where the stride or the number of channels changes.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        norm, bias = nn.BatchNorm2d if batch_norm else nn.Identity, not batch_norm
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=bias)
        self.bn1 = norm(fan_out)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=bias)
        self.bn2 = norm(fan_out)
        self.changes = stride > 1 or fan_in != fan_out
        if self.changes:
            self.shortcut = PaddedShortcut(stride, fan_out - fan_in)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, fan_out, H / stride, W / stride) of (N, fan_in, H, W)."""
        inner = self.act1(self.bn1(self.conv1(x)))
        inner = self.bn2(self.conv2(inner))
        return self.act2(inner + (self.shortcut(x) if self.changes else x))


def resnet(
    depth: int = 20,
    classes: int = 10,
    channels: int = 3,
    width: float = 1.0,
    batch_norm: bool = True,
) -> nn.Sequential:
    """Return the CIFAR-10 residual network of He et al. 2016 (section 4.2), of 6n + 2 layers.

    Parameter-free shortcuts (option A), batch normalisation and no biases. Layers: ``conv1, bn1,
    act1, block1_1, ..., block1_n, block2_1, ..., block3_n, pool, flatten, fc``; in a block ``conv1,
    bn1, act1, conv2, bn2, shortcut, act2``. `depth` is 8, 14, 20, 32, ...; images of any size.
    Default: 269,722 parameters. Ours: the added channels of zeros come last. Without `batch_norm`
    its layers are identities and the convolutions have biases.
    """
    blocks, rest = divmod(as_integer(depth, "depth", 8) - 2, 6)
    if rest:
        raise ValueError(f"depth: expected 6n + 2, such as 8, 14 or 20, found {depth}")
    colours, fan_in = as_integer(channels, "channels", 1), scaled(16, width)
    bias = not as_flag(batch_norm, "batch_norm")
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(colours, fan_in, 3, padding=1, bias=bias),
        "bn1": nn.BatchNorm2d(fan_in) if batch_norm else nn.Identity(),
        "act1": nn.ReLU(),
    }
    for stage, units in enumerate((16, 32, 64), start=1):
        fan_out = scaled(units, width)
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            layers[f"block{stage}_{block}"] = ResidualBlock(fan_in, fan_out, stride, batch_norm)
            fan_in = fan_out
    return sequence(layers | pooled_readout(fan_in, classes))
