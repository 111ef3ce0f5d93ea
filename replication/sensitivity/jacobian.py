"""How far a network's output moves with its input: norms of the Jacobian, point by point."""

from functools import partial
from numbers import Real
from warnings import warn

import torch
from torch import Tensor, nn

from replication._core.inputs import (
    Array,
    Kind,
    as_choice,
    as_inputs,
    as_integer,
    as_labels,
    as_number,
    generator,
    like,
)
from replication.sensitivity._evaluation import (
    as_logits,
    chunks,
    default_memory,
    forward_bytes,
    plain_evaluation,
    to_model,
)
from replication.sensitivity._rows import reduced_rows


def jacobian_norm(
    model: nn.Module, images: Kind, output: str = "softmax", *, memory: int | None = None
) -> Kind:
    """Return each point's Frobenius norm of the input Jacobian, (N,).

        |J|_F = sqrt(sum_{c,i} (d s_c / d x_i)^2),   s = softmax(f(x)), or s = f(x), the logits

    (Novak et al. 2018, section 3, where s is the softmax), in units of the output per unit of
    length of the input. In float32 each norm above 1e-38 is within 1e-4 of float64's, relative,
    however confident the network is; below, it goes to 0. Two things remain: an error d of the
    logits is a relative error of about d here, and a point within rounding of a kink of the
    activations may fall on its other side.

    Parameters
    ----------
    model : torch.nn.Module
        Gives logits (N, classes). Runs in eval mode, on its own device, in its own dtype, float32
        or float64. An MLP of standard layers in `nn.Sequential` is done in closed form, anything
        else by one backward pass a class. At kinks the slope is torch's.
    images : (N, ...) tensor or array
    output : "softmax" or "logits"
    memory : int, optional
        Bytes that the working tensors may take, about, beside the model, of one point at least. By
        default 32 MiB on a CPU, fastest as it is near a processor's cache, and 1 GiB on a GPU.

    Raises
    ------
    ValueError
        If the model does not give finite logits (N, classes), is of another dtype or normalises by
        statistics of the batch even in eval mode; for bad `images`, `output` or `memory`.

    Examples
    --------
    >>> import torch
    >>> from replication import sensitivity
    >>> linear = torch.nn.Linear(3, 2, bias=False).double()
    >>> norms = sensitivity.jacobian_norm(linear, torch.randn(5, 3, dtype=torch.float64), "logits")
    >>> torch.allclose(norms, linear.weight.norm().expand(5))
    True
    """
    points = _checked(images, output, memory)
    return like(images)(reduced_rows(model, points, output, None, _frobenius, memory))


def jacobian_row_norm(
    model: nn.Module,
    images: Kind,
    labels: Array,
    output: str = "softmax",
    *,
    memory: int | None = None,
) -> Kind:
    """Return each point's norm of the gradient of the output of its own class y, (N,).

        |J_y| = sqrt(sum_i (d s_y / d x_i)^2)

    with y the `labels` (N,), from 0 to classes - 1 (Novak et al. 2018, the study of single points).
    All else as in `jacobian_norm`.
    """
    points = _checked(images, output, memory)
    labels = as_labels(labels, len(points)).long()  # small types would wrap in a comparison
    return like(images)(reduced_rows(model, points, output, labels, _frobenius, memory))


def spectral_norm(
    model: nn.Module,
    images: Kind,
    output: str = "softmax",
    *,
    tolerance: float = 1e-6,
    iterations: int = 1000,
    seed: int = 0,
    memory: int | None = None,
) -> Kind:
    """Return each point's largest singular value of the input Jacobian, (N,).

    By power iteration on J J^T (classes, classes) from a random start,

        v <- J J^T v / |J J^T v|,   |J|_2 = sqrt(v^T J J^T v),

    until no point's estimate grows by more than the share `tolerance` in a step. Estimates come
    from below, to within about `tolerance`; where the two largest singular values nearly agree,
    within sqrt(tolerance).

    Parameters
    ----------
    tolerance : float in (0, 1)
    iterations : int
        At most; a ``UserWarning`` tells how many points were still moving then.
    seed : int
        Of the start. All else as in `jacobian_norm`.

    Examples
    --------
    >>> import torch
    >>> from replication import sensitivity
    >>> linear = torch.nn.Linear(3, 2, bias=False).double()
    >>> norms = sensitivity.spectral_norm(linear, torch.randn(5, 3, dtype=torch.float64), "logits")
    >>> torch.allclose(norms, torch.linalg.matrix_norm(linear.weight, 2).expand(5))
    True
    """
    iterations = as_integer(iterations, "iterations", 1)
    if not (isinstance(tolerance, Real) and 0 < tolerance < 1):
        raise ValueError(f"tolerance: expected a number in (0, 1), found {tolerance!r}")
    points = _checked(images, output, memory)
    reduce = partial(_largest_singular_value, tolerance=tolerance, iterations=iterations, seed=seed)
    return like(images)(reduced_rows(model, points, output, None, reduce, memory))


def finite_difference_norm(
    model: nn.Module,
    images: Kind,
    output: str = "softmax",
    *,
    step: float = 1e-3,
    directions: int = 64,
    seed: int = 0,
    memory: int | None = None,
) -> Kind:
    """Return each point's Frobenius norm of the Jacobian, estimated from random steps, (N,).

    For u uniform on the unit sphere of R^d, E[u u^T] = I / d, and so

        E |s(x + step u) - s(x)|^2 = step^2 |J|_F^2 / d + O(step^3):

    the norm is how far a small random perturbation moves the output (Novak et al. 2018, section 3).
    The directions, the same for every point, are orthonormal in blocks of d; with a multiple of d
    of them the size of the step is the only error. Differences of outputs round at eps / step:
    float32 tells nothing here about confident points.

    Parameters
    ----------
    step : float > 0
    directions : int
        They take (directions, d) numbers, beside `memory`.
    seed : int
        Of the directions. All else as in `jacobian_norm`.
    """
    directions = as_integer(directions, "directions", 1)
    step = as_number(step, "step", positive=True)
    points = _checked(images, output, memory)
    inputs = points[0].numel()

    def outputs(batch: Tensor) -> Tensor:
        logits = as_logits(model(batch.clone()), len(batch))  # an in-place layer may come first
        return logits.softmax(1) if output == "softmax" else logits

    with plain_evaluation(model):
        first = to_model(model, points[:1])
        memory = memory or default_memory(first)
        size = forward_bytes(model, first) + 3 * first.nbytes
        units = _directions(inputs, directions, seed).to(first)
        norms = []
        for where in chunks(len(points), memory // size):
            batch = to_model(model, points[where])
            before = outputs(batch)[:, None]
            squares = before.new_zeros(len(batch))
            for block in chunks(directions, memory // (size * len(batch))):
                moved = batch[:, None] + step * units[block].unflatten(1, batch.shape[1:])
                after = outputs(moved.flatten(0, 1)).unflatten(0, moved.shape[:2])
                squares = squares + (after - before).square().sum((1, 2))
            norms.append((squares * (inputs / directions)).sqrt() / step)
        return like(images)(torch.cat(norms))


def _directions(inputs: int, count: int, seed: int) -> Tensor:
    """Return (count, inputs) random unit vectors, orthonormal in blocks of `inputs`."""
    blocks = []
    for index, block in enumerate(chunks(count, inputs)):
        source = generator(seed, "directions", index)
        drawn = torch.randn(inputs, block.stop - block.start, generator=source, dtype=torch.float64)
        blocks.append(torch.linalg.qr(drawn)[0].mT)
    return torch.cat(blocks)


def _checked(images: Array, output: str, memory: int | None) -> Tensor:
    points = as_inputs(images, "images")
    if points.ndim < 2:
        raise ValueError(f"images: expected (N, ...), found shape {tuple(points.shape)}")
    as_choice(output, "output", ("softmax", "logits"))
    if memory is not None:
        as_integer(memory, "memory", 1)
    return points


def _frobenius(rows: Tensor, log_scales: Tensor) -> Tensor:
    """Return the norm of each point's rows e^log_scales, (n,), from rows (n, K, d)."""
    relative, log_scale = _relative(log_scales)
    lengths, size = torch.linalg.vector_norm(rows, dim=2), 1
    info = torch.finfo(rows.dtype)
    low, high = info.tiny**0.5 / info.eps, info.max**0.5 * info.eps
    if not ((low < lengths) & (lengths < high)).all():  # squares leave the range, or all are 0
        size = _size(rows)
        lengths = torch.linalg.vector_norm(rows / size[:, None, None], dim=2)
    return _scaled(torch.linalg.vector_norm(lengths * relative, dim=1) * size, log_scale)


def _largest_singular_value(
    rows: Tensor, log_scales: Tensor, tolerance: float, iterations: int, seed: int
) -> Tensor:
    """Return the largest singular value of each point's rows e^log_scales, (n,).

    Writes on `rows` (n, K, d).
    """
    relative, log_scale = _relative(log_scales)
    rows *= relative[:, :, None]
    size = _size(rows)
    rows /= size[:, None, None]
    gram = rows @ rows.mT
    start = torch.randn(gram.shape[1], generator=generator(seed, "power"), dtype=torch.float64)
    vector = (start / start.norm()).to(gram).expand(gram.shape[:2])
    growth = max(2 * tolerance, 4 * torch.finfo(gram.dtype).eps)  # of the square, beyond rounding
    value, moving = gram.new_zeros(len(gram)), gram.new_ones(len(gram), dtype=torch.bool)
    every = 1 if gram.device.type == "cpu" else 16  # iterations until a GPU is asked again
    for number in range(1, iterations + 1):
        image = (gram @ vector[:, :, None])[:, :, 0]
        going, before = moving.any(), value
        value = (vector * image).sum(1).where(going, before)  # once still, it stays
        moving = (value - before > growth * value) & going
        if number % every == 0 and not moving.any():
            break
        length = torch.linalg.vector_norm(image, dim=1, keepdim=True)
        vector = image / length.where(length > 0, 1)
    if left := int(moving.sum()):
        warn(
            f"spectral_norm: {left} of {len(value)} points of a chunk were still "
            f"moving after {iterations} iterations",
            stacklevel=4,  # the caller of spectral_norm
        )
    return _scaled(value.clamp_min(0).sqrt() * size, log_scale)


def _relative(log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales (n, K) over the largest of each point, and the logarithm of that one."""
    largest = log_scales.amax(1, keepdim=True)
    return (log_scales - largest).exp(), largest[:, 0]


def _size(rows: Tensor) -> Tensor:
    """Return each point's largest absolute entry (n,), 1 where all are 0."""
    size = torch.maximum(rows.amax((1, 2)), -rows.amin((1, 2)))
    return size.where(size > 0, 1)


def _scaled(value: Tensor, log_scale: Tensor) -> Tensor:
    half = (log_scale / 2).exp()  # the whole may underflow where the product does not
    return value * half * half
