"""Where reduced precision pays, and how it is kept out of the numerics."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


def has_bfloat16_units(device: torch.device) -> bool:
    """Return whether `device` has units for products in bfloat16, without which they are slow."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def lacks_float64(device: torch.device) -> bool:
    """Return whether `device` has no float64, in which much here is summed: Apple's MPS."""
    return device.type == "mps"


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch TF32 (in products and in convolutions) and autocast off for the block.

    A ValueError where float64 is asked of a model's device that has none.
    """
    cudnn: Any = torch.backends.cudnn
    # Not allow_tf32, which torch refuses to read once the settings of single operations were used.
    settings: tuple[Any, ...] = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    before = []
    for setting in settings:
        effective, setting.fp32_precision = setting.fp32_precision, "none"
        # What it only inherits is not to become its own: the caller may change it for all later.
        before.append("none" if setting.fp32_precision == effective else effective)
        setting.fp32_precision = "ieee"
    try:
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(device, enabled=False))
            yield
    except TypeError as error:
        if "float64" not in str(error) or "MPS" not in str(error):
            raise
        raise ValueError(f"model: expected a device with float64, as the CPU ({error})") from error
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
