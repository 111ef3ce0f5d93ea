"""Which similarity metric to trust: Kornblith et al. 2019, Ding et al. 2021, and their critics.

Claims K1 to K6, D1 to D3, DA1, CU1 and MU1. A seed's number is over its pairs with the other
networks, so that seeds share pairs and intervals over few seeds are somewhat too narrow. Early and
late layers are the first three and the last three.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from replication import data
from replication._core.profiles import PROFILES
from replication.claims import Claim, Rule
from replication.papers import similarity_measurements as measurements
from replication.papers.experiment import Experiment, cifar10
from replication.papers.grounding import spearman
from replication.papers.similarity_measurements import LAYERS, METRICS, layers_of

NOTEBOOK = measurements.NOTEBOOK

_SCALES = {  # at smoke, quick, full, paper; images: for training and for testing, None: all
    "images": ((80, 60), (600, 400), (4000, 1000), None),
    "width": (0.125, 0.25, 0.5, 1.0),
    "epochs": (1, 3, 8, 100),
    "batch_size": (20, 50, 50, 50),
    "seeds": (2, 3, 10, 10),  # of convnets, and of transformers
    "transformer": tuple(
        {"width": width, "depth": depth, "heads": heads}
        for width, depth, heads in ((8, 1, 2), (16, 2, 2), (32, 4, 4), (64, 6, 4))
    ),
    "transformer_epochs": (1, 6, 20, 100),
    "widths": (
        (0.125, 0.25),
        (0.125, 0.25, 0.5),
        (0.125, 0.25, 0.5, 1.0),
        (0.25, 0.5, 1.0, 2.0, 4.0, 8.0),  # the paper's go up to 64
    ),
    "width_seeds": (1, 2, 3, 10),  # at the convnets' own width those, at least 2
    "depths": ((10, 18), (10, 18), (10, 18, 34, 66), (10, 18, 34, 66)),
    "depth_seeds": (1, 1, 6, 5),
    "depth_images": ((40, 40), (300, 200), (2000, 1000), None),
    "depth_epochs": (1, 3, 8, 100),
    "depth_width": (1 / 12, 1 / 12, 1 / 12, 1.0),
    "depth_reduced": (2, 2, 2, 1),  # the factor by which images are reduced
    "members": (6, 24, 100, 100),  # of a population; the paper's are fine-tuned BERTs
    "member_images": ((100, 60), (500, 500), (2000, 2000), None),
    "member_widths": ((12, 12), (32, 32), (32, 32), (512, 512)),
    "member_epochs": (2, 10, 20, 50),
    "examples": (40, 300, 800, 2000),  # on which layers are compared
    "member_examples": (40, 300, 300, 300),
    "probe": (60, 400, 2000, 10_000),  # images that a linear probe is fitted to
    "few": ((20, 40), (20, 50, 100, 300), *[(20, 50, 100, 200, 400, 800)] * 2),
    "far": ((0, 5, 50), *[(0, 1, 2, 5, 10, 20, 50)] * 3),  # in root mean square norms
}
SETTINGS = {
    profile: {name: values[i] for name, values in _SCALES.items()}
    for i, profile in enumerate(PROFILES)
}
EDGE = 3  # layers that count as early, or late
RESEMBLES = 0.8  # CKA from which a layer resembles the last one
KEPT = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]  # components, in the benchmark's third subtask
POPULATIONS = ("out of distribution, seeds", "out of distribution, augmentation")
SUBTASKS = {
    "layers, convnet": 5,
    "layers, transformer": 5,
    "components deleted": 5,
    **dict.fromkeys(POPULATIONS, 20),
}
"""The subtasks of the benchmark, and the fewest networks that settle anything about each."""
TABLE, MISSING = list(METRICS)[:14], list(METRICS)[14:]
BENCHMARK = ["CCA ρ", "SVCCA ρ", "PWCCA", "regression", "CKA linear", "CKA RBF 0.4"]
BENCHMARK += ["CKA debiased", "Procrustes", "RSA correlation"]
WIDE = ["CCA ρ", "regression", "Procrustes", "CKA linear", "CKA debiased", "RSA correlation"]
ROBUST = ["CCA ρ", "PWCCA", "CKA linear", "CKA RBF 0.4", "Procrustes", "RSA correlation"]
CCA = ["CCA ρ", "CCA ρ²", "SVCCA ρ", "SVCCA ρ²", "PWCCA"]
LEADERS = ["Procrustes", "CKA linear", "PWCCA", "CCA ρ"]  # the four of Ding's Table 1


def images(profile: str, dataset: str = "auto") -> dict[str, data.Split]:
    """Return the images that "tiny10" and "vit", "mlp", and "plain" networks see.

    The papers' are CIFAR-10; "auto" is it where its files are, and for MLPs MNIST.
    """
    scale = SETTINGS[profile]
    return {
        "tiny10": cifar10(profile, dataset, scale["images"]),
        "plain": cifar10(profile, dataset, scale["depth_images"]),
        "mlp": data.load(dataset if dataset != "cifar10" else "auto", scale["member_images"]),
    }


def networks(profile: str, dataset: str = "auto") -> dict[str, list[dict]]:
    """Return the descriptions of all networks, by group.

    Groups are "convnets", "transformers" (of 16 patches), "low" and "high" (convnets that learn
    the first and the last five classes), a "width x..." for each width, "depth", and `POPULATIONS`
    (MLPs that differ in their seed, or also in the pixels by which training images are shifted).
    """
    scale, splits = SETTINGS[profile], images(profile, dataset)
    _, channels, _, size = splits["tiny10"].train.images.shape
    seeds = range(scale["seeds"])

    def network(model: str, seed: int, options: dict, **changed) -> dict:
        split = splits.get(model, splits["tiny10"])
        return {
            "dataset": split.name,
            "images": [len(split.train), len(split.test)],
            "reduced": 1,
            "classes": "all",
            "model": model,
            "options": options,
            "optimizer": "SGD",
            "momentum": {"momentum": 0.9},
            "learning_rate": 0.02,
            "batch_size": scale["batch_size"],
            "epochs": scale["epochs"],
            "augment": {},
            "seed": seed,
        } | changed

    def convnet(seed: int, width: float = scale["width"], **changed) -> dict:
        return network("tiny10", seed, {"width": width, "channels": channels}, **changed)

    def transformer(seed: int) -> dict:
        options = scale["transformer"] | {"channels": channels, "size": size, "patch": size // 4}
        adam = {"optimizer": "Adam", "momentum": {}, "learning_rate": 1e-3}
        return network("vit", seed, options, epochs=scale["transformer_epochs"], **adam)

    def plain(seed: int, depth: int) -> dict:
        options = {"depth": depth, "width": scale["depth_width"], "channels": channels}
        changed = {"reduced": scale["depth_reduced"], "epochs": scale["depth_epochs"]}
        return network("plain", seed, options, **changed)

    def member(seed: int, shift: int) -> dict:
        inputs = splits["mlp"].train.images[0].numel()
        changed = {"learning_rate": 0.05, "epochs": scale["member_epochs"]}
        changed |= {"augment": {"shift": shift} if shift else {}}
        options = {"inputs": inputs, "widths": list(scale["member_widths"])}
        return network("mlp", seed, options, **changed)

    convnets, count = [convnet(seed) for seed in seeds], scale["width_seeds"]
    by_width = {w: [convnet(seed, w) for seed in range(count)] for w in scale["widths"]}
    by_width[scale["width"]] = convnets[: max(2, count)]
    depths = sorted(scale["depths"], reverse=True)
    return {
        "convnets": convnets,
        "transformers": [transformer(seed) for seed in seeds],
        "low": [convnet(seed, classes="low") for seed in seeds],
        "high": [convnet(seed, classes="high") for seed in seeds],
        **{f"width x{width:g}": nets for width, nets in by_width.items()},
        "depth": [plain(seed, depth) for seed in range(scale["depth_seeds"]) for depth in depths],
        POPULATIONS[0]: [member(1000 + i, 0) for i in range(scale["members"])],
        POPULATIONS[1]: [member(2000 + i, i % 4) for i in range(scale["members"])],
    }


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the notebook's experiments, by name, in the order in which they are run."""
    scale, groups = SETTINGS[profile], networks(profile, dataset)
    convnets, transformers = groups["convnets"], groups["transformers"]
    populations = {name: groups[name] for name in POPULATIONS}
    by_width = {name: nets for name, nets in groups.items() if name.startswith("width")}
    examples, seeds = scale["examples"], range(scale["seeds"])
    fewer = min(400, examples)  # as all pairs of them are looked at, for every rank
    sensitive, last = [*BENCHMARK, *MISSING], LAYERS["tiny10"][-1:]

    def experiment(measure: Callable, specs: Sequence[Mapping], **how: int) -> Experiment:
        return Experiment(measure, specs, options={"device": device}, **how)

    def grids(nets: list[dict], metrics: Sequence[str], **changed) -> Experiment:
        layers = {net["model"]: layers_of(net) for net in nets}
        spec = {"networks": nets, "layers": layers, "part": "train", "kept": None}
        spec |= {"examples": examples} | changed
        return experiment(measurements.grid, [spec | {"metric": metric} for metric in metrics])

    def each(measure: Callable, nets: list[dict], **settings) -> Experiment:
        return experiment(measure, [{"network": net} | settings for net in nets])

    trained = [net for nets in by_width.values() for net in nets if net not in convnets]
    trained.sort(key=lambda net: -net["options"]["width"])
    trained += [*convnets, *transformers, *groups["low"], *groups["high"]]
    members = [net for nets in populations.values() for net in nets]
    tasks = {"low": groups["low"], "high": groups["high"], "examples": min(500, examples)}
    probe = {"from": 0, "kept": None, "examples": scale["probe"]}
    neighbours = zip(convnets, convnets[1:] + convnets[:1], strict=True)
    wide = {"layer": "act4", "counts": list(scale["few"]), "metrics": WIDE}
    return {
        "networks": experiment(measurements.train, trained),
        "layers, convnet": grids(convnets, TABLE),
        "layers, transformer": grids(transformers, TABLE),
        "transformer and convnet": grids([convnets[0], transformers[0]], ["CKA linear", "CCA ρ"]),
        **{
            name: grids(nets, ["CKA linear", "CKA debiased"])
            for name, nets in by_width.items()
            if len(nets) > 1
        },
        "depth": each(
            measurements.depth_of_layers, groups["depth"], examples=min(scale["probe"], 1000)
        ),
        "tasks": experiment(measurements.by_task, [tasks | {"seed": seed} for seed in seeds]),
        "low rank": each(measurements.low_rank, convnets, metrics=sensitive, examples=fewer),
        "two seeds": grids(convnets, sensitive, examples=fewer),
        "populations": experiment(measurements.members_of, members, batch=25),
        "components deleted": grids(convnets, sensitive, kept=KEPT, layers={"tiny10": last}),
        "probes, layers, convnet": each(measurements.probes, convnets, **probe),
        "probes, layers, transformer": each(measurements.probes, transformers, **probe),
        "probes, components deleted": each(
            measurements.probes,
            convnets,
            **probe | {"from": len(LAYERS["tiny10"]) - 1, "kept": KEPT},
        ),
        **{
            name: grids(nets, BENCHMARK, examples=scale["member_examples"], part="test")
            for name, nets in populations.items()
        },
        "few examples": experiment(
            measurements.few_examples,
            [wide | {"networks": pair, "seed": seed} for seed, pair in enumerate(neighbours)],
        ),
        "moved points": each(
            measurements.moved_points,
            convnets,
            distances=list(scale["far"]),
            metrics=ROBUST,
            examples=examples,
        ),
    }


KORNBLITH, DING = "Kornblith et al. 2019", "Ding et al. 2021"
_SOURCES = {  # paper, figure, what it reports
    "K1": (KORNBLITH, "Table 2", "CKA 99.3%, regression 45.4%, CCA family 1.4 to 15.1%"),
    "K2": (KORNBLITH, "Fig. 3", "heatmaps, no number"),
    "K3": (KORNBLITH, "Fig. 6", "curves, no number"),
    "K4": (KORNBLITH, "Fig. 7", "curves of CIFAR-10 and CIFAR-100, no number"),
    "K5": (KORNBLITH, "Theorem 1", "proved"),
    "K6": (KORNBLITH, "Table F.1", "pass, unlike on convnets"),
    "D1": (DING, "Figs. 2, 3", "curves"),
    "D2": (DING, "Table 1", "at most 0.054 below the best of three, rho"),
    "D3": (DING, "Table 1", "0.568 at best over 100 seeds, rho"),
    "DA1": ("Davari et al. 2023", "", "curves"),
    "CU1": ("Cui et al. 2022", "", "curves"),
    "MU1": ("Murphy et al. 2024", "", "proved for random matrices, shown on brain data"),
}


def _claim(id: str, statement: str, *rules: str | Rule, seeds: int = 3) -> Claim:
    paper, figure, shown = _SOURCES[id]
    parts = tuple(
        Rule.read(rule, minimum_seeds=seeds) if isinstance(rule, str) else rule for rule in rules
    )
    return Claim(id, paper, statement, parts if len(parts) > 1 else parts[0], figure, shown)


def _over(subtask: str, what: str, threshold: float) -> Rule:
    statistic = f"{subtask}: {what} (Spearman, mean over every reference; each network a seed)"
    return Rule.old(statistic, "<", threshold, minimum_seeds=SUBTASKS[subtask])


CLAIMS: tuple[Claim, ...] = (
    _claim(
        "K1",
        "In finding the same layer in another network linear CKA is best, regression second, the "
        "CCA family last",
        "accuracy of linear CKA minus that of regression > 0",
        "accuracy of regression minus the best of CCA, SVCCA, PWCCA > 0",
        seeds=5,
    ),
    _claim(
        "K2",
        "In a network 8 times deeper more than half of the layers resemble the last",
        f"share of layers with linear CKA above {RESEMBLES:g} to the last layer before the "
        "pooling, deepest network > 0.5",
        "that minus the same share of the shallowest network > 0",
    ),
    _claim(
        "K3",
        "CKA of two networks rises with their width, early layers first",
        "Spearman correlation of width with the same layers' mean linear CKA > 0",
        "that CKA in the first three layers minus the last three, mean of widths > 0",
    ),
    _claim(
        "K4",
        "Networks trained on different tasks agree in early layers, trained and untrained ones "
        "much less",
        "linear CKA in the first three layers, different classes minus trained against untrained "
        "> 0",
        "what different classes cost in CKA against the same classes, last three layers minus "
        "first three > 0",
    ),
    _claim(
        "K5",
        "An index invariant to any invertible linear map says nothing once width reaches the "
        "number of examples",
        Rule.read(
            "CCA of the same layer in two networks minus that with the examples of one shuffled "
            "< 0.001",
            "every",
        ),
        "the same of debiased CKA > 0.1",
    ),
    _claim(
        "K6",
        "On transformers CCA and PWCCA find the same layer, too",
        "accuracy of CCA ρ on transformers minus that on convnets > 0",
        "accuracy of PWCCA on transformers minus that on convnets > 0",
        "accuracy on transformers, the lower of CCA and PWCCA > 0.75",
        seeds=5,
    ),
    _claim(
        "D1",
        "CKA is specific but not sensitive, CCA the other way round",
        "specificity of linear CKA minus that of CCA > 0",
        "share of components deleted unnoticed, linear CKA minus CCA with missing directions "
        "counted as 0 > 0",
        "share of components deleted unnoticed by linear CKA > 0.5",
        seeds=5,
    ),
    _claim(
        "D2",
        "Procrustes is near the best of Procrustes, CKA, PWCCA and CCA in every subtask",
        *[_over(subtask, "the best of the four minus Procrustes", 0.1) for subtask in SUBTASKS],
    ),
    _claim(
        "D3",
        "No metric does well on the hardest task",
        _over(POPULATIONS[0], "the best of all metrics", 0.6),
    ),
    _claim(
        "DA1",
        "Moving a subset of the points, or one of them, brings linear CKA down while a linear "
        "classifier does as well as before",
        "linear CKA of a layer with itself, half of its examples moved far < 0.5",
        "accuracy that a linear probe loses by it < 0.01",
        "linear CKA of a layer with itself, one example moved far < 0.5",
    ),
    _claim(
        "CU1",
        "The structure of the input makes networks look alike that are not; deconfounding takes it "
        "away",
        "linear CKA minus deconfounded CKA, trained against untrained > 0",
        "that minus the same of networks trained alike > 0",
    ),
    _claim(
        "MU1",
        "With far fewer examples than features biased CKA of unrelated layers is high, debiased "
        "CKA is not",
        "linear CKA with the examples of one layer shuffled > 0.2",
        "|debiased CKA| of the same < 0.1",
    ),
)
NOTES = {
    "K1": "seen: CKA minus regression {:.2f}, regression minus the best of the CCA family {:.2f}",
    "K2": "seen: share {:.2f}, more than in the shallowest by {:.2f}",
    "K3": "seen: Spearman {:.2f}, early minus late layers {:.2f}",
    "K4": "seen: other task minus untrained {:.2f}, "
    "the other task costs {:.3f} more in late layers",
    "K5": "seen: matched minus shuffled {:.1g} for CCA, {:.2f} for debiased CKA",
    "K6": "seen: more than on convnets by {:.2f} (CCA), {:.2f} (PWCCA); accuracy {:.2f}",
    "D1": "seen: specificity higher by {:.2f}; unnoticed share higher by {:.2f}, {:.2f} for CKA",
    "D2": "seen: behind the best by " + ", ".join(["{:.2f}"] * len(SUBTASKS)),
    "D3": "seen: the best metric has {:.2f}",
    "DA1": "seen: CKA {:.2f} with a subset moved, probe loses {:.3f}; CKA {:.2f} with one example",
    "CU1": "seen: deconfounding takes {:.2f}, that is {:.2f} more than from networks trained alike",
    "MU1": "seen: shuffled, {:.2f} biased, {:.2f} debiased",
}


def statistics(
    sanity: pd.DataFrame,
    sensitivity: pd.DataFrame,
    width: pd.DataFrame,
    depth: pd.DataFrame,
    tasks: pd.DataFrame,
    few: pd.DataFrame,
    moved: pd.DataFrame,
    benchmark: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, list]:
    """Return, for every claim, one number a seed, or one such list for each of its rules.

    Parameters
    ----------
    sanity : DataFrame
        K1, K6, D1: family ("convnet", "transformer"), metric, seed, accuracy, specificity.
    sensitivity : DataFrame
        D1: metric, seed, unnoticed, which is `grounding.detection`.
    width, depth : DataFrame
        K3: seed, width, depth, value, the CKA of layer `depth` with the other seeds. K2: seed,
        depth (of the network), value, the CKA of each layer but the last with it.
    tasks : DataFrame
        K4, CU1: seed, kind ("same task", "other task", "untrained"), depth, cka, deconfounded.
    few, moved : DataFrame
        K5, MU1: seed, examples, kind ("matched", "shuffled"), metric, value. DA1: seed, change
        ("subset", "one example"), distance, metric, value.
    benchmark : mapping of subtask to mapping of metric to values
        D2, D3: `grounding.by_network` of each.
    """
    accuracy, specificity = (
        sanity.pivot_table(index="seed", columns=["family", "metric"], values=column)
        for column in ("accuracy", "specificity")
    )
    convnet, transformer, specific = accuracy.convnet, accuracy.transformer, specificity.convnet
    unnoticed = sensitivity.pivot_table(index="seed", columns="metric", values="unnoticed")
    share = (depth.value > RESEMBLES).groupby([depth.seed, depth.depth]).mean().unstack()
    deepest = share.iloc[:, -1] if share.shape[1] > 1 else share.iloc[:, 0] * math.nan
    by_width = width.pivot_table(index="seed", columns="width", values="value")
    orders = [
        spearman(means.index.to_numpy(), means.to_numpy()) if len(means) > 2 else math.nan
        for _, means in by_width.iterrows()
    ]
    early, late = _edges(width.pivot_table(index="seed", columns="depth", values="value"))
    cka = tasks.pivot_table(index="seed", columns=["kind", "depth"], values="cka")
    same, other, untrained = (
        _edges(cka[kind]) for kind in ("same task", "other task", "untrained")
    )
    input_is = (tasks.cka - tasks.deconfounded).groupby([tasks.seed, tasks.kind]).mean().unstack()
    fewest = few[few.examples == few.examples.min()].pivot(
        index="seed", columns=["kind", "metric"], values="value"
    )
    matched, shuffled = fewest.matched, fewest.shuffled
    start, far = (
        moved[moved.distance == distance].pivot(
            index="seed", columns=["change", "metric"], values="value"
        )
        for distance in (moved.distance.min(), moved.distance.max())
    )
    values = {
        "K1": [
            convnet["CKA linear"] - convnet["regression"],
            convnet["regression"] - convnet[CCA].max(axis=1),
        ],
        "K2": [deepest, deepest - share.iloc[:, 0]],
        "K3": [orders, early - late],
        "K4": [other[0] - untrained[0], (same[1] - other[1]) - (same[0] - other[0])],
        "K5": [matched[name] - shuffled[name] for name in ("CCA ρ", "CKA debiased")],
        "K6": [
            transformer["CCA ρ"] - convnet["CCA ρ"],
            transformer["PWCCA"] - convnet["PWCCA"],
            transformer[["CCA ρ", "PWCCA"]].min(axis=1),
        ],
        "D1": [
            specific["CKA linear"] - specific["CCA ρ"],
            unnoticed["CKA linear"] - unnoticed["CCA, missing 0"],
            unnoticed["CKA linear"],
        ],
        "D2": [_behind(benchmark.get(subtask, {})) for subtask in SUBTASKS],
        "D3": [_best(benchmark.get(POPULATIONS[0], {}))],
        "DA1": [
            far["subset", "CKA linear"],
            start["subset", "probe"] - far["subset", "probe"],
            far["one example", "CKA linear"],
        ],
        "CU1": [input_is["untrained"], input_is["untrained"] - input_is["same task"]],
        "MU1": [shuffled["CKA linear"], shuffled["CKA debiased"].abs()],
    }
    lists = {id: [[float(v) for v in one] for one in series] for id, series in values.items()}
    return {id: series if len(series) > 1 else series[0] for id, series in lists.items()}


def _edges(by_layer: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return the means over the first and over the last layers, the columns, of each seed."""
    return by_layer.iloc[:, :EDGE].mean(axis=1), by_layer.iloc[:, -EDGE:].mean(axis=1)


def _best(influence: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Return the influence values of the metric with the highest mean; NaN if none has one."""
    means = pd.Series({name: np.mean(values) for name, values in influence.items()}, dtype=float)
    return np.asarray(influence[means.idxmax()]) if means.notna().any() else np.array([math.nan])


def _behind(influence: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Return the influence values of the best of the four minus those of Procrustes."""
    four = {name: influence[name] for name in LEADERS if name in influence}
    return _best(four) - np.asarray(influence.get("Procrustes", math.nan))


def notes(values: Mapping[str, list]) -> dict[str, str]:
    """Return what was seen of each claim, in words, from what `statistics` returned."""
    series = {id: v if isinstance(v[0], list) else [v] for id, v in values.items()}
    return {id: NOTES[id].format(*map(np.mean, lists)) for id, lists in series.items()}
