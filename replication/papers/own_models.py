"""Networks and data that are not this project's: weights from files, images from a folder.

A network is a function that builds it and a safetensors file with its state dict. Data are any
`torch.utils.data.Dataset`, one item an input or an (input, label) pair, read batch by batch.
"""

import importlib
import inspect
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from replication import activations, data
from replication._core.inputs import (
    Array,
    as_choice,
    as_integer,
    as_tensor,
    choose_device,
    generator,
    nearest,
)
from replication._core.modules import IDLE, weight_of
from replication._core.progress import bar
from replication.data import _download

__all__ = [
    "Pretrained",
    "batches",
    "choose_device",
    "find",
    "load",
    "load_dataset",
    "pretrained",
    "read_image",
    "record",
    "torchvision",
    "units",
]

Transform = Callable[[object], Tensor]
PICKLES = (b"PK\x03\x04", b"\x80")  # what torch.save writes, by its first bytes
INPUTS = ("inputs", "images")  # names of a file's tensor of inputs


def torchvision() -> ModuleType:
    """Return torchvision's ``datasets, models, transforms``, also where its operators cannot load.

    That is so for a wheel linked to CUDA beside a CPU build of torch.
    """
    from replication._core import vision

    return vision


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
    weights: str | os.PathLike, build: str | Callable, device: str = "cpu", prefix: str = ""
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
        "cpu", "cuda" or "auto"; the network is put there, in eval mode.
    prefix : str
        What the file's names begin with and the network's do not, as "model." of Lightning's and
        "module." of DataParallel's; tensors of other names are left.

    Raises
    ------
    ValueError
        If the file is missing or no safetensors file, `build` is not what it should be, or names
        and shapes do not fit the network; the message names them, and the prefix with which they
        would.
    """
    stored = _shapes(Path(weights))
    shapes = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
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
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    differing = [
        f"{key} {shapes[key]} for {expected[key]}"
        for key in shapes.keys() & expected.keys()
        if shapes[key] != expected[key]
    ]
    faults = {"of other shapes": differing}
    if not differing:
        content = safetensors_torch.load_file(weights)
        state = {name: content[prefix + name] for name in shapes}
        missing, unexpected = model.load_state_dict(state, strict=False)
        own = model.state_dict()
        known = {own[name].data_ptr() for name in state.keys() & own.keys()}
        missing = [name for name in missing if own[name].data_ptr() not in known]  # shared memory
        faults = {"missing": missing, "not in the network": unexpected}
    if any(faults.values()):
        text = "; ".join(f"{what}: {_listed(names)}" for what, names in faults.items() if names)
        last = next(iter(expected), "")
        starts = [name.removesuffix(last) for name in stored if name.endswith(last)]
        fits = [p for p in starts if p != prefix and {p + n for n in expected} <= stored.keys()]
        hint = f"; with the prefix {fits[0]!r} (--prefix) it does" if fits else ""
        raise ValueError(f"{weights} does not fit {named}: {text}{hint}")
    return model.to(target).eval(), transform


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


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:6]) + (f" and {len(ordered) - 6} more" if len(ordered) > 6 else "")


class Pretrained(NamedTuple):
    """A network of torchvision with its ImageNet weights, what it expects, and its 1000 classes."""

    model: nn.Module
    transform: Transform
    classes: tuple[str, ...]


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
    models = torchvision().models
    as_choice(name, "name", models.list_models(module=models))
    weights = models.get_model_weights(name).DEFAULT
    if not (Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name).is_file():
        _download.refuse_offline()
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


def load_dataset(
    source: object, transform: Callable | None = None, examples: int | None = None, seed: int = 0
) -> Dataset:
    """Return a data set of (input, label) pairs, or of inputs alone.

    Parameters
    ----------
    source : str, path, pair of tensors or Dataset
        A folder of images: one subfolder a class (torchvision's `ImageFolder`), or the images
        themselves, which then all have label 0. A safetensors file with inputs (its only tensor,
        or the one called "inputs" or "images") and maybe "labels". The name of a data set, of which
        the test images are taken, pixels in [0, 1]. A pair (inputs, labels) of tensors or arrays.
    transform : callable, optional
        From a PIL image to the network's input, for folders and data sets by name; tensors are
        taken as they are. By default RGB pixels in [0, 1], which needs images of one size.
    examples : int, optional
        How many to draw, without replacement and by `seed`; all by default, in order.

    Raises
    ------
    ValueError
        If there is nothing at `source`, no image or no tensor of inputs in it, inputs and labels
        differ in number, or there are fewer than `examples`.
    """
    dataset = _open(source, transform)
    if examples is None:
        return dataset
    if as_integer(examples, "examples", 1) > len(dataset):
        count = len(dataset)
        raise ValueError(f"examples: expected at most the {count} there are, found {examples}")
    drawn = torch.randperm(len(dataset), generator=generator(seed, "examples"))
    return Subset(dataset, drawn[:examples].tolist())


def _open(source: object, transform: Callable | None) -> Dataset:
    if isinstance(source, Dataset):
        return source
    if isinstance(source, tuple | list):
        return _pair(*source)
    if str(source) in data.NAMES:
        test = data.load(str(source)).test
        return Transformed(test, transform) if transform else _pair(test.images, test.labels)
    path = Path(str(source))
    if path.is_dir():
        return _folder(path, transform)
    if path.is_file():
        return _tensors(path)
    raise ValueError(
        f"data: there is no folder or file {source}, and no data set of that name; "
        f"{nearest(str(source), data.NAMES)}"
    )


class Transformed(Dataset):
    """The images of a data set's half, each as a PIL image, through a function; with labels."""

    def __init__(self, half: data.Examples, transform: Callable) -> None:
        self.half, self.transform = half, transform

    def __len__(self) -> int:
        return len(self.half)

    def __getitem__(self, index: int) -> tuple:
        image = torchvision().transforms.functional.to_pil_image(self.half.images[index])
        return self.transform(image), self.half.labels[index]


def read_image(path: str) -> Image.Image:
    """Return an image file as 8-bit RGB, brightness scaled by the range of the file's mode.

    65535 is white in 16 bits (also where they are read as 32) and 1 in floats; transparency is
    dropped. ValueError for numbers beyond, and for a file that is no whole image.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError) as error:  # what PIL raises for broken files
        raise ValueError(f"data: {path} is not a whole image ({error})") from error
    if image.mode.startswith("I") or image.mode == "F":
        white, values = 1.0 if image.mode == "F" else 65535.0, np.asarray(image, dtype=np.float64)
        if not (values.min() >= 0 and values.max() <= white):
            found = f"{values.min():g} to {values.max():g}"
            raise ValueError(f"data: {path}: expected pixels in [0, {white:g}], found {found}")
        image = Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image.convert("RGB")


def _folder(path: Path, transform: Callable | None) -> Dataset:
    vision = torchvision()
    folders: Any = vision.datasets.ImageFolder

    class Flat(folders):
        """All images below a folder, as one class."""

        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            return ["."], {".": 0}

    endings = vision.datasets.folder.IMG_EXTENSIONS
    flat = any(file.name.lower().endswith(endings) for file in path.iterdir() if file.is_file())
    change = transform or vision.transforms.ToTensor()
    images: Any = ()
    with suppress(FileNotFoundError):  # no folder of a class
        images = (Flat if flat else folders)(path, change, loader=read_image, allow_empty=True)
    if not len(images):
        raise ValueError(f"data: no images in {path} ({', '.join(endings)}), nor in its subfolders")
    return images


def _tensors(path: Path) -> Dataset:
    try:
        tensors = safetensors_torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"data: {path} is not a safetensors file ({error})") from None
    labels = tensors.pop("labels", None)
    names = [name for name in tensors if name in INPUTS] or list(tensors)
    if len(names) != 1:
        raise ValueError(
            f"data: expected one tensor in {path}, or one called 'inputs', found "
            f"{', '.join(tensors) or 'none'}"
        )
    try:
        return _pair(tensors[names[0]], labels)
    except ValueError as error:
        raise ValueError(f"{error} (in {path})") from None


def _pair(inputs: Array, labels: Array | None = None) -> Dataset:
    inputs = as_tensor(inputs, "data")
    if not inputs.ndim:
        raise ValueError("data: expected examples along the first axis, found a single number")
    if labels is None:
        return TensorDataset(inputs)
    labels = as_tensor(labels, "labels")
    if labels.shape != (len(inputs),):
        raise ValueError(f"labels: expected ({len(inputs)},), found {tuple(labels.shape)}")
    return TensorDataset(inputs, labels)


def batches(dataset: Dataset, batch_size: int = 64) -> Iterator[list[Tensor]]:
    """Yield [inputs] or [inputs, labels], examples first, in the order of the data set.

    Raises
    ------
    ValueError
        If inputs differ in size.
    """
    count = len(dataset)
    for start in range(0, count, as_integer(batch_size, "batch_size", 1)):
        items = [dataset[index] for index in range(start, min(count, start + batch_size))]
        try:
            batch = default_collate(items)
        except RuntimeError as error:
            raise ValueError(
                "data: the inputs differ in size; give a transform that makes them equal (a "
                "function of the command's --model returns it beside the model)"
            ) from error
        yield list(batch) if isinstance(batch, tuple | list) else [batch]


def units(output: Tensor) -> Tensor:
    """Return a layer's output as (N, units): the mean over positions or over tokens.

    (N, channels, height, width, ...) is averaged over what is behind the channels, (N, tokens,
    units) over the tokens; so 1-D convolutions, (N, channels, length), need another function.
    """
    values = output if output.is_floating_point() else output.double()
    if values.ndim == 3:
        return values.mean(1)
    return activations.spatial_mean(values) if values.ndim > 3 else activations.flatten(values)


def record(
    model: nn.Module,
    dataset: Dataset,
    layers: Sequence[str] | None = None,
    batch_size: int = 64,
    reduction: Callable[[Tensor], Tensor] = units,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Return `activations.record` of a data set that is read batch by batch, reduced as it goes.

    What is held at once is a batch, and of every layer examples x units. Inputs that are floating
    get the model's dtype. By default `layers` are all named modules but containers and what does
    nothing in eval mode (dropout, `nn.Identity`); `reduction` is of each batch of each layer.

    Raises
    ------
    ValueError
        As `activations.record`, and if the model fails on the inputs; the message says how.
    """
    weight = weight_of(model, torch.empty(0))
    idle = {name for name, module in model.named_modules() if isinstance(module, IDLE)}
    total, shown = -(-len(dataset) // batch_size), torch.empty(0)

    def inputs() -> Iterator[Tensor]:
        nonlocal shown
        for shown, *_ in bar(
            batches(dataset, batch_size), show=progress, total=total, desc="record"
        ):
            yield shown.to(weight.dtype) if shown.is_floating_point() else shown

    try:
        recorded = activations.record(model, inputs(), layers, reduction=reduction)
    except (RuntimeError, AssertionError, IndexError, TypeError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"model: {type(model).__name__} failed on inputs of shape {tuple(shown.shape)}, "
            f"{shown.dtype}: {reason}"
        ) from error
    if layers is not None:
        return recorded
    return {key: x for key, x in recorded.items() if key.split("#")[0].split("[")[0] not in idle}
