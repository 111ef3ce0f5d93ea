"""Data of a user's own as torch data sets, and what networks make of them batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from replication import activations, data
from replication._core.inputs import as_integer, as_tensor, generator, nearest
from replication._core.progress import bar

IDLE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)
INPUTS = ("inputs", "images")


class Transformed(Dataset):
    """The images of another data set, each as a PIL image, through a function."""

    def __init__(self, dataset: Dataset, transform: Callable) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple:
        from replication._core.vision import transforms

        image, label = self.dataset[index]
        return self.transform(transforms.functional.to_pil_image(image)), label


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
        raise ValueError(
            f"examples: expected at most the {len(dataset)} there are, found {examples}"
        )
    drawn = torch.randperm(len(dataset), generator=generator(seed, "examples"))
    return Subset(dataset, drawn[:examples].tolist())


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

    What is held at once is a batch, and of every layer examples x units.

    Parameters
    ----------
    model : torch.nn.Module
    dataset : torch.utils.data.Dataset
        One item an input or an (input, label) pair. Inputs that are floating get the model's dtype.
    layers : sequence of str, optional
        By default every named module but containers and what does nothing in eval mode (dropout,
        `nn.Identity`).
    batch_size : int
    reduction : callable
        Of each batch of each layer.
    progress : bool

    Raises
    ------
    ValueError
        As `activations.record`, and if the model fails on the inputs; the message says how.
    """
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    idle = {name for name, module in model.named_modules() if isinstance(module, IDLE)}
    kept: dict[str, list[Tensor]] = {}
    total = -(-len(dataset) // batch_size)
    for inputs, *_ in bar(batches(dataset, batch_size), show=progress, total=total, desc="record"):
        inputs = inputs.to(weight.dtype) if inputs.is_floating_point() else inputs
        try:
            found = activations.record(model, inputs, layers, batch_size, reduction)
        except (RuntimeError, AssertionError, IndexError, TypeError) as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise ValueError(
                f"model: {type(model).__name__} failed on inputs of shape {tuple(inputs.shape)}, "
                f"{inputs.dtype}: {reason}"
            ) from error
        for key, value in found.items():
            if layers is not None or key.split("#")[0].split("[")[0] not in idle:
                kept.setdefault(key, []).append(value)
    joined = {key: torch.cat(pieces) for key, pieces in kept.items()}
    # In a batch of as many rows by chance, something else may have looked like examples.
    return {key: value for key, value in joined.items() if len(value) == len(dataset)}


def _open(source: object, transform: Callable | None) -> Dataset:
    if isinstance(source, Dataset):
        return source
    if isinstance(source, tuple | list):
        return _pair(*source)
    if str(source) in data.NAMES:
        held = data.load(str(source)).test
        pairs = TensorDataset(held.images, held.labels)
        return Transformed(pairs, transform) if transform else pairs
    path = Path(str(source))
    if path.is_dir():
        return _folder(path, transform)
    if path.is_file():
        return _tensors(path)
    raise ValueError(
        f"data: there is no folder or file {source}, and no data set of that name; "
        f"{nearest(str(source), data.NAMES)}"
    )


def _folder(path: Path, transform: Callable | None) -> Dataset:
    from replication._core.vision import datasets, transforms

    class Flat(datasets.ImageFolder):
        """All images below a folder, as one class."""

        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            return ["."], {".": 0}

    endings = tuple(datasets.folder.IMG_EXTENSIONS)
    flat = any(file.name.lower().endswith(endings) for file in path.iterdir() if file.is_file())
    transform = transform or transforms.ToTensor()
    try:
        found = (Flat if flat else datasets.ImageFolder)(path, transform, allow_empty=True)
    except FileNotFoundError:  # no folder of a class
        found = ()
    if not len(found):
        raise ValueError(f"data: no images in {path} ({', '.join(endings)}), nor in its subfolders")
    return found


def _tensors(path: Path) -> Dataset:
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
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
        return _pair(tensors[names[0]], *([] if labels is None else [labels]))
    except ValueError as error:
        raise ValueError(f"{error} (in {path})") from None


def _pair(inputs: Tensor | np.ndarray, labels: Tensor | np.ndarray | None = None) -> Dataset:
    inputs = as_tensor(inputs, "data")
    if not inputs.ndim:
        raise ValueError("data: expected examples along the first axis, found a single number")
    if labels is None:
        return TensorDataset(inputs)
    labels = as_tensor(labels, "labels")
    if labels.shape != (len(inputs),):
        raise ValueError(f"labels: expected ({len(inputs)},), found {tuple(labels.shape)}")
    return TensorDataset(inputs, labels)
