"""Noise on single units: how accuracy falls as every unit is perturbed by a share of its spread."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replication._core.inputs import Array, as_integer, as_list, as_tensor, generator, like, nearest
from replication._core.progress import bar
from replication.directions._arguments import as_examples, class_sizes
from replication.directions._moments import unit_moments
from replication.directions._network import Cut, cut, quiet

SPREADS = ("std", "variance")


@dataclass(frozen=True)
class NoiseCurve:
    """Accuracy against the scale of the noise, for several draws.

    Arrays are of the caller's kind, float64, on the model's device.

    Attributes
    ----------
    accuracy : (draws, scales)
        Share of examples classified as labelled, 0 to 1.
    class_accuracy : (draws, scales, classes)
        NaN for a class without examples.
    scales : (scales,)
    layers : tuple of str
    widths : tuple of int
        Units of each layer.
    per : "std" or "variance"
    """

    accuracy: Array
    class_accuracy: Array
    scales: Array
    layers: tuple[str, ...]
    widths: tuple[int, ...]
    per: str


def noise_curve(
    model: nn.Module,
    images: Array,
    labels: Array,
    layers: str | Sequence[str],
    scales: Sequence[float],
    draws: int = 10,
    seed: int = 0,
    per: str = "std",
    *,
    reference: Array | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> NoiseCurve:
    """Return the accuracy with Gaussian noise on all units, in proportion to each one's spread.

    With sigma_u the standard deviation of unit u in the network without noise and e independent
    standard normal numbers, one for each example and unit (and position of a feature map), every
    unit becomes

        x_u + a sigma_u e,    a = scale for per="std", a = sqrt(scale) for per="variance",

    so that the scale is the noise's standard deviation, or its variance, in units of the unit's own
    (Morcos et al. 2018, section 2 and figure 2: the variance is normalised by the empirical one).
    All scales share the numbers e of a draw. These depend on `seed`, the draw, the layer's place
    in `layers` and the example's place in `images`, not on the batches.

    Parameters
    ----------
    model, images, labels, layers, batch_size, progress
        As in `cumulative_ablation`; several layers are perturbed at once.
    scales : numbers >= 0
    draws : int
    seed : int
    per : "std" or "variance"
    reference : (M, ...) tensor or array, optional
        Images for the standard deviations (over examples and, for feature maps, space; divided by
        n); `images` by default.

    Raises
    ------
    ValueError
        As `cumulative_ablation`, or for `scales`, `draws` or `per`.

    Examples
    --------
    >>> import torch
    >>> from replication import directions
    >>> net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> images = torch.randn(40, 5)
    >>> curve = directions.noise_curve(net, images, net(images).argmax(1), "1", [0.0, 9.0], draws=4)
    >>> tuple(curve.accuracy.shape), bool((curve.accuracy[:, 0] == 1).all())  # no noise, no change
    ((4, 2), True)
    """
    inputs, targets = as_examples(images, labels)
    draws = as_integer(draws, "draws", 1)
    if per not in SPREADS:
        raise ValueError(f"per: found {per!r}; {nearest(str(per), SPREADS)}")
    amounts = as_list(scales, "scales")
    if not amounts or not all(isinstance(a, Real) and 0 <= a < math.inf for a in amounts):
        raise ValueError(f"scales: expected finite numbers >= 0, at least one, found {amounts}")
    network = cut(model, inputs, layers)
    rows = network.rows(batch_size)
    measured = inputs if reference is None else as_tensor(reference, "reference")
    moments = unit_moments(model, network, measured, rows)
    alter = _Noise([variance.sqrt().to(network.like) for _, variance in moments])
    factors = network.like.new_tensor(amounts)
    factors = factors.sqrt() if per == "variance" else factors
    hits = torch.zeros(draws, len(amounts), network.classes, dtype=torch.float64)
    hits = hits.to(network.like.device)
    examples = class_sizes(targets, network.classes).to(hits.device)
    steps = -(-len(inputs) // rows) * draws
    sources = [
        [generator(seed, f"noise/{draw}", place) for place in range(len(network.layers))]
        for draw in range(draws)
    ]
    with (
        quiet(model),
        bar(show=progress, total=steps, desc="noise") as done,
        network.altered(alter) as logits,
    ):
        for x, y in network.batches(inputs, targets, rows):
            classes = F.one_hot(y, network.classes).double()
            for total, drawn in zip(hits, sources, strict=True):
                alter.draw(network, drawn, len(x))
                right = []
                for chosen in factors.split(max(1, rows // len(x))):
                    alter.factors = chosen
                    right.append(logits(x, len(chosen)).argmax(-1) == y)
                total += torch.cat(right).double() @ classes
                done.update()
    kind = like(images)
    return NoiseCurve(
        accuracy=kind(hits.sum(2) / len(inputs)),
        class_accuracy=kind(hits / examples),
        scales=kind(torch.tensor(amounts, dtype=torch.float64, device=hits.device)),
        layers=network.layers,
        widths=tuple(network.widths),
        per=per,
    )


class _Noise:
    """Adds the numbers drawn last, times each unit's spread, times one factor for each copy."""

    def __init__(self, spreads: list[Tensor]) -> None:
        self.spreads = spreads
        self.numbers: list[Tensor] = []
        self.factors = torch.empty(0)

    @property
    def copies(self) -> int:
        return len(self.factors)

    def draw(self, network: Cut, sources: list[torch.Generator], examples: int) -> None:
        """Draw anew for each layer, on the CPU, so that a seed means the same on every device."""
        self.numbers = []
        for shape, spread, source in zip(network.shapes, self.spreads, sources, strict=True):
            # torch makes normal numbers sixteen at a time: whole blocks for each example keep them
            # the same however the examples are batched.
            padded = -(-shape.numel() // 16) * 16
            drawn = torch.randn(examples, padded, generator=source, dtype=spread.dtype)
            drawn = drawn[:, : shape.numel()].reshape(examples, *shape).to(spread.device)
            self.numbers.append(drawn * spread.reshape(-1, *(1,) * (len(shape) - 1)))

    def __call__(self, index: int, output: Tensor) -> Tensor:
        factors = self.factors.reshape(-1, *(1,) * (output.ndim - 1))
        return torch.addcmul(output, factors, self.numbers[index])
