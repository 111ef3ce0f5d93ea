"""The similarity grid against refitting every pair, and against the usual recipes."""

from itertools import combinations_with_replacement, pairwise

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
    """Return the mean correlation of every pair through its joint covariance, as is usual."""
    arrays = [layer.numpy() for layer in layers.values()]
    found = []
    for i, x in enumerate(arrays):
        for y in arrays[i + 1 :]:
            joint = np.cov(np.concatenate([x, y], 1), rowvar=False)
            d = x.shape[1]
            left, right = _inverse_root(joint[:d, :d]), _inverse_root(joint[d:, d:])
            s = np.linalg.svd(left @ joint[:d, d:] @ right, compute_uv=False)
            found.append(s.sum() / min(x.shape[1], y.shape[1]))
    return found


def _inverse_root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-12 * values[-1]
    return vectors[:, kept] / np.sqrt(values[kept]) @ vectors[:, kept].T


def tutorial_svcca(stages: list[dict[str, Tensor]], final: dict[str, Tensor]) -> list[float]:
    """Return SVCCA with 20 directions, both layers decomposed anew for every pair."""
    found = []
    for layers in stages:
        for x in layers.values():
            for y in final.values():
                cut = []
                for layer in (x.numpy(), y.numpy()):
                    u, s, _ = np.linalg.svd(layer - layer.mean(0), full_matrices=False)
                    cut.append(u[:, :20] * s[:20])
                qx, qy = (np.linalg.qr(c)[0] for c in cut)
                found.append(np.linalg.svd(qx.T @ qy, compute_uv=False).mean())
    return found


def gram_cka(layers: dict[str, Tensor]) -> list[float]:
    """Return linear CKA of every pair from its two (examples, examples) matrices."""
    found = []
    for x, y in combinations_with_replacement(layers.values(), 2):
        k, m = (z - z.mean(0) for z in (x, y))
        k, m = k @ k.T, m @ m.T
        found.append(((k * m).sum() / (k.norm() * m.norm())).item())
    return found


def upper(grid: similarity.SimilarityGrid, offset: int) -> np.ndarray:
    """Return the pairs above the diagonal, row by row."""
    return grid.values.double().numpy()[np.triu_indices(len(grid.rows), offset)]


def difference(a: np.ndarray, b: np.ndarray | list[float]) -> str:
    """Return the largest difference as text."""
    return f"{np.abs(np.asarray(a) - np.asarray(b)).max():.0e}"


def rows() -> list[Row]:
    """Return the rows of this benchmark."""
    double = network(WIDTHS)
    single = {name: layer.float() for name, layer in double.items()}
    table = []

    times = cpu_seconds(
        {
            "refit": lambda: refitted_cca(double),
            "float64": lambda: similarity.compare(double, metric="cca"),
            "float32": lambda: similarity.compare(single, metric="cca"),
        },
        repeats=3,
    )
    exact = refitted_cca(double)
    for dtype, layers, target in (("float64", double, ">= 4"), ("float32", single, ">= 8")):
        found = upper(similarity.compare(layers, metric="cca"), 1)
        what = f"CCA, 45 pairs of 10 layers, 5,000 examples, {dtype}"
        ratio = times["refit"] / times[dtype]
        table.append(
            Row(what, "joint covariance a pair (NumPy)", ratio, target, difference(found, exact))
        )

    final = network((64, 128, 256, 128, 64, 64, 128, 64))
    source = torch.Generator().manual_seed(1)
    stages = [
        {n: x + t * torch.randn(x.shape, generator=source, dtype=x.dtype) for n, x in final.items()}
        for t in torch.linspace(1, 0, 12).tolist()
    ]
    staged = dict(enumerate(stages))

    def grid() -> similarity.SimilarityGrid:
        return similarity.compare(staged, final, metric="svcca", dims=20)

    times = cpu_seconds({"tutorial": lambda: tutorial_svcca(stages, final), "ours": grid}, 1)
    table.append(
        Row(
            "SVCCA (20), 8 layers x 12 checkpoints x 8 final layers, float64",
            "SVD of both layers a pair (NumPy)",
            times["tutorial"] / times["ours"],
            ">= 50",
            difference(grid().values.flatten(), tutorial_svcca(stages, final)),
        )
    )

    times = cpu_seconds(
        {
            "gram": lambda: gram_cka(double),
            "ours": lambda: similarity.compare(double, metric="cka"),
        },
        repeats=1,
    )
    table.append(
        Row(
            "linear CKA, all pairs of the same 10 layers, float64",
            "examples x examples matrices (torch)",
            times["gram"] / times["ours"],
            ">= 100",
            difference(upper(similarity.compare(double, metric="cka"), 0), gram_cka(double)),
        )
    )
    return table
