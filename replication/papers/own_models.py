"""Networks and data that are not this project's: weights from files, images from a folder.

A network is a function that builds it and a safetensors file with its state dict. Data are any
`torch.utils.data.Dataset`, one item an input or an (input, label) pair, read batch by batch.
"""

import importlib
import inspect
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from replication._core.inputs import choose_device, nearest
from replication.data import _download
from replication.papers.own_data import batches, load_dataset, record, units

__all__ = [
    "Pretrained",
    "batches",
    "find",
    "load",
    "load_dataset",
    "pretrained",
    "record",
    "units",
]

Transform = Callable[[object], Tensor]
PICKLES = (b"PK\x03\x04", b"\x80")  # what torch.save writes, by its first bytes


class Pretrained(NamedTuple):
    """A network of torchvision with its ImageNet weights, what it expects, and its 1000 classes."""

    model: nn.Module
    transform: Transform
    classes: tuple[str, ...]


def find(reference: str) -> Callable:
    """Return the function that ``"module:function"`` names.

    Raises
    ------
    ValueError
        If the text has another form, or there is no such module or function (with the nearest).
    """
    module_name, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise ValueError(f"model: expected module:function, found {reference!r}")

    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"model: module {module_name!r} needs {error.name!r}") from error
        raise ValueError(f"model: there is no module {error.name!r} here") from None
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise ValueError(
            f"model: there is no function {name!r} in {module_name}; {nearest(name, known)}"
        )
    return function


def load(
    weights: str | os.PathLike, build: str | Callable, device: str = "cpu"
) -> tuple[nn.Module, Transform | None]:
    """Return the network that `build` makes, with the weights of a file, and its preprocessing.

    Parameters
    ----------
    weights : path
        A state dict as `safetensors.torch.save_file` or `save_model` writes it; every parameter and
        buffer of the network and nothing else, but for tensors that share memory. Pickles
        (`torch.save`) are refused: reading one can run any code.
    build : callable or "module:function"
        Called without arguments; returns a `torch.nn.Module`, or a pair of it and a function that
        turns a PIL image into the network's input.
    device : str
        "cpu", "cuda" or "auto".

    Returns
    -------
    model : torch.nn.Module
        On the device, in eval mode.
    transform : callable or None

    Raises
    ------
    ValueError
        If the file is missing or no safetensors file, `build` is not what it should be, or names
        and shapes do not fit the network; the message names them.
    """
    shapes = _shapes(Path(weights))
    target = choose_device(device)
    function = find(build) if isinstance(build, str) else build
    named = build if isinstance(build, str) else getattr(build, "__name__", repr(build))
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ValueError(f"model: {named} is called without arguments: {error}") from None
    except ValueError:  # some compiled functions do not tell what they take
        pass
    made = function()
    model, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module) or not (transform is None or callable(transform)):
        raise ValueError(
            f"model: expected {named} to return a torch.nn.Module or a pair of it and a transform, "
            f"found {type(made).__name__}"
        )
    own = model.state_dict()
    where = f"{weights} does not fit {named}"
    if differing := [
        f"{key} {tuple(shapes[key])} for {tuple(own[key].shape)}"
        for key in shapes.keys() & own.keys()
        if tuple(shapes[key]) != tuple(own[key].shape)
    ]:
        raise ValueError(f"{where}: of other shapes: {_some(differing)}")
    missing, unexpected = safetensors_torch.load_model(model, weights, strict=False)
    faults = {"missing": missing, "not in the network": unexpected}
    if missing or unexpected:
        text = "; ".join(f"{what}: {_some(names)}" for what, names in faults.items() if names)
        raise ValueError(f"{where}: {text}")
    return model.to(target).eval(), transform


def pretrained(name: str = "resnet18", timeout: float = 10.0) -> Pretrained:
    """Return a network of torchvision with its ImageNet weights, from torch's cache or the network.

    A download is checked against the hash in its name and read by torch with ``weights_only``, the
    one place where a file of torch's own format is read.

    Raises
    ------
    ValueError
        If torchvision has no such network, nothing answers within `timeout` seconds, or
        ``REPLICATION_OFFLINE`` is set and the weights are not in the cache.
    """
    from replication._core.vision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(f"name: found {name!r}; {nearest(name, known)}")
    weights = models.get_model_weights(name).DEFAULT
    if not (Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name).is_file():
        if os.environ.get("REPLICATION_OFFLINE", "0") not in ("", "0"):
            raise _download.UnavailableError("REPLICATION_OFFLINE is set")
        _download.first_answer([weights.url], timeout)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise _download.UnavailableError(f"the weights of {name}: {error}") from error
    finally:
        socket.setdefaulttimeout(before)
    model = models.get_model(name)
    model.load_state_dict(state)
    return Pretrained(model.eval(), weights.transforms(), tuple(weights.meta["categories"]))


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a safetensors file tells; it is opened for nothing else."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(16)
    # safetensors: the header's length in 8 bytes, which may begin like a pickle, and a brace.
    if start.startswith(PICKLES) and start[8:9] != b"{":
        raise ValueError(
            f"{path} is a pickle, and reading one can run any code. Where you trust it, convert "
            "it: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        )
    try:
        with safe_open(path, "pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error})") from None


def _some(names: list[str] | set[str], most: int = 6) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more
