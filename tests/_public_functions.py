"""Every public function of the numerics, with what makes valid input for it.

`test_public_functions.py` holds the table against the modules and runs properties over it. Of what
kind an argument is, its value tells: floats are an array, integers labels, a number or a name is
one, and the rest is a network, a flag, a list or a mapping.
"""

import pkgutil
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from replication import sensitivity, similarity
from replication.directions import resets

N = 14  # examples
MEMORY = 2**20  # bytes

# Wrong values by the name of an argument, or else by the type of a right one.
NO_NAMES = (["nothing of the kind"], [3], 3)
WRONG = {
    "null": (-1, 1.5),
    "seed": (1.5, "3"),
    "count": (-1, 1.5),
    "layers": NO_NAMES,
    "scales": (["a"], [-1.0], [torch.nan], 3),
    int: (0, 1.5, True),
    float: (-1.0, torch.nan, torch.inf, "a", None),
    str: ("nothing of the kind", 3),
}
NOT_POSITIVE = (0.0, *WRONG[float])
BELOW_0, BELOW_2, BELOW_3 = (-1, 1.5), (1, 2.5), (2, 3.5)


class Entry:
    """A function, called by keyword, and what is known of its arguments.

    Of `arguments`, a shape stands for an array of normal numbers, and a function for what it draws
    from a generator. `degrees` says, where it is known, by which power of an argument's scale the
    result grows; `floating` is an array that may not hold integers; `wrong` has the wrong values of
    arguments that `WRONG` does not know; `told` is what a message calls an argument where it is not
    its name; `outputs` says that the outputs of the model are checked.
    """

    def __init__(
        self,
        name: str,
        call: Callable | None = None,
        *,
        degrees: Mapping[str, float] | None = None,
        floating: str = "",
        wrong: Mapping[str, tuple] | None = None,
        told: Mapping[str, str] | None = None,
        outputs: bool = False,
        **arguments: object,
    ) -> None:
        self.name, self.floating, self.outputs = name, floating, outputs
        self.call = call or pkgutil.resolve_name("replication." + ":".join(name.rsplit(".", 1)))
        self.degrees, self.wrong, self.told = degrees or {}, wrong or {}, told or {}
        self.given = arguments

    def arguments(self) -> dict:
        """Return valid arguments, arrays as float64 tensors; the same at every call."""
        g = torch.Generator().manual_seed(0)

        def value(given: object) -> object:
            if isinstance(given, tuple):
                return normal(g, *given)
            return given(g) if callable(given) else given

        return {name: value(given) for name, given in self.given.items()}

    def tensors(self, floating: bool) -> dict[str, Tensor]:
        arguments = {k: v for k, v in self.arguments().items() if isinstance(v, Tensor)}
        return {k: v for k, v in arguments.items() if v.is_floating_point() == floating}

    def arrays(self) -> dict[str, Tensor]:
        return self.tensors(True)

    def labels(self) -> dict[str, Tensor]:
        return self.tensors(False)

    def scaled(self) -> Mapping[str, float]:
        return self.degrees

    def wrong_values(self) -> dict[str, tuple]:
        known = {k: WRONG.get(k, WRONG.get(type(v))) for k, v in self.given.items()} | self.wrong
        return {k: values for k, values in known.items() if values}


def normal(g, *shape):
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def positive(*shape, offset=0.0):
    return lambda g: offset + normal(g, *shape).abs()


def network(g):
    """Return a small network of ReLUs, float64, in training mode."""
    layers = [nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(normal(g, *p.shape) / p.shape[-1] ** 0.5)
    return model


def state(g):
    return dict(network(g).state_dict())


def classes(g):
    """Return labels of 3 classes, each of which occurs."""
    return torch.cat([torch.arange(3), torch.randint(3, (N - 3,), generator=g)])


def triangle(g):
    return torch.tensor([[0, 0], [1, 0], [1, 1]], dtype=torch.float64)


def accumulated(x, y, metric):
    total = similarity.Accumulator()
    total.update(x, y)
    return total.result(metric)


def compared(x, y, **more):
    return similarity.compare({"first": x}, {"second": y}, **more)


def inside(row_norms, lower, upper, tolerance):
    bounds = sensitivity.CrossEntropyBounds(lower, upper, lower)
    return sensitivity.fraction_inside(row_norms, bounds, tolerance=tolerance)


XY = {"x": (N, 3), "y": (N, 4), "degrees": {"x": 0, "y": 0}}
IMAGES = {"model": network, "images": (N, 3)}
LABELLED = {**IMAGES, "labels": classes, "outputs": True}
ABLATION = {**LABELLED, "batch_size": 5, "floating": "images"}
JACOBIAN = {"output": "softmax", "memory": MEMORY, "outputs": True}
PLANE = {"model": network, "a": (3,), "b": (3,), "c": (3,), "margin": 0.25, "memory": MEMORY}
PATH = {"model": network, "path": (N, 3)}
STATES = {"model": network, "first": state, "second": state, "layers": ["0", "2"]}
LINEAR = {"features": (N, 3), "targets": (N,)}

# A row a function.
# fmt: off
ENTRIES = (
    Entry("similarity.cca", **XY, null=1, seed=0),
    Entry("similarity.svcca", **XY, variance=0.99, dims=None, null=1, seed=0,
          wrong={"variance": (*NOT_POSITIVE, 1.1), "dims": WRONG[int]}),
    Entry("similarity.pwcca", **XY),
    Entry("similarity.cka", **{**XY, "degrees": {"x": 0, "y": 0, "confounder": 0}},
          confounder=(N, 3), kernel="linear", sigma=0.5, wrong={"sigma": NOT_POSITIVE}),
    Entry("similarity.cka (rbf)", lambda x, y: similarity.cka(x, y, "rbf", unbiased=True), **XY),
    Entry("similarity.procrustes", **XY),
    Entry("similarity.linear_regression_r2", **XY),
    Entry("similarity.ridge_r2", **XY, folds=3, seed=0, wrong={"folds": BELOW_2}),
    Entry("similarity.mutual_knn", **XY, k=2),
    Entry("similarity.unit_matching", **XY),
    Entry("similarity.rsa", **XY, distance="euclidean"),
    Entry("similarity.rsa (correlation)", similarity.rsa, **{**XY, "x": (N, 5)}),
    Entry("similarity.dft_cca", **{**XY, "x": (N, 2, 2, 3), "y": (N, 2, 3, 2)}),
    Entry("similarity.minibatch_cka", lambda x, y: similarity.minibatch_cka([(x, y), (x, y)]),
          **XY),
    Entry("similarity.compare", compared, **XY, metric="cca", conv="spatial_mean", null=1, seed=0,
          told={"x": "acts_a['first']", "y": "acts_b['second']"}),
    Entry("similarity.Accumulator", accumulated, **XY, metric="pwcca"),
    Entry("directions.probe.linear_probe", train=(N, 3), train_labels=classes, test=(N, 3),
          test_labels=classes, penalty=0.1, iterations=20),
    Entry("directions.projection.onto_directions", x=(N, 3), directions=(3, 2)),
    Entry("directions.projection.onto_neurons", x=(N, 3), neurons=[0, 2]),
    Entry("directions.resets.reset",
          lambda first, second, model, layers: resets.reset(model, first, layers), **STATES),
    Entry("directions.resets.weight_distance", lambda model, **more: resets.weight_distance(**more),
          **STATES),
    Entry("sensitivity.jacobian_norm", **IMAGES, **{**JACOBIAN, "output": "logits"}),
    Entry("sensitivity.jacobian_row_norm", **LABELLED | JACOBIAN),
    Entry("sensitivity.spectral_norm", **IMAGES | JACOBIAN, tolerance=1e-6, iterations=500, seed=0,
          wrong={"tolerance": (*NOT_POSITIVE, 1.0)}),
    Entry("sensitivity.finite_difference_norm", **IMAGES | JACOBIAN, step=1e-3, directions=4,
          seed=0, wrong={"step": NOT_POSITIVE}),
    Entry("sensitivity.cross_entropies", logits=(N, 3), labels=classes, floating="logits"),
    Entry("sensitivity.cross_entropy_bounds", cross_entropy=positive(N), mean_square=positive(N),
          classes=5, degrees={"mean_square": 0.5}, floating="cross_entropy",
          wrong={"classes": BELOW_2}),
    Entry("sensitivity.mean_square_gradient", logit_norms=positive(N), classes=5,
          degrees={"logit_norms": 2}),
    Entry("sensitivity.fraction_inside", inside, row_norms=positive(N), lower=positive(N),
          upper=positive(N, offset=4.0), tolerance=1e-5,
          told={"lower": "bounds.lower", "upper": "bounds.upper"}),
    Entry("sensitivity.nearest_boundary", model=network, points=(N, 3), memory=MEMORY,
          directions=(N, 3), degrees={"directions": 0}),
    Entry("sensitivity.output_curve", **PATH, memory=MEMORY),
    Entry("sensitivity.transitions", **PATH, memory=MEMORY, k=64, method="sampled", progress=False,
          wrong={"k": BELOW_2}),
    Entry("sensitivity.transitions (exact)", sensitivity.transitions, **PATH, progress=False),
    Entry("sensitivity.region_map", **PLANE, resolution=5),
    Entry("sensitivity.plane_regions", **PLANE, polygon=triangle),
    Entry("sensitivity.trajectories.polyline", points=(N, 3), degrees={"points": 1}),
    Entry("sensitivity.trajectories.translations", image=(4, 5), shifts=3, degrees={"image": 1},
          wrong={"shifts": BELOW_2}),
    Entry("sensitivity.trajectories.ellipse", **dict.fromkeys("abc", (3,)), vertices=6,
          wrong={"vertices": BELOW_3}),
    Entry("sensitivity.trajectories.random_ellipse", images=(N, 3), vertices=6, seed=0,
          degrees={"images": 1}, wrong={"vertices": BELOW_3}),
    Entry("sensitivity.trajectories.sample", path=(N, 3), k=7, degrees={"path": 1}),
    Entry("directions.cumulative_ablation", **ABLATION, layers="1", orders=2, clamp="mean", seed=0),
    Entry("directions.unit_ablation", **ABLATION, layers=["1", "3"], clamp="zero"),
    Entry("directions.noise_curve", **ABLATION, layers=["1"], scales=[0, 0.5], draws=2, seed=0,
          per="std"),
    Entry("directions.class_selectivity", acts=positive(N, 3), labels=classes),
    Entry("directions.mutual_information", acts=(N, 3), labels=classes, bins=3, degrees={"acts": 0},
          wrong={"bins": BELOW_2}),
    Entry("memorisation.finite_sample_network", images=(N, 3), labels=(N,), seed=0,
          wrong={"seed": BELOW_0}),
    Entry("memorisation.gradient_descent_path", **LINEAR, steps=[0, 3], seed=0,
          wrong={"seed": BELOW_0, "steps": (["a"], [-1], [], 3, None, [1.5])}),
    Entry("memorisation.minimum_norm_solution", **LINEAR, degrees={"features": -1, "targets": 1}),
    Entry("memorisation.random_conv_features", images=(N, 2, 5, 5), filters=3, size=2, seed=0,
          grid=1, floating="images", wrong={"seed": BELOW_0}),
    Entry("spectra.explained_variance", singular_values=positive(N, 3),
          degrees={"singular_values": 0}),
    Entry("spectra.group_singular_values", groups=(N, 3, 12), degrees={"groups": 1},
          floating="groups"),
    Entry("spectra.projected_variance", groups=(N, 3, 12), degrees={"groups": 0},
          floating="groups"),
    Entry("spectra.noise_spectrum", **LABELLED, layers=["input", "1"], sigma=0.1, copies=3,
          perturb="fgsm", steps=2, seed=0, images_per_batch=2, wrong={"copies": BELOW_2}),
    Entry("activations.record", **IMAGES, layers=["0", "3"], batch_size=5, reduction=None,
          floating="images", wrong={"reduction": WRONG[str]}),
)
# fmt: on
TABLE = {entry.name: entry for entry in ENTRIES}

# Public, and not in the table: results, modules, and what other functions check.
EXEMPT = {
    "similarity": "CCAResult FourierCCAResult SimilarityGrid",
    "sensitivity": "CrossEntropyBounds OutputCurve PlaneRegions RegionMap Transitions trajectories",
    "directions": "AblationCurve NoiseCurve Selectivity UnitAblation probe projection resets",
    "directions.projection": "Projection projected",
    "directions.resets": "Distance",
    "memorisation": "FiniteSampleNetwork GradientDescentPath",
    "spectra": "NoiseSpectrum",
    "activations": "batches evaluating flatten load save spatial_mean taking_integers",
}
