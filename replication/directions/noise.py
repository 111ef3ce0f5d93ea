"""Noise on single units: how accuracy falls as every unit is perturbed by a share of its spread."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from replication._core import inputs
from replication._core.inputs import Array, as_integer
from replication.directions._network import Cut, Perturbation, unit_moments


@dataclass(frozen=True)
class NoiseCurve:
    """Accuracy against the scale of the noise, for several draws; as `AblationCurve`."""

    accuracy: Array  #: (draws, scales), share of examples classified as labelled, 0 to 1
    class_accuracy: Array  #: (draws, scales, classes); NaN for a class without examples
    scales: Array  #: (scales,)
    layers: tuple[str, ...]
    widths: tuple[int, ...]  #: units of each layer
    per: str  #: "std" or "variance"


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
    batch_size: int | None = None,
) -> NoiseCurve:
    """Return the accuracy with Gaussian noise on all units, in proportion to each one's spread.

        x_u + a sigma_u e,    a = scale for per="std", a = sqrt(scale) for per="variance",

    with sigma_u the standard deviation of unit u (over `images` and space, divided by n) in the
    network without noise and e independent standard normal numbers, one for each example and unit
    (and position of a feature map; Morcos et al. 2018, section 2 and figure 2, which is per
    variance). All scales share the numbers e of a draw, which depend on `seed`, the draw and the
    places of layer and example only.

    Parameters
    ----------
    model, images, labels, layers, batch_size
        As in `cumulative_ablation`; several layers are perturbed at once.
    scales : numbers >= 0
    draws, seed : int
    per : "std" or "variance"

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> images = torch.randn(40, 5)
    >>> curve = noise_curve(net, images, net(images).argmax(1), "1", [0.0, 9.0], draws=4)
    >>> tuple(curve.accuracy.shape), bool((curve.accuracy[:, 0] == 1).all())  # no noise, no change
    ((4, 2), True)
    """
    draws = as_integer(draws, "draws", 1)
    per = inputs.as_choice(per, "per", ("std", "variance"))
    amounts = [inputs.as_number(scale, "scales") for scale in inputs.as_list(scales, "scales")]
    if not amounts:
        raise ValueError("scales: expected at least one number, found none")
    network = Cut(model, images, labels, layers, batch_size)
    spreads = [variance.sqrt().to(network.like) for _, variance in unit_moments(network)]
    noise = _Noise(network, spreads)
    factors = network.like.new_tensor(amounts)
    factors = factors.sqrt() if per == "variance" else factors
    hits = network.zeros(draws, len(amounts))
    sources = [
        [inputs.generator(seed, f"noise/{draw}", place) for place in range(len(network.layers))]
        for draw in range(draws)
    ]
    with network.running(), noise.hooked():
        for x, y, classes in network.batches():
            for total, generators in zip(hits, sources, strict=True):
                noise.draw(generators, len(x))
                right = []
                for noise.factors in factors.split(network.copies(x)):
                    right.append(noise.logits(x).argmax(-1) == y)
                total += torch.cat(right).double() @ classes
    kind = inputs.like(images)
    return NoiseCurve(
        accuracy=kind(hits.sum(2) / len(network.images)),
        class_accuracy=kind(hits / network.examples),
        scales=kind(torch.tensor(amounts, dtype=torch.float64, device=hits.device)),
        layers=network.layers,
        widths=network.widths,
        per=per,
    )


class _Noise(Perturbation):
    """Adds the numbers drawn last, times each unit's spread, times one of `factors` for a copy."""

    def __init__(self, network: Cut, spreads: list[Tensor]) -> None:
        super().__init__(network)
        self.spreads, self.factors = spreads, torch.empty(0)
        self.numbers: list[Tensor] = []  # (examples, units, ...) for each layer

    @property
    def copies(self) -> int:
        return len(self.factors)

    def draw(self, sources: list[torch.Generator], examples: int) -> None:
        """Draw anew for each layer, on the CPU, so that a seed means the same on every device."""
        self.numbers = []
        for shape, spread, source in zip(self.network.shapes, self.spreads, sources, strict=True):
            # torch makes normal numbers sixteen at a time: whole blocks for each example keep them
            # the same however the examples are batched.
            padded = -(-shape.numel() // 16) * 16
            drawn = torch.randn(examples, padded, generator=source, dtype=spread.dtype)
            drawn = drawn[:, : shape.numel()].reshape(examples, *shape).to(spread.device)
            self.numbers.append(drawn * spread.reshape(-1, *(1,) * (len(shape) - 1)))

    def __call__(self, index: int, output: Tensor) -> Tensor:
        factors = self.factors.reshape(-1, *(1,) * (output.ndim - 1))
        return torch.addcmul(output, factors, self.numbers[index])
