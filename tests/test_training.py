"""Training one network: what it computes, that it repeats itself, and that nothing is lost."""

import ast
import dataclasses
import hashlib
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import replication
from replication import _files, _resume, _steps, data, models, training

COLUMNS = ["step", "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"]
CPU = torch.device("cpu")


def toy(train=60, test=40, size=8, seed=0):
    """Random images with random labels."""
    source = torch.Generator().manual_seed(seed)

    def examples(count):
        images = torch.rand(count, 1, size, size, generator=source)
        return data.Examples(images, torch.randint(10, (count,), generator=source))

    return data.Split(examples(train), examples(test), "toy", tuple("0123456789"), "made up")


SPLIT = toy()  # an epoch is 4 steps with 16 images each, the last with 12


def make(**changes):
    settings = {
        "model": "mlp",
        "model_options": {"inputs": 64, "widths": (16,)},
        "learning_rate": 0.1,
        "batch_size": 16,
        "epochs": 2,
    }
    return training.Spec(**settings | changes)


def fit(spec=None, split=SPLIT, **options):
    return training.fit(spec or make(), split, progress=False, **options)


def same_weights(one, other):
    exactly = {"rtol": 0, "atol": 0, "equal_nan": True}  # also those of a run that diverged
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.allclose(one[k], other[k], **exactly) for k in one
    )


def assert_same(one, other):
    """Assert that two runs are equal to the last bit."""
    assert one.status == other.status
    assert one.checkpoints == other.checkpoints
    pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)
    for epoch in one.checkpoints:
        assert same_weights(one.state(epoch), other.state(epoch)), epoch


def regular(inputs=64, classes=10, dropout=0.3):
    """Batch normalisation and dropout, which no network of the package has so far."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(16, classes),
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for one another cost more than such small sums, and sums depend on them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def more_models(monkeypatch):
    monkeypatch.setitem(models.MODELS, "regular", regular)


@pytest.fixture
def never_trains(monkeypatch):
    def advance(self):
        raise AssertionError("a step was taken")

    return lambda: monkeypatch.setattr(_steps.Training, "advance", advance)


REGULAR = {"model": "regular", "model_options": {}}

# --- what a step is ----------------------------------------------------------------------------


def own_seed(seed, stream, index=0):
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def own_loop(epochs, seed, corruption=0.0, rate=0.1, momentum=0.9):
    """Train as `make(...)` says, written down again without the package's training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(own_seed(seed, "init"))
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    images = SPLIT.train.images
    labels = data.corrupt_labels(SPLIT.train.labels, corruption, 10, own_seed(seed, "labels"))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    step = 0
    while step < round(4 * epochs):
        source = torch.Generator().manual_seed(own_seed(seed, "order", step // 4))
        batches = torch.randperm(60, generator=source).split(16)
        for batch in batches[: round(4 * epochs) - step]:
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            step += 1
    return list(model.parameters())


@pytest.mark.parametrize("corruption", [0.0, 0.5])
@pytest.mark.parametrize(("epochs", "seed"), [(3, 0), (2.5, 7)])
def test_a_plain_loop_gives_the_same_weights(epochs, seed, corruption):
    spec = make(
        epochs=epochs,
        seed=seed,
        optimizer_options={"momentum": 0.9},
        label_corruption=corruption,
        evaluate_every=0.25,
    )
    expected = own_loop(epochs, seed, corruption)
    found = list(fit(spec).state().values())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def descend(rates, split=SPLIT):
    """Full-batch gradient descent on softmax regression, in NumPy, with a rate for each step."""
    x = split.train.images.double().flatten(1).numpy()
    y = np.eye(10)[split.train.labels.numpy()]
    start = models.build("mlp", 0, torch.float64, inputs=64, widths=()).state_dict()
    weight, bias = (start[f"fc1.{name}"].numpy().copy() for name in ("weight", "bias"))
    for rate in rates:
        logits = x @ weight.T + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        error = (p / p.sum(1, keepdims=True) - y) / len(x)
        weight -= rate * error.T @ x
        bias -= rate * error.sum(0)
    return weight, bias


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5] * 20),
        ("cosine", [0.25 * (1 + math.cos(math.pi * t / 20)) for t in range(20)]),
        ("exponential", [0.5 * 0.8**t for t in range(20)]),
    ],
)
def test_full_batch_descent_follows_its_closed_form(schedule, rates):
    spec = make(
        model_options={"inputs": 64, "widths": ()},
        learning_rate=0.5,
        schedule=schedule,
        decay=0.8,
        batch_size=1000,
        epochs=20,
        dtype="float64",
    )
    state = fit(spec).state()
    weight, bias = descend(rates)
    np.testing.assert_allclose(state["fc1.weight"], weight, rtol=0, atol=1e-10)
    np.testing.assert_allclose(state["fc1.bias"], bias, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        ("constant", lambda t: 0.1),
        ("cosine", lambda t: 0.05 * (1 + math.cos(math.pi * t / 10))),
        ("exponential", lambda t: 0.1 * 0.5 ** (t // 4)),
    ],
)
def test_learning_rates_by_step(schedule, formula, monkeypatch):
    seen, step = [], torch.optim.SGD.step

    def spy(self, closure=None):
        seen.append(self.param_groups[0]["lr"])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    fit(make(schedule=schedule, decay=0.5, epochs=2.5))
    assert seen == pytest.approx([formula(t) for t in range(10)], rel=1e-14)


def test_an_epoch_draws_every_image_once_in_another_order():
    run = _steps.Training(make(epochs=3), SPLIT, CPU)
    orders = []
    for _ in range(3):
        for _ in range(4):
            run.advance()
        orders.append(run.order.tolist())
    assert all(sorted(order) == list(range(60)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


# --- repeating itself --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        REGULAR,
        {"augment": {"shift": 1, "flip": 0.5}},
        {"label_corruption": 0.5, "image_corruption": "gaussian"},
        {"optimizer": "Adam", "dtype": "float64"},
    ],
)
def test_the_same_seed_gives_the_same_run_and_another_another(changes):
    first = fit(make(**changes))
    assert_same(first, fit(make(**changes)))
    other = fit(make(**changes, seed=1))
    assert not same_weights(first.state(0), other.state(0))
    assert not same_weights(first.state(), other.state())


def test_global_randomness_is_neither_used_nor_touched(monkeypatch):
    def forbidden(*args):
        raise AssertionError("the global generators of all devices were seeded")

    expected = fit(make(**REGULAR))
    torch.rand(3)
    np.random.rand(3)
    monkeypatch.setattr(torch, "manual_seed", forbidden)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", forbidden)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    models.build("mnist_convnet", seed=3)
    run = fit(make(**REGULAR))
    run.model()
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]
    assert_same(run, expected)


def alike():
    """A split of equal images with equal labels: the order in which they are drawn is nothing."""
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    train = data.Examples(image.repeat(60, 1, 1, 1), torch.zeros(60, dtype=torch.int64))
    return dataclasses.replace(SPLIT, train=train)


def test_dropout_differs_by_step_and_is_one_function_within_a_step(monkeypatch):
    """L-BFGS calls the closure several times a step: it must see the same units dropped."""
    losses = []
    monkeypatch.setitem(
        models.MODELS,
        "dropout",
        lambda: nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10)),
    )
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, closure: losses.append([closure().item() for _ in range(3)]),
    )
    fit(make(model="dropout", model_options={}, batch_size=60, epochs=3), alike())
    assert all(len(set(step)) == 1 for step in losses)
    assert len({step[0] for step in losses}) == 3


def test_the_user_s_cudnn_settings_hold_but_for_determinism(monkeypatch):
    cudnn = torch.backends.cudnn
    for name, value in {"deterministic": False, "benchmark": True, "allow_tf32": False}.items():
        monkeypatch.setattr(cudnn, name, value)
    with _steps.deterministic():
        assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == (True, False, False)
    assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == (False, True, False)


def test_training_works_where_the_new_precision_setting_was_used():
    expected, conv = fit(make(epochs=0.5)), torch.backends.cudnn.conv
    before = conv.fp32_precision
    try:
        conv.fp32_precision = "ieee"  # from now on torch refuses to say whether TF32 is allowed
        assert_same(fit(make(epochs=0.5)), expected)
    finally:
        conv.fp32_precision = before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_repeats_itself_and_starts_as_the_cpu_does(tmp_path):
    split = toy(20, 10, 28)
    spec = training.Spec(model="mnist_convnet", batch_size=5, epochs=1, evaluate_every=0.5)
    run = fit(spec, split, device="cuda")
    assert_same(run, fit(spec, split, device="cuda", store=tmp_path))
    assert same_weights(run.state(0), fit(spec, split).state(0))


# --- checkpoints and the history ---------------------------------------------------------------


def test_checkpoints_are_kept_at_their_steps():
    run = fit(make(epochs=2.5, checkpoints=(1, 0.1, 0.25, 2.4), evaluate_every=10))
    assert run.checkpoints == {0: 0, 0.1: 0, 0.25: 1, 1: 4, 2.4: 10, 2.5: 10}
    assert run.history.step.tolist() == [0, 1, 4, 10]
    assert run.status == "finished"
    initial = models.build("mlp", 0, inputs=64, widths=(16,)).state_dict()
    assert same_weights(run.state(0), dict(initial))
    for epoch in (0.25, 1, 2.5):  # what training for so long leaves
        assert same_weights(run.state(epoch), fit(make(epochs=epoch)).state())
    assert same_weights(run.state(), run.state(2.5))


def test_a_checkpoint_that_was_not_kept_is_named():
    with pytest.raises(ValueError, match=r"epoch: no checkpoint at 1.*0, 2"):
        fit().state(1)


def test_a_state_is_a_copy(tmp_path):
    for run in (fit(), fit(store=tmp_path)):
        state = run.state()
        state["fc1.weight"].zero_()
        assert run.state()["fc1.weight"].abs().max() > 0


def test_history_holds_what_the_checkpoints_measure():
    run = fit(make(epochs=2.5, checkpoints=(0.25, 1), label_corruption=0.5, evaluate_every=0.5))
    assert list(run.history.columns) == COLUMNS
    assert run.history.step.tolist() == [0, 1, 2, 4, 6, 8, 10]
    assert run.history.epoch.tolist() == [0, 0.25, 0.5, 1, 1.5, 2, 2.5]
    assert run.history.step.dtype == np.int64
    labels = data.corrupt_labels(SPLIT.train.labels, 0.5, 10, own_seed(0, "labels"))
    parts = {"train": (SPLIT.train.images, labels), "test": (SPLIT.test.images, SPLIT.test.labels)}
    for epoch, step in run.checkpoints.items():
        model = run.model(epoch)
        assert not model.training
        row = run.history.set_index("step").loc[step]
        for part, (images, wanted) in parts.items():
            logits = model(images).double()
            assert row[f"{part}_loss"] == pytest.approx(F.cross_entropy(logits, wanted).item())
            right = (logits.argmax(1) == wanted).double().mean().item()
            assert row[f"{part}_accuracy"] == pytest.approx(right)


def test_the_history_has_the_first_and_the_last_step_however_rarely_it_is_asked_for():
    assert fit(make(epochs=1.25, evaluate_every=100)).history.step.tolist() == [0, 5]
    assert fit(make(epochs=0.01)).history.step.tolist() == [0, 1]  # one step at least
    assert fit(make(epochs=1, evaluate_every=1e-9)).history.step.tolist() == [0, 1, 2, 3, 4]


def test_evaluating_more_often_changes_no_weight():
    for changes in ({}, REGULAR):
        often = fit(make(evaluate_every=0.25, **changes))
        assert same_weights(often.state(), fit(make(evaluate_every=2, **changes)).state())


def test_evaluation_images_are_the_first_of_the_training_set():
    run = fit(make(evaluation_images=7))
    some = data.Examples(SPLIT.train.images[:7], SPLIT.train.labels[:7])
    measured = training.evaluate(run.model(), some)
    assert tuple(run.history.iloc[-1][["train_loss", "train_accuracy"]]) == measured
    whole = fit(make())
    assert run.history.test_loss.equals(whole.history.test_loss)
    assert not run.history.train_loss.equals(whole.history.train_loss)
    assert fit(make(evaluation_images=1000)).history.equals(whole.history)


def test_the_stop_rule_ends_the_run_at_the_first_evaluation_that_reaches_it(tmp_path):
    long = make(epochs=40, optimizer="Adam", learning_rate=0.01, evaluate_every=0.75)
    whole = fit(long)
    goal = 0.6
    first = int(whole.history.index[whole.history.train_accuracy >= goal][0])
    row = whole.history.iloc[first]
    assert 0 < first < len(whole.history) - 1
    stopping = dataclasses.replace(long, stop_at_train_accuracy=goal, checkpoints=(0.5, 39))
    for run in (fit(stopping), fit(stopping, store=tmp_path), fit(stopping, store=tmp_path)):
        assert run.status == "stopped"
        assert run.checkpoints == {0: 0, 0.5: 2, row.epoch: row.step}
        assert (
            run.history[run.history.step != 2]
            .reset_index(drop=True)
            .equals(whole.history.iloc[: first + 1])
        )
    ended = fit(dataclasses.replace(long, epochs=row.epoch))
    assert same_weights(run.state(), ended.state())


def test_evaluate_is_exact_whatever_the_batch_and_restores_modes():
    model = regular().double()
    model[1].eval()
    images = SPLIT.test.images.double()
    examples = data.Examples(images, SPLIT.test.labels)
    loss, accuracy = training.evaluate(model, examples, batch_size=7)
    assert [m.training for m in model] == [True, False, True, True, True, True]
    logits = model.eval()(images)
    assert loss == pytest.approx(F.cross_entropy(logits, SPLIT.test.labels).item(), rel=1e-12)
    assert accuracy == (logits.argmax(1) == SPLIT.test.labels).sum().item() / 40
    with pytest.raises(ValueError, match="examples"):
        training.evaluate(model, data.Examples(images[:0], SPLIT.test.labels[:0]))


# --- corruption and augmentation ---------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_label_corruption_is_of_the_training_labels_only_and_lasts(keep):
    spec = make(label_corruption=0.7, keep_marginal=keep, seed=5)
    run = _steps.Training(spec, SPLIT, CPU)
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
    run = _steps.Training(make(image_corruption=kind), twins, CPU)
    assert not torch.equal(run.train.images, images)
    # One permutation of the pixels for both parts; noise must not come back in the test images.
    assert torch.equal(run.train.images, run.test.images) == (kind == "shuffled_pixels")
    if kind != "gaussian":
        assert torch.equal(run.train.images.flatten(1).sort().values, images.flatten(1).sort()[0])
    else:
        assert run.train.images.mean() == pytest.approx(images.mean().item(), abs=0.05)


def random_images(count=200, channels=2, height=5, width=7):
    """Images of which every pixel has a value of its own, from 1."""
    pixels = torch.arange(1, count * channels * height * width + 1, dtype=torch.float32)
    return pixels.reshape(count, channels, height, width)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_flips_have_their_probability():
    images = random_images()
    assert torch.equal(_steps.augment(images, {"flip": 1}, seeded()), images.flip(3))
    assert torch.equal(_steps.augment(images, {"flip": 0}, seeded()), images)
    assert torch.equal(_steps.augment(images, {}, seeded()), images)
    some = _steps.augment(images, {"flip": 0.25}, seeded())
    flipped = [torch.equal(a, b) for a, b in zip(some, images.flip(3), strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(some, images, strict=True)]
    assert sum(flipped) + sum(kept) == len(images)
    assert 25 <= sum(flipped) <= 75  # 50 are expected, 4 standard deviations are 24.5


def test_shifts_cut_a_window_from_the_padded_image():
    images = random_images()
    moved = _steps.augment(images, {"shift": 2}, seeded())
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
    images = random_images()
    cut = _steps.augment(images, {"crop": 3}, seeded())
    found = [
        {(r, c) for r in range(3) for c in range(5) if torch.equal(x[:, r : r + 3, c : c + 3], y)}
        for x, y in zip(images, cut, strict=True)
    ]
    assert all(len(places) == 1 for places in found)
    assert len(set.union(*found)) == 15  # rows and columns move apart from one another
    whole = images[..., :5]
    assert torch.equal(_steps.augment(whole, {"crop": 5}, seeded()), whole)


def test_a_crop_trains_on_windows_and_measures_the_centres(monkeypatch):
    seen, plain = [], _steps.augment

    def spy(images, how, source):
        seen.append((images.shape, plain(images, how, source)))
        return seen[-1][1]

    monkeypatch.setattr(_steps, "augment", spy)
    spec = make(augment={"crop": 5}, model_options={"inputs": 25}, epochs=1)
    run = fit(spec)
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
    images, how = random_images(), {"shift": 1, "flip": 0.5, "crop": 3}
    once = _steps.augment(images, how, seeded(1))
    assert torch.equal(once, _steps.augment(images, how, seeded(1)))
    assert not torch.equal(once, _steps.augment(images, how, seeded(2)))


def test_augmentation_is_of_what_is_trained_on_alone_and_new_at_every_step(monkeypatch):
    seen, plain = [], _steps.augment

    def spy(images, how, source):
        seen.append(plain(images, how, source))
        return seen[-1]

    monkeypatch.setattr(_steps, "augment", spy)
    spec, split = make(augment={"shift": 2}, batch_size=60, epochs=3), alike()
    run = fit(spec, split)
    assert len(seen) == 3
    assert not any(
        torch.equal(a, b) for a, b in zip(seen, [split.train.images, *seen], strict=False)
    )
    monkeypatch.setattr(_steps, "augment", lambda images, how, source: seen.pop(0))
    assert same_weights(run.state(), fit(spec, split).state())
    measured = training.evaluate(run.model(), split.train)
    assert tuple(run.history.iloc[-1][["train_loss", "train_accuracy"]]) == measured


# --- precision, optimisers, divergence ---------------------------------------------------------


def test_float64_is_carried_through():
    double, single = fit(make(dtype="float64")), fit()
    assert {v.dtype for v in double.state().values()} == {torch.float64}
    assert next(double.model().parameters()).dtype == torch.float64
    np.testing.assert_allclose(double.history.train_loss, single.history.train_loss, rtol=1e-5)
    assert not double.history.train_loss.equals(single.history.train_loss)


def test_l_bfgs_trains_a_convolutional_network():
    spec = training.Spec(
        model="mnist_convnet",
        model_options={"channels": (2, 3)},
        optimizer="LBFGS",
        learning_rate=0.5,
        batch_size=10,
        epochs=2,
    )
    losses = fit(spec, toy(10, 10, 28)).history.train_loss
    assert losses.iloc[-1] < 0.9 * losses.iloc[0]


def test_a_run_that_diverges_says_so_and_is_kept(tmp_path, never_trains):
    decay = {"weight_decay": 1.0}  # times -1e6 at every step; without, dead units end the fall
    spec = make(learning_rate=1e6, optimizer_options=decay, epochs=50, checkpoints=(49,))
    run = fit(spec, store=tmp_path)
    assert run.status == "diverged"
    last = run.history.iloc[-1]
    assert math.isnan(last.train_loss)
    assert math.isfinite(run.history.train_loss[0])
    assert last.epoch < 49
    assert max(run.checkpoints) == last.epoch
    assert_same(run, fit(spec))
    never_trains()
    again = fit(spec, store=tmp_path)
    assert_same(again, run)


# --- specifications ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "mlpp"),
        ("model", 3),
        ("model_options", [1]),
        ("model_options", {"inputs": torch.tensor(1)}),
        ("optimizer", "sgd"),
        ("optimizer", "Optimizer"),
        ("optimizer", None),
        ("optimizer_options", {"momentum": math.nan}),
        ("learning_rate", 0),
        ("learning_rate", -0.1),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", "0.1"),
        ("schedule", "linear"),
        ("decay", 0),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("epochs", 0),
        ("epochs", math.inf),
        ("evaluate_every", 0),
        ("label_corruption", 1.1),
        ("label_corruption", None),
        ("image_corruption", "noise"),
        ("augment", {"rotate": 1}),
        ("augment", {"shift": 1.5}),
        ("augment", {"shift": -1}),
        ("augment", {"flip": 2}),
        ("augment", {"crop": 0}),
        ("augment", {"crop": 2.5}),
        ("checkpoints", (3,)),
        ("checkpoints", (-1,)),
        ("checkpoints", (math.nan,)),
        ("checkpoints", 1),
        ("stop_at_train_accuracy", 1.5),
        ("evaluation_images", 0),
        ("evaluation_images", -1),
        ("seed", -1),
        ("seed", 0.5),
        ("dtype", "float16"),
    ],
)
def test_a_bad_value_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}"):
        make(**{name: value})


def test_a_stop_rule_needs_the_whole_training_set():
    with pytest.raises(ValueError, match=r"^evaluation_images"):
        make(evaluation_images=5, stop_at_train_accuracy=0.9)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer_options": {"momentun": 0.9}}, "optimizer_options"),
        ({"optimizer_options": {"momentum": -1}}, "optimizer_options"),
        ({"optimizer_options": {"lr": 0.9}}, "optimizer_options"),
        ({"model_options": {"width": 3}}, "model_options"),
    ],
)
def test_options_that_nothing_takes_are_named(changes, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        fit(make(**changes))


def test_an_absent_device_is_named():
    with pytest.raises(ValueError, match=r"^device"):
        fit(device="cuda:99")


def test_the_nearest_name_is_proposed():
    with pytest.raises(ValueError, match="did you mean 'SGD'"):
        make(optimizer="SGDD")


IMAGES, LABELS = torch.arange(40 * 64) % 7 / 8, torch.arange(40) % 10


def numbered(images=IMAGES, labels=LABELS):
    """A split that is the same with every version of torch."""
    images = images.reshape(-1, 1, 8, 8)
    parts = (data.Examples(images[a:b], labels[a:b]) for a, b in ((0, 30), (30, 40)))
    return data.Split(*parts, "toy", tuple("0123456789"), "made up")


def test_keys_are_those_of_runs_that_are_stored_already():
    """Another key would train all stored networks again: raise FORMAT where that is wanted."""
    rich = make(
        optimizer="Adam",
        optimizer_options={"betas": (0.9, 0.99)},
        learning_rate=0.01,
        batch_size=64,
        epochs=2.5,
        checkpoints=(0, 0.5, 1),
        augment={"shift": 1, "flip": 0.5},
        image_corruption="gaussian",
        seed=3,
        evaluation_images=10,
    )
    assert rich.key(numbered()) == "e4f18d13e3ca31a82097361f"
    plain = training.Spec(model="mnist_convnet")
    assert plain.key(numbered()) == "740572c140a0828538987502"


CHANGES = {
    "model": "mnist_convnet",
    "model_options": {"inputs": 64, "widths": (17,)},
    "optimizer": "Adam",
    "optimizer_options": {"momentum": 0.9},
    "learning_rate": 0.2,
    "schedule": "cosine",
    "decay": 0.9,
    "batch_size": 15,
    "epochs": 3,
    "label_corruption": 0.1,
    "keep_marginal": True,
    "image_corruption": "gaussian",
    "augment": {"flip": 0.5},
    "checkpoints": (1,),
    "stop_at_train_accuracy": 0.9,
    "evaluate_every": 0.5,
    "evaluation_images": 5,
    "seed": 1,
    "dtype": "float64",
}


def test_every_field_and_every_tensor_is_in_the_key():
    assert CHANGES.keys() == {f.name for f in dataclasses.fields(training.Spec)}
    keys = {make(**{name: value}).key(SPLIT) for name, value in CHANGES.items()}
    base = make().key(SPLIT)
    assert len(keys | {base}) == len(CHANGES) + 1
    found = set()
    for index in (None, 0, -1):  # a pixel or a label of a training or a test image
        for part in (0, 1):
            tensors = IMAGES.clone(), LABELS.clone()
            if index is not None:
                tensors[part][index] += 1
            found.add(make().key(numbered(*tensors)))
    assert len(found) == 5
    assert make(seed=np.int64(0)).key(SPLIT) == base
    assert make(model_options={"widths": [16], "inputs": 64}).key(SPLIT) == base


# --- the store ---------------------------------------------------------------------------------


def test_a_stored_run_is_loaded_without_training(tmp_path, never_trains):
    spec = make(checkpoints=(0.25, 1), label_corruption=0.3)
    expected = fit(spec)
    first = fit(spec, store=tmp_path)
    assert_same(first, expected)
    never_trains()
    again = fit(spec, store=str(tmp_path))
    assert_same(again, expected)
    assert again.key == first.key == spec.key(SPLIT)
    images = SPLIT.test.images
    assert torch.equal(again.model(1)(images), expected.model(1)(images))
    with pytest.raises(AssertionError, match="a step was taken"):
        fit(dataclasses.replace(spec, learning_rate=0.2), store=tmp_path)
    with pytest.raises(AssertionError, match="a step was taken"):
        fit(spec, toy(seed=1), store=tmp_path)


def test_what_a_stored_run_is_made_of(tmp_path):
    spec = make(checkpoints=(0.25,))
    run = fit(spec, store=tmp_path)
    folder = tmp_path / run.key
    steps = {f"step-{step:07d}.safetensors" for step in (0, 1, 8)}
    assert {file.name for file in folder.iterdir()} == steps | {"run.json"}
    saved = json.loads((folder / "run.json").read_text())
    assert saved["spec"] == json.loads(json.dumps(dataclasses.asdict(spec)))
    assert saved["data"] == "made up"
    assert saved["checkpoints"] == [[0, 0], [0.25, 1], [2, 8]]
    assert list(saved["history"][0]) == COLUMNS
    assert same_weights(load_file(folder / "step-0000008.safetensors"), run.state())


OPTIMIZERS = [
    name
    for name in dir(torch.optim)
    if name[0].isupper() and name not in ("Optimizer", "SparseAdam", "Muon")
]  # SparseAdam needs sparse gradients, Muon takes no biases


def interrupt(monkeypatch, spec, split, store, step):
    """Start a run and break it off before `step`."""
    advance = _steps.Training.advance

    def fragile(self):
        if self.step == step:
            raise KeyboardInterrupt
        advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(_steps.Training, "advance", fragile)
        with pytest.raises(KeyboardInterrupt):
            fit(spec, split, store=store)


def count_steps(monkeypatch):
    taken, advance = [], _steps.Training.advance

    def spy(self):
        taken.append(self.step)
        advance(self)

    monkeypatch.setattr(_steps.Training, "advance", spy)
    return taken


RESUMED = {
    "momentum": {"optimizer_options": {"momentum": 0.9}},
    "dropout and batch norm": {"model": "regular", "model_options": {}, "optimizer": "Adam"},
    "augmentation": {"augment": {"shift": 1, "flip": 0.5}, "schedule": "cosine"},
    "corruption": {"label_corruption": 0.5, "image_corruption": "random_pixels"},
    **{name: {"optimizer": name, "learning_rate": 0.01} for name in OPTIMIZERS},
    **{f"{n}, float64": {"optimizer": n, "dtype": "float64"} for n in ("NAdam", "LBFGS", "Adam")},
}


@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(changes, tmp_path, monkeypatch):
    spec = make(epochs=2.5, evaluate_every=0.75, checkpoints=(0.5,), **changes)
    expected = fit(spec)
    interrupt(monkeypatch, spec, SPLIT, tmp_path, step=7)
    taken = count_steps(monkeypatch)
    assert_same(fit(spec, store=tmp_path), expected)
    assert taken == [6, 7, 8, 9]  # from the last evaluation


def test_a_convolutional_network_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    split = toy(20, 10, 28)
    spec = training.Spec(
        model="mnist_convnet",
        optimizer_options={"momentum": 0.9},
        batch_size=5,
        epochs=1,
        evaluate_every=0.5,
    )
    expected = fit(spec, split)
    interrupt(monkeypatch, spec, split, tmp_path, step=3)
    taken = count_steps(monkeypatch)
    assert_same(fit(spec, split, store=tmp_path), expected)
    assert taken == [2, 3]


def busy():
    return make(
        model="regular",
        model_options={},
        optimizer="Adam",
        learning_rate=0.01,
        evaluate_every=0.5,
        checkpoints=(0.25, 1),
    )


@pytest.mark.parametrize("step", range(8))
def test_a_run_may_break_off_before_any_step(step, tmp_path, monkeypatch):
    interrupt(monkeypatch, busy(), SPLIT, tmp_path, step)
    assert_same(fit(busy(), store=tmp_path), fit(busy()))


def test_a_run_may_break_off_before_and_after_any_file_is_in_place(tmp_path, monkeypatch):
    """Every file comes into being by a rename: fail before and after each, until none is left."""
    expected, replace = fit(busy()), os.replace
    for when in ("before", "after"):
        for fatal in range(100):
            store, calls = tmp_path / f"{when} {fatal}", []

            def fragile(source, target, fatal=fatal, when=when, calls=calls):
                calls.append(target)
                if when == "after" or len(calls) != fatal + 1:
                    replace(source, target)
                if len(calls) == fatal + 1:
                    raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(_files.os, "replace", fragile)
                try:
                    fit(busy(), store=store)
                except KeyboardInterrupt:
                    pass
                else:
                    break
            assert_same(fit(busy(), store=store), expected)
        assert len(calls) == 11  # 4 checkpoints, 6 evaluations, run.json


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)  # as here, and a forked child has no pool of them
sys.path.insert(0, {tests!r})
from test_training import LONG, SPLIT, fit
import safetensors, json

def whole(path):
    if path.suffix == ".json":
        return bool(json.loads(path.read_text()))
    with safetensors.safe_open(path, "pt"):
        return True

fit(LONG)  # the first takes longer
start = time.perf_counter()
fit(LONG, store=Path({store!r}) / "undisturbed")
duration = time.perf_counter() - start
source, number, broken = random.Random({seed}), 0, 0
print("seed", {seed}, "a run takes", round(duration, 3), "s", flush=True)
while broken < 7:  # each time the child was too fast, the next is given less time
    store = Path({store!r}) / str(number)
    delay = source.uniform(0, duration)
    child = os.fork()
    if not child:
        fit(LONG, store=store)
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    killed = os.waitpid(child, 0)[1] == signal.SIGKILL
    files = [f for f in store.rglob("*.*") if f.is_file() and not f.name.startswith(".")]
    assert all(whole(f) for f in files), files
    broken += killed and bool(files) and not any(f.name == "run.json" for f in files)
    print("killed" if killed else "done", round(delay, 3), len(files), flush=True)
    if any(f.name == "run.json" for f in files):
        number, duration = number + 1, 0.9 * duration
print("stores", number + 1, "broken off", broken, flush=True)
"""

LONG = make(
    model_options={"inputs": 64, "widths": (64, 64)},
    optimizer="Adam",
    learning_rate=0.01,
    epochs=15,
    evaluate_every=0.5,
    checkpoints=tuple(range(15)),
    augment={"flip": 0.5},
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_survives_kill_9(tmp_path):
    program = KILLED.format(tests=str(Path(__file__).parent), store=str(tmp_path), seed=20)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    print(done.stdout, done.stderr)  # shown when the test fails
    assert done.returncode == 0, done.stderr
    expected = fit(LONG)
    for store in tmp_path.iterdir():
        assert_same(fit(LONG, store=store), expected)


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize(
    "name", ["run.json", "step-0000000.safetensors", "step-0000008.safetensors"]
)
def test_a_cut_file_of_a_finished_run_is_made_again(name, share, tmp_path, monkeypatch):
    run = fit(store=tmp_path)
    cut(tmp_path / run.key / name, share)
    taken = count_steps(monkeypatch)
    assert_same(fit(store=tmp_path), fit())
    assert taken[:8] == list(range(8))
    assert_same(fit(store=tmp_path), run)
    assert len(taken) == 16  # the second in memory, none for the last


@pytest.mark.parametrize(
    "content", ["", "null", "[]", "{}", '{"checkpoints": [[0, 0]]}', "\x00\xff"]
)
def test_a_damaged_summary_is_made_again(content, tmp_path):
    run = fit(store=tmp_path)
    (tmp_path / run.key / "run.json").write_text(content, encoding="latin-1")
    assert_same(fit(store=tmp_path), fit())


def test_a_missing_checkpoint_is_made_again(tmp_path):
    run = fit(store=tmp_path)
    (tmp_path / run.key / "step-0000000.safetensors").unlink()
    assert_same(fit(store=tmp_path), fit())


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_cut_resume_file_starts_the_run_again(share, tmp_path, monkeypatch):
    interrupt(monkeypatch, busy(), SPLIT, tmp_path, step=5)
    cut(tmp_path / busy().key(SPLIT) / "resume.safetensors", share)
    taken = count_steps(monkeypatch)
    assert_same(fit(busy(), store=tmp_path), fit(busy()))
    assert taken[0] == 0


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: cut(path, 0.9)])
def test_a_run_is_not_resumed_past_a_checkpoint_that_is_lost(damage, tmp_path, monkeypatch):
    interrupt(monkeypatch, busy(), SPLIT, tmp_path, step=5)
    damage(tmp_path / busy().key(SPLIT) / "step-0000001.safetensors")
    assert_same(fit(busy(), store=tmp_path), fit(busy()))


def test_a_resume_file_that_another_process_replaces_is_read_as_one(tmp_path, monkeypatch):
    files = {}
    for step in (3, 7):
        interrupt(monkeypatch, busy(), SPLIT, tmp_path, step)
        files[step] = (tmp_path / busy().key(SPLIT) / "resume.safetensors").read_bytes()
    path = tmp_path / busy().key(SPLIT) / "resume.safetensors"
    path.write_bytes(files[3])
    newer, replaced, safe_open = tmp_path / "newer", [], _resume.safe_open
    newer.write_bytes(files[7])

    def opened(*args):
        handle = safe_open(*args)
        if not replaced:
            replaced.append(os.replace(newer, path))
        return handle

    monkeypatch.setattr(_resume, "safe_open", opened)
    assert_same(fit(busy(), store=tmp_path), fit(busy()))
    assert replaced


def test_safetensors_notices_any_length_but_the_right_one(tmp_path):
    """What all of the above rests on."""
    path = tmp_path / "x.safetensors"
    _resume.save_tensors({"a": torch.rand(5), "b": torch.zeros(())}, path, {"c": "d"})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(SafetensorError), _resume.safe_open(path, "pt"):
            pass
    path.write_bytes(content + b"0")
    with pytest.raises(SafetensorError), _resume.safe_open(path, "pt"):
        pass


def test_nothing_is_pickled():
    """Neither torch.save and torch.load nor another door to pickle stands in the package."""
    forbidden = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    calls = {"torch.save", "torch.load", "torch.jit.load", "pd.read_pickle"}
    files = sorted(Path(replication.__file__).parent.rglob("*.py"))
    assert len(files) > 20
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names}
                names.add((getattr(node, "module", "") or "").split(".")[0])
                assert not names & forbidden, file
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in calls, file
                assert node.attr not in ("to_pickle", "read_pickle"), file
            if isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", file
                # torchvision's own weights, checked against their hash, come in torch's format.
                assert node.arg != "weights_only" or ast.unparse(node.value) == "True", file
