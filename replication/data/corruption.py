"""Corruption of labels and images, as Zhang et al. 2017 and Morcos et al. 2018 define it.

Tensors and arrays come back in their kind and on their device. A ValueError names a bad argument.
"""

import torch

from replication._core import inputs
from replication._core.inputs import Kind, as_images, as_integer, as_tensor, generator, like

KINDS = ("shuffled_pixels", "random_pixels", "gaussian")


def corrupt_labels(
    labels: Kind, fraction: float, num_classes: int, seed: int, keep_marginal: bool = False
) -> Kind:
    """Corrupt a fraction of the labels; the same for all epochs, devices and sizes of batch.

    By default (Zhang et al. 2017, section 2.2: partially corrupted labels) every label becomes,
    independently with probability `fraction`, a uniformly random class, which may be the true one:
    a share ``fraction * (1 - 1 / num_classes)`` is wrong on average. With one seed, what is
    corrupted at a small fraction is corrupted in the same way at every larger one.

    With `keep_marginal` (Morcos et al. 2018), exactly ``round(fraction * N)`` labels drawn at
    random are shuffled among themselves, so that the number of examples in each class stays.

    `labels` are integers (N,) from 0 to ``num_classes - 1``, the result is int64.
    """
    given = as_tensor(labels, "labels")
    if given.ndim != 1 or given.is_floating_point() or given.dtype == torch.bool:
        found = f"{given.dtype} of shape {tuple(given.shape)}"
        raise ValueError(f"labels: expected integers (N,), found {found}")
    num_classes = as_integer(num_classes, "num_classes", 1)
    if (fraction := inputs.as_number(fraction, "fraction")) > 1:
        raise ValueError(f"fraction: expected a number from 0 to 1, found {fraction}")
    out = given.to("cpu", torch.int64, copy=True)
    inputs.require_classes(out, num_classes)
    source = generator(as_integer(seed, "seed", 0), "corrupt_labels")
    if keep_marginal:
        chosen = torch.randperm(len(out), generator=source)[: round(fraction * len(out))]
        out[chosen] = out[chosen[torch.randperm(len(chosen), generator=source)]]
    else:
        draws = torch.rand(len(out), dtype=torch.float64, generator=source)
        random = torch.randint(num_classes, (len(out),), generator=source)
        out = torch.where(draws < fraction, random, out)
    return like(labels)(out.to(given.device))


def corrupt_images(images: Kind, kind: str, seed: int) -> Kind:
    """Corrupt the images as Zhang et al. 2017, section 2.2, do.

    - ``"shuffled_pixels"``: one permutation of the positions for all images, which depends on the
      seed and the size of the image only.
    - ``"random_pixels"``: another permutation for every image.
    - ``"gaussian"``: pixels drawn from a normal distribution with the mean and the variance of each
      channel over `images`; they are not clipped to [0, 1].

    All channels of an image are permuted alike. For the last two kinds give test images another
    seed than training images, as the same seed would give the same draws. `images` (N, C, H, W)
    are floating point; their dtype stays (float32 for half types).
    """
    given = as_images(images)
    inputs.as_choice(kind, "kind", KINDS)
    source = generator(as_integer(seed, "seed", 0), "corrupt_images")
    flat, positions = given.flatten(2), given.shape[2] * given.shape[3]
    if kind == "shuffled_pixels":
        out = flat[:, :, torch.randperm(positions, generator=source).to(given.device)]
    elif kind == "random_pixels":
        out = torch.empty_like(flat)
        step = max(1, 2**21 // positions)  # some 16 MiB of sort keys at a time
        for start in range(0, len(flat), step):
            piece = flat[start : start + step]
            keys = torch.rand(len(piece), positions, dtype=torch.float64, generator=source)
            order = keys.to(given.device).argsort(dim=1)
            out[start : start + step] = piece.gather(2, order[:, None].expand(piece.shape))
    else:
        channels = [channel.double() for channel in flat.unbind(1)]
        mean = torch.stack([c.mean() for c in channels]).to(given)[:, None]
        std = torch.stack([c.std(correction=0) for c in channels]).to(given)[:, None]
        noise = torch.randn(flat.shape, dtype=given.dtype, generator=source).to(given.device)
        out = noise.mul_(std).add_(mean)
    return like(images)(out.reshape(given.shape))
