"""Ablation of units: how accuracy falls as units are clamped to a constant, many or one at a time.

Single directions are ablated at a layer's output, that is, after the nonlinearity and batch norm
where the caller names the layer that ends them (Morcos et al. 2018, section 2). A unit is a
neuron of (N, units) or a whole feature map of (N, channels, height, width).

How much is run again for each clamped copy depends on the model; `method` of the results tells:

``"incremental"``
    The layer is a link of an `nn.Sequential` (nested or not), and up to the next linear layer
    (dense or convolution) only modules follow that treat units by themselves. What the units give
    to its pre-activation is added up, and only what comes behind it runs; examples on which a unit
    does not change are not run at all.
``"split"``
    The layer is a link, but something else follows. What comes behind the layer runs.
``"hooks"``
    The model does not say which of its modules takes which output (any `forward` of its own), or
    the layer lies inside such a module of a Sequential. That module, or the model, runs from its
    start, with forward hooks that clamp.

All three give the accuracies of one masked forward pass per number of units, except for examples
whose largest two logits agree to within rounding (in float64 practically none). Sums of what units
give start from the fully clamped layer and add the units that are kept, so that rounding does not
build up over k: see `_linear`. The model has to treat examples independently of one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from replication._core.inputs import Array, like
from replication._core.progress import bar
from replication.directions._arguments import as_counts, as_examples, as_orders, class_sizes
from replication.directions._linear import NextLinear, next_linear
from replication.directions._moments import clamp_values
from replication.directions._network import Clamp, Cut, cut, quiet
from replication.directions._passes import cumulative, one_by_one


@dataclass(frozen=True)
class AblationCurve:
    """Accuracy against the number of ablated units, for several orders.

    Arrays are of the caller's kind, float64, on the model's device.

    Attributes
    ----------
    accuracy : (orders, counts)
        Share of examples classified as labelled, 0 to 1.
    class_accuracy : (orders, counts, classes)
        The same over the examples of one class; NaN for a class without examples.
    counts : (counts,)
        Numbers of ablated units.
    orders : (orders, units)
        Which unit was ablated first, second, ...; units of several layers one layer after another.
    layers : tuple of str
    widths : tuple of int
        Units of each layer.
    method : "incremental", "split" or "hooks"
        What was run again for each number of units; see the module's docstring.
    """

    accuracy: Array
    class_accuracy: Array
    counts: Array
    orders: Array
    layers: tuple[str, ...]
    widths: tuple[int, ...]
    method: str

    @property
    def auc(self) -> Array:
        """(orders,) area under accuracy against the share of ablated units, over its width.

        By trapezoids, in [0, 1]: 1 for a network that is right to the end, and the mean accuracy
        over the range of `counts` in general.
        """
        counts, accuracy = self.counts, self.accuracy
        steps = counts[1:] - counts[:-1]
        area = ((accuracy[:, 1:] + accuracy[:, :-1]) * steps).sum(1) / 2
        return area / (counts[-1] - counts[0])


@dataclass(frozen=True)
class UnitAblation:
    """What ablating each unit alone does.

    Arrays are of the caller's kind, float64, on the model's device; units of several layers stand
    one layer after another.

    Attributes
    ----------
    accuracy, loss : (units,)
        Share of examples classified as labelled, and mean cross-entropy in nats.
    class_accuracy : (units, classes)
        NaN for a class without examples.
    baseline_accuracy, baseline_loss : float
        Of the whole network.
    baseline_class_accuracy : (classes,)
    layers, widths
        As in `AblationCurve`.
    methods : tuple of str
        For each layer, as `AblationCurve.method`.
    """

    accuracy: Array
    loss: Array
    class_accuracy: Array
    baseline_accuracy: float
    baseline_loss: float
    baseline_class_accuracy: Array
    layers: tuple[str, ...]
    widths: tuple[int, ...]
    methods: tuple[str, ...]

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
    reference: Array | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> AblationCurve:
    """Return the accuracy with the first k units of an order clamped, for k = 0 .. units.

    Morcos et al. 2018, section 2 and figures 1 and 3. The model runs in eval mode, on its own
    device and in its own dtype; every module is put back in the mode it was in.

    Parameters
    ----------
    model : torch.nn.Module
        Gives logits (N, classes).
    images : (N, ...) tensor or array
    labels : (N,) integers
        In 0 .. classes - 1.
    layers : str or sequence of str
        Whose outputs to clamp, as in ``model.named_modules()``. Units of several layers are ablated
        together, in orders over all of them.
    orders : int or (orders, units) integers
        Random orders to draw from `seed` (the first ones do not depend on how many), or explicit
        ones, each a permutation of 0 .. units - 1 with the layers' units one after another.
    clamp : "zero" or "mean"
        What ablated units are set to: 0, or the unit's mean over `reference` (and over space) in
        the whole network.
    counts : increasing integers in 0 .. units, at least two, optional
        The numbers k; by default all.
    seed : int
    reference : (M, ...) tensor or array, optional
        Images for the means; `images` by default.
    batch_size : int, optional
        Rows of a forward pass, examples times clamped copies. It bounds the memory to a few times
        what one such pass takes, however many examples, units and orders there are. By default at
        most 1024, and as few as keep every layer's output within 16 MiB (on a GPU, 16384 and 512
        MiB).
    progress : bool
        Show a progress bar over batches and orders.

    Raises
    ------
    ValueError
        If an argument is none of the above, a layer does not exist, is called more than once in a
        pass or does not give one tensor (N, units, ...), or the model does not give (N, classes).

    Examples
    --------
    >>> import torch
    >>> from replication import directions
    >>> net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> images = torch.randn(40, 5)
    >>> curve = directions.cumulative_ablation(net, images, net(images).argmax(1), "1", orders=4)
    >>> tuple(curve.accuracy.shape), curve.accuracy[:, 0].tolist()  # from no unit to all eight
    ((4, 9), [1.0, 1.0, 1.0, 1.0])
    """
    inputs, targets = as_examples(images, labels)
    network = cut(model, inputs, layers)
    rows = network.rows(batch_size)
    values = clamp_values(model, network, clamp, inputs, reference, rows)
    drawn = as_orders(orders, network.units, seed).to(network.like.device)
    numbers = as_counts(counts, network.units)
    hits = torch.zeros(len(drawn), len(numbers), network.classes, dtype=torch.float64)
    hits = hits.to(network.like.device)
    examples = class_sizes(targets, network.classes).to(hits.device)
    steps = -(-len(inputs) // rows) * len(drawn)
    with quiet(model), bar(show=progress, total=steps, desc="ablation") as done:
        linear = next_linear(network, values)
        alter = Clamp(network, values)
        with network.altered(alter) as logits:
            for x, y in network.batches(inputs, targets, rows):
                classes = F.one_hot(y, network.classes).double()
                copies = max(1, rows // len(x))
                found = cumulative(network, linear, alter, logits, x, y, drawn, numbers, copies)
                for total, right in zip(hits, found, strict=True):
                    total += right.double() @ classes
                    done.update()
    kind = like(images)
    return AblationCurve(
        accuracy=kind(hits.sum(2) / len(inputs)),
        class_accuracy=kind(hits / examples),
        counts=kind(torch.tensor(numbers, device=hits.device)),
        orders=kind(drawn),
        layers=network.layers,
        widths=tuple(network.widths),
        method=_method(network, linear),
    )


def unit_ablation(
    model: nn.Module,
    images: Array,
    labels: Array,
    layers: str | Sequence[str],
    clamp: str = "zero",
    *,
    reference: Array | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> UnitAblation:
    """Return accuracy, loss and accuracy by class with each unit of `layers` clamped alone.

    The importance of single units (Morcos et al. 2018, figure 7) and the damage to single classes
    (Zhou et al. 2018). Parameters and errors as in `cumulative_ablation`.

    Examples
    --------
    >>> import torch
    >>> from replication import directions
    >>> net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> images = torch.randn(40, 5)
    >>> found = directions.unit_ablation(net, images, net(images).argmax(1), "1")
    >>> tuple(found.accuracy.shape)  # one unit at a time
    (8,)
    """
    inputs, targets = as_examples(images, labels)
    whole = cut(model, inputs, layers)
    rows = whole.rows(batch_size)
    values = clamp_values(model, whole, clamp, inputs, reference, rows)
    examples = class_sizes(targets, whole.classes).to(whole.like.device)
    found, methods = [], []
    batches = -(-len(inputs) // rows)
    with quiet(model), bar(show=progress, total=batches * whole.units, desc="ablation") as done:
        for name, value in zip(whole.layers, values, strict=True):
            network = cut(model, inputs, name)
            linear = next_linear(network, [value])
            methods.append(_method(network, linear))
            total = torch.zeros(2, network.units + 1, network.classes, dtype=torch.float64)
            total = total.to(network.like.device)
            alter = Clamp(network, [value])
            with network.altered(alter) as logits:
                for x, y in network.batches(inputs, targets, rows):
                    classes = F.one_hot(y, network.classes).double()
                    copies = max(1, rows // len(x))
                    outcomes = one_by_one(network, linear, alter, logits, x, y, copies)
                    for start, outcome in outcomes:
                        part = outcome @ classes
                        total[:, start : start + part.shape[1]] += part
                        done.update(part.shape[1])
            found.append(total)
    kind = like(images)
    totals = torch.cat([found[0][:, :1], *(total[:, 1:] for total in found)], 1)
    hits, losses = totals[0], totals[1].sum(1) / len(inputs)
    accuracy, class_accuracy = hits.sum(1) / len(inputs), hits / examples
    return UnitAblation(
        accuracy=kind(accuracy[1:]),
        loss=kind(losses[1:]),
        class_accuracy=kind(class_accuracy[1:]),
        baseline_accuracy=accuracy[0].item(),
        baseline_loss=losses[0].item(),
        baseline_class_accuracy=kind(class_accuracy[0]),
        layers=whole.layers,
        widths=tuple(whole.widths),
        methods=tuple(methods),
    )


def _method(network: Cut, linear: NextLinear | None) -> str:
    if network.first is None:
        return "hooks"
    return "split" if linear is None else "incremental"
