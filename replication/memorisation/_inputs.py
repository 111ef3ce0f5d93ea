"""Checks of images and targets, shared by this package's functions."""

import torch
from torch import Tensor
from torch.nn import functional as F

from replication._core.inputs import MOST_CLASSES, Array, as_tensor, require_classes

CHUNK = 2**22  # entries that intermediate results may have beside what the caller asked for


def as_rows(value: Array, name: str) -> Tensor:
    """Return examples (n, ...) as float64 (n, d)."""
    given = as_tensor(value, name).detach()
    if given.ndim < 2:
        raise ValueError(f"{name}: expected the shape (n, ...), found {tuple(given.shape)}")
    return given.flatten(1).double()


def as_targets(value: Array, like: Tensor, name: str, one_hot: bool = False) -> Tensor:
    """Return targets (n,) or (n, k) as float64 on the device of the rows `like` (n, d).

    With `one_hot`, integers (n,) are classes and become (n, largest + 1).
    """
    given, n = as_tensor(value, name).detach(), len(like)
    if given.ndim not in (1, 2) or len(given) != n:
        raise ValueError(f"{name}: expected ({n},) or ({n}, k), found {tuple(given.shape)}")
    if one_hot and given.ndim == 1 and not given.is_floating_point():
        given = given.long()  # small types would wrap in a comparison
        require_classes(given, MOST_CLASSES, name)
        given = F.one_hot(given)
    return given.to(like.device, torch.float64)
