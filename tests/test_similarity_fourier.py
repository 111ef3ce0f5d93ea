"""DFT-CCA: parity with the reference and with plain NumPy, theory, invariances, degenerate input.

Where the values of `reference/fourier.npz` come from is told in `reference/README.md`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.similarity import cca, compare, dft_cca, fourier

REFERENCE = np.load(Path(__file__).parent / "reference" / "fourier.npz")
CASES = sorted({key.split("/")[0] for key in REFERENCE.files})
DTYPES = pytest.mark.parametrize(("dtype", "bound"), [("f4", 5e-4), ("f8", 1e-9)])
SIZES = [((6, 6), (6, 6)), ((5, 5), (5, 5)), ((8, 8), (4, 4)), ((8, 8), (5, 5)), ((7, 7), (4, 4))]
SIZES += [((7, 7), (3, 3)), ((8, 3), (4, 6)), ((2, 1), (6, 6)), ((1, 1), (5, 4))]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def pair(n=40, cx=3, cy=4, size=(6, 6), seed=0, noise=1.0):
    """Return layers that share three channels of signal."""
    r = np.random.default_rng(seed)
    z = r.normal(size=(n, 3, *size))
    x = np.einsum("nchw,cd->ndhw", z, r.normal(size=(3, cx)))
    y = np.einsum("nchw,cd->ndhw", z, r.normal(size=(3, cy)))
    return x + noise * r.normal(size=x.shape) + 2, y + noise * r.normal(size=y.shape) - 1


def mixed(x, seed=0):
    """Return x with its channels multiplied by an invertible, well-conditioned matrix."""
    c = x.shape[1]
    mixing = np.linalg.qr(draw(c, c, seed=seed))[0] * np.linspace(0.5, 2, c)
    return np.einsum("nchw,cd->ndhw", x, mixing)


def kept(n, size):
    """Return where fftfreq(n) holds -size/2 <= f < size/2."""
    f = np.fft.fftfreq(n, 1 / n)
    return np.flatnonzero((f >= -size / 2 - 1e-9) & (f < size / 2 - 1e-9))


def naive(x, y):
    """Return the correlations over the full spectrum, one complex SVD per layer and frequency."""
    size = np.minimum(x.shape[2:], y.shape[2:])
    spectra = []
    for z in (x, y):
        f = np.fft.fft2(z, axes=(2, 3)).transpose(2, 3, 0, 1)
        f = f[np.ix_(kept(z.shape[2], size[0]), kept(z.shape[3], size[1]))]
        spectra.append(f - f.mean(2, keepdims=True))
    rho = np.zeros((*size, min(x.shape[1], y.shape[1])))
    for f in np.ndindex(*size):
        u, v = (np.linalg.svd(z[f], full_matrices=False)[0] for z in spectra)
        rho[f] = np.linalg.svd(u.conj().T @ v, compute_uv=False)
    return rho


@pytest.mark.parametrize("case", CASES)
def test_reference_values(case):
    x, y = (REFERENCE[f"{case}/acts{i}"].transpose(0, 3, 1, 2) for i in (1, 2))
    expected = REFERENCE[f"{case}/complex128/coef"]
    found = dft_cca(x, y)
    rows, columns = REFERENCE[f"{case}/complex128/location"].T
    assert np.abs(found.correlations[rows, columns] - expected).max() < 1e-12
    assert found.mean == pytest.approx(expected.mean(), abs=1e-12)
    single = dft_cca(x.astype(np.float32), y.astype(np.float32))
    assert np.abs(single.correlations[rows, columns] - expected).max() < 1e-5


@pytest.mark.parametrize("first, second", SIZES, ids=str)
def test_half_spectrum_equals_the_full_one(first, second, monkeypatch):
    x, y = draw(25, 3, *first), draw(25, 4, *second, seed=1)
    h, w = np.minimum(first, second)
    x[:, :, :h, :w] += y[:, :3, :h, :w]
    expected = naive(x, y)
    found = dft_cca(x, y)
    assert np.abs(found.correlations - expected).max() < 1e-10
    assert found.mean == pytest.approx(expected.mean(), abs=1e-10)
    assert np.abs(found.frequency_means - expected.mean(2)).max() < 1e-10
    assert (found.ranks == 3).all()
    assert np.abs(dft_cca(y, x).correlations - expected).max() < 1e-10
    monkeypatch.setattr(fourier, "CHUNK", 1)  # pieces change nothing
    assert np.abs(dft_cca(x, y).correlations - found.correlations).max() < 1e-14


@pytest.mark.parametrize("size", [(6, 6), (5, 5), (4, 7), (1, 1)], ids=str)
def test_each_frequency_is_held_once_and_spans_the_transform(size):
    x = draw(9, 2, *size)
    held = fourier.spectrum(torch.from_numpy(x))
    counts = held.index.flatten().bincount(minlength=len(held.bases))
    rows, columns = (torch.arange(n) for n in size)
    own = ((2 * rows) % size[0] == 0)[:, None] & ((2 * columns) % size[1] == 0)
    assert (counts[held.index] == torch.where(own, 1, 2)).all()
    assert not held.conjugate[own].any() and int(held.conjugate.sum()) == int((counts == 2).sum())
    assert (held.bases[held.index[own]].imag == 0).all()
    f = np.fft.fft2(x, axes=(2, 3))
    f -= f.mean(0)
    for i, j in np.ndindex(size):
        basis = held.bases[held.index[i, j]].numpy()
        basis = basis.conj() if held.conjugate[i, j] else basis
        assert np.abs(basis.conj().T @ basis - np.eye(2)).max() < 1e-13
        assert np.abs(basis @ (basis.conj().T @ f[:, :, i, j]) - f[:, :, i, j]).max() < 1e-12


def closed_layers(images, channels, size, seed=0):
    """Return two circular convolutions, with ReLU, of all cyclic shifts of a few random images."""
    source = torch.Generator().manual_seed(seed)
    z = torch.randn(images, 1, size, size, generator=source, dtype=torch.float64)
    shifts = [torch.roll(z, (i, j), (2, 3)) for i in range(size) for j in range(size)]
    z = torch.cat(shifts)
    layers = []
    for c in channels:
        kernel = torch.randn(c, 1, 3, 3, generator=source, dtype=torch.float64)
        padded = torch.nn.functional.pad(z, (1, 1, 1, 1), mode="circular")
        layers.append(torch.relu(torch.nn.functional.conv2d(padded, kernel)))
    return layers


@pytest.mark.parametrize(("size", "closed"), [(4, True), (5, True), (4, False)])
def test_on_translation_closed_data_it_is_full_cca(size, closed):
    x, y = closed_layers(12, (3, 4), size)
    if not closed:
        part = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        x, y = (z[part[: 3 * len(x) // 4]] for z in (x, y))
    blocks = dft_cca(x, y).correlations.flatten().sort(descending=True).values
    full = cca(x.flatten(1), y.flatten(1)).correlations
    assert full.min() > 0.05 and full.mean() < 0.99
    error = (blocks - full).abs().max()
    assert error < 1e-8 if closed else error > 0.01


def test_a_dense_layer_meets_the_spatial_means():
    x, _ = pair(40, 4, size=(6, 5))
    dense = x.mean((2, 3)) @ draw(4, 3) + 0.1 * draw(40, 3, seed=2)
    expected = cca(x.mean((2, 3)), dense)
    for layers in ((x, dense), (dense, x), (x.mean((2, 3)), dense)):
        found = dft_cca(*layers)
        assert found.correlations.shape == (1, 1, 3)
        assert np.abs(found.correlations[0, 0] - expected.correlations).max() < 1e-12
        assert found.mean == pytest.approx(expected.mean, abs=1e-12)


def test_one_channel_is_the_modulus_of_the_coherence():
    x, y = pair(30, 1, 1)
    f, g = (np.fft.fft2(z[:, 0] - z[:, 0].mean(0)) for z in (x, y))
    lengths = np.linalg.norm(f, axis=0) * np.linalg.norm(g, axis=0)
    expected = np.abs((f.conj() * g).sum(0)) / lengths
    assert np.abs(dft_cca(x, y).correlations[..., 0] - expected).max() < 1e-12


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_properties(seed, size, channels):
    x, y = pair(20, *channels, size=size, seed=seed)
    found = dft_cca(x, y)
    rho, k = found.correlations, min(channels)
    assert rho.shape == (*size, k) and rho.min() >= 0 and rho.max() <= 1
    assert (np.diff(rho, axis=2) <= 1e-12).all()
    assert np.abs(rho - naive(x, y)).max() < 1e-9
    mirror = np.roll(rho[::-1, ::-1], (1, 1), (0, 1))
    assert np.array_equal(rho, mirror)
    assert np.abs(rho - dft_cca(y, x).correlations).max() < 1e-9


def test_what_it_ignores():
    x, y = pair()
    expected = dft_cca(x, y).correlations
    scales = np.array([1e-12, 1.0, 1e12])[:, None, None]
    for same in (
        x[:, [2, 0, 1]],
        -3 * x,
        x + draw(3, 6, 6),
        x * scales,
        mixed(x),
        np.roll(x, (2, 5), (2, 3)),
        np.concatenate([x, x[:, :1] - x[:, 1:2]], 1),
        np.concatenate([x, np.full_like(x[:, :2], 0.1)], 1),
    ):
        assert np.abs(dft_cca(same, y).correlations - expected).max() < 1e-9
    flipped = dft_cca(x[:, :, ::-1], y[:, :, ::-1])  # f becomes -f along one axis, up to phase
    assert flipped.mean == pytest.approx(expected.mean(), abs=1e-12)


def test_what_it_does_not_ignore():
    x, y = pair(noise=0.1)
    expected = dft_cca(x, y).mean
    r = np.random.default_rng(0)
    jittered = np.stack([np.roll(z, r.integers(0, 6, 2), (1, 2)) for z in x])
    for other in (jittered, x[:, :, r.permutation(6)], x[r.permutation(len(x))]):
        assert dft_cca(other, y).mean < expected - 0.1


@DTYPES
def test_identical_layers_are_exactly_one(dtype, bound):
    x = pair(60, 8, size=(7, 6))[0].astype(dtype)
    found = dft_cca(x, x)
    assert (found.correlations == 1).all() and found.mean == 1
    assert dft_cca(x, mixed(x).astype(dtype)).mean == pytest.approx(1, abs=bound / 10)


@DTYPES
def test_scales_and_dead_channels_change_nothing(dtype, bound):
    x, y = (z.astype(dtype) for z in pair())
    expected = dft_cca(x, y)
    for scale in (1e-30, 1e-12, 1e12, 1e30):
        found = dft_cca((scale * x).astype(dtype), (y / scale).astype(dtype))
        assert np.abs(found.correlations - expected.correlations).max() < bound
    dead = np.concatenate([x[:, :1], np.zeros_like(x[:, :1]), x[:, 1:]], 1)
    dead = np.concatenate([dead, np.full_like(x[:, :1], 1e6), x[:, :1]], 1)
    found = dft_cca(dead, y)
    assert (found.ranks == 3).all()
    assert np.abs(found.correlations - expected.correlations).max() < bound / 50
    assert found.mean == pytest.approx(expected.mean, abs=bound / 50)


def band_limited(x, limit):
    f = np.fft.fft2(x, axes=(2, 3))
    rows, columns = (np.abs(np.fft.fftfreq(n, 1 / n)) > limit for n in x.shape[2:])
    f[:, :, rows] = 0
    f[:, :, :, columns] = 0
    return np.fft.ifft2(f, axes=(2, 3)).real


@pytest.mark.parametrize("offset", [0, 100])
@DTYPES
def test_empty_bands_have_rank_zero(dtype, bound, offset):
    x, y = pair(size=(8, 8))
    units = np.array([1e-12, 1.0, 1e12])[:, None, None]
    limited = ((band_limited(x - 2, 2) + offset) * units).astype(dtype)  # bands hold its rounding
    found, expected = dft_cca(limited, y.astype(dtype)), dft_cca(x, y).correlations
    low = np.abs(np.fft.fftfreq(8, 1 / 8)) <= 2
    low = low[:, None] & low
    assert (found.ranks[low] == 3).all() and (found.ranks[~low] == 0).all()
    assert (found.correlations[~low] == 0).all() and (found.frequency_means[~low] == 0).all()
    assert np.abs(found.correlations[low] - expected[low]).max() < bound
    assert found.mean == pytest.approx(expected[low].mean(), abs=bound)


@DTYPES
def test_one_channel_without_a_band_lowers_the_rank_there(dtype, bound):
    x, y = pair(size=(8, 8))
    x[:, 1:2] = band_limited(x[:, 1:2], 2)
    found = dft_cca(x.astype(dtype), y.astype(dtype))
    assert found.ranks[0, 0] == 3 and found.ranks[4, 4] == 2
    alone = dft_cca(x[:, [0, 2]], y).correlations[4, 4]
    assert found.correlations.shape == (8, 8, 3) and found.correlations[4, 4, 2] == 0
    assert np.abs(found.correlations[4, 4, :2] - alone).max() < bound
    total = found.correlations.sum(dtype=np.float64) / found.ranks.sum()
    assert found.mean == pytest.approx(total, rel=1e-6)


@DTYPES
def test_images_without_structure_have_only_the_zero_frequency(dtype, bound):
    flat, y = np.ones((1, 1, 6, 6)) * draw(40, 3, 1, 1), pair()[1]
    found = dft_cca(flat.astype(dtype), y.astype(dtype))
    assert found.ranks[0, 0] == 3 and found.ranks.sum() == 3
    assert found.mean == pytest.approx(cca(flat[:, :, 0, 0], y.mean((2, 3))).mean, abs=1e-5)


def test_a_layer_constant_over_the_examples_correlates_with_nothing():
    x, y = pair()
    with pytest.warns(UserWarning, match="^x: constant") as caught:
        found = dft_cca(np.broadcast_to(x[:1], x.shape), y)
    assert caught[0].filename == __file__
    assert found.mean == 0 and found.correlations.shape == (6, 6, 0) and not found.ranks.any()
    assert np.isfinite(found.frequency_means).all()


@pytest.mark.parametrize("channels", [9, 10, 25])
def test_as_many_channels_as_examples_warn_but_not_those_of_low_rank(channels):
    x, y = draw(10, channels, 4, 4), draw(10, 2, 4, 4, seed=1)
    with pytest.warns(UserWarning, match="^x: spans all 10"):
        found = dft_cca(x, y)
    assert found.mean == pytest.approx(1, abs=1e-12) and (found.ranks == 2).all()
    x, y = pair(20, 2)
    found = dft_cca(np.einsum("nchw,cd->ndhw", x, draw(2, 50)), y)
    assert (found.ranks == 2).all()
    assert np.abs(found.correlations - dft_cca(x, y).correlations).max() < 1e-10


def test_independent_noise_lies_at_its_null():
    x, y = draw(300, 4, 6, 6), draw(300, 4, 6, 6, seed=1)
    found = compare({"x": x}, {"y": y}, "dft_cca", null=5, seed=3)
    assert found.maxima.shape == (5,) and found.maxima.std() < 0.01
    assert abs(found.values - found.null) < 0.01 and found.values < 0.15
    x, y = pair(300)
    related = compare({"x": x}, {"y": y}, "dft_cca", null=5)
    assert related.values > related.maxima.max() + 0.3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_kind_dtype_and_layout(dtype):
    x, y = (torch.from_numpy(z).to(dtype).requires_grad_() for z in pair(200, 16, 12))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = dft_cca(x, y)
    for value in (found.correlations, found.mean, found.frequency_means):
        assert value.dtype == wide and not value.requires_grad
    assert found.ranks.dtype == torch.int64
    exact = dft_cca(x.double(), y.double())
    assert (found.correlations - exact.correlations).abs().max() < 5e-4
    assert found.mean.item() == pytest.approx(exact.mean.item(), abs=1e-5)
    last = dft_cca(x.detach().to(memory_format=torch.channels_last), y).correlations
    assert (last - found.correlations).abs().max() < (1e-12 if wide == torch.float64 else 1e-4)
    if dtype != torch.bfloat16:
        values = dft_cca(x.detach().numpy(), y)
        for value in (values.correlations, values.mean, values.frequency_means):
            assert isinstance(value, np.ndarray) and value.dtype == str(wide).split(".")[1]
        assert np.array_equal(values.correlations, found.correlations.numpy())


def test_bad_input():
    with pytest.raises(ValueError, match=r"x: .* >= 2.*height, width\), found \(10, 3, 4\)"):
        dft_cca(draw(10, 3, 4), draw(10, 2, 4, 4))


@pytest.mark.gpu
@DTYPES
def test_gpu_equals_cpu(dtype, bound):
    x, y = (torch.from_numpy(z.astype(dtype)) for z in pair(200, 16, 12, (8, 7)))
    for other in (y, y[..., :4], y.mean((2, 3))):
        found, expected = dft_cca(x.cuda(), other.cuda()), dft_cca(x, other)
        assert found.correlations.is_cuda
        assert (found.correlations.cpu() - expected.correlations).abs().max() < bound
        assert torch.equal(found.ranks.cpu(), expected.ranks)
