"""What notebook 07 measures, on layers and networks whose answer is known."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from replication import data, similarity
from replication.papers import similarity_measurements as measurements
from replication.papers import which_similarity_metric as paper


def test_missing_directions_count_as_0_and_the_rest_is_that_of_similarity():
    x = torch.randn(200, 6).double()
    y = x[:, :3] @ torch.randn(3, 3).double()
    assert measurements.cca_over_all(x, y).item() == pytest.approx(3 / 6)
    assert measurements.cca_squared(x, y).item() == pytest.approx(1)
    # Of y everything is in x; of x the share of the three directions in absolute projections.
    assert measurements.pwcca_over_all(y, x).item() == pytest.approx(1)
    assert 0.2 < measurements.pwcca_over_all(x, y).item() < 0.8
    z = torch.randn(200, 6).double() + x
    expected = similarity.pwcca(x, z)
    assert measurements.pwcca_over_all(x, z).item() == pytest.approx(float(expected))
    procrustes = measurements.similarities({"x": x}, {"x": x, "z": z}, "Procrustes")[0]
    assert procrustes[0] == pytest.approx(1) and procrustes[1] == pytest.approx(
        1 - float(similarity.procrustes(x, z)) / 2
    )
    one, other = (
        measurements.similarities({"a": a}, {"b": b}, "regression") for a, b in ((x, z), (z, x))
    )
    assert one == pytest.approx(other)  # both orders are averaged


def test_whitened_layers_have_unit_variance_without_correlation():
    x = torch.randn(50, 4).double() @ torch.randn(4, 6).double() + 3  # of rank 4
    white, held_out = measurements.whitened(x, x[:5])
    assert white.shape == (50, 4)
    assert torch.allclose(torch.cov(white.mT), torch.eye(4, dtype=x.dtype), atol=1e-9)
    assert torch.allclose(held_out, white[:5])


def test_pooling_is_over_positions_or_tokens():
    maps = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert torch.equal(measurements.pooled(maps), maps.mean((2, 3)))
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    assert torch.equal(measurements.pooled(tokens), tokens.mean(1))


@pytest.fixture
def same_network(monkeypatch):
    """Networks that are all one linear layer, and the images that they see."""
    model = nn.Sequential()
    model.add_module("act8", nn.Linear(6, 6))
    model.add_module("act4", nn.Unflatten(1, (2, 3)))
    labels = torch.arange(60) % 3
    part = data.Examples(8 * torch.eye(6)[labels] + torch.randn(60, 6), labels)
    images = SimpleNamespace(train=part, test=part)
    run = SimpleNamespace(model=lambda *_, **__: model, spec=SimpleNamespace(model="tiny10"))
    monkeypatch.setattr(measurements, "runs_of", lambda nets, _: ((run, images) for _ in nets))
    measurements._represented.cache_clear()


def test_a_layer_is_equal_to_itself_and_not_to_its_shuffled_examples(same_network):
    spec = {"networks": [{}, {}], "layer": "act4", "counts": [20, 60], "seed": 0}
    rows = measurements.few_examples(spec | {"metrics": ["CKA linear", "CCA ρ"]}, "cpu")
    values = rows.pivot(index=["metric", "examples"], columns="kind", values="value")
    assert values.matched.to_numpy() == pytest.approx(1)
    assert (values.shuffled < 0.9).all() and set(rows.features) == {6}


def test_a_grid_has_all_pairs_and_components_only_as_far_as_there_are_any(same_network):
    spec = {"networks": [{}, {}], "layers": {"tiny10": ["act8"]}, "examples": 50, "part": "test"}
    rows = measurements.grid(spec | {"kept": [2, 6, 8], "metric": "CCA, missing 0"}, "cpu")
    assert set(rows.layer) == {"2 components", "6 components"} and len(rows) == 16
    expected = (rows.layer == rows.other).map({True: 1.0, False: 2 / 6})
    assert rows.value.to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-4)


def test_moved_points_bring_cka_down_and_not_the_whitened_probe(same_network):
    spec = {"network": {"seed": 0}, "examples": 60, "distances": [0, 50]}
    rows = measurements.moved_points(spec | {"metrics": ["CKA linear"]}, "cpu")
    value = rows.set_index(["change", "metric", "distance"]).value
    assert value["subset", "CKA linear", 0] == pytest.approx(1)
    assert value["subset", "CKA linear", 50] < 0.2
    assert value["one example", "CKA linear", 50] < value["subset", "CKA linear", 0] - 0.1
    assert value["subset", "probe", 50] > 0.9


def test_tasks_are_halves_of_the_classes():
    labels = torch.arange(10)
    part = data.Examples(torch.randn(10, 1, 2, 2), labels)
    split = data.Split(part, part, "digits", tuple("0123456789"), "here")
    low, high = (measurements.taught(split, classes) for classes in ("low", "high"))
    assert low.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(high.test.images, part.images[5:])
    assert measurements.taught(split, "all") is split


def test_shifted_images():
    images = torch.rand(2, 1, 28, 28)
    assert measurements.covered(images)[..., 9:19, 9:19].abs().max() == 0
    turned = measurements.rotated(images, 90.0)
    assert torch.allclose(turned, images.rot90(1, (2, 3)), atol=1e-4) or torch.allclose(
        turned, images.rot90(-1, (2, 3)), atol=1e-4
    )
    noise = measurements.noisy(torch.zeros(4, 1, 28, 28))
    assert 0.45 < noise.std() < 0.55


def test_the_plan_names_every_network_and_trains_the_widest_first():
    plan = paper.plan("smoke", "mnist5k", "cpu")
    trained = plan["networks"].specs
    widths = [spec["options"]["width"] for spec in trained]
    assert widths[0] == max(paper.SETTINGS["smoke"]["widths"])
    for name in ("layers, convnet", "layers, transformer", "two seeds"):
        assert all(net in trained for spec in plan[name].specs for net in spec["networks"])
    seeds = [spec["seed"] for spec in plan["populations"].specs]
    assert len(set(seeds)) == len(seeds) == 2 * paper.SETTINGS["smoke"]["members"]
