"""Jacobians by a loop over examples, to compare norms with."""

import torch

from replication.sensitivity._evaluation import plain_evaluation


def logit_jacobians(model, images):
    """Return (N, classes, inputs), one example after the other."""
    with plain_evaluation(model), torch.enable_grad():
        found = [
            torch.autograd.functional.jacobian(lambda v: model(v[None].clone())[0], x)
            for x in images
        ]
    return torch.stack(found).flatten(2)


def softmax_jacobians(model, images):
    """Return d s_c / dx = s_c sum_j s_j (df_c/dx - df_j/dx), with no difference near 0."""
    rows = logit_jacobians(model, images)
    with plain_evaluation(model):
        s = model(images.clone()).softmax(1)
    differences = rows[:, :, None] - rows[:, None]
    return s[:, :, None] * (s[:, None, :, None] * differences).sum(2)
