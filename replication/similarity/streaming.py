"""Similarity of layers whose examples do not fit in memory.

The indices that depend on inner products between neurons only (CCA, SVCCA, PWCCA, linear CKA,
Procrustes, linear regression) need no more of the examples than the joint covariance of all
layers. It is added up batch by batch, in float64 and around the mean so far, which keeps its digits
when means are large (Chan, Golub and LeVeque 1979). At the end it is factored as R^T R, and R,
with as many rows as there are neurons, takes the place of the examples.

A covariance squares the condition number: a direction below 1e-6 of a layer's largest (neurons
scaled to unit variance) cannot be told from rounding and counts as missing.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from replication._core.inputs import Array, as_tensor, like
from replication._core.precision import full_precision
from replication.activations import spatial_mean
from replication.similarity import _metrics
from replication.similarity._linalg import subspace
from replication.similarity.cca import CCAResult, correlate
from replication.similarity.compare import SimilarityGrid

TOLERANCE = 1e-6
METRICS = ("cca", "svcca", "pwcca", "cka", "procrustes", "regression")


class Accumulator:
    """The joint covariance of several layers, batch by batch.

    Memory is 16 D^2 bytes for D neurons in all and a batch in float64, whatever the number of
    examples. Partial accumulators, say of several workers, are combined by `merge`. Results are
    float64 and without gradients.

    Examples
    --------
    >>> import torch
    >>> from replication import similarity
    >>> x, y = torch.randn(2, 1000, 8, dtype=torch.float64)
    >>> streamed = similarity.Accumulator()
    >>> for batch in zip(x.split(100), y.split(100)):
    ...     streamed.update(*batch)
    >>> abs(streamed.result("cca").mean - similarity.cca(x, y).mean) < 1e-8
    tensor(True)
    """

    def __init__(self) -> None:
        self.examples = 0
        self.widths: dict[str, int] = {}
        self._paired = False
        self._sample: Array = torch.empty(0)  # of the kind that results are to have
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None

    def update(self, x: Array | Mapping[str, Array], y: Array | None = None) -> None:
        """Take in a batch: two layers, or a mapping of names to layers of the same examples.

        Layers are (examples, neurons); convolutional ones (examples, channels, height, width) are
        averaged over space.

        Raises
        ------
        ValueError
            If a layer is empty, holds NaN, infinity or numbers whose squares leave float64, or has
            other examples, names, widths or another device than the rest; nothing of the batch is
            then taken in.
        """
        batch = {"x": x, "y": y} if y is not None else x
        if not isinstance(batch, Mapping) or not batch:
            raise ValueError("x: expected two layers, or a mapping of names to layers")
        layers = {name: _layer(value, name) for name, value in batch.items()}
        widths = {name: layer.shape[1] for name, layer in layers.items()}
        if self.widths and widths != self.widths:
            raise ValueError(f"x: expected the widths {self.widths}, found {widths}")
        counts = {name: len(layer) for name, layer in layers.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"x: expected the same examples in all layers, found {counts}")
        devices = {str(x.device) for x in (self._mean, *layers.values()) if x is not None}
        if len(devices) > 1:
            raise ValueError(f"x: expected one device, found {', '.join(sorted(devices))}")
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
        self._add(len(joint), mean, scatter)

    def merge(self, other: "Accumulator") -> None:
        """Take in all that `other` has seen.

        Raises
        ------
        ValueError
            If its layers, their order or widths differ.
        """
        if not isinstance(other, Accumulator):
            raise ValueError(f"other: expected an Accumulator, found {type(other).__name__}")
        if not other.examples:
            return
        if not self.widths:
            self.widths, self._paired, self._sample = other.widths, other._paired, other._sample
        if list(other.widths.items()) != list(self.widths.items()):
            raise ValueError(f"other: expected the widths {self.widths}, found {other.widths}")
        device = other._mean.device if self._mean is None else self._mean.device
        self._add(other.examples, other._mean.to(device), other._scatter.to(device, copy=True))

    def _add(self, examples: int, mean: Tensor, scatter: Tensor) -> None:
        """Combine two means and two scatter matrices; `scatter` is written over."""
        if self.examples == 0:
            self.examples, self._mean, self._scatter = examples, mean, scatter
            return
        total = self.examples + examples
        shift = mean - self._mean
        self._scatter += scatter
        self._scatter.addr_(shift, shift, alpha=self.examples * examples / total)
        self._mean = self._mean + shift * (examples / total)
        self.examples = total

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
        # Columns 2, 3, ... of the Householder matrix whose first column is constant. Rows are never
        # as many as the examples, for which they could be taken.
        rows = len(root) + 1 + (len(root) + 1 == self.examples)
        mirror = root.new_full((rows, 1), -(rows**-0.5))
        mirror[0] += 1
        lifted = torch.cat([root.new_zeros(rows - len(root), len(root)), root])
        root = lifted - 2 / mirror.square().sum() * mirror @ (mirror.mT @ lifted)
        return dict(zip(self.widths, root.split(list(self.widths.values()), 1), strict=True))

    def result(self, metric: str = "svcca", **options) -> Array | CCAResult | SimilarityGrid:
        """Return the similarity of what was taken in.

        Parameters
        ----------
        metric, options
            "cca", "svcca", "pwcca", "cka" (linear, biased), "procrustes" or "regression", and what
            it takes.

        Returns
        -------
        float-like or CCAResult or SimilarityGrid
            For updates of two layers what the function of that name returns, without variates; for
            mappings the grid of all pairs.

        Raises
        ------
        ValueError
            For a metric or option that cannot be streamed, or fewer than 2 examples.
        """
        other = options.get("kernel", "linear") != "linear" or options.get("unbiased", False)
        if metric not in METRICS or other:
            raise ValueError(
                f"metric: found {metric!r} with {options}; streaming keeps inner products of "
                f"neurons only, which serve {', '.join(METRICS)}, of these cka linear and biased"
            )
        if metric in ("cca", "pwcca", "regression"):
            options = {"tolerance": TOLERANCE, **options}
        chosen, kind = _metrics.find(metric, options), like(self._sample)
        reduce = chosen.reduce
        if metric == "cca":  # the stand-ins are roots of a covariance already: take no second root
            reduce = partial(subspace, tolerance=options["tolerance"])
        with full_precision():
            layers = {name: reduce(layer) for name, layer in self._stand_ins().items()}
            if metric in ("cca", "svcca", "pwcca"):
                layers = {name: replace(x, examples=self.examples) for name, x in layers.items()}
            if self._paired and metric in ("cca", "svcca"):
                return correlate(layers["x"], layers["y"], kind)
            _metrics.warn(_metrics.notes(chosen, layers, self.examples), self.examples, 3)
            if self._paired:
                return kind(chosen.pair(layers["x"], layers["y"]))[()]
            values = _metrics.grid(chosen, layers, layers, chosen.symmetric)
        return SimilarityGrid(kind(values), tuple(layers), tuple(layers), metric)


def _layer(value: Array, name: str) -> Tensor:
    layer = as_tensor(value, name)
    if layer.ndim not in (2, 4) or layer.is_complex():
        raise ValueError(
            f"{name}: expected real (examples, neurons) or (examples, channels, height, width), "
            f"found shape {tuple(layer.shape)}, {layer.dtype}"
        )
    return spatial_mean(layer if layer.is_floating_point() else layer.double())
