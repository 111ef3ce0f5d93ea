"""Make the golden numbers of each part of the package: ``python tests/golden/make.py [PART ...]``.

Numbers change only with the part's ``VERSION``: it then is raised, and the files are made anew.
"""

import importlib
import json
import sys
from pathlib import Path

import torch

from replication import (
    activations,
    data,
    directions,
    memorisation,
    models,
    sensitivity,
    similarity,
    spectra,
    training,
)
from replication.memorisation import blocked
from replication.memorisation.features import gabor_features

FOLDER = Path(__file__).parent


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def split(count=120, side=8):
    images = normal(count, 1, side, side)
    labels = (images.mean((1, 2, 3)) > 0).long() + (images[:, 0, 0, 0] > 0).long()
    half = count // 2
    parts = (data.Examples(images[i : i + half], labels[i : i + half]) for i in (0, half))
    return data.Split(*parts, "made", ("a", "b", "c"), "made")


def network(**options):
    return models.build("mlp", 0, torch.float64, inputs=64, classes=3, widths=(10, 8), **options)


def similarity_numbers():
    x, y = normal(400, 8), normal(400, 6, seed=1)
    y[:, :4] += 2 * x[:, :4]
    fx, fy = normal(40, 5, 4, 4), normal(40, 3, 4, 4, seed=1) + normal(40, 5, 4, 4)[:, :3]
    return {
        "cca": similarity.cca(x, y).correlations,
        "svcca": similarity.svcca(x, y, dims=4).correlations,
        "pwcca": similarity.pwcca(x, y),
        "linear": similarity.cka(x, y),
        "rbf": similarity.cka(x, y, kernel="rbf", sigma=1.0),
        "unbiased": similarity.cka(x, y, unbiased=True),
        "procrustes": similarity.procrustes(x, y),
        "fourier": similarity.dft_cca(fx, fy).mean,
    }


def sensitivity_numbers():
    model, images = network(), normal(6, 64, seed=2)
    path = sensitivity.trajectories.polyline(images[:3])
    transitions = sensitivity.transitions(model, path)
    return {
        "softmax": sensitivity.jacobian_norm(model, images),
        "logits": sensitivity.jacobian_norm(model, images, output="logits"),
        "transitions": transitions.total,
        "positions": transitions.positions[:5],
        "regions": sensitivity.region_map(model, *images[:3], 40).count,
    }


def directions_numbers():
    model, made = network(), split()
    x, y = made.train.images, made.train.labels
    layers = activations.record(model, x)
    name = next(iter(layers))
    curve = directions.cumulative_ablation(model, x, y, [name], orders=2)
    return {
        "selectivity": directions.class_selectivity(layers[name], y).index,
        "information": directions.mutual_information(layers[name], y),
        "auc": curve.auc,
    }


def memorisation_numbers():
    made = split()
    x, y = made.train.images.flatten(1), made.train.labels
    least, path = memorisation.minimum_norm_solution(x, y), [0, 10, 50]
    stochastic = memorisation.gradient_descent_path(x, y, path, batch_size=5)
    kernel = blocked.gaussian(blocked.squared_distances(x.split(9, 1), 40), 40)
    interpolant = blocked.interpolate(kernel[:40], normal(40, 2))
    network = memorisation.finite_sample_network(x, y)
    return {
        "least norm": least[:5],
        "descent": stochastic.distance,
        "kernel": interpolant(kernel[40:])[:5],
        "network": network(x[:5] + 0.1),
        "features": memorisation.random_conv_features(made.train.images[:2], 3, size=3)[:, ::4],
        "Gabor": gabor_features(made.train.images[:2], grid=1),
    }


def spectra_numbers():
    spectrum = spectra.noise_spectrum(network(), normal(3, 1, 8, 8, seed=3), 0.2, 8)
    return {k: v[:, :3] for k, v in spectrum.singular_values.items()}


def activations_numbers():
    model = models.build("tiny10", 0, torch.float64, width=0.25, channels=1)
    return {k: v.mean() for k, v in activations.record(model, normal(2, 1, 12, 12)).items()}


def data_numbers():
    made = split()
    x, y = made.train.images, made.train.labels
    return {
        "labels": data.corrupt_labels(y, 0.5, 3, seed=1).double(),
        "pixels": data.corrupt_images(x, "shuffled_pixels", 1)[0, 0, 0],
        "noise": data.corrupt_images(x, "gaussian", 1)[0, 0, 0],
        "standardised": data.standardise(made)[0].train.images[0, 0, 0],
    }


def models_numbers():
    sizes = {"mnist_convnet": 28, "small_alexnet": 28, "small_inception": 28}
    numbers = {}
    for name in sorted(set(models.MODELS) - {"mlp", "row_lstm"}):
        model = models.build(name, 0, torch.float64)
        channels = 1 if name == "mnist_convnet" else 3
        side = sizes.get(name, 32)
        numbers[name] = model.eval()(normal(1, channels, side, side))[0, :3].detach()
    return numbers


def training_numbers():
    common = {"model_options": {"inputs": 64, "classes": 3, "widths": [10, 8]}, "model": "mlp"}
    common |= {"dtype": "float64", "epochs": 2, "batch_size": 16, "learning_rate": 0.01}
    numbers = {}
    for name, changed in {
        "SGD": {"optimizer_options": {"momentum": 0.9}, "schedule": "cosine"},
        "Adam": {"optimizer": "Adam", "label_corruption": 0.5},
        "augmented": {"augment": {"shift": 1, "flip": 0.5}},
    }.items():
        run = training.fit(training.Spec(**common | changed), split(), progress=False)
        numbers[name] = torch.tensor(run.history.iloc[-1].tolist())
    return numbers


PARTS = tuple(path.removesuffix("_numbers") for path in list(globals()) if "_numbers" in path)


def numbers(part):
    """Return the part's version and its numbers as lists."""
    values = globals()[f"{part}_numbers"]()
    flat = {
        k: torch.as_tensor(v, dtype=torch.float64).flatten().tolist() for k, v in values.items()
    }
    return {"version": importlib.import_module(f"replication.{part}").VERSION, "numbers": flat}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for part in sys.argv[1:] or PARTS:
        made = numbers(part)
        lines = ",\n".join(
            f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in made["numbers"].items()
        )
        text = f'{{"version": {made["version"]}, "numbers": {{\n{lines}\n}}}}\n'
        (FOLDER / f"{part}.json").write_text(text, encoding="utf-8")
