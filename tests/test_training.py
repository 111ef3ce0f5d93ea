"""Training one network: what a step computes, what is kept of it, and that it repeats itself."""

import dataclasses
import hashlib
import json
import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
from _tiny_runs import forbid_steps, random_split
from torch import nn
from torch.nn import functional as F

from replication import data, models, training
from replication.training import trainer

pytestmark = pytest.mark.usefixtures("one_thread")

COLUMNS = ["step", "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"]
CPU = torch.device("cpu")
MLP = {"inputs": 64, "widths": (16,)}
REGULAR = {"model_options": MLP | {"batch_norm": True, "dropout": 0.3}}

SPLIT = random_split(60, 40)  # an epoch is 4 steps with 16 images each, the last with 12


def make(**changes):
    settings = {"model": "mlp", "model_options": MLP, "learning_rate": 0.1, "batch_size": 16}
    return training.Spec(**settings | {"epochs": 2} | changes)


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


def own_seed(seed, stream, index=0):
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def own_loop(epochs, seed, corruption):
    """Train as `make(...)` says, written down again without the package's training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(own_seed(seed, "init"))
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    images = SPLIT.train.images
    labels = data.corrupt_labels(SPLIT.train.labels, corruption, 10, own_seed(seed, "labels"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
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


@pytest.mark.parametrize(("epochs", "seed", "corruption"), [(3, 0, 0.0), (2.5, 7, 0.5)])
def test_a_plain_loop_gives_the_same_weights(epochs, seed, corruption):
    momentum = {"optimizer_options": {"momentum": 0.9}}
    spec = make(epochs=epochs, seed=seed, label_corruption=corruption, **momentum)
    expected = own_loop(epochs, seed, corruption)
    for every in (0.25, 2):  # evaluating more often changes no weight
        run = fit(dataclasses.replace(spec, evaluate_every=every))
        assert all(torch.equal(a, b) for a, b in zip(run.state().values(), expected, strict=True))


def descend(rates):
    """Full-batch gradient descent on softmax regression, in NumPy, with a rate for each step."""
    x = SPLIT.train.images.double().flatten(1).numpy()
    y = np.eye(10)[SPLIT.train.labels.numpy()]
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
        ("steps", [0.5 * 0.8 ** ((t >= 6) + (t >= 12) + (t >= 18)) for t in range(20)]),
    ],
)
def test_full_batch_descent_follows_its_closed_form(schedule, rates):
    rate = {"learning_rate": 0.5, "schedule": schedule, "decay": 0.8}
    regression = {"model_options": {"inputs": 64, "widths": ()}, "dtype": "float64"}
    state = fit(make(**rate, **regression, batch_size=1000, epochs=20)).state()
    weight, bias = descend(rates)
    np.testing.assert_allclose(state["fc1.weight"], weight, rtol=0, atol=1e-10)
    np.testing.assert_allclose(state["fc1.bias"], bias, rtol=0, atol=1e-10)


def test_a_rate_decays_by_epochs_not_by_steps():
    run = trainer.Trainer(make(schedule="exponential", decay=0.5, epochs=2.5), SPLIT, CPU)
    rates = []
    while run.step < run.last_step:
        rates.append(run.learning_rate())
        run.advance()
    assert rates == pytest.approx([0.1 * 0.5 ** (t // 4) for t in range(10)], rel=1e-14)


# --- repeating itself --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        REGULAR | {"optimizer": "Adam", "dtype": "float64"},
        {"augment": {"shift": 1, "flip": 0.5}},
        {"label_corruption": 0.5, "image_corruption": "gaussian"},
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
    """Return a split of equal images with equal labels, which may be drawn in any order."""
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    train = data.Examples(image.repeat(60, 1, 1, 1), torch.zeros(60, dtype=torch.int64))
    return dataclasses.replace(SPLIT, train=train)


def test_dropout_differs_by_step_and_is_one_function_within_a_step(monkeypatch):
    """L-BFGS calls the closure several times a step: it must see the same units dropped."""
    losses = []

    def step(self, closure):
        losses.append([closure().item() for _ in range(3)])

    def dropping():
        return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10))

    monkeypatch.setitem(models.MODELS, "dropout", dropping)
    monkeypatch.setattr(torch.optim.SGD, "step", step)
    fit(make(model="dropout", model_options={}, batch_size=60, epochs=3), alike())
    assert all(len(set(step)) == 1 for step in losses)
    assert len({step[0] for step in losses}) == 3


def test_the_user_s_cudnn_settings_hold_but_for_determinism(monkeypatch):
    cudnn = torch.backends.cudnn
    for name, value in {"deterministic": False, "benchmark": True, "allow_tf32": False}.items():
        monkeypatch.setattr(cudnn, name, value)
    with trainer.deterministic():
        assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == (True, False, False)
    assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == (False, True, False)


@pytest.mark.gpu
def test_a_gpu_repeats_itself_and_starts_as_the_cpu_does(tmp_path):
    split = random_split(20, 10, 28)
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


def test_a_state_is_a_copy_of_a_checkpoint_that_was_kept(tmp_path):
    for run in (fit(), fit(store=tmp_path)):
        run.state()["fc1.weight"].zero_()
        assert run.state()["fc1.weight"].abs().max() > 0
        with pytest.raises(ValueError, match=r"epoch: no checkpoint at 1.*0, 2"):
            run.state(1)


def test_a_frozen_layer_stays_with_its_batch_statistics_and_the_rest_goes_on():
    freeze, wide = {"fc1": 1, "bn1": 1}, {"optimizer_options": {"momentum": 0.9}}
    run, free = (
        fit(make(model_options=REGULAR["model_options"], freeze=f, checkpoints=(0.75, 1), **wide))
        for f in (freeze, {})
    )
    for name in run.state():
        frozen = name.startswith(tuple(freeze))
        assert same_weights({name: run.state(1)[name]}, {name: free.state(1)[name]})
        assert same_weights({name: run.state(1)[name]}, {name: run.state(2)[name]}) == frozen
    moved = (
        k for k in run.state() if not same_weights({k: run.state(0.75)[k]}, {k: run.state(1)[k]})
    )
    assert set(moved) == set(run.state())  # all of it trains until then
    population = training.fit_population([run.spec, free.spec], SPLIT, progress=False)
    for one, other in zip((run, free), population, strict=True):
        assert_same(one, other)


WRONG = [
    ({"model_options": {"inputs": 63}}, 60, r"model: mlp cannot take train images \(1, 8, 8\)"),
    (
        {"model_options": MLP | {"classes": 9}},
        60,
        "train labels, of mlp's outputs: expected 0 to 8",
    ),
    (REGULAR, 49, "batch_size: 16 of 49 images: a minibatch of 1 cannot be normalised by itself"),
]


@pytest.mark.parametrize(("changes", "count", "message"), WRONG)
@pytest.mark.parametrize("function", [fit, lambda *of: training.fit_population([of[0]] * 3, of[1])])
def test_what_the_network_does_not_take_is_said_before_training(function, changes, count, message):
    split = random_split(count, 40)
    split.train.labels[0] = 9
    with pytest.raises(ValueError, match=message):
        function(make(**changes), split)
    if changes is REGULAR:  # without batch norm it can
        assert fit(make(), split).status == "finished"


def test_labels_beyond_the_outputs_do_not_reach_the_loss(monkeypatch):
    """On a GPU it would end the process."""
    monkeypatch.setattr(F, "cross_entropy", None)
    wrong = data.Examples(SPLIT.test.images, SPLIT.test.labels.clone())
    wrong.labels[-1] = 10
    model = models.build("mlp", inputs=64, widths=(16,))
    with pytest.raises(ValueError, match="examples: labels: expected 0 to 9, found 10"):
        training.evaluate(model, wrong, batch_size=7)
    with pytest.raises(ValueError, match="test labels, of mlp's outputs: expected 0 to 9"):
        fit(make(), dataclasses.replace(SPLIT, test=wrong))


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
        rows = run.history[run.history.step != 2].reset_index(drop=True)
        assert rows.equals(whole.history.iloc[: first + 1])
    ended = fit(dataclasses.replace(long, epochs=row.epoch))
    assert same_weights(run.state(), ended.state())


def test_evaluate_is_exact_whatever_the_batch_and_restores_modes():
    model = models.build("mlp", 0, torch.float64, **REGULAR["model_options"])
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


# --- precision, optimisers, divergence ---------------------------------------------------------


def test_float64_is_carried_through():
    double, single = fit(make(dtype="float64")), fit()
    assert {v.dtype for v in double.state().values()} == {torch.float64}
    assert next(double.model().parameters()).dtype == torch.float64
    np.testing.assert_allclose(double.history.train_loss, single.history.train_loss, rtol=1e-5)
    assert not double.history.train_loss.equals(single.history.train_loss)


def test_l_bfgs_trains_a_convolutional_network():
    spec = make(model="mnist_convnet", model_options={"channels": (2, 3)}, optimizer="LBFGS")
    spec = dataclasses.replace(spec, learning_rate=0.5, batch_size=10)
    losses = fit(spec, random_split(10, 10, 28)).history.train_loss
    assert losses.iloc[-1] < 0.9 * losses.iloc[0]


def test_a_run_that_diverges_says_so_and_is_kept(tmp_path, monkeypatch):
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
    forbid_steps(monkeypatch)
    again = fit(spec, store=tmp_path)
    assert_same(again, run)


# --- corruption and augmentation ---------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_label_corruption_is_of_the_training_labels_only_and_lasts(keep):
    spec = make(label_corruption=0.7, keep_marginal=keep, seed=5)
    run = trainer.Trainer(spec, SPLIT, CPU)
    expected = data.corrupt_labels(SPLIT.train.labels, 0.7, 10, own_seed(5, "labels"), keep)
    assert not torch.equal(expected, SPLIT.train.labels)
    assert torch.equal(training.training_labels(spec, SPLIT), expected)
    for _ in range(5):
        run.advance()
    assert torch.equal(run.train.labels, expected)
    assert torch.equal(run.test.labels, SPLIT.test.labels)


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


def augment(images, how, source):
    return trainer.augment(images, how, trainer.draw(images.shape, how, source))


def test_flips_have_their_probability():
    images = distinct_pixels()
    assert torch.equal(augment(images, {"flip": 1}, seeded()), images.flip(3))
    assert torch.equal(augment(images, {"flip": 0}, seeded()), images)
    assert torch.equal(augment(images, {}, seeded()), images)
    some = augment(images, {"flip": 0.25}, seeded())
    flipped = [torch.equal(a, b) for a, b in zip(some, images.flip(3), strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(some, images, strict=True)]
    assert sum(flipped) + sum(kept) == len(images)
    assert 25 <= sum(flipped) <= 75  # 50 are expected, 4 standard deviations are 24.5


def test_noise_has_its_spread_and_none_of_another_step():
    images = distinct_pixels().double()
    added = [augment(images, {"noise": 0.3}, seeded(i)) - images for i in (0, 0, 1)]
    assert torch.equal(added[0], added[1])
    assert abs(added[0].mean()) < 0.01 and added[0].std() == pytest.approx(0.3, rel=0.03)
    assert abs((added[0] * added[2]).mean()) < 0.01 * 0.3


@pytest.mark.parametrize(
    ("how", "padding", "size", "places"),
    [({"shift": 2}, 2, (5, 7), 25), ({"crop": 3}, 0, (3, 3), 15), ({"crop": 5}, 0, (5, 5), 3)],
)
def test_shifts_and_crops_are_windows_at_every_place(how, padding, size, places):
    images = distinct_pixels()
    cut = augment(images, how, seeded())
    assert cut.shape == (*images.shape[:2], *size)
    windows = F.pad(images, (padding,) * 4).unfold(2, size[0], 1).unfold(3, size[1], 1)
    same = (windows == cut[:, :, None, None]).all(1).flatten(3).all(3)  # (N, rows, columns)
    assert (same.sum((1, 2)) == 1).all()
    assert same.any(0).sum() == places  # rows and columns move apart from one another


@pytest.fixture
def augmented(monkeypatch):
    """Collect what images go into augmentation, and what comes out."""
    seen, plain = [], trainer.augment

    def spy(images, how, source):
        seen.append((images, plain(images, how, source)))
        return seen[-1][1]

    monkeypatch.setattr(trainer, "augment", spy)
    return seen


def test_a_crop_trains_on_windows_and_measures_the_centres(augmented):
    run = fit(make(augment={"crop": 5}, model_options={"inputs": 25}, epochs=1))
    assert [(x.shape[2:], y.shape[2:]) for x, y in augmented] == [((8, 8), (5, 5))] * 4
    small = data.preprocess(SPLIT, crop=5)
    for part in ("train", "test"):
        measured = training.evaluate(run.model(), getattr(small, part))
        assert tuple(run.history.iloc[-1][[f"{part}_loss", f"{part}_accuracy"]]) == measured
    assert not same_weights(run.state(), fit(make(model_options={"inputs": 25}), small).state())


def test_augmentation_is_of_what_is_trained_on_alone_and_new_at_every_step(augmented, monkeypatch):
    spec, split = make(augment={"shift": 2}, batch_size=60, epochs=3), alike()
    run = fit(spec, split)
    seen = [images for _, images in augmented]
    assert len(seen) == 3
    before = [split.train.images, *seen[:-1]]
    assert not any(torch.equal(a, b) for a, b in zip(seen, before, strict=True))
    monkeypatch.setattr(trainer, "augment", lambda images, how, source: seen.pop(0))
    assert same_weights(run.state(), fit(spec, split).state())
    measured = training.evaluate(run.model(), split.train)
    assert tuple(run.history.iloc[-1][["train_loss", "train_accuracy"]]) == measured


# --- precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "mnist_convnet"])
def test_bfloat16_takes_other_steps_to_nearly_the_same_weights(network):
    options = MLP if network == "mlp" else {"channels": (2, 3)}
    split = SPLIT if network == "mlp" else random_split(40, 10, 28)
    spec = make(model=network, model_options=options, learning_rate=0.01)
    whole, half = fit(spec, split), fit(dataclasses.replace(spec, precision="bfloat16"), split)
    flat = [
        torch.cat([value.flatten() for value in run.state(epoch).values()])
        for run, epoch in ((whole, 0), (whole, 2), (half, 2))
    ]
    assert all(value.dtype == torch.float32 for value in half.state().values())
    assert 0 < (flat[1] - flat[2]).norm() < 0.1 * (flat[1] - flat[0]).norm()


def test_measurements_of_a_run_in_bfloat16_are_in_float32():
    run = fit(make(precision="bfloat16"))
    logits = run.model()(SPLIT.test.images)
    assert logits.dtype == torch.float32
    loss = F.cross_entropy(logits.double(), SPLIT.test.labels).item()
    assert run.history.test_loss.iloc[-1] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("units, precision", [(True, "bfloat16"), (False, "float32")])
def test_the_machine_decides_where_the_precision_is_left_to_it(
    units, precision, monkeypatch, tmp_path
):
    monkeypatch.setattr(trainer, "has_bfloat16_units", lambda device: units)
    run = fit(make(precision="auto"), store=tmp_path)
    assert same_weights(run.state(), fit(make(precision=precision)).state())
    assert json.loads((tmp_path / run.key / "run.json").read_text())["precision"] == precision
