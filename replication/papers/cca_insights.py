"""Morcos, Raghu and Bengio 2018: what canonical correlations tell about networks.

Settles P1 to P7. Distances are 1 minus a similarity. Unless a rule says otherwise they are PWCCA's,
of spatial means of feature maps after the nonlinearity, on training images. Of a group of networks,
a seed's distance is the mean over its pairs with the other networks, in both orders, so that seeds
of one group share pairs and their intervals are somewhat too narrow. A network has fitted its
labels when its train accuracy, on the labels it was given, is at least 99%; P1 leaves out those
that have not.

Measuring functions take a spec of `plan` and return rows. Trained convnets are kept beside these.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import spearmanr
from sklearn.metrics import silhouette_score
from torch import Tensor, nn
from torch.nn import functional as F

from replication import activations, data, directions, similarity, training
from replication._core.inputs import derive_seed
from replication._core.profiles import PROFILES
from replication.claims import Claim, Rule
from replication.papers import Experiment, cifar10, runs
from replication.papers._correlation import by_seed, parts_by_seed

NOTEBOOK = "06_cca_insights"
_SIGNALS = (20, 40, 60, 80, 100, 120, 140, 160, 180, 199)
_EARLY_ON = (0, 0.02, 0.04, 0.1, 0.2, 0.3, 0.4, 0.5, 0.52, 0.6, 0.7, 0.8, 0.9, 0.98, 1)
_SCALES = {  # smoke, quick, full, and the paper's, whose recurrent networks are language models
    # Convnets: training and test images; side of the pixels averaged into one; width of the groups
    # and widths of figure 4, as shares of the paper's; networks a group; networks on true labels
    # that are followed over training, at these shares of it.
    "images": ((100, 60), (300, 300), (1000, 1000), (50_000, 10_000)),
    "shrink": (2, 2, 2, 1),
    "width": (1 / 16, 1 / 8, 1 / 4, 1.0),
    "widths": (
        (1 / 32, 1 / 16),
        (1 / 16, 1 / 8, 1 / 4),
        (1 / 16, 1 / 8, 1 / 4, 1 / 2),
        (0.25, 0.5, 1.0, 2.0, 4.0, 7.0),
    ),
    "group": (2, 3, 5, 5),
    "followed": (2, 3, 10, 10),
    "shares": ((0, 0.25, 0.5, 0.75, 1), _EARLY_ON, _EARLY_ON, _EARLY_ON),
    "epochs": (2, 12, 50, 100),
    # signal dimensions of 200, draws
    "toy": (((20, 199), 1), ((20, 100, 180), 3), (_SIGNALS, 5), (_SIGNALS, 10)),
    # training and test images, populations, networks in each, epochs
    "population": (
        ((100, 60), 1, 10, 4),
        ((500, 500), 3, 24, 20),
        ((1000, 1000), 4, 80, 40),
        ((10_000, 10_000), 4, 200, 60),
    ),
    # training and test images, units, epochs, seeds
    "lstm": (
        ((60, 60), 8, 2, 1),
        ((500, 150), 32, 5, 2),
        ((2000, 500), 64, 16, 5),
        ((50_000, 2000), 128, 30, 5),
    ),
}
SETTINGS = {p: {k: v[i] for k, v in _SCALES.items()} for i, p in enumerate(PROFILES)}
LEARNING_RATE, BATCH = 1e-3, 32  # with Adam, as in the paper
PROBES = 10_000  # at most as many images are probes, on which layers are compared
CONV = [f"act{i}" for i in range(1, 12)]
TOY_DIMENSIONS, TOY_POINTS, TOY_NOISE = 200, 2000, 0.1  # the last, a standard deviation, is ours
SHARE = 0.2  # of directions in "most" and "least converged"; the paper's 100 of 512
DRAWS = 5  # of random filters of each network, in figure 4
RATES = (0.002, 0.1)  # learning rates of the population, log-uniform
MLP = (64, 64, 64)
MLP_LAYERS, LSTM = ["act1", "act2", "act3"], ["lstm1", "lstm2", "lstm3"]
METRICS = ("mean CCA", "SVCCA", "PWCCA")
GENERALISING, MEMORISING = "generalising", "memorising"
FITTED = 0.99  # train accuracy
EARLY = LATE = 3  # layers at either end
CLUSTERS = 5  # as in the paper's Figure 5
PERMUTATIONS = 1999


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the notebook's experiments by name, in order: of convnets, the toy, digits.

    ValueError if a data set has not ten classes.
    """
    settings = SETTINGS[profile]
    pictures = cifar10(profile, dataset, settings["images"])
    digits, read = (data.load(dataset, subset=settings[k][0]) for k in ("population", "lstm"))
    if pictures.num_classes != 10 or digits.num_classes != 10:
        raise ValueError(f"dataset: expected ten classes, found {pictures.num_classes}")
    group, followed = range(settings["group"]), range(settings["followed"])
    main, epochs = settings["width"], settings["epochs"]
    setup = {
        "data": pictures.name,
        "images": [len(pictures.train), len(pictures.test)],
        "shrink": settings["shrink"],
        "epochs": epochs,
        # kept of the networks on true labels at the groups' width
        "followed": [round(float(epochs) * share, 2) for share in settings["shares"]],
        "main": main,
        "rate": LEARNING_RATE,
        "batch": BATCH,
        "probes": PROBES,
    }
    networks = [
        setup | {"labels": GENERALISING, "width": width, "seed": seed}
        for width in sorted({*settings["widths"], main}, reverse=True)  # longest first
        for seed in (followed if width == main else group)
    ]
    networks += [setup | {"width": main, "labels": MEMORISING, "seed": seed} for seed in group]
    groups = [
        setup | {"probe": probe, "trained": end, "groups": labels, "members": len(group)}
        for end, labels in ((True, [GENERALISING, MEMORISING]), (False, [GENERALISING]))
        for probe in ("train", "test")
    ]
    narrowest = max(1, round(512 * min(settings["widths"])))
    subsets = {"members": len(group), "filters": narrowest, "draws": DRAWS}
    signals, draws = settings["toy"]
    point_clouds = {"dimensions": TOY_DIMENSIONS, "points": TOY_POINTS}
    _, repeats, size, population_epochs = settings["population"]
    population = {
        "data": digits.name,
        "images": [len(digits.train), len(digits.test)],
        "rates": list(RATES),
        "widths": list(MLP),
        "networks": size,
        "epochs": population_epochs,
        "probes": 1000,
    }
    _, units, lstm_epochs, lstm_seeds = settings["lstm"]
    parts = (0, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)
    lstm = {
        "data": digits.name,
        "images": [len(read.train), len(read.test)],
        "units": units,
        "epochs": lstm_epochs,
        "followed": [lstm_epochs * part for part in parts],
        "rate": LEARNING_RATE,
        "batch": BATCH,
        "probes": 500,
        "share": SHARE,
    }
    experiments = {
        train: networks,
        converge: [setup | {"share": SHARE, "seed": seed} for seed in followed],
        toy: [
            {"signal": k, **point_clouds, "noise": noise, "seed": seed}
            for noise in (TOY_NOISE, 1.0)
            for k in signals
            for seed in range(draws)
        ],
        compare_groups: groups,
        compare_widths: [
            setup | {"width": width} | subsets for width in sorted(settings["widths"], reverse=True)
        ],
        populate: [population | {"seed": seed} for seed in range(repeats)],
        recur: [lstm | {"seed": seed} for seed in range(lstm_seeds)],
    }
    return {
        measure.__name__: Experiment(measure, specs, options={"device": device})
        for measure, specs in experiments.items()
    }


def images_of(spec: Mapping, labels: str, device: str) -> data.Split:
    """Return the images of a spec, made smaller and standardised, with true or random labels."""
    split = data.load(spec["data"], subset=spec["images"], device=device)
    train, test = (
        data.Examples(F.avg_pool2d(part.images, spec["shrink"]), part.labels)
        for part in (split.train, split.test)
    )
    split = data.standardise(dataclasses.replace(split, train=train, test=test))[0]
    if labels == MEMORISING:  # one labelling for all networks
        drawn = data.corrupt_labels(split.train.labels, 1.0, split.num_classes, seed=0)
        split = dataclasses.replace(split, train=data.Examples(split.train.images, drawn))
    return split


def digits_of(spec: Mapping, device: str) -> data.Split:
    """Return the images of a spec of a population or an LSTM, standardised."""
    return data.standardise(data.load(spec["data"], subset=spec["images"], device=device))[0]


def trained(spec: Mapping, labels: str, width: float, seed: int, device: str) -> training.Run:
    """Return a trained convnet: from its stored weights, or trained now."""
    split = images_of(spec, labels, device)
    follow = labels == GENERALISING and width == spec["main"]
    settings = training.Spec(
        model="morcos_convnet",
        model_options={"width": width, "channels": split.train.images.shape[1]},
        optimizer="Adam",
        learning_rate=spec["rate"],
        batch_size=spec["batch"],
        epochs=spec["epochs"],
        evaluate_every=spec["epochs"],
        checkpoints=tuple(spec["followed"]) if follow else (),
        # Other initial weights and minibatches for random labels: no pair shares them.
        seed=seed + (1000 if labels == MEMORISING else 0),
    )
    store = runs() / NOTEBOOK / "networks"
    return training.fit(settings, split, store=store, device=device, progress=False)


def train(spec: dict, device: str = "auto") -> dict:
    """Train one convnet on true or random labels; return how well it does."""
    run = trained(spec, spec["labels"], spec["width"], spec["seed"], device)
    return run.history.iloc[-1].drop(["step", "epoch"]).to_dict()


def recorded(model: nn.Module, images: Tensor, layers: Iterable[str] = CONV) -> dict[str, Tensor]:
    """Return the layers as the paper represents them, (examples, filters)."""
    return activations.record(model, images, layers, reduction="spatial_mean")


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Return 1 minus the cosine of an example's two activations, mean over examples."""
    return (1 - F.cosine_similarity(x, y)).mean()


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance of an example's two activations, relative to the mean length of y's."""
    return (x - y).norm(dim=1).mean() / y.norm(dim=1).mean().clamp_min(1e-12)


CONTROLS = {"cosine": cosine, "Euclidean": euclidean}
DISTANCES = dict(zip(METRICS, ("cca", "svcca", "pwcca"), strict=True)) | CONTROLS


def distances(layers: Mapping[str, Tensor], metric: str) -> np.ndarray:
    """Return (networks, networks) distances of one layer in several networks."""
    values = similarity.compare(layers, metric=DISTANCES[metric]).values.cpu().double().numpy()
    return values if metric in CONTROLS else 1 - values


def follow(stages: Mapping[float, Mapping[str, Tensor]], share: float) -> pd.DataFrame:
    """Return, for every epoch and layer, how it compares with the same layer at the end.

    Of the canonical directions between the layer half-way and at the end, the `share` that has
    converged most, and least, are followed as signals over the examples: 1 minus the mean
    correlation with what the layer can express at each epoch.
    """
    last = max(stages)
    rows = []
    for index, (layer, final) in enumerate(stages[last].items(), start=1):
        half = similarity.cca(stages[last / 2][layer], final).x_variates
        count = max(1, round(share * half.shape[1]))
        ends = {"most": half[:, :count], "least": half[:, -count:]}
        chance = 1 - similarity.cca(ends["most"], final, null=5).null.mean().item()
        for epoch, layers in stages.items():
            now = layers[layer]
            row = {"layer": index, "epoch": epoch, "chance": chance}
            row["rho"] = similarity.cca(now, final).correlations.tolist()
            row["pwcca"] = 1 - similarity.pwcca(now, final, symmetric=True).item()
            row |= {"cosine": cosine(now, final).item(), "euclidean": euclidean(now, final).item()}
            row |= {k: 1 - similarity.cca(v, now).mean.item() for k, v in ends.items()}
            rows.append(row)
    return pd.DataFrame(rows)


def converge(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Follow the layers of one convnet, and their directions, over training."""
    run = trained(spec, GENERALISING, spec["main"], spec["seed"], device)
    probes = images_of(spec, GENERALISING, device).train.images[: spec["probes"]]
    stages = {epoch: recorded(run.model(epoch, device), probes) for epoch in spec["followed"]}
    return follow(stages, spec["share"])


def toy(spec: dict, device: str = "auto") -> list[dict]:
    """Measure the three distances of shared signals among noise dimensions."""
    source = torch.Generator().manual_seed(derive_seed(spec["seed"], "toy", spec["signal"]))
    size, points, k = spec["dimensions"], spec["points"], spec["signal"]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    signal = normal(points, k)
    rotation = torch.linalg.qr(normal(size, size)).Q
    x, y = (torch.cat([signal, spec["noise"] * normal(points, size - k)], dim=1) for _ in "xy")
    y = y @ rotation
    values = similarity.cca(x, y).mean, similarity.svcca(x, y).mean, similarity.pwcca(x, y)
    return [{"metric": m, "distance": 1 - float(v)} for m, v in zip(METRICS, values, strict=True)]


def compare_groups(spec: dict, device: str = "auto") -> list[dict]:
    """Compare all ordered pairs of networks, at one time, on one set of images."""
    split = images_of(spec, GENERALISING, device)
    probes = getattr(split, spec["probe"]).images[: spec["probes"]]
    members = [(labels, s) for labels in spec["groups"] for s in range(spec["members"])]
    acts = {}
    for labels, seed in members:
        run = trained(spec, labels, spec["main"], seed, device)
        epoch = None if spec["trained"] else 0.0
        acts[f"{labels} {seed}"] = recorded(run.model(epoch, device), probes)
    rows = []
    for index, layer in enumerate(CONV, start=1):
        same = {who: layers[layer] for who, layers in acts.items()}
        for metric in DISTANCES:
            values = distances(same, metric)
            for i, j in itertools.permutations(range(len(members)), 2):
                (labels_a, a), (labels_b, b) = members[i], members[j]
                row = {"labels_a": labels_a, "seed_a": a, "labels_b": labels_b, "seed_b": b}
                row |= {"layer": index, "metric": metric, "distance": values[i, j]}
                rows.append(row)
    return rows


def compare_widths(spec: dict, device: str = "auto") -> list[dict]:
    """Compare each network of one width with its group, by random filters and by all."""
    probes = images_of(spec, GENERALISING, device).train.images[: spec["probes"]]
    members, late = range(spec["members"]), CONV[-LATE:]
    runs = [trained(spec, GENERALISING, spec["width"], seed, device) for seed in members]
    rows = []
    for end in (True, False):
        acts = [recorded(run.model(None if end else 0.0, device), probes, late) for run in runs]
        for layer in late:
            whole = {str(seed): layers[layer] for seed, layers in enumerate(acts)}
            matrices = {"subsets": [], "all filters": [distances(whole, "PWCCA")]}
            for draw in range(spec["draws"]):
                subsets = {}
                for seed, values in whole.items():
                    source = torch.Generator().manual_seed(derive_seed(int(seed), layer, draw))
                    chosen = torch.randperm(values.shape[1], generator=source)[: spec["filters"]]
                    subsets[seed] = values[:, chosen.to(values.device)]
                matrices["subsets"].append(distances(subsets, "PWCCA"))
            for kind, values in matrices.items():
                mean = np.mean([(v + v.T) / 2 for v in values], axis=0)
                apart = (mean.sum(1) - np.diag(mean)) / (len(runs) - 1)
                row = {"trained": end, "layer": layer, "kind": kind}
                rows += [row | {"seed": s, "distance": value} for s, value in enumerate(apart)]
    return rows


def populate(spec: dict, device: str = "auto") -> list[dict]:
    """Train one population of varied learning rate; compare its networks, ablate their units.

    A row a network, with its distances to all others; those that diverged or died have none.
    """
    split = digits_of(spec, device)
    rates = np.geomspace(*spec["rates"], spec["networks"]).round(6).tolist()
    plans = [
        training.Spec(
            model="mlp",
            model_options={"inputs": split.train.images[0].numel(), "widths": spec["widths"]},
            optimizer_options={"momentum": 0.9},
            learning_rate=rate,
            batch_size=50,
            epochs=spec["epochs"],
            evaluate_every=spec["epochs"],
            seed=derive_seed(spec["seed"], "population", i) % 2**31,
        )
        for i, rate in enumerate(rates)
    ]
    trained = training.fit_population(plans, split, device=device, progress=False)
    probes = split.train.images[: spec["probes"]], split.train.labels[: spec["probes"]]
    counts = np.linspace(0, sum(spec["widths"]), 9).round().astype(int).tolist()
    rows, layers = [], {}
    for i, (rate, run) in enumerate(zip(rates, trained, strict=True)):
        model = run.model(device=device)
        acts = recorded(model, probes[0], MLP_LAYERS) if run.status == "finished" else None
        if acts is None or not (acts["act3"].std(0) > 0).any():
            continue  # diverged or dead: it represents nothing
        layers[str(i)] = acts["act3"]
        curve = directions.cumulative_ablation(
            model, *probes, MLP_LAYERS, orders=3, counts=counts, seed=spec["seed"]
        )
        row = {"network": i, "learning_rate": rate, "auc": curve.auc.mean().item()}
        row["ablated"] = (curve.counts / curve.counts[-1]).tolist()
        row["curve"] = curve.accuracy.mean(0).tolist()
        rows.append(row | _accuracies(run))
    values = distances(layers, "PWCCA")
    return [row | {"distances": v.tolist()} for row, v in zip(rows, values, strict=True)]


def _accuracies(run: training.Run) -> dict[str, float]:
    return run.history.iloc[-1][["train_accuracy", "test_accuracy"]].to_dict()


def recur(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Train one LSTM; follow its layers over training, and its states over the rows."""
    split = digits_of(spec, device)
    _, channels, _, side = split.train.images.shape
    plan = training.Spec(
        model="row_lstm",
        model_options={"channels": channels, "size": side, "units": spec["units"], "layers": 3},
        optimizer="Adam",
        learning_rate=spec["rate"],
        batch_size=spec["batch"],
        epochs=spec["epochs"],
        evaluate_every=spec["epochs"],
        checkpoints=tuple(spec["followed"]),
        seed=spec["seed"],
    )
    run = training.fit(plan, split, device=device, progress=False)
    probes = split.train.images[: spec["probes"]]
    states = {e: activations.record(run.model(e, device), probes, LSTM) for e in spec["followed"]}
    every = {e: {k: v.flatten(0, 1) for k, v in layers.items()} for e, layers in states.items()}
    last = {e: {k: v[:, -1] for k, v in layers.items()} for e, layers in states.items()}
    tables = [
        follow(stages, spec["share"]).drop(columns="rho").assign(states=name)
        for name, stages in (("all rows", every), ("last row", last))
    ]
    final = activations.record(run.model(device=device), probes, LSTM)
    rows = []
    for index, layer in enumerate(final.values(), start=1):
        end = layer[:, -1]
        for step, now in enumerate(layer.unbind(1), start=1):
            row = {"layer": index, "step": step, "states": "over rows"}
            if now.std(0).max() > 1e-6:  # the first rows of digits are all blank
                row["pwcca"] = 1 - similarity.pwcca(now, end, symmetric=True).item()
            row |= {"cosine": cosine(now, end).item(), "euclidean": euclidean(now, end).item()}
            rows.append(row)
    table = pd.concat([*tables, pd.DataFrame(rows)], ignore_index=True)
    return table.assign(**_accuracies(run))


def _claim(id: str, statement: str, *rules: str, figure: str, shown: str) -> Claim:
    read = tuple(map(Rule.read, rules))
    rule = read if len(read) > 1 else read[0]
    return Claim(id, "Morcos, Raghu & Bengio 2018", statement, rule, figure, shown)


CLAIMS = (
    _claim(
        "P1",
        "In later layers networks that generalise are closer to each other than networks that "
        "memorise, which are as far from each other as from those that generalise; early layers "
        "do not differ",
        "last three layers: memorising pairs minus generalising pairs > 0",
        "last three layers: |mixed pairs minus memorising pairs| < 0.05",
        "first three layers: |memorising pairs minus generalising pairs| < 0.05",
        figure="Figs. 3, A9, A10",
        shown="curves, no number",
    ),
    _claim(
        "P2",
        "Wider networks converge to more similar solutions, and it is training that does it",
        "Spearman correlation of width with the distance of trained networks, the same number "
        "of random filters at every width, mean of the last three layers < 0",
        "that distance at the least minus at the largest width, trained minus at init > 0",
        figure="Figs. 4, A7",
        shown="0.47 to 0.28 trained, 0.67 to 0.63 at init",
    ),
    _claim(
        "P3",
        "Over widths, networks that are closer to each other have the higher test accuracy",
        "Pearson correlation over widths of test accuracy with the distance of P2 < 0",
        figure="Fig. 4b",
        shown="correlation -0.96",
    ),
    _claim(
        "P4",
        "Networks of one topology and varied learning rate fall into clusters of similar "
        "solutions, and the clusters track the learning rate",
        f"mean silhouette of {CLUSTERS} clusters (average linkage) of the last hidden layer, "
        "a population counts as a seed > 0.25",
        "share of the variance of log learning rate that lies between the clusters, minus the "
        "95th percentile of the same with learning rates permuted > 0",
        figure="Fig. 5",
        shown="200 networks, five clusters",
    ),
    _claim(
        "P5",
        "Directions that have converged half-way through training stay, those that have not "
        "decorrelate quickly",
        "last three layers: distance of the least minus of the most converged directions to "
        "the layer at other checkpoints, mean of all but the first, half-way and last > 0",
        "last three layers: that distance for the least converged at the checkpoint after "
        "half-way, over the same at the end > 0.5",
        figure="Fig. 1",
        shown="curves, no number",
    ),
    _claim(
        "P6",
        "The layers of a recurrent network converge from the bottom up",
        "distance of a layer to its final state, states at all rows, mean over the checkpoints "
        "between first and last: last layer minus first > 0",
        figure="Fig. 6",
        shown="curves, no number",
    ),
    _claim(
        "P7",
        "PWCCA is more robust to noise dimensions than SVCCA, and SVCCA than mean CCA",
        "toy: distance by SVCCA minus by PWCCA, mean over signal ratios > 0",
        "toy: distance by mean CCA minus by SVCCA, mean over signal ratios > 0",
        figure="Fig. 2",
        shown="curves, no number",
    ),
)


def statistics(
    pairs: pd.DataFrame,
    networks: pd.DataFrame,
    widths: pd.DataFrame,
    populations: pd.DataFrame,
    directions: pd.DataFrame,
    recurrent: pd.DataFrame,
    toy: pd.DataFrame,
) -> dict[str, list]:
    """Return, for every claim, one number a seed, or one such list for each of its rules.

    NaN says that a statistic is undefined, for example because too few networks fitted.

    Parameters
    ----------
    pairs : DataFrame
        P1. Columns labels_a, seed_a, labels_b, seed_b ("generalising" or "memorising" and a seed),
        layer (1 is the first), distance: one row a layer and ordered pair of trained networks.
    networks : DataFrame
        P1. Columns labels, seed, train_accuracy: one row a network.
    widths : DataFrame
        P2, P3. Columns seed, width, trained (bool), distance, test_accuracy: one row a network,
        trained and at init.
    populations : DataFrame
        P4. Columns seed, network, learning_rate, distances (to all networks of the population, in
        order): one row a network.
    directions : DataFrame
        P5. Columns seed, layer, epoch, group ("most", "least"), distance.
    recurrent : DataFrame
        P6. Columns seed, layer (1 is the first), epoch, distance.
    toy : DataFrame
        P7. Columns seed, signal, metric (of `METRICS`), distance.
    """
    gaps = group_gaps(pairs, networks)
    return {
        "P1": [gaps[name].tolist() or [math.nan] for name in ("late", "mixed", "early")],
        "P2": parts_by_seed(widths, _widths, 2),
        "P3": by_seed(widths, _accuracy),
        "P4": parts_by_seed(populations, _population, 2),
        "P5": parts_by_seed(directions, _stability, 2),
        "P6": by_seed(recurrent, _bottom_up),
        "P7": parts_by_seed(toy, _robustness, 2),
    }


def fitted(networks: pd.DataFrame) -> pd.DataFrame:
    """Return the networks that fitted the labels they were given."""
    return networks[networks.train_accuracy >= FITTED]


def by_network(pairs: pd.DataFrame, networks: pd.DataFrame) -> pd.DataFrame:
    """Return the mean distance of each fitted network to each fitted group, at each layer.

    Columns labels, seed, other (the labels of the group), layer, distance; both orders of a pair
    count, a network is no member of its own group.
    """
    known = set(fitted(networks)[["labels", "seed"]].itertuples(index=False, name=None))
    sides = [list(zip(pairs[f"labels_{s}"], pairs[f"seed_{s}"], strict=True)) for s in "ab"]
    keep = [a in known and b in known and a != b for a, b in zip(*sides, strict=True)]
    kept = pairs[keep]
    swap = {"a": "b", "b": "a"}
    turned = kept.rename(columns=lambda c: c[:-1] + swap[c[-1]] if c[-2:] in ("_a", "_b") else c)
    both = pd.concat([kept, turned]).rename(
        columns={"labels_a": "labels", "seed_a": "seed", "labels_b": "other"}
    )
    keys = ["labels", "seed", "other", "layer"]
    return both.groupby(keys, as_index=False).distance.mean()


def group_gaps(pairs: pd.DataFrame, networks: pd.DataFrame) -> pd.DataFrame:
    """Return P1's three statistics, one row a seed that fitted both kinds of labels.

    Columns late, mixed and early as in the rules; the mixed pairs of a seed are those of its
    memorising network.
    """
    found = by_network(pairs, networks)
    last = pairs.layer.max()

    def mean(labels: str, other: str, early: bool) -> pd.Series:
        at = found.layer <= EARLY if early else found.layer > last - LATE
        rows = found[at & (found.labels == labels) & (found.other == other)]
        return rows.groupby("seed").distance.mean()

    memorising = mean(MEMORISING, MEMORISING, False)
    return pd.DataFrame(
        {
            "late": memorising - mean(GENERALISING, GENERALISING, False),
            "mixed": (mean(MEMORISING, GENERALISING, False) - memorising).abs(),
            "early": (
                mean(MEMORISING, MEMORISING, True) - mean(GENERALISING, GENERALISING, True)
            ).abs(),
        }
    ).dropna()


def _widths(rows: pd.DataFrame) -> tuple[float, float]:
    """Return P2's statistics of one seed."""
    by_width = rows.pivot(index="width", columns="trained", values="distance").sort_index()
    if len(by_width) < 3:
        return math.nan, math.nan
    if by_width[True].nunique() < 2:
        return 0.0, 0.0
    fall = by_width.iloc[0] - by_width.iloc[-1]
    rho = spearmanr(by_width.index, by_width[True]).statistic
    return float(rho), float(fall[True] - fall[False])


def _accuracy(rows: pd.DataFrame) -> float:
    """Return P3's statistic of one seed; NaN for fewer than three widths or nothing that varies."""
    trained = rows[rows.trained]
    if len(trained) < 3 or min(trained.distance.nunique(), trained.test_accuracy.nunique()) < 2:
        return math.nan
    return float(np.corrcoef(trained.test_accuracy, trained.distance)[0, 1])


def clusters(distances: np.ndarray, count: int = CLUSTERS) -> np.ndarray:
    """Return (networks,) labels 1, 2, ...: average linkage of symmetrised distances, cut once."""
    distances = np.asarray(distances, dtype=float)
    symmetric = (distances + distances.T) / 2
    np.fill_diagonal(symmetric, 0)
    tree = linkage(squareform(symmetric, checks=False), "average")
    return fcluster(tree, count, criterion="maxclust")


def silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of (b - a) / max(a, b), in [-1, 1]; NaN for a single cluster.

    a is a member's mean distance to the others of its cluster, b to the nearest other cluster; a
    cluster of one has 0 (Rousseeuw 1987).
    """
    distances, count = np.asarray(distances, dtype=float), len(np.unique(labels))
    if not 1 < count < len(distances):
        return math.nan if count < 2 else 0.0
    symmetric = (distances + distances.T) / 2
    np.fill_diagonal(symmetric, 0)
    return float(silhouette_score(symmetric, labels, metric="precomputed"))


def explained_share(labels: np.ndarray, values: np.ndarray) -> float:
    """Return eta squared, the share of the variance of `values` that lies between clusters."""
    values = np.asarray(values, dtype=float)
    total = ((values - values.mean()) ** 2).sum()
    if total == 0:
        return math.nan
    means = pd.Series(values).groupby(np.asarray(labels)).transform("mean")
    return float(((means - values.mean()) ** 2).sum() / total)


def permuted_shares(labels: np.ndarray, values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return `explained_share` for `PERMUTATIONS` random orders of `values`."""
    source = np.random.default_rng(derive_seed(seed, "permuted shares"))
    values = np.asarray(values, dtype=float)
    names, members = np.unique(np.asarray(labels), return_inverse=True)
    belongs = np.eye(len(names))[members]
    centred = np.stack([source.permutation(values) for _ in range(PERMUTATIONS)]) - values.mean()
    between = ((centred @ belongs) ** 2 / belongs.sum(0)).sum(1)
    total = (centred[0] ** 2).sum()
    return between / total if total > 0 else np.full(len(between), math.nan)


def _population(rows: pd.DataFrame) -> tuple[float, float]:
    """Return P4's statistics of one population."""
    rows = rows.sort_values("network")
    distances = np.array(rows.distances.tolist(), dtype=float)
    labels = clusters(distances)
    rates = np.log(rows.learning_rate.to_numpy())
    beyond = np.quantile(permuted_shares(labels, rates), 0.95)
    return silhouette(distances, labels), explained_share(labels, rates) - beyond


def _stability(rows: pd.DataFrame) -> tuple[float, float]:
    """Return P5's statistics of one seed; NaN where there is no checkpoint to look at."""
    last = rows.layer.max()
    curves = rows[rows.layer > last - LATE].pivot_table(
        index="epoch", columns="group", values="distance", aggfunc="mean"
    )
    end = curves.index.max()
    between = curves[(curves.index > 0) & (curves.index < end) & (curves.index != end / 2)]
    after = curves[curves.index > end / 2]
    if between.empty or len(after) < 2 or not after.least.iloc[-1] > 0:
        return math.nan, math.nan
    gap = (between.least - between.most).mean()
    return float(gap), float(after.least.iloc[0] / after.least.iloc[-1])


def _bottom_up(rows: pd.DataFrame) -> float:
    """Return P6's statistic of one seed."""
    inner = rows[(rows.epoch > 0) & (rows.epoch < rows.epoch.max())]
    by_layer = inner.groupby("layer").distance.mean()
    return float(by_layer.iloc[-1] - by_layer.iloc[0]) if len(by_layer) > 1 else math.nan


def _robustness(rows: pd.DataFrame) -> tuple[float, float]:
    """Return P7's statistics of one draw."""
    mean = rows.groupby("metric").distance.mean()
    return float(mean["SVCCA"] - mean["PWCCA"]), float(mean["mean CCA"] - mean["SVCCA"])
