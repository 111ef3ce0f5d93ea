"""Networks of Morcos et al. 2018 by their settings, and what is measured of single directions.

AUC is the area under accuracy on training images against the share of ablated units, after the
nonlinearity, the mean over orders: of both hidden layers of an MLP, of the maps of a convnet's last
three. Selectivity, mutual information and what a unit's absence costs are measured on test images,
dead units counted. The paper names no optimiser, rate or batch; Adam is that of Morcos et al.
2018b (A.4).
"""

import functools
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replication import activations, data, directions, sweeps, training
from replication._core import paths
from replication.papers._correlation import correlation

FITTED = 0.99  # train accuracy from which a network has fitted its labels
BEYOND = 0.3  # of units, ablated beyond the share that dropout trained for
LAST = (9, 10, 11)  # layers of a convnet that are ablated
MEASURES = ("selectivity", "information")


@sweeps.named_by_spec
@functools.lru_cache(maxsize=3)
def _images(name: str, counts: tuple[int, int], shrink: int, device: str) -> data.Split:
    split = data.load(name, subset=counts, device=device)
    return data.standardise(split.with_images(lambda x: F.avg_pool2d(x, shrink)))[0]


@sweeps.named_by_spec
def split_of(own: Mapping, device: str = "cpu") -> data.Split:
    """Return the images of a network, standardised."""
    return _images(own["data"], tuple(own["images"]), own.get("shrink", 1), device)


@sweeps.named_by_spec
def training_spec(own: Mapping) -> training.Spec:
    """Return how a network is trained."""
    options = {"batch_norm": own["batch_norm"], "dropout": own["dropout"]}
    options |= {k: own[k] for k in ("width", "channels") if "channels" in own}
    options |= {} if "channels" in own else {"widths": [own["width"]] * 2}
    options |= {"inputs": own["inputs"]} if "inputs" in own else {}
    if "channels" in own and not own["batch_norm"]:  # torch's own leaves 11 such layers without
        options["init"] = "he"  # a gradient: logits of images differ by 3e-6 at the start
    epochs, readings = own["epochs"], own["readings"]
    return training.Spec(
        model=own["model"],
        model_options=options,
        optimizer="Adam",
        learning_rate=own["rate"],
        schedule=own["schedule"],
        batch_size=own["batch"],
        epochs=epochs,
        label_corruption=own["corruption"],
        keep_marginal=True,
        checkpoints=tuple(i / readings for i in range(readings * epochs + 1) if readings),
        stop_at_train_accuracy=own["stop"],
        evaluate_every=max(1, epochs // (20 if "channels" in own else 60))
        if own["stop"]
        else epochs,
        evaluation_images=own["evaluated"],
        seed=own["seed"],
        precision=own["precision"],
    )


@sweeps.named_by_spec
def network(own: Mapping, device: str = "auto") -> training.Run:
    """Return a network, trained or from the store."""
    options = {"store": paths.runs() / "networks", "device": device, "progress": False}
    return training.fit(training_spec(own), split_of(own, device), **options)


def named(own: Mapping) -> dict:
    """Return what a spec says of a network: its settings, and the key of its training.

    The data are in the key by name, so that it can be had without them.
    """
    digest = f"{own['data']} {own['images']} {own.get('shrink', 1)} standardised"
    return {"net": own, "network": training_spec(own).key(SimpleNamespace(digest=digest))}


class Shift(nn.Module):
    """Adds a constant (1, units, ...)."""

    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.register_buffer("by", by)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + by."""
        return x + self.by


def centred(model: nn.Sequential, images: Tensor, layers: Sequence[str]) -> nn.Sequential:
    """Return the same function, in which 0 at ``<layer>_centred`` stands for the mean over images.

    Each element of a feature map has a mean of its own (Morcos et al. 2018, appendix A.1).
    """
    outputs, modules = activations.record(model, images, layers), OrderedDict()
    for name, module in model.named_children():
        modules[name] = module
        if name in layers:
            mean = outputs[name].mean(0, keepdim=True)
            modules |= {f"{name}_centred": Shift(-mean), f"{name}_back": Shift(mean)}
    return nn.Sequential(modules).eval()


def ablated_layers(own: Mapping) -> list[str]:
    """Return the layers that are ablated together: all of an MLP, the last three of a convnet."""
    return [f"act{i}" for i in (LAST if "channels" in own else (1, 2))]


def ablate(spec: Mapping, device: str = "auto") -> dict:
    """Ablate a network's units and put noise on them: accuracy on training images, as labelled.

    Its accuracies and losses at epoch `at` (None: the last), ``auc`` and the curve (``share``,
    ``accuracy``) clamped to 0; with `means` also to means; with `noise`, variances over a unit's
    own, the accuracy at each, on the units of all layers. No curve of a network that diverged.
    """
    own, split = spec["net"], split_of(spec["net"], device)
    run, layers = network(own, device), ablated_layers(own)
    shown = split.train.images[: spec["shown"]]
    labels = training.training_labels(run.spec, split)[: spec["shown"]]
    epoch = max(run.checkpoints) if spec["at"] is None else spec["at"]
    row = run.history.set_index("step").loc[run.checkpoints[epoch]].to_dict()
    row |= {"status": run.status}
    if run.status == "diverged":
        return row
    model = run.model(epoch, device)
    nets = {"": (model, layers)}
    if spec["means"]:
        nets["_mean"] = centred(model, shown, layers), [f"{name}_centred" for name in layers]
    for name, (clamped, where) in nets.items():
        curve = _curve(clamped, shown, labels, where, spec, spec["orders"], own["seed"])
        row |= {f"auc{name}": curve.auc.mean().item()}
        row |= {f"accuracy{name}": curve.accuracy.mean(0).tolist()}
        row |= {"share": (curve.counts / curve.counts[-1]).tolist()}
    if spec["noise"]:
        options = spec["noise"], spec["draws"], own["seed"], "variance"
        every = [name for name, _ in model.named_children() if name.startswith("act")]
        noisy = directions.noise_curve(model, shown, labels, every, *options).accuracy
        row |= {"noisy": noisy.mean(0).tolist(), "noise_mean": noisy.mean().item()}
    return row


def _curve(
    model: nn.Module, images: Tensor, labels: Tensor, layers: Sequence[str], spec, orders, seed=0
) -> directions.AblationCurve:
    """Return cumulative ablation at so many points from no unit to all."""
    outputs = activations.record(model, images[:2], layers)
    count = sum(z.shape[1] for z in outputs.values())
    counts = sorted({round(k) for k in np.linspace(0, count, spec["points"])})
    options = {"orders": orders, "counts": counts, "seed": seed}
    return directions.cumulative_ablation(model, images, labels, layers, **options)


def _said(model: nn.Module, images: Tensor, labels: Tensor) -> dict[int, dict[str, Tensor]]:
    """Return what the units of each layer, by its number, say about the class."""
    layers = [name for name, _ in model.named_children() if name.startswith("act")]
    said = {}
    for name, z in activations.record(model, images, layers, reduction="spatial_mean").items():
        found = directions.class_selectivity(z, labels)
        said[int(name[3:])] = {
            "selectivity": found.index,
            "information": directions.mutual_information(z, labels),
            "dead": found.dead,
        }
    return said


def _tested(spec: Mapping, device: str) -> tuple[training.Run, nn.Module, Tensor, Tensor]:
    """Return a network's run, the network, and test images with labels."""
    test, run = split_of(spec["net"], device).test, network(spec["net"], device)
    images, labels = (part[: spec["tested"]] for part in (test.images, test.labels))
    return run, run.model(device=device), images, labels


def units(spec: Mapping, device: str = "auto") -> pd.DataFrame:
    """Measure every unit of all layers on test images: a row a unit.

    ``loss_rise`` (nats), ``accuracy_drop`` and ``class_drop``, the largest of a class, are without
    it; ``weight`` is the L1 norm of its weights; dead units have selectivity 0 (footnote 3).
    """
    run, model, images, labels = _tested(spec, device)
    said = _said(model, images, labels)
    damage = directions.unit_ablation(model, images, labels, [f"act{i}" for i in said])
    modules, rows = dict(model.named_children()), []
    for number, columns in said.items():
        weight = (modules.get(f"conv{number}") or modules[f"fc{number}"]).weight.detach()
        columns = columns | {"weight": weight.abs().flatten(1).sum(1)}
        values = {name: value.cpu().numpy() for name, value in columns.items()}
        rows.append(pd.DataFrame(values).assign(layer=number))
    table = pd.concat(rows, ignore_index=True)
    drops = damage.class_accuracy_drop.nan_to_num(0).amax(1)
    damages = {"loss_rise": damage.loss_rise, "accuracy_drop": damage.accuracy_drop}
    for name, value in (damages | {"class_drop": drops}).items():
        table[name] = value.cpu().numpy().astype(np.float32)
    last = run.history.iloc[-1]
    return table.assign(train_accuracy=last.train_accuracy, test_accuracy=last.test_accuracy)


def ordered(spec: Mapping, device: str = "auto") -> list[dict]:
    """Ablate an MLP's units from the least and from the most selective or informative on.

    A row a measure and layers: ``area`` between both curves of the test error, positive where the
    units that score high matter more (Amjad et al. 2018).
    """
    run, model, images, labels = _tested(spec, device)
    said, rows = _said(model, images, labels), []
    for measure in MEASURES:
        for layers in ([1], [2], [1, 2]):
            up = torch.cat([said[i][measure] for i in layers]).argsort(stable=True)
            orders, names = torch.stack([up, up.flip(0)]), [f"act{i}" for i in layers]
            curve = _curve(model, images, labels, names, spec, orders)
            row = {"measure": measure, "layers": "+".join(map(str, layers))}
            row |= {"area": (curve.auc[0] - curve.auc[1]).item()}
            rows.append(row | {"train_accuracy": run.history.train_accuracy.iloc[-1]})
    return rows


def fitted(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the networks whose train accuracy, on the labels trained on, is at least 99%."""
    return rows[rows.train_accuracy >= FITTED - 1e-9]


def one_correlation(x: Sequence[float], y: Sequence[float], sign: int = 1) -> dict | list:
    """Return Spearman's correlation as a rule of "correlation" takes it; NaN where undefined."""
    rho = correlation(x, y)
    return [math.nan] if math.isnan(rho) else {"r": sign * rho, "n": len(x), "rank": True}


def within(rows: pd.DataFrame, sign: int = -1) -> dict | list:
    """Return the correlation of AUC and generalisation error within learning rates, pooled.

    Fisher's z of each rate has variance 1 / (n - 3): the mean weighted by n - 3 has that of one
    correlation over sum(n - 3) + 3 networks.
    """
    found = [
        (correlation(own.auc, own.generalisation_error), len(own) - 3)
        for _, own in rows.groupby("rate")
        if len(own) > 3
    ]
    found = [(math.atanh(r), weight) for r, weight in found if abs(r) < 1]
    if not found:
        return [math.nan]
    z, weights = np.array(found).T
    r = sign * math.tanh(np.average(z, weights=weights))
    return {"r": r, "n": int(weights.sum()) + 3, "rank": True}


def over_training(rows: pd.DataFrame) -> tuple[float, float]:
    """S3: minus the correlation of AUC and test loss; 2 minus epochs between their extremes."""
    peak, least = rows.epoch[rows.auc.idxmax()], rows.epoch[rows.test_loss.idxmin()]
    return -correlation(rows.auc, rows.test_loss), 2 - abs(peak - least)


def selection(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how often the highest AUC picks one of the best settings of a random half of them.

    A row for the best 1, 5 and 10: ``picked`` is the share of 1,000 halves, ``chance`` that of a
    random pick, ``lost`` the accuracy by which the pick is below the best, mean of halves.
    """
    settings = rows.dropna(subset="auc").groupby(["rate", "batch"])[["auc", "test_accuracy"]].mean()
    auc, accuracy = settings.auc.to_numpy(), settings.test_accuracy.to_numpy()
    half, source, ranks, lost = -(-len(settings) // 2), np.random.default_rng(0), [], []
    for _ in range(1000):
        chosen = source.permutation(len(settings))[:half]
        pick = chosen[auc[chosen].argmax()]
        ranks.append((accuracy[chosen] > accuracy[pick]).sum())
        lost.append(accuracy[chosen].max() - accuracy[pick])
    table = pd.DataFrame({"best": [1, 5, 10], "lost": np.mean(lost)})
    table["picked"] = [float(np.mean(np.array(ranks) < k)) for k in table.best]
    return table.assign(chance=(table.best / half).clip(upper=1.0))


def dropout_statistics(rows: pd.DataFrame) -> tuple[float, float, float, float]:
    """S5's three statistics and S12's, of one seed."""
    curves = {
        (row.corruption, row.dropout): (row.share, row.accuracy)
        for row in fitted(rows).itertuples()
    }
    lost: dict[float, list] = {0.0: [], 1.0: []}
    beyond, bends = [], []

    def bend(key: tuple, rate: float) -> float:
        start, kept, end = np.interp([0, rate, rate + BEYOND], *curves[key])
        return (kept - end) / BEYOND - (start - kept) / rate

    for level, rate in sorted(key for key in curves if key[1]):
        start, kept, half = np.interp([0, rate, 0.5], *curves[level, rate])
        lost[level].append(start - kept)
        if level and (0.0, rate) in curves:
            true = np.interp([0, 0.5], *curves[0.0, rate])
            beyond.append((start - half) - (true[0] - true[1]))
        if level and (level, 0.0) in curves:
            bends.append(bend((level, rate), rate) - bend((level, 0.0), rate))
    aucs = fitted(rows).query("corruption == 0 and dropout > 0").auc
    worst = max(map(mean, lost.values())) if all(lost.values()) else math.nan
    spread = 0.05 - np.ptp(aucs) if len(aucs) > 1 else math.nan
    return 0.05 - worst, mean(beyond), float(spread), mean(bends)


def mean(values: Sequence[float]) -> float:
    """Return the mean, NaN of none."""
    return float(np.mean(values)) if len(values) else math.nan


def unit_statistics(rows: pd.DataFrame) -> dict[str, list[float]]:
    """S7 and S9 to C1 of one network, from its units."""
    layers = [own for _, own in rows.groupby("layer")]
    impact = [own.loss_rise.mean() for own in layers]
    drops = [
        correlation(layers[-1].selectivity, layers[-1][d]) for d in ("class_drop", "accuracy_drop")
    ]
    weights = [correlation(own.selectivity, own.weight) for own in layers]
    return {
        "S7": [correlation(rows[measure], rows.loss_rise) for measure in MEASURES],
        "S9": [np.mean(impact[:3]) - np.mean(impact[-3:])],
        "S10": [correlation(range(len(layers)), [own.selectivity.mean() for own in layers])],
        "S11": [-float(np.nanmean(weights)) if np.isfinite(weights).any() else math.nan],
        "C1": [drops[0], drops[0] - drops[1]],
    }


def layered(rows: pd.DataFrame) -> list[float]:
    """C2's four statistics of one network."""
    wide = rows.pivot(index="measure", columns="layers", values="area")
    least = wide[["1", "2"]].min(axis=1)
    return [v for m in MEASURES for v in (least[m], least[m] - wide.loc[m, "1+2"])]
