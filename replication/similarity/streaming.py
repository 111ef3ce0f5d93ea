"""Similarity of layers whose examples do not fit in memory."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replication._core.inputs import Array, like
from replication._core.precision import full_precision
from replication.activations import spatial_mean
from replication.similarity._linalg import as_layer, promoted, require_alike, subspace, warn
from replication.similarity.cca import CCAResult, correlate
from replication.similarity.cka import index, prepare, product, shuffled
from replication.similarity.compare import SimilarityGrid, find, grid, named, notes, warn_once

TOLERANCE = 1e-6
METRICS = ("cca", "svcca", "pwcca", "cka", "procrustes", "regression")
Layers = Array | Mapping[str, Array]


class Accumulator:
    """The joint covariance of several layers, batch by batch: all that some indices need.

    It is added up in float64 around the mean so far (Chan, Golub and LeVeque 1979), in 16 D^2 bytes
    for D neurons in all. Factored as R^T R, R takes the place of the examples. A direction below
    1e-6 of a layer's largest (neurons scaled to unit variance) counts as missing, as a covariance
    squares it. Results are float64 and without gradients.

    Examples
    --------
    >>> x, y = torch.randn(2, 1000, 8, dtype=torch.float64)
    >>> streamed = Accumulator()
    >>> for batch in zip(x.split(100), y.split(100)):
    ...     streamed.update(*batch)
    >>> streamed.result("cca").correlations.shape
    torch.Size([8])
    """

    def __init__(self) -> None:
        self.examples = 0
        self.widths: dict[str, int] = {}
        self._paired = False
        self._sample: Array = torch.empty(0)  # of the kind that results are to have
        self._mean, self._scatter = torch.empty(0), torch.empty(0)

    def update(self, x: Layers, y: Array | None = None) -> None:
        """Take in a batch: two layers, or a mapping of names to layers of the same examples.

        Convolutional layers (examples, channels, height, width) are averaged over space. A
        ValueError as of all indices, for squares that leave float64, and for other names, widths or
        device than before; nothing of the batch is then taken in.
        """
        batch: Any = {"x": x, "y": y} if y is not None else x
        if not isinstance(batch, Mapping) or not batch:
            raise ValueError("x: expected two layers, or a mapping of names to layers")
        layers = {n: spatial_mean(as_layer(z, n, 1, maps=True)) for n, z in batch.items()}
        require_alike(layers)
        widths = {name: layer.shape[1] for name, layer in layers.items()}
        if self.widths and widths != self.widths:
            raise ValueError(f"x: expected the widths {self.widths}, found {widths}")
        device = next(iter(layers.values())).device
        if self.examples and device != self._mean.device:
            raise ValueError(f"x: expected the device {self._mean.device}, found {device}")
        # Also within inference mode, whose tensors could not be added to after it.
        with torch.inference_mode(False), torch.no_grad(), full_precision():
            joint = torch.cat([layers[name].double() for name in self.widths or widths], 1)
            mean = joint.mean(0)
            joint -= mean
            scatter = joint.mT @ joint
        if not scatter.diagonal().isfinite().all():
            raise ValueError("x: expected numbers whose squares can be summed, found larger ones")
        if not self.widths:
            sample = next(iter(batch.values()))
            self._sample = np.empty(0) if isinstance(sample, np.ndarray) else torch.empty(0)
            self.widths, self._paired = widths, y is not None
            self._mean, self._scatter = mean, scatter
        else:
            total, shift = self.examples + len(joint), mean - self._mean
            self._scatter += scatter
            self._scatter.addr_(shift, shift, alpha=self.examples * len(joint) / total)
            self._mean = self._mean + shift * (len(joint) / total)
        self.examples += len(joint)

    def products(self, first: str, second: str) -> Tensor:
        """Return X^T Y (neurons, neurons) of two centred layers, float64, by their names."""
        ends = dict(zip(self.widths, torch.tensor([*self.widths.values()]).cumsum(0), strict=True))
        i, j = (slice(int(ends[n]) - self.widths[n], int(ends[n])) for n in (first, second))
        return self._scatter[i, j].clone()

    def _stand_ins(self) -> dict[str, Tensor]:
        """Return for each layer rows of mean 0 with its centred neurons' inner products."""
        if self.examples < 2:
            raise ValueError(f"update: expected at least 2 examples, found {self.examples}")
        squares = self._scatter.diagonal()
        rounding = 4 * torch.finfo(torch.float64).eps * self._mean.abs()
        live = squares > self.examples * rounding.square()
        scale = squares.where(live, 1).sqrt()
        correlation = self._scatter / scale / scale[:, None] * (live & live[:, None])
        values, vectors = torch.linalg.eigh(correlation)
        values = values.where(values > TOLERANCE**2 * values[-1], 0)
        root = (values.sqrt() * vectors).mT * (scale * live)
        # Columns 2, 3, ... of the Householder matrix whose first is constant give rows of mean 0,
        # never as many as the examples, for which they could be taken.
        rows = len(root) + 1 + (len(root) + 1 == self.examples)
        mirror = root.new_full((rows, 1), -(rows**-0.5))
        mirror[0] += 1
        lifted = torch.cat([root.new_zeros(rows - len(root), len(root)), root])
        root = lifted - 2 / mirror.square().sum() * mirror @ (mirror.mT @ lifted)
        return dict(zip(self.widths, root.split(list(self.widths.values()), 1), strict=True))

    def result(self, metric: str = "svcca", **options) -> Array | CCAResult | SimilarityGrid:
        """Return what the function of that name does, without variates; of mappings, the grid.

        For "cca", "svcca", "pwcca", "cka" (linear, biased), "procrustes" and "regression".
        """
        other = options.get("kernel", "linear") != "linear" or options.get("unbiased", False)
        if metric not in METRICS or other:
            raise ValueError(
                f"metric: found {metric!r} with {options}; streaming keeps inner products of "
                f"neurons only, which serve {', '.join(METRICS)}, of these cka linear and biased"
            )
        if metric in ("cca", "pwcca", "regression"):
            options = {"tolerance": TOLERANCE, **options}
        chosen, kind = find(metric, options), like(self._sample)
        if metric == "cca":  # the stand-ins are roots of a covariance already: take no second root
            chosen = replace(chosen, reduce=partial(subspace, tolerance=options["tolerance"]))
        with full_precision():
            layers = {name: chosen.reduce(layer) for name, layer in self._stand_ins().items()}
            if metric in ("cca", "svcca", "pwcca"):
                layers = {name: replace(x, examples=self.examples) for name, x in layers.items()}
            if self._paired and metric in ("cca", "svcca"):
                return correlate(layers["x"], layers["y"], kind)
            noted = notes(chosen, layers, self.examples)
            warn_once(chosen, noted, self.examples, combinations(layers, 2))
            if self._paired:
                return kind(chosen.pair(layers["x"], layers["y"]))[()]
            values = grid(chosen, layers, layers, chosen.symmetric)
        names = tuple(layers)
        return SimilarityGrid(kind(values), names, names, metric, kind=chosen.kind)


def minibatch_cka(
    batches: Iterable[tuple[Layers, Layers]], unbiased: bool = True
) -> Array | SimilarityGrid:
    """Return the linear CKA of layers that come in minibatches, a similarity.

    mean HSIC(X_i, Y_i) / sqrt(mean HSIC(X_i, X_i) mean HSIC(Y_i, Y_i)) over the minibatches i,
    weighted by their examples (Nguyen et al. 2021, eqs. 2 and 3).

    Parameters
    ----------
    batches : iterable of (x, y)
        Two layers, each (examples, features), or two mappings of names to layers: then all pairs.
        At least 4 examples where unbiased; read once.
    unbiased : bool
        HSIC_1, in [-1, 1], which estimates the same number whatever the batches' size; HSIC_0, in
        [0, 1], does not.

    Examples
    --------
    >>> x, y = torch.randn(2, 400, 5, dtype=torch.float64)
    >>> 0.3 < float(minibatch_cka(zip(x.split(50), (x + y).split(50)))) < 0.7
    True
    """
    total = scales = None
    for number, batch in enumerate(batches):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(f"batches[{number}]: expected a pair (x, y), found {batch!r:.60}")
        try:
            sides = [
                named(z, n, maps=False) if isinstance(z, Mapping) else {n: as_layer(z, n)}
                for n, z in zip("xy", batch, strict=True)
            ]
            if total is None:
                start, labels = batch, [*map(list, sides)]
            elif [*map(list, sides)] != labels:
                raise ValueError("expected the layers of the first minibatch")
            terms, scales = _terms(sides[0], sides[1], unbiased, scales)
        except ValueError as error:
            raise ValueError(f"batches[{number}]: {error}") from None
        total = terms if total is None else [a + b for a, b in zip(total, terms, strict=True)]
    if total is None:
        raise ValueError("batches: expected at least one minibatch, found none")
    xy, xx, yy, by_chance = total
    values = index(xy, xx[:, None], yy, -1.0 if unbiased else 0.0)
    first = start[0]
    if isinstance(first, Mapping):
        first = next(iter(first.values()))
        kept = like(first)(values.to(as_layer(first, "x").dtype))
        return SimilarityGrid(kept, tuple(start[0]), tuple(start[1]), "cka")
    chance = 0.0 if unbiased else index(by_chance, xx[:, None], yy).item()
    warn({"x": int(xx[0] > 0), "y": int(yy[0] > 0)}, chance=chance)
    return like(first)(values[0, 0].to(as_layer(first, "x").dtype))[()]


def _terms(
    x: Mapping[str, Tensor], y: Mapping[str, Tensor], unbiased: bool, scales: list[Tensor] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return HSIC of all pairs, of the layers of x, of those of y, and of the pairs if shuffled.

    In units of `scales`, the layers' sizes in the first minibatch: fourth powers soon overflow.
    """
    require_alike({**x, **y})
    n, dtype = len(next(iter(x.values()))), promoted([*x.values(), *y.values()])
    with full_precision():
        a, b = ([prepare(z.to(dtype), "linear", unbiased) for z in s.values()] for s in (x, y))
        cross, chance = (
            torch.stack([torch.stack([term(p, q) for q in b]) for p in a])
            for term in (product, partial(shuffled, examples=n))
        )
    sizes = [torch.stack([z.scale for z in side]) for side in (a, b)]
    scales = scales or [size.where(size > 0, 1) for size in sizes]
    u, v = ((size / scale) ** 2 for size, scale in zip(sizes, scales, strict=True))
    xx, yy = (torch.stack([z.square for z in side]) for side in (a, b))
    weight = n / (n * (n - 3) if unbiased else (n - 1) ** 2)
    uv = torch.outer(u, v)
    terms = zip((cross, xx, yy, chance), (uv, u**2, v**2, uv), strict=True)
    return [term * unit * weight for term, unit in terms], scales
