"""All pairs of four convolutional layers by DFT-CCA, each layer whitened once.

The baselines transform and whiten both layers of every pair, in NumPy over the full spectrum: by
the thin SVD of each frequency's channels, and by the inverse square roots of their covariance, as
the published code does. A third row does the same with this package, one `dft_cca` per pair.
Pairs have equal shapes, so a baseline runs one pair and its time counts six times.
"""

from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from benchmarks._timing import Row, cpu_seconds
from replication.similarity import fourier

SHAPE = (2000, 64, 16, 16)
LAYERS = 4
PAIRS = list(combinations(range(LAYERS), 2))


def layers() -> list[Tensor]:
    """Return float64 layers that mix a common signal with noise of their own."""
    source = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    common = draw(*SHAPE)
    width = SHAPE[1]
    found = []
    for _ in range(LAYERS):
        mixing = draw(width, width) / width**0.5
        found.append(torch.einsum("nchw,cd->ndhw", common, mixing).add_(draw(*SHAPE), alpha=0.5))
    return found


def transformed(x: np.ndarray) -> np.ndarray:
    """Return the centred spectrum (height, width, examples, channels)."""
    z = np.fft.fft2(x, axes=(2, 3)).transpose(2, 3, 0, 1)
    return z - z.mean(2, keepdims=True)


def by_svd(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the correlations (height, width, channels) from an SVD per layer and frequency."""
    x, y = transformed(x), transformed(y)
    rho = np.empty((*x.shape[:2], x.shape[3]))
    for f in np.ndindex(*x.shape[:2]):
        bases = []
        for z in (x[f], y[f]):
            u, s, _ = np.linalg.svd(z, full_matrices=False)
            bases.append(u[:, s > s[0] * len(z) * np.finfo(s.dtype).eps])
        rho[f] = np.linalg.svd(bases[0].conj().T @ bases[1], compute_uv=False)
    return rho


def by_covariance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the correlations from the inverse square roots of each frequency's covariances."""
    x, y = transformed(x), transformed(y)
    rho = np.empty((*x.shape[:2], x.shape[3]))
    for f in np.ndindex(*x.shape[:2]):
        roots = []
        for z in (x[f], y[f]):
            values, vectors = np.linalg.eigh(z.conj().T @ z)
            roots.append((vectors / np.sqrt(values)) @ vectors.conj().T)
        product = roots[0] @ (x[f].conj().T @ y[f]) @ roots[1]
        rho[f] = np.linalg.svd(product, compute_uv=False)
    return rho


def ours(stack: list[Tensor]) -> list[Tensor]:
    """Return the correlations of all pairs, each layer transformed and whitened once."""
    spectra = [fourier.spectrum(x) for x in stack]
    return [fourier.correlate_spectra(spectra[i], spectra[j]).correlations for i, j in PAIRS]


def rows() -> list[Row]:
    """Return the rows of this benchmark."""
    double = layers()
    single = [x.float() for x in double]
    x, y = (z.numpy() for z in double[:2])
    seconds = cpu_seconds(
        {
            "svd": lambda: by_svd(x, y),
            "covariance": lambda: by_covariance(x, y),
            "pair, float64": lambda: fourier.dft_cca(*double[:2]),
            "pair, float32": lambda: fourier.dft_cca(*single[:2]),
            "float64": lambda: ours(double),
            "float32": lambda: ours(single),
        }
    )
    exact = torch.from_numpy(by_svd(x, y))
    table = []
    for dtype, stack in (("float64", double), ("float32", single)):
        error = (fourier.dft_cca(*stack[:2]).correlations - exact).abs().max()
        for key, baseline, target in (
            ("svd", "fft2 and SVD whitening per pair, float64", ">= 6"),
            ("covariance", "fft2 and covariance whitening per pair, float64", ""),
            (f"pair, {dtype}", "dft_cca per pair", ""),
        ):
            table.append(
                Row(
                    f"DFT-CCA, all pairs of {LAYERS} layers {SHAPE}, {dtype}",
                    baseline,
                    len(PAIRS) * seconds[key] / seconds[dtype],
                    target,
                    f"{error:.0e}",
                )
            )
    return table
