"""Zhang et al. 2017 on random labels, and Arpit et al.: what is trained, claims Z1 to Z8, A1, A2.

All data sets have ten classes. Train accuracy is measured on the labels trained on, corrupted or
not; test accuracy and test error on clean labels; all are shares. A run has fitted its labels when
its train accuracy reaches 99%. A run that has not is never dropped: where a claim says that labels
are fitted it counts against it; its time to fit is longer than its budget and otherwise unknown, so
that an order of times is undefined only where this leaves it open.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau

from replication import data, memorisation, training
from replication._core.profiles import PROFILES
from replication.claims import Claim, Rule
from replication.papers._correlation import by_seed, parts_by_seed
from replication.papers.experiment import Experiment, cifar10

NOTEBOOK = "01_random_labels"
TRUE, RANDOM, SHUFFLED = "true labels", "random labels", "shuffled pixels"
PIXELS, GAUSSIAN = "random pixels", "gaussian"
KINDS = (TRUE, RANDOM, SHUFFLED, PIXELS, GAUSSIAN)
KERNEL, FEATURES = "Gaussian kernel, pixels", "Gaussian kernel, random conv features"
ALEXNET, INCEPTION = "small_alexnet", "small_inception"
FLAGS = ["crop", "weight_decay", "dropout"]
RUN = ["model", "fraction", "kind", *FLAGS, "batch_norm", "seed"]  # what tells runs apart
WEIGHT_DECAY, DROPOUT = 5e-4, 0.5  # the paper does not give these; fixed here once
RATE_WITHOUT, SLOWER = 0.01, 3  # Inception without batch norm: learning rate, budgets
RIDGES = (0.0, 0.03, 0.3, 3.0)  # beyond 0, at the largest n alone
FITTED = 0.99  # train accuracy from which labels count as fitted
AT_LEAST = 1e-9  # rules are strict: what lies on a bound that may be reached is this far beyond it
REACHED = FITTED - AT_LEAST
CHANCE_ERROR = 0.9
STARTED = 0.9 * math.log(10)  # train loss below which fitting has started; guessing has ln 10

_MODELS = ("mlp 1x512", "mlp 3x512", ALEXNET, INCEPTION)
_BY_PROFILE: dict[str, tuple] = {  # in the order of PROFILES
    "images": ((20, 40), (32, 100), (250, 500), (50_000, 10_000)),  # training, test
    "minibatch": (16, 8, 16, 128),  # the paper does not say
    "width": (1 / 16, 1 / 8, 1 / 8, 1.0),  # multiplies the convnets' channels
    "epochs": (2, 20, 36, 100),  # the budget
    "levels": ((0, 1), (0, 0.5, 1), (0, 0.25, 0.5, 0.75, 1), (0, 0.2, 0.4, 0.6, 0.8, 1)),
    "networks": (("mlp 1x512", ALEXNET, INCEPTION), _MODELS, _MODELS, _MODELS),
    "seeds": (1, 1, 6, 3),  # of trained networks
    "cheap": (1, 3, 10, 5),  # seeds of what takes seconds
    "batch": (40, 8, 1, 6),  # networks a task
    "theorem": ((10, 30), (100, 300, 1000), (100, 300, 1000, 3000), (1000, 3000, 10_000, 30_000)),
    "kernel": (  # training sizes, test images, filters
        ((20, 40), 40, 8),
        ((100, 300), 300, 32),
        ((500, 1000, 2000), 1000, 128),
        ((1000, 10_000, 30_000), 10_000, 2000),
    ),
    "descent": ((10, 100), (20, 3000), (100, 30_000), (1000, 300_000)),  # images, steps
    "learning": (  # images, repeats, epochs measured
        (20, 2, (1, 2)),
        (200, 4, (1, 2)),
        (1000, 20, (1, 2, 4)),
        (1000, 20, (1, 2, 4)),
    ),
}
SETTINGS: dict[str, dict[str, Any]] = {
    profile: {name: values[i] for name, values in _BY_PROFILE.items()}
    for i, profile in enumerate(PROFILES)
}


def load(profile: str, dataset: str = "auto") -> data.Split:
    """Return the images, CIFAR-10's where they are; ValueError unless they have ten classes."""
    split = cifar10(profile, dataset, SETTINGS[profile]["images"])
    if split.num_classes != 10:
        raise ValueError(f"dataset: the rules are made for ten classes, found {split.num_classes}")
    return split


def central(split: data.Split) -> data.Split:
    """Return the windows that networks see, 4 pixels less than the whole (28 of 32), whitened."""
    return data.preprocess(split, crop=split.train.images.shape[-1] - 4, whiten=True)


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the experiments; `networks` has a run for each condition that any figure shows."""
    settings, split = SETTINGS[profile], load(profile, dataset)
    models, cheap = settings["networks"], range(settings["cheap"])
    convnets = [model for model in models if model in (ALEXNET, INCEPTION)]

    def condition(model: str, fraction: float = 0, kind: str = "", **regulariser: bool) -> dict:
        """Return a condition without its seed, with its budget."""
        fig1a = model == INCEPTION and not regulariser and (kind or fraction in (0, 1))
        budgets = 2 if model == ALEXNET else 1
        if regulariser.get("batch_norm") is False:
            budgets = SLOWER
        if regulariser.get("crop") and fraction == 1:
            budgets *= 2  # every step sees other windows
        often = model.startswith("mlp") or fig1a
        return {
            "model": model,
            "fraction": float(fraction),
            "kind": kind,
            "epochs": settings["epochs"] * budgets,
            "every": 1 if often else 5 if regulariser else 2,  # epochs between evaluations
            **dict.fromkeys(FLAGS, False),
            "batch_norm": model == INCEPTION,
            **regulariser,
        }

    conditions = [condition(model, p) for model in models for p in settings["levels"]]
    conditions += [condition(INCEPTION, kind=kind) for kind in data.KINDS]
    for p in (0, 1):
        conditions += [condition(model, p, weight_decay=True) for model in models]
        conditions += [condition(model, p, crop=True) for model in convnets]
        conditions += [condition(m, p, dropout=True) for m in models if m != INCEPTION]
        conditions += [condition(INCEPTION, p, batch_norm=False)]
    conditions += [condition(model, crop=True, weight_decay=True) for model in convnets]
    conditions += [condition(INCEPTION, weight_decay=True, batch_norm=False)]

    sets = ["cifar10", "mnist"] if split.name == "cifar10" else [split.name]  # of kernels
    files = {name: data.locate(name).fingerprint[:12] for name in sets if data.locate(name)}
    source = {"data": split.name, "files": files[split.name]}
    side = {"side": split.train.images.shape[-1] - 4}
    setup = source | {"images": settings["images"]} | side
    setup |= {"width": settings["width"], "minibatch": settings["minibatch"]}
    sizes, tested, filters = settings["kernel"]
    kernel = {"sizes": sizes, "test": tested, "filters": filters}
    count, steps = settings["descent"]
    taught, repeats, measured = settings["learning"]
    repeated = {"images": (taught, 100), "repeats": repeats, "measured": measured}
    specs = {
        train: [setup | c | {"seed": s} for c in conditions for s in range(settings["seeds"])],
        theorem: [
            source | {"n": n, "seed": s}
            for n in settings["theorem"]
            if n <= split.available[0]  # the embedded digits are fewer than some n
            for s in cheap
        ],
        kernels: [
            {"dataset": name, "files": fingerprint} | kernel | {"seed": s}
            for name, fingerprint in files.items()
            for s in cheap
        ],
        descend: [
            source | side | {"n": count, "steps": steps, "start": start, "seed": s}
            for start, s in product(("zero", "random"), cheap)
        ],
        learning: [
            setup | condition("mlp 1x512", p) | repeated | {"seed": s}
            for p, s in product((0, 1), cheap)
        ],
    }
    return {
        measure.__name__: Experiment(
            measure,
            rows,
            settings["batch"] if measure is train else None,
            options={"device": device},
        )
        for measure, rows in specs.items()
    }


def training_spec(spec: Mapping[str, Any], channels: int) -> training.Spec:
    """Return what to train for a spec, on images of so many channels."""
    images = {"channels": channels, "width": spec["width"]}
    inputs = {"inputs": channels * spec["side"] ** 2}
    name, options, rate = {
        "mlp 1x512": ("mlp", inputs | {"widths": [512]}, 0.01),
        "mlp 3x512": ("mlp", inputs | {"widths": [512] * 3}, 0.01),
        ALEXNET: (ALEXNET, images | {"size": spec["side"]}, 0.01),
        INCEPTION: (INCEPTION, images, 0.1),
    }[spec["model"]]
    if spec["dropout"]:
        options["dropout"] = DROPOUT
    if name == INCEPTION and not spec["batch_norm"]:
        options["batch_norm"], rate = False, RATE_WITHOUT
    return training.Spec(
        model=name,
        model_options=options,
        optimizer_options={"momentum": 0.9, "weight_decay": spec["weight_decay"] * WEIGHT_DECAY},
        learning_rate=rate,
        schedule="exponential",
        decay=0.95 ** (64 / spec["epochs"]),
        batch_size=spec["minibatch"],
        epochs=spec["epochs"],
        label_corruption=spec["fraction"],
        image_corruption=spec["kind"] or None,
        augment={"crop": spec["side"]} if spec["crop"] else {},
        evaluate_every=spec["every"],
        stop_at_train_accuracy=1.0 if spec["fraction"] or spec["kind"] else None,
        seed=spec["seed"],
    )


def train(specs: Sequence[Mapping[str, Any]], device: str = "auto") -> list[pd.DataFrame]:
    """Train networks: the history of each, its losses and accuracies over epochs."""
    histories = {}
    for crop in (False, True):  # from windows of whole images
        chosen = [i for i, spec in enumerate(specs) if spec["crop"] == crop]
        if chosen:
            first = specs[chosen[0]]
            images = data.load(first["data"], subset=first["images"], device=device)
            images = data.preprocess(images, crop=None if crop else first["side"], whiten=True)
            trained = [training_spec(specs[i], images.train.images.shape[1]) for i in chosen]
            runs = training.fit_population(trained, images, device=device, progress=False)
            histories |= {
                i: run.history.assign(status=run.status)
                for i, run in zip(chosen, runs, strict=True)
            }
    return [histories[i] for i in range(len(specs))]


def theorem(spec: Mapping[str, Any], device: str = "auto") -> dict[str, float]:
    """Build Theorem 1's network: its error on random labels, and its condition number."""
    images = data.load(spec["data"], subset=(spec["n"], 10), seed=spec["seed"], device=device).train
    labels = data.corrupt_labels(images.labels, 1.0, 10, seed=spec["seed"])
    network = memorisation.finite_sample_network(images.images, labels, seed=spec["seed"])
    return {"error": network.error, "condition": network.condition, "d": len(network.a)}


def kernels(spec: Mapping[str, Any], device: str = "auto") -> list[dict[str, Any]]:
    """Interpolate by a Gaussian kernel from pixels and from random features: error and norm."""
    most, seed = max(spec["sizes"]), spec["seed"]
    split = data.load(spec["dataset"], subset=(most, spec["test"]), seed=seed, device=device)
    pixels = split.train.images, split.test.images
    features = [
        memorisation.random_conv_features(x, spec["filters"], seed=seed, source=pixels[0])
        for x in pixels
    ]
    rows = []
    for method, (train, test) in {KERNEL: pixels, FEATURES: features}.items():
        for n in spec["sizes"]:
            for ridge in RIDGES if n == most else RIDGES[:1]:
                f = memorisation.gaussian_kernel_interpolation(
                    train[:n], split.train.labels[:n], test, ridge=ridge
                )
                error = (f.predictions.argmax(1) != split.test.labels).double().mean().item()
                row = {"method": method, "n": n, "ridge": ridge, "norm": f.norm, "error": error}
                rows.append(row | {"residual": f.residual})
    return rows


def descend(spec: Mapping[str, Any], device: str = "auto") -> pd.DataFrame:
    """Run SGD on least squares: the distance to the solution of least norm along the steps."""
    images = data.load(spec["data"], subset=(spec["n"], 10), seed=spec["seed"], device=device)
    images = data.preprocess(images, crop=spec["side"], whiten=True).train
    start = None
    if spec["start"] == "random":
        shape = images.images[0].numel(), 10
        start = torch.randn(shape, generator=torch.Generator().manual_seed(spec["seed"])) / shape[0]
    steps = sorted({0, *np.geomspace(1, spec["steps"], 30).round().astype(int).tolist()})
    path = memorisation.gradient_descent_path(
        images.images, images.labels, steps, batch_size=10, start=start, seed=spec["seed"]
    )
    columns = {name: getattr(path, name).tolist() for name in ("distance", "outside", "residual")}
    return pd.DataFrame({"step": path.steps} | columns).assign(norm=path.solution.norm().item())


def learning(spec: Mapping[str, Any], device: str = "auto") -> pd.DataFrame:
    """Train repeatedly on the same labels: which examples are right after the first epochs."""
    images = data.load(spec["data"], subset=spec["images"], device=device)
    images = data.preprocess(images, crop=spec["side"], whiten=True)
    x, measured = images.train.images, tuple(spec["measured"])
    labels = data.corrupt_labels(images.train.labels, spec["fraction"], 10, seed=spec["seed"])
    images = replace(images, train=data.Examples(x, labels))
    own = {"epochs": max(measured), "checkpoints": measured, "evaluate_every": max(measured)}
    own |= {"label_corruption": 0.0, "stop_at_train_accuracy": None}  # corrupted already, once
    tables = []
    for repeat in range(spec["repeats"]):
        seed = 1000 * (spec["seed"] + 1) + repeat
        trained = replace(training_spec(spec, x.shape[1]), seed=seed, **own)
        run = training.fit(trained, images, device=device, progress=False)
        for epoch in measured:
            model = run.model(epoch, device)
            with torch.no_grad():
                logits = torch.cat([model(part) for part in x.split(1000)])
            right = (logits.argmax(1) == labels).cpu().numpy()
            columns = {"repeat": repeat, "at": epoch, "example": range(len(right))}
            tables.append(pd.DataFrame(columns | {"correct": right}))
    return pd.concat(tables, ignore_index=True)


def _claim(id: str, figure: str, shown: str, statement: str, *rules: Rule | str) -> Claim:
    paper = "Zhang et al. 2017" if id.startswith("Z") else "Arpit et al. 2017"
    read = tuple(Rule.read(rule) if isinstance(rule, str) else rule for rule in rules)
    return Claim(id, paper, statement, read if len(read) > 1 else read[0], figure, shown)


def _every(statistic: str, direction: str, threshold: float) -> Rule:
    return Rule.old(statistic, direction, threshold, "every")


CLAIMS: tuple[Claim, ...] = (
    _claim(
        *("Z1", "Table 1", "train accuracy 99.34% to 100%, test accuracy 9.78% to 10.61%"),
        "Every model fits random labels, and its test accuracy is then chance",
        _every(
            *("lowest train accuracy on random labels, of all models (99.3% counts)", ">"),
            0.993 - AT_LEAST,
        ),
        "|test error after random labels, mean of the models, minus 0.9| < 0.02",
    ),
    _claim(
        *("Z2", "Fig. 1a", "curves, no number"),
        "True labels are fitted first, random pixels and Gaussian images before random labels, and "
        "fitting ends soon after it starts",
        "log2 of the earliest other time to fit over that of true labels > 0",
        "log2 of the time to fit random labels over the later of those of random pixels and "
        "Gaussian images > 0",
        "random labels: share of the time to fit that passes after the train loss is first "
        "below 90% of ln 10 < 0.5",
    ),
    _claim(
        *("Z3", "Fig. 1b, 1c", "train error 0 at every level; test error rises to 90%"),
        "At every level of label corruption the training set is fitted, more slowly at higher "
        "levels, and test error rises to chance",
        _every("lowest train accuracy, of all models and levels (99% counts)", ">", REACHED),
        "Kendall's tau of level and time to fit, runs that never fit last and tied, mean of "
        "the models > 0",
        "Kendall's tau of level and test error, mean of the models > 0.8",
        "|test error at level 1, mean of the models, minus 0.9| < 0.02",
    ),
    _claim(
        *("Z4", "Table 1, Fig. 2"),
        "Inception loses 3.3 points, AlexNet 5.2; without batch norm 3 to 4",
        "Turning explicit regularisers or batch norm off costs little test accuracy",
        "true labels: best test accuracy with crop, weight decay or dropout minus that with "
        "none of them, largest of the models < 0.1",
        "true labels, no other regulariser: test accuracy with batch norm minus that without, "
        "largest of the models < 0.1",
    ),
    _claim(
        *("Z5", "Table 4"),
        "Inception 99.28% to 100%; AlexNet with weight decay fails to converge",
        "Random labels are fitted under crop or weight decay too, but not by AlexNet with weight "
        "decay",
        _every(
            "random labels: lowest train accuracy with crop or weight decay and without dropout, "
            "of all models, except AlexNet with weight decay (99% counts)",
            *(">", REACHED),
        ),
        _every("random labels: highest train accuracy of AlexNet with weight decay", "<", REACHED),
    ),
    _claim(
        *("Z6", "Theorem 1", "a proof"),
        "A two-layer ReLU network of 2n + d weights fits any labels of n images",
        _every("largest |output minus label| over all n, in float64", "<", 0.01),
    ),
    _claim(
        *("Z7", "Section 5"),
        "MNIST 1.2%, CIFAR-10 46% from pixels, 17% from features; on MNIST the norm rises "
        "from 220 to 390 while the error halves",
        "Interpolation of least norm in a Gaussian kernel's space generalises, better from random "
        "convolutional features, and less error does not come with a smaller norm",
        "test error from pixels over 0.9, largest of the data sets < 0.75",
        "test error from features minus from pixels, mean of the data sets < 0",
        "log2 of the norm of the interpolant, of these two, that errs less over the norm of "
        "the other, mean of the data sets > 0",
    ),
    _claim(
        *("Z8", "Section 5", "an argument, no number"),
        "SGD from 0 on under-determined least squares converges to the solution of least norm",
        _every("distance to it after the last step, as a share of its norm", "<", 0.01),
        _every(
            "largest part of the weights outside the span of the data, as a share of that norm",
            *("<", 1e-8),
        ),
    ),
    _claim(
        *("A1", "Fig. 1", "curves, no number"),
        "Simple patterns first: which examples are right early depends on the example for true "
        "labels, and more on luck for random labels",
        "correlation between repeats of which training examples are right after the first "
        "epoch, true labels minus random labels > 0",
    ),
    _claim(
        *("A2", "", "curves, no number"),
        "Dropout hurts the fitting of noise without hurting generalisation on real data",
        "train accuracy on random labels lost to dropout minus test accuracy on true labels "
        "lost to dropout, mean of the models > 0",
        "test accuracy on true labels lost to dropout, mean of the models < 0.02",
    ),
)


def time_to_fit(history: pd.DataFrame) -> float:
    """Return the first epoch with a train accuracy of at least 99%; NaN if there is none."""
    return float(history.epoch[history.train_accuracy >= REACHED].min())


def unfitted(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs (rows) that did not fit their labels within their budget."""
    return runs[~(runs.train_accuracy >= REACHED)]


def fits(rows: pd.DataFrame) -> tuple[float, float]:
    """Z1: the lowest train accuracy on random labels, and how far test error is from chance."""
    random = rows[rows.fraction == 1]
    return _lowest_accuracy(random), abs(random.test_error.mean(skipna=False) - CHANCE_ERROR)


def order_of_times(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Z2: how much later than true labels, than unstructured images, and the share of fitting."""
    curves = {kind: rows[rows.kind == kind].sort_values("epoch") for kind in KINDS}
    after_true = [_log2_ratio(curves[kind], curves[TRUE]) for kind in KINDS if kind != TRUE]
    after_noise = [_log2_ratio(curves[RANDOM], curves[kind]) for kind in (PIXELS, GAUSSIAN)]
    return _least(after_true), _least(after_noise), share_of_fitting(curves[RANDOM])


def levels(rows: pd.DataFrame) -> tuple[float, float, float, float]:
    """Z3: lowest train accuracy, tau of level with time and with error, distance from chance."""
    slower, worse = [], []
    for _, runs in rows.groupby("model"):
        known = runs.epochs_to_fit.notna().any()
        times = runs.epochs_to_fit.fillna(math.inf)
        slower.append(_tau(runs.fraction, times) if known else math.nan)
        worse.append(_tau(runs.fraction, runs.test_error))
    return _lowest_accuracy(rows), float(np.mean(slower)), float(np.mean(worse)), fits(rows)[1]


def cost_of_turning_off(rows: pd.DataFrame) -> tuple[float, float]:
    """Z4: the largest test accuracies lost without regularisers, and without batch norm."""
    true = rows[rows.labels == TRUE]
    plain = ~true[FLAGS].any(axis=1)
    own = _own_batch_norm(true)
    best = true[own & ~plain].groupby("model").test_accuracy.max()
    regularisers = best - true[own & plain].groupby("model").test_accuracy.mean()
    return regularisers.max(), _difference(true[plain], "batch_norm", "test_accuracy").max()


def regularised_noise(rows: pd.DataFrame) -> tuple[float, float]:
    """Z5: lowest train accuracy on random labels, regularised; highest of AlexNet with decay."""
    random = rows[(rows.labels == RANDOM) & ~rows.dropout & (rows.crop | rows.weight_decay)]
    exception = (random.model == ALEXNET) & random.weight_decay
    highest = random[exception].train_accuracy.fillna(0).max()
    return _lowest_accuracy(random[~exception]), highest


def interpolants(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Z7: error against chance, gain by features, and norm of the better over the other's."""
    errors, gains, norms = [], [], []
    rows = rows[(rows.ridge == 0) & rows.method.isin([KERNEL, FEATURES])]
    for _, own in rows.groupby("dataset"):
        largest = own[own.n == own.n[own.method == KERNEL].max()]
        if largest.empty:
            continue
        table = largest.pivot(index="n", columns="method", values=["error", "norm"]).iloc[0]
        error, norm = table["error"], table["norm"]
        errors.append(error[KERNEL] / CHANCE_ERROR)
        if FEATURES in error:
            gains.append(error[FEATURES] - error[KERNEL])
            sign = np.sign(gains[-1])  # of two that err alike neither is the better one
            norms.append(sign * math.log2(norm[KERNEL] / norm[FEATURES]) if sign else math.nan)
    return max(errors, default=math.nan), _mean(gains), _mean(norms)


def descent(rows: pd.DataFrame) -> tuple[float, float]:
    """Z8: the last distance and the largest part outside the span, over the solution's norm."""
    rows = rows.sort_values("step")
    shares = rows[["distance", "outside"]].div(rows.norm.where(rows.norm > 0), axis=0)
    return shares.distance.iloc[-1], shares.outside.max(skipna=False)


def between_repeats(rows: pd.DataFrame) -> np.ndarray:
    """Return the correlations of which examples are right, one a pair of repeats."""
    right = rows.astype({"correct": float})
    runs = right.pivot(index="example", columns="repeat", values="correct")
    return runs.corr().to_numpy()[np.triu_indices(runs.shape[1], 1)]


def consistency(rows: pd.DataFrame) -> float:
    """A1: mean correlation of two repeats' correct examples, true minus random labels."""
    true, random = (_mean(between_repeats(rows[rows.labels == kind])) for kind in (TRUE, RANDOM))
    return true - random


def cost_of_dropout(rows: pd.DataFrame) -> tuple[float, float]:
    """A2: train accuracy on noise minus test accuracy on real data lost to dropout; the latter."""
    plain = rows[_own_batch_norm(rows) & ~rows.crop & ~rows.weight_decay]
    noise = -_difference(plain[plain.labels == RANDOM], "dropout", "train_accuracy")
    real = -_difference(plain[plain.labels == TRUE], "dropout", "test_accuracy")
    return (noise - real).mean(), real.mean()


def _lowest_accuracy(rows: pd.DataFrame) -> float:
    """Return the lowest train accuracy; a run without one, which diverged, has fitted nothing."""
    return rows.train_accuracy.fillna(0).min()


def _log2_ratio(late: pd.DataFrame, early: pd.DataFrame) -> float:
    """Return log2 of time to fit, late over early; a bound if that settles the sign, else NaN."""
    if late.empty or early.empty:
        return math.nan
    times = [time_to_fit(curve) for curve in (late, early)]
    late_open, early_open = map(math.isnan, times)  # then only a bound is known: the budget
    late_time = late.epoch.max() if late_open else times[0]
    early_time = early.epoch.max() if early_open else times[1]
    if not min(late_time, early_time) > 0:
        return math.nan
    ratio = math.log2(late_time / early_time)  # the true one is more, or less, where open
    unknown = (late_open and (early_open or ratio < 0)) or (early_open and ratio > 0)
    return math.nan if unknown else ratio


def _least(ratios: list[float]) -> float:
    """Return the least ratio; NaN if one is unknown, unless a known one refutes the order."""
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    settled = known and (len(known) == len(ratios) or min(known) <= 0)
    return min(known) if settled else math.nan


def share_of_fitting(curve: pd.DataFrame) -> float:
    """Return the share of the time to fit that passes after fitting starts; a bound, or NaN."""
    start, end = curve.epoch[curve.train_loss < STARTED].min(), time_to_fit(curve)
    if not math.isnan(end):
        return float(1 - start / end) if end > 0 else math.nan
    share = float(1 - start / curve.epoch.max()) if len(curve) else math.nan
    return share if share >= 0.5 else math.nan  # it is more than this


def _tau(levels: pd.Series, values: pd.Series) -> float:
    """Return Kendall's tau-b; 0 for values that are all equal, NaN for a single level."""
    if levels.nunique() < 2 or values.isna().any():
        return math.nan
    return float(kendalltau(levels, values).statistic) if values.nunique() > 1 else 0.0


def _own_batch_norm(rows: pd.DataFrame) -> pd.Series:
    """Say which runs have batch norm exactly if some run of their model has."""
    return rows.batch_norm == rows.groupby("model").batch_norm.transform("any")


def _difference(rows: pd.DataFrame, flag: str, column: str) -> pd.Series:
    """Return, for the models that have both, `column` with `flag` minus that without."""
    means = rows.groupby(["model", flag])[column].mean().unstack()
    return (means.reindex(columns=[True, False]) @ [1.0, -1.0]).dropna()


def _mean(values: Iterable[float]) -> float:
    values = [value for value in values if not math.isnan(value)]
    return float(np.mean(values)) if values else math.nan


def statistics(
    curves: pd.DataFrame,
    corruption: pd.DataFrame,
    regularisers: pd.DataFrame,
    theorem: pd.DataFrame,
    kernel: pd.DataFrame,
    descents: pd.DataFrame,
    learning: pd.DataFrame,
) -> dict[str, list]:
    """Return, for every claim, one number a seed, or one such list for each of its rules.

    NaN says that a statistic is undefined for a seed: its rows are missing, or its runs leave it
    open. `theorem` (Z6), `kernel` (Z7), `descents` (Z8, from weights of 0) and `learning` (A1,
    after the first epoch, with `labels`) are what `plan`'s experiments give. Of its `train`,

    * `curves` (Z2) are histories of the Inception, with `kind` one of `KINDS`;
    * `corruption` (Z1, Z3) is a row a run without regularisers: `epochs_to_fit`, `test_error`;
    * `regularisers` (Z4, Z5, A2) is a row a run, with `labels` `TRUE` or `RANDOM`. A model that has
      runs with batch norm is meant with it unless a rule says otherwise.
    """
    regularisers = regularisers.astype(dict.fromkeys([*FLAGS, "batch_norm"], bool))
    return {
        "Z1": parts_by_seed(corruption, fits, 2),
        "Z2": parts_by_seed(curves, order_of_times, 3),
        "Z3": parts_by_seed(corruption, levels, 4),
        "Z4": parts_by_seed(regularisers, cost_of_turning_off, 2),
        "Z5": parts_by_seed(regularisers, regularised_noise, 2),
        "Z6": by_seed(theorem, lambda rows: rows.error.max(skipna=False)),
        "Z7": parts_by_seed(kernel, interpolants, 3),
        "Z8": parts_by_seed(descents, descent, 2),
        "A1": by_seed(learning, consistency),
        "A2": parts_by_seed(regularisers, cost_of_dropout, 2),
    }
