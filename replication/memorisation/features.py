"""Convolutional features: of random patches, and of Gabor wavelets."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from replication._core.inputs import Array, Kind, as_integer, as_tensor, generator, like
from replication._core.precision import full_precision
from replication.memorisation._inputs import CHUNK

PATCHES = 10_000  # from which the whitening is estimated
RIDGE = 0.1  # added to the eigenvalues of the patches' covariance, as a share of their mean
THRESHOLD = 0.5  # in standard deviations of a whitened patch


def random_conv_features(
    images: Kind,
    filters: int,
    size: int = 6,
    seed: int = 0,
    source: Array | None = None,
    grid: int = 2,
) -> Kind:
    """Return features of a convolution with random patches: ReLU, then average pooling.

    Patches p of `source` at random places, whitened, are the filters: with Z = (C + 0.1 l I)^-1/2,
    C and m the covariance and mean of patches and l the mean eigenvalue of C, the filter is
    v = Z (p - m) / |Z (p - m)|, and the maps are max(+-v . Z (x - m) - 1/2, 0) (Coates and Ng 2012,
    who tune the threshold; Zhang et al. 2017, section 5, take 32,000 filters), averaged over
    `grid` x `grid` parts of the positions. Memory: at least 12 x filters x positions bytes.

    Parameters
    ----------
    images : (N, C, H, W) floating tensor or array
    size : int
        Side of a patch, at most H and W.
    source : (M, C, H', W') tensor or array, optional
        Training images to take patches from; `images` by default.
    grid : int
        At most the number of positions of a patch along H and W.

    Returns
    -------
    (N, 2 * filters * grid**2), of the kind, device and dtype of `images`.

    Examples
    --------
    >>> features = random_conv_features(torch.rand(10, 3, 16, 16), filters=8, grid=2)
    >>> tuple(features.shape)  # each filter with both signs, at 2 x 2 places
    (10, 64)
    """
    x = as_tensor(images, "images")
    given = x if source is None else as_tensor(source, "source").to(x)
    filters, size = as_integer(filters, "filters", 1), as_integer(size, "size", 1)
    grid = as_integer(grid, "grid", 1)
    for value, name in ((x, "images"), (given, "source")):
        if value.ndim != 4 or not value.is_floating_point() or value.shape[1] != x.shape[1]:
            found = f"{value.dtype} of shape {tuple(value.shape)}"
            raise ValueError(f"{name}: expected floating (N, C, H, W), found {found}")
        if size + (grid - 1 if value is x else 0) > min(value.shape[2:]):
            expected = f"room for {grid} x {grid} patches of side {size} in {name}"
            raise ValueError(f"size: expected {expected}, found {tuple(value.shape[2:])}")
    weight, bias = _filters(given, filters, size, as_integer(seed, "seed", 0))
    weight, bias = weight.to(x), bias.to(x)[:, None]
    high, wide = (side - size + 1 for side in x.shape[2:])
    step = max(1, CHUNK // (high * wide * max(weight.shape)))
    pooled = []
    with full_precision():
        for piece in x.split(step):
            maps = (weight @ F.unfold(piece, size) + bias).unflatten(2, (high, wide))
            signs = [F.relu(sign * maps - THRESHOLD) for sign in (1, -1)]
            pooled += [torch.cat([F.adaptive_avg_pool2d(s, grid) for s in signs], 1).flatten(1)]
    return like(images)(torch.cat(pooled))


def _filters(source: Tensor, filters: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the filters (filters, C size size) in float64, and what is added to their maps."""
    count, draw = max(filters, PATCHES), generator(seed, "random_conv_features")
    which, row, column = (
        torch.randint(most, (count,), generator=draw).to(source.device)
        for most in (len(source), source.shape[2] - size + 1, source.shape[3] - size + 1)
    )
    patches = source.unfold(2, size, 1).unfold(3, size, 1)[which, :, row, column]
    patches = patches.flatten(1).double()
    mean = patches.mean(0)
    centred = patches - mean
    with full_precision():
        values, vectors = torch.linalg.eigh(centred.mT @ centred / count)
        values = values + RIDGE * (values.mean() if values[-1] > 0 else 1)
        whiten = vectors * values.rsqrt() @ vectors.mT
        chosen = centred[:filters] @ whiten
        length = torch.linalg.vector_norm(chosen, dim=1, keepdim=True)
        weight = chosen / length.where(length > 0, 1) @ whiten
        return weight, -weight @ mean


def gabor_features(
    images: Tensor, orientations: int = 8, wavelengths: tuple[float, ...] = (4, 6, 9), grid: int = 7
) -> Tensor:
    """Return moduli of Gabor wavelets, averaged over a grid: (N, orientations wavelengths grid^2).

    The wavelet of wavelength l and angle t is g(u) (exp(2 pi i u . (cos t, sin t) / l) - c), g a
    Gaussian of standard deviation l / 2 and sum 1, and c such that a constant image gives 0 (Zhang
    et al. 2017, section 5, take Gabor wavelets on MNIST and name no number; these are ours).
    Channels are averaged first. `images` is (N, C, H, W), floating point.

    Examples
    --------
    >>> tuple(gabor_features(torch.rand(5, 1, 28, 28)).shape)  # 8 x 3 x 7 x 7
    (5, 1176)
    """
    if images.ndim != 4 or not images.is_floating_point():
        found = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"images: expected floating (N, C, H, W), found {found}")
    grey, found = images.mean(1, keepdim=True), list[Tensor]()
    for length in wavelengths:
        reach = math.ceil(length)
        place = torch.arange(-reach, reach + 1, dtype=torch.float64)
        down, right = torch.meshgrid(place, place, indexing="ij")
        window = torch.exp(-(down**2 + right**2) / (2 * (length / 2) ** 2))
        window /= window.sum()
        angles = torch.arange(orientations)[:, None, None] * math.pi / orientations
        phase = 2 * math.pi * (right * angles.cos() + down * angles.sin()) / length
        waves = [phase.cos(), phase.sin()]
        waves = [window * (w - (window * w).sum((1, 2), keepdim=True)) for w in waves]
        weight = torch.cat(waves)[:, None].to(grey)
        for part in grey.split(1000):  # the maps of all images would take gigabytes
            with full_precision():
                real, imaginary = F.conv2d(part, weight, padding=reach).chunk(2, 1)
            found.append(F.adaptive_avg_pool2d(torch.hypot(real, imaginary), grid).flatten(1))
    pieces = len(found) // len(wavelengths)
    rows = [torch.cat(found[i * pieces : (i + 1) * pieces]) for i in range(len(wavelengths))]
    return torch.cat(rows, 1)
