"""Noise spectra: how a group of perturbed copies of one image spreads through a network.

A layer's activations for M copies are the rows of A (M, d), with singular values s_1 >= ... >= s_M,
*not* centred: EV_k = s_k^2 / sum_j s_j^2 is 1, 0, 0, ... for equal copies. Groups of copies are
(images, copies >= 2, ...) floating tensors or arrays; what comes behind the copies is one long axis
of d neurons. Bad arguments are a `ValueError` that names them. Examples assume ``import torch`` and
``from replication.spectra import *``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replication import activations
from replication._core import inputs
from replication._core.inputs import Array, Kind, as_inputs, as_integer, as_names, as_tensor, like
from replication._core.modules import weight_of
from replication._core.precision import full_precision
from replication.sensitivity.perturbations import attack, draw

KINDS = ("gaussian", "fgsm", "pgd")

VERSION = 1  # of the numbers: raise it when they change


@dataclass(frozen=True)
class NoiseSpectrum:
    """Singular values of groups of copies: (images, copies) for every layer, largest first."""

    singular_values: Mapping[str, Tensor]  #: of the uncentred group
    centred: Mapping[str, Tensor]  #: after the group's mean is taken off; the last one is then 0

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, in forward order."""
        return tuple(self.singular_values)

    def explained_variance(self, layer: str) -> Tensor:
        """Return EV_k = s_k^2 / sum_j s_j^2 of one layer, (images, copies)."""
        return explained_variance(self.singular_values[layer])


def explained_variance(singular_values: Kind) -> Kind:
    """Return EV_k = s_k^2 / sum_j s_j^2 along the last dimension; zeros where all s are 0."""
    values = as_tensor(singular_values, "singular_values")
    if values.ndim < 1 or values.min() < 0:
        found = f"shape {tuple(values.shape)}, the least {values.min()}"
        raise ValueError(f"singular_values: expected (..., copies) >= 0, found {found}")
    values = values if values.is_floating_point() else values.double()
    largest = values.amax(-1, keepdim=True)
    squares = (values / largest.where(largest > 0, 1)).square()
    total = squares.sum(-1, keepdim=True)
    return like(singular_values)(squares / total.where(total > 0, 1))


def projected_variance(groups: Kind) -> Kind:
    r"""Return how much of a group's variance lies along its *uncentred* singular directions.

    var_i(a_i . v_k) / sum_j var_i(a_ij) for the rows a_i of A = U diag(s) V^T, which is what
    scikit-learn's TruncatedSVD calls ``explained_variance_ratio_``. Where all copies are near one
    image, v_1 is nearly that image and the first value is the share of noise along it. The result,
    (images, copies), goes by s_1 >= s_2 >= ...; zeros where all copies are equal. float64 inside.
    """
    kind, groups = like(groups), _as_groups(groups)
    with full_precision():
        gram = groups.double() @ groups.double().mT
    squares, left = (part.flip(-1) for part in torch.linalg.eigh(gram))
    scores = left * squares.clamp_min(0).sqrt()[:, None]
    centred = gram - gram.mean(1, keepdim=True)
    total = (centred - centred.mean(2, keepdim=True)).diagonal(dim1=1, dim2=2).mean(1)
    known = total > 1e-14 * squares[:, 0]  # below it, rounding
    shares = scores.var(1, unbiased=False) / total.where(known, 1)[:, None]
    return kind(shares.where(known[:, None], 0).to(groups.dtype))


def _as_groups(groups: Array) -> Tensor:
    """Return groups as (images, copies, neurons), or raise what is wrong with them."""
    groups = as_tensor(groups, "groups")
    if groups.ndim < 3 or groups.shape[1] < 2 or not groups.is_floating_point():
        found = f"{groups.dtype} {tuple(groups.shape)}"
        raise ValueError(f"groups: expected floating (images, copies >= 2, neurons), found {found}")
    return groups.flatten(2)


def group_singular_values(groups: Array) -> tuple[Array, Array]:
    r"""Return the singular values of groups, uncentred and centred, each (images, copies).

    Largest first, padded with zeros where d < copies; dtype and device of `groups`. With the first
    copy's row m and the deviations D = A - 1 m^T, the Gram matrix of the copies is

        A A^T = D D^T + (D m) 1^T + 1 (D m)^T + |m|^2 1 1^T.

    D D^T is formed in the input's dtype (scaled by the largest entry), the sum in float64 in an
    orthonormal basis of the copies whose first vector is 1 / sqrt(M). There the large |m|^2 stands
    alone in a corner, where forming A A^T itself would lose every s_k below sqrt(eps) s_1.

    Accuracy, against float64 `torch.linalg.svdvals`: within 1e-12 s_1 for float64 groups of full
    rank and 1e-7 s_1 for any; within 1e-5 s_1 for float32 ones, where a group whose estimated error
    exceeds 1e-6 s_1 is formed again in float64.
    """
    values = _singular_values(_as_groups(groups))
    return like(groups)(values[:, 0]), like(groups)(values[:, 1])


def _singular_values(groups: Tensor) -> Tensor:
    """Return (images, 2, copies), uncentred and centred, of (images, copies, neurons)."""
    # One group at a time stays in a processor's cache; a GPU wants them all at once.
    pieces = groups.split(1 if groups.device.type == "cpu" else len(groups))
    decompose = _by_svd if groups.shape[2] <= 2 * groups.shape[1] else _by_gram
    return torch.cat([decompose(piece) for piece in pieces]).to(groups.dtype)


def _by_svd(groups: Tensor) -> Tensor:
    """Return (images, 2, copies): for few neurons the decomposition itself is cheap."""
    groups = groups.double()
    centred = groups - groups.mean(1, keepdim=True)
    both = torch.stack([groups, centred], 1)
    if both.device.type == "cuda" and both.shape[-1] <= 32 < both.shape[-2]:
        both = torch.linalg.qr(both, mode="r").R  # cuSOLVER loops over matrices above 32 x 32
    values = torch.linalg.svdvals(both)
    return F.pad(values, (0, groups.shape[1] - values.shape[-1]))


def _by_gram(groups: Tensor) -> Tensor:
    """Return (images, 2, copies) through the copies x copies Gram matrix."""
    copies = groups.shape[1]
    rows = groups - groups[:, :1]
    rows[:, 0] = groups[:, 0]  # m in place of its own deviation, which is 0
    scale = torch.maximum(groups.amax((1, 2), keepdim=True), -groups.amin((1, 2), keepdim=True))
    rows /= scale.where(scale > 0, 1)  # squares stay in range
    with full_precision():
        gram = (rows @ rows.mT).double()
    length, cross = gram[:, 0, 0].clone(), gram[:, :1].clone()
    cross[:, 0, 0] = 0
    gram[:, 0] = gram[:, :, 0] = 0  # now D D^T

    # The symmetric Householder matrix whose first column is 1 / sqrt(copies).
    vector = torch.full((copies, 1), -(copies**-0.5), dtype=torch.float64, device=groups.device)
    vector[0] += 1
    identity = torch.eye(copies, dtype=torch.float64, device=groups.device)
    basis = identity - 2 * vector @ vector.mT / vector.square().sum()
    inner = basis.mT @ gram @ basis
    cross = copies**0.5 * (cross @ basis)
    whole = inner.clone()
    whole[:, :1, :] += cross
    whole[:, :, :1] += cross.mT
    whole[:, 0, 0] += copies * length
    inner[:, 0] = inner[:, :, 0] = 0  # which takes off the mean
    # LAPACK keeps the small eigenvalues of a matrix graded from its top corner with UPLO="L".
    squares = torch.linalg.eigvalsh(torch.stack([whole, inner], 1), UPLO="L")
    values = squares.clamp_min(0).sqrt().flip(-1)

    if groups.dtype == torch.float32:
        eps = torch.finfo(groups.dtype).eps
        square = gram.diagonal(dim1=1, dim2=2).amax(1)
        error = eps * square / values[:, 0, -1].maximum((eps * square).sqrt().clamp_min(1e-300))
        uncertain = error > 1e-6 * values[:, 0, 0]
        if uncertain.any():
            return values.mul_(scale.double()).masked_scatter(
                uncertain[:, None, None], _by_gram(groups[uncertain].double())
            )
    return values * scale.double()


def noise_spectrum(
    model: nn.Module,
    images: Tensor,
    sigma: float,
    copies: int = 64,
    layers: Sequence[str] | None = None,
    perturb: str = "gaussian",
    *,
    labels: Tensor | None = None,
    steps: int = 7,
    seed: int = 0,
    images_per_batch: int | None = None,
) -> NoiseSpectrum:
    """Return the singular values of each image's group of perturbed copies, layer by layer.

    The protocol of the blog post "From Generalization to Inner Activations". Perturbations depend
    on `seed` and the image's position only, so that they are the same for every network and every
    batching. The model runs in eval mode, on its own device and in its own dtype.

    Parameters
    ----------
    images : (N, ...) tensor
    sigma : float >= 0
        In units of `images`: the standard deviation of the Gaussian noise, or the radius of the
        sup-norm ball of the attacks.
    layers : sequence of str, optional
        Keys of `activations.record`, and ``"input"`` for the perturbed images themselves. By
        default the input and every layer.
    perturb : "gaussian", "fgsm" or "pgd"
        Independent noise on every number; or, from an independent uniform start in the ball for
        each copy, one signed gradient step of size sigma (Goodfellow et al. 2015 with the random
        start of Wong et al. 2020), or `steps` steps of 2.5 sigma / steps (Madry et al. 2018); both
        are clipped to the ball.
    labels : (N,) tensor, optional
        Classes that the attacks lead away from; by default the model's own on the clean images.
    images_per_batch : int, optional
        Images a forward pass, each with all its copies. By default 2 on a CPU and 32 on a GPU.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU())
    >>> images = torch.rand(3, 1, 8, 8)
    >>> spectrum = noise_spectrum(net, images, sigma=0.1, copies=32)
    >>> shares = spectrum.explained_variance(spectrum.layers[-1])  # (images, components)
    >>> torch.allclose(shares.sum(1), torch.ones(3))
    True
    """
    images = as_inputs(images, "images")
    sigma, perturb = inputs.as_number(sigma, "sigma"), inputs.as_choice(perturb, "perturb", KINDS)
    copies, steps = as_integer(copies, "copies", 2), as_integer(steps, "steps", 1)
    labels = None if labels is None else inputs.as_labels(labels, len(images)).long()
    weight = weight_of(inputs.as_model(model), images)
    if images_per_batch is None:
        images_per_batch = 2 if weight.device.type == "cpu" else 32
    images_per_batch = as_integer(images_per_batch, "images_per_batch", 1)
    names = None if layers is None else as_names(layers, "layers")
    recorded = None if names is None else [name for name in names if name != "input"]
    pieces: dict[str, list[Tensor]] = {}

    def spectrum(output: Tensor) -> Tensor:
        if output.ndim == 4 and output.is_contiguous(memory_format=torch.channels_last):
            output = output.permute(0, 2, 3, 1)  # no copy; the order of neurons does not matter
        groups = activations.flatten(output).unflatten(0, (-1, copies))
        if not groups.isfinite().all():
            raise ValueError("model: expected finite outputs of its layers, found NaN or infinity")
        return like(groups)(_singular_values(inputs.with_float64(groups)))

    for start in range(0, len(images), images_per_batch):
        batch = images[start : start + images_per_batch].to(weight)
        noise = draw(batch.shape[1:], copies, range(start, start + len(batch)), perturb, seed)
        noise = sigma * noise.to(weight)
        if perturb != "gaussian":
            target = None if labels is None else labels[start : start + len(batch)]
            sizes = (sigma, 1) if perturb == "fgsm" else (2.5 * sigma / steps, steps)
            noise = attack(model, batch, noise, sigma, *sizes, target)
        perturbed = (batch[:, None] + noise).flatten(0, 1)
        outputs = {"input": spectrum(perturbed)} if names is None or "input" in names else {}
        if recorded is None or recorded:
            outputs |= activations.record(
                model, perturbed, recorded, batch_size=len(perturbed), reduction=spectrum
            )
        for name, values in outputs.items():
            pieces.setdefault(name, []).append(values)
    joined = {name: torch.cat(values) for name, values in pieces.items()}
    return NoiseSpectrum(
        singular_values={name: values[:, 0] for name, values in joined.items()},
        centred={name: values[:, 1] for name, values in joined.items()},
    )
