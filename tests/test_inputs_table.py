"""Every public function of the numerics, with what makes valid input for it.

`test_inputs.py` runs general properties over this table; here it is held against the modules, so
that a function that is added cannot be forgotten.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass

import numpy as np
import torch
from torch import Tensor, nn

from replication import activations, directions, memorisation, sensitivity, spectra
from replication import similarity as sim
from replication.directions import probe, projection, resets
from replication.sensitivity import trajectories


@dataclass(frozen=True)
class Entry:
    """A function, called by keyword, and what is known of its arguments.

    `arrays` are finite numbers of any dtype, those in `floating` of floating dtype; `labels` are
    integers, one an example, and `classes` is how many there may be. `integers` gives the least
    value of each integer argument, `numbers` wrong values of real ones. `choices` are names.
    `told` is what a message calls an argument where it is not its name. `degrees` says, where it is
    known, by which power of an argument's scale the result grows, and `outputs` which outputs of a
    model are wrong. `single` are the arguments whose first axis is not one of examples, and `kept`
    those that mean something else as integers.
    """

    call: Callable
    make: Callable[[torch.Generator, int, int], dict]
    arrays: tuple[str, ...] = ()
    floating: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    classes: int | None = None
    integers: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, tuple] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    told: Mapping[str, str] = field(default_factory=dict)
    degrees: Mapping[str, float] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    single: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def arguments(self, seed: int = 0, examples: int = 14, width: int = 3) -> dict:
        """Return valid arguments, arrays as float64 tensors."""
        return self.make(torch.Generator().manual_seed(seed), examples, width)

    def name_of(self, argument: str) -> str:
        """Return what a message calls the argument."""
        return self.told.get(argument, argument)


class Reading(nn.Module):
    """A network whose output another function changes."""

    def __init__(self, network: nn.Module, change: Callable) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor) -> object:
        return self.change(self.network(x))


def network(g, width, classes=3):
    """Return a small network of ReLUs, float64, in training mode."""
    layers = [nn.Linear(width, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, classes)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype) / p.shape[-1] ** 0.5)
    return model


def normal(g, *shape):
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def labelled(g, n):
    """Return labels of 3 classes, each of which occurs."""
    return torch.cat([torch.arange(3), torch.randint(3, (n,), generator=g)])[:n]


def pair(**more):
    return lambda g, n, w: {"x": normal(g, n, w), "y": normal(g, n, w + 1), **more}


def images(**more):
    return lambda g, n, w: {"model": network(g, w), "images": normal(g, n, w), **more}


def labelled_images(**more):
    def make(g, n, w):
        return images(**more)(g, n, w) | {"labels": labelled(g, n)}

    return make


def points(number, **more):
    def make(g, n, w):
        names = "abc"[:number]
        return {"model": network(g, w), **{k: normal(g, w) for k in names}, **more}

    return make


def model_and(name, **more):
    return lambda g, n, w: {"model": network(g, w), name: normal(g, n, w), **more}


def accumulated(x, y, metric="cca"):
    total = sim.Accumulator()
    total.update(x, y)
    return total.result(metric)


def projected(x, **arguments):
    function = projection.onto_neurons if "neurons" in arguments else projection.onto_directions
    return function(x, **arguments)


def inside(row_norms, lower, upper, **more):
    bounds = sensitivity.CrossEntropyBounds(lower, upper, lower)
    return sensitivity.fraction_inside(row_norms, bounds, **more)


def descent(g, n, w):
    return {"features": normal(g, n, w), "targets": normal(g, n), "steps": [0, 3], "seed": 0}


def states(g, n, w):
    model = network(g, w)
    first, second = (dict(network(g, w).state_dict()) for _ in range(2))
    return {"model": model, "first": first, "second": second, "layers": ["0", "2"]}


XY = ("x", "y")
NULL = {"null": 0, "seed": None}
MODEL = ("text", "none", "tuple", "rows", "nan", "flat")
NO_NUMBERS = ("a", None, float("nan"), -1.0, 1j)
NOT_POSITIVE = (*NO_NUMBERS, 0.0, float("inf"))
ABLATION = {
    "arrays": ("images",),
    "floating": ("images",),
    "labels": ("labels",),
    "classes": 3,
    "outputs": MODEL,
}
JACOBIAN = {
    "arrays": ("images",),
    "choices": ("output",),
    "outputs": MODEL,
}
PLANE = {"arrays": ("a", "b", "c"), "single": ("a", "b", "c"), "outputs": ()}

TABLE: dict[str, Entry] = {
    "similarity.cca": Entry(
        sim.cca, pair(null=1, seed=0), XY, integers=NULL, degrees={"x": 0, "y": 0}
    ),
    "similarity.svcca": Entry(
        sim.svcca,
        pair(variance=0.99, dims=None, null=1, seed=0),
        XY,
        integers={**NULL, "dims": 1},
        numbers={"variance": (*NOT_POSITIVE, 1.1)},
        degrees={"x": 0, "y": 0},
    ),
    "similarity.pwcca": Entry(sim.pwcca, pair(), XY, degrees={"x": 0, "y": 0}),
    "similarity.cka": Entry(
        lambda x, y, confounder=None, **more: sim.cka(x, y, confounder=confounder, **more),
        lambda g, n, w: pair(kernel="linear", sigma=0.5)(g, n, w) | {"confounder": normal(g, n, w)},
        (*XY, "confounder"),
        numbers={"sigma": NOT_POSITIVE},
        choices=("kernel",),
        degrees={"x": 0, "y": 0, "confounder": 0},
    ),
    "similarity.cka (rbf)": Entry(
        lambda x, y: sim.cka(x, y, kernel="rbf", unbiased=True),
        pair(),
        XY,
        degrees={"x": 0, "y": 0},
    ),
    "similarity.procrustes": Entry(sim.procrustes, pair(), XY, degrees={"x": 0, "y": 0}),
    "similarity.linear_regression_r2": Entry(
        sim.linear_regression_r2, pair(), XY, degrees={"x": 0, "y": 0}
    ),
    "similarity.rsa": Entry(
        sim.rsa, pair(distance="euclidean"), XY, choices=("distance",), degrees={"x": 0, "y": 0}
    ),
    "similarity.rsa (correlation)": Entry(
        sim.rsa,
        lambda g, n, w: pair()(g, n, w + 2),
        XY,
        degrees={"x": 0, "y": 0},
    ),
    "similarity.dft_cca": Entry(
        sim.dft_cca,
        lambda g, n, w: {
            "x": normal(g, n, w - 1, 2, 3),
            "y": normal(g, n, w - 1, 3, 2),
            "null": 1,
            "seed": 0,
        },
        XY,
        integers=NULL,
        degrees={"x": 0, "y": 0},
    ),
    "similarity.minibatch_cka": Entry(
        lambda x, y: sim.minibatch_cka([(x, y), (x, y)]), pair(), XY, degrees={"x": 0, "y": 0}
    ),
    "similarity.compare": Entry(
        lambda x, y, **more: sim.compare({"first": x}, {"second": y}, **more),
        pair(metric="cca", conv="spatial_mean", null=1, seed=0),
        XY,
        integers=NULL,
        choices=("metric", "conv"),
        told={"x": "acts_a['first']", "y": "acts_b['second']"},
        degrees={"x": 0, "y": 0},
    ),
    "similarity.Accumulator": Entry(
        accumulated, pair(metric="pwcca"), XY, choices=("metric",), degrees={"x": 0, "y": 0}
    ),
    "directions.probe.linear_probe": Entry(
        probe.linear_probe,
        lambda g, n, w: {
            "train": normal(g, n, w),
            "train_labels": labelled(g, n),
            "test": normal(g, n, w),
            "test_labels": labelled(g, n),
            "penalty": 0.1,
            "iterations": 20,
        },
        ("train", "test"),
        labels=("train_labels", "test_labels"),
        integers={"iterations": 1},
        numbers={"penalty": (*NO_NUMBERS, float("inf"))},
    ),
    "directions.probe.keep_components": Entry(
        lambda x, others, **more: probe.keep_components(x, more["count"], others),
        lambda g, n, w: {"x": normal(g, n, w), "count": 2, "others": normal(g, n, w)},
        ("x", "others"),
        integers={"count": 0},
        told={"others": "others[0]"},
    ),
    "directions.projection.onto_directions": Entry(
        projected,
        lambda g, n, w: {"x": normal(g, n, w), "directions": normal(g, w, 2)},
        ("x", "directions"),
        single=("directions",),
    ),
    "directions.projection.onto_neurons": Entry(
        projected, lambda g, n, w: {"x": normal(g, n, w), "neurons": [0, w - 1]}, ("x",)
    ),
    "sensitivity.jacobian_norm": Entry(
        sensitivity.jacobian_norm,
        images(output="logits", memory=2**20),
        integers={"memory": 1},
        **JACOBIAN,
    ),
    "sensitivity.jacobian_row_norm": Entry(
        sensitivity.jacobian_row_norm,
        labelled_images(output="softmax", memory=2**20),
        integers={"memory": 1},
        labels=("labels",),
        classes=3,
        **JACOBIAN,
    ),
    "sensitivity.spectral_norm": Entry(
        sensitivity.spectral_norm,
        images(output="softmax", tolerance=1e-6, iterations=500, seed=0, memory=2**20),
        integers={"iterations": 1, "seed": None, "memory": 1},
        numbers={"tolerance": (*NOT_POSITIVE, 1.0)},
        **JACOBIAN,
    ),
    "sensitivity.finite_difference_norm": Entry(
        sensitivity.finite_difference_norm,
        images(output="softmax", step=1e-3, directions=4, seed=0, memory=2**20),
        integers={"directions": 1, "seed": None, "memory": 1},
        numbers={"step": NOT_POSITIVE},
        **JACOBIAN,
    ),
    "sensitivity.cross_entropies": Entry(
        sensitivity.cross_entropies,
        lambda g, n, w: {"logits": normal(g, n, 3), "labels": labelled(g, n)},
        ("logits",),
        floating=("logits",),
        labels=("labels",),
        classes=3,
    ),
    "sensitivity.cross_entropy_bounds": Entry(
        sensitivity.cross_entropy_bounds,
        lambda g, n, w: {
            "cross_entropy": normal(g, n).abs(),
            "mean_square": normal(g, n).abs(),
            "classes": 5,
        },
        ("cross_entropy", "mean_square"),
        floating=("cross_entropy",),
        integers={"classes": 2},
        degrees={"mean_square": 0.5},
    ),
    "sensitivity.mean_square_gradient": Entry(
        sensitivity.mean_square_gradient,
        lambda g, n, w: {"logit_norms": normal(g, n).abs(), "classes": 5},
        ("logit_norms",),
        integers={"classes": 1},
        degrees={"logit_norms": 2},
    ),
    "sensitivity.fraction_inside": Entry(
        inside,
        lambda g, n, w: {
            "row_norms": normal(g, n).abs(),
            "lower": normal(g, n).abs() / 2,
            "upper": 1 + normal(g, n).abs(),
            "tolerance": 1e-5,
        },
        ("row_norms", "lower", "upper"),
        numbers={"tolerance": (*NO_NUMBERS, float("inf"))},
        told={"lower": "bounds.lower", "upper": "bounds.upper"},
    ),
    "sensitivity.nearest_boundary": Entry(
        sensitivity.nearest_boundary,
        lambda g, n, w: (
            model_and("points", memory=2**20)(g, n, w) | {"directions": normal(g, n, w)}
        ),
        ("points", "directions"),
        integers={"memory": 1},
        degrees={"directions": 0},
    ),
    "sensitivity.output_curve": Entry(
        sensitivity.output_curve,
        model_and("path", memory=2**20),
        ("path",),
        integers={"memory": 1},
    ),
    "sensitivity.transitions": Entry(
        sensitivity.transitions,
        model_and("path", memory=2**20, k=64, method="sampled", progress=False),
        ("path",),
        integers={"memory": 1, "k": 2},
        choices=("method",),
    ),
    "sensitivity.transitions (exact)": Entry(
        lambda model, path: sensitivity.transitions(model, path),
        model_and("path"),
        ("path",),
    ),
    "sensitivity.region_map": Entry(
        sensitivity.region_map,
        points(3, resolution=5, margin=0.25, memory=2**20),
        integers={"resolution": 1, "memory": 1},
        numbers={"margin": (*NO_NUMBERS, float("inf"))},
        **PLANE,
    ),
    "sensitivity.plane_regions": Entry(
        lambda polygon=None, **more: sensitivity.plane_regions(polygon=polygon, **more),
        lambda g, n, w: (
            points(3, margin=0.25, memory=2**20)(g, n, w)
            | {"polygon": torch.tensor([[0.0, 0], [1, 0], [1, 1]]).double()}
        ),
        ("a", "b", "c", "polygon"),
        integers={"memory": 1},
        numbers={"margin": (*NO_NUMBERS, float("inf"))},
        single=("a", "b", "c", "polygon"),
    ),
    "sensitivity.trajectories.polyline": Entry(
        trajectories.polyline,
        lambda g, n, w: {"points": normal(g, n, w)},
        ("points",),
        degrees={"points": 1},
    ),
    "sensitivity.trajectories.translations": Entry(
        trajectories.translations,
        lambda g, n, w: {"image": normal(g, n, w + 2), "shifts": 3},
        ("image",),
        integers={"shifts": 2},
        degrees={"image": 1},
        single=("image",),
    ),
    "sensitivity.trajectories.ellipse": Entry(
        trajectories.ellipse,
        lambda g, n, w: {"a": normal(g, w), "b": normal(g, w), "c": normal(g, w), "vertices": 6},
        ("a", "b", "c"),
        integers={"vertices": 3},
        single=("a", "b", "c"),
    ),
    "sensitivity.trajectories.random_ellipse": Entry(
        trajectories.random_ellipse,
        lambda g, n, w: {"images": normal(g, n, w), "vertices": 6, "seed": 0},
        ("images",),
        integers={"vertices": 3, "seed": None},
        degrees={"images": 1},
    ),
    "sensitivity.trajectories.sample": Entry(
        trajectories.sample,
        lambda g, n, w: {"path": normal(g, n, w), "k": 7},
        ("path",),
        integers={"k": 1},
        degrees={"path": 1},
    ),
    "directions.cumulative_ablation": Entry(
        directions.cumulative_ablation,
        labelled_images(layers="1", orders=2, clamp="mean", seed=0, batch_size=5),
        integers={"orders": 1, "seed": None, "batch_size": 1},
        choices=("clamp", "layers"),
        **ABLATION,
    ),
    "directions.unit_ablation": Entry(
        directions.unit_ablation,
        labelled_images(layers=["1", "3"], clamp="zero", batch_size=5),
        integers={"batch_size": 1},
        choices=("clamp",),
        **ABLATION,
    ),
    "directions.noise_curve": Entry(
        directions.noise_curve,
        labelled_images(layers=["1"], scales=[0, 0.5], draws=2, seed=0, per="std", batch_size=5),
        integers={"draws": 1, "seed": None, "batch_size": 1},
        choices=("per",),
        **ABLATION,
    ),
    "directions.class_selectivity": Entry(
        directions.class_selectivity,
        lambda g, n, w: {"acts": normal(g, n, w).abs(), "labels": labelled(g, n)},
        ("acts",),
        labels=("labels",),
    ),
    "directions.mutual_information": Entry(
        directions.mutual_information,
        lambda g, n, w: {"acts": normal(g, n, w), "labels": labelled(g, n), "bins": 3},
        ("acts",),
        labels=("labels",),
        integers={"bins": 2},
        degrees={"acts": 0},
    ),
    "memorisation.finite_sample_network": Entry(
        memorisation.finite_sample_network,
        lambda g, n, w: {"images": normal(g, n, w), "labels": normal(g, n), "seed": 0},
        ("images", "labels"),
        integers={"seed": 0},
    ),
    "memorisation.gaussian_kernel_interpolation": Entry(
        memorisation.gaussian_kernel_interpolation,
        lambda g, n, w: {
            "train": normal(g, n, w),
            "targets": normal(g, n),
            "test": normal(g, n, w),
            "bandwidth": 0.4,
            "ridge": 0.1,
        },
        ("train", "targets", "test"),
        kept=("targets",),
        numbers={"bandwidth": ("a", float("nan"), 0.0, -1.0, float("inf")), "ridge": NO_NUMBERS},
    ),
    "memorisation.gradient_descent_path": Entry(
        memorisation.gradient_descent_path,
        descent,
        ("features", "targets"),
        kept=("targets",),
        integers={"seed": 0},
        numbers={"steps": (["a"], [-1], [], 3, None, [1.5])},
    ),
    "memorisation.minimum_norm_solution": Entry(
        memorisation.minimum_norm_solution,
        lambda g, n, w: {"features": normal(g, n, w), "targets": normal(g, n), "ridge": 0.0},
        ("features", "targets"),
        kept=("targets",),
        numbers={"ridge": (*NO_NUMBERS, float("inf"))},
        degrees={"features": -1, "targets": 1},
    ),
    "memorisation.random_conv_features": Entry(
        memorisation.random_conv_features,
        lambda g, n, w: {
            "images": normal(g, 4, 2, w + 2, w + 2),
            "filters": 3,
            "size": 2,
            "seed": 0,
            "grid": 1,
        },
        ("images",),
        floating=("images",),
        integers={"filters": 1, "size": 1, "seed": 0, "grid": 1},
    ),
    "spectra.explained_variance": Entry(
        spectra.explained_variance,
        lambda g, n, w: {"singular_values": normal(g, n, w).abs()},
        ("singular_values",),
        degrees={"singular_values": 0},
    ),
    "spectra.group_singular_values": Entry(
        spectra.group_singular_values,
        lambda g, n, w: {"groups": normal(g, n, 3, 4 * w)},
        ("groups",),
        floating=("groups",),
        degrees={"groups": 1},
    ),
    "spectra.noise_spectrum": Entry(
        spectra.noise_spectrum,
        labelled_images(
            layers=["input", "1"],
            sigma=0.1,
            copies=3,
            perturb="fgsm",
            steps=2,
            seed=0,
            images_per_batch=2,
        ),
        ("images",),
        labels=("labels",),
        classes=3,
        integers={"copies": 2, "steps": 1, "seed": None, "images_per_batch": 1},
        numbers={"sigma": (*NO_NUMBERS, float("inf"))},
        choices=("perturb", "layers"),
        outputs=MODEL,
    ),
    "directions.resets.reset": Entry(
        lambda first, second, model, **more: resets.reset(model, first, **more),
        states,
        choices=("layers",),
    ),
    "directions.resets.weight_distance": Entry(
        lambda model, **more: resets.weight_distance(**more),
        states,
        choices=("layers",),
    ),
    "directions.resets.recalibrate": Entry(
        resets.recalibrate,
        lambda g, n, w: {
            "model": nn.Sequential(nn.Linear(w, 3), nn.BatchNorm1d(3)).double(),
            "images": normal(g, n, w),
            "batch_size": 4,
        },
        ("images",),
        floating=("images",),
        integers={"batch_size": 2},
    ),
    "activations.record": Entry(
        activations.record,
        images(layers=["0", "3"], batch_size=5, reduction=None),
        ("images",),
        floating=("images",),
        integers={"batch_size": 1},
        choices=("reduction", "layers"),
    ),
}

RESULT = "a result, made by the functions"
EXEMPT = {
    **dict.fromkeys(
        [
            "similarity.CCAResult",
            "similarity.FourierCCAResult",
            "similarity.SimilarityGrid",
            "directions.projection.Projection",
            "sensitivity.CrossEntropyBounds",
            "sensitivity.OutputCurve",
            "sensitivity.PlaneRegions",
            "sensitivity.RegionMap",
            "sensitivity.Transitions",
            "directions.AblationCurve",
            "directions.NoiseCurve",
            "directions.Selectivity",
            "directions.UnitAblation",
            "memorisation.FiniteSampleNetwork",
            "memorisation.GradientDescentPath",
            "memorisation.KernelSolution",
            "spectra.NoiseSpectrum",
            "directions.resets.Distance",
        ],
        RESULT,
    ),
    "sensitivity.trajectories": "a module",
    **{f"directions.{name}": "a module" for name in ("probe", "projection", "resets")},
    "directions.projection.projected": "a context around a network; its layers are looked up",
    "activations.flatten": "a view of what a layer gave, checked by what takes it",
    "activations.spatial_mean": "a mean of what a layer gave, checked by what takes it",
    "activations.evaluating": "a context around a network",
    "activations.taking_integers": "a context around a pass through a network",
}


def numbers(result: object) -> list[Tensor]:
    """Return all numbers in a result, by the order of its fields."""
    if isinstance(result, Tensor):
        return [result.detach()]
    if isinstance(result, np.ndarray):
        return [torch.from_numpy(np.array(result))]
    if isinstance(result, bool | int | float | np.generic):
        return [torch.tensor(float(result), dtype=torch.float64)]
    if isinstance(result, nn.Module):
        return numbers(list(result.state_dict().values()))
    if isinstance(result, Mapping):
        return [part for value in result.values() for part in numbers(value)]
    if isinstance(result, tuple | list):
        return [part for value in result for part in numbers(value)]
    if is_dataclass(result):
        shown = [f.name for f in fields(result) if not f.name.startswith("_")]
        return [part for name in shown for part in numbers(getattr(result, name))]
    return []


def public() -> set[str]:
    """Return the public names of the numerics, as the table calls them."""
    found = set()
    for name in ("similarity", "sensitivity", "directions", "memorisation"):
        package = importlib.import_module(f"replication.{name}")
        found |= {f"{name}.{each}" for each in package.__all__}
    for name in (
        "spectra",
        "directions.resets",
        "activations",
        "sensitivity.trajectories",
        "directions.probe",
        "directions.projection",
    ):
        module = importlib.import_module(f"replication.{name}")
        found |= {
            f"{name}.{each}"
            for each, value in vars(module).items()
            if not each.startswith("_")
            and (inspect.isfunction(value) or inspect.isclass(value))
            and value.__module__ == module.__name__
        }
    return found


def test_the_table_holds_every_public_function():
    tested = {name.split(" ")[0] for name in TABLE}
    assert not tested & set(EXEMPT)
    assert tested | set(EXEMPT) == public()


def test_every_argument_is_described():
    """An argument that is none of the table's kinds is a network, a flag or named here."""
    plain = {
        "model",
        "progress",
        "neurons",
        "layers",
        "scales",
        "steps",
        "first",
        "second",
        "count",
    }
    for name, entry in TABLE.items():
        known = {*entry.arrays, *entry.labels, *entry.integers, *entry.numbers, *entry.choices}
        assert set(entry.arguments()) <= known | plain, name
        assert known <= set(entry.arguments()), name
