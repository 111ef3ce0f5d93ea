"""Optimiser steps of many networks at once, each with a learning rate and weight decay of its own.

The rules are those of torch.optim with `foreach=False`, elementwise, so that a member's weights are
what its own optimiser would give. The state has torch's names, stacked like the weights.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]


def sgd(weight: Tensor, gradient: Tensor, state: State, step: int, rate: Tensor, how: Mapping):
    """Take a step of `torch.optim.SGD`, with (Nesterov's) momentum."""
    if how["momentum"]:
        if "momentum_buffer" in state:
            buffer = state["momentum_buffer"]
            if how["dampening"]:
                buffer.mul_(how["momentum"]).add_(gradient, alpha=1 - how["dampening"])
            else:  # one pass over memory in place of two
                torch.add(gradient, buffer, alpha=how["momentum"], out=buffer)
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
REFUSED = ("maximize", "amsgrad", "centered", "differentiable", "decoupled_weight_decay", "fused")


def knows(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether the optimiser's steps can be taken for many networks at once."""
    group = optimizer.param_groups[0]
    name = type(optimizer).__name__
    return name in RULES and not any(group.get(option) for option in REFUSED)


def update(
    name: str,
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    states: Mapping[str, State],
    step: int,
    rates: Tensor,
    decays: Tensor,
    how: Mapping,
) -> None:
    """Take one step of every member, in place.

    Parameters
    ----------
    name : str
        A key of `RULES`.
    weights, gradients : dict of (members, ...) tensors
    states : dict of dict of (members, ...) tensors
        By weight; empty before the first step.
    step : int
        Steps taken before this one.
    rates, decays : (members,) tensors
        Learning rates and weight decays (L2).
    how : mapping
        The other options, as in the optimiser's `param_groups`.
    """
    decaying = bool(decays.any())
    for key, weight in weights.items():
        shape = (-1,) + (1,) * (weight.ndim - 1)
        gradient = gradients[key]
        if decaying:
            gradient = gradient.addcmul(weight, decays.view(shape))
        RULES[name](weight, gradient, states[key], step, rates.view(shape), how)
