"""Checks of what callers pass in, and answers in their kind, for all public functions."""

import difflib
import functools
import hashlib
import operator
import warnings
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from replication._core.precision import lacks_float64

Array = Tensor | np.ndarray
Kind = TypeVar("Kind", bound=Array)  # of a function that answers in the caller's kind
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # of which torch can do next to nothing
MOST_CLASSES = 2**16


def as_tensor(value: object, name: str) -> Tensor:
    """Return `value` as `as_inputs` does, on the CPU if its device has no float64.

    A UserWarning says so, once.
    """
    return with_float64(as_inputs(value, name))


def with_float64(tensor: Tensor) -> Tensor:
    """Return the tensor, on the CPU if its device has no float64; a UserWarning says so, once."""
    if not lacks_float64(tensor.device):
        return tensor
    _tell_of_the_cpu(tensor.device.type)
    return tensor.cpu()


@functools.cache
def _tell_of_the_cpu(device: str) -> None:
    warnings.warn(f"{device} has no float64: computed on the CPU", UserWarning, stacklevel=2)


def as_inputs(value: object, name: str) -> Tensor:
    """Return `value`, which a model may take to its device, as a tensor.

    Half types are promoted to float32, wide unsigned ones to int64. A ValueError if it is no dense
    tensor or array of real, finite numbers, or is empty or masked.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{name}: expected a plain array, found a masked one; fill it first")
    if isinstance(value, np.ndarray):
        # Read-only arrays cannot be shared with torch without a warning, reversed ones not at all.
        shared = value.flags.writeable and min(value.strides, default=0) >= 0
        try:
            value = torch.from_numpy(value if shared else value.copy())
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise ValueError(f"{name}: expected a torch tensor or NumPy array, found {kind}")
    if value.is_nested or value.layout is not torch.strided or value.is_quantized or value.is_meta:
        kind = "meta" if value.is_meta else value.layout if not value.is_quantized else value.dtype
        raise ValueError(f"{name}: expected a dense tensor of numbers, found a {kind} one")
    if value.numel() == 0:
        raise ValueError(f"{name}: expected at least one entry, found shape {tuple(value.shape)}")
    if value.is_complex():
        raise ValueError(f"{name}: expected real numbers, found {value.dtype}")
    if value.is_floating_point() and value.dtype.itemsize < 4:
        value = value.float()
    if value.dtype in UNSIGNED:
        value = value.to(torch.int64)
        if value.min() < 0:  # it went round
            raise ValueError(f"{name}: expected integers below 2**63, found larger ones")
    # A finite sum proves finite entries at a fraction of the cost; the reverse does not hold.
    if value.is_floating_point() and not value.sum().isfinite() and not value.isfinite().all():
        raise ValueError(f"{name}: expected finite numbers, found NaN or infinity")
    return value


def like(value: Kind) -> Callable[[Tensor], Kind]:
    """Return what turns a tensor result into the caller's kind: that of `value`."""
    array = isinstance(value, np.ndarray)
    device = value.device if isinstance(value, Tensor) and lacks_float64(value.device) else None

    def kind(result: Tensor) -> Any:
        if array:
            half = result.dtype is torch.bfloat16  # which NumPy has not
            return (result.float() if half else result).detach().cpu().numpy()
        back = device is not None and result.dtype != torch.float64  # from the CPU, if it can
        return result.to(device) if back else result

    return kind


def as_images(value: Array) -> Tensor:
    """Return the argument `images`, floating (N, C, H, W), as a tensor without gradient."""
    images = as_inputs(value, "images").detach()
    if images.ndim != 4:
        raise ValueError(f"images: expected (N, C, H, W), found the shape {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images: expected floating point, found the dtype {images.dtype}")
    return images


def as_integer(value: Any, name: str, least: int) -> int:
    """Return `value` as an int; anything but an integer of at least `least` is an error."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number < 2**63:
        raise ValueError(f"{name}: expected an integer >= {least}, found {value!r}")
    return number


def as_number(value: Any, name: str, positive: bool = False) -> float:
    """Return a finite number >= 0 (or > 0) as a float; anything else is an error."""
    real = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if not (real and 0 <= value < float("inf") and (value > 0 or not positive)):
        bound = "> 0" if positive else ">= 0"
        raise ValueError(f"{name}: expected a finite number {bound}, found {value!r}")
    return float(value)


def as_list(value: object, name: str) -> list:
    """Return the entries of a sequence; a text, or what has no entries, is an error."""
    value = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ValueError(f"{name}: expected a sequence, found {value!r:.60}")
    return list(value)


def as_names(value: object, name: str) -> list[str]:
    """Return a sequence of names as a list; anything else is an error."""
    names = as_list(value, name)
    if not all(isinstance(each, str) for each in names):
        raise ValueError(f"{name}: expected names, found {names!r:.60}")
    return names


def as_model(value: object) -> nn.Module:
    """Return the argument `model`; anything but a network is an error."""
    if not isinstance(value, nn.Module):
        found = value.__name__ if isinstance(value, type) else type(value).__name__
        raise ValueError(f"model: expected a torch.nn.Module, found {found}")
    return value


def as_network(value: Any) -> nn.Module:
    """Return the argument `model`; one whose outputs depend on the whole batch is an error."""
    for name, module in as_model(value).named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"model: {name!r} keeps no running statistics, so that each output depends on the "
                "whole batch; expected track_running_stats=True"
            )
    return value


def as_labels(value: Array, count: int, name: str = "labels") -> Tensor:
    """Return integer labels (count,) as a tensor; another shape or floating ones are an error."""
    labels = as_tensor(value, name)
    if labels.is_floating_point() or labels.shape != (count,):
        found = f"shape {tuple(labels.shape)} of {labels.dtype}"
        raise ValueError(f"{name}: expected integers of shape {(count,)}, found {found}")
    return labels


def as_choice(value: object, name: str, known: Iterable[str]) -> str:
    """Return `value` if it is one of the `known` names; anything else is an error."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: found {value!r}; {nearest(str(value), known)}")
    return value


def require_classes(labels: Tensor, classes: int, name: str = "labels") -> None:
    """Raise a ValueError if the integers `labels` are not all in 0 .. `classes` - 1."""
    if ((labels < 0) | (labels >= classes)).any():
        wrong = labels[(labels < 0) | (labels >= classes)][0].item()
        raise ValueError(f"{name}: expected 0 to {classes - 1}, found {wrong}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known names, those close to `name` first, as the end of an error message."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return f"expected one of: {shown}"


def choose_device(name: str | torch.device) -> torch.device:
    """Return the device called `name`, ``"auto"`` the GPU where there is one; else a ValueError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: {name!r} cannot be used here ({reason})") from None
    return device


def derive_seed(seed: int, stream: str, index: int = 0) -> int:
    """Return a 63-bit seed for one use of randomness, so that uses do not disturb one another."""
    seed = as_integer(seed, "seed", -(2**63))
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """Return a CPU generator for ``(seed, stream, index)``; the same on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, index))
