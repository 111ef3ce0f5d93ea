"""Reset layers of a trained network, and measure how far its weights went (Zhang et al. 2019).

A reset gives some layers the weights of another state of the same network: the initial one
(re-initialisation) or a fresh draw (re-randomisation).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from replication._core.inputs import as_model, as_names, as_tensor, nearest

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
    state : mapping
        A ``state_dict`` of the same architecture, on any device; else a `ValueError`.
    layers : sequence of str
        Names of modules that hold weights; with a module go all modules in it.

    Examples
    --------
    >>> from torch.nn import Linear, Sequential
    >>> net, other = (Sequential(Linear(5, 8), Linear(8, 3)) for _ in range(2))
    >>> mixed = reset(net, other.state_dict(), ["0"])
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
