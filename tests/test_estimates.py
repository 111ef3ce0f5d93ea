"""Estimates: what a notebook would train is what its settings say, and its time is of steps."""

import ast
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from replication import _estimates, _planned, _script, training
from replication._planned import Row

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("0[1-8]_*.ipynb"))
MNIST, CIFAR = 60_000, 50_000
CPU = torch.device("cpu")


def settings_of(path):
    """Return the notebook's settings at the paper's scale, read from its settings cell."""
    for cell in _script.read(path).cells:
        if cell.cell_type == "code" and cell.source.startswith("SETTINGS"):
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Assign) and node.targets[0].id == "SETTINGS":
                    settings = eval(ast.unparse(node.value), {"dict": dict})
                    return settings["paper"]
    raise AssertionError("no settings")


def random_labels(s):
    epochs, seeds = s["epochs"], s["seeds"]
    # Per level: two MLPs, AlexNet for twice as long, Inception; 3 kinds of corrupted images.
    # Regularised, on true and on random labels: decay, crop (random: twice as long), dropout,
    # no batch normalisation (3 times as long); two pairs of regularisers.
    budgets = 5 * len(s["levels"]) + 3 + (5 + 3 + 4 + 3) + (5 + 6 + 4 + 3) + 3 + 3
    networks = seeds * (4 * len(s["levels"]) + 3 + 2 * (4 + 2 + 3 + 1) + 3)
    taught, _, measured = s["learning"]
    again = 2 * s["cheap"]  # of each, all its repeats but the first depend on a result
    passes = seeds * budgets * epochs * s["images"][0] + again * taught * max(measured)
    return networks + again, passes


def single_directions(s):
    rates, batches, decays, sweep_epochs = s["grid"]
    runs = {
        "corruption, batch norm": ((5 + 3) * s["seeds"], s["epochs"], MNIST),
        "dropout": (4 * 2 * s["seeds"], s["dropout"][1], s["dropout"][0] or MNIST),
        "population": (2 * s["networks"], s["population_epochs"], MNIST),
        "training": (s["seeds"], s["epochs"], MNIST),
        "sweep": (
            len(rates) * len(batches) * len(decays) * s["repeats"],
            sweep_epochs,
            MNIST,
        ),
        "convnets": (2 * 5 * 5, 100, CIFAR),
    }
    return total(runs.values())


def svcca(s):
    # The convnets are trained a second time, freezing.
    convnets, resnets = s["seeds"]
    return total([(2 * convnets, s["epochs"], CIFAR), (resnets, s["resnet"][2], CIFAR)])


def noise_svd(s):
    images, epochs = s["pair"]
    return total([(s["seeds"], s["epochs"], MNIST), (2 * s["seeds"], epochs, images)])


def jacobian(s):
    shape = len(s["widths"]) * len(s["depths"])
    sweep = [(5 * shape * 2 * s["seeds"], s["epochs"], n) for n in (MNIST, MNIST, CIFAR)]
    f = s["factors"]
    pairs = len(f["widths"]) * len(f["depths"]) * f["seeds"]
    # The baseline and the random labels are among the sweep's.
    assert f["epochs"] == s["epochs"] and not s["stop"] and f["seeds"] <= s["seeds"]
    one = s["single"]
    return total([*sweep, (4 * pairs, f["epochs"], CIFAR), (one["seeds"], one["epochs"], MNIST)])


def cca_insights(s):
    images, populations, networks, epochs = s["population"]
    (lstm_images, _), _, lstm_epochs, lstm_seeds = s["lstm"]
    widths = {*s["widths"], s["width"]}
    convnets = len(widths) * s["group"] + s["followed"]  # the memorising ones are a group, too
    return total(
        [
            (convnets, s["epochs"], s["images"][0]),
            (populations * networks, epochs, images[0]),
            (lstm_seeds, lstm_epochs, lstm_images),
        ]
    )


def which_metric(s):
    _, width, epochs = s["convnet"]
    widths, width_seeds = s["widths"]
    depths, depth_seeds, _, depth_epochs = s["depths"]
    members, _, _, member_epochs = s["population"]
    wide = [w for w in widths if w != width]
    return total(
        [
            (len(wide) * width_seeds + s["seeds"], epochs, CIFAR),
            (s["seeds"], s["transformer"]["epochs"], CIFAR),
            (2 * s["seeds"], epochs, CIFAR // 2),
            (len(depths) * depth_seeds, depth_epochs, CIFAR),
            (2 * members, member_epochs, MNIST),
        ]
    )


def layers(s):
    sets = (("fcn", MNIST), ("convnet", MNIST), ("resnet", CIFAR))
    return total([(2 * s[arch]["seeds"], s[arch]["epochs"], n) for arch, n in sets])


def total(runs):
    runs = list(runs)
    return sum(n for n, _, _ in runs), sum(n * epochs * images for n, epochs, images in runs)


EXPECTED = [
    random_labels,
    single_directions,
    svcca,
    noise_svd,
    jacobian,
    cca_insights,
    which_metric,
    layers,
]


@pytest.mark.parametrize(
    ("path", "expected"),
    list(zip(NOTEBOOKS, EXPECTED, strict=True)),
    ids=lambda x: x.__name__[:20] if callable(x) else x.stem[:2],
)
def test_a_plan_has_the_networks_epochs_and_images_of_the_settings(
    path, expected, tmp_path, monkeypatch
):
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))
    before = training.fit
    rows = _planned.rows(path, {"profile": "paper", "device": "cpu", "dataset": "auto"})
    networks, passes = expected(settings_of(path))
    assert sum(row.networks for row in rows) == networks
    assert sum(row.networks * row.spec.epochs * row.images for row in rows) == passes
    assert training.fit is before
    assert not list(tmp_path.iterdir())  # nothing is written


def a_row(**changed):
    spec = training.Spec(
        model="mlp", model_options={"inputs": 12, "widths": [4]}, batch_size=10, epochs=3
    )
    return replace(Row(spec, (3, 2, 2), 40, 5, 1), **changed)


def test_time_grows_with_networks_steps_and_batches_and_what_is_not_timed_is_scaled():
    plans = {"one": [a_row()], "more": [a_row(networks=50)], "none": []}
    plans["longer"] = [a_row(spec=replace(a_row().spec, epochs=6))]
    found = _estimates.estimates(plans, CPU)
    one = found["one"]
    assert (one.networks, one.steps, one.share, one.memory) == (5, 5 * 3 * 4, 1, None)
    assert one.seconds > 0
    assert found["more"].seconds == pytest.approx(10 * one.seconds)
    assert found["longer"].seconds == pytest.approx(2 * one.seconds)
    assert (found["none"].networks, found["none"].seconds, found["none"].share) == (0, 0, 1)

    other = a_row(spec=replace(a_row().spec, model_options={"inputs": 12, "widths": [5]}))
    timed = {_estimates._kind(a_row()): _estimates._Timing(0.5, None)}
    both = _estimates._estimate([a_row(), other], timed)
    assert both.share == pytest.approx(0.5, abs=0.01)
    assert both.seconds == pytest.approx(2 * 0.5 * 60, rel=0.01)
    late = _estimates.estimates({"late": [a_row(networks=50), other]}, CPU, limit=0)["late"]
    assert late.share == pytest.approx(50 / 55, abs=0.01)
    assert math.isnan(_estimates._estimate([other], {}).seconds)
    assert _estimates._operations("mlp", '{"inputs": 12, "widths": [4]}', (3, 2, 2)) == 88


def test_networks_trained_as_one_program_are_timed_as_one(monkeypatch):
    seen, timed = [], _estimates._of_many

    def spy(spec, split, device, members):
        seen.append((members, timed(spec, split, device, members)))
        return seen[-1][1]

    monkeypatch.setattr(_estimates, "_of_many", spy)
    found = _estimates.estimates({"all": [a_row(together=8, networks=8)]}, CPU)["all"]
    ((members, share),) = seen
    assert members == 8 and share > 0
    assert found.seconds == pytest.approx(share * 8 * 3 * 4)


def test_the_table_says_what_it_is(monkeypatch):
    monkeypatch.setattr(_planned, "rows", lambda path, parameters: [a_row()])
    found = _estimates.text([Path("04_noise.ipynb")], {"profile": "paper", "device": "cpu"})
    assert found.startswith("estimate: training only; measurements come on top\nCPU, ")
    assert "04_noise" in found and "5 networks" in found and "memory not measured" in found
    assert found.splitlines()[-1].split()[:2] == ["in", "all"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.4, "3 s"), (90, "1.5 min"), (1200, "20 min"), (5400, "1.5 h"), (3.6e6, "1,000 h")],
)
def test_durations_in_words(seconds, words):
    assert _estimates.duration(seconds) == words


@pytest.mark.gpu
def test_memory_on_a_gpu():
    found = _estimates.estimates({"one": [a_row()]}, torch.device("cuda"))["one"]
    assert found.memory > 8 * 40 * 12 and found.seconds > 0
