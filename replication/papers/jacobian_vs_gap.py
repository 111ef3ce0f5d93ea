"""Sensitivity and the generalisation gap: claims N1 to N18 on Novak et al. 2018.

|J| is the Frobenius norm of the Jacobian of the softmax by the input (standardised pixels), its
mean over test points where no point is named; the gap is train minus test accuracy, in shares;
transitions are counted exactly along the closed path through a test image's horizontal
translations. As in the paper networks are fully connected without biases, and count at 100% train
accuracy only. Their initial weights are not stated: He's, without which 15 layers pass nothing on.

What `full` trains, 6 x weights x images seen, in PFLOP: planes and curves 1.5, factors 3.2 (1.4 of
it in full batches), population 2.0, sizes 1.1, points 0.2.
"""

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from replication import data
from replication._core.profiles import EVIDENCE
from replication.claims import Claim, Gate, Rule
from replication.papers._correlation import correlation_by_member
from replication.papers._sensitivity import (  # noqa: F401, what the notebook takes from here
    DIFFERENT,
    INITIAL,
    MEASURED,
    NOISE,
    OPTIMIZERS,
    RANDOM,
    SAME,
    TRAINED,
    TRANSLATIONS,
    TRUE,
    along,
    bounded,
    closed_paths,
    correlations,
    curves,
    fitted,
    in_planes,
    logit_grams,
    maps,
    misclassified,
    network_spec,
    networks,
    planes,
    points,
    row_norms,
    work,
)  # fmt: skip
from replication.papers.experiment import Experiment, by_profile

NOTEBOOK = "05_jacobian_vs_gap"
DATASETS = MNIST, FASHION, CIFAR = "mnist", "fashion_mnist", "cifar10"
TITLES = {MNIST: "MNIST", FASHION: "Fashion-MNIST", CIFAR: "CIFAR-10"}
STAND_INS = {"mnist5k": MNIST}  # the embedded digits count as MNIST
LABELS, AUGMENTATION, HARD, FULL_BATCH = "labels", "augmentation", "HardSigmoid", "full batch"
FACTORS, BASE = (LABELS, AUGMENTATION, HARD, FULL_BATCH), "baseline"
_ALL, _LADDER = (60_000, 10_000), [16, 64, 256, 512, 1024, 2048]
SETTINGS = by_profile(
    {  # at smoke, quick, full, and the paper's where it is stated; images: training and test
        "followed": {  # networks along ellipses and in planes, figures 2 and 3
            "images": ((100, 60), (120, 200), _ALL, _ALL),
            "width": (24, 80, 300, 300),
            "depth": (3, 4, 15, 15),
            "steps": (300, 1200, 2**18, 2**18),
            "seeds": (1, 3, 5, 5),
            "ellipses": (2, 3, 10, 100),  # of each kind and network
            "planes": (2, 4, 20, 100),
            "grid": (40, 120, 256, 1000),  # points along a side of figure 3
        },
        "factors": {  # the pairs of figure 4
            "images": ((60, 60), (100, 200), (5000, 10_000), (50_000, 10_000)),
            "widths": ([8], [32, 64], [100, 200, 500], [100, 200, 500, 1000, 2000, 3000]),
            "depths": ([2], [2], [2, 3], [2, 3, 5, 10, 15, 20]),
            "steps": ([50, 100], [100, 200], [2**12, 2**13, 2**14], [2**17, 2**18]),
            "full batches": (8, 64, 200, 3000),  # up to this width, for the fewest steps
            "batch": (16, 32, 128, 128),
            "seeds": (1, 2, 6, 8),
            "points": (30, 100, 1000, 1000),  # test images for the Jacobian
            "paths": (1, 2, 5, 100),  # test images for the transitions
        },
        "population": {  # figure 5; the paper has 335,671 networks
            "images": ((60, 60), (100, 400), (5000, 10_000), (50_000, 10_000)),
            "networks": (6, 20, 300, 1000),  # on each data set
            "random": (3, 3, 10, 10),  # one of so many has random labels
            "widths": ([8, 16], [32, 64], [2**k for k in range(4, 12)], [2**k for k in range(17)]),
            "depths": ([2], [2, 3], [2, 3, 5, 9, 17], [2, 3, 5, 9, 17, 33, 65]),
            "steps": (60, 200, 2**13, 2**19),
            "most": (1e9, 3e10, 1e13, 1e18),  # FLOP of one training
            "points": (30, 100, 1000, 1000),
            "paths": (1, 2, 5, 100),
        },
        "sizes": {  # figures 1 and 6
            "images": ((60, 60), (150, 200), (50_000, 10_000), (50_000, 10_000)),
            "widths": ([8, 16], [16, 128], _LADDER, [2**k for k in range(17)]),
            "depths": ([2], [2], [2, 5], [2, 3, 5, 9, 17, 33, 65]),
            "steps": (60, 300, 2**15, 2**19),
            "most": (1e9, 2e11, 3e14, 1e18),
            "often": (1e9, 2e11, 8e13, 1e18),  # up to this work all seeds, beyond it the first
            "seeds": (1, 3, 3, 8),
            "bounded": ([], [], *2 * ([(w, d) for w in (50, 100, 200) for d in (2, 5, 10, 20)],)),
            "points": (30, 150, 1000, 1000),
        },
    }
)
CHOICES = {  # what the population draws from, as the lecture lists it
    "activation": ("relu", "relu6", "tanh", "hardtanh", "hardsigmoid"),
    "optimizer": tuple(OPTIMIZERS),
    "rate": (0.01, 0.005, 0.0005),
    "batch": (128, 512),
}
CHANGES = {  # what sets the networks of a pair apart from the baseline
    BASE: {},
    LABELS: {"labels": RANDOM},
    AUGMENTATION: {"augmented": True},
    HARD: {"activation": "hardsigmoid"},
    FULL_BATCH: {"batch": 1_000_000},  # more images than there are
}
PAIRED = {"optimizer": "Adam", "rate": 0.0005}  # with which all four fit in few steps
PAIRS = 20  # the fewest a factor
NEARLY = 0.995  # train accuracy of followed networks: they train on augmented images


def drawn(name: str, index: int, scale: Mapping) -> dict:
    """Return the settings of one network of the population, the same ones for an index.

    L-BFGS takes full batches, for an eighth of the steps. What takes more than ``most`` FLOP is
    drawn anew, so that networks are not both wide and deep.
    """
    source = random.Random(f"{name}/{index}")
    while True:
        choice = {key: source.choice(values) for key, values in CHOICES.items()}
        width, depth = (source.choice(scale[key]) for key in ("widths", "depths"))
        every = scale["random"]
        choice["labels"] = RANDOM if index % every == every - 1 else TRUE
        steps = scale["steps"]
        if choice["optimizer"] == "L-BFGS":
            choice["batch"], steps = scale["images"][0], max(1, steps // 8)
        spec = network_spec(name, scale["images"], width, depth, steps, index, **choice)
        if work(spec) <= scale["most"]:
            return spec


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the notebook's experiments in the order in which they are needed."""
    settings, sets = SETTINGS[profile], (dataset,)
    if dataset == "auto" and profile in EVIDENCE:  # else nothing need be there
        sets = DATASETS
    elif dataset == "auto":
        others = [name for name in DATASETS[1:] if data.locate(name)]
        sets = (data.load("auto", subset=(10, 10)).name, *others)
    main = CIFAR if CIFAR in sets else sets[0]
    one, design, many, sizes = (settings[part] for part in SETTINGS["full"])
    size = {key: one[key] for key in ("images", "width", "depth", "steps")}
    how = {"augmented": True, "schedule": "cosine", "rows": 16}
    followed = [network_spec(sets[0], **size, seed=s, **how) for s in range(one["seeds"])]
    kinds = [NOISE, DIFFERENT, SAME, TRANSLATIONS]
    along = [f | {"kind": k, "ellipses": one["ellipses"]} for f in followed for k in kinds]
    reading, short = {key: design[key] for key in ("points", "paths")}, design["steps"][0]
    grid = [(w, d) for w in design["widths"] for d in design["depths"]]
    factors = [
        network_spec(
            *(main, design["images"], width, depth),
            *(short if factor == FULL_BATCH else design["steps"][-1], seed * len(grid) + place),
            at=[short] if factor == FULL_BATCH else design["steps"],
            **PAIRED | {"batch": design["batch"]} | change,
        )
        | {"factor": factor, "kept": False, **reading}
        for seed in range(design["seeds"])  # each pair has one of its own
        for place, (width, depth) in enumerate(grid)
        for factor, change in CHANGES.items()
        if factor != FULL_BATCH or width <= design["full batches"]
    ]
    reading = {key: many[key] for key in ("points", "paths")} | {"kept": False}
    population = [drawn(name, i, many) | reading for i in range(many["networks"]) for name in sets]
    how = {"rate": 0.01, "schedule": "cosine"}
    given = [(w, d, seed) for seed in range(sizes["seeds"]) for w in sizes["widths"]
             for d in sizes["depths"]]  # fmt: skip
    ladder, bounded_ = (
        [network_spec(main, sizes["images"], w, d, sizes["steps"], seed, **how)
         | {"points": sizes["points"]} for w, d, seed in nets]
        for nets in (given, [(w, d, 0) for w, d in sizes["bounded"]])
    )  # fmt: skip
    ladder = [s for s in ladder if work(s) <= sizes["often" if s["seed"] else "most"]]

    def scale(part: Mapping, images: int, width: int, steps: int, count: float) -> dict:
        """Return ours over the paper's, the largest width for the largest."""
        widest = max(part.get("widths", [part.get("width")]))
        longest = part["steps"] if isinstance(part["steps"], int) else part["steps"][-1]
        ours = {"images": part["images"][0] / images, "width": widest / width}
        ours |= {"training": longest / steps, "networks": count}
        return {key: min(1.0, value) for key, value in ours.items()}

    wide, pairs_ = max(SETTINGS["paper"]["factors"]["widths"]), design["seeds"] * len(grid)
    grades = {
        "curves": scale(one, 60_000, 300, 2**18, one["seeds"] / 5),
        "factors": scale(design, 50_000, wide, 2**18, pairs_ / PAIRS),
        # About a third fit true labels and decide; 66 show that a correlation of .6 is above .3
        "population": scale(many, 50_000, 2**16, 2**19, many["networks"] / 3 / 66),
        "sizes": scale(sizes, 50_000, 2**16, 2**19, sizes["seeds"] / 5),
    }
    groups = {
        # One spec a network first, so that no two processes train the same one.
        "planes": (planes, [f | {"planes": one["planes"]} for f in followed], None, "curves"),
        "curves": (curves, along, None, "curves"),
        "maps": (maps, [f | {"grid": one["grid"]} for f in followed[:1]], None, "curves"),
        "factors": (networks, factors, len(CHANGES), "factors"),
        "population": (networks, population, 1, "population"),
        "sizes": (networks, [s | {"paths": 0, "kept": True} for s in ladder], 1, "sizes"),
        "points": (points, ladder + bounded_, None, "sizes"),
    }
    return {
        name: Experiment(fn, specs, batch, {"device": device}, grades[grade])
        for name, (fn, specs, batch, grade) in groups.items()
    }


PAPER, OURS = "Novak et al. 2018", "ours: the figure carries no number"
_AT = "at the three training points"


def _claim(name: str, figure: str, statement: str, *rules: Rule, **more) -> Claim:
    return Claim(name, PAPER, statement, rules if rules[1:] else rules[0], figure, **more)


def _pair(quantity: str, smallest: float | None = None, source: str = OURS, **more) -> Rule:
    return Rule(f"{quantity}, a value a pair", smallest, source, "sign", minimum=PAIRS, **more)


def _each(statistic: str, *arguments, **more) -> tuple[Rule, ...]:
    return tuple(Rule(f"{statistic}, {title}", *arguments, **more) for title in TITLES.values())


_FOLLOWED = Gate("least train accuracy of the networks followed", least=NEARLY)
_BOTH = Gate("pairs with both networks at 100% train accuracy", least=PAIRS)
_BIASES = "networks had biases, the paper's have none"
_STEPS = f"{_BIASES}; pairs differed in steps"
_WITHOUT = "without augmentation minus with"
_J = "log10 of |J|"
CLAIMS: tuple[Claim, ...] = (
    _claim(
        *("N1", "Fig. 2", "|J| dips at training points, not along an ellipse through noise"),
        Rule(f"{_J} midway minus {_AT}, different classes", 1, "Fig. 2: 3 to 6", paper=5),
        Rule(f"{_J} midway minus {_AT}, same class", 1, "Fig. 2: 3 to 6", paper=5.5),
        Rule(f"{_J} midway minus at the three points, noise", 0.1, "Fig. 2", "equivalence"),
        gate=_FOLLOWED,
        corrected=f"{_BIASES}; the two kinds of ellipse were not told apart",
        why="the dip is as deep as the network is sure: fewer steps would make it shallower",
    ),
    _claim(
        *("N2", "Fig. 2", "Transitions are rarer at training points, between classes only"),
        Rule(f"ln of density midway minus {_AT}, different classes", 0.2, OURS, paper=0.9),
        Rule("ln of density midway minus at the three points, noise", 0.2, OURS, "equivalence"),
        gate=_FOLLOWED,
        corrected=f"{_BIASES}; the figure has no clear dip within a class",
        why="regions move away from training points late; longer training would test it",
    ),
    _claim(
        *("N3", "Fig. 2", "Midway, |J| and transitions are lower within a class"),
        Rule(f"{_J} midway, different classes minus same class", 0.2, OURS, paper=1),
        Rule("ln of density midway, different classes minus same class", 0.2, OURS, paper=1.2),
        gate=_FOLLOWED,
        corrected=_BIASES,
        why="midway between classes lies a decision boundary; |J| at equal confidence tests it",
    ),
    _claim(
        *("N4", "Fig. 4", "Random labels raise |J|, most where |J| is small"),
        _pair("ln |J| with random minus with true labels"),
        Rule("the same in the third of pairs with the least |J|", test="sign"),
        gate=_BOTH,
        corrected=f"{_BIASES}; the gap of random labels is large by construction",
        why="fitting noise takes steep functions; equal confidence in both would test it",
    ),
    _claim(
        *("N5", "Fig. 4", "Training without augmentation raises the gap and |J|"),
        _pair("test accuracy with augmentation minus without (the gap at 100%), all", 0.05),
        _pair(f"ln |J| {_WITHOUT}, all pairs as they are", 0.69),
        _pair(f"ln |J| {_WITHOUT}, where it raised test accuracy as in the paper", 0.69),
        corrected=f"{_STEPS}, and the gap was compared where one had not fitted",
        why="augmented networks that have not fitted are less sure; more steps would test it",
    ),
    _claim(
        *("N6", "Fig. 4", "HardSigmoid in place of ReLU raises the gap and |J|"),
        _pair("gap of HardSigmoid minus ReLU", 0.02),
        _pair("ln |J| of HardSigmoid minus ReLU", 0.2),
        gate=_BOTH,
        corrected=_STEPS,
        why="a saturating unit has slope 1/6 at most here; the slope 1 of HardTanh would test it",
    ),
    _claim(
        *("N7", "Fig. 4", "Full-batch training raises the gap and |J|"),
        _pair("gap after full batches minus after minibatches, equal steps", 0.02),
        _pair("ln |J| after full batches minus after minibatches, equal steps", 0.2),
        gate=_BOTH,
        corrected=f"{_STEPS} (equal epochs were compared)",
        why="the paper's full batch may be L-BFGS; pairs with it would test it",
    ),
    _claim(
        *("N8", "Fig. 4", "Transitions follow the gap for labels and augmentation"),
        _pair("ln of transitions with random minus with true labels, all pairs"),
        _pair(f"ln of transitions {_WITHOUT}, all pairs"),
        corrected=f"{_STEPS}; the rows of activation and batch were never seen: no verdict on them",
        why="the paper's effect of labels is slight; wider networks would test it",
    ),
    _claim(
        *("N9", "Fig. 5", "|J| and the gap are positively rank-correlated on every data set"),
        *_each("Spearman of |J| and gap, true labels", 0.3, OURS, "correlation"),
        Rule("the same at equal train loss, a value a data set", test="correlation"),
        corrected=f"{_BIASES}; both kinds of labels were pooled, which makes a correlation alone",
        why="on few images all gaps are large and alike; more images would test it",
    ),
    _claim(
        *("N10", "Fig. 5", "Transitions go with the gap less than |J| does"),
        *_each("Spearman with the gap, |J| minus transitions, true labels", 0.2, OURS, minimum=10),
        corrected=f"{_BIASES}; |correlation| < 0.5 was a bar of our own",
        why="transitions count units, so width sets them; their number a unit would test it",
    ),
    _claim(
        *("N11", "Fig. 6", "Misclassified points have higher |J|, and some a small one"),
        Rule("AUC of |J| for misclassified points, minus 0.5", 0.1, OURS, range=(-0.5, 0.5)),
        Rule("share of them below the correct points' median |J|", 0.01, OURS, range=(0, 1)),
        corrected=_BIASES,
        why="|J| falls with confidence; AUC at equal confidence would test it",
    ),
    _claim(
        *("N12", "Fig. 6", "The cross-entropy alone bounds |J_y| and tells |J|"),
        Rule("share of correct points inside the bounds", 0.5, "ours: most", range=(0, 1)),
        Rule("share of misclassified points inside the bounds", 0.5, "ours: most", range=(0, 1)),
        Rule("share inside minus that with other points' logit gradients", range=(-1, 1)),
        Rule("log10 2 minus median |log10 (approximation / |J|)|, correct points"),
        Rule("log10 2 minus median |log10 (approximation / |J|)|, misclassified points"),
        corrected="the peak at ln 2 is algebra; the bounds and the approximation are not",
        why="they take logit gradients for orthogonal and the other classes for equally likely",
    ),
    _claim(
        *("N13", "Fig. 1", "The best gap at the largest width is smaller than at the smallest"),
        Rule("least gap at the smallest width that fitted minus at the largest", 0.02, OURS),
        gate=Gate("decades of width at 100% train accuracy", least=3),
        corrected=f"{_BIASES}; three widths from 64 to 256 on 500 images cannot show it",
        why="three decades of width that fit all images take networks beyond this machine",
    ),
    _claim(
        *("N14", "Fig. 1", "The lowest gap is not at the lowest train loss"),
        Rule("0.3 minus Spearman of train loss and gap, CIFAR-10, true labels", minimum=10),
        Rule("share of networks with less train loss than the best one, minus 0.5, by seed"),
        why="among networks at 100% the loss says how long they were there; equal loss tests it",
    ),
    _claim(
        *("N15", "Fig. 2", "|J| is higher along noise than midway between classes"),
        Rule(f"{_J} along noise minus midway between different classes", paper=0.5),
        gate=_FOLLOWED,
        why="noise is far from all images, where a homogeneous network need not be steep",
    ),
    _claim(
        *("N16", "Lecture", "The softmax's Jacobian tells the gap better than the logits'"),
        *_each("Spearman with the gap, softmax minus logits, true labels", minimum=10),
        why="the softmax's Jacobian knows confidence; confidence alone as a measure tests it",
    ),
    _claim(
        *("N17", "Fig. 3", "Training moves boundaries away from training points"),
        Rule("ln of boundaries near training points over elsewhere, before minus after training"),
        gate=_FOLLOWED,
        why="margins grow with training; the same counts over time would test it",
    ),
    _claim(
        *("N18", "Section 3", "Without biases the code is constant along rays"),
        Rule("0.5 minus the changes of state along rays from 0, all units", test="every"),
        kind="theorem",
    ),
)


def unpacked(table: pd.DataFrame) -> pd.DataFrame:
    """Return results, those of the embedded digits as of MNIST, without the training's own text."""
    table = table.drop(columns="training", errors="ignore")
    return table.replace({"dataset": STAND_INS}) if "dataset" in table else table


def statistics(table: pd.DataFrame) -> dict[str, Any]:
    """Return for every claim its numbers, in one list a part where it has several.

    `table` is `unpacked` results of the experiments of `plan`, whose names are the outer index.
    """
    found: dict[tuple[str, int], Any] = {}
    for name, numbers in STATISTICS.items():
        if name in table.index:
            found |= numbers(table.loc[[name]].reset_index(drop=True))
    values = {}
    for claim in CLAIMS:
        parts = [found.get((claim.id, i)) or [math.nan] for i in range(len(claim.rules))]
        values[claim.id] = parts if isinstance(claim.rule, tuple) else parts[0]
    return values


def gates(table: pd.DataFrame) -> dict[str, float]:
    """Return the measured number of every gate, NaN for what is not measured."""
    known = {name: table.loc[[name]] for name in table.index.unique(0)}
    least = known["curves"].train_accuracy.min() if "curves" in known else math.nan
    numbers = dict.fromkeys(("N1", "N2", "N3", "N15", "N17"), least)
    if "factors" in known:
        rows = pairs(known["factors"])
        for claim, factor in {"N4": LABELS, "N6": HARD, "N7": FULL_BATCH}.items():
            numbers[claim] = int((rows.both & (rows.factor == factor)).sum())
    if "sizes" in known:
        width = known["sizes"].width[fitted(known["sizes"])].astype(float)
        numbers["N13"] = math.log10(width.max() / width.min()) if len(width) else math.nan
    return numbers


def pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return networks that differ in one factor only, after equally many steps: a row a pair.

    The columns ``..._worse`` are of the network that the paper expects to have the larger gap,
    ``..._better`` of the other; ``both`` says whether both have fitted their labels.
    """
    keys, tables = ["seed", "width", "depth", "step"], []
    columns = [*MEASURED, "train_accuracy", "train_loss"]
    for factor in FACTORS:
        order = (BASE, factor) if factor == AUGMENTATION else (factor, BASE)
        worse, better = (rows.loc[rows.factor == name, [*keys, *columns]] for name in order)
        own = worse.merge(better, on=keys, suffixes=("_worse", "_better"), validate="1:1")
        own = own[own.step == own.groupby(keys[:3]).step.transform("max")]
        tables.append(own.assign(factor=factor))
    both = pd.concat(tables, ignore_index=True)
    least = both[["train_accuracy_worse", "train_accuracy_better"]].astype(float).min(axis=1)
    return both.assign(both=least >= 1 - 1e-9)


def of_pairs(rows: pd.DataFrame) -> dict[tuple[str, int], list[float]]:
    """N4 to N8: the worse minus the better network, or the logarithm of their ratio, by pair."""
    rows = pairs(rows)
    names = {side: {f"{m}_{side}": m for m in MEASURED} for side in ("worse", "better")}
    worse, better = (rows[list(n)].astype(float).rename(columns=n) for n in names.values())
    more, ln = worse - better, np.log(worse.where(worse > 0) / better.where(better > 0))
    size = np.log(worse.jacobian * better.jacobian)
    of = {factor: rows.factor == factor for factor in FACTORS}
    fit = of[LABELS] & rows.both
    low = fit & (size <= size[fit].quantile(1 / 3))
    helped = of[AUGMENTATION] & (more.test_accuracy < 0)
    found = {
        ("N4", 0): ln.jacobian[fit],
        ("N4", 1): ln.jacobian[low],
        ("N5", 0): -more.test_accuracy[of[AUGMENTATION]],
        ("N5", 1): ln.jacobian[of[AUGMENTATION]],
        ("N5", 2): ln.jacobian[helped],
        ("N8", 0): ln.transitions[of[LABELS]],
        ("N8", 1): ln.transitions[of[AUGMENTATION]],
    }
    for claim, factor in {"N6": HARD, "N7": FULL_BATCH}.items():
        fit = of[factor] & rows.both
        found |= {(claim, 0): more.gap[fit], (claim, 1): ln.jacobian[fit]}
    return {key: values.tolist() for key, values in found.items()}


def of_population(rows: pd.DataFrame) -> dict[tuple[str, int], Any]:
    """N9, N10, N14 (first part), N16: rank correlations with the gap, within labels."""
    found: dict[tuple[str, int], Any] = {("N9", 3): {}}
    table = correlations(rows).set_index(["dataset", "measure", "labels"])
    for part, name in enumerate(TITLES):
        own = rows[fitted(rows) & (rows.dataset == name) & (rows.labels == TRUE)]
        if (name, "jacobian", TRUE) not in table.index:
            continue
        known = table.loc[(name, "jacobian", TRUE)]
        if not math.isnan(known.spearman):
            found["N9", part] = {"r": known.spearman, "n": int(known.networks), "rank": True}
        found["N9", 3][name] = [table.partial.get((name, "jacobian", TRUE), math.nan)]
        for claim, other in (("N10", "transitions"), ("N16", "logit_jacobian")):
            some = own.dropna(subset=[other])
            one, two = (correlation_by_member(some[m], some.gap) for m in ("jacobian", other))
            found[claim, part] = list(np.subtract(one, two))
        if name == CIFAR:
            loss = correlation_by_member(own.train_loss, own.gap)
            found["N14", 0] = [0.3 - value for value in loss]
    return found


def of_sizes(rows: pd.DataFrame) -> dict[tuple[str, int], list[float]]:
    """N13, N14 (second part): the least gap by width, and the train loss of the best network."""
    rows, lost, rank = rows[fitted(rows)], [], []
    small, large = rows.width.min(), rows.width.max()
    for _, own in rows.groupby("seed"):
        least = own.groupby("width").gap.min()
        lost.append(float(least.get(small, math.nan) - least.get(large, math.nan)))
        best, others = own.loc[own.gap.astype(float).idxmin()], len(own) - 1
        below = (own.train_loss < best.train_loss).sum()
        rank.append(float(below / others - 0.5) if others else math.nan)
    return {("N13", 0): lost, ("N14", 1): rank}


def of_points(rows: pd.DataFrame) -> dict[tuple[str, int], list[float]]:
    """N11, N12: one number a network, of its single test points."""
    found: dict[tuple[str, int], list[float]] = {}
    for _, own in rows.dropna(subset=["norm"]).groupby(["width", "depth", "seed"]):
        own = own.assign(correct=own.correct.astype(bool))
        parts = {"N12": bounded(own)}
        if fitted(own).all():
            parts["N11"] = misclassified(own)
        for claim, values in parts.items():
            for part, value in enumerate(values):
                found.setdefault((claim, part), []).append(value)
    return found


STATISTICS = {"curves": along, "planes": in_planes, "factors": of_pairs}
STATISTICS |= {"population": of_population, "sizes": of_sizes, "points": of_points}
