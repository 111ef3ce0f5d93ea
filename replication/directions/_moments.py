"""Mean and variance of single units over examples, and the constants that clamp them."""

import torch
from torch import Tensor, nn

from replication import activations
from replication._core.inputs import Array, as_tensor, nearest
from replication.directions._network import Cut, to_model

CLAMPS = ("zero", "mean")


def unit_moments(
    model: nn.Module, network: Cut, images: Tensor, batch_size: int
) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's mean and variance (divided by n) of every unit, (units,) float64.

    Over examples and, for feature maps, space; a batch at a time (Chan et al. 1979).
    """
    count, moments = 0, [(0.0, 0.0)] * len(network.layers)
    for part in images.split(batch_size):
        part = to_model(part, network.like)
        found = activations.record(model, part, network.layers, batch_size=len(part))
        for index, name in enumerate(network.layers):
            output = found[name].flatten(2) if found[name].ndim > 2 else found[name][..., None]
            variance, mean = torch.var_mean(output, (0, 2), correction=0)
            old_mean, old_variance = moments[index]
            share = len(part) / (count + len(part))
            shift = mean.double() - old_mean
            spread = (1 - share) * old_variance + share * variance.double()
            moments[index] = (old_mean + share * shift, spread + share * (1 - share) * shift**2)
        count += len(part)
    return moments


def clamp_values(
    model: nn.Module,
    network: Cut,
    clamp: str,
    images: Tensor,
    reference: Array | None,
    batch_size: int,
) -> list[Tensor]:
    """Return what each layer's units are set to, (units,)."""
    if clamp not in CLAMPS:
        raise ValueError(f"clamp: found {clamp!r}; {nearest(str(clamp), CLAMPS)}")
    if clamp == "zero":
        return [network.like.new_zeros(width) for width in network.widths]
    images = images if reference is None else as_tensor(reference, "reference")
    moments = unit_moments(model, network, images, batch_size)
    return [mean.to(network.like) for mean, _ in moments]
