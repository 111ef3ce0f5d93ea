"""Every layer against every layer, each reduced once and then only multiplied."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from itertools import product as pairs
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from replication._core.inputs import Array, as_choice, as_integer, as_labels, like
from replication._core.precision import full_precision
from replication._core.progress import bar
from replication.activations import flatten, spatial_mean
from replication.similarity import _linalg, baselines
from replication.similarity._linalg import Subspace, Whitening, as_layer
from replication.similarity.cca import MISSING, CCAResult, mean_correlation, weighted
from replication.similarity.cka import Prepared, check_kernel, index, prepare, product, shuffled
from replication.similarity.fourier import FourierCCAResult, Spectrum, correlate_spectra, spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONV: dict[str, Callable[[Tensor], Tensor]] = {
    "spatial_mean": spatial_mean,
    "flatten": flatten,
    "positions": lambda layer: layer.movedim(1, -1).flatten(0, -2),
}


@dataclass(frozen=True)
class Metric:
    """An index as a reduction of one layer and a product of two reduced ones."""

    reduce: Callable[[Tensor], Any]
    pair: Callable[[Any, Any], Any]
    symmetric: bool = True  # the order of a pair does not matter
    # 0 if the layer is constant; of indices that ignore invertible maps the number of directions
    rank: Callable[[Any], int] = lambda reduced: int(reduced.any())
    # the reduced layer as if its examples had come in another order
    reorder: Callable[[Any, Tensor], Any] = lambda reduced, order: reduced[order]
    correlates: bool = False  # canonical correlations, of which some may be 1 of necessity
    kind: str = "similarity"  # or "distance"; of a callable "", as only its values tell


def _of_bases(reduce: Callable, pair: Callable, symmetric: bool = True) -> Metric:
    def reorder(layer: Subspace | Whitening, order: Tensor) -> Subspace | Whitening:
        return replace(layer, basis=layer.basis[order])

    return Metric(reduce, pair, symmetric, lambda layer: layer.rank, reorder, True)


def _cca(tolerance: float | None = None) -> Metric:
    return _of_bases(partial(_linalg.whitening, tolerance=tolerance), mean_correlation)


def _svcca(variance: float = 0.99, dims: int | None = None, squares: bool = False) -> Metric:
    cut = partial(_linalg.principal_subspace, variance=variance, dims=dims, squares=squares)
    return _of_bases(cut, mean_correlation)


def _pwcca(missing: str = "drop", tolerance: float | None = None) -> Metric:
    as_choice(missing, "missing", MISSING)
    pair = partial(weighted, missing=missing)
    return _of_bases(partial(_linalg.subspace, tolerance=tolerance), pair, symmetric=False)


def _cka(
    kernel: str = "linear", unbiased: bool = False, sigma: float = 0.5, angular: bool = False
) -> Metric:
    check_kernel(kernel, sigma)

    def pair(a: Prepared, b: Prepared) -> Tensor:
        both = a.square if a is b else product(a, b)
        value = index(both, a.square, b.square, -1.0 if unbiased else 0.0)
        return value.arccos() if angular else value

    def reorder(layer: Prepared, order: Tensor) -> Prepared:
        values = layer.values[order]
        values = values[:, order] if layer.is_kernel else values
        return replace(layer, values=values, diagonal=layer.diagonal[order])

    prepared = partial(prepare, kernel=kernel, unbiased=unbiased, sigma=sigma)
    kind = "distance" if angular else "similarity"
    return Metric(prepared, pair, True, lambda layer: int(layer.square > 0), reorder, kind=kind)


def _procrustes(angular: bool = False) -> Metric:
    pair = partial(baselines.distance_of, angular=angular)
    return Metric(partial(baselines.normalised, narrow=True), pair, kind="distance")


def _regression(tolerance: float | None = None) -> Metric:
    return Metric(
        lambda layer: (_linalg.subspace(layer, tolerance).basis, baselines.normalised(layer)),
        lambda a, b: baselines.explained(a[0], b[1]),
        symmetric=False,
        rank=lambda reduced: reduced[0].shape[1],
        reorder=lambda reduced, order: tuple(part[order] for part in reduced),
    )


def _rsa(distance: str = "correlation") -> Metric:
    as_choice(distance, "distance", baselines.DISTANCES)

    def reorder(ranks: Tensor, order: Tensor) -> Tensor:
        i, j = torch.triu_indices(len(order), len(order), 1, device=ranks.device)
        square = ranks.new_zeros(len(order), len(order))
        square[i, j] = square[j, i] = ranks
        return square[order[i], order[j]]

    ranks = partial(baselines.distance_ranks, distance=distance)
    return Metric(ranks, baselines.rank_correlation, reorder=reorder)


def _ridge(folds: int = 5, seed: int = 0) -> Metric:
    pair = partial(baselines.predicted, folds=folds, seed=seed)
    return Metric(baselines.normalised, pair, symmetric=False)


def _mutual_knn(k: int = 10) -> Metric:
    def reorder(near: Tensor, order: Tensor) -> Tensor:
        return order.argsort()[near[order]] if near[0, 0] >= 0 else near

    rank = lambda near: int(near[0, 0] >= 0)  # noqa: E731
    return Metric(partial(baselines.neighbours, k=k), baselines.shared, rank=rank, reorder=reorder)


def _unit_matching() -> Metric:
    rank = lambda layer: int(layer.numel() > 0)  # noqa: E731
    return Metric(baselines.standardised, baselines.matched, rank=rank)


def _dft_cca() -> Metric:
    def reorder(layer: Spectrum, order: Tensor) -> Spectrum:
        return replace(layer, bases=layer.bases[:, order])

    return Metric(spectrum, correlate_spectra, True, lambda a: int(a.ranks.max()), reorder, True)


_MAKERS = (_cca, _svcca, _pwcca, _cka, _procrustes, _regression, _rsa, _dft_cca)
_MAKERS += (_ridge, _mutual_knn, _unit_matching)
METRICS: dict[str, Callable[..., Metric]] = {make.__name__[1:]: make for make in _MAKERS}


def find(metric: str | Callable, options: Mapping[str, Any]) -> Metric:
    """Return the metric of a name, or a callable as one; a ValueError for unknown options."""
    if callable(metric):
        fixed = partial(metric, **options)
        return Metric(lambda layer: layer, fixed, False, rank=lambda layer: 1, kind="")
    accepted = inspect.signature(METRICS[as_choice(metric, "metric", METRICS)]).parameters
    if unknown := set(options) - set(accepted):
        raise ValueError(
            f"options: {metric} takes {', '.join(accepted) or 'none'}, "
            f"found {', '.join(sorted(unknown))}"
        )
    return METRICS[metric](**options)


@dataclass(frozen=True)
class SimilarityGrid:
    """One number for every pair of layers."""

    values: Array  #: (rows, columns) or (checkpoints, rows, columns)
    rows: tuple[str, ...]  #: names of the layers, as are the columns
    columns: tuple[str, ...]
    metric: str
    checkpoints: tuple | None = None
    null: Array | None = None  #: like `values`, the mean over permutations of y's examples
    maxima: Array | None = None  #: (..., permutations), the largest value of each permuted grid
    kind: str = "similarity"  #: or "distance", which is 0 for equal layers; of a callable by values

    @property
    def p_values(self) -> Array:
        """Of each pair, in how many permuted grids the largest value is as high, itself counted.

        (1 + #{k: max_k >= value}) / (1 + permutations), which allows for all pairs of the grid
        (Westfall & Young 1993, single-step maxT). ValueError without a null, or for distances.
        """
        values, maxima = self._against()
        above = (maxima[..., None, None, :] >= values[..., None]).sum(-1)
        return like(self.values)((1 + above) / (1 + maxima.shape[-1]))

    def calibrated(self, level: float = 0.05) -> Array:
        """Return max(0, (value - t) / (1 - t)): 0 for what unrelated layers give, 1 for equal ones.

        t is the least of the permuted grids' maxima that at most the share `level` of them, the
        grid itself counted, exceeds or equals; without so many the largest. As `p_values` else.
        """
        values, maxima = self._against()
        kept = int(level * (1 + maxima.shape[-1]))
        t = maxima.sort(-1, descending=True).values[..., max(0, kept - 1)][..., None, None]
        return like(self.values)(((values - t) / (1 - t).clamp_min(1e-12)).clamp(0, 1))

    def _against(self) -> tuple[Tensor, Tensor]:
        if self.maxima is None or self.kind == "distance":
            raise ValueError("null: expected at least 1 permutation, of a similarity")
        return torch.as_tensor(self.values), torch.as_tensor(self.maxima)

    def to_frame(self) -> pd.DataFrame:
        """Return one row a pair: (checkpoint,) row, column, value (and null)."""
        axes = {"row": self.rows, "column": self.columns}
        if self.checkpoints is not None:
            axes = {"checkpoint": self.checkpoints, **axes}
        frame = pd.DataFrame(list(pairs(*axes.values())), columns=list(axes))
        frame["value"] = _flat(self.values)
        if self.null is not None:
            frame["null"] = _flat(self.null)
        return frame

    def plot(self) -> "Figure":
        """Return a figure: a heatmap, or one a checkpoint, on one colour scale; bright is alike."""
        import matplotlib.pyplot as plt  # here, as the numerics do without what draws

        from replication import plotting

        values = _flat(self.values).reshape(-1, len(self.rows), len(self.columns))
        low, high = min(0.0, np.nanmin(values)), max(1.0, np.nanmax(values))
        count, single, across = len(values), len(values) == 1, min(4, len(values))
        down = math.ceil(count / across)
        size = (plotting.COLUMN, 2.8) if single else (plotting.PAGE, 0.7 + 1.6 * down)
        with plotting.style():
            fig, axes = plt.subplots(down, across, figsize=size, squeeze=False)
            for i, (ax, panel) in enumerate(zip(axes.flat, values, strict=False)):
                image = ax.imshow(panel, vmin=low, vmax=high, cmap=plotting.ALIKE[self.kind])
                turned = 90 if not single or len(self.columns) > 4 else 0
                ax.set_xticks(range(len(self.columns)), self.columns, rotation=turned)
                ax.set_yticks(range(len(self.rows)), self.rows)
                ax.tick_params(labelbottom=i + across >= count, labelleft=i % across == 0)
                ax.tick_params(labelsize=8 if single else 6)
                ax.grid(False)
                ax.set_title("" if self.checkpoints is None else str(self.checkpoints[i]))
            for ax in axes.flat[count:]:
                ax.set_axis_off()
            fig.colorbar(image, ax=axes, label=f"{self.metric}, a {self.kind}")
        return fig


def compare(
    acts_a: Mapping,
    acts_b: Mapping[str, Array] | None = None,
    metric: str | Callable[[Tensor, Tensor], Any] = "svcca",
    *,
    conv: str = "spatial_mean",
    null: int = 0,
    within: Array | None = None,
    seed: int = 0,
    progress: bool = False,
    **options,
) -> SimilarityGrid:
    """Return the similarity of all layers of one network to all layers of another.

    Where an index has sides, a row is its x and a column its y: "pwcca" weights by the row's layer,
    "regression" and "ridge" predict the column's.

    Parameters
    ----------
    acts_a : mapping of name to layer, or of checkpoint to such a mapping
        Layers over the same examples: (examples, neurons), or (examples, channels, height, width),
        as `activations.record` gives them. With checkpoints, each is compared to `acts_b`.
    acts_b : mapping of name to layer, optional
        By default `acts_a` itself, for checkpoints the last one.
    metric : str or callable
        "cca", "svcca", "pwcca", "cka", "procrustes", "regression", "rsa", "dft_cca", "ridge",
        "mutual_knn", "unit_matching", or a function of two (examples, neurons) tensors that returns
        a number or a CCAResult; a distance if it is nearer to 0 than to 1 for a layer and itself.
    conv : "spatial_mean", "positions" or "flatten"
        What becomes of convolutional layers, but for "dft_cca": channels averaged over space
        (Morcos et al. 2018b); every position an example (Raghu et al. 2017, for one layer in two
        networks; the sizes must agree); or every position a neuron.
    null, seed : int, as in `cca`
    within : (examples,) integers, optional
        Permutations stay within examples of equal ones: of labels, so that the null keeps what
        layers share because both tell the classes apart.
    progress : bool, show a progress bar over pairs
    options : of the metric, as in the function of that name, but for the confounder of `cka`

    Examples
    --------
    >>> x, y = torch.randn(2, 200, 5, dtype=torch.float64)
    >>> grid = compare({"fc1": x, "fc2": x + y}, {"fc1": x}, "cka", null=3)
    >>> grid.rows, grid.columns, tuple(grid.values.shape)
    (('fc1', 'fc2'), ('fc1',), (2, 1))
    >>> bool((grid.null < 0.2).all())  # what unrelated layers would give
    True
    """
    policy = CONV[as_choice(conv, "conv", CONV)]
    chosen = find(metric, options)
    as_integer(null, "null", 0)
    staged = isinstance(acts_a, Mapping) and any(isinstance(v, Mapping) for v in acts_a.values())
    stages = acts_a if staged else {None: acts_a}
    acts_b = list(stages.values())[-1] if acts_b is None else acts_b
    lefts, right = [], None
    for stage, acts in stages.items():
        lefts.append(named(acts, f"acts_a[{stage!r}]" if staged else "acts_a"))
        right = lefts[-1] if acts is acts_b else right
    right = right or named(acts_b, "acts_b")
    start = next(iter(stages.values()))
    rows, kind = tuple(start), like(next(iter(start.values())))
    for names in map(tuple, stages.values()):
        if names != rows:
            raise ValueError(
                f"acts_a: expected the layers {rows} at every checkpoint, found {names}"
            )
    layers = {name: layer for part in (*lefts, right) for name, layer in part.items()}
    by_position = conv == "positions" and metric != "dft_cca"
    _linalg.require_alike(layers, by_position)
    first = next(iter(layers.values()))
    positions = math.prod(first.shape[2:]) if by_position else 1
    dtype = _linalg.promoted(layers.values())

    def reduced(part: Mapping[str, Tensor]) -> dict[str, Any]:
        kept = 2 if metric != "dft_cca" else 4
        flat = {name: policy(x) if x.ndim > kept else x for name, x in part.items()}
        return {name: chosen.reduce(x.to(dtype)) for name, x in flat.items()}

    groups = None if within is None else as_labels(within, len(first), "within").cpu()
    draws = (_linalg.permutation(len(first), draw, seed, groups) for draw in range(null))
    # The rows of one example stay together.
    moved = [positions * draw[:, None] + torch.arange(positions) for draw in draws]
    orders = [places.flatten().to(first.device) for places in moved]
    values, baseline, maxima, examples = [], [], [], len(first) * positions
    noted: dict[str, Any] = {}
    steps = (1 + null) * len(lefts) * len(rows)
    with full_precision(), bar(show=progress, total=steps) as done:
        b = reduced(right)
        for left in lefts:
            a = b if left is right else reduced(left)
            noted |= notes(chosen, a, examples)
            values.append(grid(chosen, a, b, a is b and chosen.symmetric, done))
            baseline.append(torch.zeros_like(values[-1]))
            maxima.append(values[-1].new_zeros(null))
            for draw, order in enumerate(orders):
                c = {name: chosen.reorder(layer, order) for name, layer in b.items()}
                permuted = grid(chosen, a, c, False, done)
                baseline[-1] += permuted / null
                maxima[-1][draw] = permuted.max()
        noted |= notes(chosen, b, examples)
        orientation = chosen.kind
        if not orientation:  # a distance is 0 of a layer with itself
            varied = [{n: z} for n, z in b.items() if (z != z[:1]).any()][:1]
            near = any(grid(chosen, z, z, False) < 0.5 for z in varied)
            orientation = "distance" if near else "similarity"
    warn_once(chosen, noted, examples, pairs(chain(*lefts), right))

    values, baseline, maxima = (
        kind((torch.stack(z) if staged else z[0]).to(dtype)) for z in (values, baseline, maxima)
    )
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    checkpoints = tuple(stages) if staged else None
    if not null:
        baseline = maxima = None
    columns = tuple(acts_b)
    return SimilarityGrid(values, rows, columns, name, checkpoints, baseline, maxima, orientation)


def named(acts: Mapping[str, Array], name: str, maps: bool = True) -> dict[str, Tensor]:
    """Return the layers as floating tensors, by the names that messages give them."""
    if not isinstance(acts, Mapping) or not acts:
        given = "an empty one" if isinstance(acts, Mapping) else type(acts).__name__
        raise ValueError(f"{name}: expected a mapping of names to layers, found {given}")
    labels = {f"{name}[{layer!r}]": value for layer, value in acts.items()}
    return {label: as_layer(value, label, maps=maps) for label, value in labels.items()}


def _flat(values: Array) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().double().numpy().ravel()


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

    def chance(layer: Any) -> float:
        if not isinstance(layer, Prepared) or layer.unbiased:
            return 0.0
        mean = shuffled(layer, layer, examples)
        return index(mean, layer.square, layer.square).sqrt().item()

    return {name: (metric.rank(layer), chance(layer)) for name, layer in layers.items()}


def warn_once(metric: Metric, noted: Mapping, examples: int, compared: Iterable) -> None:
    """Warn of all layers together, and of the biased CKA of the two with most of it by chance."""
    chances = sorted(chance for _, chance in noted.values())
    highest = chances[-1] * chances[-2 if len(chances) > 1 else -1]
    ranks = {name: rank for name, (rank, _) in noted.items()}
    crowd = [pair for pair in compared if metric.correlates and pair[0] != pair[1]]
    _linalg.warn(ranks, examples, highest, 4, crowd)
