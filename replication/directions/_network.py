"""A network cut at the layers to be perturbed, and the perturbed passes through the rest of it.

A *unit* is an entry of the second dimension of a layer's output: a neuron of (N, units), a feature
map of (N, channels, height, width).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from replication import activations
from replication._core.inputs import as_integer, as_model, as_names

# Takes the layer's index and its output (copies, examples, units, ...); returns the same shape.
Alter = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Cut:
    """A network in two parts: what no perturbation reaches, and what has to run for each.

    Attributes
    ----------
    layers : tuple of str
    shapes : tuple of torch.Size
        Of one example of each layer's output: (units, ...).
    classes : int
    head, tail : tuples of modules, one after the other
    first : int or None
        The layer that is the head's output; None where no cut is possible behind a layer.
    hooked : tuple of (int, module)
        The layers within the tail.
    like : Tensor
        On the model's device and of its dtype.
    largest : int
        Bytes of the largest output of any module for one example.
    """

    layers: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    classes: int
    head: tuple[nn.Module, ...]
    tail: tuple[nn.Module, ...]
    first: int | None
    hooked: tuple[tuple[int, nn.Module], ...]
    like: Tensor
    largest: int

    @property
    def widths(self) -> list[int]:
        """Units of each layer."""
        return [shape[0] for shape in self.shapes]

    @property
    def units(self) -> int:
        """Units of all layers."""
        return sum(self.widths)

    def columns(self, index: int) -> slice:
        """Return where a layer's units are among those of all layers."""
        start = sum(self.widths[:index])
        return slice(start, start + self.widths[index])

    def rows(self, batch_size: int | None) -> int:
        """Return the rows of a forward pass: `batch_size`, or what is measured to be fast.

        Tensors of up to 16 MiB, which the allocator uses again without clearing new pages, and 1024
        rows, of which a layer of a few hundred units fits into a CPU's cache.
        """
        if batch_size is not None:
            return as_integer(batch_size, "batch_size", 1)
        rows, size = (2**10, 2**24) if self.like.device.type == "cpu" else (2**14, 2**29)
        return max(1, min(rows, size // self.largest))

    def batches(self, images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what the head makes of `images`, and the labels, a batch at a time."""
        for part, targets in zip(images.split(size), labels.split(size), strict=True):
            yield chained(self.head, to_model(part, self.like)), targets.to(self.like.device)

    @contextmanager
    def altered(self, alter: Alter) -> Iterator[Callable[[Tensor, int], Tensor]]:
        """Give a function from the head's output and a number of copies to altered logits.

        The logits are (copies, examples, classes). Within the block `alter` also meets the layers
        of the tail, in every pass through it; its `copies` attribute tells how many there are.
        """

        def hook(index: int) -> Callable:
            def change(module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
                return alter(index, output.unflatten(0, (alter.copies, -1))).flatten(0, 1)

            return change

        def logits(x: Tensor, copies: int) -> Tensor:
            rows = x.expand(copies, *x.shape)
            rows = rows.clone() if self.first is None else alter(self.first, rows)
            return chained(self.tail, rows.flatten(0, 1)).unflatten(0, (copies, -1))

        handles = [module.register_forward_hook(hook(index)) for index, module in self.hooked]
        try:
            yield logits
        finally:
            for handle in handles:
                handle.remove()


class Clamp:
    """Sets units to constants: one row of `masks` (copies, units) for each copy."""

    def __init__(self, cut: Cut, values: list[Tensor]) -> None:
        self.cut, self.values = cut, values
        self.masks = torch.empty(0)

    @property
    def copies(self) -> int:
        return len(self.masks)

    def __call__(self, index: int, output: Tensor) -> Tensor:
        width, rest = output.shape[2], (1,) * (output.ndim - 3)
        mask = self.masks[:, self.cut.columns(index)].reshape(-1, 1, width, *rest)
        return torch.where(mask, self.values[index].reshape(width, *rest), output)


def cut(model: nn.Module, images: Tensor, layers: str | Sequence[str]) -> Cut:
    """Return `model` cut behind the first of `layers`, or before the module that contains it.

    Only `nn.Sequential` (nested, without hooks of its own) says which module takes which output, so
    only there is a cut possible. Of any other model the tail is the whole.

    Raises
    ------
    ValueError
        If a layer does not exist, does not give one tensor (N, units, ...), is called more than
        once in a pass, or two of them are the same; or if the model is no network or does not give
        finite (N, classes).
    """
    layers = (layers,) if isinstance(layers, str) else tuple(as_names(layers, "layers"))
    if not layers:
        raise ValueError("layers: expected at least one name, found none")
    like = next((p for p in as_model(model).parameters() if p.is_floating_point()), images).detach()
    some = to_model(images[:2], like)
    found = activations.record(model, some, layers)
    for name in layers:
        keys = [key for key in found if key.split("#")[0].split("[")[0] == name]
        if keys != [name]:
            raise ValueError(f"layers: {name!r} gave {keys}; expected one tensor and one call")
        if found[name].ndim < 2:
            shape = tuple(found[name].shape)
            raise ValueError(f"layers: {name!r} gave shape {shape}; expected (N, units, ...)")
    logits, largest = _probe(model, to_model(images[:2], like))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(some):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model: expected logits (N, classes), found {shape}")
    if not logits.isfinite().all():
        raise ValueError("model: expected finite logits, found NaN or infinity")
    for name, weight in model.named_parameters():  # other images may meet what these did not
        if not weight.isfinite().all():
            raise ValueError(f"model: expected finite weights, but {name!r} holds NaN or infinity")

    links = _chain(model)
    places = [_place(name, links) for name in layers]
    behind = [place for place in places if place[1]]
    if len(set(layers)) < len(layers) or len(set(behind)) < len(behind):
        raise ValueError(f"layers: expected different ones, found {list(layers)}")
    start, behind_it = min(places)
    first = places.index((start, True)) if behind_it else None
    named = dict(model.named_modules())
    modules = tuple(module for _, module in links)
    return Cut(
        layers=layers,
        shapes=tuple(found[name].shape[1:] for name in layers),
        classes=logits.shape[1],
        head=modules[: start + behind_it],
        tail=modules[start + behind_it :],
        first=first,
        hooked=tuple(
            (index, modules[place] if direct else named[name])
            for index, (name, (place, direct)) in enumerate(zip(layers, places, strict=True))
            if index != first
        ),
        like=like,
        largest=largest,
    )


def to_model(images: Tensor, like: Tensor) -> Tensor:
    """Return a copy of `images`, as an in-place layer may come first, for the model of `like`."""
    dtype = like.dtype if images.is_floating_point() else images.dtype
    return images.to(like.device, dtype, copy=True)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Run the block with the model in eval mode, without gradients and without TF32."""
    with activations.evaluating(model), torch.no_grad():
        yield


def chained(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Return what the modules, one after the other, make of x."""
    for module in modules:
        x = module(x)
    return x


def _probe(model: nn.Module, images: Tensor) -> tuple[object, int]:
    """Return the model's output and the bytes of the largest of any module for one example."""
    sizes = [images[0].nbytes]

    def hook(module: nn.Module, arguments: tuple, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.nbytes // len(images))

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    try:
        with quiet(model):
            return model(images), max(sizes)
    finally:
        for handle in handles:
            handle.remove()


def _chain(module: nn.Module, name: str = "") -> list[tuple[set[str], nn.Module]]:
    """Return the modules in the order in which they run, with all names that mean their output."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    if type(module).forward is not nn.Sequential.forward or hooks or not len(module):
        return [({name}, module)]
    links = []
    for key, child in module._modules.items():  # named_children passes over repeated modules
        links += _chain(child, f"{name}.{key}" if name else key)
    links[-1][0].add(name)
    return links


def _place(layer: str, links: list[tuple[set[str], nn.Module]]) -> tuple[int, bool]:
    """Return where in the chain a layer is, and whether it is that link's very output."""
    for place, (names, _) in enumerate(links):
        if layer in names:
            return place, True
    inside = [any(not n or layer.startswith(f"{n}.") for n in names) for names, _ in links]
    return inside.index(True), False
