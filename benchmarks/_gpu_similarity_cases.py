"""What the similarity package must give on a GPU too."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks._gpu_inputs import (
    CONVOLUTION,
    ONE_FLIP,
    Case,
    Place,
    convnet,
    draw,
    labels,
    layers,
    maps,
    pictures,
)
from replication import activations, similarity
from replication.directions import probe, projection


def similarity_cases() -> Iterator[Case]:
    """Yield the cases of the similarity package."""
    indices = {
        "cca": lambda x, y: (lambda f: (f.correlations, f.mean, f.mean_over_width, f.null))(
            similarity.cca(x, y, null=2)
        ),
        "svcca": lambda x, y: (
            similarity.svcca(x, y).mean,
            similarity.svcca(x, y, variance=0.9, squares=True).correlations,
            similarity.svcca(x, y, dims=1).mean,
        ),
        "pwcca": lambda x, y: (similarity.pwcca(x, y), similarity.pwcca(y, x)),
        "cka": lambda x, y: (
            similarity.cka(x, y),
            similarity.cka(x, y, unbiased=True),
            similarity.cka(x, y, kernel="rbf"),
            similarity.cka(x, y, confounder=x[:, -3:] + y[:, :1]),
        ),
        "procrustes": lambda x, y: (
            similarity.procrustes(x, y),
            similarity.procrustes(x, y, angular=True),
        ),
        "linear_regression_r2": lambda x, y: (similarity.linear_regression_r2(x, y),),
        "rsa": lambda x, y: (similarity.rsa(x, y, distance="euclidean"),),
        "ridge_r2": lambda x, y: (similarity.ridge_r2(x, y),),
        "mutual_knn": lambda x, y: (similarity.mutual_knn(x, y),),
        "unit_matching": lambda x, y: (similarity.unit_matching(x, y),),
    }
    for name, index in indices.items():
        for kind in ("healthy", "degenerate", "wide"):
            # ranks of distances jump; an angle near 0 is a square root; few terms are left of a
            # confounded layer's
            loose = {"rsa": 1e-2, "procrustes": 1e-3, "cka": 2e-3}.get(name, 1e-4)
            yield Case(
                f"similarity.{name}",
                kind,
                lambda at, index=index, kind=kind: index(*map(at, layers(kind))),
                1e-6 if name == "rsa" else 1e-10,
                loose,
            )
    yield Case(
        "similarity.dft_cca",
        "dead and copied channels",
        lambda at: (lambda f: (f.correlations, f.mean))(similarity.dft_cca(*map(at, maps()))),
    )
    names = ("cca", "svcca", "pwcca", "cka", "procrustes", "regression", "rsa")
    for name in names:
        # a layer with itself: distances near 0 are roots of rounding
        yield Case("similarity.compare", name, partial(_grid, name), 1e-7, 1e-2)
    yield Case("similarity.compare", "dft_cca", partial(_grid, "dft_cca"))
    yield Case("similarity.minibatch_cka", "dead and copied neurons", _minibatches)
    for name in names[:-1]:
        # in float64 whatever the input; both inputs hold the same numbers
        yield Case("similarity.Accumulator", name, partial(_streamed, name), 1e-8, 1e-8)
    yield Case("directions.projection.onto_directions", "one of them 0", _onto_directions)
    yield Case(
        "directions.projection.onto_neurons",
        "",
        lambda at: (projection.onto_neurons(at(layers("healthy")[0]), [0, 3]).mean,),
    )
    yield Case("directions.projection.projected", "convnet", _projected, float32=CONVOLUTION)
    yield Case("directions.probe.linear_probe", "accuracy", _probed, ONE_FLIP, ONE_FLIP)


def _grid(metric: str, at: Place) -> list[Tensor]:
    x, y = maps() if metric == "dft_cca" else layers("degenerate")
    acts = {"x": at(x), "y": at(y), "x again": at(x)}
    stages = {0: acts, 1: {name: layer.flip(0) for name, layer in acts.items()}}
    return [similarity.compare(stages, acts, metric=metric).values]


def _minibatches(at: Place) -> list[Tensor]:
    x, y = map(at, layers("degenerate"))
    return [similarity.minibatch_cka(zip(x.split(100), y.split(100), strict=True))]


def _streamed(metric: str, at: Place) -> list[Tensor]:
    streamed = similarity.Accumulator()
    x, y = map(at, layers("degenerate"))
    for rows in (slice(0, 150), slice(150, None)):
        streamed.update({"x": x[rows], "y": y[rows]})
    return [streamed.result(metric).values]


def _onto_directions(at: Place) -> list[Tensor]:
    x = at(layers("healthy")[0])
    given = at(draw(20, 3, seed=7))
    given[:, 1] = 0
    found = projection.onto_directions(x, given)
    return [found.mean, found(x)]


def _projected(at: Place) -> list[Tensor]:
    model, x = at(convnet()), at(pictures(size=10))
    name = "conv1"
    given = activations.record(model, x, [name], reduction="spatial_mean")[name]
    with (
        projection.projected(model, {name: projection.onto_neurons(given, [0, 2])}),
        torch.no_grad(),
    ):
        return [model(x)]


def _probed(at: Place) -> list[float]:
    x, y = at(layers("healthy")[0]), at(labels(400))
    x = x + 2 * torch.nn.functional.one_hot(y, 20).to(x)
    return [probe.linear_probe(x[:300], y[:300], x[300:], y[300:])]
