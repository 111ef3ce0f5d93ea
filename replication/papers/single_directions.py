"""Morcos et al. 2018 on single directions, with Zhou et al. 2018 and Amjad et al. 2018.

A network has fitted its labels where its train accuracy, on the labels it was given, is at least
99%; others are left out, but from S3, S4 and S14. What is measured: `direction_measurements`.

At full, training takes at most, in PFLOP (networks on corrupted labels stop when they fit): MLPs
of Figs. 1 and 2 1.8, of Figs. 4 and 7 and on other data 0.2, with dropout 1.3; populations 2.5,
convnets 5.6, sweep 0.7, convnets with dropout 0.5. Measuring takes 1.3.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from replication import data
from replication._core.profiles import EVIDENCE
from replication.claims import Claim, Gate, Rule
from replication.papers._correlation import parts_by_seed
from replication.papers.direction_measurements import (
    LAST,
    MEASURES,
    ablate,
    dropout_statistics,
    fitted,
    layered,
    mean,
    named,
    one_correlation,
    ordered,
    over_training,
    selection,
    unit_statistics,
    units,
    within,
)
from replication.papers.experiment import Experiment, by_profile, cifar10

NOTEBOOK = "02_single_directions"
_SOME, _FEW = ((60, 60), (300, 300)), ((60, 60), (60, 300))
_ALL, _PICTURES = (60_000, 10_000), (50_000, 10_000)


def _part(images: tuple, width: tuple, epochs: tuple, networks: tuple, **more: tuple) -> dict:
    return {"images": images, "width": width, "epochs": epochs, "networks": networks, **more}


SETTINGS = by_profile(
    {  # smoke, quick, full, and the paper's where stated: images (training and test), width (units
        # a layer of MLPs; of convnets over the paper's), epochs, and networks of each kind
        "corruption": _part(  # MLPs of Figs. 1 and 2
            (*_SOME, _ALL, _ALL), (16, 64, 512, 512), (40, 60, 300, 640), (1, 3, 5, 5)
        ),
        "units": _part(  # MLPs of Fig. 7
            (*_SOME, _ALL, _ALL), (16, 64, 128, 128), (40, 20, 320, 640), (1, 3, 5, 5)
        ),
        "training": _part(  # of Figs. 4a and 4b, read so often an epoch
            *((*_SOME, _ALL, _ALL), (16, 64, 1024, 2048), (2, 4, 13, 26), (1, 3, 5, 5)),
            readings=(2, 4, 8, 8),
        ),
        "dropout": _part(  # of Fig. 5a
            (*_FEW, (10_000,) * 2, _ALL), (16, 64, 1024, 2048), (30, 100, 500, 5000), (1, 3, 3, 3)
        ),
        "convnets": _part(  # 11 layers, CIFAR-10
            (*_FEW, *2 * (_PICTURES,)), (1 / 16, 1 / 8, 1 / 4, 1), (2, 20, 60, 100), (1, 3, 3, 4)
        ),
        "population": _part(  # of each learning rate
            (*_FEW, (10_000, 10_000), _PICTURES), (1 / 16, 1 / 8, 1 / 8, 1), (2, 18, 30, 100),
            (1, 2, 40, 40),
        ),
        "label noise": _part(  # of each share of it
            (*_FEW, (10_000, 10_000), _PICTURES), (1 / 16, 1 / 8, 1 / 8, 1), (2, 18, 30, 100),
            (1, 2, 12, 40),
        ),
        "sweep": _part(  # of Fig. 4c, of each setting; the paper has 96 settings, ns which
            (*_FEW, (5000, 10_000), _PICTURES), (1 / 16, 1 / 8, 1 / 8, 1), (2, 8, 15, 100),
            (1, 3, 3, 2), rates=(2, 2, 12, 12), batches=(1, 2, 8, 8),
        ),
        "reading": {
            "shown": (60, 200, 2000, 10_000),  # training images to ablate on
            "tested": (60, 300, 10_000, 10_000),  # test images to tell units by; those of convnets:
            "units tested": (60, 100, 2000, 10_000),
            "orders": (2, 4, 10, 10),
            "points": (5, 9, 17, 33),  # numbers of ablated units, from none to all
            "draws": (1, 2, 10, 10),  # of noise
        },
    }
)  # fmt: skip
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of labels shuffled among themselves, of MLPs
FEWER = (0.0, 0.25, 0.5, 1.0)  # of convnets
A_FEW = (0.0, 0.02, 0.04, 0.06, 0.08)  # of the population in which nothing else differs
DROPPED = (0.0, 0.1, 0.2, 0.3)
RATES = (3e-4, 6e-4, 1.2e-3, 2.5e-3, 5e-3)  # of the population that notebook 06 clusters
NOISE = {"mlp": np.geomspace(0.05, 8, 9).round(3), "morcos_convnet": np.linspace(0.1, 1, 10)}
RECIPE = {"batch_norm": False, "dropout": 0.0, "corruption": 0.0, "rate": 1e-3, "batch": 128}
RECIPE |= {"schedule": "cosine", "stop": None, "evaluated": None, "readings": 0, "seed": 0}


def sources(profile: str, dataset: str = "auto") -> tuple[dict, dict]:
    """Return the images of MLPs and of convnets: the data set's name, channels, and shrinkage.

    ValueError unless the MLPs' are MNIST or the 5,000 embedded digits.
    """
    if profile in EVIDENCE and dataset == "auto":  # nothing need be there
        return {"data": "mnist"}, {"data": "cifar10", "channels": 3, "shrink": 1}
    digits = data.load(dataset, subset=(10, 10)).name
    if digits not in ("mnist", "mnist5k"):
        raise ValueError(f"dataset: the MLPs are made for MNIST, found {digits!r}")
    split = cifar10(profile, dataset, (10, 10))
    shape = {"channels": split.train.images.shape[1], "shrink": 1 if profile in EVIDENCE else 4}
    return {"data": digits}, {"data": split.name} | shape


def net(profile: str, part: str, source: Mapping, **changed) -> dict:
    """Return the settings of a network of a part of SETTINGS, as specs have them."""
    scale = SETTINGS[profile][part]
    own = {"model": "morcos_convnet" if "channels" in source else "mlp", **source}
    own |= {k: scale[k] for k in ("width", "epochs")} | {"images": list(scale["images"])}
    exact = profile not in EVIDENCE or own["model"] == "mlp"
    own |= {"precision": "float32" if exact else "auto"}
    return RECIPE | own | ({} if profile in EVIDENCE else {"batch": 10, "rate": 2e-3}) | changed


def population(profile: str, dataset: str = "auto") -> list[dict]:
    """Return the networks of one topology on clean labels: five learning rates, many seeds each."""
    pictures, count = sources(profile, dataset)[1], SETTINGS[profile]["population"]["networks"]
    changed = [{"rate": r, "seed": 100 + s} for s in range(count) for r in RATES]
    usual = {"batch_norm": True, "batch": 32 if profile in EVIDENCE else 10}
    return [net(profile, "population", pictures, **usual, **own) for own in changed]


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the experiments, in the order in which their results are needed."""
    scales, small, experiments = SETTINGS[profile], profile not in EVIDENCE, {}
    digits, pictures = sources(profile, dataset)
    reading = {name: scales["reading"][name] for name in ("shown", "orders", "points")}
    until, normed = {"stop": 0.999}, {"batch_norm": True, "batch": 10 if small else 32}

    def nets(part: str, source: Mapping, levels: Mapping, **changed) -> list[dict]:
        """Return networks of all combinations of levels, one seed after the other."""
        count = changed.pop("seeds", scales[part]["networks"])
        rows = [changed | {"seed": seed} for seed in range(count)]
        for name, values in levels.items():
            rows = [row | {name: value} for row in rows for value in values]
        return [net(profile, part, source, **row) for row in rows]

    def add(name: str, measure: Callable, part: str, own: Sequence[dict], **more) -> None:
        ours, theirs = ({**scale[part]} for scale in (scales, SETTINGS["paper"]))
        ours["images"], theirs["images"] = ours["images"][0], theirs["images"][0]
        terms = {"images": "images", "width": "width", "training": "epochs", "networks": "networks"}
        scale = {term: min(1.0, ours[key] / theirs[key]) for term, key in terms.items()}
        specs = [named(n) | more for n in own]
        experiments[name] = Experiment(measure, specs, None, {"device": device}, scale)

    def ablations(name: str, part: str, own: Sequence[dict], whole: bool = False) -> None:
        noise = NOISE[own[0]["model"]].round(3).tolist() if whole else []
        more = {"means": whole, "noise": noise, "draws": scales["reading"]["draws"], "at": None}
        add(name, ablate, part, own, **reading, **more)

    levels = LEVELS[::2] if small else LEVELS
    own = nets("corruption", digits, {"corruption": levels}, **until)
    ablations("corruption", "corruption", _to_the_end(own), whole=True)
    narrow = nets("units", digits, {})
    add("units", units, "units", narrow, tested=scales["reading"]["tested"])
    add("ordered", ordered, "units", narrow, tested=scales["reading"]["tested"], **reading)
    if not small and dataset == "auto":  # Amjad et al. take three data sets
        others = nets("units", {"data": "fashion_mnist"}, {})
        colours = {"data": "cifar10", "inputs": 3072}  # as many as so narrow networks can fit
        others += nets("units", colours, {}, images=[10_000, 10_000])
        how = {"tested": scales["reading"]["tested"]} | reading
        add("ordered elsewhere", ordered, "units", others, **how)
    often = scales["training"]["readings"]
    followed = {"readings": often, "evaluated": min(10_000, scales["training"]["images"][0])}
    ablations("training", "training", nets("training", digits, {}, schedule="constant", **followed))
    times = [i / often for i in range(1, often * scales["training"]["epochs"] + 1)]
    one = experiments["training"]
    specs = [spec | {"at": time} for spec in one.specs for time in times]
    experiments["training"] = replace(one, specs=specs)
    both = {"corruption": (0.0, 1.0), "dropout": DROPPED[::2] if small else DROPPED}
    ablations("dropout", "dropout", nets("dropout", digits, both, **until))
    ablations("population", "population", population(profile, dataset))
    noisy = nets("label noise", pictures, {"corruption": A_FEW}, **normed)
    ablations("label noise", "label noise", noisy)
    of_both = {"corruption": (0.0, 1.0) if small else FEWER, "batch_norm": (True, False)}
    convnets = _to_the_end(nets("convnets", pictures, of_both, **until))
    # Nothing reads networks on corrupted labels without batch norm.
    convnets = [n for n in convnets if n["batch_norm"] or not n["corruption"]]
    convnets.sort(key=lambda n: (n["corruption"] > 0, not n["batch_norm"]))  # clean ones first
    ablations("convnets", "convnets", convnets, whole=True)
    clean = [n for n in convnets if not n["corruption"]]
    add("convnet units", units, "convnets", clean, tested=scales["reading"]["units tested"])
    rates = np.geomspace(1e-4, 0.1, scales["sweep"]["rates"]).round(6).tolist()
    batches = [16 * 2**i for i in range(scales["sweep"]["batches"])]
    grid = {"rate": rates, "batch": batches}
    ablations("sweep", "sweep", nets("sweep", pictures, grid, batch_norm=True, schedule="constant"))
    plain = [
        digits | {k: v for k, v in own.items() if k not in ("data", "channels", "shrink")}
        for own in population(profile, dataset)
    ]
    other = {"model": "mlp", "width": scales["units"]["width"], "batch_norm": False}
    plain = [own | other | {"precision": "float32"} for own in plain]
    ablations("MLP population", "population", plain)
    twice, seeds = 2 * scales["label noise"]["epochs"], 1 if small else 3
    few = nets("label noise", pictures, both, epochs=twice, seeds=seeds, **until, **normed)
    ablations("convnet dropout", "label noise", few)
    return experiments


def _to_the_end(nets: Sequence[dict]) -> list[dict]:
    """Let networks on true labels, which fit early, train on as the paper's do."""
    return [own if own["corruption"] else own | {"stop": None} for own in nets]


MORCOS, OURS = "Morcos et al. 2018", "ours: the figure's gaps are larger"
_LEAST = "on true labels minus the largest on corrupted ones"
_AGREE = "Spearman correlation of AUC and test accuracy, over settings of a sweep"
_POWER = (0.2, "80% power at the paper's 200 networks")


def _rho(statistic: str, smallest: float | None = None, source: str = "", paper=None) -> Rule:
    return Rule(statistic, smallest, source, "correlation", paper=paper)


def _gap(what: str) -> tuple[Rule, ...]:
    return tuple(Rule(f"{network}: {what} {_LEAST}") for network in ("MLP", "convnet"))


_FIT = Gate("share of networks that fitted their labels", least=0.5)
_SPREAD = Gate("generalisation error, 95th minus 5th percentile", least=0.02)
_MLP = "MLPs on MNIST stood for convnets"
_CLAIMS: tuple[tuple, ...] = (  # id, statement, rules, figure, paper's value, gate, corrected, why
    ("S1", "Networks fitted to corrupted labels stand less ablation",
     (Rule("MLP: AUC on true minus on fully corrupted labels", 0.05, OURS), *_gap("AUC")),
     "Figs. 1a, 1b", "accuracy .97 (true), .30 (corrupted) at 400 of 1,024 units of the MLP", None,
     "an order by the corrupted fraction was asked for, which the paper has not",
     "corrupted networks stop once they fit; equal numbers of steps would test it"),
    ("S8", "Networks fitted to corrupted labels stand less noise",
     _gap("mean accuracy over scales of noise"), "Fig. 2", "curves", None, "was a part of S1",
     "noise in proportion spares units at rest; a common scale would test it"),
    ("S13", "S1 holds as well where units are clamped to their means",
     _gap("AUC, clamped to means,"), "", "not asked", None, "",
     "0 lies far from what the next layer expects; the shift it causes would show it"),
    ("S2", "Networks of one topology that generalise better are more robust",
     _rho("minus the Spearman correlation of AUC and generalisation error, varied learning rate",
          *_POWER), "Fig. 3", "200 networks, a scatter plot in three groups", _SPREAD, _MLP,
     "the rate moves both, each in its own direction; C3 tests it"),
    ("C3", "S2 holds at one learning rate too",
     (_rho("minus the correlation of AUC and generalisation error within learning rates, pooled",
           *_POWER),
      _rho("minus the same over networks of one recipe with 0 to 8% of labels corrupted", *_POWER)),
     "Fig. 3b", "negative within groups, in words", _SPREAD,
     "networks of one recipe hardly differ in generalisation: nothing was decided",
     "seeds move generalisation too little; more label noise would test it"),
    ("S3", "Over training, AUC falls where train and test loss part",
     (_rho("minus the Spearman correlation of AUC and test loss over readings", 0.36,
           "half of the paper's", 0.728),
      Rule("2 minus the epochs between the peak of AUC and the least test loss")),
     "Figs. 4a, 4b", "Spearman -0.728, one network",
     Gate("test loss at the end over its least, minus 1", least=0.05),
     "the fall after the least loss was judged, on few readings of a narrow MLP",
     "AUC rises while anything is learned at all; readings after epoch 1 would test it"),
    ("S4", "Over a sweep of hyper-parameters, AUC goes with test accuracy",
     (_rho(_AGREE, 0.46, "half of the paper's", 0.914),
      _rho(f"{_AGREE}, without those below 20%", 0.46, "half of the paper's")),
     "Fig. 4c", "Spearman 0.914, 96 settings twice", None, f"{_MLP}, failures carried it",
     "AUC has train accuracy in it; settings of equal train accuracy would test it"),
    ("S14", "The setting of highest AUC is among the best of a sweep",
     (Rule("share of random halves of the settings in which it is among the best five, minus that "
           "of a random pick", 0.2, "ours: a quarter of the paper's", paper=0.73),
      Rule("0.02 minus the test accuracy lost to the best", paper=0.01)), "Section 3.2",
     "among the best 1, 5, 10 in 13, 83, 98%; by chance 2, 10, 21%", None, "was a part of S4",
     "the best settings are within noise of one another; more repeats would test it"),
    ("S5", "Dropout makes networks robust up to the trained share; beyond it those on corrupted "
     "labels fall faster",
     (Rule("0.05 minus the accuracy lost at the trained share, mean of rates, the more of true and "
           "corrupted labels"),
      Rule("accuracy lost at half of the units, corrupted minus true labels, mean of rates", 0.05,
           OURS, paper=0.27),
      Rule("0.05 minus the range of AUC over rates, true labels")), "Fig. 5a",
     "at 2,000 of 4,096 units .99 (true), .55, .75, .85 (corrupted)", _FIT,
     "a gain over, and a bend beside, networks without dropout are not claimed",
     "few images leave spare units; more images would test it"),
    ("S12", "Dropout bends the curve at the share it trained for",
     Rule("slope beyond minus up to the share, corrupted labels, minus that of the network without "
          "dropout, mean of rates", 0.1, "ours: 0.03 of accuracy over 0.3 of the units"), "",
     "not asked", _FIT, "", "robustness may fade smoothly; other rates would test it"),
    ("S6", "Batch norm makes convnets more robust, units less selective and more informative",
     (Rule("AUC with batch norm minus without, true labels", 0.05, OURS),
      Rule("mean selectivity without minus with, dead maps counted", 0.1, OURS),
      Rule("mean information (bits) with minus without, dead maps counted")), "Figs. 5b, 6",
     "accuracy .98 with, .65 without at 400 of 1,536 maps", None,
     f"{_MLP}, dead units were left out",
     "it may hang on the maps that die without batch norm; the table without them tests it"),
    ("S7", "Selectivity and mutual information are no predictors of importance",
     (*(Rule(f"0.3 minus the Spearman correlation of {m} and the rise of the test loss, MLP",
             range=(-0.7, 1.3), paper=v) for m, v in zip(MEASURES, (0.205, 0.535), strict=True)),
      *(_rho(f"minus that of {m}, convnet", paper=v)
        for m, v in zip(MEASURES, (0.428, 0.490), strict=True))), "Figs. 7, A4",
     "selectivity .095 (MNIST), -.428 (CIFAR-10); information -.235, -.490", None,
     "training images and loss were taken, dead units left out, signs dropped",
     "a network sure of its mistakes may gain test loss by a unit; accuracy would test it"),
    ("S9", "A map of an early layer costs more than one of a late layer",
     Rule("mean rise of the test loss, first minus last three layers of the convnet"),
     "Figs. 7c, 7e", "scatter plots", None, "",
     "early layers have fewer maps; equal numbers of maps would test it"),
    ("S10", "Selectivity grows with depth",
     _rho("Spearman correlation of depth and mean selectivity, 11 layers of the convnet"),
     "Fig. A2", "histograms", None, "",
     "dead maps count as 0 and may be commoner late; leaving them out would test it"),
    ("S11", "Selective maps have small weights",
     _rho("minus the Spearman correlation of selectivity and the L1 norm of a map's weights, mean "
          "of the convnet's layers"), "Fig. A3", "negative on CIFAR-10", None, "",
     "batch norm undoes the size of weights; networks without it would test it"),
    ("C4", "Clamping to 0 is less damaging than clamping to means, in convnets",
     Rule("AUC clamped to 0 minus to the mean of each element of a map", 0.02, OURS), "Fig. A1",
     "curves", None, f"{_MLP}, means were taken over the map",
     "0 is what most elements are; layers of denser maps would test it"),
    ("C1", "Selectivity predicts the loss of one class, not that of all",
     (_rho("Spearman correlation of selectivity and the largest drop of a class, last layer of the "
           "convnet", 0.2, "ours: no number found"),
      Rule("that minus the correlation with the drop on all classes", 0.2,
           "ours: no number found")), "", "not found",
     Gate("test accuracy of the convnets", least=0.5), f"{_MLP}, whose drops are near 0",
     "a class hangs on many maps; a narrower network would test it"),
    ("C2", "Within a layer units that say more matter more, over both layers they do not",
     tuple(rule for m in MEASURES for rule in (
         Rule(f"area between least and most {m} ablated first, the lesser layer", 0.02, OURS),
         Rule(f"that minus the same over both layers together, {m}"))), "", "plots", None,
     "single units were ablated, the paper ablates one after another",
     "error is flat until most units are gone; a narrower network would test it"),
)  # fmt: skip
_PAPERS = {"S12": "ours", "S13": "ours", "C1": "Zhou et al. 2018", "C2": "Amjad et al. 2018"}
CLAIMS = tuple(
    Claim(
        *(id, _PAPERS.get(id, MORCOS), statement, rules, figure, value),
        gate=gate,
        corrected=corrected,
        why=why,
    )
    for id, statement, rules, figure, value, gate, corrected, why in _CLAIMS
)
# On which experiments a claim stands: its data are theirs, its fidelity that of the least.
STANDS_ON = dict.fromkeys(("S1", "S8", "S13"), ("corruption", "convnets"))
STANDS_ON |= {"C3": ("population", "label noise"), "S7": ("units", "convnet units")}
STANDS_ON |= {"S6": ("convnets", "convnet units"), "S2": ("population",), "S3": ("training",)}
STANDS_ON |= {"C2": ("ordered",), "C4": ("convnets",)}
STANDS_ON |= dict.fromkeys(("S4", "S14"), ("sweep",)) | dict.fromkeys(("S5", "S12"), ("dropout",))
STANDS_ON |= dict.fromkeys(("S9", "S10", "S11", "C1"), ("convnet units",))


def tables(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows by experiment, a network's settings as columns of their own."""
    groups = {}
    for name, rows in results.groupby(level=0, sort=False):
        rows = rows.droplevel(0).dropna(axis=1, how="all").reset_index(drop=True).infer_objects()
        own = pd.json_normalize(rows.net.tolist()).rename(columns={"images": "trained"})
        rows = pd.concat([rows.drop(columns="net"), own], axis=1)
        if "layer" in rows:
            rows["layer"] = rows.layer.astype(int)
        if "test_accuracy" in rows:
            rows["generalisation_error"] = rows.train_accuracy - rows.test_accuracy
        groups[name] = rows
    return groups


def below_true(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a column on true minus on corrupted labels: a row a seed, a column a fraction."""
    wide = fitted(rows).pivot_table(index="seed", columns="corruption", values=column)
    if 0.0 not in wide or wide.shape[1] == 1:
        return pd.DataFrame({1.0: [math.nan]})
    return wide.drop(columns=0.0).rsub(wide[0.0], axis=0)


def batch_norm(nets: pd.DataFrame, units: pd.DataFrame) -> list[list[float]]:
    """S6: AUC, selectivity and information, the sign as the paper has it, a value a seed."""
    last = units[units.layer.isin(LAST)].groupby(["seed", "batch_norm"])[list(MEASURES)].mean()
    nets = fitted(nets[nets.corruption == 0]).set_index(["seed", "batch_norm"])
    both = last.join(nets[["auc"]], how="inner").unstack("batch_norm")
    if both.shape[1] < 6:
        return [[math.nan]] * 3
    signs = {"auc": 1, "selectivity": -1, "information": 1}
    return [((both[k, True] - both[k, False]) * sign).tolist() for k, sign in signs.items()]


def statistics(groups: Mapping[str, pd.DataFrame]) -> dict[str, list]:
    """Return for every claim its numbers, one a network, in a list a rule; NaN where unmeasured.

    `groups` are the `tables` of the results of `plan`, as far as there are some.
    """
    values = {claim.id: [[math.nan]] * len(claim.rules) for claim in CLAIMS}

    def put(id: str, series: Sequence, start: int = 0) -> None:
        values[id][start : start + len(series)] = series

    for place, name in enumerate(("corruption", "convnets")):
        if name in groups:
            rows = groups[name][groups[name].batch_norm == bool(place)]
            columns = {"S1": "auc", "S8": "noise_mean", "S13": "auc_mean"}
            gaps = {id: below_true(rows, column) for id, column in columns.items()}
            for id, gap in gaps.items():
                put(id, [gap.min(axis=1).tolist()], place + (id == "S1"))
            if not place:
                put("S1", [gaps["S1"].get(1.0, pd.Series([math.nan])).tolist()])
            else:
                clean = fitted(rows[rows.corruption == 0])
                put("C4", [(clean.auc - clean.auc_mean).tolist() or [math.nan]])
    if "population" in groups:
        rows = fitted(groups["population"])
        put("S2", [one_correlation(rows.auc, rows.generalisation_error, -1)])
        put("C3", [within(rows)])
    if "label noise" in groups:
        rows = fitted(groups["label noise"])
        put("C3", [one_correlation(rows.auc, rows.generalisation_error, -1)], 1)
    if "training" in groups:
        put("S3", parts_by_seed(groups["training"], over_training, 2))
    if "sweep" in groups:
        rows = groups["sweep"].dropna(subset="auc")
        settings = rows.groupby(["rate", "batch"])[["auc", "test_accuracy"]].mean()
        learned = settings[settings.test_accuracy >= 0.2]
        put("S4", [one_correlation(s.auc, s.test_accuracy) for s in (settings, learned)])
        picks = [selection(own).set_index("best") for _, own in rows.groupby("seed")]
        put("S14", [[t.picked[5] - t.chance[5] for t in picks], [0.02 - t.lost[5] for t in picks]])
    if "dropout" in groups:
        *parts, bends = parts_by_seed(groups["dropout"], dropout_statistics, 4)
        put("S5", parts)
        put("S12", [bends])
    for start, name in ((0, "units"), (2, "convnet units")):
        if name in groups:
            rows = fitted(groups[name])
            rows = rows[rows.batch_norm == bool(start)]
            found = [unit_statistics(own) for _, own in rows.groupby("seed")]
            for id in (found[0] if start else ("S7",)) if found else ():
                series = np.transpose([one[id] for one in found])
                own = (-series if start else 0.3 - series) if id == "S7" else series
                put(id, own.tolist(), start if id == "S7" else 0)
    if {"convnets", "convnet units"} <= groups.keys():
        put("S6", batch_norm(groups["convnets"], groups["convnet units"]))
    if "ordered" in groups:
        put("C2", parts_by_seed(fitted(groups["ordered"]), layered, 4))
    return {id: parts if len(parts) > 1 else parts[0] for id, parts in values.items()}


def gates(groups: Mapping[str, pd.DataFrame]) -> dict[str, float]:
    """Return what the gates of the claims measure, as far as it is known."""
    measured = {}
    for id, name in (("S2", "population"), ("C3", "label noise")):
        if name in groups and len(rows := fitted(groups[name])):
            measured[id] = float(np.ptp(np.quantile(rows.generalisation_error, (0.05, 0.95))))
    if "training" in groups:
        losses = groups["training"].groupby("seed").test_loss
        measured["S3"] = float((losses.last() / losses.min() - 1).mean())
    if "dropout" in groups:
        share = len(fitted(groups["dropout"])) / len(groups["dropout"])
        measured |= dict.fromkeys(("S5", "S12"), share)
    if "convnet units" in groups:
        rows = groups["convnet units"]
        measured["C1"] = float(rows[rows.batch_norm].groupby("seed").test_accuracy.first().mean())
    return measured


def second_cases(groups: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the statistics of some claims on the kind of network that the paper did not take."""
    found: dict[tuple[str, str], list] = {}
    if "MLP population" in groups:
        rows = fitted(groups["MLP population"])
        pair = [one_correlation(rows.auc, rows.generalisation_error, -1), within(rows)]
        found |= {("S2", "MLP"): pair[0], ("C3", "MLP"): pair[1]}
    if "corruption" in groups:
        rows = fitted(groups["corruption"].query("corruption == 0"))
        found["C4", "MLP"] = (rows.auc - rows.auc_mean).tolist()
    if "units" in groups:
        by_seed = [unit_statistics(own)["C1"] for _, own in fitted(groups["units"]).groupby("seed")]
        found |= {("C1", "MLP"): [first for first, _ in by_seed]}
    if "ordered elsewhere" in groups:
        for name, rows in fitted(groups["ordered elsewhere"]).groupby("data"):
            parts = parts_by_seed(rows, layered, 4)
            found |= {("C2", f"{name}, part {i}"): part for i, part in enumerate(parts, 1)}
    if "convnet dropout" in groups:
        parts = parts_by_seed(groups["convnet dropout"], dropout_statistics, 4)
        found |= {("S5", f"convnet, part {i}"): part for i, part in enumerate(parts[:3], 1)}
        found["S12", "convnet"] = parts[3]
    rows = [
        (*key, v["r"], v["n"]) if isinstance(v, dict) else (*key, mean(v), len(v))
        for key, v in found.items()
    ]
    return pd.DataFrame(rows, columns=["claim", "network", "value", "networks"])
