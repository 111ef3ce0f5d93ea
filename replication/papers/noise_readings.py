"""The multiverse of notebook 04: what a fall of EV1 hangs on.

Some choices make another network (`CHOICES`), the others another reading of the same network: how
its noisy copies are made and grouped (`READINGS`, one changed at a time), and what is called EV1
(`MEASURES`).
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from replication import activations, data, spectra
from replication.sensitivity.perturbations import draw

CHOICES = {
    "optimizer": ("SGD", "momentum", "Adam", "Adadelta"),
    "init": ("torch", "glorot", "he"),
    "inputs": ("raw", "standardised"),
    "dropout": (False, True),
}
ARMS = ("noise in training", "weight decay", "pooling after each convolution")
READINGS: Mapping[str, Mapping] = {
    "as the rules": {},
    "sigma 0.01": {"sigma": 0.01},
    "sigma 0.1": {"sigma": 0.1},
    "16 copies": {"copies": 16},
    "256 copies": {"copies": 256},
    "hold-out images": {"images": "hold-out"},
    "fresh noise at each epoch": {"fresh": True},
    "clipped to pixels": {"clipped": True},
    "stacked by class": {"by_class": True},
    "channel means": {"means": True},
}
MEASURES = ("squares", "values", "centred", "truncated")  # see `components`
LAYERS = ("conv1", "relu1", "conv2", "relu2", "pool", "fc1", "relu3", "fc2")
SHOWN = ("relu1", "relu2", "pool", "relu3", "fc2")  # "after activation functions", and the logits


def twelve() -> list[dict]:
    """Return 12 of the 48 networks, every level of every choice equally often.

    All pairs of optimiser and initialisation; the other two choices by parities.
    """
    return [
        {"optimizer": optimizer, "init": init}
        | {
            "inputs": CHOICES["inputs"][(i + j) % 2],
            "dropout": CHOICES["dropout"][(i // 2 + j) % 2],
        }
        for i, optimizer in enumerate(CHOICES["optimizer"])
        for j, init in enumerate(CHOICES["init"])
    ]


@torch.no_grad()
def components(
    model: nn.Module,
    examples: data.Examples,
    sigma: float,
    copies: int,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
    by_class: bool = False,
    means: bool = False,
) -> pd.DataFrame:
    """Return the first two components of noisy groups by layer of `LAYERS`, the mean of groups.

    Columns: s1, and for each of `MEASURES` its first and second value, "squares 1" and so on.
    squares: s_k^2 / sum s^2; values: s_k / sum s; centred: squares of the centred group;
    truncated: `spectra.projected_variance`, what scikit-learn's TruncatedSVD reports.

    Parameters
    ----------
    examples : data.Examples
        A group an image, or with `by_class` all copies of all images of a class in one group.
    sigma : float
        In units of the images; `seed` is that of the noise.
    bounds : (low, high), optional
        Noisy images are clipped to these values.
    means : bool
        Channels, averaged over positions, in place of every position of every channel.
    """
    shape, positions = examples.images.shape[1:], range(len(examples))
    noise = draw(shape, copies, positions, "gaussian", seed).to(examples.images)
    noisy = examples.images[:, None] + sigma * noise
    if bounds is not None:
        noisy = noisy.clamp(*bounds)
    single = torch.arange(len(examples)).split(1)
    groups = [(examples.labels == c).nonzero()[:, 0] for c in examples.labels.unique()]
    rows = []
    for chosen in groups if by_class else single:
        recorded = activations.record(model, noisy[chosen].flatten(0, 1), LAYERS)
        rows += [{"layer": layer} | _measures(a, means) for layer, a in recorded.items()]
    means_of_groups = pd.DataFrame(rows).groupby("layer", sort=False).mean()
    return means_of_groups.astype(np.float32).reset_index()


def _measures(acts: Tensor, means: bool) -> dict[str, float]:
    """Return the measures of one group, activations (copies, channels, height, width) or flat."""
    group = (acts.mean((2, 3)) if means and acts.dim() == 4 else acts.flatten(1))[None]
    s, centred = (values[0].double() for values in spectra.group_singular_values(group))
    squares, within = (spectra.explained_variance(values) for values in (s, centred))
    values = (squares, s / s.sum(), within, spectra.projected_variance(group)[0])
    found = {"s1": float(s[0]) / len(acts) ** 0.5}
    for name, shares in zip(MEASURES, values, strict=True):
        found |= {f"{name} 1": float(shares[0]), f"{name} 2": float(shares[1])}
    return found


def effects(table: pd.DataFrame, choices: Iterable[str] = CHOICES) -> pd.DataFrame:
    """Return the effect of claims in every universe: its choices, claim, and the mean of seeds.

    `table` has rows of `components` with columns seed, epoch, reading and the `choices`. From epoch
    0 and from epoch 1 to the last, positive as the post has it: "B1" the fall of EV1, the mean of
    both convolutions, after their ReLU or before it; "B2" the correlation of depth with the change
    of EV1; "B3" the rise of EV2; "s1" the growth of ln s_1, the last three over `SHOWN`.
    """
    keys, last, depth = [*choices, "reading", "seed"], table.epoch.max(), np.arange(len(SHOWN))
    values = ["s1", *(f"{measure} {k}" for measure in MEASURES for k in (1, 2))]
    wide = table.pivot(index=keys, columns=["layer", "epoch"], values=values)
    rows = []
    for base in sorted({0, 1} - {last}):
        change = wide.xs(last, axis=1, level="epoch") - wide.xs(base, axis=1, level="epoch")
        grown = wide["s1"].xs(last, axis=1, level=1) / wide["s1"].xs(base, axis=1, level=1)
        found = {("s1", "ReLU", "squares"): np.log(grown[list(SHOWN)]).mean(axis=1)}
        for measure in MEASURES:
            first, second = change[f"{measure} 1"], change[f"{measure} 2"][list(SHOWN)]
            for after, layers in (
                ("ReLU", ["relu1", "relu2"]),
                ("convolution", ["conv1", "conv2"]),
            ):
                found["B1", after, measure] = -first[layers].mean(axis=1)
            order = first[list(SHOWN)].T.reset_index(drop=True).corrwith(pd.Series(depth))
            found |= {("B2", "ReLU", measure): order, ("B3", "ReLU", measure): second.mean(axis=1)}
        rows += [
            value.rename("effect").reset_index().assign(claim=c, after=a, EV=m, baseline=base)
            for (c, a, m), value in found.items()
        ]
    universe = [*keys[:-1], "claim", "after", "EV", "baseline"]
    return pd.concat(rows).groupby(universe, as_index=False).effect.mean()


def gains(table: pd.DataFrame, choices: Iterable[str] = CHOICES) -> pd.DataFrame:
    """Return how much the energies grew from epoch 1 to the last, ln, mean of both convolutions.

    "beside": of what lies beside the first component, the noise that a layer lets through;
    "energy": of all. As 1 - EV_1 is the one over the other, its ln grows by "fall", their
    difference. A row a universe, read as the rules do, mean of seeds; `table` is as in `effects`.
    """
    rows = table[(table.reading == "as the rules") & table.layer.isin(["relu1", "relu2"])]
    rows = rows[rows.epoch.isin([1, table.epoch.max()])]
    energy = rows.s1**2 / rows["squares 1"]
    rows = rows.assign(energy=np.log(energy), beside=np.log(energy * (1 - rows["squares 1"])))
    keys = [*choices, "seed", "layer"]
    wide = rows.pivot(index=keys, columns="epoch", values=["beside", "energy"])
    grown = wide.xs(table.epoch.max(), axis=1, level=1) - wide.xs(1, axis=1, level=1)
    found = grown.groupby([*choices]).mean().reset_index()
    return found.assign(fall=found.beside - found.energy)


def by_choice(universes: pd.DataFrame, choices: Sequence[str]) -> pd.DataFrame:
    """Return for each choice its share of the variance between universes, and whose sign they have.

    ``variance``: that of the means of its values over the whole (its main effect); ``post's sign``:
    the share of universes with a positive effect under each value.
    """
    total, rows = universes.effect.var(ddof=0), {}
    for choice in choices:
        means = universes.groupby(choice).effect.transform("mean")
        share = (universes.effect > 0).groupby(universes[choice]).mean()
        signs = ", ".join(f"{value}: {part:.0%}" for value, part in share.items())
        variance = means.var(ddof=0) / total if total else 0.0
        rows[choice] = {"variance": variance, "post's sign": signs}
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("variance", ascending=False)
