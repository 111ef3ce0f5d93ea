"""Indices in two steps: a reduction of each layer, and a small product for each pair.

For one layer an index needs a reduced form (an orthonormal basis, a spectrum, a normalised matrix);
for a pair, a small product of two of them. L layers take L reductions in place of L^2.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from replication._core.inputs import nearest
from replication.similarity._linalg import Subspace, principal_subspace, subspace
from replication.similarity._whitening import Whitening, whitening
from replication.similarity.baselines import DISTANCES, distance_ranks, explained, rank_correlation
from replication.similarity.cca import CCAResult, mean_correlation, weighted
from replication.similarity.cka import CHANCE, Prepared, check_kernel, index, prepare, product
from replication.similarity.fourier import FourierCCAResult, Spectrum, correlate_spectra, spectrum
from replication.similarity.procrustes import distance_of, narrowed, normalised


def _reordered(reduced: Any, order: Tensor) -> Any:
    """Return a reduced layer as if its examples had come in another order."""
    if isinstance(reduced, Subspace | Whitening):
        return replace(reduced, basis=reduced.basis[order])
    if isinstance(reduced, Spectrum):
        return replace(reduced, bases=reduced.bases[:, order])
    if isinstance(reduced, Prepared):
        rows = reduced.values[order]
        values = rows[:, order] if reduced.is_kernel else rows
        return replace(reduced, values=values, diagonal=reduced.diagonal[order])
    if isinstance(reduced, tuple):
        return tuple(part[order] for part in reduced)
    return reduced[order]


def _reordered_distances(ranks: Tensor, order: Tensor) -> Tensor:
    i, j = torch.triu_indices(len(order), len(order), 1, device=ranks.device)
    square = ranks.new_zeros(len(order), len(order))
    square[i, j] = square[j, i] = ranks
    return square[order[i], order[j]]


@dataclass(frozen=True)
class Metric:
    """An index as a reduction of one layer and a product of two reduced ones.

    `symmetric` says that the order of a pair does not matter. `rank` is 0 for a reduced layer that
    is constant, and for indices that ignore invertible maps the number of its directions.
    """

    reduce: Callable[[Tensor], Any]
    pair: Callable[[Any, Any], Any]
    symmetric: bool = True
    rank: Callable[[Any], int] = lambda reduced: int(reduced.any())
    reorder: Callable[[Any, Tensor], Any] = _reordered


def _cca(tolerance: float | None = None) -> Metric:
    cut = partial(whitening, tolerance=tolerance)
    return Metric(cut, mean_correlation, rank=attrgetter("rank"))


def _svcca(variance: float = 0.99, dims: int | None = None, squares: bool = False) -> Metric:
    cut = partial(principal_subspace, variance=variance, dims=dims, squares=squares)
    return Metric(cut, mean_correlation, rank=attrgetter("rank"))


def _pwcca(symmetric: bool = False, tolerance: float | None = None) -> Metric:
    cut = partial(subspace, tolerance=tolerance)
    pair = partial(weighted, symmetric=symmetric)
    return Metric(cut, pair, symmetric, rank=attrgetter("rank"))


def _cka(kernel: str = "linear", unbiased: bool = False, sigma: float = 0.5) -> Metric:
    check_kernel(kernel, sigma)
    reduction = partial(prepare, kernel=kernel, unbiased=unbiased, sigma=sigma)

    def pair(a: Prepared, b: Prepared) -> Tensor:
        shared = a.square if a is b else product(a, b)
        return index(shared, a.square, b.square, -1.0 if unbiased else 0.0)

    return Metric(reduction, pair, rank=lambda layer: int(layer.square > 0))


def _procrustes(angular: bool = False) -> Metric:
    def pair(a: Tensor, b: Tensor) -> Tensor:
        distance = distance_of(a, a if torch.equal(a, b) else b)
        return 2 * torch.asin(distance.sqrt() / 2) if angular else distance

    return Metric(lambda layer: narrowed(normalised(layer)), pair)


def _regression(tolerance: float | None = None) -> Metric:
    return Metric(
        lambda layer: (subspace(layer, tolerance).basis, normalised(layer)),
        lambda a, b: explained(a[0], b[1]),
        symmetric=False,
        rank=lambda reduced: reduced[0].shape[1],
    )


def _rsa(distance: str = "correlation") -> Metric:
    if distance not in DISTANCES:
        raise ValueError(f"distance: found {distance!r}; {nearest(str(distance), DISTANCES)}")
    ranked = partial(distance_ranks, distance=distance)
    return Metric(ranked, rank_correlation, reorder=_reordered_distances)


def _dft_cca() -> Metric:
    def pair(a: Spectrum, b: Spectrum) -> Tensor:
        with warnings.catch_warnings():  # `_warn` says it once, with the layer's name
            warnings.simplefilter("ignore", UserWarning)
            return correlate_spectra(a, b).mean

    return Metric(spectrum, pair, rank=lambda layer: int(layer.ranks.max()))


METRICS: dict[str, Callable[..., Metric]] = {
    "cca": _cca,
    "svcca": _svcca,
    "pwcca": _pwcca,
    "cka": _cka,
    "procrustes": _procrustes,
    "regression": _regression,
    "rsa": _rsa,
    "dft_cca": _dft_cca,
}


def find(metric: str | Callable, options: Mapping[str, Any]) -> Metric:
    """Return the metric of a name, or a callable as one; a ValueError for unknown options."""
    if callable(metric):
        fixed = partial(metric, **options)
        return Metric(lambda layer: layer, fixed, symmetric=False, rank=lambda layer: 1)
    if not isinstance(metric, str) or metric not in METRICS:
        raise ValueError(f"metric: found {metric!r}; {nearest(str(metric), METRICS)}")
    accepted = inspect.signature(METRICS[metric]).parameters
    if unknown := set(options) - set(accepted):
        raise ValueError(
            f"options: {metric} takes {', '.join(accepted) or 'none'}, "
            f"found {', '.join(sorted(unknown))}"
        )
    return METRICS[metric](**options)


def grid(
    metric: Metric,
    left: Mapping[str, Any],
    right: Mapping[str, Any],
    mirrored: bool,
    bar: tqdm | None = None,
) -> Tensor:
    """Return the value of every pair, float64; `mirrored` computes each unordered pair once."""
    values: dict[tuple[str, str], Tensor] = {}
    for first, a in left.items():
        for second, b in right.items():
            if mirrored and (second, first) in values:
                values[first, second] = values[second, first]
                continue
            try:
                value = metric.pair(a, b)
            except ValueError as error:
                raise ValueError(f"{first} and {second}: {error}") from error
            if isinstance(value, CCAResult | FourierCCAResult):
                value = value.mean
            value = torch.as_tensor(value, dtype=torch.float64)
            if value.ndim:
                raise ValueError(f"metric: expected a number, found shape {tuple(value.shape)}")
            values[first, second] = value
        if bar is not None:
            bar.update()
    return torch.stack(list(values.values())).view(len(left), len(right))


def notes(metric: Metric, layers: Mapping[str, Any], examples: int) -> dict[str, tuple]:
    """Return, by layer, its rank and its factor in the CKA that unrelated layers would have."""
    found = {}
    for label, layer in layers.items():
        share = 0.0
        if isinstance(layer, Prepared) and not layer.unbiased and layer.square > 0:
            share = (layer.diagonal.sum() / ((examples - 1) * layer.square).sqrt()).item()
        found[label] = metric.rank(layer), share
    return found


def warn(noted: Mapping[str, tuple[int, float]], examples: int, level: int) -> None:
    if constant := [label for label, (rank, _) in noted.items() if rank == 0]:
        message = f"{', '.join(constant)}: constant over the examples; similar to nothing"
        warnings.warn(message, UserWarning, stacklevel=level)
    if full := [label for label, (rank, _) in noted.items() if rank >= examples - 1]:
        message = f"{', '.join(full)}: spans all {examples} centred examples, so that the values "
        message += "say nothing; take more examples, or unbiased CKA"
        warnings.warn(message, UserWarning, stacklevel=level)
    shares = sorted(share for _, share in noted.values())
    chance = shares[-1] * shares[-2 if len(shares) > 1 else -1]
    if chance > CHANCE:
        message = f"few examples; unrelated layers like these have a biased CKA of {chance:.2f} on "
        message += "average. Use unbiased=True or more examples"
        warnings.warn(message, UserWarning, stacklevel=level)
