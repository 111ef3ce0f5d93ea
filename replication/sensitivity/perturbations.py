"""Perturbations of images: random numbers, and steps along a network's signed gradient."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replication._core.inputs import generator, require_classes
from replication._core.modules import differentiable, input_gradient
from replication.sensitivity._evaluation import as_logits, plain_evaluation


def draw(shape: torch.Size, copies: int, positions: range, perturb: str, seed: int) -> Tensor:
    """Return unit perturbations (images, copies, ...), the same for an image in any batch."""
    draws = []
    for position in positions:
        source = generator(seed, f"perturbation/{perturb != 'gaussian'}", position)
        if perturb == "gaussian":
            draws.append(torch.randn(copies, *shape, generator=source))
        else:
            draws.append(2 * torch.rand(copies, *shape, generator=source) - 1)
    return torch.stack(draws)


def attack(
    model: nn.Module,
    images: Tensor,
    start: Tensor,
    radius: float,
    size: float,
    steps: int,
    labels: Tensor | None,
) -> Tensor:
    """Return perturbations (images, copies, ...) in the ball that raise the cross-entropy."""
    clean = images[:, None]
    with plain_evaluation(model):
        if labels is None:
            labels = as_logits(model(images), len(images)).argmax(1)
        target = labels.to(images.device).repeat_interleave(start.shape[1])
        for _ in range(steps):
            moved = (clean + start).flatten(0, 1).requires_grad_()
            with differentiable():
                logits = as_logits(model(moved), len(moved))
                require_classes(labels, logits.shape[1])
                loss = F.cross_entropy(logits, target, reduction="sum")
            gradient = input_gradient(loss, moved)
            start = (start + size * gradient.sign().view_as(start)).clamp(-radius, radius)
    return start
