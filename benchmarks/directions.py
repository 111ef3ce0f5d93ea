"""Cumulative ablation against one masked forward pass for each number of units.

The baseline multiplies the layer's output by a mask in a forward hook and runs the whole network,
in the batches that are fastest for it. One order, every number of units.
"""

import torch
from torch import Tensor, nn

from benchmarks._timing import Row, cpu_seconds
from replication import directions, models

LAYERS = ("act1", "act2", "act3", "act4", "act5")


def digits(examples: int, dtype: torch.dtype) -> Tensor:
    """Return images that are mostly dark, as digits are."""
    source = torch.Generator().manual_seed(0)
    images = torch.rand(examples, 1, 28, 28, generator=source, dtype=dtype)
    return images * (images > 0.8)


def masked_passes(
    model: nn.Module, images: Tensor, labels: Tensor, layers: list[str], order: Tensor, rows: int
) -> Tensor:
    """Return the accuracies (units + 1,), one forward pass of the network for each."""
    width = len(order) // len(layers)
    masks = torch.ones(len(layers), width, dtype=images.dtype)

    def hook(mask: Tensor):
        return lambda module, inputs, out: out * mask.reshape(-1, *(1,) * (out.ndim - 2))

    named = dict(model.named_modules())
    hooked = zip(layers, masks, strict=True)
    handles = [named[layer].register_forward_hook(hook(mask)) for layer, mask in hooked]
    batches = list(zip(images.split(rows), labels.split(rows), strict=True))
    found = []
    with torch.inference_mode():
        for number in range(len(order) + 1):
            if number:
                masks.view(-1)[order[number - 1]] = 0
            hits = sum((model(x).argmax(1) == y).sum().item() for x, y in batches)
            found.append(hits / len(images))
    for handle in handles:
        handle.remove()
    return torch.tensor(found, dtype=torch.float64)


def row(
    what: str,
    model: nn.Module,
    images: Tensor,
    layers: list[str],
    target: str,
    rows: int = 1000,
    **timing,
) -> Row:
    """Return the row of one layer, or of several together."""
    with torch.inference_mode():
        labels = model.eval()(images).argmax(1)
    kept = {}

    def ours() -> None:
        kept["ours"] = directions.cumulative_ablation(model, images, labels, layers, 1)

    def naive() -> None:
        order = kept["ours"].orders[0]
        kept["naive"] = masked_passes(model, images, labels, layers, order, rows)

    seconds = cpu_seconds({"ours": ours, "naive": naive}, **timing)
    wrong = (kept["ours"].accuracy[0] - kept["naive"]).abs().mul(len(images)).round().sum()
    return Row(
        f"ablation, {what}, {str(images.dtype).removeprefix('torch.')}",
        "a masked pass per number of units",
        seconds["naive"] / seconds["ours"],
        target,
        f"{int(wrong)} examples",
    )


def rows() -> list[Row]:
    """Return the rows of this benchmark."""
    table = []
    for dtype in (torch.float32, torch.float64):
        model = models.build("mlp", widths=(200,) * 5, dtype=dtype)
        images = digits(1000, dtype)
        for what, layers, target in (
            ("last hidden layer of 784-200x5-10", ["act5"], ">= 30"),
            ("middle layer", ["act3"], ">= 3"),
            ("first layer", ["act1"], ">= 1.8"),
        ):
            table.append(row(what, model, images, layers, target, repeats=3))
        what = "all five layers together"
        table.append(row(what, model, images, list(LAYERS), "", repeats=1, warm=False))
    convnet, images = models.build("mnist_convnet"), digits(256, torch.float32)
    for what, layer, target in (("last", "relu2", ">= 10"), ("first", "relu1", "")):
        what = f"{what} convolution of the MNIST convnet"
        options = {"rows": 64, "repeats": 1, "warm": False}
        table.append(row(what, convnet, images, [layer], target, **options))
    return table
