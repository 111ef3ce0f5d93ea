"""Singular values of groups of activations against LAPACK's, and closed forms."""

import pytest
import torch
from _random_networks import gaussian, uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import TruncatedSVD
from torch.nn import functional as F

from replication import spectra
from replication.spectra import NoiseSpectrum, explained_variance, group_singular_values

SIGMAS = (0.0, 1e-9, 1e-6, 1e-2, 1.0)


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def noisy(sigma, copies, neurons, images=2):
    """Return groups around an image each, (images, copies, neurons) in float64."""
    return uniform(images, 1, neurons) + sigma * gaussian(images, copies, neurons, seed=1)


def deficient(rank, copies, neurons, mean=1.0, images=2):
    """Return groups whose deviations have the given rank and are as large as their mean."""
    left, right = gaussian(images, copies, rank, seed=2), gaussian(images, rank, neurons, seed=3)
    return mean * uniform(images, 1, neurons) + left @ right


def reference(groups):
    """Return both spectra from LAPACK in float64, padded with zeros to (images, copies)."""
    groups = groups.double().flatten(2)
    missing = (0, max(0, groups.shape[1] - groups.shape[2]))
    return tuple(
        F.pad(torch.linalg.svdvals(matrix), missing)
        for matrix in (groups, groups - groups.mean(1, keepdim=True))
    )


def error(groups):
    """Return the largest deviation of both spectra from LAPACK's, in units of s_1."""
    found, expected = group_singular_values(groups), reference(groups)
    largest = expected[0][:, :1]
    deviations = torch.stack(found).double() - torch.stack(expected)
    return (deviations.abs() / largest.where(largest > 0, 1)).max().item()


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(("copies", "neurons"), [(64, 4608), (16, 33), (16, 32), (16, 16), (2, 5)])
def test_full_rank_groups(sigma, copies, neurons):
    groups = noisy(sigma, copies, neurons)
    assert error(groups) <= 1e-12
    assert error(groups.float()) <= 1e-5


RANK_DEFICIENT = {
    "rank 1": lambda: deficient(1, 16, 300),
    "rank 5": lambda: deficient(5, 64, 4608),
    "rank 5, without a mean": lambda: deficient(5, 64, 600, mean=0),
    "rank 5, large mean": lambda: deficient(5, 64, 600, mean=1e4),
    "rank 20": lambda: deficient(20, 64, 4608),
    "duplicated copies": lambda: noisy(1.0, 8, 500).repeat_interleave(4, 1),
    "one copy apart": lambda: F.pad(gaussian(2, 1, 500), (0, 0, 0, 15)),
    "equal copies": lambda: gaussian(2, 1, 500).expand(2, 16, 500),
    "all dead": lambda: torch.zeros(2, 16, 500, dtype=torch.float64),
    "nearly all dead": lambda: F.pad(noisy(1.0, 16, 3), (0, 400)),
    "one neuron": lambda: noisy(0.3, 16, 1),
    "fewer neurons than copies": lambda: noisy(0.3, 16, 5),
    "as many neurons as copies": lambda: deficient(16, 16, 16),
    "just above twice as many": lambda: deficient(3, 16, 33),
}


@pytest.mark.parametrize("kind", RANK_DEFICIENT)
def test_rank_deficient_groups(kind):
    groups = RANK_DEFICIENT[kind]()
    few = groups.shape[2] <= 2 * groups.shape[1]  # decomposed themselves, with all digits
    assert error(groups) <= (1e-12 if few else 1e-7)
    assert error(groups.float()) <= 1e-5


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e12])
@pytest.mark.parametrize("sigma", [0.0, 0.01, 1.0])
def test_scales(scale, sigma):
    groups = noisy(sigma, 16, 300)
    assert error(scale * groups) <= 1e-12
    assert error((scale * groups).float()) <= 1e-5
    assert error((scale * deficient(5, 16, 300)).float()) <= 1e-5
    assert error(scale**12 * groups) <= 1e-12  # squares leave float64


def test_neurons_and_copies_of_very_different_sizes():
    groups = gaussian(2, 16, 600) * 10 ** (-5 * uniform(1, 1, 600)) * 10 ** (-3 * uniform(1, 16, 1))
    assert error(groups) <= 1e-12
    assert error(groups.relu().float()) <= 1e-5


def test_the_gram_matrix_of_the_groups_themselves_would_lose_the_small_values():
    """What the mean taken off first is for: s_2 of a group with sigma = 1e-6 keeps 8 digits."""
    groups = noisy(1e-6, 16, 300)
    expected = reference(groups)[0][:, 1:]
    found = group_singular_values(groups)[0][:, 1:]
    assert ((found - expected).abs() / expected).max() < 1e-8
    naive = torch.linalg.eigvalsh(groups @ groups.mT).clamp_min(0).sqrt().flip(-1)[:, 1:]
    assert ((naive - expected).abs() / expected).max() > 1e-5


def test_float32_groups_of_low_rank_keep_what_one_float32_product_would_lose():
    groups = deficient(5, 64, 900).float()
    assert error(groups) <= 1e-6
    once, expected = (groups @ groups.mT).double(), reference(groups)[0]
    naive = torch.linalg.eigvalsh(once).clamp_min(0).sqrt().flip(-1)
    assert ((naive - expected).abs() / expected[:, :1]).max() > 1e-5
    good, bad = noisy(0.2, 16, 300), deficient(5, 16, 300)  # in a stack, as on a GPU
    groups = torch.stack([good[0], bad[0], good[1], bad[1]]).float()
    values, expected = spectra._by_gram(groups), torch.stack(reference(groups), 1)
    assert ((values - expected).abs() <= 1e-6 * expected[:, :1, :1]).all()


@pytest.mark.parametrize("neurons", [4, 300])
def test_shape_and_order(neurons):
    groups = noisy(0.3, 6, neurons, images=3)
    found = group_singular_values(groups)
    for values in found:
        assert values.shape == (3, 6)
        assert (values[:, :-1] >= values[:, 1:]).all() and (values >= 0).all()
    assert (found[1][:, -1] <= 1e-7 * found[0][:, 0]).all()  # centring takes one dimension
    folded = group_singular_values(groups.unflatten(2, (2, neurons // 2)))
    assert torch.equal(torch.stack(folded), torch.stack(found))
    with pytest.raises(ValueError, match=r"groups: expected .*copies >= 2, neurons\), found"):
        group_singular_values(groups[:, :1])


GROUPS = st.builds(
    lambda seed, copies, neurons, size: (
        uniform(2, 1, neurons, seed=seed) + 10.0**size * gaussian(2, copies, neurons, seed=seed + 1)
    ),
    seed=st.integers(0, 2**31),
    copies=st.integers(2, 9),
    neurons=st.integers(1, 40),  # both ways of decomposing
    size=st.integers(-6, 1),
)
few = settings(max_examples=30, deadline=None, derandomize=True)


def assert_same(left, right, scale=1.0):
    left, right = (torch.stack(group_singular_values(groups)) for groups in (left, right))
    left = scale * left
    # sqrt(eps) where the group has not full rank, which these small ones may not have
    assert ((left - right).abs() <= 3e-8 * left[0, :, :1]).all()


@few
@given(GROUPS, st.integers(0, 2**31), st.sampled_from([-1e150, -3.0, 1e-150, 0.1, 7.0]))
def test_what_does_not_matter(groups, seed, factor):
    """The order and rotations of neurons, the order of copies, silent neurons; and the scale."""
    neurons, copies = groups.shape[2], groups.shape[1]
    rotation, _ = torch.linalg.qr(gaussian(neurons, neurons, seed=seed))
    assert_same(groups, groups[..., torch.randperm(neurons, generator=source(seed))])
    assert_same(groups, groups[:, torch.randperm(copies, generator=source(seed))])
    assert_same(groups, groups @ rotation)
    assert_same(groups, F.pad(groups, (0, 1 + seed % 80)))
    assert_same(groups, factor * groups, scale=abs(factor))


@few
@given(GROUPS, st.sampled_from([1e-150, 1.0, 1e150]))
def test_squares_sum_to_the_frobenius_norm_and_shares_to_one(groups, factor):
    whole, centred = group_singular_values(groups)
    squares = groups.square().sum((1, 2))
    torch.testing.assert_close(whole.square().sum(1), squares)
    deviations = groups - groups.mean(1, keepdim=True)
    torch.testing.assert_close(centred.square().sum(1), deviations.square().sum((1, 2)))
    shares = explained_variance(factor * whole)
    torch.testing.assert_close(shares, explained_variance(whole))
    torch.testing.assert_close(shares.sum(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(shares[:, 0], whole[:, 0] ** 2 / squares)


def test_explained_variance_of_known_values():
    values = torch.tensor([[4.0, 3.0], [0.0, 0.0], [1e30, 0.0]])
    expected = torch.tensor([[0.64, 0.36], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(explained_variance(values), expected, rtol=0, atol=1e-7)
    found = NoiseSpectrum({"a": values, "b": values.flip(0)}, {})
    assert found.layers == ("a", "b")
    assert torch.equal(found.explained_variance("b"), explained_variance(values.flip(0)))


@pytest.mark.parametrize("neurons", [10, 300])
def test_rank_one_groups(neurons):
    """A = a b^T has s_1 = |a| |b|, and centred s_1 = |a - mean a| |b|; the rest is 0."""
    a, b = gaussian(2, 8, 1), gaussian(2, 1, neurons, seed=1)
    whole, centred = group_singular_values(a * b)
    size = b.norm(dim=(1, 2))
    torch.testing.assert_close(whole[:, 0], a.norm(dim=(1, 2)) * size)
    torch.testing.assert_close(centred[:, 0], (a - a.mean(1, keepdim=True)).norm(dim=(1, 2)) * size)
    assert (whole[:, 1:] <= 1e-7 * whole[:, :1]).all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("sigma", [1e-3, 0.1, 3.0])
def test_projected_variance_is_that_of_scikit_learn(sigma, dtype, tolerance):
    groups = noisy(sigma, 12, 40).to(dtype)
    found = spectra.projected_variance(groups)
    assert found.dtype == dtype
    for group, shares in zip(groups, found, strict=True):
        svd = TruncatedSVD(11, algorithm="arpack", random_state=0).fit(group.double().numpy())
        expected = torch.from_numpy(svd.explained_variance_ratio_).to(dtype)
        torch.testing.assert_close(shares[:11], expected, rtol=1e-6, atol=tolerance)
    equal = torch.ones(1, 4, 7, dtype=dtype) / 3
    assert not spectra.projected_variance(equal).any()
    with pytest.raises(ValueError, match="groups: expected floating"):
        spectra.projected_variance(torch.ones(3, 4))
