"""Linear probes and deletion of principal components: closed forms, invariances, bad input."""

import pytest
import torch
from _random_networks import gaussian
from sklearn.linear_model import LogisticRegression

from replication.directions.probe import linear_probe


def problem(noise=0.3):
    """Return (train, labels, test, labels): three classes around points far apart."""
    y, truth, centres = torch.arange(90) % 3, torch.arange(60) % 3, 3 * gaussian(3, 6)
    x, z = centres[y] + noise * gaussian(90, 6, seed=1), centres[truth] + noise * gaussian(60, 6)
    return x, y, z, truth


def test_separable_classes_are_told_apart_and_noise_is_not():
    x, y, z, truth = problem()
    assert linear_probe(x, y, z, truth) == 1
    wrong = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
    assert linear_probe(x, wrong, z, truth) < 0.8


def test_scale_shift_constant_features_and_grad_mode_change_nothing():
    x, y, z, truth = problem(noise=2.5)
    value = linear_probe(x, y, z, truth)
    assert 0.3 < value < 1
    scales = torch.logspace(-3, 3, 6, dtype=torch.float64)
    assert linear_probe(x * scales + 5, y, z * scales + 5, truth) == value
    ones = [torch.cat([part, torch.ones(len(part), 1, dtype=part.dtype)], 1) for part in (x, z)]
    with torch.no_grad():
        assert linear_probe(ones[0], y, ones[1], truth) == value


def test_one_feature_a_constant_layer_and_a_class_that_was_never_seen():
    x, y = torch.tensor([[-1.0], [-1.0], [1.0], [1.0]]), torch.tensor([0, 1, 1, 1])
    # Which class wins at x = -1, where both occur once, is rounding; at x = 1 only one occurs.
    assert linear_probe(x, y, torch.ones(3, 1), torch.ones(3, dtype=torch.long)) == 1
    y = torch.tensor([0, 1, 1, 1, 2, 1])
    assert linear_probe(torch.ones(6, 3), y, torch.ones(6, 3), y) == pytest.approx(4 / 6)
    x, y, z, truth = problem()
    value = linear_probe(x[y < 2], y[y < 2], z, truth)
    assert value == pytest.approx((truth < 2).double().mean().item())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, z, t: (x, y, z[:, :2], t), "test: expected the 6 features"),
        (lambda x, y, z, t: (x, y, z, t - 1), "test_labels: expected 0 to 65535, found -1"),
        (lambda x, y, z, t: (x, y + 2**16, z, t), "train_labels: expected 0 to 65535"),
    ],
)
def test_bad_probes_are_named(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        linear_probe(*change(*problem()))


def test_the_penalty_is_that_of_the_formula():
    """The threshold of a lopsided problem, seen in the share of a fine grid on its one side."""
    x = torch.cat([gaussian(90, 1), gaussian(30, 1, seed=1) + 2])
    y, grid = (torch.arange(120) >= 90).long(), torch.linspace(-3, 6, 2001).double()[:, None]
    shares = []
    for penalty in (0.2, 0.4):
        z = ((x - x.mean(0)) / x.std(0)).numpy()
        model = LogisticRegression(C=1 / (120 * penalty), tol=1e-8).fit(z, y)  # two classes: W / 2
        expected = model.predict(((grid - x.mean(0)) / x.std(0)).numpy()).mean()
        shares.append(linear_probe(x, y, grid, torch.ones(2001).long(), 2 * penalty))
        assert shares[-1] == pytest.approx(expected, abs=2e-3)
    assert abs(shares[0] - shares[1]) > 0.02
