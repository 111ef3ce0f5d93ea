"""What a layer carries: the accuracy of a linear probe, and a layer cut to principal components."""

import torch
from torch import Tensor
from torch.nn import functional as F

from replication._core import inputs
from replication._core.inputs import Array, as_integer
from replication._core.precision import full_precision
from replication.similarity._linalg import as_layer, centred


def linear_probe(
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    penalty: float = 1e-3,
    iterations: int = 100,
) -> float:
    """Return the test accuracy of a linear classifier fitted to a layer (Alain & Bengio 2017).

    Softmax regression on features standardised by the training examples: the minimum over W, b of

        mean cross-entropy(x W + b, label) + penalty / 2 |W|_F^2,

    a strictly convex problem in W, by at most `iterations` steps of L-BFGS in float64 from zero, so
    that the result has no seed. Constant features are left out of W by the penalty.

    Parameters
    ----------
    train, test : (examples, features) tensors or arrays
    train_labels, test_labels : (examples,) integer tensors or arrays
        From 0, below 65,536. A class without training examples is never predicted correctly.
    penalty : float
        At least 0.
    iterations : int

    Returns
    -------
    float
        The share of test examples whose class has the largest logit.

    Raises
    ------
    ValueError
        For layers that are not two-dimensional, hold NaN or infinity or differ in features, labels
        of another length or out of range, or a penalty below 0.
    """
    x, z = (as_layer(z, name).detach().double() for z, name in ((train, "train"), (test, "test")))
    if x.shape[1] != z.shape[1]:
        raise ValueError(f"test: expected the {x.shape[1]} features of train, found {z.shape[1]}")
    y, truth = _classes(train_labels, x, "train_labels"), _classes(test_labels, z, "test_labels")
    penalty = inputs.as_number(penalty, "penalty")
    iterations = as_integer(iterations, "iterations", 1)
    mean, scale = x.mean(0), x.std(0)
    scale = scale.where(scale > 1e-12 * (1 + mean.abs()), 1)
    x, z = (x - mean) / scale, (z - mean) / scale
    classes = int(y.max()) + 1
    weight = x.new_zeros(x.shape[1], classes, requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=True)
    descent = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        descent.zero_grad()
        value = F.cross_entropy(x @ weight + bias, y) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad(), full_precision():
        descent.step(loss)
        predicted = (z @ weight.detach() + bias.detach()).argmax(1)
    return (predicted == truth).double().mean().item()


def keep_components(x: Array, count: int, *others: Array) -> Array | tuple[Array, ...]:
    """Return a layer cut to its first principal components, in its own coordinates.

    With X - m = U S V^T centred and V_k the first k columns of V,

        x -> m + (x - m) V_k V_k^T

    (Ding, Denain & Steinhardt 2021, section 4: deletion of principal components). `others`, the
    same features on other examples, take the same map.

    Parameters
    ----------
    x, others : (examples, features) tensors or arrays
    count : int
        Components kept, from 0 to the number of features; more than the rank change nothing.

    Returns
    -------
    tensor or array, or a tuple of them where there are others

    Raises
    ------
    ValueError
        For a count out of range, layers that are not two-dimensional, hold NaN or infinity, or
        have other features.
    """
    first = as_layer(x, "x")
    count = as_integer(count, "count", 0)
    if count > first.shape[1]:
        raise ValueError(f"count: expected at most the {first.shape[1]} features, found {count}")
    mean = first.mean(0)
    with full_precision():
        kept = torch.linalg.svd(centred(first), full_matrices=False).Vh[:count]
        cut = []
        for index, layer in enumerate((x, *others)):
            name = f"others[{index - 1}]" if index else "x"
            values = as_layer(layer, name)
            if values.shape[1] != len(mean):
                raise ValueError(f"{name}: expected {len(mean)} features, found {values.shape[1]}")
            cut.append(inputs.like(layer)(mean + ((values - mean) @ kept.mT) @ kept))
    return tuple(cut) if others else cut[0]


def _classes(labels: Array, layer: Tensor, name: str) -> Tensor:
    """Return int64 labels (examples,) on the device of `layer`."""
    classes = inputs.as_labels(labels, len(layer), name).to(layer.device).long()
    inputs.require_classes(classes, inputs.MOST_CLASSES, name)
    return classes
