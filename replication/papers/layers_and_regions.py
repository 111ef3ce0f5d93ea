"""Zhang, Bengio and Singer: claims L1 to L10. Hanin and Rolnick: claims R1 to R7.

A layer is reset alone or with others, to its weights at a share of the training or to fresh draws,
without retraining; position 0 is the first layer, chance is 0.1. Regions are counted exactly: a
plane runs through three training images of different classes and is cut to a square of `SQUARE`
times their circumcircle. Statistics are one a seed. At full, in PFLOP (6 x multiply-adds x images x
epochs): FCN 0.06 and as much on random labels, regions 0.41, widths 0.21, CIFAR-10 0.15, five
layers 0.08, questions 0.16; ResNet-20, the same frozen, the convnet and, last, the ResNet on random
labels 1.46 each.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from replication import data
from replication._core.profiles import EVIDENCE
from replication.claims import Claim, Gate, Rule
from replication.papers import layer_measurements as measured
from replication.papers._correlation import correlation, parts_by_seed
from replication.papers.experiment import Experiment, by_profile

NOTEBOOK = measured.NOTEBOOK
TRUE, RANDOM, SHARES = measured.TRUE, measured.RANDOM, measured.SHARES
WHOLE, SINGLE, JOINT = measured.WHOLE, measured.SINGLE, measured.JOINT
HE, ZERO, SQUARE = measured.HE, measured.ZERO, measured.SQUARE
DEPTHS = (1, 2, 3, 6)  # hidden layers
EARLY = 0.01  # share of the training: the paper's epoch 1 of 100
RATES = LOW, RATE, HIGH = (0.0001, 0.001, 0.01)  # of Adam
PLANE = f"plane {SQUARE:g}"  # regions in a square of `SQUARE`
LEAST = 0.02  # accuracy lost below which there is nothing to restore
ROBUST = 0.1  # accuracy lost up to which a block counts as robust
FIVE = ("fc2", "fc3", "fc4", "fc5", "fc6")  # layers 2 to 6 of the FCN of five hidden layers
ON_CIFAR = ("cifar", "resnet", "resnet frozen", "convnet", "resnet random")
OTHERS = tuple(f"block{stage}_{block}" for stage in (1, 2, 3) for block in (2, 3))
_ALL, _CIFAR, _WIDTHS = (60_000, 10_000), (50_000, 10_000), (16, 32, 64, 128, 256, 512)
_LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
SETTINGS = by_profile(
    {  # at smoke, quick, full and paper; images: training and test
        "fcn": {
            "images": ((100, 50), (500, 300), _ALL, _ALL),
            "epochs": (5, 12, 100, 100),
            "seeds": (1, 3, 5, 5),
            "width": (32, 128, 256, 256),
            "widths": ((16, 32), (16, 32, 128), _WIDTHS, _WIDTHS),
            "cifar_widths": ((32,), (128,), (16, 256), (16, 256, 512)),
            "draws": (2, 2, 10, 10),
            "points": (10, 10, 500, 1000),  # test images for the Jacobian
            "paths": (1, 1, 5, 20),  # test images for transitions, through all translations
        },
        "resnet": {
            "images": ((40, 40), (100, 60), _CIFAR, _CIFAR),
            "epochs": (1, 20, 40, 100),
            "seeds": (1, 1, 3, 5),
            "depth": (8, 8, 20, 20),  # the paper: bottleneck networks of 50, 101 and 152 layers
            "width": (0.125, 0.125, 1.0, 1.0),
            "draws": (1, 1, 3, 10),
            "points": (2, 2, 50, 200),
            "shown": (40, 100, 1000, 10_000),  # images on which resets are measured
        },
        "convnet": {  # what differs from the ResNet; none at smoke, for its time
            "epochs": (None, 20, 20, 100),
            "depth": (None, 0, 0, 0),  # the eleven layers are fixed
            "width": (None, 0.0625, 0.5, 1.0),
        },
        "regions": {
            "images": ((100, 50), (100, 50), _ALL, _ALL),
            "epochs": (5, 10, 40, 40),
            "seeds": (1, 3, 5, 5),
            "neurons": ((12, 24), (12, 24), *2 * ((48, 96, 192, 384, 768),)),
            "depths": ((1, 3), DEPTHS, DEPTHS, DEPTHS),
            "lines": (3, 2, 50, 100),
            "planes": (1, 1, 2, 5),
            "largest": (24, 24, 384, 384),  # neurons up to which planes are counted
            "points": (3, 3, 100, 200),  # test images for the distances
            "corruptions": ((0.0, 1.0), (0.0, 1.0), _LEVELS, _LEVELS),
            "picture": (4, 8, 32, 32),  # width of three layers
            "grid": (40, 100, 120, 200),  # points a side
        },
        "questions": {
            "images": ((100, 50), (300, 200), (5000, 10_000), (5000, 10_000)),
            "steps": (2**6, 2**7, 2**12, 2**13),
            "seeds": (1, 3, 5, 5),
            "widths": ((64,), (64, 256), *2 * ((16, 64, 256, 1024),)),
            "features": ((), (512,), (8192,), (8192,)),  # random, more than images
            "points": (10, 20, 500, 1000),
            "lines": (3, 5, 100, 100),
            "loss": (1.0, 0.3, 0.2, 0.2),  # nats, the train loss at which functions are compared
        },
    }
)


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the experiments, what claims need first; random-label ResNets, the longest, last."""
    fcn, resnet, other, count, question = map(SETTINGS[profile].get, SETTINGS["full"])
    evidence = profile in EVIDENCE and dataset == "auto"  # which knows no other images
    digits = "mnist" if evidence else data.load(dataset, subset=(10, 10)).name
    colours = evidence or (dataset == "auto" and data.locate("cifar10"))
    colour = "cifar10" if colours else digits
    epochs = count["epochs"] / 20  # the paper's are not known; its accuracy is reached after 20
    precision = "auto" if profile in EVIDENCE else "float32"
    experiments = {}

    def add(name: str, fn: Callable, specs: Sequence, scale: Mapping, **ours: float) -> None:
        """Add an experiment with its ratios to the paper's: images, 100 epochs, five networks."""
        ratios = {"images": scale["images"][0] / (50_000 if name in ON_CIFAR else 60_000)}
        ratios |= {"width": 1.0, "networks": scale["seeds"] / 5}
        ratios |= {"training": scale.get("epochs", 100) / 100} | ours
        ratios = {key: min(1.0, ratio) for key, ratio in ratios.items()}
        experiments[name] = Experiment(fn, specs, options={"device": device}, scale=ratios)

    def add_resets(name: str, nets: Sequence, scale: Mapping, width: float, *joint, **changed):
        """Add resets of each layer and `joint` ones: to checkpoints and to fresh draws."""
        reading = {"shares": SHARES, "draws": scale["draws"], "points": scale["points"]}
        reading |= {"paths": scale.get("paths", 0), "shown": scale.get("shown")}
        reading |= {"joint": joint, "joint_shares": 2} | changed
        add(name, measured.resets, [net | reading for net in nets], scale, width=width)

    def add_counts(name: str, fn: Callable, nets: Sequence, width: float, **changed) -> None:
        reading = {key: count[key] for key in ("lines", "points")}
        reading |= {"at": measured.stages(count), "sizes": [SQUARE], "around_zero": False} | changed
        planes = [count["planes"] * (net["net"]["neurons"] <= count["largest"]) for net in nets]
        specs = [net | reading | {"planes": n} for net, n in zip(nets, planes, strict=True)]
        add(name, fn, specs, count, width=width, training=epochs)

    brief = {"shares": SHARES[:1], "draws": 0, "points": 0, "paths": 0}
    upper, width = [["fc2", "fc3", "fc4"], ["fc3", "fc4"]], fcn["width"]
    add_resets("fcn", measured.fcns(fcn, digits, width), fcn, width / 256, *upper)
    shapes = [[n // d] * d for n, d in product(count["neurons"], count["depths"])]
    ratio = max(count["neurons"]) / 768
    for name, labels in (("regions", TRUE), ("regions random", RANDOM)):
        nets = [measured.counted(count, digits, shape, labels) for shape in shapes]
        add_counts(
            name, measured.regions, [n for seed in zip(*nets, strict=True) for n in seed], ratio
        )
    narrow = [count["picture"]] * 3
    nets = [measured.counted(count, digits, narrow, c) for c in count["corruptions"]]
    drawn = [nets[0][0] | {"at": [0, count["epochs"]]}, nets[-1][0] | {"at": [count["epochs"]]}]
    nets += [measured.counted(count, digits, narrow, TRUE, rate) for rate in RATES if rate != RATE]
    add_counts("rates", measured.regions, [n for own in nets for n in own], narrow[0] / 32)
    drawn = [net | {"grid": count["grid"]} for net in drawn]
    add("plane", measured.picture, drawn, count, width=narrow[0] / 32, training=epochs)
    small = [shape for shape in shapes if sum(shape) <= count["largest"]]
    nets = measured.untrained(count, digits, small)
    add_counts("starts", measured.starts, nets, ratio, sizes=measured.SIZES, around_zero=True)
    widths = {"widths": (digits, 60_000, [w for w in fcn["widths"] if w != width])}
    widths |= {"cifar": (colour, 50_000, fcn["cifar_widths"])} if colour != digits else {}
    for name, (images, most, some) in widths.items():
        whole = fcn | {"images": (min(fcn["images"][0], most), fcn["images"][1])}
        nets = [net for w in some for net in measured.fcns(whole, images, w)]
        add_resets(name, nets, whole, max(some) / 512, **brief)
    deep, every = measured.fcns(fcn, digits, width, depth=5), [list(FIVE), list(FIVE[::2])]
    add_resets("deep", deep, fcn, width / 256, *every, **brief | {"joint_shares": 1})
    reading = {key: question[key] for key in ("points", "lines", "loss")}
    nets = [net | reading for net in measured.solved(question, digits)]
    add("questions", measured.solutions, nets, question)
    nets = measured.fcns(fcn, digits, width, labels=RANDOM)
    add_resets("fcn random", nets, fcn, width / 256, *upper)
    few, ratio = {"shares": [0.0, EARLY, 0.1]}, resnet["width"] * 16 / 64
    blocks = list(OTHERS) if resnet["depth"] > 8 else ["block2_1", "block3_1"]
    nets = measured.convnets(resnet, colour, precision)
    add_resets("resnet", nets, resnet, ratio, blocks, **few)
    nets = measured.convnets(resnet, colour, precision, frozen=blocks)
    add_resets("resnet frozen", nets, resnet, ratio, **brief)
    if other:
        other = resnet | other
        nets = measured.convnets(other, colour, precision)
        add_resets("convnet", nets, other, other["width"], **few)
    shrunk = max(1, resnet["images"][0] // 5000)  # so few without batch norm can be memorised
    noise = {"images": (resnet["images"][0] // shrunk, resnet["images"][1])}
    noise = resnet | noise | {"epochs": resnet["epochs"] * shrunk}
    nets = measured.convnets(noise, colour, precision, labels=RANDOM)
    add_resets("resnet random", nets, noise, ratio, blocks, **few)
    return experiments


ZHANG, HANIN = "Zhang et al. 2019", "Hanin and Rolnick 2019"
_READ = "the paper's figure, read by eye"
_OURS = "ours: the abstract gives no number"


def _same(statistic: str, smallest: float, source: str, **options) -> Rule:
    return Rule(statistic, smallest, source, "equivalence", **options)


def _depths(statistic: str, smallest: float) -> tuple[Rule, ...]:
    return tuple(_same(f"depth {d}: {statistic}", smallest, _OURS) for d in DEPTHS)


_WAS_ABSOLUTE = "the largest |deviation| over depths was judged: unsigned, and biased upwards"
_CHANGES = product(("true", "random"), ("on a line", "in a plane"), ("during training", "after"))
_RESNET = Gate("least test accuracy of the ResNets", least=0.7)
_CONVNET = Gate("least test accuracy of the convnets", least=0.7)
CLAIMS: tuple[Claim, ...] = (
    Claim(
        *("L1", ZHANG, "Re-randomising any layer of the fully connected network leaves guessing"),
        _same("test accuracy with a layer drawn anew minus 0.1, mean of draws, largest over layers",
              0.1, f"Fig. 1a, at most 0.18; {_READ}", paper=0.08),
        *("Fig. 1a", "accuracy at most 0.18 (classifier)"),
        status="confirmatory",
        corrected="guessing was judged by a failure to exceed 0.2; it is an equivalence",
        why="a classifier drawn anew keeps what little its wide input says; width would test it",
    ),
    Claim(
        *("L2", ZHANG, "The first layer is critical, the others stand re-initialisation"),
        (
            Rule("accuracy lost by re-initialising the first layer minus any other, least",
                 0.2, f"two thirds of Fig. 1a's; {_READ}", paper=0.30),
            _same("accuracy lost by re-initialising another layer, largest",
                  0.1, f"Fig. 1a, 0.06; {_READ}", paper=0.06),
        ),
        *("Fig. 1a", "0.36 and at most 0.06"),
        status="confirmatory",
        corrected="0.05 was asked of the others, of which the paper's lose up to 0.06",
        why="few images leave upper layers no room to move; more images would test it",
    ),
    Claim(
        *("L3", ZHANG, "The first layer's weights after 1% of training give back its accuracy"),
        Rule("share of the first layer's loss that its weights at 1% of training give back",
             0.5, "ours: more than half", paper=0.89),
        *("Fig. 1a", "0.89 after epoch 1 of 100"),
        status="confirmatory",
        corrected="10% of training was judged; the paper's epoch 1 of 100 is 1%",
        why="1% is few steps where images are few; more images would test it",
    ),
    Claim(
        *("L4", ZHANG, "Of the fully connected network not the critical layer moves most"),
        tuple(Rule(f"ln of the largest distance of another layer over the first's ({norm})")
              for norm in ("L2 / sqrt(n)", "Linf")),
        *("Fig. 1b, 1c", "layer 4 moves most"),
        status="confirmatory",
        corrected="a mean over three architectures, whose signs differ, was judged",
        why="the norm decides: a small read-out moves far per weight; plain L2 is drawn beside",
    ),
    Claim(
        *("L4v", ZHANG, "Of a plain convnet robust layers moved less"),
        Rule("Spearman correlation over layers of accuracy lost with L2 / sqrt(n)",
             test="correlation"),
        *("App. D", "VGG-16: a relation with L2, none with Linf"), gate=_CONVNET,
        why="not VGG-16 but eleven layers of half its width; VGG-16 would test it",
    ),
    Claim(
        *("L5", ZHANG, "Upper layers grow robust with width"),
        Rule("minus the correlation of ln width with accuracy lost, mean of upper layers",
             test="correlation", paper=0.88),
        *("Fig. 2a", "lost 0.53 at width 16, 0.01 at 512"),
        why="wide layers move less from their start; distances by width would test it",
    ),
    Claim(
        *("L6", ZHANG, "Layers that are robust alone are not robust together"),
        (
            Rule("accuracy lost with layers 2 to 6 reset minus the largest of one alone",
                 0.3, "ours: a third of Fig. 11's", paper=0.82),
            _same("accuracy lost with layers 2, 4 and 6 reset",
                  0.2, f"ours: twice Fig. 11's; {_READ}", paper=0.08),
        ),
        *("Fig. 11", "error 0.896 and 0.10"),
        why="with few images upper layers barely move and may all be reset; more would test it",
    ),
    Claim(
        *("L7", ZHANG, "On CIFAR-10 upper layers are less robust than on MNIST"),
        Rule("accuracy lost on CIFAR-10 minus MNIST, upper layers, at the largest equal width",
             paper=0.13),
        *("Fig. 2", "at width 256: 0.15 and 0.03"),
        corrected="the mean over widths took in 16, where the paper's own gap is turned round",
        why="a network near chance has little to lose; relative losses would test it",
    ),
    Claim(
        *("L9", ZHANG, "Robust residual blocks bear re-randomising, the final layer does not"),
        Rule("accuracy lost with the final layer drawn anew minus with a robust block, mean",
             0.2, "ours: a quarter of what can be lost"),
        *("Fig. 4", "heatmap"), gate=_RESNET,
        why="ResNet-20 has few blocks a stage, all may be needed; a deeper one would test it",
    ),
    Claim(
        *("L10", ZHANG, "Training around frozen blocks costs little where resetting them breaks"),
        Rule("test accuracy with all but first blocks frozen at the start, minus reset at the end",
             0.1, "ours: three times what freezing costs in Table 1"),
        *("Table 1, Fig. 6", "ResNet-50: error 8.4 whole, 11.7 frozen"), gate=_RESNET,
        why="if blocks hardly moved resetting breaks nothing; longer training would test it",
    ),
    Claim(
        *("R1", HANIN, "Regions on a line grow linearly with neurons, whatever the depth"),
        (
            *_depths("slope of ln regions on ln N minus 1", 0.2),
            _same("ln of regions, deepest over shallowest at equal N", math.log(2), _OURS),
        ),
        corrected=_WAS_ABSOLUTE,
        why="neurons whose boundary misses the images count in N; lines of any place would test it",
    ),
    Claim(
        *("R2", HANIN, "Regions in a plane are about N^2 / 2"),
        _depths("ln of regions over N^2 / 2", math.log(3)),
        *("also 1906.00904", "curves"), corrected=_WAS_ABSOLUTE,
        why="the constant hangs on the square's size, which is varied beside",
    ),
    Claim(
        *("R3", HANIN, "The distance to the nearest boundary falls as 1 / N"),
        _depths("slope of ln mean distance on ln N plus 1", 0.25),
        corrected=_WAS_ABSOLUTE,
        why="wider first layers see more of the image; equal inputs a layer would test it",
    ),
    Claim(
        *("R4", HANIN, "Training leaves the number of regions of one order, on random labels too"),
        tuple(_same(f"ln of regions {where}, {when} over before, {labels} labels",
                    math.log(3), _OURS) for labels, where, when in _CHANGES),
        *("also 1906.00904", "curves"),
        corrected="|ln| hid the direction, and 500 images were another scale",
        why="boundaries gather at the images in training; lines elsewhere would test it",
    ),
    Claim(
        *("R5", HANIN, "Three layers of 32 stay near N^2 / 2 regions whatever the labels"),
        Rule("ln of 3 N^2 / 2 over the most regions in a plane, over training and corruptions"),
        *("1906.00904", "bound 4,608, second hand"),
        why="a square of another size holds other numbers, as varied under R2",
    ),
    Claim(
        *("R6", HANIN, "Rate 0.001 gives the most regions, 0.01 fails to learn"),
        (
            Rule("ln of regions in a plane at rate 0.001 over at 0.0001"),
            Rule("test accuracy at rate 0.001 minus at 0.01", 0.1, "ours: what a failure costs"),
        ),
        *("1906.00904", "second hand"),
        why="batch and epochs are not stated: a rate of 0.01 learns with others",
    ),
    Claim(
        *("R7", HANIN, "Without biases regions of a plane through 0 collapse"),
        (
            Rule("ln of regions with biases of SD 0.001 over without, mean of sizes and depths",
                 math.log(2), "ours: half"),
            _same("without biases: slope of ln regions on ln N minus 1, mean of depths",
                  0.25, _OURS),
        ),
        kind="sanity",
    ),
)  # fmt: skip


GROUPS = (["fcn"], ["resnet", "resnet frozen"], ["regions", "regions random"], ["rates"])
GROUPS += (["starts"], ["fcn", "widths"], ["deep"], ["convnet"])


def statistics(table: pd.DataFrame) -> dict[str, list]:
    """Return for every claim its numbers: one a seed, in one list a part; NaN where undefined.

    `table` are the `tidy` results of all experiments, whose names are the outer index.
    """
    names = table.index.get_level_values(0)
    fcn, resnet, regions, rates, starts, widths, deep, convnet = (
        table[names.isin(some)] for some in GROUPS
    )
    first = regions[(regions.epoch == 0) & (regions.labels == TRUE)]
    apart = (_by_width(table[names == "cifar"]) - _by_width(widths)).dropna()
    found = {
        ("L1", "L2", "L2", "L3", "L4", "L4"): (fcn, _fully_connected),
        ("L4v",): (convnet, _moved),
        ("L5",): (widths, _width),
        ("L6",) * 2: (deep, _together),
        ("L9", "L10"): (resnet, _residual),
        ("R1",) * 5: (first, _lines),
        ("R2",) * 4: (first, _constants),
        ("R3",) * 4: (first, _distances),
        ("R4",) * 8: (regions, _changed),
        ("R5", "R6", "R6"): (rates, _rates),
        ("R7",) * 2: (starts, _collapse),
    }
    values: dict[str, list] = {claim.id: [] for claim in CLAIMS}
    values["L7"].append(apart.sort_index().groupby("seed").last().tolist() or [math.nan])
    for ids, (own, statistic) in found.items():
        for name, part in zip(ids, parts_by_seed(own, statistic, len(ids)), strict=True):
            values[name].append(part)
    return {name: parts[0] if len(parts) == 1 else parts for name, parts in values.items()}


def gates(table: pd.DataFrame) -> dict[str, float]:
    """Return the least test accuracy of the ResNets and of the convnets for the claims on them."""
    whole = table[table.kind == WHOLE]
    least = whole.groupby(level=0).test_accuracy.min()
    nets = {"L9": "resnet", "L10": "resnet", "L4v": "convnet"}
    return {claim: least.get(name, math.nan) for claim, name in nets.items()}


def _initial(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the single layers that were reset to their initial weights."""
    return rows[(rows.kind == SINGLE) & (rows.share == 0)].set_index("position")


def _fully_connected(rows: pd.DataFrame) -> list[float]:
    single, start = rows[rows.kind == SINGLE], _initial(rows)
    drawn = single[single.share.isna()].groupby("position").test_accuracy.mean()
    early = single[single.share == EARLY].set_index("position").lost
    first, others = start.lost.loc[0], start.lost.drop(0).max()
    given = 1 - early.loc[0] / first if first >= LEAST else math.nan
    far = [math.log(start[norm].drop(0).max() / start[norm].loc[0]) for norm in ("rms", "linf")]
    return [drawn.max() - 0.1, first - others, others, given, *far]


def _by_width(rows: pd.DataFrame) -> pd.Series:
    """Return the accuracy lost, mean of upper layers, by seed and width."""
    upper = _initial(rows).query("position > 0")
    return upper.groupby(["seed", "width"]).lost.mean().astype(float)


def _width(rows: pd.DataFrame) -> list[float]:
    lost = _by_width(rows).droplevel("seed")
    known = len(lost) > 2 and np.ptp(lost) > 0
    return [-np.corrcoef(np.log(lost.index.astype(float)), lost)[0, 1] if known else math.nan]


def _moved(rows: pd.DataFrame) -> list[float]:
    start = _initial(rows)
    return [correlation(start.lost, start.rms)]


def _together(rows: pd.DataFrame) -> list[float]:
    joint, alone = rows[rows.kind == JOINT].set_index("layer").lost, _initial(rows).lost
    every, other = (joint.get(" ".join(some), math.nan) for some in (FIVE, FIVE[::2]))
    return [every - alone.drop(0).max(), other]


def _residual(rows: pd.DataFrame) -> list[float]:
    own = rows[rows.index.get_level_values(0) == "resnet"]
    frozen = rows.drop(own.index).query("kind == @WHOLE").test_accuracy.mean()
    joint = own[(own.kind == JOINT) & (own.share == 0)].test_accuracy.mean()
    drawn = own[(own.kind == SINGLE) & own.share.isna()].groupby("layer").lost.mean()
    start = _initial(own).set_index("layer").lost
    robust = start[start.index.str.startswith("block") & (start <= ROBUST)].index
    return [drawn.get("fc", math.nan) - drawn.reindex(robust).mean(), frozen - joint]


def slope(rows: pd.DataFrame, column: str) -> float:
    """Return the slope of ln `column` on ln N; NaN for one N or a count that is not above 0."""
    rows = rows[rows[column].notna()]
    if rows.neurons.nunique() < 2 or not (rows[column] > 0).all():
        return math.nan
    return float(np.polyfit(np.log(rows.neurons), np.log(rows[column]), 1)[0])


def _slopes(rows: pd.DataFrame, column: str, expected: float) -> list[float]:
    return [slope(rows[rows.depth == depth], column) - expected for depth in DEPTHS]


def _distances(rows: pd.DataFrame) -> list[float]:
    return _slopes(rows, "distance", -1)


def _lines(rows: pd.DataFrame) -> list[float]:
    table = np.log(rows.pivot_table(index="neurons", columns="depth", values="line"))
    growth = (table[max(DEPTHS)] - table[1]).mean() if {1, max(DEPTHS)} <= {*table} else math.nan
    return [*_slopes(rows, "line", 1), growth]


def _constants(rows: pd.DataFrame) -> list[float]:
    ratio = np.log(rows[PLANE] / (rows.neurons**2 / 2))
    return [ratio[rows.depth == depth].mean() for depth in DEPTHS]


def _changed(rows: pd.DataFrame) -> list[float]:
    values = []
    for labels, what in product((TRUE, RANDOM), ("line", PLANE)):
        own = rows[rows.labels == labels]
        table = np.log(own.pivot_table(index=["depth", "neurons"], columns="epoch", values=what))
        change = table.sub(table[0], axis=0) if 0 in table else table.iloc[:, :0]
        values += [change.iloc[:, 1:-1].stack().mean(), change.iloc[:, -1:].stack().mean()]
    return values


def _rates(rows: pd.DataFrame) -> list[float]:
    most = rows[rows.rate == RATE][PLANE].max()
    end = rows[(rows.labels == TRUE) & (rows.epoch == rows.epoch.max())].set_index("rate")
    end = end[[PLANE, "test_accuracy"]].reindex(RATES)
    more = math.log(end[PLANE][RATE] / end[PLANE][LOW])
    bound = rows.neurons.max() ** 2 / 2
    return [math.log(3 * bound / most), more, end.test_accuracy[RATE] - end.test_accuracy[HIGH]]


def _collapse(rows: pd.DataFrame) -> list[float]:
    table = rows.pivot_table(index=["neurons", "depth"], columns="start", values="origin")
    table = np.log(table.reindex(columns=[HE, ZERO]))
    slopes = _slopes(rows[rows.start == ZERO], "origin", 1)
    return [(table[HE] - table[ZERO]).mean(), pd.Series(slopes).mean()]
