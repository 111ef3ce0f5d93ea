"""The memory that sensitivity functions take: bounded, whatever the number of points."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from replication import models
from replication.sensitivity import finite_difference_norm, jacobian_norm, spectral_norm


class Peak(TorchDispatchMode):
    """Watches the bytes of tensors made in its block; `peak` is the most alive at a time."""

    def __init__(self, *known):
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


@pytest.mark.parametrize("call", [jacobian_norm, spectral_norm, finite_difference_norm])
@pytest.mark.parametrize("kind", ["closed form", "autograd"])
def test_memory_is_bounded_whatever_the_number_of_points(kind, call):
    model = models.mlp(144, (64, 64), 10)
    if kind == "autograd":
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10))
    images = torch.randn(512, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    peaks = []
    for points in (200, 512):
        with Peak(images, *model.parameters()) as seen:
            call(model, images[:points], memory=2**19)
        peaks.append(seen.peak)
    weights = 2**17  # the first layer's factor, the directions
    assert 2**17 < peaks[1] < 2**19 + weights
    assert peaks[1] - peaks[0] < 2 * images[:, 0, 0, 0].nbytes  # the results
