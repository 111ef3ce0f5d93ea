"""Closed paths through input space: vertices (V, ...), the last joined to the first.

Closed, since a network without biases has one linear region along each ray from 0, and a line is
soon such a ray. NaN, infinity, points of different shapes and too few of them are a ValueError;
integers are taken as float64.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from replication._core.inputs import Array, Kind, as_integer, as_tensor, generator, like
from replication._core.precision import full_precision


def polyline(points: Array | Sequence[Array]) -> Array:
    """Return the closed path through `points`, (V, ...) or a sequence of V >= 2 of them.

    A last point that repeats the first is left out, as the path is closed anyway.
    """
    given: Any = points
    kind = like(given[0] if isinstance(given, list | tuple) and given else given)
    if isinstance(given, list | tuple):
        given = _same(*((point, f"points[{i}]") for i, point in enumerate(given)))
    vertices = _path(given, "points")
    repeats = len(vertices) > 2 and torch.equal(vertices[0], vertices[-1])
    return kind(vertices[:-1] if repeats else vertices)


def translations(image: Kind, shifts: int = 28) -> Kind:
    """Return the ring of an image's horizontal translations, (shifts, ...).

    Vertex i is the `image` (..., height, width) rolled by floor(i width / shifts) pixels, with 2
    to width `shifts`, so that 28 translations of a 28-pixel image are one pixel apart (Novak et al.
    2018, section 3). Translation is cyclic, so that the step that closes the ring is as long as the
    others; filled with zeros, the image would be gone half-way.
    """
    vertex = _floating(image, "image")
    if vertex.ndim < 2 or vertex.shape[-1] < 2:
        found = tuple(vertex.shape)
        raise ValueError(f"image: expected (..., height, width >= 2), found shape {found}")
    width = vertex.shape[-1]
    shifts = as_integer(shifts, "shifts", 2)
    if shifts > width:
        raise ValueError(f"shifts: expected at most the width of {width} pixels, found {shifts}")
    rolled = [vertex.roll(i * width // shifts, -1) for i in range(shifts)]
    return like(image)(torch.stack(rolled))


def ellipse(a: Kind, b: Array, c: Array, vertices: int = 360) -> Kind:
    """Return the closed ellipse through three points, (vertices, ...).

        x(t) = m + (a - m) cos t + (b - c) / sqrt(3) sin t,   m = (a + b + c) / 3

    passes a, b and c at t = 0, 2 pi / 3, 4 pi / 3: of all ellipses through the three the one of
    least area, with their centroid as centre (Steiner's). Vertex i is at t = 2 pi i / vertices;
    with a multiple of three of them a, b and c are vertices, exactly. For points on one line the
    path runs to and fro on it.
    """
    points = _same((a, "a"), (b, "b"), (c, "c"))
    vertices = as_integer(vertices, "vertices", 3)
    angle = 2 * math.pi * torch.arange(vertices, dtype=torch.float64, device=points.device)
    angle = angle[:, None] / vertices
    third = 2 * math.pi / 3 * torch.arange(3, dtype=torch.float64, device=points.device)
    # x(t) = sum over k of (1 + 2 cos(t - 2 pi k / 3)) / 3 times point k, the same curve
    weights = (1 + 2 * torch.cos(angle - third)) / 3
    if vertices % 3 == 0:
        weights[:: vertices // 3] = torch.eye(3, dtype=torch.float64, device=points.device)
    with full_precision():
        path = weights.to(points) @ points.flatten(1)
    return like(a)(path.reshape(vertices, *points.shape[1:]))


def random_ellipse(images: Kind, vertices: int = 360, seed: int = 0) -> Kind:
    """Return the ellipse through three points of noise, (vertices, ...).

    Every number of the three points is drawn from the normal distribution with the mean and the
    standard deviation of all of `images` (N, ...), by the integer `seed`.
    """
    known = _path(images, "images", 1)
    source = generator(seed, "ellipse")
    drawn = torch.randn(3, *known.shape[1:], generator=source, dtype=torch.float64).to(known)
    a, b, c = known.mean() + known.std(correction=0) * drawn
    return like(images)(ellipse(a, b, c, vertices))


def sample(path: Kind, k: int) -> Kind:
    """Return k points equally far apart along a closed path, (k, ...), the first its first vertex.

    Point i lies i / k of the length of `path` (V, ...), that of its closing piece included, behind
    the first vertex. On a path of length 0 all are the same.
    """
    vertices = _path(path, "path")
    k = as_integer(k, "k", 1)
    closed = torch.cat([vertices, vertices[:1]])
    ends = closed.diff(dim=0).flatten(1).double().norm(dim=1).cumsum(0)
    wanted = torch.arange(k, dtype=torch.float64, device=ends.device) / k * ends[-1]
    piece = torch.searchsorted(ends, wanted, right=True).clamp_max(len(ends) - 1)
    starts = torch.cat([ends.new_zeros(1), ends])
    length = starts.diff()[piece]
    share = (wanted - starts[piece]) / length.where(length > 0, 1)
    share = share.to(vertices).reshape(-1, *[1] * (vertices.ndim - 1))
    return like(path)(torch.lerp(closed[piece], closed[piece + 1], share))


def _floating(value: Array, name: str) -> Tensor:
    tensor = as_tensor(value, name)
    return tensor if tensor.is_floating_point() else tensor.double()


def _path(value: Array, name: str, least: int = 2) -> Tensor:
    """Return points (N, ...), at least so many, as a floating tensor."""
    points = _floating(value, name)
    if points.ndim < 2 or len(points) < least:
        shape = tuple(points.shape)
        raise ValueError(f"{name}: expected (N >= {least}, ...), found shape {shape}")
    return points


def _same(*named: tuple[Array, str]) -> Tensor:
    """Return points as one tensor (number, ...)."""
    points = [_floating(value, name) for value, name in named]
    for point, (_, name) in zip(points, named, strict=True):
        if (point.shape, point.device) != (points[0].shape, points[0].device):
            raise ValueError(
                f"{name}: expected the shape {tuple(points[0].shape)} and device "
                f"{points[0].device} of {named[0][1]}, found {tuple(point.shape)}, {point.device}"
            )
    if not points:
        raise ValueError("points: expected at least 2, found none")
    return torch.stack(points)
