"""A Gaussian kernel machine on as many images as their Gram matrix fits the memory for.

One matrix in float32 is all that is held: squared distances, summed over blocks of features, become
the kernel in place, and the interpolant is found by conjugate gradients. 60,000 training and 10,000
test images take 17 GB. Examples assume ``from replication.memorisation.blocked import *``.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from replication._core.inputs import as_integer, as_number
from replication._core.precision import full_precision

ROWS = 2048  # of a block of the matrix
CHECKED = 20  # steps between two looks at the residual, which is then computed anew
PAIRED = 1000  # training images whose distances give the bandwidth


def squared_distances(blocks: Iterable[Tensor], columns: int, square: bool = False) -> Tensor:
    """Return |f_i - f_j|^2 of all n rows with the first `columns`, or with `square` all columns.

    Each block is (n, d) float32, some of the features of all n examples; block by block the matrix
    -2 F F^T + |f_i|^2 + |f_j|^2 is summed, its lower triangle only, F centred by the mean of the
    first `columns` rows. Memory: 4 n columns bytes beside a block.

    Examples
    --------
    >>> features = torch.tensor([[0.0, 3.0], [4.0, 0.0]])
    >>> squared_distances(features.split(1, 1), columns=2)  # a block a feature
    tensor([[ 0., 25.],
            [25.,  0.]])
    """
    columns = as_integer(columns, "columns", 1)
    out, norms = None, torch.empty(0)
    with full_precision():
        for block in blocks:
            if block.ndim != 2 or len(block) < columns:
                found = tuple(block.shape)
                raise ValueError(f"blocks: expected (n, d) with n >= {columns}, found {found}")
            width = len(block) if square else columns
            if out is None:
                out, norms = block.new_zeros(len(block), width), block.new_zeros(len(block))
            block = block - block[:columns].mean(0)
            norms += block.square().sum(1)
            for low in range(0, len(block), ROWS):
                rows = slice(low, low + ROWS)
                end = min(width, low + ROWS)
                out[rows, :end].addmm_(block[rows], block[:end].mT, alpha=-2)
        if out is None:
            raise ValueError("blocks: expected at least one, found none")
        for low in range(0, len(out), ROWS):
            rows, end = slice(low, low + ROWS), min(out.shape[1], low + ROWS)
            out[rows, :end] += norms[rows, None] + norms[:end]
            if low < end:  # a block within the columns
                out[:low, low:end] = out[low:end, :low].mT
    out.diagonal().zero_()
    return out.clamp_(min=0)


def gaussian(squares: Tensor, columns: int) -> Tensor:
    """Return exp(-squares / (2 s^2)) in place, s = m / sqrt(8), so that k is exp(-4) at distance m.

    m is the median distance of two of the first `columns` examples, over all pairs of up to 1000,
    evenly spaced. Zhang et al. 2017 report no bandwidth: the 4 was chosen once, on held-out
    training images of MNIST and CIFAR-10.

    Examples
    --------
    >>> gaussian(torch.tensor([[0.0, 25.0], [25.0, 0.0]]), columns=2)[0, 1].log().round()
    tensor(-4.)
    """
    rows = torch.linspace(0, columns - 1, min(columns, PAIRED)).round().long().to(squares.device)
    some = squares[rows][:, rows]
    median = some[~torch.eye(len(rows), dtype=torch.bool, device=some.device)].median()
    if not median > 0:
        raise ValueError("squares: expected distinct examples, found a median distance of 0")
    return squares.mul_(-4 / median).exp_()  # s^2 = median / 8


@dataclass(frozen=True, eq=False)
class Interpolant:
    """f = sum_i alpha_i k(., x_i) with (K + ridge I) alpha = y, as far as the steps led."""

    coefficients: Tensor  #: (n, k), alpha
    norm: float  #: in the kernel's Hilbert space, of all k functions together
    residual: float  #: largest |(K + ridge I) alpha - y|
    steps: int  #: of conjugate gradients

    def __call__(self, kernel: Tensor) -> Tensor:
        """Return f (m, k) where the kernel with the n training examples is (m, n)."""
        return kernel @ self.coefficients


def interpolate(
    kernel: Tensor, targets: Tensor, ridge: float = 0.0, tolerance: float = 1e-3, most: int = 2000
) -> Interpolant:
    """Solve (K + ridge I) alpha = y by conjugate gradients (Hestenes & Stiefel 1952).

    K is (n, n), symmetric and positive semi-definite, y (n, k); its columns share only the product
    with K. Starts from 0 and ends when the largest residual, computed anew every 20 steps, is below
    `tolerance`, or after `most` steps. Without a ridge f is the interpolant of least norm, to this
    residual.

    Examples
    --------
    >>> x, y = torch.randn(30, 4), torch.randn(30, 1)
    >>> kernel = gaussian(squared_distances([x], 30), 30)
    >>> bool((interpolate(kernel, y)(kernel) - y).abs().max() < 0.01)
    True
    """
    if kernel.shape != (len(targets), len(targets)) or targets.ndim != 2:
        found = f"{tuple(kernel.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"kernel, targets: expected (n, n) and (n, k), found {found}")
    ridge, most = as_number(ridge, "ridge"), as_integer(most, "most", 1)
    y = targets.to(kernel)
    alpha, rest = torch.zeros_like(y), y.clone()
    way, length = rest.clone(), rest.square().sum(0)
    with full_precision():
        for step in range(1, most + 1):
            image = kernel @ way + ridge * way
            rate = length / (way * image).sum(0).clamp_min(torch.finfo(y.dtype).tiny)
            alpha += rate * way
            fresh = step % CHECKED == 0 or step == most
            rest = y - kernel @ alpha - ridge * alpha if fresh else rest - rate * image
            if fresh and rest.abs().max() <= tolerance:
                break
            now = rest.square().sum(0)
            way = rest + now / length.clamp_min(torch.finfo(y.dtype).tiny) * way
            length = now
        energy = (alpha * (y - rest - ridge * alpha)).double().sum()  # alpha^T K alpha
    return Interpolant(alpha, max(float(energy), 0.0) ** 0.5, float(rest.abs().max()), step)
