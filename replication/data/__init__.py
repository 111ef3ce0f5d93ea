"""Data sets as tensors, where they come from, and the corruption of labels and images.

A data set is looked for in ``$REPLICATION_DATA``, then in ``data/``, and is then downloaded through
torchvision into ``data/``. ``data/README.md`` describes the layouts that are read.
"""

from replication.data._download import fetch
from replication.data._locations import NAMES, Location, locate
from replication.data.corruption import KINDS, corrupt_images, corrupt_labels
from replication.data.load import load
from replication.data.preprocessing import centre_crop, preprocess, standardise, whiten_images
from replication.data.split import Examples, Split

VERSION = 1  # of the numbers: raise it when they change

__all__ = [
    "KINDS", "NAMES", "Examples", "Location", "Split", "centre_crop", "corrupt_images",
    "corrupt_labels", "fetch", "load", "locate", "preprocess", "standardise", "whiten_images",
]  # fmt: skip
