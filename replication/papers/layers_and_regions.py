"""Claims L1 to L4 of Zhang et al. 2019, R1 to R4 of Hanin and Rolnick 2019: what settles each.

L1 to L3 are about the fully connected network with true labels, L4 about all three networks; the
accuracy is that on test images. A layer is reset alone: to its weights at a share of the training,
0 for the initial ones, or to a fresh draw. R1 to R3 are about networks at initialisation, with He
normal weights and small normal biases; counts are exact.

All statistics and thresholds were fixed before the first run at quick or full. What someone may
doubt: with four or five layers a network, L4's correlation of a single network is coarse, so each
seed's is the mean of three networks; "about 1", "O(1)" and "modest" are not numbers, and what
stands below is our reading of them.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from replication import data, models, sensitivity, training
from replication.claims import Claim, Rule
from replication.directions.resets import recalibrate, reset, weight_distance
from replication.papers._correlation import by_seed, correlation
from replication.papers.experiment import Experiment, by_profile, cifar10
from replication.sensitivity import trajectories

NOTEBOOK = "08_layers_and_regions"
FCN, CONVNET, RESNET = ARCHS = "fcn", "convnet", "resnet"
RESETS, REGIONS = "resets", "regions"  # the two experiments
LABELS = TRUE, RANDOM = "true", "random"
WHOLE, SINGLE, JOINT = "trained", "single", "joint"
INITIAL, TRAINED = "initial", "trained"
HE, DEFAULT = "He normal", "torch's default"
EARLY = 0.1  # share of the training from which the critical layer is taken
LEAST = 0.02  # accuracy lost below which there is nothing to restore
FITTED = 0.99  # train accuracy from which a network counts as having memorised its labels
MEASURES = ["jacobian", "logit_jacobian", "transitions"]
KEYS = ["arch", "labels", "seed"]  # of a network that is reset

SETTINGS = by_profile(
    {  # at smoke, quick, full and paper; smoke has no convnet, for its time
        FCN: {
            "images": ((100, 100), (1000, 500), (5000, 1000), (None, None)),  # training and test
            "epochs": (8, 30, 90, 100),
            "seeds": (1, 2, 10, 5),
            "points": (20, 30, 200, 1000),  # test images for the Jacobian
            "paths": (1, 1, 5, 100),  # test images for transitions, each followed through
            "steps": (4, 28, 28, 28),  # so many translations by a pixel; 28 of 28 close the ring
        },
        CONVNET: {
            "images": (None, (300, 300), (1000, 1000), (None, None)),
            "epochs": (None, 15, 40, 100),
            "seeds": (None, 1, 6, 5),
            "points": (None, 20, 50, 1000),
            "paths": (None, 1, 2, 20),
            "steps": (None, 1, 1, 28),
            "width": (None, 0.125, 0.25, 1.0),
        },
        RESNET: {
            "images": ((40, 40), (200, 200), (500, 250), (None, None)),
            "epochs": (2, 10, 50, 100),
            "seeds": (1, 1, 6, 5),
            "points": (2, 5, 10, 1000),
            "paths": (1, 1, 1, 20),
            "steps": (1, 1, 1, 4),
            "width": (0.0625, 0.125, 0.375, 1.0),
            "shrink": (2, 2, 2, 1),  # side of the pixels averaged into one
        },
        RESETS: {
            "shares": (  # of the training, at which weights are kept
                *((0.0,), (0.0, 0.1, 0.5), (0.0, 0.02, 0.05, 0.1, 0.25, 0.5)),
                (0.0, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75),
            ),
            "joint_shares": ((), (0.0,), (0.0, 0.1), (0.0, 0.02, 0.1, 0.5)),  # for several layers
            "draws": (1, 1, 2, 5),  # fresh ones
        },
        REGIONS: {
            "images": ((100, 50), (200, 100), (500, 200), (None, None)),
            "epochs": (4, 60, 100, 20),
            "seeds": (1, 2, 8, 5),
            "depths": ((1, 2), (1, 2), (1, 2, 4), (1, 2, 3, 4, 6)),
            "neurons": ((8, 16), (16, 32, 64), (32, 64, 128, 256), (48, 96, 192, 384, 768)),
            "stages": (  # shares of the training
                *((0.0, 1.0), (0.0, 0.1, 1.0), (0.0, 0.02, 0.1, 0.3, 1.0)),
                (0.0, 0.01, 0.05, 0.2, 1.0),
            ),
            "lines": (3, 5, 10, 100),
            "planes": (1, 1, 2, 5),
            "largest_plane": (16, 64, 256, 384),  # neurons up to which planes are counted
            "points": (5, 10, 20, 200),  # test images for the distances
            "picture": ((8, 8), (12, 12), (16, 16), (32, 32, 32)),  # widths of figure 7's network
        },
    }
)


def splits(profile: str, dataset: str = "auto") -> dict[str, data.Split]:
    """Return the data of each network and of the regions; CIFAR-10 for the ResNet where it is."""
    parts = {}
    for part, scale in SETTINGS[profile].items():
        if part == RESNET:
            split = cifar10(profile, dataset, subset=scale["images"])
            parts[part] = averaged(split, scale["shrink"])
        elif part != RESETS:
            parts[part] = data.load(dataset, subset=scale["images"])
    return parts


def averaged(split: data.Split, side: int) -> data.Split:
    """Return `split` with the pixels of its images averaged in squares of this side."""
    if side == 1:
        return split
    train, test = (
        data.Examples(F.avg_pool2d(part.images, side), part.labels)
        for part in (split.train, split.test)
    )
    done = "averaged to {}×{} pixels".format(*train.images.shape[-2:])
    return dataclasses.replace(split, train=train, test=test, preprocessing=(done,))


def fitted_examples(split: data.Split, labels: str, seed: int) -> data.Examples:
    """Return the training examples; with `RANDOM` labels each label is drawn anew."""
    if labels == TRUE:
        return split.train
    drawn = data.corrupt_labels(split.train.labels, 1.0, split.num_classes, seed=seed)
    return data.Examples(split.train.images, drawn)


# ------------------------------------------------------------------ resets


def training_spec(spec: dict) -> training.Spec:
    """Return how the network of a spec is trained."""
    model, options = {
        FCN: ("mlp", {"inputs": spec["inputs"], "widths": [256] * 3}),
        CONVNET: ("mnist_convnet", {"channels": [round(n * spec["width"]) for n in (32, 64)]}),
        RESNET: ("resnet", {"depth": 8, "width": spec["width"], "channels": spec["channels"]}),
    }[spec["arch"]]
    adam = spec["arch"] == RESNET  # of the few images, SGD would take it three times as long
    return training.Spec(
        model=model,
        model_options=options,
        optimizer="Adam" if adam else "SGD",
        optimizer_options={} if adam else {"momentum": 0.9},
        learning_rate=0.002 if adam else 0.05,
        batch_size=32 if adam else 64,
        epochs=spec["epochs"],
        checkpoints=tuple(share * spec["epochs"] for share in spec["shares"]),
        evaluate_every=spec["epochs"],
        seed=spec["seed"],
    )


def layers_of(model: nn.Module) -> dict[str, list[str]]:
    """Return the modules of each layer, batch normalisation with the layer before it."""
    layers: dict[str, list[str]] = {}
    for name, child in model.named_children():
        if name.startswith("bn"):
            list(layers.values())[-1].append(name)
        elif list(child.parameters()):
            layers[name] = [name]
    return layers


def measure(model: nn.Module, split: data.Split, spec: dict) -> dict[str, float]:
    """Return accuracy and sensitivity of a network, its batch statistics measured anew."""
    row = {"test_accuracy_as_it_is": training.evaluate(model, split.test)[1]}
    row["train_accuracy_as_it_is"] = training.evaluate(model, split.train)[1]
    model = recalibrate(model, split.train.images)
    row["test_accuracy"] = training.evaluate(model, split.test)[1]
    row["train_accuracy"] = training.evaluate(model, split.train)[1]
    images, steps = split.test.images, spec["steps"]
    points, width = images[: spec["points"]], images.shape[-1]
    row["jacobian"] = sensitivity.jacobian_norm(model, points).mean().item()
    row["logit_jacobian"] = sensitivity.jacobian_norm(model, points, "logits").mean().item()
    rings = [trajectories.translations(image, width) for image in images[: spec["paths"]]]
    paths = rings if steps >= width else [ring[: steps + 1] for ring in rings]
    counts = sensitivity.transitions(model, paths, closed=steps >= width)
    return row | {"transitions": np.mean([int(count) for count in counts])}


def reset_networks(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Train a network and measure it with its layers reset, alone and together."""
    split = data.load(spec["dataset"], subset=tuple(spec["images"]), device=device)
    split = averaged(split, spec.get("shrink", 1))
    split = dataclasses.replace(split, train=fitted_examples(split, spec["labels"], spec["seed"]))
    how = training_spec(spec)
    run = training.fit(how, split, device=device, progress=False)
    whole, final = run.model(device=device), run.state()
    states = [(share, 0, run.state(share * spec["epochs"])) for share in spec["shares"]]
    joint_states = [state for state in states if state[0] in spec["joint_shares"]]
    for draw in range(spec["draws"]):
        seed = 1_000_000 + spec["seed"] * 1000 + draw
        fresh = (math.nan, draw, models.build(how.model, seed, **how.model_options).state_dict())
        states, joint_states = [*states, fresh], [*joint_states, fresh]
    layers = layers_of(whole)
    names = list(layers)
    sets = [(SINGLE, i, [name], states) for i, name in enumerate(names)]
    sets += [(JOINT, math.nan, names[i:], joint_states) for i in range(len(names) - 1)]

    rows = [{"kind": WHOLE, "layer": "none"} | measure(whole, split, spec)]
    for kind, position, together, sources in sets:
        modules = [module for name in together for module in layers[name]]
        label = together[0] if len(together) == 1 else f"{together[0]} to {together[-1]}"
        for share, draw, state in sources:
            row = {"kind": kind, "layer": label, "position": position}
            row |= {"share": share, "draw": draw}
            if not math.isnan(share):
                row |= dataclasses.asdict(weight_distance(state, final, modules))
            rows.append(row | measure(reset(whole, state, modules), split, spec))
    return pd.DataFrame(rows)


# ------------------------------------------------------------------ regions


def region_network(spec: dict, examples: data.Examples, classes: int) -> nn.Sequential:
    """Return the network of a spec as it starts, on the device of the examples."""
    widths = [spec["neurons"] // spec["depth"]] * spec["depth"]
    inputs = examples.images[0].numel()
    model = models.build("mlp", spec["seed"], inputs=inputs, widths=widths, classes=classes)
    if spec["init"] == HE:
        source = torch.Generator().manual_seed(spec["seed"])
        for layer in model:
            if isinstance(layer, nn.Linear):
                shape, scale = layer.weight.shape, (2 / layer.in_features) ** 0.5
                layer.weight.data = scale * torch.randn(shape, generator=source)
                layer.bias.data = 0.001 * torch.randn(shape[:1], generator=source)
    return model.to(examples.images.device)


def train_to(
    stages: Sequence[float], model: nn.Module, spec: dict, examples: data.Examples
) -> Iterator[tuple[float, int]]:
    """Train in place with Adam; yield each share of the training, and the epoch, once it is there.

    Not `training.fit`, whose networks start from torch's initialisation.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    source = torch.Generator().manual_seed(20_000 + spec["seed"])
    epoch = 0
    for share in stages:
        while epoch < round(share * spec["epochs"]):
            order = torch.randperm(len(examples), generator=source)
            for batch in order.to(examples.labels.device).split(spec["batch_size"]):
                optimizer.zero_grad()
                F.cross_entropy(model(examples.images[batch]), examples.labels[batch]).backward()
                optimizer.step()
            epoch += 1
        yield share, epoch


def count_regions(model: nn.Module, split: data.Split, spec: dict) -> dict[str, float]:
    """Return regions on lines and planes through training images, distances from test images."""
    source = torch.Generator().manual_seed(10_000 + spec["seed"])
    images, labels = split.train.images, split.train.labels.cpu()

    def corners(count: int) -> Tensor:
        """Return training images (count, C, H, W) of different classes."""
        picked: list[int] = []
        for row in torch.randperm(len(labels), generator=source).tolist():
            if len(picked) < count and labels[row] not in labels[picked]:
                picked.append(row)
        return images[picked]

    lines = [
        sensitivity.output_curve(model, corners(2), closed=False) for _ in range(spec["lines"])
    ]
    row = {"line": np.mean([line.activation_regions for line in lines])}
    row["linear"] = np.mean([line.linear_regions for line in lines])
    row |= {"plane": math.nan, "certified": math.nan}
    if spec["neurons"] <= spec["largest_plane"]:
        planes = [sensitivity.plane_regions(model, *corners(3)) for _ in range(spec["planes"])]
        row["plane"] = np.mean([plane.count for plane in planes])
        row["certified"] = np.mean([plane.certified for plane in planes])
    points = split.test.images[: spec["points"]]
    directions = torch.randn(points.shape, generator=source).to(points)
    row["distance"] = sensitivity.nearest_boundary(model, points).mean().item()
    row["along"] = sensitivity.nearest_boundary(model, points, directions).median().item()
    return row


def region_rows(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Train one network and count its regions at several stages."""
    split = data.load(spec["dataset"], subset=tuple(spec["images"]), device=device)
    examples = fitted_examples(split, spec["labels"], spec["seed"])
    model = region_network(spec, examples, split.num_classes)
    rows = []
    for share, epoch in train_to(spec["stages"], model, spec, examples):
        row = {"share": share, "epoch": epoch}
        row["stage"] = {0.0: INITIAL, 1.0: TRAINED}.get(share, "between")
        row["train_accuracy"] = training.evaluate(model, examples)[1]
        row["test_accuracy"] = training.evaluate(model, split.test)[1]
        # the lines run through the same images whatever the labels trained on
        rows.append(row | count_regions(model, split, spec))
    return pd.DataFrame(rows)


def picture_networks(
    split: data.Split, widths: Sequence[int], epochs: int
) -> dict[str, nn.Sequential]:
    """Return the same small network at its start and trained on both kinds of labels."""
    spec = {"depth": len(widths), "neurons": sum(widths), "seed": 0, "init": HE}
    spec |= {"epochs": epochs, "batch_size": 32}
    networks = {}
    for labels in LABELS:
        examples = fitted_examples(split, labels, seed=0)
        model = region_network(spec, examples, split.num_classes)
        for share, _ in train_to((0.0, 1.0), model, spec, examples):
            name = f"trained, {labels} labels" if share else "at initialisation"
            networks[name] = copy.deepcopy(model)
    return networks


# ------------------------------------------------------------------ what is run


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the two experiments, the longest networks of each first."""
    settings, parts, options = SETTINGS[profile], splits(profile, dataset), {"device": device}

    def source(part: str) -> dict[str, Any]:
        split = parts[part]  # a substitute may have fewer images than asked for
        count = len(split.train), len(split.test)
        images = count if split.substitute else settings[part]["images"]
        return {"dataset": split.name, "images": list(images)}

    reset_specs = []
    for arch in (arch for arch in reversed(ARCHS) if arch in settings):
        scale, image = settings[arch], parts[arch].train.images[0]
        inputs = image.numel() * scale.get("shrink", 1) ** 2  # before pixels are averaged
        shared = {"inputs": inputs, "channels": len(image), "width": 1.0} | settings[RESETS]
        shared |= {name: v for name, v in scale.items() if name not in ("images", "seeds")}
        reset_specs += [
            {"arch": arch, "labels": labels, "seed": seed} | source(arch) | shared
            for labels in LABELS
            for seed in range(scale["seeds"])
        ]

    design, shared = settings[REGIONS], source(REGIONS)
    shared["batch_size"] = 32 if shared["images"][0] else 128
    shared |= {name: design[name] for name in ("lines", "planes", "largest_plane", "points")}
    length = {"epochs": design["epochs"], "stages": design["stages"]}
    untrained = {"epochs": 0, "stages": (0.0,)}
    kinds = ((HE, TRUE, length), (HE, RANDOM, length), (DEFAULT, TRUE, untrained))
    region_specs = [
        {"depth": depth, "neurons": neurons, "labels": labels, "seed": seed, "init": init}
        | (shared | trained)
        for neurons in sorted(design["neurons"], reverse=True)
        for depth in design["depths"]
        for init, labels, trained in kinds
        for seed in range(design["seeds"])
    ]
    return {
        RESETS: Experiment(reset_networks, reset_specs, options=options),
        REGIONS: Experiment(region_rows, region_specs, options=options),
    }


# ------------------------------------------------------------------ claims


def _claim(
    id: str, statement: str, *rules: Rule, figure: str = "", shown: str = "curves, no number"
) -> Claim:
    paper = {"L": "Zhang et al. 2019", "R": "Hanin and Rolnick 2019"}[id[0]]
    return Claim(id, paper, statement, rules if len(rules) > 1 else rules[0], figure, shown)


def _slope(what: str, expected: int, slack: float) -> Rule:
    return Rule.read(
        f"largest over depths of |slope of ln {what} on ln number of neurons - ({expected})| "
        f"< {slack}"
    )


def _factor(statistic: str, most: float) -> Rule:
    return Rule.old(statistic, "<", math.log(most))


def _changed(what: str, labels: str) -> Rule:
    statistic = (
        f"|ln(regions {what} after training over before)|, mean of networks, {labels} labels"
    )
    return _factor(statistic + ", those that fitted them" * (labels == RANDOM), 3)


CLAIMS = (
    _claim(
        "L1",
        "Re-randomising any layer of the fully connected network takes it to chance",
        Rule.read(
            "test accuracy with one layer drawn anew, mean of draws, largest over layers < 0.2"
        ),
        figure="Heatmaps of the FCN",
        shown="heatmap, about 0.1",
    ),
    _claim(
        "L2",
        "Re-initialising the first layer costs much accuracy, re-initialising a higher one hardly "
        "any",
        Rule.read("test accuracy lost by re-initialising the first layer > 0.2"),
        Rule.read(
            "test accuracy lost by re-initialising a higher layer, largest over layers < 0.05"
        ),
        figure="Heatmaps of the FCN",
        shown="heatmap, no number kept here",
    ),
    _claim(
        "L3",
        "Resetting the critical layer to an early checkpoint, not the initial one, restores the "
        "accuracy",
        Rule.read(
            "share of the accuracy lost by re-initialising the first layer that is kept when it is "
            f"reset to its weights after {EARLY:.0%} of training > 0.5"
        ),
        figure="Heatmaps of the FCN",
        shown="heatmap, no number kept here",
    ),
    _claim(
        "L4",
        "How far a layer's weights went does not predict how critical it is",
        *(
            Rule.read(
                "Spearman correlation over layers of the accuracy lost by re-initialisation and "
                f"the distance from the initial weights ({norm}), mean of three networks < 0.5"
            )
            for norm in ("L2 / sqrt(number of weights)", "Linf")
        ),
        figure="Plots of distances",
        shown="plots, no number",
    ),
    _claim(
        "R1",
        "Regions along a line grow linearly with the number of neurons, whatever the depth",
        _slope("regions on a line", 1, 0.25),
        _factor(
            "largest over depths and numbers of neurons of |ln(regions on a line over those of "
            "the shallowest network of as many neurons)|",
            2,
        ),
    ),
    _claim(
        "R2",
        "Regions in a plane are O(1) times N^2 / 2, N the number of neurons",
        _slope("regions in a plane", 2, 0.5),
        _factor(
            "largest over depths and numbers of neurons of |ln(regions in a plane / (N^2 / 2))|", 10
        ),
        figure="also in 1906.00904",
        shown="curves around 1",
    ),
    _claim(
        "R3",
        "The distance to the nearest boundary is inversely proportional to the number of neurons",
        _slope("mean distance to the nearest boundary", -1, 0.25),
        _slope("median distance along random directions", -1, 0.25),
    ),
    _claim(
        "R4",
        "Training changes the number of regions by a modest factor, even when it memorises",
        *(_changed(what, labels) for what in ("on a line", "in a plane") for labels in LABELS),
        figure="also in 1906.00904",
        shown="curves, a factor of a few",
    ),
)


def statistics(resets: pd.DataFrame, regions: pd.DataFrame) -> dict[str, list]:
    """Return, for every claim, one number a seed, or one such list for each of its rules.

    NaN says that a statistic is undefined for a seed: for example, re-initialising the first layer
    cost no accuracy that could be restored, or no network fitted its random labels. `resets` are
    the rows of `reset_networks`, `regions` those of `region_rows` that start from `HE`.
    """
    lost = accuracy_lost(resets, "test_accuracy")
    single = lost[(lost.kind == SINGLE) & (lost.labels == TRUE)]
    initial = single[single.share == 0]
    fcn, first = single[single.arch == FCN], single[(single.arch == FCN) & (single.position == 0)]
    first = first.pivot_table(index="seed", columns="share", values="lost")
    first = first.reindex(columns=[0.0, EARLY])
    higher = fcn[(fcn.share == 0) & (fcn.position > 0)]
    drawn = fcn[fcn.share.isna()].groupby(["seed", "position"]).test_accuracy.mean()
    # at initialisation labels make no difference
    start = regions[(regions.stage == INITIAL) & (regions.labels == TRUE)]
    ratio = np.log(start.plane / (start.neurons**2 / 2)).abs()
    return {
        "L1": _values(drawn.groupby("seed").max()),
        "L2": [_values(first[0.0]), _values(higher.groupby("seed").lost.max())],
        "L3": _values(1 - first[EARLY] / first[0.0].where(first[0.0] >= LEAST)),
        "L4": [by_seed(initial, predicted, distance) for distance in ("rms", "linf")],
        "R1": [by_seed(start, slope_error, "line", 1), by_seed(start, depth_effect, "line")],
        "R2": [by_seed(start, slope_error, "plane", 2), _values(ratio.groupby(start.seed).max())],
        "R3": [by_seed(start, slope_error, column, -1) for column in ("distance", "along")],
        "R4": [
            by_seed(regions, changed, column, labels)
            for column in ("line", "plane")
            for labels in LABELS
        ],
    }


def _values(by_seed: pd.Series) -> list[float]:
    return by_seed.tolist() or [math.nan]


def accuracy_lost(resets: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the reset networks, with how much less of an accuracy they have than before: lost."""
    whole = resets[resets.kind == WHOLE].set_index(KEYS)[column]
    reset = resets[resets.kind != WHOLE]
    before = whole.reindex(pd.MultiIndex.from_frame(reset[KEYS])).to_numpy()
    return reset.assign(lost=before - reset[column])


def predicted(rows: pd.DataFrame, distance: str) -> float:
    """L4: correlation over layers of accuracy lost and distance, mean of all three networks."""
    if set(rows.arch) != set(ARCHS):
        return math.nan
    networks = (network for _, network in rows.groupby("arch"))
    return pd.Series([correlation(n.lost, n[distance]) for n in networks]).mean()


def slope_error(rows: pd.DataFrame, column: str, expected: float) -> float:
    """Return the largest over depths of |log-log slope on the number of neurons - expected|."""
    errors = []
    for _, depth in rows[rows[column].notna()].groupby("depth"):
        if depth.neurons.nunique() < 2 or not (depth[column] > 0).all():
            return math.nan
        slope, _ = np.polyfit(np.log(depth.neurons), np.log(depth[column]), 1)
        errors.append(abs(slope - expected))
    return max(errors, default=math.nan)


def depth_effect(rows: pd.DataFrame, column: str) -> float:
    """Return the largest |ln of a count over that of the shallowest network of as many neurons|."""
    table = np.log(rows.pivot_table(index="neurons", columns="depth", values=column))
    if table.shape[1] < 2:
        return math.nan
    return table.sub(table.iloc[:, 0], axis=0).abs().max().max()


def changed(rows: pd.DataFrame, column: str, labels: str) -> float:
    """R4: mean |ln(count after over before training)|, random labels only where fitted."""
    networks = rows[rows.labels == labels].set_index(["depth", "neurons"])
    before, after = (networks[networks.stage == stage] for stage in (INITIAL, TRAINED))
    if labels == RANDOM:
        after = after[after.train_accuracy >= FITTED - 1e-9]
    return np.log(after[column] / before[column].reindex(after.index)).abs().mean()


# ------------------------------------------------------------------ the open question


def with_changes(resets: pd.DataFrame) -> pd.DataFrame:
    """Return the reset networks with what they lost, and their sensitivity over that before.

    Adds lost (train accuracy, on the labels trained on), jacobian_ratio, logit_jacobian_ratio and
    transitions_ratio, each over the trained network's of the same arch, labels and seed.
    """
    changes = accuracy_lost(resets, "train_accuracy").reset_index(drop=True)
    whole = resets[resets.kind == WHOLE].set_index(KEYS)[MEASURES]
    before = whole.reindex(pd.MultiIndex.from_frame(changes[KEYS])).reset_index(drop=True)
    return changes.join(changes[MEASURES].div(before).add_suffix("_ratio"))


def sensitivity_of_resets(changes: pd.DataFrame) -> pd.DataFrame:
    """Return how the sensitivity of reset networks goes with the accuracy that they lost.

    Of what `with_changes` returns, a row an architecture, kind of labels and measure: the Spearman
    correlation over reset networks of accuracy lost and measure, its mean over seeds with the 95% t
    interval (low, high; NaN for one seed), the number of seeds, and the median ratio of the measure
    to that of the trained network among networks that lost at least half of what can be lost, down
    to chance 0.1.
    """
    broken = changes.lost > (changes.lost + changes.train_accuracy - 0.1) / 2
    rows = []
    for (arch, labels), part in changes.groupby(["arch", "labels"], sort=False):
        for name in MEASURES:
            ratio = f"{name}_ratio"
            seeds = pd.Series(by_seed(part, lambda rows, r=ratio: correlation(rows.lost, rows[r])))
            known = seeds.dropna()
            mean, n = known.mean(), len(known)
            half = stats.t.ppf(0.975, n - 1) * known.sem() if n > 1 else math.nan
            row = {"arch": arch, "labels": labels, "measure": name, "spearman": mean}
            row |= {"low": mean - half, "high": mean + half, "seeds": n}
            rows.append(row | {"ratio_when_broken": part.loc[broken, ratio].median()})
    return pd.DataFrame(rows)
