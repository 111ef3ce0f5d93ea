"""Similarity of layers whose examples do not fit in memory.

The indices that depend on inner products between neurons only (CCA, SVCCA, PWCCA, linear CKA,
Procrustes, linear regression) need no more of the examples than the joint covariance of all
layers. It is added up batch by batch, in float64 and around the mean so far, which keeps its digits
when means are large (Chan, Golub and LeVeque 1979). At the end it is factored as R^T R, and R,
with as many rows as there are neurons, takes the place of the examples.

A covariance squares the condition number: a direction below 1e-7 of a layer's largest (neurons
scaled to unit variance) cannot be told from rounding and counts as missing.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from replication._inputs import as_tensor
from replication._precision import full_precision
from replication.activations import REDUCTIONS
from replication.similarity._linalg import Array, like

TOLERANCE = 1e-7


class Accumulator:
    """The joint covariance of several layers, batch by batch.

    Memory is 8 D^2 bytes for D neurons in all, whatever the number of examples. Partial
    accumulators, say of several workers, are combined by `merge`.

    Examples
    --------
    >>> import torch
    >>> from replication import similarity
    >>> x, y = torch.randn(2, 1000, 8, dtype=torch.float64)
    >>> streamed = similarity.Accumulator()
    >>> for start in range(0, 1000, 100):
    ...     streamed.update(x[start : start + 100], y[start : start + 100])
    >>> abs(streamed.result("cca").mean - similarity.cca(x, y).mean) < 1e-8
    tensor(True)
    """

    def __init__(self) -> None:
        self.examples = 0
        self.widths: dict[str, int] = {}
        self.paired = False
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None
        self.kind = like(torch.empty(0))

    def update(self, x: Array | Mapping[str, Array], y: Array | None = None) -> None:
        """Take in a batch: two layers, or a mapping of names to layers of the same examples.

        Layers are (examples, neurons); convolutional ones (examples, channels, height, width) are
        averaged over space.

        Raises
        ------
        ValueError
            If a layer is empty, holds NaN or infinity, or has other examples, names or widths than
            the rest; nothing of the batch is then taken in.
        """
        batch = {"x": x, "y": y} if y is not None else x
        if not isinstance(batch, Mapping) or not batch:
            raise ValueError("x: expected two layers, or a mapping of names to layers")
        layers = {name: _layer(value, name) for name, value in batch.items()}
        widths = {name: layer.shape[1] for name, layer in layers.items()}
        if self.widths and widths != self.widths:
            raise ValueError(f"x: expected layers and widths {self.widths}, found {widths}")
        if len({len(layer) for layer in layers.values()}) > 1:
            found = {name: len(layer) for name, layer in layers.items()}
            raise ValueError(f"x: expected the same examples in all layers, found {found}")
        joint = torch.cat([layer.double() for layer in layers.values()], 1)
        self.widths, self.paired = widths, y is not None
        self.kind = like(next(iter(batch.values())))
        mean = joint.mean(0)
        joint -= mean
        with full_precision():
            self._add(len(joint), mean, joint.mT @ joint)

    def merge(self, other: "Accumulator") -> None:
        """Take in all that `other` has seen.

        Raises
        ------
        ValueError
            If its layers or widths differ.
        """
        if self.widths and other.widths and other.widths != self.widths:
            raise ValueError(
                f"other: expected layers and widths {self.widths}, found {other.widths}"
            )
        if other.examples:
            self.widths, self.paired, self.kind = other.widths, other.paired, other.kind
            self._add(other.examples, other._mean, other._scatter.clone())

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

    def layers(self) -> dict[str, Tensor]:
        """Return stand-ins for the centred layers, with the same inner products of neurons.

        Each is (D + 1, neurons): R rotated so that its columns have mean 0, as the indices expect.

        Raises
        ------
        ValueError
            With fewer than 2 examples.
        """
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
        # Columns 2, 3, ... of the Householder matrix whose first column is constant.
        rows = len(root) + 1
        mirror = root.new_full((rows, 1), -(rows**-0.5))
        mirror[0] += 1
        lifted = torch.cat([root.new_zeros(1, len(root)), root])
        root = lifted - 2 / mirror.square().sum() * mirror @ (mirror.mT @ lifted)
        return dict(zip(self.widths, root.split(list(self.widths.values()), 1), strict=True))

    def result(self, metric: str = "svcca", **options) -> object:
        """Return the similarity of what was taken in.

        Parameters
        ----------
        metric : str
            "cca", "svcca", "pwcca", "cka" (linear, biased), "procrustes" or "regression".
        options
            Of the metric.

        Returns
        -------
        float-like or CCAResult or SimilarityGrid
            For updates of two layers what the function of that name returns for x and y; for
            mappings the grid of all pairs.
        """
        from replication.similarity.compare import compare_streamed

        return compare_streamed(self, metric, options)


def _layer(value: Array, name: str) -> Tensor:
    layer = as_tensor(value, name)
    if layer.ndim > 2:
        layer = REDUCTIONS["spatial_mean"](layer)
    if layer.ndim != 2:
        raise ValueError(f"{name}: expected (examples, neurons), found {tuple(layer.shape)}")
    return layer
