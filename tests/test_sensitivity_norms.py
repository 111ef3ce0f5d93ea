"""Softmax Jacobians of confident points, against float64 point by point; numbers out of range."""

import math

import pytest
import torch
from _jacobians import logit_jacobians, softmax_jacobians
from _random_networks import gaussian
from torch import nn

from replication import models
from replication.sensitivity import jacobian_norm, jacobian_row_norm, spectral_norm
from replication.sensitivity._rows import softmax_rows


def confident_network(activation, scale, convolution):
    """Return a float32 network whose logits are about `scale`, and images, off its kinks."""
    if convolution:
        model = nn.Sequential(nn.Conv2d(1, 8, 2), nn.Tanh(), nn.Flatten(), nn.Linear(48, 6))
    else:
        model = models.mlp(12, (30, 30), 6, activation)
    for seed, parameter in enumerate(model.parameters()):
        value = gaussian(*parameter.shape, seed=seed) / parameter[0].numel() ** 0.5
        parameter.data = (value * scale if parameter is model[-1].weight else value).float()
    images = value = gaussian(300, 1, 3, 4, seed=3).float().double()
    clear = torch.ones(300, dtype=torch.bool)
    with torch.no_grad():
        for layer in model.double():
            value = layer(value)
            if isinstance(layer, nn.Linear):
                clear &= (value.abs() > 1e-5).all(1)
    return model.float(), images[clear].float()


@pytest.mark.parametrize(
    ("activation", "convolution"), [("relu", False), ("tanh", False), ("tanh", True)]
)
@pytest.mark.parametrize("scale", [1, 30, 100])
def test_float32_is_right_at_every_point(activation, convolution, scale):
    model, images = confident_network(activation, scale, convolution)
    labels = torch.zeros(len(images), dtype=torch.int64)
    found = torch.stack([jacobian_norm(model, images), jacobian_row_norm(model, images, labels)])
    largest = spectral_norm(model, images)
    logits = model(images).detach()
    jacobians = softmax_jacobians(model.double(), images.double())
    expected = torch.stack([jacobians.norm(dim=(1, 2)), jacobians[:, 0].norm(dim=1)])
    normal = expected > 1e-37
    assert found.dtype == torch.float32
    assert ((found / expected - 1).abs() < 1e-4)[normal].all()
    assert (found[~normal] <= 2e-37).all()
    assert ((largest / torch.linalg.svdvals(jacobians)[:, 0] - 1).abs() < 1e-3)[normal[0]].all()
    if scale > 1:
        p = logits.softmax(1)
        sure = normal[0] & (logits.double().softmax(1).amax(1) > 1 - 1e-6)
        assert sure.sum() > 40
        # diag(p) - p p^T itself, in float32, has nothing left there
        usual = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).double()
        usual = (usual @ logit_jacobians(model, images.double())).norm(dim=(1, 2))
        wrong = (usual / expected[0] - 1).abs()[sure]
        assert wrong.median() > 1e-3 and wrong.max() > 0.1


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 80), (torch.float64, 700)])
def test_two_logits_as_far_apart_as_the_dtype_goes(dtype, limit):
    margin = torch.linspace(0, limit, 50, dtype=dtype)
    model = nn.Linear(1, 2, bias=False, dtype=dtype)
    model.load_state_dict({"weight": torch.tensor([[1.0], [0.0]])})
    found = jacobian_norm(model, margin[:, None]).double()
    exact = margin.double()
    expected = 0.5 * math.log(2) - exact - 2 * torch.log1p((-exact).exp())
    torch.testing.assert_close(found.log(), expected, rtol=0, atol=1e-5)
    assert jacobian_norm(model, 10 * margin[-1:, None]).item() == 0


def test_softmax_rows_against_exact_numbers():
    # p = (1 - 3e-12, 1e-12, 2e-12), to 1e-11: S from p with what 1 - p is put in by hand
    q = torch.tensor([[1.0, 1e-12, 2e-12]], dtype=torch.float64)
    rows, log_scales = softmax_rows(q.log().float(), torch.arange(3)[None])
    found = rows.double() * log_scales.double().exp()[:, :, None]
    expected = [[3e-12, -1e-12, -2e-12], [-1e-12, 1e-12, -2e-24], [-2e-12, -2e-24, 2e-12]]
    torch.testing.assert_close(found[0], q.new_tensor(expected), rtol=1e-5, atol=0)


def test_norms_whose_squares_leave_the_range():
    for size in (1e-25, 1e-12, 1e25):
        model = nn.Linear(3, 2, dtype=torch.float32)
        nn.init.constant_(model.weight, size)
        found = jacobian_norm(model, gaussian(2, 3, dtype=torch.float32), "logits")
        assert found.tolist() == pytest.approx([size * 6**0.5] * 2, rel=1e-5)
