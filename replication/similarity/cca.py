"""Canonical correlation analysis of two layers: CCA, SVCCA, PWCCA."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from replication._core.inputs import Array, as_choice, as_integer, like
from replication._core.precision import full_precision
from replication.similarity._linalg import (
    Subspace,
    Whitening,
    as_pair,
    permutation,
    principal_subspace,
    subspace,
    warn,
)

MISSING = ("drop", "zero")


@dataclass(frozen=True)
class CCAResult:
    """Canonical correlations of two layers and what belongs to them."""

    correlations: Array  #: (k,) in [0, 1], largest first; k is the smaller of the two ranks
    ranks: tuple[int, int]  #: independent directions of x and y
    widths: tuple[int, int]  #: neurons of x and y
    examples: int
    _sides: tuple[tuple[Subspace, Tensor], tuple[Subspace, Tensor]] = field(repr=False)
    null: Array | None = None  #: (permutations,), `mean` for y with its examples permuted

    @cached_property
    def mean(self) -> Array:
        """Sum of the correlations over min(ranks): dead or copied neurons change nothing."""
        return self.correlations.sum() / max(1, min(self.ranks))

    @cached_property
    def mean_over_width(self) -> Array:
        """Sum of the correlations over min(widths), as if missing directions had correlation 0."""
        return self.correlations.sum() / min(self.widths)

    @cached_property
    def x_directions(self) -> Array:
        """(neurons of x, k) weights w: the centred x times w are the variates."""
        return self._directions(0)

    @cached_property
    def y_directions(self) -> Array:
        """(neurons of y, k) weights of the variates of y."""
        return self._directions(1)

    @cached_property
    def x_variates(self) -> Array:
        """(examples, k) canonical variates of x: mean 0, variance 1, uncorrelated; not streamed."""
        return self._variates(0)

    @cached_property
    def y_variates(self) -> Array:
        """(examples, k) canonical variates of y."""
        return self._variates(1)

    def _variates(self, side: int) -> Array:
        space, rotation = self._sides[side]
        if len(space.basis) != self.examples:
            raise ValueError("variates: streaming does not keep examples; apply the directions")
        with full_precision():
            return like(self.correlations)((self.examples - 1) ** 0.5 * space.basis @ rotation)

    def _directions(self, side: int) -> Array:
        space, rotation = self._sides[side]
        with full_precision():
            return like(self.correlations)((self.examples - 1) ** 0.5 * space.solve(rotation))


def cca(x: Array, y: Array, *, null: int = 0, seed: int = 0) -> CCAResult:
    """Return the canonical correlations of two layers, as many as the smaller *rank*.

    They are the singular values of Q_x^T Q_y, where Q_x and Q_y are orthonormal bases of the
    centred layers (Bjorck and Golub 1973), and ignore invertible affine maps of either layer. Their
    `mean` is differentiable where none coincide.

    Parameters
    ----------
    null, seed : int, permutations for `CCAResult.null` and what they are drawn by

    Warns
    -----
    UserWarning
        Where the ranks add up to the examples or more: so many directions of the centred examples
        cannot but be shared, with correlations of 1 also of unrelated layers.

    Examples
    --------
    >>> x, noise = torch.randn(2, 500, 4, dtype=torch.float64)
    >>> y = torch.stack([x[:, 0] + 2 * x[:, 1], noise[:, 0]], 1)  # of two directions one is in x
    >>> cca(x, y).correlations.round().tolist()
    [1.0, 0.0]
    """
    first, second = as_pair(x, y)
    with full_precision():
        return correlate(subspace(first), subspace(second), like(x), null, seed)


def svcca(
    x: Array,
    y: Array,
    *,
    variance: float = 0.99,
    dims: int | None = None,
    squares: bool = False,
    null: int = 0,
    seed: int = 0,
) -> CCAResult:
    """Return the canonical correlations of the first m singular directions of two layers.

    m is the smallest number for which s_1 + ... + s_m >= variance * (s_1 + s_2 + ...), with s_i the
    singular values of the centred layer (Raghu et al. 2017, section 2).

    Parameters
    ----------
    null, seed : as in `cca`
    variance : float in (0, 1]
    dims : int, m itself, cut to the rank
    squares : bool, s_i^2 in place of the paper's s_i: the usual share of variance

    Examples
    --------
    >>> signal, noise = torch.randn(2, 500, 3, dtype=torch.float64)
    >>> x = torch.cat([signal, 1e-3 * noise], 1)  # the faint directions are dropped before CCA
    >>> round(float(svcca(x, signal).mean), 6)
    1.0
    """
    first, second = as_pair(x, y)
    with full_precision():
        a, b = (principal_subspace(z, variance, dims, squares) for z in (first, second))
        return correlate(a, b, like(x), null, seed)


def pwcca(x: Array, y: Array, *, missing: str = "drop") -> Array:
    """Return the projection-weighted mean canonical correlation, a similarity in [0, 1].

        sum_i alpha_i rho_i / sum_i alpha_i,   alpha_i = sum_j |<h_i, z_j>|

    with h_i the canonical variates of x and z_j its centred neurons (Morcos et al. 2018, equation
    3), so that pwcca(y, x) differs. (The published code takes the weights from the narrower layer
    and leaves out the whitening.) Variates of tied correlations, as several of 1, may be turned
    among themselves, which changes their weights: then the value is one of many, and rounding
    decides.

    Parameters
    ----------
    missing : "drop" or "zero"
        Directions of x beyond the rank of y, without a partner: left out of both sums, or (Ding et
        al. 2021) with correlation 0, along principal axes, where their code leaves it to the SVD.

    Examples
    --------
    >>> x, y = torch.randn(2, 500, 6, dtype=torch.float64)
    >>> y[:, :3] = 100 * x[:, :3]  # what is alike is also what is large in y
    >>> float(pwcca(y, x)) > float(cca(y, x).mean)
    True
    """
    as_choice(missing, "missing", MISSING)
    first, second = as_pair(x, y)
    with full_precision():
        spaces = subspace(first), subspace(second)
        value = weighted(*spaces, missing)
    warn({"x": spaces[0].rank, "y": spaces[1].rank}, len(first), correlated=[("x", "y")])
    return like(x)(value)


def correlate(
    x: Subspace, y: Subspace, kind: Callable[[Tensor], Array], null: int = 0, seed: int = 0
) -> CCAResult:
    """Return the canonical correlations of two layers already reduced to subspaces."""
    warn({"x": x.rank, "y": y.rank}, x.examples, level=4, correlated=[("x", "y")])
    as_integer(null, "null", 0)
    u, s, vh = torch.linalg.svd(x.basis.mT @ y.basis, full_matrices=False)
    means = []
    for draw in range(null):
        order = permutation(len(y.basis), draw, seed).to(y.basis.device)
        rho = as_correlations(torch.linalg.svdvals(x.basis.mT @ y.basis[order]))
        means.append(rho.sum() / max(1, min(x.rank, y.rank)))
    return CCAResult(
        correlations=kind(as_correlations(s)),
        ranks=(x.rank, y.rank),
        widths=(len(x.scale), len(y.scale)),
        examples=x.examples,
        null=kind(torch.stack(means)) if means else None,
        _sides=((x, u), (y, vh.mT)),
    )


def mean_correlation(x: Subspace | Whitening, y: Subspace | Whitening) -> Tensor:
    """Return the mean correlation over the smaller rank, without directions; 1 for a copy.

    By eigenvalues in float64, in half the time of singular values: what is below 1e-8 gets lost.
    """
    u, v = (getattr(z, "weights", None) for z in (x, y))
    # The weights are small, and nearly always enough to tell layers apart.
    same = u is not None and v is not None and torch.equal(u, v) and torch.equal(x.basis, y.basis)
    if x is y or same:
        return x.basis.new_tensor(float(x.rank > 0))
    product = x.basis.mT @ y.basis
    if v is not None:
        product = product @ v
    if u is not None:
        product = u.mT @ product
    product = product.double()
    square = product @ product.mT if x.rank <= y.rank else product.mT @ product
    rho = as_correlations(torch.linalg.eigvalsh(square).clamp_min(0).sqrt())
    return (rho.sum() / max(1, len(rho))).to(x.basis.dtype)


def weighted(x: Subspace, y: Subspace, missing: str = "drop") -> Tensor:
    """Return PWCCA of two layers already reduced to subspaces."""
    u, s, _ = torch.linalg.svd(x.basis.mT @ y.basis, full_matrices=missing == "zero")
    rho = as_correlations(s)
    # <h_i, z_j> without the examples: the variates are basis @ rotation.
    products = (u.mT @ x.coordinates) * (x.scale / x.scale.max())
    if len(products) > len(rho):  # any basis of the rest would do: that of principal axes
        _, sizes, axes = torch.linalg.svd(products[len(rho) :], full_matrices=False)
        products = torch.cat([products[: len(rho)], sizes[:, None] * axes])
    alpha = products.abs().sum(1)
    total = alpha.sum()
    return (alpha[: len(rho)] * rho).sum() / total.where(total > 0, 1)


def as_correlations(singular_values: Tensor) -> Tensor:
    """Return singular values as correlations in [0, 1]; within rounding of 1 they are 1."""
    rounding = 8 * torch.finfo(singular_values.dtype).eps * max(1, singular_values.shape[-1]) ** 0.5
    near = singular_values > 1 - rounding
    return torch.where(near, torch.ones_like(singular_values), singular_values)
