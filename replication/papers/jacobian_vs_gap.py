"""Claims N1 to N13 of Novak et al. 2018, and what settles each.

|J| is the Frobenius norm of the Jacobian of the softmax by the input, its mean over test points
where no point is named; the gap is train minus test accuracy, in shares; transitions are counted
exactly along the closed path through a test image's horizontal translations. A network has fitted
its labels at 100% train accuracy; others do not count, but for augmented ones in pairs.

All statistics and thresholds were fixed before the first run at quick or full. What someone may
doubt: the cross-entropy bounds, of which a first network was seen to hold only 30% of its points,
settle no claim here; the peak of |J_y| (N12) is looked for near p_y = 1/2 only, as most points lie
far from it. One thing was changed after a run at quick, which had too few pairs to settle any: the
networks of a pair are trained equally long, as in the paper, where before each stopped at 100%
train accuracy, and augmented ones trained several times longer than their partners.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau, mannwhitneyu, rankdata
from torch import Tensor, nn

from replication import data, sensitivity, training
from replication.claims import Claim, Rule
from replication.papers._correlation import by_seed
from replication.papers.experiment import Experiment, by_profile
from replication.sensitivity import trajectories

NOTEBOOK = "05_jacobian_vs_gap"
TRUE, RANDOM = "true", "random"
DATASETS = MNIST, FASHION, CIFAR = "mnist", "fashion_mnist", "cifar10"
TITLES = {MNIST: "MNIST", FASHION: "Fashion-MNIST", CIFAR: "CIFAR-10"}
STAND_INS = {"mnist5k": MNIST}  # the embedded digits count as MNIST; the scale says so
LABELS, AUGMENTATION = "random labels", "augmentation"
ACTIVATION, FULL_BATCH = "HardSigmoid", "full batch"
FACTORS = (LABELS, AUGMENTATION, ACTIVATION, FULL_BATCH)
BASE = "baseline"
STOPPED = "baseline, stopped at 100%"  # a control, in no claim
TRAINED, INITIAL = "after training", "before training"
DIFFERENT, SAME, NOISE = "different classes", "same class", "noise"
TRANSLATIONS = "translations"
WINDOW = 15.0  # degrees on either side of a point, or of the middle between two
FEWEST_NETWORKS = 10  # for a correlation
FEWEST_POINTS = 20  # near the peak of |J_y|
UNDECIDED = (0.05, 0.95)  # probabilities of the right class that count as near the peak
PAIRS = 20  # the fewest a factor
MEASURED = ["gap", "jacobian", "transitions", "test_accuracy", "train_accuracy"]

SETTINGS = by_profile(
    {  # at smoke, quick, full and paper
        "population": {
            "images": ((100, 200), (200, 1000), (500, 1000), (None, None)),  # training and test
            "widths": ((16, 32), (32, 128), (64, 128, 256), (64, 256, 1024, 2048)),
            "depths": ((2,), (2,), (2, 4), (2, 5, 10)),
            "recipes": (2, 4, 5, 5),  # the first of `RECIPES`
            "seeds": (1, 2, 8, 8),
            "epochs": (60, 120, 160, 300),
            "stop": (True, True, True, False),  # at 100% train accuracy; the paper does not
            "points": (50, 200, 500, 1000),  # test images for the Jacobian
            "paths": (2, 4, 10, 100),  # test images for the transitions
        },
        "factors": {  # the pairs of figure 4
            "widths": ((16,), (32, 64), (96, 160), (64, 256, 1024)),
            "depths": ((2,), (2,), (2, 3), (2, 5)),
            "seeds": (1, 2, 14, 8),
            "epochs": (60, 100, 140, 300),
        },
        "single": {  # the networks of figures 2, 3 and 6
            "images": ((200, 200), (500, 500), (2000, 1000), (None, None)),
            "widths": ((40,) * 3, (100,) * 5, (200,) * 5, (300,) * 15),
            "epochs": (50, 70, 60, 100),
            "seeds": (1, 2, 5, 5),
            "ellipses": (2, 4, 10, 100),  # of a kind, each followed all round
            "grid": (60, 200, 400, 1000),  # points along a side of figure 3
        },
    }
)
_RECIPE = ("activation", "optimizer", "momentum", "learning_rate", "batch_size")
RECIPES = [
    dict(zip(_RECIPE, values, strict=True))
    for values in (
        ("relu", "Adam", 0.0, 0.001, 32),  # the baseline of the four factors
        ("relu", "SGD", 0.9, 0.01, 32),
        ("relu6", "SGD", 0.0, 0.05, 32),
        ("tanh", "Adam", 0.0, 0.0005, 128),
        ("hardtanh", "RMSprop", 0.0, 0.0005, 128),
    )
]
ARMS = {  # what differs from the first recipe
    BASE: {},
    STOPPED: {"stop": True},
    LABELS: {"labels": RANDOM},
    AUGMENTATION: {"augment": True},
    ACTIVATION: {"activation": "hardsigmoid"},
    FULL_BATCH: {"batch_size": 1_000_000},  # more images than there are
}


def splits(profile: str, dataset: str = "auto") -> dict[str, data.Split]:
    """Return the data sets that can be had, by name, the one of the single networks first."""
    images = SETTINGS[profile]["population"]["images"]
    first = data.load(dataset, subset=images)
    others = DATASETS[1:] if dataset == "auto" else ()
    there = [name for name in others if profile == "paper" or data.locate(name)]
    return {first.name: first} | {name: data.load(name, subset=images) for name in there}


# ------------------------------------------------------------------ the population


def training_spec(spec: dict, inputs: int) -> training.Spec:
    """Return how one network of the population is trained."""
    augment = {"shift": 4} | ({"flip": 0.5} if "mnist" not in spec["dataset"] else {})
    return training.Spec(
        model="mlp",
        model_options={
            "inputs": inputs,
            "widths": [spec["width"]] * spec["depth"],
            "activation": spec["activation"],
        },
        optimizer=spec["optimizer"],
        optimizer_options={"momentum": spec["momentum"]} if spec["momentum"] else {},
        learning_rate=spec["learning_rate"],
        batch_size=spec["batch_size"],
        epochs=spec["epochs"],
        label_corruption=1.0 if spec["labels"] == RANDOM else 0.0,
        augment=augment if spec["augment"] else {},
        stop_at_train_accuracy=1.0 if spec["stop"] else None,
        evaluate_every=4 if spec["stop"] else spec["epochs"],  # only the end counts then
        seed=spec["seed"],
    )


def measure(run: training.Run, split: data.Split, spec: dict, device: str) -> dict[str, Any]:
    """Return what is kept of a trained network: a row."""
    last = run.history.iloc[-1]
    row = {"ended": run.status, "epochs_taken": last.epoch}
    row |= {"train_loss": last.train_loss, "train_accuracy": last.train_accuracy}
    names = ("parameters", "test_accuracy", "gap", "jacobian", "logit_jacobian", "transitions")
    row |= dict.fromkeys(names, math.nan)
    if run.status == "diverged":
        return row
    model, images = run.model(device=device), split.test.images
    points, width = images[: spec["points"]], images.shape[-1]
    row["parameters"] = sum(weight.numel() for weight in model.parameters())
    row["test_accuracy"] = training.evaluate(model, split.test)[1]
    row["gap"] = row["train_accuracy"] - row["test_accuracy"]
    row["jacobian"] = sensitivity.jacobian_norm(model, points).mean().item()
    row["logit_jacobian"] = sensitivity.jacobian_norm(model, points, "logits").mean().item()
    if spec["activation"] != "tanh":  # which has no regions
        rings = [trajectories.translations(image, width) for image in images[: spec["paths"]]]
        row["transitions"] = np.mean([int(t) for t in sensitivity.transitions(model, rings)])
    return row


def networks(specs: list[dict], device: str = "auto") -> list[dict[str, Any]]:
    """Train and measure networks, those that share an architecture as one program."""
    rows = {}
    for name in {spec["dataset"] for spec in specs}:
        chosen = [i for i, spec in enumerate(specs) if spec["dataset"] == name]
        counts = specs[chosen[0]]["train_images"], specs[chosen[0]]["test_images"]
        split, _, _ = data.standardise(data.load(name, subset=counts, device=device))
        # While they are trained, only their train accuracy is needed.
        watched = data.Examples(split.test.images[:10], split.test.labels[:10])
        watched = dataclasses.replace(split, test=watched)
        inputs = split.train.images[0].numel()
        how = [training_spec(specs[i], inputs) for i in chosen]
        runs = training.fit_population(how, watched, device=device, progress=False)
        for i, run in zip(chosen, runs, strict=True):
            rows[i] = measure(run, split, specs[i], device)
    return [rows[i] for i in range(len(specs))]


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the population, on every data set, and the four factors, on CIFAR-10 where it is.

    The specs of the factors stand in the order of `ARMS`, equally many of each.
    """
    settings, sets = SETTINGS[profile], splits(profile, dataset)
    scale, design = settings["population"], settings["factors"]

    def spec(name: str, width: int, depth: int, seed: int, recipe: dict, labels: str) -> dict:
        split = sets[name]  # a substitute may have fewer images than asked for
        count = len(split.train), len(split.test)
        train, test = count if split.substitute else scale["images"]
        place = {"dataset": name, "width": width, "depth": depth, "seed": seed, "labels": labels}
        place |= {"train_images": train, "test_images": test}
        place |= {key: scale[key] for key in ("epochs", "stop", "points", "paths")}
        return place | {"augment": False} | recipe

    population = [
        spec(name, width, depth, seed, recipe, labels)
        for name in sets
        for recipe in RECIPES[: scale["recipes"]]
        for width in scale["widths"]
        for depth in scale["depths"]
        for labels in (TRUE, RANDOM)
        for seed in range(scale["seeds"])
    ]
    equally_long = {"stop": False, "epochs": design["epochs"]}
    factors = [
        spec(paired(sets), width, depth, seed, RECIPES[0], TRUE) | equally_long | change
        for change in ARMS.values()
        for width in design["widths"]
        for depth in design["depths"]
        for seed in range(design["seeds"])
    ]
    return {
        name: Experiment(networks, specs, batch=16, options={"device": device})
        for name, specs in (("population", population), ("factors", factors))
    }


def paired(sets: dict[str, data.Split]) -> str:
    """Return the data set of the four factors: CIFAR-10, or where that is missing the first."""
    return CIFAR if CIFAR in sets else next(iter(sets))


# ------------------------------------------------------------------ single networks


def single_networks(
    split: data.Split, scale: dict, store: str | Path, device: str = "auto"
) -> list[training.Run]:
    """Train the networks that are followed along paths, of one architecture and several seeds."""
    options = {"inputs": split.train.images[0].numel(), "widths": list(scale["widths"])}
    specs = [
        training.Spec(
            model="mlp",
            model_options=options,
            optimizer_options={"momentum": 0.9},
            learning_rate=0.05,
            batch_size=64,
            epochs=scale["epochs"],
            evaluate_every=max(1, scale["epochs"] // 4),
            seed=seed,
        )
        for seed in range(scale["seeds"])
    ]
    return training.fit_population(specs, split, store=store, device=device)


def triple(split: data.Split, kind: str, source: torch.Generator) -> Tensor:
    """Return three training images (3, C, H, W) of different classes, or of the same."""
    order = torch.randperm(split.num_classes, generator=source)
    labels = split.train.labels.cpu()
    rows: list[int] = []
    for label in order[:3] if kind == DIFFERENT else order[:1].expand(3):
        members = (labels == label).nonzero()[:, 0]
        mixed = members[torch.randperm(len(members), generator=source)]
        rows.append(next(row for row in mixed.tolist() if row not in rows))
    return split.train.images[rows]


def closed_paths(split: data.Split, kind: str, seed: int, count: int) -> list[Tensor]:
    """Return `count` paths of one kind, polylines (vertices, C, H, W), by their seed."""
    source = torch.Generator().manual_seed(seed)
    if kind == NOISE:
        seeds = range(1000 * seed, 1000 * seed + count)
        return [trajectories.random_ellipse(split.train.images, 360, seed=s) for s in seeds]
    if kind == TRANSLATIONS:
        chosen = torch.randperm(len(split.test), generator=source)[:count]
        return [trajectories.translations(x, x.shape[-1]) for x in split.test.images[chosen]]
    return [trajectories.ellipse(*triple(split, kind, source), vertices=360) for _ in range(count)]


def follow(model: nn.Module, split: data.Split, kind: str, seed: int, count: int) -> pd.DataFrame:
    """Return angle, norm (|J|) and density (transitions per degree), means over `count` paths.

    A row for each of 72 parts of the path, centred on 0, 5, 10 ... degrees; the points of an
    ellipse lie at 0, 120 and 240.
    """
    parts, paths = 72, closed_paths(split, kind, seed, count)
    samples = [trajectories.sample(p, 360) if kind == TRANSLATIONS else p for p in paths]
    norms = torch.stack([sensitivity.jacobian_norm(model, points) for points in samples]).mean(0)
    counts = sensitivity.transitions(model, paths)
    density = torch.stack([t.density(2 * parts) for t in counts]).mean(0) / 360
    norms = norms.roll(2).view(parts, -1).mean(1)
    density = density.roll(1).view(parts, 2).mean(1)
    angle = np.arange(parts) * 360 / parts
    return pd.DataFrame({"angle": angle, "norm": norms.cpu(), "density": density.cpu()})


@torch.no_grad()
def single_points(model: nn.Module, test: data.Examples) -> pd.DataFrame:
    """Return a row a test point: cross_entropy, correct, norm, row_norm (|J_y|), logit_norm."""
    logits = torch.cat([model(images) for images in test.images.split(500)])
    columns = {
        "cross_entropy": sensitivity.cross_entropies(logits, test.labels),
        "correct": logits.argmax(1) == test.labels,
        "norm": sensitivity.jacobian_norm(model, test.images),
        "row_norm": sensitivity.jacobian_row_norm(model, test.images, test.labels),
        "logit_norm": sensitivity.jacobian_norm(model, test.images, "logits"),
    }
    return pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})


# ------------------------------------------------------------------ claims


def _claim(number: int, statement: str, *rules: Rule, **more: str) -> Claim:
    figure = next(f for last, f in _FIGURES.items() if number <= last)
    texts = {"figure": figure, "paper_value": "a plot, no number"} | more
    rule = rules if len(rules) > 1 else rules[0]
    return Claim(f"N{number}", "Novak et al. 2018", statement, rule, **texts)


_FIGURES = {3: "Fig. 2", 8: "Fig. 4", 9: "Fig. 5", 10: "Fig. 5 and appendix", 12: "Fig. 6"}
_FIGURES |= {13: "Fig. 1"}
_AT = f"within {WINDOW:g} degrees of the three points"
_BETWEEN = f"within {WINDOW:g} degrees of the middles between them"


def _dip(number: int, subject: str, quantity: str) -> Claim:
    return _claim(
        number,
        f"{subject} is lower at training points than between them, and flat along a random ellipse",
        Rule.read(
            f"ln of the mean {quantity} {_AT} over that {_BETWEEN}, training points of different "
            "classes < 0"
        ),
        Rule.read(
            f"coefficient of variation of {quantity} along ellipses through noise over that along "
            "those through training points of different classes < 0.5"
        ),
    )


def _same(quantity: str) -> Rule:
    return Rule.read(
        f"ln of the mean {quantity} {_BETWEEN}, training points of the same class over those of "
        "different classes < 0"
    )


def _more(worse: str, better: str, quantity: str, which: str = "") -> Rule:
    statistic = f"{quantity} {worse} minus that {better}, a value a pair of networks{which}"
    return Rule.old(statistic, ">", 0.0, "sign", PAIRS)


def _raises(number: int, statement: str, worse: str, better: str, *more: Rule) -> Claim:
    gap, norm = _more(worse, better, "gap"), _more(worse, better, "|J|")
    return _claim(number, statement, gap, norm, *more)


_LABELS = "with random labels", "with true ones"
_AUGMENTATION = "without augmentation", "with it"
_ACTIVATION = "of HardSigmoid", "of ReLU"
_FULL_BATCH = "after full-batch training", "after minibatch training"
_HELPED = " of which augmentation raised the test accuracy, as in the paper"
CLAIMS = (
    _dip(1, "|J|", "|J|"),
    _dip(2, "The density of transitions", "transition density"),
    _claim(
        3,
        "Between points, |J| and the density of transitions are lower for points of the same class",
        _same("|J|"),
        _same("transition density"),
    ),
    _raises(4, "Random labels raise the gap and |J|", *_LABELS),
    _raises(
        5,
        "Training without augmentation raises the gap and |J|",
        *_AUGMENTATION,
        _more(*_AUGMENTATION, "|J|", _HELPED),
    ),
    _raises(6, "HardSigmoid in place of ReLU raises the gap and |J|", *_ACTIVATION),
    _raises(7, "Full-batch training raises the gap and |J|", *_FULL_BATCH),
    _claim(
        8,
        "Transitions follow the gap for labels, augmentation and activation, not for full batches",
        *(_more(*sides, "transitions") for sides in (_LABELS, _AUGMENTATION, _ACTIVATION)),
        Rule.old(
            "1 if there are more transitions after full-batch than after minibatch training, else "
            "0, a value a pair of networks (three quarters would be agreement)",
            "<",
            0.75,
            "bootstrap",
            PAIRS,
        ),
    ),
    _claim(
        9,
        "|J| and the gap are positively rank-correlated on every data set",
        *(
            Rule.read(f"Spearman correlation of |J| with the gap, {title} > 0")
            for title in TITLES.values()
        ),
        paper_value="plots, no number",
    ),
    _claim(
        10,
        "Transitions and the gap are not clearly correlated",
        *(
            Rule.read(f"|Spearman correlation| of transitions with the gap, {title} < 0.5")
            for title in TITLES.values()
        ),
        paper_value="plots, no number",
    ),
    _claim(
        11,
        "Misclassified points have higher |J|, and some of them a small one",
        Rule.read(
            "share of pairs of a misclassified and a correct test point in which the former has "
            "the higher |J| > 0.5"
        ),
        Rule.read("share of misclassified test points with |J| below the mean of all > 0.01"),
    ),
    _claim(
        12,
        "|J_y| is largest at a cross-entropy of ln 2",
        Rule.read(
            "|cross-entropy at the peak of a fit ln |J_y| = c + a ln p + b ln(1 - p) to test "
            "points with p = e^-l from 0.05 to 0.95, minus ln 2| < 0.25"
        ),
        paper_value="ln 2, from the bounds",
    ),
    _claim(
        13,
        "The best gap at the largest width is smaller than at small width",
        Rule.read(
            "least gap at the smallest width minus that at the largest, over all networks with "
            "true labels, CIFAR-10 > 0"
        ),
    ),
)


def statistics(
    networks: pd.DataFrame, paired: pd.DataFrame, paths: pd.DataFrame, points: pd.DataFrame
) -> dict[str, list]:
    """Return, for every claim, one number a seed or pair, or one such list for each of its rules.

    NaN says that a statistic is undefined for a seed: the data set is missing, the network has not
    fitted its labels, or too few have.

    Parameters
    ----------
    networks : DataFrame
        N9, N10, N13: all rows of the population, fitted or not.
    paired : DataFrame
        N4 to N8: what `pairs` returns.
    paths : DataFrame
        N1 to N3: the rows of `follow` with columns seed, train_accuracy, stage (`INITIAL` or
        `TRAINED`) and kind (`DIFFERENT`, `SAME`, `NOISE`; others are passed over).
    points : DataFrame
        N11, N12: the rows of `single_points` with columns seed and train_accuracy.
    """
    norm, density = (_parts(paths, 3, along, column) for column in ("norm", "density"))
    moved = {factor: _moved(paired, factor) for factor in FACTORS}
    raised = {factor: [columns["gap"], columns["jacobian"]] for factor, columns in moved.items()}
    full = moved[FULL_BATCH]["transitions"]
    names = networks.dataset.replace(STAND_INS)
    of = {name: networks[names == name] for name in DATASETS}
    jacobian, transitions = (
        [by_seed(of[name], rank_correlation, column) for name in DATASETS]
        for column in ("jacobian", "transitions")
    )
    helped = paired[paired.test_accuracy_worse < paired.test_accuracy_better]
    return {
        "N1": norm[:2],
        "N2": density[:2],
        "N3": [norm[2], density[2]],
        "N4": raised[LABELS],
        "N5": [*raised[AUGMENTATION], _moved(helped, AUGMENTATION)["jacobian"]],
        "N6": raised[ACTIVATION],
        "N7": raised[FULL_BATCH],
        "N8": [
            *(moved[factor]["transitions"] for factor in FACTORS[:3]),
            [math.nan if math.isnan(d) else float(d > 0) for d in full],
        ],
        "N9": jacobian,
        "N10": [[abs(value) for value in series] for series in transitions],
        "N11": _parts(points, 2, misclassified),
        "N12": [abs(value - math.log(2)) for value in by_seed(points, peak)],
        "N13": by_seed(of[CIFAR], best_gap_lost),
    }


def _parts(table: pd.DataFrame, count: int, statistic: Callable, *arguments: Any) -> list[list]:
    """Return `count` series of a number a seed, of a statistic that returns as many numbers."""
    rows = [statistic(rows, *arguments) for _, rows in table.groupby("seed")]
    return [list(part) for part in zip(*(rows or [(math.nan,) * count]), strict=True)]


def fitted(networks: pd.DataFrame) -> pd.Series:
    """Tell which networks (rows) have a train accuracy of 100%; one that diverged has not."""
    return networks.train_accuracy >= 1 - 1e-9


def along(paths: pd.DataFrame, column: str) -> tuple[float, float, float]:
    """Return what N1 to N3 look at, of one seed's network after training: dip, flatness, same.

    ln of the mean of `column` at the three points over that between them, different classes; its
    coefficient of variation along ellipses of noise over that along those of different classes; ln
    of its mean between points of the same class over that between points of different classes. NaN
    if the network has not fitted its training set.
    """
    rows = paths[(paths.stage == TRAINED) & fitted(paths)]
    curves = [rows[rows.kind == kind] for kind in (DIFFERENT, SAME, NOISE)]
    if any(curve.empty for curve in curves):
        return (math.nan,) * 3
    off = [((curve.angle + 60) % 120 - 60).abs() for curve in curves]  # from a point: 0 to 60
    at = curves[0][column][off[0] <= WINDOW].mean()
    different, same = (curves[i][column][off[i] >= 60 - WINDOW].mean() for i in (0, 1))
    steep, flat = (_variation(curves[i][column]) for i in (0, 2))
    flatness = flat / steep if steep > 0 else math.nan
    return _log_ratio(at, different), flatness, _log_ratio(same, different)


def _variation(values: pd.Series) -> float:
    mean = float(values.mean())
    return float(values.std(ddof=0)) / mean if mean > 0 else math.nan


def _log_ratio(a: float, b: float) -> float:
    return math.log(a / b) if a > 0 and b > 0 else math.nan


def pairs(arms: pd.DataFrame) -> pd.DataFrame:
    """Return the networks that differ in one factor only, side by side: a row a pair.

    Of each pair both networks have fitted their labels, but for an augmented one, which need not
    (as in Novak et al. 2018, Fig. 4). The columns ``..._worse`` are of the network that the paper
    expects to have the larger gap, ``..._better`` of the other. `arms` has a row a network: arm
    (`BASE` or one of `FACTORS`), seed, width, depth and `MEASURED`.
    """
    keys = ["seed", "width", "depth"]
    base = arms[(arms.arm == BASE) & fitted(arms)]
    tables = []
    for factor in FACTORS:
        augmented = factor == AUGMENTATION
        other = arms[(arms.arm == factor) & (fitted(arms) | augmented)]
        sides = (base, other) if augmented else (other, base)
        worse, better = (side[[*keys, *MEASURED]] for side in sides)
        both = worse.merge(better, on=keys, suffixes=("_worse", "_better"), validate="1:1")
        tables.append(both.assign(factor=factor))
    return pd.concat(tables, ignore_index=True)


def _moved(paired: pd.DataFrame, factor: str) -> dict[str, list[float]]:
    """Return each measure of the worse minus that of the better network, one number a pair."""
    rows = paired[paired.factor == factor]
    differences = {name: rows[f"{name}_worse"] - rows[f"{name}_better"] for name in MEASURED}
    return {name: values.tolist() or [math.nan] for name, values in differences.items()}


def rank_correlation(networks: pd.DataFrame, measure: str) -> float:
    """Return Spearman's correlation of `measure` with the gap, of the fitted; NaN for too few."""
    rows = networks[fitted(networks)].dropna(subset=[measure, "gap"])
    return _spearman(rows[measure], rows.gap) if len(rows) >= FEWEST_NETWORKS else math.nan


def best_gap_lost(networks: pd.DataFrame) -> float:
    """N13: the least gap at the smallest width minus that at the largest, true labels."""
    rows = networks[fitted(networks) & (networks.labels == TRUE)]
    widths = networks.width.min(), networks.width.max()
    small, large = (rows.gap[rows.width == width].min() for width in widths)
    return float(small - large) if widths[0] < widths[1] else math.nan


def misclassified(points: pd.DataFrame) -> tuple[float, float]:
    """N11: how often |J| is higher on a misclassified point, and how many of these have little.

    The share of pairs (misclassified, correct) in which the former has the larger |J|, ties half;
    and the share of misclassified points whose |J| is below the mean over all points.
    """
    wrong, right = (points.norm[points.correct == value] for value in (False, True))
    if not fitted(points).all() or wrong.empty or right.empty:
        return math.nan, math.nan
    larger = mannwhitneyu(wrong, right).statistic / (len(wrong) * len(right))
    return float(larger), float((wrong < points.norm.mean()).mean())


def peak(points: pd.DataFrame) -> float:
    """N12: the cross-entropy at which |J_y| is largest, by a fit to the undecided points.

        ln |J_y| = c + a ln p + b ln(1 - p),   p = e^-l in [0.05, 0.95]

    by least squares; where this is largest in that range. NaN for fewer than 20 such points.
    """
    p = np.exp(-points.cross_entropy)
    rows = points[(p >= UNDECIDED[0]) & (p <= UNDECIDED[1]) & (points.row_norm > 0)]
    if not fitted(points).all() or len(rows) < FEWEST_POINTS:
        return math.nan

    def terms(p: np.ndarray) -> np.ndarray:
        return np.stack([np.ones_like(p), np.log(p), np.log1p(-p)], axis=1)

    p = np.exp(-rows.cross_entropy.to_numpy(float))
    fit = np.linalg.lstsq(terms(p), np.log(rows.row_norm.to_numpy(float)), rcond=None)[0]
    grid = np.linspace(*UNDECIDED, 901)
    return float(-np.log(grid[(terms(grid) @ fit).argmax()]))


# ------------------------------------------------------------------ correlations of figure 5


def correlations(
    networks: pd.DataFrame,
    measures: Sequence[str],
    setting: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how well each measure ranks the fitted networks by their gap.

    Networks that share the columns `setting` differ by their seed only. The bootstrap, of
    `resamples` draws, draws settings, as networks of one are alike.

    Returns
    -------
    DataFrame
        A row a data set, measure and group of networks (all, true, random): networks, spearman with
        the 95% percentile interval low, high (Efron 1979), kendall (tau-b), partial (Spearman's
        given train loss). NaN where fewer than 10 networks are left, or one of the two is constant.
    """
    rows = []
    for dataset, members in networks[fitted(networks)].groupby("dataset", sort=False):
        groups = {"all": members} | {x: members[members.labels == x] for x in (TRUE, RANDOM)}
        for measure in measures:
            for group, some in groups.items():
                some = some.dropna(subset=[measure, "gap"])
                row = {"dataset": dataset, "measure": measure, "labels": group}
                row |= {"networks": len(some)}
                if len(some) >= FEWEST_NETWORKS:
                    row |= _correlations(some, measure, setting, resamples, seed)
                rows.append(row)
    columns = ["dataset", "measure", "labels", "networks", "spearman", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "kendall", "partial"])


def _correlations(
    rows: pd.DataFrame, measure: str, setting: Sequence[str], resamples: int, seed: int
) -> dict[str, float]:
    x, y, z = (rows[column].to_numpy(float) for column in (measure, "gap", "train_loss"))
    members = list(rows.reset_index(drop=True).groupby(list(setting)).indices.values())
    source = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = source.integers(len(members), size=len(members))
        index = np.concatenate([members[i] for i in chosen])
        drawn.append(_spearman(x[index], y[index]))
    known = np.array(drawn)[~np.isnan(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    xy, xz, yz = _spearman(x, y), _spearman(x, z), _spearman(y, z)
    rest = math.sqrt(max(0.0, (1 - xz**2) * (1 - yz**2))) if not math.isnan(xz + yz) else 0.0
    return {
        "spearman": xy,
        "low": float(low),
        "high": float(high),
        "kendall": math.nan if math.isnan(xy) else float(kendalltau(x, y).statistic),
        "partial": (xy - xz * yz) / rest if rest > 1e-9 else math.nan,
    }


def _spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the rank correlation, to the last digit as in the results that are kept."""
    x, y = (rankdata(values) for values in (x, y))
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else math.nan
