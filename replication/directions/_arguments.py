"""Checks of what the public functions of this package are given."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from replication._core.inputs import (
    Array,
    as_integer,
    as_list,
    as_tensor,
    generator,
    require_classes,
)


def as_examples(images: object, labels: object) -> tuple[Tensor, Tensor]:
    """Return images (N, ...) and labels (N,), both checked for their shapes."""
    images, labels = as_tensor(images, "images"), as_tensor(labels, "labels")
    if labels.is_floating_point() or labels.shape != images.shape[:1]:
        found = f"{tuple(labels.shape)} of {labels.dtype}"
        raise ValueError(f"labels: expected integers of shape {(len(images),)}, found {found}")
    return images, labels.long()


def class_sizes(labels: Tensor, classes: int) -> Tensor:
    """Return how many examples each class has, (classes,) float64.

    Raises
    ------
    ValueError
        If a label is outside of 0 .. classes - 1.
    """
    require_classes(labels, classes)
    return torch.bincount(labels, minlength=classes).double()


def as_orders(orders: int | Array, units: int, seed: int) -> Tensor:
    """Return (orders, units) permutations, drawn or given."""
    if not isinstance(orders, Tensor | np.ndarray):
        number = as_integer(orders, "orders", 1)
        drawn = [
            torch.randperm(units, generator=generator(seed, "ablation", i)) for i in range(number)
        ]
        return torch.stack(drawn)
    given = as_tensor(orders, "orders")
    straight = torch.arange(units, device=given.device)
    if given.ndim != 2 or given.shape[1] != units or (given.sort(1).values != straight).any():
        raise ValueError(
            f"orders: expected permutations of 0 to {units - 1}, (orders, {units}), "
            f"found shape {tuple(given.shape)}"
        )
    return given.long()


def as_counts(counts: Sequence[int] | None, units: int) -> list[int]:
    """Return numbers of ablated units, all of 0 .. units by default."""
    if counts is None:
        return list(range(units + 1))
    numbers = [as_integer(k, "counts", 0) for k in as_list(counts, "counts")]
    if len(numbers) < 2 or numbers[-1] > units or any(a >= b for a, b in pairwise(numbers)):
        raise ValueError(
            f"counts: expected at least two increasing integers in 0 to {units}, found {numbers}"
        )
    return numbers
