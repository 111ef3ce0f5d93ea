"""The similarity grid against refitting every pair, and against the usual recipes."""

import resource
from itertools import combinations, pairwise

import numpy as np
import torch
from torch import Tensor

from benchmarks._timing import Row, cpu_seconds
from replication import similarity

EXAMPLES = 5000
WIDTHS = (64, 64, 128, 128, 256, 256, 384, 384, 512, 512)


def network(widths: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """Return float64 layers of a random ReLU network on Gaussian inputs, dead units included."""
    source = torch.Generator().manual_seed(seed)
    sizes = (100, *widths)
    value = torch.randn(EXAMPLES, sizes[0], generator=source, dtype=torch.float64)
    layers = {}
    for number, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        weights = torch.randn(fan_in, fan_out, generator=source, dtype=torch.float64)
        value = (value @ weights * (2 / fan_in) ** 0.5).relu()
        layers[f"fc{number}"] = value
    return layers


def refitted_cca(layers: dict[str, Tensor]) -> list[float]:
    """Return the sum of correlations of every pair by the steps of the SVCCA paper's code.

    The joint covariance, pseudo-inverses of its diagonal blocks, their square roots, and an SVD.
    """
    arrays = [layer.numpy() for layer in layers.values()]
    found = []
    for i, x in enumerate(arrays):
        for y in arrays[i + 1 :]:
            d = x.shape[1]
            joint = np.cov(x.T, y.T)
            left, right = _inverse_root(joint[:d, :d]), _inverse_root(joint[d:, d:])
            _, s, _ = np.linalg.svd(left @ joint[:d, d:] @ right)
            found.append(s.sum())
    return found


def _inverse_root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.linalg.pinv(covariance))
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def lean_cca(layers: dict[str, Tensor]) -> list[float]:
    """Return the mean instead, with one decomposition a block and no vectors: a lean refit."""
    arrays = [layer.numpy() for layer in layers.values()]
    found = []
    for i, x in enumerate(arrays):
        for y in arrays[i + 1 :]:
            d = x.shape[1]
            joint = np.cov(x.T, y.T)
            left, right = _whitening(joint[:d, :d]), _whitening(joint[d:, d:])
            found.append(np.linalg.svd(left.T @ joint[:d, d:] @ right, compute_uv=False).mean())
    return found


def _whitening(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-14 * values[-1]
    return vectors[:, kept] / np.sqrt(values[kept])


def tutorial_svcca(stages: list[dict[str, Tensor]], final: dict[str, Tensor]) -> list[float]:
    """Return SVCCA with 20 directions by the steps of the published tutorial, for every pair.

    Layers as (neurons, examples), the SVD of both, then CCA as `refitted_cca` has it.
    """
    found = []
    for x, y in staged_pairs(stages, final):
        cut = []
        for layer in (x.T, y.T):
            _, s, vh = np.linalg.svd(layer - layer.mean(1, keepdims=True), full_matrices=False)
            cut.append(s[:20] * np.eye(20) @ vh[:20])
        joint = np.cov(*cut)
        left, right = _inverse_root(joint[:20, :20]), _inverse_root(joint[20:, 20:])
        found.append(np.linalg.svd(left @ joint[:20, 20:] @ right)[1].mean())
    return found


def lean_svcca(stages: list[dict[str, Tensor]], final: dict[str, Tensor]) -> list[float]:
    """Return the same by the SVD of both layers, examples first, and a product of bases."""
    found = []
    for pair in staged_pairs(stages, final):
        bases = [np.linalg.svd(z - z.mean(0), full_matrices=False)[0][:, :20] for z in pair]
        found.append(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean())
    return found


def staged_pairs(stages: list[dict[str, Tensor]], final: dict[str, Tensor]):
    """Yield every layer of every checkpoint with every final layer, as arrays."""
    for layers in stages:
        for x in layers.values():
            for y in final.values():
                yield x.numpy(), y.numpy()


def gram_cka(layers: dict[str, Tensor]) -> np.ndarray:
    """Return linear CKA of all ordered pairs, a heatmap, by the steps of the published code.

    Both (examples, examples) matrices anew for every pair, each centred over rows and columns
    (Kornblith et al. 2019, released notebook).
    """
    arrays = [layer.numpy() for layer in layers.values()]
    found = np.empty((len(arrays), len(arrays)))
    for i, j in np.ndindex(found.shape):
        k, m = (_centred_gram(arrays[index]).ravel() for index in (i, j))
        found[i, j] = k @ m / (np.linalg.norm(k) * np.linalg.norm(m))
    return found


def copied_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return linear CKA of a pair by the definition, as the most copied NumPy code has it.

    Three HSICs, each of two (examples, examples) matrices centred as H K H with H = I - 1/n.
    """
    unit = np.eye(len(x)) - 1 / len(x)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return np.sum((unit @ (a @ a.T) @ unit) * (unit @ (b @ b.T) @ unit))

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def _centred_gram(x: np.ndarray) -> np.ndarray:
    gram = x @ x.T
    means = gram.mean(0)
    means -= means.mean() / 2
    gram -= means[:, None]
    gram -= means
    return gram


def gram_minibatch_cka(batches: list[dict[str, Tensor]]) -> np.ndarray:
    """Return unbiased minibatch CKA of all pairs, each from three terms of (batch, batch) matrices.

    As torch_cka does: both kernel matrices and all three terms anew for every pair and batch.
    """
    names = list(batches[0])
    total = np.zeros((len(names), len(names), 3))
    for batch in batches:
        for i, j in np.ndindex(len(names), len(names)):
            k, m = (batch[names[index]] @ batch[names[index]].T for index in (i, j))
            k.fill_diagonal_(0)
            m.fill_diagonal_(0)
            total[i, j] += [_hsic(k, m).item(), _hsic(k, k).item(), _hsic(m, m).item()]
    return total[..., 0] / np.sqrt(total[..., 1] * total[..., 2])


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    """Return HSIC_1 as Song et al. write it (2012, equation 5), up to a factor."""
    n = len(k)
    ones = k.new_ones(n)
    sums = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (k @ m).trace() + sums - 2 / (n - 2) * (ones @ k @ (m @ ones))


def bare_product(batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the sum of (x|y)^T (x|y) over the batches, in float64."""
    total = 0
    for batch in batches:
        joint = torch.cat([layer.double() for layer in batch], 1)
        total = total + joint.T @ joint
    return total


def accumulated(batches: list[tuple[Tensor, Tensor]]) -> similarity.Accumulator:
    """Return an Accumulator that has seen the batches."""
    result = similarity.Accumulator()
    for batch in batches:
        result.update(*batch)
    return result


def growth(function) -> float:
    """Return by how many MB a call raises the peak of the process's memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def upper(grid: similarity.SimilarityGrid, offset: int) -> np.ndarray:
    """Return the pairs above the diagonal, row by row."""
    return grid.values.double().numpy()[np.triu_indices(len(grid.rows), offset)]


def difference(a: np.ndarray, b: np.ndarray | list[float]) -> str:
    """Return the largest difference as text."""
    return f"{np.abs(np.asarray(a) - np.asarray(b)).max():.0e}"


def rows() -> list[Row]:
    """Return the rows of this benchmark."""
    layers = network(WIDTHS)
    table = [accumulator_row()]  # first, as its peak of memory would hide below that of others
    return [*table, *cca_rows(layers), *svcca_rows(), *cka_rows(layers), minibatch_row(layers)]


def cca_rows(double: dict[str, Tensor]) -> list[Row]:
    """Return the rows of the CCA grid, in both dtypes, against two ways to refit every pair."""
    table = []
    single = {name: layer.float() for name, layer in double.items()}
    times = cpu_seconds(
        {
            "published": lambda: refitted_cca(double),
            "lean": lambda: lean_cca(double),
            "float64": lambda: similarity.compare(double, metric="cca"),
            "float32": lambda: similarity.compare(single, metric="cca"),
        },
        repeats=3,
    )
    exact = [similarity.cca(x, y).mean.item() for x, y in combinations(double.values(), 2)]
    baselines = {
        "published": "the SVCCA code's steps a pair (NumPy)",
        "lean": "a lean refit a pair",
    }
    for dtype, layers, target in (("float64", double, ">= 4"), ("float32", single, ">= 8")):
        found = difference(upper(similarity.compare(layers, metric="cca"), 1), exact)
        what = f"CCA, 45 pairs of 10 layers, 5,000 examples, {dtype}"
        for key, baseline in baselines.items():
            table.append(Row(what, baseline, times[key] / times[dtype], target, found))
    return table


def svcca_rows() -> list[Row]:
    """Return the rows of the SVCCA grid over checkpoints."""
    table = []
    kept = {}
    final = network((64, 128, 256, 128, 64, 64, 128, 64))
    source = torch.Generator().manual_seed(1)
    stages = [
        {n: x + t * torch.randn(x.shape, generator=source, dtype=x.dtype) for n, x in final.items()}
        for t in torch.linspace(1, 0, 12).tolist()
    ]
    staged = dict(enumerate(stages))

    def grid() -> similarity.SimilarityGrid:
        return similarity.compare(staged, final, metric="svcca", dims=20)

    times = cpu_seconds(
        {
            "tutorial": lambda: kept.update(tutorial=tutorial_svcca(stages, final)),
            "lean": lambda: lean_svcca(stages, final),
            "ours": grid,
        },
        repeats=1,
        warm=False,
    )
    steps = {"tutorial": "the tutorial's steps a pair (NumPy)", "lean": "a lean SVD of both a pair"}
    for key, baseline in steps.items():
        table.append(
            Row(
                "SVCCA (20), 8 layers x 12 checkpoints x 8 final layers, float64",
                baseline,
                times[key] / times["ours"],
                ">= 50",
                difference(grid().values.flatten(), kept["tutorial"]),
            )
        )
    return table


def cka_rows(layers: dict[str, Tensor]) -> list[Row]:
    """Return the rows of linear CKA; the copied code, hours for a heatmap, is timed on one pair."""
    kept = {}
    pair = {name: layers[name] for name in ("fc5", "fc6")}
    times = cpu_seconds(
        {
            "gram": lambda: kept.update(gram=gram_cka(layers)),
            "copied": lambda: kept.update(copied=copied_cka(*(x.numpy() for x in pair.values()))),
            "ours": lambda: kept.update(ours=similarity.compare(layers, metric="cka").values),
            "pair": lambda: kept.update(pair=similarity.compare(pair, metric="cka").values),
        },
        repeats=1,
        warm=False,  # minutes long
    )
    return [
        Row(
            "linear CKA, 10 x 10 heatmap of the same layers, float64",
            "examples x examples matrices (NumPy)",
            times["gram"] / times["ours"],
            ">= 100",
            difference(kept["ours"].numpy(), kept["gram"]),
        ),
        Row(
            "linear CKA, one pair of 256 neurons of the same layers, float64",
            "H K H by matrix products, three HSICs (NumPy)",
            times["copied"] / times["pair"],
            ">= 100",
            difference(kept["pair"].numpy()[0, 1], [kept["copied"]]),
        ),
    ]


def minibatch_row(layers: dict[str, Tensor]) -> Row:
    """Return the row of unbiased CKA over minibatches of 256, all pairs of four layers."""
    chosen = [layers[f"fc{number}"].split(256)[:-1] for number in (1, 3, 5, 9)]
    batches = [dict(enumerate(parts)) for parts in zip(*chosen, strict=True)]

    def ours() -> np.ndarray:
        return similarity.minibatch_cka((batch, batch) for batch in batches).values.numpy()

    times = cpu_seconds({"gram": lambda: gram_minibatch_cka(batches), "ours": ours}, repeats=3)
    return Row(
        "unbiased minibatch CKA, all pairs of widths 64, 128, 256, 512, batches of 256, float64",
        "torch_cka's steps (torch)",
        times["gram"] / times["ours"],
        ">= 3",
        difference(ours(), gram_minibatch_cka(batches)),
    )


def accumulator_row(examples: int = 1_000_000) -> Row:
    """Return the row of the Accumulator; a few batches come again and again, to save memory."""
    source = torch.Generator().manual_seed(2)
    drawn = [torch.randn(4096, 512, generator=source) for _ in range(4)]
    batches = [(drawn[i % 4], drawn[(i + 1) % 3]) for i in range(-(-examples // 4096))]
    grown = []
    times = cpu_seconds(
        {
            "ours": lambda: grown.append(growth(lambda: accumulated(batches))),
            "product": lambda: bare_product(batches),
        },
        repeats=1,
        warm=False,  # minutes long
    )
    return Row(
        f"Accumulator, {examples:,} examples x 512 neurons in two float32 layers",
        "their float64 matrix product alone (torch)",
        times["product"] / times["ours"],
        ">= 0.67",
        f"peak memory +{grown[0]:.0f} MB",
    )
