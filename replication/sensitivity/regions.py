"""Linear regions of a piecewise-linear network along paths: exact and sampled transitions.

The activity code of an input is the state of every unit: off or on for ReLU and LeakyReLU, and one
of three for ReLU6, Hardtanh and Hardsigmoid. Where it is constant the network is affine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from replication._core.inputs import Array, as_choice, as_integer, like
from replication._core.progress import bar
from replication.sensitivity._evaluation import plain_evaluation
from replication.sensitivity._piecewise import MEMORY
from replication.sensitivity._piecewise.paths import Paths, as_paths, as_polylines
from replication.sensitivity._piecewise.trace import trace
from replication.sensitivity._piecewise.walk import Tally, tallies_of, walk


@dataclass(frozen=True, eq=False)
class Transitions:
    """The changes of state of single units along a path; ``int()`` gives their number.

    Attributes
    ----------
    total : int
        How many there are.
    per_layer : dict
        Activation layer to its share of the total, in forward order. A module that is called again
        is ``name#2``.
    positions : (total,) float64
        Of every change, sorted, in [0, 1): segments passed, over the segments of the path. Where
        vertices are equally spaced in angle it is the angle over 2 pi. In an open path, in [0, 1].
    segments, fractions : (total,) int64 and float64
        The same to full precision: number of the first vertex, and share of the way to the next.
    layers, units : (total,) int64
        Which unit changes: number of the layer in `per_layer`, flat index in it.
    switches : dict
        Max-pooling layer to the number of changes of a window's largest input. Not in the total. By
        the exact method only.
    """

    total: int
    per_layer: dict[str, int]
    positions: Array = field(repr=False)
    segments: Array = field(repr=False)
    fractions: Array = field(repr=False)
    layers: Array = field(repr=False)
    units: Array = field(repr=False)
    switches: dict[str, int]

    def __int__(self) -> int:
        return self.total

    def density(self, bins: int = 100) -> Array:
        """Return the transitions per path length in `bins` equal parts of the path, (bins,).

        The unit of length is the whole path, so that the mean is the total.
        """
        bins = as_integer(bins, "bins", 1)
        bin_ = (torch.as_tensor(self.positions) * bins).long().clamp(max=bins - 1)
        density = torch.bincount(bin_, minlength=bins).to(torch.float64) * bins
        return density.numpy() if isinstance(self.positions, np.ndarray) else density


def transitions(
    model: nn.Module,
    path: Array | Sequence[Array],
    method: str = "exact",
    k: int = 2**20,
    closed: bool = True,
    *,
    dtype: torch.dtype = torch.float64,
    memory: int = MEMORY,
    progress: bool = True,
) -> Transitions | list[Transitions]:
    """Return how often units change state along a path (Novak et al. 2018, section 3).

        t = sum_i |c(x_i) - c(x_{i+1})|_0,   c(x) the activity code at x

    The method "sampled" takes k equidistant points, as the paper does; it misses what happens
    between two of them, and in float32 it counts rounding as well where they are close. The exact
    method takes the limit k -> infinity: along a segment each unit is piecewise linear, so the
    breakpoints of one layer give those of the next in closed form.

    Units that change at the same place count one each. To touch a kink and turn back is no change;
    to stay on it for a while and then leave is, as on the kink the state is that of slope 0. Units
    within 32 units of precision, of the terms they are a sum of, of a kink are on it, and
    breakpoints nearer than such rounding to each other become one.

    Parameters
    ----------
    model : torch.nn.Module
        Anything torch.fx can trace, of ReLU, LeakyReLU, ReLU6, Hardtanh, Hardsigmoid, max and
        average pooling, linear layers, convolutions, batch normalisation, dropout, sums and joins
        of branches. Runs in eval mode, on its own device, with its weights in `dtype`.
    path : (V, ...) tensor or array, or a list of them
        Vertices, joined by straight segments.
    method : "exact" or "sampled"
    k : int
        Points on each path, sampled, equidistant in the input space's length.
    closed : bool
        Whether the last vertex is joined to the first, and so the last piece compared to the first.
    dtype : torch.float64 or torch.float32
        Of all that is worked out, whatever the model's.
    memory : int
        Bytes that the working tensors may take, about, beside model, path and result.
    progress : bool
        Show a bar while sampling.

    Returns
    -------
    Transitions, or a list of them if `path` was one
        Of the kind of `path`, tensors on the model's device.

    Raises
    ------
    ValueError
        Also if a layer is smooth or unknown, by name, or the path does not fit the model.

    Examples
    --------
    >>> import torch
    >>> from replication import sensitivity
    >>> layer = torch.nn.Linear(2, 2, bias=False).double()
    >>> _ = torch.nn.init.eye_(layer.weight)
    >>> square = torch.tensor([[1.0, 1], [-1, 1], [-1, -1], [1, -1]], dtype=torch.float64)
    >>> found = sensitivity.transitions(torch.nn.Sequential(layer, torch.nn.ReLU()), square)
    >>> int(found), found.per_layer  # both units switch twice on the way round
    (4, {'1': 4})
    """
    as_choice(method, "method", ("exact", "sampled"))
    k, memory = as_integer(k, "k", 2), as_integer(memory, "memory", 1)
    polylines = as_polylines(path)
    with plain_evaluation(model):
        program = trace(model, polylines[0][0], dtype, "path")
        paths, limit = as_paths(polylines, closed, program.device), program.rows(memory)
        tallies = tallies_of(program, closed)
        if method == "exact":
            for rows, live in paths.blocks(program, limit):
                walk(program, rows, live, limit, tallies)
        else:
            points = paths.points(k, program.dtype, program.rows(memory // 2))
            with bar(show=progress, total=k * len(polylines), desc=method, unit="point") as done:
                for places, x, closes in points:
                    for step, states in program.states(x):
                        tallies[step.name].add(places, states, [(0, len(x) - 1, closes)])
                    done.update(len(x))
        pools = program.pools if method == "exact" else []
        if isinstance(path, list | tuple):
            return _results(paths, tallies, program.activations, pools, path)
        return _results(paths, tallies, program.activations, pools, [path])[0]


def _results(
    paths: Paths,
    tallies: dict[str, Tally],
    names: list[str],
    pools: list[str],
    given: Sequence[Any],
) -> list[Transitions]:
    """Return what was counted in activations and pools, path by path, of the kind of `given`."""
    device = paths.path.device
    changes = [tallies[name].changes for name in names]
    table = torch.cat([*changes, torch.zeros(0, 3, dtype=torch.float64, device=device)])
    sizes = torch.tensor([len(rows) for rows in changes], dtype=torch.int64, device=device)
    layers = torch.arange(len(names), device=device).repeat_interleave(sizes)
    order = table[:, 1].argsort(stable=True)
    order = order[table[order, 0].argsort(stable=True)]
    table, layers = table[order], layers[order]
    rows, fractions, units = table[:, 0].long(), table[:, 1].clone(), table[:, 2].long()
    path, segments = paths.path[rows], paths.place[rows]
    positions = (segments + fractions) / paths.lengths[path]
    if paths.closed:
        positions = positions.clamp(max=1 - torch.finfo(torch.float64).eps)

    def by_path(name: str) -> list[int]:
        numbers = paths.path[tallies[name].changes[:, 0].long()]
        return torch.bincount(numbers, minlength=len(given)).tolist()

    per_layer, switches = ({name: by_path(name) for name in kind} for kind in (names, pools))
    sizes = torch.bincount(path, minlength=len(given)).tolist()
    columns = {"positions": positions, "segments": segments, "fractions": fractions}
    columns |= {"layers": layers, "units": units}
    parts = {name: column.split(sizes) for name, column in columns.items()}
    return [
        Transitions(
            total=sizes[number],
            per_layer={name: counts[number] for name, counts in per_layer.items()},
            switches={name: counts[number] for name, counts in switches.items()},
            **{name: like(vertices)(part[number]) for name, part in parts.items()},
        )
        for number, vertices in enumerate(given)
    ]
