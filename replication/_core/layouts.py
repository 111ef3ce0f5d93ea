"""Where a layer's output has its units: in dimension 1 (maps of images), or last (tokens)."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from replication._core.modules import CONVOLUTIONS, NORMS, layer_of

FIRST = (
    *(*CONVOLUTIONS, *NORMS, nn.GroupNorm, nn.PixelShuffle, nn.PixelUnshuffle),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.LocalResponseNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.Upsample),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
LAST = (nn.Linear, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
LAST += (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.TransformerEncoder)


class Places:
    """Follows through one forward pass where outputs have their units, by a hook on each module.

    A convolution has them first and a linear map last; what leaves the shape as it is, or is made
    of such, has them where its input, or what came before in that shape, has them.
    """

    def __init__(self) -> None:
        self.by_shape: dict[tuple, set[str]] = {}
        self.examples: int | None = None  # of this pass, where they are known

    def __call__(self, module: nn.Module, arguments: tuple, output: object) -> None:
        """Note the place in each tensor of `output`: a forward hook."""
        given = next((x for x in arguments if isinstance(x, Tensor)), None)
        if getattr(module, "batch_first", True) is False and given is not None and given.ndim == 3:
            steps, examples, _ = given.shape
            if steps == examples:
                raise ValueError(
                    f"images: {type(module).__name__} takes steps first, and there are {steps} of "
                    "them as of examples in a batch, so that the two cannot be told apart; give "
                    "another batch_size or number of images"
                )
            if steps == self.examples and type(module).__module__.startswith("torch.nn."):
                raise ValueError(
                    f"images: {type(module).__name__} takes steps first and was given the {steps} "
                    "examples there; expected batch_first=True, or a network that transposes"
                )
        parts = output if isinstance(output, tuple | list) else (output,)
        for tensor in (x for x in parts if isinstance(x, Tensor) and x.ndim > 2):
            if place := self._place(module, given, tensor):
                tensor.units = place  # type: ignore[attr-defined]
                self.by_shape.setdefault(tuple(tensor.shape), set()).add(place)

    def _place(self, module: Any, given: Tensor | None, output: Tensor) -> str | None:
        """Return "first", "last", or None where it is not known."""
        if isinstance(module, FIRST):
            return "first"
        plain = type(module).forward is nn.LayerNorm.forward and len(module.normalized_shape) == 1
        if isinstance(module, LAST) or plain:
            return "last"
        if known := getattr(output, "units", None):
            return known
        before = getattr(given, "units", None)
        if hasattr(module, "dims") and before:  # torchvision's Permute
            at = list(module.dims).index(1 if before == "first" else output.ndim - 1)
            return {1: "first", output.ndim - 1: "last"}.get(at)
        if before and given is not None and given.shape == output.shape:
            return before
        seen = self.by_shape.get(tuple(output.shape), set())
        return next(iter(seen)) if len(seen) == 1 else None

    @property
    def any_last(self) -> bool:
        """Whether maps with their units last came by, so that dimension 1 is no safe guess."""
        return any(len(s) > 3 and "last" in places for s, places in self.by_shape.items())


def as_orders(orders: Mapping[str, str] | None) -> dict[str, str]:
    """Return the argument `orders`; values must be "N" and "C" once each, and other letters."""
    for pattern, order in (orders or {}).items():
        text = order if isinstance(order, str) else ""
        if text.count("N") != 1 or text.count("C") != 1 or len(text) < 2:
            raise ValueError(
                f"orders: {pattern!r}: expected letters with one N (examples) and one C (units), "
                f"such as 'NHWC' or 'LNC', found {order!r}"
            )
    return dict(orders or {})


def order_of(key: str, orders: Mapping[str, str]) -> str | None:
    """Return the order that the first pattern matching a key of `activations.record` names."""
    names = key, layer_of(key)
    return next((o for p, o in orders.items() if any(fnmatchcase(n, p) for n in names)), None)


def standard(tensor: Tensor, order: str, key: str) -> Tensor:
    """Return the tensor with examples first and, beyond three dimensions, units in dimension 1."""
    if tensor.ndim != len(order):
        raise ValueError(f"orders: {key!r} gave shape {tuple(tensor.shape)}, expected {order!r}")
    tensor, order = tensor.movedim(order.index("N"), 0), "N" + order.replace("N", "")
    return tensor.movedim(order.index("C"), 1) if tensor.ndim > 3 else tensor
