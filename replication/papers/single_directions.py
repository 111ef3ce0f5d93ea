"""Morcos et al. 2018 on single directions: what is trained and ablated, claims S1 to S7, C1 to C4.

A network has fitted its labels when its train accuracy, on the labels trained on, is at least 99%;
one that has not is excluded and counted (`excluded`), except from S3 and S4, which are about
training and hyper-parameters. AUC is the area under accuracy on the training images against the
share of ablated units, clamped to zero, mean over orders. Selectivity, information and the rise of
the loss when a unit alone is ablated, its importance, are measured on training images; drops of
accuracy, on all classes or one, on test images. Dead units are left out.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from replication import activations, data, directions, training
from replication.claims import Claim, Rule
from replication.papers._correlation import (
    by_seed,
    correlation,
    correlation_by_member,
    parts_by_seed,
)
from replication.papers.experiment import Experiment

NOTEBOOK = "02_single_directions"
FITTED = 0.99  # train accuracy from which a network counts as having fitted its labels
BEYOND = 0.3  # share of units ablated beyond the share that dropout trained for
MEASURES = ("selectivity", "information")
DAMAGE = ("loss_rise", "accuracy_drop", "class_drop")
POPULATION = 20  # networks, or settings of a sweep, below which a correlation settles nothing

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the labels, shuffled among themselves
RATES = (0.0, 0.1, 0.2, 0.3)  # of dropout
NOISE = tuple(np.linspace(0, 3, 13).tolist())  # in standard deviations of each unit
LEARNING_RATE = 0.02
LEARNING_RATES = (0.002, 0.1)  # range of the population's second arm, log-uniform
_GRID = {
    "learning_rate": (0.002, 0.005, 0.01, 0.02, 0.05),
    "batch_size": (20, 100),
    "weight_decay": (0.0, 1e-4, 1e-3, 1e-2),
}
_BY_PROFILE: dict[str, tuple] = {  # smoke, quick, full, paper
    "images": ((60, 100), (400, 1000), (2000, 10_000), None),  # training, test; None: all
    "measured": (1000, 1000, 1000, 10_000),  # training images on which ablated networks are
    "widths": ((32, 32), (128, 128), (128, 128), (512, 512)),  # the paper: 128, 512 or 2048 units
    "batch_size": (20, 50, 50, 50),
    "epochs": (40, 50, 100, 640),  # of corruption, batch norm, and training over time
    "seeds": (1, 3, 10, 5),
    "checkpoints": (5, 16, 16, 16),  # of training over time
    "dropout": ((60, 60), (200, 100), (500, 200), (None, 5000)),  # images, epochs: noise is hard
    "networks": (5, 24, 200, 200),  # in each of the two arms of the population
    "population_epochs": (20, 30, 60, 100),
    "grid": (  # of the sweep
        {"learning_rate": (0.01, 0.05), "batch_size": (20,), "weight_decay": (0.0,)},
        _GRID | {"weight_decay": (0.0, 1e-2)},
        _GRID,
        _GRID,
    ),
    "sweep_epochs": (10, 20, 50, 100),
    "repeats": (1, 3, 3, 2),  # of each of the sweep's settings
    "orders": (3, 5, 10, 10),  # of ablation
    "points": (9, 17, 33, 33),  # numbers of ablated units, from none to all
}
SETTINGS: dict[str, dict[str, Any]] = {
    profile: {name: values[i] for name, values in _BY_PROFILE.items()}
    for i, profile in enumerate(("smoke", "quick", "full", "paper"))
}
# The 11-layer convnet; at smoke, narrow and on the MLPs' data set, it only shows that it runs.
CONVNETS: dict[str, dict[str, Any]] = {
    "smoke": {"images": (20, 20), "width": 1 / 32, "epochs": 1, "batch_size": 10, "seeds": 1},
    "paper": {"images": None, "width": 1.0, "epochs": 100, "batch_size": 128, "seeds": 5},
}


def load(profile: str, dataset: str = "auto") -> data.Split:
    """Return the MLPs' images; ValueError unless they are of MNIST."""
    split = data.load(dataset, subset=SETTINGS[profile]["images"], device="cpu")
    if split.name not in ("mnist", "mnist5k"):
        raise ValueError(f"dataset: these networks are made for MNIST, found {split.name!r}")
    return split


def pictures(profile: str, dataset: str = "auto") -> data.Split:
    """Return the convnets' images: of CIFAR-10 at ``paper``, else of `dataset`."""
    name = "cifar10" if profile == "paper" else dataset
    return data.load(name, subset=CONVNETS[profile]["images"])


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the experiments: six arms of MLPs on MNIST, and the convnets where there are some."""
    settings, split = SETTINGS[profile], load(profile, dataset)
    network = {  # its spec and what is measured of it, unless something else is said
        "dataset": split.name, "images": [len(split.train), len(split.test)],
        "model": "mlp", "options": {"widths": list(settings["widths"])}, "layers": ["act1", "act2"],
        "batch_norm": False, "dropout": 0.0, "corruption": 0.0, "weight_decay": 0.0,
        "learning_rate": LEARNING_RATE, "checkpoints": [], "scales": list(NOISE), "detail": False,
        **{k: settings[k] for k in ("batch_size", "epochs", "orders", "measured", "points")},
    }  # fmt: skip

    def arm(name: str, levels: Mapping[str, Sequence], seeds: int, **changed: Any) -> list[dict]:
        """Return networks of all combinations of levels, from each seed."""
        return [
            network | {"arm": name, "seed": seed} | dict(zip(levels, values, strict=True)) | changed
            for *values, seed in product(*levels.values(), range(seeds))
        ]

    detailed, normed = {"detail": True}, {"detail": True, "batch_norm": True}
    few, longer = settings["dropout"]
    fewer = {"images": [few or len(split.train), len(split.test)], "epochs": longer}
    varied = np.geomspace(*LEARNING_RATES, settings["networks"]).round(6).tolist()
    followed = np.geomspace(0.5, settings["epochs"], settings["checkpoints"]).round(1).tolist()
    seeds, repeats = settings["seeds"], settings["repeats"]
    mlps = [
        *arm("corruption", {"corruption": FRACTIONS}, seeds, **detailed),
        *arm("batch norm", {"corruption": (0.0, 0.5, 1.0)}, seeds, **normed),
        *arm("dropout", {"dropout": RATES, "corruption": (0.0, 1.0)}, seeds, **fewer),
        *(
            network
            | {"arm": name, "learning_rate": rate, "seed": 1000 + i}
            | {"epochs": settings["population_epochs"]}
            for name, rates in (("one rate", [LEARNING_RATE] * len(varied)), ("own rate", varied))
            for i, rate in enumerate(rates)
        ),
        *arm("training", {}, seeds, checkpoints=sorted({0.0, *followed})),
        *arm("sweep", settings["grid"], repeats, epochs=settings["sweep_epochs"]),
    ]
    options = {"device": device}
    experiments = {"mlps": Experiment(measure, mlps, batch=8, options=options)}
    if profile in CONVNETS:
        chosen, images = CONVNETS[profile], pictures(profile, split.name)
        convnet = {
            "dataset": images.name,
            "images": [len(images.train), len(images.test)],
            "model": "morcos_convnet",
            "options": {"width": chosen["width"], "channels": images.train.images.shape[1]},
            "layers": ["act9", "act10", "act11"],
            **{k: chosen[k] for k in ("epochs", "batch_size")},
        }
        levels = {"corruption": FRACTIONS if profile == "paper" else (0.0,)}
        convnets = [
            *arm("corruption", levels, chosen["seeds"], **detailed, **convnet),
            *arm("batch norm", levels, chosen["seeds"], **normed, **convnet),
        ]
        experiments["convnets"] = Experiment(measure, convnets, batch=1, options=options)
    return experiments


def measure(specs: Sequence[Mapping[str, Any]], device: str = "auto") -> list[list[dict]]:
    """Train networks and ablate their units; with `detail` also noise, mean clamp and each unit.

    Returns a row for each checkpoint of each network (see `measure_network`).
    """
    rows = {}
    for name, subset in dict.fromkeys((s["dataset"], tuple(s["images"])) for s in specs):
        images, _, _ = data.standardise(data.load(name, subset=subset, device=device))
        chosen = {
            i: spec
            for i, spec in enumerate(specs)
            if (spec["dataset"], tuple(spec["images"])) == (name, subset)
        }
        trained = [training_spec(spec) for spec in chosen.values()]
        runs = training.fit_population(trained, images, device=device, progress=False)
        for (i, spec), run in zip(chosen.items(), runs, strict=True):
            epochs = spec["checkpoints"] or [max(run.checkpoints)]
            rows[i] = [measure_network(run, epoch, images, spec, device) for epoch in epochs]
    return [rows[i] for i in range(len(specs))]


def training_spec(spec: Mapping[str, Any]) -> training.Spec:
    """Return what `training` needs to know of a network."""
    return training.Spec(
        model=spec["model"],
        model_options=spec["options"] | {k: spec[k] for k in ("batch_norm", "dropout")},
        optimizer_options={"momentum": 0.9, "weight_decay": spec["weight_decay"]},
        label_corruption=spec["corruption"],
        keep_marginal=True,
        checkpoints=tuple(spec["checkpoints"]),
        evaluate_every=spec["epochs"],
        **{k: spec[k] for k in ("learning_rate", "batch_size", "epochs", "seed")},
    )


def measure_network(
    run: training.Run, epoch: float, images: data.Split, spec: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """Return what is measured of one network at one checkpoint: numbers, and lists.

    Lists are over ablated shares (`share`, `accuracy`), noise scales, and units.
    """
    model, layers = run.model(epoch, device), spec["layers"]
    history = run.history.set_index("step").loc[run.checkpoints[epoch]]
    labels = training.training_labels(run.spec, images)[: spec["measured"]]
    shown = images.train.images[: spec["measured"]]
    recorded = activations.record(model, shown, layers, reduction="spatial_mean")
    units = sum(acts.shape[1] for acts in recorded.values())
    counts = sorted({round(k) for k in np.linspace(0, units, spec["points"])})
    ablation = {"orders": spec["orders"], "seed": spec["seed"], "counts": counts}
    zero = directions.cumulative_ablation(model, shown, labels, layers, **ablation)
    row = {"epoch": epoch, "status": run.status, "auc": zero.auc.mean().item()}
    row |= history.drop("epoch").to_dict()
    row |= {"share": (zero.counts / units).tolist(), "accuracy": zero.accuracy.mean(0).tolist()}
    if not spec["detail"]:
        return row
    mean = directions.cumulative_ablation(model, shown, labels, layers, clamp="mean", **ablation)
    row |= {"auc_mean": mean.auc.mean().item(), "accuracy_mean": mean.accuracy.mean(0).tolist()}
    noise = directions.noise_curve(
        model, shown, labels, layers, spec["scales"], spec["orders"], spec["seed"]
    ).accuracy
    row |= {"noise": spec["scales"], "noise_accuracy": noise.mean(0).tolist()}
    row["noise_auc"] = noise.mean().item()
    row |= {"unit_layer": [], "selectivity": [], "information": [], "dead": []}
    for layer, acts in recorded.items():
        selectivity = directions.class_selectivity(acts, labels)
        row["unit_layer"] += [layer] * acts.shape[1]
        row["selectivity"] += selectivity.index.tolist()
        row["dead"] += selectivity.dead.tolist()
        row["information"] += directions.mutual_information(acts, labels).tolist()
    row["loss_rise"] = directions.unit_ablation(model, shown, labels, layers).loss_rise.tolist()
    held_out = directions.unit_ablation(model, images.test.images, images.test.labels, layers)
    row["accuracy_drop"] = held_out.accuracy_drop.tolist()
    row["class_drop"] = held_out.class_accuracy_drop.nan_to_num(0).amax(1).tolist()
    return row


def _claim(id: str, figure: str, shown: str, statement: str, *rules: Rule | str) -> Claim:
    paper = {"C1": "Zhou et al. 2018", "C2": "Amjad et al. 2018"}.get(id, "Morcos et al. 2018")
    read = tuple(Rule.read(rule) if isinstance(rule, str) else rule for rule in rules)
    return Claim(id, paper, statement, read if len(read) > 1 else read[0], figure, shown)


def _over(population: str, what: str, direction: str) -> Rule:
    statistic = f"Spearman correlation of {what}, over {population} (each counts as a seed here)"
    return Rule.old(statistic, direction, 0.0, "bootstrap", POPULATION)


CLAIMS: tuple[Claim, ...] = (
    _claim(
        *("S1", "Figs. 1, 2", "curves, no number"),
        "At equal ablation and at equal noise, accuracy falls faster the more labels were "
        "corrupted",
        "Spearman correlation of the corrupted fraction with the ablation AUC < 0",
        "Spearman correlation of the corrupted fraction with the mean accuracy over noise "
        "scales < 0",
    ),
    _claim(
        *("S2", "Fig. 3", "200 networks, curves and a scatter plot"),
        "Among networks of one topology on clean labels, those that generalise better are more "
        "robust to ablation",
        _over("networks of varied learning rate", "AUC and generalisation error", "<"),
    ),
    _claim(
        *("S3", "Fig. 4a, 4b", "Spearman -0.728"),
        "Over training, AUC falls where train and test loss part",
        "Spearman correlation of AUC and test loss over checkpoints after epoch 0 < 0",
        "AUC at the end minus AUC at the checkpoint of least test loss < 0",
    ),
    _claim(
        *("S4", "Fig. 4c", "Spearman 0.914"),
        "Over a hyper-parameter sweep, AUC goes with test accuracy, and picking the highest AUC "
        "nearly picks the best setting",
        _over("settings", "AUC and test accuracy, each the mean of its repeats", ">"),
        "test accuracy lost by the setting of highest AUC against the best < 0.02",
    ),
    _claim(
        *("S5", "Fig. 5a", "curves, no number"),
        "Dropout makes networks robust up to the trained share and not beyond, where those "
        "trained on corrupted labels drop faster",
        "accuracy at the trained share of ablated units, with dropout minus without, mean of "
        "rates and labels > 0",
        f"accuracy lost per share ablated, over the {BEYOND:g} beyond the trained share minus up "
        "to it, mean of rates and labels > 0",
        f"accuracy lost over the {BEYOND:g} beyond the trained share, corrupted labels minus "
        "clean, mean of rates > 0",
    ),
    _claim(
        *("S6", "Figs. 5b, 6", "curves and histograms, no number"),
        "Batch norm makes networks more robust to ablation, units less selective, and their "
        "mutual information with the class higher",
        "AUC with batch norm minus without, clean labels > 0",
        "mean selectivity of units with batch norm minus without, clean labels < 0",
        "mean mutual information (bits) of units, as above > 0",
    ),
    _claim(
        *("S7", "Fig. 7", "Spearman 0.095 on MNIST, -0.428 on CIFAR-10"),
        "Selectivity and mutual information are poor predictors of a unit's importance",
        *[
            f"size of the Spearman correlation of {measure} with the rise of the training loss "
            "when a unit is ablated, units of all layers pooled < 0.5"
            for measure in ("selectivity", "mutual information")
        ],
    ),
    _claim(
        *("C1", "", "correlations, no number kept here"),
        "Selectivity predicts the damage to a single class, and better than the damage to all",
        "Spearman correlation of selectivity with the largest drop of a class's accuracy, mean "
        "of the layers > 0",
        "that minus the correlation with the drop of accuracy on all classes > 0",
    ),
    _claim(
        *("C2", "", "an argument with plots"),
        "Pooling units of several layers misleads about selectivity and importance",
        "|pooled Spearman correlation of selectivity with the rise of the training loss minus "
        "the mean of the layers' correlations| > 0.1",
    ),
    _claim(
        *("C3", "Fig. 3", "not separated: the learning rate varies"),
        "S2 is not the learning rate's doing: it holds at one learning rate too",
        _over("networks of one learning rate", "AUC and generalisation error", "<"),
    ),
    _claim(
        *("C4", "Appendix", "stated, no number kept here"),
        "Clamping to the mean does more damage than clamping to zero",
        "AUC clamped to zero minus AUC clamped to the mean, clean labels > 0",
    ),
)


def fitted(networks: pd.DataFrame) -> pd.DataFrame:
    """Return the networks whose train accuracy, on the labels trained on, is at least 99%."""
    return networks[networks.train_accuracy >= FITTED - 1e-9]


def excluded(networks: pd.DataFrame) -> int:
    """Return how many networks (rows) did not fit their labels."""
    return len(networks) - len(fitted(networks))


def corruption(rows: pd.DataFrame) -> list[float]:
    """S1: correlation of corruption with robustness to ablation, and to noise."""
    rows = fitted(rows)
    return [correlation(rows.corruption, rows[robust]) for robust in ("auc", "noise_auc")]


def over_training(rows: pd.DataFrame) -> tuple[float, float]:
    """S3: correlation of AUC and test loss, and what AUC loses after the least test loss."""
    rows = rows[rows.epoch > 0].sort_values("epoch")
    best = int(rows.test_loss.to_numpy().argmin())
    parts = best < len(rows) - 1  # else train and test loss have not parted
    change = rows.auc.iloc[-1] - rows.auc.iloc[best] if parts else math.nan
    return correlation(rows.auc, rows.test_loss), float(change)


def dropout_arm(rows: pd.DataFrame) -> tuple[float, float, float]:
    """S5: gain at the trained share, steeper fall beyond it, and that of corrupted labels."""
    curves = {
        key: (curve.share.to_numpy(), curve.accuracy.to_numpy())
        for key, curve in fitted(rows).sort_values("share").groupby(["corruption", "dropout"])
    }
    gains, bends, faster = [], [], []
    for rate in sorted({rate for _, rate in curves} - {0}):
        falls = {}
        for level in sorted({level for level, _ in curves}):
            if (level, rate) in curves and (level, 0) in curves:
                start, kept, beyond = np.interp([0, rate, rate + BEYOND], *curves[level, rate])
                falls[level] = kept - beyond
                gains.append(kept - np.interp(rate, *curves[level, 0]))
                bends.append((kept - beyond) / BEYOND - (start - kept) / rate)
        if len(falls) == 2:
            clean, corrupted = falls.values()
            faster.append(corrupted - clean)
    return tuple(float(np.mean(v)) if v else math.nan for v in (gains, bends, faster))


def batch_norm(rows: pd.DataFrame) -> tuple[float, float, float]:
    """S6: with batch norm minus without: ablation AUC, mean selectivity, mean information."""
    rows = fitted(rows).set_index("batch_norm")
    if set(rows.index) != {True, False}:
        return (math.nan,) * 3
    columns = ["auc", "selectivity", "information"]
    return tuple(rows.loc[True, columns] - rows.loc[False, columns])


def unit_correlations(units: pd.DataFrame) -> list[float]:
    """S7's two sizes of correlations, pooled; C1's two, mean of the layers; C2's difference."""
    selectivity, information = (correlation(units[what], units.loss_rise) for what in MEASURES)
    loss, accuracy, worst = (by_layer(units, "selectivity", damage).mean() for damage in DAMAGE)
    return [abs(selectivity), abs(information), worst, worst - accuracy, abs(selectivity - loss)]


def by_layer(units: pd.DataFrame, measure: str, damage: str) -> pd.Series:
    """Return the correlation of two columns within each layer."""
    layers = units.groupby("layer", sort=False)
    return pd.Series({name: correlation(rows[measure], rows[damage]) for name, rows in layers})


def correlations(units: pd.DataFrame) -> pd.DataFrame:
    """Return the correlation of each measure and damage, for each seed: pooled, and by layer."""
    rows = []
    for (seed, own), what, damage in product(units.groupby("seed"), MEASURES, DAMAGE):
        rows.append((seed, what, damage, "pooled", correlation(own[what], own[damage])))
        rows += [(seed, what, damage, *pair) for pair in by_layer(own, what, damage).items()]
    return pd.DataFrame(rows, columns=["seed", "measure", "damage", "layer", "spearman"])


def long(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return list-valued columns as rows, behind what names the network."""
    names = ["arm", "seed", "corruption", "batch_norm", "dropout", "learning_rate"]
    return table[[*names, *columns]].explode(list(columns), ignore_index=True)


def units_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a unit of the networks in `table`, dead ones included."""
    rows = long(table, "unit_layer", *MEASURES, "dead", *DAMAGE)
    types = dict.fromkeys([*MEASURES, *DAMAGE], float) | {"dead": bool}
    return rows.rename(columns={"unit_layer": "layer"}).astype(types)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the measures' means over live units in place of lists over units."""
    network = ["arm", "seed", "corruption"]
    means = units_of(table).query("not dead").groupby(network)[[*MEASURES]].mean().reset_index()
    lists = ["unit_layer", "dead", *MEASURES, *DAMAGE]
    return table.drop(columns=lists).merge(means, on=network, how="left")


def selection(sweep: pd.DataFrame) -> pd.DataFrame:
    """Return how often the highest AUC picks one of the best settings of a random half of them.

    A row for the best 1, 5 and 10: picked is the share of 1,000 halves in which the pick is among
    so many best by test accuracy, chance that of a random pick. `sweep` is as for `statistics`.
    """
    settings = sweep.groupby("setting")[["auc", "test_accuracy"]].mean()
    auc, accuracy = settings.auc.to_numpy(), settings.test_accuracy.to_numpy()
    half, source, ranks = -(-len(settings) // 2), np.random.default_rng(0), []
    for _ in range(1000):
        chosen = source.permutation(len(settings))[:half]
        pick = chosen[auc[chosen].argmax()]
        ranks.append((accuracy[chosen] > accuracy[pick]).sum())
    table = pd.DataFrame({"best": [1, 5, 10]})
    picked = [float(np.mean(np.array(ranks) < k)) for k in table.best]
    return table.assign(picked=picked, chance=(table.best / half).clip(upper=1.0))


def statistics(
    networks: pd.DataFrame,
    dropout: pd.DataFrame,
    population: pd.DataFrame,
    training: pd.DataFrame,
    sweep: pd.DataFrame,
    units: pd.DataFrame,
) -> dict[str, list]:
    """Return, for every claim, one number a seed (S2, C3, S4's first: a member of the population).

    A list of such lists for a claim of several rules; NaN where too few networks fitted. The tables
    are what `plan`'s experiments gave, but `networks` (S1, S6, C4) of `summary`, `dropout` a row a
    share, `population` (S2, C3) with `varied` (the learning rate) and `generalisation_error`,
    `sweep` with `setting`, and `units` (S7, C1, C2) of `units_of`: live ones, of clean labels.
    """
    members = {
        varied: correlation_by_member(rows.auc, rows.generalisation_error)
        for varied, rows in fitted(population).groupby("varied")
    }
    settings = sweep.groupby("setting")[["auc", "test_accuracy"]].mean()
    plain = networks[~networks.batch_norm]
    *pooled, one_class, than_all, difference = parts_by_seed(units, unit_correlations, 5)
    return {
        "S1": parts_by_seed(plain, corruption, 2),
        "S2": members.get(True, [math.nan]),
        "S3": parts_by_seed(training, over_training, 2),
        "S4": [
            correlation_by_member(settings.auc, settings.test_accuracy),
            by_seed(sweep, lambda t: t.test_accuracy.max() - t.test_accuracy[t.auc.idxmax()]),
        ],
        "S5": parts_by_seed(dropout, dropout_arm, 3),
        "S6": parts_by_seed(networks[networks.corruption == 0], batch_norm, 3),
        "S7": pooled,
        "C1": [one_class, than_all],
        "C2": difference,
        "C3": members.get(False, [math.nan]),
        "C4": by_seed(
            plain[plain.corruption == 0], lambda t: (fitted(t).auc - fitted(t).auc_mean).mean()
        ),
    }
