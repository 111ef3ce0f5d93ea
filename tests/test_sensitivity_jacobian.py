"""Jacobian norms, point by point: loops over examples, closed forms, confident points, memory."""

import math

import pytest
import torch
from _peak_memory import Peak
from _random_networks import Wrapped, gaussian
from torch import nn

from replication import models
from replication.sensitivity import jacobian_norm, jacobian_row_norm
from replication.sensitivity._evaluation import plain_evaluation
from replication.sensitivity.jacobian import mlp_layers, softmax_rows
from replication.spectra import noise_spectrum


def logit_jacobians(model, images):
    """Return (N, classes, inputs), one example after the other."""
    jacobian = torch.autograd.functional.jacobian
    with plain_evaluation(model), torch.enable_grad():
        rows = [jacobian(lambda v: model(v[None].clone())[0], x) for x in images]
    return torch.stack(rows).flatten(2)


def softmax_jacobians(model, images):
    """Return d s_c / dx = s_c sum_j s_j (df_c/dx - df_j/dx), with no difference near 0."""
    rows = logit_jacobians(model, images)
    with plain_evaluation(model):
        s = model(images.clone()).softmax(1)
    differences = rows[:, :, None] - rows[:, None]
    return s[:, :, None] * (s[:, None, :, None] * differences).sum(2)


def drawn(model, seed=0):
    """Draw every parameter and buffer of a model, in float64."""
    source = torch.Generator().manual_seed(seed)
    model = model.double()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(generator=source).div_(max(1, tensor[0].numel()) ** 0.5)
            if "running_var" in name:
                tensor.abs_().add_(0.5)
    return model


def mlp(*widths, activation="relu"):
    return models.mlp(12, widths, 4, activation)


MLPS = {
    "relu": mlp(6, 8, 5),
    "wider than the input": mlp(30, 5),
    "one unit": mlp(1),
    "linear": mlp(),
    "tanh": mlp(6, 8, activation="tanh"),
    "hardsigmoid": mlp(6, 8, activation="hardsigmoid"),
    "nested": nn.Sequential(
        *(nn.Identity(), nn.Flatten()),
        nn.Sequential(nn.Linear(12, 9), nn.BatchNorm1d(9), nn.LeakyReLU(0.1, inplace=True)),
        *(nn.Dropout(), nn.Sequential()),
        nn.Sequential(nn.Sequential(nn.Linear(9, 7, bias=False), nn.PReLU(7))),
        *(nn.BatchNorm1d(7, affine=False), nn.Linear(7, 4)),
    ),
    "activation first": nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(12, 4)),
    "activation last": nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Softplus()),
}
CONVOLUTIONAL = nn.Sequential(
    *(nn.ReLU(inplace=True), nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(inplace=True)),
    *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 4)),
)
NETWORKS = MLPS | {"convolutional": CONVOLUTIONAL, "wrapped": Wrapped(mlp(6, 5))}
IMAGES = gaussian(40, 1, 3, 4)
REFERENCES = {"logits": logit_jacobians, "softmax": softmax_jacobians}
LABELS = torch.arange(40) % 4


def norms(model, images, output, labels=LABELS, **options):
    return torch.stack(
        [
            jacobian_norm(model, images, output, **options),
            jacobian_row_norm(model, images, labels, output, **options),
        ]
    )


# ------------------------------------------------------------------ references


@pytest.mark.parametrize("output", REFERENCES)
@pytest.mark.parametrize("name", NETWORKS)
def test_equal_to_a_loop_over_examples(name, output):
    model = drawn(NETWORKS[name])
    assert (mlp_layers(model, IMAGES.ndim) is not None) == (name in MLPS)
    jacobians = REFERENCES[output](model, IMAGES)
    rows = jacobians[torch.arange(40), LABELS]
    expected = torch.stack([jacobians.norm(dim=(1, 2)), rows.norm(dim=1)])
    torch.testing.assert_close(norms(model, IMAGES, output), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("output", REFERENCES)
@pytest.mark.parametrize("name", ["relu", "convolutional"])
def test_chunks_do_not_matter(name, output):
    model = drawn(NETWORKS[name])
    for memory in (1, 20_000):
        found = norms(model, IMAGES, output, memory=memory)
        torch.testing.assert_close(found, norms(model, IMAGES, output), rtol=1e-12, atol=0)


@pytest.mark.parametrize("first", [nn.Linear(4, 4), nn.LayerNorm(4)])
def test_what_only_looks_like_an_mlp_is_not_taken_for_one(first):
    model = drawn(nn.Sequential(first, nn.Flatten(), nn.Linear(12, 4)))
    assert mlp_layers(model, IMAGES.ndim) is None
    expected = logit_jacobians(model, IMAGES).norm(dim=(1, 2))
    torch.testing.assert_close(jacobian_norm(model, IMAGES, "logits"), expected)


# ------------------------------------------------------------------ closed forms


def test_two_classes():
    weight = gaussian(2, 5)
    model = nn.Linear(5, 2, bias=False).double()
    model.load_state_dict({"weight": weight})
    x = gaussian(30, 5, seed=1)
    margin = x @ (weight[0] - weight[1])
    expected = 2**0.5 * margin.sigmoid() * (-margin).sigmoid() * (weight[0] - weight[1]).norm()
    torch.testing.assert_close(jacobian_norm(model, x), expected)


def test_one_class_and_dead_units_have_norm_zero():
    dead = drawn(mlp(5))
    nn.init.constant_(dead.fc1.bias, -1e3)
    single = drawn(models.mlp(12, (5,), 1))
    for model in (dead, single):
        assert not norms(model, IMAGES, "softmax", labels=LABELS * 0).any()
    assert jacobian_norm(single, IMAGES, "logits").all()


def test_norms_are_those_of_a_function_on_space():
    model = drawn(mlp(6, 8))
    x = IMAGES.flatten(1)
    rotation = torch.linalg.qr(gaussian(12, 12, seed=2))[0]
    turned = nn.Sequential(nn.Linear(12, 12, bias=False).double(), *model)
    turned[0].load_state_dict({"weight": rotation})
    found = norms(turned, x @ rotation, "softmax")
    torch.testing.assert_close(found, norms(model, x, "softmax"))


# ------------------------------------------------------------------ confident points


def confident_network(activation, scale, convolution):
    """Return a float32 network whose logits are about `scale`, and images, off its kinks."""
    if convolution:
        model = nn.Sequential(nn.Conv2d(1, 8, 2), nn.Tanh(), nn.Flatten(), nn.Linear(48, 6))
    else:
        model = models.mlp(12, (30, 30), 6, activation)
    for seed, parameter in enumerate(model.parameters()):
        value = gaussian(*parameter.shape, seed=seed) / parameter[0].numel() ** 0.5
        parameter.data = (value * scale if parameter is model[-1].weight else value).float()
    images = value = gaussian(300, 1, 3, 4, seed=3).float().double()
    clear = torch.ones(300, dtype=torch.bool)
    with torch.no_grad():
        for layer in model.double():
            value = layer(value)
            if isinstance(layer, nn.Linear):
                clear &= (value.abs() > 1e-5).all(1)
    return model.float(), images[clear].float()


@pytest.mark.parametrize(
    ("activation", "convolution"), [("relu", False), ("tanh", False), ("tanh", True)]
)
@pytest.mark.parametrize("scale", [1, 30, 100])
def test_float32_is_right_at_every_point(activation, convolution, scale):
    model, images = confident_network(activation, scale, convolution)
    labels = torch.zeros(len(images), dtype=torch.int64)
    found = torch.stack([jacobian_norm(model, images), jacobian_row_norm(model, images, labels)])
    logits = model(images).detach()
    jacobians = softmax_jacobians(model.double(), images.double())
    expected = torch.stack([jacobians.norm(dim=(1, 2)), jacobians[:, 0].norm(dim=1)])
    normal = expected > 1e-37
    assert found.dtype == torch.float32
    assert ((found / expected - 1).abs() < 1e-4)[normal].all()
    assert (found[~normal] <= 2e-37).all()
    if scale > 1:
        p = logits.softmax(1)
        sure = normal[0] & (logits.double().softmax(1).amax(1) > 1 - 1e-6)
        assert sure.sum() > 40
        # diag(p) - p p^T itself, in float32, has nothing left there
        usual = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).double()
        usual = (usual @ logit_jacobians(model, images.double())).norm(dim=(1, 2))
        wrong = (usual / expected[0] - 1).abs()[sure]
        assert wrong.median() > 1e-3 and wrong.max() > 0.1


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 80), (torch.float64, 700)])
def test_two_logits_as_far_apart_as_the_dtype_goes(dtype, limit):
    margin = torch.linspace(0, limit, 50, dtype=dtype)
    model = nn.Linear(1, 2, bias=False, dtype=dtype)
    model.load_state_dict({"weight": torch.tensor([[1.0], [0.0]])})
    found = jacobian_norm(model, margin[:, None]).double()
    exact = margin.double()
    expected = 0.5 * math.log(2) - exact - 2 * torch.log1p((-exact).exp())
    torch.testing.assert_close(found.log(), expected, rtol=0, atol=1e-5)
    assert jacobian_norm(model, 10 * margin[-1:, None]).item() == 0


def test_softmax_rows_against_exact_numbers():
    # p = (1 - 3e-12, 1e-12, 2e-12), to 1e-11: S from p with what 1 - p is put in by hand
    q = torch.tensor([[1.0, 1e-12, 2e-12]], dtype=torch.float64)
    rows, log_scales = softmax_rows(q.log().float(), torch.arange(3)[None])
    found = rows.double() * log_scales.double().exp()[:, :, None]
    expected = [[3e-12, -1e-12, -2e-12], [-1e-12, 1e-12, -2e-24], [-2e-12, -2e-24, 2e-12]]
    torch.testing.assert_close(found[0], q.new_tensor(expected), rtol=1e-5, atol=0)


def test_norms_whose_squares_leave_the_range():
    for size in (1e-25, 1e-12, 1e25):
        model = nn.Linear(3, 2, dtype=torch.float32)
        nn.init.constant_(model.weight, size)
        found = jacobian_norm(model, gaussian(2, 3, dtype=torch.float32), "logits")
        assert found.tolist() == pytest.approx([size * 6**0.5] * 2, rel=1e-5)


# ------------------------------------------------------------------ what callers pass in


@pytest.mark.parametrize("kind", ["closed form", "autograd"])
def test_memory_is_bounded_whatever_the_number_of_points(kind):
    model = models.mlp(144, (64, 64), 10)
    if kind == "autograd":
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10))
    images = torch.randn(512, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    peaks = []
    for points in (200, 512):
        with Peak(images, *model.parameters()) as seen:
            jacobian_norm(model, images[:points], memory=2**19)
        peaks.append(seen.peak)
    weights = 2**17  # the first layer's factor
    assert 2**17 < peaks[1] < 2**19 + weights
    assert peaks[1] - peaks[0] < 2 * images[:, 0, 0, 0].nbytes  # the results


def test_recurrent_layers_are_kept_from_cudnn_which_takes_no_gradients_in_eval_mode():
    seen = []

    class Watched(nn.GRU):
        def forward(self, x):
            seen.append(torch.backends.cudnn.enabled)
            return super().forward(x)[0][:, -1]

    model, sequences = Watched(3, 4, batch_first=True).eval(), torch.randn(5, 6, 3)
    assert (jacobian_norm(model, sequences) > 0).all()
    noise_spectrum(model, sequences, 0.1, 2, layers=["input"], perturb="fgsm")
    assert seen and not any(seen) and torch.backends.cudnn.enabled
