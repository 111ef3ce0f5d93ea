"""Which inner measure orders networks by how well they generalise? The papers' side by side.

Ours: networks that fit their training labels and differ in how many of these are wrong, or in their
recipe, are ordered by each measure that the papers look at; Kendall's tau with the gap says how
well. No measure sees a test label. The rules were written after a pilot at quick (3 seeds, two
architectures on 300 images) and before any run at full.
"""

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

from replication import (
    activations,
    data,
    directions,
    sensitivity,
    similarity,
    spectra,
    sweeps,
    training,
)
from replication._core import paths
from replication._core.profiles import EVIDENCE
from replication.claims import Claim, Gate, Rule, inference
from replication.papers.experiment import Experiment, by_profile

NOTEBOOK = "09_inner_measures"
SETTINGS = by_profile(
    {  # at smoke, quick, full and paper (ours); images: training and test
        "networks": {
            "images": ((60, 300), (200, 600), (5000, 10_000), (10_000, 10_000)),
            "epochs": (30, 60, 150, 300),  # at most: they stop when they fit
            "seeds": (2, 3, 3, 5),
            "architectures": (2, 2, 4, 4),
            "units": (16, 32, 256, 512),  # of a layer of an MLP
            "channels": ((4, 8), (4, 8), (16, 32), (32, 64)),  # of MNIST's convnet
            "levels": (
                (0.0, 1.0),
                (0.0, 0.25, 0.5, 1.0),
                *2 * ((0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0),),
            ),
            "rates": ((1e-3,), (3e-3,), (1e-3, 3e-3), (3e-4, 1e-3, 3e-3)),
            "batches": ((10, 30), (20, 50), (64, 256), (32, 256)),
            "decays": ((0.0,), (0.0, 0.5), (0.0, 0.5), (0.0, 0.5)),  # of AdamW
        },
        "reading": {
            "shown": (40, 100, 1000, 1000),  # training images for ablation, noise, margins
            "compared": (300, 400, 5000, 5000),  # test images, unlabelled, for similarities
            "points": (10, 30, 500, 500),  # of these for Jacobians
            "probes": (4, 5, 50, 50),  # of these for the spectra
            "orders": (2, 3, 10, 10),
        },
    }
)
ARMS = LABELS, RECIPES = ("corrupted labels", "recipes")
INNER = {  # measure: its sign where a network generalises, and whose it is
    "ablation AUC": (1, "Morcos et al. 2018"),
    "noise AUC": (1, "Morcos et al. 2018"),
    "selectivity": (-1, "Morcos et al. 2018"),
    "EV1": (1, "the post on noise spectra"),
    "Jacobian norm": (-1, "Novak et al. 2018"),
    "logit Jacobian": (-1, "Novak et al. 2018"),
    "PWCCA to a second seed": (1, "Morcos, Raghu & Bengio 2018"),
    "CKA to a second seed": (1, "Kornblith et al. 2019"),
}
BASELINES = {"margin": 1, "path norm": -1, "steps to fit": -1, "train loss": -1}
SIGNS = {name: sign for name, (sign, _) in INNER.items()} | BASELINES
SECOND = (
    100  # added to the seed of a network's own second network, which no other one is put beside
)
FITTED, SIGMA, SCALES = 0.99, 0.3, (0.25, 0.5, 1.0, 2.0)
FEWEST = 4  # networks of a seed that can be ordered


def architectures(scale: Mapping) -> dict[str, tuple[str, str, dict]]:
    """Return data set, model and options of each architecture by name."""
    units, maps = scale["units"], list(scale["channels"])
    return {
        "MLP on MNIST": ("mnist", "mlp", {"inputs": 784, "widths": 2 * [units]}),
        "convnet on MNIST": ("mnist", "mnist_convnet", {"channels": maps}),
        "MLP on CIFAR-10": ("cifar10", "mlp", {"inputs": 3072, "widths": 2 * [units]}),
        "convnet on CIFAR-10": ("cifar10", "morcos_convnet", {"width": 1 / 8}),
    }


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the two experiments: networks on corrupted labels, and of several recipes."""
    scale, reading = SETTINGS[profile].values()
    evidence, experiments = profile in EVIDENCE and dataset == "auto", {}
    digits = "mnist" if evidence else data.load(dataset, subset=(10, 10)).name
    seeds, first = (
        scale["seeds"],
        {"rate": scale["rates"][0], "batch": scale["batches"][0], "decay": 0.0},
    )
    labels = [first | {"corruption": level} for level in scale["levels"]]
    grid = product(scale["rates"], scale["batches"], scale["decays"])
    recipes = [dict(zip(first, own, strict=True)) | {"corruption": 0.0} for own in grid]
    for arm, changes in zip(ARMS, (labels, recipes), strict=True):
        specs = []
        chosen = list(architectures(scale).items())[: scale["architectures"]]
        for seed, (name, (images, model, options)), own in product(range(seeds), chosen, changes):
            net = {"data": images if evidence else digits, "images": list(scale["images"])}
            net |= {"model": model, "options": options, "epochs": scale["epochs"], **own}
            net |= {"precision": "auto" if profile in EVIDENCE else "float32", "seed": seed}
            more = {"architecture": name, "second": seed + SECOND, **reading}
            specs.append(named(net) | more)
        top = SETTINGS["paper"]["networks"]
        ratios = {"images": scale["images"][0] / top["images"][0], "training": 1.0}
        ratios |= {"width": scale["units"] / top["units"], "networks": seeds / top["seeds"]}
        experiments[arm] = Experiment(measure, specs, options={"device": device}, scale=ratios)
    return experiments


def named(net: Mapping) -> dict:
    """Return what a spec says of a network: its settings and the key of its training."""
    digest = SimpleNamespace(digest=f"{net['data']} {net['images']} standardised")
    return {"net": net, "network": training_spec(net).key(digest)}


def training_spec(net: Mapping) -> training.Spec:
    """Return how a network is trained: by AdamW until it fits its labels."""
    return training.Spec(
        model=net["model"],
        model_options=net["options"],
        optimizer="AdamW",
        optimizer_options={"weight_decay": net["decay"]},
        learning_rate=net["rate"],
        batch_size=net["batch"],
        epochs=net["epochs"],
        label_corruption=net["corruption"],
        keep_marginal=True,
        stop_at_train_accuracy=0.995,
        precision=net["precision"],
        seed=net["seed"],
    )


@sweeps.named_by_spec
@functools.lru_cache(maxsize=2)
def images_of(name: str, counts: tuple[int, int], device: str) -> data.Split:
    """Return a data set, standardised."""
    return data.standardise(data.load(name, subset=counts, device=device))[0]


def trained(net: Mapping, split: data.Split, device: str) -> training.Run:
    """Return a network, trained or from the store."""
    options = {"store": paths.runs() / "networks", "device": device, "progress": False}
    return training.fit(training_spec(net), split, **options)


def measure(spec: Mapping, device: str = "auto") -> dict:
    """Train a network and return its accuracies, its gap, and all measures."""
    net = spec["net"]
    split = images_of(net["data"], tuple(net["images"]), device)
    run = trained(net, split, device)
    last = run.history.iloc[-1]
    row = {"status": run.status, "gap": float(last.train_accuracy - last.test_accuracy)}
    row |= {key: float(last[key]) for key in ("train_accuracy", "test_accuracy")}
    row |= {"train loss": float(last.train_loss), "steps to fit": float(last.step)}
    if run.status == "diverged":
        return row
    model, other = run.model(None, device), trained(net | {"seed": spec["second"]}, split, device)
    shown, tested = split.train.images[: spec["shown"]], split.test.images[: spec["compared"]]
    points = tested[: spec["points"]]
    labels = training.training_labels(run.spec, split)[: spec["shown"]]
    layers = [name for name, module in model.named_children() if isinstance(module, nn.ReLU)]
    ends = layers[-2:]
    ablated = directions.cumulative_ablation(model, shown, labels, ends, spec["orders"])
    noisy = directions.noise_curve(model, shown, labels, ends, SCALES, spec["orders"])
    unit = activations.record(model, shown, ends[-1:], reduction="spatial_mean")[ends[-1]]
    noise = spectra.noise_spectrum(model, points[: spec["probes"]], SIGMA, 32, layers)
    row |= {
        "ablation AUC": ablated.auc.mean().item(),
        "noise AUC": noisy.accuracy.mean().item(),
        "selectivity": directions.class_selectivity(unit, labels).index.mean().item(),
        "EV1": np.mean([noise.explained_variance(n)[:, 0].mean().item() for n in layers]),
        "Jacobian norm": sensitivity.jacobian_norm(model, points).clamp_min(1e-30).log().mean(),
        "logit Jacobian": sensitivity.jacobian_norm(model, points, "logits").log().mean(),
    }
    row |= dict.fromkeys(("PWCCA to a second seed", "CKA to a second seed"), math.nan)
    if other.status != "diverged":
        options = {"layers": layers, "reduction": "spatial_mean"}
        nets = model, other.model(None, device)
        sides = [activations.record(each, tested, **options) for each in nets]
        pairs = [[side[layer].double() for side in sides] for layer in layers]
        row["PWCCA to a second seed"] = np.mean([similarity.pwcca(*pair).item() for pair in pairs])
        unbiased = [similarity.cka(*pair, unbiased=True).item() for pair in pairs]
        row["CKA to a second seed"] = np.mean(unbiased)
    row |= {"margin": margin(model, shown, labels), "path norm": path_norm(model, shown[:1])}
    return {key: value if isinstance(value, str) else float(value) for key, value in row.items()}


def margin(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the 10th percentile of the logit of the label minus the largest other one.

    In units of the standard deviation of all logits, so that their scale does not count.
    """
    with torch.inference_mode():
        logits = model(images).double()
    own = logits.gather(1, labels[:, None])[:, 0]
    other = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return float((own - other).quantile(0.1) / logits.std())


def path_norm(model: nn.Module, image: Tensor) -> float:
    """Return ln of the path norm: the root of the sum over paths of their squared weights.

    The output on ones of the network with all weights squared and without biases (Neyshabur et al.
    2015), batch norm taken as the map that it is at test time; average pooling counts as it is.
    """
    squared = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for module in squared.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.weight.div_((module.running_var + module.eps).sqrt()).square_()
                module.running_mean.zero_()
                module.running_var.fill_(1 - module.eps)
            elif isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.square_()
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
        return float(squared(torch.ones_like(image, dtype=torch.float64)).sum().log() / 2)


def whole(table: pd.DataFrame) -> pd.DataFrame:
    """Return results with every column, also where nothing is measured yet."""
    columns = ["architecture", "net", "status", "gap", "train_accuracy", "test_accuracy", *SIGNS]
    return table.reindex(columns=table.columns.union(columns, sort=False))


def taus(table: pd.DataFrame) -> pd.DataFrame:
    """Return Kendall's tau-b of each measure, by its sign, with minus the gap.

    A row a measure, arm, architecture and seed, over the networks that fitted their labels and that
    the measure is defined for; 0 for a measure that is the same of all.
    """
    rows = []
    for arm in table.index.unique(0):
        own = table.loc[arm]
        own = own[own.train_accuracy >= FITTED]
        seeds = own.net.map(lambda net: net["seed"])
        for (name, seed), nets in own.groupby([own.architecture, seeds]):
            for kind, sign in SIGNS.items():
                known = nets.dropna(subset=kind)
                if len(known) >= FEWEST:
                    tau = kendalltau(sign * known[kind], -known.gap).statistic
                    rows.append((kind, arm, name, seed, 0.0 if math.isnan(tau) else tau))
    return pd.DataFrame(rows, columns=["measure", "arm", "architecture", "seed", "tau"])


def across(table: pd.DataFrame) -> pd.DataFrame:
    """Return Kendall's tau-b as `taus` does, over the networks of all architectures of a seed."""
    return taus(table.assign(architecture="all")).drop(columns="architecture")


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Return by measure and arm the median tau, its 95% interval, the units, and tau `across`.

    Units are architectures and seeds (across them seeds). The interval is the sign test's, which
    needs six of them.
    """
    rows = []
    for (arm, measure), own in taus(table).groupby(["arm", "measure"], sort=False).tau:
        low, high = inference.sign(own.to_numpy()).interval if len(own) >= 6 else (math.nan,) * 2
        rows.append((arm, measure, own.median(), low, high, len(own)))
    columns = ["arm", "measure", "tau", "low", "high", "units"]
    within = pd.DataFrame(rows, columns=columns).set_index(columns[:2])
    within["tau across"] = across(table).groupby(columns[:2]).tau.median()
    return within.reindex(pd.MultiIndex.from_product([ARMS, SIGNS], names=columns[:2]))


def held_out(found: pd.DataFrame, measures: Sequence[str]) -> pd.Series:
    """Return, by architecture and seed, tau of the measure that is best on the others."""
    means = found[found.measure.isin(measures)].pivot_table("tau", "measure", "architecture")
    if means.shape[1] < 2:
        return pd.Series(dtype=float)
    best = {name: means.drop(columns=name).mean(axis=1).idxmax() for name in means}
    chosen = found[found.measure == found.architecture.map(best)]
    return chosen.set_index(["architecture", "seed"]).tau


_THIRD = (1 / 3, "ours: two pairs of networks in order for each that is not", "sign")
_FITS = Gate("share of networks on corrupted labels that fitted them", least=0.8)
_DIFFER = Gate(
    "range of the gap over recipes that fit, mean of architectures and seeds", least=0.02
)
_ROOM = Gate("share of architectures and seeds whose best baseline has tau below 1", least=0.5)
_TAU = "Kendall's tau with minus the gap, by architecture and seed"


def _each(arm: str) -> tuple[Rule, ...]:
    return tuple(Rule(f"{name}, {arm}: {_TAU}", *_THIRD) for name in INNER)


def _chosen(best: str, better: str, arm: str, gate: Gate, room: Gate) -> tuple[Claim, Claim]:
    """Return the two claims on measures that are chosen on other architectures."""
    return (
        Claim(
            *(best, "ours", f"The inner measure that is best on other architectures orders {arm}"),
            Rule(f"{_TAU}, of the measure of the largest mean on the others", *_THIRD),
            gate=gate,
            why="it may be the scale of weights that orders; more architectures would test it",
        ),
        Claim(
            *(better, "ours", f"Inner measures order {arm} better than baselines do"),
            Rule(f"the same, of the inner measure minus of the baseline, {arm}", test="sign"),
            gate=room,
            corrected="" if room is gate else "a baseline at tau 1 leaves nothing to be better at",
            why="norms and steps may tell it all; measures at equal steps would test it",
        ),
    )


CLAIMS = (
    Claim(
        *("G1", "ours", "Each inner measure orders networks by how many of their labels are wrong"),
        _each(LABELS),
        gate=_FITS,
        why="networks on wrong labels train longer; measures at equal steps would test it",
    ),
    Claim(
        *("G2", "ours", "Each inner measure orders recipes by their gap"),
        _each(RECIPES),
        gate=_DIFFER,
        why="recipes differ little in their gap; more images or a wider grid would test it",
    ),
    *_chosen("G3", "G4", LABELS, _FITS, _ROOM),
    *_chosen("G5", "G6", RECIPES, _DIFFER, _DIFFER),
)
CLAIMS = tuple(  # of these two the rules came first
    replace(claim, status="confirmatory") if claim.id in ("G1", "G3") else claim for claim in CLAIMS
)


def statistics(table: pd.DataFrame) -> dict[str, list]:
    """Return for every claim, or each of its rules, a number an architecture and seed.

    `table` has the rows of `plan`; NaN where nothing is measured.
    """
    found, values = taus(table), {}
    for (each, best, better), arm in zip(
        (("G1", "G3", "G4"), ("G2", "G5", "G6")), ARMS, strict=True
    ):
        own = found[found.arm == arm]
        inner, base = held_out(own, [*INNER]), held_out(own, [*BASELINES])
        values[each] = [own.tau[own.measure == name].tolist() or [math.nan] for name in INNER]
        values[best] = inner.tolist() or [math.nan]
        values[better] = (inner - base).tolist() or [math.nan]
    return values


def gates(table: pd.DataFrame) -> dict[str, float]:
    """Return what the gates of the claims look at."""
    share = differ = room = math.nan
    if LABELS in table.index:
        share = float((table.loc[LABELS].train_accuracy >= FITTED).mean())
        found = taus(table)
        base = held_out(found[found.arm == LABELS], [*BASELINES])
        room = float((base < 1).mean()) if len(base) else math.nan
    if RECIPES in table.index:
        own = table.loc[RECIPES]
        own = own[own.train_accuracy >= FITTED]
        gaps = own.gap.groupby([own.architecture, own.net.map(lambda net: net["seed"])])
        differ = float((gaps.max() - gaps.min()).mean())
    known = dict.fromkeys(("G1", "G3"), share) | dict.fromkeys(("G2", "G5", "G6"), differ)
    return known | {"G4": room}
