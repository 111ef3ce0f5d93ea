"""Ablation: equal to one masked forward pass per number of units, and closed forms."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from _random_networks import Wrapped, classes, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from replication import activations, models
from replication._core.modules import hooked
from replication.directions import cumulative_ablation, unit_ablation


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc, self.act = nn.Linear(width, width), nn.ReLU(inplace=True)

    def forward(self, x):
        return x + self.act(self.fc(x))


def drawn(model, seed=0):
    """Give a model float64 weights and running statistics of its own, without global seeding."""
    model.double()
    for index, (name, value) in enumerate(model.state_dict().items()):
        if value.is_floating_point():
            scale = 0.5 if value.ndim < 2 else (4 / value[0].numel()) ** 0.5
            value.copy_(scale * gaussian(*value.shape, seed=100 * seed + index))
            if name.endswith("running_var"):
                value.abs_()
    return model


def mlp(**options):
    return drawn(models.build("mlp", inputs=12, widths=(9, 8, 7), classes=5, **options))


def normed():
    first = [
        nn.Linear(12, 9, bias=False),
        nn.BatchNorm1d(9),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
    ]
    second = [nn.Linear(9, 8), nn.LayerNorm(8), nn.ReLU(inplace=True), nn.LayerNorm(8)]
    return drawn(nn.Sequential(nn.Sequential(*first), nn.Sequential(*second), nn.Linear(8, 5)))


def convnet():
    return drawn(
        nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(2, 5, 3, padding="same"),
                relu1=nn.ReLU(inplace=True),
                conv2=nn.Conv2d(5, 6, 3, stride=2, padding=1, bias=False),
                bn2=nn.BatchNorm2d(6),
                relu2=nn.ReLU(),
                pool=nn.AvgPool2d(2, padding=1),
                late=nn.BatchNorm2d(6),
                flatten=nn.Flatten(),
                fc1=nn.Linear(24, 7),
                act=nn.Tanh(),
                fc2=nn.Linear(7, 5),
            )
        )
    )


def blocks():
    parts = [nn.Linear(12, 8), nn.ReLU(), Residual(8), nn.ReLU(), nn.Linear(8, 5)]
    return drawn(nn.Sequential(*parts))


def grouped():
    parts = [nn.Conv1d(3, 4, 2), nn.ReLU(), nn.Conv1d(4, 4, 2, groups=2), nn.AdaptiveMaxPool1d(1)]
    return drawn(nn.Sequential(nn.Unflatten(1, (3, 4)), *parts, nn.Flatten(), nn.Linear(4, 5)))


FLAT, MAPS = (12,), (2, 6, 6)
CASES = {
    "first": (mlp, FLAT, ["act1"], "incremental"),
    "last": (mlp, FLAT, ["act3"], "incremental"),
    "before its nonlinearity": (mlp, FLAT, ["fc2"], "incremental"),
    "no bias": (lambda: mlp(bias=False), FLAT, ["act3"], "incremental"),
    "tanh": (lambda: mlp(activation="tanh"), FLAT, ["act1"], "incremental"),
    "two layers": (mlp, FLAT, ["act1", "act2"], "incremental"),
    "all layers, backwards": (mlp, FLAT, ["act3", "act2", "act1"], "incremental"),
    "a layer and its successor": (mlp, FLAT, ["act1", "fc2"], "split"),
    "logits": (mlp, FLAT, ["fc4"], "split"),
    "container": (normed, FLAT, ["0"], "incremental"),
    "inner layer": (normed, FLAT, ["0.2"], "incremental"),
    "layer norm behind": (normed, FLAT, ["1.2"], "split"),
    "batch norm, both": (normed, FLAT, ["0.2", "1"], "incremental"),
    "convolution next": (convnet, MAPS, ["relu1"], "incremental"),
    "pooling next": (convnet, MAPS, ["relu2"], "incremental"),
    "maps and units": (convnet, MAPS, ["act", "relu2"], "incremental"),
    "grouped convolution next": (grouped, FLAT, ["2"], "split"),
    "before a block": (blocks, FLAT, ["1"], "split"),
    "a block": (blocks, FLAT, ["2"], "incremental"),
    "inside a block": (blocks, FLAT, ["2.act"], "hooks"),
    "inside and before": (blocks, FLAT, ["2.act", "1"], "split"),
    "opaque": (lambda: Wrapped(mlp()), FLAT, ["body.act1", "body.act3"], "hooks"),
    "opaque convnet": (lambda: Wrapped(convnet()), MAPS, ["body.relu2"], "hooks"),
}


def clamped(model, images, layers, masks, values):
    """Return logits with hooks that clamp, one forward pass of the whole model."""

    def hook(mask, value):
        def change(module, arguments, output):
            shape = (-1, *(1,) * (output.ndim - 2))
            return torch.where(mask.reshape(shape), value.reshape(shape), output)

        return change

    named = dict(model.named_modules())
    given = zip(layers, masks, values, strict=True)
    hooks = [(named[layer], hook(mask, value)) for layer, mask, value in given]
    with hooked(hooks), torch.no_grad():
        return model.eval()(images.clone())


def predictions(model, images):
    """Return the network's own classes, so that it starts from an accuracy of 1."""
    return clamped(model, images, [], [], []).argmax(1)


def unit_values(model, images, layers, clamp):
    outputs = activations.record(model, images, layers)
    found = [outputs[layer].transpose(0, 1).flatten(1) for layer in layers]
    return [out.mean(1) if clamp == "mean" else torch.zeros_like(out[:, 0]) for out in found]


def naive(model, images, labels, layers, orders, clamp="zero"):
    """Return accuracies (orders, units + 1), one masked pass for each."""
    values = unit_values(model, images, layers, clamp)
    widths = [len(value) for value in values]
    result = []
    for order in orders:
        mask = torch.zeros(sum(widths), dtype=torch.bool)
        result.append([])
        for unit in [None, *order]:
            if unit is not None:
                mask[unit] = True
            logits = clamped(model, images, layers, mask.split(widths), values)
            result[-1].append((logits.argmax(1) == labels).double().mean().item())
    return np.array(result)


@pytest.mark.parametrize(("clamp", "batch_size"), [("zero", 7), ("mean", None)])
@pytest.mark.parametrize("case", CASES)
def test_accuracies_are_those_of_the_naive_loop(case, clamp, batch_size):
    build, shape, layers, method = CASES[case]
    model, images = build(), gaussian(50, *shape)
    labels = predictions(model, images)
    found = cumulative_ablation(model, images, labels, layers, 1, clamp, batch_size=batch_size)
    assert found.method == method
    expected = naive(model, images, labels, layers, found.orders, clamp)
    np.testing.assert_array_equal(found.accuracy.numpy(), expected)
    assert np.ptp(expected) > 0.1  # ablation does something here
    single = cumulative_ablation(model.float(), images, labels, layers, 1, clamp)
    expected = naive(model, images.float(), labels, layers, single.orders, clamp)
    np.testing.assert_allclose(single.accuracy.numpy(), expected, rtol=0, atol=1 / 50)  # a tie


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    bias=st.booleans(),
    seed=st.integers(0, 10**6),
    batch_size=st.integers(1, 40),
    data=st.data(),
)
def test_ties_fall_as_in_the_naive_loop_where_arithmetic_is_exact(
    widths, bias, seed, batch_size, data
):
    model = models.build("mlp", inputs=3, widths=widths, classes=4, bias=bias).double()
    source = torch.Generator().manual_seed(seed)
    for value in model.parameters():
        value.data = torch.randint(-1, 2, value.shape, generator=source).double()
    images = torch.randint(-2, 3, (12, 3), generator=source).double()
    labels = torch.randint(4, (12,), generator=source)
    names = [f"act{i}" for i in range(1, len(widths) + 1)]
    layers = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    found = cumulative_ablation(model, images, labels, layers, 2, seed=seed, batch_size=batch_size)
    expected = naive(model, images, labels, layers, found.orders)
    np.testing.assert_array_equal(found.accuracy.numpy(), expected)


def identity(units):
    """Return a network that says which entry of its input is 1, and class 0 where none is."""
    model = nn.Sequential(nn.Identity(), nn.Linear(units, units, bias=False)).double()
    model[1].weight.data = torch.eye(units).double()
    return model


def test_each_class_falls_with_its_unit():
    units, order = 6, torch.arange(5, -1, -1)[None]
    images, labels = torch.eye(units).double(), torch.arange(units)
    found = cumulative_ablation(identity(units), images, labels, "0", order)
    expected = [1 - k / units for k in range(units)] + [1 / units]  # class 0 by default at the end
    np.testing.assert_allclose(found.accuracy[0], expected, rtol=1e-15)
    assert found.auc.tolist() == pytest.approx([(0.5 + sum(expected[1:-1]) + 0.5 / units) / units])
    # each class falls when its unit goes
    falls = [[float(k <= units - 1 - c or c == 0) for c in range(units)] for k in range(units + 1)]
    np.testing.assert_array_equal(found.class_accuracy[0], falls)
    found = unit_ablation(identity(units), images, labels, "0")
    damage = torch.eye(units).double()
    damage[0, 0] = 0
    torch.testing.assert_close(found.class_accuracy_drop, damage)
    torch.testing.assert_close(found.accuracy_drop, damage.mean(1))
    # without its unit an example of K classes has loss ln K, with it ln(e + K - 1) - 1
    rise = (np.log(units) - np.log(np.e + units - 1) + 1) / units
    torch.testing.assert_close(found.loss_rise, torch.full((units,), rise).double())


def test_what_does_not_matter_changes_nothing():
    model, images, labels = mlp(), gaussian(40, 12), classes(40, 5)
    model.fc1.bias.data[:4], model.fc1.weight.data[:4] = -1, 0  # dead units
    found = cumulative_ablation(model, images, labels, "act1", torch.arange(9)[None])
    assert (found.accuracy[0, :5] == found.accuracy[0, 0]).all()
    assert (found.accuracy[0, 5:] != found.accuracy[0, 0]).any()
    model.fc4.weight.data.zero_()  # a dead layer
    found = cumulative_ablation(model, images, labels, "act3", 3)
    assert (found.accuracy == found.accuracy[0, 0]).all()
    np.testing.assert_allclose(found.auc, found.accuracy[:, 0])


def test_orders_are_drawn_one_by_one_from_the_seed():
    def orders(number, seed=0):
        arguments = mlp(), gaussian(5, 12), classes(5, 5), ["act1", "act3"]
        return cumulative_ablation(*arguments, number, seed=seed).orders

    few, many = orders(2), orders(4)
    assert torch.equal(few, many[:2])
    assert torch.equal(many.sort(1).values, torch.arange(16).expand(4, 16))
    assert len(many.unique(dim=0)) == 4
    assert not torch.equal(few, orders(2, seed=1))


def test_a_grid_of_counts_is_part_of_the_curve_and_a_missing_class_is_nan():
    labels = classes(40, 4) + (classes(40, 4) > 1)  # no example of class 2
    arguments, counts = (mlp(), gaussian(40, 12), labels), [2, 3, 7, 13]
    for layers in (["act1", "act2"], ["act2"]):
        whole = cumulative_ablation(*arguments, layers, 3)
        counts = [k for k in counts if k <= whole.counts[-1]]
        found = cumulative_ablation(*arguments, layers, 3, counts=counts)
        assert found.counts.tolist() == counts
        assert torch.equal(found.accuracy, whole.accuracy[:, counts])
    area = torch.trapezoid(found.accuracy, found.counts.double()) / 5
    torch.testing.assert_close(found.auc, area)
    assert found.class_accuracy[..., 2].isnan().all()
    share = torch.bincount(labels, minlength=5) / 40
    torch.testing.assert_close((found.class_accuracy.nan_to_num() * share).sum(-1), found.accuracy)


@pytest.mark.parametrize(("clamp", "batch_size"), [("zero", 7), ("mean", None)])
@pytest.mark.parametrize(
    "case", ["first", "last", "all layers, backwards", "pooling next", "opaque"]
)
def test_single_units_are_those_of_the_naive_loop(case, clamp, batch_size):
    build, shape, layers, method = CASES[case]
    model, images, labels = build(), gaussian(50, *shape), classes(50, 5)
    found = unit_ablation(model, images, labels, layers, clamp, batch_size=batch_size)
    assert found.methods == (method,) * len(layers)
    values = unit_values(model, images, layers, clamp)
    masks = torch.eye(sum(found.widths), dtype=torch.bool)
    for unit, mask in enumerate([*masks, torch.zeros_like(masks[0])]):
        logits = clamped(model, images, layers, mask.split(found.widths), values)
        right = logits.argmax(1) == labels
        by_class = torch.stack([right[labels == c].double().mean() for c in range(5)])
        outcome = found.baseline_accuracy, found.baseline_loss, found.baseline_class_accuracy
        if unit < len(masks):
            outcome = found.accuracy[unit], found.loss[unit], found.class_accuracy[unit]
        assert outcome[0] == right.double().mean()
        loss = F.cross_entropy(logits, labels).item()
        assert float(outcome[1]) == pytest.approx(loss, abs=1e-12)
        torch.testing.assert_close(outcome[2], by_class)
    assert found.loss_rise.abs().max() > 1e-3
