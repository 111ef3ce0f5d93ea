"""Indices in two steps: a reduction of each layer, and a small product for each pair.

L layers take L reductions (an orthonormal basis, a spectrum, a normalised matrix), and not L^2.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from replication._core.inputs import as_choice
from replication.similarity._linalg import principal_subspace, subspace, warn, whitening
from replication.similarity.baselines import DISTANCES, distance_ranks, explained, rank_correlation
from replication.similarity.cca import CCAResult, mean_correlation, weighted
from replication.similarity.cka import Prepared, check_kernel, index, prepare, product, shuffled
from replication.similarity.fourier import FourierCCAResult, correlate_spectra, spectrum
from replication.similarity.procrustes import distance_of, normalised


@dataclass(frozen=True)
class Metric:
    """An index as a reduction of one layer and a product of two reduced ones.

    `symmetric` says that the order of a pair does not matter. `rank` is 0 for a reduced layer that
    is constant, and for indices that ignore invertible maps the number of its directions. `reorder`
    gives the reduced layer as if its examples had come in another order.
    """

    reduce: Callable[[Tensor], Any]
    pair: Callable[[Any, Any], Any]
    symmetric: bool = True
    rank: Callable[[Any], int] = lambda reduced: int(reduced.any())
    reorder: Callable[[Any, Tensor], Any] = lambda reduced, order: reduced[order]


def _of_bases(reduce: Callable, pair: Callable, symmetric: bool = True) -> Metric:
    return Metric(
        reduce,
        pair,
        symmetric,
        rank=attrgetter("rank"),
        reorder=lambda reduced, order: replace(reduced, basis=reduced.basis[order]),
    )


def _cca(tolerance: float | None = None) -> Metric:
    return _of_bases(partial(whitening, tolerance=tolerance), mean_correlation)


def _svcca(variance: float = 0.99, dims: int | None = None, squares: bool = False) -> Metric:
    cut = partial(principal_subspace, variance=variance, dims=dims, squares=squares)
    return _of_bases(cut, mean_correlation)


def _pwcca(symmetric: bool = False, tolerance: float | None = None) -> Metric:
    cut, pair = partial(subspace, tolerance=tolerance), partial(weighted, symmetric=symmetric)
    return _of_bases(cut, pair, symmetric)


def _cka(kernel: str = "linear", unbiased: bool = False, sigma: float = 0.5) -> Metric:
    check_kernel(kernel, sigma)

    def pair(a: Prepared, b: Prepared) -> Tensor:
        shared = a.square if a is b else product(a, b)
        return index(shared, a.square, b.square, -1.0 if unbiased else 0.0)

    def reorder(layer: Prepared, order: Tensor) -> Prepared:
        values = layer.values[order]
        values = values[:, order] if layer.is_kernel else values
        return replace(layer, values=values, diagonal=layer.diagonal[order])

    reduce = partial(prepare, kernel=kernel, unbiased=unbiased, sigma=sigma)
    return Metric(reduce, pair, True, lambda layer: int(layer.square > 0), reorder)


def _procrustes(angular: bool = False) -> Metric:
    def pair(a: Tensor, b: Tensor) -> Tensor:
        return distance_of(a, a if torch.equal(a, b) else b, angular)

    return Metric(partial(normalised, narrow=True), pair)


def _regression(tolerance: float | None = None) -> Metric:
    return Metric(
        lambda layer: (subspace(layer, tolerance).basis, normalised(layer)),
        lambda a, b: explained(a[0], b[1]),
        symmetric=False,
        rank=lambda reduced: reduced[0].shape[1],
        reorder=lambda reduced, order: tuple(part[order] for part in reduced),
    )


def _rsa(distance: str = "correlation") -> Metric:
    as_choice(distance, "distance", DISTANCES)

    def reorder(ranks: Tensor, order: Tensor) -> Tensor:
        i, j = torch.triu_indices(len(order), len(order), 1, device=ranks.device)
        square = ranks.new_zeros(len(order), len(order))
        square[i, j] = square[j, i] = ranks
        return square[order[i], order[j]]

    return Metric(partial(distance_ranks, distance=distance), rank_correlation, reorder=reorder)


def _dft_cca() -> Metric:
    return Metric(
        spectrum,
        correlate_spectra,
        rank=lambda layer: int(layer.ranks.max()),
        reorder=lambda layer, order: replace(layer, bases=layer.bases[:, order]),
    )


_MAKERS = (_cca, _svcca, _pwcca, _cka, _procrustes, _regression, _rsa, _dft_cca)
METRICS: dict[str, Callable[..., Metric]] = {make.__name__[1:]: make for make in _MAKERS}


def find(metric: str | Callable, options: Mapping[str, Any]) -> Metric:
    """Return the metric of a name, or a callable as one; a ValueError for unknown options."""
    if callable(metric):
        fixed = partial(metric, **options)
        return Metric(lambda layer: layer, fixed, symmetric=False, rank=lambda layer: 1)
    accepted = inspect.signature(METRICS[as_choice(metric, "metric", METRICS)]).parameters
    if unknown := set(options) - set(accepted):
        raise ValueError(
            f"options: {metric} takes {', '.join(accepted) or 'none'}, "
            f"found {', '.join(sorted(unknown))}"
        )
    return METRICS[metric](**options)


def grid(metric: Metric, left: Mapping, right: Mapping, mirrored: bool, bar: Any = None) -> Tensor:
    """Return (left, right), float64: every pair's value; `mirrored` computes each pair once."""
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
    """Return by layer its rank, and its factor in the biased CKA that unrelated layers have."""
    noted = {}
    for name, layer in layers.items():
        chance = 0.0
        if isinstance(layer, Prepared) and not layer.unbiased:
            mean = shuffled(layer, layer, examples)
            chance = index(mean, layer.square, layer.square).sqrt().item()
        noted[name] = metric.rank(layer), chance
    return noted


def warn_once(noted: Mapping[str, tuple[int, float]], examples: int) -> None:
    """Warn of all layers together, and of the biased CKA of the two with most of it by chance."""
    chances = sorted(chance for _, chance in noted.values())
    highest = chances[-1] * chances[-2 if len(chances) > 1 else -1]
    warn({name: rank for name, (rank, _) in noted.items()}, examples, highest, level=4)
