"""The networks that fit true, random and partly random labels: how they are named and trained.

A network is told by its name, its arm (the regularisers, as Table 1 of Zhang et al. 2017 has them),
the kind of its training set, the share of its labels that are random, and its seed.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import torch
from torch.nn import functional as F

from replication import data, sweeps, training
from replication._core import inputs, paths
from replication.training.trainer import Trainer

TRUE, RANDOM, SHUFFLED = "true labels", "random labels", "shuffled pixels"
PIXELS, GAUSSIAN = "random pixels", "Gaussian images"
KINDS = {  # share of labels that are random, and what is done to images
    TRUE: (0.0, None), RANDOM: (1.0, None), SHUFFLED: (0.0, "shuffled_pixels"),
    PIXELS: (0.0, "random_pixels"), GAUSSIAN: (0.0, "gaussian"),
}  # fmt: skip
LINEAR, MLP, DEEP, ALEXNET, INCEPTION = "linear", "MLP 1x512", "MLP 3x512", "AlexNet", "Inception"
HIDDEN = {LINEAR: [], MLP: [512], DEEP: [512] * 3}
DECAY = 5e-4  # of weights, where it is not varied: the paper gives no coefficient
FITTED, ENOUGH = 0.99, 0.999  # train accuracy that counts as fitted; at which training stops
END = ["network", "name", "arm", "kind", "level", "noise", "strength", "width", "dataset", "images",
       "seed", "step", "train_accuracy", "test_accuracy", "best", "peak", "fitted"]  # fmt: skip


@functools.lru_cache(maxsize=2)
def _images(dataset: str, images: int, test: int, view: str) -> data.Split:
    """Return images, whitened one by one: whole, the centre (28 of 32 pixels), or half the side."""
    split = data.load(dataset, subset=(images, test))
    if view == "half":
        split = split.with_images(lambda x: F.avg_pool2d(x, 2))
    crop = split.train.images.shape[-1] - 4 if view == "centre" else None
    return data.preprocess(split, crop=crop, whiten=True)


def split_of(net: Mapping) -> data.Split:
    """Return the data of a network; of `noise` > 0 this share of training images is Gaussian."""
    split = _images(net["dataset"], *net["images"], net["view"])
    if not net["noise"]:
        return split
    images = data.corrupt_images(split.train.images, "gaussian", net["seed"])
    count = round(net["noise"] * len(images))
    images = torch.cat([images[:count], split.train.images[count:]])
    return replace(split, train=data.Examples(images, split.train.labels))


@sweeps.named_by_spec
def training_spec(net: Mapping) -> training.Spec:
    """Return how a network is trained; what it is trained on is in the code of `split_of`."""
    return training.Spec(**net["training"], seed=net["seed"])


def network(net: Mapping, device: str = "auto") -> training.Run:
    """Return a network, trained or from the store."""
    spec, split = training_spec(net), split_of(net)
    store = paths.runs() / "networks" if spec.checkpoints else None  # else its history is all
    return training.fit(spec, split, store=store, device=device, progress=False)


def trainer_of(net: Mapping, device: str = "auto") -> Trainer:
    """Return the start of a network's training, with the corrupted data that it sees."""
    return Trainer(training_spec(net), split_of(net), inputs.choose_device(device))


def named_net(
    name: str, scale: tuple, epochs: int, batch: int, width: float = 1.0, **changed
) -> dict:
    """Return a network and its key; `scale` is its data set, (channels, side) and image counts.

    `changed` may be settings of the result, or ``hidden`` (units a layer), ``factor`` (of the
    learning rate, an epoch of 50,000 images), ``curve`` (so many checkpoints each time the steps
    double, of long runs from the 16th on), ``seen`` (other checkpoints), ``every`` (epochs between
    evaluations), ``precision`` and ``stop``: the train accuracy at which training stops, but for
    true labels and images.
    """
    dataset, (channels, side), images = scale
    net = {"name": name, "arm": "none", "kind": TRUE, "level": None, "noise": 0.0, "strength": 0.0}
    net |= {"dataset": dataset, "images": list(images), "seed": 0, "view": "centre"}
    net |= {"hidden": HIDDEN.get(name, []), "width": width, "factor": 0.95, "curve": 0}
    net |= {"stop": ENOUGH, "seen": [], "precision": "auto", "every": 1} | changed
    factor, curve, stop, hidden, precision, every = (
        net.pop(k) for k in ("factor", "curve", "stop", "hidden", "precision", "every")
    )
    level, corrupted = KINDS[net["kind"]]
    net["level"] = float(level if net["level"] is None else net["level"])
    net["kind"] = RANDOM if net["level"] == 1 else net["kind"]
    arms, bare = net["arm"].split(" + "), "no BN" in net["arm"]
    side = {"half": side // 2, "whole": side}.get(net["view"], side - 4)
    if name in (ALEXNET, INCEPTION):
        options = {"channels": channels, "width": width}
        options |= {"size": side} if name == ALEXNET else {"batch_norm": not bare}
    else:
        options = {"inputs": channels * side**2, "widths": hidden}
        net["width"] = hidden[0] / 512 if hidden else 1.0
    augment = {"crop": side} if "crop" in arms else {"flip": 0.5} if "flips" in arms else {}
    net["view"] = "whole" if "crop" in arms else net["view"]
    options |= {"dropout": net["strength"]} if "dropout" in arms else {}
    decay = (net["strength"] or DECAY) if "decay" in arms else 0.0
    steps = math.ceil(images[0] / batch)
    seen = [float(e) for e in net.pop("seen")]
    if curve:
        points = round(math.log2(steps * epochs) * curve) + 1
        first = 4 * curve if steps > 100 else 0  # the first 16 of many steps change nothing
        seen = sorted({round(2 ** (k / curve)) / steps for k in range(first, points)})
    clean = net["level"] == 0 and not corrupted and stop == ENOUGH
    net["training"] = {
        "model": {ALEXNET: "small_alexnet", INCEPTION: "small_inception"}.get(name, "mlp"),
        "model_options": options,
        "optimizer_options": {"momentum": 0.9, "weight_decay": decay},
        "learning_rate": 0.1 if name == INCEPTION and not bare else 0.01,
        "schedule": "exponential",
        "decay": factor ** (images[0] / 50_000),  # per image seen as with all of CIFAR-10
        "batch_size": batch,
        "epochs": epochs,
        "label_corruption": net["level"],
        "image_corruption": corrupted,
        "augment": augment,
        "checkpoints": [epoch for epoch in seen if epoch <= epochs],
        "evaluate_every": every,
        "stop_at_train_accuracy": None if clean else stop,
        "precision": precision,
    }
    # By the images' names, not their bytes: copies of CIFAR-10 differ in how they are encoded.
    named = SimpleNamespace(digest=str([dataset, images, net["view"], net["noise"]]))
    return {"net": net, "network": training_spec(net).key(named)}


def train(spec: Mapping, device: str = "auto") -> pd.DataFrame:
    """Train a network: losses and accuracies over its epochs."""
    return network(spec["net"], device).history.astype("float32")


def unpacked(table: pd.DataFrame) -> pd.DataFrame:
    """Return results with what tells their networks apart as columns of their own."""
    if "net" not in table:
        return table
    known = [net if isinstance(net, Mapping) else {} for net in table.net]
    names = ("name", "arm", "kind", "level", "noise", "strength", "width", "dataset", "images")
    columns = {name: [net.get(name) for net in known] for name in names}
    columns["images"] = [(net.get("images") or [None])[0] for net in known]
    columns["seed"] = [net.get("seed") for net in known]
    for name, values in columns.items():
        given = pd.Series(values, index=table.index)
        columns[name] = given.where(given.notna(), table[name]) if name in table else given
    return table.drop(columns="net").assign(**columns)


def ends(*histories: pd.DataFrame | None) -> pd.DataFrame:
    """Return a row a network: its end, its best test accuracy and the train accuracy then.

    ``fitted`` is the first step with 99% train accuracy, NaN where there is none.
    """
    given = [rows for rows in histories if rows is not None and len(rows)]
    if not given:
        return pd.DataFrame(columns=END)
    rows = pd.concat(given, ignore_index=True)
    by = rows.sort_values("step", kind="stable").groupby("network", sort=False)
    out = by.last()
    best = rows.loc[by.test_accuracy.idxmax()].set_index("network")
    out["best"], out["peak"] = best.test_accuracy, best.train_accuracy
    out["fitted"] = rows[rows.train_accuracy >= FITTED].groupby("network").step.min()
    return out.reset_index()
