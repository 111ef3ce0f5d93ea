"""Random inputs and networks that the tests of regions share."""

import torch

from replication import models


def gaussian(*shape, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def scaled_mlp(seed, inputs=3, widths=(12, 12), scale=2.0, **options):
    """Return a network whose weights are larger than usual, so that its regions are many."""
    model = models.build("mlp", seed, torch.float64, inputs=inputs, widths=widths, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= scale
    return model
