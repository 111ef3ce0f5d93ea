"""Inputs, labels and networks, most of them random, that several tests share."""

import torch
from torch import nn

from replication import models


def gaussian(*shape, seed=0, dtype=torch.float64):
    """Return Gaussian numbers, the same in every dtype but for rounding."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64).to(dtype)


def uniform(*shape, seed=0):
    """Return float64 numbers between 0 and 1."""
    source = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=source, dtype=torch.float64)


def classes(n, number=10, seed=0):
    """Return the random labels of n examples."""
    return torch.randint(number, (n,), generator=torch.Generator().manual_seed(seed))


def scaled_mlp(seed, inputs=3, widths=(12, 12), scale=2.0, **options):
    """Return a network whose weights are larger than usual, so that its regions are many."""
    model = models.build("mlp", seed, torch.float64, inputs=inputs, widths=widths, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= scale
    return model


def dense(weight, bias=0.0):
    """Return a float64 layer of these weights (outputs, inputs) and biases."""
    weight = torch.as_tensor(weight, dtype=torch.float64)
    layer = nn.Linear(*reversed(weight.shape), dtype=torch.float64)
    with torch.no_grad():
        layer.weight[:], layer.bias[:] = weight, torch.as_tensor(bias, dtype=torch.float64)
    return layer


def line(*positions):
    """Return a path of these numbers."""
    return torch.tensor(positions, dtype=torch.float64)[:, None]


class Wrapped(nn.Module):
    """The same function as its body, without saying which module takes which output."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x)
