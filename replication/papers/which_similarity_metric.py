"""Which similarity metric to trust: Kornblith et al. 2019, Ding et al. 2021, and their critics.

Claims K1 to K13, D1 to D4, DA1, CU1 and MU1. At `full` (6 x multiply-adds x images x epochs):
10 Tiny-10 of full width 1.4 PFLOP, 10 transformers 1.5, 20 five-class networks and 100 fine-tunings
0.9, 5 without batch normalisation 0.7, Plain-10/18/34/66 at a quarter of the width 4.7, Width-n
2.6; the ResNets are notebook 03's. Units are pairs of networks that share none, or networks by the
jackknife where pairs do share them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from replication._core.profiles import EVIDENCE
from replication.claims import Claim, Gate, Rule
from replication.papers import Experiment, cifar10, svcca_dynamics
from replication.papers import similarity_measurements as measured
from replication.papers._correlation import by_network, correlation
from replication.papers.experiment import by_profile
from replication.papers.grounding import (
    Population,
    detection,
    identification,
    jackknife,
    rank_correlation,
    reliability,
)

NOTEBOOK = "07_which_similarity_metric"
SETTINGS = by_profile(
    {  # smoke, quick, full, and the paper's where it is stated
        "convnets": {
            "images": ((80, 60), (400, 200), (50_000, 10_000), (50_000, 10_000)),
            "width": (1 / 8, 1 / 4, 1.0, 1.0),
            "epochs": (1, 3, 40, 100),  # not stated; until 89.4%
            "seeds": (2, 6, 10, 10),
            "without batch norm": (1, 1, 5, 10),
        },
        "readings": {
            "examples": (60, 400, 50_000, 50_000),  # images, with as many rows as neurons or more
            "most": (16, 64, 1152, None),  # neurons of a flattened layer
            "kernels": (40, 100, 1000, 1000),  # images for RBF kernels
            "shown": (40, 100, 1000, 10_000),  # test images
            "permutations": (9, 19, 199, 999),
            "counts": ((10, 20), (10, 20, 50, 100), (20, 50, 100, 200, 400, 800), (20, 200, 2000)),
            "probed": (60, 100, 5000, 50_000),
        },
        "transformers": {
            "width": (8, 16, 64, 512),
            "depth": (1, 2, 6, 6),
            "patches": (4, 4, 8, 8),  # a side
            "epochs": (1, 3, 30, 100),
            "examples": (10, 40, 1000, 3000),  # images, of which every token is a row
        },
        "depth": {
            "images": ((60, 40), (150, 100), (20_000, 10_000), (50_000, 10_000)),
            "depths": ((10, 18), (10, 18), (10, 18, 34, 66), (10, 18, 34, 66)),
            "width": (1 / 24, 1 / 24, 1 / 4, 1.0),
            "epochs": (1, 2, 30, 100),
            "seeds": (1, 1, 3, 5),
            "shrink": (2, 2, 1, 1),
        },
        "width": {
            "units": ((2, 4), (2, 4, 8), (4, 8, 16, 32, 64), (4, 16, 64, 256, 1024, 4096)),
            "epochs": (1, 2, 30, 100),
            "seeds": (2, 2, 3, 10),
        },
        "five classes": {
            "epochs": (1, 2, 20, 100),
            "seeds": (2, 3, 10, 10),  # pre-trainings
            "fine-tunings": (2, 4, 10, 10),  # of each
            "fine images": ((60, 60), (200, 200), (5000, 10_000), (25_000, 10_000)),
            "fine epochs": (1, 1, 10, 30),
        },
    }
)
CCA = ["CCA mean", "CCA R2", "SVCCA mean", "SVCCA R2", "PWCCA"]
TABLE = [*CCA, "regression", "HSIC linear", "CKA linear", *measured.KERNELS]
PAPER = dict(
    zip(TABLE, (1.4, 10.6, 9.9, 15.1, 11.1, 45.4, 22.2, 99.3, 80.6, 99.1, 99.3), strict=False)
)
THREE = ["Procrustes", "CKA linear", "PWCCA, missing 0"]  # Ding's
OTHERS = ["layers, convnet", "layers, transformer", "components deleted"]
STRESSED = [f"{kind}, {name}" for kind in ("fine-tuning", "crossed") for name in measured.STRESS]
SUBTASKS = {"D2": [*OTHERS, *STRESSED], "D3": [*OTHERS, *STRESSED], "D4": STRESSED}
DELETED = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.94, 0.96, 0.98, 0.99)
KEPT = [1, 2, 4, 8, 12, 16, 24, 32, 48]  # components
DISTANCES = (0, 1, 2, 5, 10, 20, 50)
FEW = {"CCA mean": ["cca", {}], "CKA linear": ["cka", {}]}
FEW |= {"CKA debiased": ["cka", {"unbiased": True}]}
ROBUST = FEW | {"CKA RBF 0.4": ["cka", measured.KERNELS["CKA RBF 0.4"]]}
ROBUST |= {"Procrustes": ["procrustes", {}]}
KINDS = ("same task", "other task", "untrained", "both untrained")
EARLY, LATE = ("act1", "act2", "act3"), ("act6", "act7", "act8")


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the notebook's experiments by name, in order: a network's readings follow it."""
    settings, top = SETTINGS[profile], SETTINGS["paper"]
    scale, read, vit, deep, wide, five = settings.values()
    name, channels, size = "cifar10", 3, 32
    if profile not in EVIDENCE or dataset not in ("auto", name):  # else nothing need be there
        split = cifar10(profile, dataset, scale["images"])
        name, (channels, _, size) = split.name, split.train.images.shape[1:]
    large, experiments = profile in EVIDENCE, {}

    def network(model: str, options: dict, part: Mapping, **changed) -> dict:
        recipe = {"model": model, "model_options": {"channels": channels} | options}
        decay = 2e-4 if model == "tiny10" else 5e-4  # Tiny-10 is so small that it underfits
        sgd = {"momentum": 0.9, "nesterov": True, "weight_decay": decay}
        recipe |= {"optimizer": "SGD", "optimizer_options": sgd, "learning_rate": 0.1}
        recipe |= {"schedule": "cosine", "batch_size": 128 if large else 20}
        recipe |= {"epochs": part["epochs"], "evaluate_every": max(1, part["epochs"] / 10)}
        recipe |= {"augment": {"shift": 4, "flip": 0.5} if large else {}}
        images = part.get("images", scale["images"])
        recipe |= {"evaluation_images": min(5000, images[0] // 2)}
        recipe |= {"precision": "auto" if large else "float32"}
        own = {n: v for n, v in changed.items() if n in ("shrink", "classes", "images", "base")}
        recipe |= {n: v for n, v in changed.items() if n not in own}
        return {"dataset": name, "images": list(images)} | own | {"recipe": recipe}

    tiny = network("tiny10", {"width": scale["width"]}, scale)
    bare = {"width": scale["width"], "batch_norm": False, "init": "he"}
    weaker = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
    bare = network("tiny10", bare, scale, optimizer_options=weaker, learning_rate=0.02)
    options = {"width": vit["width"], "depth": vit["depth"], "heads": min(4, vit["width"] // 4)}
    options |= {"size": size, "patch": size // vit["patches"]}
    adam = {
        "optimizer": "AdamW",
        "optimizer_options": {"weight_decay": 0.05},
        "learning_rate": 1e-3,
    }
    former = network("vit", options, vit, **adam)
    deeper = {d: network("plain", {"depth": d, "width": deep["width"]}, deep,
                         shrink=deep["shrink"], learning_rate=0.05)
              for d in deep["depths"]}  # fmt: skip
    wider = {n: network("tiny10", {"units": n}, wide) for n in wide["units"]}
    low, high = (network("tiny10", {"width": scale["width"]}, five, classes=c)
                 for c in ("low", "high"))  # fmt: skip
    tuned = network("tiny10", {"width": scale["width"]}, {"epochs": five["fine epochs"]}, base=low,
                    images=list(five["fine images"]), learning_rate=0.01)  # fmt: skip
    resnets = svcca_dynamics.plan(profile, dataset)["resnets"].specs
    resnet = {key: value for key, value in resnets[0].items() if key != "seed"}

    def add(key: str, fn: Callable, specs: Sequence[dict], part: str, nets: float, **ours: float):
        mine, theirs = settings[part], top[part]
        ratio = {"images": mine.get("images", scale["images"])[0] / 50_000}
        ratio |= {"training": mine["epochs"] / theirs["epochs"], "networks": nets}
        if "width" in mine:
            ratio["width"] = mine["width"] / theirs["width"]
        ratio = {n: min(1.0, v) for n, v in (ratio | ours).items()}
        experiments[key] = Experiment(fn, specs, None, {"device": device}, ratio)

    def each(net: dict, count: int, **more) -> list[dict]:
        return [{"net": net, "seed": seed} | more for seed in range(count)]

    def both(first: dict, second: dict, seeds: Sequence, **more) -> list[dict]:
        return [{"nets": [first, second], "seeds": list(pair)} | more for pair in seeds]

    count = scale["seeds"]
    pairs, alone = _pairs(count), [(s, s) for s in range(count)]
    full = {n: read[n] for n in ("examples", "kernels")} | {"most": read.get("most")}
    means, shown = full | {"read": "spatial means"}, {"examples": read["shown"]}
    drawn = shown | {"permutations": min(19, read["permutations"])}  # 19: p may be 0.05
    bench = {
        "examples": read["shown"],
        "probed": read["probed"],
        "components": [],
        "metrics": THREE,
    }
    body = [f"act{i}" for i in range(1, 9)]
    ten = ("convnets", count / 10)
    add("convnets", measured.train, each(tiny, count), *ten)
    flat = both(tiny, tiny, pairs, read="flattened", **full)
    add("flattened", measured.indices, flat, *ten)
    add("spatial means", measured.indices, both(tiny, tiny, pairs, **means), *ten)
    add(
        "within classes",
        measured.grids,
        both(tiny, tiny, pairs, **drawn | {"examples": 5 * read["shown"], "by class": True}),
        *ten,
    )
    tests = [("CKA linear", "flattened"), ("CKA debiased", "flattened"), ("CCA", "spatial means")]
    nulls = [{"metric": m, "read": r, "restricted": kept, "permutations": read["permutations"]}
             for (m, r), kept in product(tests, (False, True))]  # fmt: skip
    calibration = [s for null in nulls for s in both(tiny, tiny, pairs, **shown, **null)]
    add("calibration", measured.calibrated, calibration, *ten)
    cut = {n: full[n] for n in ("examples", "most")} | {"read": "flattened"}
    add("truncated", measured.truncated, each(tiny, count, gone=list(DELETED), **cut), *ten)
    few = {"of": "act4", "counts": list(read["counts"]), "metrics": FEW}
    add("few examples", measured.few_examples, both(tiny, tiny, pairs, **few), *ten)
    moved = {"distances": list(DISTANCES), "metrics": ROBUST} | shown
    add("moved points", measured.moved_points, each(tiny, count, **moved), *ten)
    members = {"net": tiny, "seeds": list(range(count))}
    add(OTHERS[0], measured.benchmark, [bench | members | {"layers": body}], *ten)
    parts = bench | members | {"layers": body[-1:], "components": KEPT}
    add(OTHERS[2], measured.benchmark, [parts], *ten)

    tokens = {"images": scale["images"][0] / 4_500_000}  # sentences of WMT 2018, about
    ten = ("transformers", count / 10)
    add("transformers", measured.train, each(former, count), *ten, **tokens)
    tok = {"examples": vit["examples"], "most": None, "kernels": read["kernels"]}
    specs = [s for p in measured.PLACES for s in both(former, former, pairs, read=p, **tok)]
    add("tokens", measured.indices, specs, *ten, **tokens)
    members |= {"net": former, "layers": measured.layers_of(former)}
    add(OTHERS[1], measured.benchmark, [bench | members], *ten, **tokens)

    across = means | {"read": "flattened", "examples": min(10_000, deep["images"][0])}
    across["most"] = min(256, across["most"] or 256)
    seeds = [(i, i) for i in range(min(len(resnets), scale["seeds"]))]
    part = ("convnets", len(resnets) / 3)
    add("trained resnets", measured.train, each(resnet, len(seeds)), *part)
    add("resnets", measured.grids, both(resnet, resnet, seeds, inside=True, **drawn), *part)
    add("convnet and resnet", measured.indices, both(tiny, resnet, seeds, **across), *part)

    count, half = five["seeds"], {"width": scale["width"]}
    part = ("five classes", count / 10)
    add("five classes", measured.train, each(low, count) + each(high, count), *part, **half)
    add(
        "five classes, means",
        measured.indices,
        both(low, low, _pairs(count), **means),
        *part,
        **half,
    )
    others = ((low, [None, None]), (high, [None, None]), (low, [None, 0]), (low, [0, 0]))
    kinds = dict(zip(KINDS, others, strict=True))
    tasks = [s | {"kind": kind, "shown": on, "epochs": epochs, "confounded": True}
             for kind, (net, epochs) in kinds.items() for on in (low, high)
             for s in both(low, net, _ring(count), **drawn)]  # fmt: skip
    add("tasks", measured.grids, tasks, *part, **half)
    couples = [[p, f] for p in range(count) for f in range(five["fine-tunings"])]
    part = ("five classes", len(couples) / 100)
    far = {"images": five["fine images"][0] / 393_000, "width": 64 * scale["width"] / 512}  # MNLI
    add(
        "fine-tunings",
        measured.stressed,
        [{"net": tuned, "seed": s} for s in couples],
        *part,
        **far,
    )
    crossed = [bench | {"net": tuned, "seeds": couples, "layers": [n], "probed": 0} for n in body]
    add("crossed", measured.benchmark, crossed, *part, **far)

    count = scale["without batch norm"]
    part, seeds = ("convnets", count / 5), [(i, i) for i in range(count)]
    add("no batch norm", measured.train, each(bare, count), *part)
    add("batch norm", measured.grids, both(tiny, bare, seeds, **drawn), *part)

    count, three = deep["seeds"], ("depth", deep["seeds"] / 3)
    ladder, seeds = sorted(deeper), [(i, i) for i in range(count)]
    plains = {d: each(deeper[d], count) for d in ladder}
    add("plain", measured.train, [s for d in ladder[:2] for s in plains[d]], *three)
    first, second = (deeper[d] for d in ladder[:2])
    add("depths", measured.indices, both(first, second, seeds, **across), *three)

    count, part = wide["seeds"], ("width", wide["seeds"] / 3)
    far = {"width": max(wider) / max(top["width"]["units"])}
    nets = [s for n in sorted(wider, reverse=True) for s in each(wider[n], count)]
    add("width", measured.train, nets, *part, **far)
    rings, most = _ring(count), wider[max(wider)]
    same = [s | {"units": n} for n, net in wider.items() for s in both(net, net, rings, **drawn)]
    last = [s | {"units": n} for n, net in wider.items() if net is not most
            for s in both(net, most, rings, **drawn)]  # fmt: skip
    add("same width", measured.grids, same, *part, **far)
    add("widest", measured.grids, last, *part, **far)

    # Last, as they take the longest; the readings of the others wait for nothing.
    if ladder[2:]:
        add("deep plain", measured.train, [s for d in ladder[2:] for s in plains[d]], *three)
    alone = [s for d in ladder for s in both(deeper[d], deeper[d], seeds, **drawn)]
    add("plain grids", measured.grids, alone, *three)
    add("plain probes", measured.probes, [s for d in ladder for s in plains[d]], *three)
    return experiments


def _pairs(count: int) -> list[tuple[int, int]]:
    """Return pairs of `count` seeds that share none."""
    return [(i, i + 1) for i in range(0, count - 1, 2)]


def _ring(count: int) -> list[tuple[int, int]]:
    """Return each seed with the next, each pair once."""
    return [(i, (i + 1) % count) for i in range(count if count > 2 else count - 1)]


KORNBLITH, DING = "Kornblith et al. 2019", "Ding et al. 2021"
OURS, LAYER = "ours: the paper has no number", "one layer of nine"
READY = Gate("mean test accuracy of Tiny-10", least=0.85)
DEPTH = Gate(
    "accuracy of the nets 2x as deep minus 8x, or -1 where the latter are below 0.6", least=0
)
RESIDUAL = Gate("mean test accuracy of the ResNets", least=0.88)
RELIABLE = Gate("least split-half reliability of functionality in its subtasks", least=0.8)
WIDER = Gate("largest over least width", least=64)
BARE = Gate("mean test accuracy of Tiny-10 without batch norm", least=0.8)
HALVES = "reliability within pre-trainings counts, where networks are compared within them"
MEANS = "spatial means of half-width networks were compared, where conv 8 is the pooling layer"


def _rules(smallest: float | None, source: str, *texts: str, **how) -> tuple[Rule, ...]:
    return tuple(Rule(text, smallest, source if smallest else "", **how) for text in texts)


_TABLE = {  # id: experiment, statement, rules, figure, the paper's value, gate, corrected, why
    "K1": ("flattened", "In finding the same layer linear CKA is best, regression second, the CCA "
        "family last",
        _rules(0.1, LAYER, "accuracy of linear CKA minus regression",
               "accuracy of regression minus the best of CCA, SVCCA and PWCCA"),
        "Table 2", "99.3, 45.4 and at most 15.1%", READY, MEANS,
        "with more images to a neuron CCA loses less; thinning less would test it"),
    "K2": ("plain grids", "In a net 8 times as deep over half of the layers are very like the last",
        _rules(0.1, OURS, *(f"share of layers with CKA above {c} to the last, minus {of}"
               for c in (0.9, 0.8) for of in ("0.5", "that of the shallowest nets")),
               "0.5 minus the relative depth at which a probe is within 0.01 of its end"),
        "Fig. 3", "heatmaps", DEPTH, "nothing checked that depth costs accuracy",
        "a net that trains well at depth has no pathology to see"),
    "K3": ("same width", "CKA of two nets rises with width, and saturates at less in early layers",
        _rules(0.5, OURS, "correlation of log width with CKA of a layer", test="correlation")
        + _rules(2.0, "a factor 4 on the axis of Fig. 6",
                 "log2 width at 95% of the final CKA, late minus early layers")
        + _rules(None, "", "CKA at equal width minus to the widest"),
        "Fig. 6", "curves", WIDER, "levels were compared in place of saturation; where the widest "
        "is no 64 times as wide, its CKA need not be the final one",
        "the widest nets may be short of saturation; wider ones would test it"),
    "K4": ("tasks", "Nets of other tasks agree in early, not in late layers; untrained ones less",
        _rules(0.2, "a tick of Fig. 7", "CKA in early layers, other task minus untrained",
               "what the other task costs in CKA, late minus early layers"),
        "Fig. 7", "curves of CIFAR-10 and -100", READY, "spatial means; both test sets now",
        "halves of one data set are closer than CIFAR-10 and -100, which would test it"),
    "K6": ("tokens", "On Transformers, every token an example, all indices find the sublayer, and "
        "of the residual stream CCA more than CKA",
        _rules(0.1, LAYER, *(f"{p}: the least accuracy of CCA, PWCCA, regression and CKA, minus "
               "chance" for p in measured.PLACES), "residual: accuracy of CCA minus CKA"),
        "Table F.1", "36.9 to 96.1%; 90.9 and 73.6% at the residual", None,
        "token means at one place were compared, with 800 rows",
        "patches resemble each other as words do not; a text model would test it"),
    "K7": ("flattened", "The first two principal components of a layer agree between networks",
        _rules(0.2, OURS, "R2 of components 1 and 2 minus of 9 and 10, act5"),
        "Fig. 1", "scatter plots", READY, "", "near variances swap; R2 of five would not"),
    "K8": ("resnets", "In a ResNet sums of blocks are alike, interiors are not, and stages show",
        _rules(0.1, "a tick of the colour bar", "CKA between sums minus between interiors",
               "CKA within a stage minus between stages, sums"),
        "Fig. 4", "heatmaps", RESIDUAL, "", "ReLU follows sums; a pre-activation net tells"),
    "K9": ("depths", "Between depths and architectures layers match in order; only CKA shows it",
        _rules(0.3, OURS, *(f"{p}: correlation of depth with the best match, CKA less best CCA"
               for p in ("Plain-10 and -18", "Tiny-10 and ResNet"))),
        "Figs. 5, F.8", "heatmaps", READY, "", "few layers order by chance; deeper nets tell"),
    "K10": ("five classes, means", "Nets share as many eigenvectors of the pooling as classes",
        _rules(3, OURS, "eigenvectors with a cosine above 0.5, of 10 classes minus of 5"),
        "Fig. 8", "about 10 for 10 classes", READY, "",
        "like classes share directions; CIFAR-100 would test it"),
    "K11": ("flattened", "No cut of SVCCA shows the layers",
        _rules(0.1, LAYER, "accuracy of CKA minus of SVCCA at its best cut"),
        "Fig. F.3", "heatmaps", READY, "", "thinned layers help CCA; all neurons would test it"),
    "K12": ("batch norm", "Nets with and without batch norm are alike, least in the last conv",
        _rules(0.1, OURS, "CKA of the same minus of other layers",
               "CKA of earlier layers minus of the last convolution"),
        "Fig. F.6", "93.9 and 91.5%, heatmaps", BARE, "the nets without batch norm have to learn",
        "equally good nets would test it"),
    "K13": ("within classes", "CKA within classes resembles that of all images",
        _rules(0.8, OURS, "Spearman correlation of the maps' entries", test="correlation"),
        "Fig. F.7", "heatmaps", READY, "", "a class has few examples; more would test it"),
    "D1": ("truncated", "CKA is specific but not sensitive, PWCCA the other way round",
        _rules(0.2, OURS, "specificity of CKA minus PWCCA",
               "share of components deleted unnoticed, CKA minus PWCCA, missing directions 0")
        + _rules(0.5, "ours: half of the components", "the same share, CKA", paper=0.97),
        "Figs. 2, 3", "CKA notices after 97%", READY, "PWCCA left missing directions out",
        "seeds may lie so far apart that nothing is noticed; wider networks are closer"),
    "D2": ("crossed", "Procrustes is near the best of Procrustes, CKA and PWCCA in every subtask",
        _rules(None, "", *(f"{s}: Spearman of Procrustes minus the better of the others, plus 0.1 "
               "(twice the paper's worst)" for s in OTHERS + STRESSED)),
        "Table 1", "behind by at most 0.051", RELIABLE,
        f"a fourth metric and every reference; {HALVES}",
        "one network is the reference; the column of every reference tells"),
    "D3": ("crossed", "None of the three does well where pre-trainings meet fine-tunings",
        _rules(0.1, OURS, "lowest of three on other subtasks minus best here", paper=0.219),
        "Table 1", "0.243 and 0.122, against 0.462", RELIABLE,
        f"seeds of one network were tested; {HALVES}",
        "pre-trainings on five classes differ less than BERTs; other data would test it"),
    "D4": ("crossed", "Within a pre-training dissimilarity tells more of function than across",
        _rules(0.1, OURS, *(f"{s}: lowest of three within pre-trainings minus best of three across"
               for s in measured.STRESS)),
        "Table 1", "0.462 and 0.243", RELIABLE, HALVES, "nine others are few; more would test it"),
    "CU1": ("tasks", "The input makes random nets alike; deconfounding takes that away",
        _rules(None, "", "what deconfounding takes of CKA, untrained nets minus trained ones"),
        "Fig. 1", "curves", READY, "two untrained networks are compared",
        "trained layers may keep as much of the input; early and late ones apart would test it"),
}  # fmt: skip
_CHECKS = {  # experiment, statement, rules, figure, kind, paper
    "K5": ("few examples", "With as many neurons as examples an index invariant to invertible maps "
        "is the same for all layers", (Rule("0.001 minus |CCA of matched minus of shuffled "
        "examples|", test="every"),), "Theorem 1", "theorem", KORNBLITH),
    "DA1": ("moved points", "Moving one class, or one example, where the classifier does not look "
        "brings linear CKA down", _rules(0.5, "ours: half of its range",
        "1 minus CKA, a class far", "1 minus CKA, one example far"), "Cor. 3, 4", "sanity",
        "Davari et al. 2023"),
    "MU1": ("few examples", "With few examples biased CKA of unrelated layers is high, debiased 0",
        _rules(0.1, "ours: where the package warns", "CKA of shuffled examples")
        + _rules(0.1, "the same", "debiased CKA of shuffled examples", test="equivalence"),
        "Fig. 1", "sanity", "Murphy et al. 2024"),
}  # fmt: skip
_PAPERS = {"K": KORNBLITH, "D": DING, "C": "Cui et al. 2022"}
CLAIMS: tuple[Claim, ...] = tuple(
    Claim(id, _PAPERS[id[0]], *row[1:5], gate=row[5], corrected=row[6], why=row[7])
    for id, row in _TABLE.items()
) + tuple(Claim(id, row[5], *row[1:4], kind=row[4]) for id, row in _CHECKS.items())
MEASURED = {id: row[0] for id, row in (_TABLE | _CHECKS).items()}  # whose fidelity is a claim's


def paired(table: pd.DataFrame) -> pd.DataFrame:
    """Return rows with their networks' seeds as ``seed`` (and ``pair``) and ``other_seed``."""
    first, second = table.seeds.str[0], table.seeds.str[1]
    return table.assign(pair=first, seed=first, other_seed=second)


def statistics(tables: Mapping[str, pd.DataFrame]) -> dict[str, list[list[float]]]:
    """Return for every claim a list a rule, with one number a unit.

    `tables` has the rows of experiments by name; NaN stands for what is not there.
    """
    values: dict[str, list] = {}
    for ids, needs, statistic in _STATISTICS:
        if all(name in tables for name in needs):
            values |= zip(ids, statistic(*(tables[name] for name in needs)), strict=True)
    values |= _ding(populations(tables))
    found = {}
    for claim in CLAIMS:
        parts = values.get(claim.id, [[]] * len(claim.rules))
        found[claim.id] = [[float(v) for v in part] or [math.nan] for part in parts]
    return found


def _flattened(flat: pd.DataFrame, cut: pd.DataFrame) -> tuple:
    flat = paired(flat)
    found = identification(flat).pivot(index="pair", columns="metric")
    right, specific = found.accuracy, found.specificity
    cuts = [name for name in right if name.startswith("SVCCA") and "R2" not in name]
    same = flat[flat.layer == flat.other]
    components = same[same.layer == "act5"].pivot(index="pair", columns="metric", values="value")
    noticed = sensitivity(flat, cut).pivot(index="pair", columns="metric", values="unnoticed")
    noticed = noticed.reindex(columns=["CKA linear", "PWCCA, missing 0"])
    insensitive = noticed["CKA linear"]
    return (
        [right["CKA linear"] - right["regression"], right["regression"] - right[CCA].max(axis=1)],
        [components["PC 1-2"] - components["PC 9-10"]],
        [right["CKA linear"] - right[cuts].max(axis=1)],
        [
            specific["CKA linear"] - specific["PWCCA, missing 0"],
            insensitive - noticed["PWCCA, missing 0"],
            insensitive,
        ],
    )


def sensitivity(flat: pd.DataFrame, cut: pd.DataFrame) -> pd.DataFrame:
    """Return the share of components deleted unnoticed, by metric and pair (mean of both nets)."""
    rows, same = [], flat[flat.layer == flat.other]
    for (pair, metric), own in same.groupby(["pair", "metric"]):
        between = dict(zip(own.layer, 1 - own.value, strict=True))
        nets = cut[(cut.metric == metric) & cut.seed.isin(own.seeds.iloc[0])]
        shares = [detection(net, between) for _, net in nets.groupby("seed")]
        if shares:
            rows.append({"pair": pair, "metric": metric, "unnoticed": np.mean(shares)})
    return pd.DataFrame(rows, columns=["pair", "metric", "unnoticed"])


def _tokens(tokens: pd.DataFrame) -> list:
    tokens, chance = paired(tokens), 1 / tokens.layer.nunique()
    right = pd.concat({r: identification(rows) for r, rows in tokens.groupby("read", sort=False)})
    right = right.droplevel(1).rename_axis("read").reset_index()
    right = right.pivot(index="pair", columns=["read", "metric"], values="accuracy")
    which = ["CCA mean", "PWCCA", "regression", "CKA linear"]
    least = [right[p][which].min(axis=1) - chance if p in right else [] for p in measured.PLACES]
    more = (
        right["residual"]["CCA mean"] - right["residual"]["CKA linear"]
        if "residual" in right
        else []
    )
    return [[*least, more]]


def _pooling(ten: pd.DataFrame, five: pd.DataFrame) -> list:
    counts = [
        rows[(rows.layer == "pool") & (rows.other == "pool") & (rows.metric == "eigenvectors")]
        .set_index("pair").value
        for rows in (paired(ten), paired(five))
    ]  # fmt: skip
    return [[(counts[0] - counts[1]).dropna()]]


def _units(table: pd.DataFrame, statistic: Callable, parts: int) -> list:
    """Return a list a part of `statistic`, with a value a pair of networks."""
    found = [statistic(rows) for _, rows in paired(table).groupby("pair")]
    return [list(part) for part in zip(*found, strict=True)] or [[]] * parts


def _batch_norm(rows: pd.DataFrame) -> list[float]:
    same = rows[(rows.layer == rows.other) & (rows.layer != "pool")].set_index("layer").cka
    return [
        same.mean() - rows[rows.layer != rows.other].cka.mean(),
        same[:-1].mean() - same["act8"],
    ]


def _deep(grids: pd.DataFrame, probes: pd.DataFrame) -> list:
    shares, starts = {}, {}
    deep = [net["recipe"]["model_options"]["depth"] for net in probes.net]
    for (depth, seed), rows in probes.assign(depth=deep).groupby(["depth", "seed"]):
        reached = np.flatnonzero(rows.probe >= rows.probe.iloc[-1] - 0.01)[0] + 1
        starts[depth, seed] = 0.5 - reached / len(rows)
    deep = [nets[0]["recipe"]["model_options"]["depth"] for nets in grids.nets]
    for (depth, seed), rows in paired(grids).assign(depth=deep).groupby(["depth", "seed"]):
        own = rows[(rows.other == f"act{depth - 2}") & (rows.layer != rows.other)].cka
        shares[depth, seed] = [(own > level).mean() for level in (0.9, 0.8)]
    least, most = min(d for d, _ in shares), max(d for d, _ in shares)
    seeds = [s for d, s in shares if d == most and (least, s) in shares and (most, s) in starts]
    gaps = [
        [shares[most, s][i] - (0.5 if half else shares[least, s][i]) for s in seeds]
        for i, half in product((0, 1), (True, False))
    ]
    return [[*gaps, [starts[most, s] for s in seeds]]]


def _wide(same: pd.DataFrame, widest: pd.DataFrame) -> list:
    both = pd.concat([paired(same).assign(to="same"), paired(widest).assign(to="widest")])
    both = both[(both.layer == both.other) & (both.layer != "pool")]

    def statistic(rows: pd.DataFrame) -> list[float]:
        cka = rows.pivot_table(index="units", columns=["to", "layer"], values="cka")
        equal, widths = cka["same"], np.log2(cka.index)
        reached = equal.apply(
            lambda c: np.interp(0.95 * c.iloc[-1], np.maximum.accumulate(c), widths)
        )
        r = np.corrcoef(widths, equal.mean(axis=1))[0, 1] if len(widths) > 2 else math.nan
        gap = (equal - cka["widest"]).dropna().to_numpy().mean() if "widest" in cka else math.nan
        return [math.atanh(r), reached[list(LATE)].mean() - reached[list(EARLY)].mean(), gap]

    z, *others = _by_network(both, statistic, 3)
    return [[np.tanh(z), *others]]


def _by_network(table: pd.DataFrame, statistic: Callable, parts: int) -> list:
    """Return a value a network by the jackknife over pairs that share networks."""
    table = table.drop(columns="other").rename(columns={"other_seed": "other"})
    return by_network(table, statistic, parts)


def _tasks(tasks: pd.DataFrame) -> tuple:
    tasks = paired(tasks)
    tasks = tasks[(tasks.layer == tasks.other) & (tasks.layer != "pool")]

    def statistic(rows: pd.DataFrame) -> list[float]:
        means = rows.groupby(["kind", "layer"])[["cka", "deconfounded"]].mean()
        means = means.reindex(
            pd.MultiIndex.from_product([KINDS, rows.layer.unique()], names=means.index.names)
        )
        early, late = (means.cka.unstack()[list(e)].mean(axis=1) for e in (EARLY, LATE))
        cost = (late - early)["same task"] - (late - early)["other task"]
        taken = (means.cka - means.deconfounded).groupby("kind").mean()
        return [
            early["other task"] - early["untrained"],
            cost,
            taken["both untrained"] - taken["same task"],
        ]

    *tasks, input_is = _by_network(tasks, statistic, 3)
    return tasks, [input_is]


def _residual(rows: pd.DataFrame) -> list[float]:
    rows = rows[(rows.layer != rows.other) & rows.layer.str[0].eq("b") & rows.other.str[0].eq("b")]
    inside, other = (rows[c].str.endswith(".act1") for c in ("layer", "other"))
    sums, stage = rows[~inside & ~other], rows.layer.str[5] == rows.other.str[5]
    within = sums[stage[sums.index]].cka.mean() - sums[~stage[sums.index]].cka.mean()
    return [sums.cka.mean() - rows[inside & other].cka.mean(), within]


def matches(rows: pd.DataFrame) -> pd.Series:
    """Return, by metric, Spearman's correlation of a layer's place with its best match's."""
    order = {name: i for i, name in enumerate(rows.other.unique())}
    found = {}
    for metric, own in rows.groupby("metric"):
        best = own.loc[own.groupby("layer", sort=False).value.idxmax()].other.map(order)
        found[metric] = correlation(range(len(best)), best)
    return pd.Series(found)


def _order(rows: pd.DataFrame) -> list[float]:
    found = matches(rows).fillna(0)
    return [found["CKA linear"] - found[CCA].max()]


def _few(few: pd.DataFrame) -> tuple:
    few = paired(few)[few["count"].to_numpy() == few["count"].min()]
    values, null = (few.pivot(index="pair", columns="metric", values=c) for c in ("value", "null"))
    gap = (values - null)["CCA mean"].abs()
    return [0.001 - gap], [null["CKA linear"], null["CKA debiased"]]


def _moved(moved: pd.DataFrame) -> list:
    far = moved[(moved.distance == moved.distance.max()) & (moved.metric == "CKA linear")]
    far = far.pivot(index="seed", columns="change", values="value")
    return [[1 - far["one class"], 1 - far["one example"]]]


_STATISTICS = (
    (("K1", "K7", "K11", "D1"), ("flattened", "truncated"), _flattened),
    (("K6",), ("tokens",), _tokens),
    (("K10",), ("spatial means", "five classes, means"), _pooling),
    (("K12",), ("batch norm",), lambda table: [_units(table, _batch_norm, 2)]),
    (("K13",), ("within classes",), lambda table: [
        _units(table, lambda rows: [correlation(rows.cka, rows.within)], 1)]),
    (("K2",), ("plain grids", "plain probes"), _deep),
    (("K3",), ("same width", "widest"), _wide),
    (("K4", "CU1"), ("tasks",), _tasks),
    (("K8",), ("resnets",), lambda table: [_units(table, _residual, 2)]),
    (("K9",), ("depths", "convnet and resnet"), lambda *tables: [
        [_units(table, _order, 1)[0] for table in tables]]),
    (("K5", "MU1"), ("few examples",), _few),
    (("DA1",), ("moved points",), _moved),
)  # fmt: skip


def populations(tables: Mapping[str, pd.DataFrame]) -> dict[str, list[Population]]:
    """Return the representations of each of Ding's subtasks, with their reliability beside.

    Of layers the reference is a last layer, of components a whole one; within pre-trainings each
    is a population of its own, as is each layer.
    """
    found: dict[str, list[Population]] = {}
    for name in (name for name in OTHERS if name in tables):
        rows = tables[name]
        one, values = _similarities(rows)
        last = (one.layer == one.layer.iloc[-1]).to_numpy()
        whole = (one.kept == one.groupby(["unit", "layer"]).kept.transform("max")).to_numpy()
        does = ((one["first"] + one.second) / 2).to_numpy()
        found[name] = [Population(values, does, one.unit.to_numpy(int), last & whole)]
    if "crossed" in tables and "fine-tunings" in tables:
        able = tables["fine-tunings"]
        able = able.assign(key=able.seed.map(tuple), does=(able["first"] + able.second) / 2)
        able = able.pivot(index="key", columns="stress", values="does")
        for _, rows in tables["crossed"].assign(at=lambda t: t.layers.str[0]).groupby("at"):
            one, values = _similarities(rows)
            keys = [tuple(rows.seeds.iloc[0][int(unit)]) for unit in one.unit]
            units = np.array([key[0] for key in keys])
            for stress in (s for s in measured.STRESS if set(keys) <= set(able.index)):
                does = able.loc[keys, stress].to_numpy()
                for unit in (None, *np.unique(units)):
                    of = np.flatnonzero((units == unit) | (unit is None))
                    part = {m: v[np.ix_(of, of)] for m, v in values.items()}
                    kind = "crossed" if unit is None else "fine-tuning"
                    own = Population(part, does[of], units[of], np.ones(len(of), bool))
                    found.setdefault(f"{kind}, {stress}", []).append(own)
    return found


def _similarities(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    parts = dict(iter(rows.groupby("metric")))
    return parts[THREE[0]], {m: np.stack(own["values"]) for m, own in parts.items()}


def _ding(found: Mapping[str, list[Population]]) -> dict[str, list]:
    units = {name: max(p.units.max() for p in parts) + 1 for name, parts in found.items()}

    def rho(name: str, without: int | None) -> list[float]:
        return [rank_correlation(found[name], metric, without) for metric in THREE]

    def led(name: str, without: int | None) -> float:
        own, *others = rho(name, without)
        return own - max(others) + 0.1

    def harder(names: Sequence[str], crossed: Sequence[str], without: int | None) -> float:
        lowest = min(min(rho(name, without)) for name in names)
        return lowest - max(max(rho(name, without)) for name in crossed)

    def jack(statistic: Callable, names: Sequence[str]) -> list[float]:
        known = all(name in units for name in names)
        return jackknife(statistic, min(units[n] for n in names)) if known else []

    hard = [s for s in STRESSED if s.startswith("crossed")]
    near = [s for s in STRESSED if s not in hard]
    all_of = [*OTHERS, *near]
    return {
        "D2": [jack(lambda i, s=s: led(s, i), [s]) for s in [*OTHERS, *STRESSED]],
        "D3": [jack(lambda i: harder(all_of, hard, i), [*all_of, *hard])],
        "D4": [
            jack(lambda i, n=n, h=h: harder([n], [h], i), [n, h])
            for n, h in zip(near, hard, strict=True)
        ],
    }


def reliabilities(tables: Mapping[str, pd.DataFrame]) -> dict[str, float]:
    """Return the split-half reliability of each subtask's functionality."""
    found = {}
    for name in (name for name in OTHERS if name in tables):
        one = tables[name].query("metric == @THREE[0]")
        found[name] = reliability(one["first"], one.second)
    if "fine-tunings" in tables:
        for stress, rows in tables["fine-tunings"].query("stress != 'none'").groupby("stress"):
            halves = rows[["first", "second"]]
            within = halves - halves.groupby(rows.seed.str[0]).transform("mean")
            found[f"fine-tuning, {stress}"] = reliability(within["first"], within.second)
            found[f"crossed, {stress}"] = reliability(halves["first"], halves.second)
    return found


def gates(tables: Mapping[str, pd.DataFrame]) -> dict[str, float]:
    """Return for every claim with a gate the number that it looks at; NaN where there is none."""

    def accuracy(name: str) -> pd.Series:
        rows = tables.get(name)
        return pd.Series(dtype=float) if rows is None else rows.test_accuracy

    split, deep, fold = reliabilities(tables), math.nan, math.nan
    if nets := [tables[name] for name in ("plain", "deep plain") if name in tables]:
        rows = pd.concat(nets, ignore_index=True)
        depth = pd.Series([n["recipe"]["model_options"]["depth"] for n in rows.net])
        means = rows.test_accuracy.groupby(depth).mean()
        if {18, 66} <= set(means.index):
            deep = means[18] - means[66] if means[66] >= 0.6 else -1.0
    if "same width" in tables:
        fold = tables["same width"].units.max() / tables["same width"].units.min()
    numbers = {READY: accuracy("convnets").mean(), DEPTH: deep, WIDER: fold}
    numbers |= {BARE: accuracy("no batch norm").mean()}
    numbers |= {RESIDUAL: accuracy("trained resnets").mean()}
    least = {
        id: float(np.min([split.get(name, math.nan) for name in names]))
        for id, names in SUBTASKS.items()
    }
    return {
        claim.id: least.get(claim.id, numbers.get(claim.gate)) for claim in CLAIMS if claim.gate
    }
