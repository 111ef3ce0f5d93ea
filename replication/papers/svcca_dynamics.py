"""Raghu et al. 2017 (SVCCA): which directions of a layer matter, and when they are learned.

A layer in two networks or at two times is compared by SVCCA, positions counting as examples;
different layers by DFT-CCA; means over the correlations. Accuracies are on test images.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from replication import activations, data, models, similarity, training
from replication._core import paths
from replication._core.inputs import generator
from replication._core.profiles import EVIDENCE, PROFILES
from replication.claims import Claim, Gate, Rule
from replication.directions.projection import Projection, onto_directions, onto_neurons, projected
from replication.papers import Experiment, cifar10, correlation, runs
from replication.papers._correlation import by_network
from replication.papers._grids import tidy
from replication.papers._untrained import with_statistics
from replication.papers.imagenet_classes import at_hand, imagenet_classes

NOTEBOOK = "03_svcca_dynamics"
_SHARES = (0, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.27, 0.35, 0.45, 0.6, 0.75, 0.87, 1)
_SCALES = {  # smoke, quick, full, and the paper's where it is stated
    "images": ((320, 100), (500, 200), (50_000, 10_000), (50_000, 10_000)),  # training, test
    "convnet": ((1 / 16, 2), (1 / 8, 3), (1.0, 40), (1.0, 205)),  # width; epochs of 64 a step
    "resnet": ((8, 1 / 8, 1), (8, 1 / 8, 2), (32, 1.0, 30), (32, 1.0, 205)),  # depth first
    "seeds": ((2, 1), (2, 1), (5, 3), (10, 10)),  # of the convnet, of the ResNet
    "precision": ("float32", "float32", "auto", "auto"),
    "shares": ((0, 1), (0, 0.35, 1), _SHARES, _SHARES),  # of training, looked at
    "panes": ((60, 60), (120, 100), (2500, 1000), (10_000, 10_000)),  # images, by network
    "examples": ((16, 200), (20, 500), (1000, 10_000), (2000, 50_000)),  # of maps, dense layers
    "permutations": (1, 3, 19, 19),  # of examples, for a grid's null
    "flat": (320, 500, 25_000, 50_000),  # images on which p2 is reduced
    "toy": ((2, 20, 60), (2, 100, 80), (10, 3000, 200), (10, 20_000, 200)),  # seeds, steps, units
    "imagenet": ((20, 64), (200, 96), (4000, 128), (10_000, 128)),  # images, enlarged to this side
}
SETTINGS: dict[str, dict[str, Any]]
SETTINGS = {p: {k: v[i] for k, v in _SCALES.items()} for i, p in enumerate(PROFILES)}
LATE = 0.1  # share of training at whose end accuracies are averaged
PANES = (0, 0.35, 0.75, 1)  # of training
MAPS = ["c1", "c2", "bn1", "p1", "c3", "c4", "c5", "bn2", "p2"]
DENSE = ["fc1", "bn3", "fc2", "bn4", "logits"]
WEIGHTED = ["c1", "c2", "c3", "c4", "c5", "fc1", "fc2", "logits"]
GROUPS = ["c1", "c2 bn1", "c3", "c4", "c5 bn2", "fc1 bn3", "fc2 bn4", "logits"]  # frozen in turn
COMPRESSED = ["p2", "fc1", "bn3", "fc2", "bn4"]
COUNTS = (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 100, 200, 400)  # directions or neurons
NEURONS = {"p2": (150 / 4096, 300 / 4096), "fc1": (50 / 512, 100 / 512), "fc2": ()}  # Fig. 2b
SPREAD = (10, 20, 30, 50)  # directions that are brought onto so many neurons
KEPT = (0.1, 0.22, 0.35, 0.45, 0.63, 0.8)  # share of directions
RANKED = ("weights", "shared variance", "random")  # how neurons are chosen
LOWEST = 7  # frequencies along each side at which architectures are compared: all maps have them
TOY = (1, 2, 4, 6, 10, 15, 20, 30, 40, 50)
FILLS = ("variance", "chance")  # what takes the directions that ten logits leave open
CHANCE = 0.1


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the notebook's experiments by name, in order: networks first."""
    settings = SETTINGS[profile]
    name, shape, counts = "cifar10", (3, 32), settings["images"]
    if profile not in EVIDENCE or dataset not in ("auto", name):  # else nothing need be there
        split = cifar10(profile, dataset, counts)
        name, shape = split.name, split.train.images.shape[1:3]
        counts = len(split.train), len(split.test)
    (width, epochs), (depth, narrow, fewer) = settings["convnet"], settings["resnet"]
    count, fewest = settings["seeds"]

    def networks(model: str, options: dict, length: int, seeds: int) -> tuple[list[dict], list]:
        spec = {"dataset": name, "images": list(counts), "precision": settings["precision"]}
        spec |= {"model": model, "options": options | {"channels": shape[0]}, "epochs": length}
        plain = [spec | {"shares": list(settings["shares"]), "seed": n} for n in range(seeds)]
        return plain, [s | {"shares": [], "frozen": True} for s in plain]

    def scale(seeds: int, length: int, **changed: float) -> dict[str, float]:
        steps = counts[0] / 64 * length / 160_000
        ours = {"images": counts[0] / 50_000, "width": width, "training": steps, "networks": seeds}
        return {key: min(1, value) for key, value in (ours | changed).items()}

    convnets, frozen = networks("svcca_convnet", {"width": width, "size": shape[1]}, epochs, count)
    resnets, kept = networks("resnet", {"depth": depth, "width": narrow}, fewer, fewest)
    partners = [s | {"other": (s["seed"] + 1) % count} for s in convnets]  # once on each side
    pairs = [s | {"other": other} for s in convnets for other in range(s["seed"] + 1, count)]
    crossed = [s | {"convnet": convnets[s["seed"]]} for s in resnets]
    number, steps, units = settings["toy"]
    toys = [{"seed": seed, "steps": steps, "units": units} for seed in range(number)]
    shown, (wide, deep) = {"examples": list(settings["examples"])}, settings["panes"]
    drawn = {"permutations": settings["permutations"]}
    dense, net, both = settings["examples"][1], scale(count / 3, epochs), scale(fewest / 3, fewer)
    imagenet = scale(fewest / 3, fewer, images=counts[0] / 1_281_167)
    table = {  # what is measured, of what, more of the spec, ours over the paper's
        "convnets": (train, convnets, {}, scale(count / 10, epochs)),
        "frozen convnets": (train, frozen, {}, scale(count / 10, epochs)),
        "resnets": (train, resnets, {}, scale(fewest / 10, fewer)),
        "frozen resnets": (train, kept, {}, scale(fewest / 10, fewer)),
        "toy": (toy, toys, {}, {"training": min(1, steps / 3000)}),
        "restriction": (restriction, partners, {"flat": settings["flat"]}, net),
        "convnet dynamics": (dynamics, convnets, shown | drawn | {"panes": wide}, net),
        "resnet dynamics": (dynamics, resnets, shown | drawn | {"panes": deep}, both),
        "initialisations": (initialisations, pairs, shown, net),
        "architectures": (architectures, crossed, drawn | {"panes": wide}, both),
        "classes": (classes, crossed, drawn | {"shown": dense}, imagenet),
        "covariance": (covariance, convnets, {"shown": dense // 2}, imagenet),
        "distortion": (distortion, convnets[:1], {"shown": dense}, net),
    }
    committed = paths.evidence() / NOTEBOOK / f"{imagenet_classes.__name__}.parquet"
    if name == "cifar10" and (at_hand() or (profile in EVIDENCE and committed.exists())):
        spec = {"network": "efficientnet_lite0", "dataset": name}
        spec |= dict(zip(("examples", "side"), settings["imagenet"], strict=True))
        # C, as neither the network nor the images are the paper's. Last: nothing waits for it.
        table["imagenet classes"] = imagenet_classes, [spec], {}, {}
    return {
        key: Experiment(measure, [s | more for s in specs], None, {"device": device}, ratios)
        for key, (measure, specs, more, ratios) in table.items()
    }


def freezing(spec: Mapping) -> dict[str, float]:
    """Return the share of training from which each module of a frozen network stays.

    Layer l of L of the convnet at l / L, with its batch norm; residual block b of B at b / B.
    """
    if not spec.get("frozen"):
        return {}
    groups = GROUPS
    if spec["model"] == "resnet":
        blocks = layers_of(spec)[1][1:]
        groups = [f"conv1 bn1 {blocks[0]}", *blocks[1:]]
    shares = {n: i / len(groups) for i, group in enumerate(groups, 1) for n in group.split()}
    return {name: share for name, share in shares.items() if share < 1}


def trained(spec: Mapping, split: data.Split, device: str) -> training.Run:
    """Return the run of a spec, trained if it is not kept: SGD, a cosine, shifts of 4 pixels."""
    epochs = spec["epochs"]
    recipe = training.Spec(
        model=spec["model"],
        model_options=spec["options"],
        optimizer_options={"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        learning_rate=0.05,
        schedule="cosine",
        batch_size=64,
        epochs=epochs,
        augment={"shift": 4},
        freeze={name: share * epochs for name, share in freezing(spec).items()},
        checkpoints=tuple(share * epochs for share in spec["shares"]),
        evaluate_every=max(1, epochs / 20),
        evaluation_images=5000,
        seed=spec["seed"],
        precision=spec["precision"],
    )
    return training.fit(recipe, split, store=runs() / "networks", device=device, progress=False)


@cache
def _images(dataset: str, counts: tuple[int, int], device: str) -> data.Split:
    return data.standardise(data.load(dataset, counts, device=device))[0]


def loaded(spec: Mapping, device: str, *seeds: int) -> tuple:
    """Return the images of a spec, standardised, and its trained networks of those seeds."""
    split = _images(spec["dataset"], tuple(spec["images"]), device)
    specs = [spec | {"seed": seed} for seed in seeds]
    return split, *(trained(s, split, device).model(device=device) for s in specs)


def network_at(run: training.Run, share: float, images: Tensor) -> nn.Module:
    """Return a network at a share of its training; untrained with `images`' statistics."""
    model = run.model(share * run.spec.epochs, str(images.device))
    return model if share else with_statistics(model, images)


def layers_of(spec: Mapping) -> tuple[list[str], list[str]]:
    """Return the layers of the panes, and those that are followed: no last bn, no logits."""
    if spec["model"] == "svcca_convnet":
        return MAPS + DENSE, MAPS + DENSE[:3]
    number = (spec["options"]["depth"] - 2) // 6
    blocks = [f"block{stage}_{i + 1}" for stage in (1, 2, 3) for i in range(number)]
    inside = [part for block in blocks for part in (f"{block}.act1", block)]
    return ["act1", *inside, "fc"], ["act1", *blocks]


@torch.no_grad()
def _accuracy(model: nn.Sequential, layer: str, outputs: Tensor, labels: Tensor) -> float:
    """Return the accuracy of a network that goes on from a layer's outputs."""
    rest = model[list(dict(model.named_children())).index(layer) + 1 :]
    return (rest(outputs).argmax(1) == labels).double().mean().item()


def train(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Train one network; return its history with the multiply-adds done."""
    split = loaded(spec, device)[0]
    history = trained(spec, split, device).history
    model = models.build(spec["model"], **spec["options"])
    frozen, done = freezing(spec), [0.0]
    ends = [*sorted(set(frozen.values())), 1.0]
    for start, end in zip([0.0, *ends], ends, strict=False):
        for name in (name for name, share in frozen.items() if share <= start):
            model.get_submodule(name).requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros_like(split.train.images[:2], device="cpu")).sum().backward()
        images = (end - start) * spec["epochs"] * len(split.train)
        done.append(done[-1] + images * counter.get_total_flops() / 4)  # two images, half a FLOP
    operations = np.interp(history.epoch / spec["epochs"], [0.0, *ends], done)
    return history.assign(operations=operations)


def toy(spec: dict, device: str = "auto") -> list[dict]:
    """Train two toy networks; return the output that projections of the last layer keep."""
    x = torch.linspace(-1, 1, 1000)
    draw = torch.randn(2, 4, 4, generator=generator(0, "toy targets"))
    waves = torch.arange(1, 5) * x[:, None, None] * torch.pi + torch.pi * draw[0]
    y = (draw[1] / torch.arange(1, 5) * waves.sin()).sum(2)
    nets = []
    for number in range(2):
        options = {"inputs": 1, "widths": [spec["units"]] * 4, "classes": 4}
        nets.append(models.build("mlp", 2 * spec["seed"] + number, **options))
        optimizer = torch.optim.Adam(nets[-1].parameters(), lr=1e-3)
        for step in range(spec["steps"]):
            order = torch.randperm(1000, generator=generator(spec["seed"], f"toy/{number}", step))
            optimizer.zero_grad()
            F.mse_loss(nets[-1](x[order[:200], None]), y[order[:200]]).backward()
            optimizer.step()
    first, second = (activations.record(n, x[:, None], ["act4"])["act4"] for n in nets)
    output = nets[0](x[:, None]).detach()
    active = first.abs().mean(0).argsort(descending=True).tolist()
    shared, rows = similarity.svcca(first, second).x_directions, []
    singular = torch.linalg.svd(first - first.mean(0), full_matrices=False)[2].mT
    for k in TOY:
        for method, project in {
            "SVCCA": onto_directions(first, shared[:, :k]),
            "SVD": onto_directions(first, singular[:, :k]),
            "most active": onto_neurons(first, active[:k]),
        }.items():
            shown = nets[0][-1](project(first)).detach()
            kept = 1 - (shown - output).square().sum() / (output - output.mean(0)).square().sum()
            rows.append({"method": method, "k": k, "kept": kept.item()})
            rows[-1]["curves"] = shown[::5].mT.tolist() if method == "SVCCA" else []
    error = (F.mse_loss(output, y) / y.var(0).mean()).item()
    return [row | {"error": error, "target": y[::5].mT.tolist()} for row in rows]


def restriction(spec: dict, device: str = "auto") -> list[dict]:
    """Measure a convnet's accuracy with a layer on few directions or neurons, or compressed."""
    split, net, second = loaded(spec, device, spec["seed"], spec["other"])
    images, labels = split.train.images[: spec["flat"]], split.test.labels
    x, y = (
        activations.record(n, images, [*COMPRESSED, "logits"], reduction="flatten")
        for n in (net, second)
    )
    test = activations.record(net, split.test.images, COMPRESSED, reduction="flatten")
    rows, shared = [], {"second net": {}, "logits": {}}
    for layer in COMPRESSED:
        shared["second net"][layer] = similarity.svcca(x[layer], y[layer]).x_directions
        shared["logits"][layer] = similarity.svcca(x[layer], x["logits"]).x_directions
        if layer in NEURONS:
            row = {"what": "projection", "layer": layer, "width": x[layer].shape[1]}
            directions = shared["second net"][layer]
            for more, steps in _projections(x[layer], directions, spec["seed"], NEURONS[layer]):
                inputs = test[layer]
                for step in steps:
                    inputs = step(inputs)
                value = _accuracy(net, layer, inputs, labels)
                rows.append(row | more | {"accuracy": value})
    for partner, directions in shared.items():
        for fill in FILLS:
            bases = {n: _filled(x[n], w, fill, spec["seed"]) for n, w in directions.items()}
            for share in KEPT:
                cut = {n: q[:, : max(1, round(share * len(q)))] for n, q in bases.items()}
                maps = {n: Projection(x[n].mean(0), q, q.mT) for n, q in cut.items()}
                start = maps.pop("p2")(test["p2"])
                with projected(net, maps):
                    value = _accuracy(net, "p2", start, labels)
                row = {"what": "compression", "method": partner, "fill": fill, "share": share}
                rows.append(row | {"accuracy": value})
    return rows


def _projections(x: Tensor, directions: Tensor, seed: int, shares: Sequence[float]) -> Iterator:
    """Yield (what it is, projections in their order) of a layer (examples, neurons)."""
    width, axes = x.shape[1], torch.eye(x.shape[1], device=x.device)
    active = x.abs().mean(0).argsort(descending=True).tolist()
    draws = [torch.randperm(width, generator=generator(seed, "neurons", i)) for i in range(3)]
    yield {"method": "all neurons", "k": width}, ()
    for k in (k for k in COUNTS if k < width):
        top = onto_directions(x, directions[:, :k])
        yield {"method": "SVCCA", "k": k}, (top,)
        yield {"method": "most active", "k": k}, (onto_neurons(x, active[:k]),)
        fitted = onto_directions(x, axes[:, active[:k]])
        yield {"method": "most active, others fitted", "k": k}, (fitted,)
        for draw in draws:
            yield {"method": "random", "k": k}, (onto_neurons(x, draw[:k].tolist()),)
        weights = (top.encode.abs() * x.std(0)[:, None]).sum(1)
        scores = zip(RANKED, (weights, top.decode.square().sum(0), draws[0]), strict=True)
        for (rule, score), share in product(scores, shares if k in SPREAD else ()):
            # The directions' activity is replaced by its least-squares fit by the neurons'.
            chosen = score.argsort(descending=True)[: max(1, round(share * width))].to(x.device)
            row = {"method": f"by {rule}", "k": k, "neurons": len(chosen)}
            yield row, (onto_directions(x, axes[:, chosen]), top)


def _filled(x: Tensor, directions: Tensor, fill: str, seed: int) -> Tensor:
    """Return an orthonormal basis (neurons, neurons): the directions, then their complement."""
    first = torch.linalg.qr(directions)[0]
    if fill == "chance":
        more = torch.randn(len(first), len(first), generator=generator(seed, "complement")).to(x)
    else:
        rest = x - x.mean(0)
        rest = rest - rest @ first @ first.mT
        more = torch.linalg.eigh(rest.mT @ rest).eigenvectors.flip(1)
    return torch.linalg.qr(torch.cat([first, more], 1)[:, : len(first)])[0]


def _recorded(model: nn.Module, images: Tensor, layers: Sequence[str], counts: list[int]) -> dict:
    """Return layers: maps of the first few images, dense ones of many."""
    parts = [[n for n in layers if (n in DENSE) == dense] for dense in (False, True)]
    pairs = [(images[:count], part) for count, part in zip(counts, parts, strict=True) if part]
    return {n: z for some, part in pairs for n, z in activations.record(model, some, part).items()}


def _same(first: dict, second: dict, layers: Sequence[str], null: int = 0) -> pd.DataFrame:
    """Return SVCCA of layers with themselves, positions being examples."""
    pairs = [({"": first[n]}, {"": second[n]}) for n in layers]
    grids = [similarity.compare(*p, "svcca", conv="positions", null=null).to_frame() for p in pairs]
    return pd.concat(grids, ignore_index=True).assign(layer=layers, depth=range(len(layers)))


def dynamics(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Compare layers during training with all layers at its end, and each with its own end."""
    split, end = loaded(spec, device, spec["seed"])
    run, images = trained(spec, split, device), split.train.images
    layers, followed = layers_of(spec)
    last = _recorded(end, images, followed, spec["examples"])
    final, tables = activations.record(end, images[: spec["panes"]], layers), []
    for share in spec["shares"]:
        now = network_at(run, share, images)
        if share in PANES:
            there = final  # held once at the end, as maps are large
            if share < 1:
                there = activations.record(now, images[: spec["panes"]], layers)
            null = int(share == 1 and spec["seed"] == 0)
            grid = similarity.compare(there, final, "dft_cca", null=null).to_frame()
            tables.append(grid.assign(what="pane", share=share))
        own = _same(_recorded(now, images, followed, spec["examples"]), last, followed)
        tables.append(own.assign(what="curve", share=share))
    if spec["seed"] == 0:  # dense layers would set the largest value of a permuted grid
        maps = {name: z for name, z in final.items() if z.ndim == 4}
        grid = similarity.compare(maps, metric="dft_cca", null=spec["permutations"])
        tables.append(tidy(grid).assign(what="calibrated", share=1))
    return pd.concat(tables, ignore_index=True)


def initialisations(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Compare each layer of a convnet with itself in another convnet, before and after training."""
    split, tables = loaded(spec, device)[0], []
    both = [trained(spec | {"seed": spec[which]}, split, device) for which in ("seed", "other")]
    for share in (0, 1):
        nets = [network_at(run, share, split.train.images) for run in both]
        sides = [_recorded(net, split.train.images, WEIGHTED, spec["examples"]) for net in nets]
        tables.append(_same(*sides, WEIGHTED, null=2).assign(share=share))
    return pd.concat(tables, ignore_index=True)


def lowest(maps: Tensor) -> Tensor:
    """Return maps at their lowest frequencies only, as maps of so many positions a side."""
    rows, columns = (torch.fft.fftfreq(n, 1 / n).abs() <= LOWEST // 2 for n in maps.shape[2:])
    frequencies = torch.fft.fft2(maps, norm="forward")[:, :, rows][..., columns]
    return torch.fft.ifft2(frequencies, norm="forward").real  # an odd number: f comes with -f


def principal(maps: Tensor, share: float = 0.99) -> Tensor:
    """Return centred maps on the first directions of their channels at each frequency.

    As many as hold `share` of the variance there: SVCCA's cut before DFT-CCA. Of a first layer's
    linear filters a frequency has as many as there are colours; the borders make up the rest.
    """
    spectrum = torch.fft.fft2(maps - maps.mean(0), norm="ortho").permute(2, 3, 0, 1)
    u, s, vh = torch.linalg.svd(spectrum, full_matrices=False)
    held = s.square()
    kept = held.cumsum(-1) - held < share * held.sum(-1, keepdim=True)
    spectrum = (u * (s * kept)[..., None, :]) @ vh
    return torch.fft.ifft2(spectrum.permute(2, 3, 0, 1), norm="ortho").real


def architectures(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Compare the layers of a ResNet with a convnet's maps, all at the same frequencies, cut."""
    split, first = loaded(spec, device, spec["seed"])
    second = trained(spec["convnet"], split, device).model(device=device)
    images, (*layers, _) = split.train.images[: spec["panes"]], layers_of(spec)[0]
    sides = [
        activations.record(net, images, names, reduction=lowest)
        for net, names in ((first, layers), (second, MAPS))
    ]
    sides = [{name: principal(maps) for name, maps in acts.items()} for acts in sides]
    table = tidy(similarity.compare(*sides, "dft_cca", null=spec["permutations"]))
    return table.assign(depth=table.column.map(MAPS.index))


def classes(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Compare single logits of a ResNet with every layer; and which classes a convnet confuses."""
    split, net = loaded(spec, device, spec["seed"])
    layers, labels = layers_of(spec)[0], split.test.labels
    images = split.train.images[: spec["shown"]]
    # A logit meets a map at its zero frequency only: the channels' spatial means.
    shown = activations.record(net, images, layers, reduction="spatial_mean")
    logits, other = shown.pop("fc"), trained(spec["convnet"], split, device).model(device=device)
    named = activations.record(other, split.test.images, ["logits"])["logits"].argmax(1)
    confused = torch.zeros(len(split.classes), len(split.classes), device=labels.device)
    confused.index_put_((labels, named), torch.ones_like(labels, dtype=torch.float), True)
    confused = (confused + confused.mT).fill_diagonal_(0) / len(labels)
    grids = []
    for index, name in enumerate(split.classes):
        column = {name: logits[:, [index]]}
        grid = tidy(similarity.compare(shown, column, "cca", null=spec["permutations"]))
        row = [confused[index].tolist()] * len(grid)
        grids.append(grid.assign(depth=range(len(grid)), confused=row))
    return pd.concat(grids, ignore_index=True).rename(columns={"row": "layer", "column": "name"})


def covariance(spec: dict, device: str = "auto") -> list[dict]:
    """Measure how dense the covariance of p2's positions is, and of its frequencies, by channel."""
    split, net = loaded(spec, device, spec["seed"])
    maps = activations.record(net, split.train.images[: spec["shown"]], ["p2"])["p2"].double()
    maps, rows = (maps - maps.mean(0)).movedim(1, 0), []
    maps = maps[maps.flatten(1).square().sum(1).argsort(descending=True)]
    maps = maps[maps.flatten(1).any(1)]  # channels that live
    for kind, z in {"positions": maps, "frequencies": torch.fft.fft2(maps)}.items():
        squares = (z.flatten(2).mH @ z.flatten(2)).abs().square()
        off = 1 - squares.diagonal(dim1=1, dim2=2).sum(1) / squares.sum((1, 2))
        busiest = (squares[0] / squares[0].max()).sqrt().tolist()
        rows.append({"of": kind, "off": off.mean().item(), "matrix": busiest})
    return rows


def distortion(spec: dict, device: str = "auto") -> list[dict]:
    """Compare three neurons with themselves distorted, and layers that share 50 of 200 directions.

    The neurons are the most active of the last hidden layer, permuted, rotated and scaled. Of the
    layers the other 150 directions are noise, 1000 times smaller, or as large as those shared.
    """
    split, net = loaded(spec, device, spec["seed"])
    images, labels = split.train.images[: spec["shown"]], split.train.labels[: spec["shown"]]
    x = activations.record(net, images, ["act7"])["act7"].double()
    x = x[:, x.mean(0).argsort(descending=True)[:3]]
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator(spec["seed"], "distortion")))[0]
    y = x[:, [1, 2, 0]] @ turn.to(x) * torch.tensor([0.1, 1.0, 10.0]).to(x)
    found, rows = similarity.cca(x, y), []
    some = labels.argsort(stable=True)[:: max(1, len(labels) // 60)]  # by class
    for i in range(3):
        pairs = {"before": (x[:, i], y[:, i])}
        pairs["after"] = found.x_variates[:, i], found.y_variates[:, i]
        for when, pair in pairs.items():
            r = torch.corrcoef(torch.stack(pair))[0, 1].abs().item()
            curves = [((z - z.mean()) / z.std())[some].tolist() for z in pair]
            rows.append({"what": "neurons", "of": when, "place": i, "r": r, "curves": curves})
    for kind, size in (("noise", 1e-3), ("useful", 1.0)):
        shared, *own = torch.randn(
            3, 5000, 150, generator=generator(spec["seed"], "shared", kind), dtype=torch.float64
        )
        layers = [torch.cat([shared[:, :50], size * z], 1) for z in own]
        for name, function in (("CCA", similarity.cca), ("SVCCA", similarity.svcca)):
            r = function(*layers).mean.item()
            rows.append({"what": "directions", "of": kind, "method": name, "r": r})
    return rows


OURS, ABOVE = "ours: the paper has no number", " minus of the middle layers, beyond the null"
CONVNETS = Gate("mean test accuracy of the convnets", least=0.8)
PLATEAU = Gate("mean test accuracy beyond 0.8 (convnets), 0.88 (ResNets), the lesser", least=0)
FITTED = Gate("training minus test accuracy of the convnets at their end", least=0.05)
_DEPTH = "Spearman correlation of depth with the area above a layer's similarity to its own end"
_WIDE = "accuracy on 20 directions of fc1 minus on these as 100 of 512 neurons fit them, chosen by"


def _rules(smallest: float | None, source: str, *texts: str, test: str = "t") -> tuple[Rule, ...]:
    return tuple(Rule(text, smallest, source, test) for text in texts)


_TABLE = {  # id: experiment, statement, rules, figure, gate, corrected, why
    "V1": ("restriction",
        "25 SVCCA directions do nearly as well as all 512 neurons of fc1; as few neurons do not",
        _rules(0.95, OURS, "share of fc1's accuracy above chance that 25 directions keep") +
        _rules(0.2, "a tick of Fig. 2a", "accuracy on k directions of fc1 minus on the k most "
               "active or random neurons, the better; mean over k up to 50"),
        "Fig. 2a", CONVNETS, "neurons were compared at Fig. 2b's numbers",
        "directions shared with a second net need not be those the readout uses; rank by logits"),
    "V2": ("toy",
        "30 of 200 directions of a toy network's last layer give its output, and 2 do not",
        _rules(0.99, OURS, "share of the output's variance that 30 directions keep") +
        _rules(0.1, OURS, "the same on 30 directions minus on 2"),
        "Fig. 3", None, "", "the functions are not stated; simpler ones need fewer directions"),
    "V3": ("resnet dynamics",
        "Layers reach their end from the bottom up but the very top; batch norm is nearly the "
        "layer before it; sums of residual blocks are alike",
        _rules(0.5, OURS, *(f"{net}: {_DEPTH}{how}" for net in ("convnet", "ResNet") for how in
               ("", ", relative to its start")), test="correlation") +
        _rules(0.1, OURS, "convnet: similarity of batch norm to the layer before it minus to the "
               "next best neighbour", "ResNet: similarity of successive sums minus of the first "
               "to the inside of the second's block, after ReLU, where the size stays"),
        "Fig. 4", PLATEAU, "no threshold; relative to the start too; smallest effects; the inside "
        "after ReLU, as before it it is linear in the sum",
        "what holds for areas but not relative to the start is due to the initial weights"),
    "V4": ("frozen resnets",
        "Freezing layers from the bottom up improves test accuracy",
        tuple(Rule(f"{net}: final test accuracy frozen minus not, by seed, over the standard "
                   "deviation of those not frozen", source="a spread between seeds", none=1)
              for net in ("convnet", "ResNet")),
        "Fig. 5", FITTED, "the paper claims a gain, in both nets",
        "a gain needs a base that overfits; longer training at a constant rate would test it"),
    "V5": ("architectures",
        "Between two initialisations first and last layers are alike, middle ones less; between "
        "a ResNet and a convnet low layers are alike, and less so with height",
        _rules(0.1, "a tick of the colour bar", f"similarity of the first layer{ABOVE}, after "
               "training minus before", f"similarity of the logits{ABOVE}", "best match among the "
               "ResNet's layers, beyond the null, of c1 minus of p2") +
        _rules(0.5, OURS, "minus the Spearman correlation of depth (c1 to p2) with the best match "
               "beyond the null", test="correlation"),
        "App. 4, Fig. 7", PLATEAU, "neither dense layers nor logits are in Fig. 7; untrained first "
        "layers span the same, so that what training adds counts; architectures beyond the null, "
        "at the same frequencies, cut at 99% of their variance",
        "only the lowest 7 x 7 frequencies are compared; higher ones would test it"),
    "V6": ("classes",
        "Logits of like classes share a curve over layers; an unlike class rises earlier",
        _rules(0.05, "half a tick of Fig. 6", "distance of curves to the unlike class minus within "
               "a pair, mean of two pairs", "unlike minus like classes, lower half of the layers") +
        _rules(None, "", "distance of any two classes minus within the two pairs"),
        "Fig. 6", PLATEAU, "two pairs, those that a convnet confuses most",
        "CIFAR-10's classes are not as near as two terriers; an ImageNet network would test it"),
    "V7": ("restriction",
        "p2, fc1, bn3, fc2, bn4 together at 0.35 of their directions towards the logits hardly "
        "lose accuracy, and lose less than at 0.45 towards a second network",
        _rules(None, "", *(f"accuracy at 0.35, others by {fill}, minus uncompressed, plus 0.05 (a "
               "tick)" for fill in FILLS), *(f"accuracy at 0.35, others by {fill}, minus at 0.45 "
               "towards a second network" for fill in FILLS)),
        "App. 5", CONVNETS, "the directions towards the logits; p2 flat",
        "ten logits leave most directions open, on which all depends; the paper's code would tell"),
    "V9": ("restriction",
        "Important directions are spread over many neurons",
        _rules(0.1, "a tick of Fig. 2b", f"{_WIDE} weights", f"{_WIDE} shared variance"),
        "Fig. 2b", CONVNETS, "", "a least-squares fit is kinder to neurons than a cut of weights"),
    "V11": ("covariance",
        "The Fourier transform makes the covariance of a channel's positions nearly diagonal",
        _rules(0.5, OURS, "squared covariance off the diagonal, share, positions minus "
               "frequencies, mean over channels of p2"),
        "App. 2", None, "", "zero padding and centred objects break the translations"),
}  # fmt: skip
CLAIMS = tuple(
    Claim(id, "Raghu et al. 2017", *texts, gate=gate, corrected=corrected, why=why)
    for id, (_, *texts, gate, corrected, why) in _TABLE.items()
)
MEASURED = {id: row[0] for id, row in _TABLE.items()}  # the experiment whose fidelity is a claim's


def statistics(tables: Mapping[str, pd.DataFrame]) -> dict[str, list[list[float]]]:
    """Return for every claim a list a rule, with a value a unit: a seed, or for V5 a network.

    `tables` has the rows of experiments by name; NaN stands for what is not there.
    """

    def units(name: str, statistic: Callable, parts: int = 1) -> list[list[float]]:
        if name not in tables:
            return [[math.nan]] * parts
        return np.transpose([statistic(own) for _, own in tables[name].groupby("seed")]).tolist()

    restricted = units("restriction", _restriction, 8)
    gains = []
    for net in ("convnets", "resnets"):
        base = ended(tables, net).test_accuracy
        gain = (ended(tables, f"frozen {net}").test_accuracy - base) / (base.std() or math.nan)
        gains.append(gain.dropna().tolist())
    return {
        "V1": restricted[:2],
        "V2": units("toy", _toy, 2),
        "V3": [
            *units("convnet dynamics", _bottom_up, 2),
            *units("resnet dynamics", _bottom_up, 2),
            *units("convnet dynamics", _batch_norm),
            *units("resnet dynamics", _stripes),
        ],
        "V4": [gain or [math.nan] for gain in gains],
        "V5": [
            *by_network(tables.get("initialisations"), _ends, 2),
            *units("architectures", _architectures, 2),
        ],
        "V6": units("classes", _classes, 3),
        "V7": restricted[4:],
        "V9": restricted[2:4],
        "V11": units("covariance", lambda rows: [np.diff(rows.sort_values("of").off)[0]]),
    }


def gates(tables: Mapping[str, pd.DataFrame]) -> dict[str, float]:
    """Return the measured number of each claim's gate, NaN where networks are missing."""
    convnet, resnet = (ended(tables, net).mean() for net in ("convnets", "resnets"))
    numbers = {
        CONVNETS: convnet.test_accuracy,
        PLATEAU: np.min([convnet.test_accuracy - 0.8, resnet.test_accuracy - 0.88]),  # or NaN
        FITTED: convnet.train_accuracy - convnet.test_accuracy,
    }
    return {claim.id: float(numbers[claim.gate]) for claim in CLAIMS if claim.gate}


def ended(tables: Mapping[str, pd.DataFrame], name: str) -> pd.DataFrame:
    """Return the accuracies of networks, a row a seed, mean over the last tenth of training."""
    accuracies = ["train_accuracy", "test_accuracy"]
    nothing = pd.DataFrame(columns=["seed", "epoch", "epochs", *accuracies], dtype=float)
    rows = tables.get(name, nothing)
    return rows[rows.epoch >= (1 - LATE) * rows.epochs].groupby("seed")[accuracies].mean()


def _restriction(rows: pd.DataFrame) -> list[float]:
    """V1 (2), V9 (2), V7 (4)."""
    layer = rows[rows.layer == "fc1"]
    layer = layer[~(layer.neurons < layer.neurons.max())]
    on = layer.groupby(["method", "k"]).accuracy.mean().unstack()
    whole, few = on.loc["all neurons"].max(), on.columns <= 50
    share = (on[25]["SVCCA"] - CHANCE) / (whole - CHANCE or math.nan)
    gap = (on.loc["SVCCA"] - on.loc[["most active", "random"]].max())[few].mean()
    spread = [on[20]["SVCCA"] - on[20][f"by {rule}"] for rule in RANKED[:2]]
    cut = rows.dropna(subset="share").set_index(["method", "fill", "share"]).accuracy
    cut, than = (
        [cut[key][f][s] for f in FILLS] for key, s in (("logits", 0.35), ("second net", 0.45))
    )
    return [share, gap, *spread, *(c - whole + 0.05 for c in cut), *np.subtract(cut, than)]


def _toy(rows: pd.DataFrame) -> list[float]:
    kept = rows[rows.method == "SVCCA"].set_index("k").kept
    return [kept[30], kept[30] - kept[2]]


def areas(rows: pd.DataFrame) -> list[pd.Series]:
    """Return by depth the area above a layer's curve over training; and relative to its start."""
    curves = rows.pivot(index="share", columns="depth", values="value").sort_index()
    area = pd.Series(np.trapezoid(1 - curves, curves.index, axis=0), curves.columns)
    return [area, area / (1 - curves.iloc[0])]


def _order(values: pd.Series) -> float:
    """Return Spearman's correlation with depth; short of 1, where Fisher's z ends."""
    return float(np.clip(correlation(values.index, values), -0.99, 0.99))


def _bottom_up(rows: pd.DataFrame) -> list[float]:
    return [_order(area) for area in areas(rows[rows.what == "curve"])]


def pane(rows: pd.DataFrame, share: float = 1, value: str = "value") -> pd.DataFrame:
    """Return the similarity of layers at a time (rows) to those at the end, mean over seeds.

    The `value` "calibrated" is known of maps at the end.
    """
    what = "calibrated" if value == "calibrated" else "pane"
    rows = rows[(rows.what == what) & (rows.share == share)]
    names = list(dict.fromkeys(rows.column))
    return rows.pivot_table(index="row", columns="column", values=value).loc[names, names]


def _batch_norm(rows: pd.DataFrame) -> list[float]:
    value, layers, gaps = pane(rows), MAPS + DENSE, []
    for norm in ("bn1", "bn2", "bn3", "bn4"):  # with the layer before it, and those around
        i = layers.index(norm)
        low, before, above = layers[i - 2], layers[i - 1], layers[i + 1]
        gaps.append(value[norm][before] - max(value[before][low], value[above][norm]))
    return [float(np.mean(gaps))]


def _stripes(rows: pd.DataFrame) -> list[float]:
    value, gaps = pane(rows), []
    for before, inside, block in zip(value, value.columns[1:], value.columns[2:], strict=False):
        if inside == f"{block}.act1" and (block == "block1_1" or not block.endswith("_1")):
            gaps.append(value[block][before] - value[inside][before])
    return [float(np.mean(gaps))]


def _ends(rows: pd.DataFrame) -> list[float]:
    beyond = (rows.value - rows.null).groupby([rows.share, rows.depth]).mean().unstack()
    beyond = beyond.sub(beyond.iloc[:, 1:-1].mean(axis=1), axis=0)
    return [beyond.iloc[:, 0][1] - beyond.iloc[:, 0][0], beyond.iloc[:, -1][1]]


def _architectures(rows: pd.DataFrame) -> list[float]:
    best = (rows.value - rows.null).groupby(rows.depth).max()
    return [best.iloc[0] - best.iloc[-1], -_order(best)]


def like_classes(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return the two pairs of classes that are confused most, each with the class least so."""
    often = pd.DataFrame(rows.groupby("name", sort=False).confused.first().to_dict())
    often.index = often.columns
    chosen: list[tuple[str, str, str]] = []
    for a, b in sorted(combinations(often, 2), key=lambda pair: -often[pair[0]][pair[1]]):
        if len(chosen) < 2 and not {a, b} & {name for trio in chosen for name in trio[:2]}:
            chosen.append((a, b, (often[a] + often[b]).drop([a, b]).idxmin()))
    return chosen


def _classes(rows: pd.DataFrame) -> list[float]:
    curves = rows.pivot(index="depth", columns="name", values="value")
    apart = pd.DataFrame({a: curves.sub(curves[a], axis=0).abs().mean() for a in curves})
    gaps = []
    for a, b, odd in like_classes(rows):
        rise = (curves[odd] - curves[[a, b]].mean(axis=1)).iloc[: len(curves) // 2].mean()
        any_two = apart.to_numpy().sum() / (len(apart) * (len(apart) - 1))
        gaps.append([apart.loc[odd, [a, b]].mean() - apart[a][b], rise, any_two - apart[a][b]])
    return np.mean(gaps, 0).tolist()
