"""Canonical correlation analysis of two layers: CCA, SVCCA, PWCCA.

All three ask which directions of one layer's activity, over the same examples, correlate with
directions of the other. The correlations rho_1 >= rho_2 >= ... are the singular values of
Q_x^T Q_y, where Q_x and Q_y are orthonormal bases of the centred layers (Bjorck and Golub 1973).
They do not change under invertible affine maps of either layer; with as many neurons as examples
they are all 1 whatever the layers are, and a warning says so.
"""

from dataclasses import dataclass, field
from functools import cached_property
from warnings import warn

import torch
from scipy import stats
from torch import Tensor

from replication._core.inputs import Array, as_integer, generator, like
from replication._core.precision import full_precision
from replication.similarity._linalg import Subspace, as_pair, principal_subspace, subspace
from replication.similarity._whitening import Whitening


@dataclass(frozen=True)
class CCAResult:
    """Canonical correlations of two layers and what belongs to them.

    Arrays are of the caller's kind, dtype and device. k is the smaller of the two ranks.

    Attributes
    ----------
    correlations : (k,)
        In [0, 1], largest first.
    ranks, widths : pairs of int
        Independent directions and neurons of x and y.
    examples : int
    null : (permutations,) or None
        `mean` for y with its examples permuted: what unrelated layers of these shapes would give.
    """

    correlations: Array
    ranks: tuple[int, int]
    widths: tuple[int, int]
    examples: int
    null: Array | None = None
    _sides: tuple[tuple[Subspace, Tensor], tuple[Subspace, Tensor]] | None = field(
        default=None, repr=False
    )

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
        """(neurons of y, k) weights w: the centred y times w are the variates."""
        return self._directions(1)

    @cached_property
    def x_variates(self) -> Array:
        """(examples, k) canonical variates of x: mean 0, variance 1, uncorrelated."""
        return self._variates(0)

    @cached_property
    def y_variates(self) -> Array:
        """(examples, k) canonical variates of y."""
        return self._variates(1)

    def p_values(self) -> list[float]:
        """Return, for i = 0 .. k - 1, the probability of rho_{i+1}, ... under independence.

        Bartlett's chi-squared approximation of Wilks' lambda: with p, q the ranks,
        -(n - 1 - (p + q + 1) / 2) sum_{j > i} ln(1 - rho_j^2) has (p - i)(q - i) degrees of
        freedom if the layers are Gaussian and only i correlations are not 0 (Bartlett 1947). Raises
        ``ValueError`` when n - 1 <= (p + q + 1) / 2.
        """
        p, q = self.ranks
        factor = self.examples - 1 - (p + q + 1) / 2
        if factor <= 0:
            raise ValueError(
                f"examples: expected more than {(p + q + 3) / 2:g} for ranks {self.ranks}, "
                f"found {self.examples}"
            )
        rho = torch.as_tensor(self.correlations).double().cpu()
        # Sum over j > i of ln(1 - rho_j^2); -inf, and p = 0, from a correlation of 1.
        terms = torch.log1p(-rho.square()).flip(0).cumsum(0).flip(0).tolist()
        return [
            float(stats.chi2.sf(-factor * term, (p - i) * (q - i))) for i, term in enumerate(terms)
        ]

    def _variates(self, side: int) -> Array:
        space, rotation = self._sides[side]
        if len(space.basis) != self.examples:
            raise ValueError("variates: streaming does not keep examples; apply the directions")
        scale = (self.examples - 1) ** 0.5
        return like(self.correlations)(scale * space.basis @ rotation)

    def _directions(self, side: int) -> Array:
        space, rotation = self._sides[side]
        scale = (self.examples - 1) ** 0.5
        return like(self.correlations)(scale * space.solve(rotation))


def cca(x: Array, y: Array, *, null: int = 0, seed: int = 0) -> CCAResult:
    """Return the canonical correlations of two layers.

    Constant neurons, copies and combinations of others are passed over: there are as many
    correlations as the smaller *rank*. `mean` is differentiable where no correlations coincide.

    Parameters
    ----------
    x, y : (examples, neurons) tensors or arrays
        The same examples in the same order; widths may differ.
    null : int
        Permutations for `CCAResult.null`.
    seed : int
        Of the permutations.

    Raises
    ------
    ValueError
        If a layer is not two-dimensional, has fewer than 2 examples, is empty or holds NaN or
        infinity, or the layers differ in examples or device.

    Examples
    --------
    >>> import torch
    >>> from replication import similarity
    >>> x = torch.randn(500, 4, dtype=torch.float64)
    >>> y = torch.stack([x[:, 0] + 2 * x[:, 1], torch.randn(500, dtype=torch.float64)], 1)
    >>> found = similarity.cca(x, y)  # one of the two directions of y is in x
    >>> bool(found.correlations[0] > 1 - 1e-9), bool(found.correlations[1] < 0.3)
    (True, True)
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
    """Return the canonical correlations of the top singular directions of two layers.

    Each centred layer is cut to its first m singular directions and CCA is applied to what is left
    (Raghu et al. 2017, section 2). m is the smallest number for which

        s_1 + ... + s_m >= variance * (s_1 + s_2 + ...),

    as the paper writes it; with ``squares=True`` the same with s_i^2, the usual share of variance,
    which keeps fewer. `dims` fixes m instead (the reference's tutorial takes 20).

    Parameters
    ----------
    x, y, null, seed
        As in `cca`.
    variance : float in (0, 1]
    dims : int, optional
        Overrides `variance`; cut to the rank.
    squares : bool

    Raises
    ------
    ValueError
        As `cca`, or for `variance` or `dims` out of range.

    Examples
    --------
    >>> import torch
    >>> from replication import similarity
    >>> signal, noise = torch.randn(2, 500, 3, dtype=torch.float64)
    >>> x = torch.cat([signal, 1e-3 * noise], 1)
    >>> found = similarity.svcca(x, signal)  # the faint directions are dropped before CCA
    >>> round(float(found.mean), 6)
    1.0
    """
    first, second = as_pair(x, y)
    with full_precision():
        cuts = [principal_subspace(z, variance, dims, squares) for z in (first, second)]
        return correlate(*cuts, like(x), null, seed)


def pwcca(x: Array, y: Array, *, symmetric: bool = False) -> Array:
    """Return the projection-weighted mean canonical correlation, a similarity in [0, 1].

        sum_i alpha_i rho_i / sum_i alpha_i,   alpha_i = sum_j |<h_i, z_j>|

    with h_i the canonical variates of x and z_j its centred neurons (Morcos et al. 2018, equation
    3): a direction counts by how much of x it accounts for. The weights always come from x, also
    when x is the wider layer (the published code leaves out the whitening and changes sides), so
    pwcca(x, y) and pwcca(y, x) differ; ``symmetric=True`` gives their mean.

    Raises
    ------
    ValueError
        As `cca`.

    Examples
    --------
    >>> import torch
    >>> from replication import similarity
    >>> x = torch.randn(500, 6, dtype=torch.float64)
    >>> y = torch.randn(500, 6, dtype=torch.float64)
    >>> y[:, :3] = 100 * x[:, :3]  # what is alike is also what is large in y
    >>> float(similarity.pwcca(y, x)) > float(similarity.cca(y, x).mean)
    True
    """
    first, second = as_pair(x, y)
    with full_precision():
        spaces = subspace(first), subspace(second)
        warn_if_trivial(*spaces, stacklevel=3)
        return like(x)(weighted(*spaces, symmetric))


def correlate(
    x: Subspace, y: Subspace, kind=lambda result: result, null: int = 0, seed: int = 0
) -> CCAResult:
    """Return the canonical correlations of two layers already reduced to subspaces."""
    warn_if_trivial(x, y)
    as_integer(null, "null", 0)
    u, s, vh = torch.linalg.svd(x.basis.mT @ y.basis, full_matrices=False)
    baseline = None
    if null:
        baseline = torch.stack([_permuted_mean(x, y, i, seed) for i in range(null)])
        baseline = kind(baseline)
    return CCAResult(
        correlations=kind(as_correlations(s)),
        ranks=(x.rank, y.rank),
        widths=(x.width, y.width),
        examples=x.examples,
        null=baseline,
        _sides=((x, u), (y, vh.mT)),
    )


def mean_correlation(x: Subspace | Whitening, y: Subspace | Whitening) -> Tensor:
    """Return the mean correlation over the smaller rank, without directions.

    From the eigenvalues of the smaller Gram matrix of Q_x^T Q_y, in float64: half the time of its
    singular values. A correlation below 1e-8 is lost in rounding, the mean is not.
    """
    if x is y or (isinstance(x, Whitening) and x.equals(y)):
        return x.basis.new_tensor(float(x.rank > 0))
    product = x.basis.mT @ y.basis
    if isinstance(y, Whitening):
        product = product @ y.weights
    if isinstance(x, Whitening):
        product = x.weights.mT @ product
    product = product.double()
    gram = product @ product.mT if x.rank <= y.rank else product.mT @ product
    values = as_correlations(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt())
    return (values.sum() / max(1, len(values))).to(x.basis.dtype)


def weighted(x: Subspace, y: Subspace, symmetric: bool = False) -> Tensor:
    """Return PWCCA of two layers already reduced to subspaces."""
    u, s, vh = torch.linalg.svd(x.basis.mT @ y.basis, full_matrices=False)
    rho = as_correlations(s)
    value = _weighted_mean(rho, x, u)
    return (value + _weighted_mean(rho, y, vh.mT)) / 2 if symmetric else value


def as_correlations(singular_values: Tensor) -> Tensor:
    """Return singular values as correlations in [0, 1]; within rounding of 1 they are 1."""
    rounding = 8 * torch.finfo(singular_values.dtype).eps * max(1, singular_values.shape[-1]) ** 0.5
    near = singular_values > 1 - rounding
    return torch.where(near, torch.ones_like(singular_values), singular_values)


def warn_if_trivial(x: Subspace, y: Subspace, stacklevel: int = 4) -> None:
    """Warn when a layer spans all that examples can span, or nothing."""
    examples = x.examples
    if max(x.rank, y.rank) >= examples - 1:
        warn(
            f"a layer of rank {max(x.rank, y.rank)} spans all {examples} centred examples: its "
            "canonical correlations with anything are 1; take more examples, or CKA",
            stacklevel=stacklevel,
        )
    if min(x.rank, y.rank) == 0:
        warn(
            "a layer is constant over the examples: it correlates with nothing",
            stacklevel=stacklevel,
        )


def _weighted_mean(rho: Tensor, x: Subspace, rotation: Tensor) -> Tensor:
    # <h_i, z_j> without the examples: the variates are basis @ rotation.
    scale = x.scale / x.scale.max()
    alpha = ((rotation.mT @ x.coordinates) * scale).abs().sum(1)
    total = alpha.sum()
    return (alpha * rho).sum() / total.where(total > 0, 1)


def _permuted_mean(x: Subspace, y: Subspace, index: int, seed: int) -> Tensor:
    order = torch.randperm(len(y.basis), generator=generator(seed, "null", index))
    product = x.basis.mT @ y.basis[order.to(y.basis.device)]
    return as_correlations(torch.linalg.svdvals(product)).sum() / max(1, min(x.rank, y.rank))
