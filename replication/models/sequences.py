"""Networks that read an image as a sequence: of rows (LSTM) or of patches (transformer)."""

import math

import torch
from torch import Tensor, nn

from replication._core.inputs import as_integer
from replication.models._layers import sequence


class Select(nn.Module):
    """Entry `index` of dimension 1: (N, T, units) to (N, units)."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        """Return that entry."""
        return x[:, self.index]


class Rows(nn.Module):
    """Images as sequences of their rows, from the top: (N, C, H, W) to (N, H, C * W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows."""
        return x.transpose(1, 2).flatten(2)


class LSTMLayer(nn.Module):
    """One LSTM layer (Hochreiter & Schmidhuber 1997, with forget gates), started from zeros.

    i, f, g, o = W_ih x_t + b_ih + W_hh h + b_hh;  c = sigmoid(f) c + sigmoid(i) tanh(g);
    h = sigmoid(o) tanh(c). Parameters and results are those of a `torch.nn.LSTM` of one layer,
    whose kernel neither `torch.func` nor hooks see through.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(4 * units, inputs))
        self.weight_hh = nn.Parameter(torch.empty(4 * units, units))
        self.bias_ih = nn.Parameter(torch.empty(4 * units))
        self.bias_hh = nn.Parameter(torch.empty(4 * units))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(units), 1 / math.sqrt(units))

    def forward(self, x: Tensor) -> Tensor:
        """Return h at every step, (N, T, units), of (N, T, inputs)."""
        driven = x @ self.weight_ih.T + (self.bias_ih + self.bias_hh)
        recurrent = self.weight_hh.T
        h = c = x.new_zeros(x.shape[0], self.weight_hh.shape[1])
        states = []
        for step in driven.unbind(1):
            i, f, g, o = torch.addmm(step, h, recurrent).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        return torch.stack(states, dim=1)


def row_lstm(
    classes: int = 10, channels: int = 1, size: int = 28, units: int = 128, layers: int = 2
) -> nn.Sequential:
    """Return an LSTM that reads an image row by row, logits from its last state; all ours.

    In the place of the language models of Morcos et al. 2018b (section 4, Figure 6), which need
    corpora. Layers: ``rows, lstm1, ..., lstmL, last, fc``; ``lstm1`` gives its state at every row,
    ``(N, rows, units)``, of which ``record(..., reduction=lambda x: x[:, -1] if x.ndim == 3 else
    x)`` keeps the last. Inputs are ``(N, channels, H, size)``, H any. Default: 214,282 parameters.
    """
    units = as_integer(units, "units", 1)
    fan_in = as_integer(channels, "channels", 1) * as_integer(size, "size", 1)
    stack: dict[str, nn.Module] = {"rows": Rows()}
    for index in range(1, as_integer(layers, "layers", 1) + 1):
        stack[f"lstm{index}"] = LSTMLayer(fan_in, units)
        fan_in = units
    stack["last"] = Select(-1)
    stack["fc"] = nn.Linear(units, as_integer(classes, "classes", 1))
    return sequence(stack)


class Tokens(nn.Module):
    """Patches (N, D, h, w) as tokens (N, 1 + h * w, D): a class token first, positions added."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + patches, width))
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens."""
        first = self.class_token.expand(x.shape[0], -1, -1)
        return torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1) + self.positions


class Attention(nn.Module):
    """The residual sublayer x + project(softmax(q k^T / sqrt(D / heads)) v), q k v of norm(x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens after the sublayer, (N, T, D) of (N, T, D)."""
        examples, tokens, width = x.shape
        shape = (examples, tokens, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(self.norm(x)).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        # Written out: the fused kernel has neither second derivatives nor forward mode everywhere.
        weights = (q @ k.transpose(-1, -2) / math.sqrt(shape[-1])).softmax(-1)
        return x + self.project((weights @ v).transpose(1, 2).flatten(2))


class MLPSublayer(nn.Module):
    """The residual sublayer x + fc2(GELU(fc1(norm(x)))), token by token."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens after the sublayer, (N, T, D) of (N, T, D)."""
        return x + self.fc2(self.act(self.fc1(self.norm(x))))


def vit(
    classes: int = 10,
    channels: int = 3,
    size: int = 32,
    patch: int = 4,
    width: int = 64,
    depth: int = 6,
    heads: int = 4,
) -> nn.Sequential:
    """Return a small vision transformer (Dosovitskiy et al. 2021, section 3.1), pre-norm.

    Layers: ``patches, tokens, attention1, mlp1, ..., attentionL, mlpL, norm, first, fc``. The
    outputs of ``attention1`` and ``mlp1`` are the residual stream after each sublayer; in the first
    are ``norm, qkv, project``, in the second ``norm, fc1, act, fc2``, whose last outputs are what
    the sublayer adds. Tokens are ``(N, 1 + patches, width)``, the class token first:
    ``record(..., reduction=lambda x: x[:, 0] if x.ndim == 3 else x)`` keeps that one. Default:
    208,970 parameters. Ours: the sizes, twice the `width` hidden in the MLPs, no dropout.

    `patch`, the side of a patch, divides `size`; `heads` divides `width`, the units of a token;
    `depth` counts blocks.
    """
    size, patch = as_integer(size, "size", 1), as_integer(patch, "patch", 1)
    width, heads = as_integer(width, "width", 1), as_integer(heads, "heads", 1)
    if size % patch:
        raise ValueError(f"patch: expected a divisor of size {size}, found {patch}")
    if width % heads:
        raise ValueError(f"heads: expected a divisor of width {width}, found {heads}")
    layers: dict[str, nn.Module] = {
        "patches": nn.Conv2d(as_integer(channels, "channels", 1), width, patch, patch),
        "tokens": Tokens((size // patch) ** 2, width),
    }
    for index in range(1, as_integer(depth, "depth", 1) + 1):
        layers[f"attention{index}"] = Attention(width, heads)
        layers[f"mlp{index}"] = MLPSublayer(width, 2 * width)
    readout = nn.Linear(width, as_integer(classes, "classes", 1))
    return sequence(layers | {"norm": nn.LayerNorm(width), "first": Select(0), "fc": readout})
