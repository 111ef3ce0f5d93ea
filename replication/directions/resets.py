"""Reset layers of a trained network, and measure how far its weights went (Zhang et al. 2019).

A reset gives some layers the weights of another state of the same network: the initial one
(re-initialisation) or a fresh draw (re-randomisation). Statistics of batch normalisation further up
no longer fit then: `recalibrate` measures them anew, so that only the layer itself is lost.
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from replication._core.inputs import as_inputs, as_integer, as_model, as_names, as_tensor, nearest
from replication._core.modules import NORMS, to_model, weight_of
from replication._core.precision import full_precision
from replication.activations import taking_integers

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch normalisation


@dataclass(frozen=True)
class Distance:
    """How far a layer's weights are apart: ``l2`` and ``linf``, and ``rms`` = l2 / sqrt(count)."""

    l2: float
    linf: float
    rms: float


def reset(model: nn.Module, state: Mapping[str, Tensor], layers: Sequence[str]) -> nn.Module:
    """Return a copy of `model` whose `layers` have the weights and buffers of `state`.

    Parameters
    ----------
    model : torch.nn.Module
    state : mapping
        A ``state_dict`` of the same architecture, on any device; else a `ValueError`.
    layers : sequence of str
        Names of modules that hold weights; with a module go all modules in it.

    Examples
    --------
    >>> import torch
    >>> from replication.directions import resets
    >>> from torch.nn import Linear, Sequential
    >>> net, other = (Sequential(Linear(5, 8), Linear(8, 3)) for _ in range(2))
    >>> mixed = resets.reset(net, other.state_dict(), ["0"])
    >>> torch.equal(mixed[0].weight, other[0].weight), torch.equal(mixed[1].weight, net[1].weight)
    (True, True)
    """
    changed = copy.deepcopy(as_model(model))
    own = changed.state_dict()
    with torch.no_grad():
        for name in _entries(own, state, layers, "state"):
            own[name].copy_(state[name])
    return changed


def weight_distance(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], layers: Sequence[str]
) -> Distance:
    """Return how far the parameters of `layers` are apart in two states, taken as one vector.

        l2 = |v - w|_2,   linf = max_i |v_i - w_i|,   rms = l2 / sqrt(dim v)

    (Zhang, Bengio and Singer 2019.) Worked out in float64; the running statistics of batch
    normalisation are no weights and left out.
    """
    apart = []
    for name in _entries(first, second, layers, "second", STATISTICS):
        v = as_tensor(first[name], f"first[{name!r}]")
        w = as_tensor(second[name], f"second[{name!r}]")
        apart.append((v.double() - w.to(v).double()).flatten())
    apart = torch.cat(apart)
    l2 = apart.norm().item()
    return Distance(l2, apart.abs().max().item(), l2 / len(apart) ** 0.5)


@torch.no_grad()
def recalibrate(model: nn.Module, images: Tensor, batch_size: int = 512) -> nn.Module:
    """Return a copy of `model`, in eval mode, with batch statistics measured anew on `images`.

    One pass: the running mean and variance of every batch normalisation become the means over
    batches, each normalised by its own statistics, as in training. Dropout is off.

    Parameters
    ----------
    model : torch.nn.Module
    images : (N >= 2, ...) tensor or array
    batch_size : int >= 2
        Images a batch; the last batches share the rest evenly.
    """
    size = as_integer(batch_size, "batch_size", 2)
    images = as_inputs(images, "images")
    if images.ndim < 1 or len(images) < 2:
        raise ValueError(f"images: expected at least 2, found shape {tuple(images.shape)}")
    changed = copy.deepcopy(as_model(model)).eval()
    norms = [m for m in changed.modules() if isinstance(m, NORMS) and m.track_running_stats]
    if not norms:
        return changed
    momenta = [norm.momentum for norm in norms]
    calls: Counter[nn.Module] = Counter()

    def average(norm: Any, _: tuple) -> None:
        calls[norm] += 1
        norm.momentum = 1 / calls[norm]  # as None does, for which the host waits at every call

    hooks = [norm.register_forward_pre_hook(average) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    weight = weight_of(changed, images)
    with full_precision(), taking_integers(images):
        for batch in images.tensor_split(-(-len(images) // size)):
            changed(to_model(batch, weight))
    for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
        norm.momentum = momentum
        hook.remove()
    return changed.eval()


def _entries(
    own: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    layers: Sequence[str],
    name: str,
    without: tuple[str, ...] = (),
) -> list[str]:
    """Return the names of the tensors in `layers` of a state, which `other` has in their shapes."""
    entries: dict[str, None] = {}
    for layer in as_names(layers, "layers"):
        inside = [entry for entry in own if entry.startswith(f"{layer}.")]
        if not inside:
            known = {entry[:i] for entry in own for i, c in enumerate(entry) if c == "."}
            raise ValueError(f"layers: no weights in {layer!r}; {nearest(layer, sorted(known))}")
        kept = [entry for entry in inside if entry.rpartition(".")[2] not in without]
        entries.update(dict.fromkeys(kept))
    if not isinstance(other, Mapping):
        raise ValueError(f"{name}: expected a state_dict, found {type(other).__name__}")
    for entry in entries:
        shape = tuple(own[entry].shape)
        given = tuple(other[entry].shape) if entry in other else "none"
        if given != shape:
            raise ValueError(f"{name}: expected {entry!r} of shape {shape}, found {given}")
    return list(entries)
