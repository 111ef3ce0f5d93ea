"""How much a single unit says about the class: selectivity index and mutual information.

Both take activations (examples, units), or feature maps (examples, channels, ...), which are
averaged over space first (Morcos et al. 2018, section 2), and labels (examples,), integers of at
least two different values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from replication._core.inputs import Array, as_integer, as_labels, as_tensor, like
from replication._core.precision import full_precision
from replication.activations import spatial_mean
from replication.similarity._linalg import as_layer

CELLS = 2**22  # examples times units whose ranks are held at once


@dataclass(frozen=True)
class Selectivity:
    """Class selectivity of every unit. Arrays are of the caller's kind and device."""

    index: Array  #: (units,) in [0, 1]; 0 for a dead unit
    preferred: Array  #: (units,) the label with the largest mean activation; -1 for a dead unit
    dead: Array  #: (units,) bool: mean 0 for every class; with activations >= 0, never fires
    class_means: Array  #: (classes, units) mean activation by class, for the labels in `classes`
    classes: Array  #: (classes,) the labels that occur, sorted


def class_selectivity(acts: Array, labels: Array) -> Selectivity:
    """Return how much more each unit responds to its preferred class than to the others.

        (mu_max - mu_rest) / (mu_max + mu_rest)

    with mu_max the largest class-conditional mean activation and mu_rest the mean of those of all
    other classes (Morcos et al. 2018, section 2): 1 for a unit that responds to one class only, 0
    for one that responds to all alike. It is meant for activations >= 0. For means of either sign
    the denominator is |mu_max| + |mu_rest|: the index stays in [0, 1], but is 1 as soon as
    mu_max >= 0 >= mu_rest and changes when a constant is added to the unit.

    Examples
    --------
    >>> labels = torch.arange(3).repeat(4)
    >>> acts = torch.stack([(labels == 0).double(), torch.ones(12, dtype=torch.float64)], 1)
    >>> class_selectivity(acts, labels).index.round(decimals=3).tolist()
    [1.0, 0.0]
    """
    units, classes, codes = _examples(acts, labels)
    belongs = F.one_hot(codes, len(classes)).to(units.dtype)
    with full_precision():
        means = (belongs / belongs.sum(0)).T @ units
    top, place = means.max(0)
    # Summed apart from the largest: subtracting it would leave rounding where the rest are 0.
    others = F.one_hot(place, len(classes)).T.bool()
    rest = means.masked_fill(others, 0).sum(0) / (len(classes) - 1)
    size = top.abs() + rest.abs()
    dead = (means == 0).all(0)
    index = (top - rest) / size.where(size > 0, 1)
    kind = like(acts)
    return Selectivity(
        index=kind(index),
        preferred=kind(classes[place].where(~dead, -1)),
        dead=kind(dead),
        class_means=kind(means),
        classes=kind(classes),
    )


def mutual_information(acts: Array, labels: Array, bins: int = 16) -> Array:
    """Return the mutual information of each unit and the class, (units,) in bits.

    The activation is cut into `bins` quantile bins by its mid-rank (equal activations, such as the
    zeros of a rectifier, share one), and the plug-in estimate gets the correction of Miller (1955)
    for each of its entropies:

        I = sum_{b,c} p_bc log2(p_bc / (p_b p_c)) + (B + C - K - 1) / (2 N ln 2)

    with p the shares of the N examples, B the occupied bins, C the classes that occur and K the
    occupied pairs. To first order in 1/N this takes off what independent variables would show, so
    that estimates near 0 come out on either side of it, where bins times classes are well below the
    number of examples; a constant unit has exactly 0. Morcos et al. 2018 do not name their
    estimator.

    Examples
    --------
    >>> labels = torch.arange(4).repeat(1000)
    >>> acts = torch.stack([labels.double(), torch.ones(4000, dtype=torch.float64)], 1)
    >>> mutual_information(acts, labels).round(decimals=2).tolist()  # in bits
    [2.0, 0.0]
    """
    units, classes, codes = _examples(acts, labels)
    bins = as_integer(bins, "bins", 2)
    size = max(1, CELLS // len(units))
    parts = [_information(part, codes, len(classes), bins) for part in units.split(size, 1)]
    return like(acts)(torch.cat(parts).to(units.dtype))


def _information(units: Tensor, codes: Tensor, classes: int, bins: int) -> Tensor:
    """Return the corrected estimate for some units, (units,) float64 in bits."""
    examples, width = units.shape
    values = units.T.contiguous()
    ordered = values.sort(1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    cells = (below + up_to) * bins // (2 * examples)
    cells += bins * torch.arange(width, device=units.device)[:, None]
    counts = torch.bincount((cells * classes + codes).flatten(), minlength=width * bins * classes)
    joint = counts.reshape(width, bins, classes).double() / examples
    by_bin, by_class = joint.sum(2), joint.sum(1)

    def entropy(shares: Tensor) -> Tensor:
        occupied = (shares > 0).flatten(1).sum(1)
        return torch.special.entr(shares).flatten(1).sum(1) + (occupied - 1) / (2 * examples)

    return (entropy(by_bin) + entropy(by_class) - entropy(joint)) / torch.log(torch.tensor(2.0))


def _examples(acts: Array, labels: Array) -> tuple[Tensor, Tensor, Tensor]:
    """Return units (examples, units), the labels that occur, and each example's place in them."""
    values = as_tensor(acts, "acts")
    if not values.is_floating_point():
        values = values.double()
    if values.ndim == 3:
        expected = "(examples, units) or (examples, channels, height, width)"
        raise ValueError(f"acts: expected {expected}, found shape {tuple(values.shape)}")
    units = as_layer(spatial_mean(values), "acts")
    given = as_labels(labels, len(units))
    classes, codes = given.to(units.device).unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels: expected at least 2 classes, found {classes.tolist()}")
    return units, classes, codes
