"""Arpit et al. 2017 on memorisation: claims A1 to A7 of the notebook on random labels.

randX are Gaussian images of the data's mean and variance with the labels of real ones, randY real
images with random labels. The paper states no batch size and no seeds; ours are smaller networks.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replication import data, training
from replication._core import inputs
from replication.claims import Claim, Gate, Rule
from replication.papers._memorising import (
    ALEXNET,
    DECAY,
    GAUSSIAN,
    MLP,
    RANDOM,
    TRUE,
    ends,
    named_net,
    network,
    split_of,
    train,
    trainer_of,
    training_spec,
)
from replication.training.trainer import Trainer

WIDTHS = tuple(2**k for k in range(3, 11))
SEEN = (0, 1, 2, 5, 10, 20, 40)
SCALES = {  # smoke, quick, full, paper, whose batches and data sizes are not stated
    "repeats": {  # Fig. 1
        "images": ((100, 60), (200, 100), (10_000, 1000), (50_000, 1000)),  # training, shown
        "recipe": ((2, 25), (2, 25), (4, 32), (4, 32)),  # epochs, minibatch
        "draws": (1, 3, 5, 5),  # of random labels or images
        "repeats": (2, 4, 20, 20),  # of each; the paper: 100 in all
        "at": ([1], [1, 2], [1, 2, 4], [1, 2, 4]),
    },
    "cnns": {  # Figs. 9 to 11
        "images": ((60, 60), (100, 100), (10_000, 2000), (50_000, 10_000)),
        "recipe": ((1, 30, 1 / 16), (8, 25, 1 / 16), (60, 32, 1 / 2), (300, 64, 1.0)),
        "seen": ([0, 1], [0, 1, 8], [*SEEN, 60], [*SEEN, 60, 300]),  # epochs
        "dropout": ([0.5], [0.25, 0.5], [0.1, 0.25, 0.5, 0.75, 0.9], [0.1, 0.3, 0.5, 0.7, 0.9]),
        "decay": ([0.01], [0.0005, 0.01], *2 * ([1e-4, DECAY, 1e-3, 3e-3, 1e-2],)),
        "shown": (10, 20, 1000, 2000),
        "tried": (3, 5, 20, 20),  # steps of the search for critical samples
        "seeds": (1, 1, 3, 5),
    },
    "mlps": {  # Figs. 3, 5, 6
        "sizes": ([40, 80], [50, 100], *2 * ([500, 1000, 2000, 4000, 8000],)),
        "tested": (60, 100, 2000, 10_000),
        "widths": ([4, 8], [4, 32], WIDTHS, (*WIDTHS, 2048, 4096)),
        "epochs": (2, 40, 300, 1000),
        "seeds": (1, 3, 6, 6),
    },
}
THREE = (TRUE, GAUSSIAN, RANDOM)
FAMILIES = ("dropout", "decay")


def repeats(spec: Mapping, device: str = "auto") -> pd.DataFrame:
    """Train a network several times on the same data: how often examples are right, by epoch.

    The networks, hundreds that nothing else reads, are not kept.
    """
    net, at, count = spec["net"], spec["epochs"], spec["repeats"]
    target, recipe = inputs.choose_device(device), training_spec(net)
    drawn = trainer_of(net, device).train  # corrupted once
    split = replace(split_of(net), train=drawn)
    recipe = replace(recipe, label_corruption=0.0, image_corruption=None)
    right, tested = dict.fromkeys(at, 0), dict.fromkeys(at, 0.0)
    x, y = drawn.images[: spec["shown"]], drawn.labels[: spec["shown"]]
    for repeat in range(count):
        trainer = Trainer(replace(recipe, seed=1000 * (net["seed"] + 1) + repeat), split, target)
        for epoch in at:
            while trainer.step < trainer.step_at(epoch):
                trainer.advance()
            with torch.no_grad():
                right[epoch] += (trainer.model.eval()(x).argmax(1) == y).cpu().numpy()
            tested[epoch] += training.evaluate(trainer.model, trainer.test)[1]
    shares = [
        pd.DataFrame({"at": epoch, "share": right[epoch] / count, "tested": tested[epoch] / count})
        for epoch in at
    ]
    return pd.concat(shares, ignore_index=True).astype("float32")


def critical(spec: Mapping, device: str = "auto") -> list[dict]:
    """Measure the share of validation images with a critical sample nearby, over training.

    Arpit et al. 2017, algorithm 1: steps -alpha sign(df_k/dx) + beta noise within the box of
    `radius` (all in units of a 0-255 pixel) until another class than k is predicted.
    """
    run, trainer, rows = network(spec["net"], device), trainer_of(spec["net"], device), []
    raw = data.load(spec["net"]["dataset"], subset=spec["shown"]).train.images
    unit = 1 / 255 / raw.flatten(1).std(1).mean().item()  # of a pixel, in whitened images
    x = trainer.test.images[: spec["shown"]]
    for epoch in spec["epochs"]:
        if epoch in run.checkpoints:
            model = run.model(epoch, device)
            for radius in spec["radii"]:
                scale = unit * radius / 0.3
                found = has_critical(
                    model, x, 0.3 * scale, 0.25 * scale, 0.2 * scale, spec["steps"]
                )
                rows.append({"at": epoch, "radius": radius, "share": found.double().mean().item()})
    return rows


def has_critical(
    model: nn.Module, x: Tensor, radius: float, alpha: float, beta: float, steps: int
) -> Tensor:
    """Tell for images (N, C, H, W) whether another prediction was found within `radius`, (N,)."""
    source, moved = inputs.generator(0, "critical"), x
    first = model(x).argmax(1).detach()
    found = torch.zeros_like(first, dtype=torch.bool)
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(moved).gather(1, first[:, None]).sum(), moved)
        noise = torch.randn(x.shape, generator=source).to(x)
        step = moved.detach() - alpha * slope.sign() + beta * noise - x
        moved = x + step.clamp(-radius, radius)
        with torch.no_grad():
            found |= model(moved).argmax(1) != first
    return found


def sensitivity(spec: Mapping, device: str = "auto") -> list[dict]:
    """Measure how unevenly |dL/dx|_1, summed over epochs, is spread over training examples."""
    run, trainer = network(spec["net"], device), trainer_of(spec["net"], device)
    total, rows = 0.0, []
    for epoch in sorted(run.checkpoints):
        x = trainer.train.images.clone().requires_grad_()
        loss = F.cross_entropy(run.model(epoch, device)(x), trainer.train.labels, reduction="sum")
        total = total + torch.autograd.grad(loss, x)[0].flatten(1).abs().sum(1)
        rows.append({"at": epoch, "gini": gini(total.cpu().numpy())})
    return rows


def gini(x: np.ndarray) -> float:
    """Return the Gini coefficient of (n,) numbers >= 0: sum_i (2 i - n - 1) x_(i) / (n sum x)."""
    n = len(x)
    return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(x) / (n * x.sum()))


def plan(scales: Mapping, digits: tuple, colours: tuple, precision: str) -> dict[str, tuple]:
    """Return for each experiment its function, its specs, and ours over the paper's.

    `scales` are `SCALES` of one profile; a data set is its name and (channels, side of an image).
    """
    few, cnns, mlps = scales["repeats"], scales["cnns"], scales["mlps"]
    most, sizes, seeds = mlps["epochs"], mlps["sizes"], range(mlps["seeds"])
    middle = sizes[len(sizes) // 2]

    def cnn(seed: int, **changed) -> dict:
        own = {"seed": seed, "precision": precision, "every": 2} | changed
        return named_net(ALEXNET, (*colours, cnns["images"]), *cnns["recipe"], **own)

    def small(images: int, epochs: int, seed: int, of: tuple = digits, **changed) -> dict:
        own = {"factor": 1.0, "seed": seed} | changed
        return named_net("MLP", (*of, (images, mlps["tested"])), epochs, min(32, images), **own)

    swept = [(arm, strength) for arm in FAMILIES for strength in cnns[arm]]
    three = [cnn(s, kind=k, seen=cnns["seen"]) for s in range(cnns["seeds"]) for k in THREE]
    noises: tuple[dict, ...] = ({}, {"level": 0.5}, {"noise": 0.5})
    half = {"view": "half", "hidden": [16, 16]}
    half["seen"] = range(0, max(2, most // 3) + 1, max(1, most // 75))
    uneven = [
        small(min(1000, middle), max(2, most // 3), s, kind=k, stop=None, **half)
        for s, k in product(seeds, THREE)
    ]
    looked = {
        "epochs": cnns["seen"],
        "shown": cnns["shown"],
        "radii": [0.3, 3.0],
        "steps": cnns["tried"],
    }
    drawn = {"repeats": few["repeats"], "epochs": few["at"], "shown": few["images"][1]}
    shared = {"images": (*colours, few["images"])}
    groups = {
        "repeats": (repeats, [
            named_net(MLP, shared["images"], *few["recipe"], kind=k, seed=s, precision=precision)
            | drawn for s, k in product(range(few["draws"]), THREE)
        ]),
        "sizes": (train, [
            small(n, most, s, kind=k, stop=1.0, hidden=[512])
            for s, k, n in product(seeds, THREE, sizes)
        ]),
        "capacities": (train, [
            small(middle, most, s, kind=k, stop=1.0, hidden=[w])
            for s, k, w in product(seeds, THREE, mlps["widths"][len(mlps["widths"]) // 2 - 1 :])
        ]),
        "widths": (train, [
            small(middle, max(2, most // 3), s, of, hidden=[w], **noise)
            for s, of, noise, w in product(
                seeds, dict.fromkeys([digits, colours]), noises, mlps["widths"]
            )
        ]),
        "sensitivity": (sensitivity, uneven),
        "CNNs": (train, three),
        "critical": (critical, [net | looked for net in three]),
        "strengths": (train, [
            cnn(s, arm=arm, strength=strength, level=level)
            for s, (arm, strength), level in product(range(cnns["seeds"]), swept, (0.0, 1.0))
        ]),
    }  # fmt: skip
    of_cnn = {"images": cnns["images"][0] / 50_000, "width": cnns["recipe"][2]}
    of_cnn |= {"training": min(1.0, cnns["recipe"][0] / 60), "networks": min(1, cnns["seeds"] / 3)}
    of_mlp = {
        "images": min(1.0, max(sizes) / 10_000),
        "width": min(1.0, max(mlps["widths"]) / 4096),
    }
    of_mlp |= {"training": min(1.0, most / 1000), "networks": min(1.0, mlps["seeds"] / 3)}
    of_digits = {"images": min(1.0, middle / 1000), "width": 1.0, "networks": of_mlp["networks"]}
    runs = few["draws"] * few["repeats"] / 100
    first = {"images": few["images"][0] / 50_000, "width": 512 / 4096, "networks": runs}
    scale = dict.fromkeys(groups, of_mlp) | {"repeats": first, "sensitivity": of_digits}
    scale |= dict.fromkeys(("CNNs", "critical", "strengths"), of_cnn)
    return {name: (fn, specs, scale[name]) for name, (fn, specs) in groups.items()}


PAPER = "Arpit et al. 2017"
CLAIMS = (
    Claim(
        *("A1", PAPER, "After an epoch real data have easy and hard examples, noise far less so"),
        (
            Rule("variance of examples beyond the binomial's after an epoch: real minus randY"),
            Rule("the same, real minus randX"),
            Rule("the same of randX", 0.01, "ours: a tenth of all or none right",
                 "equivalence"),
        ),
        *("Fig. 1", "curves, no number"),
        gate=Gate("test accuracy after an epoch on real data", least=0.25),
        corrected="randX was missing, and randY is not binomial in the paper",
        why="an epoch on noise leaves what is drawn last; more images an epoch would test it",
    ),
    Claim(
        *("A2", PAPER, "Tuned dropout hinders the fitting of noise most at no cost in validation"),
        Rule("train accuracy on randY, least among strengths within .01 of their family's best "
             "validation, and where 90% is reached without: weight decay minus dropout", 0.1,
             "facts read off Figs. 10, 11"),
        *("Figs. 10, 11", "curves, no number"),
        corrected="one rate of dropout was judged, without tuning and without another family",
        why="the best strength is chosen on few validation images; all of CIFAR-10 would test it",
    ),
    Claim(
        *("A3", PAPER, "With some random labels validation is best before these are fitted"),
        (
            Rule("test accuracy at its peak minus at the end, 20 to 80% random labels", 0.02,
                 "a tick of Figs. 7, 8"),
            Rule("0.9 minus the train accuracy at that peak"),
        ),
        *("Figs. 7b, 8b", "curves, no number"),
        why="a small learning rate at the end averages over labels; a constant one would test it",
    ),
    Claim(
        *("A4", PAPER, "More validation images of noise lie near another prediction, ever more so"),
        (
            Rule("share with a critical sample at the end: randX minus real"),
            Rule("the same, randY minus real"),
            Rule("the same, at the end minus after the first epoch seen, mean of both"),
        ),
        *("Fig. 9", "curves, no number"),
        why="the box of 0.3 of 255 is tiny for whitened images; the second radius tests it",
    ),
    Claim(
        *("A5", PAPER, "Time to fit grows more with examples, and falls more with width, on randX"),
        (
            Rule("slope of log2 epochs on log2 images: randX minus real"),
            Rule("slope of log2 epochs on log2 width: real minus randX"),
        ),
        *("Fig. 6", "curves, no number"),
        why="Gaussian images in many dimensions are nearly orthogonal, which makes few easy to fit",
    ),
    Claim(
        *("A6", PAPER, "With noise more width validates best, not with CIFAR-10's random labels"),
        (
            Rule("log2 of the least width within .01 of the best: MNIST, random labels minus none"),
            Rule("the same: MNIST, noise inputs minus none"),
            Rule("the same: CIFAR-10, noise inputs minus none"),
            Rule("the same: CIFAR-10, random labels minus none", 1.0, "a step of our widths",
                 "equivalence"),
        ),
        *("Fig. 5", "curves, no number"),
        why="what is best changes little with width; more images would sharpen it",
    ),
    Claim(
        *("A7", PAPER, "Sensitivity to inputs is spread less evenly over real data than noise"),
        tuple(Rule(f"Gini coefficient of summed |dL/dx|: real minus {kind}")
              for kind in ("randX", "randY")),
        *("Fig. 3", "curves, no number"),
        why="what is fitted early stops counting; a constant loss would test it",
    ),
)  # fmt: skip


def excess(rows: pd.DataFrame, count: int) -> float:
    """Return the variance between examples of being right beyond that of luck.

    With shares p of `count` repeats: var(p) - mean(p (1 - p)) / (count - 1), whose mean is 0 where
    each example is right with the same probability.
    """
    p = rows.share.to_numpy(float)
    return float(p.var(ddof=1) - (p * (1 - p)).mean() / (count - 1)) if count > 1 else math.nan


def by_kind(rows: pd.DataFrame, value: Callable) -> dict[str, pd.Series]:
    """Return `value` of each seed's rows, a series for each of `THREE`."""
    found = {
        kind: {s: value(r) for s, r in own.groupby("seed")} for kind, own in rows.groupby("kind")
    }
    seeds = sorted(rows.seed.unique())
    return {kind: pd.Series(found.get(kind, {}), dtype=float).reindex(seeds) for kind in THREE}


def tuned(nets: pd.DataFrame, arm: str) -> float:
    """Return the lowest train accuracy on random labels of strengths with near best validation."""
    own = nets[nets.arm == arm].set_index("strength")
    valid, noise = own[own.level == 0].best, own[own.level == 1].train_accuracy
    return float(noise.reindex(valid.index[valid >= valid.max() - 0.01]).min())


def controls(tables: Mapping[str, pd.DataFrame]) -> pd.Series:
    """Return by seed the train accuracy on random labels of the CNN without regularisers."""
    nets = ends(tables.get("CNNs"))
    return nets[(nets.arm == "none") & (nets.level == 1)].groupby("seed").train_accuracy.mean()


def slope(nets: pd.DataFrame, x: str) -> float:
    """Return the slope of log2 of the epochs to 100% on log2 x; NaN where a net never had that."""
    nets = nets.sort_values(x)
    if nets[x].nunique() < 2 or (nets.train_accuracy < 1).any():
        return math.nan
    return float(np.polyfit(np.log2(nets[x].astype(float)), np.log2(nets.epoch.clip(1)), 1)[0])


def least_width(nets: pd.DataFrame) -> float:
    """Return log2 of the least width whose best validation is within .01 of the best of all.

    Interpolated between widths.
    """
    nets = nets.sort_values("width")
    best, x, bar = nets.best.to_numpy(), np.log2(512 * nets.width), nets.best.max() - 0.01
    i = int(np.flatnonzero(best >= bar)[0])
    return float(np.interp(bar, best[i - 1 : i + 1], x[i - 1 : i + 1]) if i else x.iloc[0])


def statistics(tables: Mapping[str, pd.DataFrame], levels: pd.DataFrame) -> dict[str, list]:
    """Return the numbers of A1 to A7; `levels` are the `ends` of networks on corrupted labels."""
    values = {c.id: [[math.nan] for _ in c.rules] for c in CLAIMS}
    if "repeats" in tables:
        rows = tables["repeats"]
        v = by_kind(rows[rows["at"] == 1], lambda r: excess(r, int(r.repeats.iloc[0])))
        values["A1"] = [v[TRUE] - v[RANDOM], v[TRUE] - v[GAUSSIAN], v[GAUSSIAN]]
    if "strengths" in tables:
        seeds, fits = ends(tables["strengths"]).groupby("seed"), controls(tables) >= 0.9
        lead = {s: tuned(nets, "decay") - tuned(nets, "dropout") for s, nets in seeds}
        values["A2"] = [[v if fits.get(s, False) else math.nan for s, v in lead.items()]]
    some = levels[(levels.level > 0.1) & (levels.level < 0.9) & (levels.arm == "none")]
    if len(some):
        some = some.assign(fall=some.best - some.test_accuracy).groupby("seed")
        values["A3"] = [some.fall.mean(), 0.9 - some.peak.mean()]
    if "critical" in tables:
        rows = tables["critical"].query("radius == 0.3").sort_values("at")
        end = by_kind(rows, lambda r: r.share.iloc[-1])
        grown = by_kind(rows, lambda r: r.share.iloc[-1] - r[r["at"] > 0].share.iloc[0])
        rise = (grown[GAUSSIAN] + grown[RANDOM]) / 2
        values["A4"] = [end[GAUSSIAN] - end[TRUE], end[RANDOM] - end[TRUE], rise]
    if "sizes" in tables:
        v = by_kind(ends(tables["sizes"]), lambda nets: slope(nets, "images"))
        values["A5"][0] = v[GAUSSIAN] - v[TRUE]
    if "capacities" in tables:
        v = by_kind(ends(tables["capacities"]), lambda nets: slope(nets, "width"))
        values["A5"][1] = v[TRUE] - v[GAUSSIAN]
    if "widths" in tables:
        nets = ends(tables["widths"])
        nets["colour"] = nets.dataset == "cifar10"
        least = nets.groupby(["colour", "level", "noise", "seed"]).apply(least_width)
        least = least.unstack("seed")
        for part, case in enumerate(
            [(False, 0.5, 0), (False, 0, 0.5), (True, 0, 0.5), (True, 0.5, 0)]
        ):
            if {case, (case[0], 0, 0)} <= set(least.index):
                values["A6"][part] = least.loc[case] - least.loc[(case[0], 0, 0)]
    if "sensitivity" in tables:
        v = by_kind(tables["sensitivity"].sort_values("at"), lambda r: r.gini.iloc[-1])
        values["A7"] = [v[TRUE] - v[GAUSSIAN], v[TRUE] - v[RANDOM]]
    numbers = {key: [list(part) for part in parts] for key, parts in values.items()}
    return {key: parts if len(parts) > 1 else parts[0] for key, parts in numbers.items()}
