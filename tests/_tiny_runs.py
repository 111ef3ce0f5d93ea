"""A network of a few weights, trained in milliseconds: something to keep in a store."""

import torch

from replication import data, training


def tiny():
    """Return eight random images of four pixels, of two classes."""
    source = torch.Generator().manual_seed(0)
    images = torch.rand(8, 1, 2, 2, generator=source)
    half = data.Examples(images, torch.arange(8) % 2)
    return data.Split(half, half, "toy", ("0", "1"), "made up")


def fit(store):
    """Train on `tiny`, kept in `store`."""
    options = {"inputs": 4, "widths": (3,), "classes": 2}
    spec = training.Spec(model="mlp", model_options=options, epochs=2, batch_size=4)
    return training.fit(spec, tiny(), store=store, progress=False)
