"""Centre crop, whitening per image, and what a split says after them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replication import data


def pictures(*shape, seed=0, dtype=torch.float32):
    source = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=source, dtype=torch.float64).to(dtype)


def split(side=8):
    parts = [
        data.Examples(pictures(n, 3, side, side, seed=n), torch.arange(n) % 10) for n in (12, 6)
    ]
    return data.Split(*parts, "cifar10", tuple("0123456789"), "made up", available=(50_000, 6))


# ------------------------------------------------------------------ centre crop


@pytest.mark.parametrize(
    ("side", "size", "first"), [(32, 28, 2), (28, 28, 0), (5, 2, 1), (5, 3, 1), (4, 1, 1)]
)
def test_crop_keeps_the_pixels_around_the_centre(side, size, first):
    at = torch.arange(side, dtype=torch.float32)
    images = (100 * at[:, None] + at).expand(2, 3, side, side)
    rows = torch.arange(first, first + size, dtype=torch.float32)
    expected = (100 * rows[:, None] + rows).expand(2, 3, size, size)
    assert torch.equal(data.centre_crop(images, size), expected)


def test_crop_of_images_that_are_not_square():
    images = pictures(2, 1, 4, 9)
    assert torch.equal(data.centre_crop(images, 3), images[:, :, 0:3, 3:6])


def test_crop_is_a_copy():
    images = pictures(2, 1, 4, 4)
    before = images.clone()
    data.centre_crop(images, 4).zero_()
    assert torch.equal(images, before)


# ------------------------------------------------------------------ whitening


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**20), st.floats(-50, 50), st.floats(0.1, 50))
def test_a_whitened_image_has_mean_0_and_std_1_whatever_its_brightness_and_contrast(seed, a, b):
    images = pictures(3, 3, 6, 5, seed=seed, dtype=torch.float64)
    white = data.whiten_images(images)
    flat = white.flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(flat.std(1, correction=0), torch.ones(3).double())
    # b above 1 / (std sqrt(90)), about 0.37, leaves the bound on the contrast out of play
    torch.testing.assert_close(data.whiten_images(a + (b + 0.5) * images), white)


def test_whitening_is_the_formula_image_by_image():
    images = pictures(4, 3, 6, 6).numpy()
    images[1] = images[1] * 1e-3 + 0.5  # less contrast than 1 / sqrt(D)
    expected = [(x - x.mean()) / max(x.std(), 1 / np.sqrt(x.size)) for x in images.astype(float)]
    np.testing.assert_allclose(data.whiten_images(images), expected, atol=1e-4)
    assert np.std(expected[1]) < 0.01


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_an_image_without_contrast_becomes_0(value):
    white = data.whiten_images(torch.full((1, 3, 28, 28), value))
    assert white.abs().max() < 1e-5


def test_whitening_leaves_its_input_alone():
    images = pictures(2, 3, 4, 4)
    before = images.clone()
    data.whiten_images(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("function", [data.whiten_images, lambda x: data.centre_crop(x, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_kind_and_dtype_stay(function, dtype):
    images = pictures(2, 3, 4, 4, dtype=dtype)
    kept = torch.float32 if dtype == torch.float16 else dtype
    found, array = function(images), function(images.numpy())
    assert found.dtype == kept
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, found.numpy())


# ------------------------------------------------------------------ splits


def test_preprocessing_crops_then_whitens_both_halves():
    given = split()
    found = data.preprocess(given, crop=6, whiten=True)
    for old, new in ((given.train, found.train), (given.test, found.test)):
        assert torch.equal(new.images, data.whiten_images(data.centre_crop(old.images, 6)))
        assert torch.equal(new.labels, old.labels)
    assert given.train.images.shape[-1] == 8


def test_a_split_says_what_was_done_to_it():
    found = data.preprocess(split(), crop=6, whiten=True)
    assert found.describe() == (
        "CIFAR-10, 12 of 50,000 training and 6 test images, centre crop 6x6, whitened per image"
    )
    assert found.source == "made up; centre crop 6x6; whitened per image"
    assert found.name == "cifar10"
    assert found.to("cpu").describe() == found.describe()
    twice = data.preprocess(data.preprocess(split(), crop=6), whiten=True)
    assert (twice.describe(), twice.digest) == (found.describe(), found.digest)


def test_digests_tell_preprocessings_apart():
    given = split()
    assert given.digest  # computed before, which the copies must not inherit
    ways = [{}, {"crop": 6}, {"whiten": True}, {"crop": 6, "whiten": True}]
    digests = [data.preprocess(given, **way).digest for way in ways]
    assert digests[0] == given.digest
    assert len(set(digests)) == 4


def test_a_crop_that_cuts_nothing_is_not_mentioned():
    found = data.preprocess(split(), crop=8)
    assert found.describe() == split().describe()
    assert found.digest == split().digest


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.centre_crop(pictures(2, 3, 4, 6), 5), "size: expected at most 4, found 5"),
        (lambda: data.centre_crop(pictures(2, 3, 4, 4), 0), "size: expected an integer >= 1"),
        (lambda: data.centre_crop(pictures(2, 3, 4, 4), 2.5), "size: expected an integer"),
        (lambda: data.centre_crop(pictures(3, 4, 4), 2), r"images: expected \(N, C, H, W\)"),
        (lambda: data.whiten_images(pictures(3, 16)), r"images: expected \(N, C, H, W\)"),
        (lambda: data.whiten_images(torch.ones(1, 1, 2, 2).int()), "expected floating point"),
        (lambda: data.whiten_images(torch.full((1, 1, 2, 2), torch.nan)), "NaN"),
        (lambda: data.preprocess(split(), crop=9), "size: expected at most 8"),
        (lambda: data.preprocess(split(), crop="6"), "size: expected an integer"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
def test_preprocessing_on_a_gpu():
    found = data.preprocess(split().to("cuda"), crop=6, whiten=True)
    assert found.train.images.is_cuda
    expected = data.preprocess(split(), crop=6, whiten=True)
    torch.testing.assert_close(found.train.images.cpu(), expected.train.images)
