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
def test_a_pass_has_at_most_batch_size_rows_and_small_tensors_without_it(function):
    wide = nn.Sequential(nn.Upsample(2**18), nn.ReLU(), nn.AdaptiveAvgPool1d(3), nn.Flatten())
    wide = nn.Sequential(nn.Unflatten(1, (2, 4)), *wide, nn.Linear(6, 5)).double()
    cases = [(network(method), 12, LAYERS[method], {"batch_size": 16}, 16) for method in LAYERS]
    for model, width, layers, options, most in [*cases, (wide, 8, "2", {}, 4)]:
        rows = []  # 4 of 2 x 2**18 float64 numbers are 16 MiB
        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(lambda m, i, out, rows=rows: rows.append(len(out)))
        function(model, gaussian(20, width), classes(20), layers, **options)
        assert max(rows) == most


@each_function
@each_method
def test_batches_do_not_matter_and_arrays_give_arrays(function, method):
    images, labels = gaussian(50, 12), classes(50)
    expected = function(network(method), images, labels, LAYERS[method])
    names = [name for name in dir(expected) if torch.is_tensor(getattr(expected, name))]
    arrays = images.numpy(), labels.numpy()
    for size in (1, 7, 200):
        found = function(network(method), *arrays, LAYERS[method], batch_size=size)
        assert len(names) > 2 and all(isinstance(getattr(found, n), np.ndarray) for n in names)
        np.testing.assert_array_equal(found.accuracy, expected.accuracy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.full((6,), 5)}, "labels: expected 0 to 4.*found 5"),
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
