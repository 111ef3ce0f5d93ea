"""Networks of one architecture as one program: each weight stacked along a first dimension.

Two ways to the same logits (members, examples, classes): `products` writes a fully connected
network as batched matrix products; `vmapped` lets torch.func map any other one. Dropout is drawn
beforehand, since each member has a seed of its own. `gradients` goes back through the products by
hand: autograd takes a quarter longer.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from replication._core.modules import ELEMENTWISE, leaves

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)
MAPPED = (
    *(*ELEMENTWISE, *DROPOUT, *BATCH_NORM),
    *(nn.Linear, nn.Conv2d, nn.Flatten, nn.Identity, nn.LayerNorm, nn.LocalResponseNorm),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
)


def is_fully_connected(model: nn.Module) -> bool:
    """Tell whether `products` can run the model."""
    chains = (isinstance(module, nn.Sequential) for module in model.modules() if module._modules)
    plain = (nn.Linear, nn.Flatten, nn.Identity, nn.Dropout, *ELEMENTWISE)
    return all(chains) and all(
        isinstance(layer, plain) or (isinstance(layer, nn.BatchNorm1d) and _is_usual(layer))
        for _, layer in leaves(model)
    )


def is_mapped(model: nn.Module) -> bool:
    """Tell whether `vmapped` can run the model."""
    return all(
        isinstance(layer, MAPPED) and (not isinstance(layer, BATCH_NORM) or _is_usual(layer))
        for _, layer in leaves(model)
    )


def _is_usual(norm: nn.Module) -> bool:
    return norm.momentum is not None and norm.track_running_stats


def stacked(models: list[nn.Module]) -> dict[str, Tensor]:
    """Return weights and buffers, each (members, ...), by name."""
    parameters, buffers = stack_module_state(models)
    return {name: laid_out(value.detach()) for name, value in {**parameters, **buffers}.items()}


def laid_out(value: Tensor) -> Tensor:
    """Return a copy in which dense weights lie as their gradients do, inputs before outputs.

    Updates then run through memory in order.
    """
    return (
        value.mT.clone(memory_format=torch.contiguous_format).mT
        if value.ndim == 3
        else value.clone()
    )


def dropout_inputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return what each dropout layer gets for `images`: the shapes and strides of its masks."""
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(
            lambda _, inputs, __, name=name: seen.update({name: inputs[0].detach()})
        )
        for name, layer in leaves(model)
        if isinstance(layer, DROPOUT)
    ]
    if hooks:
        with torch.no_grad():
            model.eval()(images)
    for hook in hooks:
        hook.remove()
    return seen


def draw_masks(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each dropout layer's factors, from the global generator as the layer itself would."""
    return {
        name: model.get_submodule(name).train()(torch.ones_like(shape))
        for name, shape in inputs.items()
    }


def products(
    model: nn.Sequential,
    weights: Mapping[str, Tensor],
    images: Tensor,
    masks: Mapping[str, Tensor],
    training: bool,
) -> Tensor:
    """Return the logits of every member of a fully connected network.

    Parameters
    ----------
    model : torch.nn.Sequential
        The architecture; its own weights are not used.
    weights : dict of (members, ...) tensors
        As `stacked` gives them. In training the running statistics are updated in place.
    images : (members, examples, ...) tensor, or (1, examples, ...) for all members
    masks : dict of (members, examples, neurons) tensors
        As `draw_masks` gives them; used in training only.
    training : bool
    """
    x = images
    for name, layer in leaves(model):
        x = forward(name, layer, weights, x, masks, training)
    return x


def forward(
    name: str,
    layer: nn.Module,
    weights: Mapping[str, Tensor],
    x: Tensor,
    masks: Mapping[str, Tensor],
    training: bool,
) -> Tensor:
    """Return what one layer makes of (members, examples, ...); the arguments are `products`'."""
    if isinstance(layer, nn.Flatten):
        return x.flatten(2)
    if isinstance(layer, nn.Linear):
        weight = weights[f"{name}.weight"].mT
        x = x.expand(len(weight), *x.shape[1:])
        if layer.bias is None:
            return torch.bmm(x, weight)
        return torch.baddbmm(weights[f"{name}.bias"][:, None], x, weight)
    if isinstance(layer, nn.BatchNorm1d):
        return _normalised(layer, name, weights, x, training)
    if isinstance(layer, DROPOUT):
        return x * masks[name] if training else x
    return layer(x)


def _normalised(
    layer: nn.BatchNorm1d, name: str, weights: Mapping[str, Tensor], x: Tensor, training: bool
) -> Tensor:
    if training:
        examples = x.shape[1]
        if examples < 2:
            raise ValueError(f"batch_size: {name} needs at least 2 examples a minibatch, found 1")
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        with torch.no_grad():
            unbiased = variance * (examples / (examples - 1))
            weights[f"{name}.running_mean"].lerp_(mean.squeeze(1), layer.momentum)
            weights[f"{name}.running_var"].lerp_(unbiased.squeeze(1), layer.momentum)
            weights[f"{name}.num_batches_tracked"].add_(1)
    else:
        mean = weights[f"{name}.running_mean"][:, None]
        variance = weights[f"{name}.running_var"][:, None]
    x = (x - mean) * torch.rsqrt(variance + layer.eps)
    if layer.affine:
        x = x * weights[f"{name}.weight"][:, None] + weights[f"{name}.bias"][:, None]
    return x


class _Masked(nn.Module):
    """A dropout layer whose factors are given."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask if self.training else x


def with_masks(model: nn.Module) -> nn.Module:
    """Put layers that take given factors in place of the dropout layers; returns the model."""
    for name, layer in leaves(model):
        if isinstance(layer, DROPOUT):
            model.set_submodule(name, _Masked())
    return model


def vmapped(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    images: Tensor,
    masks: Mapping[str, Tensor],
    training: bool,
) -> Tensor:
    """Return the logits of every member of any network that torch.func can map.

    As `products`, for a `model` that went through `with_masks`.
    """
    model.train(training)
    given = {f"{name}.mask": mask for name, mask in masks.items()} if training else {}

    def one(own: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, own, (x,))

    if len(images) == 1:
        return vmap(one, in_dims=(0, None))({**weights, **given}, images[0])
    return vmap(one)({**weights, **given}, images)


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


def has_gradients(model: nn.Module) -> bool:
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
