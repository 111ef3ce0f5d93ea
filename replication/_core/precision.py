"""Keep a GPU's reduced-precision products and convolutions out of the numerics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
