"""Noise on units: closed forms, what the scale means, and where the numbers come from."""

import math

import numpy as np
import pytest
import torch
from _random_networks import Wrapped, gaussian
from torch import nn

from replication import models
from replication.directions import noise_curve


def sign():
    """Return a network whose class is whether its one unit is positive."""
    model = nn.Sequential(nn.Identity(), nn.Linear(1, 2, bias=False)).double()
    model[1].weight.data = torch.tensor([[-1.0], [1.0]]).double()
    return model


def network(**options):
    return models.build("mlp", inputs=12, widths=(9, 8), classes=5, dtype=torch.float64, **options)


@pytest.mark.parametrize("size", [0.01, 1, 100])
def test_one_unit_errs_as_often_as_the_normal_distribution_says(size):
    n, scales = 20000, [0, 0.5, 1, 2]
    labels = torch.arange(n) % 2
    images = size * (2.0 * labels - 1).double()[:, None]  # standard deviation: size
    found = noise_curve(sign(), images, labels, "0", scales, draws=2)
    expected = [1] + [0.5 + 0.5 * math.erf(1 / scale / math.sqrt(2)) for scale in scales[1:]]
    error = 4 * 0.5 / math.sqrt(n)
    assert found.accuracy[:, 0].tolist() == [1, 1]
    np.testing.assert_allclose(found.accuracy, [expected] * 2, rtol=0, atol=error)
    assert found.scales.tolist() == scales


def test_per_variance_scales_the_variance_and_scale_0_is_the_network_itself():
    images = gaussian(200, 12)
    arguments = network(), images, network()(images).argmax(1), ["act1", "act2"]
    one = noise_curve(*arguments, [0, 0.5, 1, 3], per="std")
    other = noise_curve(*arguments, [0, 0.25, 1, 9], per="variance")
    assert torch.equal(one.accuracy, other.accuracy)
    assert one.accuracy.unique().numel() > 3 and (one.accuracy[:, 0] == 1).all()


def test_spread_is_over_space():
    """A channel of b and b - 2 a over space has deviation a."""
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(8, 2, bias=False)).double()
    model[2].weight.data = torch.zeros(2, 8).double()
    model[2].weight.data[1, 4] = 1.0  # one pixel of the second channel decides
    images = torch.zeros(5000, 2, 2, 2).double()
    images[:, 1, :, 0], images[:, 1, :, 1] = 1.5, -2.5
    labels = torch.ones(5000).long()
    found = noise_curve(model, images, labels, "0", [1], 1)
    expected = 0.5 + 0.5 * math.erf(1.5 / 2 / math.sqrt(2))
    assert found.accuracy.item() == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(5000))
    images[:, 1] = 1.5  # nothing spreads
    assert noise_curve(model, images, labels, "0", [100], 1).accuracy.item() == 1


def test_hooks_give_what_a_cut_gives():
    images, labels = gaussian(60, 12), torch.arange(60) % 4
    for layers in (["act1"], ["act2", "act1"]):
        cut = noise_curve(network(), images, labels, layers, [0.3, 3], 4)
        names = [f"body.{name}" for name in layers]
        hooks = noise_curve(Wrapped(network()), images, labels, names, [0.3, 3], 4)
        assert torch.equal(cut.accuracy, hooks.accuracy)
        # accuracy is the mean of its classes, and a class without examples has none
        assert cut.class_accuracy.shape == (4, 2, 5) and cut.class_accuracy[..., 4].isnan().all()
        torch.testing.assert_close(cut.class_accuracy[..., :4].mean(-1), cut.accuracy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_depend_on_seed_draw_and_example_only(dtype):
    model, labels = network().to(dtype), torch.arange(100) % 5
    arguments = model, gaussian(100, 12, dtype=dtype), labels, "act1", [1, 2]
    found = noise_curve(*arguments, 3, seed=4)
    assert torch.equal(noise_curve(*arguments, 3, seed=4, batch_size=9).accuracy, found.accuracy)
    assert torch.equal(noise_curve(*arguments, 2, seed=4).accuracy, found.accuracy[:2])
    assert not torch.equal(noise_curve(*arguments, 3, seed=5).accuracy, found.accuracy)
    assert len(found.accuracy.unique(dim=0)) > 1
    with pytest.raises(ValueError, match="scales: expected at least one number"):
        noise_curve(*arguments[:-1], [])
