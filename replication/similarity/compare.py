"""Every layer against every layer, each reduced once and then only multiplied.

For one layer an index needs a reduced form (an orthonormal basis, a spectrum, a normalised matrix);
for a pair, a small product of two of them. L layers take L reductions in place of L^2.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product as pairs
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from replication import plotting
from replication._inputs import as_integer, as_tensor, generator, nearest
from replication._precision import full_precision
from replication.activations import flatten, spatial_mean
from replication.similarity._linalg import Array, as_layer, like, principal_subspace, subspace
from replication.similarity.baselines import DISTANCES, distance_ranks, explained, rank_correlation
from replication.similarity.cca import CCAResult, correlate, mean_correlation, weighted
from replication.similarity.cka import Prepared, check_kernel, index, prepare
from replication.similarity.cka import product as inner_product
from replication.similarity.fourier import correlate_spectra, spectrum
from replication.similarity.procrustes import distance_of, narrowed, normalised
from replication.similarity.streaming import TOLERANCE, Accumulator


@dataclass(frozen=True)
class Metric:
    """An index as a reduction of one layer and a product of two reduced ones.

    `symmetric` says that the order of a pair does not matter; `similarity`, that equal layers give
    1 rather than 0.
    """

    reduce: Callable[[Tensor], Any]
    pair: Callable[[Any, Any], Any]
    symmetric: bool = True
    similarity: bool = True


def _cca(tolerance: float | None = None) -> Metric:
    return Metric(partial(subspace, tolerance=tolerance), mean_correlation)


def _svcca(variance: float = 0.99, dims: int | None = None, squares: bool = False) -> Metric:
    cut = partial(principal_subspace, variance=variance, dims=dims, squares=squares)
    return Metric(cut, mean_correlation)


def _pwcca(symmetric: bool = False, tolerance: float | None = None) -> Metric:
    reduce = partial(subspace, tolerance=tolerance)
    return Metric(reduce, partial(weighted, symmetric=symmetric), symmetric)


def _cka(kernel: str = "linear", unbiased: bool = False, sigma: float = 0.5) -> Metric:
    check_kernel(kernel, sigma)
    reduce = partial(prepare, kernel=kernel, unbiased=unbiased, sigma=sigma)

    def pair(a: Prepared, b: Prepared) -> Tensor:
        return index(inner_product(a, b), a.square, b.square, -1.0 if unbiased else 0)

    return Metric(reduce, pair)


def _procrustes(angular: bool = False) -> Metric:
    def pair(a: Tensor, b: Tensor) -> Tensor:
        distance = distance_of(a, b)
        return 2 * torch.asin(distance.sqrt() / 2) if angular else distance

    def reduce(layer: Tensor) -> Tensor:
        return narrowed(normalised(layer))

    return Metric(reduce, pair, similarity=False)


def _regression(tolerance: float | None = None) -> Metric:
    def reduce(layer: Tensor) -> tuple[Tensor, Tensor]:
        return subspace(layer, tolerance).basis, normalised(layer)

    return Metric(reduce, lambda a, b: explained(a[0], b[1]), symmetric=False)


def _rsa(distance: str = "correlation") -> Metric:
    if distance not in DISTANCES:
        raise ValueError(f"distance: found {distance!r}; {nearest(distance, DISTANCES)}")
    reduce = partial(distance_ranks, distance=distance)
    return Metric(reduce, rank_correlation)


def _dft_cca() -> Metric:
    return Metric(spectrum, lambda a, b: correlate_spectra(a, b).mean)


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
CONV: dict[str, Callable[[Tensor], Tensor]] = {
    "spatial_mean": spatial_mean,
    "flatten": flatten,
    "positions": lambda layer: layer.movedim(1, -1).flatten(0, -2),
}
STREAMED = ("cca", "svcca", "pwcca", "cka", "procrustes", "regression")


@dataclass(frozen=True)
class SimilarityGrid:
    """One number for every pair of layers.

    Attributes
    ----------
    values : (rows, columns) or (checkpoints, rows, columns) tensor or array
    rows, columns : tuple of str
        Names of the layers.
    metric : str
    checkpoints : tuple or None
    null : like `values`, or None
        The mean over permutations of the column layers' examples: what unrelated layers would give.
    """

    values: Array
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    metric: str
    checkpoints: tuple | None = None
    null: Array | None = None

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

    def plot(self, limits: tuple[float, float] | None = None) -> Figure:
        """Return a figure: a heatmap, or one a checkpoint, on one colour scale."""
        values = _flat(self.values).reshape(-1, len(self.rows), len(self.columns))
        limits = limits or (min(0.0, np.nanmin(values)), max(1.0, np.nanmax(values)))
        with plotting.style():
            width = min(plotting.PAGE, plotting.COLUMN * len(values))
            fig, axes = plt.subplots(1, len(values), figsize=(width, 3), squeeze=False, sharey=True)
            for ax, panel in zip(axes[0], values, strict=True):
                image = ax.imshow(panel, vmin=limits[0], vmax=limits[1], cmap="viridis")
                turned = 90 if len(self.columns) > 4 else 0
                ax.set_xticks(range(len(self.columns)), self.columns, rotation=turned)
                ax.set_yticks(range(len(self.rows)), self.rows)
                ax.grid(False)
            for ax, checkpoint in zip(axes[0], self.checkpoints or (), strict=False):
                ax.set_title(str(checkpoint))
            fig.colorbar(image, ax=axes, label=self.metric)
        return fig


def compare(
    acts_a: Mapping,
    acts_b: Mapping[str, Array] | None = None,
    metric: str | Callable[[Tensor, Tensor], Any] = "svcca",
    *,
    conv: str = "spatial_mean",
    null: int = 0,
    seed: int = 0,
    progress: bool = False,
    **options,
) -> SimilarityGrid:
    """Return the similarity of all layers of one network to all layers of another.

    Parameters
    ----------
    acts_a : mapping of name to layer, or of checkpoint to such a mapping
        Layers over the same examples: (examples, neurons), or (examples, channels, height, width),
        as `activations.record` gives them. With checkpoints, each is compared to `acts_b`.
    acts_b : mapping of name to layer, optional
        By default `acts_a` itself, for checkpoints the last one.
    metric : str or callable
        A name in `METRICS`, or a function of two (examples, neurons) tensors.
    conv : "spatial_mean", "positions", "flatten" or "dft"
        What becomes of convolutional layers: channels averaged over space (Morcos et al. 2018b);
        every position an example (Raghu et al. 2017, for one layer in two networks; the sizes must
        agree); every position a neuron; or, for ``metric="cca"``, DFT-CCA (Raghu et al. 2017, for
        different layers), which is also the metric ``"dft_cca"``.
    null : int
        Permutations of the examples for `SimilarityGrid.null`.
    seed : int
        Of the permutations.
    progress : bool
        Show a progress bar over pairs.
    options
        Of the metric, as in the function of that name.

    Raises
    ------
    ValueError
        For an unknown metric or option, no layers, or layers that do not fit; it names the layer.
    """
    if conv == "dft" and metric == "cca":
        metric = "dft_cca"
    if conv not in CONV and metric != "dft_cca":
        raise ValueError(f"conv: found {conv!r} with metric {metric!r}; {nearest(conv, CONV)}")
    chosen = _metric(metric, options)
    as_integer(null, "null", 0)
    staged = _is_staged(acts_a)
    stages = acts_a if staged else {None: acts_a}
    if acts_b is None:
        acts_b = list(stages.values())[-1]
    _require_layers("acts_a", *stages.values())
    _require_layers("acts_b", acts_b)
    prepare = partial(_prepare, chosen, None if metric == "dft_cca" else CONV[conv])
    kind = like(next(iter(acts_b.values())))

    with full_precision():
        right = {name: prepare(layer, name) for name, layer in acts_b.items()}
        shuffled = [
            {name: prepare(_shuffled(layer, i, seed), name) for name, layer in acts_b.items()}
            for i in range(null)
        ]
        found, baseline = [], []
        for acts in tqdm(stages.values(), leave=False, **({} if progress else {"disable": True})):
            mirrored = acts is acts_b and chosen.symmetric
            left = right if acts is acts_b else {n: prepare(x, n) for n, x in acts.items()}
            found.append(_grid(chosen, left, right, mirrored))
            if null:
                grids = [_grid(chosen, left, other, False) for other in shuffled]
                baseline.append(torch.stack(grids).mean(0))
    return SimilarityGrid(
        values=kind(torch.stack(found) if staged else found[0]),
        rows=tuple(next(iter(stages.values()))),
        columns=tuple(acts_b),
        metric=metric if isinstance(metric, str) else getattr(metric, "__name__", "metric"),
        checkpoints=tuple(stages) if staged else None,
        null=kind(torch.stack(baseline) if staged else baseline[0]) if null else None,
    )


def compare_streamed(
    accumulator: Accumulator, metric: str, options: Mapping[str, Any]
) -> Array | CCAResult | SimilarityGrid:
    """Return what `Accumulator.result` promises."""
    if metric not in STREAMED or (metric == "cka" and set(options) & {"kernel", "unbiased"}):
        raise ValueError(
            f"metric: found {metric!r} with {dict(options)}; streaming keeps inner products of "
            f"neurons only, which serve {', '.join(STREAMED)}, linear and biased"
        )
    limit = {"tolerance": TOLERANCE} if metric in ("cca", "pwcca", "regression") else {}
    chosen = _metric(metric, {**options, **limit})
    reduced = {name: chosen.reduce(layer) for name, layer in accumulator.layers().items()}
    if metric in ("cca", "svcca", "pwcca"):
        seen = accumulator.examples
        reduced = {name: replace(one, examples=seen) for name, one in reduced.items()}
    names, kind = tuple(reduced), accumulator.kind
    with full_precision():
        if not accumulator.paired:
            values = _grid(chosen, reduced, reduced, chosen.symmetric)
            return SimilarityGrid(kind(values), names, names, metric)
        if metric in ("cca", "svcca"):
            return correlate(reduced["x"], reduced["y"], kind)
        return kind(chosen.pair(reduced["x"], reduced["y"]))[()]


def _metric(metric: str | Callable, options: Mapping[str, Any]) -> Metric:
    if callable(metric):
        fixed = partial(metric, **options)
        return Metric(lambda layer: layer, fixed, symmetric=False)
    if metric not in METRICS:
        raise ValueError(f"metric: found {metric!r}; {nearest(str(metric), METRICS)}")
    try:
        return METRICS[metric](**options)
    except TypeError as error:
        raise ValueError(f"options: {metric} was given {dict(options)} ({error})") from None


def _prepare(
    metric: Metric, conv: Callable[[Tensor], Tensor] | None, value: Array, name: str
) -> Any:
    layer = as_tensor(value, name)
    if conv is None:
        return metric.reduce(layer if layer.ndim == 4 else as_layer(layer, name)[:, :, None, None])
    return metric.reduce(as_layer(conv(layer) if layer.ndim == 4 else layer, name))


def _grid(
    metric: Metric, left: Mapping[str, Any], right: Mapping[str, Any], mirrored: bool
) -> Tensor:
    rows = []
    for i, (first, a) in enumerate(left.items()):
        row = []
        for j, (second, b) in enumerate(right.items()):
            if mirrored and j < i:
                row.append(rows[j][i])
                continue
            try:
                row.append(torch.as_tensor(metric.pair(a, b)))
            except (RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"layers {first!r} and {second!r} do not fit: {reason}") from error
        rows.append(row)
    return torch.stack([torch.stack(row) for row in rows])


def _is_staged(acts: Mapping) -> bool:
    return isinstance(acts, Mapping) and any(isinstance(v, Mapping) for v in acts.values())


def _require_layers(name: str, *stages: Mapping[str, Array]) -> None:
    for layers in stages:
        if not isinstance(layers, Mapping) or not layers:
            raise ValueError(f"{name}: expected a mapping of names to layers, found {layers!r:.80}")
        if tuple(layers) != tuple(stages[0]):
            raise ValueError(
                f"{name}: expected the layers {tuple(stages[0])} at every checkpoint, "
                f"found {tuple(layers)}"
            )


def _shuffled(layer: Array, index: int, seed: int) -> Array:
    order = torch.randperm(len(layer), generator=generator(seed, "null", index))
    return layer[order.numpy()] if isinstance(layer, np.ndarray) else layer[order.to(layer.device)]


def _flat(values: Array | Iterable) -> np.ndarray:
    return torch.as_tensor(values).detach().double().cpu().numpy().ravel()
