"""What notebook 07 measures: similarities of the layers of networks that a dictionary describes.

Similarities are 1 for equal layers; Procrustes enters as 1 - d / 2. Each measuring function takes a
spec of `which_similarity_metric.plan` and trains the networks that it needs, or finds them in the
store; they are described there, too.
"""

import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from replication import activations, data, similarity, training
from replication._core import paths
from replication.directions.probe import keep_components, linear_probe

NOTEBOOK = "07_which_similarity_metric"
LAYERS = {"tiny10": [f"act{i}" for i in range(1, 9)], "mlp": ["act2"]}


def cca_squared(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean of the squared canonical correlations."""
    return similarity.cca(x, y).correlations.square().mean()


def svcca_squared(x: Tensor, y: Tensor) -> Tensor:
    """Return the same after the cut to 99% of the singular values' sum."""
    return similarity.svcca(x, y).correlations.square().mean()


def cca_over_all(x: Tensor, y: Tensor) -> Tensor:
    """Return the sum of the canonical correlations over the larger rank: missing ones are 0."""
    result = similarity.cca(x, y)
    return result.correlations.sum() / max(1, *result.ranks)


def pwcca_over_all(x: Tensor, y: Tensor) -> Tensor:
    """Return PWCCA with a weight for every direction of x; one without a partner counts as 0."""
    result = similarity.cca(x, y)
    x = x - x.mean(0)
    basis = result.x_variates / (len(x) - 1) ** 0.5
    inside = basis.mT @ x
    _, s, vh = torch.linalg.svd(x - basis @ inside, full_matrices=False)
    weights, rest = inside.abs().sum(1), (s[:, None] * vh).abs().sum()
    return (weights * result.correlations).sum() / (weights.sum() + rest)


METRICS = {  # name: metric and options of `similarity.compare`, whether the two orders are averaged
    "CCA ρ": ("cca", {}, False),
    "CCA ρ²": (cca_squared, {}, False),
    "SVCCA ρ": ("svcca", {}, False),
    "SVCCA ρ²": (svcca_squared, {}, False),
    "PWCCA": ("pwcca", {"symmetric": True}, False),
    "regression": ("regression", {}, True),
    "CKA linear": ("cka", {}, False),
    "CKA RBF 0.2": ("cka", {"kernel": "rbf", "sigma": 0.2}, False),
    "CKA RBF 0.4": ("cka", {"kernel": "rbf", "sigma": 0.4}, False),
    "CKA RBF 0.8": ("cka", {"kernel": "rbf", "sigma": 0.8}, False),
    "CKA debiased": ("cka", {"unbiased": True}, False),
    "Procrustes": ("procrustes", {}, False),
    "RSA correlation": ("rsa", {}, False),
    "RSA Euclidean": ("rsa", {"distance": "euclidean"}, False),
    "CCA, missing 0": (cca_over_all, {}, False),
    "PWCCA, missing 0": (pwcca_over_all, {}, True),
}


def similarities(a: Mapping[str, Tensor], b: Mapping[str, Tensor], metric: str) -> np.ndarray:
    """Return the similarity, 1 for equal, of every layer of `a` to every layer of `b`."""
    name, options, both = METRICS[metric]
    with warnings.catch_warnings():
        # Layers of dead units, or with few examples, are part of what is studied.
        warnings.simplefilter("ignore", UserWarning)
        values = similarity.compare(a, b, name, **options).values
        if both:
            values = (values + similarity.compare(b, a, name, **options).values.T) / 2
    values = values.double().cpu().numpy()
    return 1 - values / 2 if metric == "Procrustes" else values


def pooled(output: Tensor) -> Tensor:
    """Return (N, features): the mean over positions of feature maps, or over tokens."""
    return output.mean(1) if output.ndim == 3 else activations.spatial_mean(output)


def whitened(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return a layer in coordinates of variance 1 without correlation, and others in the same."""
    mean = x.mean(0)
    _, s, vh = torch.linalg.svd(x - mean, full_matrices=False)
    axes = (vh / s[:, None])[s > 1e-9 * s[0]].mT * (len(x) - 1) ** 0.5
    return (x - mean) @ axes, (z - mean) @ axes


def layers_of(network: Mapping) -> list[str]:
    """Return the layers that are compared, without the logits and the pooled layer."""
    if network["model"] == "vit":
        blocks = range(1, network["options"]["depth"] + 1)
        return [f"{part}{i}" for i in blocks for part in ("attention", "mlp")]
    return LAYERS[network["model"]]


@functools.lru_cache(maxsize=4)
def _standardised(
    dataset: str, subset: tuple[int, int], reduced: int, device: str
) -> tuple[data.Split, float, float]:
    split = data.load(dataset, subset=subset, device=device)
    if reduced > 1:
        train, test = (
            data.Examples(F.avg_pool2d(part.images, reduced), part.labels)
            for part in (split.train, split.test)
        )
        split = dataclasses.replace(split, train=train, test=test)
    return data.standardise(split)


def standardised(network: Mapping, device: str) -> tuple[data.Split, float, float]:
    """Return the images that a network sees, their mean and standard deviation of pixels."""
    return _standardised(network["dataset"], tuple(network["images"]), network["reduced"], device)


def taught(images: data.Split, classes: str) -> data.Split:
    """Return the images whose classes a network learns: "all", the five "low" or "high" ones."""
    if classes == "all":
        return images
    parts = []
    for part in (images.train, images.test):
        mine = (part.labels < 5) == (classes == "low")
        parts.append(data.Examples(part.images[mine], part.labels[mine]))
    return dataclasses.replace(images, train=parts[0], test=parts[1])


def training_spec(network: Mapping) -> training.Spec:
    """Return what `training` needs to know."""
    same = ("model", "optimizer", "learning_rate", "batch_size", "epochs", "augment", "seed")
    return training.Spec(
        model_options=network["options"],
        optimizer_options=network["momentum"],
        evaluate_every=network["epochs"],
        **{name: network[name] for name in same},
    )


def runs_of(networks: Sequence[Mapping], device: str) -> Iterator[tuple[training.Run, data.Split]]:
    """Yield each network's run, trained or from the store, and the images that it sees."""
    where = {"store": paths.runs() / NOTEBOOK / "networks", "device": device, "progress": False}
    for net in networks:
        images, _, _ = standardised(net, device)
        yield training.fit(training_spec(net), taught(images, net["classes"]), **where), images


def layers_and_labels(
    run: training.Run, images: data.Split, layers: Sequence[str], count: int, device: str
) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Return the layers for the first `count` images and their labels, of training and of test."""
    model = run.model(device=device)
    return [
        (activations.record(model, x.images[:count], layers, reduction=pooled), x.labels[:count])
        for x in (images.train, images.test)
    ]


@functools.lru_cache(maxsize=4)
def _represented(key: str, device: str) -> dict[tuple[int, str], Tensor]:
    """Return (examples, features) tensors by (network, layer); `key` is JSON, see `grid`."""
    networks, layers, count, part, kept = json.loads(key)
    layer_of = {}
    for i, (run, images) in enumerate(runs_of(networks, device)):
        shown, model = getattr(images, part).images[:count], run.model(device=device)
        names = layers[run.spec.model]
        for name, x in activations.record(model, shown, names, reduction=pooled).items():
            if kept is None:
                layer_of[i, name] = x
            for k in kept or ():
                if k <= x.shape[1]:
                    layer_of[i, f"{k} components"] = keep_components(x, k)
    return layer_of


def train(spec: dict, device: str = "auto") -> dict:
    """Train one network; return its accuracies."""
    run, _ = next(runs_of([spec], device))
    last = run.history.iloc[-1]
    return {"train_accuracy": last.train_accuracy, "test_accuracy": last.test_accuracy}


def grid(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Return the similarity of all representations of all networks by one metric.

    `spec` holds networks, layers (by model), examples, part ("train" or "test"), kept (None, or
    numbers of principal components, each of which gives a representation) and metric.
    """
    names = ("networks", "layers", "examples", "part", "kept")
    layer_of = _represented(json.dumps([spec[name] for name in names]), device)
    table = {f"{i} {name}": values for (i, name), values in layer_of.items()}
    values = similarities(table, table, spec["metric"])
    rows = [(*a, *b) for a in layer_of for b in layer_of]
    return pd.DataFrame(rows, columns=["first", "layer", "second", "other"]).assign(
        value=values.ravel()
    )


def depth_of_layers(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Train a plain network; return the CKA of all pairs of its layers, and each layer's probe."""
    net = spec["network"]
    images, _, _ = standardised(net, device)
    run = training.fit(training_spec(net), images, device=device, progress=False)
    names = [f"act{i}" for i in range(1, net["options"]["depth"] - 1)]
    train, test = layers_and_labels(run, images, names, spec["examples"], device)
    values = similarities(train[0], train[0], "CKA linear")
    rows = []
    for i, name in enumerate(names):
        probe = linear_probe(train[0][name], train[1], test[0][name], test[1])
        rows += [
            {"layer": i + 1, "other": j + 1, "value": values[i, j], "probe": probe}
            for j in range(len(names))
        ]
    return pd.DataFrame(rows).assign(accuracy=run.history.test_accuracy.iloc[-1])


def by_task(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Return CKA and deconfounded CKA of one network's layers with three kinds of others."""
    mine, others = spec["seed"], [i for i in range(len(spec["low"])) if i != spec["seed"]]
    layers = LAYERS["tiny10"]
    layer_of = {}
    for kind, task, epoch in (
        ("same task", "low", None),
        ("untrained", "low", 0),
        ("other task", "high", None),
    ):
        for i, (run, images) in enumerate(runs_of(spec[task], device)):
            shown = images.train.images[: spec["examples"]]
            model = run.model(epoch, device)
            layer_of[kind, i] = activations.record(model, shown, layers, reduction=pooled)
    pixels = shown.flatten(1) - shown.flatten(1).mean(0)
    values, vectors = torch.linalg.eigh((pixels @ pixels.mT).double())
    # the kernel of the pixels, in fewer columns
    scores = (vectors * values.clamp_min(0).sqrt()).float()
    rows = []
    for kind in ("same task", "other task", "untrained"):
        for depth, layer in enumerate(layers, 1):
            pairs = [(layer_of["same task", mine][layer], layer_of[kind, i][layer]) for i in others]
            row = {"kind": kind, "depth": depth}
            for column, confounder in (("cka", None), ("deconfounded", scores)):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    row[column] = np.mean(
                        [float(similarity.cka(x, y, confounder=confounder)) for x, y in pairs]
                    )
            rows.append(row)
    return pd.DataFrame(rows)


def low_rank(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Return the similarity of each layer of one network to its versions of lower rank."""
    run, images = next(runs_of([spec["network"]], device))
    model, shown = run.model(device=device), images.train.images[: spec["examples"]]
    recorded = activations.record(model, shown, layers_of(spec["network"]), reduction=pooled)
    rows = []
    for layer, x in recorded.items():
        width = x.shape[1]
        cuts = {str(k): keep_components(x, k) for k in range(1, width)}
        for metric in spec["metrics"]:
            values = similarities({"all": x}, cuts, metric)[0]
            rows += [
                {"layer": layer, "width": width, "metric": metric, "kept": k, "value": value}
                for k, value in enumerate(values, 1)
            ]
    return pd.DataFrame(rows)


def rotated(images: Tensor, degrees: float = 30.0) -> Tensor:
    """Return images turned about their centre, what comes in from outside black."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).to(images).expand(len(images), 2, 3)
    places = F.affine_grid(turn, images.shape, align_corners=False)
    return F.grid_sample(images, places, align_corners=False)


def covered(images: Tensor, first: int = 9, last: int = 19) -> Tensor:
    """Return images with a black square near the centre."""
    images = images.clone()
    images[..., first:last, first:last] = 0
    return images


def noisy(images: Tensor, sigma: float = 0.5) -> Tensor:
    """Return images with one draw of Gaussian noise."""
    source = torch.Generator().manual_seed(0)
    return images + sigma * torch.randn(images.shape, generator=source).to(images.device)


SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "moved by 3 pixels": lambda x: torch.roll(x, (3, -3), (2, 3)),
    "rotated by 30°": rotated,
    "noise, σ 0.5": noisy,
    "contrast x 0.3": lambda x: 0.3 * x,
    "square covered": covered,
}


def members_of(specs: list[dict], device: str = "auto") -> list[dict]:
    """Train members of a population; return their accuracy on the test images and on each shift."""
    images, mean, std = standardised(specs[0], device)
    where = {"store": paths.runs() / NOTEBOOK / "networks", "device": device, "progress": False}
    training.fit_population([training_spec(spec) for spec in specs], images, **where)
    raw = images.test.images * std + mean
    rows = []
    for run, _ in runs_of(specs, device):
        model = run.model(device=device)
        row = {"in_distribution": training.evaluate(model, images.test)[1]}
        for name, shift in SHIFTS.items():
            shifted = data.Examples((shift(raw) - mean) / std, images.test.labels)
            row[name] = training.evaluate(model, shifted)[1]
        rows.append(row)
    return rows


def probes(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Return the accuracy of linear probes of one network's layers, cut to each number in kept."""
    names = layers_of(spec["network"])[spec["from"] :]
    run, images = next(runs_of([spec["network"]], device))
    (train, labels), (test, truth) = layers_and_labels(run, images, names, spec["examples"], device)
    rows = []
    for name in names:
        x, z = train[name], test[name]
        versions = {name: (x, z)}
        if spec["kept"]:
            kept = [k for k in spec["kept"] if k <= x.shape[1]]
            versions = {f"{k} components": keep_components(x, k, z) for k in kept}
        for layer, (fitted, held_out) in versions.items():
            probe = linear_probe(fitted, labels, held_out, truth)
            rows.append({"layer": layer, "probe": probe})
    return pd.DataFrame(rows)


def few_examples(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Return similarities of one flattened layer in two networks, examples matched and shuffled."""
    layer, most = spec["layer"], max(spec["counts"])
    x, y = (
        activations.record(
            run.model(device=device), images.train.images[:most], [layer], reduction="flatten"
        )[layer]
        for run, images in runs_of(spec["networks"], device)
    )
    rows = []
    for count in spec["counts"]:
        source = torch.Generator().manual_seed(spec["seed"])
        order = torch.randperm(count, generator=source).to(x.device)
        for kind, second in (("matched", y[:count]), ("shuffled", y[:count][order])):
            for metric in spec["metrics"]:
                value = similarities({"x": x[:count]}, {"y": second}, metric)[0, 0]
                row = {"examples": count, "features": second.shape[1], "kind": kind}
                rows.append(row | {"metric": metric, "value": value})
    return pd.DataFrame(rows)


def moved_points(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Return the similarity of a layer to itself with points moved, and the probe's accuracy."""
    run, images = next(runs_of([spec["network"]], device))
    (train, labels), (test, truth) = layers_and_labels(
        run, images, LAYERS["tiny10"][-1:], spec["examples"], device
    )
    x, z = (next(iter(layer.values())).double() for layer in (train, test))
    source = torch.Generator().manual_seed(spec["network"]["seed"])
    direction = torch.randn(x.shape[1], generator=source, dtype=x.dtype).to(x.device)
    direction *= (x - x.mean(0)).square().sum(1).mean().sqrt() / direction.norm()
    halves = [(torch.rand(len(v), generator=source) < 0.5).to(v)[:, None] for v in (x, z)]
    rows = []
    for distance in spec["distances"]:
        step = distance * direction
        subset = [v + half * step for v, half in zip((x, z), halves, strict=True)]
        outlier = x.clone()
        outlier[0] += step
        white, held_out = whitened(*subset)
        values = {("subset", "probe"): linear_probe(white, labels, held_out, truth)}
        for change, after in (("subset", subset[0]), ("one example", outlier)):
            for metric in spec["metrics"]:
                values[change, metric] = similarities({"x": x}, {"y": after}, metric)[0, 0]
        rows += [
            {"change": change, "metric": metric, "value": value, "distance": distance}
            for (change, metric), value in values.items()
        ]
    return pd.DataFrame(rows)
