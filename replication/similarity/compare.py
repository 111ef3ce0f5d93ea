"""Every layer against every layer, each reduced once and then only multiplied."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from replication._core.inputs import Array, as_integer, as_tensor, generator, like, nearest
from replication._core.precision import full_precision
from replication._core.progress import bar
from replication.activations import flatten, spatial_mean
from replication.similarity import _metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONV: dict[str, Callable[[Tensor], Tensor]] = {
    "spatial_mean": spatial_mean,
    "flatten": flatten,
    "positions": lambda layer: layer.movedim(1, -1).flatten(0, -2),
}


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
        frame = pd.DataFrame(list(product(*axes.values())), columns=list(axes))
        frame["value"] = _flat(self.values)
        if self.null is not None:
            frame["null"] = _flat(self.null)
        return frame

    def plot(self, limits: tuple[float, float] | None = None) -> "Figure":
        """Return a figure: a heatmap, or one a checkpoint, on one colour scale."""
        # Here, as the numerics do without what draws.
        import matplotlib.pyplot as plt

        from replication import plotting

        values = _flat(self.values).reshape(-1, len(self.rows), len(self.columns))
        limits = limits or (min(0.0, np.nanmin(values)), max(1.0, np.nanmax(values)))
        across = min(4, len(values))
        down = -(-len(values) // across)
        size = (plotting.COLUMN, 2.8) if len(values) == 1 else (plotting.PAGE, 0.7 + 1.6 * down)
        with plotting.style():
            fig, axes = plt.subplots(down, across, figsize=size, squeeze=False)
            for place, (ax, panel) in enumerate(zip(axes.flat, values, strict=False)):
                image = ax.imshow(panel, vmin=limits[0], vmax=limits[1], cmap="viridis")
                below, left = place + across >= len(values), place % across == 0
                turned = 90 if len(values) > 1 or len(self.columns) > 4 else 0
                columns = self.columns if below else [""] * len(self.columns)
                ax.set_xticks(range(len(self.columns)), columns, rotation=turned)
                ax.set_yticks(range(len(self.rows)), self.rows if left else [""] * len(self.rows))
                ax.tick_params(labelsize=8 if len(values) == 1 else 6)
                ax.grid(False)
                if self.checkpoints is not None:
                    ax.set_title(str(self.checkpoints[place]))
            for ax in axes.flat[len(values) :]:
                ax.set_axis_off()
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

    Values have the widest dtype among the layers and are of the kind of the first. Where an index
    has sides, a row is its x and a column its y: "pwcca" weights by the row's layer, "regression"
    predicts the column's.

    Parameters
    ----------
    acts_a : mapping of name to layer, or of checkpoint to such a mapping
        Layers over the same examples: (examples, neurons), or (examples, channels, height, width),
        as `activations.record` gives them. With checkpoints, each is compared to `acts_b`.
    acts_b : mapping of name to layer, optional
        By default `acts_a` itself, for checkpoints the last one.
    metric : str or callable
        "cca", "svcca", "pwcca", "cka", "procrustes", "regression", "rsa", "dft_cca", or a function
        of two (examples, neurons) tensors that returns a number or a CCAResult.
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
        Of the metric, as in the function of that name, but for the confounder of `cka`.

    Raises
    ------
    ValueError
        For an unknown metric or option, no layers, or layers that do not fit; it names the layer.

    Warns
    -----
    UserWarning
        Once for all layers that are constant, once for those whose rank leaves an index that
        ignores invertible maps without meaning, and for a biased CKA of few examples.

    Examples
    --------
    >>> import torch
    >>> from replication import similarity
    >>> x, y = torch.randn(2, 200, 5, dtype=torch.float64)
    >>> grid = similarity.compare({"fc1": x, "fc2": x + y}, {"fc1": x}, "cka", null=3)
    >>> grid.rows, grid.columns, tuple(grid.values.shape)
    (('fc1', 'fc2'), ('fc1',), (2, 1))
    >>> bool((grid.null < 0.2).all())  # what unrelated layers of these shapes would give
    True
    """
    if conv == "dft" and metric in ("cca", "dft_cca"):
        metric, conv = "dft_cca", "spatial_mean"
    if not isinstance(conv, str) or conv not in CONV:
        raise ValueError(f"conv: found {conv!r} for {metric!r}; {nearest(str(conv), CONV)}")
    chosen = _metrics.find(metric, options)
    as_integer(null, "null", 0)
    staged = isinstance(acts_a, Mapping) and any(isinstance(v, Mapping) for v in acts_a.values())
    stages = acts_a if staged else {None: acts_a}
    _require_layers("acts_a", *stages.values())
    if acts_b is None:
        acts_b = list(stages.values())[-1]
    _require_layers("acts_b", acts_b)

    lefts = [
        _checked(acts, f"acts_a[{stage!r}]" if staged else "acts_a")
        for stage, acts in stages.items()
    ]
    same = [left for left, acts in zip(lefts, stages.values(), strict=True) if acts is acts_b]
    right = same[-1] if same else _checked(acts_b, "acts_b")
    layers = {label: layer for part in (*lefts, right) for label, layer in part.items()}
    first = next(iter(layers.values()))
    positions = _require_fit(layers, conv == "positions" and metric != "dft_cca")
    examples = len(first) * positions
    dtype = functools.reduce(torch.promote_types, [layer.dtype for layer in layers.values()])

    def reduced(part: Mapping[str, Tensor]) -> dict[str, Any]:
        policy = None if metric == "dft_cca" else CONV[conv]
        return {
            label: chosen.reduce((policy(x) if policy and x.ndim == 4 else x).to(dtype))
            for label, x in part.items()
        }

    orders = [_order(len(first), positions, i, seed).to(first.device) for i in range(null)]
    steps = (1 + null) * len(lefts) * len(lefts[0])
    found, baseline, noted = [], [], {}
    with full_precision(), bar(show=progress, total=steps) as done:
        b = reduced(right)
        for left in lefts:
            a = b if left is right else reduced(left)
            noted |= _metrics.notes(chosen, a, examples)
            found.append(_metrics.grid(chosen, a, b, a is b and chosen.symmetric, done))
            unrelated = torch.zeros_like(found[-1])
            for order in orders:
                c = {label: chosen.reorder(layer, order) for label, layer in b.items()}
                unrelated += _metrics.grid(chosen, a, c, False, done) / null
            baseline.append(unrelated)
        noted |= _metrics.notes(chosen, b, examples)
    _metrics.warn(noted, examples, 3)

    def finished(grids: list[Tensor]) -> Array:
        values = (torch.stack(grids) if staged else grids[0]).to(dtype)
        return like(next(iter(next(iter(stages.values())).values())))(values)

    return SimilarityGrid(
        values=finished(found),
        rows=tuple(next(iter(stages.values()))),
        columns=tuple(acts_b),
        metric=metric if isinstance(metric, str) else getattr(metric, "__name__", "metric"),
        checkpoints=tuple(stages) if staged else None,
        null=finished(baseline) if null else None,
    )


def _require_layers(name: str, *stages: Mapping[str, Array]) -> None:
    for layers in stages:
        if not isinstance(layers, Mapping) or not layers:
            found = "an empty one" if isinstance(layers, Mapping) else type(layers).__name__
            raise ValueError(f"{name}: expected a mapping of names to layers, found {found}")
        if tuple(layers) != tuple(stages[0]):
            raise ValueError(
                f"{name}: expected the layers {tuple(stages[0])} at every checkpoint, "
                f"found {tuple(layers)}"
            )


def _checked(acts: Mapping[str, Array], name: str) -> dict[str, Tensor]:
    """Return the layers as floating tensors, by the labels that messages give them."""
    layers = {}
    for layer, value in acts.items():
        label = f"{name}[{layer!r}]"
        tensor = as_tensor(value, label)
        if tensor.ndim not in (2, 4) or len(tensor) < 2 or tensor.is_complex():
            raise ValueError(
                f"{label}: expected real (examples >= 2, neurons) or (examples >= 2, channels, "
                f"height, width), found shape {tuple(tensor.shape)}, {tensor.dtype}"
            )
        layers[label] = tensor if tensor.is_floating_point() else tensor.double()
    return layers


def _require_fit(layers: Mapping[str, Tensor], by_position: bool) -> int:
    """Check that layers have the same examples; return how many rows each example becomes."""
    (name, first), *others = layers.items()
    for label, layer in others:
        if len(layer) != len(first):
            raise ValueError(
                f"{label}: expected the {len(first)} examples of {name}, found {len(layer)}"
            )
        if layer.device != first.device:
            raise ValueError(
                f"{label}: expected the device of {name}, {first.device}, found {layer.device}"
            )
        if by_position and layer.shape[2:] != first.shape[2:]:
            raise ValueError(
                f"{label}: conv='positions' expected the size {tuple(first.shape[2:])} of {name}, "
                f"found {tuple(layer.shape[2:])}"
            )
    return math.prod(first.shape[2:]) if by_position else 1


def _order(examples: int, positions: int, draw: int, seed: int) -> Tensor:
    """Return a random order of the rows in which those of one example stay together."""
    order = torch.randperm(examples, generator=generator(seed, "null", draw))
    return (order[:, None] * positions + torch.arange(positions)).flatten()


def _flat(values: Array) -> np.ndarray:
    return torch.as_tensor(values).detach().double().cpu().numpy().ravel()
