"""Packages from the index beside ours, on the same input: the `bench` extra installs them."""

import warnings
from collections import OrderedDict

import numpy as np
import torch
from torch import nn

from benchmarks._timing import Row, cpu_seconds
from replication import activations, similarity

BATCH = 256


def networks() -> tuple[nn.Sequential, nn.Sequential, torch.Tensor]:
    """Return two small convnets of other initialisations, and 1,024 images for both."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pair = []
        for _ in range(2):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for number, channels in enumerate((3, 16, 16, 16, 16), start=1):
                layers[f"conv{number}"] = nn.Conv2d(channels, 16, 3, padding=1)
                layers[f"relu{number}"] = nn.ReLU()
            layers |= {"flatten": nn.Flatten(), "fc": nn.Linear(4096, 64)}
            pair.append(nn.Sequential(layers).eval())
        return (*pair, torch.randn(4 * BATCH, 3, 16, 16))


def minibatch_rows() -> list[Row]:
    """Return the row of minibatch CKA of all layers of two small convnets against torch_cka."""
    from torch_cka import CKA

    first, second, inputs = networks()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, torch.zeros(len(inputs))), batch_size=BATCH
    )
    names = [name for name, _ in first.named_children()]

    def theirs() -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that a model has a default name
            peer = CKA(first, second, "first", "second", list(names), list(names))
            peer.compare(loader)
        return peer.export()["CKA"].numpy()

    def ours(dtype: torch.dtype = torch.float32) -> np.ndarray:
        a, b = (
            activations.record(net, inputs, reduction=lambda z: z.flatten(1).to(dtype))
            for net in (first, second)
        )
        batches = (
            tuple({name: z[i : i + BATCH] for name, z in side.items()} for side in (a, b))
            for i in range(0, len(inputs), BATCH)
        )
        return similarity.minibatch_cka(batches).values.numpy()

    exact = ours(torch.float64)

    def off(values: np.ndarray) -> float:
        return float(np.abs(values - exact).max())

    seconds = cpu_seconds({"theirs": theirs, "ours": ours}, repeats=3)
    return [
        Row(
            "unbiased minibatch CKA, 12 x 12 layers of a convnet, 1,024 images, float32",
            "torch_cka",
            seconds["theirs"] / seconds["ours"],
            ">= 3",
            f"ours {off(ours()):.0e}, theirs {off(theirs()):.0e}, from float64",
        )
    ]


def feature_rows() -> list[Row]:
    """Return the rows of CKA and CCA of one pair of layers against pytorch-cka and cca-zoo."""
    from cca_zoo.linear import CCA
    from cka import cka_from_features

    source = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 128, generator=source, dtype=torch.float64)
    y = x @ torch.randn(128, 96, generator=source, dtype=torch.float64)
    y = y + 5 * torch.randn(y.shape, generator=source, dtype=torch.float64)
    views = [x.numpy(), y.numpy()]

    def their_cka() -> float:
        return float(cka_from_features(x, y))

    def their_cca() -> np.ndarray:
        left, right = CCA(n_components=96).fit(views).transform(views)
        cross = (left - left.mean(0)).T @ (right - right.mean(0))
        return np.abs(np.diag(cross)) / np.linalg.norm(left, axis=0) / np.linalg.norm(right, axis=0)

    table = []
    seconds = cpu_seconds(
        {"theirs": their_cka, "ours": lambda: similarity.cka(x, y, unbiased=True)}
    )
    table.append(
        Row(
            "unbiased linear CKA, 3,000 x (128, 96), float64",
            "pytorch-cka",
            seconds["theirs"] / seconds["ours"],
            "",
            f"{abs(their_cka() - similarity.cka(x, y, unbiased=True).item()):.0e}",
        )
    )
    seconds = cpu_seconds({"theirs": their_cca, "ours": lambda: similarity.cca(x, y).x_variates})
    found = similarity.cca(x, y).correlations.numpy()
    table.append(
        Row(
            "CCA, 3,000 x (128, 96), float64",
            "cca-zoo",
            seconds["theirs"] / seconds["ours"],
            "",
            f"{np.abs(np.sort(their_cca())[::-1] - found).max():.0e}",
        )
    )
    return table


def rows() -> list[Row]:
    """Return the rows of this benchmark; none, and a line that says so, without the packages."""
    try:
        return [*minibatch_rows(), *feature_rows()]
    except ModuleNotFoundError as error:
        print(f"peers: left out, {error.name} is missing: pip install -e '.[bench]'")
        return []
