"""Single directions: what perturbing them does to a network, and how selective they are.

A direction is a unit: a column of (examples, units), or a channel of (examples, channels, ...). The
modules `probe`, `projection` and `resets` intervene on whole layers. An argument of another shape
or range, or with NaN or infinity, is a `ValueError` that names it. Examples assume ``import torch``
and ``from replication.directions import *``.
"""

from replication.directions import probe, projection, resets
from replication.directions.ablation import (
    AblationCurve,
    UnitAblation,
    cumulative_ablation,
    unit_ablation,
)
from replication.directions.noise import NoiseCurve, noise_curve
from replication.directions.selectivity import Selectivity, class_selectivity, mutual_information

VERSION = 1  # of the numbers: raise it when they change

__all__ = [
    "AblationCurve", "NoiseCurve", "Selectivity", "UnitAblation", "class_selectivity",
    "cumulative_ablation", "mutual_information", "noise_curve", "probe", "projection", "resets",
    "unit_ablation",
]  # fmt: skip
