"""The multiverse of notebook 04: what a fall of EV1 hangs on.

Some choices make another network (`CHOICES`), the others another reading of the same network: how
its noisy copies are made and grouped (`READINGS`, one changed at a time), and what is called EV1
(`MEASURES`).
"""

from collections.abc import Iterable, Mapping, Sequence

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
MEASURES = ("squares", "values", "centred", "truncated")  # the columns of `ev1`
READ = ("conv1", "relu1", "conv2", "relu2")


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
def ev1(
    model: nn.Module,
    examples: data.Examples,
    sigma: float,
    copies: int,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
    by_class: bool = False,
    means: bool = False,
) -> pd.DataFrame:
    """Return EV1 by layer of `READ`, the mean of groups: a column each of `MEASURES`.

    squares: s_1^2 / sum s^2; values: s_1 / sum s; centred: squares of the centred group;
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
        recorded = activations.record(model, noisy[chosen].flatten(0, 1), READ)
        rows += [{"layer": layer, **_measures(a, means)} for layer, a in recorded.items()]
    return pd.DataFrame(rows).groupby("layer", sort=False, as_index=False).mean()


def _measures(acts: Tensor, means: bool) -> dict[str, float]:
    """Return EV1 of one group, activations (copies, channels, height, width), by measure."""
    group = (acts.mean((2, 3)) if means else acts.flatten(1))[None]
    s, centred = (values[0].double() for values in spectra.group_singular_values(group))
    shares = [spectra.explained_variance(values)[0] for values in (s, centred)]
    parts = shares[0], s[0] / s.sum(), shares[1], spectra.projected_variance(group)[0, 0]
    return {name: float(value) for name, value in zip(MEASURES, parts, strict=True)}


def effects(table: pd.DataFrame, choices: Iterable[str] = CHOICES) -> pd.DataFrame:
    """Return the fall of EV1 in every universe: its choices, and ``fall``, the mean of seeds.

    `table` has rows of `ev1` with columns seed, epoch, reading and the `choices`. From epoch 0 and
    from epoch 1 to the last; the mean of both convolutions, before or after their ReLU.
    """
    after = table.layer.str.startswith("relu").map({True: "ReLU", False: "convolution"})
    long = table.assign(after=after).melt(
        [*choices, "seed", "reading", "after", "layer", "epoch"],
        list(MEASURES),
        var_name="EV",
        value_name="ev1",
    )
    keys = [*choices, "reading", "after", "EV", "seed"]
    means = long.groupby([*keys, "epoch"]).ev1.mean().unstack("epoch")
    last = means.columns.max()
    falls = [
        (means[base] - means[last]).rename("fall").reset_index().assign(baseline=base)
        for base in sorted({0, 1} - {last})
    ]
    return pd.concat(falls).groupby([*keys[:-1], "baseline"], as_index=False).fall.mean()


def by_choice(universes: pd.DataFrame, choices: Sequence[str]) -> pd.DataFrame:
    """Return for each choice its share of the variance between universes, and of falls.

    ``variance``: that of the means of its values over the whole (its main effect); ``falls``: the
    share of universes where EV1 falls, under each value.
    """
    total, rows = universes.fall.var(ddof=0), {}
    for choice in choices:
        means = universes.groupby(choice).fall.transform("mean")
        share = (universes.fall > 0).groupby(universes[choice]).mean()
        falls = ", ".join(f"{value}: {part:.0%}" for value, part in share.items())
        rows[choice] = {"variance": means.var(ddof=0) / total if total else 0.0, "falls": falls}
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("variance", ascending=False)
