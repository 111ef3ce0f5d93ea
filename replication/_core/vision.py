"""The one place that imports torchvision.

A wheel linked to CUDA beside a CPU build of torch cannot load its compiled operators. Data sets,
models and transforms need none: declaring the two that the import looks for is enough.
"""

import importlib
import sys

import torch

_library: torch.library.Library | None = None  # the declarations live as long as this reference


def _load():
    global _library
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    for module in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[module]
    _library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


_torchvision = _load()
datasets = _torchvision.datasets
models = _torchvision.models
transforms = _torchvision.transforms

__all__ = ["datasets", "models", "transforms"]
