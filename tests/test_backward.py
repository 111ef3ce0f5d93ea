"""Gradients of fully connected networks by hand, against autograd."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replication import models
from replication.training import _batched

MEMBERS, EXAMPLES = 3, 7


def networks(**options):
    options = {"inputs": 6, "widths": (5, 4), "classes": 3} | options
    return [models.build("mlp", seed, torch.float64, **options) for seed in range(MEMBERS)]


def examples(seed=0, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    images = 3 * torch.randn(MEMBERS, EXAMPLES, 1, 2, 3, generator=source, dtype=dtype)
    return images, torch.randint(3, (MEMBERS, EXAMPLES), generator=source)


def by_autograd(model, weights, images, labels, masks):
    trained = [name for name, _ in model.named_parameters()]
    leaves = {name: weights[name].detach().requires_grad_() for name in trained}
    logits = _batched.products(model, {**weights, **leaves}, images, masks, True)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / EXAMPLES
    return dict(zip(trained, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "activation", ["relu", "relu6", "tanh", "hardtanh", "hardsigmoid", "leaky_relu", "sigmoid"]
)
def test_every_activation(activation, bias):
    layers = {"leaky_relu": nn.LeakyReLU(0.3), "sigmoid": nn.Sigmoid()}
    nets = networks(bias=bias, activation="relu" if activation in layers else activation)
    if activation in layers:
        for net in nets:
            net.act1, net.act2 = layers[activation], layers[activation]
    assert _batched.has_gradients(nets[0])
    images, labels = examples()
    weights = _batched.stacked(nets)
    found = _batched.gradients(nets[0], weights, images, labels, {})
    expected = by_autograd(nets[0], weights, images, labels, {})
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)
        assert not found[name].requires_grad


def test_dropout_passes_on_what_was_kept():
    nets = networks(dropout=0.5)
    images, labels = examples(1)
    inputs = _batched.dropout_inputs(nets[0], images[0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [_batched.draw_masks(nets[0], inputs) for _ in nets]
    masks = {name: torch.stack([mask[name] for mask in drawn]) for name in inputs}
    weights = _batched.stacked([net.eval() for net in nets])
    found = _batched.gradients(nets[0], weights, images, labels, masks)
    for name, value in by_autograd(nets[0], weights, images, labels, masks).items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)
    assert sum((mask == 0).sum() for mask in masks.values()) > 0


def test_a_member_that_diverges_does_not_touch_the_others():
    nets = networks()
    nets[0].fc3.weight.data *= 1e6
    nets[1].fc1.weight.data *= torch.inf
    images, labels = examples(2)
    weights = _batched.stacked(nets)
    found = _batched.gradients(nets[0], weights, images, labels, {})
    expected = by_autograd(nets[0], weights, images, labels, {})
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, equal_nan=True)
        assert found[name][0].isfinite().all() and found[name][2].isfinite().all()


def test_gradients_lie_as_weights_do():
    nets = networks()
    weights = _batched.stacked(nets)
    found = _batched.gradients(nets[0], weights, *examples(), {})
    for name in ("fc1.weight", "fc2.weight", "fc3.weight"):
        assert found[name].stride() == weights[name].stride()


def test_batch_norm_is_left_to_autograd():
    assert not _batched.has_gradients(networks(batch_norm=True)[0])
