"""Selectivity index and mutual information: closed forms, invariances, degenerate units."""

import math

import numpy as np
import pytest
import torch
from _random_networks import classes, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.directions import class_selectivity, mutual_information, selectivity


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_index_of_chosen_means(dtype):
    labels = torch.tensor([3, 3, 5, 5, 5, 8])
    means = torch.tensor([[2, 0, 0], [1, 1, 1], [0, 3, 1], [0, 0, 0], [0.5, 0.1, 4.1]]).T
    acts = means[torch.tensor([0, 0, 1, 1, 1, 2])].to(dtype)
    acts[0, 0], acts[1, 0] = 3, 1  # only the mean counts
    found = class_selectivity(acts, labels)
    expected = torch.tensor([1, 0, 2.5 / 3.5, 0, 3.8 / 4.4], dtype=dtype)
    torch.testing.assert_close(found.index, expected)
    assert found.index[0] == 1
    assert found.preferred[[0, 2, 4]].tolist() == [3, 5, 8]
    assert found.dead.tolist() == [False, False, False, True, False]
    assert found.preferred[3] == -1
    assert found.classes.tolist() == [3, 5, 8]
    torch.testing.assert_close(found.class_means, means.to(dtype))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_index_ignores_scale_names_and_how_often_a_class_occurs(seed, scale):
    acts, labels = gaussian(40, 3, seed=seed).relu(), torch.arange(40) % 4
    found = class_selectivity(acts, labels)
    assert ((found.index >= 0) & (found.index <= 1)).all()
    again = torch.cat([torch.arange(40), torch.arange(40)[labels == 2].repeat(3)])
    names = torch.tensor([7, 100, -3, 12])
    other = class_selectivity(scale * acts[again], names[labels[again]])
    torch.testing.assert_close(other.index, found.index)
    alive = ~found.dead
    assert torch.equal(other.preferred[alive], names[found.preferred[alive]])


def test_index_of_either_sign_stays_within_0_and_1():
    found = class_selectivity(gaussian(100, 50), classes(100, 5))
    assert ((found.index >= 0) & (found.index <= 1)).all()
    assert not found.dead.any()
    # all means below zero: the least negative is preferred
    found = class_selectivity(torch.tensor([[-1.0], [-3.0]]), torch.tensor([0, 1]))
    assert (found.index.item(), found.preferred.item()) == (0.5, 0)


@pytest.mark.parametrize("shift", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_shifted_uniform_classes(shift, dtype):
    """Where the classes do not overlap x gives the class away: I = shift bits, exactly."""
    n = 8000
    labels = torch.arange(n) % 2
    acts = ((torch.arange(n) // 2 + 0.5) / (n / 2) + shift * labels)[:, None].to(dtype)
    # the quantiles of 8 bins fall on the steps of the density
    found = mutual_information(acts, labels, bins=8)
    assert found.dtype == dtype
    assert found.item() == pytest.approx(shift, abs=2e-3)


def test_two_gaussian_classes():
    """I = 1 - E log2(1 + exp(-2 d (x + d))), x ~ N(0, 1), for means of -d and d."""
    n, d = 200_000, 0.7
    labels = classes(n, 2)
    acts = gaussian(n, 1) + d * (2.0 * labels - 1)[:, None]
    x = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    integrand = density * torch.log2(1 + torch.exp(-2 * d * (x + d)))
    expected = 1 - torch.trapezoid(integrand, x).item()
    found = mutual_information(acts, labels, bins=64).item()
    assert found == pytest.approx(expected, abs=4e-3)


def test_independent_units_come_out_around_0():
    n, units, bins = 1000, 400, 16
    found = mutual_information(gaussian(n, units), classes(n, 10), bins)
    uncorrected = (bins - 1) * 9 / (2 * n * math.log(2))  # 0.097 bits
    assert abs(found.mean()) < 0.05 * uncorrected
    assert 0 < found.std() < 0.2 * uncorrected
    assert (found < 0).any()


def test_small_examples_by_hand():
    """Two bins and two classes with pairs (3, 1, 1, 3) of 8; the class itself; constant units."""
    labels = torch.tensor([0, 0, 0, 1, 0, 1, 1, 1])
    plug_in = 2 * (3 / 8 * math.log2(3 / 2) + 1 / 8 * math.log2(1 / 2))
    correction = (2 + 2 - 4 - 1) / (2 * 8 * math.log(2))
    found = mutual_information(torch.arange(8.0)[:, None], labels, bins=2)
    assert found.item() == pytest.approx(plug_in + correction)

    labels = torch.arange(1000) % 4
    correction = (4 + 4 - 4 - 1) / (2000 * math.log(2))
    found = mutual_information(labels[:, None].double(), labels, bins=16)
    assert found.item() == pytest.approx(2 + correction)

    acts = gaussian(100, 4)
    acts[:, 1], acts[:, 3] = 0, -2.5
    assert (mutual_information(acts, classes(100, 5)) == 0).tolist() == [False, True, False, True]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_unit_that_rarely_fires_is_not_lost_among_its_zeros(sign):
    """Fires for all of a class of 2%, fewer than a bin holds: I is the entropy of 2%."""
    labels = (torch.arange(5000) % 50 == 0).long()
    acts = sign * labels * (1 + torch.arange(5000.0) / 5000)
    expected = -(0.02 * math.log2(0.02) + 0.98 * math.log2(0.98))
    found = mutual_information(acts[:, None], labels, bins=16)
    assert found.item() == pytest.approx(expected, abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), bins=st.integers(2, 20))
def test_information_ignores_monotone_maps_order_and_names(seed, bins):
    acts = gaussian(80, 4, seed=seed).relu()
    labels = classes(80, 3, seed=seed)
    found = mutual_information(acts, labels, bins)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(seed))
    mapped = (3 * acts + 1) ** 3
    other = mutual_information(mapped[order], 10 - 2 * labels[order], bins)
    torch.testing.assert_close(other, found, rtol=0, atol=1e-12)


def test_units_may_be_taken_a_few_at_a_time(monkeypatch):
    acts, labels = gaussian(50, 11), classes(50, 3)
    expected = mutual_information(acts, labels)
    monkeypatch.setattr(selectivity, "CELLS", 200)
    assert torch.equal(mutual_information(acts, labels), expected)


def test_feature_maps_are_averaged_over_space_and_arrays_give_arrays():
    acts, labels = gaussian(60, 5, 4, 3).relu(), classes(60, 3)
    for function in (mutual_information, lambda *given: class_selectivity(*given).index):
        found = function(acts.numpy(), labels.numpy())
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, function(acts.mean((2, 3)), labels))


@pytest.mark.parametrize("function", [class_selectivity, mutual_information])
@pytest.mark.parametrize(
    ("acts", "labels", "message"),
    [
        (gaussian(6, 2, 3), torch.arange(6), "acts: expected .*height, width"),
        (gaussian(6, 2), torch.zeros(6).long(), r"labels: .*at least 2 classes, found \[0\]"),
    ],
)
def test_bad_input(function, acts, labels, message):
    with pytest.raises(ValueError, match=message):
        function(acts, labels)
