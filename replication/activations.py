"""Record what every layer of a network outputs.

Examples assume ``import torch`` and ``from replication.activations import *``.
"""

import fnmatch
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from warnings import warn

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from replication._core import inputs, layouts
from replication._core.inputs import Array, as_inputs, as_integer, as_list, as_names, like, nearest
from replication._core.modules import CONTAINERS, hooked, layer_of, to_model, weight_of
from replication._core.precision import full_precision

Reduction = str | Callable[[Tensor], Tensor] | None

VERSION = 1  # of the numbers: raise it when they change


def flatten(output: Tensor) -> Tensor:
    """Return ``(N, ...)`` as ``(N, neurons)``."""
    return output.flatten(1) if output.ndim > 1 else output[:, None]


def spatial_mean(output: Tensor) -> Tensor:
    """Return ``(N, channels, height, width, ...)`` averaged over everything behind the channels.

    Three dimensions, ``(N, tokens, units)`` or ``(N, channels, length)``, are a `ValueError`.
    """
    if output.ndim == 3:
        raise ValueError(
            f"reduction: 'spatial_mean' found shape {tuple(output.shape)}, expected images' (N, "
            "channels, height, width); give a callable, as lambda x: x.mean(1) for tokens"
        )
    return output.flatten(2).mean(2) if output.ndim > 2 else output


REDUCTIONS = {"flatten": flatten, "spatial_mean": spatial_mean}


def record(
    model: nn.Module,
    images: Array | Mapping[str, Array] | Iterable,
    layers: Sequence[str | re.Pattern] | None = None,
    batch_size: int = 512,
    reduction: Reduction = None,
    orders: Mapping[str, str] | None = None,
    mask: str | None = None,
) -> dict[str, Any]:
    """Return the output of every layer of `model` for `images`, in forward order.

    The model runs in eval mode under `torch.inference_mode`, a batch at a time, on its own device,
    and is left as it was. Outputs are copies on that device.

    Parameters
    ----------
    images : (N, ...) tensor or array, mapping, or iterable of batches
        Inputs, examples first; floating ones get the model's dtype, integers (tokens) stay. A
        mapping holds several inputs by their keywords, as a tokenizer gives them. An iterable, such
        as a `DataLoader`, has batches of either kind; of a tuple (inputs, labels) the first counts.
    layers : sequence of str, optional
        Module names as in ``model.named_modules()``, where ``""`` is the model's own output;
        patterns of whole names, as ``"blocks.*.mlp"`` or ``re.compile("conv[12]")``; or the longer
        keys described below. By default every named module but pure containers
        (``nn.Sequential`` repeats its last child). What functions and not modules compute, as
        ``F.relu``, is had from torchvision's ``create_feature_extractor``, recorded as ``""``.
    batch_size : int
        Examples a forward pass, where `images` are no batches already.
    reduction : None, "flatten", "spatial_mean" or callable
        Applied to each batch of each layer before it is held: ``"flatten"`` gives ``(N,
        neurons)``, ``"spatial_mean"`` ``(N, channels)``; a callable gets and returns a tensor.
    orders : mapping, optional
        The order of dimensions by layer, or by a pattern such as ``"features.*"``: a letter each, N
        for examples and C for units, as ``"NHWC"`` or ``"LNC"``. By default examples are expected
        first and units where the layers say: a convolution has them in dimension 1, a linear map
        last.
    mask : str, optional
        The entry of the mappings, as ``"attention_mask"``, that is 0 for padding: of layers ``(N,
        tokens, units)`` only the other tokens are kept, as ``(kept tokens, units)``. ValueError if
        it is not (N, tokens), or fits none of the layers of three dimensions.

    Returns
    -------
    dict
        Key to ``(N, ...)`` tensor, or array if `images` was one; of four and more dimensions ``(N,
        units, ...)``, also where the layer has its units last, as in Swin. The key is the module's
        name (of several the first, or the one asked for); a module called again in the same pass
        appears as ``name#2``, ``name#3``; the parts of a tuple output as ``name[0]``, of a dict
        output as ``name[key]``. Sparse outputs are made dense; arrays of bfloat16 are float32.

    Raises
    ------
    ValueError
        If the model normalises by the statistics of a batch or is compiled (torch.jit), `images` is
        empty, holds NaN or integers that the model cannot take, a name in `layers` is unknown or
        was never called, ``"spatial_mean"`` meets three dimensions, or an asked-for output does not
        have the examples in its first dimension, or has its units no one knows where. Outputs of
        these two kinds that are not asked for by name are left out with a ``UserWarning``.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> acts = record(net, torch.randn(40, 5), layers=["1", "2"])
    >>> {name: tuple(values.shape) for name, values in acts.items()}
    {'1': (40, 8), '2': (40, 3)}
    """
    kept: dict[str, list[Tensor]] = {}
    omitted: dict[str, str] = {}
    passes = 0
    for part, left_out in _passes(model, images, layers, batch_size, reduction, orders, mask):
        passes += 1
        omitted |= left_out
        for key, value in part.items():
            kept.setdefault(key, []).append(value)
    for key in [key for key, pieces in kept.items() if len(pieces) < passes]:
        omitted.setdefault(key, f"{key!r} is not there in every batch")
    for key, told in omitted.items():
        kept.pop(key, None)  # another batch may have had as many rows by chance
        warn(f"left out: {told}", stacklevel=2)
    first: Any = next(iter(images.values())) if isinstance(images, Mapping) else images
    result, kind = {}, like(first)
    for key in list(kept):
        pieces = kept.pop(key)  # so that at most one layer is held twice
        result[key] = kind(pieces[0] if len(pieces) == 1 else torch.cat(pieces))
    return result


def batches(
    model: nn.Module,
    images: Array | Mapping[str, Array] | Iterable,
    layers: Sequence[str | re.Pattern] | None = None,
    batch_size: int = 512,
    reduction: Reduction = None,
    orders: Mapping[str, str] | None = None,
    mask: str | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield what `record` returns a batch at a time: for what memory does not hold.

    Arguments and errors as there. `similarity.Accumulator` takes the batches as they come; `save`
    keeps them on disk.
    """
    told: set[str] = set()
    for part, left_out in _passes(model, images, layers, batch_size, reduction, orders, mask):
        for key in left_out.keys() - told:
            warn(f"left out: {left_out[key]}", stacklevel=2)
        told |= left_out.keys()
        yield part


def save(folder: str | Path, parts: Iterable[Mapping[str, Tensor]]) -> None:
    """Write `batches` to a folder, a safetensors file a batch: see `load`.

    After an error, or a kill, `load` finds none of them. ValueError if there is something in the
    folder already.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(f"folder: expected an empty one or none, found files in {folder}")
    with TemporaryDirectory(prefix=".", dir=folder) as unfinished:
        for number, part in enumerate(parts):
            tensors = {name: tensor.contiguous() for name, tensor in part.items()}
            save_file(tensors, Path(unfinished) / f"{number:06d}.safetensors")
        for path in sorted(Path(unfinished).iterdir(), reverse=True):  # `load` asks for the first
            path.rename(folder / path.name)


def load(folder: str | Path, layers: Sequence[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Yield the batches that `save` wrote, reading of each only the layers asked for.

    ValueError for a folder without any, or a layer that it does not have.
    """
    layers = None if layers is None else as_list(layers, "layers")
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files or files[0].stem != f"{0:06d}":
        found = "found not all" if files else "found none"
        raise ValueError(f"folder: expected files of `save`, {found} in {folder}")
    for path in files:
        with safe_open(path, "pt") as file:
            for name in set(layers or ()) - set(file.keys()):
                raise ValueError(f"layers: no layer {name!r}; {nearest(name, file.keys())}")
            yield {name: file.get_tensor(name) for name in layers or file.keys()}


def _passes(
    model: nn.Module,
    images: Array | Mapping[str, Array] | Iterable,
    layers: Sequence[str | re.Pattern] | None,
    batch_size: int,
    reduction: Reduction,
    orders: Mapping[str, str] | None,
    mask: str | None,
) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
    """Yield a pass's outputs by key, and by key what was left out and why: see `record`."""
    if reduction is not None and not callable(reduction):
        reduction = REDUCTIONS[inputs.as_choice(reduction, "reduction", REDUCTIONS)]
    modules, wanted = _choose(model, layers)
    asked = {entry for entry, found in wanted.items() if found == [entry]}  # no patterns
    names = {name for found in wanted.values() for name in found}
    orders, places = layouts.as_orders(orders), layouts.Places()
    kept: dict[str, Tensor] = {}
    omitted: dict[str, str] = {}
    unclear: dict[str, str] = {}
    calls: Counter[str] = Counter()
    rows, tokens = 0, None
    fits: set[bool] = set()  # of layers (N, tokens, units) to the mask

    def hook(name: str) -> Callable:
        def keep(module: nn.Module, arguments: tuple, output: object) -> None:
            calls[name] += 1
            prefix = name if calls[name] == 1 else f"{name}#{calls[name]}"
            for suffix, tensor in _tensors(output):
                key = prefix + suffix
                if layers is not None and not {key, name} & names:
                    continue
                problem = f"{key!r} gave shape {tuple(tensor.shape)} for {rows} examples"
                if order := layouts.order_of(key, orders):
                    tensor = layouts.standard(tensor, order, key)
                elif tensor.ndim > 3:
                    place = getattr(tensor, "units", None)
                    tensor = tensor.movedim(-1, 1) if place == "last" else tensor
                    if place is None:
                        unclear[key] = problem
                if tensor.ndim == 0 or tensor.shape[0] != rows:
                    if {key, name} & asked:
                        raise ValueError(
                            f"layers: {problem}; expected the examples first, or their place "
                            "said by orders"
                        )
                    omitted[key] = f"{problem}, not with the examples first"
                    continue
                if tokens is not None and tensor.ndim == 3:
                    fits.add(tensor.shape[:2] == tokens.shape)
                    if tensor.shape[:2] == tokens.shape:
                        tensor = tensor[tokens.to(tensor.device)]
                kept[key] = _copy(reduction(tensor) if reduction else tensor)

        return keep

    hooks: list[tuple[nn.Module, Callable]]
    hooks = [(module, places) for module in model.modules()]  # before what reads their notes
    hooks += [(module, hook(name)) for name, module in modules.items()]
    for arguments, options in _inputs(images, batch_size):
        given = [*arguments, *options.values()]
        if mask is not None and mask not in options:
            raise ValueError(
                f"mask: {mask!r} is not in images ({', '.join(options) or 'a tensor'})"
            )
        rows, tokens = len(given[0]), options[mask].bool() if mask else None
        if tokens is not None and tokens.ndim != 2:
            found = f"shape {tuple(tokens.shape)} of {mask!r}"
            raise ValueError(f"mask: expected (N, tokens), found {found}")
        weight, places.examples = weight_of(model, given[0]), rows
        calls.clear()
        with hooked(hooks), evaluating(model), torch.inference_mode(), taking_integers(given[0]):
            named = {name: to_model(value, weight) for name, value in options.items()}
            model(*(to_model(value, weight) for value in arguments), **named)
        if not calls:
            told = "was run without a call of any of its modules (by a compiler?)"
            raise ValueError(f"model: {type(model).__name__} {told}; expected the original network")
        if fits == {False} and tokens is not None:
            raise ValueError(f"mask: no layer has the (N, tokens) of {mask!r}, {(*tokens.shape,)}")
        if places.any_last:  # else dimension 1 it is, as all maps of the network have it
            for key, problem in unclear.items():
                told = f"{problem}, and where it has its units is not known; say so by orders"
                if {key, layer_of(key)} & asked:
                    raise ValueError(f"layers: {told}")
                kept.pop(key, None)
                omitted[key] = told
        for entry, found in wanted.items():
            if not any({key, layer_of(key)} & {*found} for key in kept):
                seen = ", ".join(kept) or "none"
                raise ValueError(f"layers: {entry!r} gave no output in this pass (seen: {seen})")
        yield dict(kept), dict(omitted)
        for notes in (kept, omitted, unclear, fits):
            notes.clear()


def _inputs(images: Any, batch_size: int) -> Iterator[tuple[tuple[Tensor, ...], dict]]:
    """Yield the inputs of each pass, in a tuple and by keyword, examples first."""
    batch_size = as_integer(batch_size, "batch_size", 1)
    if isinstance(images, Mapping):
        parts = {name: as_inputs(part, f"images[{name!r}]") for name, part in images.items()}
        counts = {name: len(part) if part.ndim else 0 for name, part in parts.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"images: expected as many examples in each entry, found {counts}")
        for start in range(0, max(counts.values()), batch_size):
            yield (), {n: part[start : start + batch_size] for n, part in parts.items()}
    elif isinstance(images, Tensor | np.ndarray | str) or not isinstance(images, Iterable):
        for part in as_inputs(images, "images").split(batch_size):
            yield (part,), {}
    else:
        empty = True
        for batch in images:
            empty = False
            first = batch[0] if isinstance(batch, tuple | list) and batch else batch
            yield from _inputs(first, sys.maxsize)
        if empty:
            raise ValueError("images: expected at least one batch, found none")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode and TF32 off for the block, and all back as it was after it."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
    except NotImplementedError as error:  # of torch.export
        raise ValueError(f"model: {type(model).__name__}: {error}") from error
    try:
        with full_precision():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def taking_integers(images: Tensor) -> Iterator[None]:
    """Turn torch's error into a ValueError that names `images` where these are integers."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # the latter is a kernel's own assert
        raise
    except RuntimeError as error:
        if images.is_floating_point():
            raise
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"images: the model cannot take {images.dtype}, expected floating numbers ({reason})"
        ) from error


def _choose(
    model: nn.Module, layers: Sequence[str | re.Pattern] | None
) -> tuple[dict[str, nn.Module], dict[str | re.Pattern, list[str]]]:
    """Return the modules to hook, by name, and by entry of `layers` the names that it is of."""
    named = dict(inputs.as_network(model).named_modules(remove_duplicate=False))
    wanted: dict[str | re.Pattern, list[str]] = {}
    if layers is None:
        first = {name for name, _ in model.named_modules() if name or not model._modules}
        inside = CONTAINERS if model._modules else ()
        called = {n for n, m in named.items() if n in first and not isinstance(m, inside)}
    else:
        as_names(
            [getattr(entry, "pattern", entry) for entry in as_list(layers, "layers")], "layers"
        )
        for entry in layers:
            exact = isinstance(entry, str) and (entry in named or layer_of(entry) in named)
            pattern = re.compile(fnmatch.translate(entry)) if isinstance(entry, str) else entry
            found = [str(entry)] if exact else [n for n in named if n and pattern.fullmatch(n)]
            if not found:
                close = nearest(str(entry), filter(None, named))
                raise ValueError(f"layers: no layer {entry!r}; {close}")
            wanted[entry] = found
        called = {layer_of(n) for found in wanted.values() for n in found}
        called |= {n for found in wanted.values() for n in found}
    chosen = {name: module for name, module in named.items() if name in called}
    if compiled := [n for n, m in chosen.items() if isinstance(m, torch.jit.ScriptModule)]:
        told = "compiled by torch.jit, which calls no hooks; expected what it was made from"
        raise ValueError(f"model: {compiled[0]!r} is {told}")
    return chosen, wanted


def _tensors(output: object, suffix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in what a module gave, with what their keys end in."""
    if isinstance(output, Tensor):
        yield suffix, output if output.layout is torch.strided else output.to_dense()
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _tensors(value, f"{suffix}[{key}]")
    elif isinstance(output, (tuple, list)):
        for index, value in enumerate(output):
            yield from _tensors(value, f"{suffix}[{index}]")


def _copy(tensor: Tensor) -> Tensor:
    with torch.inference_mode(False):  # so that the caller may use it in autograd
        copy = torch.empty_like(tensor)
    return copy.copy_(tensor)
