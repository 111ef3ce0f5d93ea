"""Gradients of many fully connected networks by hand: autograd takes a quarter longer."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from replication.training._batched import DROPOUT, forward, leaves

aten = torch.ops.aten
# Gradient by the output, input, output and layer to gradient by the input.
DERIVATIVES: dict[type, Callable[[Tensor, Tensor, Tensor, nn.Module], Tensor]] = {
    nn.ReLU: lambda g, x, y, layer: aten.threshold_backward(g, y, 0),
    nn.ReLU6: lambda g, x, y, layer: aten.hardtanh_backward(g, x, 0, 6),
    nn.Hardtanh: lambda g, x, y, layer: aten.hardtanh_backward(g, x, layer.min_val, layer.max_val),
    nn.Hardsigmoid: lambda g, x, y, layer: aten.hardsigmoid_backward(g, x),
    nn.LeakyReLU: lambda g, x, y, layer: aten.leaky_relu_backward(
        g, x, layer.negative_slope, False
    ),
    nn.Tanh: lambda g, x, y, layer: aten.tanh_backward(g, y),
    nn.Sigmoid: lambda g, x, y, layer: aten.sigmoid_backward(g, y),
    nn.Identity: lambda g, x, y, layer: g,
    nn.Flatten: lambda g, x, y, layer: g.view(x.shape),
}


def knows(model: nn.Module) -> bool:
    """Tell whether `gradients` can be had of a model that `products` can run."""
    return all(isinstance(layer, (*DERIVATIVES, *DROPOUT, nn.Linear)) for _, layer in leaves(model))


@torch.no_grad()
def gradients(
    model: nn.Sequential,
    weights: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    masks: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the gradients of every member's mean cross-entropy, by parameter.

    Parameters
    ----------
    model, weights, masks
        As in `_batched.products`, in training.
    images : (members, examples, ...) tensor
    labels : (members, examples) tensor

    Returns
    -------
    dict of (members, ...) tensors
        Dense ones lie in memory as `_batched.laid_out` lays weights.
    """
    x, passed = images, []
    for name, layer in leaves(model):
        y = forward(name, layer, weights, x, masks, training=True)
        passed.append((name, layer, x, y))
        x = y
    g = torch.softmax(x, 2)  # the derivative by the logits is p - 1 for the label, p for others
    g.scatter_add_(2, labels[..., None], g.new_full((), -1).expand(*labels.shape, 1))
    g /= labels.shape[1]
    found: dict[str, Tensor] = {}
    trained = [name for name, layer, _, _ in passed if isinstance(layer, nn.Linear)]
    for name, layer, x, y in reversed(passed):
        if isinstance(layer, nn.Linear):
            found[f"{name}.weight"] = torch.bmm(x.mT, g).mT
            if layer.bias is not None:
                found[f"{name}.bias"] = g.sum(1)
            if name == trained[0]:
                break
            g = torch.bmm(g, weights[f"{name}.weight"])
        elif isinstance(layer, DROPOUT):
            g = g * masks[name]
        else:
            g = DERIVATIVES[type(layer)](g, x, y, layer)
    return found
