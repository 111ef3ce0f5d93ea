"""Networks by name, with weights from a seed; the multilayer perceptron and the MNIST convnet."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from replication._core.inputs import as_choice, as_integer, derive_seed
from replication.models._layers import activate, as_flag, dropout_layer, initialise, sequence, unit
from replication.models.convnets import morcos_convnet, plain, svcca_convnet, tiny10
from replication.models.inception import small_alexnet, small_inception
from replication.models.resnet import resnet
from replication.models.sequences import row_lstm, vit


def mlp(
    inputs: int = 784,
    widths: Sequence[int] = (512,),
    classes: int = 10,
    activation: str = "relu",
    bias: bool = True,
    batch_norm: bool = False,
    dropout: float = 0.0,
    init: str = "torch",
    bias_sd: float = 0.0,
) -> nn.Sequential:
    """Return a fully connected network: ``flatten, fc1, bn1, act1, drop1, ..., fcL``.

    Inputs are ``(N, ...)`` with `inputs` numbers each; `activation` is one of `ACTIVATIONS`. Zhang
    et al. 2017 (Table 1) have `inputs` 2352 and `widths` (512,) with 1,209,866 parameters, (512,
    512, 512) with 1,735,178. Default: 407,050. `init`: ``"torch"``, or ``"he"`` for normal weights
    of variance 2 / fan_in (He et al. 2015) with biases 0, as deep networks without biases need.
    With `bias_sd` biases are normal of that standard deviation (0.001 in Hanin and Rolnick 2019).
    """
    sizes = [as_integer(inputs, "inputs", 1), *[as_integer(n, "widths", 1) for n in widths]]
    classes, bias = as_integer(classes, "classes", 1), as_flag(bias, "bias")
    activate(activation)  # an unknown one is an error also where no layer has it
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        dense = nn.Linear(fan_in, fan_out, bias=bias)
        layers |= unit(f"fc{index}", dense, index, batch_norm, dropout, activation)
    network = sequence(layers | {f"fc{len(sizes)}": nn.Linear(sizes[-1], classes, bias=bias)})
    dense = [layer for layer in network if isinstance(layer, nn.Linear)]
    if as_choice(init, "init", ("torch", "he")) == "he":
        for layer in dense:
            nn.init.kaiming_normal_(layer.weight)
            if bias:
                nn.init.zeros_(layer.bias)
    for layer in dense if bias_sd else ():  # after all weights, which are the same without
        nn.init.normal_(layer.bias, std=bias_sd)
    return network


def mnist_convnet(
    classes: int = 10,
    channels: Sequence[int] = (32, 64),
    dropout: Sequence[float] = (0.0, 0.0),
    init: str = "torch",
    pool_each: bool = False,
) -> nn.Sequential:
    """Return the small MNIST convnet of the noise-SVD notebook, 1x28x28 in, logits out.

    3x3 convolutions without padding, 128 hidden units. With the default `channels`, of its two
    convolutions, the pooled layer has 9216 neurons and the network 1,199,882 parameters. `dropout`
    are the shares after the pooling and after ``relu3``. `init`: ``"torch"`` for torch's own
    weights; ``"glorot"`` (Glorot & Bengio 2010, uniform) and ``"he"`` (He et al. 2015, normal) with
    biases 0. With `pool_each` the first convolution has a pooling, ``pool1``, as well.
    """
    first, second = channels
    pooled, dense = dropout
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(1, first, 3),
        "relu1": nn.ReLU(),
        **({"pool1": nn.MaxPool2d(2)} if pool_each else {}),
        "conv2": nn.Conv2d(first, second, 3),
        "relu2": nn.ReLU(),
        "pool": nn.MaxPool2d(2),
        **dropout_layer(pooled, "drop1"),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(second * (5 * 5 if pool_each else 12 * 12), 128),
        "relu3": nn.ReLU(),
        **dropout_layer(dense, "drop2"),
        "fc2": nn.Linear(128, classes),
    }
    network = sequence(layers)
    if as_choice(init, "init", ("torch", "glorot", "he")) != "torch":
        draw = nn.init.xavier_uniform_ if init == "glorot" else nn.init.kaiming_normal_
        initialise(network, draw, nn.Conv2d, nn.Linear)
    return network


_FUNCTIONS = (
    *(mlp, mnist_convnet, small_alexnet, small_inception, morcos_convnet, svcca_convnet),
    *(tiny10, plain, resnet, row_lstm, vit),
)
MODELS: dict[str, Callable[..., nn.Module]] = {f.__name__: f for f in _FUNCTIONS}


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **options) -> nn.Module:
    """Return the network called `name` with weights drawn from `seed`; bad options: ValueError.

    The weights are drawn on the CPU, so that a seed means the same network on every device, with
    torch's default initialisation (dense and convolutional ones uniform within +-1/sqrt(fan_in))
    where the network's own docstring names no other.

    Parameters
    ----------
    name : str
        One of `MODELS`. Inputs are ``(N, channels, H, W)``, outputs logits ``(N, classes)``.
    **options
        Go to the function of that name. Many networks take ``classes``; ``channels`` of the images
        and their side ``size``; ``width``, which multiplies all channels and hidden units (rounded,
        at least 1); ``batch_norm``, before every activation; and ``dropout``, a share in [0, 1),
        after every activation. Layers that are off are absent.
    """
    function = MODELS[as_choice(name, "model", MODELS)]
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed every GPU as well, and no one would set them back.
        torch.default_generator.manual_seed(derive_seed(seed, "init"))
        try:
            return function(**options).to(dtype)
        except TypeError as error:
            raise ValueError(f"model_options: {name} was given {options} ({error})") from error
