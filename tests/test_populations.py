"""A member of a population is the network that its specification gives when trained alone."""

import pandas as pd
import pytest
import torch
from _tiny_runs import forbid_steps, interrupt, random_split
from torch import nn

from replication import models, training
from replication.training import _batched
from replication.training import population as programs

pytestmark = pytest.mark.usefixtures("one_thread")

MLP = {"inputs": 64, "widths": (12, 8)}
SPLIT = random_split(72, 30)  # an epoch is 5 steps of 16 images, the last of 8


def make(**changes):
    settings = {
        "model": "mlp",
        "model_options": MLP,
        "learning_rate": 0.05,
        "batch_size": 16,
        "epochs": 20,  # 100 steps
        "evaluate_every": 7,
        "dtype": "float64",
    }
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


OPTIMIZERS = [
    {},
    {"optimizer_options": {"momentum": 0.9}},
    {"optimizer_options": {"momentum": 0.9, "dampening": 0.2}},
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
    alone = [fit(spec) for spec in specs]
    forbid_steps(monkeypatch)
    for run, other in zip(population(specs), alone, strict=True):
        assert run.spec == other.spec
        assert_close(run, other)


def test_a_bias_that_batch_norm_cancels_does_not_matter():
    how = {"optimizer": "Adam", "learning_rate": 0.003}
    specs = [make(**how, model_options=MLP | {"batch_norm": True}, seed=s) for s in (1, 2)]
    for run, spec in zip(population(specs), specs, strict=True):
        other = fit(spec)
        pd.testing.assert_frame_equal(run.history, other.history, rtol=0, atol=1e-10)
        for name, weight in run.state().items():
            if not name.endswith((".bias", "running_mean")) or name == "fc3.bias":
                torch.testing.assert_close(weight, other.state()[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"batch_norm": False}, {"dropout": 0}])
def test_a_mapped_member_is_the_network_trained_alone(options, monkeypatch):
    shared = {"model": "convnet", "model_options": options, "epochs": 20}
    specs = [make(**shared), make(**shared, seed=2, learning_rate=0.02, augment={"flip": 1})]
    alone = [fit(spec) for spec in specs]
    forbid_steps(monkeypatch)
    monkeypatch.setattr(programs, "strategy", lambda *_: "vmap")
    for run, other in zip(population(specs), alone, strict=True):
        assert_close(run, other)


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
    specs = [make(**changes) for changes in VARIED]
    alone = [fit(spec) for spec in specs]
    assert {run.status for run in alone} == {"finished", "stopped", "diverged"}
    forbid_steps(monkeypatch)
    for run, other in zip(population(specs), alone, strict=True):
        assert_close(run, other)


def test_cropped_members_are_the_networks_trained_alone(monkeypatch):
    specs = [
        make(model_options={"inputs": 36, "widths": (8,)}, epochs=6, seed=seed, augment=how)
        for seed, how in enumerate([{"crop": 6}, {"crop": 6, "flip": 0.5}])
    ]
    alone = [fit(spec) for spec in specs]
    forbid_steps(monkeypatch)
    for run, other in zip(population(specs), alone, strict=True):
        assert_close(run, other)


def test_crops_of_two_sizes_are_two_programs(monkeypatch):
    monkeypatch.setattr(programs, "strategy", lambda *_: "vmap")
    monkeypatch.setitem(models.MODELS, "convnet", any_size)
    specs = [
        make(model="convnet", model_options={}, epochs=1, seed=seed, augment={"crop": side})
        for seed, side in enumerate([5, 6, 5, 6])
    ]
    for run, spec in zip(population(specs), specs, strict=True):
        assert_close(run, fit(spec))


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
    assert not list((tmp_path / "a").rglob("resume*"))
    names = [{path.name for path in (tmp_path / f / alone.key).iterdir()} for f in ("a", "alone")]
    assert names[0] == names[1]


INTERRUPTED = [
    {"seed": 1, "optimizer": "Adam", "learning_rate": 0.003},
    {"seed": 2, "optimizer": "Adam", "learning_rate": 0.003, "evaluate_every": 0.6, "epochs": 5},
    {"seed": 3, "optimizer": "Adam", "learning_rate": 0.003, "label_corruption": 1.0},
    {"seed": 4, "optimizer_options": {"momentum": 0.9}},
    {"seed": 5, "optimizer_options": {"momentum": 0.9}, "evaluate_every": 1},
]


@pytest.mark.parametrize("step", [1, 7, 23])
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
    batched, seen = programs._advance, []
    monkeypatch.setattr(
        programs,
        "_advance",
        lambda stack, *rest: (seen.append(stack.members[0].training.step), batched(stack, *rest)),
    )
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


def test_masks_are_those_that_the_layers_draw():
    model = convnet().double().to(memory_format=torch.channels_last)
    images = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    inputs = _batched.dropout_inputs(model, images)
    assert {name: value.ndim for name, value in inputs.items()} == {"3": 4, "5": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        masks = _batched.draw_masks(model, inputs)
        torch.manual_seed(3)
        seen = {}
        for name in inputs:
            model.get_submodule(name).register_forward_hook(
                lambda _, x, y, name=name: seen.update({name: (x[0], y)})
            )
        model.train()(images)
    for name, (before, after) in seen.items():
        assert torch.equal(before * masks[name], after)


def test_global_randomness_is_not_touched():
    before = torch.get_rng_state()
    population([make(seed=s, epochs=1, model_options=MLP | {"dropout": 0.5}) for s in (1, 2)])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_last_minibatch_of_one_is_refused_by_batch_norm_as_it_is_alone():
    specs = [make(batch_size=71, epochs=1, model_options=MLP | {"batch_norm": True}, seed=s)
             for s in (1, 2)]  # fmt: skip
    with pytest.raises(ValueError, match=r"more than 1 value per channel"):
        fit(specs[0])
    with pytest.raises(ValueError, match=r"batch_size: .* needs at least 2 examples"):
        population(specs)


def test_bad_specifications_are_named():
    assert population([]) == []
    with pytest.raises(ValueError, match=r"specs\[1\]: expected a Spec, found dict"):
        population([make(epochs=1), {}])
    with pytest.raises(ValueError, match=r"optimizer_options: SGD was given"):
        population([make(optimizer_options={"speed": 1}, seed=s) for s in (1, 2)])
    with pytest.raises(ValueError, match="device"):
        population([make()], device="abacus")


def test_progress_counts_every_step(monkeypatch):
    shown = []

    class Bar:
        def __init__(self, **options):
            shown.append(options["total"])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count=1):
            shown.append(count)

    monkeypatch.setattr(programs, "bar", Bar)
    population([make(**changes) for changes in VARIED])
    assert shown[0] == sum(shown[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_a_member_on_the_gpu_is_the_network_trained_alone_there(model):
    options = MLP | {"batch_norm": True, "dropout": 0.2} if model == "mlp" else {}
    specs = [make(model=model, model_options=options, seed=seed) for seed in (1, 2, 3)]
    for run, spec in zip(population(specs, device="cuda"), specs, strict=True):
        assert_close(run, fit(spec, device="cuda"), bound=1e-8)


def test_files_are_where_they_are_said_to_be(tmp_path):
    (run,) = population([make(epochs=1)], store=str(tmp_path))
    assert {path.parent for path in tmp_path.rglob("run.json")} == {tmp_path / run.key}
