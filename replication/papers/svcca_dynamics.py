"""Raghu et al. 2017 (SVCCA): which directions of a layer matter, and when they are learned.

Settles V1 to V8. Similarities are mean correlations: of SVCCA, positions counting as examples, for
one layer in two networks or at two times; of DFT-CCA for different layers. A null is the same with
the examples of one side permuted. Accuracies are on test images. For claims about two networks a
seed is a network and the one with the next seed, so that each network is in two pairs.

Measuring functions take a spec of `plan` and return rows. Trained networks are kept beside these.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from replication import activations, data, models, similarity, training
from replication._core.inputs import choose_device, generator
from replication._core.profiles import PROFILES
from replication.claims import Claim, Rule
from replication.directions.projection import onto_directions, onto_neurons, projected
from replication.papers import Experiment, cifar10, runs
from replication.papers._correlation import by_seed, correlation, parts_by_seed
from replication.training.trainer import Trainer

NOTEBOOK = "03_svcca_dynamics"
_SHARES = (0, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.27, 0.35, 0.45, 0.6, 0.75, 0.87, 1)
_SCALES = {  # smoke, quick, full, and the paper's, whose ResNet's depth and steps are not stated
    "images": ((320, 100), (600, 300), (5000, 2000), (None, None)),  # training and test
    "width": (1 / 16, 1 / 8, 1 / 4, 1.0),  # multiplies the convnet's channels and units
    "epochs": (2, 6, 25, 100),  # of the convnet
    # depth, width and epochs
    "resnet": ((8, 1 / 8, 1), (8, 1 / 4, 3), (14, 1 / 2, 12), (20, 1.0, 100)),
    "seeds": ((2, 1), (2, 2), (10, 3), (5, 5)),  # of the convnet and the toy; of the ResNet
    "shown": ((100, 20), (300, 20), (700, 100), (5000, 1000)),  # compared; at every position
    "toy": ((30, 60), (300, 200), (3000, 200), (20_000, 200)),  # steps and neurons
    "pooled": (4, 4, 8, 8),  # side to which maps are pooled for flattened CCA
    "shares": ((0, 1), (0, 0.05, 0.15, 0.35, 0.75, 1), _SHARES, _SHARES),  # of training, looked at
}
SETTINGS = {p: {k: v[i] for k, v in _SCALES.items()} for i, p in enumerate(PROFILES)}
BATCH = 50  # divides the numbers of training images
CLASSES = {  # alike because they look alike; fixed before any run
    "cifar10": {"alike": ["cat", "dog"], "unlike": ["truck", "ship", "airplane"]},
    "mnist": {"alike": ["4", "9"], "unlike": ["0", "1", "6"]},
}
CONVNET_DEPTH = ("c1", "c2", "c3", "c4", "c5", "fc1", "fc2")  # each affine layer but the logits
CONV_LAYERS = ["c1", "c2", "bn1", "p1", "c3", "c4", "c5", "bn2", "p2"]
CONV_LAYERS += ["fc1", "bn3", "fc2", "bn4", "logits"]
GROUPS = ("c1", "c2 bn1", "c3", "c4", "c5 bn2", "fc1 bn3", "fc2 bn4", "logits")  # frozen in turn
DENSE = {"p2": "p2", "fc1": "act6", "fc2": "act7"}  # in the paper's figure: module
LAST = {"c3": "act3", "c4": "act4", "p2": "p2", "fc1": "act6", "fc2": "act7"}
SHOWN_CURVES = (2, 6, 15, 30)  # directions of the toy network that are drawn
LIVELY = 9  # aligned directions: one less than classes
THRESHOLD = 0.9  # similarity to the final representation from which a layer counts as final
DIRECTIONS = {"keep": 25, "few": 20}  # of the first dense layer
NEURONS = 0.2  # share of the neurons of that layer that the few directions are compared with
TOY_DIRECTIONS = 30
WIDTH = 0.35  # share of the directions that compression keeps
COMPRESSED = 5  # layers


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the notebook's experiments by name, in order.

    ValueError if the data set has not the classes of `CLASSES`.
    """
    settings = SETTINGS[profile]
    split = cifar10(profile, dataset, settings["images"])
    classes = CLASSES["cifar10" if split.name == "cifar10" else "mnist"]
    if missing := {name for names in classes.values() for name in names} - set(split.classes):
        text = f"no classes {sorted(missing)} in {split.name!r}; CIFAR-10 or MNIST"
        raise ValueError(f"dataset: {text}")
    train_count, test_count = len(split.train), len(split.test)
    channels, size = split.train.images.shape[1:3]
    depth, width, resnet_epochs = settings["resnet"]
    steps, units = settings["toy"]
    images, positions = shown = list(settings["shown"])

    def networks(model: str, epochs: int, seeds: int, **options) -> list[dict]:
        spec = {"dataset": split.name, "images": [train_count, test_count], "model": model}
        checkpoints = [round(share * epochs, 3) for share in settings["shares"]]
        spec |= {"options": options, "epochs": epochs, "batch": BATCH, "checkpoints": checkpoints}
        return [spec | {"seed": seed} for seed in range(seeds)]

    def each(specs: Sequence[dict], **more) -> list[dict]:
        return [spec | more for spec in specs]

    convnet = {"width": settings["width"], "channels": channels, "size": size}
    resnet = {"depth": depth, "width": width, "channels": channels}
    convnets = networks("convnet", settings["epochs"], settings["seeds"][0], **convnet)
    resnets = networks("resnet", resnet_epochs, settings["seeds"][1], **resnet)
    following = {spec["seed"]: convnets[(spec["seed"] + 1) % len(convnets)] for spec in convnets}
    pairs = [spec | {"next": following[spec["seed"]]["seed"]} for spec in convnets]
    crossed = [s | {"convnet": following[s["seed"]]} for s in resnets + convnets[:3]]
    experiments = {
        train: resnets + convnets,  # longest first
        toy: [{"seed": seed, "steps": steps, "width": units} for seed in range(len(convnets))],
        low_dimension: pairs,
        dynamics: each(resnets + convnets, shown=shown),
        freeze: convnets,
        class_sensitivity: each(resnets, shown=min(train_count, 5 * images), classes=classes),
        same_layers: each(pairs, shown=shown),
        across: each(crossed, shown=shown),
        agreement: each(pairs[:3], pooled=min(settings["pooled"], size // 4)),  # the side of p2
        alignment: each(pairs, columns=min(500, test_count)),
        compression: each(pairs, positions=positions, kept=[0.1, 0.2, WIDTH, 0.5, 0.75]),
    }
    return {
        measure.__name__: Experiment(measure, specs, options={"device": device})
        for measure, specs in experiments.items()
    }


def training_spec(spec: Mapping) -> training.Spec:
    """Return what `training` needs to know: Adam on images shifted by up to 4 pixels."""
    return training.Spec(
        model={"convnet": "svcca_convnet", "resnet": "resnet"}[spec["model"]],
        model_options=spec["options"],
        optimizer="Adam",
        learning_rate=1e-3,
        batch_size=spec["batch"],
        epochs=spec["epochs"],
        augment={"shift": 4},
        checkpoints=tuple(spec["checkpoints"]),
        evaluate_every=spec["epochs"] / min(10, spec["epochs"]),
        evaluation_images=500,
        seed=spec["seed"],
    )


def trained(spec: Mapping, images: data.Split, device: str = "auto") -> training.Run:
    """Return the run of a spec, trained if it is not kept."""
    store = runs() / NOTEBOOK / "networks"
    return training.fit(training_spec(spec), images, store=store, device=device, progress=False)


def loaded(spec: Mapping, device: str = "auto") -> data.Split:
    """Return the images of a spec, standardised."""
    return data.standardise(data.load(spec["dataset"], subset=spec["images"], device=device))[0]


def pair_of(spec: Mapping, device: str) -> tuple[data.Split, list[nn.Module]]:
    """Return the images, and the trained networks of a spec and of the next seed."""
    images = loaded(spec, device)
    specs = spec, spec | {"seed": spec["next"]}
    return images, [trained(each, images, device).model(device=device) for each in specs]


def behind(model: nn.Sequential, layer: str) -> nn.Sequential:
    """Return the part of a network behind a layer."""
    return model[list(dict(model.named_children())).index(layer) + 1 :]


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the share of examples whose largest logit is the label's."""
    return (model.eval()(inputs).argmax(1) == labels).double().mean().item()


def train(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Train one network; return its history."""
    return trained(spec, loaded(spec, device), device).history


def toy(spec: dict, device: str = "auto") -> list[dict]:
    """Train two toy networks; return the output that projections keep, and curves to draw."""
    x = torch.linspace(-1, 1, 1000)
    draw = torch.randn(2, 4, 4, generator=generator(0, "toy targets"))
    waves = torch.arange(1, 5) * x[:, None, None] * torch.pi + torch.pi * draw[0]
    y = (draw[1] / torch.arange(1, 5) * waves.sin()).sum(2)
    nets = [_toy_network(spec, number, x, y) for number in range(2)]
    (first, output), (second, _) = (
        activations.record(net, x[:, None], ["act4", "fc5"]).values() for net in nets
    )
    hidden = first, second
    svcca = similarity.svcca(first, second, null=5)
    singular = [torch.linalg.svd(z - z.mean(0), full_matrices=False).Vh.mT for z in hidden]
    active = [z.abs().mean(0).argsort(descending=True).tolist() for z in hidden]
    shuffled = torch.randperm(len(active[0]), generator=generator(spec["seed"], "random")).tolist()
    rows, total = [], (output - output.mean(0)).square().sum()
    for k in (1, 2, 4, 6, 10, 15, 20, 30, 40, 50):
        for method, project in {
            "SVCCA": onto_directions(first, svcca.x_directions[:, :k]),
            "SVD": onto_directions(first, singular[0][:, :k]),
            "most active": onto_neurons(first, active[0][:k]),
            "random": onto_neurons(first, shuffled[:k]),
        }.items():
            with torch.no_grad():
                shown = nets[0][-1:](project(first))
            kept = 1 - ((shown - output).square().sum() / total).item()
            row = {"what": "projected", "method": method, "k": k, "kept": kept}
            rows.append(row | {"curves": shown[::5].mT.tolist() if k in SHOWN_CURVES else []})
    for method, pair in {
        "most active neurons": [z[:, order[:3]] for z, order in zip(hidden, active, strict=True)],
        "top SVD directions": [z @ w[:, :3] for z, w in zip(hidden, singular, strict=True)],
        "top SVCCA directions": [svcca.x_variates[:, :3], svcca.y_variates[:, :3]],
    }.items():
        for net, z in enumerate(pair):
            curves = ((z - z.mean(0)) / z.std(0).clamp(min=1e-9))[::5].mT.tolist()
            rows.append({"what": "directions", "method": method, "k": net, "curves": curves})
    rows.append({"what": "target", "method": "", "k": 0, "curves": y[::5].mT.tolist()})
    error = F.mse_loss(output, y).item() / y.var(0).mean().item()
    summary = {"error": error, "mean": svcca.mean.item(), "null": svcca.null.mean().item()}
    return [row | summary for row in rows]


def _toy_network(spec: Mapping, number: int, x: Tensor, y: Tensor) -> nn.Sequential:
    """Return an MLP of four hidden layers fitted to y (points, 4) at x (points,)."""
    options = {"inputs": 1, "widths": [spec["width"]] * 4, "classes": 4}
    model = models.build("mlp", 2 * spec["seed"] + number, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(spec["steps"]):
        order = torch.randperm(len(x), generator=generator(spec["seed"], f"toy/{number}", step))
        batch = order[:200]
        optimizer.zero_grad()
        F.mse_loss(model(x[batch, None]), y[batch]).backward()
        optimizer.step()
    return model


def low_dimension(spec: dict, device: str = "auto") -> list[dict]:
    """Measure the accuracy of a convnet with one layer on a few directions or neurons."""
    images, nets = pair_of(spec, device)
    modules, labels = list(DENSE.values()), images.test.labels
    first, second = (activations.record(net, images.train.images, modules) for net in nets)
    test = activations.record(nets[0], images.test.images, modules)
    rows = []
    for layer, module in DENSE.items():
        x, y, rest = first[module].flatten(1), second[module].flatten(1), behind(nets[0], module)
        width, shared = x.shape[1], similarity.svcca(x, y).x_directions
        axes = torch.eye(width, device=x.device)
        active = x.abs().mean(0).argsort(descending=True).tolist()
        sources = [generator(spec["seed"], f"neurons/{layer}", draw) for draw in range(3)]
        shuffled = [torch.randperm(width, generator=source).tolist() for source in sources]
        row = {"layer": layer, "width": width}
        counts = {1, 2, 5, 10, 15, 20, 25, 50, 100, 200, 400, round(NEURONS * width)}
        for k in sorted(k for k in counts if k < width):
            for method, project in (
                ("SVCCA", onto_directions(x, shared[:, :k])),
                ("most active", onto_neurons(x, active[:k])),
                ("most active, fitted", onto_directions(x, axes[:, active[:k]])),
                *[("random", onto_neurons(x, order[:k])) for order in shuffled],
            ):
                value = accuracy(rest, project(test[module]), labels)
                rows.append(row | {"method": method, "k": k, "accuracy": value})
        value = accuracy(rest, test[module], labels)
        rows.append(row | {"method": "all neurons", "k": width, "accuracy": value})
    return rows


def layers_of(spec: Mapping) -> tuple[list[str], list[str]]:
    """Return the layers of the panes, and those whose approach to the end is followed."""
    if spec["model"] == "convnet":
        return CONV_LAYERS, [*CONVNET_DEPTH, "logits"]
    a_stage = (spec["options"]["depth"] - 2) // 6
    blocks = [f"block{stage}_{i + 1}" for stage in (1, 2, 3) for i in range(a_stage)]
    inside = [part for block in blocks for part in (f"{block}.act1", block)]
    return ["act1", *inside, "fc"], ["act1", *blocks, "fc"]


def _same_layer(x: Tensor, y: Tensor, images: int, null: int) -> pd.DataFrame:
    """Return SVCCA of one layer in two networks; positions of the first images are examples."""
    sides = ({"": z[:images] if z.ndim == 4 else z} for z in (x, y))
    return similarity.compare(*sides, "svcca", conv="positions", null=null).to_frame()


def dynamics(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Compare layers during training with all layers at its end, and each with its own end."""
    split = loaded(spec, device)
    run, images = trained(spec, split, device), split.train.images[: spec["shown"][0]]
    layers, followed = layers_of(spec)
    end = activations.record(run.model(device=device), images, layers)
    tables = []
    for epoch in run.checkpoints:
        last = epoch == max(run.checkpoints)
        now = end if last else activations.record(run.model(epoch, device), images, layers)
        grid = similarity.compare(now, end, "dft_cca", null=int(last))
        tables.append(grid.to_frame().assign(what="pane", epoch=epoch))
        for depth, layer in enumerate(followed):
            own = _same_layer(now[layer], end[layer], spec["shown"][1], int(last))
            row = own.assign(what="curve", epoch=epoch, row=layer, column=layer)
            tables.append(row.assign(depth=depth))
    return pd.concat(tables, ignore_index=True)


def freeze(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Train a convnet, freezing from the bottom up; return its history and the plain one's.

    Layer l of L is frozen, with its batch norm, when the share l / L of training is over.
    Operations are multiply-adds, counted in one step of each stage; seconds are of the CPU.
    """
    images = loaded(spec, device)
    run = Trainer(training_spec(spec | {"checkpoints": []}), images, choose_device(device))
    stops = {round(run.last_step * i / len(GROUPS)): g for i, g in enumerate(GROUPS[:-1], 1)}
    operations = seconds = 0.0
    per_step, log, first = None, [], {}
    while True:
        if run.at_event({}):
            run.evaluate()
            spent = {"frozen": True, "operations": operations, "seconds": seconds}
            log.append(run.rows[-1] | spent)
        if run.status():
            break
        for name in stops.get(run.step, "").split():
            _freeze_layer(run.model.get_submodule(name))
            first = first or {"operations": operations / run.step, "seconds": seconds / run.step}
            per_step = None
        start = time.process_time()
        if per_step is None:
            with FlopCounterMode(display=False) as counter:
                run.advance()
            per_step = counter.get_total_flops() / 2
        else:
            run.advance()
            seconds += time.process_time() - start
        operations += per_step
    plain = trained(spec, images, device).history
    plain = plain[plain.step.isin([row["step"] for row in log])]
    spent = {name: value * plain.step for name, value in first.items()}
    return pd.concat([pd.DataFrame(log), plain.assign(frozen=False, **spent)], ignore_index=True)


def _freeze_layer(layer: nn.Module) -> None:
    layer.requires_grad_(False).eval()
    layer.train = lambda mode=True: layer  # stays so when the network is put in training mode


def class_sensitivity(spec: dict, device: str = "auto") -> list[dict]:
    """Compare single logits of a ResNet with every layer."""
    images, layers = loaded(spec, device), layers_of(spec)[0]
    model = trained(spec, images, device).model(device=device)
    recorded = activations.record(model, images.train.images[: spec["shown"]], layers)
    rows = []
    for role, names in spec["classes"].items():
        for name in names:
            logit = recorded["fc"][:, [images.classes.index(name)]]
            for depth, layer in enumerate(layers[:-1]):
                cca = similarity.dft_cca(recorded[layer], logit, null=3)
                row = {"role": role, "name": name, "layer": layer, "depth": depth}
                rows.append(row | {"value": cca.mean.item(), "null": cca.null.mean().item()})
    return rows


def same_layers(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Compare each layer of a convnet with itself in the convnet of the next seed."""
    split, nets = pair_of(spec, device)
    images, positions = spec["shown"]
    shown, layers = split.train.images[: 3 * images], [*CONVNET_DEPTH, "logits"]
    first, second = (activations.record(net, shown, layers) for net in nets)
    tables = [
        _same_layer(first[layer], second[layer], positions, 2).assign(layer=layer, depth=depth)
        for depth, layer in enumerate(layers)
    ]
    return pd.concat(tables, ignore_index=True)


def across(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Compare all layers of a network with all of a convnet of the next seed."""
    split = loaded(spec, device)
    images = split.train.images[: spec["shown"][0]]
    first, second = (
        activations.record(
            trained(each, split, device).model(device=device), images, layers_of(each)[0]
        )
        for each in (spec, spec["convnet"])
    )
    table = similarity.compare(first, second, "dft_cca", null=1).to_frame()
    return table.assign(depth=table.column.map(CONV_LAYERS.index))


def rolled(images: Tensor, seed: int) -> Tensor:
    """Return every image (N, C, H, W) translated at random, wrapping around."""
    source, device = generator(seed, "translations"), images.device
    n, _, height, width = images.shape
    rows, columns = (
        (torch.arange(side) + torch.randint(side, (n, 1), generator=source)).to(device) % side
        for side in (height, width)
    )
    index = torch.arange(n, device=device)[:, None, None]
    return images.movedim(1, -1)[index, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def agreement(spec: dict, device: str = "auto") -> list[dict]:
    """Compare pooled maps of two convnets by CCA of flattened maps and by DFT-CCA, timed."""
    split, nets = pair_of(spec, device)
    images, pool = split.train.images, nn.AdaptiveAvgPool2d(spec["pooled"])
    rows = []
    for text, shown in {"natural": images, "translated": rolled(images, spec["seed"])}.items():
        both = [activations.record(net, shown, ["p1", "p2"], reduction=pool) for net in nets]
        for layer, maps in both[0].items():
            sides = [{"": layers[layer]} for layers in both]
            for method, conv in (("flattened", "flatten"), ("DFT", "dft")):
                start = time.process_time()
                value = similarity.compare(*sides, "cca", conv=conv).values.item()
                seconds = time.process_time() - start
                null = similarity.compare(*sides, "cca", conv=conv, null=1).null.item()
                row = {"layer": layer, "data": text, "method": method, "seconds": seconds}
                rows.append(row | {"value": value, "null": null, "neurons": maps[0].numel()})
    return rows


def alignment(spec: dict, device: str = "auto") -> list[dict]:
    """Correlate units, and aligned directions, of fc2 in two convnets; what classes explain."""
    images, nets = pair_of(spec, device)
    test, labels = images.test.images, images.test.labels
    x, y = (activations.record(net, images.train.images, ["act7"])["act7"] for net in nets)
    units = [activations.record(net, test, ["act7"])["act7"].double() for net in nets]
    svcca = similarity.svcca(x, y)
    directions = [
        (unit - z.double().mean(0)) @ w[:, :LIVELY].double()
        for unit, z, w in zip(units, (x, y), (svcca.x_directions, svcca.y_directions), strict=True)
    ]
    order = torch.randperm(len(test), generator=generator(spec["seed"], "null")).to(labels.device)
    mixed = [directions[0], directions[1][order]]
    member = F.one_hot(labels, images.num_classes).double()
    shown = labels[: spec["columns"]].argsort(stable=True)
    rows = []
    for kind, pair in {"unit": units, "direction": directions, "null": mixed}.items():
        a, b = (z - z.mean(0) for z in pair)
        length_a, length_b = (z.square().sum(0).sqrt() for z in (a, b))
        means = (member.mT @ a) / member.sum(0)[:, None]
        between = (member.sum(0)[:, None] * means.square()).sum(0)
        for i in range(a.shape[1]):
            if min(length_a[i], length_b[i]) < 1e-9:
                continue  # a dead unit
            row = {"kind": kind, "index": i}
            row["correlation"] = abs((a[:, i] @ b[:, i] / (length_a[i] * length_b[i])).item())
            row["class_share"] = (between[i] / length_a[i] ** 2).item()
            for side, z, length in (("first", a, length_a), ("second", b, length_b)):
                values = z[shown, i] / length[i] * len(z) ** 0.5
                row[side] = values.float().tolist() if i < LIVELY else []
            rows.append(row)
    return rows


def compression(spec: dict, device: str = "auto") -> list[dict]:
    """Measure the accuracy with the last layers projected together on shared directions."""
    images, nets = pair_of(spec, device)
    labels, modules = images.test.labels, list(LAST.values())
    first, second = (
        activations.record(net, images.train.images, [*modules, "logits"]) for net in nets
    )
    start = activations.record(nets[0], images.test.images, ["p1"])["p1"]
    rest = behind(nets[0], "p1")

    def vectors(layer: Tensor) -> Tensor:  # of maps, every position of the first images
        return layer[: spec["positions"]].movedim(1, -1).flatten(0, 2) if layer.ndim == 4 else layer

    x = {m: vectors(first[m]) for m in modules}
    partners = {
        "network": {m: similarity.svcca(x[m], vectors(second[m])) for m in modules},
        "logits": {
            m: similarity.svcca(activations.spatial_mean(first[m]), first["logits"])
            for m in modules
        },
    }
    rows = []
    for partner, svcca in partners.items():
        for count in range(1, len(modules) + 1):
            for share in spec["kept"]:
                maps = {}
                for m in modules[-count:]:
                    k = max(1, round(share * x[m].shape[1]))
                    maps[m] = onto_directions(x[m], svcca[m].x_directions[:, :k])
                with projected(rest, maps):
                    value = accuracy(rest, start, labels)
                row = {"partner": partner, "layers": count, "share": share}
                rows.append(row | {"accuracy": value})
        value = accuracy(rest, start, labels)
        rows.append({"partner": partner, "layers": 0, "share": 1.0, "accuracy": value})
    return rows


def _claim(id: str, statement: str, *rules: str | Rule, figure: str, shown: str) -> Claim:
    rules = tuple(Rule.read(rule) if isinstance(rule, str) else rule for rule in rules)
    rule = rules[0] if len(rules) == 1 else rules
    return Claim(id, "Raghu et al. 2017", statement, rule, figure, shown)


CLAIMS = (
    _claim(
        "V1",
        "A few SVCCA directions of a layer carry the network's accuracy, and many more neurons do "
        "not",
        f"accuracy with fc1 projected on its top {DIRECTIONS['keep']} SVCCA directions minus "
        "with all neurons > -0.02",
        f"accuracy on {DIRECTIONS['few']} SVCCA directions minus on {NEURONS:.0%} of the "
        "neurons, the most active or random ones, whichever is better > 0",
        figure="Fig. 2",
        shown="25 of 512 directions keep the accuracy, 100 neurons fall short of 20 directions",
    ),
    _claim(
        "V2",
        f"{TOY_DIRECTIONS} of 200 SVCCA directions give the full output of the toy network",
        f"share of the output's variance kept on {TOY_DIRECTIONS} directions of the last "
        "hidden layer > 0.99",
        figure="Figs. 1, 3",
        shown="curves, no number",
    ),
    _claim(
        "V3",
        "Layers reach their final representation from the bottom up; batch norm resembles the "
        "layer before it, and residual networks show grids",
        "convnet: Spearman correlation of depth with the epoch from which similarity to the "
        f"final layer stays above {THRESHOLD:g}, logits left out > 0",
        "ResNet: the same, over outputs of blocks > 0",
        "convnet: similarity of batch norm and the layer before it, minus the greater one of "
        "the two with a layer around them, mean over batch norm layers > 0",
        "ResNet: similarity of successive blocks' outputs minus of the first output and the "
        "second's inside, mean over blocks that keep the size > 0",
        figure="Fig. 4",
        shown="panes, no number",
    ),
    _claim(
        "V4",
        "Freezing layers from the bottom up during training costs no accuracy and less compute",
        "test accuracy with freeze training minus without > -0.01",
        Rule.read(
            "multiply-adds of forward and backward passes, share of those without freezing < 1",
            "every",
        ),
        figure="Fig. 5",
        shown="curves; slightly higher accuracy",
    ),
    _claim(
        "V5",
        "Between two initialisations first and last layers are alike and middle ones less; between "
        "a ResNet and a convnet low layers are alike and similarity falls with depth",
        "similarity beyond the null, first layer minus mean of the middle ones > 0",
        "similarity beyond the null, logits minus mean of the middle ones > 0",
        "Spearman correlation of depth in the convnet with the similarity beyond the null of "
        "the best matching layer of the ResNet < 0",
        figure="Fig. 7, App. 3",
        shown="heatmaps, no number",
    ),
    _claim(
        "V6",
        "Logits of like classes have nearly one curve of similarity over layers; an unlike class "
        "differs and rises earlier",
        "mean distance over layers of the two like classes' curves minus of the unlike ones' "
        "to their mean < 0",
        "unlike minus like classes, mean over the lower half of the layers > 0",
        figure="Fig. 6",
        shown="curves, no number",
    ),
    _claim(
        "V7",
        f"The last {COMPRESSED} layers are cut to {WIDTH:g} of their width with little loss",
        "accuracy with the layers projected together on their SVCCA directions minus with none "
        "projected > -0.05",
        figure="App. Fig.",
        shown="curve, no number",
    ),
    _claim(
        "V8",
        "Units of two initialisations look unrelated; aligned directions match and switch on for "
        "whole classes",
        "|correlation| of units of equal number in two networks, on held-out examples, mean < 0.3",
        "|correlation| of the top 9 aligned directions, as above > 0.8",
        "share of variance that classes explain, top 9 directions minus units, mean > 0",
        figure="reference page",
        shown="pictures, no number",
    ),
)


def statistics(tables: Mapping[str, pd.DataFrame]) -> dict[str, list]:
    """Return, for every claim, one number a seed; a list of such lists for several rules.

    NaN says that a statistic is undefined for a seed. Every table has the column seed.

    Parameters
    ----------
    tables : mapping of name to DataFrame
        ``projected`` (V1): layer, width, method ("SVCCA", "most active", "random", "all neurons"),
        k, accuracy. ``toy`` (V2): method, k, kept. ``curves`` (V3): model ("convnet", "resnet"),
        layer, depth, epoch, value; without logits and layers that repeat others. ``panes`` (V3):
        model, row, column, value, at the end of training. ``freezing`` (V4): frozen, step,
        test_accuracy, operations (so far). ``pairs`` (V5): layer, depth, value, null. ``cross``
        (V5): row (ResNet), column, depth (of the column), value, null. ``classes`` (V6): role
        ("alike" for two classes, "unlike"), name, layer, depth, value. ``compressed`` (V7): partner
        ("network"), layers, share, accuracy. ``alignment`` (V8): kind ("unit", "direction"),
        correlation, class_share; one row a unit or direction.
    """
    convnet, resnet = (
        {name: tables[name][tables[name].model == model] for name in ("curves", "panes")}
        for model in ("convnet", "resnet")
    )
    return {
        "V1": parts_by_seed(tables["projected"], _few_directions, 2),
        "V2": by_seed(tables["toy"], _toy_output),
        "V3": [
            by_seed(convnet["curves"], bottom_up),
            by_seed(resnet["curves"], bottom_up),
            by_seed(convnet["panes"], _batch_norm),
            by_seed(resnet["panes"], _grid),
        ],
        "V4": parts_by_seed(tables["freezing"], _freezing, 2),
        "V5": [
            *parts_by_seed(tables["pairs"], _initialisations, 2),
            by_seed(tables["cross"], _architectures),
        ],
        "V6": parts_by_seed(tables["classes"], _class_curves, 2),
        "V7": by_seed(tables["compressed"], _compressed),
        "V8": parts_by_seed(tables["alignment"], _interpretability, 3),
    }


def _means(rows: pd.DataFrame, keys: list[str], number: str = "value") -> Callable[..., float]:
    """Return a look-up of the mean of a number by the values of some columns; NaN for none."""
    means = rows.groupby(keys)[number].mean()
    return lambda *key: float(means.get(key, math.nan))


def _few_directions(rows: pd.DataFrame) -> tuple[float, float]:
    """V1: accuracy on 25 directions minus on all; on 20 minus on a fifth of the neurons."""
    rows = rows[rows.layer == "fc1"]
    accuracy, width = _means(rows, ["method", "k"], "accuracy"), rows.width.iloc[0]
    neurons = max(accuracy(m, round(NEURONS * width)) for m in ("most active", "random"))
    keep, few = (accuracy("SVCCA", DIRECTIONS[name]) for name in ("keep", "few"))
    return keep - accuracy("all neurons", width), few - neurons


def _toy_output(rows: pd.DataFrame) -> float:
    """V2: share of the output's variance that the SVCCA directions keep."""
    return _means(rows, ["method", "k"], "kept")("SVCCA", TOY_DIRECTIONS)


def passing(curve: pd.DataFrame, threshold: float = THRESHOLD, relative: bool = False) -> float:
    """Return the epoch at which a layer's similarity to its final state passes for good.

    Linear between checkpoints; NaN for never. With `relative`, similarity is (s - s_0) / (1 - s_0),
    so that what a layer has in common with its own initial state does not count.
    """
    curve = curve.sort_values("epoch")
    epoch, value = curve.epoch.to_numpy(float), curve.value.to_numpy(float)
    if relative:
        value = (value - value[0]) / max(1 - value[0], 1e-12)
    below = np.flatnonzero(value < threshold)
    if not len(below):
        return float(epoch[0])
    last = below[-1]
    if last == len(value) - 1:
        return math.nan
    share = (threshold - value[last]) / (value[last + 1] - value[last])
    return float(epoch[last] + share * (epoch[last + 1] - epoch[last]))


def bottom_up(curves: pd.DataFrame, relative: bool = False) -> float:
    """V3: Spearman's correlation of depth with the epoch at which a layer passes."""
    threshold = 0.5 if relative else THRESHOLD
    epochs = {d: passing(curve, threshold, relative) for d, curve in curves.groupby("depth")}
    return correlation(epochs.keys(), epochs.values())


def _batch_norm(panes: pd.DataFrame) -> float:
    """V3: mean similarity of batch norm with the layer before it, minus with what lies around."""
    value = _means(panes, ["row", "column"])
    # layer before, norm: the layers below and above the two
    around = {("c2", "bn1"): ("c1", "p1"), ("c5", "bn2"): ("c4", "p2")}
    around |= {("fc1", "bn3"): ("p2", "fc2"), ("fc2", "bn4"): ("bn3", "logits")}
    gaps = [
        value(before, norm) - max(value(lower, before), value(norm, upper))
        for (before, norm), (lower, upper) in around.items()
    ]
    return float(np.mean(gaps))


def _grid(panes: pd.DataFrame) -> float:
    """V3: similarity of successive blocks' outputs minus of the block before and what is within.

    Over the blocks that keep the size; the output lies further, in layers, than the inside.
    """
    value, layers = _means(panes, ["row", "column"]), list(dict.fromkeys(panes.column))
    gaps = []
    for before, inside, name in zip(layers, layers[1:], layers[2:], strict=False):
        if inside == f"{name}.act1" and (name == "block1_1" or not name.endswith("_1")):
            gaps.append(value(before, name) - value(before, inside))
    return float(np.mean(gaps)) if gaps else math.nan


def _freezing(rows: pd.DataFrame) -> tuple[float, float]:
    """V4: test accuracy frozen minus not; multiply-adds as a share of those without freezing."""
    end = rows.sort_values("step").groupby("frozen")[["test_accuracy", "operations"]].last()
    plain, frozen = end.reindex([False, True]).to_numpy()
    return float(frozen[0] - plain[0]), float(frozen[1] / plain[1])


def _initialisations(pairs: pd.DataFrame) -> tuple[float, float]:
    """V5: similarity beyond chance of the first layer, and the last, minus of those between."""
    beyond = (pairs.value - pairs.null).groupby(pairs.depth).mean().sort_index()
    middle = beyond.iloc[1:-1].mean()
    return float(beyond.iloc[0] - middle), float(beyond.iloc[-1] - middle)


def _architectures(cross: pd.DataFrame) -> float:
    """V5: correlation of depth in the convnet with the best match among the ResNet's layers."""
    best = (cross.value - cross.null).groupby(cross.depth).max()
    return correlation(best.index, best)


def _class_curves(rows: pd.DataFrame) -> tuple[float, float]:
    """V6: distance of the alike classes' curves minus of theirs to the unlike; unlike minus alike.

    Distances are mean absolute differences over layers; the second is the mean over the lower half
    of the layers.
    """
    wide = rows.pivot_table(index="depth", columns=["role", "name"], values="value").sort_index()
    roles = list(wide.columns.get_level_values(0))
    if roles.count("alike") != 2 or "unlike" not in roles:
        return math.nan, math.nan
    alike, unlike = wide["alike"], wide["unlike"]
    beyond = unlike.sub(alike.mean(axis=1), axis=0)
    within = (alike.iloc[:, 0] - alike.iloc[:, 1]).abs().mean()
    rise = beyond.iloc[: len(wide) // 2].to_numpy().mean()
    return float(within - beyond.abs().to_numpy().mean()), float(rise)


def _compressed(rows: pd.DataFrame) -> float:
    """V7: accuracy with five layers at 0.35 of their width minus with none projected."""
    accuracy = _means(rows, ["partner", "layers", "share"], "accuracy")
    return accuracy("network", COMPRESSED, WIDTH) - accuracy("network", 0, 1.0)


def _interpretability(rows: pd.DataFrame) -> tuple[float, float, float]:
    """V8: |correlation| of raw units, of aligned directions, and what classes explain of both."""
    mean = rows.groupby("kind")[["correlation", "class_share"]].mean()
    unit, direction = mean.reindex(["unit", "direction"]).to_numpy()
    return float(unit[0]), float(direction[0]), float(direction[1] - unit[1])
