"""A plane through three inputs, its coordinates, and polygons on it."""

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from replication._core.inputs import Array, as_tensor

Extent = tuple[float, float, float, float]
"""Left, right, bottom and top."""


@dataclass(frozen=True)
class Plane:
    """A plane in input space: ``origin + x basis[0] + y basis[1]``, the basis orthonormal."""

    origin: Tensor
    basis: Tensor
    points: Tensor

    def to(self, device: torch.device) -> "Plane":
        return Plane(*(x.to(device) for x in (self.origin, self.basis, self.points)))

    def inputs(self, coordinates: Tensor) -> Tensor:
        """Return the inputs (n, ...) at coordinates (n, 2)."""
        return self.origin + torch.tensordot(coordinates, self.basis, 1)


def plane_through(a: Array, b: Array, c: Array, margin: float) -> tuple[Plane, Extent]:
    """Return the plane through three inputs, and the box around them with its margin."""
    a, b, c = (as_tensor(x, name).double() for x, name in ((a, "a"), (b, "b"), (c, "c")))
    if not a.shape == b.shape == c.shape:
        raise ValueError(
            f"a, b, c: expected one shape, found {tuple(a.shape)}, {tuple(b.shape)} and "
            f"{tuple(c.shape)}"
        )
    if not (isinstance(margin, Real) and 0 <= margin < math.inf):
        raise ValueError(f"margin: expected a number >= 0, found {margin!r}")
    b, c = (b - a).flatten(), (c.to(a.device) - a).flatten()
    width = b.norm()
    first = b / width.where(width > 0, 1)
    across = c @ first
    second = c - across * first
    second -= (second @ first) * first
    height = second.norm()
    if not (width > 0 and height > 1e-9 * c.norm()):
        raise ValueError("a, b, c: expected three inputs that are not on one line")
    points = b.new_zeros(3, 2)
    points[1, 0], points[2, 0], points[2, 1] = width, across, height
    basis = torch.stack([first, second / height]).view(2, *a.shape)
    low, high = points.amin(0), points.amax(0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    box = (low[0].item(), high[0].item(), low[1].item(), high[1].item())
    return Plane(a, basis, points), box


def convex(polygon: Array) -> Tensor:
    """Return a polygon's corners counter-clockwise, (corners, 2), if it is convex."""
    corners = as_tensor(polygon, "polygon").double()
    if corners.ndim != 2 or len(corners) < 3 or corners.shape[1] != 2:
        raise ValueError(f"polygon: expected (corners >= 3, 2), found {tuple(corners.shape)}")
    side = corners.roll(-1, 0) - corners
    turn = side[:, 0] * side.roll(-1, 0)[:, 1] - side[:, 1] * side.roll(-1, 0)[:, 0]
    angle = torch.atan2(turn, (side * side.roll(-1, 0)).sum(1)).sum().abs()
    if not ((turn > 0).all() or (turn < 0).all()) or angle > 7:  # round more than once
        raise ValueError("polygon: expected a convex one, without corners on a straight side")
    return corners if turn[0] > 0 else corners.flip(0)
