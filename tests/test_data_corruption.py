"""Corruption and preprocessing: how much is changed, how, and by which seed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from replication import data

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
    labels = torch.tensor(labels)
    none, less, more, all_of_them = (
        data.corrupt_labels(labels, f, 7, seed) for f in (0, *sorted((low, high)), 1)
    )
    assert torch.equal(none, labels) and less.min() >= 0 and less.max() < 7
    for smaller, larger in ((less, more), (more, all_of_them)):
        touched = smaller != labels
        assert torch.equal(smaller[touched], larger[touched])


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_rate_of_corruption(fraction):
    """Zhang: a share p (1 - 1/k) is wrong on average, within binomial bounds, p < 1e-6."""
    n, k = 60_000, 10
    labels = torch.arange(n) % k
    out = data.corrupt_labels(labels, fraction, k, 11)
    wrong = out != labels
    assert stats.binomtest(int(wrong.sum()), n, fraction * (1 - 1 / k)).pvalue > 1e-6
    offsets = ((out - labels)[wrong] % k).bincount(minlength=k)[1:]
    assert stats.chisquare(offsets.numpy()).pvalue > 1e-6  # the new class is uniform


def test_exactly_the_fraction_is_shuffled():
    labels = torch.arange(1000)  # all distinct, so a fixed point of the shuffle is rare
    moved = [
        int((data.corrupt_labels(labels, 0.3, 1000, s, keep_marginal=True) != labels).sum())
        for s in range(20)
    ]
    assert max(moved) <= 300 and min(moved) >= 290 and np.mean(moved) > 297  # one fixed point
    assert torch.equal(data.corrupt_labels(labels, 0, 1000, 0, keep_marginal=True), labels)


@pytest.mark.parametrize("keep", [False, True])
def test_labels_follow_the_seed_and_come_back_in_kind(keep):
    labels, state = torch.arange(100) % 10, torch.random.get_rng_state()
    out = data.corrupt_labels(labels, 0.5, 10, 3, keep)
    assert not torch.equal(out, data.corrupt_labels(labels, 0.5, 10, 4, keep))
    array = data.corrupt_labels(labels.numpy().astype(np.uint8), 0.5, 10, 3, keep)
    assert isinstance(array, np.ndarray) and array.tolist() == out.tolist()
    assert torch.equal(state, torch.random.get_rng_state())  # no global randomness


def ramp(count=40, channels=3, height=6, width=5):
    size = count * channels * height * width
    return torch.arange(size, dtype=torch.float32).reshape(count, channels, height, width) / size


def permutations(before, after):
    """Return the permutations of the images, read off their first channels; all must agree."""
    flat, shuffled = before.flatten(2), after.flatten(2)
    order = [torch.searchsorted(a[0], b[0]) for a, b in zip(flat, shuffled, strict=True)]
    for permutation, a, b in zip(order, flat, shuffled, strict=True):
        assert torch.equal(a[:, permutation], b)
    return {tuple(permutation.tolist()) for permutation in order}


def test_shuffled_pixels_use_one_permutation_for_train_and_test():
    train, test, grey = ramp(), ramp(7), ramp(3, channels=1)
    shuffled = permutations(train, data.corrupt_images(train, "shuffled_pixels", 5))
    assert len(shuffled) == 1
    for images in (test, grey):
        assert permutations(images, data.corrupt_images(images, "shuffled_pixels", 5)) == shuffled
    assert permutations(train, data.corrupt_images(train, "shuffled_pixels", 6)) != shuffled


def test_random_pixels_permute_every_image_anew_whatever_the_chunks():
    images = ramp()
    out = data.corrupt_images(images, "random_pixels", 5)
    assert len(permutations(images, out)) == len(images)
    assert torch.equal(out[:11], data.corrupt_images(images[:11], "random_pixels", 5))
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
    scale, shift = torch.tensor([[1.0, 0.5, 0.1], [0.0, 0.3, 0.8]])[..., None, None]
    images = torch.rand(4000, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * scale + shift
    out = data.corrupt_images(images, "gaussian", 3)
    n = images[:, 0].numel()
    for c in range(3):
        mean, std = images[:, c].mean(), images[:, c].std()
        assert abs(out[:, c].mean() - mean) < 5 * std / n**0.5
        assert abs(out[:, c].std() / std - 1) < 5 / (2 * n) ** 0.5
        assert stats.kstest(((out[:, c] - mean) / std).flatten().numpy(), "norm").pvalue > 1e-6
    flat = out[:, :, 0].flatten(1)
    assert (torch.corrcoef(flat.T) - torch.eye(flat.shape[1])).abs().max() < 0.1
    assert not torch.equal(out, data.corrupt_images(images, "gaussian", 4))


@pytest.mark.parametrize(
    ("height", "width", "size", "top", "left"),
    [(32, 32, 28, 2, 2), (28, 28, 28, 0, 0), (5, 5, 2, 1, 1), (5, 5, 3, 1, 1), (4, 9, 3, 0, 3)],
)
def test_crop_keeps_the_pixels_around_the_centre(height, width, size, top, left):
    images = ramp(2, 3, height, width)
    expected = images[:, :, top : top + size, left : left + size].clone()
    cut = data.centre_crop(images, size)
    assert torch.equal(cut, expected)
    cut.zero_()  # of a copy
    assert torch.equal(images, ramp(2, 3, height, width))


def test_whitening_is_the_formula_image_by_image():
    images = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)).numpy()
    images[1] = images[1] * 1e-3 + 0.5  # less contrast than 1 / sqrt(D)
    images[2] = 40 * images[2] - 50  # neither brightness nor contrast matters above
    expected = [(x - x.mean()) / max(x.std(), 1 / np.sqrt(x.size)) for x in images.astype(float)]
    np.testing.assert_allclose(data.whiten_images(images), expected, atol=1e-4)
    assert np.std(expected[1]) < 0.01
    assert data.whiten_images(torch.full((1, 3, 28, 28), 0.3)).abs().max() < 1e-5


def split(side=8):
    halves = [data.Examples(ramp(n, 3, side, side), torch.arange(n) % 10) for n in (12, 6)]
    return data.Split(*halves, "cifar10", tuple("0123456789"), "made up", available=(50_000, 6))


def test_preprocessing_crops_then_whitens_both_halves_and_says_so():
    whole = split()
    done = data.preprocess(whole, crop=6, whiten=True)
    for old, new in ((whole.train, done.train), (whole.test, done.test)):
        assert torch.equal(new.images, data.whiten_images(data.centre_crop(old.images, 6)))
        assert torch.equal(new.labels, old.labels)
    assert whole.train.images.shape[-1] == 8
    steps = "centre crop 6x6, whitened per image"
    assert done.describe() == f"CIFAR-10, 12 of 50,000 training and 6 test images, {steps}"
    assert done.source == "made up; centre crop 6x6; whitened per image"
    twice = data.preprocess(data.preprocess(split(), crop=6), whiten=True)
    assert (twice.describe(), twice.digest) == (done.describe(), done.digest)
    uncut = data.preprocess(split(), crop=8)  # not mentioned
    assert (uncut.describe(), uncut.digest) == (whole.describe(), whole.digest)
    ways = [{}, {"crop": 6}, {"whiten": True}, {"crop": 6, "whiten": True}]
    assert len({data.preprocess(whole, **way).digest for way in ways}) == 4  # none is inherited


def test_standardising_takes_the_mean_and_std_of_the_training_images():
    whole = split()
    done, mean, std = data.standardise(whole)
    assert mean == pytest.approx(whole.train.images.mean().item())
    assert done.train.images.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(done.test.images * std + mean, whole.test.images)


FUNCTIONS = {
    **{kind: lambda x, kind=kind: data.corrupt_images(x, kind, 1) for kind in data.KINDS},
    "crop": lambda x: data.centre_crop(x, 3),
    "whiten": data.whiten_images,
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_images_come_back_in_kind(name, dtype):
    function, images = FUNCTIONS[name], ramp(6).to(dtype)
    before, out = images.clone(), function(images)
    assert out.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    assert torch.equal(images, before) and isinstance(function(images.numpy()), np.ndarray)
    assert np.array_equal(function(images.numpy()), out.numpy())
    constant = torch.full((3, 1, 4, 4), 0.25)
    assert name not in data.KINDS or torch.equal(function(constant), constant)


ONES = torch.ones(2, 1, 4, 6)
LABELLED = {"labels": torch.tensor([0, 1, 2]), "fraction": 0.5, "num_classes": 3, "seed": 0}
CALLS = {
    "labels": (data.corrupt_labels, LABELLED),
    "images": (data.corrupt_images, {"images": ONES, "kind": "gaussian", "seed": 0}),
    "crop": (data.centre_crop, {"images": ONES, "size": 2}),
    "whiten": (data.whiten_images, {}),
    "preprocess": (data.preprocess, {"split": split()}),
}
WRONG = [
    ("labels", {"fraction": 1.01}, "fraction"),
    ("labels", {"labels": torch.tensor([0, 3])}, "labels: expected 0 to 2, found 3"),
    ("labels", {"labels": torch.tensor([-1, 0])}, "labels: expected 0 to 2, found -1"),
    ("labels", {"labels": torch.tensor([0.0])}, "labels: expected integers .*float32"),
    ("labels", {"labels": torch.tensor([True])}, "labels: expected integers .*bool"),
    ("labels", {"labels": torch.zeros(2, 2).long()}, r"labels: .*\(2, 2\)"),
    ("labels", {"num_classes": 0}, "num_classes"),
    ("labels", {"seed": -1}, "seed"),
    ("images", {"images": ONES.byte()}, "images: .*uint8"),
    ("images", {"kind": "shuffled"}, "kind: .*'shuffled'.*'shuffled_pixels'"),
    ("images", {"seed": -1}, "seed"),
    ("crop", {"size": 5}, "size: expected at most 4, found 5"),
    ("crop", {"images": ONES[0]}, r"images: expected \(N, C, H, W\)"),
    ("whiten", {"images": ONES * torch.nan}, "NaN"),
    ("preprocess", {"crop": "6"}, "size: expected an integer"),
]


@pytest.mark.parametrize(("name", "given", "message"), WRONG)
def test_bad_input_is_named(name, given, message):
    function, right = CALLS[name]
    with pytest.raises(ValueError, match=message):
        function(**right | given)
