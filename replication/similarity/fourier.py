"""DFT-CCA: canonical correlations of convolutional layers, one frequency at a time.

Where convolutions wrap around and the examples are closed under translation, a layer's covariance
is block-circulant: the discrete Fourier transform over space makes its blocks independent, and CCA
of all channels x height x width neurons splits into height x width problems of the size of the
channels (Raghu et al. 2017, section 4). On other data it is an approximation.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from warnings import warn

import torch
from torch import Tensor

from replication._core.inputs import Array, as_integer, as_tensor, generator, like
from replication._core.precision import full_precision
from replication.similarity._linalg import centred
from replication.similarity.cca import as_correlations

CHUNK = 2**24
"""Bytes of the pieces in which layers are transformed, whitened and correlated."""


@dataclass(frozen=True)
class FourierCCAResult:
    """Canonical correlations of two layers at every frequency.

    Arrays are of the caller's kind, dtype and device, frequencies in FFT order (0, 1, ..., -1).
    H and W are the smaller of the two layers' sizes, k is the largest of `ranks`.

    Attributes
    ----------
    correlations : (H, W, k)
        In [0, 1], largest first; 0 beyond the frequency's rank.
    ranks : (H, W) integers
        How many correlations the frequency has: the smaller of the two ranks there.
    mean : ()
        Sum of the correlations over the sum of `ranks`, both over all frequencies: dead channels
        and empty bands change nothing.
    frequency_means : (H, W)
        The same for each frequency; 0 where its rank is 0.
    null : (permutations,) or None
        `mean` for y with its examples permuted: what unrelated layers of these shapes would give.
    """

    correlations: Array
    ranks: Array
    mean: Array
    frequency_means: Array
    null: Array | None = None


@dataclass(frozen=True)
class Spectrum:
    """A layer transformed and whitened: all that its correlations with other layers need.

    The transform of a real layer at -f is the conjugate of that at f, so only F frequencies, about
    half of height x width, are held.

    Attributes
    ----------
    bases : (F, examples, r) complex tensor
        Orthonormal bases of the centred channels; columns beyond the frequency's rank are 0.
    ranks : (F,) integer tensor
    index : (height, width) integer tensor
        Where in `bases` each frequency, in FFT order, is found, ...
    conjugate : (height, width) boolean tensor
        ... and whether its conjugate is held.
    """

    bases: Tensor
    ranks: Tensor
    index: Tensor
    conjugate: Tensor
    _kind: Callable[[Tensor], Array] = field(repr=False)


def dft_cca(x: Array, y: Array, *, null: int = 0, seed: int = 0) -> FourierCCAResult:
    """Return the canonical correlations of two convolutional layers at each frequency.

    With X_f (examples, channels) the two-dimensional discrete Fourier transform of x over space at
    frequency f, centred over examples, and Q_{x,f} an orthonormal basis of its columns, they are

        rho_{f,1} >= rho_{f,2} >= ... = singular values of Q_{x,f}^H Q_{y,f}.

    Layers of different sizes are compared at the frequencies -n/2 <= f < n/2 of the smaller size n
    along each axis, as the published code does. A dense layer has size 1 x 1: it meets the zero
    frequency of the other, the spatial means of its channels.

    A frequency that the activations do not reach has rank 0. Amplitudes are relative to the rms of
    the channel's own spectrum, so units do not matter; below max(examples, channels, height x
    width) eps they are rounding. Not differentiable: bases are computed in place.

    Parameters
    ----------
    x, y : (examples, channels, height, width) or (examples, neurons) tensors or arrays
        Real; the same examples in the same order; channels and sizes may differ.
    null : int
        Permutations of the examples for `FourierCCAResult.null`.
    seed : int
        Of the permutations.

    Raises
    ------
    ValueError
        If a layer has other dimensions, fewer than 2 examples, is empty or complex, or holds NaN or
        infinity, if the layers differ in examples or device, or `null` is negative.

    Warns
    -----
    UserWarning
        If at some frequency a layer has as many independent channels as the examples can span, so
        that its correlations are 1 whatever the layers are, or if a layer is constant.

    Examples
    --------
    >>> import torch
    >>> from replication import similarity
    >>> x = torch.randn(300, 3, 4, 4, dtype=torch.float64)  # (examples, channels, height, width)
    >>> moved = x.roll((1, 2), (2, 3))  # translation is a phase of each frequency
    >>> round(float(similarity.dft_cca(x, moved).mean), 6)
    1.0
    """
    first, second = _as_images(x, "x"), _as_images(y, "y")
    _check(first, second)
    dtype = torch.promote_types(first.dtype, second.dtype)
    size = tuple(map(min, first.shape[2:], second.shape[2:]))
    with full_precision():
        return _correlate(
            *(_spectrum(z.to(dtype), size, like(x)) for z in (first, second)), null, seed
        )


def spectrum(x: Array) -> Spectrum:
    """Return a layer transformed and whitened once, for `correlate_spectra` with many others.

    It takes about as much memory as the layer. Parameters and errors as in `dft_cca`.
    """
    images = _as_images(x, "x")
    with full_precision():
        return _spectrum(images, images.shape[2:], like(x))


def correlate_spectra(
    a: Spectrum, b: Spectrum, *, null: int = 0, seed: int = 0
) -> FourierCCAResult:
    """Return `dft_cca` of the layers a and b are of, whatever their sizes; it raises the same."""
    _check(a.bases[0], b.bases[0])
    with full_precision():
        return _correlate(a, b, null, seed)


def _as_images(value: Array, name: str) -> Tensor:
    layer = as_tensor(value, name).detach()
    if layer.is_complex() or layer.ndim not in (2, 4) or len(layer) < 2:
        raise ValueError(
            f"{name}: expected real (examples >= 2, channels, height, width) or (examples >= 2, "
            f"neurons), found shape {tuple(layer.shape)}, {layer.dtype}"
        )
    layer = layer if layer.is_floating_point() else layer.double()
    return layer if layer.ndim == 4 else layer[:, :, None, None]


def _check(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y):
        raise ValueError(f"y: expected the {len(x)} examples of x, found {len(y)} examples")
    if x.device != y.device:
        raise ValueError(f"y: expected the device of x, {x.device}, found {y.device}")


def _frequencies(n: int, kept: int) -> Tensor:
    """Return where, in FFT order, length n has the frequencies -kept/2 <= f < kept/2."""
    signed = (torch.arange(n) + n // 2) % n - n // 2
    return ((2 * signed >= -kept) & (2 * signed < kept)).nonzero()[:, 0]


def _spectrum(x: Tensor, size: tuple[int, int], kind: Callable) -> Spectrum:
    """Return what frequencies of `size` need of x (examples, channels, height, width)."""
    n, c, h, w = x.shape
    row, column = torch.arange(h)[:, None], torch.arange(w)
    here, mirror = column * h + row, (-column % w) * h + -row % h
    kept = torch.zeros(h, w, dtype=torch.bool)
    kept[_frequencies(h, size[0])[:, None], _frequencies(w, size[1])] = True
    lower = torch.minimum(here, mirror)
    held = lower[kept].unique()
    index, conjugate = torch.searchsorted(held, lower), here > mirror
    place = ((held % h) * (w // 2 + 1) + held // h).to(x.device)  # in what rfft2 returns
    tolerance = max(n, c, h * w) * torch.finfo(x.dtype).eps
    bases = torch.empty(len(held), n, c, dtype=x.dtype.to_complex(), device=x.device)
    step = max(1, CHUNK // (n * h * w * x.element_size()))
    for i in range(0, c, step):
        bases[..., i : i + step] = _transform(x[:, i : i + step], place, tolerance)
    # Where f = -f the transform is real but for rounding.
    bases.imag[torch.isin(held, here[here == mirror]).to(x.device)] = 0
    step = max(1, CHUNK // (n * c * bases.element_size()))
    ranks = torch.cat([_whiten(piece, tolerance) for piece in bases.split(step)])
    return Spectrum(
        bases[..., : min(n, c)], ranks, index.to(x.device), conjugate.to(x.device), kind
    )


def _transform(x: Tensor, place: Tensor, tolerance: float) -> Tensor:
    """Return the spectra (F, examples, channels), each channel's mean length over all f being 1.

    Centring commutes with the transform. A channel varying so little about its mean that its
    rounding would exceed `tolerance` is scaled down to have it there.
    """
    n, _, h, w = x.shape
    varying = centred(x.flatten(1)).view_as(x)
    # In float64, as the squares of 1e30 leave the range of float32.
    norm = partial(torch.linalg.vector_norm, dim=1, dtype=torch.float64)
    length, mean = norm(varying.transpose(0, 1).flatten(1)), norm(x.mean(0).flatten(1))
    floor = 4 * torch.finfo(x.dtype).eps * n**0.5 * mean / tolerance
    scale = (h * w) ** 0.5 / torch.maximum(length, floor).where(length > 0, 1)
    half = torch.fft.rfft2(varying, norm="ortho").flatten(2)[..., place].permute(2, 0, 1)
    return half * scale.to(x.dtype)


def _whiten(z: Tensor, tolerance: float) -> Tensor:
    """Turn z (frequencies, examples, channels) into orthonormal bases in place; return ranks."""
    q, r = torch.linalg.qr(z)
    k, c = r.shape[1:]
    z[..., :k] = q
    ranks = torch.full((len(z),), k, device=z.device)
    doubtful = torch.ones(len(z), dtype=torch.bool, device=z.device)
    if k == c:
        # The singular values of R are within 1 / |R^-1| and |R|: most often that settles its rank.
        unit = torch.eye(k, dtype=r.dtype, device=r.device).expand_as(r)
        inverse = torch.linalg.solve_triangular(r, unit, upper=True)
        norms = torch.linalg.matrix_norm(r).clamp(min=1) * torch.linalg.matrix_norm(inverse)
        doubtful = ~(tolerance * norms < 1)
    if doubtful.any():
        u, s, _ = torch.linalg.svd(r[doubtful], full_matrices=False)
        above = s > tolerance * s[:, :1].clamp(min=1)
        ranks[doubtful] = above.sum(1)
        z[doubtful, :, :k] = q[doubtful] @ (u * above[:, None])
    return ranks


def _correlate(a: Spectrum, b: Spectrum, null: int, seed: int) -> FourierCCAResult:
    as_integer(null, "null", 0)
    h, w = map(min, a.index.shape, b.index.shape)
    (i, i_flipped), (j, j_flipped) = (_crop(side, h, w) for side in (a, b))
    # Both layers' f and both layers' -f have the same correlations: conjugate x only, or neither.
    pairs, back = torch.stack([i, j, i_flipped ^ j_flipped]).unique(dim=1, return_inverse=True)
    ranks = torch.stack([a.ranks[pairs[0]], b.ranks[pairs[1]]])
    _warn(ranks, a.bases.shape[1])
    ranks = ranks.amin(0)[back]
    total = ranks.sum().clamp(min=1)
    rho = _singular_values(a.bases, b.bases, pairs)[back, : int(ranks.max())]
    drawn = []
    for draw in range(null):
        order = torch.randperm(a.bases.shape[1], generator=generator(seed, "null", draw))
        shuffled = _singular_values(a.bases, b.bases, pairs, order.to(rho.device))
        drawn.append(shuffled[back].sum() / total)
    return FourierCCAResult(
        correlations=a._kind(rho.unflatten(0, (h, w))),
        ranks=a._kind(ranks.view(h, w)),
        mean=a._kind(rho.sum() / total),
        frequency_means=a._kind((rho.sum(1) / ranks.clamp(min=1)).view(h, w)),
        null=a._kind(torch.stack(drawn)) if drawn else None,
    )


def _crop(side: Spectrum, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Return `index` and `conjugate`, flattened, of the frequencies that size (h, w) has."""
    rows, columns = (_frequencies(*sizes) for sizes in zip(side.index.shape, (h, w), strict=True))
    place = (rows[:, None] * side.index.shape[1] + columns).flatten().to(side.index.device)
    return side.index.flatten()[place], side.conjugate.flatten()[place]


def _singular_values(x: Tensor, y: Tensor, pairs: Tensor, order: Tensor | None = None) -> Tensor:
    """Return the correlations of x[i], conjugated where flipped, and y[j]."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    found = []
    for piece in pairs.split(max(1, CHUNK // (x.shape[2] * y.shape[2] * dtype.itemsize)), dim=1):
        products = []
        for i, j, flipped in piece.T.tolist():
            left, right = x[i].to(dtype), y[j].to(dtype)
            right = right if order is None else right[order]
            products.append((left.mT if flipped else left.mH) @ right)
        found.append(as_correlations(torch.linalg.svdvals(torch.stack(products))))
    return torch.cat(found)


def _warn(ranks: Tensor, examples: int) -> None:
    if ranks.max() >= examples - 1:
        warn(
            f"a layer has {ranks.max()} independent channels, all that {examples} examples span: "
            "its canonical correlations with anything are 1; take more examples, or CKA",
            stacklevel=4,
        )
    if not ranks.any(1).all():
        warn("a layer is constant over the examples: it correlates with nothing", stacklevel=4)
