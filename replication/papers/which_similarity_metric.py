"""Claims K1 to K6 of Kornblith et al. 2019, D1 to D3 of Ding et al. 2021, and their critics'.

Similarities are 1 for equal layers; Procrustes enters as 1 - d / 2. A seed's number is over its
pairs with the other networks, so that seeds share pairs and intervals over few seeds are somewhat
too narrow. Over a benchmark's population the number of a network is its jackknife influence value
(`by_network`). Early and late layers are the first three and the last three.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from replication.claims import Claim, Rule
from replication.papers import _which_similarity_metric as per_seed
from replication.papers._which_similarity_metric import (
    EDGE,
    RESEMBLES,
    by_network,
    detection,
    every_reference,
    holm,
    identification,
    pairs,
    with_reference,
)

__all__ = [
    "CCA",
    "CLAIMS",
    "EDGE",
    "LEADERS",
    "OUT_OF_DISTRIBUTION",
    "RESEMBLES",
    "SUBTASKS",
    "by_network",
    "detection",
    "every_reference",
    "holm",
    "identification",
    "pairs",
    "statistics",
    "with_reference",
]

KORNBLITH, DING = "Kornblith et al. 2019", "Ding et al. 2021"
CCA = ("CCA ρ", "CCA ρ²", "SVCCA ρ", "SVCCA ρ²", "PWCCA")
LEADERS = ("Procrustes", "CKA linear", "PWCCA", "CCA ρ")  # the paper's four
OUT_OF_DISTRIBUTION = "out of distribution, seeds"
SUBTASKS = {
    "layers, convnet": 5,
    "layers, transformer": 5,
    "components deleted": 5,
    OUT_OF_DISTRIBUTION: 20,
    "out of distribution, augmentation": 20,
}
"""The subtasks of the benchmark, and the fewest networks that settle anything about each."""


def _claim(
    id: str, paper: str, statement: str, *rules: Rule, figure: str = "", shown: str
) -> Claim:
    return Claim(id, paper, statement, rules[0] if len(rules) == 1 else rules, figure, shown)


def _over(subtask: str, what: str, threshold: float) -> Rule:
    statistic = f"{subtask}: {what} (Spearman, mean over every reference; each network a seed)"
    return Rule(statistic, "<", threshold, "t", SUBTASKS[subtask])


CLAIMS: tuple[Claim, ...] = (
    _claim(
        "K1",
        KORNBLITH,
        "In finding the same layer in another network linear CKA is best, regression second, the "
        "CCA family last",
        Rule("accuracy of linear CKA minus that of regression", ">", 0.0, minimum_seeds=5),
        Rule(
            "accuracy of regression minus the best of CCA, SVCCA, PWCCA", ">", 0.0, minimum_seeds=5
        ),
        figure="Table 2",
        shown="CKA 99.3%, regression 45.4%, CCA family 1.4 to 15.1%",
    ),
    _claim(
        "K2",
        KORNBLITH,
        "In a network 8 times deeper more than half of the layers resemble the last",
        Rule(
            f"share of layers with linear CKA above {RESEMBLES:g} to the last layer before the "
            "pooling, deepest network",
            ">",
            0.5,
        ),
        Rule("that minus the same share of the shallowest network", ">", 0.0),
        figure="Fig. 3",
        shown="heatmaps, no number",
    ),
    _claim(
        "K3",
        KORNBLITH,
        "CKA of two networks rises with their width, early layers first",
        Rule("Spearman correlation of width with the same layers' mean linear CKA", ">", 0.0),
        Rule("that CKA in the first three layers minus the last three, mean of widths", ">", 0.0),
        figure="Fig. 6",
        shown="curves, no number",
    ),
    _claim(
        "K4",
        KORNBLITH,
        "Networks trained on different tasks agree in early layers, trained and untrained ones "
        "much less",
        Rule(
            "linear CKA in the first three layers, different classes minus trained against "
            "untrained",
            ">",
            0.0,
        ),
        Rule(
            "what different classes cost in CKA against the same classes, last three layers minus "
            "first three",
            ">",
            0.0,
        ),
        figure="Fig. 7",
        shown="curves of CIFAR-10 and CIFAR-100, no number",
    ),
    _claim(
        "K5",
        KORNBLITH,
        "An index invariant to any invertible linear map says nothing once width reaches the "
        "number of examples",
        Rule(
            "CCA of the same layer in two networks minus that with the examples of one shuffled",
            "<",
            1e-3,
            "every",
        ),
        Rule("the same of debiased CKA", ">", 0.1),
        figure="Theorem 1",
        shown="proved",
    ),
    _claim(
        "K6",
        KORNBLITH,
        "On transformers CCA and PWCCA find the same layer, too",
        *[
            Rule(
                f"accuracy of {name} on transformers minus that on convnets",
                ">",
                0.0,
                minimum_seeds=5,
            )
            for name in ("CCA ρ", "PWCCA")
        ],
        Rule("accuracy on transformers, the lower of CCA and PWCCA", ">", 0.75, minimum_seeds=5),
        figure="Table F.1",
        shown="pass, unlike on convnets",
    ),
    _claim(
        "D1",
        DING,
        "CKA is specific but not sensitive, CCA the other way round",
        Rule("specificity of linear CKA minus that of CCA", ">", 0.0, minimum_seeds=5),
        Rule(
            "share of components deleted unnoticed, linear CKA minus CCA with missing directions "
            "counted as 0",
            ">",
            0.0,
            minimum_seeds=5,
        ),
        Rule("share of components deleted unnoticed by linear CKA", ">", 0.5, minimum_seeds=5),
        figure="Figs. 2, 3",
        shown="curves",
    ),
    _claim(
        "D2",
        DING,
        "Procrustes is near the best of Procrustes, CKA, PWCCA and CCA in every subtask",
        *[_over(subtask, "the best of the four minus Procrustes", 0.1) for subtask in SUBTASKS],
        figure="Table 1",
        shown="at most 0.054 below the best of three, rho",
    ),
    _claim(
        "D3",
        DING,
        "No metric does well on the hardest task",
        _over(OUT_OF_DISTRIBUTION, "the best of all metrics", 0.6),
        figure="Table 1",
        shown="0.568 at best over 100 seeds, rho",
    ),
    _claim(
        "DA1",
        "Davari et al. 2023",
        "Moving a subset of the points, or one of them, brings linear CKA down while a linear "
        "classifier does as well as before",
        Rule("linear CKA of a layer with itself, half of its examples moved far", "<", 0.5),
        Rule("accuracy that a linear probe loses by it", "<", 0.01),
        Rule("linear CKA of a layer with itself, one example moved far", "<", 0.5),
        shown="curves",
    ),
    _claim(
        "CU1",
        "Cui et al. 2022",
        "The structure of the input makes networks look alike that are not; deconfounding takes it "
        "away",
        Rule("linear CKA minus deconfounded CKA, trained against untrained", ">", 0.0),
        Rule("that minus the same of networks trained alike", ">", 0.0),
        shown="curves",
    ),
    _claim(
        "MU1",
        "Murphy et al. 2024",
        "With far fewer examples than features biased CKA of unrelated layers is high, debiased "
        "CKA is not",
        Rule("linear CKA with the examples of one layer shuffled", ">", 0.2),
        Rule("|debiased CKA| of the same", "<", 0.1),
        shown="proved for random matrices, shown on brain data",
    ),
)


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
        K1, K6, D1. Columns family ("convnet", "transformer"), metric, seed, accuracy, specificity.
    sensitivity : DataFrame
        D1. Columns metric, seed, unnoticed: `detection` of each.
    width : DataFrame
        K3. Columns seed, width, depth, value: CKA of layer `depth` with the other seeds.
    depth : DataFrame
        K2. Columns seed, depth (of the network), value: CKA of each layer but the last with it.
    tasks : DataFrame
        K4, CU1. Columns seed, kind ("same task", "other task", "untrained"), depth, cka,
        deconfounded.
    few : DataFrame
        K5, MU1. Columns seed, examples, kind ("matched", "shuffled"), metric, value.
    moved : DataFrame
        DA1. Columns seed, change ("subset", "one example"), distance, metric, value.
    benchmark : mapping of subtask to mapping of metric to values
        D2, D3. `by_network` of each.
    """
    accuracy = sanity.pivot_table(index=["family", "seed"], columns="metric", values="accuracy")
    specificity = sanity.pivot_table(
        index=["family", "seed"], columns="metric", values="specificity"
    )
    convnet, transformer = (_family(accuracy, name) for name in ("convnet", "transformer"))
    unnoticed = sensitivity.pivot_table(index="seed", columns="metric", values="unnoticed")
    specific = _family(specificity, "convnet")
    gains = [transformer[name] - convnet[name] for name in ("CCA ρ", "PWCCA")]
    found: dict[str, list] = {
        "K1": [
            convnet["CKA linear"] - convnet["regression"],
            convnet["regression"] - convnet[list(CCA)].max(axis=1),
        ],
        "K2": _each(depth, per_seed.resembling),
        "K3": _each(width, per_seed.order_of_widths),
        "K4": _each(tasks, per_seed.tasks),
        "K6": [*gains, transformer[["CCA ρ", "PWCCA"]].min(axis=1)],
        "D1": [
            specific["CKA linear"] - specific["CCA ρ"],
            unnoticed["CKA linear"] - unnoticed["CCA, missing 0"],
            unnoticed["CKA linear"],
        ],
        "D2": [_behind(benchmark.get(subtask, {})) for subtask in SUBTASKS],
        "D3": _best(benchmark.get(OUT_OF_DISTRIBUTION, {})),
        "DA1": _each(moved, per_seed.moved),
        "CU1": _each(tasks, per_seed.confounded),
    }
    at_fewest = [per_seed.few_examples(rows) for _, rows in few.groupby("seed")]
    found["K5"] = [[one[f"{name} gap"] for one in at_fewest] for name in ("CCA ρ", "CKA debiased")]
    found["MU1"] = [
        [one["CKA linear shuffled"] for one in at_fewest],
        [abs(one["CKA debiased shuffled"]) for one in at_fewest],
    ]
    several = {claim.id: isinstance(claim.rule, tuple) for claim in CLAIMS}
    return {
        id: [_listed(series) for series in values] if several[id] else _listed(values)
        for id, values in found.items()
    }


def _family(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of a family, by seed."""
    return table.xs(name, level="family")


def _each(table: pd.DataFrame, statistic: Callable) -> list[tuple[float, ...]]:
    """Return one series a rule, of the statistic of each seed."""
    return list(zip(*(statistic(rows) for _, rows in table.groupby("seed")), strict=True))


def _behind(metrics: Mapping[str, Sequence[float]]) -> Sequence[float]:
    """Return the influence values of the best of the four minus those of Procrustes."""
    if "Procrustes" not in metrics:
        return [math.nan]
    best = _leader({name: metrics[name] for name in LEADERS if name in metrics})
    return np.asarray(metrics[best]) - np.asarray(metrics["Procrustes"])


def _best(metrics: Mapping[str, Sequence[float]]) -> Sequence[float]:
    """Return the influence values of the metric with the highest mean."""
    best = _leader(metrics)
    return [math.nan] if best is None else metrics[best]


def _leader(metrics: Mapping[str, Sequence[float]]) -> str | None:
    means = {name: np.mean(values) for name, values in metrics.items()}
    known = {name: mean for name, mean in means.items() if not math.isnan(mean)}
    return max(known, key=known.get) if known else next(iter(metrics), None)


def _listed(series: Sequence[float]) -> list[float]:
    values = [float(value) for value in series]
    return values or [math.nan]
