"""CCA, SVCCA and PWCCA: references, closed forms, what they ignore and what they must not."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from _random_networks import gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from replication.similarity import cca, pwcca, svcca

# Where the values come from is told in reference/README.md. Neurons come first there.
REFERENCE = np.load(Path(__file__).parent / "reference" / "cca.npz")
CASES = ("independent", "correlated", "shared_nx_gt_ny", "rank_deficient", "constant_neurons")


def layers(case):
    return REFERENCE[f"{case}/acts1"].T, REFERENCE[f"{case}/acts2"].T


def correlated_pair(n=500, seed=0):
    shared = gaussian(n, 6, seed=seed)
    x = torch.cat([shared, gaussian(n, 5, seed=seed + 1)], 1) @ gaussian(11, 11, seed=seed + 2)
    y = torch.cat([shared + 0.5 * gaussian(n, 6, seed=seed + 3), gaussian(n, 3, seed=seed + 4)], 1)
    return x, y @ gaussian(9, 9, seed=seed + 5)


# ------------------------------------------------------------------ references


@pytest.mark.parametrize("case", CASES)
def test_exact_reference(case):
    found = cca(*layers(case))
    np.testing.assert_allclose(found.correlations, REFERENCE[f"{case}/exact_coef"], atol=1e-12)


@pytest.mark.parametrize(("epsilon", "tolerance"), [("eps0", 1e-12), ("eps1e-10", 1e-8)])
@pytest.mark.parametrize("case", CASES[:3])
def test_published_reference(case, epsilon, tolerance):
    expected = REFERENCE[f"{case}/{epsilon}/cca_coef1"]
    np.testing.assert_allclose(cca(*layers(case)).correlations, expected, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_published_svcca_with_20_directions(case):
    # its epsilon of 1e-10 moves the mean by up to 4e-9
    expected = REFERENCE[f"{case}/eps1e-10/svcca20_mean"]
    assert svcca(*layers(case), dims=20).mean == pytest.approx(float(expected), abs=1e-8)


def test_pwcca_is_the_papers_and_not_the_published_codes():
    # values of the paper's definition, worked out beside the reference
    assert float(pwcca(*layers("correlated"))) == pytest.approx(0.957, abs=5e-4)
    assert float(pwcca(*layers("shared_nx_gt_ny"))) == pytest.approx(0.713, abs=5e-4)


def test_pwcca_from_its_definition():
    x, y = correlated_pair()
    found = cca(x, y)
    variates = found.x_variates
    alpha = (variates.T @ (x - x.mean(0))).abs().sum(1)
    expected = (alpha * found.correlations).sum() / alpha.sum()
    assert pwcca(x, y) == pytest.approx(expected.item(), abs=1e-12)


# ------------------------------------------------------------------ closed forms


def test_one_neuron_is_the_absolute_correlation():
    x, y = gaussian(50, 1), gaussian(50, 1, seed=1)
    expected = abs(np.corrcoef(x[:, 0], -y[:, 0])[0, 1])
    assert cca(x, y).correlations.tolist() == pytest.approx([expected], abs=1e-12)


def test_one_neuron_against_many_is_the_multiple_correlation():
    x, y = gaussian(80, 4), gaussian(80, 1, seed=1)
    design = torch.cat([x, torch.ones(80, 1, dtype=x.dtype)], 1)
    residual = y - design @ torch.linalg.lstsq(design, y).solution
    expected = math.sqrt(1 - (residual.square().sum() / (y - y.mean()).square().sum()).item())
    assert cca(x, y).correlations.tolist() == pytest.approx([expected], abs=1e-12)


def test_known_correlations_are_found():
    q = torch.linalg.qr(torch.cat([torch.ones(100, 1).double(), gaussian(100, 6)], 1))[0][:, 1:]
    rho = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    y = q[:, :3] * rho + q[:, 3:] * (1 - rho**2).sqrt()
    found = cca(q[:, :3] @ gaussian(3, 3, seed=7), y @ gaussian(3, 3, seed=8) + 5)
    torch.testing.assert_close(found.correlations, rho, atol=1e-12, rtol=0)
    assert found.mean == pytest.approx(0.5)


def test_identical_layers_are_exactly_1():
    x = gaussian(200, 30)
    for value in (cca(x, x).mean, svcca(x, x).mean, pwcca(x, x), cca(x, 3 * x - 1).mean):
        assert value == 1


def test_independent_layers_look_unrelated_against_their_null():
    x, y = gaussian(2000, 20), gaussian(2000, 30, seed=1)
    found = cca(x, y, null=50)
    assert found.null.shape == (50,)
    assert abs(found.mean - found.null.mean()) < 4 * found.null.std()
    assert found.p_values()[0] > 0.01


def test_related_layers_stand_out_from_their_null():
    found = cca(*correlated_pair(), null=20)
    assert found.mean > found.null.max() + 5 * found.null.std()
    assert found.p_values()[0] < 1e-10
    # six shared directions and no more
    assert found.p_values()[6] > 0.001 > found.p_values()[5]


def test_p_values_are_uniform_under_independence():
    p = [
        cca(gaussian(200, 3, seed=2 * i), gaussian(200, 4, seed=2 * i + 1)).p_values()[0]
        for i in range(200)
    ]
    assert kstest(p, "uniform").pvalue > 0.001


def test_null_is_seeded():
    x, y = correlated_pair()
    first, again = cca(x, y, null=3, seed=5).null, cca(x, y, null=3, seed=5).null
    assert torch.equal(first, again)
    assert not torch.equal(first, cca(x, y, null=3, seed=6).null)


# ------------------------------------------------------------------ directions and variates


@pytest.mark.parametrize("function", [cca, lambda x, y: svcca(x, y, dims=4)])
def test_variates_are_whitened_and_pairwise_correlated(function):
    x, y = correlated_pair()
    found = function(x, y)
    n, k = len(x), len(found.correlations)
    eye = torch.eye(k, dtype=x.dtype)
    for variates, directions, layer in (
        (found.x_variates, found.x_directions, x),
        (found.y_variates, found.y_directions, y),
    ):
        torch.testing.assert_close(variates.T @ variates / (n - 1), eye, atol=1e-12, rtol=0)
        product = (layer - layer.mean(0)) @ directions
        torch.testing.assert_close(product, variates, atol=1e-9, rtol=0)
    cross = found.x_variates.T @ found.y_variates / (n - 1)
    torch.testing.assert_close(cross, torch.diag(found.correlations), atol=1e-12, rtol=0)


def test_directions_of_a_rank_deficient_layer_give_its_variates():
    x, y = correlated_pair()
    x = torch.cat([x, x[:, :3], torch.full((len(x), 1), 7.0, dtype=x.dtype)], 1)
    found = cca(x, y)
    product = (x - x.mean(0)) @ found.x_directions
    torch.testing.assert_close(product, found.x_variates, atol=1e-9, rtol=0)


# ------------------------------------------------------------------ invariances


def indices(x, y):
    found = cca(x, y)
    return torch.stack([found.mean, svcca(x, y, variance=0.9).mean, pwcca(x, y)])


def rotation(width, seed=9):
    return torch.linalg.qr(gaussian(width, width, seed=seed))[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x @ rotation(11),
        lambda x: 7.5 * x,
        lambda x: x + gaussian(11),
        lambda x: x[:, torch.randperm(11, generator=torch.Generator().manual_seed(1))],
    ],
    ids=["rotation", "scale", "shift", "permuted neurons"],
)
def test_all_ignore_similarities_of_y(change):
    x, y = correlated_pair()
    torch.testing.assert_close(indices(y, x), indices(y, change(x)), atol=1e-9, rtol=0)


def test_cca_ignores_invertible_maps_and_svcca_does_not():
    x, y = correlated_pair()
    stretched = x * torch.logspace(0, 6, 11, dtype=x.dtype)
    before, after = indices(x, y), indices(stretched, y)
    assert before[0] == pytest.approx(after[0].item(), abs=1e-9)
    assert abs(before[1] - after[1]) > 0.01
    assert abs(before[2] - after[2]) > 0.01  # the weights are those of x's own units


def test_none_ignores_permuted_examples():
    x, y = correlated_pair()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert (indices(x, y) - indices(x[order], y)).abs().min() > 0.1


def test_pwcca_sides():
    x, y = correlated_pair()
    assert pwcca(x, y) != pytest.approx(pwcca(y, x).item(), abs=1e-4)
    both = pwcca(x, y, symmetric=True)
    assert both == pytest.approx(((pwcca(x, y) + pwcca(y, x)) / 2).item())
    assert both == pytest.approx(pwcca(y, x, symmetric=True).item())


# ------------------------------------------------------------------ degenerate layers


def test_the_number_of_correlations_is_the_rank():
    x, y = correlated_pair()
    wide = torch.cat([x, x @ gaussian(11, 20, seed=3), torch.zeros(len(x), 4).double()], 1)
    found = cca(wide, y)
    assert found.ranks == (11, 9)
    assert found.widths == (35, 9)
    torch.testing.assert_close(found.correlations, cca(x, y).correlations, atol=1e-10, rtol=0)
    few = cca(wide, y[:, :2])
    assert few.mean_over_width == pytest.approx(few.mean.item())
    narrow = torch.cat([y[:, :2], y[:, :2]], 1)
    assert cca(wide, narrow).mean_over_width == pytest.approx(few.mean.item() / 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("level", [1.0, 1e3, -1e7])
def test_a_constant_neuron_changes_nothing(dtype, level):
    x, y = (z.to(dtype) for z in correlated_pair())
    constant = torch.full((len(x), 2), level / 3, dtype=dtype)
    found = cca(torch.cat([constant, x], 1), y)
    assert found.ranks[0] == 11
    torch.testing.assert_close(found.correlations, cca(x, y).correlations, atol=1e-5, rtol=0)


def test_scales_from_1e_12_to_1e12_in_one_layer():
    x, y = correlated_pair()
    mixed = x * torch.logspace(-12, 12, 11, dtype=x.dtype)
    torch.testing.assert_close(
        cca(mixed, y).correlations, cca(x, y).correlations, atol=1e-9, rtol=0
    )
    assert math.isfinite(pwcca(mixed, y))
    assert math.isfinite(svcca(mixed, y).mean)


@pytest.mark.parametrize("scale", [1e-200, 1e-12, 1e12, 1e200])
def test_any_scale_of_a_whole_layer(scale):
    x, y = correlated_pair()
    torch.testing.assert_close(indices(scale * x, y), indices(x, y), atol=1e-9, rtol=0)


@pytest.mark.filterwarnings("ignore:a layer is constant")
def test_a_constant_layer_correlates_with_nothing():
    x = gaussian(30, 4)
    for function in (cca, svcca):
        found = function(torch.ones(30, 3).double(), x)
        assert (len(found.correlations), found.mean) == (0, 0)
        assert found.x_variates.shape == (30, 0)
    assert pwcca(torch.ones(30, 3).double(), x) == 0


def test_constant_layers_warn():
    with pytest.warns(UserWarning, match="constant"):
        cca(torch.ones(30, 3).double(), gaussian(30, 3))


@pytest.mark.parametrize("function", [cca, pwcca])
def test_more_neurons_than_examples_say_nothing_and_warn(function):
    with pytest.warns(UserWarning, match="spans all 20 centred examples"):
        found = function(gaussian(20, 25), gaussian(20, 5, seed=1))
    value = found if isinstance(found, torch.Tensor) else found.mean
    assert value == pytest.approx(1)


def test_two_examples():
    with pytest.warns(UserWarning, match="spans all 2"):
        assert cca(gaussian(2, 3), gaussian(2, 1, seed=1)).mean == 1


# ------------------------------------------------------------------ SVCCA's cut


def test_the_cut_is_on_singular_values_by_default():
    q = torch.linalg.qr(torch.cat([torch.ones(60, 1).double(), gaussian(60, 5)], 1))[0][:, 1:]
    x = q * torch.tensor([10.0, 5.0, 3.0, 1.0, 1.0])  # sum 20, squares 100 25 9 1 1 of 136
    y = gaussian(60, 8, seed=4)
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
    found = svcca(x, y, dims=5).correlations
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_without_a_cut_svcca_is_cca():
    x, y = correlated_pair()
    torch.testing.assert_close(
        svcca(x, y, variance=1.0).correlations, cca(x, y).correlations, atol=1e-10, rtol=0
    )


# ------------------------------------------------------------------ kinds, dtypes, gradients


def test_numpy_in_numpy_out():
    x, y = (z.numpy() for z in correlated_pair())
    found = cca(x, y, null=2)
    for value in (found.correlations, found.null, found.x_variates, found.y_directions):
        assert isinstance(value, np.ndarray) and value.dtype == np.float64
    assert isinstance(found.mean, np.floating)
    assert isinstance(pwcca(x, y), np.ndarray | np.floating)


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
        (torch.int32, torch.float64),
    ],
)
def test_dtypes(given_dtype, expected):
    x, y = ((10 * z).to(given_dtype) for z in correlated_pair())
    assert cca(x, y).correlations.dtype == expected
    assert pwcca(x, y).dtype == expected


def test_float32_is_close_to_float64():
    x, y = correlated_pair(2000)
    x = x * torch.logspace(0, 3, 11, dtype=x.dtype)
    single = indices(x.float(), y.float()).double()
    torch.testing.assert_close(single, indices(x, y), atol=1e-5, rtol=0)


def test_float32_with_dead_and_copied_units():
    x, y = correlated_pair(2000)
    x = torch.cat([x, x[:, :4], torch.full((2000, 3), 0.1).double()], 1)
    assert cca(x.float(), y.float()).ranks == (11, 9)
    assert cca(x.float(), y.float()).mean == pytest.approx(cca(x, y).mean.item(), abs=1e-5)


def test_gradient_of_the_mean():
    x, y = correlated_pair(60)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: cca(z, y).mean, (x,), atol=1e-6)


def test_inputs_are_not_changed_and_may_be_read_only():
    x, y = (z.numpy() for z in correlated_pair(50))
    before = x.copy()
    x.flags.writeable = False
    cca(x, y[:, ::2])
    assert np.array_equal(x, before)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize("function", [cca, svcca, pwcca])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(5, 2), torch.zeros(6, 2), "y: expected the 5 examples of x, found 6"),
        (torch.zeros(1, 2), torch.zeros(1, 2), "x: expected .examples >= 2"),
        (torch.zeros(5, 2, 2), torch.zeros(5, 2), "x: expected .examples"),
        (torch.zeros(5, 0), torch.zeros(5, 2), "x: expected at least one entry"),
        (torch.full((5, 2), math.nan), torch.zeros(5, 2), "x: expected finite"),
        (torch.zeros(5, 2), torch.full((5, 2), math.inf), "y: expected finite"),
        ([[1.0]], torch.zeros(5, 2), "x: expected a torch tensor or NumPy array, found list"),
    ],
)
def test_bad_layers(function, x, y, message):
    with pytest.raises(ValueError, match=message):
        function(x, y)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"variance": 0}, "variance"),
        ({"variance": 1.5}, "variance"),
        ({"variance": math.nan}, "variance"),
        ({"dims": 0}, "dims"),
        ({"dims": 2.5}, "dims"),
        ({"null": -1}, "null"),
    ],
)
def test_bad_options(options, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        svcca(gaussian(9, 2), gaussian(9, 2), **options)


def test_p_values_need_examples():
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="examples: expected more than"):
        cca(gaussian(8, 7), gaussian(8, 7, seed=1)).p_values()


# ------------------------------------------------------------------ properties


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(30, 60),
    widths=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    seed=st.integers(0, 10**6),
)
def test_correlations_are_ordered_symmetric_and_in_range(n, widths, seed):
    x, y = gaussian(n, widths[0], seed=seed), gaussian(n, widths[1], seed=seed + 1)
    found, turned = cca(x, y), cca(y, x)
    rho = found.correlations
    assert len(rho) == min(widths)
    assert ((rho >= 0) & (rho <= 1)).all()
    assert (rho.diff() <= 0).all()
    torch.testing.assert_close(rho, turned.correlations, atol=1e-10, rtol=0)
    assert 0 <= pwcca(x, y) <= rho[0] + 1e-12
    # more neurons can only add correlation
    more = cca(torch.cat([x, gaussian(n, 1, seed=seed + 2)], 1), y).correlations
    assert (more[: len(rho)] >= rho - 1e-10).all()


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_gpu_agrees(dtype, tolerance):
    x, y = (z.to(dtype) for z in correlated_pair())
    on_gpu = indices(x.cuda(), y.cuda())
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), indices(x, y), atol=tolerance, rtol=0)
