"""Record what every layer of a network outputs."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from warnings import warn

import torch
from torch import Tensor, nn

from replication._core import inputs, layouts
from replication._core.inputs import Array, as_inputs, as_integer, as_names, like, nearest
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
    images: Array,
    layers: Sequence[str] | None = None,
    batch_size: int = 512,
    reduction: Reduction = None,
    orders: Mapping[str, str] | None = None,
) -> dict[str, Array]:
    """Return the output of every layer of `model` for `images`, in forward order.

    The model runs in eval mode under `torch.inference_mode`, a batch at a time, on its own device,
    and is left as it was. Outputs are copies on that device.

    Parameters
    ----------
    model : torch.nn.Module
    images : (N, ...) tensor or array
        Inputs, examples first; floating ones get the model's dtype, integers (tokens) stay.
    layers : sequence of str, optional
        Module names as in ``model.named_modules()``, or the longer keys described below. By
        default every named module but pure containers (``nn.Sequential`` repeats its last child);
        a model without any, as ``nn.Linear``, is its own layer ``""``.
    batch_size : int
        Examples a forward pass.
    reduction : None, "flatten", "spatial_mean" or callable
        Applied to each batch of each layer before it is held: ``"flatten"`` gives ``(N,
        neurons)``, ``"spatial_mean"`` ``(N, channels)``; a callable gets and returns a tensor.
    orders : mapping, optional
        The order of dimensions by layer, or by a pattern such as ``"features.*"``: a letter each, N
        for examples and C for units, as ``"NHWC"`` or ``"LNC"``. By default examples are expected
        first and units where the layers say: a convolution has them in dimension 1, a linear map
        last.

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
        these two kinds are left out with a ``UserWarning`` when `layers` is None.

    Examples
    --------
    >>> import torch
    >>> from replication import activations
    >>> net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> acts = activations.record(net, torch.randn(40, 5), layers=["1", "2"])
    >>> {name: tuple(values.shape) for name, values in acts.items()}
    {'1': (40, 8), '2': (40, 3)}
    """
    given = as_inputs(images, "images")
    batch_size = as_integer(batch_size, "batch_size", 1)
    if reduction is not None and not callable(reduction):
        reduction = REDUCTIONS[inputs.as_choice(reduction, "reduction", REDUCTIONS)]
    modules, rows = _choose(model, layers), 0
    orders, places = layouts.as_orders(orders), layouts.Places()
    kept: dict[str, list[Tensor]] = {}
    misplaced: dict[str, str] = {}
    unclear: dict[str, str] = {}
    calls: Counter[str] = Counter()

    def hook(name: str) -> Callable:
        def keep(module: nn.Module, arguments: tuple, output: object) -> None:
            calls[name] += 1
            prefix = name if calls[name] == 1 else f"{name}#{calls[name]}"
            for suffix, tensor in _tensors(output):
                key = prefix + suffix
                if layers is not None and key not in layers and name not in layers:
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
                    if layers is not None:
                        raise ValueError(
                            f"layers: {problem}; expected the examples first, or their place "
                            "said by orders"
                        )
                    misplaced[key] = problem
                    continue
                kept.setdefault(key, []).append(_copy(reduction(tensor) if reduction else tensor))

        return keep

    weight = weight_of(model, given)
    hooks = [(module, places) for module in model.modules()]  # before what reads their notes
    hooks += [(module, hook(name)) for name, module in modules.items()]
    with hooked(hooks), evaluating(model), torch.inference_mode(), taking_integers(given):
        for batch in given.split(batch_size):
            rows = len(batch)
            calls.clear()
            model(to_model(batch, weight))

    if not calls:
        told = "was run without a call of any of its modules (by a compiler?)"
        raise ValueError(f"model: {type(model).__name__} {told}; expected the original network")
    for key, problem in misplaced.items():
        kept.pop(key, None)  # another batch may have had as many rows by chance
        warn(f"left out: {problem}, not with the examples first", stacklevel=2)
    if places.any_last:  # else dimension 1 it is, as all maps of the network have it
        for key, problem in unclear.items():
            told = f"{problem}, and where it has its units is not known; say so by orders"
            if layers is not None:
                raise ValueError(f"layers: {told}")
            kept.pop(key, None)
            warn(f"left out: {told}", stacklevel=2)
    for name in layers or ():
        if not any(name in (key, layer_of(key)) for key in kept):
            seen = ", ".join(kept) or "none"
            raise ValueError(f"layers: {name!r} gave no output in this pass (seen: {seen})")
    result, kind = {}, like(images)
    for key in list(kept):
        pieces = kept.pop(key)  # so that at most one layer is held twice
        result[key] = kind(pieces[0] if len(pieces) == 1 else torch.cat(pieces))
    return result


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
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if images.is_floating_point():
            raise
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"images: the model cannot take {images.dtype}, expected floating numbers ({reason})"
        ) from error


def _choose(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the modules to hook, by name."""
    named = dict(inputs.as_network(model).named_modules(remove_duplicate=False))
    if len(named) > 1:
        del named[""]
    if layers is None:
        first = dict(model.named_modules())
        inside = CONTAINERS if model._modules else ()
        wanted = {n for n, m in named.items() if n in first and not isinstance(m, inside)}
    else:
        for name in as_names(layers, "layers"):
            if name not in named and layer_of(name) not in named:
                raise ValueError(f"layers: no layer {name!r}; {nearest(name, named)}")
        wanted = {*layers, *map(layer_of, layers)}
    chosen = {name: module for name, module in named.items() if name in wanted}
    if compiled := [n for n, m in chosen.items() if isinstance(m, torch.jit.ScriptModule)]:
        told = "compiled by torch.jit, which calls no hooks; expected what it was made from"
        raise ValueError(f"model: {compiled[0]!r} is {told}")
    return chosen


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
