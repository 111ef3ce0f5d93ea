"""Least squares with more weights than examples: the solution of least norm, and the way to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from replication._core.inputs import Array, Kind, as_integer, as_list, as_tensor, generator, like
from replication._core.precision import full_precision
from replication.memorisation._inputs import as_rows, as_targets


def minimum_norm_solution(features: Kind, targets: Array) -> Kind:
    """Return the weights w of least norm among those that minimise |X w - y|^2.

    w = V diag(1 / s) U^T y for X = U diag(s) V^T (Zhang et al. 2017, section 5). Singular values up
    to max(n, p) eps times the largest count as 0, so that rank deficiency does no harm.

    Parameters
    ----------
    features : (n, p) tensor or array
        X; further dimensions are flattened.
    targets : (n,) or (n, k) tensor or array
        y; integers (n,) are classes, one-hot (n, classes).

    Returns
    -------
    (p,) or (p, k), float64, of the kind of `features`.

    Examples
    --------
    >>> features = torch.randn(5, 20, dtype=torch.float64)  # fewer examples than features
    >>> targets = torch.randn(5, 1, dtype=torch.float64)
    >>> weights = minimum_norm_solution(features, targets)
    >>> torch.allclose(weights, torch.linalg.pinv(features) @ targets)
    True
    """
    x = as_rows(features, "features")
    y = as_targets(targets, x, "targets", one_hot=True)
    with full_precision():
        return like(features)(_solve(*_decompose(x), y))


@dataclass(frozen=True, eq=False)
class GradientDescentPath:
    """Where gradient descent was at r recorded steps; norms are over all k targets together."""

    steps: tuple[int, ...]  #: r of them
    distance: Array  #: (r,) |w - w*|, w* the solution of least norm
    outside: Array  #: (r,) length of the part of w that is orthogonal to every example
    residual: Array  #: (r,) largest |X w - y|
    weights: Array  #: (p,) or (p, k), w after the last step
    solution: Array  #: w*
    learning_rate: float


def gradient_descent_path(
    features: Array,
    targets: Array,
    steps: Sequence[int],
    batch_size: int | None = None,
    start: Array | None = None,
    seed: int = 0,
) -> GradientDescentPath:
    """Follow (stochastic) gradient descent on least squares, from 0 unless told otherwise.

    A step goes along -X_B^T (X_B w - y_B) / |B|, at a rate of 1 / (largest eigenvalue of X^T X / n)
    or, for minibatches, 1 / max_i |x_i|^2. The weights stay in `start` plus the span of the
    examples; of all w with X w = y that set holds one, which is the solution of least norm if
    `start` is 0 (Zhang et al. 2017, section 5).

    Parameters
    ----------
    features, targets
        X and y as in `minimum_norm_solution`.
    steps : sequence of int >= 0
        The numbers of steps after which to record.
    batch_size : int, optional
        Examples a step, drawn by `seed` with replacement; None for all of them, each once.
    start : tensor or array, optional
        Initial w, of the shape of the solution.

    Examples
    --------
    >>> features = torch.randn(5, 20, dtype=torch.float64)
    >>> targets = torch.randn(5, 1, dtype=torch.float64)
    >>> path = gradient_descent_path(features, targets, steps=[0, 100, 1000])
    >>> bool(path.distance[-1] < 1e-3 * path.distance[0])  # to the solution of least norm
    True
    """
    x = as_rows(features, "features")
    y = as_targets(targets, x, "targets", one_hot=True)
    record = sorted({as_integer(step, "steps", 0) for step in as_list(steps, "steps")})
    if not record:
        raise ValueError("steps: expected at least one number of steps, found none")
    if batch_size is not None:
        batch_size = as_integer(batch_size, "batch_size", 1)
    source = generator(as_integer(seed, "seed", 0), "gradient_descent_path")
    recorded: list[Tensor] = []
    with full_precision():
        u, s, vh = _decompose(x)
        solution = _solve(u, s, vh, y)
        w = torch.zeros_like(solution) if start is None else as_tensor(start, "start").detach()
        if w.shape != solution.shape:
            found = tuple(w.shape)
            raise ValueError(f"start: expected the shape {tuple(solution.shape)}, found {found}")
        w = w.to(solution)
        steepest = s[:1].square().sum() / len(x)
        if batch_size is not None:
            steepest = x.square().sum(1).max()
        rate = 1 / float(steepest) if steepest > 0 else 1.0
        for step in range(record[-1] + 1):
            if step:
                rows, aims = x, y
                if batch_size is not None:
                    drawn = torch.randint(len(x), (batch_size,), generator=source).to(x.device)
                    rows, aims = x[drawn], y[drawn]
                w = w - rate / len(rows) * (rows.mT @ (rows @ w - aims))
            if step == record[len(recorded)]:
                numbers = [(w - solution).norm(), (w - vh.mT @ (vh @ w)).norm()]
                recorded.append(torch.stack([*numbers, (x @ w - y).abs().max()]))
    kind = like(features)
    distance, outside, residual = (kind(column) for column in torch.stack(recorded, 1))
    return GradientDescentPath(
        tuple(record), distance, outside, residual, kind(w), kind(solution), rate
    )


def _decompose(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, s and V^T of x, without the directions whose singular value is rounding."""
    if x.shape[0] < x.shape[1]:  # upright matrices are decomposed several times faster
        v, s, uh = torch.linalg.svd(x.mT, full_matrices=False)
        u, vh = uh.mT, v.mT
    else:
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
    rank = int((s > max(x.shape) * torch.finfo(x.dtype).eps * s[0]).sum())
    return u[:, :rank], s[:rank], vh[:rank]


def _solve(u: Tensor, s: Tensor, vh: Tensor, y: Tensor) -> Tensor:
    """Return V diag(1 / s) U^T y, (p,) or (p, k)."""
    scale = s / s.square()
    return vh.mT @ (scale.reshape(-1, *[1] * (y.ndim - 1)) * (u.mT @ y))
