"""What all indices share: what they ignore and see, equal and constant layers, units and kinds."""

import math
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from _random_layers import related, rotation
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import NearestNeighbors

from replication import similarity as sim
from replication.similarity import _linalg

AFFINE = {  # name: index, and how far rounding may move it
    "cca": (lambda x, y: sim.cca(x, y).mean, 1e-9),
    "dft": (lambda x, y: sim.dft_cca(x, y).mean, 1e-9),
    "r2": (sim.linear_regression_r2, 1e-12),
}
ORTHOGONAL = {
    "cka": (sim.cka, 1e-11),
    "cka unbiased": (partial(sim.cka, unbiased=True), 1e-11),
    "rbf": (partial(sim.cka, kernel="rbf"), 1e-11),
    "rbf unbiased": (partial(sim.cka, kernel="rbf", unbiased=True), 1e-11),
    "cka angle": (partial(sim.cka, angular=True), 1e-11),
    "procrustes": (sim.procrustes, 1e-13),
    "angle": (partial(sim.procrustes, angular=True), 1e-13),
    "rsa euclidean": (partial(sim.rsa, distance="euclidean"), 1e-6),
    "neighbours": (sim.mutual_knn, 1e-12),
}
CUT = {"svcca": (lambda x, y: sim.svcca(x, y, variance=0.9).mean, 1e-9)}
CASES = {**AFFINE, **CUT, "pwcca": (sim.pwcca, 1e-9), **ORTHOGONAL, "rsa": (sim.rsa, 1e-12)}
CASES |= {"matching": (sim.unit_matching, 1e-12)}
DISTANCES = {
    "procrustes": 2,
    "angle": math.pi / 2,
    "cka angle": math.pi / 2,
}  # and what is farthest
ALL = pytest.mark.parametrize(("name", "index", "atol"), [(n, *c) for n, c in CASES.items()])
DTYPES = pytest.mark.parametrize("dtype", ["f4", "f8"])
few_examples = pytest.mark.filterwarnings("ignore:.*(few examples|spans all|add up to)")
ROUNDING = {"f4": 1e-5, "f8": 1e-11}


def changes(x):
    """Return the layer changed, by what was done to it."""
    (n, d), r = x.shape, np.random.default_rng(1)
    return {
        "rotation": x @ rotation(d),
        "scaling": -7.5 * x,
        "translation": x + 10 * r.normal(size=d),
        "permuted neurons": x[:, r.permutation(d)],
        "constant neurons": np.c_[x, np.full((n, 3), 7.3), np.zeros((n, 40))],
        "copies": np.c_[x, x],
        "more neurons": x @ np.linalg.qr(r.normal(size=(d + 20, d)))[0].T,
        "stretched": x * np.r_[100, np.ones(d - 1)],
        "scaled and shifted examples": x * r.uniform(1, 9, size=(n, 1)) + r.normal(size=(n, 1)),
        "permuted examples": x[r.permutation(n)],
    }


SIMILARITY = {"stretched", "scaled and shifted examples", "permuted examples"}
SEEN = dict.fromkeys(CASES, SIMILARITY) | dict.fromkeys(AFFINE, SIMILARITY - {"stretched"})
SEEN["rsa"] = {"rotation", "translation", "constant neurons", "more neurons", "stretched"}
SEEN["rsa"] |= {"permuted examples"}
SEEN["matching"] = SIMILARITY - {"stretched"} | {"rotation", "scaling", "more neurons", "copies"}
SEEN["pwcca"] = SIMILARITY | {"rotation", "more neurons"}  # the weights are of x's own neurons


@few_examples
@ALL
@pytest.mark.parametrize("d", [6, 300])
def test_what_it_ignores_and_what_it_sees(name, index, atol, d):
    x, y = related(200, d, 9)
    if d > len(x) and name in [*AFFINE, *CUT, "pwcca", "rsa"]:
        pytest.skip("as many directions as examples, or as good as no change")
    value = index(x, y)
    for change, other in changes(x).items():
        if change in SEEN[name]:
            if d < len(x) or change == "permuted examples":
                assert abs(index(other, y) - value) > 5e-3, change
        else:
            assert index(other, y) == pytest.approx(value, abs=atol), change
    worse = changes(x)["permuted examples"]
    assert (index(worse, y) - value) * (1 if name in DISTANCES else -1) > 0.1
    order = np.random.default_rng(2).permutation(len(x))  # of both together
    assert index(x[order], y[order]) == pytest.approx(value, abs=atol)
    if name in ("r2", "pwcca"):  # which have sides: of the other layer
        seen = SEEN["procrustes" if name == "r2" else "cca"]
        for change, other in changes(x).items():
            assert (abs(index(y, other) - index(y, x)) > 1e-9) == (change in seen), change


@few_examples
@ALL
@DTYPES
@pytest.mark.parametrize("d", [3, 19, 20, 50])
def test_equal_layers_are_exactly_equal(name, index, atol, d, dtype):
    for seed in range(2):
        x = np.random.default_rng(seed).normal(size=(20, d)).astype(dtype)
        assert index(x, x) == index(x, x.copy()) == (0 if name in DISTANCES else 1)


@few_examples
@ALL
def test_a_constant_layer_is_like_nothing_with_a_warning(name, index, atol):
    x, farthest = related(100, 3, 3)[0], DISTANCES.get(name, 0)
    both = "y" if name == "r2" else "x, y"
    for other in (np.full((100, 2), 0.1), np.full((100, 200), 0.1, "f4")):
        for layers, names in (((x, other), "y"), ((other, other), both)):
            with pytest.warns(UserWarning, match=f"^{names}: constant") as caught:
                assert index(*layers) == pytest.approx(farthest)
            assert caught[0].filename == __file__


@few_examples
@ALL
@DTYPES
@pytest.mark.parametrize("power", [-1, 1])
def test_units_of_layers_and_of_neurons(name, index, atol, dtype, power):
    x, y = (layer.astype(dtype) for layer in related(60, 4, 40))
    scale = 10.0 ** (power * (12 if dtype == "f4" or name == "dft" else 200))
    u, v = (x * scale).astype(dtype), (y / scale).astype(dtype)
    rounding = ROUNDING[dtype] if "rsa" not in name else 1e-3
    assert index(u, v) == pytest.approx(index(x, y), abs=rounding)
    mixed = (x * np.array([1e-12, 1e12, 1, 1e-6])).astype(dtype)
    if name in AFFINE:
        assert index(mixed, y) == pytest.approx(index(x, y), abs=rounding)
    elif name in {**ORTHOGONAL, **CUT}:  # the loudest neuron drowns the others
        assert index(mixed, y) == pytest.approx(index(mixed[:, 1:2], y), abs=rounding)
    else:
        assert -1 <= index(mixed, y) <= 1


@few_examples
@ALL
@pytest.mark.parametrize(("dx", "dy"), [(20, 30), (20, 300), (300, 200), (5000, 5000)])
def test_precision_of_float32_and_mixed_dtypes(name, index, atol, dx, dy):
    if name == "matching" and dx == 5000:
        pytest.skip("an assignment of so many units takes half a minute")
    x, y = (layer.astype("f4") for layer in related(100, dx, dy))
    exact = index(x.astype("f8"), y.astype("f8"))
    bound = 2e-6 if "cka" in name or "rbf" in name else 1e-5
    assert index(x, y) == pytest.approx(exact, abs=bound)
    mixed = index(torch.from_numpy(x).half(), torch.from_numpy(y).double())
    assert mixed.dtype == torch.float64


@pytest.mark.gpu
@ALL
def test_layers_on_two_devices_are_refused(name, index, atol):
    x, y = (torch.from_numpy(layer) for layer in related(30, 3, 4))
    with pytest.raises(ValueError, match="y: expected the device of x, cuda:0, found cpu"):
        index(x.cuda(), y)


def test_neighbours_are_those_of_scikit_learn():
    x, y = related(80, 5, 7)
    sets = [
        NearestNeighbors(n_neighbors=6).fit(z).kneighbors(return_distance=False) for z in (x, y)
    ]
    shares = [len({*a} & {*b}) / 6 for a, b in zip(*sets, strict=True)]
    assert sim.mutual_knn(x, y, k=6) == pytest.approx(np.mean(shares))
    with pytest.raises(ValueError, match="k: expected fewer than the 80 examples, found 80"):
        sim.mutual_knn(x, y, k=80)


def test_matching_is_the_best_of_all_permutations():
    x, y = related(60, 4, 5)
    r = np.corrcoef(x.T, y.T)[:4, 4:]
    best = max(np.mean(r[range(4), p]) for p in permutations(range(5), 4))
    assert [sim.unit_matching(x, y), sim.unit_matching(y, x)] == pytest.approx([best, best])


def test_ridge_is_that_of_scikit_learn():
    x, y = related(60, 80, 7)
    a, b = (z - z.mean(0) for z in (x, y))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    order = np.array_split(_linalg.permutation(60, 0, 3).numpy(), 4)
    error = total = 0
    for test in order:
        train = np.setdiff1d(np.arange(60), test)
        top = np.linalg.norm(a[train] - a[train].mean(0), 2) ** 2
        ridge = RidgeCV(top * np.logspace(-6, 6, 13)).fit(a[train], b[train])
        error += ((ridge.predict(a[test]) - b[test]) ** 2).sum()
        total += ((b[test] - b[train].mean(0)) ** 2).sum()
    value = sim.ridge_r2(x, y, folds=4, seed=3)
    assert value == pytest.approx(1 - error / total, abs=1e-9)
    for change in ("rotation", "scaling", "translation", "constant neurons", "more neurons"):
        for layers in ((changes(x)[change], y), (x, changes(y)[change])):
            assert sim.ridge_r2(*layers, folds=4, seed=3) == pytest.approx(value, abs=1e-9)
    shuffled = sim.ridge_r2(changes(x)["permuted examples"], y)
    assert -0.2 < shuffled < 0.1 < value  # where linear_regression_r2 would be 1
    with pytest.raises(ValueError, match="folds: expected 2 to 30, half the examples, found 31"):
        sim.ridge_r2(x, y, folds=31)
    with pytest.raises(ValueError, match="x: expected at least 4 examples, found 3"):
        sim.ridge_r2(x[:3], y[:3])


@few_examples
@pytest.mark.parametrize("name", ["angle", "cka angle"])
def test_angles_are_metrics(name):
    angle, _ = CASES[name]
    r = np.random.default_rng(0)
    for _ in range(50):
        x, z = r.normal(size=(2, 20, 4))
        y = x + r.uniform(0, 3) * z + r.normal(size=(20, 4)) * r.uniform(0, 2)
        assert angle(x, z) <= angle(x, y) + angle(y, z) + 1e-9
        assert angle(x, y) == pytest.approx(angle(y, x), abs=1e-12)
