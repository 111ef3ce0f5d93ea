"""CKA: closed forms, reference formulas, invariances, unbiasedness, degenerate input."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from _peak_memory import Peak
from _random_layers import related, rotation
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.similarity import cka, minibatch_cka
from replication.similarity.cka import prepare

few_examples = pytest.mark.filterwarnings("ignore:.*few examples")
BOTH = pytest.mark.parametrize("unbiased", [False, True])
KERNELS = pytest.mark.parametrize("kernel", ["linear", "rbf"])
X, Y = related(30, 3, 3)


def linear_gram(x):
    return x @ x.T


def rbf_gram(x, sigma=0.5):
    d = np.sqrt(((x[:, None] - x) ** 2).sum(-1))
    median = np.median(d[np.triu_indices(len(x), 1)])
    return np.exp(-(d**2) / (2 * (sigma * median) ** 2))


def hsic(k, m, unbiased):
    """Gretton 2005, and Song et al. 2012 (eq. 5) as printed, on uncentred kernel matrices."""
    n, one = len(k), np.ones(len(k))
    if not unbiased:
        h = np.eye(n) - 1 / n
        return np.trace(k @ h @ m @ h) / (n - 1) ** 2
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    sums = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + sums - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def reference(x, y, unbiased=False, gram=linear_gram):
    k, m = gram(x), gram(y)
    own = hsic(k, k, unbiased) * hsic(m, m, unbiased)
    return hsic(k, m, unbiased) / np.sqrt(own)


@few_examples
def test_closed_forms():
    x, y = related(200, 1, 1)
    assert cka(x, y) == pytest.approx(np.corrcoef(x[:, 0], y[:, 0])[0, 1] ** 2, abs=1e-14)
    q = np.linalg.qr(np.c_[np.ones(100), np.random.default_rng(0).normal(size=(100, 6))])[0]
    assert cka(q[:, 1:4], q[:, 4:]) == pytest.approx(0, abs=1e-25)
    for kernel in ("linear", "rbf"):  # two examples are always alike
        assert cka(*related(2, 3, 5), kernel) == pytest.approx(1)


@few_examples
@BOTH
@pytest.mark.parametrize(("dx", "dy"), [(1, 1), (5, 7), (5, 60), (60, 5), (19, 20), (50, 60)])
def test_linear_is_the_n_by_n_formula_in_both_spaces(dx, dy, unbiased):
    x, y = related(20, dx, dy)
    assert cka(x, y, unbiased=unbiased) == pytest.approx(reference(x, y, unbiased), abs=1e-10)


@few_examples
@BOTH
@pytest.mark.parametrize("sigma", [0.2, 0.5, 30.0])
@pytest.mark.parametrize("n", [20, 21])
def test_rbf_is_the_n_by_n_formula(n, sigma, unbiased):
    x, y = related(n, 4, 30)
    expected = reference(x, y, unbiased, lambda layer: rbf_gram(layer, sigma))
    value = cka(x, y, "rbf", unbiased=unbiased, sigma=sigma)
    # As printed, the formula loses digits where K is all but 1.
    assert value == pytest.approx(expected, abs=1e-8 if sigma > 1 else 1e-11)


def test_wide_rbf_kernel_is_the_squared_euclidean_one():
    """For sigma to infinity exp(-d) is 1 - d, and -d is a linear kernel once centred."""
    x, y = related(60, 3, 4)
    assert cka(x, y, "rbf", sigma=1e5) == pytest.approx(cka(x, y), abs=1e-8)


@pytest.mark.parametrize("d", [200, 2000])
def test_unrelated_layers_wider_than_examples_are_0_only_where_unbiased(d):
    r = np.random.default_rng(d)
    values = []
    for _ in range(20):
        x, y = r.normal(size=(2, 40, d))
        with pytest.warns(UserWarning, match="unbiased=True"):
            assert cka(x, y) > 0.8
        values.append(cka(x, y, unbiased=True))
    assert abs(np.mean(values)) < 0.03 and min(values) < 0 and max(np.abs(values)) < 0.15


@few_examples
@KERNELS
@pytest.mark.parametrize("d", [3, 30])
def test_the_warning_states_the_mean_over_shuffles(d, kernel):
    x, y = related(16, d, d)
    with pytest.warns(UserWarning, match="few examples") as caught:
        cka(x, y, kernel)
    stated = float(str(caught[0].message).split(" on average")[0].split()[-1])
    r = np.random.default_rng(0)
    shuffled = [cka(x[r.permutation(16)], y, kernel) for _ in range(400)]
    assert np.mean(shuffled) == pytest.approx(stated, abs=0.005 + 4 * np.std(shuffled) / 20)


def test_warns_by_what_the_spectra_leave_to_chance():
    r = np.random.default_rng(0)
    x, y = r.normal(size=(2, 120, 10))
    cka(x, y)  # 12 examples a feature: 10 / 130 < 0.1
    with pytest.warns(UserWarning, match=r"biased CKA of 0\.1"):
        cka(x[:80], y[:80])
    x, y = r.normal(size=(2, 120, 200)) * 2.0 ** -np.arange(200)
    cka(x, y)  # many features of which few matter are no reason to warn


@few_examples
@BOTH
@pytest.mark.parametrize("sizes", [[50], [20, 20, 10]])
@pytest.mark.parametrize("d", [6, 60])
def test_minibatches_average_hsic_weighted_by_examples(sizes, d, unbiased):
    x, y = related(50, d, 9)
    edges = np.cumsum([0, *sizes])
    cuts = [slice(*edge) for edge in pairwise(edges)]

    def mean(u, v):
        return sum(len(u[c]) * hsic(linear_gram(u[c]), linear_gram(v[c]), unbiased) for c in cuts)

    expected = mean(x, y) / np.sqrt(mean(x, x) * mean(y, y))
    batches = [(x[c], y[c]) for c in cuts]
    assert minibatch_cka(iter(batches), unbiased) == pytest.approx(expected, abs=1e-12)
    grid = minibatch_cka([({"a": u, "b": v}, {"c": v}) for u, v in batches], unbiased)
    assert (grid.rows, grid.columns) == (("a", "b"), ("c",))
    assert grid.values[:, 0] == pytest.approx([expected, 1], abs=1e-12)
    assert minibatch_cka([(x, x.copy())] * 3) == 1


@few_examples
def test_unbiased_minibatches_do_not_depend_on_their_size():
    x, y = related(6000, 20, 20)
    whole = cka(x, y, unbiased=True)
    biased = []
    for size in (8, 50, 600):
        batches = [(x[i : i + size], y[i : i + size]) for i in range(0, 6000, size)]
        assert minibatch_cka(batches) == pytest.approx(whole, abs=0.03)
        biased.append(minibatch_cka(batches, unbiased=False))
    assert biased[0] > biased[1] > biased[2] > whole
    assert biased[0] > whole + 0.05


@few_examples
@BOTH
@pytest.mark.parametrize(("dx", "dy", "dc"), [(5, 6, 4), (30, 6, 50), (30, 40, 3)])
def test_deconfounded_regresses_the_confounders_kernel_out(dx, dy, dc, unbiased):
    """The regression on vec(C) with intercept, as in the authors' code, on n x n matrices."""
    x, y = related(20, dx, dy)
    c = np.random.default_rng(5).normal(size=(20, dc)) + x[:, :1]
    off = ~np.eye(20, dtype=bool) if unbiased else np.ones((20, 20), dtype=bool)

    def centred(layer):
        gram = linear_gram(layer - layer.mean(0))
        if not unbiased:
            return gram
        np.fill_diagonal(gram, 0)
        rows = gram.sum(1) / 18
        gram = gram - rows[:, None] - rows + gram.sum() / (18 * 19)
        np.fill_diagonal(gram, 0)
        return gram

    def residual(layer):
        design = np.c_[np.ones(off.sum()), centred(c)[off]]
        target = centred(layer)[off]
        return target - design @ np.linalg.lstsq(design, target, rcond=None)[0]

    k, m = residual(x), residual(y)
    value = cka(x, y, unbiased=unbiased, confounder=c)
    assert value == pytest.approx(k @ m / np.sqrt((k @ k) * (m @ m)), abs=1e-10)


@few_examples
@BOTH
@KERNELS
def test_confounder_that_explains_all_or_nothing(kernel, unbiased):
    x, y = related(20, 30, 6)
    assert cka(x, x.copy(), kernel, unbiased, confounder=y) == 1
    x, y = related(100, 5, 6)
    with pytest.warns(UserWarning, match="x: constant, or without"):
        assert cka(x, y, confounder=x @ rotation(5)) == 0
    assert cka(x, y, confounder=np.ones((100, 2))) == pytest.approx(cka(x, y), abs=1e-14)


@BOTH
def test_a_constant_layer_in_minibatches_is_0_with_a_warning(unbiased):
    with pytest.warns(UserWarning, match="^y: constant"):
        assert minibatch_cka([(X, np.ones((30, 2)))], unbiased) == 0


@pytest.mark.parametrize("d", [1, 3, 40])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_single_example_apart_says_nothing_where_unbiased(d, dtype):
    x, _ = related(30, 3, 3)
    apart = np.zeros((30, d), dtype)
    apart[4] = np.arange(1, d + 1) / 3
    with pytest.warns(UserWarning, match="y: constant, or without structure"):
        assert cka(x.astype(dtype), apart, unbiased=True) == 0


@few_examples
def test_duplicated_examples_do_not_break_the_median():
    x, y = (np.r_[np.repeat(layer[:1], 90, 0), layer] for layer in related(10, 3, 3))
    value = cka(x, y, "rbf")
    assert 0 < value < 1
    assert cka(1e6 * x @ rotation(3), y, "rbf") == pytest.approx(value, abs=1e-9)


def test_matrices_are_no_larger_than_the_layers():
    x, y = (torch.from_numpy(layer) for layer in related(2000, 8, 8))
    with Peak(x, y) as seen:
        cka(x, y)
        cka(x, y, unbiased=True, confounder=x[:, :3])
    assert x.nbytes < seen.peak < 2000**2  # an eighth of the bytes of an n x n matrix
    assert prepare(torch.ones(10, 20_000)).values.shape == (10, 10)


@few_examples
@BOTH
@pytest.mark.parametrize("d", [3, 15])
def test_gradient(d, unbiased):
    x, y = (torch.from_numpy(layer).requires_grad_() for layer in related(10, d, 4))
    c = torch.from_numpy(related(10, 2, 2, seed=3)[0])
    assert torch.autograd.gradcheck(lambda x, y: cka(x, y, unbiased=unbiased), (x, y))
    assert torch.autograd.gradcheck(lambda x, y: cka(x, y, unbiased=unbiased, confounder=c), (x, y))
    cka(x, y, "rbf", unbiased).backward()
    assert x.grad.isfinite().all() and x.grad.any()


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("x: expected at least 4", lambda: cka(X[:3], Y[:3], unbiased=True)),
        ("confounder: expected the examples of x, 30", lambda: cka(X, Y, confounder=X[:9])),
        ("batches: expected at least one", lambda: minibatch_cka([])),
        (r"batches\[1\]: expected a pair", lambda: minibatch_cka([(X, Y), X])),
        (r"batches\[1\]: x: .*at least 4", lambda: minibatch_cka([(X, Y), (X[:3], Y[:3])])),
        (r"batches\[1\]: x: .*found \(1, ", lambda: minibatch_cka([(X, Y), (X[:1], Y[:1])])),
        (r"batches\[0\]: y: expected finite", lambda: minibatch_cka([(X, np.inf * Y)])),
        (r"batches\[0\]: x: .*an empty one", lambda: minibatch_cka([({}, Y)])),
        (r"batches\[1\]: expected the layers", lambda: minibatch_cka([(X, Y), ({"a": X}, Y)])),
    ],
)
def test_bad_input_names_the_argument(message, call):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(4, 15),
    widths=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([2, 3, 1000]),
    kernel=st.sampled_from(["linear", "rbf"]),
    unbiased=st.booleans(),
)
def test_range_symmetry_and_self(n, widths, seed, levels, kernel, unbiased):
    r = np.random.default_rng(seed)
    x, y = (r.integers(0, levels, (n, width)) / 7 for width in widths)
    value = cka(x, y, kernel, unbiased)
    assert (-1 if unbiased else 0) <= value <= 1
    assert cka(y, x, kernel, unbiased) == pytest.approx(value, abs=1e-9)
    assert cka(x, x.copy(), kernel, unbiased) in (0, 1)
    if kernel == "linear" and 0 < abs(value) < 1:
        # The formula's own rounding, where nearly all structure is one example's.
        assert value == pytest.approx(reference(x, y, unbiased), abs=1e-6)
