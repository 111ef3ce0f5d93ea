"""Morcos, Raghu and Bengio 2018: what canonical correlations tell about networks.

Settles P1 to P12. Distances are 1 minus a similarity, of spatial means of feature maps after the
nonlinearity. Pairs share networks: a statistic over pairs has one value a seed by the jackknife,
which allows for that. The population is notebook 02's.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import adjusted_rand_score, silhouette_score
from torch import Tensor
from torch.nn import functional as F

from replication import activations, data, similarity, sweeps, training
from replication._core.inputs import generator
from replication._core.profiles import EVIDENCE
from replication.claims import Claim, Gate, Rule
from replication.directions import cumulative_ablation
from replication.papers import Experiment, cifar10, runs, single_directions
from replication.papers._untrained import with_statistics
from replication.papers.direction_measurements import named, network, split_of
from replication.papers.experiment import by_profile

NOTEBOOK = "06_cca_insights"
_FEW, _SIGNALS = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1), (20, 50, 70, 80, 100, 120, 140, 160, 180, 199)
_MANY = (0, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1)
_PAPERS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
_WIDTHS, _ALL, _TEN = (1 / 16, 1 / 8, 1 / 4, 1 / 2), (50_000, 10_000), (10_000, 10_000)
SETTINGS = by_profile(
    {  # smoke, quick, full, and the paper's where it is stated; images: training and test
        "groups": {
            "images": ((100, 60), (250, 200), (20_000, 10_000), _ALL),
            "epochs": (2, 6, 60, 100),
            "width": (1 / 32, 1 / 16, 1 / 4, 1.0),  # over the paper's
            "networks": (3, 3, 10, 10),  # on true labels, and as many on permuted ones (paper: 5)
        },
        "directions": {  # of more networks like those on true labels, at a constant rate
            "networks": (3, 3, 5, 5),
            "followed": (_FEW, _FEW, _MANY, _MANY),  # shares of training; of the recurrent ones too
        },
        "widths": {
            "images": ((100, 60), (200, 200), _TEN, _ALL),
            "epochs": (1, 5, 30, 100),
            "widths": ((1 / 32, 1 / 16), (1 / 32, 1 / 16, 1 / 8), _WIDTHS, _PAPERS),
            "networks": (3, 3, 5, 5),
        },
        "recurrent": {  # the paper: language models on Penn Treebank, of 3 layers too
            "characters": ((100, 40), (200, 60), (40_000, 500), (40_000, 500)),  # windows
            "rows": ((100, 40), (200, 60), (10_000, 500), (60_000, 500)),  # images of MNIST
            "epochs": (1, 2, 10, 500),
            "units": (8, 16, 200, 1150),
            "networks": (1, 3, 3, 3),
        },
        "toys": {
            "signals": ((20, 199), (20, 100), _SIGNALS, _SIGNALS),  # of 200 dimensions
            "draws": (1, 3, 10, 10),
            "units": (20, 30, 100, 100),  # of the vanilla network; the paper's are not stated
            "steps": (50, 300, 1000, 1000),
        },
    }
)
RECIPE = {"optimizer": "Adam", "learning_rate": 1e-3, "batch_size": 32}  # the paper's
POPULATIONS = 5  # at most: blocks of the seeds of notebook 02's networks (the paper: one of 200)
SYMBOLS, LENGTH = 48, 32  # the commonest characters, the last for others; of a window
CONV, LSTM = [f"act{i}" for i in range(1, 12)], ["lstm1", "lstm2", "lstm3"]
FIRST, LAST, SOFTMAX = (1, 2, 3), (9, 10, 11), 12  # layers by number
PROBES = 10_000  # most images, or states, on which layers are compared
EARLY, SHARE = (0.05, 0.1, 0.2), 0.2  # when directions are chosen, and how many (paper: 100 of 512)
NOISES = (0.1, 0.1**0.5)  # standard deviations: the paper's N(0, 0.1) read both ways
BLENDS = (0.0, 1.0, 10.0, 100.0)  # alpha of the vanilla network
CONVERGED, PLATEAU, FITTED = 0.9, 0.01, 0.99  # a correlation; accuracy to come; training accuracy
TRUE, PERMUTED, MIXED = KINDS = ("generalising", "memorising", "mixed")
MAIN = "PWCCA, 99%"  # after SVCCA's cut: the paper's threshold is not stated


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the notebook's experiments by name; those that compare networks follow these."""
    scales, experiments = SETTINGS[profile], {}
    name, channels, digits = "cifar10", 3, "mnist"
    if profile not in EVIDENCE or dataset not in ("auto", name):  # else nothing need be there
        split = cifar10(profile, dataset, scales["groups"]["images"])
        name, channels = split.name, split.train.images.shape[1]
        digits = data.load(dataset, subset=scales["recurrent"]["rows"]).name
    source = {"data": name, "channels": channels, "shrink": 1 if profile in EVIDENCE else 4}
    common = RECIPE | {"precision": "auto" if profile in EVIDENCE else "float32"}
    constant = {"schedule": "constant"}
    schedule = constant if profile == "paper" else {"schedule": "cosine"}

    def convnet(part: str, width: float, schedule: Mapping = schedule) -> dict:
        images, epochs = scales[part]["images"], scales[part]["epochs"]
        recipe = common | schedule | {"model": "morcos_convnet", "epochs": epochs}
        recipe |= {"evaluate_every": max(1, epochs / 10), "evaluation_images": min(5000, images[0])}
        own = source | {"labels": TRUE, "followed": [], "images": list(images)}
        return own | {"recipe": recipe, "width": width}

    def add(name: str, measure: Callable, specs: Sequence[dict], nets: float = 1, base=(1, 100)):
        scale, largest = {"networks": nets}, specs[-1]
        largest = largest["members"][-1]["net"] if name == "population" else largest
        if epochs := largest.get("recipe", largest).get("epochs"):
            scale |= {"width": largest.get("width", largest.get("units")) / base[0]}
            scale |= {"training": epochs / base[1]}
        if "width" in largest:
            scale |= {"images": largest["images"][0] / 50_000}
        scale = {key: min(1.0, value) for key, value in scale.items()}
        experiments[name] = Experiment(measure, specs, None, {"device": device}, scale)

    def seeds(specs: Sequence[dict], count: int) -> list[dict]:
        return [spec | {"seed": seed} for spec in specs for seed in range(count)]

    small, draws = scales["toys"], scales["toys"]["draws"]
    cloud = {"dimensions": 200, "points": 2000}
    clouds = [cloud | {"signal": k, "noise": e} for k in small["signals"] for e in NOISES]
    add("toy", toy, seeds(clouds, draws))
    vanilla = {"units": small["units"], "examples": 20 * small["units"], "steps": small["steps"]}
    add("rotation", rotate, seeds([vanilla | {"alpha": alpha} for alpha in BLENDS], draws))

    width, count = scales["groups"]["width"], scales["groups"]["networks"]
    spec = convnet("groups", width)
    add("networks", train, seeds([spec, spec | {"labels": PERMUTED}], count), count / 5)
    pairs = [spec | {"members": count, "probe": probe} for probe in ("train", "test")]
    add("groups", compare_groups, pairs, count / 5)
    count, followed = scales["directions"]["networks"], list(scales["directions"]["followed"])
    spec = convnet("groups", width, constant) | {"followed": followed}
    spec |= {"chosen at": [s for s in EARLY if s in followed], "share of directions": SHARE}
    add("directions", follow, seeds([spec], count), count / 5)

    count, widths = scales["widths"]["networks"], scales["widths"]["widths"]
    nets = [convnet("widths", w) for w in widths]
    add("width networks", train, seeds(nets, count), count / 5, (7, 100))
    same = {"filters": round(512 * min(widths)), "draws": 5, "members": count}
    add("widths", compare_widths, [spec | same for spec in nets], count / 5, (7, 100))

    recurrent = scales["recurrent"]
    lstm = {"recipe": common | {"model": "row_lstm", "epochs": recurrent["epochs"]}}
    lstm["recipe"] |= {"evaluation_images": min(1000, recurrent["rows"][0])}
    lstm |= {"units": recurrent["units"], "followed": followed}
    sizes = {"characters": recurrent["characters"], digits: recurrent["rows"]}
    cases = [lstm | {"data": case, "images": list(size)} for case, size in sizes.items()]
    add("recurrent", recur, seeds(cases, recurrent["networks"]), base=(1150, 500))

    known = dataset if dataset in ("mnist", "mnist5k") else "auto"  # notebook 02 takes no others
    whole = [own | source for own in single_directions.population(profile, known)]
    several = sorted({own["seed"] for own in whole})
    blocks = np.array_split(several, min(POPULATIONS, len(several)))
    members = [[named(own) for own in whole if own["seed"] in block] for block in blocks]
    specs = [{"population": i, "members": own} for i, own in enumerate(members)]
    add("population", populate, specs, len(whole) / 200)
    return experiments


def images_of(spec: Mapping, labels: str, device: str) -> data.Split:
    """Return the images of a spec, standardised, with true labels or one permutation of them."""
    return _images(spec["data"], tuple(spec["images"]), spec.get("shrink", 1), labels, device)


@functools.lru_cache(maxsize=2)
def _images(name: str, counts: tuple, shrink: int, labels: str, device: str) -> data.Split:
    if name == "characters":
        return letters(counts)
    split = data.load(name, subset=counts, device=device)
    split = data.standardise(split.with_images(lambda x: F.avg_pool2d(x, shrink)))[0]
    if labels == PERMUTED:
        options = {"num_classes": split.num_classes, "seed": 0, "keep_marginal": True}
        split.train.labels.copy_(data.corrupt_labels(split.train.labels, 1.0, **options))
    return split


@sweeps.named_by_spec  # the text is that of the Python at hand
def letters(counts: Sequence[int]) -> data.Split:
    """Return windows of Python's manual, (N, 1, LENGTH, SYMBOLS) of 0 and 1, and what comes next.

    The last tenth of the text is for tests. Its wording differs a little between versions.
    """
    text = "".join(topics.values()).lower()
    known = [c for c, _ in Counter(text).most_common(SYMBOLS - 1)]
    place = {c: i for i, c in enumerate(known)}
    codes = torch.tensor([place.get(c, len(known)) for c in text])
    halves, cut = [], len(codes) * 9 // 10
    for part, count in zip((codes[:cut], codes[cut:]), counts, strict=True):
        starts = torch.linspace(0, len(part) - LENGTH - 1, count).long()
        windows = part[starts[:, None] + torch.arange(LENGTH + 1)]
        images = F.one_hot(windows[:, None, :-1], SYMBOLS).float()
        halves.append(data.Examples(images, windows[:, -1]))
    train, test = halves
    return data.Split(train, test, "characters", (*known, "other"), "pydoc_data of Python")


def trained(spec: Mapping, split: data.Split, device: str) -> training.Run:
    """Return the network of a spec: from its stored weights, or trained now."""
    recipe, memorises = spec["recipe"], spec.get("labels") == PERMUTED
    if recipe["model"] == "row_lstm":
        options = {"units": spec["units"], "layers": 3, "size": split.train.images.shape[-1]}
        options |= {"classes": split.num_classes}
    else:
        options = {"width": spec["width"], "channels": spec["channels"]}
    settings = training.Spec(
        **recipe,
        model_options=options,
        checkpoints=tuple(share * recipe["epochs"] for share in spec["followed"]),
        seed=spec["seed"] + 1000 * memorises,  # no pair shares initial weights and minibatches
    )
    return training.fit(settings, split, store=runs() / "networks", device=device, progress=False)


def train(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Train one convnet on true or permuted labels; return its history."""
    return trained(spec, images_of(spec, spec["labels"], device), device).history


def recorded(
    run: training.Run, images: Tensor, layers: Sequence[str], share: float = 1
) -> list[Tensor]:
    """Return layers at a share of training as the paper represents them, (examples, filters)."""
    epoch = share * run.spec.epochs
    model = run.model(epoch, str(images.device))
    if run.checkpoints[epoch] < 50:  # batch norm's running averages know nothing yet
        with_statistics(model, images)
    return [*activations.record(model, images, layers, reduction="spatial_mean").values()]


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Return 1 minus the cosine of an example's two activations, mean over examples."""
    return (1 - F.cosine_similarity(x, y)).mean()


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance of an example's two activations, relative to the mean length of y's."""
    return (x - y).norm(dim=1).mean() / y.norm(dim=1).mean().clamp_min(1e-12)


CONTROLS = {"cosine": cosine, "Euclidean": euclidean}
METRICS = {"mean CCA": "cca", "SVCCA": "svcca", "PWCCA": "pwcca", MAIN: "pwcca"} | CONTROLS


def thresholded(x: Tensor) -> Tensor:
    """Return the centred layer on the singular directions that SVCCA keeps at 99%."""
    u, s, vh = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    kept = int((s.cumsum(0) < 0.99 * s.sum()).sum()) + 1
    return (u[:, :kept] * s[:kept]) @ vh[:kept]


def distances(layers: Sequence[Tensor], metric: str) -> np.ndarray:
    """Return (2, networks, networks): symmetric distances of a layer, and those of unrelated ones.

    Unrelated: the examples of one of the two are permuted.
    """
    named = {str(i): thresholded(z) if metric == MAIN else z for i, z in enumerate(layers)}
    grid = similarity.compare(named, metric=METRICS[metric], null=1)
    values = torch.stack([grid.values, grid.null]).cpu().double().numpy()
    values = (values + values.swapaxes(1, 2)) / 2
    return values if metric in CONTROLS else 1 - values


def _pairs(values: np.ndarray, names: Sequence[dict]) -> list[dict]:
    """Return a row a pair of networks: what tells the two, their distance and its null."""
    rows = []
    for i, j in combinations(range(len(names)), 2):
        kinds = {names[i]["kind"], names[j]["kind"]}
        row = {"kind": MIXED if len(kinds) > 1 else min(kinds), "a": names[i]["seed"]}
        row |= {"b": names[j]["seed"], "distance": values[0, i, j], "null": values[1, i, j]}
        rows.append(row | {"accuracy": (names[i]["accuracy"] + names[j]["accuracy"]) / 2})
    return rows


def _members(spec: Mapping, labels: str, split: data.Split, device: str) -> tuple[list, list]:
    """Return the networks of a group, and what tells them apart."""
    seeds = range(spec["members"])
    runs = [trained(spec | {"labels": labels, "seed": s}, split, device) for s in seeds]
    ends = [run.history.test_accuracy.iloc[-1] for run in runs]
    return runs, [{"kind": labels, "seed": s, "accuracy": end} for s, end in enumerate(ends)]


def compare_groups(spec: dict, device: str = "auto") -> list[dict]:
    """Compare all pairs of networks that generalise or memorise, layer by layer."""
    acts, names, rows = [], [], []
    for labels in (TRUE, PERMUTED):
        split = images_of(spec, labels, device)
        members, own = _members(spec, labels, split, device)
        probes = getattr(split, spec["probe"]).images[:PROBES]
        acts += [recorded(run, probes, [*CONV, "fc"]) for run in members]
        names += own
    for index, metric in product(range(SOFTMAX), METRICS):
        same = [z[index].softmax(1) if index == len(CONV) else z[index] for z in acts]
        more = {"layer": index + 1, "metric": metric}
        rows += [more | row for row in _pairs(distances(same, metric), names)]
    return rows


def compare_widths(spec: dict, device: str = "auto") -> list[dict]:
    """Compare the last layer of networks of one width, by equally many random filters."""
    split, rows = images_of(spec, TRUE, device), []
    members, names = _members(spec, TRUE, split, device)
    for share in (0, 1):
        whole = [recorded(r, split.train.images[:PROBES], CONV[-1:], share)[0] for r in members]
        for metric in ("PWCCA", *CONTROLS):
            draws = []
            for draw in range(spec["draws"]):
                orders = [
                    torch.randperm(z.shape[1], generator=generator(i, "filters", draw))
                    for i, z in enumerate(whole)
                ]
                chosen = [
                    order[: spec["filters"]].to(split.train.images.device) for order in orders
                ]
                draws.append(
                    distances([z[:, c] for z, c in zip(whole, chosen, strict=True)], metric)
                )
            more = {"trained": share == 1, "metric": metric}
            rows += [more | row for row in _pairs(np.mean(draws, axis=0), names)]
    return rows


def follow(spec: dict, device: str = "auto") -> list[dict]:
    """Follow correlations of late layers with their end, and directions that are chosen early.

    These are canonical ones of the layer early and half-way, chosen on half the images and
    followed, as signals of the early layer, on the others.
    """
    split, rows = images_of(spec, TRUE, device), []
    run, half = trained(spec, split, device), min(PROBES, len(split.train) // 2)
    images, accuracy = split.train.images[: 2 * half], run.history.set_index("step").test_accuracy
    stages = {share: recorded(run, images, CONV[-3:], share) for share in spec["followed"]}
    for index, layer in enumerate(LAST):
        now = {share: layers[index] for share, layers in stages.items()}
        for share, z in now.items():
            row = {"layer": layer, "share": share, "early": math.nan}
            row["accuracy"] = float(accuracy[run.checkpoints[share * run.spec.epochs]])
            rows.append(row | {"rho": similarity.cca(z, now[1]).correlations.tolist()})
        for early in spec["chosen at"]:
            signals = now[early] @ similarity.cca(now[early][:half], now[0.5][:half]).x_directions
            count = max(1, round(spec["share of directions"] * signals.shape[1]))
            ends = {"most": signals[half:, :count], "least": signals[half:, -count:]}
            for share, z in now.items():
                row = {"layer": layer, "share": share, "early": early}
                for name, chosen in ends.items():
                    result = similarity.cca(chosen, z[half:], null=1)
                    row |= {name: 1 - result.mean.item(), "null": 1 - result.null.mean().item()}
                rows.append(row)
    return rows


def populate(spec: dict, device: str = "auto") -> list[dict]:
    """Compare the eighth layer of networks of several learning rates; ablate all their filters."""
    rows, layers = [], []
    for own in (member["net"] for member in spec["members"]):
        half, run = split_of(own, device).train, network(own, device)
        if run.status != "finished":
            continue  # diverged: it represents nothing
        layers += recorded(run, half.images[:PROBES], CONV[7:8])
        probes, model = (half.images[:1000], half.labels[:1000]), run.model(device=device)
        units = sum(z.shape[1] for z in recorded(run, probes[0], CONV))
        counts = np.linspace(0, units, 17).round().astype(int).tolist()
        curve = cumulative_ablation(model, *probes, CONV, orders=3, counts=counts)
        row = {"rate": own["rate"], "seed": own["seed"], "curve": curve.accuracy.mean(0).tolist()}
        rows.append(row | run.history.iloc[-1][["train_accuracy", "test_accuracy"]].to_dict())
    values, null = distances(layers, "PWCCA")
    more = ({"distances": own.tolist(), "null": null.mean()} for own in values)
    return [row | own for row, own in zip(rows, more, strict=True)]


def recur(spec: dict, device: str = "auto") -> list[dict]:
    """Train one LSTM; compare its layers over training with their end, states being examples."""
    split, stages, rows = images_of(spec, TRUE, device), {}, []
    run = trained(spec, split, device)
    for share in spec["followed"]:
        model = run.model(share * run.spec.epochs, device)
        states = activations.record(model, split.test.images, LSTM)
        stages[share] = [layer.flatten(0, 1)[:PROBES] for layer in states.values()]
    for share, layers in stages.items():
        for layer, pair in enumerate(zip(layers, stages[1], strict=True), 1):
            row = {"layer": layer, "share": share, "accuracy": run.history.test_accuracy.iloc[-1]}
            for metric in ("mean CCA", "PWCCA", *CONTROLS):
                row[metric], row[f"{metric}, null"] = distances(pair, metric)[:, 0, 1]
            rows.append(row)
    return rows


def toy(spec: dict, device: str = "auto") -> list[dict]:
    """Measure the three distances of shared signals among noise dimensions."""
    points, k, source = spec["points"], spec["signal"], generator(spec["seed"], "toy")
    shapes = (points, k), (k, k), *2 * ((points, spec["dimensions"] - k),)
    signal, turn, *noise = (torch.randn(s, generator=source, dtype=torch.float64) for s in shapes)
    shared = signal, signal @ torch.linalg.qr(turn).Q
    x, y = (torch.cat([z, spec["noise"] * e], 1) for z, e in zip(shared, noise, strict=True))
    metrics = {
        "mean CCA": lambda y: similarity.cca(x, y).mean,
        "PWCCA": lambda y: similarity.pwcca(x, y),
        "SVCCA": lambda y: similarity.svcca(x, y).mean,
        "SVCCA, squares": lambda y: similarity.svcca(x, y, squares=True).mean,
    }
    pairs = {"distance": y, "null": y[torch.randperm(points, generator=source)]}
    return [
        {"metric": name} | {column: 1 - float(metric(z)) for column, z in pairs.items()}
        for name, metric in metrics.items()
    ]


def rotate(spec: dict, device: str = "auto") -> list[dict]:
    """Run a vanilla network without input: h <- W h + alpha sigmoid(V W h) + b, W a rotation."""
    size, steps, source = spec["units"], spec["steps"], generator(spec["seed"], "rotation")
    shapes = (size, size), (size, size), (size,), (spec["examples"], size)
    turn, v, bias, h = (torch.randn(s, generator=source, dtype=torch.float64) for s in shapes)
    turn, v, states = torch.linalg.qr(turn).Q, v / size**0.5, {}
    kept = {0, *np.geomspace(1, steps, 12).round().astype(int).tolist()}
    for step in range(steps + 1):
        if step in kept:
            states[step] = h
        h = h @ turn.mT
        if spec["alpha"]:
            h = h + spec["alpha"] * (h @ v.mT).sigmoid() + bias
    metrics = CONTROLS | {"CCA": lambda x, y: 1 - similarity.cca(x, y).mean}
    end, rows = states[steps], []
    mixed = end[torch.randperm(len(end), generator=source)]
    for step, now in states.items():
        row = {name: distance(now, end).item() for name, distance in metrics.items()}
        null = {f"{name}, null": d(now, mixed).item() for name, d in metrics.items()}
        rows.append({"step": step} | row | null)
    return rows


_FITS = Gate("least training accuracy of a network, on the labels it was given", least=FITTED)
_MEM, _GEN = "memorising minus generalising pairs", "generalising pairs: "
_LATE, _EARLY = "last three layers: ", "first three layers: "


def _bars(text: str, test: str = "t") -> Rule:
    return Rule(f"{text}, in SD over pairs", 1, "the bars of Figs. 3, A5, A9, A10: one SD", test)


def _tick(text: str, figure: str, test: str = "t", tick: float = 0.2) -> Rule:
    return Rule(text, tick, f"a tick of {figure}", test)


def _half(text: str) -> Rule:
    return Rule(text, 0.5, "ours: half")


_TABLE = (  # id, statement, rules, figure, the paper's value, gate, why, why the rule was corrected
    ("P1", "In late layers networks that generalise are closer to each other than networks that "
     "memorise, and these as far from each other as from those; early layers do not differ",
     (_bars(f"{_LATE}{_MEM}"), _bars(f"{_LATE}mixed minus memorising pairs", "equivalence"),
      _bars(f"{_EARLY}{_MEM}", "equivalence")), "Fig. 3", "curves", _FITS,
     "one permutation of the labels may be learned alike; one a network would test it",
     "no threshold of variance, absolute gaps, random labels"),
    ("P2", "Wider networks converge to more similar solutions, and it is training that does it",
     Rule("distance of the narrowest minus of the widest networks' last layers by equally many "
          "filters, trained minus at init", 0.075, "half of Fig. 4a's", paper=0.15),
     "Figs. 4a, A7", "0.47 to 0.28, at init 0.67 to 0.63", Gate("largest over least width", 8),
     "few filters say little of a wide layer; a wider narrowest network would test it",
     "three layers were averaged"),
    ("P3", "Over widths, networks that are closer to each other have the higher test accuracy",
     Rule("minus the correlation of test accuracy and distance over pairs of one width", 0.5,
          "ours: half of the paper's", "correlation", paper=0.96), "Fig. 4b", "-0.96",
     Gate("SD of pairs' test accuracy between widths over that within", 1),
     "width may move both: the relation within a width would test it", "not over pairs"),
    ("P4", "Networks of several learning rates fall into clusters of similar solutions, which "
     "match the learning rates and the clusters of robustness to ablation",
     (Rule("mean silhouette of the best number of clusters, eighth layer, minus the 95th "
           "percentile of that of one Gaussian cluster"),
      _half("share of the variance of log rate between clusters, beyond chance"),
      _half("adjusted Rand index with clusters of ablation curves")),
     "Fig. 5", "200 networks, five clusters", Gate("share with training accuracy 0.95", 0.9),
     "rates that all train well give a continuum; rates further apart would test it",
     "another layer and kind of network, five clusters forced, no ablation"),
    ("P5", "Directions that are stable early in training stay; others soon decorrelate",
     (_tick(f"{_LATE}distance of the least minus the most stable, later but half-way", "Fig. 1"),
      Rule(f"{_LATE}distance of the least stable at the next checkpoint minus half its plateau"),
      _tick(f"{_LATE}distance of the most stable, end minus next checkpoint", "Fig. 1",
            "equivalence")), "Figs. 1d-f", "curves", None,
     "of few filters the least stable fifth may be stable too; the paper's width would test it",
     "directions were picked by the end, on the images that judged them; the rate decayed"),
    ("P6", "The layers of a recurrent network converge from the bottom up",
     (_tick("area under the distance to the end, top minus bottom layer", "Fig. 6", tick=0.1),
      _tick("the same relative to the distance at init", "Fig. 6", tick=0.1)),
     "Figs. 6, A8", "curves", None, "few epochs and short windows; longer ones would test it",
     "a language model; also relative to init"),
    ("P7", "PWCCA is more robust to noise dimensions than SVCCA, and SVCCA than mean CCA",
     tuple(Rule(f"{more} minus {less}, at most 100 of 200 signals, the lesser of both readings "
                "of N(0, 0.1)", 0.1, "half a tick of Fig. 2")
           for more, less in (("SVCCA", "PWCCA"), ("mean CCA", "SVCCA"))),
     "Fig. 2", "curves", None, "SVCCA's cut keeps much of such noise; a lower one would test it",
     "other numbers of signals, another scale of noise"),
    ("P8", "CCA sees a vanilla network without input as at one place, the controls do not",
     _half("the lesser of cosine and Euclidean minus CCA distance to the last state, alpha > 0"),
     "Fig. A2", "curves", None, "a strong sigmoid is no linear map; smaller alpha would tell", ""),
    ("P9", "Cosine and Euclidean distance show neither P1 nor P2",
     (_bars(f"{_LATE}{_MEM}, by PWCCA minus by the control that shows more on average"),
      _bars("P2's statistic, by PWCCA minus by the control that shows more of it on average")),
     "Figs. A5, A6", "curves", _FITS,
     "controls see mean activations, which differ too; centred ones would test it",
     "the control that shows more was chosen anew for each seed, which favours controls"),
    ("P10", "Mean CCA and SVCCA overestimate early distances, and mean CCA misses that networks "
     "which generalise get closer in the last layers",
     (_bars(f"{_EARLY}{_GEN}mean CCA minus PWCCA"), _bars(f"{_EARLY}{_GEN}SVCCA minus PWCCA"),
      _bars(f"{_GEN}fall over the last two layers, PWCCA minus mean CCA")), "Fig. A9", "curves",
     _FITS, "narrow layers have few directions of noise; the paper's width would test it", ""),
    ("P11", "Softmax outputs of networks that memorise differ on test images only",
     _bars(f"softmax layer: {_MEM}, on test minus on training images"), "Fig. A10", "curves", _FITS,
     "outputs may not be one-hot yet; longer training would test it", ""),
    ("P12", "When the accuracy is final, many directions have not converged",
     _tick(f"{_LATE}share of correlations with the end below {CONVERGED}, once accuracy stays "
           f"within {PLATEAU}, minus at the last checkpoint but one", "Fig. 1"), "Figs. 1a, A1",
     "curves", None, "a narrow layer has few directions beside those that accuracy needs; the "
     "paper's width would test it",
     "the rate decayed, so that accuracy and directions settle together"),
)  # fmt: skip
CLAIMS = tuple(
    Claim(
        *(id, "Morcos, Raghu & Bengio 2018", statement, rule, figure, value),
        kind="sanity" if id in ("P7", "P8") else "empirical",
        gate=gate,
        corrected=corrected,
        why=why,
    )
    for id, statement, rule, figure, value, gate, why, corrected in _TABLE
)


def tables(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows by experiment."""
    return {
        name: rows.droplevel(0).dropna(axis=1, how="all").reset_index(drop=True)
        for name, rows in results.groupby(level=0, sort=False)
    }


def jackknife(pairs: pd.DataFrame, statistic: Callable[[pd.DataFrame], Any]) -> np.ndarray:
    """Return a value a seed of a statistic over pairs of networks, whose seeds are a and b.

    Tukey's n T - (n - 1) T(without the seed), whose mean is T. Means over each seed's pairs would
    vary too little, by (n - 2) / (2 n - 2), as two seeds share a pair.
    """
    seeds = sorted({*pairs.a, *pairs.b})
    if len(seeds) < 3:
        return np.array(math.nan * statistic(pairs))[None]
    rest = [statistic(pairs[(pairs.a != seed) & (pairs.b != seed)]) for seed in seeds]
    return len(seeds) * np.array(statistic(pairs)) - (len(seeds) - 1) * np.array(rest)


def over(rows: pd.DataFrame, probe: str, layers: Sequence[int]) -> pd.DataFrame:
    """Return the mean distance over layers, a row a pair (kind, a, b), a column a metric.

    Mixed pairs of one seed are left out, so that each pair has two seeds.
    """
    chosen = (rows.probe == probe) & rows.layer.isin(layers) & (rows.a != rows.b)
    return rows[chosen].pivot_table("distance", ["kind", "a", "b"], "metric")


def spread(pairs: pd.DataFrame) -> pd.Series:
    """Return the standard deviation over the pairs within a group, by metric: Figure 3's bars."""
    return pairs.loc[[TRUE, PERMUTED]].groupby("kind").var().mean() ** 0.5


def contrast(pairs: pd.DataFrame, more: str = PERMUTED, less: str = TRUE) -> pd.DataFrame:
    """Return the difference of two kinds of pairs (all of the first for an empty second).

    A row a seed, a column a metric.
    """

    def difference(rows: pd.DataFrame) -> np.ndarray:
        means = rows.groupby("kind")[list(pairs)].mean()
        return (means.loc[more] - (means.loc[less] if less else 0)).to_numpy()

    return pd.DataFrame(jackknife(pairs.reset_index(), difference), columns=list(pairs))


def _groups(rows: pd.DataFrame) -> dict[str, list]:
    """Return P1, P9's first part, P10 and P11, in standard deviations over pairs."""
    late, early, below = (over(rows, "train", chosen) for chosen in (LAST, FIRST, LAST[:1]))
    gaps = contrast(late) / spread(late)
    mixed, first = contrast(late, MIXED, PERMUTED), contrast(early) / spread(early)
    excess = early.sub(early[MAIN], axis=0)
    falls = below - over(rows, "train", LAST[-1:])
    falls = falls.rsub(falls[MAIN], axis=0)  # PWCCA's more than others
    above, misses = contrast(excess, TRUE, "") / spread(early)[MAIN], contrast(falls, TRUE, "")
    control = max(CONTROLS, key=lambda name: gaps[name].mean())  # once: noise is not picked
    values = {
        "P1": [gaps[MAIN], mixed[MAIN] / spread(late)[MAIN], first[MAIN]],
        "P9": [gaps[MAIN] - gaps[control]],
        "P10": [above["mean CCA"], above["SVCCA"], misses["mean CCA"] / spread(late)[MAIN]],
    }
    if set(rows.probe) == {"train", "test"}:
        train, test = (over(rows, probe, [SOFTMAX]) for probe in ("train", "test"))
        values["P11"] = [contrast(test - train)[MAIN] / spread(test)[MAIN]]
    return values


def _fall(pairs: pd.DataFrame) -> float:
    """Return by how much distances fall from the narrowest to the widest, beyond that at init."""
    means = pairs.pivot_table("distance", "trained", "width")
    falls = means.iloc[:, 0] - means.iloc[:, -1]
    return float(falls.get(True, math.nan) - falls.get(False, math.nan))


def closeness(pairs: pd.DataFrame, within: bool = False) -> np.ndarray:
    """Return minus the correlation of accuracy and distance over pairs, a value a seed.

    The jackknife is that of Fisher's z; `within` takes the means of each width off.
    """
    pairs = pairs[pairs.trained & (pairs.metric == "PWCCA")]

    def z(rows: pd.DataFrame) -> float:
        both = rows[["accuracy", "distance"]]
        both = both - both.groupby(rows.width).transform("mean") if within else both
        return float(-np.arctanh(both.corr().iloc[0, 1] * (1 - 1e-12)))

    return np.tanh(jackknife(pairs, z).clip(-8, 8))


def _widths(rows: pd.DataFrame) -> dict[str, list]:
    """Return P2, P3 and P9's second part."""
    falls, in_sd = {}, {}
    for metric, pairs in rows.groupby("metric"):
        sd = math.sqrt(pairs[pairs.trained].groupby("width").distance.var().mean())
        falls[metric] = jackknife(pairs, _fall)
        in_sd[metric] = falls[metric] / sd
    control = max(CONTROLS, key=lambda name: in_sd[name].mean())
    more = in_sd["PWCCA"] - in_sd[control]
    return {"P2": [falls["PWCCA"]], "P3": [closeness(rows)], "P9": [more]}


def clusters(distances: np.ndarray) -> tuple[np.ndarray, float]:
    """Return labels by average linkage, of 2 to 8 clusters of best mean silhouette, and this."""
    tree = linkage(squareform(distances, checks=False), "average")
    cuts = [fcluster(tree, count, "maxclust") for count in range(2, min(9, len(distances)))]
    cuts = [cut for cut in cuts if cut.max() > 1] or [np.arange(len(distances)) > 0]
    scores = [silhouette_score(distances, cut, metric="precomputed") for cut in cuts]
    return cuts[int(np.argmax(scores))], max(scores)


def one_cluster(distances: np.ndarray, draws: int = 59) -> float:
    """Return the 95th percentile of the silhouette of Gaussian points of the same covariance.

    Of the principal coordinates of the distances (classical scaling, Torgerson 1952).
    """
    n, source = len(distances), np.random.default_rng(0)
    centre = np.eye(n) - 1 / n
    size = np.sqrt(np.linalg.eigvalsh(-centre @ distances**2 @ centre / 2).clip(0) / n)
    points = source.standard_normal((draws, n, n)) * size
    return float(np.quantile([clusters(squareform(pdist(p)))[1] for p in points], 0.95))


def _population(rows: pd.DataFrame) -> list[float]:
    """Return P4's statistics of one population."""
    matrix, rates = np.array(rows.distances.tolist(), dtype=float), np.log(rows.rate.to_numpy())
    np.fill_diagonal(matrix, 0)
    labels, score = clusters(matrix)
    within = rates - pd.Series(rates).groupby(labels).transform("mean").to_numpy()
    share = 1 - within.var(ddof=len(set(labels))) / rates.var(ddof=1)
    ablated, _ = clusters(squareform(pdist(np.array(rows.curve.tolist()))))
    return [score - one_cluster(matrix), share, adjusted_rand_score(ablated, labels)]


def _directions(rows: pd.DataFrame) -> list[float]:
    """Return P5's three statistics and P12's of one network."""
    curves = rows.dropna(subset="early").groupby(["early", "share"])[["most", "least"]].mean()
    values = []
    for early, own in curves.groupby(level=0):
        own = own.loc[early].query("share > @early and share != 0.5")
        first, plateau = own.iloc[0], own.query("share >= 0.7").least.mean()
        rise = own.most.iloc[-1] - first.most
        values.append([(own.least - own.most).mean(), first.least - plateau / 2, rise])
    own = rows[rows.early.isna()]
    own = own.assign(below=[float((pd.Series(r) < CONVERGED).mean()) for r in own.rho])
    own = own.groupby("share")[["below", "accuracy"]].mean()
    away = (own.accuracy - own.accuracy.iloc[-1]).abs() > PLATEAU
    below = own.below[~away[::-1].cummax()[::-1]]  # from when it stays there
    late = below.iloc[0] - below.iloc[-2] if len(below) > 2 else math.nan
    return [*np.mean(values, axis=0), late]


def _bottom_up(rows: pd.DataFrame) -> list[float]:
    """Return P6's statistics of one network."""
    curves = rows.pivot(index="share", columns="layer", values="PWCCA")
    areas = [np.trapezoid(own, own.index, axis=0) for own in (curves, curves / curves.iloc[0])]
    return [area[-1] - area[0] for area in areas]


def _toy(rows: pd.DataFrame) -> list[float]:
    """Return P7's statistics of one draw."""
    mean = rows[rows.signal <= 100].pivot_table("distance", "noise", "metric")
    return [(mean["SVCCA"] - mean["PWCCA"]).min(), (mean["mean CCA"] - mean["SVCCA"]).min()]


def _rotation(rows: pd.DataFrame) -> list[float]:
    """Return P8's statistic of one draw."""
    rows = rows[(rows.alpha > 0) & (rows.step < rows.steps)]
    return [(rows[[*CONTROLS]].min(axis=1) - rows.CCA).mean()]


def statistics(results: pd.DataFrame) -> dict[str, Any]:
    """Return, for every claim, one number a unit, or one such list a rule; NaN for none.

    `results` are the rows of `plan`, names as outer index. Units are seeds, P4's are populations.
    """
    known, values = tables(results), {claim.id: [[math.nan]] * len(claim.rules) for claim in CLAIMS}
    by_unit = {
        "toy": ("seed", ["P7"], _toy),
        "rotation": ("seed", ["P8"], _rotation),
        "population": ("population", ["P4"], _population),
        "recurrent": ("seed", ["P6"], _bottom_up),
        "directions": ("seed", ["P5", "P12"], _directions),
    }
    for name, (unit, ids, statistic) in by_unit.items():
        rows = known.get(name, pd.DataFrame(columns=[unit]))
        rows = rows[rows.data == "characters"] if name == "recurrent" and len(rows) else rows
        series = [statistic(own) for _, own in rows.groupby(unit)]
        series = [list(map(float, part)) for part in zip(*series, strict=True)]
        for id in ids if series else ():
            values[id], series = series[: len(values[id])], series[len(values[id]) :]
    for name, statistic in (("widths", _widths), ("groups", _groups)):
        for id, own in (statistic(known[name]) if name in known else {}).items():
            start = int(id == "P9" and name == "widths")
            values[id] = [*values[id]]
            values[id][start : start + len(own)] = [[*map(float, part)] for part in own]
    return {id: part if len(part) > 1 else part[0] for id, part in values.items()}


def gates(results: pd.DataFrame) -> dict[str, float]:
    """Return what the gates of the claims measure, as far as it is known."""
    known, measured = tables(results), {}
    if "networks" in known:
        ends = known["networks"].groupby(["labels", "seed"]).train_accuracy.last()
        measured = dict.fromkeys(("P1", "P9", "P10", "P11"), float(ends.min()))
    if "widths" in known:
        pairs = known["widths"].groupby("width").accuracy
        measured["P2"] = float(max(pairs.groups) / min(pairs.groups))
        measured["P3"] = float(pairs.mean().std() / max(1e-12, pairs.var().mean() ** 0.5))
    if "population" in known:
        measured["P4"] = float((known["population"].train_accuracy >= 0.95).mean())
    return measured
