"""What notebook 07 measures, on layers whose answer is known."""

import numpy as np
import pytest
import torch

from replication import similarity
from replication.papers import similarity_measurements as measured
from replication.papers import which_similarity_metric as paper


def reduced(x):
    return measured.axes_of((x - x.mean(0)).mT @ (x - x.mean(0)))


def indices(x, y):
    a, b = reduced(x), reduced(y)
    cross = a.directions.mT @ (x - x.mean(0)).mT @ (y - y.mean(0)) @ b.directions
    return measured.linear_indices(cross / a.values[:, None] / b.values, a, b, len(x))


def test_indices_of_inner_products_are_those_of_the_functions():
    x, noise = torch.randn(2, 300, 12, dtype=torch.float64, generator=torch.manual_seed(0))
    y = x[:, :8] @ torch.randn(8, 9, dtype=torch.float64) + noise[:, :9]
    found, cca, svcca = indices(x, y), similarity.cca(x, y), similarity.svcca(x, y)
    sides = similarity.linear_regression_r2(x, y), similarity.linear_regression_r2(y, x)
    expected = {
        "CCA mean": cca.mean,
        "CCA R2": cca.correlations.square().mean(),
        "SVCCA mean": svcca.mean,
        "SVCCA R2": svcca.correlations.square().mean(),
        "SVCCA 0.5": similarity.svcca(x, y, variance=0.5).mean,
        "PWCCA": (similarity.pwcca(x, y) + similarity.pwcca(y, x)) / 2,
        "regression": sum(sides) / 2,
        "CKA linear": similarity.cka(x, y),
        "Procrustes": 1 - similarity.procrustes(x, y) / 2,
        "CCA, missing 0": cca.correlations.sum() / 12,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=1e-9), name
    assert set(paper.TABLE) - set(measured.KERNELS) <= set(found)


def test_missing_directions_count_as_0_on_the_side_of_the_full_layer():
    x = torch.randn(200, 6, dtype=torch.float64, generator=torch.manual_seed(0))
    y = x[:, :3] @ torch.randn(3, 3, dtype=torch.float64)
    assert indices(y, x)["PWCCA, missing 0"] == pytest.approx(1)
    assert indices(x, y)["PWCCA, missing 0"] < 0.8
    assert indices(x, y)["PWCCA"] == pytest.approx(1)
    shared = indices(x, x @ torch.diag(torch.arange(1.0, 7).double()))
    assert shared["PC 1-2"] <= 1 + 1e-9 and shared["eigenvectors"] == 6


def test_a_dead_layer_has_no_index():
    x = torch.randn(50, 3, dtype=torch.float64)
    assert indices(x, torch.zeros_like(x)) == {}


def test_streamed_inner_products_are_those_of_the_whole(monkeypatch):
    x, y = torch.randn(2, 90, 5, dtype=torch.float64)
    parts = zip(x.split(40), y.split(40), strict=True)
    joint = measured.streamed({"x": a, "y": b} for a, b in parts)
    expected = (x - x.mean(0)).mT @ (y - y.mean(0))
    assert torch.allclose(joint.products("x", "y"), expected)


def test_thinned_maps_keep_neurons_up_to_the_limit():
    maps = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
    assert torch.equal(measured.neurons(maps, 192), maps.flatten(1))
    assert torch.equal(measured.neurons(maps, 50), maps[..., ::2, ::2].flatten(1))
    assert torch.equal(measured.neurons(maps), maps.flatten(1))


def test_tokens_are_examples_at_each_of_four_places():
    net = {"recipe": {"model": "vit", "model_options": {"depth": 1}}}
    from replication import models

    model = models.build("vit", 0, size=8, patch=4, width=8, depth=1, heads=2).eval()
    with torch.no_grad():
        model.attention1.norm.weight.fill_(3.0)
    images, layers = torch.randn(5, 3, 8, 8), measured.layers_of(net)
    acts = {p: measured.recorded(model, layers, images, p) for p in measured.PLACES}
    assert all(z.shape == (25, 8) for places in acts.values() for z in places.values())
    before = acts["residual"]["mlp1"] - acts["sublayer"]["mlp1"]
    assert torch.allclose(before, acts["residual"]["attention1"], atol=1e-5)
    assert torch.allclose(3 * acts["layer norm"]["attention1"], acts["scale"]["attention1"])
    deviations = acts["layer norm"]["attention1"].std(1, correction=0)
    assert torch.allclose(deviations, torch.ones(25), atol=0.02)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A network of which all measurements are made, trained in no time."""
    monkeypatch.setattr(measured.paths, "runs", lambda: tmp_path)
    plan = paper.plan("smoke", "mnist5k", "cpu")
    return plan["flattened"].specs[0]["nets"][0], plan


def test_truncated_layers_are_as_alike_as_the_functions_say(tiny):
    net, _ = tiny
    spec = {"net": net, "seed": 0, "read": "spatial means", "examples": 60, "most": None}
    rows = measured.truncated(spec | {"gone": [0.5]}, "cpu")
    images = measured.images_of(net, "cpu")[0].train.images[:60]
    model = measured.model_of(net, 0, "cpu")
    acts = measured.recorded(model, ["act8"], images, "spatial means")["act8"].double()
    found = {row["metric"]: row for row in rows if row["layer"] == "act8"}
    kept = round((1 - found["CKA linear"]["deleted"]) * len(reduced(acts).values))
    first = torch.linalg.svd(acts - acts.mean(0), full_matrices=False).Vh[:kept]
    cut = acts.mean(0) + (acts - acts.mean(0)) @ first.T @ first
    assert found["CKA linear"]["value"] == pytest.approx(float(similarity.cka(acts, cut)), abs=1e-6)
    other = 1 - float(similarity.procrustes(acts, cut)) / 2
    assert found["Procrustes"]["value"] == pytest.approx(other, abs=1e-6)
    both = similarity.linear_regression_r2(acts, cut) + similarity.linear_regression_r2(cut, acts)
    assert found["regression"]["value"] == pytest.approx(float(both) / 2, abs=1e-6)


def test_untrained_networks_have_the_statistics_of_their_images(tiny):
    net = tiny[0]
    images = measured.images_of(net, "cpu")[0].train.images
    model = measured.model_of(net, 0, "cpu", 0)
    assert torch.equal(model.conv1.weight, measured.run_of(net, 0, "cpu").model(0).conv1.weight)
    maps = measured.recorded(model, ["bn8"], images, "flattened")["bn8"]
    assert maps.mean() == pytest.approx(0, abs=0.01) and maps.std() == pytest.approx(1, abs=0.05)
    trained, run = measured.model_of(net, 0, "cpu"), measured.run_of(net, 0, "cpu")
    assert torch.equal(trained.bn8.running_mean, run.model().bn8.running_mean)


def test_grids_say_on_how_many_examples_they_rest_and_what_permuted_ones_give(tiny):
    specs = {name: tiny[1][name].specs[0] for name in ("batch norm", "flattened")}
    grid, flat = (tiny[1][n].measure(s | {"examples": 40}, "cpu") for n, s in specs.items())
    assert set(grid.compared) == {40}
    assert set(grid.p) <= {k / 10 for k in range(1, 11)}  # nine permutations
    assert (grid.calibrated[grid.p > 0.1] == 0).all() and grid.null.between(0, 1).all()
    kernels = flat.metric.isin(measured.KERNELS)
    assert set(flat.compared[kernels]) == {40} == set(flat.compared[~kernels])


def test_moved_points_change_no_logit_and_bring_cka_down(tiny):
    options = tiny[0]["recipe"]["model_options"] | {"width": 0.25}  # more units than classes
    net = tiny[0] | {"recipe": tiny[0]["recipe"] | {"model_options": options}}
    spec = {"net": net, "seed": 0, "examples": 60, "distances": [0, 50], "metrics": paper.ROBUST}
    rows = measured.moved_points(spec, "cpu")
    far = {(r["change"], r["metric"]): r["value"] for r in rows if r["distance"] == 50}
    assert max(row["logits"] for row in rows) < 1e-6
    assert all(r["value"] == pytest.approx(1, abs=1e-6) for r in rows if r["distance"] == 0)
    assert far["one example", "CKA linear"] < 0.5


def test_fine_tuning_starts_from_the_pre_trained_network_and_is_kept(tiny):
    net = tiny[1]["fine-tunings"].specs[0]["net"]
    base = measured.run_of(net["base"], 0, "cpu").model()
    tuned, again = (measured.model_of(net, [0, 1], "cpu") for _ in range(2))
    other = measured.model_of(net, [1, 1], "cpu")
    assert all(
        torch.equal(a, b) for a, b in zip(tuned.parameters(), again.parameters(), strict=True)
    )

    def distance(model):
        return (model.conv1.weight - base.conv1.weight).norm()

    assert 0 < distance(tuned) < distance(other)  # fmt: skip


def test_classes_are_halves_and_stress_sets_are_what_they_say(tiny):
    low = measured.images_of({**tiny[0], "classes": "low"}, "cpu")[0]
    assert set(low.train.labels.tolist()) == set(range(5))
    images = torch.rand(2, 1, 28, 28)
    turned, right = measured.rotated(images, 90.0), [images.rot90(k, (2, 3)) for k in (1, -1)]
    assert any(torch.allclose(turned, r, atol=1e-4) for r in right)
    assert measured.noisy(torch.zeros(50, 1, 8, 8)).std() == pytest.approx(0.1, rel=0.1)


def test_representations_are_probed_on_two_halves(tiny):
    net = tiny[0]
    spec = {"net": net, "seeds": [0, 1], "layers": ["act8"], "components": [2], "examples": 50}
    rows = measured.benchmark(spec | {"probed": 100, "metrics": paper.THREE}, "cpu")
    assert len(rows) == 3 * 4 and {row["kept"] for row in rows} >= {2}
    own = [row["values"][i % 4] for i, row in enumerate(rows)]
    assert np.allclose(own, 1, atol=1e-5)
    assert all(0 <= row["first"] <= 1 and 0 <= row["second"] <= 1 for row in rows)
