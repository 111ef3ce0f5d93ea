"""What a layer carries: the accuracy of a linear probe."""

import torch
from torch import Tensor
from torch.nn import functional as F

from replication._core import inputs
from replication._core.inputs import Array, as_integer
from replication._core.precision import full_precision
from replication.similarity._linalg import as_layer


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

    by at most `iterations` steps of L-BFGS in float64 from zero, so that the result has no seed.

    Parameters
    ----------
    train, test : (examples, features) tensors or arrays
    train_labels, test_labels : (examples,) integer tensors or arrays
        From 0, below 65,536. A class without training examples is never predicted correctly.
    """
    x, z = (as_layer(z, name).detach().double() for z, name in ((train, "train"), (test, "test")))
    if x.shape[1] != z.shape[1]:
        raise ValueError(f"test: expected the {x.shape[1]} features of train, found {z.shape[1]}")
    y = inputs.as_labels(train_labels, len(x), "train_labels").to(x.device).long()
    truth = inputs.as_labels(test_labels, len(z), "test_labels").to(z.device).long()
    inputs.require_classes(y, inputs.MOST_CLASSES, "train_labels")
    inputs.require_classes(truth, inputs.MOST_CLASSES, "test_labels")
    penalty = inputs.as_number(penalty, "penalty")
    iterations = as_integer(iterations, "iterations", 1)
    mean, scale = x.mean(0), x.std(0)
    scale = scale.where(scale > 1e-12 * (1 + mean.abs()), 1)
    x, z = (x - mean) / scale, (z - mean) / scale
    classes = int(y.max()) + 1
    # L-BFGS looks at many numbers a step: on the host, which gets all of them in one copy.
    solution = torch.zeros(x.shape[1] + 1, classes, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS(
        [solution], max_iter=iterations, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        there = solution.detach().to(x.device, copy=True).requires_grad_()
        weight, bias = there[:-1], there[-1]
        value = F.cross_entropy(x @ weight + bias, y) + penalty / 2 * weight.square().sum()
        (gradient,) = torch.autograd.grad(value, there)
        found = torch.cat([gradient.flatten(), value.detach()[None]]).cpu()
        solution.grad = found[:-1].view_as(solution)
        return found[-1]

    with torch.enable_grad(), full_precision():
        descent.step(loss)
        there = solution.detach().to(x.device)
        predicted = (z @ there[:-1] + there[-1]).argmax(1)
    return (predicted == truth).double().mean().item()
