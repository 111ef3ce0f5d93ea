"""A member of a population is the network that its specification gives when trained alone."""

import copy

import pandas as pd
import pytest
import torch
from _tiny_runs import forbid_steps, interrupt, random_split, watch_bars
from torch import nn

from replication import models, training
from replication.training import _batched
from replication.training import population as programs

pytestmark = pytest.mark.usefixtures("one_thread")

MLP = {"inputs": 64, "widths": (12, 8)}
SPLIT = random_split(72, 30)  # an epoch is 5 steps of 16 images, the last of 8


def make(**changes):
    settings = {"model": "mlp", "model_options": MLP, "learning_rate": 0.05, "batch_size": 16}
    settings |= {"epochs": 20, "evaluate_every": 7, "dtype": "float64"}  # 100 steps
    return training.Spec(**settings | changes)


def fit(spec, **options):
    return training.fit(spec, SPLIT, progress=False, **options)


def population(specs, **options):
    return training.fit_population(specs, SPLIT, progress=False, **options)


def convnet(batch_norm=True, dropout=0.2):
    layers = [nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10)]
    if batch_norm:
        layers.insert(1, nn.BatchNorm2d(4))
    if dropout:
        layers.insert(-2, nn.Dropout2d(dropout))
        layers.insert(-1, nn.Dropout(dropout))
    return nn.Sequential(*layers)


def any_size():
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 10))


@pytest.fixture(autouse=True)
def a_convnet(monkeypatch):
    monkeypatch.setitem(models.MODELS, "convnet", convnet)


def assert_close(one, other, bound=1e-10):
    assert (one.status, one.checkpoints) == (other.status, other.checkpoints)
    pd.testing.assert_frame_equal(one.history, other.history, rtol=0, atol=100 * bound)
    for epoch in one.checkpoints:
        if one.status == "diverged" and epoch:
            continue  # weights of 1e200 differ by more than any bound
        first, second = one.state(epoch), other.state(epoch)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert tensor.dtype == second[name].dtype
            torch.testing.assert_close(
                tensor, second[name], rtol=0, atol=bound, equal_nan=True, msg=f"{name} at {epoch}"
            )


def assert_as_alone(specs, monkeypatch):
    """Assert that members are the networks trained alone, without steps of their own."""
    alone = [fit(spec) for spec in specs]
    forbid_steps(monkeypatch)
    for run, other in zip(population(specs), alone, strict=True):
        assert run.spec == other.spec
        assert_close(run, other)
    return alone


OPTIMIZERS = [
    {},
    {"optimizer_options": {"momentum": 0.9}},
    {"optimizer_options": {"momentum": 0.9, "nesterov": True}},
    {"optimizer": "Adam", "learning_rate": 0.003},
    {"optimizer": "Adam", "learning_rate": 0.003, "optimizer_options": {"betas": [0.8, 0.9]}},
    {"optimizer": "RMSprop", "learning_rate": 0.001},
    {"optimizer": "RMSprop", "learning_rate": 0.001, "optimizer_options": {"momentum": 0.5}},
]


@pytest.mark.parametrize("how", OPTIMIZERS, ids=lambda how: str(how.get("optimizer", "SGD")))
@pytest.mark.parametrize(
    "model",
    # A bias in front of batch norm has a gradient of rounding alone, which Adam scales up.
    [{"activation": "tanh"}, {"batch_norm": True, "dropout": 0.3, "bias": False}],
    ids=["tanh", "batch norm and dropout"],
)
def test_a_member_is_the_network_trained_alone(how, model, monkeypatch):
    decayed = {**how.get("optimizer_options", {}), "weight_decay": 0.01}
    specs = [
        make(**how, model_options=MLP | model, seed=3),
        make(**how, model_options=MLP | model, seed=4, label_corruption=0.5, checkpoints=(0.4, 8)),
        make(**how | {"optimizer_options": decayed}, model_options=MLP | model, schedule="cosine"),
    ]
    assert_as_alone(specs, monkeypatch)


ACTIVATIONS = (nn.ReLU(), nn.ReLU6(), nn.Tanh(), nn.Hardtanh(), nn.Hardsigmoid(), nn.Sigmoid())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [*ACTIVATIONS, nn.LeakyReLU(0.3)], ids=str)
def test_gradients_by_hand_are_right_for_every_activation_and_with_dropout(
    activation, bias, monkeypatch
):
    def network():
        model = models.mlp(64, (12, 8), bias=bias, dropout=0.3)
        model.act1, model.act2 = copy.deepcopy(activation), copy.deepcopy(activation)
        model.fc1.weight.data *= 10  # beyond all kinks
        return model

    assert _batched.has_gradients(network())
    monkeypatch.setitem(models.MODELS, "network", network)
    shared = {"model": "network", "model_options": {}, "epochs": 3}
    assert_as_alone([make(**shared, seed=seed) for seed in (1, 2)], monkeypatch)


@pytest.mark.parametrize("options", [{}, {"batch_norm": False}, {"dropout": 0}])
def test_a_mapped_member_is_the_network_trained_alone(options, monkeypatch):
    shared = {"model": "convnet", "model_options": options, "epochs": 20}
    specs = [make(**shared), make(**shared, seed=2, learning_rate=0.02, augment={"flip": 1})]
    monkeypatch.setattr(programs, "strategy", lambda *_: "vmap")
    assert_as_alone(specs, monkeypatch)


@pytest.mark.parametrize(
    "how, model",
    [
        ("products", MLP),
        ("products", MLP | {"batch_norm": True, "dropout": 0.3, "bias": False}),
        ("vmap", {"batch_norm": False}),
        ("vmap", {}),
    ],
)
def test_members_in_bfloat16_are_trained_in_bfloat16(how, model, monkeypatch):
    name = "mlp" if how == "products" else "convnet"
    shared = {"model": name, "model_options": model, "dtype": "float32", "epochs": 8}
    specs = [make(**shared, precision="bfloat16", seed=seed) for seed in (1, 2)]
    alone, whole = [fit(s) for s in specs], fit(make(**shared, seed=1))
    forbid_steps(monkeypatch)
    monkeypatch.setattr(programs, "strategy", lambda *_: how)
    monkeypatch.setattr(programs, "members_at_once", lambda *_: 2)
    start, alone, whole, member = (
        torch.cat([value.flatten() for value in run.state(epoch).values()])
        for run, epoch in ((alone[0], 0), (alone[0], 8), (whole, 8), (population(specs)[0], 8))
    )
    assert (member - whole).norm() > (alone - whole).norm() / 5  # mapped, biases are float32
    assert (member - alone).norm() < 0.02 * (alone - start).norm()


VARIED = [
    {"epochs": 9.4, "evaluate_every": 2},
    {"epochs": 6, "evaluate_every": 0.2, "evaluation_images": 20},
    {"epochs": 12, "schedule": "exponential", "learning_rate": 0.2},
    {"epochs": 12, "stop_at_train_accuracy": 0.2, "learning_rate": 0.2, "evaluate_every": 1},
    {"epochs": 3, "augment": {"shift": 1, "flip": 0.5}},
    {"epochs": 5, "learning_rate": 1e200, "evaluate_every": 1},  # diverges
    {"epochs": 4, "image_corruption": "random_pixels"},
    {"epochs": 4, "image_corruption": "gaussian", "seed": 8},
]


def test_each_member_keeps_its_own_length_rows_data_and_end(monkeypatch):
    alone = assert_as_alone([make(**changes) for changes in VARIED], monkeypatch)
    assert {run.status for run in alone} == {"finished", "stopped", "diverged"}


def test_crops_of_two_sizes_are_two_programs(monkeypatch):
    monkeypatch.setattr(programs, "strategy", lambda *_: "vmap")
    monkeypatch.setitem(models.MODELS, "convnet", any_size)
    ways = [{"crop": 5}, {"crop": 6}, {"crop": 5, "flip": 0.5}, {"crop": 6}]
    shared = {"model": "convnet", "model_options": {}, "epochs": 1}
    assert_as_alone(
        [make(**shared, seed=s, augment=how) for s, how in enumerate(ways)], monkeypatch
    )


@pytest.fixture
def sizes(monkeypatch):
    """Collect how many networks are trained together, call by call."""
    found, train = [], programs._train

    def spy(members, *rest):
        found.append(len(members))
        return train(members, *rest)

    monkeypatch.setattr(programs, "_train", spy)
    return found


def test_mixed_specifications_are_grouped_and_come_back_in_order(sizes):
    specs = [
        make(seed=1, epochs=1),
        make(seed=1, epochs=1, model="convnet", model_options={}),
        make(seed=2, epochs=1),
        make(seed=2, epochs=1, batch_size=24),
        make(seed=1, epochs=1),  # the first again
        make(seed=1, epochs=1, optimizer="LBFGS"),
        make(seed=3, epochs=1, optimizer_options={"weight_decay": 0.1}),
        make(seed=4, epochs=1, optimizer_options={"momentum": 0.1}),
        make(seed=2, epochs=1, model="convnet", model_options={}),
    ]
    runs = population(specs)
    assert [run.spec for run in runs] == specs
    assert runs[0] is runs[4]
    assert sorted(sizes) == [1, 1, 1, 1, 1, 3]  # convolutions one by one on a CPU
    for run, spec in zip(runs, specs, strict=True):
        assert_close(run, fit(spec))


def test_large_groups_are_cut(sizes, monkeypatch):
    monkeypatch.setattr(programs, "members_at_once", lambda *_: 2)
    runs = population([make(seed=seed, epochs=1) for seed in range(5)])
    assert [run.spec.seed for run in runs] == list(range(5))
    assert sizes == [2, 2, 1]


# --- files -------------------------------------------------------------------------------------


def test_runs_are_stored_as_those_of_fit_are(tmp_path, monkeypatch):
    specs = [make(seed=seed, epochs=3, checkpoints=(1,)) for seed in range(3)]
    alone = fit(specs[1], store=tmp_path / "alone")
    assert_close(fit(specs[0], store=tmp_path / "a"), population(specs, store=tmp_path / "a")[0])
    forbid_steps(monkeypatch)  # nothing is trained again, nor steps taken
    loaded = [fit(spec, store=tmp_path / "a") for spec in specs]
    assert_close(loaded[1], alone)
    names = [{path.name for path in (tmp_path / f / alone.key).iterdir()} for f in ("a", "alone")]
    assert names[0] == names[1]


INTERRUPTED = [
    {"seed": 1, "optimizer": "Adam", "learning_rate": 0.003},
    {"seed": 2, "optimizer": "Adam", "learning_rate": 0.003, "evaluate_every": 0.6, "epochs": 5},
    {"seed": 3, "optimizer": "Adam", "learning_rate": 0.003, "label_corruption": 1.0},
    {"seed": 4, "optimizer_options": {"momentum": 0.9}},
    {"seed": 5, "optimizer_options": {"momentum": 0.9}, "evaluate_every": 1},
]


@pytest.mark.parametrize("step", [7, 23])
@pytest.mark.parametrize("alone", [False, True], ids=["population", "fit"])
def test_an_interrupted_population_goes_on_where_it_was(step, alone, tmp_path, monkeypatch):
    options = MLP | {"batch_norm": True, "dropout": 0.2, "bias": False}
    specs = [
        make(**{"epochs": 6, "evaluate_every": 2, "model_options": options} | changes)
        for changes in INTERRUPTED
    ]
    undisturbed = [fit(spec) for spec in specs]
    advance, taken = programs._advance, []

    def fragile(stack, *rest):
        if len(taken) == step:
            raise KeyboardInterrupt
        taken.append(len(stack.members))
        advance(stack, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(programs, "_advance", fragile)
        with pytest.raises(KeyboardInterrupt):
            population(specs, store=tmp_path)
    if alone:
        runs = [fit(spec, store=tmp_path) for spec in specs]
    else:
        runs = population(specs, store=tmp_path)
    for run, other in zip(runs, undisturbed, strict=True):
        assert_close(run, other)


def test_a_population_takes_up_a_run_that_was_trained_alone(tmp_path, monkeypatch):
    spec = make(optimizer_options={"momentum": 0.9}, evaluate_every=1, epochs=4)
    undisturbed = fit(spec)
    interrupt(monkeypatch, spec, SPLIT, tmp_path, step=9)
    advance, seen = programs._advance, []

    def spy(stack, *rest):
        seen.append(stack.members[0].training.step)
        advance(stack, *rest)

    monkeypatch.setattr(programs, "_advance", spy)
    other = make(optimizer_options={"momentum": 0.9}, evaluate_every=1, epochs=4, seed=5)
    monkeypatch.setattr(programs, "strategy", lambda *_: "products")
    assert_close(population([spec, other], store=tmp_path)[0], undisturbed)
    assert sorted(seen) == sorted([*range(20), *range(5, 20)])  # one epoch was saved


# --- choices and checks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "members", "device", "expected"),
    [
        ("mlp", MLP, 8, "cpu", "products"),
        ("mlp", MLP | {"batch_norm": True, "dropout": 0.1}, 8, "cuda", "products"),
        ("mlp", MLP, 1, "cpu", "solo"),
        ("mlp", {"inputs": 3072, "widths": (512,)}, 8, "cpu", "solo"),
        ("mlp", {"inputs": 3072, "widths": (512,)}, 8, "cuda", "products"),
        ("mnist_convnet", {}, 8, "cpu", "solo"),
        ("mnist_convnet", {}, 8, "cuda", "vmap"),
        ("row_lstm", {}, 8, "cuda", "solo"),
    ],
)
def test_the_strategy(name, options, members, device, expected):
    model = models.build(name, **options)
    assert programs.strategy(model, members, torch.device(device)) == expected


def test_global_randomness_is_not_touched():
    before = torch.get_rng_state()
    population([make(seed=s, epochs=1, model_options=MLP | {"dropout": 0.5}) for s in (1, 2)])
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_specifications_are_named():
    assert population([]) == []
    with pytest.raises(ValueError, match=r"specs\[1\]: expected a Spec, found dict"):
        population([make(epochs=1), {}])
    with pytest.raises(ValueError, match=r"optimizer_options: SGD was given"):
        population([make(optimizer_options={"speed": 1}, seed=s) for s in (1, 2)])
    with pytest.raises(ValueError, match="device"):
        population([make()], device="abacus")


def test_progress_counts_every_step(monkeypatch):
    bars = watch_bars(monkeypatch, programs)
    population([make(**changes) for changes in VARIED])
    assert bars[0].n == bars[0].total > 0
