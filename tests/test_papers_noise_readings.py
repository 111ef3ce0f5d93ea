"""Notebook 04's multiverse, attacks and detector, against closed forms."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from replication import data, models
from replication.papers import noise_attacks, noise_readings
from replication.papers.noise_readings import CHOICES, LAYERS, MEASURES, SHOWN

NETWORK = models.build("mnist_convnet", 0, channels=[2, 3]).eval()
LABELS = torch.arange(3).repeat_interleave(2)
EXAMPLES = data.Examples(
    torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0)), LABELS
)


def conv1(**options):
    table = noise_readings.components(NETWORK, EXAMPLES, **{"sigma": 0.2, "copies": 8} | options)
    assert table.layer.tolist() == list(LAYERS)
    return table.set_index("layer").loc["conv1"]


def test_without_noise_all_lies_on_the_first_component():
    found = conv1(sigma=0.0)
    assert found["squares 1"] == 1 and found["values 1"] == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        lengths = NETWORK[:1](EXAMPLES.images).flatten(1).norm(dim=1)
    assert found.s1 == pytest.approx(float(lengths.mean()), rel=1e-5)


def test_a_group_is_an_image_or_a_class_and_a_neuron_a_position_or_a_channel():
    spread = {name: 1 - conv1(**how)["squares 1"] for name, how in {
        "image": {}, "class": {"by_class": True}, "channels": {"means": True},
    }.items()}  # fmt: skip
    assert spread["class"] > 1.2 * spread["image"]  # images of a class differ
    assert spread["channels"] < 0.2 * spread["image"]  # noise averages out
    assert conv1(seed=1)["squares 1"] != conv1()["squares 1"] == conv1(seed=0)["squares 1"]


def test_clipping_to_one_value_leaves_no_noise():
    assert conv1(bounds=(0.5, 0.5))["squares 1"] == 1
    assert conv1(bounds=(0.0, 1.0))["squares 1"] > conv1()["squares 1"]


def test_twelve_networks_have_every_level_equally_often():
    chosen = pd.DataFrame(noise_readings.twelve())
    assert len(chosen.drop_duplicates()) == 12
    for name, levels in CHOICES.items():
        assert (chosen[name].value_counts() == 12 / len(levels)).all()


def universe(optimizer, fall, grown, seeds=(0, 1)):
    """Return readings in which EV1 of every layer falls by `fall` times (10 - depth)."""
    rows = []
    for seed in seeds:
        for epoch, share in ((0, 0.0), (1, 0.0), (5, 1.0)):
            for layer in LAYERS:
                depth = SHOWN.index(layer) if layer in SHOWN else 0
                row = {"optimizer": optimizer, "seed": seed, "reading": "as the rules"}
                row |= {"epoch": epoch, "layer": layer, "s1": np.exp(grown * share)}
                for measure in MEASURES:
                    first = 0.9 - fall * share * (10 - depth) + 0.01 * seed
                    row |= {f"{measure} 1": first, f"{measure} 2": 0.02 * share}
                rows.append(row)
    return pd.DataFrame(rows)


def test_effects_are_signed_as_the_post_has_them():
    table = pd.concat([universe("SGD", 0.01, 0.5), universe("Adam", -0.01, -0.5)])
    found = noise_readings.effects(table, ["optimizer"]).query("EV == 'squares' and baseline == 1")
    values = found.set_index(["optimizer", "claim", "after"]).effect
    expected = {"SGD": 1.0, "Adam": -1.0}
    for name, sign in expected.items():
        assert values[name, "B1", "ReLU"] == pytest.approx(sign * 0.095)
        assert values[name, "B1", "convolution"] == pytest.approx(sign * 0.1)
        assert values[name, "B2", "ReLU"] == pytest.approx(sign)
        assert values[name, "B3", "ReLU"] == pytest.approx(0.02)
        assert values[name, "s1", "ReLU"] == pytest.approx(sign * 0.5)


def test_the_fall_of_ev1_is_what_noise_gains_on_all_energy():
    table = universe("SGD", 0.0, 0.5)
    still = table.epoch < 5
    table.loc[still, "squares 1"], table.loc[~still, "squares 1"] = 0.8, 0.6
    table["s1"] = table["squares 1"] ** 0.5 * np.where(still, 1.0, 3.0)  # energies 1 and 9
    (row,) = noise_readings.gains(table, ["optimizer"]).itertuples()
    assert row.energy == pytest.approx(np.log(9)) and row.beside == pytest.approx(np.log(18))
    assert row.fall == pytest.approx(np.log(0.4 / 0.2))


def test_main_effects_of_a_table_made_of_them():
    grid = pd.MultiIndex.from_product([["a", "b"], ["c", "d"]], names=["one", "two"]).to_frame(
        False
    )
    grid["effect"] = 3.0 * (grid.one == "a") + 1.0 * (grid.two == "c") - 1.5
    found = noise_readings.by_choice(grid, ["one", "two"])
    assert found.variance.to_dict() == pytest.approx({"one": 0.9, "two": 0.1})
    assert found["post's sign"].to_dict() == {"one": "a: 100%, b: 0%", "two": "c: 50%, d: 50%"}


# --- attacks -----------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Doubles its images, then reads off ten sums."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Identity()
        self.read = nn.Linear(28 * 28, 10)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            nn.init.normal_(self.read.weight)

    def forward(self, x):
        return self.read(self.twice(2 * x).flatten(1))


@pytest.fixture(scope="module")
def passed():
    model = Scaled().eval()
    known = data.Examples(EXAMPLES.images, model(EXAMPLES.images).argmax(1))
    table = noise_attacks.passed_on(model, known, 0.1, 8, ("twice", "read"))
    return table.set_index(["attack", "match", "layer"])


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_noise_is_matched_to_attacks_at_the_input(passed, kind):
    at = {match: passed.loc[kind, match, "input"] for match in noise_attacks.MATCHES}
    own, spread, norm = at.values()
    assert spread["spread"] == pytest.approx(own["spread"], rel=1e-6) and spread["shift"] < 1e-12
    total = own["spread"] + own["shift"]
    assert norm["spread"] + norm["shift"] == pytest.approx(total, rel=1e-6)
    assert own["shift"] > 5 * norm["shift"]  # an attack moves all copies one way


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_a_scaled_image_is_passed_on_as_it_is_and_the_attack_reaches_the_logits(passed, kind):
    for match in noise_attacks.MATCHES:
        one, other = (passed.loc[kind, match, layer] for layer in ("input", "twice"))
        for column in ("shift", "spread", "unexplained"):
            assert other[column] == pytest.approx(one[column], rel=1e-4, abs=1e-10)
    own, noise = (
        passed.loc[kind, match, "read"]
        for match in (noise_attacks.MATCHES[0], noise_attacks.MATCHES[2])
    )
    assert own["shift"] > 5 * noise["shift"]
    assert own.accuracy < noise.accuracy


def test_perturbations_stay_in_their_ball():
    for kind in ("fgsm", "pgd"):
        moved = noise_attacks.perturbations(NETWORK, EXAMPLES.images, kind, 0.1, 3)
        assert moved.shape == (6, 3, 1, 28, 28) and moved.abs().max() <= 0.1 + 1e-6
    noise = noise_attacks.perturbations(NETWORK, EXAMPLES.images, "gaussian", 0.1, 3)
    assert noise.std() == pytest.approx(0.1, rel=0.05)


def test_a_detector_finds_what_its_features_tell_and_nothing_else():
    source, tables = np.random.default_rng(0), []
    for net in "abc":
        for kind in ("clean", "fgsm"):
            known = source.normal(3.0 * (kind == "fgsm"), 1.0, 400)
            table = pd.DataFrame({"spectrum x": known, "network": net, "kind": kind, "size": 0.1})
            table["input x"] = known + (10 if net == "a" else 0)  # another scale in one network
            table["logits x"] = source.normal(size=400)
            tables.append(table.assign(fit=np.arange(400) % 2 == 0))
    areas = noise_attacks.detection(pd.concat(tables)).pivot(
        index="network", columns="features", values="auc"
    )
    assert (areas.spectrum > 0.97).all() and ((areas.logits - 0.5).abs() < 0.1).all()
    assert areas.spectrum["b"] == pytest.approx(areas.input["b"], abs=0.02)


def test_features_of_each_kind_are_finite_also_without_noise():
    found = noise_attacks.features(NETWORK, EXAMPLES.images, 0.0, 4, LAYERS)
    assert np.isfinite(found.to_numpy()).all() and len(found) == 6
    kinds = {name.split()[0] for name in found}
    assert kinds == set(noise_attacks.FEATURES)
