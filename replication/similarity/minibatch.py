"""Linear CKA of layers that come in minibatches."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from replication._core.inputs import Array, like
from replication.similarity._linalg import as_layer
from replication.similarity.cka import index, prepare, product, warn_about
from replication.similarity.compare import SimilarityGrid

Layers = Array | Mapping[str, Array]


def minibatch_cka(
    batches: Iterable[tuple[Layers, Layers]], unbiased: bool = True
) -> Array | SimilarityGrid:
    """Return the linear CKA of layers that come in minibatches, a similarity.

    mean HSIC(X_i, Y_i) / sqrt(mean HSIC(X_i, X_i) mean HSIC(Y_i, Y_i)) over the minibatches i,
    weighted by their examples. HSIC_1 estimates the same number whatever the size of a minibatch;
    HSIC_0 does not (`unbiased=False`). With one minibatch this is `cka`.

    Parameters
    ----------
    batches : iterable of (x, y)
        Two layers, each (examples, features), or two mappings of names to layers: then all pairs,
        each layer reduced once a minibatch. At least 4 examples where unbiased; read once.
    unbiased : bool

    Returns
    -------
    0-d tensor or NumPy float, or SimilarityGrid
        In [-1, 1], biased in [0, 1]; of the first minibatch's kind and dtype.

    Raises
    ------
    ValueError
        For no minibatch at all, and as `cka`, with the minibatch's number. It warns as `cka` does.

    References
    ----------
    Nguyen, Raghu & Kornblith 2021, eqs. 2 and 3.

    Examples
    --------
    >>> import torch
    >>> from replication import similarity
    >>> x, y = torch.randn(2, 400, 5, dtype=torch.float64)
    >>> batches = zip(x.split(50), (x + y).split(50))  # (layer, layer) of the same 50 examples
    >>> whole = similarity.cka(x, x + y, unbiased=True)
    >>> bool(abs(similarity.minibatch_cka(batches) - whole) < 0.1)
    True
    """
    total = scales = None
    for number, batch in enumerate(batches):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(f"batches[{number}]: expected a pair (x, y), found {batch!r:.60}")
        sides = [
            side if isinstance(side, Mapping) else {name: side}
            for name, side in zip("xy", batch, strict=True)
        ]
        try:
            terms, scales = _terms(*sides, unbiased, scales)
        except ValueError as error:
            raise ValueError(f"batches[{number}]: {error}") from None
        if total is None:
            names = [tuple(side) for side in sides]
            first = next(iter(sides[0].values()))
            kind, dtype = like(first), as_layer(first, "x").dtype
            total, single = terms, not isinstance(batch[0], Mapping)
        elif [tuple(side) for side in sides] != names:
            raise ValueError(f"batches[{number}]: expected the layers of the first minibatch")
        else:
            total = [a + b for a, b in zip(total, terms, strict=True)]
    if total is None:
        raise ValueError("batches: expected at least one minibatch, found none")
    xy, xx, yy, shuffled = total
    values = index(xy, xx[:, None], yy, -1.0 if unbiased else 0.0).to(dtype)
    if not single:
        return SimilarityGrid(kind(values), *names, "cka")
    warn_about(xx[0], yy[0], unbiased, index(shuffled, xx[:, None], yy)[0, 0])
    return kind(values[0, 0])[()]


def _terms(
    x: Mapping[str, Array],
    y: Mapping[str, Array],
    unbiased: bool,
    scales: list[Tensor] | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return HSIC of all pairs, of the layers of x, of those of y, and of the pairs if shuffled.

    In units of `scales`, the layers' sizes in the first minibatch, as fourth powers leave the range
    of float64 soon.
    """
    layers = [{name: as_layer(z, name) for name, z in side.items()} for side in (x, y)]
    if len(counts := {len(z) for side in layers for z in side.values()}) > 1:
        raise ValueError(f"y: expected the same examples in all layers, found {sorted(counts)}")
    (n,) = counts
    if unbiased and n < 4:
        raise ValueError(f"x: expected at least 4 examples where unbiased, found {n}")
    dtype = max((z.dtype for side in layers for z in side.values()), key=lambda d: d.itemsize)
    a, b = ([prepare(z.to(dtype), "linear", unbiased) for z in side.values()] for side in layers)
    sizes = [torch.stack([z.scale for z in side]) for side in (a, b)]
    if scales is None or any(len(s) != len(t) for s, t in zip(scales, sizes, strict=True)):
        scales = [size.where(size > 0, 1) for size in sizes]
    u, v = ((size / scale) ** 2 for size, scale in zip(sizes, scales, strict=True))
    weight = n / (n * (n - 3) if unbiased else (n - 1) ** 2)
    cross = torch.stack([torch.stack([product(p, q) for q in b]) for p in a])
    traces = [torch.stack([z.diagonal.sum() for z in side]) for side in (a, b)]
    terms = [
        cross * torch.outer(u, v) * weight,
        torch.stack([z.square for z in a]) * u**2 * weight,
        torch.stack([z.square for z in b]) * v**2 * weight,
        torch.outer(traces[0] * u, traces[1] * v) / (n - 1) * weight,
    ]
    return terms, scales
