"""What notebook 08 measures: layers reset, regions counted, functions of equal train loss compared.

Each function takes the spec of one network, which holds all that decides its result.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replication import data, memorisation, models, sensitivity, sweeps, training
from replication._core import paths
from replication._core.inputs import choose_device
from replication.directions.resets import reset, weight_distance
from replication.papers.experiment import network_key
from replication.sensitivity import trajectories

NOTEBOOK = "08_layers_and_regions"
WHOLE, SINGLE, JOINT = "trained", "single", "joint"
MEASURES = ("jacobian", "logit_jacobian", "transitions")
TRUE, RANDOM = 0.0, 1.0  # shares of corrupted labels
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.5)  # of the training, at which weights are kept
HE, ZERO, TORCH = "He normal, small biases", "He normal, no biases", "torch's default"
STARTS = {HE: {"init": "he", "bias_sd": 0.001}, ZERO: {"init": "he"}, TORCH: {}}
SQUARE = 1.25  # half a side of a plane's square, in circumradii
AUGMENT = {"shift": 4, "flip": 0.5}
METHODS = SGD, LAST, FULL = ("all layers by SGD", "random features by SGD", "full batches")
FULL_BATCH = 256  # width of the networks trained by full batches
SIZES = (0.125, SQUARE, 12.5)  # the same, of networks before training
_ROWS = (  # all columns that a table has, also where nothing is measured
    "kind layer position share seed network dataset images labels width depth neurons epoch rate "
    "start method state line linear distance origin regions lost lost_train test_accuracy "
    "train_accuracy train_loss rms linf l2 jacobian logit_jacobian transitions part polygon x y "
    "count certified met split merged"
)
COLUMNS = [*_ROWS.split(), *(f"plane {size:g}" for size in SIZES)]
HIDDEN = ["training", "options"]  # settings of networks that no table shows


@sweeps.named_by_spec
@functools.lru_cache(maxsize=6)
def _images(dataset: str, images: int, test: int, standardised: bool) -> data.Split:
    split = data.load(dataset, subset=(images, test))
    if (images, test) == split.available:
        split = data.load(dataset)  # in the order of the files
    return data.standardise(split)[0] if standardised else split


@sweeps.named_by_spec
def split_of(net: Mapping) -> data.Split:
    """Return the data a network is trained on: pixels raw, or by global mean and deviation."""
    return _images(net["dataset"], net["images"], net["test_images"], net["standardised"])


@sweeps.named_by_spec
def network(net: Mapping, device: str = "auto") -> training.Run:
    """Return a network, trained or from the store."""
    spec, store = training.Spec(**net["training"]), paths.runs() / "networks"
    return training.fit(spec, split_of(net), store=store, device=device, progress=False)


def named(net: Mapping) -> dict:
    """Return what a spec says of a network: its settings, and the key of its training."""
    spec = training.Spec(**net["training"])
    return {"net": net, "network": network_key(net, lambda: spec.key(split_of(net)), NOTEBOOK)}


def _net(scale: Mapping, seed: int, labels: float, about: Mapping, recipe: Mapping) -> dict:
    """Return a network by its settings and key; `about` it, and the `recipe` of its training."""
    images, test = scale["images"]
    net = {"images": images, "test_images": test, "seed": seed, "labels": labels} | about
    usual = {"seed": seed, "label_corruption": labels, "batch_size": _batch(images)}
    training = usual | {"evaluate_every": recipe["epochs"], "freeze": {}} | recipe
    return named(net | {"training": training})


def _batch(images: int) -> int:
    return 128 if images >= 5000 else 32


def zhang(scale: Mapping, rate: float = 0.05) -> dict:
    """Return the recipe of the paper's appendix A, which does not state the first rate."""
    epochs = scale["epochs"]
    recipe = {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9}, "learning_rate": rate}
    recipe |= {"schedule": "steps", "decay": 0.2, "epochs": epochs}
    return recipe | {"checkpoints": [share * epochs for share in SHARES]}


def fcns(scale: Mapping, dataset: str, width: int, depth: int = 3, labels: float = TRUE) -> list:
    """Return fully connected networks of hidden layers of one width, torch's initial weights."""
    inputs = 3072 if "cifar" in dataset else 784
    options = {"inputs": inputs, "widths": [width] * depth}
    recipe = zhang(scale) | {"model": "mlp", "model_options": options}
    if inputs == 3072:
        recipe["augment"] = AUGMENT
    about = {"dataset": dataset, "standardised": True, "width": width, "depth": depth}
    return [_net(scale, seed, labels, about, recipe) for seed in range(scale["seeds"])]


def convnets(
    scale: Mapping, dataset: str, precision: str, labels: float = TRUE, frozen: Sequence[str] = ()
) -> list:
    """Return ResNets, or plain convnets where the depth is 0, without batch normalisation."""
    resnet = {"model": "resnet", "learning_rate": 0.02, "freeze": dict.fromkeys(frozen, 0)}
    plain = {"model": "morcos_convnet", "learning_rate": 0.01}
    options = {"width": scale["width"], "channels": 3 if "cifar" in dataset else 1}
    options |= {"depth": scale["depth"]} if scale["depth"] else {"init": "he"}
    recipe = zhang(scale) | (resnet if scale["depth"] else plain) | {"precision": precision}
    recipe |= {"model_options": options | {"batch_norm": False}}
    recipe |= {"augment": AUGMENT} if labels == TRUE else {}
    about = {"dataset": dataset, "standardised": True, "width": scale["width"]}
    return [_net(scale, seed, labels, about, recipe) for seed in range(scale["seeds"])]


def counted(
    scale: Mapping, dataset: str, widths: Sequence[int], labels: float, rate: float = 0.001
) -> list:
    """Return Hanin and Rolnick's networks: He normal weights, biases of variance 1e-6, Adam."""
    options = {"widths": list(widths), "init": "he", "bias_sd": 0.001}
    recipe = {"model": "mlp", "model_options": options, "optimizer": "Adam", "learning_rate": rate}
    recipe |= {"epochs": scale["epochs"], "checkpoints": stages(scale)}
    about = {"dataset": dataset, "standardised": False, "depth": len(widths), "rate": rate}
    about |= {"neurons": sum(widths)}
    return [_net(scale, seed, labels, about, recipe) for seed in range(scale["seeds"])]


def stages(scale: Mapping) -> list[int]:
    """Return the epochs at which regions are counted."""
    epochs = scale["epochs"]
    return sorted({0, 1, round(epochs / 10), epochs // 2, epochs})


def solved(scale: Mapping, dataset: str) -> list[dict]:
    """Return networks of one hidden layer: all layers by SGD or full batches, or the last alone."""
    (images, _), steps, nets = scale["images"], scale["steps"], []
    widths = [*scale["widths"], *scale["features"]]
    for seed, width, method in product(range(scale["seeds"]), widths, METHODS):
        asked = width == FULL_BATCH if method == FULL else width in scale["widths"]
        if asked or method == LAST:
            batch = images if method == FULL else _batch(images)
            an_epoch = -(-images // batch)
            kept = sorted({round(2 ** (k / 2)) for k in range(2 * int(math.log2(steps)) + 1)})
            recipe = {"model": "mlp", "model_options": {"widths": [width]}, "learning_rate": 0.05}
            recipe |= {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9}}
            recipe |= {"epochs": steps / an_epoch, "checkpoints": [n / an_epoch for n in kept]}
            recipe |= {"batch_size": batch, "freeze": {"fc1": 0} if method == LAST else {}}
            about = {"dataset": dataset, "standardised": True, "width": width, "method": method}
            nets.append(_net(scale, seed, TRUE, about, recipe))
    return nets


def untrained(scale: Mapping, dataset: str, shapes: Sequence[list]) -> list[dict]:
    """Return networks that are never trained, from each of `STARTS`."""
    nets, (images, test) = [], scale["images"]
    for shape, (start, how), seed in product(shapes, STARTS.items(), range(scale["seeds"])):
        about = {"dataset": dataset, "images": images, "test_images": test, "seed": seed}
        about |= {"neurons": sum(shape), "depth": len(shape), "start": start}
        about |= {"options": {"widths": shape} | how}
        nets.append({"net": about, "network": f"{start}, {shape}, seed {seed}"})
    return nets


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """Return the results with the settings of networks as columns, and what resets lost.

    lost is test accuracy less than before the reset, lost_train that on the labels trained on.
    """
    if "net" in table:
        nets = table.drop_duplicates("network").set_index("network").net
        about = pd.DataFrame(nets.tolist(), nets.index)
        about = about[about.columns.difference(HIDDEN, sort=False)]
        table = table.drop(columns="net").join(about, on="network")
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *COLUMNS])))
    whole = table[table.kind == WHOLE].drop_duplicates("network").set_index("network")
    for half, column in (("test", "lost"), ("train", "lost_train")):
        before = table.network.map(whole[f"{half}_accuracy"])
        table[column] = before - table[f"{half}_accuracy"]
    return table


def on_device(examples: data.Examples, count: int, model: nn.Module) -> data.Examples:
    """Return the first `count` examples, where the model is."""
    device = next(model.parameters()).device
    return data.Examples(*(x[:count].to(device) for x in (examples.images, examples.labels)))


# ------------------------------------------------------------------ resets


def resets(spec: Mapping, device: str = "auto") -> pd.DataFrame:
    """Reset layers of a trained network: accuracy, sensitivity, and how far the weights had gone.

    A row a reset; share is NaN for a fresh draw. rms is L2 / sqrt(number of weights).
    """
    net = spec["net"]
    split, run = split_of(net), network(net, device)
    whole, final, how, epochs = run.model(device=device), run.state(), run.spec, run.spec.epochs
    labels = training.training_labels(how, split)
    halves = {"train": data.Examples(split.train.images, labels), "test": split.test}
    halves = {k: on_device(half, spec["shown"], whole) for k, half in halves.items()}
    names = [name for name, child in whole.named_children() if list(child.parameters())]
    states = [(share, 0, run.state(share * epochs)) for share in spec["shares"]]
    for draw in range(spec["draws"]):
        fresh = models.build(how.model, 1_000_000 + 1000 * how.seed + draw, **how.model_options)
        states.append((math.nan, draw, fresh.state_dict()))
    rows = [{"kind": WHOLE, "layer": "none"} | measure(whole, halves, spec)]
    groups = [(SINGLE, [name], states) for name in names]
    groups += [(JOINT, list(some), states[: spec["joint_shares"]]) for some in spec["joint"]]
    for kind, some, sources in groups:
        for share, draw, state in sources:
            row = {"kind": kind, "layer": " ".join(some), "share": share, "draw": draw}
            if kind == SINGLE:
                far = weight_distance(state, final, some)
                row |= {"position": names.index(some[0]), "l2": far.l2, "rms": far.rms}
                row |= {"linf": far.linf}
            rows.append(row | measure(reset(whole, state, some), halves, spec))
    return pd.DataFrame(rows)


def measure(model: nn.Module, halves: Mapping, spec: Mapping) -> dict[str, float]:
    """Return accuracies and sensitivity; NaN without points, or paths, to measure them on."""
    row = {f"{k}_accuracy": training.evaluate(model, half)[1] for k, half in halves.items()}
    points, shown = (halves["test"].images[: spec[name]] for name in ("points", "paths"))
    row |= dict.fromkeys(MEASURES, math.nan)
    if len(points):
        row["jacobian"] = sensitivity.jacobian_norm(model, points).mean().item()
        row["logit_jacobian"] = sensitivity.jacobian_norm(model, points, "logits").mean().item()
    if len(shown):
        rings = [trajectories.translations(image, image.shape[-1]) for image in shown]
        row["transitions"] = np.mean([int(n) for n in sensitivity.transitions(model, rings)])
    return row


# ------------------------------------------------------------------ regions


def regions(spec: Mapping, device: str = "auto") -> list[dict]:
    """Count the regions of a network before, during and after training: a row an epoch."""
    net, rows = spec["net"], []
    run = network(net, device)
    history = run.history.set_index("epoch")[["train_accuracy", "test_accuracy"]]
    for epoch in spec["at"]:
        found = count_regions(run.model(epoch, device), split_of(net), spec, net["seed"])
        rows.append({"epoch": epoch} | history.loc[epoch].to_dict() | found)
    return rows


def starts(spec: Mapping, device: str = "auto") -> dict:
    """Count the regions of a network before training, in squares of several sizes and around 0."""
    net = spec["net"]
    model = models.build("mlp", net["seed"], **net["options"]).to(choose_device(device))
    split = _images(net["dataset"], net["images"], net["test_images"], False)
    return count_regions(model, split, spec, net["seed"])


def count_regions(model: nn.Module, split: data.Split, spec: Mapping, seed: int) -> dict:
    """Return the mean number of regions on lines and in planes, and the distance of test images.

    The lines and planes of a seed are the same for all networks; ``origin`` is the plane through 0
    and two of the three images.
    """
    source = torch.Generator().manual_seed(10_000 + seed)
    images, labels = split.train.images, split.train.labels.cpu()

    def corners(count: int) -> Tensor:
        """Return training images (count, C, H, W) of different classes."""
        picked = []
        for label in torch.randperm(10, generator=source)[:count]:
            own = (labels == label).nonzero()[:, 0]
            picked.append(own[torch.randint(len(own), (1,), generator=source)])
        return images[torch.cat(picked)].to(next(model.parameters()).device)

    found = [
        sensitivity.output_curve(model, corners(2), closed=False) for _ in range(spec["lines"])
    ]
    row = {"line": np.mean([line.activation_regions for line in found])}
    row["linear"] = np.mean([line.linear_regions for line in found])
    triples = [corners(3) for _ in range(spec["planes"])]
    for size in spec["sizes"]:
        row[f"plane {size:g}"] = _mean([count_plane(model, x, size) for x in triples])
    if spec["around_zero"]:
        flat = [torch.cat([torch.zeros_like(x[:1]), x[:2]]) for x in triples]
        row["origin"] = _mean([count_plane(model, x, SQUARE) for x in flat])
    points = on_device(split.test, spec["points"], model).images
    row["distance"] = sensitivity.nearest_boundary(model, points).mean().item()
    return row


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def square(points: Tensor, size: float) -> Tensor:
    """Return the corners (4, 2) of a square around the circumcentre of three inputs.

    In the coordinates of `sensitivity.plane_regions`; half a side is `size` circumradii.
    """
    a, b, c = points.flatten(1).double().cpu()
    far = (b - a).norm()
    x = (c - a) @ (b - a) / far
    y = ((c - a) - x * (b - a) / far).norm()
    centre = torch.stack([far / 2, (x**2 + y**2 - far * x) / (2 * y)])
    half = size * centre.norm()
    return centre + half * torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]).double()


def count_plane(model: nn.Module, points: Tensor, size: float) -> int:
    """Return the activation regions in a square on the plane through three inputs."""
    return sensitivity.plane_regions(model, *points, square(points, size)).count


def picture(spec: Mapping, device: str = "auto") -> pd.DataFrame:
    """Draw the regions of a plane: corners of every polygon, and the polygon of grid points.

    The grid does not use the counter: ``met`` codes, of which ``split`` lie in two polygons and
    ``merged`` polygons hold two.
    """
    net, tables = spec["net"], []
    train, run = split_of(net).train, network(net, device)
    for epoch in spec["at"]:
        model = run.model(epoch, "cpu")
        points = [train.images[(train.labels == c).nonzero()[0, 0]].cpu() for c in range(3)]
        plane = sensitivity.plane_regions(model, *points)
        seen = sensitivity.region_map(model, *points, spec["grid"])
        left, right, bottom, top = seen.extent
        steps = (np.arange(spec["grid"]) + 0.5) / spec["grid"]
        x, y = np.meshgrid(left + (right - left) * steps, bottom + (top - bottom) * steps)
        grid, owner = np.stack([x, y], -1).reshape(-1, 2), np.full(x.size, -1)
        for number, polygon in enumerate(plane.polygons):  # convex, counter-clockwise
            ends = polygon.numpy()
            side, away = np.roll(ends, -1, axis=0) - ends, grid[:, None] - ends
            owner[(side[:, 0] * away[..., 1] > side[:, 1] * away[..., 0]).all(1)] = number
        pairs = pd.DataFrame({"code": np.ravel(seen.ids), "polygon": owner})
        pairs = pairs[pairs.polygon >= 0].drop_duplicates()
        drawn = {"part": "grid", "polygon": owner, "x": grid[:, 0], "y": grid[:, 1]}
        parts = [pd.DataFrame(drawn)] + [
            pd.DataFrame(polygon.numpy(), columns=["x", "y"]).assign(part="polygon", polygon=i)
            for i, polygon in enumerate(plane.polygons)
        ]
        facts = {"epoch": epoch, "count": plane.count, "certified": plane.certified}
        facts |= {"met": seen.count, "split": int(pairs.code.duplicated().sum())}
        facts |= {"merged": int(pairs.polygon.duplicated().sum())}
        tables.append(pd.concat(parts).assign(**facts))
    return pd.concat(tables).astype({"x": "float32", "y": "float32", "polygon": "int32"})


# ------------------------------------------------------------------ the lecture's questions


def solutions(spec: Mapping, device: str = "auto") -> list[dict]:
    """Measure functions of one train loss: a network's first checkpoint below it, and its last.

    Of a network whose hidden layer stays as drawn, the solution of least norm over its features
    as well. Logits of all but the last are scaled to the loss exactly. Regions are those of lines
    between test images.
    """
    net = spec["net"]
    split, run = split_of(net), network(net, device)
    history, start = run.history, run.model(0.0, device)
    train = on_device(split.train, len(split.train), start)
    passed = history[(history.train_loss <= spec["loss"]) & history.epoch.isin(run.checkpoints)]
    found = {"fixed loss": run.model(passed.epoch.iloc[0], device)} if len(passed) else {}
    if net["training"]["freeze"]:
        found["least norm"] = least_norm(start, train)
    found = {name: scaled(model, train, spec["loss"]) for name, model in found.items()}
    found["end"] = run.model(device=device)
    test = on_device(split.test, len(split.test), start)
    lines = list(test.images[: 2 * spec["lines"]].unflatten(0, (-1, 2)))
    rows = []
    for state, model in found.items():
        if model is not None:
            row = {"state": state, "train_loss": training.evaluate(model, train)[0]}
            row["test_accuracy"] = training.evaluate(model, test)[1]
            points = test.images[: spec["points"]]
            row["jacobian"] = sensitivity.jacobian_norm(model, points).mean().item()
            counts = sensitivity.transitions(model, lines, closed=False)
            rows.append(row | {"regions": np.mean([1 + int(count) for count in counts])})
    return rows


@torch.no_grad()
def least_norm(model: nn.Module, train: data.Examples) -> nn.Module:
    """Return the model with the read-out of least norm of those that fit one-hot labels best."""
    hidden = model[:-1](train.images).double()
    features = torch.cat([hidden, torch.ones_like(hidden[:, :1])], 1)
    weights = memorisation.minimum_norm_solution(features, train.labels)
    model[-1].weight.copy_(weights[:-1].mT)
    model[-1].bias.copy_(weights[-1])
    return model


@torch.no_grad()
def scaled(model: nn.Module, train: data.Examples, loss: float) -> nn.Module | None:
    """Return the model, its logits scaled by the least factor that brings the train loss to `loss`.

    None where no factor does.
    """
    logits = model(train.images).double()
    for scale in torch.logspace(-2, 3, 1000).tolist():
        if F.cross_entropy(scale * logits, train.labels) <= loss:
            model[-1].weight.mul_(scale)
            model[-1].bias.mul_(scale)
            return model
    return None
