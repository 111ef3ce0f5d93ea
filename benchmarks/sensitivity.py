"""Jacobian norms against a loop over points, as the documentation of torch has it."""

import torch
from torch import Tensor, nn

from benchmarks._timing import Row, cpu_seconds
from replication import models, sensitivity


def looped(model: nn.Module, images: Tensor) -> Tensor:
    """Return the norms from torch.autograd.functional.jacobian of one point after the other."""

    def probabilities(image: Tensor) -> Tensor:
        return model(image[None])[0].softmax(0)

    return torch.stack(
        [torch.autograd.functional.jacobian(probabilities, image).norm() for image in images]
    )


def confident(model: nn.Module, images: Tensor, spread: float = 60) -> nn.Module:
    """Scale the last layer up, in place, until logits have that standard deviation.

    Return the network. The margins between the first two classes then reach from nothing to what
    float32 cannot tell from certainty.
    """
    with torch.no_grad():
        last = list(model)[-1]
        last.weight *= spread / model(images).std()
    return model


def errors(model: nn.Module, images: Tensor) -> str:
    """Return as text the largest error of a point's float32 norm, here and of the loop."""
    with torch.no_grad():
        sure = (model.double()(images.double()).softmax(1).amax(1) > 1 - 1e-6).sum()
    exact = sensitivity.jacobian_norm(model, images.double())
    model.float()
    ours, loops = (
        (norm(model, images) / exact - 1).abs().max()
        for norm in (sensitivity.jacobian_norm, looped)
    )
    return f"{ours:.0e} relative, {sure} points above 1 - 1e-6 (the loop's: {loops:.0e})"


def rows() -> list[Row]:
    """Return the rows of this benchmark."""
    source = torch.Generator().manual_seed(0)
    images = torch.randn(1000, 1, 28, 28, generator=source)
    cases = (
        ("1,000 points, MLP 784-200x5-10", ">= 15", models.build("mlp", widths=(200,) * 5), 1000),
        (
            "200 points, convnet of 8 and 16 channels",
            ">= 1.5",
            models.build("mnist_convnet", channels=(8, 16)),
            200,
        ),
    )
    table = []
    for what, target, model, count in cases:
        chosen = images[:count]
        confident(model, chosen)
        times = cpu_seconds(
            {
                "loop": lambda m=model, x=chosen: looped(m, x),
                "ours": lambda m=model, x=chosen: sensitivity.jacobian_norm(m, x),
            },
            repeats=5,
        )
        table.append(
            Row(
                f"softmax Jacobian norm, {what}, float32",
                "a loop of torch.autograd.functional.jacobian",
                times["loop"] / times["ours"],
                target,
                errors(model, chosen),
            )
        )
    return table
