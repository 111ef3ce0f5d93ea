"""What the sensitivity package must give on a GPU too."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks._gpu_inputs import Case, Place, convnet, draw, labels, mlp, pictures, scaled
from replication import sensitivity
from replication._core.precision import full_precision


def sensitivity_cases() -> Iterator[Case]:
    """Yield the cases of the sensitivity package."""
    kinds = {"MLP": (mlp, 6, 1e-4), "convnet": (convnet, 10, 1e-4)}  # TF32 is off in these
    for kind, (network, size, loose) in kinds.items():
        for scale in (1, 40):
            what = f"{kind}{', confident' if scale > 1 else ''}"
            for name, run in {
                "jacobian_norm": _norms,
                "jacobian_row_norm": _row_norms,
            }.items():
                yield Case(
                    f"sensitivity.{name}",
                    what,
                    lambda at, run=run, network=network, size=size, scale=scale: run(
                        at(scaled(network(), scale)), at(pictures(32, size))
                    ),
                    1e-10,
                    loose * (10 if scale > 1 else 1),
                )
    for kind, (network, size, _) in kinds.items():
        # worked out in float64 whatever the input
        for name, run in {
            "transitions": _transitions,
            "output_curve": _curve,
            "nearest_boundary": _boundary,
            "region_map": _map,
        }.items():
            yield Case(
                f"sensitivity.{name}",
                kind,
                lambda at, run=run, network=network, size=size: run(
                    at(network()), at(pictures(6, size))
                ),
                1e-8,
                1e-8,
            )
    averaged = partial(convnet, nn.AvgPool2d)
    for kind, network, size in (("MLP", mlp, 6), ("convnet", averaged, 10)):
        yield Case(
            "sensitivity.plane_regions",
            kind,
            lambda at, network=network, size=size: _plane(at(network()), at(pictures(3, size))),
            1e-8,
            1e-8,
        )
    logits = draw(50, 5, seed=8) * torch.logspace(-2, 2, 50)[:, None].double()
    logits = logits.float().double()
    yield Case(
        "sensitivity.cross_entropies",
        "to confident",
        lambda at: (sensitivity.cross_entropies(at(logits), at(labels(50))),),
    )
    for name in ("cross_entropy_bounds", "fraction_inside", "mean_square_gradient"):
        yield Case(f"sensitivity.{name}", "MLP", partial(_bounds, name))
    paths = {
        "polyline": lambda x: sensitivity.trajectories.polyline(list(x[:4])),
        "translations": lambda x: sensitivity.trajectories.translations(x[0], 6),
        "ellipse": lambda x: sensitivity.trajectories.ellipse(x[0], x[1], x[2], 30),
        "random_ellipse": lambda x: sensitivity.trajectories.random_ellipse(x, 30),
        "sample": lambda x: sensitivity.trajectories.sample(x, 100),
    }
    for name, path in paths.items():
        yield Case(
            f"sensitivity.trajectories.{name}", "", lambda at, path=path: (path(at(pictures(12))),)
        )


def _norms(model: nn.Module, x: Tensor) -> list[Tensor]:
    return [sensitivity.jacobian_norm(model, x, output) for output in ("softmax", "logits")]


def _row_norms(model: nn.Module, x: Tensor) -> list[Tensor]:
    return [sensitivity.jacobian_row_norm(model, x, labels(len(x)).to(x.device))]


def _transitions(model: nn.Module, x: Tensor) -> list[Tensor | float]:
    exact = sensitivity.transitions(model, x, progress=False)
    sampled = sensitivity.transitions(model, x, "sampled", 2000, progress=False)
    return [*exact.per_layer.values(), exact.positions, *sampled.per_layer.values()]


def _curve(model: nn.Module, x: Tensor) -> list[Tensor | float]:
    found = sensitivity.output_curve(model, x)
    return [found.positions, found.outputs]


def _boundary(model: nn.Module, x: Tensor) -> list[Tensor]:
    return [sensitivity.nearest_boundary(model, x)]


def _map(model: nn.Module, x: Tensor) -> list[Tensor | float]:
    found = sensitivity.region_map(model, *x[:3], resolution=24)
    return [found.count, found.edges.double().sum(), found.points]


def _plane(model: nn.Module, x: Tensor) -> list[Tensor | float]:
    found = sensitivity.plane_regions(model, *x[:3])
    return [found.count, float(len(found.polygons)), float(found.certified)]


def _bounds(name: str, at: Place) -> Sequence[Tensor | float]:
    model, x, y = at(mlp()), at(pictures()), at(labels())
    m = sensitivity.mean_square_gradient(sensitivity.jacobian_norm(model, x, "logits"), 5)
    if name == "mean_square_gradient":
        return [m]
    with torch.no_grad(), full_precision():
        bounds = sensitivity.cross_entropy_bounds(sensitivity.cross_entropies(model(x), y), m, 5)
    if name == "cross_entropy_bounds":
        return bounds
    return [sensitivity.fraction_inside(sensitivity.jacobian_row_norm(model, x, y), bounds)]
