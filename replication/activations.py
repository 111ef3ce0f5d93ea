"""Record what every layer of a network outputs."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from warnings import warn

import numpy as np
import torch
from torch import Tensor, nn

from replication._core.inputs import as_integer, as_model, as_names, as_tensor, nearest
from replication._core.precision import full_precision

Reduction = str | Callable[[Tensor], Tensor] | None


def flatten(output: Tensor) -> Tensor:
    """Return ``(N, ...)`` as ``(N, neurons)``."""
    return output.flatten(1) if output.ndim > 1 else output[:, None]


def spatial_mean(output: Tensor) -> Tensor:
    """Return ``(N, channels, height, width, ...)`` averaged over everything behind the channels.

    Raises
    ------
    ValueError
        For three dimensions, of which torch has two readings: ``(N, tokens, units)`` in sequence
        models, ``(N, channels, length)`` in 1-D convolutions.
    """
    if output.ndim == 3:
        raise ValueError(
            f"reduction: 'spatial_mean' found shape {tuple(output.shape)}, which may be "
            "(N, tokens, units) or (N, channels, length); expected images' (N, channels, "
            "height, width); give a callable, as lambda x: x.mean(1) for the mean over tokens"
        )
    return output.flatten(2).mean(2) if output.ndim > 2 else output


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": flatten,
    "spatial_mean": spatial_mean,
}


def record(
    model: nn.Module,
    images: Tensor | np.ndarray,
    layers: Sequence[str] | None = None,
    batch_size: int = 512,
    reduction: Reduction = None,
) -> dict[str, Tensor] | dict[str, np.ndarray]:
    """Return the output of every layer of `model` for `images`, in forward order.

    The model runs in eval mode under `torch.inference_mode`, a batch at a time, on its own device;
    afterwards every module is back in the mode it was in and every hook is gone, also when the
    forward pass raises. Outputs are copied as they appear, so a later in-place layer does not
    change them. They stay on the model's device.

    Parameters
    ----------
    model : torch.nn.Module
    images : (N, ...) tensor or array
        Inputs, examples first; floating ones get the model's dtype, integers (tokens) stay.
    layers : sequence of str, optional
        Module names as in ``model.named_modules()``, or the longer keys described below. By
        default every named module but pure containers (``nn.Sequential`` repeats its last child).
    batch_size : int
        Examples a forward pass; bounds the memory of the pass.
    reduction : None, "flatten", "spatial_mean" or callable
        Applied to each batch of each layer before it is held, so that it bounds what is held:
        ``"flatten"`` gives ``(N, neurons)``; ``"spatial_mean"`` averages ``(N, channels, height,
        width)`` to ``(N, channels)``; a callable gets the batch's tensor and returns what to keep.

    Returns
    -------
    dict
        Key to ``(N, ...)`` tensor, or array if `images` was one. The key is the module's name; a
        module called again in the same pass appears as ``name#2``, ``name#3``; the parts of a tuple
        output as ``name[0]``, of a dict output as ``name[key]``.

    Raises
    ------
    ValueError
        If `images` is empty, holds NaN or holds integers that the model cannot take, a name in
        `layers` is unknown or was never called, ``"spatial_mean"`` meets three dimensions, or an
        asked-for output does not have the examples in its first dimension. Outputs of that last
        kind are left out with a ``UserWarning`` when `layers` is None.

    Examples
    --------
    >>> import torch
    >>> from replication import activations
    >>> net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> acts = activations.record(net, torch.randn(40, 5), layers=["1", "2"])
    >>> {name: tuple(values.shape) for name, values in acts.items()}
    {'1': (40, 8), '2': (40, 3)}
    """
    inputs = as_tensor(images, "images")
    batch_size = as_integer(batch_size, "batch_size", 1)
    if isinstance(reduction, str) and reduction in REDUCTIONS:
        reduction = REDUCTIONS[reduction]
    if reduction is not None and not callable(reduction):
        raise ValueError(f"reduction: found {reduction!r}; {nearest(str(reduction), REDUCTIONS)}")
    modules = _choose(model, layers)
    kept: dict[str, list[Tensor]] = {}
    misplaced: dict[str, str] = {}
    calls: Counter[str] = Counter()
    rows = 0

    def hook(name: str) -> Callable:
        def keep(module: nn.Module, arguments: tuple, output: object) -> None:
            calls[name] += 1
            prefix = name if calls[name] == 1 else f"{name}#{calls[name]}"
            for suffix, tensor in _tensors(output):
                key = prefix + suffix
                if layers is not None and key not in layers and name not in layers:
                    continue
                if tensor.ndim == 0 or tensor.shape[0] != rows:
                    problem = f"{key!r} gave shape {tuple(tensor.shape)} for {rows} examples"
                    if layers is not None:
                        raise ValueError(f"layers: {problem}; expected the examples first")
                    misplaced[key] = problem
                    continue
                kept.setdefault(key, []).append(_copy(reduction(tensor) if reduction else tensor))

        return keep

    device = next((p.device for p in model.parameters()), inputs.device)
    weight = next((p for p in model.parameters() if p.is_floating_point()), inputs)
    dtype = weight.dtype if inputs.is_floating_point() else inputs.dtype
    hooks = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        with evaluating(model), torch.inference_mode(), taking_integers(inputs):
            for batch in inputs.split(batch_size):
                rows = len(batch)
                calls.clear()
                model(batch.to(device, dtype, copy=True))  # an in-place layer may come first
    finally:
        for handle in hooks:
            handle.remove()

    for key, problem in misplaced.items():
        kept.pop(key, None)  # another batch may have had as many rows by chance
        warn(f"left out: {problem}, not with the examples first", stacklevel=2)
    if layers is not None:
        for name in layers:
            if not any(key == name or _module_name(key) == name for key in kept):
                seen = ", ".join(kept) or "none"
                raise ValueError(f"layers: {name!r} gave no output in this pass (seen: {seen})")
    result = {key: _join(kept[key]) for key in list(kept)}
    if isinstance(images, np.ndarray):
        return {key: value.cpu().numpy() for key, value in result.items()}
    return result


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode and TF32 off for the block, and all back as it was after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
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
    named = {name: module for name, module in as_model(model).named_modules() if name}
    if layers is None:
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        return {n: m for n, m in named.items() if not isinstance(m, containers)}
    if isinstance(layers, str):
        raise ValueError(f"layers: expected a sequence of names, found the string {layers!r}")
    for name in as_names(layers, "layers"):
        if name not in named and _module_name(name) not in named:
            raise ValueError(f"layers: no layer {name!r}; {nearest(name, named)}")
    wanted = {*layers, *map(_module_name, layers)}
    return {name: module for name, module in named.items() if name in wanted}


def _module_name(key: str) -> str:
    return key.split("#")[0].split("[")[0]


def _tensors(output: object, suffix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        yield suffix, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _tensors(value, f"{suffix}[{key}]")
    elif isinstance(output, (tuple, list)):
        for index, value in enumerate(output):
            yield from _tensors(value, f"{suffix}[{index}]")


def _copy(tensor: Tensor) -> Tensor:
    # Made outside inference mode, so that the caller may use it in autograd.
    with torch.inference_mode(False):
        copy = torch.empty_like(tensor, memory_format=torch.preserve_format)
    return copy.copy_(tensor)


def _join(pieces: list[Tensor]) -> Tensor:
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    pieces.clear()  # so that at most one layer is held twice
    return joined
