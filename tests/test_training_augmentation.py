"""Corruption and augmentation: of which images and labels, when, and how much."""

import dataclasses

import pytest
import torch
from test_training import CPU, SPLIT, alike, fit, make, own_seed, same_weights
from torch.nn import functional as F

from replication import data, training
from replication.training import trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("keep", [False, True])
def test_label_corruption_is_of_the_training_labels_only_and_lasts(keep):
    spec = make(label_corruption=0.7, keep_marginal=keep, seed=5)
    run = trainer.Trainer(spec, SPLIT, CPU)
    expected = data.corrupt_labels(SPLIT.train.labels, 0.7, 10, own_seed(5, "labels"), keep)
    assert not torch.equal(expected, SPLIT.train.labels)
    assert torch.equal(training.training_labels(spec, SPLIT), expected)
    for _ in range(9):
        assert torch.equal(run.train.labels, expected)
        assert torch.equal(run.test.labels, SPLIT.test.labels)
        run.advance()


@pytest.mark.parametrize("kind", data.KINDS)
def test_image_corruption_of_training_and_test_images(kind):
    images = SPLIT.train.images
    twins = dataclasses.replace(SPLIT, test=data.Examples(images, SPLIT.train.labels))
    run = trainer.Trainer(make(image_corruption=kind), twins, CPU)
    assert not torch.equal(run.train.images, images)
    # One permutation of the pixels for both parts; noise must not come back in the test images.
    assert torch.equal(run.train.images, run.test.images) == (kind == "shuffled_pixels")
    if kind != "gaussian":
        assert torch.equal(run.train.images.flatten(1).sort().values, images.flatten(1).sort()[0])
    else:
        assert run.train.images.mean() == pytest.approx(images.mean().item(), abs=0.05)


def distinct_pixels(count=200, channels=2, height=5, width=7):
    """Return images of which every pixel has a value of its own, from 1."""
    pixels = torch.arange(1, count * channels * height * width + 1, dtype=torch.float32)
    return pixels.reshape(count, channels, height, width)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_flips_have_their_probability():
    images = distinct_pixels()
    assert torch.equal(trainer.augment(images, {"flip": 1}, seeded()), images.flip(3))
    assert torch.equal(trainer.augment(images, {"flip": 0}, seeded()), images)
    assert torch.equal(trainer.augment(images, {}, seeded()), images)
    some = trainer.augment(images, {"flip": 0.25}, seeded())
    flipped = [torch.equal(a, b) for a, b in zip(some, images.flip(3), strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(some, images, strict=True)]
    assert sum(flipped) + sum(kept) == len(images)
    assert 25 <= sum(flipped) <= 75  # 50 are expected, 4 standard deviations are 24.5


def test_shifts_cut_a_window_from_the_padded_image():
    images = distinct_pixels()
    moved = trainer.augment(images, {"shift": 2}, seeded())
    assert moved.shape == images.shape
    padded = F.pad(images, (2, 2, 2, 2))
    windows = {
        (row, column): padded[:, :, row : row + 5, column : column + 7]
        for row in range(5)
        for column in range(5)
    }
    found = [
        {place for place, window in windows.items() if torch.equal(window[i], moved[i])}
        for i in range(len(images))
    ]
    assert all(len(places) == 1 for places in found)
    assert set.union(*found) == set(windows)  # rows and columns move apart from one another


def test_crops_are_windows_at_every_place():
    images = distinct_pixels()
    cut = trainer.augment(images, {"crop": 3}, seeded())
    found = [
        {(r, c) for r in range(3) for c in range(5) if torch.equal(x[:, r : r + 3, c : c + 3], y)}
        for x, y in zip(images, cut, strict=True)
    ]
    assert all(len(places) == 1 for places in found)
    assert len(set.union(*found)) == 15  # rows and columns move apart from one another
    whole = images[..., :5]
    assert torch.equal(trainer.augment(whole, {"crop": 5}, seeded()), whole)


def test_a_crop_trains_on_windows_and_measures_the_centres(monkeypatch):
    seen, plain = [], trainer.augment

    def spy(images, how, source):
        seen.append((images.shape, plain(images, how, source)))
        return seen[-1][1]

    monkeypatch.setattr(trainer, "augment", spy)
    spec = make(augment={"crop": 5}, model_options={"inputs": 25}, epochs=1)
    run = fit(spec)
    assert len(seen) == 4
    assert all(before[2:] == (8, 8) and after.shape[2:] == (5, 5) for before, after in seen)
    small = data.preprocess(SPLIT, crop=5)
    for part in ("train", "test"):
        measured = training.evaluate(run.model(), getattr(small, part))
        assert tuple(run.history.iloc[-1][[f"{part}_loss", f"{part}_accuracy"]]) == measured
    assert not same_weights(run.state(), fit(make(model_options={"inputs": 25}), small).state())


def test_a_crop_is_at_most_the_image():
    with pytest.raises(ValueError, match=r"^augment: crop: expected at most 8, found 9"):
        fit(make(augment={"crop": 9}))


def test_augmentation_repeats_with_its_generator():
    images, how = distinct_pixels(), {"shift": 1, "flip": 0.5, "crop": 3}
    once = trainer.augment(images, how, seeded(1))
    assert torch.equal(once, trainer.augment(images, how, seeded(1)))
    assert not torch.equal(once, trainer.augment(images, how, seeded(2)))


def test_augmentation_is_of_what_is_trained_on_alone_and_new_at_every_step(monkeypatch):
    seen, plain = [], trainer.augment

    def spy(images, how, source):
        seen.append(plain(images, how, source))
        return seen[-1]

    monkeypatch.setattr(trainer, "augment", spy)
    spec, split = make(augment={"shift": 2}, batch_size=60, epochs=3), alike()
    run = fit(spec, split)
    assert len(seen) == 3
    assert not any(
        torch.equal(a, b) for a, b in zip(seen, [split.train.images, *seen], strict=False)
    )
    monkeypatch.setattr(trainer, "augment", lambda images, how, source: seen.pop(0))
    assert same_weights(run.state(), fit(spec, split).state())
    measured = training.evaluate(run.model(), split.train)
    assert tuple(run.history.iloc[-1][["train_loss", "train_accuracy"]]) == measured
