"""Specifications: which values they refuse, and the keys by which their runs are kept."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from test_training import SPLIT, fit, make

from replication import data, training

pytestmark = pytest.mark.usefixtures("one_thread")


BAD = {
    "model": ("mlpp", 3),
    "model_options": ([1], {"inputs": torch.tensor(1)}),
    "optimizer": ("sgd", "Optimizer", None),
    "optimizer_options": ({"momentum": math.nan},),
    "learning_rate": (0, -0.1, math.nan, math.inf, "0.1"),
    "schedule": ("linear",),
    "decay": (0,),
    "batch_size": (0, 2.5),
    "epochs": (0, math.inf),
    "evaluate_every": (0,),
    "label_corruption": (1.1, None),
    "image_corruption": ("noise",),
    "augment": ({"rotate": 1}, {"shift": 1.5}, {"shift": -1}, {"flip": 2}, {"crop": 0}),
    "checkpoints": ((3,), (-1,), (math.nan,), 1),
    "stop_at_train_accuracy": (1.5,),
    "evaluation_images": (0, -1),
    "seed": (-1, 0.5),
    "dtype": ("float16",),
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_a_bad_value_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}"):
        make(**{name: value})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer_options": {"momentun": 0.9}}, "optimizer_options"),
        ({"optimizer_options": {"momentum": -1}}, "optimizer_options"),
        ({"optimizer_options": {"lr": 0.9}}, "optimizer_options"),
        ({"model_options": {"width": 3}}, "model_options"),
        ({"freeze": {"fc9": 1}}, "freeze: mlp has no modules"),
        ({"augment": {"crop": 9}}, "augment: crop: expected at most 8, found 9"),
        ({"optimizer": "SGDD"}, "optimizer: found 'SGDD'; did you mean 'SGD'"),
        ({"dtype": "float64", "precision": "bfloat16"}, "precision: expected 'float32'"),
        ({"evaluation_images": 5, "stop_at_train_accuracy": 0.9}, "evaluation_images"),
    ],
)
def test_what_does_not_fit_together_is_named(changes, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        fit(make(**changes))


IMAGES, LABELS = torch.arange(40 * 64) % 7 / 8, torch.arange(40) % 10


def numbered(images=IMAGES, labels=LABELS):
    """Return a split that is the same with every version of torch."""
    images = images.reshape(-1, 1, 8, 8)
    parts = (data.Examples(images[a:b], labels[a:b]) for a, b in ((0, 30), (30, 40)))
    return data.Split(*parts, "toy", tuple("0123456789"), "made up")


def test_keys_are_those_of_runs_that_are_stored_already():
    """Another key would train all stored networks again: raise FORMAT where that is wanted."""
    adam = {"optimizer": "Adam", "optimizer_options": {"betas": (0.9, 0.99)}}
    images = {"augment": {"shift": 1, "flip": 0.5}, "image_corruption": "gaussian"}
    length = {"batch_size": 64, "epochs": 2.5, "checkpoints": (0, 0.5, 1)}
    other = {"learning_rate": 0.01, "seed": 3, "evaluation_images": 10}
    rich = make(**adam, **images, **length, **other)
    assert rich.key(numbered()) == "e4f18d13e3ca31a82097361f"
    plain = training.Spec(model="mnist_convnet")
    assert plain.key(numbered()) == "740572c140a0828538987502"


CHANGES = {
    "model": "mnist_convnet",
    "model_options": {"inputs": 64, "widths": (17,)},
    "optimizer": "Adam",
    "optimizer_options": {"momentum": 0.9},
    "learning_rate": 0.2,
    "schedule": "cosine",
    "decay": 0.9,
    "batch_size": 15,
    "epochs": 3,
    "label_corruption": 0.1,
    "keep_marginal": True,
    "image_corruption": "gaussian",
    "augment": {"flip": 0.5},
    "freeze": {"fc1": 1},
    "checkpoints": (1,),
    "stop_at_train_accuracy": 0.9,
    "evaluate_every": 0.5,
    "evaluation_images": 5,
    "seed": 1,
    "dtype": "float64",
    "precision": "bfloat16",
}


def test_every_field_and_every_tensor_is_in_the_key():
    assert CHANGES.keys() == {f.name for f in dataclasses.fields(training.Spec)}
    keys = {make(**{name: value}).key(SPLIT) for name, value in CHANGES.items()}
    base = make().key(SPLIT)
    assert len(keys | {base}) == len(CHANGES) + 1
    found = set()
    for index in (None, 0, -1):  # a pixel or a label of a training or a test image
        for part in (0, 1):
            tensors = IMAGES.clone(), LABELS.clone()
            if index is not None:
                tensors[part][index] += 1
            found.add(make().key(numbered(*tensors)))
    assert len(found) == 5
    assert make(seed=np.int64(0)).key(SPLIT) == base
    assert make(model_options={"widths": [16], "inputs": 64}).key(SPLIT) == base
