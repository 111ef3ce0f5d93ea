"""Checks of what callers pass in, shared by the package's public functions."""

import difflib
import hashlib
import operator
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def as_tensor(value: Tensor | np.ndarray, name: str) -> Tensor:
    """Return `value` as a tensor; half types are promoted to float32.

    Raises
    ------
    ValueError
        If `value` is neither a tensor nor an array of numbers, is empty, or holds NaN or infinity.
    """
    if isinstance(value, np.ndarray):
        # Read-only arrays cannot be shared with torch without a warning, reversed ones not at all.
        shared = value.flags.writeable and min(value.strides, default=0) >= 0
        try:
            value = torch.from_numpy(value if shared else value.copy())
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name}: expected a torch tensor or NumPy array, found {type(value).__name__}"
        )
    if value.numel() == 0:
        raise ValueError(f"{name}: expected at least one entry, found shape {tuple(value.shape)}")
    if value.dtype in (torch.float16, torch.bfloat16):
        value = value.float()
    # A finite sum proves finite entries at a fraction of the cost; the reverse does not hold.
    if value.is_floating_point() and not value.sum().isfinite() and not value.isfinite().all():
        raise ValueError(f"{name}: expected finite numbers, found NaN or infinity")
    return value


def as_integer(value: object, name: str, least: int) -> int:
    """Return `value` as an int; anything but an integer of at least `least` is an error."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number < 2**63:
        raise ValueError(f"{name}: expected an integer >= {least}, found {value!r}")
    return number


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known names, those close to `name` first, as the end of an error message."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return f"expected one of: {shown}"


def choose_device(name: str | torch.device) -> torch.device:
    """Return the device called `name`; ``"auto"`` is the GPU where there is one.

    Raises
    ------
    ValueError
        If the device does not exist on this machine.
    """
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
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """Return a CPU generator for ``(seed, stream, index)``; the same on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, index))
