"""Ablation of units: how accuracy falls as units are clamped to a constant, many or one at a time.

Single directions are ablated at a layer's output, that is, after the nonlinearity and batch norm
where the caller names the layer that ends them (Morcos et al. 2018, section 2). `method` of the
results tells what is run again for each clamped copy:

``"incremental"``
    The layer is a link of an `nn.Sequential` (nested or not), and up to the next linear layer
    (dense or convolution) only modules follow that treat units by themselves. What the units give
    to its pre-activation is added up, and only what comes behind it runs.
``"split"``
    The layer is a link, but something else follows. What comes behind the layer runs.
``"hooks"``
    The layer lies inside a module with a `forward` of its own, which runs from its start.

All three give the accuracies of one masked forward pass per number of units, but for ties of the
largest two logits to within rounding. The model has to treat examples independently.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from replication._core import inputs
from replication._core.inputs import Array, as_integer, as_tensor
from replication.directions._network import Cut, unit_moments
from replication.directions._passes import Clamped


@dataclass(frozen=True)
class AblationCurve:
    """Accuracy against the number of ablated units, for several orders.

    Arrays are of the caller's kind, float64, on the model's device.
    """

    accuracy: Array  #: (orders, counts), share of examples classified as labelled, 0 to 1
    class_accuracy: Array  #: (orders, counts, classes); NaN for a class without examples
    counts: Array  #: (counts,) numbers of ablated units
    orders: Array  #: (orders, units), which was ablated first, second, ...; layer after layer
    layers: tuple[str, ...]
    widths: tuple[int, ...]  #: units of each layer
    method: str  #: "incremental", "split" or "hooks"; see the module's docstring

    @property
    def auc(self) -> Array:
        """(orders,) mean accuracy over the range of `counts`, 0 to 1, by trapezoids."""
        counts, accuracy = self.counts, self.accuracy
        steps = counts[1:] - counts[:-1]
        area = ((accuracy[:, 1:] + accuracy[:, :-1]) * steps).sum(1) / 2
        return area / (counts[-1] - counts[0])


@dataclass(frozen=True)
class UnitAblation:
    """What ablating each unit alone does, layer after layer; arrays as in `AblationCurve`."""

    accuracy: Array  #: (units,) share of examples classified as labelled
    loss: Array  #: (units,) mean cross-entropy, nats
    class_accuracy: Array  #: (units, classes); NaN for a class without examples
    baseline_accuracy: float  #: of the whole network
    baseline_loss: float
    baseline_class_accuracy: Array  #: (classes,)
    layers: tuple[str, ...]
    widths: tuple[int, ...]  #: units of each layer
    methods: tuple[str, ...]  #: for each layer, as `AblationCurve.method`

    @property
    def accuracy_drop(self) -> Array:
        """(units,) baseline minus ablated accuracy; negative where the network is better off."""
        return self.baseline_accuracy - self.accuracy

    @property
    def loss_rise(self) -> Array:
        """(units,) ablated minus baseline cross-entropy, nats."""
        return self.loss - self.baseline_loss

    @property
    def class_accuracy_drop(self) -> Array:
        """(units, classes) class-specific damage (Zhou et al. 2018)."""
        return self.baseline_class_accuracy - self.class_accuracy


def cumulative_ablation(
    model: nn.Module,
    images: Array,
    labels: Array,
    layers: str | Sequence[str],
    orders: int | Array = 10,
    clamp: str = "zero",
    *,
    counts: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> AblationCurve:
    """Return the accuracy with the first k units of an order clamped, for k = 0 .. units.

    Morcos et al. 2018, section 2 and figures 1 and 3. The model runs in eval mode, on its own
    device and in its own dtype, and is put back in its modes.

    Parameters
    ----------
    model : torch.nn.Module
        Gives logits (N, classes).
    images : (N, ...) tensor or array
    labels : (N,) integers in 0 .. classes - 1
    layers : str or sequence of str
        Whose outputs to clamp, as in ``model.named_modules()``; several are ablated together.
    orders : int or (orders, units) integers
        How many random orders to draw by `seed` (the first do not depend on how many), or
        permutations of 0 .. units - 1, with the layers' units one after another.
    clamp : "zero" or "mean"
        To 0, or to the unit's mean over `images` (and over space) in the whole network.
    counts : increasing integers in 0 .. units, at least two, optional
        The numbers k; by default all.
    batch_size : int, optional
        Rows of a forward pass, examples times copies, which bounds the memory. By default at most
        1024 within 16 MiB for the largest output of a layer (on a GPU, 16384 and 512 MiB).

    Raises
    ------
    ValueError
        Also if a layer does not exist, is called more than once in a pass or does not give one
        tensor (N, units, ...), or the model does not give (N, classes).

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> images = torch.randn(40, 5)
    >>> curve = cumulative_ablation(net, images, net(images).argmax(1), "1", orders=4)
    >>> tuple(curve.accuracy.shape), curve.accuracy[:, 0].tolist()  # from no unit to all eight
    ((4, 9), [1.0, 1.0, 1.0, 1.0])
    """
    network = Cut(model, images, labels, layers, batch_size)
    values = _clamp_values(network, clamp)
    permutations = _as_orders(orders, network.units, seed)
    numbers = _as_counts(counts, network.units)
    hits = network.zeros(len(permutations), len(numbers))
    with network.running():
        clamped = Clamped(network, values)
        with clamped.hooked():
            for x, y, classes in network.batches():
                curves = clamped.cumulative(x, y, permutations, numbers)
                for total, right in zip(hits, curves, strict=True):
                    total += right.double() @ classes
    kind = inputs.like(images)
    return AblationCurve(
        accuracy=kind(hits.sum(2) / len(network.images)),
        class_accuracy=kind(hits / network.examples),
        counts=kind(torch.tensor(numbers, device=hits.device)),
        orders=kind(permutations.to(hits.device)),
        layers=network.layers,
        widths=network.widths,
        method=clamped.method,
    )


def unit_ablation(
    model: nn.Module,
    images: Array,
    labels: Array,
    layers: str | Sequence[str],
    clamp: str = "zero",
    *,
    batch_size: int | None = None,
) -> UnitAblation:
    """Return accuracy, loss and accuracy by class with each unit of `layers` clamped alone.

    The importance of single units (Morcos et al. 2018, figure 7) and the damage to single classes
    (Zhou et al. 2018). Parameters and errors as in `cumulative_ablation`.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> images = torch.randn(40, 5)
    >>> damage = unit_ablation(net, images, net(images).argmax(1), "1")
    >>> tuple(damage.accuracy.shape)  # one unit at a time
    (8,)
    """
    whole = Cut(model, images, labels, layers, batch_size)
    values = _clamp_values(whole, clamp)
    totals: list[Tensor] = []  # hits and losses by class, the first without clamp
    methods = []
    with whole.running():
        for name, value in zip(whole.layers, values, strict=True):
            network = Cut(model, images, labels, name, batch_size)
            clamped, total = Clamped(network, [value]), network.zeros(2, 1 + len(value))
            with clamped.hooked():
                for x, y, classes in network.batches():
                    for start, outcomes in clamped.one_by_one(x, y):
                        total[:, start : start + outcomes.shape[1]] += outcomes @ classes
            totals.append(total if not totals else total[:, 1:])
            methods.append(clamped.method)
    kind, count = inputs.like(images), len(whole.images)
    hits, losses = torch.cat(totals, 1)
    accuracy, loss = hits.sum(1) / count, losses.sum(1) / count
    baseline = torch.stack([accuracy[0], loss[0]]).tolist()
    class_accuracy = hits / whole.examples
    return UnitAblation(
        accuracy=kind(accuracy[1:]),
        loss=kind(loss[1:]),
        class_accuracy=kind(class_accuracy[1:]),
        baseline_accuracy=baseline[0],
        baseline_loss=baseline[1],
        baseline_class_accuracy=kind(class_accuracy[0]),
        layers=whole.layers,
        widths=whole.widths,
        methods=tuple(methods),
    )


def _clamp_values(network: Cut, clamp: str) -> list[Tensor]:
    """Return what each layer's units are set to, (units,)."""
    if inputs.as_choice(clamp, "clamp", ("zero", "mean")) == "zero":
        return [network.like.new_zeros(width) for width in network.widths]
    return [mean.to(network.like) for mean, _ in unit_moments(network)]


def _as_orders(orders: int | Array, units: int, seed: int) -> Tensor:
    """Return (orders, units) permutations, drawn or given."""
    if not isinstance(orders, Tensor | np.ndarray):
        numbers = range(as_integer(orders, "orders", 1))
        sources = [inputs.generator(seed, "ablation", number) for number in numbers]
        return torch.stack([torch.randperm(units, generator=source) for source in sources])
    given, shape = as_tensor(orders, "orders").cpu(), tuple(orders.shape)
    straight = torch.arange(units)
    if shape != (len(given), units) or (given.sort(1).values != straight).any():
        expected = f"permutations of 0 to {units - 1}, (orders, {units})"
        raise ValueError(f"orders: expected {expected}, found shape {shape}")
    return given.long()


def _as_counts(counts: Sequence[int] | None, units: int) -> list[int]:
    """Return numbers of ablated units, all of 0 .. units by default."""
    if counts is None:
        return list(range(units + 1))
    numbers = [as_integer(k, "counts", 0) for k in inputs.as_list(counts, "counts")]
    if len(numbers) < 2 or numbers[-1] > units or any(a >= b for a, b in pairwise(numbers)):
        expected = f"at least two increasing integers in 0 to {units}"
        raise ValueError(f"counts: expected {expected}, found {numbers}")
    return numbers
