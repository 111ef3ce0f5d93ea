"""The two-layer ReLU network of 2n + d weights that fits any labels of n images."""

from dataclasses import dataclass

import torch

from replication._core.inputs import Array, Kind, as_integer, generator, like
from replication._core.precision import full_precision
from replication.memorisation._inputs import CHUNK, as_rows, as_targets

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class FiniteSampleNetwork:
    """The network C(x) = sum_j w_j max(<a, x> - b_j, 0), of 2n + d weights."""

    a: Array  #: (d,) float64, the projection
    b: Array  #: (n,) float64, thresholds, ascending
    w: Array  #: (n,) float64, output weights, in the order of `b`
    condition: float  #: 1-norm condition number of the triangular matrix that gave `w`
    error: float  #: largest |C(x_i) - y_i| over the images it was built for

    def __call__(self, images: Kind) -> Kind:
        """Return C of images (m, ...) with d numbers each, (m,) float64; else a ValueError."""
        rows = as_rows(images, "images")
        a, b, w = (torch.as_tensor(part, device=rows.device) for part in (self.a, self.b, self.w))
        if rows.shape[1] != len(a):
            raise ValueError(f"images: expected {len(a)} numbers each, found {rows.shape[1]}")
        with full_precision():
            pieces = (rows @ a).split(max(1, CHUNK // (4 * len(b))))
            return like(images)(torch.cat([(z[:, None] - b).relu_() @ w for z in pieces]))


def finite_sample_network(images: Array, labels: Array, seed: int = 0) -> FiniteSampleNetwork:
    """Build a network with 2n + d weights that fits any labels of n distinct images.

    Zhang et al. 2017, Theorem 1 (appendix C): a is standard normal, drawn by `seed`; with the
    projections z_1 < ... < z_n of the images and thresholds b_1 < z_1 <= b_2 < z_2 <= ... < z_n,
    the matrix A_ij = max(z_i - b_j, 0) is triangular with positive diagonal, and w solves A w = y.

    With b_i = z_i - t (z_i - z_i-1), an error in one weight reaches the next multiplied by 1 - 1/t.
    We take t = 1, b_i = z_i-1, which gives the largest diagonal too; b_1 lies the mean gap below
    z_1. Then A = T diag(gaps) T with T the lower triangle of ones: forward substitution is two
    divided differences, and the condition number |A| |A^-1| in the 1-norm is exact, in O(n) time
    and memory. `error` takes O(n^2) time. The condition number grows like n^3.

    Parameters
    ----------
    images : (n, ...) tensor or array
        d numbers each, distinct.
    labels : (n,) tensor or array
        Class indices or any real numbers.

    Raises
    ------
    ValueError
        If two images are identical or have, to rounding, the same projection (another seed then
        helps).

    Examples
    --------
    >>> images, labels = torch.rand(50, 20, dtype=torch.float64), torch.randint(10, (50,))
    >>> net = finite_sample_network(images, labels)  # 2 n + d weights fit anything
    >>> torch.allclose(net(images), labels.double(), atol=1e-6)
    True
    """
    x = as_rows(images, "images")
    y = as_targets(labels, x, "labels")
    if y.ndim != 1:
        raise ValueError(f"labels: expected the shape (n,), found {tuple(y.shape)}")
    source = generator(as_integer(seed, "seed", 0), "finite_sample_network")
    a = torch.randn(x.shape[1], dtype=torch.float64, generator=source).to(x.device)
    with full_precision():
        z, order = (x @ a).sort()
        rounding = EPS * (x.abs() @ a.abs()).max()
    gaps = z.diff()
    if len(gaps) and gaps.min() <= rounding:
        at = int(gaps.argmin())
        i, j = sorted(order[at : at + 2].tolist())
        kind = "are identical" if torch.equal(x[i], x[j]) else "have the same projection"
        raise ValueError(f"images: {i} and {j} {kind}; expected {len(x)} distinct projections")
    first = gaps.mean() if len(gaps) else z.new_ones(())
    gaps = torch.cat([first[None], gaps])
    b = torch.cat([z[:1] - first, z[:-1]])
    zero = y.new_zeros(1)
    w = (y[order].diff(prepend=zero) / gaps).diff(prepend=zero)
    inverse = 1 / gaps  # column j of A^-1: 1/g_j, -1/g_j - 1/g_j+1, 1/g_j+1
    columns = inverse.clone()
    columns[:-1] += inverse[:-1] + inverse[1:]
    columns[:-2] += inverse[1:-1]
    condition = float((z - b[0]).sum() * columns.max())
    error = float((FiniteSampleNetwork(a, b, w, condition, 0.0)(x) - y).abs().max())
    kind = like(images)
    return FiniteSampleNetwork(kind(a), kind(b), kind(w), condition, error)


def deep_outputs(network: FiniteSampleNetwork, images: Kind, depth: int) -> Kind:
    """Return the outputs (m,) of the same function by `depth` ReLU layers of about n / depth units.

    Zhang et al. 2017, Corollary 1: layer by layer, units max(z - b_j, 0) for the next thresholds
    b_j, beside units that hand on the projection z = <a, x> - b_1 and the positive and the negative
    part of sum_j w_j max(z - b_j, 0) over the layers before: d + 4 n + 5 depth + 1 weights.

    Examples
    --------
    >>> images, labels = torch.rand(50, 20, dtype=torch.float64), torch.randint(10, (50,))
    >>> network = finite_sample_network(images, labels)
    >>> torch.allclose(deep_outputs(network, images, 5), labels.double(), atol=1e-5)
    True
    """
    rows = as_rows(images, "images")
    a, b, w = (torch.as_tensor(p, device=rows.device) for p in (network.a, network.b, network.w))
    depth = as_integer(depth, "depth", 1)
    with full_precision():
        z = (rows @ a - b[0]).relu()
        plus = minus = torch.zeros_like(z)
        for low, weights in zip((b - b[0]).chunk(depth), w.chunk(depth), strict=True):
            total = plus - minus + (z[:, None] - low).relu() @ weights
            plus, minus = total.relu(), (-total).relu()
    return like(images)(plus - minus)
