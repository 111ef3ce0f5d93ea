"""How fast populations and sensitivities are on a device, against the usual way on it."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks._gpu_grids import (
    FULL,
    SMALL,
    Row,
    Sizes,
    at_full,
    cca,
    cka,
    fourier,
    minibatch,
    row,
    stream,
    svcca,
)
from benchmarks.gpu import product_rate, seconds
from benchmarks.populations import images
from benchmarks.sensitivity import confident, looped
from replication import models, sensitivity, training

__all__ = ["FULL", "SMALL", "measurements"]


def measurements(device: torch.device, sizes: Sizes) -> Iterator[Callable[[], list[Row]]]:
    """Yield what is measured, the most wanted first."""
    for function in (mlps, convnets, cca, svcca, cka, minibatch, fourier, stream, jacobian, rings):
        measure = partial(function, device, sizes)
        measure.__name__ = function.__name__  # for the row of one that fails
        yield measure


def mlps(device: torch.device, sizes: Sizes) -> list[Row]:
    """Return the row of a population of MLPs 784-200x3-10."""
    options = {"inputs": 784, "widths": (200, 200, 200)}
    what = "MLPs 784-200x3-10, batch 64"
    return [_population(what, device, sizes, sizes.members, 30, "mlp", options)]


def convnets(device: torch.device, sizes: Sizes) -> list[Row]:
    """Return the row of a population of convnets."""
    options = {} if sizes is FULL else {"channels": (4, 4)}
    what = "convnets of notebook 04, batch 64"
    return [_population(what, device, sizes, sizes.convnets, 3, "mnist_convnet", options)]


def _population(
    what: str,
    device: torch.device,
    sizes: Sizes,
    members: int,
    target: float,
    model: str,
    options: dict,
) -> Row:
    split = images(28, 640)
    specs = [
        training.Spec(
            model=model,
            model_options=options,
            optimizer_options={"momentum": 0.9},
            learning_rate=0.01 + 1e-4 * seed,
            batch_size=64,
            epochs=sizes.steps / 10,
            evaluate_every=1000,
            evaluation_images=16,
            seed=seed,
        )
        for seed in range(members)
    ]
    where = {"device": str(device), "progress": False}
    alone = specs[: sizes.alone]
    loop = seconds(lambda: [training.fit(spec, split, **where) for spec in alone], device, 1)
    ours = seconds(lambda: training.fit_population(specs, split, **where), device, 1)
    more = {"networks_steps_per_second": members * sizes.steps / ours}
    if model == "mlp":  # forward, and backward twice: 6 operations a weight and example
        weights = sum(p.numel() for p in models.build(model, **options).parameters())
        operations = 6 * weights * 64 * members * sizes.steps
        more["share"] = operations / ours / product_rate(device, torch.float32, sizes.product)
    each = loop / len(alone) * members
    what = f"{members} {what}, {sizes.steps} steps"
    return row(
        what,
        f"training.fit, {len(alone)} one after another",
        ours,
        each,
        at_full(sizes, target),
        **more,
    )


def jacobian(device: torch.device, sizes: Sizes) -> list[Row]:
    """Return the rows of Jacobian norms, on networks with confident points."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(sizes.points, 1, 28, 28, generator=source)
    nets = (
        ("MLP 784-200x5-10", 15, models.build("mlp", widths=(200,) * 5), sizes.points),
        ("small convnet", 1.5, models.build("mnist_convnet", channels=(8, 16)), sizes.points // 5),
    )
    table = []
    for what, target, model, count in nets:
        confident(model, x[:count])
        exact = sensitivity.jacobian_norm(model.double(), x[:count].double())
        model, here = model.float().to(device), x[:count].to(device)
        ours = seconds(lambda m=model, x=here: sensitivity.jacobian_norm(m, x), device)
        theirs = seconds(
            lambda m=model, x=here: looped(m, x),
            device,
            1,
            lambda m=model, x=here: looped(m, x[:2]),
        )
        # a point's own error, as confident points have small norms
        apart = (sensitivity.jacobian_norm(model, here).double().cpu() / exact - 1).abs().max()
        table.append(
            row(
                f"softmax Jacobian norm, {count:,} points, {what}, float32",
                "a loop of torch.autograd.functional.jacobian",
                ours,
                theirs,
                at_full(sizes, target),
                error=apart.item(),
                bound=1e-4,
            )
        )
    return table


def rings(device: torch.device, sizes: Sizes) -> list[Row]:
    """Return the row of exact transitions, without a target: 300 is one of CPU time."""
    model = models.build("mlp", inputs=784, widths=(200,) * 5).to(device)
    source = torch.Generator().manual_seed(3)
    pictures = torch.rand(sizes.rings, 1, 28, 28, generator=source)
    paths = [sensitivity.trajectories.translations(x).to(device) for x in pictures]
    exact = seconds(lambda: [sensitivity.transitions(model, path) for path in paths], device)
    sampled = {"k": sizes.k, "dtype": torch.float32, "progress": False}
    theirs = seconds(lambda: sensitivity.transitions(model, paths[0], "sampled", **sampled), device)
    what = "exact transitions on a ring of 28 translations, 784-200x5-10 at init"
    return [row(what, f"{sizes.k:,} samples in float32", exact / len(paths), theirs, None)]
