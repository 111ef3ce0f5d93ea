"""Running somebody's network as a plain function of its input, in pieces that fit in memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from replication._core.inputs import as_network
from replication._core.modules import differentiable, weight_of
from replication.activations import evaluating


@contextmanager
def plain_evaluation(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode, with TF32 and the caller's autograd modes off, for the block.

    A ValueError says if it normalises by the statistics of the batch even so: then examples have
    no Jacobian of their own.
    """
    cudnn = torch.backends.cudnn
    with evaluating(as_network(model)), torch.inference_mode(False), torch.no_grad():
        before = cudnn.enabled
        try:
            if any(isinstance(module, nn.RNNBase) for module in model.modules()):
                cudnn.enabled = False  # it takes no gradients of them in eval mode
            yield
        finally:
            cudnn.enabled = before


def to_model(model: nn.Module, images: Tensor) -> Tensor:
    """Return `images` on the model's device and in its dtype, which is float32 or float64."""
    default = images if images.is_floating_point() else images.new_zeros(1, dtype=torch.float32)
    weight = weight_of(model, default)
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"model: expected float32 or float64 weights, found {weight.dtype}")
    return images.to(weight)


def as_logits(output: object, rows: int) -> Tensor:
    """Return what a model gave if it is finite logits (rows, C)."""
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != rows:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"model: expected logits ({rows}, classes), found {found}")
    if not output.isfinite().all():
        raise ValueError("model: expected finite logits, found NaN or infinity")
    return output


def forward_bytes(model: nn.Module, image: Tensor) -> int:
    """Return about how many bytes a forward and a backward pass take for one image (1, ...)."""
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    sizes = {0: image.nbytes}

    def note(saved: Tensor) -> Tensor | torch.UntypedStorage:
        if saved.layout is not torch.strided:  # sparse: of parts that count by themselves
            return saved
        storage = saved.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return storage  # held until the end, as a freed one's address may come again

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda storage: storage)
    with differentiable(), hooks:
        _ = model(image.clone().requires_grad_().clone())
    return sum(sizes.values()) + 4 * max(sizes.values())


def chunks(points: int, size: int) -> list[slice]:
    """Return consecutive slices of `size` points, of one at least."""
    size = max(1, size)
    return [slice(start, min(start + size, points)) for start in range(0, points, size)]
