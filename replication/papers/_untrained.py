"""What networks at their first step need before their layers are looked at."""

import torch
from torch import Tensor, nn

from replication._core.modules import NORMS


def with_statistics(model: nn.Module, images: Tensor) -> nn.Module:
    """Return an untrained network in eval mode, batch norm's averages being those of `images`.

    Of at most 1,000. Its running means of 0 and variances of 1 know nothing of the layers yet:
    with them batch norm does nothing, and the layers of untrained networks look alike.
    """
    for module in model.modules():
        if isinstance(module, NORMS):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images[:1000])
    return model.eval()
