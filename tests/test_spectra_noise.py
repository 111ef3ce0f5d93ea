"""Noise around images: closed forms, the whole protocol by hand, attacks, what is left alone."""

import pytest
import torch
from _random_networks import uniform
from test_spectra import reference
from torch import nn
from torch.nn import functional as F

from replication import activations, models, spectra
from replication._core.inputs import generator
from replication.spectra import noise_spectrum


def test_noise_on_many_inputs():
    """For d >> M the copies' noises are orthogonal: s_1^2 = M |x|^2 + sigma^2 d, others sigma^2 d.

    (Eigenvalues of the M x M matrix |x|^2 1 1^T + sigma^2 d I; the law of large numbers.) Where the
    gradient is 0 an attack stays at its start, which has a third of the Gaussian's variance.
    """
    images, sigma, copies, size = uniform(3, 1, 100, 200), 0.5, 8, 20_000
    found = noise_spectrum(nn.Identity(), images, sigma, copies, layers=["input"])
    squares = found.singular_values["input"].square()
    floor = sigma**2 * size
    head = copies * images.square().sum((1, 2, 3)) + floor
    assert (squares[:, 0] / head - 1).abs().max() < 0.02
    assert (squares[:, 1:] / floor - 1).abs().max() < 0.06  # 2 sqrt(M / d) = 0.04
    inner = found.centred["input"].square()
    assert (inner[:, :-1] / floor - 1).abs().max() < 0.06

    flat = nn.Sequential(nn.Flatten(), nn.Linear(size, 3))
    nn.init.zeros_(flat[1].weight)
    found = noise_spectrum(flat, 0 * images.float(), sigma, copies, ["input"], "pgd")
    squares = found.singular_values["input"].square() / (floor / 3)
    assert (squares - 1).abs().max() < 0.06


def small(dtype=torch.float64, seed=0):
    return models.build("mnist_convnet", seed, dtype, channels=(3, 4))


IMAGES = uniform(4, 1, 28, 28)


def assert_equal(left, right, atol=0.0):
    assert left.layers == right.layers == tuple(left.centred) == tuple(right.centred)
    for one, two in ((left.singular_values, right.singular_values), (left.centred, right.centred)):
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=atol)


def perturbation(position, kind, seed=0, copies=5, shape=(1, 28, 28)):
    """Return the documented unit perturbation of the image at `position`."""
    source = generator(seed, f"perturbation/{kind != 'gaussian'}", position)
    if kind == "gaussian":
        return torch.randn(copies, *shape, generator=source).double()
    return (2 * torch.rand(copies, *shape, generator=source) - 1).double()


def attack(model, image, noise, sigma, steps, label):
    """Return one image's attacked noise, a copy at a time."""
    size = sigma if steps == 1 else 2.5 * sigma / steps
    for copy in range(len(noise)):
        for _ in range(steps):
            moved = (image + noise[copy])[None].requires_grad_()
            loss = -model(moved).log_softmax(1)[0, label]
            sign = torch.autograd.grad(loss, moved)[0][0].sign()
            noise[copy] = (noise[copy] + size * sign).clamp(-sigma, sigma)
    return noise


@pytest.mark.parametrize("kind", spectra.KINDS)
def test_the_whole_protocol_by_hand(kind):
    model, sigma = small(), 0.1
    found = noise_spectrum(model, IMAGES, sigma, 5, perturb=kind, steps=3, seed=7)
    names = ("input", *dict(model.named_children()))
    assert found.layers == tuple(found.centred) == names
    for position, image in enumerate(IMAGES):
        noise = sigma * perturbation(position, kind, seed=7)
        if kind != "gaussian":
            label = model(image[None]).argmax().item()
            noise = attack(model, image, noise, sigma, 3 if kind == "pgd" else 1, label)
        outputs = image + noise
        for name in names:
            if name != "input":
                with torch.no_grad():
                    outputs = model.get_submodule(name)(outputs)
            expected = reference(outputs.flatten(1)[None])
            found_here = (found.singular_values[name][position], found.centred[name][position])
            for one, two in zip(found_here, expected, strict=True):
                assert (one - two[0]).abs().max() <= 1e-7 * expected[0].max()
                full = two[0] > 1e-6 * expected[0].max()  # where the rank is full: all digits
                torch.testing.assert_close(one[full], two[0][full], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["gaussian", "pgd"])
def test_the_batching_does_not_matter(kind):
    first, *others = (
        noise_spectrum(small(), IMAGES, 0.1, 4, perturb=kind, steps=2, images_per_batch=size)
        for size in (1, 3, 100)
    )
    for other in others:
        assert_equal(first, other, atol=1e-6)  # zero up to sqrt(eps) where the rank is not full


def inputs(images=IMAGES, model=None, seed=0, perturb="gaussian", copies=4):
    model = model or small()
    found = noise_spectrum(model, images, 0.1, copies, ["input"], perturb, seed=seed)
    return found.singular_values["input"]


def test_noise_belongs_to_the_position_and_the_seed():
    same = IMAGES[:1].expand(4, 1, 28, 28)
    values = inputs(same)
    assert torch.equal(values, inputs(same))
    assert len(values.unique(dim=0)) == 4  # one image, four positions
    assert torch.equal(inputs(IMAGES[:2]), inputs(IMAGES)[:2])  # whatever comes after
    assert torch.equal(values, inputs(same, small(seed=3)))  # and in every network
    assert not torch.isclose(values, inputs(same, seed=1)).any()
    assert not torch.isclose(values, inputs(same, seed=2**40)).any()


def test_a_float32_network_gets_the_same_noise():
    found = noise_spectrum(small(torch.float32), IMAGES, 0.1, 4)
    for name, values in noise_spectrum(small(), IMAGES, 0.1, 4).singular_values.items():
        assert found.singular_values[name].dtype == torch.float32
        assert (found.singular_values[name] - values).abs().max() <= 1e-5 * values.max()


def test_layers_are_a_subset_in_forward_order_and_the_input_needs_no_pass():
    model = small()
    whole = noise_spectrum(model, IMAGES, 0.1, 4)
    part = noise_spectrum(model, IMAGES, 0.1, 4, layers=["fc1", "input", "conv1"])
    assert part.layers == ("input", "conv1", "fc1")
    for name in part.layers:
        assert torch.equal(part.singular_values[name], whole.singular_values[name])
        assert torch.equal(part.centred[name], whole.centred[name])
    assert noise_spectrum(model, IMAGES, 0.1, 4, layers=["pool"]).layers == ("pool",)
    spy = Spy(model)
    assert torch.equal(inputs(model=spy), inputs())
    assert not spy.given


def test_channels_last_gives_the_same_values_without_a_copy(monkeypatch):
    model, seen, taken = small(), [], []
    plain = noise_spectrum(model, IMAGES, 0.1, 4)
    model = model.to(memory_format=torch.channels_last)
    model.conv2.register_forward_hook(lambda module, given, output: seen.append(output))
    values = spectra._singular_values
    monkeypatch.setattr(
        spectra, "_singular_values", lambda g: taken.append(g.data_ptr()) or values(g)
    )
    turned = IMAGES.contiguous(memory_format=torch.channels_last)
    assert_equal(plain, noise_spectrum(model, turned, 0.1, 4), atol=1e-6)
    assert len(seen) == 2
    for output in seen:
        assert output.is_contiguous(memory_format=torch.channels_last)
        assert output.data_ptr() in taken


@pytest.mark.parametrize("kind", spectra.KINDS)
def test_claim_b10_without_noise_only_s1_remains(kind):
    """B10: sigma = 0 gives s_k = 0 for k >= 2 on the notebook's own network."""
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        model = models.build("mnist_convnet", 0, dtype)
        found = noise_spectrum(model, IMAGES[:2], 0.0, 16, perturb=kind, steps=2)
        for name in found.layers:
            values = found.singular_values[name]
            assert (values[:, 1:] <= bound * values[:, :1]).all(), name
            assert (found.centred[name] <= bound * values[:, :1]).all(), name
            torch.testing.assert_close(
                found.explained_variance(name)[:, 0], torch.ones(2, dtype=dtype)
            )
        plain = activations.record(model, IMAGES[:2].to(dtype), reduction="flatten")
        for name, output in plain.items():  # and s_1 = sqrt(M) |a|
            torch.testing.assert_close(found.singular_values[name][:, 0], 4 * output.norm(dim=1))
    found = noise_spectrum(model, IMAGES[:2], 1e-3, 4, perturb=kind)  # not a matter of course
    assert all((v[:, 1] > 1e-6 * v[:, 0]).all() for v in found.singular_values.values())


class Spy(nn.Module):
    """Keep what a network is given, and whether it was in eval mode."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.given, self.modes = [], []

    def forward(self, x):
        self.given.append(x.detach().clone())
        self.modes.append(self.training or self.model.training)
        return self.model(x)


@pytest.mark.parametrize(("kind", "steps"), [("gaussian", 0), ("fgsm", 1), ("pgd", 4)])
def test_memory_is_flat_in_the_number_of_images(kind, steps):
    for count in (2, 7):
        spy = Spy(models.build("mlp", 0, torch.float64, inputs=20, widths=(8,)))
        found = noise_spectrum(
            spy, uniform(count, 20), 0.1, 3, perturb=kind, steps=max(steps, 1), images_per_batch=2
        )
        assert found.singular_values["input"].shape == (count, 3)
        assert max(len(x) for x in spy.given) == 6
        # The clean images for their labels, the steps, and the recorded pass.
        assert len(spy.given) == -(-count // 2) * (1 if kind == "gaussian" else steps + 2)


def loss(model, perturbed, labels):
    """Return the mean cross-entropy of rows in groups, one label a group."""
    repeated = labels.repeat_interleave(len(perturbed) // len(labels))
    with torch.no_grad():
        return F.cross_entropy(model(perturbed), repeated).item()


def test_attacks_stay_in_the_ball_and_raise_the_loss():
    model, sigma, copies = small(), 0.1, 6
    start = torch.stack([sigma * perturbation(i, "pgd", copies=copies) for i in range(4)])
    start = (IMAGES[:, None] + start).flatten(0, 1)
    labels = model(IMAGES).argmax(1)
    losses = {"start": loss(model, start, labels)}
    for kind in ("fgsm", "pgd"):
        spy = Spy(model)
        noise_spectrum(spy, IMAGES, sigma, copies, perturb=kind, images_per_batch=4)
        first, last = spy.given[1], spy.given[-1]
        torch.testing.assert_close(first, start)
        noise = last.unflatten(0, (4, copies)) - IMAGES[:, None]
        assert noise.abs().max() <= sigma * (1 + 1e-12)
        assert noise.std(1).mean() > 0.01 * sigma  # the copies differ
        losses[kind] = loss(model, last, labels)
    assert losses["start"] < losses["fgsm"] < losses["pgd"]


def test_attacks_lead_away_from_the_given_labels():
    model = small()
    own = model(IMAGES).argmax(1)
    other = (own + 1) % 10

    def attacked(labels):
        spy = Spy(model)
        noise_spectrum(spy, IMAGES, 0.1, 4, perturb="fgsm", labels=labels, images_per_batch=3)
        passes = 3 if labels is None else 2  # two batches; the last pass of each is the recorded
        assert len(spy.given) == 2 * passes
        return torch.cat(spy.given[passes - 1 :: passes])

    assert torch.equal(attacked(None), attacked(own.numpy()))
    one = own.clone()
    one[3] = other[3]  # alone in the second batch
    assert torch.equal(attacked(one)[:12], attacked(own)[:12])
    assert torch.equal(attacked(one)[12:], attacked(other)[12:])
    assert loss(model, attacked(other), other) > loss(model, attacked(own), other)
    assert loss(model, attacked(own), own) > loss(model, attacked(other), own)


@pytest.mark.parametrize(("kind", "grad"), [("gaussian", True), ("pgd", True), ("fgsm", False)])
def test_the_model_is_left_as_it_was(kind, grad):
    parts = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten()]
    model = nn.Sequential(*parts, nn.Linear(2028, 10)).double()
    model[1].eval()
    spy = Spy(model)
    modes = [m.training for m in spy.modules()]
    state = {k: v.clone() for k, v in spy.state_dict().items()}
    with torch.set_grad_enabled(grad):
        found = noise_spectrum(spy, IMAGES, 0.1, 4, perturb=kind, steps=2)
        assert torch.is_grad_enabled() == grad
    assert spy.modes and not any(spy.modes)
    assert [m.training for m in spy.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in spy.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in spy.parameters())
    assert not any(m._forward_hooks for m in spy.modules())
    assert not any(v.requires_grad for v in found.singular_values.values())
    assert torch.equal(IMAGES, uniform(4, 1, 28, 28))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": torch.full((4,), 10), "perturb": "fgsm"}, "labels: expected 0 to 9, found 10"),
        ({"layers": ["conv"]}, "layers: no layer 'conv'; did you mean 'conv2' or 'conv1'"),
        ({"layers": "input"}, "layers: expected a sequence, found 'input'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        noise_spectrum(small(), **{"images": IMAGES, "sigma": 0.1, "copies": 3, **arguments})
