"""All cases; here those of directions, spectra, memorisation and of whole networks."""

import copy
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks._gpu_inputs import (
    CONVOLUTION,
    EVALUATED,
    ONE_FLIP,
    Case,
    Place,
    convnet,
    draw,
    labels,
    layers,
    maps,
    mlp,
    pictures,
    scaled,
    states,
)
from benchmarks._gpu_sensitivity_cases import sensitivity_cases
from benchmarks._gpu_similarity_cases import similarity_cases
from benchmarks.populations import images as random_split
from replication import activations, directions, memorisation, spectra, training
from replication.directions import resets
from replication.papers import own_models

_RESULT = "what a function with cases returns"
# Public names of the numerics without a case, and why.
EXEMPT = {
    **dict.fromkeys(
        [
            *("similarity.CCAResult", "similarity.FourierCCAResult", "similarity.SimilarityGrid"),
            *("sensitivity.CrossEntropyBounds", "sensitivity.OutputCurve"),
            *("sensitivity.PlaneRegions", "sensitivity.RegionMap", "sensitivity.Transitions"),
            *("directions.AblationCurve", "directions.NoiseCurve", "directions.Selectivity"),
            *("directions.UnitAblation", "memorisation.FiniteSampleNetwork"),
            "memorisation.GradientDescentPath",
            *("spectra.NoiseSpectrum", "directions.resets.Distance"),
            "directions.projection.Projection",
            *("training.Run", "papers.own_models.Pretrained"),
        ],
        _RESULT,
    ),
    "sensitivity.trajectories": "a module, whose functions have cases",
    "directions.probe": "a module, whose functions have cases",
    "directions.projection": "a module, whose functions have cases",
    "directions.resets": "a module, whose functions have cases",
    "activations.evaluating": "switches modes and computes nothing",
    "activations.taking_integers": "words an error and computes nothing",
    "activations.save": "writes files",
    "activations.load": "reads files; what they hold stays on the CPU",
    "training.Spec": "what to train, no numbers",
    "training.training_labels": "integers drawn on the CPU for every device",
    "papers.own_models.find": "imports a function",
    "papers.own_models.read_image": "reads files",
    "papers.own_models.batches": "iterates over a data set",
    "papers.own_models.load_dataset": "reads files",
    "papers.own_models.pretrained": "downloads weights; they stay on the CPU",
    "papers.own_models.torchvision": "imports a library",
    "papers.own_models.choose_device": "names a device",
}


def directions_cases() -> Iterator[Case]:
    """Yield the cases of the directions package and of the noise spectra."""
    nets = {"MLP": (mlp, 6, ["fc1", "fc2"]), "convnet": (convnet, 10, ["conv1", "conv2"])}
    for kind, (network, size, names) in nets.items():
        for name, run in {
            "cumulative_ablation": _ablated,
            "noise_curve": _noisy,
            "unit_ablation": _unit_ablated,
        }.items():
            yield Case(
                f"directions.{name}",
                kind,
                lambda at, run=run, network=network, size=size, names=names: run(
                    at(network()), at(pictures(64, size)), at(labels()), names
                ),
                1e-8,
                ONE_FLIP,
                name == "noise_curve",
            )
    for name in ("class_selectivity", "mutual_information"):
        run = partial(_selective, name)  # in float32 a value may fall into the next bin
        loose = 1e-2 if name == "mutual_information" else 1e-4
        yield Case(f"directions.{name}", "dead units, a class missing", run, float32=loose)
    groups = draw(3, 8, 30)
    groups[0, 4:] = groups[0, :4]
    groups[1] = 0
    yield Case(
        "spectra.group_singular_values",
        "rank 4, rank 0",
        lambda at: spectra.group_singular_values(at(groups)),
        1e-7,  # of a rank-deficient group by its Gram matrix: the root of the unit of precision
        1e-3,
    )
    yield Case(
        "spectra.projected_variance",
        "",
        lambda at: (spectra.projected_variance(at(draw(3, 8, 30))),),
    )
    yield Case(
        "spectra.explained_variance",
        "",
        lambda at: (spectra.explained_variance(at(draw(4, 8).abs().sort(descending=True)[0])),),
    )
    for perturb, loose in (("gaussian", EVALUATED), ("fgsm", 0.1)):  # signs of gradients near 0
        yield Case(
            "spectra.noise_spectrum",
            f"convnet, {perturb}",
            partial(_spectrum, perturb),
            1e-7 if perturb == "gaussian" else 1e-3,
            loose,
        )


def _ablated(model: nn.Module, x: Tensor, y: Tensor, names: list[str]) -> list[Tensor]:
    return [
        directions.cumulative_ablation(model, x, y, names, 3, clamp).accuracy
        for clamp in ("zero", "mean")
    ]


def _noisy(model: nn.Module, x: Tensor, y: Tensor, names: list[str]) -> list[Tensor]:
    return [directions.noise_curve(model, x, y, names, [0.0, 0.5], draws=2).accuracy]


def _unit_ablated(model: nn.Module, x: Tensor, y: Tensor, names: list[str]) -> list[Tensor | float]:
    found = directions.unit_ablation(model, x, y, names)
    return [found.accuracy, found.loss, found.baseline_loss]


def _selective(name: str, at: Place) -> list[Tensor]:
    acts, y = at(layers("degenerate")[0]).relu(), at(labels(400, 4)) * 2
    if name == "mutual_information":
        return [directions.mutual_information(acts, y)]
    found = directions.class_selectivity(acts, y)
    return [found.index, found.dead, found.class_means]


def _spectrum(perturb: str, at: Place) -> list[Tensor]:
    x = at(pictures(3, 10))
    # away from a class that is not the model's: no gradient then rounds to 0
    y = at(labels(3))
    found = spectra.noise_spectrum(at(convnet()), x, 0.05, 8, perturb=perturb, labels=y)
    return [*found.singular_values.values(), *found.centred.values()]


def memorisation_cases() -> Iterator[Case]:
    """Yield the cases of the memorisation package."""
    x, y = draw(40, 12), draw(40, 3, seed=3)
    tall = torch.cat([x, x[:, :2]], 1)  # copies: many solutions

    def descent(at: Place) -> list[Tensor]:
        found = memorisation.gradient_descent_path(at(x.T), at(y[:12]), [10, 100])
        return [found.distance, found.weights]

    def network(at: Place) -> list[Tensor]:
        found = memorisation.finite_sample_network(at(pictures(20)), at(labels(20, 2)))
        return [found.a, found.w]

    yield Case("memorisation.gradient_descent_path", "", descent, 1e-8, 1e-3)
    yield Case("memorisation.finite_sample_network", "", network, 1e-8, 1e-2)
    yield Case(
        "memorisation.minimum_norm_solution",
        "copied features",
        lambda at: (memorisation.minimum_norm_solution(at(tall), at(y)),),
        1e-8,
        1e-3,
    )
    yield Case(
        "memorisation.random_conv_features",
        "",
        lambda at: (memorisation.random_conv_features(at(draw(30, 3, 12, 12)), 8, 4),),
        1e-8,
        1e-2,
    )


def network_cases() -> Iterator[Case]:
    """Yield the cases of recording, resetting, loading and training networks."""
    x = pictures(40, 10)
    yield Case("activations.flatten", "", lambda at: (activations.flatten(at(maps()[0])),))
    yield Case(
        "activations.spatial_mean", "", lambda at: (activations.spatial_mean(at(maps()[0])),)
    )
    for function, record in {
        "activations.record": lambda model, x: activations.record(model, x, batch_size=16),
        "activations.batches": lambda model, x: next(activations.batches(model, x, batch_size=64)),
        "papers.own_models.record": lambda model, x: own_models.record(
            model, torch.utils.data.TensorDataset(x.cpu()), progress=False
        ),
    }.items():
        yield Case(
            function,
            "convnet",
            lambda at, record=record: list(record(at(convnet()), at(x)).values()),
            float32=EVALUATED,
        )
    yield Case("papers.own_models.load", "convnet", _loaded, float32=CONVOLUTION)
    yield Case("papers.own_models.units", "", lambda at: (own_models.units(at(maps()[0])),))
    other = scaled(convnet(), 3)
    yield Case(
        "directions.resets.reset",
        "convnet",
        lambda at: states(resets.reset(at(convnet()), other.state_dict(), ["fc"])),
    )
    yield Case("directions.resets.weight_distance", "convnet", partial(_distance, other))
    mlp_spec = {"model": "mlp", "model_options": {"inputs": 36, "widths": (16,)}}
    conv_spec = {"model": "mnist_convnet", "model_options": {"channels": (4, 6)}}
    for kind, settings, loose in (("MLP", mlp_spec, 1e-3), ("convnet", conv_spec, 2e-2)):
        for name in ("fit", "fit_population", "evaluate"):
            yield Case(
                f"training.{name}",
                f"{kind}, 10 steps",
                partial(_trained, name, settings),
                1e-8,
                loose,
            )


def _loaded(at: Place) -> list[Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        safetensors.torch.save_file(at(convnet()).cpu().state_dict(), path)
        model, _ = own_models.load(path, lambda: copy.deepcopy(at(convnet()).cpu()), str(at.device))
    with torch.no_grad():
        return [model(at(pictures(8, 10)))]


def _distance(other: nn.Module, at: Place) -> list[float]:
    found = resets.weight_distance(at(convnet()).state_dict(), other.state_dict(), ["conv1", "fc"])
    return [found.l2, found.linf, found.rms]


def _trained(name: str, settings: dict, at: Place) -> list[Tensor | float]:
    split = random_split(6 if settings["model"] == "mlp" else 28, 80)
    dtype = str(at.dtype).removeprefix("torch.")
    specs = [
        training.Spec(
            **settings, seed=seed, dtype=dtype, batch_size=16, epochs=2, learning_rate=rate
        )
        for seed, rate in enumerate((0.05, 0.1))
    ]
    where = {"device": str(at.device), "progress": False}
    if name == "fit_population":
        runs = training.fit_population(specs, split, **where)
    else:
        runs = [training.fit(specs[0], split, **where)]
    if name == "evaluate":
        images = split.test.images.to(at.device, at.dtype)
        test = type(split.test)(images, split.test.labels.to(at.device))
        return [training.evaluate(runs[0].model(device=str(at.device)), test)[0]]
    return [value for run in runs for value in states(run.model(device=str(at.device)))]


def cases() -> list[Case]:
    """Return all of them."""
    return [
        *similarity_cases(),
        *sensitivity_cases(),
        *directions_cases(),
        *memorisation_cases(),
        *network_cases(),
    ]
