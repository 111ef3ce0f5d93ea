"""Walking a network's modules: the order in which they run, what kind they are, where they live."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
ELEMENTWISE = (  # what acts on each number by itself, with nothing of its own
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign),
)
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
IDLE = (nn.Identity, *DROPOUT)  # in eval mode
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that hold no others, by name."""
    return [(name, module) for name, module in model.named_modules() if not module._modules]


def chain(model: nn.Module, name: str = "") -> list[tuple[set[str], nn.Module]]:
    """Return the modules in the order in which they run, with all names that mean their output.

    Nested Sequentials are unrolled; one that is empty, has hooks or a `forward` of its own is a
    single link, as is every other module. A module that is used twice comes twice.
    """
    plain = getattr(type(model), "forward", None) is nn.Sequential.forward and not is_altered(model)
    if not plain or not model._modules:
        return [({name}, model)]
    links = []
    for key in model._modules:  # named_children passes over repeated modules
        links += chain(model.get_submodule(key), f"{name}.{key}" if name else key)
    links[-1][0].add(name)
    return links


def layer_of(key: str) -> str:
    """Return the module that a key of `activations.record` belongs to: ``"a"`` of ``"a#2[0]"``."""
    return key.split("#")[0].split("[")[0]


def is_altered(module: nn.Module) -> bool:
    """Tell whether the module has hooks or a `forward` of its own, which may do anything."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Hold forward hooks (module, input, output) on some modules for the block.

    Not on those that torch.jit compiled, which would not call them.
    """
    with ExitStack() as stack:
        for module, hook in hooks:
            if not isinstance(module, torch.jit.ScriptModule):
                stack.enter_context(module.register_forward_hook(hook))
        yield


class _GradientsStay(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return None if func is torch._C._set_grad_enabled else func(*args, **(kwargs or {}))


@contextmanager
def differentiable() -> Iterator[None]:
    """Keep gradients on for the block, also where a network has ``torch.no_grad()`` of its own.

    So a frozen backbone cuts none. ValueError for ``torch.inference_mode()`` of its own.
    """
    try:
        with torch.enable_grad(), _GradientsStay():
            yield
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise ValueError(f"model: expected no inference_mode within it ({error})") from error


def input_gradient(outputs: Tensor, images: Tensor, vectors: Tensor | None = None) -> Tensor:
    """Return the gradient of `outputs`, or of their product with `vectors` again and again.

    A ValueError where the network let none through to `images`.
    """
    gradient, again = None, vectors is not None
    if outputs.requires_grad:
        options = {"retain_graph": again, "allow_unused": True}
        (gradient,) = torch.autograd.grad(outputs, images, vectors, **options)
    if gradient is None:
        raise ValueError("model: no gradient reaches the images; it detaches what it makes of them")
    return gradient


def weight_of(model: nn.Module, default: Tensor) -> Tensor:
    """Return the first floating parameter, which has the model's device and dtype, or `default`."""
    return next((p.detach() for p in model.parameters() if p.is_floating_point()), default)


def to_model(images: Tensor, weight: Tensor) -> Tensor:
    """Return a copy (an in-place layer may come first) of `images` on the device of `weight`.

    Floating ones get its dtype, too; integers (tokens) keep theirs.
    """
    dtype = weight.dtype if images.is_floating_point() else images.dtype
    return images.to(weight.device, dtype, copy=True)
