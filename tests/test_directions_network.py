"""Perturbed passes: what they leave behind, how many rows they have, and what they refuse."""

from functools import partial

import _random_networks
import numpy as np
import pytest
import torch
from _random_networks import Wrapped, gaussian
from torch import nn

from replication import models
from replication.directions import cumulative_ablation, noise_curve, unit_ablation

LAYERS = {
    "incremental": ["act3", "act1"],
    "split": ["act1", "fc2"],
    "hooks": ["body.act1", "body.act2"],
}
FUNCTIONS = {
    "cumulative": lambda *arguments, **options: cumulative_ablation(*arguments, 2, **options),
    "single": unit_ablation,
    "noise": lambda *arguments, **options: noise_curve(*arguments, [0.5, 1, 2], 2, **options),
}
each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
each_method = pytest.mark.parametrize("method", LAYERS)
classes = partial(_random_networks.classes, number=5)


def network(method="incremental"):
    body = models.build("mlp", inputs=12, widths=(9, 8, 7), classes=5, dtype=torch.float64)
    return Wrapped(body) if method == "hooks" else body


@each_function
@each_method
def test_the_model_and_the_images_are_left_as_they_were(function, method):
    model = network(method).train()
    next(iter(model.children())).eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = gaussian(9, 12)
    kept = images.clone()
    result = function(model, images, classes(9), LAYERS[method])
    (result.accuracy * torch.ones(1, dtype=torch.float64, requires_grad=True)).sum().backward()
    with pytest.raises(ValueError, match="labels"):
        function(model, images, classes(9) + 5, LAYERS[method])
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(images, kept)


def test_dropout_and_batch_norm_run_as_in_eval_mode():
    parts = [nn.Linear(12, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 5)]
    model, images = nn.Sequential(*parts).double(), gaussian(30, 12)
    labels = model.eval()(images).argmax(1)
    for method in (model, Wrapped(model)):
        layer = "2" if method is model else "body.2"
        assert cumulative_ablation(method.train(), images, labels, layer, 1).accuracy[0, 0] == 1


@each_function
@each_method
def test_a_pass_has_at_most_batch_size_rows(function, method):
    model, rows = network(method), []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, inputs, out: rows.append(len(out)))
    function(model, gaussian(50, 12), classes(50), LAYERS[method], batch_size=16)
    assert max(rows) == 16


@each_function
def test_without_a_batch_size_tensors_stay_small(function):
    model = nn.Sequential(nn.Linear(4, 2**18), nn.ReLU(), nn.AdaptiveAvgPool1d(3), nn.Flatten())
    model = nn.Sequential(nn.Unflatten(1, (2, 4)), *model, nn.Linear(6, 5))
    rows = []
    model[1].register_forward_hook(lambda m, inputs, out: rows.append(len(out)))
    function(model, gaussian(20, 8, dtype=torch.float32), classes(20), "2")
    assert max(rows) == 8  # of 2 x 2**18 float32 numbers, within 16 MiB


@each_function
@each_method
def test_batches_do_not_matter(function, method):
    arguments = network(method), gaussian(50, 12), classes(50), LAYERS[method]
    expected = function(*arguments)
    for batch_size in (1, 7, 200):
        found = function(*arguments, batch_size=batch_size)
        assert torch.equal(found.accuracy, expected.accuracy)


@each_function
def test_arrays_in_arrays_out(function):
    images, labels = gaussian(20, 12), classes(20)
    expected = function(network(), images, labels, "act1")
    found = function(network(), images.numpy(), labels.numpy(), "act1")
    names = [name for name in dir(expected) if torch.is_tensor(getattr(expected, name))]
    assert len(names) > 2
    assert all(isinstance(getattr(found, name), np.ndarray) for name in names)


def test_one_image_one_unit_and_other_integers():
    model = models.build("mlp", inputs=3, widths=(1,), classes=2)
    labels = classes(1, number=2).to(torch.int32)
    found = cumulative_ablation(model, gaussian(1, 3), labels, "act1", 1)
    assert found.accuracy.shape == (1, 2)
    assert found.counts.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.full((6,), 5)}, "labels: expected 0 to 4.*found 5"),
        ({"layers": "act9"}, "layers: no layer 'act9'; did you mean"),
        ({"layers": []}, "layers: expected at least one"),
        ({"layers": ["act1", "act1"]}, "layers: expected different"),
        ({"orders": torch.zeros(1, 9).long()}, "orders: expected permutations of 0 to 8"),
        ({"orders": torch.arange(8)[None]}, r"orders: .*found shape \(1, 8\)"),
        ({"counts": [0, 10]}, "counts: .*0 to 9"),
        ({"counts": [0, 3, 3]}, "counts: .*increasing"),
        ({"counts": [4]}, "counts: expected at least two"),
    ],
)
def test_bad_input(change, message):
    arguments = {"images": gaussian(6, 12), "labels": classes(6), "layers": "act1"} | change
    with pytest.raises(ValueError, match=message):
        cumulative_ablation(network(), **arguments)


class Odd(nn.Module):
    """Layers that cannot be perturbed."""

    def __init__(self):
        super().__init__()
        self.act, self.flat, self.fc = nn.ReLU(), nn.Flatten(0), nn.Linear(12, 5)
        self.pair = nn.MaxPool1d(2, return_indices=True)

    def forward(self, x):
        self.pair(x)
        self.flat(x[:, :1])
        return self.fc(self.act(self.act(x)))


@each_function
@pytest.mark.parametrize(
    ("model", "layer", "message"),
    [
        (Odd(), "act", "layers: 'act' gave .*expected one tensor and one call"),
        (Odd(), "flat", r"layers: 'flat' gave shape \(2,\); expected \(N, units, ...\)"),
        (Odd(), "pair", "layers: 'pair' gave .*expected one tensor"),
        (nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Linear(4, 5)), "1", "model: expected logits"),
        (nn.Sequential(nn.Sequential(nn.Linear(12, 5))), ["0", "0.0"], "layers: expected diff"),
    ],
)
def test_layers_and_models_that_do_not_allow_it(function, model, layer, message):
    with pytest.raises(ValueError, match=message):
        function(model, gaussian(6, 12, dtype=torch.float32), classes(6), layer)
