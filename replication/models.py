"""The papers' networks, built by name so that a specification can be written down as text.

Every network is a plain `torch.nn.Module` with named layers. `build` draws the initial weights
from a seed of its own and leaves torch's global generator as it was.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from replication._inputs import derive_seed, nearest

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "tanh": nn.Tanh,
    "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid,
}


def mlp(
    inputs: int = 784,
    widths: Sequence[int] = (512,),
    classes: int = 10,
    activation: str = "relu",
    bias: bool = True,
) -> nn.Sequential:
    """Return a fully connected network: flatten, then (fc, act) for each width, then fc.

    Layers are named ``flatten, fc1, act1, ..., fcL``. Inputs are ``(N, ...)`` with `inputs`
    numbers each; outputs are logits ``(N, classes)``.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: found {activation!r}; {nearest(activation, ACTIVATIONS)}")
    sizes = [inputs, *widths, classes]
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        layers[f"fc{index}"] = nn.Linear(fan_in, fan_out, bias=bias)
        if index <= len(widths):
            layers[f"act{index}"] = ACTIVATIONS[activation]()
    return nn.Sequential(layers)


def mnist_convnet(classes: int = 10, channels: Sequence[int] = (32, 64)) -> nn.Sequential:
    """Return the small MNIST convnet of the noise-SVD notebook, 1x28x28 in, logits out.

    conv 3x3, ReLU, conv 3x3, ReLU, max pool 2, FC 128, ReLU, FC; no padding. With the default
    channels the pooled layer has 9216 neurons and the network 1,199,882 parameters.
    """
    first, second = channels
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, first, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(first, second, 3),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(second * 12 * 12, 128),
            relu3=nn.ReLU(),
            fc2=nn.Linear(128, classes),
        )
    )


MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "mnist_convnet": mnist_convnet}


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **options) -> nn.Module:
    """Return the network called `name` with weights drawn from `seed`.

    The weights are drawn on the CPU with torch's default initialisation (He et al. 2015 with
    a = sqrt(5), that is uniform within +-1/sqrt(fan_in)), so that a seed means the same network on
    every device. `options` go to the function of that name.

    Raises
    ------
    ValueError
        If there is no such network or it does not take those options.
    """
    if name not in MODELS:
        raise ValueError(f"model: found {name!r}; {nearest(name, MODELS)}")
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed every GPU as well, and no one would set them back.
        torch.default_generator.manual_seed(derive_seed(seed, "init"))
        try:
            return MODELS[name](**options).to(dtype)
        except TypeError as error:
            raise ValueError(f"model_options: {name} was given {options} ({error})") from error
