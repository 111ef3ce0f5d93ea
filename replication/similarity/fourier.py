"""DFT-CCA: canonical correlations of convolutional layers, one frequency at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from replication._core.inputs import Array, like
from replication._core.precision import full_precision
from replication.similarity._linalg import as_pair, centred, norm_product, warn
from replication.similarity.cca import as_correlations

CHUNK = 2**24  # bytes of the pieces in which layers are transformed, whitened and correlated


@dataclass(frozen=True)
class FourierCCAResult:
    """Canonical correlations of two layers at every frequency, in FFT order (0, 1, ..., -1)."""

    correlations: Array  #: (height, width, k) in [0, 1], largest first; 0 beyond the rank
    ranks: Array  #: (height, width) integers, the smaller of the two layers' ranks
    mean: Array  #: sum of the correlations over that of the ranks: dead channels change nothing
    frequency_means: Array  #: (height, width), the same for each frequency; 0 where its rank is 0


@dataclass(frozen=True)
class Spectrum:
    """A layer transformed and whitened; of f and -f, which are conjugate, one of F is held."""

    bases: Tensor  # (F, examples, r), orthonormal, 0 beyond the ranks
    ranks: Tensor  # (F,)
    index: Tensor  # (height, width) in FFT order: where the frequency is held
    conjugate: Tensor  # (height, width): whether its conjugate is


def dft_cca(x: Array, y: Array) -> FourierCCAResult:
    """Return the canonical correlations of two convolutional layers at each frequency.

    Layers are (examples, channels, height, width), or dense (examples, neurons), of size 1 x 1.
    With X_f (examples, channels) the two-dimensional discrete Fourier transform of x over space at
    frequency f, centred over examples, and Q_{x,f} an orthonormal basis of its columns, they are

        rho_{f,1} >= rho_{f,2} >= ... = singular values of Q_{x,f}^H Q_{y,f}

    (Raghu et al. 2017, section 4). They are those of all channels x height x width neurons where
    convolutions wrap around and the examples are closed under translation, else an approximation.
    Layers of different sizes are compared at the frequencies -n/2 <= f < n/2 of the smaller size n
    along each axis, as the published code does. A frequency where all amplitudes, relative to the
    rms of the channel's spectrum, are below max(examples, channels, height x width) eps has rank 0.
    Not differentiable.

    Examples
    --------
    >>> x = torch.randn(300, 3, 4, 4, dtype=torch.float64)  # (examples, channels, height, width)
    >>> round(float(dft_cca(x, x.roll((1, 2), (2, 3))).mean), 6)  # translation is a phase
    1.0
    """
    layers = as_pair(x, y, maps=True)
    with full_precision():
        a, b = map(spectrum, layers)
        result = correlate_spectra(a, b, like(x))
    ranks = {"x": int(a.ranks.max()), "y": int(b.ranks.max())}
    warn(ranks, len(layers[0]), correlated=[("x", "y")])
    return result


def spectrum(x: Tensor) -> Spectrum:
    """Return a layer as in `dft_cca` transformed and whitened, in about as much memory."""
    x = x.detach() if x.ndim == 4 else x.detach()[:, :, None, None]
    n, c, h, w = x.shape
    row, column = torch.arange(h)[:, None], torch.arange(w)
    place, mirror = column * h + row, (-column % w) * h + -row % h
    lower = torch.minimum(place, mirror)
    held = lower.unique()
    source = ((held % h) * (w // 2 + 1) + held // h).to(x.device)  # in what rfft2 returns
    tolerance = max(n, c, h * w) * torch.finfo(x.dtype).eps
    bases = torch.empty(len(held), n, c, dtype=x.dtype.to_complex(), device=x.device)
    step = max(1, CHUNK // (n * h * w * x.element_size()))
    for i in range(0, c, step):
        bases[..., i : i + step] = _transform(x[:, i : i + step], source, tolerance)
    # Where f = -f the transform is real but for rounding.
    bases.imag[torch.isin(held, place[place == mirror]).to(x.device)] = 0
    step = max(1, CHUNK // (n * c * bases.element_size()))
    ranks = torch.cat([_whiten(piece, tolerance) for piece in bases.split(step)])
    index, conjugate = torch.searchsorted(held, lower), place > mirror
    return Spectrum(bases[..., : min(n, c)], ranks, index.to(x.device), conjugate.to(x.device))


def correlate_spectra(
    a: Spectrum, b: Spectrum, kind: Callable[[Tensor], Array] = lambda result: result
) -> FourierCCAResult:
    """Return `dft_cca` of the layers a and b are of, whatever their sizes, without warnings."""
    h, w = map(min, a.index.shape, b.index.shape)
    (i, i_flipped), (j, j_flipped) = (_crop(side, h, w) for side in (a, b))
    # Both layers' f and both layers' -f have the same correlations: conjugate x only, or neither.
    pairs, back = torch.stack([i, j, i_flipped ^ j_flipped]).unique(dim=1, return_inverse=True)
    ranks = torch.minimum(a.ranks[pairs[0]], b.ranks[pairs[1]])[back]
    rho = _singular_values(a.bases, b.bases, pairs)[back, : int(ranks.max())]
    return FourierCCAResult(
        correlations=kind(rho.unflatten(0, (h, w))),
        ranks=kind(ranks.view(h, w)),
        mean=kind(rho.sum() / ranks.sum().clamp(min=1)),
        frequency_means=kind((rho.sum(1) / ranks.clamp(min=1)).view(h, w)),
    )


def _frequencies(n: int, kept: int) -> Tensor:
    """Return where, in FFT order, length n has the frequencies -kept/2 <= f < kept/2."""
    signed = (torch.arange(n) + n // 2) % n - n // 2
    return ((2 * signed >= -kept) & (2 * signed < kept)).nonzero()[:, 0]


def _transform(x: Tensor, source: Tensor, tolerance: float) -> Tensor:
    """Return the spectra (F, examples, channels), each channel's mean length over all f being 1.

    A channel so small about its mean that rounding would exceed `tolerance` is scaled down.
    """
    n, _, h, w = x.shape
    varying = centred(x.flatten(1)).view_as(x)
    # In float64, as the squares of 1e30 leave the range of float32.
    norm = partial(torch.linalg.vector_norm, dim=1, dtype=torch.float64)
    length, mean = norm(varying.transpose(0, 1).flatten(1)), norm(x.mean(0).flatten(1))
    floor = 4 * torch.finfo(x.dtype).eps * n**0.5 * mean / tolerance
    scale = (h * w) ** 0.5 / torch.maximum(length, floor).where(length > 0, 1)
    half = torch.fft.rfft2(varying, norm="ortho").flatten(2)[..., source].permute(2, 0, 1)
    return half * scale.to(x.dtype)


def _whiten(z: Tensor, tolerance: float) -> Tensor:
    """Turn z (F, examples, channels) into orthonormal bases in place; return the ranks (F,)."""
    q, r = torch.linalg.qr(z)
    k, c = r.shape[1:]
    z[..., :k] = q
    ranks = torch.full((len(z),), k, device=z.device)
    doubtful = torch.ones(len(z), dtype=torch.bool, device=z.device)
    if k == c:  # most often a bound on the singular values of R settles its rank
        doubtful = ~(tolerance * norm_product(r, 1) < 1)
    if doubtful.any():
        u, s, _ = torch.linalg.svd(r[doubtful], full_matrices=False)
        above = s > tolerance * s[:, :1].clamp(min=1)
        ranks[doubtful] = above.sum(1)
        z[doubtful, :, :k] = q[doubtful] @ (u * above[:, None])
    return ranks


def _crop(side: Spectrum, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Return `index` and `conjugate` at the frequencies that size (h, w) has, each (h w,)."""
    rows, columns = map(_frequencies, side.index.shape, (h, w))
    rows, columns = rows[:, None].to(side.index.device), columns.to(side.index.device)
    return side.index[rows, columns].flatten(), side.conjugate[rows, columns].flatten()


def _singular_values(x: Tensor, y: Tensor, pairs: Tensor) -> Tensor:
    """Return (P, r) correlations of x[i], conjugated where flipped, and y[j].

    `pairs` (3, P) holds i, j and flipped.
    """
    dtype = torch.promote_types(x.dtype, y.dtype)
    correlations = []
    for piece in pairs.split(max(1, CHUNK // (x.shape[2] * y.shape[2] * dtype.itemsize)), dim=1):
        products = []
        for i, j, flipped in piece.T.tolist():
            left, right = x[i].to(dtype), y[j].to(dtype)
            products.append((left.mT if flipped else left.mH) @ right)
        correlations.append(as_correlations(torch.linalg.svdvals(torch.stack(products))))
    return torch.cat(correlations)
