"""Networks of one architecture as one program: each weight stacked along a first dimension.

Two ways to the same logits (members, examples, classes): `products` writes a fully connected
network as batched matrix products; `vmapped` lets torch.func map any other one. Dropout is drawn
beforehand, since each member has a seed of its own. `gradients` goes back through the products by
hand: autograd takes a quarter longer. `update` takes an optimiser's steps, elementwise by the
rules of torch.optim with `foreach=False`, with a learning rate and weight decay for each member.

Everywhere `weights` is a dict of (members, ...) tensors, as `stacked` gives it, and `masks` a dict
of (members, examples, neurons) tensors, as `draw_masks` gives each member's; used in training only.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from replication._core.modules import ELEMENTWISE, hooked, leaves

State = dict[str, Tensor]

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
    kinds = (nn.Linear, nn.Flatten, nn.Identity, nn.Dropout, nn.BatchNorm1d, *ELEMENTWISE)
    return all(chains) and _are_all(model, kinds)


def is_mapped(model: nn.Module) -> bool:
    """Tell whether `vmapped` can run the model."""
    return _are_all(model, MAPPED)


def _are_all(model: nn.Module, kinds: tuple[type, ...]) -> bool:
    """Tell whether all layers are of these kinds, batch norm with its usual running averages."""
    layers = [layer for _, layer in leaves(model)]
    norms = [layer for layer in layers if isinstance(layer, BATCH_NORM)]
    usual = all(norm.momentum is not None and norm.track_running_stats for norm in norms)
    return usual and all(isinstance(layer, kinds) for layer in layers)


def stacked(models: list[nn.Module]) -> dict[str, Tensor]:
    """Return weights and buffers, each (members, ...), by name."""
    parameters, buffers = stack_module_state(models)
    return {name: laid_out(value.detach()) for name, value in {**parameters, **buffers}.items()}


def laid_out(value: Tensor) -> Tensor:
    """Return a copy in which dense weights lie as their gradients do, inputs before outputs.

    Updates then run through memory in order.
    """
    if value.ndim == 3:
        return value.mT.clone(memory_format=torch.contiguous_format).mT
    return value.clone()


def dropout_inputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return what each dropout layer gets for `images`: the shapes and strides of its masks."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable:
        return lambda _, inputs, __: seen.update({name: inputs[0].detach()})

    layers = [(layer, note(name)) for name, layer in leaves(model) if isinstance(layer, DROPOUT)]
    if layers:
        with torch.no_grad(), hooked(layers):
            model.eval()(images)
    return seen


def draw_masks(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each dropout layer's factors, from the global generator as the layer itself would."""
    return {
        name: model.get_submodule(name).train()(torch.ones_like(shape))
        for name, shape in inputs.items()
    }


def products(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    images: Tensor,
    masks: Mapping[str, Tensor],
    training: bool,
) -> Tensor:
    """Return the logits of every member of a fully connected network.

    `images` are (members, examples, ...), or (1, examples, ...) for all. The weights of `model`
    are not used. In training the running statistics of batch norm are updated in place.
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
    """Return what one layer makes of (members, examples, ...)."""
    if isinstance(layer, nn.Flatten):
        return x.flatten(2)
    if isinstance(layer, nn.Linear):
        weight = weights[f"{name}.weight"].mT
        x = x.expand(len(weight), *x.shape[1:])
        if layer.bias is None:
            return torch.bmm(x, weight)
        return torch.baddbmm(weights[f"{name}.bias"][:, None], x, weight)
    if isinstance(layer, nn.BatchNorm1d):
        return _normalised(name, layer, weights, x, training)
    if isinstance(layer, DROPOUT):
        return x * masks[name] if training else x
    return layer(x)


def _normalised(
    name: str, layer: nn.BatchNorm1d, weights: Mapping[str, Tensor], x: Tensor, training: bool
) -> Tensor:
    given = x.dtype  # bfloat16 under autocast, of which statistics are taken in float32
    x = x.to(weights[f"{name}.running_mean"].dtype)
    if training:
        assert layer.momentum is not None  # as `_are_all` has it
        examples = x.shape[1]
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
    return x.to(given)


class _Masked(nn.Module):
    """A dropout layer whose factors are given."""

    mask: Tensor

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
    """Return the logits of every member of a `model` that went through `with_masks`."""
    model.train(training)
    given = {f"{name}.mask": mask for name, mask in masks.items()} if training else {}

    def member(own: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, own, (x,))

    if len(images) == 1:
        return vmap(member, in_dims=(0, None))({**weights, **given}, images[0])
    return vmap(member)({**weights, **given}, images)


aten = torch.ops.aten
# Gradient by the output, input, output and layer to gradient by the input.
DERIVATIVES: dict[type, Callable[[Tensor, Tensor, Tensor, nn.Module], Tensor]] = {
    nn.ReLU: lambda g, x, y, _: aten.threshold_backward(g, y, 0),
    nn.ReLU6: lambda g, x, y, _: aten.hardtanh_backward(g, x, 0, 6),
    nn.Hardtanh: lambda g, x, y, layer: aten.hardtanh_backward(g, x, layer.min_val, layer.max_val),
    nn.Hardsigmoid: lambda g, x, y, _: aten.hardsigmoid_backward(g, x),
    nn.LeakyReLU: lambda g, x, y, layer: aten.leaky_relu_backward(
        g, x, layer.negative_slope, False
    ),
    nn.Tanh: lambda g, x, y, _: aten.tanh_backward(g, y),
    nn.Sigmoid: lambda g, x, y, _: aten.sigmoid_backward(g, y),
    nn.Identity: lambda g, x, y, _: g,
    nn.Flatten: lambda g, x, y, _: g.view(x.shape),
}


def has_gradients(model: nn.Module) -> bool:
    """Tell whether `gradients` can be had of a model that `products` can run."""
    return all(isinstance(layer, (*DERIVATIVES, *DROPOUT, nn.Linear)) for _, layer in leaves(model))


@torch.no_grad()
def gradients(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    masks: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the gradients (members, ...) of every member's mean cross-entropy, by parameter.

    `images` are (members, examples, ...), `labels` (members, examples). Gradients of dense layers
    lie in memory as `laid_out` lays weights.
    """
    x, passed = images, []
    for name, layer in leaves(model):
        y = forward(name, layer, weights, x, masks, training=True)
        passed.append((name, layer, x, y))
        x = y
    g = torch.softmax(x, 2)  # the derivative by the logits is p - 1 for the label, p for others
    g.scatter_add_(2, labels[..., None], g.new_full((), -1).expand(*labels.shape, 1))
    g /= labels.shape[1]
    by_name: dict[str, Tensor] = {}
    first = next(name for name, layer, _, _ in passed if isinstance(layer, nn.Linear))
    for name, layer, x, y in reversed(passed):
        if isinstance(layer, nn.Linear):
            by_name[f"{name}.weight"] = torch.bmm(x.mT, g).mT
            if layer.bias is not None:
                by_name[f"{name}.bias"] = g.sum(1)
            if name == first:
                break
            g = torch.bmm(g, weights[f"{name}.weight"])
        elif isinstance(layer, DROPOUT):
            g = g * masks[name]
        else:
            g = DERIVATIVES[type(layer)](g, x, y, layer)
    return by_name


def sgd(weight: Tensor, gradient: Tensor, state: State, step: int, rate: Tensor, how: Mapping):
    """Take a step of `torch.optim.SGD`, with (Nesterov's) momentum."""
    if how["momentum"]:
        if "momentum_buffer" in state:
            buffer = state["momentum_buffer"]
            torch.add(gradient, buffer, alpha=how["momentum"], out=buffer)  # one pass over memory
        else:
            buffer = state["momentum_buffer"] = gradient.clone()
        gradient = gradient + how["momentum"] * buffer if how["nesterov"] else buffer
    weight.addcmul_(gradient, rate, value=-1)


def adam(weight: Tensor, gradient: Tensor, state: State, step: int, rate: Tensor, how: Mapping):
    """Take a step of `torch.optim.Adam`."""
    first, second = how["betas"]
    mean = state.setdefault("exp_avg", torch.zeros_like(weight)).lerp_(gradient, 1 - first)
    square = state.setdefault("exp_avg_sq", torch.zeros_like(weight))
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    root = square.sqrt().div_((1 - second ** (step + 1)) ** 0.5).add_(how["eps"])
    weight.addcmul_(mean / root, rate, value=-1 / (1 - first ** (step + 1)))


def rmsprop(weight: Tensor, gradient: Tensor, state: State, step: int, rate: Tensor, how: Mapping):
    """Take a step of `torch.optim.RMSprop`, with momentum."""
    square = state.setdefault("square_avg", torch.zeros_like(weight))
    square.mul_(how["alpha"]).addcmul_(gradient, gradient, value=1 - how["alpha"])
    change = gradient / square.sqrt().add_(how["eps"])
    if how["momentum"]:
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(weight))
        change = buffer.mul_(how["momentum"]).add_(change)
    weight.addcmul_(change, rate, value=-1)


RULES: dict[str, Callable] = {"SGD": sgd, "Adam": adam, "RMSprop": rmsprop}
# Options that change a rule in ways these do not know.
REFUSED = ("maximize", "dampening", "amsgrad", "centered", "differentiable", "fused")
REFUSED += ("decoupled_weight_decay",)


def has_rule(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether `update` can take the optimiser's steps."""
    group = optimizer.param_groups[0]
    return type(optimizer).__name__ in RULES and not any(group.get(option) for option in REFUSED)


def update(
    name: str,
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    states: Mapping[str, State],
    step: int,
    rates: Tensor,
    decays: Tensor | None,
    how: Mapping,
) -> None:
    """Take one step of every member, in place, by the rule `name` of `RULES`.

    `states` are torch's, stacked and by weight, empty before the first step; `step` counts the
    steps before this one; learning rates and weight decays (L2; None for none) are (members,);
    `how` has the other options, as in the optimiser's `param_groups`.
    """
    for key, weight in weights.items():
        shape = (-1,) + (1,) * (weight.ndim - 1)
        gradient = gradients[key]
        if decays is not None:
            gradient = gradient.addcmul(weight, decays.view(shape))
        RULES[name](weight, gradient, states[key], step, rates.view(shape), how)
