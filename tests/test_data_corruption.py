"""Corruption of labels and images: how much is changed, how, and by which seed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from replication import data

# Label corruption

labellings = st.lists(st.integers(0, 6), min_size=1, max_size=200)
fractions = st.floats(0, 1)
seeds = st.integers(0, 2**40)


@given(labels=labellings, fraction=fractions, seed=seeds)
@settings(deadline=None)
def test_shuffled_labels_keep_the_marginal(labels, fraction, seed):
    labels = torch.tensor(labels)
    before = labels.clone()
    out = data.corrupt_labels(labels, fraction, 7, seed, keep_marginal=True)
    assert torch.equal(labels, before) and out.dtype == torch.int64
    assert torch.equal(out.bincount(minlength=7), labels.bincount(minlength=7))
    assert int((out != labels).sum()) <= round(fraction * len(labels))


@given(labels=labellings, low=fractions, high=fractions, seed=seeds)
@settings(deadline=None)
def test_growing_fractions_corrupt_nested_sets(labels, low, high, seed):
    low, high = sorted((low, high))
    labels = torch.tensor(labels)
    less, more = (data.corrupt_labels(labels, f, 7, seed) for f in (low, high))
    touched = less != labels
    assert torch.equal(less[touched], more[touched])
    assert less.min() >= 0 and less.max() < 7
    assert torch.equal(data.corrupt_labels(labels, 0, 7, seed), labels)
    everything = data.corrupt_labels(labels, 1, 7, seed)
    changed = more != labels
    assert torch.equal(more[changed], everything[changed])


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 1.0])
def test_rate_of_corruption(fraction):
    """Zhang: a share p (1 - 1/k) is wrong on average, within binomial bounds, p < 1e-6."""
    n, k = 60_000, 10
    labels = torch.arange(n) % k
    out = data.corrupt_labels(labels, fraction, k, 11)
    wrong = int((out != labels).sum())
    assert stats.binomtest(wrong, n, fraction * (1 - 1 / k)).pvalue > 1e-6
    drawn = out[out != labels]
    offsets = ((drawn - labels[out != labels]) % k).bincount(minlength=k)[1:]
    assert stats.chisquare(offsets.numpy()).pvalue > 1e-6  # the new class is uniform
    # control: the count is binomial, not fixed, and unlike the other kind's
    counts = {int((data.corrupt_labels(labels, 0.5, k, s) != labels).sum()) for s in range(5)}
    assert len(counts) > 1


def test_exactly_the_fraction_is_shuffled():
    labels = torch.arange(1000)  # all distinct, so a fixed point of the shuffle is rare
    moved = [
        int((data.corrupt_labels(labels, 0.3, 1000, s, keep_marginal=True) != labels).sum())
        for s in range(20)
    ]
    assert max(moved) <= 300 and min(moved) >= 290  # about one fixed point
    assert np.mean(moved) > 297
    clean = data.corrupt_labels(labels, 0, 1000, 0, keep_marginal=True)
    assert torch.equal(clean, labels)


@pytest.mark.parametrize("keep", [False, True])
def test_labels_follow_the_seed_and_come_back_in_kind(keep):
    labels = torch.arange(100) % 10
    out = data.corrupt_labels(labels, 0.5, 10, 3, keep)
    assert torch.equal(out, data.corrupt_labels(labels, 0.5, 10, 3, keep))
    assert not torch.equal(out, data.corrupt_labels(labels, 0.5, 10, 4, keep))
    state = torch.random.get_rng_state()
    for dtype in (np.int64, np.int32, np.uint8):
        array = data.corrupt_labels(labels.numpy().astype(dtype), 0.5, 10, 3, keep)
        assert isinstance(array, np.ndarray) and array.tolist() == out.tolist()
    assert torch.equal(state, torch.random.get_rng_state())  # no global randomness


@pytest.mark.parametrize(
    "change, what",
    [
        ({"fraction": -0.1}, "fraction"),
        ({"fraction": 1.01}, "fraction"),
        ({"fraction": float("nan")}, "fraction"),
        ({"fraction": "half"}, "fraction"),
        ({"labels": torch.tensor([0, 3])}, "labels: expected 0 to 2, found 0 to 3"),
        ({"labels": torch.tensor([-1, 0])}, "labels: expected 0 to 2, found -1 to 0"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels: expected integers, found .*float32"),
        ({"labels": torch.tensor([True])}, "labels: expected integers, found .*bool"),
        ({"labels": np.array(["a"])}, "labels: expected integers"),
        ({"labels": torch.zeros(2, 2, dtype=torch.int64)}, r"labels: .*\(2, 2\)"),
        ({"labels": torch.zeros(0, dtype=torch.int64)}, "labels"),
        ({"labels": [0, 1]}, "labels"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 2.5}, "num_classes"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
    ],
)
def test_wrong_label_corruptions(change, what):
    given = {"labels": torch.tensor([0, 1, 2]), "fraction": 0.5, "num_classes": 3, "seed": 0}
    with pytest.raises(ValueError, match=what):
        data.corrupt_labels(**{**given, **change})


# Image corruption


def pictures(count=40, channels=3, height=6, width=5):
    size = count * channels * height * width
    return torch.arange(size, dtype=torch.float32).reshape(count, channels, height, width) / size


def permutations(before, after):
    """Return the permutations of the images, read off their first channels; all must agree."""
    flat, shuffled = before.flatten(2), after.flatten(2)
    order = [torch.searchsorted(a[0], b[0]) for a, b in zip(flat, shuffled, strict=True)]
    for one, a, b in zip(order, flat, shuffled, strict=True):
        assert torch.equal(a[:, one], b)
    return {tuple(one.tolist()) for one in order}


def test_shuffled_pixels_use_one_permutation_for_train_and_test():
    train, test = pictures(), pictures(7)
    shuffled = permutations(train, data.corrupt_images(train, "shuffled_pixels", 5))
    assert len(shuffled) == 1
    assert permutations(test, data.corrupt_images(test, "shuffled_pixels", 5)) == shuffled
    assert permutations(train, data.corrupt_images(train, "shuffled_pixels", 6)) != shuffled
    grey = pictures(3, channels=1)
    assert permutations(grey, data.corrupt_images(grey, "shuffled_pixels", 5)) == shuffled


def test_random_pixels_permute_every_image_anew():
    images = pictures()
    out = data.corrupt_images(images, "random_pixels", 5)
    assert len(permutations(images, out)) == len(images)
    assert torch.equal(out[:11], data.corrupt_images(images[:11], "random_pixels", 5))


def test_random_pixels_do_not_depend_on_chunks():
    images = torch.rand(9, 1, 1024, 512, generator=torch.Generator().manual_seed(0))
    out = data.corrupt_images(images, "random_pixels", 0)  # four images a chunk
    assert torch.equal(out.flatten(1).sort().values, images.flatten(1).sort().values)
    assert torch.equal(out[:5], data.corrupt_images(images[:5], "random_pixels", 0))
    assert not torch.equal(out[4], out[0])


def test_random_pixels_are_uniform():
    """Where the first pixel goes is uniform over the positions (chi-square, p > 1e-6)."""
    images = torch.zeros(20_000, 1, 4, 4)
    images[:, :, 0, 0] = 1
    places = data.corrupt_images(images, "random_pixels", 1).sum(0).flatten()
    assert places.sum() == 20_000 and stats.chisquare(places.numpy()).pvalue > 1e-6


def test_gaussian_pixels_have_the_mean_and_variance_of_each_channel():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4000, 3, 5, 5, generator=generator) * torch.tensor([1.0, 0.5, 0.1])[
        :, None, None
    ] + torch.tensor([0.0, 0.3, 0.8])[:, None, None]  # fmt: skip
    out = data.corrupt_images(images, "gaussian", 3)
    n = images[:, 0].numel()
    for c in range(3):
        mean, std = images[:, c].mean(), images[:, c].std()
        assert abs(out[:, c].mean() - mean) < 5 * std / n**0.5
        assert abs(out[:, c].std() / std - 1) < 5 / (2 * n) ** 0.5
        drawn = ((out[:, c] - mean) / std).flatten().numpy()
        assert stats.kstest(drawn, "norm").pvalue > 1e-6
    flat = out[:, :, 0].flatten(1)
    assert (torch.corrcoef(flat.T) - torch.eye(flat.shape[1])).abs().max() < 0.1
    assert not torch.equal(out, data.corrupt_images(images, "gaussian", 4))


@pytest.mark.parametrize("kind", data.KINDS)
def test_images_come_back_in_kind(kind):
    images = pictures()
    before = images.clone()
    out = data.corrupt_images(images, kind, 1)
    assert torch.equal(images, before) and out.shape == images.shape and out.dtype == images.dtype
    assert torch.equal(out, data.corrupt_images(images, kind, 1))
    array = data.corrupt_images(images.numpy(), kind, 1)
    assert isinstance(array, np.ndarray) and np.array_equal(array, out.numpy())
    frozen = images.numpy().copy()
    frozen.flags.writeable = False
    assert np.array_equal(data.corrupt_images(frozen, kind, 1), array)
    assert data.corrupt_images(images.double(), kind, 1).dtype == torch.float64
    constant = torch.full((3, 1, 4, 4), 0.25)
    assert torch.equal(data.corrupt_images(constant, kind, 1), constant)


@pytest.mark.parametrize(
    "change, what",
    [
        ({"images": torch.zeros(3, 28, 28)}, r"images: .*\(3, 28, 28\)"),
        ({"images": torch.zeros(0, 1, 2, 2)}, "images"),
        ({"images": torch.zeros(1, 1, 2, 2, dtype=torch.uint8)}, "images: .*uint8"),
        ({"images": torch.full((1, 1, 2, 2), float("nan"))}, "images: .*NaN"),
        ({"images": "x"}, "images"),
        ({"kind": "shuffled"}, "kind: .*'shuffled'.*'shuffled_pixels'"),
        ({"kind": None}, "kind"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_image_corruptions(change, what):
    with pytest.raises(ValueError, match=what):
        data.corrupt_images(**{"images": torch.ones(2, 1, 2, 2), "kind": "gaussian", "seed": 0,
                               **change})  # fmt: skip
