"""Noise spectra against decompositions, closed forms, and a hand-run of the whole protocol."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from replication import activations, models, spectra
from replication._inputs import generator
from replication.spectra import (
    NoiseSpectrum,
    explained_variance,
    group_singular_values,
    noise_spectrum,
)

SIGMAS = (0.0, 1e-9, 1e-6, 1e-4, 1e-2, 0.2, 1.0)


@pytest.fixture(autouse=True)
def own_random_numbers():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=source(seed), dtype=torch.float64)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=source(seed), dtype=torch.float64)


def noisy(sigma, copies, neurons, images=2):
    """Return groups around an image each, (images, copies, neurons) in float64."""
    return uniform(images, 1, neurons) + sigma * normal(images, copies, neurons, seed=1)


def deficient(rank, copies, neurons, mean=1.0, images=2):
    """Return groups whose deviations have the given rank and are as large as their mean."""
    left, right = normal(images, copies, rank, seed=2), normal(images, rank, neurons, seed=3)
    return mean * uniform(images, 1, neurons) + left @ right


def reference(groups):
    """Return both spectra from LAPACK in float64, padded with zeros to (images, copies)."""
    groups = groups.double().flatten(2)
    missing = (0, max(0, groups.shape[1] - groups.shape[2]))
    return tuple(
        F.pad(torch.linalg.svdvals(matrix), missing)
        for matrix in (groups, groups - groups.mean(1, keepdim=True))
    )


def error(groups):
    """Return the largest deviation of both spectra from LAPACK's, in units of s_1."""
    found, expected = group_singular_values(groups), reference(groups)
    largest = expected[0][:, :1]
    deviations = torch.stack(found).double() - torch.stack(expected)
    return (deviations.abs() / largest.where(largest > 0, 1)).max().item()


# --- accuracy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(("copies", "neurons"), [(64, 4608), (16, 33), (16, 32), (16, 16), (2, 5)])
def test_full_rank_groups(sigma, copies, neurons):
    groups = noisy(sigma, copies, neurons)
    assert error(groups) <= 1e-12
    assert error(groups.float()) <= 1e-5


RANK_DEFICIENT = {
    "rank 1": lambda: deficient(1, 16, 300),
    "rank 5": lambda: deficient(5, 64, 4608),
    "rank 5, without a mean": lambda: deficient(5, 64, 600, mean=0),
    "rank 5, large mean": lambda: deficient(5, 64, 600, mean=1e4),
    "rank 20": lambda: deficient(20, 64, 4608),
    "duplicated copies": lambda: noisy(1.0, 8, 500).repeat_interleave(4, 1),
    "one copy apart": lambda: F.pad(normal(2, 1, 500), (0, 0, 0, 15)),
    "equal copies": lambda: normal(2, 1, 500).expand(2, 16, 500),
    "all dead": lambda: torch.zeros(2, 16, 500, dtype=torch.float64),
    "nearly all dead": lambda: F.pad(noisy(1.0, 16, 3), (0, 400)),
    "one neuron": lambda: noisy(0.3, 16, 1),
    "fewer neurons than copies": lambda: noisy(0.3, 16, 5),
    "as many neurons as copies": lambda: deficient(16, 16, 16),
    "twice as many": lambda: deficient(3, 16, 32),
    "just above twice as many": lambda: deficient(3, 16, 33),
}


@pytest.mark.parametrize("kind", RANK_DEFICIENT)
def test_rank_deficient_groups(kind):
    groups = RANK_DEFICIENT[kind]()
    few = groups.shape[2] <= 2 * groups.shape[1]  # decomposed themselves, with all digits
    assert error(groups) <= (1e-12 if few else 1e-7)
    assert error(groups.float()) <= 1e-5


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e12])
@pytest.mark.parametrize("sigma", [0.0, 0.01, 1.0])
def test_scales(scale, sigma):
    groups = noisy(sigma, 16, 300)
    assert error(scale * groups) <= 1e-12
    assert error((scale * groups).float()) <= 1e-5
    assert error((scale * deficient(5, 16, 300)).float()) <= 1e-5
    assert error(scale**12 * groups) <= 1e-12  # squares leave float64


def test_neurons_and_copies_of_very_different_sizes():
    groups = normal(2, 16, 600) * 10 ** (-5 * uniform(1, 1, 600)) * 10 ** (-3 * uniform(1, 16, 1))
    assert error(groups) <= 1e-12
    assert error(groups.float()) <= 1e-5
    assert error(groups.relu().float()) <= 1e-5


def test_the_gram_matrix_of_the_groups_themselves_would_lose_the_small_values():
    """What the mean taken off first is for: s_2 of a group with sigma = 1e-6 keeps 8 digits."""
    groups = noisy(1e-6, 16, 300)
    expected = reference(groups)[0][:, 1:]
    found = group_singular_values(groups)[0][:, 1:]
    assert ((found - expected).abs() / expected).max() < 1e-8
    naive = torch.linalg.eigvalsh(groups @ groups.mT).clamp_min(0).sqrt().flip(-1)[:, 1:]
    assert ((naive - expected).abs() / expected).max() > 1e-5


@pytest.mark.parametrize("rank", [5, 20])
def test_float32_groups_are_formed_again_where_they_must(rank, monkeypatch):
    groups = deficient(rank, 64, 900).float()
    formed = []
    product = spectra._product

    def spy(rows):
        formed.append(rows.dtype)
        return product(rows)

    monkeypatch.setattr(spectra, "_product", spy)
    assert error(groups) <= 1e-6
    assert formed == [torch.float32, torch.float64] * 2
    formed.clear()
    assert error(noisy(0.2, 64, 900).float()) <= 1e-6  # a usual group is formed once
    assert formed == [torch.float32] * 2

    # Without it: the Gram matrix as float32 gives it, in a decomposition that does not ask.
    monkeypatch.setattr(spectra, "_product", lambda rows: product(rows.float()).to(rows.dtype))
    assert error(groups) > 1e-5


def test_a_stack_mends_only_the_groups_that_need_it(monkeypatch):
    """As on a GPU, where many groups are decomposed at once."""
    good, bad = noisy(0.2, 16, 300, images=2), deficient(5, 16, 300, images=2)
    groups = torch.stack([good[0], bad[0], good[1], bad[1]]).float()
    again = []
    product = spectra._product
    monkeypatch.setattr(spectra, "_product", lambda r: again.append(len(r)) or product(r))
    found = spectra._by_gram(groups)
    assert again == [4, 2]
    expected = torch.stack(reference(groups), 1)
    assert ((found - expected).abs() <= 1e-6 * expected[:, :1, :1]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("neurons", [4, 300])
def test_shape_dtype_and_order(dtype, neurons):
    groups = noisy(0.3, 6, neurons, images=3).to(dtype)
    before = groups.clone()
    found = group_singular_values(groups)
    assert torch.equal(groups, before)
    for values in found:
        assert values.shape == (3, 6) and values.dtype == dtype
        assert (values[:, :-1] >= values[:, 1:]).all() and (values >= 0).all()
    assert (found[1][:, -1] <= 1e-7 * found[0][:, 0]).all()  # centring takes one dimension
    folded = group_singular_values(groups.unflatten(2, (2, neurons // 2)))
    assert torch.equal(torch.stack(folded), torch.stack(found))


def test_half_types_are_promoted_and_arrays_taken():
    groups = noisy(0.3, 4, 50)
    assert group_singular_values(groups.half())[0].dtype == torch.float32
    found = group_singular_values(groups.numpy())[0]
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, group_singular_values(groups)[0].numpy())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (torch.ones(2, 3), r"groups: expected floating \(images, copies >= 2, neurons\)"),
        (torch.ones(2, 1, 3), r"groups: expected .*\(2, 1, 3\)"),
        (torch.ones(2, 3, 4, dtype=torch.int64), r"groups: expected floating .*torch.int64"),
        (torch.ones(2, 3, 0), "groups: expected at least one entry"),
        (torch.full((2, 3, 4), torch.nan), "groups: expected finite numbers"),
        (torch.full((2, 3, 4), torch.inf), "groups: expected finite numbers"),
        ([[[1.0], [2.0]]], "groups: expected a torch tensor or NumPy array"),
    ],
)
def test_bad_groups(groups, message):
    with pytest.raises(ValueError, match=message):
        group_singular_values(groups)


# --- properties --------------------------------------------------------------------------------

GROUPS = st.builds(
    lambda seed, copies, neurons, size: (
        uniform(2, 1, neurons, seed=seed) + 10.0**size * normal(2, copies, neurons, seed=seed + 1)
    ),
    seed=st.integers(0, 2**31),
    copies=st.integers(2, 9),
    neurons=st.integers(1, 40),  # both ways of decomposing
    size=st.integers(-6, 1),
)
few = settings(max_examples=30, deadline=None, derandomize=True)


def assert_same(left, right, scale=1.0):
    left, right = (torch.stack(group_singular_values(groups)) for groups in (left, right))
    left = scale * left
    # sqrt(eps) where the group has not full rank, which these small ones may not have
    assert ((left - right).abs() <= 3e-8 * left[0, :, :1]).all()


@few
@given(GROUPS, st.integers(0, 2**31))
def test_the_order_of_neurons_and_copies_does_not_matter(groups, seed):
    assert_same(groups, groups[..., torch.randperm(groups.shape[2], generator=source(seed))])
    assert_same(groups, groups[:, torch.randperm(groups.shape[1], generator=source(seed))])


@few
@given(GROUPS, st.integers(0, 2**31))
def test_rotations_of_the_neurons_do_not_matter(groups, seed):
    neurons = groups.shape[2]
    rotation, _ = torch.linalg.qr(normal(neurons, neurons, seed=seed))
    assert_same(groups, groups @ rotation)


@few
@given(GROUPS, st.integers(1, 80))
def test_silent_neurons_do_not_matter(groups, more):
    assert_same(groups, F.pad(groups, (0, more)))


@few
@given(GROUPS, st.sampled_from([-1e150, -3.0, 1e-150, 0.1, 7.0]))
def test_homogeneity(groups, factor):
    assert_same(groups, factor * groups, scale=abs(factor))


@few
@given(GROUPS)
def test_squares_sum_to_the_frobenius_norm(groups):
    whole, centred = group_singular_values(groups)
    torch.testing.assert_close(whole.square().sum(1), groups.square().sum((1, 2)))
    deviations = groups - groups.mean(1, keepdim=True)
    torch.testing.assert_close(centred.square().sum(1), deviations.square().sum((1, 2)))


@few
@given(GROUPS, st.sampled_from([1e-150, 1.0, 1e150]))
def test_explained_variance_sums_to_one(groups, factor):
    values = group_singular_values(groups)[0]
    shares = explained_variance(factor * values)
    torch.testing.assert_close(shares.sum(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(shares, explained_variance(values))
    torch.testing.assert_close(shares[:, 0], values[:, 0] ** 2 / groups.square().sum((1, 2)))


def test_explained_variance_of_known_values():
    values = torch.tensor([[4.0, 3.0], [0.0, 0.0], [1e30, 0.0]])
    expected = torch.tensor([[0.64, 0.36], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(explained_variance(values), expected, rtol=0, atol=1e-7)
    found = NoiseSpectrum({"a": values, "b": values.flip(0)}, {})
    assert found.layers == ("a", "b")
    assert torch.equal(found.explained_variance("b"), explained_variance(values.flip(0)))


# --- closed forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("neurons", [10, 300])
def test_rank_one_groups(neurons):
    """A = a b^T has s_1 = |a| |b|, and centred s_1 = |a - mean a| |b|; the rest is 0."""
    a, b = normal(2, 8, 1), normal(2, 1, neurons, seed=1)
    whole, centred = group_singular_values(a * b)
    size = b.norm(dim=(1, 2))
    torch.testing.assert_close(whole[:, 0], a.norm(dim=(1, 2)) * size)
    torch.testing.assert_close(centred[:, 0], (a - a.mean(1, keepdim=True)).norm(dim=(1, 2)) * size)
    assert (whole[:, 1:] <= 1e-7 * whole[:, :1]).all()


def test_gaussian_noise_on_many_inputs():
    """For d >> M the copies' noises are orthogonal: s_1^2 = M |x|^2 + sigma^2 d, others sigma^2 d.

    (Eigenvalues of the M x M matrix |x|^2 1 1^T + sigma^2 d I; the law of large numbers.)
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


def test_uniform_start_has_the_variance_of_a_uniform_number():
    """Where the gradient is 0 an attack stays at its start: a third of the Gaussian's variance."""
    images, sigma, copies = torch.zeros(2, 1, 100, 200), 0.5, 8
    flat = nn.Sequential(nn.Flatten(), nn.Linear(20_000, 3))
    nn.init.zeros_(flat[1].weight)
    found = noise_spectrum(flat, images, sigma, copies, layers=["input"], perturb="pgd")
    squares = found.singular_values["input"].square() / (sigma**2 / 3 * 20_000)
    assert (squares - 1).abs().max() < 0.06


# --- noise_spectrum ----------------------------------------------------------------------------


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
    if kind == "gaussian":
        return torch.randn(
            copies, *shape, generator=generator(seed, "perturbation/False", position)
        ).double()
    uniform = torch.rand(copies, *shape, generator=generator(seed, "perturbation/True", position))
    return (2 * uniform - 1).double()


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


@pytest.mark.parametrize("kind", spectra.PERTURBATIONS)
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


@pytest.mark.parametrize("sizes", [(1, 2), (3, 4), (4, 100)])
@pytest.mark.parametrize("kind", ["gaussian", "pgd"])
def test_the_batching_does_not_matter(sizes, kind):
    left, right = (
        noise_spectrum(small(), IMAGES, 0.1, 4, perturb=kind, steps=2, images_per_batch=size)
        for size in sizes
    )
    assert_equal(left, right, atol=1e-6)  # zero up to sqrt(eps) where the rank is not full


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
    exact = noise_spectrum(small(), IMAGES, 0.1, 4)
    assert {v.dtype for v in found.singular_values.values()} == {torch.float32}
    for name, values in exact.singular_values.items():
        assert (found.singular_values[name] - values).abs().max() <= 1e-5 * values.max()


def test_layers_are_a_subset_in_forward_order():
    model = small()
    whole = noise_spectrum(model, IMAGES, 0.1, 4)
    part = noise_spectrum(model, IMAGES, 0.1, 4, layers=["fc1", "input", "conv1"])
    assert part.layers == ("input", "conv1", "fc1")
    for name in part.layers:
        assert torch.equal(part.singular_values[name], whole.singular_values[name])
        assert torch.equal(part.centred[name], whole.centred[name])
    assert noise_spectrum(model, IMAGES, 0.1, 4, layers=["pool"]).layers == ("pool",)


def test_only_the_input_needs_no_forward_pass():
    class Fails(nn.Module):
        def forward(self, x):
            raise AssertionError

    found = noise_spectrum(Fails(), IMAGES, 0.1, 4, layers=["input"])
    assert torch.equal(found.singular_values["input"], inputs())


def test_channels_last_gives_the_same_values():
    model, seen = small(), []
    plain = noise_spectrum(model, IMAGES, 0.1, 4)
    model = model.to(memory_format=torch.channels_last)
    model.conv2.register_forward_hook(
        lambda module, given, output: seen.append(
            output.is_contiguous(memory_format=torch.channels_last)
        )
    )
    turned = IMAGES.contiguous(memory_format=torch.channels_last)
    assert_equal(plain, noise_spectrum(model, turned, 0.1, 4), atol=1e-6)
    assert seen == [True, True]


def test_neurons_of_channels_last_outputs_are_not_copied():
    output = normal(3, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    neurons = spectra._neurons(output)
    assert neurons.shape == (3, 120) and neurons.data_ptr() == output.data_ptr()
    assert torch.equal(neurons.sort().values, output.reshape(3, -1).sort().values)


@pytest.mark.parametrize("kind", spectra.PERTURBATIONS)
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


def test_b10_is_not_a_matter_of_course():
    found = noise_spectrum(small(), IMAGES[:2], 1e-9, 4)
    assert all((v[:, 1] > 1e-12 * v[:, 0]).all() for v in found.singular_values.values())


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
    with torch.no_grad():
        return F.cross_entropy(
            model(perturbed), labels.repeat_interleave(len(perturbed) // len(labels))
        ).item()


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


@pytest.mark.parametrize(("kind", "steps"), [("pgd", 1), ("pgd", 5), ("fgsm", 9)])
def test_the_number_and_size_of_steps(kind, steps):
    """On a linear network, where the gradient's sign is known."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 2)).double()
    images, sigma, label = uniform(1, 20), 0.1, torch.tensor([1])
    sign = (model[1].weight[0] - model[1].weight[1]).detach().sign()
    spy = Spy(model)
    noise_spectrum(spy, images, sigma, 3, perturb=kind, steps=steps, labels=label)
    start = sigma * perturbation(0, "pgd", copies=3, shape=(20,))
    size = sigma if kind == "fgsm" else 2.5 * sigma / steps
    expected = [start]
    for _ in range(1 if kind == "fgsm" else steps):
        expected.append((expected[-1] + size * sign).clamp(-sigma, sigma))
    assert len(spy.given) == len(expected)
    for passed, noise in zip(spy.given, expected, strict=True):
        torch.testing.assert_close(passed, images + noise)


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

    assert torch.equal(attacked(None), attacked(own))
    assert torch.equal(attacked(own), attacked(own.numpy()))
    one = own.clone()
    one[3] = other[3]  # alone in the second batch
    assert torch.equal(attacked(one)[:12], attacked(own)[:12])
    assert torch.equal(attacked(one)[12:], attacked(other)[12:])
    assert loss(model, attacked(other), other) > loss(model, attacked(own), other)
    assert loss(model, attacked(own), own) > loss(model, attacked(other), own)


@pytest.mark.parametrize("kind", spectra.PERTURBATIONS)
@pytest.mark.parametrize("grad", [True, False])
def test_the_model_is_left_as_it_was(kind, grad):
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(2028, 10)
    ).double()
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


def test_progress_sees_every_batch():
    seen = []

    def progress(batches):
        for batch in batches:
            seen.append(batch)
            yield batch

    noise_spectrum(small(), IMAGES, 0.1, 2, ["input"], images_per_batch=3, progress=progress)
    assert seen == [0, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"perturb": "gausian"}, "perturb: found 'gausian'; did you mean 'gaussian'"),
        ({"sigma": -0.1}, "sigma: expected a finite number >= 0, found -0.1"),
        ({"sigma": math.nan}, "sigma: expected a finite number >= 0, found nan"),
        ({"sigma": math.inf}, "sigma: expected a finite number >= 0, found inf"),
        ({"copies": 1}, "copies: expected an integer >= 2, found 1"),
        ({"copies": 2.5}, "copies: expected an integer >= 2, found 2.5"),
        ({"steps": 0}, "steps: expected an integer >= 1, found 0"),
        ({"steps": -3}, "steps: expected an integer >= 1, found -3"),
        ({"images_per_batch": 0}, "images_per_batch: expected an integer >= 1, found 0"),
        ({"images_per_batch": -1}, "images_per_batch: expected an integer >= 1, found -1"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels: expected shape \(4,\), found"),
        ({"labels": [0, 1, 2, 3]}, "labels: expected a torch tensor or NumPy array, found list"),
        ({"layers": ["conv"]}, "layers: no layer 'conv'; did you mean 'conv2' or 'conv1'"),
        ({"layers": "conv1"}, "layers: expected a sequence of names, found the string 'conv1'"),
        ({"layers": "input"}, "layers: expected a sequence of names, found the string 'input'"),
        ({"images": IMAGES.log().log()}, "images: expected finite numbers"),
        ({"images": IMAGES[:0]}, "images: expected at least one entry"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        noise_spectrum(small(), **{"images": IMAGES, "sigma": 0.1, "copies": 3, **arguments})


def test_numpy_integers_are_integers():
    noise_spectrum(small(), IMAGES, np.float64(0.1), np.int64(2), ["input"])


# --- GPU ---------------------------------------------------------------------------------------

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("tf32", [False, True])
def test_gpu_accuracy(tf32):
    kinds = [noisy(s, 16, 300) for s in SIGMAS]
    kinds += [deficient(r, 16, 300) for r in (1, 5)] + [torch.zeros(2, 16, 300).double()]
    groups = torch.cat(kinds).cuda()
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        for dtype, bound in ((torch.float64, 1e-7), (torch.float32, 1e-5)):
            found = group_singular_values(groups.to(dtype))
            assert found[0].is_cuda and torch.backends.cuda.matmul.allow_tf32 == tf32
            expected = reference(groups.to(dtype).cpu())
            for one, two in zip(found, expected, strict=True):
                assert ((one.cpu() - two).abs() <= bound * expected[0][:, :1]).all()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("kind", spectra.PERTURBATIONS)
def test_gpu_equals_cpu(kind):
    cpu = noise_spectrum(small(), IMAGES, 0.1, 4, perturb=kind, steps=3)
    gpu = noise_spectrum(small().cuda(), IMAGES, 0.1, 4, perturb=kind, steps=3)
    assert gpu.layers == cpu.layers
    for name, values in gpu.singular_values.items():
        assert values.is_cuda
        assert (values.cpu() - cpu.singular_values[name]).abs().max() <= 1e-7 * values.max().item()
