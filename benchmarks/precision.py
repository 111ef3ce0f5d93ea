"""Whether networks trained in bfloat16 are those trained in float32: `docs/precision.md`.

``python -m benchmarks precision`` trains what ``data/evidence/precision`` lacks (about an hour of a
core with bfloat16 units, at least five without) and prints the tables of that page. Ten seeds of a
convnet and of an MLP on all of CIFAR-10, each in both precisions. Equivalent: the 95% interval of
the mean difference of a seed lies within two standard deviations of single float32 networks, which
is the interval that holds 95% of them (two one-sided tests at 2.5% each). Similarities are those of
five disjoint pairs of seeds.
"""

from collections.abc import Mapping
from itertools import product

import pandas as pd
import torch

from replication import activations, data, similarity, sweeps, training
from replication._core import paths
from replication.claims import Rule
from replication.claims.rule import decide
from replication.sweeps import evidence

NETWORKS = {
    "Tiny-10": {"model": "tiny10", "learning_rate": 0.05},
    "MLP 512-512": {
        "model": "mlp",
        "model_options": {"inputs": 3072, "widths": [512, 512]},
        "learning_rate": 0.02,
    },
}
PRECISIONS = ("float32", "bfloat16")
SEEDS = 10
LAYERS = {"tiny10": ("act8", "fc"), "mlp": ("act2", "fc3")}  # the last hidden one, the logits
INDICES = {"CKA": similarity.cka, "PWCCA": similarity.pwcca, "Procrustes": similarity.procrustes}
SHOWN = 5000  # test images that similarities are measured on


def recipe(spec: Mapping, seed: int) -> training.Spec:
    """Return how a network of `spec` is trained."""
    common = {"batch_size": 128, "epochs": 5, "schedule": "cosine", "augment": {"flip": 0.5}}
    common |= {"optimizer_options": {"momentum": 0.9}, "evaluation_images": 5000}
    return training.Spec(**NETWORKS[spec["name"]], **common, precision=spec["precision"], seed=seed)


def measure(spec: Mapping) -> list[dict]:
    """Train a pair of seeds: accuracies of each, and similarities of their last layers."""
    split, _, _ = data.standardise(data.load("cifar10"))
    store, rows, recorded = paths.runs() / "networks", [], []
    for seed in spec["seeds"]:
        run = training.fit(recipe(spec, seed), split, store=store, progress=False)
        last = run.history.iloc[-1]
        for kind in ("train", "test"):
            rows.append(
                {"what": f"{kind} accuracy", "seed": seed, "value": last[f"{kind}_accuracy"]}
            )
        layers = LAYERS[run.spec.model]
        recorded.append(activations.record(run.model(), split.test.images[:SHOWN], layers))
    for layer, (name, index) in product(LAYERS[run.spec.model], INDICES.items()):
        one, other = (acts[layer].double() for acts in recorded)
        if one.dim() == 4:
            one, other = one.mean((2, 3)), other.mean((2, 3))
        kind = "logits" if layer.startswith("fc") else "last hidden layer"
        rows.append({"what": f"{name} of two seeds, {kind}", "value": float(index(one, other))})
    return rows


def specs() -> list[dict]:
    """Return the pairs of seeds of both networks in both precisions."""
    pairs = [[seed, seed + 1] for seed in range(0, SEEDS, 2)]
    return [
        {"name": name, "precision": precision, "seeds": pair}
        for pair, name, precision in product(pairs, NETWORKS, PRECISIONS)
    ]


def equivalence(table: pd.DataFrame) -> pd.DataFrame:
    """Return for each network and quantity both means, the difference, and whether it is small."""
    unit = table.seed.fillna(table.seeds.map(lambda pair: pair[0]))
    table = table.assign(unit=unit.astype(int))
    rows = {}
    for key, own in table.groupby(["name", "what"], sort=False):
        wide = own.pivot(index="unit", columns="precision", values="value").dropna()
        margin = 2 * wide["float32"].std()
        rule = Rule("difference", margin, "2 standard deviations of seeds", "equivalence")
        part = decide(rule, wide["bfloat16"] - wide["float32"])
        means = wide.mean()[list(PRECISIONS)].to_dict()
        row = {"units": len(wide), **means, "difference": part.value, "margin": margin}
        low, high = part.interval or (float("nan"),) * 2
        verdict = {"reproduced": "yes", "not reproduced": "no"}.get(part.verdict, "not decided")
        rows[key] = row | {"low": low, "high": high, "equivalent": verdict}
    return pd.DataFrame(rows).T


def main() -> int:
    """Measure what is missing, bring it into the evidence, and print the table."""
    torch.set_num_threads(1)
    store, folder = paths.runs() / "precision", paths.evidence() / "precision"
    table = sweeps.run(measure, specs(), store=store, evidence=folder)
    evidence.collect(measure, specs(), store, folder)
    print("| network | quantity | units | float32 | bfloat16 | difference, 95% | margin | equal |")
    print("|---|---|---|---|---|---|---|---|")
    for (name, what), row in equivalence(table).iterrows():
        interval = f"{row.difference:+.4f} [{row.low:+.4f}, {row.high:+.4f}]"
        cells = [name, what, row.units, f"{row.float32:.4f}", f"{row.bfloat16:.4f}"]
        print(
            "|", " | ".join(map(str, [*cells, interval, f"{row.margin:.4f}", row.equivalent])), "|"
        )
    return 0
