"""``python -m replication compare``: two files of weights in, a figure and its numbers out."""

import hashlib
import math
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from replication import plotting
from replication._core.files import atomic, write_json
from replication._core.inputs import as_integer
from replication.papers import own_models
from replication.similarity.compare import SimilarityGrid, compare, find

EXAMPLES = 1000  # drawn where nothing is said
TICKS = 100  # names that can be read along an axis


def run(
    weights: Sequence[str],
    model: str,
    data: str,
    *,
    model_b: str | None = None,
    prefix: str = "",
    prefix_b: str | None = None,
    metric: str = "svcca",
    unbiased: bool = False,
    layers: Sequence[str] | None = None,
    layers_b: Sequence[str] | None = None,
    null: int = 3,
    examples: int | None = None,
    out: Path = Path(),
    device: str = "cpu",
) -> int:
    """Compare two networks, write the figure and the numbers, and say where; return 0.

    Held in memory are examples x units of every layer (maps averaged over space, tokens over the
    sequence; for "dft_cca" whole maps). What numerics warn of is told and kept with the numbers.

    Raises
    ------
    ValueError
        For whatever does not fit: files, functions, data, layers, the metric.
    """
    options = {"unbiased": True} if unbiased else {}
    find(metric, options)  # before anything is read
    as_integer(null, "null", 0)
    builders = (model, model_b or model)
    prefixes = (prefix, prefix if prefix_b is None else prefix_b)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        networks = [
            own_models.load(path, build, device, start)
            for path, build, start in zip(weights, builders, prefixes, strict=True)
        ]
        whole = own_models.load_dataset(data, networks[0][1])
        count = min(EXAMPLES, len(whole)) if examples is None else examples
        recorded = []
        for path, (network, transform), names in zip(
            weights, networks, (layers, layers_b or layers), strict=True
        ):
            chosen = own_models.load_dataset(data, transform, count)
            reduction = _maps if metric == "dft_cca" else own_models.units
            try:
                acts = own_models.record(network, chosen, names, reduction=reduction)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            if not acts:
                raise ValueError(f"{path}: no layer gave one output an input")
            recorded.append(acts)
        grid = compare(*recorded, metric=metric, null=null, progress=True, **options)
        metric = f"unbiased_{metric}" if unbiased else metric
        grid = replace(grid, metric=metric)
    noted = list(dict.fromkeys(str(warning.message) for warning in caught))
    for text in noted:
        print(f"replication: warning: {text}", file=sys.stderr)

    names = labels(*weights)
    stem = Path(out) / f"{names[0]}_{names[1]}_{metric}"
    picture, numbers = (stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "json"))
    stamp = f"{count:,} of {len(whole):,} inputs of {Path(data).name}"
    with atomic(picture) as temporary:
        draw(grid, names, stamp).savefig(temporary)
    networks = [
        {"weights": Path(path).name, "digest": _digest(path), "model": build}
        for path, build in zip(weights, builders, strict=True)
    ]
    content = {
        "metric": metric,
        "kind": grid.kind,
        "networks": dict(zip(("rows", "columns"), networks, strict=True)),
        "data": {"source": Path(data).name, "examples": count, "available": len(whole)},
        "rows": list(grid.rows),
        "columns": list(grid.columns),
        "values": _listed(grid.values),
        "permutations": null,
        "null": None if grid.null is None else _listed(grid.null),
        "warnings": noted,
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("torch", "numpy")},
    }
    write_json(numbers, content)
    print(f"{metric}, a {grid.kind}, of {len(grid.rows)} x {len(grid.columns)} layers over {stamp}")
    print(f"figure   {picture}\nnumbers  {numbers}")
    return 0


def labels(first: str, second: str) -> tuple[str, str]:
    """Return a short name for each of two files, with their folders' where the files' are equal."""
    stems = Path(first).stem, Path(second).stem
    if stems[0] != stems[1]:
        return stems
    folders = Path(first).resolve().parent.name, Path(second).resolve().parent.name
    if folders[0] == folders[1]:
        return stems
    return f"{folders[0]}-{stems[0]}", f"{folders[1]}-{stems[1]}"


def draw(grid: SimilarityGrid, names: tuple[str, str], stamp: str) -> Figure:
    """Return the grid as a heatmap, bright where alike, beside it that of unrelated layers."""
    titles = [f"{grid.metric}: {names[0]} and {names[1]}", "unrelated: inputs permuted"]
    shown = [
        np.asarray(values.cpu(), dtype=float)
        for values in (grid.values, grid.null)
        if values is not None
    ]
    limits = (min(0.0, *map(np.nanmin, shown)), max(1.0, *map(np.nanmax, shown)))
    side = [min(9.0, max(2.2, 0.14 * len(some))) for some in (grid.columns, grid.rows)]
    with plotting.style():
        figure = Figure(figsize=(len(shown) * (side[0] + 1.2), side[1] + 1.4))
        axes = figure.subplots(1, len(shown), squeeze=False)[0]
        for ax, values, title in zip(axes, shown, titles, strict=False):
            look = {"limits": limits, "cmap": plotting.ALIKE[grid.kind]}
            label = f"{grid.metric}, a {grid.kind}"
            plotting.heatmap(ax, values, grid.rows, grid.columns, label, **look)
            ax.set_xticks(*_ticks(grid.columns), rotation=90)
            ax.set_yticks(*_ticks(grid.rows))
            ax.tick_params(labelsize=8 if max(values.shape) <= 16 else 5)
            ax.set(xlabel=names[1], ylabel=names[0], title=title)
        figure.supxlabel(stamp, fontsize=5.5, color="#555555", x=0.01, ha="left")
    return figure


def _ticks(names: Sequence[str]) -> tuple[list[int], list[str]]:
    places = list(range(0, len(names), math.ceil(len(names) / TICKS)))
    return places, [names[place] for place in places]


def _maps(output: Tensor) -> Tensor:
    """Keep maps (N, C, H, W), for a metric that looks at frequencies; others to (N, units)."""
    return output if output.ndim == 4 else own_models.units(output)


def _listed(values: Tensor) -> list[list[float | None]]:
    return [[x if math.isfinite(x) else None for x in row] for row in values.tolist()]


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
