"""How far a point is from the boundary of its region, in closed form.

Within the region of a point x the network is affine, so that each unit is at a threshold on a
hyperplane. The region ends at the nearest of these.
"""

import torch
from torch import Tensor, nn

from replication._core.inputs import Kind, as_integer, as_tensor, like
from replication.sensitivity._evaluation import chunks, plain_evaluation
from replication.sensitivity._piecewise import MEMORY
from replication.sensitivity._piecewise.program import (
    ROUNDING,
    Activation,
    Affine,
    MaxPool,
    Program,
    after,
)
from replication.sensitivity._piecewise.trace import trace


def nearest_boundary(model: nn.Module, points: Kind, *, memory: int = MEMORY) -> Kind:
    """Return how far the boundary of each point's activation region is, (N,), in float64.

        min over the units of |threshold - z| / |grad z|

    as the region is the convex polytope that these hyperplanes bound (Hanin and Rolnick 2019,
    "Complexity of linear regions", whose distance to the set of all boundaries this is), in units
    of length of the input; 0 on a boundary, up to rounding; infinity if there is none. With max
    pooling, a region ends as well where another input becomes the largest of its window. It takes
    one derivative for every number of the input. `model`, `memory` and errors are as in
    `transitions`; `points` are (N, ...).

    Examples
    --------
    >>> import torch
    >>> from replication import sensitivity
    >>> layer = torch.nn.Linear(2, 1).double()
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[3.0, 4.0]])), layer.bias.fill_(-5.0)
    >>> net = torch.nn.Sequential(layer, torch.nn.ReLU())
    >>> round(float(sensitivity.nearest_boundary(net, torch.zeros(1, 2, dtype=torch.float64))), 6)
    1.0
    """
    memory = as_integer(memory, "memory", 1)
    given = as_tensor(points, "points")
    if given.ndim < 2:
        raise ValueError(f"points: expected (N, ...), found shape {tuple(given.shape)}")
    with plain_evaluation(model):
        program = trace(model, given[0], torch.float64, "points")
        size = given[0].numel()
        axes = torch.eye(size, dtype=program.dtype, device=program.device)
        axes = axes.view(size, *given[0].shape)
        distances = []
        for chunk in chunks(len(given), program.rows(memory) // (1 + size)):
            x = given[chunk].to(program.device, program.dtype)
            distances.append(_distance(program, x, axes.expand(len(x), *axes.shape)))
    return like(points)(torch.cat(distances))


def _distance(program: Program, x: Tensor, tangents: Tensor) -> Tensor:
    """Return the distances (N,) for points x (N, ...) and orthonormal tangents (N, k, ...)."""
    nearest = x.new_full((len(x),), torch.inf)
    live = {0: (x, tangents, x.flatten(1).abs().amax(1))}
    for step in program.steps:
        values, moves, sizes = zip(*[live[slot] for slot in step.sources], strict=True)
        size = torch.stack(sizes).amax(0)
        if isinstance(step, Affine):
            value = step.forward(*values)
            move = step.linear(*[move.flatten(0, 1) for move in moves])
            move = move.unflatten(0, tangents.shape[:2])
        else:
            z, dz = values[0], moves[0].flatten(2)
            if isinstance(step, Activation):
                gap, rate, terms, move = _past_activation(step, z, dz, size)
            else:
                gap, rate, terms, move = _past_pool(step, z, dz, size)
            nearest = torch.minimum(nearest, _reached(gap, rate, terms).amin(1))
            value = step.forward(z)
            move = move.view(*dz.shape[:2], *value.shape[1:])
            if isinstance(step, Activation):
                size = z.flatten(1).abs().amax(1)
        live = after(live, step, (value, move, size))
    return nearest


def _past_activation(
    step: Activation, z: Tensor, dz: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return how far units are from thresholds, at which rate they move, terms, and dz behind."""
    z = z.flatten(1)
    gap = torch.cat([threshold - z for threshold in step.thresholds], 1)
    terms = torch.outer(size, step.scale) + step.offset
    terms = torch.cat([terms + abs(threshold) for threshold in step.thresholds], 1)
    slopes, _ = step.coefficients(step.states(z))
    return gap, dz.repeat(1, 1, len(step.thresholds)), terms, dz * slopes[:, None]


def _past_pool(
    step: MaxPool, x: Tensor, dx: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the same for the inputs of every window and the largest one."""
    lines = step.candidates(x)
    filler = lines < -torch.finfo(x.dtype).max / 8
    moves = step.candidates(dx.flatten(0, 1)).unflatten(0, dx.shape[:2])
    largest = lines.argmax(2, keepdim=True)
    move = moves.gather(3, largest[:, None].expand(-1, dx.shape[1], -1, -1))
    rate = (moves - move).masked_fill(filler[:, None], 0)
    terms = torch.outer(size, step.scale) + step.offset
    gap = lines.gather(2, largest) - lines
    terms = terms[..., None].expand_as(gap)
    return gap.flatten(1), rate.flatten(2), terms.flatten(1), move[..., 0]


def _reached(gap: Tensor, rate: Tensor, terms: Tensor) -> Tensor:
    """Return how far it is until units have gone through `gap` (N, n) at `rate` (N, k, n)."""
    on = gap.abs() <= ROUNDING * torch.finfo(gap.dtype).eps * terms
    speed = rate.norm(dim=1)
    return (gap.abs() / speed).where(~on, 0).where(speed != 0, torch.inf)
