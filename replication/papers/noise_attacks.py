"""Noise against attacks in notebook 04: what layers pass on, and whether a spectrum betrays them.

An attack moves all copies of an image the same way, which noise does not. Here the two are told
apart: the *shift* of the group's mean, and the *spread* of its copies around that mean, both
relative to the clean activation; and noise is matched to the attack at the input, once in its
spread and once in the length of its perturbations.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from replication import activations, data, spectra
from replication.sensitivity.perturbations import attack, draw

STEPS = {"fgsm": 1, "pgd": 7}
MATCHES = ("itself", "noise of equal spread", "noise of equal norm")
FEATURES = ("spectrum", "input", "logits")  # what a detector may look at


def perturbations(
    model: nn.Module, images: Tensor, kind: str, size: float, copies: int, seed: int = 0
) -> Tensor:
    """Return (images, copies, ...): Gaussian of that sigma, or attacks in that sup-norm ball."""
    start = size * draw(images.shape[1:], copies, range(len(images)), kind, seed).to(images)
    if kind == "gaussian":
        return start
    step = size if kind == "fgsm" else 2.5 * size / STEPS[kind]
    return attack(model, images, start, size, step, STEPS[kind], None)


def passed_on(
    model: nn.Module, examples: data.Examples, size: float, copies: int, layers: tuple[str, ...]
) -> pd.DataFrame:
    """Return what layers pass on of attacks and of noise matched to them, the mean over images.

    Columns: attack, match (one of `MATCHES`), layer, shift (|mean_i a(x_i) - a(x)|^2 / |a(x)|^2),
    spread (mean_i |a(x_i) - their mean|^2 / |a(x)|^2), unexplained (1 - EV1) and accuracy, the
    share of copies that the network gets right.
    """
    rows = []
    for kind in STEPS:
        moved = perturbations(model, examples.images, kind, size, copies)
        noise = perturbations(model, examples.images, "gaussian", 1.0, copies)
        for match, group in zip(MATCHES, (moved, *_matched(noise, moved)), strict=True):
            for image, label, own in zip(examples.images, examples.labels, group, strict=True):
                found = _one_image(model, image, own, layers)
                right = float((found.pop("logits").argmax(1) == label).double().mean())
                for layer, values in found.items():
                    names = {"attack": kind, "match": match, "layer": layer}
                    rows.append(names | values | {"accuracy": right})
    table = pd.DataFrame(rows)
    return table.groupby(["attack", "match", "layer"], sort=False, as_index=False).mean()


def _matched(noise: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """Return noise (images, copies, ...) scaled to the spread, and to the norm, of `moved`."""

    def size(group: Tensor) -> Tensor:
        return group.flatten(1).square().mean(1).sqrt()[:, None, None, None, None]

    around = noise - noise.mean(1, keepdim=True)
    spread = size(moved - moved.mean(1, keepdim=True))
    return around * spread / size(around), noise * size(moved) / size(noise)


@torch.no_grad()
def _one_image(model: nn.Module, image: Tensor, moved: Tensor, layers: tuple[str, ...]) -> dict:
    """Return shift, spread and 1 - EV1 of an image's group by layer, and its logits."""
    batch = torch.cat([image[None], image + moved])
    recorded = {"input": batch} | activations.record(model, batch, layers)
    found: dict = {"logits": recorded[layers[-1]][1:]}
    for layer, acts in recorded.items():
        clean, group = acts.flatten(1).double().split([1, len(moved)])
        mean, energy = group.mean(0), clean.square().sum()
        s = spectra.group_singular_values(group[None])[0][0]
        values = (
            (mean - clean[0]).square().sum() / energy,
            (group - mean).square().sum(1).mean() / energy,
            spectra.explained_variance(s)[1:].sum(),
        )
        names = "shift", "spread", "unexplained"
        found[layer] = {k: float(v) for k, v in zip(names, values, strict=True)}
    return found


@torch.no_grad()
def features(
    model: nn.Module, images: Tensor, sigma: float, copies: int, layers: tuple[str, ...]
) -> pd.DataFrame:
    """Return what a detector may know of each image; a column's name begins with its kind.

    ``spectrum``: ln(1 - EV1) and ln s_1 of each layer's group of noisy copies of the image *as it
    is given*; ``input``: the same of the image itself, its norm and its total variation;
    ``logits``: the largest probability, the margin of logits, their log-sum-exp and the entropy.
    """
    spectrum = spectra.noise_spectrum(model, images, sigma, copies, ["input", *layers])
    columns = {}
    for layer, s in spectrum.singular_values.items():
        s = s.double()
        kind = "input" if layer == "input" else "spectrum"
        beside = spectra.explained_variance(s)[:, 1:].sum(1)
        columns[f"{kind} 1 - EV1 {layer}"] = beside.clamp_min(1e-12).log()
        columns[f"{kind} s1 {layer}"] = s[:, 0].clamp_min(1e-12).log()
    pixels = images.double()
    columns["input norm"] = pixels.flatten(1).norm(dim=1)
    steps = (pixels.diff(dim=d).abs().flatten(1).sum(1) for d in (2, 3))
    columns["input variation"] = sum(steps)
    logits = model(images).double().cpu().numpy()
    p, ordered = special.softmax(logits, axis=1), np.sort(logits, axis=1)
    columns["logits probability"] = p.max(1)
    columns["logits margin"] = ordered[:, -1] - ordered[:, -2]
    columns["logits sum"] = special.logsumexp(logits, axis=1)
    columns["logits entropy"] = special.entr(p).sum(1)
    return pd.DataFrame({k: np.asarray(v, dtype=np.float32) for k, v in columns.items()})


def detection(table: pd.DataFrame) -> pd.DataFrame:
    """Return how well perturbed images are told from clean ones in networks not fitted on.

    A logistic regression for each set of `FEATURES`, kind and size of perturbation, fitted on the
    images marked ``fit`` of all networks but one, judged on the other images of that one: its area
    under the ROC curve, a row a network left out.

    Parameters
    ----------
    table : DataFrame
        Rows of `features` with columns network, kind ("clean" or a perturbation), size, fit.
    """
    rows = []
    clean = table[table.kind == "clean"]
    for (kind, size), own in table[table.kind != "clean"].groupby(["kind", "size"]):
        both = pd.concat([clean, own])
        for left_out in both.network.unique():
            train = both[(both.network != left_out) & both.fit]
            test = both[(both.network == left_out) & ~both.fit]
            if not len(train) or not len(test):
                continue
            for name in FEATURES:
                columns = [c for c in table if c.startswith(f"{name} ")]
                model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
                model.fit(train[columns], train.kind != "clean")
                auc = roc_auc_score(test.kind != "clean", model.decision_function(test[columns]))
                rows.append({"kind": kind, "size": size, "features": name, "network": left_out})
                rows[-1]["auc"] = float(auc)
    return pd.DataFrame(rows, columns=["kind", "size", "features", "network", "auc"])


def conditions(sizes: Mapping[str, tuple[float, ...]]) -> list[tuple[str, float]]:
    """Return (kind, size) of all inputs that a detector is shown, clean ones first."""
    return [("clean", 0.0), *((kind, size) for kind, own in sizes.items() for size in own)]
