"""`spectra.group_singular_values` against a loop of float64 `torch.linalg.svdvals`.

The nine layers of the noise-SVD notebook's convnet, 64 copies an image; the decomposition alone,
the activations being given.
"""

import torch
from torch import Tensor

from benchmarks._timing import Row, cpu_seconds
from replication import activations, models, spectra
from replication.papers.noise_svd_mnist import LAYERS

COPIES = 64
IMAGES = 4


def groups(sigma: float) -> list[Tensor]:
    """Return the float64 activations (images, copies, neurons) of the input and eight layers."""
    source = torch.Generator().manual_seed(0)
    model = models.build("mnist_convnet", dtype=torch.float64)
    images = torch.rand(IMAGES, 1, 1, 28, 28, generator=source, dtype=torch.float64)
    images = images * (images > 0.8)  # mostly dark, as digits are
    noise = torch.randn(IMAGES, COPIES, 1, 28, 28, generator=source, dtype=torch.float64)
    copies = (images + sigma * noise).flatten(0, 1)
    layers = activations.record(model, copies, LAYERS, reduction="flatten")
    return [x.unflatten(0, (IMAGES, COPIES)) for x in (copies.flatten(1), *layers.values())]


def loop(stacks: list[Tensor]) -> list[Tensor]:
    """Return the singular values one (image, layer) at a time."""
    return [torch.stack([torch.linalg.svdvals(one) for one in stack]) for stack in stacks]


def ours(stacks: list[Tensor]) -> list[Tensor]:
    """Return the uncentred singular values (the centred ones come along)."""
    return [spectra.group_singular_values(stack)[0] for stack in stacks]


def worst(found: list[Tensor], exact: list[Tensor]) -> float:
    """Return the largest error of any singular value, in units of its group's s_1."""
    errors = [
        ((f[:, : e.shape[1]] - e).abs() / e[:, :1]).max() for f, e in zip(found, exact, strict=True)
    ]
    return max(error.item() for error in errors)


def rows() -> list[Row]:
    """Return the rows of this benchmark."""
    table = []
    for sigma in (0.01, 0.2):
        double = groups(sigma)
        single = [stack.float() for stack in double]
        rounded = [stack.double() for stack in single]
        seconds = cpu_seconds(
            {
                "loop": lambda double=double: loop(double),
                "float64": lambda double=double: ours(double),
                "float32": lambda single=single: ours(single),
            }
        )
        exact = {"float64": loop(double), "float32": loop(rounded)}
        for dtype, stacks, target in (("float64", double, ">= 3"), ("float32", single, ">= 10")):
            error = worst(ours(stacks), exact[dtype])
            table.append(
                Row(
                    f"noise spectrum, sigma {sigma}, {dtype}",
                    "loop of float64 svdvals",
                    seconds["loop"] / seconds[dtype],
                    target,
                    f"{error:.0e} of s1",
                )
            )
    return table
