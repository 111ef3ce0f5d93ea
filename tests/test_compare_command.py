"""`python -m replication compare`, from files to a figure and its numbers."""

import json
import sys
from importlib import metadata

import matplotlib.image
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from replication import __main__, plotting, similarity
from replication.papers import _compare, own_models

NETS = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, 2), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(576, 8)
    )

def other():
    from replication.papers import own_models
    transforms = own_models.torchvision().transforms
    return nn.Sequential(nn.Flatten(), nn.Linear(100, 8)), transforms.Compose(
        [transforms.Resize(10), transforms.ToTensor()]
    )
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "nets_to_compare.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.delitem(sys.modules, "nets_to_compare", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    namespace = {}
    exec(NETS, namespace)
    for seed, name in enumerate(("a", "b", "c")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = nn.Sequential(nn.Flatten(), nn.Linear(100, 8)) if name == "c" else None
            save_file((network or namespace["build"]()).state_dict(), f"{name}.safetensors")
    return tmp_path


def command(first, second, *more):
    files = [f"{name}.safetensors" for name in (first, second)]
    return ["compare", *files, "--model", "nets_to_compare:build", *more]


def test_the_figure_and_the_numbers(place, capsys):
    out = place / "some" / "where"
    arguments = command("a", "b", "--data", "mnist5k", "--metric", "cka", "--examples", "120")
    assert __main__.main([*arguments, "--null", "2", "--out", str(out)]) == 0
    said = capsys.readouterr()
    for name in ("a_b_cka.png", "a_b_cka.json"):
        assert str(out / name) in said.out
    assert matplotlib.image.imread(out / "a_b_cka.png").std() > 0.05
    found = json.loads((out / "a_b_cka.json").read_text())
    assert found["rows"] == found["columns"] == ["0", "1", "2", "4"]  # 3 is dropout
    assert found["networks"]["rows"]["weights"] == "a.safetensors"
    assert found["networks"]["rows"]["digest"] != found["networks"]["columns"]["digest"]
    assert found["data"] == {"source": "mnist5k", "examples": 120, "available": 1000}
    assert found["versions"]["torch"] == metadata.version("torch")
    assert (found["metric"], found["kind"], found["permutations"]) == ("cka", "similarity", 2)
    # What the command writes is what the functions give.
    chosen = own_models.load_dataset("mnist5k", examples=120)
    acts = [
        own_models.record(own_models.load(f"{x}.safetensors", "nets_to_compare:build")[0], chosen)
        for x in "ab"
    ]
    with pytest.warns(UserWarning):
        grid = similarity.compare(*acts, metric="cka", null=2)
    torch.testing.assert_close(torch.tensor(found["values"]), grid.values)
    torch.testing.assert_close(torch.tensor(found["null"]), grid.null)
    # The numerics' warnings are told, and kept.
    assert len(found["warnings"]) == 1 and "biased CKA" in found["warnings"][0]
    assert f"replication: warning: {found['warnings'][0]}" in said.err


def test_two_architectures_with_a_transform_each(place):
    arguments = command("a", "c", "--model-b", "nets_to_compare:other", "--data", "mnist5k")
    more = ["--layers", "?", "--layers-b", "1", "--null", "0", "--examples", "100"]
    assert __main__.main([*arguments, *more]) == 0
    found = json.loads((place / "a_c_svcca.json").read_text())
    assert (found["rows"], found["columns"], found["null"]) == ([*"01234"], ["1"], None)


def prefixed(name, prefix):
    state = {f"{prefix}{key}": value for key, value in load_file("a.safetensors").items()}
    save_file(state | {"metric.total": torch.zeros(1)}, f"{name}.safetensors")


def test_prefixed_weights_and_unbiased_cka(place):
    prefixed("lit", "model.")
    more = ["--data", "mnist5k", "--examples", "40", "--metric", "cka", "--unbiased"]
    assert __main__.main([*command("lit", "a"), *more, "--prefix", "model.", "--prefix-b", ""]) == 0
    found = json.loads((place / "lit_a_unbiased_cka.json").read_text())
    torch.testing.assert_close(torch.tensor(found["values"]).diagonal(), torch.ones(4))
    assert found["metric"] == "unbiased_cka" and torch.tensor(found["null"]).abs().max() < 0.2
    assert not found["warnings"]


def test_maps_are_kept_for_their_frequencies(place):
    save_file({"inputs": torch.rand(30, 1, 28, 28)}, "t.safetensors")
    more = ["--metric", "dft_cca", "--layers", "0", "4", "--data", "t.safetensors"]
    assert __main__.main([*command("a", "a"), *more]) == 0
    values = torch.tensor(json.loads((place / "a_a_dft_cca.json").read_text())["values"])
    torch.testing.assert_close(values.diagonal(), torch.ones(2))


MISTAKES = [
    ("a", "build", ["--metric", "svca"], "metric: found 'svca'; did you mean 'svcca'"),
    ("a", "build", ["--null", "-1"], "null: expected an integer >= 0, found -1"),
    ("a", "build", ["--data", "nowhere"], "no folder or file nowhere, and no data set of that"),
    ("a", "build", ["--data", "empty"], "data: no images in empty"),
    ("a", "build", ["--layers", "9"], "error: a.safetensors: layers: no layer '9'"),
    ("a", "build", ["--layers", "0", "--layers-b", "9"], "b.safetensors: layers: no layer '9'"),
    ("a", "build", ["--unbiased"], "options: svcca takes variance, dims, squares, found unbiased"),
    ("lit", "build", [], "with the prefix 'model.net.' (--prefix) it does"),
    ("lit", "build", ["--prefix", "model."], "with the prefix 'model.net.' (--prefix) it does"),
    (
        "a",
        "build",
        ["--prefix", "model."],
        "missing: 0.bias, 0.weight, 4.bias, 4.weight; with the ",
    ),
    ("a", "build", ["--examples", "1001"], "at most the 1000 there are, found 1001"),
    ("a", "build", ["--data", "t.safetensors"], "failed on inputs of shape (4, 7), torch.float32"),
    ("none", "build", [], "there is no file none.safetensors"),
    ("pickled", "build", [], "is a pickle, and reading one can run any code"),
    ("odd", "build", [], "of other shapes: "),
    ("a", "biuld", [], "no function 'biuld' in nets_to_compare; did you mean 'build'?"),
]


@pytest.mark.parametrize(("first", "build", "more", "message"), MISTAKES)
def test_a_mistake_is_told_in_one_line(place, capsys, first, build, more, message):
    (place / "empty").mkdir()
    save_file({"inputs": torch.rand(4, 7)}, "t.safetensors")
    save_file({"4.bias": torch.rand(3)}, "odd.safetensors")
    prefixed("lit", "model.net.")
    torch.save({}, "pickled.safetensors")
    arguments = [*command(first, "b"), "--model", f"nets_to_compare:{build}", "--data", "mnist5k"]
    assert __main__.main([*arguments, *more]) == 2
    said = capsys.readouterr()
    assert said.out == "" and message in said.err
    assert said.err.startswith("replication: error: ") and said.err.count("\n") == 1
    assert not list(place.glob("*.png"))


def test_names_of_equal_files_take_their_folders(tmp_path):
    one, two = tmp_path / "one" / "model.safetensors", tmp_path / "two" / "model.safetensors"
    assert _compare.labels(str(one), str(two)) == ("one-model", "two-model")
    assert _compare.labels(str(one), str(one)) == ("model", "model")
    assert _compare.labels("a.safetensors", "x/b.safetensors") == ("a", "b")


def test_many_layers_get_some_of_their_names():
    layers = {f"layer{index}": torch.rand(8, 2) for index in range(205)}
    grid = similarity.compare(layers, metric="procrustes")
    figure = _compare.draw(grid, ("a", "b"), "stamp")
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks[:2] == ["layer0", "layer3"] and len(ticks) <= _compare.TICKS
    assert figure.axes[-1].get_ylabel() == "procrustes, a distance"
    assert figure.axes[0].images[0].get_cmap().name == plotting.ALIKE["distance"]
