"""How fast the similarity of many layers is on a device, against the usual way on it."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from benchmarks.fourier import ours as fourier_grid
from benchmarks.gpu import error, product_rate, seconds
from benchmarks.similarity import WIDTHS, _hsic, accumulated, bare_product, network
from replication import similarity
from replication._core.precision import full_precision

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    name: str
    widths: tuple[int, ...] = WIDTHS
    staged: tuple[int, ...] = (64, 128, 256, 128, 64, 64, 128, 64)  # of the SVCCA grid
    examples: int = 5000
    conv: tuple[int, int, int, int] = (2000, 64, 16, 16)
    streamed: int = 1_000_000
    product: int = 8192  # rows of the square matrix product that rates are compared with
    members: int = 256
    alone: int = 8  # of the members, trained one after another too
    convnets: int = 16
    steps: int = 500
    points: int = 1000
    rings: int = 10
    k: int = 2**20


FULL = Sizes("full")
SMALL = Sizes("small", (8, 8, 16), (8, 16), 200, (50, 4, 6, 6), 8192, 128, 4, 2, 2, 5, 8, 1, 1024)


def row(what: str, against: str, ours: float, theirs: float, target: float | None, **more) -> Row:
    """Return a row: how many times faster, how long, and what else was found."""
    ratio = theirs / ours
    found = [f"{ratio:.1f}x", f"{1000 * ours:.3g} ms"]
    if "share" in more:
        found.append(f"{more['share']:.0%} of a matrix product's rate")
    if "error" in more:
        found.append(f"{more['error']:.0e} from the CPU")
    return {
        "what": what,
        "against": against,
        "found": ", ".join(found),
        "wanted": "" if target is None else f">= {target:g}x",
        "held": None if target is None else ratio >= target,
        "ratio": ratio,
        "seconds": ours,
        "seconds_against": theirs,
        **more,
    }


def at_full(sizes: Sizes, target: float) -> float | None:
    """Return the target, which holds at full size only."""
    return target if sizes is FULL else None


def _layers(
    device: torch.device,
    sizes: Sizes,
    dtype: torch.dtype,
    widths: tuple[int, ...] | None = None,
) -> dict[str, Tensor]:
    layers = network(widths or sizes.widths)
    return {n: layer[: sizes.examples].to(device, dtype) for n, layer in layers.items()}


def _dtypes(*targets: float):
    """Yield each dtype with its name, its target and the largest error from the CPU's float64."""
    return zip(
        (torch.float64, torch.float32), ("float64", "float32"), targets, (1e-8, 1e-4), strict=True
    )


def _inverse_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(torch.linalg.pinv(covariance))
    return vectors * values.clamp(min=0).sqrt() @ vectors.mT


def _published(x: Tensor, y: Tensor) -> Tensor:
    """Return the sum of correlations of a pair by the steps of the SVCCA paper's code."""
    joint, d = torch.cov(torch.cat([x, y], 1).mT), x.shape[1]
    left, right = _inverse_root(joint[:d, :d]), _inverse_root(joint[d:, d:])
    return torch.linalg.svd(left @ joint[:d, d:] @ right)[1].sum()


def _lean(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean by one eigendecomposition a layer, dead units left out."""
    joint, d = torch.cov(torch.cat([x, y], 1).mT), x.shape[1]
    roots = []
    for block in (joint[:d, :d], joint[d:, d:]):
        values, vectors = torch.linalg.eigh(block)
        kept = values > 100 * torch.finfo(x.dtype).eps * values[-1]
        roots.append(vectors[:, kept] / values[kept].sqrt())
    return torch.linalg.svdvals(roots[0].mT @ joint[:d, d:] @ roots[1]).mean()


def _timed(function: Callable, pairs: list, device: torch.device) -> float:
    """Return the seconds of one pass over all pairs, after one pair that does not count."""
    with full_precision():
        return seconds(
            lambda: [function(*pair) for pair in pairs], device, 1, lambda: function(*pairs[0])
        )


def cca(device: torch.device, sizes: Sizes) -> list[Row]:
    """Return the rows of the CCA grid, in both dtypes."""
    exact = similarity.compare(
        _layers(torch.device("cpu"), sizes, torch.float64), metric="cca"
    ).values
    table = []
    for dtype, name, target, bound in _dtypes(4, 8):
        layers = _layers(device, sizes, dtype)
        ours = seconds(lambda layers=layers: similarity.compare(layers, metric="cca"), device)
        values = similarity.compare(layers, metric="cca").values
        pairs = list(combinations(layers.values(), 2))
        # the products of every pair, a layer with itself included; decompositions come on top
        counts = [x.shape[1] for x in layers.values()]
        operations = len(pairs[0][0]) * (sum(counts) ** 2 + sum(d * d for d in counts))
        share = operations / ours / product_rate(device, dtype, sizes.product)
        more = {"share": share, "error": error([values], [exact]), "bound": bound}
        for way, steps in (("the SVCCA code's steps", _published), ("a lean refit", _lean)):
            table.append(
                row(
                    f"CCA, {len(pairs)} pairs of {len(layers)} layers, {name}",
                    f"{way} a pair",
                    ours,
                    _timed(steps, pairs, device),
                    at_full(sizes, target),
                    **more,
                )
            )
    return table


def svcca(device: torch.device, sizes: Sizes) -> list[Row]:
    """Return the row of the SVCCA grid over 12 checkpoints.

    Of the baseline each layer of the first checkpoint with the same final layer is timed: a share
    of one in 12 x layers of its decompositions.
    """
    final = _layers(device, sizes, torch.float64, sizes.staged)
    source = torch.Generator().manual_seed(1)
    stages = {
        step: {
            name: x + t * torch.randn(x.shape, generator=source).to(x) for name, x in final.items()
        }
        for step, t in enumerate(torch.linspace(1, 0, 12).tolist())
    }
    dims = min(20, *sizes.staged)

    def whole(x: Tensor, y: Tensor) -> Tensor:
        cut = []
        for layer in (x, y):
            u, s, _ = torch.linalg.svd(layer - layer.mean(0), full_matrices=False)
            cut.append(u[:, :dims] * s[:dims])
        return _lean(*cut)

    pairs = list(zip(stages[0].values(), final.values(), strict=True))
    ours = seconds(lambda: similarity.compare(stages, final, metric="svcca", dims=dims), device)
    theirs = 12 * len(final) * _timed(whole, pairs, device)
    what = f"SVCCA ({dims}), {len(final)} layers x 12 checkpoints x {len(final)} layers, float64"
    return [row(what, "an SVD of both layers a pair", ours, theirs, at_full(sizes, 50))]


def cka(device: torch.device, sizes: Sizes) -> list[Row]:
    """Return the rows of the linear CKA heatmap."""

    def gram(x: Tensor, y: Tensor) -> Tensor:
        k, m = x @ x.mT, y @ y.mT
        for matrix in (k, m):
            matrix -= matrix.mean(0)
            matrix -= matrix.mean(1, keepdim=True)
        return (k * m).sum() / (k.norm() * m.norm())

    table = []
    for dtype, name, target, bound in _dtypes(100, 100):
        layers = _layers(device, sizes, dtype)
        exact = similarity.compare({n: x.double().cpu() for n, x in layers.items()}, metric="cka")
        found = similarity.compare(layers, metric="cka")
        ours = seconds(lambda layers=layers: similarity.compare(layers, metric="cka"), device)
        theirs = _timed(gram, [(x, y) for x in layers.values() for y in layers.values()], device)
        what = f"linear CKA, {len(layers)} x {len(layers)} heatmap, {name}"
        more = {"error": error([found.values], [exact.values]), "bound": bound}
        against = "examples x examples matrices a pair"
        table.append(row(what, against, ours, theirs, at_full(sizes, target), **more))
    return table


def minibatch(device: torch.device, sizes: Sizes) -> list[Row]:
    """Return the row of unbiased CKA over minibatches of at most 256."""
    layers = list(_layers(device, sizes, torch.float64).values())[:: 2 if sizes is FULL else 1]
    size = min(256, sizes.examples // 4)
    parts = zip(*(layer.split(size) for layer in layers), strict=True)
    batches = [dict(enumerate(part)) for part in parts if len(part[0]) == size]

    def grams() -> Tensor:
        total = torch.zeros(len(layers), len(layers), 3, device=device, dtype=torch.float64)
        for batch in batches:
            for i in batch:
                for j in batch:
                    k, m = batch[i] @ batch[i].mT, batch[j] @ batch[j].mT
                    k.fill_diagonal_(0)
                    m.fill_diagonal_(0)
                    total[i, j] += torch.stack([_hsic(k, m), _hsic(k, k), _hsic(m, m)])
        return total[..., 0] / (total[..., 1] * total[..., 2]).sqrt()

    def ours() -> Tensor:
        return similarity.minibatch_cka((batch, batch) for batch in batches).values

    here = [{i: layer.cpu() for i, layer in batch.items()} for batch in batches]
    exact = similarity.minibatch_cka((batch, batch) for batch in here)
    return [
        row(
            f"unbiased minibatch CKA, all of {len(layers)} layers, batches of {size}, float64",
            "torch_cka's steps",
            seconds(ours, device),
            seconds(grams, device, 1),
            at_full(sizes, 3),
            error=error([ours()], [exact.values]),
            bound=1e-8,
        )
    ]


def fourier(device: torch.device, sizes: Sizes) -> list[Row]:
    """Return the rows of DFT-CCA of four layers; the baseline has one of the six pairs."""

    def transformed(x: Tensor) -> Tensor:
        z = torch.fft.fft2(x).permute(2, 3, 0, 1)
        return z - z.mean(2, keepdim=True)

    def by_svd(x: Tensor, y: Tensor) -> Tensor:
        bases = [torch.linalg.svd(transformed(z), full_matrices=False)[0] for z in (x, y)]
        return torch.linalg.svdvals(bases[0].mH @ bases[1])

    table = []
    for dtype, name, target, _ in _dtypes(6, 6):
        source = torch.Generator().manual_seed(0)
        common = torch.randn(sizes.conv, generator=source)
        drawn = [common + 0.5 * torch.randn(sizes.conv, generator=source) for _ in range(4)]
        stack = [x.to(device, dtype) for x in drawn]
        ours = seconds(lambda stack=stack: fourier_grid(stack), device)
        with full_precision():
            corner = [x[..., :2, :2] for x in stack[:2]]  # enough to load what it takes
            theirs = seconds(lambda s=stack: by_svd(*s[:2]), device, 1, lambda c=corner: by_svd(*c))
        what = f"DFT-CCA, 6 pairs of 4 layers {sizes.conv}, {name}"
        against = "SVDs over the full spectrum a pair"
        table.append(row(what, against, ours, 6 * theirs, at_full(sizes, target)))
    return table


def stream(device: torch.device, sizes: Sizes) -> list[Row]:
    """Return the row of the Accumulator; a few batches come again and again."""
    width = 512 if sizes is FULL else 16
    source = torch.Generator().manual_seed(2)
    drawn = [torch.randn(4096, width, generator=source).to(device) for _ in range(4)]
    batches = [(drawn[i % 4], drawn[(i + 1) % 3]) for i in range(-(-sizes.streamed // 4096))]
    ours = seconds(lambda: accumulated(batches), device)
    theirs = seconds(lambda: bare_product(batches), device)
    what = f"Accumulator, {sizes.streamed:,} examples x {width} neurons in two float32 layers"
    return [row(what, "their float64 matrix product alone", ours, theirs, at_full(sizes, 0.67))]
