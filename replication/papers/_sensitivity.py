"""Fully connected networks of notebook 05: their settings, what is measured, and its statistics.

A measuring function takes a spec of `jacobian_vs_gap.plan`, or several, whose ``training`` is all
that `training.Spec` takes, trains the network or finds it, and returns rows. Pixels are
standardised.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau, mannwhitneyu
from torch import Tensor, nn

from replication import data, sensitivity, training
from replication._core import paths
from replication.claims.inference import FEWEST, fisher
from replication.papers._correlation import correlation, partial_correlation
from replication.sensitivity import trajectories

TRUE, RANDOM = "true", "random"
INITIAL, TRAINED = "before training", "after training"
DIFFERENT, SAME, NOISE, TRANSLATIONS = "different classes", "same class", "noise", "translations"
MEASURED = ["gap", "jacobian", "logit_jacobian", "confidence", "transitions", "test_accuracy"]
AUGMENT = {"shift": 4, "flip": 0.5}
WINDOW = 5.0  # degrees on either side of a point, or of the middle between two
RADIUS = 0.05  # of circles around points of a plane, over the mean distance of its three images
OPTIMIZERS = {  # torch's names and options of the paper's five
    "SGD": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "Adam": ("Adam", {}),
    "RMSProp": ("RMSprop", {}),
    "L-BFGS": ("LBFGS", {"max_iter": 1, "history_size": 10}),  # a gradient a step
}


def network_spec(
    name: str, images: Sequence[int], width: int, depth: int, steps: int, seed: int, **choice
) -> dict:
    """Return a network's settings; ``training`` is all of what `training.Spec` takes.

    `choice` may have activation, optimizer, rate, schedule, batch, labels, augmented, ``at``, the
    steps after which the weights are kept besides the last, and ``rows``, of the history.
    """
    usual: dict[str, Any] = {"activation": "relu", "optimizer": "momentum", "rate": 0.005}
    own = usual | {"batch": 128, "labels": TRUE, "augmented": False, "at": [steps]}
    own |= {"schedule": "constant", "rows": 1} | choice
    own["batch"] = min(own["batch"], images[0])
    inputs, epoch = 3072 if "cifar" in name else 784, math.ceil(images[0] / own["batch"])
    options = {"inputs": inputs, "widths": [width] * depth, "activation": own["activation"]}
    kind, details = OPTIMIZERS[own["optimizer"]]
    own["training"] = {
        "model": "mlp",
        "model_options": options | {"bias": False, "init": "he"},
        "optimizer": kind,
        "optimizer_options": details,
        "learning_rate": own["rate"],
        "schedule": own["schedule"],
        "batch_size": own["batch"],
        "epochs": steps / epoch,
        "evaluate_every": steps / epoch / own["rows"],
        "checkpoints": [step / epoch for step in own["at"]],
        "label_corruption": float(own["labels"] == RANDOM),
        "augment": AUGMENT if own["augmented"] else {},
        "seed": seed,
    }
    place = {"dataset": name, "images": list(images), "width": width, "depth": depth}
    return place | {"steps": steps, "seed": seed} | own


def work(spec: Mapping) -> float:
    """Return the FLOP of a network's training: 6 x weights x images seen."""
    width, inputs = spec["width"], spec["training"]["model_options"]["inputs"]
    weights = inputs * width + (spec["depth"] - 1) * width**2 + 10 * width
    return 6.0 * weights * spec["batch"] * spec["steps"]


@functools.lru_cache(maxsize=3)
def images_of(name: str, train: int, test: int, device: str) -> data.Split:
    """Return a data set with (pixel - mean) / standard deviation."""
    return data.standardise(data.load(name, subset=(train, test), device=device))[0]


def trained(specs: Sequence[Mapping], device: str, keep: bool) -> list[training.Run]:
    """Return networks on one data set, as one program where that is faster.

    `keep` is for networks of which there are several readings.
    """
    split = images_of(specs[0]["dataset"], *specs[0]["images"], device)
    how = [training.Spec(**spec["training"]) for spec in specs]
    store = paths.runs() / "networks" if keep else None
    return training.fit_population(how, split, store=store, device=device, progress=False)


def networks(specs: Sequence[Mapping], device: str = "auto") -> list[list[dict]]:
    """Train networks on one data set, and measure each: a row for each of the steps ``at``."""
    split = images_of(specs[0]["dataset"], *specs[0]["images"], device)
    runs = trained(specs, device, specs[0]["kept"])
    return [measured(run, spec, split, device) for run, spec in zip(runs, specs, strict=True)]


def measured(run: training.Run, spec: Mapping, split: data.Split, device: str) -> list[dict]:
    """Return accuracy and sensitivity of a network, a row for each of the steps ``at``."""
    rows, history = [], run.history.set_index("step")
    points = split.test.images[: spec["points"]]
    for epoch, step in sorted(run.checkpoints.items()):
        if step == 0 or (step not in spec["at"] and run.status != "diverged"):
            continue
        row = {"step": step, "ended": run.status, **dict.fromkeys(MEASURED, math.nan)}
        row |= history.loc[step, ["train_loss", "train_accuracy", "test_accuracy"]]
        rows.append(row)
        model = run.model(epoch, device)
        with torch.no_grad():
            logits = model(points)
        if run.status == "diverged" or not logits.isfinite().all():
            continue
        row["confidence"] = logits.softmax(1).amax(1).mean().item()
        row["gap"] = row["train_accuracy"] - row["test_accuracy"]
        row["jacobian"] = sensitivity.jacobian_norm(model, points).mean().item()
        row["logit_jacobian"] = sensitivity.jacobian_norm(model, points, "logits").mean().item()
        if spec["activation"] != "tanh" and spec["paths"]:  # tanh has no regions
            rings = [trajectories.translations(x, x.shape[-1]) for x in points[: spec["paths"]]]
            row["transitions"] = np.mean([int(t) for t in sensitivity.transitions(model, rings)])
    return rows


def triple(split: data.Split, kind: str, source: torch.Generator) -> Tensor:
    """Return three training images (3, C, H, W) of different classes, or of the same."""
    order = torch.randperm(split.num_classes, generator=source)
    labels, rows = split.train.labels.cpu(), []
    for label in order[:3] if kind == DIFFERENT else order[:1].expand(3):
        members = (labels == label).nonzero()[:, 0]
        mixed = members[torch.randperm(len(members), generator=source)]
        rows.append(next(row for row in mixed.tolist() if row not in rows))
    return split.train.images[rows]


def closed_paths(split: data.Split, kind: str, seed: int, count: int) -> list[Tensor]:
    """Return `count` paths of one kind, polylines (vertices, C, H, W), by their seed."""
    source = torch.Generator().manual_seed(seed)
    if kind == NOISE:
        seeds = range(1000 * seed, 1000 * seed + count)
        return [trajectories.random_ellipse(split.train.images, 360, seed=s) for s in seeds]
    if kind == TRANSLATIONS:
        chosen = torch.randperm(len(split.test), generator=source)[:count]
        return [trajectories.translations(x, x.shape[-1]) for x in split.test.images[chosen]]
    return [trajectories.ellipse(*triple(split, kind, source), vertices=360) for _ in range(count)]


def curves(spec: Mapping, device: str = "auto") -> pd.DataFrame:
    """Follow a network along closed paths of a kind, before and after training.

    Columns: angle, norm (|J|) and density (transitions a degree), means over the paths and over 72
    parts of a path, centred on 0, 5, 10 ... degrees; the points of an ellipse lie at 0, 120, 240.
    """
    run = trained([spec], device, keep=True)[0]
    split, tables = images_of(spec["dataset"], *spec["images"], device), []
    parts, kind = 72, spec["kind"]
    paths_ = closed_paths(split, kind, spec["seed"], spec["ellipses"])
    samples = [trajectories.sample(p, 360) if kind == TRANSLATIONS else p for p in paths_]
    for stage, epoch in ((INITIAL, 0), (TRAINED, None)):
        model = run.model(epoch, device)
        norms = torch.stack([sensitivity.jacobian_norm(model, x) for x in samples]).mean(0)
        counts = sensitivity.transitions(model, paths_)
        density = torch.stack([t.density(2 * parts) for t in counts]).mean(0) / 360
        table = {"angle": torch.arange(parts) * (360 / parts)}
        table |= {"norm": norms.roll(2).view(parts, -1).mean(1)}
        table |= {"density": density.roll(1).view(parts, 2).mean(1)}
        table = pd.DataFrame({k: v.float().cpu() for k, v in table.items()})
        tables.append(table.assign(stage=stage))
    accuracy = run.history.train_accuracy.iloc[-1]
    return pd.concat(tables, ignore_index=True).assign(train_accuracy=accuracy)


def planes(spec: Mapping, device: str = "auto") -> list[dict]:
    """Count boundaries of the last hidden layer near training images, and along rays from 0.

    In each plane through three training images of different classes, small circles around these,
    and around three points drawn from their parallelogram: transitions of the last layer's units.
    ``rays``: those of all layers from x / 8 to 8 x, for test images x.
    """
    run = trained([spec], device, keep=True)[0]
    split, rows = images_of(spec["dataset"], *spec["images"], device), []
    source = torch.Generator().manual_seed(spec["seed"])
    angle = torch.arange(60) * (2 * math.pi / 60)
    wave = torch.stack([angle.cos(), angle.sin()], 1).to(split.train.images)
    circles = []
    for _ in range(spec["planes"]):
        points = triple(split, DIFFERENT, source).flatten(1)
        sides = torch.linalg.qr((points[1:] - points[0]).T)[0].T  # orthonormal, (2, pixels)
        radius = RADIUS * torch.pdist(points).mean()
        share = torch.rand(3, 2, generator=source).to(points)
        others = points[0] + share @ (points[1:] - points[0])
        circles += [centre + radius * wave @ sides for centre in (*points, *others)]
    circles = [circle.unflatten(1, split.train.images.shape[1:]) for circle in circles]
    rays = [torch.stack([x / 8, 8 * x]) for x in split.test.images[: spec["planes"]]]
    for stage, epoch in ((INITIAL, 0), (TRAINED, None)):
        model = run.model(epoch, device)
        last = f"act{spec['depth']}"
        found = [t.per_layer[last] for t in sensitivity.transitions(model, circles)]
        near, elsewhere = np.array(found).reshape(-1, 2, 3).sum((0, 2)).tolist()
        row = {"stage": stage, "near": near, "elsewhere": elsewhere}
        row["rays"] = sum(map(int, sensitivity.transitions(model, rays, closed=False)))
        rows.append(row | {"train_accuracy": run.history.train_accuracy.iloc[-1]})
    return rows


def maps(spec: Mapping, device: str = "auto") -> list[dict]:
    """Draw the boundaries of a layer's regions in a plane: a row a line, ``edges`` of 0 and 1."""
    run, rows = trained([spec], device, keep=True)[0], []
    split = images_of(spec["dataset"], *spec["images"], device)
    corners = triple(split, DIFFERENT, torch.Generator().manual_seed(spec["seed"]))
    for layer in (1, spec["depth"]):
        for stage, epoch in ((INITIAL, 0), (TRAINED, None)):
            options = {"resolution": spec["grid"], "layers": [f"act{layer}"]}
            seen = sensitivity.region_map(run.model(epoch, device), *corners, **options)
            place = {"stage": stage, "layer": layer, "count": seen.count}
            place |= {"extent": list(seen.extent), "points": seen.points.flatten().tolist()}
            for line, edges in enumerate(seen.edges.int().tolist()):
                rows.append(place | {"line": line, "edges": "".join(map(str, edges))})
    return rows


def points(spec: Mapping, device: str = "auto") -> pd.DataFrame:
    """Measure a network on single test points, a row a point.

    Columns: cross_entropy, correct, norm (|J|), row_norm (|J_y|), logit_norm, and shuffled_norm,
    what |J_y| were with the logits' gradients of another point.
    """
    run = trained([spec], device, keep=True)[0]
    split = images_of(spec["dataset"], *spec["images"], device)
    images, labels = (x[: spec["points"]] for x in (split.test.images, split.test.labels))
    model = run.model(device=device)
    with torch.no_grad():
        logits = model(images)
    if not logits.isfinite().all():
        return pd.DataFrame({"norm": [math.nan], "ended": run.status})
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(spec["seed"]))
    columns = {
        "cross_entropy": sensitivity.cross_entropies(logits, labels),
        "correct": logits.argmax(1) == labels,
        "norm": sensitivity.jacobian_norm(model, images),
        "row_norm": sensitivity.jacobian_row_norm(model, images, labels),
        "logit_norm": sensitivity.jacobian_norm(model, images, "logits"),
        "shuffled_norm": row_norms(logits, labels, logit_grams(model, images)[order]).float(),
    }
    table = pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})
    return table.assign(train_accuracy=run.history.train_accuracy.iloc[-1], ended=run.status)


def logit_grams(model: nn.Module, images: Tensor) -> Tensor:
    """Return (df/dx) (df/dx)^T of each point, (N, classes, classes), in float64."""
    grams = []
    for batch in images.split(200):
        x = batch.clone().requires_grad_()
        logits = model(x).sum(0)
        rows = [torch.autograd.grad(f, x, retain_graph=True)[0].flatten(1) for f in logits]
        rows = torch.stack(rows, 1).double()
        grams.append(rows @ rows.mT)
    return torch.cat(grams)


def row_norms(logits: Tensor, labels: Tensor, grams: Tensor) -> Tensor:
    """Return |J_y| (N,) from logits, labels and the Gram matrices G of the logits' gradients.

    |J_y|^2 = v^T G v with v = s_y (e_y - s), where 1 - s_y is formed as the sum of the others.
    """
    s, own = logits.double().softmax(1), labels[:, None]
    rest = s.scatter(1, own, 0.0)
    v = s.gather(1, own) * (-rest).scatter(1, own, rest.sum(1, keepdim=True))
    return torch.einsum("nc,ncd,nd->n", v, grams, v).clamp_min(0).sqrt()


def fitted(rows: pd.DataFrame) -> pd.Series:
    """Tell which networks (rows) have a train accuracy of 100%; one that diverged has not."""
    return rows.train_accuracy.astype(float) >= 1 - 1e-9


def along(rows: pd.DataFrame) -> dict[tuple[str, int], list[float]]:
    """N1, N2, N3, N15: of networks along ellipses, by logarithms of means over their points."""
    found: dict[tuple[str, int], list[float]] = {}
    rows = rows[rows.stage == TRAINED]
    off = ((rows.angle.astype(float) + 60) % 120 - 60).abs()  # from a point: 0 to 60 degrees
    for _, own in rows.groupby("seed"):
        at, mid = (
            own[chosen[own.index]].groupby("kind")[["norm", "density"]].mean().astype(float)
            for chosen in (off <= WINDOW, off >= 60 - WINDOW)
        )
        at, mid = (t.where(t > 0).reindex([DIFFERENT, SAME, NOISE]) for t in (at, mid))
        norm, density = (np.log(mid / at).norm / math.log(10)), np.log(mid / at).density
        between = np.log(mid.loc[DIFFERENT] / mid.loc[SAME])
        noise = math.log10(mid.norm[NOISE] / mid.norm[DIFFERENT])
        parts = {"N1": norm, "N2": density[[DIFFERENT, NOISE]], "N15": [noise]}
        parts["N3"] = [between.norm / math.log(10), between.density]
        for claim, values in parts.items():
            for part, value in enumerate(values):
                found.setdefault((claim, part), []).append(float(value))
    return found


def in_planes(rows: pd.DataFrame) -> dict[tuple[str, int], list[float]]:
    """N17, N18: boundaries near training points over elsewhere, and changes along rays."""
    share = np.log((rows.near.astype(float) + 0.5) / (rows.elsewhere.astype(float) + 0.5))
    late = rows.stage == TRAINED
    moved = share[~late].to_numpy() - share[late].to_numpy()
    return {("N17", 0): list(moved), ("N18", 0): list(0.5 - rows.rays.astype(float))}


def misclassified(points: pd.DataFrame) -> tuple[float, float]:
    """N11: AUC - 0.5 of |J| for misclassified points, and their share below the correct median."""
    wrong, right = (points.norm[points.correct == value].astype(float) for value in (False, True))
    if wrong.empty or right.empty:
        return math.nan, math.nan
    larger = mannwhitneyu(wrong, right).statistic / (len(wrong) * len(right))
    return float(larger) - 0.5, float((wrong < right.median()).mean())


def bounded(points: pd.DataFrame, classes: int = 10) -> list[float]:
    """N12: shares inside the bounds, and how far the approximation is off, by kind of point."""
    columns = ["cross_entropy", "norm", "row_norm", "logit_norm", "shuffled_norm"]
    loss, norm, row, logit, shuffled = points[columns].to_numpy(float).T
    square = sensitivity.mean_square_gradient(logit, classes)
    bounds = sensitivity.cross_entropy_bounds(loss, square, classes)
    inside, null = ((r >= bounds.lower) & (r <= bounds.upper) for r in (row, shuffled))
    told, norm = (np.maximum(values, 1e-38) for values in (bounds.approximation, norm))
    off = np.abs(np.log10(told / norm))  # below 1e-38 float32 has only 0
    kinds = [points.correct.to_numpy(), ~points.correct.to_numpy()]
    shares = [float(inside[kind].mean()) if kind.any() else math.nan for kind in kinds]
    missed = [
        math.log10(2) - float(np.median(off[kind])) if kind.any() else math.nan for kind in kinds
    ]
    return [*shares, float(inside.mean() - null.mean()), *missed]


def correlations(networks: pd.DataFrame, measures: Sequence[str] = ("jacobian",)) -> pd.DataFrame:
    """Return how well each measure ranks the fitted networks by their gap, by labels.

    Columns: dataset, measure, labels, networks, spearman with the 95% interval low, high (Bonett
    and Wright 2000), kendall (tau-b), partial (Spearman's at equal train loss); NaN for fewer than
    10 networks.
    """
    rows = []
    for (name, labels), own in networks[fitted(networks)].groupby(["dataset", "labels"]):
        for measure in measures:
            some = own.dropna(subset=[measure, "gap"])
            row = {"dataset": name, "measure": measure, "labels": labels, "networks": len(some)}
            row |= dict.fromkeys(("spearman", "low", "high", "kendall", "partial"), math.nan)
            r = correlation(some[measure], some.gap)
            if len(some) >= FEWEST["ranks"] and not math.isnan(r):
                low, high = fisher(r, len(some), True).interval if abs(r) < 1 else (r, r)
                row |= {"spearman": r, "low": float(low), "high": float(high)}
                row["kendall"] = float(kendalltau(some[measure], some.gap).statistic)
                values = (some[measure], some.gap, some.train_loss)
                row["partial"] = partial_correlation(*values)
            rows.append(row)
    columns = ["dataset", "measure", "labels", "networks", "spearman", "low", "high", "kendall"]
    return pd.DataFrame(rows, columns=[*columns, "partial"])
