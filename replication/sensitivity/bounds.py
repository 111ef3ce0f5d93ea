"""What a network's cross-entropy alone says about its Jacobian (Novak et al. 2018)."""

from numbers import Real
from typing import NamedTuple

import torch

from replication._core import inputs
from replication._core.inputs import Array, Kind


class CrossEntropyBounds(NamedTuple):
    """Bounds on |J_y| and an approximation of |J|_F, each of the shape of the cross-entropies."""

    lower: Array
    upper: Array
    approximation: Array


def cross_entropy_bounds(
    cross_entropy: Array, mean_square: float | Array, classes: int
) -> CrossEntropyBounds:
    """Return what the cross-entropy l = -ln p_y bounds the softmax Jacobian by.

        sqrt(n M / (n - 1)) e^-l (1 - e^-l) <= |J_y| <= sqrt(2 M) e^-l (1 - e^-l)
        |J|_F ~ sqrt(M) / (n - 1) (1 - e^-l) sqrt(n^2 e^-2l + n - 2)

    for n classes (Novak et al. 2018, appendix). They hold where a point's n logit gradients are
    orthogonal and of the same squared length M: the lower bound and the approximation are reached
    when the other classes share what is left of the probability equally, the upper when one of them
    has it all. The paper takes for every point the M of all (`mean_square_gradient`); then they are
    only likely. All three keep their relative accuracy to where they underflow.

    Parameters
    ----------
    cross_entropy : tensor or array of floats >= 0
        In nats; see `cross_entropies` for values that hold on confident points.
    mean_square : float or array >= 0
        M, for all points or for each.
    classes : int >= 2
    """
    loss = inputs.as_tensor(cross_entropy, "cross_entropy")
    if not loss.is_floating_point() or loss.min() < 0:
        raise ValueError(
            f"cross_entropy: expected floats >= 0, found {loss.dtype}, the least {loss.min()}"
        )
    classes = inputs.as_integer(classes, "classes", 2)
    given = torch.tensor(mean_square) if isinstance(mean_square, Real) else mean_square
    m = inputs.as_tensor(given, "mean_square").to(loss)
    if m.min() < 0 or m.shape not in ((), loss.shape):
        raise ValueError(
            "mean_square: expected a finite number >= 0, or one a point, "
            f"found {m.tolist() if m.ndim == 0 else tuple(m.shape)}"
        )
    kind = inputs.like(cross_entropy)
    root, rest = m.sqrt(), -torch.expm1(-loss)
    own = root * (-loss).exp() * rest
    # hypot, as the square of e^-l underflows first
    spread = torch.hypot(classes * (-loss).exp(), loss.new_tensor(float(classes - 2)).sqrt())
    return CrossEntropyBounds(
        lower=kind((classes / (classes - 1)) ** 0.5 * own),
        upper=kind(2**0.5 * own),
        approximation=kind(root / (classes - 1) * rest * spread),
    )


def mean_square_gradient(logit_norms: Array, classes: int) -> float:
    """Return M = mean over points of |df/dx|_F^2 / n, the mean squared length of a logit gradient.

    From the norms (N,) that ``jacobian_norm(model, images, "logits")`` gives. Without the division
    by the n `classes`, as some statements of the bounds have it, points fall outside of them.
    """
    norms = inputs.as_tensor(logit_norms, "logit_norms")
    return float(norms.detach().double().square().mean()) / inputs.as_integer(classes, "classes", 1)


def fraction_inside(row_norms: Array, bounds: CrossEntropyBounds, tolerance: float = 1e-5) -> float:
    """Return the share of points with lower <= |J_y| <= upper, in [0, 1].

    `row_norms` (N,) are those of `jacobian_row_norm`, `bounds` of the same points, and rounding may
    put a point outside by the share `tolerance`, >= 0.
    """
    tolerance = inputs.as_number(tolerance, "tolerance")
    norms = inputs.as_tensor(row_norms, "row_norms")
    lower = inputs.as_tensor(bounds.lower, "bounds.lower")
    upper = inputs.as_tensor(bounds.upper, "bounds.upper")
    if not norms.shape == lower.shape == upper.shape:
        found = f"found {tuple(lower.shape)} and {tuple(upper.shape)}"
        raise ValueError(f"bounds: expected shape {tuple(norms.shape)} of row_norms, {found}")
    norms, lower, upper = (z.double().to(norms.device) for z in (norms, lower, upper))
    inside = (norms >= lower * (1 - tolerance)) & (norms <= upper * (1 + tolerance))
    return float(inside.double().mean())


def cross_entropies(logits: Kind, labels: Array) -> Kind:
    """Return l = -ln softmax(logits)_y of each point, (N,), in nats and >= 0.

        l = ln(1 + sum_{j != y} e^(f_j - f_y))

    from `logits` f (N, classes) and `labels` y (N,). Unlike the usual difference of f_y and
    log-sum-exp, this keeps its digits on confident points: in float32 the difference knows l only
    to within 1e-7 |f|.
    """
    values = inputs.as_tensor(logits, "logits")
    if values.ndim != 2 or not values.is_floating_point():
        raise ValueError(
            f"logits: expected floating (N, classes), found {values.dtype} {tuple(values.shape)}"
        )
    y = inputs.as_labels(labels, len(values)).long()  # small types would wrap in a comparison
    inputs.require_classes(y, values.shape[1])
    y = y.to(values.device)[:, None]
    margins = (values - values.gather(1, y)).scatter(1, y, -torch.inf)
    margin = margins.logsumexp(1)
    # The softplus of it: torch's goes over to x at a threshold, and -inf, of a single class, is 0.
    return inputs.like(logits)(margin.clamp_min(0) + torch.log1p((-margin.abs()).exp()))
