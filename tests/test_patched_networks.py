"""Networks whose modules do not compute what their type says: the right number or a clear word."""

import pytest
import torch
from _random_networks import gaussian
from torch import nn

from replication import activations, directions, sensitivity, spectra


class LowRank(nn.Linear):
    """A linear layer with a bypass of its own, as adapters add one."""

    def forward(self, x):
        return super().forward(x) + 3 * x.flip(-1)[..., : self.out_features]


def patched(how):
    """Return a small classifier, its second linear layer changed, and the same without a patch."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    model = model.double().eval()
    layer = model[2]

    def bypassed(x):
        return nn.functional.linear(x, layer.weight, layer.bias) + 3 * x.flip(-1)[..., :4]

    if how == "forward":
        layer.forward = bypassed
    elif how == "hook":
        layer.register_forward_hook(lambda module, inputs, output: bypassed(inputs[0]))
    elif how == "subclass":
        model[2] = LowRank(5, 4).double()
        model[2].load_state_dict(layer.state_dict())
    elif how == "parametrised":
        nn.utils.parametrizations.weight_norm(layer)
        with torch.no_grad():
            layer.parametrizations.weight.original0.mul_(3)
    return model


WAYS = ("forward", "hook", "subclass", "parametrised")


@pytest.mark.parametrize("how", WAYS)
def test_jacobians_are_those_of_what_the_network_computes(how):
    model, x = patched(how), gaussian(4, 6)
    found = sensitivity.jacobian_norm(model, x, output="logits")
    for norm, point in zip(found, x, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z: model(z[None])[0], point)
        torch.testing.assert_close(norm, jacobian.norm().detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("how", WAYS)
def test_with_nothing_ablated_the_accuracy_is_the_network_s(how):
    model, x = patched(how), gaussian(40, 6)
    labels = model(x).argmax(1)
    result = directions.cumulative_ablation(model, x, labels, ["1"], 1)
    assert result.accuracy[0, 0] == 1
    with torch.no_grad():
        hidden = activations.record(model, x, ["1"])["1"]
        hidden[:, 2] = 0
        expected = (model[2:](hidden).argmax(1) == labels).double().mean()
    single = directions.unit_ablation(model, x, labels, ["1"], clamp="zero")
    assert single.accuracy[2] == pytest.approx(float(expected))


@pytest.mark.parametrize("how", WAYS)
def test_transitions_are_right_or_refused(how):
    model, path = patched(how), gaussian(3, 6)
    if how != "parametrised":
        told = "%_2_weight" if how == "subclass" else "'2' has forward hooks or a patched forward"
        with pytest.raises(ValueError, match=f"model: {told}"):
            sensitivity.transitions(model, path)
        return
    weights = torch.arange(20000, dtype=torch.float64)[:, None] / 20000
    ends = zip(path, path.roll(-1, 0), strict=True)
    points = torch.cat([torch.lerp(a, b, weights) for a, b in ends])
    layers = activations.record(model, points, ["1", "3"])
    counts = {}
    for name, values in layers.items():
        codes = values > 0
        counts[name] = int((codes != codes.roll(1, 0)).sum())
    assert sensitivity.transitions(model, path).per_layer == counts


def test_what_depends_on_the_whole_batch_is_refused():
    model, x = (
        nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3)),
        gaussian(4, 6),
    )
    for call in (
        lambda: activations.record(model.double(), x),
        lambda: directions.unit_ablation(model.double(), x, torch.arange(4) % 3, ["0"]),
    ):
        with pytest.raises(ValueError, match="model: '0' keeps no running statistics"):
            call()


@pytest.mark.parametrize("how", ["requires_grad_", "no_grad", "inference_mode", "detach"])
def test_gradients_go_through_a_frozen_backbone_or_are_refused(how):
    backbone, head, x = nn.Linear(6, 5).double(), nn.Linear(5, 3).double(), gaussian(4, 6)
    backbone.requires_grad_(how != "requires_grad_")

    class Frozen(nn.Module):
        def forward(self, x):
            if how == "requires_grad_":
                return head(backbone(x))
            with torch.inference_mode() if how == "inference_mode" else torch.no_grad():
                hidden = backbone(x if how != "detach" else x.detach())
            return head(hidden) + hidden.new_ones(()).requires_grad_()

    def attacked(network):
        found = spectra.noise_spectrum(network, x, 0.1, 3, ["input"], "fgsm")
        return found.singular_values["input"]

    if how in ("inference_mode", "detach"):
        for call in (lambda: sensitivity.jacobian_norm(Frozen(), x), lambda: attacked(Frozen())):
            with pytest.raises(ValueError, match=r"model: (no gradient reaches|expected no inf)"):
                call()
        return
    plain = nn.Sequential(backbone, head)
    for output in ("softmax", "logits"):
        found, expected = (sensitivity.jacobian_norm(m, x, output) for m in (Frozen(), plain))
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(attacked(Frozen()), attacked(plain))
