"""What notebook 07 measures: how alike the layers of trained networks are, by every index.

A spec holds a network's whole recipe, so that it names what is trained. Similarities are 1 for
equal layers; Procrustes enters as 1 - d / 2. Layers are read *flattened* (every neuron of a feature
map a column, or of maps with too many every k-th row and column), as *spatial means* (of tokens
their mean), or, in a transformer, with every token an example at one of four places.
"""

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from replication import activations, data, similarity, sweeps, training
from replication._core import paths
from replication._core.files import atomic
from replication._core.inputs import choose_device, generator
from replication.directions.probe import linear_probe
from replication.papers import svcca_dynamics
from replication.papers._grids import tidy
from replication.papers._untrained import with_statistics
from replication.training.trainer import Trainer

PLACES = {  # of a sublayer, in attention and in MLP
    "layer norm": (".norm", ".norm"),  # without its learned scale and shift
    "scale": (".norm", ".norm"),
    "sublayer": (".project", ".fc2"),
    "residual": ("", ""),
}
TOLERANCE = 1e-6  # of the largest singular value, from which on a direction counts
CUTS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.99)  # of SVCCA: shares of the singular values' sum
KERNELS = {f"CKA RBF {s}": {"kernel": "rbf", "sigma": s} for s in (0.2, 0.4, 0.8)}
KERNELS |= {"CKA debiased": {"unbiased": True}}
BATCH = 1000  # images whose layers are held at a time


def images_of(net: Mapping, device: str) -> tuple[data.Split, float, float]:
    """Return the images that a network learns, standardised, and their pixels' mean and deviation.

    Classes "low" are the first five, "high" the others.
    """
    how = net.get("shrink", 1), net.get("classes", "all"), device
    return _images(net["dataset"], tuple(net["images"]), *how)


@functools.lru_cache(maxsize=3)
def _images(name: str, counts: tuple, shrink: int, classes: str, device: str) -> tuple:
    split = data.load(name, subset=counts, device=device)
    split, mean, std = data.standardise(split.with_images(lambda x: F.avg_pool2d(x, shrink)))
    if classes != "all":
        halves = [
            data.Examples(part.images[mine], part.labels[mine])
            for part in (split.train, split.test)
            for mine in [(part.labels < 5) == (classes == "low")]
        ]
        split = data.Split(*halves, split.name, split.classes, split.source)
    return split, mean, std


@sweeps.named_by_spec
def run_of(net: Mapping, seed: int, device: str) -> training.Run:
    """Return a network, trained or from the store; with "shares" it is one of notebook 03."""
    split = images_of(net, device)[0]
    if "shares" in net:
        return svcca_dynamics.trained({**net, "seed": seed}, split, device)
    spec, store = training.Spec(**net["recipe"], seed=seed), paths.runs() / "networks"
    return training.fit(spec, split, store=store, device=device, progress=False)


@sweeps.named_by_spec
def fine_tuned(net: Mapping, pretraining: int, seed: int, device: str) -> nn.Module:
    """Return ``net["base"]`` of the seed `pretraining` trained on, with a new read-out."""
    split, base = images_of(net, device)[0], run_of(net["base"], pretraining, device)
    spec = training.Spec(**net["recipe"], seed=1000 * (1 + pretraining) + seed)
    key = hashlib.blake2b(f"{spec.key(split)} from {base.key}".encode(), digest_size=12)
    path = paths.runs() / "networks" / "fine-tuned" / f"{key.hexdigest()}.safetensors"
    trainer = Trainer(spec, split, choose_device(device))
    if path.exists():
        trainer.model.load_state_dict(load_file(path))
        return trainer.model.eval()
    own = trainer.model.state_dict()
    fresh = {name: own[name] for name in own if name.startswith("fc.")}
    trainer.model.load_state_dict(base.state() | fresh)
    for _ in range(trainer.last_step):
        trainer.advance()
    with atomic(path) as temporary:
        save_file({n: z.contiguous() for n, z in trainer.model.state_dict().items()}, temporary)
    return trainer.model.eval()


def model_of(net: Mapping, seed: int | Sequence[int], device: str, epoch: float | None = None):
    """Return a network in eval mode; of one that was fine-tuned `seed` is a pair.

    An untrained one, of epoch 0, has the statistics of its training images.
    """
    if "base" in net:
        return fine_tuned(net, *seed, device)
    model = run_of(net, seed, device).model(epoch, device)
    return with_statistics(model, images_of(net, device)[0].train.images) if epoch == 0 else model


def layers_of(net: Mapping, inside: bool = False) -> list[str]:
    """Return the layers compared, without logits; `inside`: of residual blocks their middle too."""
    recipe = net.get("recipe", net)
    model, options = recipe["model"], recipe.get("model_options", net.get("options", {}))
    if model == "vit":
        return [f"{p}{i + 1}" for i in range(options["depth"]) for p in ("attention", "mlp")]
    if model == "resnet":
        blocks = [
            f"block{s}_{i + 1}" for s in (1, 2, 3) for i in range((options["depth"] - 2) // 6)
        ]
        return ["act1", *(n for b in blocks for n in ([f"{b}.act1", b] if inside else [b]))]
    if model == "plain":
        return [f"act{i}" for i in range(1, options["depth"] - 1)]
    return [*(f"act{i}" for i in range(1, 9)), "pool"]


def neurons(output: Tensor, most: int | None = None) -> Tensor:
    """Return (N, neurons): all of a map, or those at every k-th row and column, up to `most`."""
    step = 1
    while most and output.ndim == 4 and output[:1, :, ::step, ::step].numel() > most:
        step += 1
    return (output[..., ::step, ::step] if output.ndim == 4 else output).flatten(1)


def averaged(output: Tensor) -> Tensor:
    """Return (N, features): the mean over positions of feature maps, or over tokens."""
    return output.mean(1) if output.ndim == 3 else activations.spatial_mean(output)


def recorded(
    model: nn.Module, layers: Sequence[str], images: Tensor, read: str, most: int | None = None
) -> dict[str, Tensor]:
    """Return layers as `read`, (examples, features); of tokens (examples x tokens, features)."""
    if read not in PLACES:
        reduction = averaged if read == "spatial means" else functools.partial(neurons, most=most)
        return activations.record(model, images, layers, BATCH, reduction)
    names = [layer + PLACES[read][layer.startswith("mlp")] for layer in layers]
    acts = activations.record(model, images, names, BATCH, lambda z: z.flatten(0, 1))
    acts = {layer: acts[name] for layer, name in zip(layers, names, strict=True)}
    if read == "layer norm":
        norms = {layer: model.get_submodule(f"{layer}.norm") for layer in layers}
        acts = {n: ((z - norms[n].bias) / norms[n].weight).detach() for n, z in acts.items()}
    return acts


class Axes(NamedTuple):
    """A centred layer by its principal axes, X = U diag(values) directions^T."""

    values: Tensor  # (k,), largest first
    directions: Tensor  # (neurons, k)


def axes_of(square: Tensor) -> Axes:
    """Return the principal axes of a layer from X^T X."""
    values, vectors = torch.linalg.eigh(square)
    kept = (values > TOLERANCE**2 * values[-1]) & (values > 0)
    return Axes(values[kept].sqrt().flip(0), vectors[:, kept].flip(1))


def _sums(t: Tensor, x: Axes, y: Axes, u: Tensor, rho: Tensor) -> dict[str, Tensor]:
    """Return Ding's three indices from t = U_x^T U_y and its singular vectors and values.

    PWCCA weighs all directions of x, of which those without a partner count as 0.
    """
    s, r = x.values, y.values
    weighted, weights = s[:, None] * t * r, _weights(u.mT, x)
    return {
        "CKA linear": weighted.square().sum() / (s.pow(4).sum() * r.pow(4).sum()).sqrt(),
        "Procrustes": torch.linalg.svdvals(weighted).sum() / (s.norm() * r.norm()),
        "PWCCA, missing 0": (weights[: len(rho)] * rho).sum() / weights.sum(),
    }


def _weights(turn: Tensor, x: Axes) -> Tensor:
    """Return sum_j |<h_i, z_j>| of canonical variates U turn^T and the neurons z_j."""
    return ((turn * x.values) @ x.directions.mT).abs().sum(1)


def linear_indices(t: Tensor, x: Axes, y: Axes, examples: int) -> dict[str, float]:
    """Return the indices that inner products give, from t = U_x^T U_y, (k, m).

    Kornblith et al. 2019, section 3 and Table 2, where those with sides are the mean of both;
    "PC 1-2", "PC 9-10": R2 of two axes of x, of variance 1, from the same two of y (Fig. F.1);
    "eigenvectors": how many of x's have a cosine above 0.5 to what y's kernel matrix makes of them.
    """
    if not t.numel():
        return {}
    s, r = x.values, y.values
    u, rho, vh = torch.linalg.svd(t)
    rho = rho.clamp(max=1)
    sides = [_weights(turn[: len(rho)], z) for turn, z in ((u.mT, x), (vh, y))]
    values = {"CCA mean": rho.mean(), "CCA R2": rho.square().mean()}
    for share in CUTS:
        i, j = (1 + int((z.cumsum(0) < share * z.sum() * (1 - 1e-12)).sum()) for z in (s, r))
        some = torch.linalg.svdvals(t[:i, :j]).clamp(max=1)
        values[f"SVCCA {share}"], values["SVCCA R2"] = some.mean(), some.square().mean()
    values["SVCCA mean"] = values.pop(f"SVCCA {CUTS[-1]}")
    there, back = (t * r).square().sum() / r.square().sum(), (s[:, None] * t).square().sum()
    turned = (t * r).square()
    cosines = turned.sum(1) / (turned * r.square()).sum(1).sqrt().clamp_min(1e-300)
    values |= {
        "PWCCA": sum((w * rho).sum() / w.sum() for w in sides) / 2,
        "regression": (there + back / s.square().sum()) / 2,
        "HSIC linear": (s[:, None] * t * r).square().sum() / (examples - 1) ** 2,
        "CCA, missing 0": rho.sum() / max(t.shape),
        "PC 1-2": t[:2, :2].square().sum() / 2,
        "PC 9-10": t[8:10, 8:10].square().sum() / 2,
        "eigenvectors": (cosines > 0.5).sum(),
    }
    return {name: float(v) for name, v in (values | _sums(t, x, y, u, rho)).items()}


def streamed(sides: Iterable[Mapping[str, Tensor]]) -> similarity.Accumulator:
    """Return the inner products of all neurons, taken in batch by batch."""
    accumulator = similarity.Accumulator()
    for batch in sides:
        accumulator.update(batch)
    return accumulator


def train(spec: dict, device: str = "auto") -> dict:
    """Train one network; return its accuracies at the end."""
    last = run_of(spec["net"], spec["seed"], device).history.iloc[-1]
    return {"train_accuracy": last.train_accuracy, "test_accuracy": last.test_accuracy}


def _pair(spec: Mapping, device: str) -> list[nn.Module]:
    epochs = spec.get("epochs", (None, None))
    chosen = zip(spec["nets"], spec["seeds"], epochs, strict=True)
    return [model_of(net, seed, device, epoch) for net, seed, epoch in chosen]


def indices(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Compare all layers of two networks by every index, with more images than neurons.

    RBF and debiased CKA are taken on the first ``spec["kernels"]`` images, of every neuron.
    Columns layer, other, metric, value, and compared, the number of examples.
    """
    models, names = _pair(spec, device), [layers_of(net) for net in spec["nets"]]
    images, read = images_of(spec["nets"][0], device)[0].train.images, spec["read"]
    images, rows = images[: spec["examples"]], []

    def layers(batch: Tensor, most: int | None) -> list[dict[str, Tensor]]:
        return [recorded(m, n, batch, read, most) for m, n in zip(models, names, strict=True)]

    joint = streamed(
        {f"{side} {name}": z for side, acts in enumerate(pair) for name, z in acts.items()}
        for pair in (layers(batch, spec["most"]) for batch in images.split(BATCH))
    )
    axes = [{n: axes_of(joint.products(f"{i} {n}", f"{i} {n}")) for n in names[i]} for i in (0, 1)]
    for (n, x), (m, y) in product(axes[0].items(), axes[1].items()):
        cross = x.directions.mT @ joint.products(f"0 {n}", f"1 {m}") @ y.directions
        values = linear_indices(cross / x.values[:, None] / y.values, x, y, joint.examples)
        rows += [{"layer": n, "other": m, "metric": k, "value": v} for k, v in values.items()]
    some = layers(images[: spec["kernels"]], None)
    order = torch.randperm(len(next(iter(some[0].values()))), generator=generator(0, "rows"))
    some = [{n: z[order[: spec["kernels"]].to(z.device)] for n, z in acts.items()} for acts in some]
    kernels = [compared(some, "cka", **how).assign(metric=m) for m, how in KERNELS.items()]
    table = pd.concat([pd.DataFrame(rows).assign(compared=joint.examples), *kernels])
    return table.reset_index(drop=True).astype({"value": "float32"})


def compared(sides: Sequence[Mapping], name: str, **options) -> pd.DataFrame:
    """Return a grid as rows layer, other, value, compared; with a null as `tidy` has it.

    ``compared`` is the number of examples. Without warnings: few are part of what is studied.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        table = tidy(similarity.compare(*sides, name, **options))
    table = table.rename(columns={"row": "layer", "column": "other"})
    return table.assign(compared=len(next(iter(sides[0].values()))))


def truncated(spec: dict, device: str = "auto") -> list[dict]:
    """Compare each layer of a network with itself less a share of its principal components.

    The smallest go first. Closed forms: U^T U of the two is the identity, cut.
    """
    net, rows = spec["net"], []
    model, images = model_of(net, spec["seed"], device), images_of(net, device)[0].train.images
    batches = images[: spec["examples"]].split(BATCH)
    names = layers_of(net)
    joint = streamed(recorded(model, names, b, spec["read"], spec["most"]) for b in batches)
    for name in names:
        x = axes_of(joint.products(name, name))
        squares, count = x.values.square(), len(x.values)
        weights = _weights(torch.eye(count).to(x.values), x)
        for share in spec["gone"]:
            k = max(1, round((1 - share) * count))
            kept = squares[:k].sum() / squares.sum()
            cka = squares[:k].square().sum() / squares.square().sum()
            values = {"CKA linear": cka.sqrt(), "Procrustes": kept.sqrt()}
            values |= {"regression": (1 + kept) / 2, "CCA, missing 0": k / max(1, count)}
            values["PWCCA, missing 0"] = weights[:k].sum() / weights.sum()
            row = {"layer": name, "deleted": 1 - k / max(1, count)}
            rows += [row | {"metric": m, "value": float(v)} for m, v in values.items()]
    return rows


def grids(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Compare all flattened layers of two networks by linear CKA on test images.

    Columns layer, other, cka with its null, debiased, compared (examples), and where the spec asks
    for them: within (its mean over classes, each class alone) and deconfounded (the pixels' kernel
    matrix regressed out, of the same layer only; Cui et al. 2022).
    """
    names = [layers_of(net, spec.get("inside", False)) for net in spec["nets"]]
    test = images_of(spec.get("shown", spec["nets"][0]), device)[0].test
    images, labels = test.images[: spec["examples"]], test.labels[: spec["examples"]]
    both = list(zip(_pair(spec, device), names, strict=True))
    alone = spec["nets"][0] == spec["nets"][1] and len({*spec["seeds"]}) == 1
    sides = [recorded(*net, images, "flattened") for net in (both[:1] if alone else both)]
    sides = sides * (1 + alone)
    table = compared(sides, "cka", null=spec["permutations"]).rename(columns={"value": "cka"})
    table["debiased"] = compared(sides, "cka", unbiased=True).value
    if spec.get("by class"):
        masks = [labels == c for c in labels.unique()]
        parts = [[{n: z[own] for n, z in acts.items()} for acts in sides] for own in masks]
        table["within"] = np.mean([compared(p, "cka", unbiased=True).value for p in parts], 0)
    if spec.get("confounded"):
        pixels, same = images.flatten(1), table.layer == table.other
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            values = [similarity.cka(*(z[n] for z in sides), confounder=pixels) for n in names[0]]
        table.loc[same, "deconfounded"] = [float(v) for v in values]
    exact = ("layer", "other", "compared", "p")
    return table.astype({n: "float32" for n in table if n not in exact})


def calibrated(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Compare two networks with the null of the grid's maximum; permutations may keep classes."""
    train, names = images_of(spec["nets"][0], device)[0].train, layers_of(spec["nets"][0])
    images, labels = train.images[: spec["examples"]], train.labels[: spec["examples"]]
    sides = [recorded(m, names, images, spec["read"]) for m in _pair(spec, device)]
    how = {"null": spec["permutations"], "within": labels if spec["restricted"] else None}
    how |= {"unbiased": True} if spec["metric"] == "CKA debiased" else {}
    return compared(sides, spec["metric"].split()[0].lower(), seed=spec["seeds"][0], **how)


def probes(spec: dict, device: str = "auto") -> list[dict]:
    """Measure linear probes of every layer's spatial means, and a network's test accuracy."""
    net, split = spec["net"], images_of(spec["net"], device)[0]
    model, names = model_of(net, spec["seed"], device), layers_of(net)
    halves = [(p.images[: 5 * BATCH], p.labels[: 5 * BATCH]) for p in (split.train, split.test)]
    (x, y), (z, truth) = ((recorded(model, names, i, "spatial means"), k) for i, k in halves)
    accuracy = training.evaluate(model, split.test)[1]
    values = {n: linear_probe(x[n], y, z[n], truth) for n in names}
    return [{"layer": n, "accuracy": accuracy, "probe": v} for n, v in values.items()]


def few_examples(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Compare one flattened layer in two networks on few examples, matched and shuffled."""
    layer, tables = spec["of"], []
    images = images_of(spec["nets"][0], device)[0].train.images[: max(spec["counts"])]
    sides = [recorded(m, [layer], images, "flattened") for m in _pair(spec, device)]
    for count, (metric, (name, options)) in product(spec["counts"], spec["metrics"].items()):
        some = [{n: z[:count] for n, z in acts.items()} for acts in sides]
        table = compared(some, name, null=5, seed=spec["seeds"][0], **options)
        tables.append(table.assign(metric=metric, count=count))
    return pd.concat(tables, ignore_index=True)


def moved_points(spec: dict, device: str = "auto") -> list[dict]:
    """Compare the pooling layer with itself, one class or one example moved, logits kept.

    The way goes at right angles to all weights of the read-out, so that no logit changes (Davari et
    al. 2023); its length is in root mean square norms of the centred layer.
    """
    net, rows = spec["net"], []
    train, model = images_of(net, device)[0].train, model_of(net, spec["seed"], device)
    x = recorded(model, ["pool"], train.images[: spec["examples"]], "flattened")["pool"].double()
    labels, weights = train.labels[: spec["examples"]], model.fc.weight.detach().double()
    way = torch.randn(x.shape[1], generator=generator(spec["seed"], "way"), dtype=x.dtype).to(x)
    way = way - torch.linalg.lstsq(weights.mT, way[:, None]).solution[:, 0] @ weights
    way *= (x - x.mean(0)).square().sum(1).mean().sqrt() / way.norm()
    chosen = {"one class": labels == 0, "one example": torch.arange(len(x)).to(labels) == 0}
    for (change, moved), distance in product(chosen.items(), spec["distances"]):
        y = x + distance * moved[:, None] * way
        same = ((y - x) @ weights.mT).abs().max() / (x @ weights.mT).abs().max()
        row = {"change": change, "distance": distance, "logits": float(same)}
        for metric, (name, options) in spec["metrics"].items():
            value = compared([{"": x}, {"": y}], name, **options).value[0]
            value = 1 - value / 2 if metric == "Procrustes" else value
            rows.append(row | {"metric": metric, "value": value})
    return rows


def noisy(images: Tensor, sigma: float = 0.1) -> Tensor:
    """Return images with one draw of Gaussian noise."""
    return images + sigma * torch.randn(images.shape, generator=generator(0, "noise")).to(images)


def rotated(images: Tensor, degrees: float = 30.0) -> Tensor:
    """Return images turned about their centre, what comes in from outside black."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).to(images).expand(len(images), 2, 3)
    places = F.affine_grid(turn, images.shape, align_corners=False)
    return F.grid_sample(images, places, align_corners=False)


STRESS: dict[str, Callable[[Tensor], Tensor]] = {"noise": noisy, "rotation": rotated}


def stressed(spec: dict, device: str = "auto") -> list[dict]:
    """Fine-tune one network; return its accuracy on two halves of the test images, and stressed."""
    net, seeds = spec["net"], spec["seed"]
    split, mean, std = images_of(net, device)
    model, raw, rows = model_of(net, seeds, device), split.test.images * std + mean, []
    for name, change in {"none": lambda x: x, **STRESS}.items():
        images = (change(raw) - mean) / std
        halves = [data.Examples(images[i::2], split.test.labels[i::2]) for i in (0, 1)]
        first, second = (training.evaluate(model, half)[1] for half in halves)
        rows.append({"stress": name, "first": first, "second": second})
    return rows


def benchmark(spec: dict, device: str = "auto") -> list[dict]:
    """Compare all representations of a subtask by three indices; probe what each can do.

    Representations are spatial means of test images: ``spec["layers"]`` of the networks
    ``spec["seeds"]``, each whole or, with ``spec["components"]``, on so many principal components.
    A row an index and representation, with its similarities to all as a list, and with
    ``spec["probed"]`` the accuracy of a linear probe on two halves of the test images.
    """
    net, split = spec["net"], images_of(spec["net"], device)[0]
    shown, items = split.test.images[: spec["examples"]], []
    halves = [data.Examples(split.test.images[i::2], split.test.labels[i::2]) for i in (0, 1)]
    for unit, seed in enumerate(spec["seeds"]):
        model = model_of(net, seed, device)
        parts = [split.train.images[: spec["probed"]], *(h.images for h in halves)]
        parts = [*(parts if spec["probed"] else []), shown]
        *probed, acts = (recorded(model, spec["layers"], p, "spatial means") for p in parts)
        for layer, z in acts.items():
            x = (z - z.mean(0)).double()
            u, s, vh = torch.linalg.svd(x, full_matrices=False)
            rank = max(1, int((s > TOLERANCE * s[0]).sum()))
            for kept in [k for k in spec["components"] if k < rank] + [rank]:
                row = {"unit": unit, "layer": layer, "kept": kept}
                if probed:
                    fitted, *cut = (p[layer].double() @ vh[:kept].mT for p in probed)
                    labels = split.train.labels[: spec["probed"]]
                    for name, c, half in zip(("first", "second"), cut, halves, strict=True):
                        row[name] = linear_probe(fitted, labels, c, half.labels)
                items.append((row, u[:, :kept], Axes(s[:kept], vh[:kept].mT)))
    rows, values = [], {m: np.zeros((len(items),) * 2, "float32") for m in spec["metrics"]}
    for (i, (_, a, x)), (j, (_, b, y)) in product(enumerate(items), enumerate(items)):
        t = a.mT @ b
        u, rho, _ = torch.linalg.svd(t)
        for metric, value in _sums(t, x, y, u, rho.clamp(max=1)).items():
            values[metric][i, j] = value
    for metric, matrix in values.items():
        rows += [row | {"metric": metric, "values": matrix[i]} for i, (row, *_) in enumerate(items)]
    return rows
