"""Noise spectra of a small MNIST network: claims B1 to B12 of the noise-SVD post.

Unless a rule says otherwise: Gaussian noise of sigma 0.2 on raw pixels, training images, true
labels, the mean over images; "the layers" are all but the input, in forward order. Three arms of
networks: the post's question ("protocol"), and a pair with the same initial weights and images, one
on "true labels", one on "random labels".
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from replication import data, spectra, sweeps, training
from replication._core import paths
from replication._core.profiles import PROFILES
from replication.claims import Claim, Rule
from replication.papers._correlation import correlation
from replication.papers.experiment import Experiment

NOTEBOOK = "04_noise_svd_mnist"
_SCALES = {  # at smoke, quick, full, paper
    "images": ((200, 100), (800, 300), (6000, 2000), None),  # of MNIST's 60,000 and 10,000
    "epochs": (1, 5, 20, 20),
    "seeds": (1, 2, 6, 5),
    "probes": (1, 1, 2, 10),  # images a class, of training and of hold-out images
    "copies": (8, 32, 64, 64),
    "pair_images": (50, 100, 1000, 5000),  # of the networks on true and on random labels
    "pair_epochs": (2, 40, 30, 100),
}
SETTINGS = {
    profile: {name: values[i] for name, values in _SCALES.items()}
    for i, profile in enumerate(PROFILES)
}
SIGMAS = (0.01, 0.1, 0.2)  # the post's three
SIGMA = 0.2
LAYERS = ("conv1", "relu1", "conv2", "relu2", "pool", "fc1", "relu3", "fc2")
CONV = ["conv1", "conv2"]
MEMORISED = 0.99  # train accuracy from which a net counts as having fitted its random labels
NEAR_MINIMUM = 0.05  # convergence: test loss within this share of its minimum
NEAR_FINAL = 0.10  # plateau: within this share of the curve's range from its final value


@sweeps.named_by_spec
@functools.lru_cache(maxsize=2)
def images(
    profile: str, dataset: str = "auto", device: str = "cpu"
) -> tuple[data.Split, float, float]:
    """Return the standardised images, their mean and standard deviation of pixels.

    Raises
    ------
    ValueError
        If `dataset` is not MNIST or, in its place, the 5,000 embedded digits.
    """
    split = data.load(dataset, subset=SETTINGS[profile]["images"], device=device)
    if split.name not in ("mnist", "mnist5k"):
        raise ValueError(f"dataset: the network is made for MNIST, found {split.name!r}")
    return data.standardise(split)


@sweeps.named_by_spec
@functools.lru_cache(maxsize=2)
def arms(
    profile: str, dataset: str = "auto", device: str = "cpu"
) -> dict[str, tuple[training.Spec, data.Split]]:
    """Return how the networks of each arm are trained, but for their seed, and on what."""
    split, _, _ = images(profile, dataset, device)
    scale = SETTINGS[profile]
    epochs, size = scale["epochs"], scale["pair_images"]
    protocol = training.Spec(
        model="mnist_convnet",
        learning_rate=0.01,
        batch_size=32,
        epochs=epochs,
        checkpoints=(0, 0.25, 0.5, *range(1, epochs + 1)),
        evaluation_images=2000,
    )
    pair = replace(
        protocol,
        optimizer_options={"momentum": 0.9},  # else random labels are hardly fitted in this time
        epochs=scale["pair_epochs"],
        checkpoints=(),
        evaluate_every=10,
        evaluation_images=None,
    )
    first = data.Examples(split.train.images[:size], split.train.labels[:size])
    small = replace(split, train=first)
    return {
        "protocol": (protocol, split),
        "true labels": (pair, small),
        "random labels": (replace(pair, label_corruption=1.0), small),
    }


@sweeps.named_by_spec
def network(
    arm: str, seed: int, profile: str, dataset: str = "auto", device: str = "auto"
) -> training.Run:
    """Return a network of an arm, trained or from the store."""
    spec, split = arms(profile, dataset, device)[arm]
    store = paths.runs() / "networks"
    return training.fit(replace(spec, seed=seed), split, store=store, device=device)


def first_of_each_class(examples: data.Examples, count: int) -> torch.Tensor:
    """Return `count` images of each class, classes in order."""
    rows = [(examples.labels == c).nonzero()[:count, 0] for c in range(10)]
    return examples.images[torch.cat(rows)]


def measure(spec: dict, profile: str, dataset: str = "auto", device: str = "auto") -> list[dict]:
    """Return the spectra of one network at one epoch: a row a layer and kind of image.

    Averages over images, as many in each class. Columns ev1, ev2, rest (EV_3 and beyond),
    unexplained (1 - EV_1 without cancellation), share1 (s_1 over the sum of all), centred1 (EV_1 of
    the centred group) and s1 to s4, divided by the root of the number of copies.
    """
    split, _, pixel_std = images(profile, dataset, device)
    small = arms(profile, dataset, device)["true labels"][1]
    model = network(spec["arm"], spec["seed"], profile, dataset, device).model(
        spec["epoch"], device
    )
    sigma = spec["sigma"] / (pixel_std if spec["scale"] == "raw" else 1.0)
    rows = []
    for kind, examples in {"train": small.train, "hold-out": split.test}.items():
        shown = first_of_each_class(examples, spec["probes"])
        spectrum = spectra.noise_spectrum(
            model, shown, sigma, spec["copies"], ["input", *LAYERS], spec["perturb"]
        )
        for layer in spectrum.layers:
            s = spectrum.singular_values[layer].double() / spec["copies"] ** 0.5
            ev = spectra.explained_variance(s)
            centred = spectra.explained_variance(spectrum.centred[layer].double())
            columns = {"share1": s[:, 0] / s.sum(1), "ev1": ev[:, 0], "ev2": ev[:, 1]}
            columns |= {"rest": ev[:, 2:].sum(1), "unexplained": ev[:, 1:].sum(1)}
            columns |= {"centred1": centred[:, 0]}
            columns |= {f"s{k + 1}": s[:, k] for k in range(min(4, s.shape[1]))}
            means = {name: values.mean().item() for name, values in columns.items()}
            rows.append({"images": kind, "layer": layer} | means)
    return rows


def plan(profile: str, dataset: str = "auto", device: str = "auto") -> dict[str, Experiment]:
    """Return the notebook's experiments; `measure` trains the networks that the store lacks."""
    scale, networks = SETTINGS[profile], arms(profile, dataset, device)
    last, copies = scale["epochs"], scale["copies"]
    epochs = networks["protocol"][0].checkpoints

    def specs(arm: str, epochs: Sequence[float], sigmas: Sequence[float], **changed) -> list[dict]:
        training_spec, split = networks[arm]
        return [
            {"network": replace(training_spec, seed=seed).key(split), "arm": arm, "seed": seed}
            | {"epoch": epoch, "sigma": sigma, "scale": "raw", "perturb": "gaussian"}
            | {"copies": copies, "probes": scale["probes"]}
            | changed
            for seed in range(scale["seeds"])
            for epoch in epochs
            for sigma in sigmas
        ]

    groups = {
        "noise": specs("protocol", epochs, SIGMAS),
        "no noise": specs("protocol", epochs, [0.0], copies=2),  # equal copies: two are enough
        "standardised": specs("protocol", few_epochs(profile), SIGMAS, scale="standardised"),
    }
    for perturb in ("gaussian", "fgsm", "pgd"):  # fewer copies: an attack needs backward passes
        changed = {"perturb": perturb, "copies": min(16, copies // 2)}
        groups[perturb] = specs("protocol", [0, last], [0.1], **changed)
    for arm in ("true labels", "random labels"):
        groups[arm] = specs(arm, [0, scale["pair_epochs"]], [SIGMA])
    options = {"profile": profile, "dataset": dataset, "device": device}
    return {name: Experiment(measure, group, options=options) for name, group in groups.items()}


def few_epochs(profile: str) -> list[int]:
    """Return the epochs at which the two noise scales are compared."""
    last = SETTINGS[profile]["epochs"]
    return sorted({0, 1, last // 4, last})


@torch.no_grad()
def accuracy_under_noise(profile: str, dataset: str = "auto", device: str = "auto") -> pd.DataFrame:
    """Return seed, sigma, accuracy: of the protocol's nets at the end, with one draw of noise."""
    split, _, pixel_std = images(profile, dataset, device)
    source = torch.Generator().manual_seed(0)
    noise = torch.randn(split.test.images.shape, generator=source)
    rows = []
    for seed in range(SETTINGS[profile]["seeds"]):
        model = network("protocol", seed, profile, dataset, device).model(device=device)
        for sigma in (0.0, *SIGMAS):
            shown = split.test.images + (noise * sigma / pixel_std).to(split.test.images.device)
            accuracy = training.evaluate(model, data.Examples(shown, split.test.labels))[1]
            rows.append({"seed": seed, "sigma": sigma, "accuracy": accuracy})
    return pd.DataFrame(rows)


def _claim(
    number: int, statement: str, *texts: str, test: str = "t", shown: str = "a plot, no number"
) -> Claim:
    rules = tuple(Rule.read(text, test) for text in texts)
    rule = rules if len(rules) > 1 else rules[0]
    return Claim(f"B{number}", POST, statement, rule, paper_value=shown)


POST = "Post: From Generalization to Inner Activations"
_FALL = "EV1 at init minus EV1 at the end, mean of conv1 and conv2 > 0"
CLAIMS: tuple[Claim, ...] = (
    _claim(1, "EV1 of convolutional layers falls with training", _FALL),
    _claim(
        2,
        "The fall of EV1 is smaller in later layers",
        _FALL,
        "Spearman correlation of depth with the fall of EV1, over the layers < 0",
    ),
    _claim(
        3,
        "EV2 of convolutional layers rises with training",
        "EV2 at the end minus EV2 at init, mean of conv1 and conv2 > 0",
    ),
    _claim(
        4,
        "The remaining components plateau around the epoch of convergence",
        "|plateau epoch of 1 - EV1 - EV2 minus convergence epoch| over epochs trained, "
        "mean of conv1 and conv2 < 0.1",
    ),
    _claim(
        5,
        "The remaining components plateau later in later layers",
        "Spearman correlation of depth with the plateau epoch, over the layers > 0",
    ),
    _claim(
        6,
        "s1 of perturbed groups drops in the first epochs",
        "lowest s1 up to the convergence epoch, relative to init, minus 1; "
        "s1 relative to init averaged over the layers < -0.01",
    ),
    _claim(
        7,
        "s1 of perturbed groups rises after convergence",
        "s1 at the end over s1 at the convergence epoch, minus 1, mean of the layers > 0",
    ),
    _claim(
        8,
        "s1 of perturbed groups varies more in early training",
        "mean |change of ln s1| from epoch to epoch, first half of training minus second half, "
        "mean of the layers > 0",
    ),
    _claim(
        9,
        "Accuracy is hardly changed by the noise",
        "test accuracy on clean images minus that under the noise, at the end < 0.01",
    ),
    _claim(
        10,
        "Without noise, all singular values but the first are 0",
        "largest s2 / s1 at sigma 0 over layers and epochs < 1e-6",
        test="every",
    ),
    _claim(
        11,
        "s1 without noise grows with training",
        "s1 at the end over s1 at init, minus 1, at sigma 0, mean of the layers > 0",
    ),
    _claim(
        12,
        "EV1 is higher in generalising than in memorising nets",
        "EV1 of the net trained on true labels minus EV1 of the net that fitted random labels "
        "(train accuracy >= 99%, else undefined), same seed and images, mean of the layers > 0",
        shown="expected, not reported",
    ),
)


def convergence_epoch(history: pd.DataFrame) -> float:
    """Return the first epoch whose test loss is within 5% of the lowest test loss of the run."""
    history = history.sort_values("epoch")
    near = history.test_loss <= (1 + NEAR_MINIMUM) * history.test_loss.min()
    return float(history.epoch[near].iloc[0])


def plateau_epoch(curve: pd.Series) -> float:
    """Return the first epoch (index) from which `curve` stays near its final value.

    Near means within 10% of the curve's range (largest minus smallest value). NaN for a curve
    without range.
    """
    curve = curve.sort_index()
    spread = curve.max() - curve.min()
    if not spread > 0:
        return math.nan
    away = (curve - curve.iloc[-1]).abs() > NEAR_FINAL * spread
    last_away = np.flatnonzero(away)[-1] if away.any() else -1
    return float(curve.index[last_away + 1])


def memorised(history: pd.DataFrame) -> list[int]:
    """Return the seeds whose random-label net fitted its labels."""
    last = history[history.arm == "random labels"].sort_values("epoch").groupby("seed").last()
    return sorted(int(seed) for seed in last.index[last.train_accuracy >= MEMORISED])


def statistics(
    spectra: pd.DataFrame, history: pd.DataFrame, accuracy: pd.DataFrame
) -> dict[str, list]:
    """Return, for every claim, one number a seed, or one such list for each of its rules.

    Parameters
    ----------
    spectra : DataFrame
        Columns arm ("protocol", "true labels", "random labels"), seed, epoch, sigma, layer, ev1,
        ev2, rest, s1, s2; one row each. Raw scale, Gaussian noise, training images only.
    history : DataFrame
        Columns arm, seed, epoch, train_accuracy, test_loss.
    accuracy : DataFrame
        Columns seed, sigma, accuracy: test accuracy of the protocol's nets at the end.
    """
    seeds = sorted(spectra[spectra.arm == "protocol"].seed.unique())
    numbers = [
        _one_seed(*(table[table.seed == seed] for table in (spectra, history, accuracy)))
        for seed in seeds
    ]
    values = {claim.id: [one[claim.id] for one in numbers] for claim in CLAIMS}
    return values | {"B2": [list(part) for part in zip(*values["B2"], strict=True)]}


def _one_seed(
    spectra: pd.DataFrame, history: pd.DataFrame, accuracy: pd.DataFrame
) -> dict[str, float | tuple[float, float]]:
    def curves(arm: str, sigma: float, column: str) -> pd.DataFrame:
        """Return epochs x layers, in the order of training and of depth."""
        rows = spectra[(spectra.arm == arm) & (spectra.sigma == sigma)]
        table = rows.pivot(index="epoch", columns="layer", values=column)
        return table.sort_index()[list(LAYERS)]

    ev1, ev2, rest, s1 = (curves("protocol", SIGMA, c) for c in ("ev1", "ev2", "rest", "s1"))
    clean_s1, clean_s2 = (curves("protocol", 0, c) for c in ("s1", "s2"))
    accuracy = accuracy.set_index("sigma").accuracy
    converged = convergence_epoch(history[history.arm == "protocol"])
    plateau, depth = rest.apply(plateau_epoch), range(len(LAYERS))
    fall = ev1.iloc[0] - ev1.iloc[-1]
    relative = (s1 / s1.iloc[0]).mean(axis=1)
    early = relative[(relative.index > 0) & (relative.index <= converged)]
    at_convergence = s1[s1.index <= converged].iloc[-1]
    after = s1.index[-1] > converged
    whole = s1[[float(epoch).is_integer() for epoch in s1.index]]
    rates = np.log(whole).diff().iloc[1:].abs().div(np.diff(whole.index), axis=0).mean(axis=1)
    first_half = rates.index <= whole.index[-1] / 2
    gap = math.nan
    if memorised(history):
        true, random = (
            curves(arm, SIGMA, "ev1").iloc[-1] for arm in ("true labels", "random labels")
        )
        gap = (true - random).mean()
    return {
        "B1": fall[CONV].mean(),
        "B2": (fall[CONV].mean(), correlation(depth, fall)),
        "B3": (ev2.iloc[-1] - ev2.iloc[0])[CONV].mean(),
        "B4": ((plateau - converged).abs() / s1.index[-1])[CONV].mean(skipna=False),
        "B5": correlation(depth, plateau),
        "B6": early.min() - 1 if len(early) else math.nan,
        "B7": (s1.iloc[-1] / at_convergence - 1).mean() if after else math.nan,
        "B8": rates[first_half].mean() - rates[~first_half].mean(),
        "B9": accuracy[0.0] - accuracy[SIGMA],
        "B10": (clean_s2 / clean_s1).max(axis=None),
        "B11": (clean_s1.iloc[-1] / clean_s1.iloc[0] - 1).mean(),
        "B12": gap,
    }


def notes(values: dict[str, list], epochs: int) -> dict[str, str]:
    """Return what was seen of some claims, in words; `epochs` is how long networks were trained."""
    first, second = (np.mean(values[name]) for name in ("B1", "B3"))
    moved = np.mean([np.abs(value) * epochs for value in values["B4"]])
    falls = "falls" if first > 0 else "rises"
    return {
        "B1": f"seen: EV1 {falls} by {abs(first):.3f} on average",
        "B2": f"seen: EV1 of conv1 and conv2 {falls}",
        "B3": f"seen: EV2 {'rises' if second > 0 else 'falls'} by {abs(second):.4f} on average",
        "B4": f"seen: the plateau is {moved:.1f} epochs from convergence on average",
        "B6": f"seen: at its lowest, s1 is {1 + np.mean(values['B6']):.2f} times its value at init",
    }
