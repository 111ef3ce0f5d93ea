"""Where reduced precision pays, and how a GPU's is kept out of the numerics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def has_bfloat16_units(device: torch.device) -> bool:
    """Return whether `device` has units for products in bfloat16, without which they are slow."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch TF32 off for the block, in products and in convolutions, and back after it."""
    cudnn = torch.backends.cudnn
    # Not allow_tf32, which torch refuses to read once the settings of single operations were used.
    settings = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
