"""A network cut at the layers to be perturbed, and the perturbed passes through the rest of it.

A *unit* is an entry of the second dimension of a layer's output: a neuron of (N, units), a feature
map of (N, channels, height, width).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replication import activations
from replication._core import inputs, layouts, modules
from replication._core.inputs import Array, as_inputs
from replication._core.precision import full_precision


class Cut:
    """A network cut behind the first of `layers`, or before the module that contains it; its data.

    The head is what no perturbation reaches, the tail what runs for each: the whole where no
    `nn.Sequential` (nested, without hooks of its own) says which module takes which output. By
    default a pass has up to 1024 rows, which fit into a CPU's cache, and tensors of up to 16 MiB,
    which the allocator uses again without clearing new pages.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Array,
        labels: Array,
        layers: str | Sequence[str],
        batch_size: int | None,
    ) -> None:
        self.model, self.images = model, as_inputs(images, "images")  # (N, ...)
        self.labels = inputs.as_labels(labels, len(self.images)).long()  # (N,)
        names = [layers] if isinstance(layers, str) else inputs.as_names(layers, "layers")
        if not names:
            raise ValueError("layers: expected at least one name, found none")
        self.layers = tuple(names)
        self.like = modules.weight_of(inputs.as_network(model), self.images)  # its device and dtype
        outputs = activations.record(model, self.images[:2], self.layers)
        for name in names:
            keys = [key for key in outputs if modules.layer_of(key) == name]
            if keys != [name]:
                raise ValueError(f"layers: {name!r} gave {keys}; expected one tensor and one call")
            if outputs[name].ndim < 2:
                shape = tuple(outputs[name].shape)
                raise ValueError(f"layers: {name!r} gave shape {shape}; expected (N, units, ...)")
        self.shapes = [outputs[name].shape[1:] for name in names]  # (units, ...)
        self.widths = tuple(shape[0] for shape in self.shapes)
        self.units = sum(self.widths)
        classes, largest = _probe(model, modules.to_model(self.images[:2], self.like), names)
        inputs.require_classes(self.labels, classes)
        examples = torch.bincount(self.labels, minlength=classes)
        with full_precision():
            self.examples = examples.double().to(self.like.device)  # of each class, (classes,)
        if batch_size is None:
            rows, size = (2**10, 2**24) if self.like.device.type == "cpu" else (2**14, 2**29)
            batch_size = max(1, min(rows, size // largest))
        self.rows = inputs.as_integer(batch_size, "batch_size", 1)  # of a forward pass

        links = modules.chain(model)
        places = [_place(name, links) for name in names]
        behind = [place for place in places if place[1]]
        if len(set(names)) < len(names) or len(set(behind)) < len(behind):
            raise ValueError(f"layers: expected different ones, found {list(names)}")
        start, is_link = min(places)
        steps = [module for _, module in links]
        self.head, self.tail = steps[: start + is_link], steps[start + is_link :]
        # The layer that is the head's output, None if there is no such, and those in the tail.
        self.first = places.index((start, True)) if is_link else None
        named = dict(model.named_modules(remove_duplicate=False))
        pairs = enumerate(zip(names, places, strict=True))
        layer = [(i, steps[at] if direct else named[name]) for i, (name, (at, direct)) in pairs]
        self.inner = [(i, module) for i, module in layer if i != self.first]

    def columns(self, index: int) -> slice:
        """Return where a layer's units are among those of all layers."""
        start = sum(self.widths[:index])
        return slice(start, start + self.widths[index])

    def zeros(self, *shape: int) -> Tensor:
        """Return (*shape, classes) float64 zeros, to sum over the examples of each class."""
        return self.examples.new_zeros(*shape, len(self.examples))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Put the model in eval mode without gradients."""
        with activations.evaluating(self.model), torch.no_grad():
            yield

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the head's output (n, ...), labels (n,) and their indicators (n, classes)."""
        parts = self.images.split(self.rows), self.labels.split(self.rows)
        for images, labels in zip(*parts, strict=True):
            labels = labels.to(self.like.device)
            indicators = F.one_hot(labels, len(self.examples)).double()
            yield chained(self.head, modules.to_model(images, self.like)), labels, indicators

    def copies(self, x: Tensor) -> int:
        """Return how many copies of a batch go into a pass."""
        return max(1, self.rows // len(x))


class Perturbation:
    """Changes the outputs of a cut network's layers, for several `copies` of a batch at a time."""

    def __init__(self, network: Cut) -> None:
        self.network = network

    @property
    def copies(self) -> int:
        raise NotImplementedError

    def __call__(self, index: int, output: Tensor) -> Tensor:
        """Return the perturbed output (copies, examples, units, ...) of the layer with an index."""
        raise NotImplementedError

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Perturb the layers of the tail, in every pass through it within the block."""

        def hook(index: int) -> Callable:
            def change(module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
                return self(index, output.unflatten(0, (self.copies, -1))).flatten(0, 1)

            return change

        with modules.hooked([(module, hook(index)) for index, module in self.network.inner]):
            yield

    def logits(self, x: Tensor) -> Tensor:
        """Return perturbed logits (copies, examples, classes) from the head's output."""
        first, rows = self.network.first, x.expand(self.copies, *x.shape)
        rows = rows.clone() if first is None else self(first, rows)
        return chained(self.network.tail, rows.flatten(0, 1)).unflatten(0, (self.copies, -1))


@full_precision()
def unit_moments(network: Cut) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's mean and variance (divided by n) of every unit, (units,) float64.

    Over examples and space; by batches (Chan et al. 1979).
    """

    def of_batch(output: Tensor) -> Tensor:  # (n, units, ...) -> (1, 2, units)
        output = output[..., None].flatten(2)
        return torch.stack(torch.var_mean(output, (0, 2), correction=0))[None]

    images, layers = network.images, network.layers
    outputs = activations.record(network.model, images, layers, network.rows, of_batch)
    moments: list[Any] = []
    for name in layers:
        count, mean, variance = 0, 0.0, 0.0
        for part, (new, centre) in zip(images.split(network.rows), outputs[name], strict=True):
            share = len(part) / (count + len(part))
            shift = centre.double() - mean
            spread = (1 - share) * variance + share * new.double()
            mean, variance = mean + share * shift, spread + share * (1 - share) * shift**2
            count += len(part)
        moments.append((mean, variance))
    return moments


def chained(steps: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Return what the modules, one after the other, make of x."""
    for module in steps:
        x = module(x)
    return x


def _probe(model: nn.Module, images: Tensor, names: Sequence[str]) -> tuple[int, int]:
    """Return the number of classes and the bytes of the largest output of a module per example.

    ValueError if a layer of `names` has its units last.
    """
    count, sizes, wrong = len(images), [images[0].nbytes], []

    def note(name: str) -> Callable:
        def keep(module: nn.Module, arguments: tuple, output: object) -> None:
            if isinstance(output, Tensor):
                sizes.append(output.numel() * output.element_size() // count)
                last = getattr(output, "units", None) == "last"
                if name in names and (last or output.layout is not torch.strided):
                    found = f"units last, {tuple(output.shape)}" if last else output.layout
                    wrong.append(f"{name!r} has {found}")

        return keep

    places = layouts.Places()
    hooks: list[tuple[nn.Module, Callable]] = [(module, places) for module in model.modules()]
    hooks += [(m, note(name)) for name, m in model.named_modules(remove_duplicate=False)]
    with modules.hooked(hooks), activations.evaluating(model), torch.no_grad():
        logits = model(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model: expected logits (N, classes), found {shape}")
    if not logits.isfinite().all():
        raise ValueError("model: expected finite logits, found NaN or infinity")
    if wrong:
        raise ValueError(f"layers: {wrong[0]}; expected dense (N, units, ...)")
    weights = dict(model.named_parameters())  # other images may meet what these did not
    finite = [w.isfinite().all().to(logits.device) for w in weights.values()]
    if weights and not torch.stack(finite).all():
        name = next(name for name, weight in weights.items() if not weight.isfinite().all())
        raise ValueError(f"model: expected finite weights, but {name!r} holds NaN or infinity")
    return logits.shape[1], max(sizes)


def _place(layer: str, links: list[tuple[set[str], nn.Module]]) -> tuple[int, bool]:
    """Return where in the chain a layer is, and whether it is that link's very output."""
    for place, (names, _) in enumerate(links):
        if layer in names:
            return place, True
    inside = [any(not n or layer.startswith(f"{n}.") for n in names) for names, _ in links]
    return inside.index(True), False
