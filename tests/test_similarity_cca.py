"""CCA, SVCCA and PWCCA: references, closed forms, what they ignore and what they must not."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from _random_layers import related
from _random_networks import gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.papers import similarity_measurements as measured
from replication.similarity import Accumulator, cca, compare, dft_cca, pwcca, svcca

# Where the values come from is told in reference/README.md. Neurons come first there.
REFERENCE = np.load(Path(__file__).parent / "reference" / "cca.npz")
CASES = ("independent", "correlated", "shared_nx_gt_ny", "rank_deficient", "constant_neurons")
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def layers(case):
    return REFERENCE[f"{case}/acts1"].T, REFERENCE[f"{case}/acts2"].T


def correlated_pair(n=500, seed=0):
    shared = gaussian(n, 6, seed=seed)
    x = torch.cat([shared, gaussian(n, 5, seed=seed + 1)], 1) @ gaussian(11, 11, seed=seed + 2)
    y = torch.cat([shared + 0.5 * gaussian(n, 6, seed=seed + 3), gaussian(n, 3, seed=seed + 4)], 1)
    return x, y @ gaussian(9, 9, seed=seed + 5)


def indices(x, y):
    return torch.stack([cca(x, y).mean, svcca(x, y, variance=0.9).mean, pwcca(x, y)])


def assert_close(found, expected, atol=1e-9):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def orthonormal(n, k):
    """Return orthonormal columns of mean 0."""
    columns = torch.cat([torch.ones(n, 1).double(), gaussian(n, k)], 1)
    return torch.linalg.qr(columns)[0][:, 1:]


@pytest.mark.parametrize("case", CASES)
def test_exact_and_published_references(case):
    found = cca(*layers(case)).correlations
    np.testing.assert_allclose(found, REFERENCE[f"{case}/exact_coef"], atol=1e-12)
    for epsilon, atol in (("eps0", 1e-12), ("eps1e-10", 1e-8)) if case in CASES[:3] else ():
        np.testing.assert_allclose(found, REFERENCE[f"{case}/{epsilon}/cca_coef1"], atol=atol)
    # its epsilon of 1e-10 moves the mean by up to 4e-9
    expected = REFERENCE[f"{case}/eps1e-10/svcca20_mean"]
    assert svcca(*layers(case), dims=20).mean == pytest.approx(float(expected), abs=1e-8)


def test_pwcca_is_the_papers_and_not_the_published_codes():
    # values of the paper's definition, worked out beside the reference
    assert float(pwcca(*layers("correlated"))) == pytest.approx(0.957, abs=5e-4)
    assert float(pwcca(*layers("shared_nx_gt_ny"))) == pytest.approx(0.713, abs=5e-4)


def accumulated(x, y):
    streamed = Accumulator()
    streamed.update(x, y)
    return streamed.result("pwcca")


@pytest.mark.parametrize(
    "function",
    [
        *(cca, svcca, pwcca, dft_cca, accumulated),
        lambda x, y: compare({"x": x, "z": x[:, :2]}, {"y": y, "x": y[:, :2]}, "cca"),
    ],
)
def test_ranks_that_add_up_to_the_examples_are_told_once(function):
    x, y = np.random.default_rng(0).normal(size=(2, 30, 14))
    y = np.c_[y, x[::-1, :3]]
    assert cca(x, y[:, :15]).correlations[0] < 0.999
    function(x, y[:, :15])
    told = "x.* and .*y.*: ranks that add up to 31 with 30 examples"
    with pytest.warns(UserWarning, match=told) as caught:
        function(x, y)
    assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.warns(UserWarning, match=told):
        assert cca(x, y).correlations[1] == 1  # 31 - (30 - 1) of them


def test_directions_without_a_partner_are_left_out_or_count_0_as_in_notebook_07():
    x, y = (torch.from_numpy(z) for z in related(200, 5, 4))
    axes = [measured.axes_of(z.T @ z) for z in (x - x.mean(0), y - y.mean(0))]
    t = [(z - z.mean(0)) @ a.directions / a.values for z, a in zip((x, y), axes, strict=True)]
    expected = measured.linear_indices(t[0].T @ t[1], *axes, len(x))["PWCCA, missing 0"]
    zero = pwcca(x, y, missing="zero")
    assert zero == pytest.approx(expected, abs=1e-10) and zero < pwcca(x, y) - 0.05
    wide = torch.cat([x, x.square()], 1)  # several have none
    found = [float(pwcca(z, y, missing="zero")) for z in (wide, wide.flip(1))]
    assert found[0] == pytest.approx(found[1], abs=1e-10)
    assert compare({"x": x}, {"y": y}, "pwcca", missing="zero").values.item() == pytest.approx(zero)
    assert pwcca(y, x, missing="zero") == pwcca(y, x)  # all have one
    with pytest.raises(ValueError, match="missing: found 'none'; expected one of: drop, zero"):
        pwcca(x, y, missing="none")


def test_pwcca_from_its_definition_and_its_sides():
    x, y = correlated_pair()
    found = cca(x, y)
    alpha = (found.x_variates.T @ (x - x.mean(0))).abs().sum(1)
    expected = (alpha * found.correlations).sum() / alpha.sum()
    assert pwcca(x, y) == pytest.approx(expected.item(), abs=1e-12)
    assert pwcca(x, y) != pytest.approx(pwcca(y, x).item(), abs=1e-4)


def test_one_neuron_against_one_or_many_is_the_multiple_correlation():
    x, y = gaussian(80, 4), gaussian(80, 1, seed=1)
    for part in (x[:, :1], x):
        design = torch.cat([part, torch.ones(80, 1, dtype=x.dtype)], 1)
        residual = y - design @ torch.linalg.lstsq(design, y).solution
        r2 = 1 - (residual.square().sum() / (y - y.mean()).square().sum()).item()
        assert cca(part, -y).correlations.tolist() == pytest.approx([math.sqrt(r2)], abs=1e-12)


def test_known_correlations_are_found():
    q = orthonormal(100, 6)
    rho = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    y = q[:, :3] * rho + q[:, 3:] * (1 - rho**2).sqrt()
    found = cca(q[:, :3] @ gaussian(3, 3, seed=7), y @ gaussian(3, 3, seed=8) + 5)
    assert_close(found.correlations, rho, 1e-12)
    assert found.mean == pytest.approx(0.5)


def test_the_null_is_where_unrelated_layers_lie_and_related_ones_do_not():
    x, y = gaussian(2000, 20), gaussian(2000, 30, seed=1)
    found = cca(x, y, null=50)
    assert found.null.shape == (50,)
    assert abs(found.mean - found.null.mean()) < 4 * found.null.std()
    x, y = correlated_pair()
    found = cca(x, y, null=20)
    assert found.mean > found.null.max() + 5 * found.null.std()
    assert torch.equal(found.null[:3], cca(x, y, null=3).null)
    assert not torch.equal(found.null[:3], cca(x, y, null=3, seed=6).null)


@pytest.mark.parametrize("function", [cca, lambda x, y: svcca(x, y, dims=4)])
@pytest.mark.parametrize("deficient", [False, True])
def test_variates_are_whitened_and_pairwise_correlated(function, deficient):
    x, y = correlated_pair()
    if deficient:
        x = torch.cat([x, x[:, :3], torch.full((len(x), 1), 7.0, dtype=x.dtype)], 1)
    found = function(x, y)
    n = len(x) - 1
    eye = torch.eye(len(found.correlations), dtype=x.dtype)
    for side, layer in (("x", x), ("y", y)):
        variates = getattr(found, f"{side}_variates")
        assert_close(variates.T @ variates / n, eye, 1e-12)
        assert_close((layer - layer.mean(0)) @ getattr(found, f"{side}_directions"), variates)
    assert_close(found.x_variates.T @ found.y_variates / n, torch.diag(found.correlations), 1e-12)


def test_the_number_of_correlations_is_the_rank():
    x, y = correlated_pair()
    wide = torch.cat([x, x @ gaussian(11, 20, seed=3), torch.zeros(len(x), 4).double()], 1)
    found = cca(wide, y)
    assert (found.ranks, found.widths) == ((11, 9), (35, 9))
    assert_close(found.correlations, cca(x, y).correlations, 1e-10)
    few = cca(wide, y[:, :2])
    assert few.mean_over_width == pytest.approx(few.mean.item())
    narrow = torch.cat([y[:, :2], y[:, :2]], 1)
    assert cca(wide, narrow).mean_over_width == pytest.approx(few.mean.item() / 2)


@DTYPES
@pytest.mark.parametrize("level", [1.0, 1e3, -1e7])
def test_a_constant_neuron_changes_nothing(dtype, level):
    x, y = (z.to(dtype) for z in correlated_pair())
    found = cca(torch.cat([torch.full((len(x), 2), level / 3, dtype=dtype), x], 1), y)
    assert found.ranks[0] == 11
    assert_close(found.correlations, cca(x, y).correlations, 1e-5)


def test_a_constant_layer_correlates_with_nothing_and_warns():
    x, constant = gaussian(30, 4), torch.ones(30, 3).double()
    for function in (cca, svcca):
        with pytest.warns(UserWarning, match="^x: constant"):
            found = function(constant, x)
        assert (len(found.correlations), found.x_variates.shape) == (0, (30, 0))


@pytest.mark.parametrize("function", [cca, pwcca])
@pytest.mark.parametrize(("n", "width"), [(20, 25), (20, 19), (2, 3)])
def test_more_neurons_than_examples_say_nothing_and_warn(function, n, width):
    with pytest.warns(UserWarning, match=f"x.*: spans all {n} centred examples") as caught:
        found = function(gaussian(n, width), gaussian(n, min(n - 1, 5), seed=1))
    assert (found if function is pwcca else found.mean) == pytest.approx(1)
    assert caught[0].filename == __file__


def test_the_cut_is_on_singular_values_by_default():
    x = orthonormal(60, 5) * torch.tensor([10.0, 5.0, 3.0, 1.0, 1.0])
    y = gaussian(60, 8, seed=4)  # of x: sum 20, squares 100 25 9 1 1 of 136
    assert svcca(x, y, variance=0.899).ranks[0] == 3
    assert svcca(x, y, variance=0.901).ranks[0] == 4
    assert svcca(x, y, variance=0.90, squares=True).ranks[0] == 2  # 125 / 136 = 0.919
    assert svcca(x, y, variance=1.0).ranks[0] == 5
    assert svcca(x, y, dims=2).ranks == (2, 2)
    assert svcca(x, y, dims=99).ranks == (5, 8)


def test_svcca_is_cca_of_the_projected_layers():
    x, y = correlated_pair()
    u, s, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    v, t, _ = torch.linalg.svd(y - y.mean(0), full_matrices=False)
    expected = cca(u[:, :5] * s[:5], v[:, :5] * t[:5]).correlations
    assert_close(svcca(x, y, dims=5).correlations, expected, 1e-10)
    assert_close(svcca(x, y, variance=1.0).correlations, cca(x, y).correlations, 1e-10)


def test_numpy_in_numpy_out():
    x, y = (z.numpy() for z in correlated_pair())
    found = cca(x, y, null=2)
    for value in (found.correlations, found.null, found.x_variates, found.y_directions):
        assert isinstance(value, np.ndarray) and value.dtype == np.float64
    assert isinstance(found.mean, np.floating)


def test_float32_is_close_to_float64_also_with_dead_and_copied_units():
    x, y = correlated_pair(2000)
    x = x * torch.logspace(0, 3, 11, dtype=x.dtype)
    assert_close(indices(x.float(), y.float()).double(), indices(x, y), 1e-5)
    x = torch.cat([x, x[:, :4], torch.full((2000, 3), 0.1).double()], 1)
    assert cca(x.float(), y.float()).ranks == (11, 9)
    assert cca(x.float(), y.float()).mean == pytest.approx(cca(x, y).mean.item(), abs=1e-5)


def test_gradient_of_the_mean():
    x, y = correlated_pair(60)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: cca(z, y).mean, (x,), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(30, 60),
    widths=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    seed=st.integers(0, 10**6),
)
def test_correlations_are_ordered_symmetric_and_in_range(n, widths, seed):
    x, y = gaussian(n, widths[0], seed=seed), gaussian(n, widths[1], seed=seed + 1)
    rho = cca(x, y).correlations
    assert len(rho) == min(widths)
    assert ((rho >= 0) & (rho <= 1)).all()
    assert (rho.diff() <= 0).all()
    assert_close(rho, cca(y, x).correlations, 1e-10)
    assert 0 <= pwcca(x, y) <= rho[0] + 1e-12
    # more neurons can only add correlation
    more = cca(torch.cat([x, gaussian(n, 1, seed=seed + 2)], 1), y).correlations
    assert (more[: len(rho)] >= rho - 1e-10).all()


def test_of_more_neurons_than_examples_the_smaller_side_decides():
    x, y = gaussian(40, 30_000, seed=1), gaussian(40, 60, seed=2)
    x[:, :5] += 300 * y[:, :5]
    found = svcca(x, y, dims=5)  # a matrix of neurons x neurons would take 7 GB
    u = [torch.linalg.svd(z - z.mean(0), full_matrices=False)[0][:, :5] for z in (x, y)]
    expected = torch.linalg.svdvals(u[0].mT @ u[1])
    torch.testing.assert_close(found.correlations, expected, rtol=0, atol=1e-9)
