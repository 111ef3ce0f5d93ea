"""Layers projected on a few directions, and networks that go on from there (Raghu et al. 2017)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from replication._core.inputs import Array, as_integer, as_list, as_tensor, nearest
from replication._core.modules import hooked
from replication._core.precision import full_precision
from replication.similarity._linalg import as_layer


@dataclass(frozen=True)
class Projection:
    """What is left of a layer reduced to k numbers: x -> mean + (x - mean) encode decode."""

    mean: Tensor  #: (neurons,)
    encode: Tensor  #: (neurons, k)
    decode: Tensor  #: (k, neurons)

    def __call__(self, x: Tensor) -> Tensor:
        """Return a layer of the same shape: (N, neurons) or (N, channels, height, width).

        Of the latter, `mean` has an entry a channel, and every position is projected alike, or one
        for each channel and position; else it is a ValueError.
        """
        mean, encode, decode = (part.to(x) for part in (self.mean, self.encode, self.decode))
        by_channel = x.ndim > 2 and x.shape[1] == len(mean)
        if not by_channel and x[0].numel() != len(mean):
            raise ValueError(f"x: expected {len(mean)} neurons or channels, found {tuple(x.shape)}")
        rows = x.movedim(1, -1) if by_channel else x.flatten(1)
        with full_precision():
            rows = mean + ((rows - mean) @ encode) @ decode
        return rows.movedim(-1, 1) if by_channel else rows.view(x.shape)


def onto_directions(x: Array, directions: Array) -> Projection:
    """Return the projection of every neuron on the span of k directions of the layer.

    With W the directions and H = X W their activity, the centred X becomes its least-squares
    approximation H H^+ X (Raghu et al. 2017, section 2.1); other examples take the same map W H^+.
    Directions that depend on others, or are 0, change nothing.

    Parameters
    ----------
    directions : (neurons, k) tensor or array
        For example `CCAResult.x_directions[:, :k]`, or columns of the identity.
    """
    layer = as_layer(x, "x")
    given = as_tensor(directions, "directions").to(layer)
    if given.ndim != 2 or len(given) != layer.shape[1]:
        expected = f"(neurons, k) for {layer.shape[1]} neurons"
        raise ValueError(f"directions: expected {expected}, found shape {tuple(given.shape)}")
    mean = layer.mean(0)
    centred = (layer - mean).double()
    with full_precision():
        variates = centred @ given.double()
        length = torch.linalg.vector_norm(variates, dim=0)
        scale = length.where(length > 0, 1)
        variates = variates / scale
        tolerance = len(layer) * torch.finfo(torch.float64).eps
        inverse = torch.linalg.pinv(variates.mT @ variates, rtol=tolerance, hermitian=True)
        decode = inverse @ (variates.mT @ centred)
    return Projection(mean, (given.double() / scale).to(layer), decode.to(layer))


def onto_neurons(x: Array, neurons: Sequence[int]) -> Projection:
    """Return the projection that keeps some neurons and holds the others at their mean over x."""
    layer = as_layer(x, "x")
    width = layer.shape[1]
    index = [as_integer(neuron, "neurons", 0) for neuron in as_list(neurons, "neurons")]
    if any(neuron >= width for neuron in index):
        raise ValueError(f"neurons: expected 0 to {width - 1}, found {max(index)}")
    axes = torch.eye(width, dtype=layer.dtype, device=layer.device)[:, index]
    return Projection(layer.mean(0), axes, axes.mT)


@contextmanager
def projected(model: nn.Module, layers: Mapping[str, Projection]) -> Iterator[nn.Module]:
    """Give `model` with the outputs of some layers projected, in every pass within the block."""
    modules, hooks = dict(model.named_modules()), []
    for name, projection in layers.items():
        if name not in modules:
            raise ValueError(f"layers: no layer {name!r}; {nearest(name, modules)}")
        hooks.append((modules[name], lambda *call, onto=projection: onto(call[2])))
    with hooked(hooks):
        yield model
