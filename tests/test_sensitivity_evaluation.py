"""The memory that sensitivity functions take: bounded, whatever the number of points."""

import pytest
import torch
from _peak_memory import Peak
from torch import nn

from replication import models
from replication.sensitivity import finite_difference_norm, jacobian_norm, spectral_norm


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
