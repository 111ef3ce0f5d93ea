"""What to train and how, as text that can be hashed: public as `training.Spec`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from numbers import Real

import torch

from replication import data, models
from replication._core.inputs import as_choice, as_integer, as_number

VERSION = 1  # of the numbers and files of training: raise it when they change
SCHEDULES = ("constant", "cosine", "exponential", "steps")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
OPTIMIZERS = sorted(
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    and value is not torch.optim.Optimizer
)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What to train and how; everything that decides the result but the data themselves.

    Epochs may be fractions; the nearest step is meant.

    Attributes
    ----------
    model, model_options
        Name and keyword arguments for `models.build`.
    optimizer, optimizer_options
        Name of a class in `torch.optim` and its keyword arguments, such as ``momentum``.
    learning_rate, schedule, decay
        ``"constant"``; ``"cosine"``, which would reach 0 one step after the last
        (``1/2 (1 + cos(pi step / steps))`` times the rate, steps counted from 0);
        ``"exponential"``, times `decay` after each epoch; ``"steps"``, times `decay` after 30, 60
        and 90% of the training (Zhang, Bengio and Singer 2022, appendix A, with 0.2).
    batch_size, epochs
        Minibatches are drawn without replacement; the last of an epoch may be smaller. One step is
        taken at least.
    label_corruption, keep_marginal
        Arguments of `data.corrupt_labels` for the training labels; fixed over epochs.
    image_corruption
        Kind for `data.corrupt_images`, applied to training and test images.
    augment
        ``{"shift": pixels, "flip": probability, "crop": side, "noise": sd}``, any of them. With a
        crop the network trains on random windows and is measured on the central ones; noise is
        Gaussian, new at every step, in units of the images.
    freeze
        Epochs by module name: from then on a module's weights and batch statistics stay (freeze
        training of Raghu et al. 2017, section 4.2).
    checkpoints
        Epochs after which the weights are kept, besides the first and last.
    stop_at_train_accuracy
        Stop at the first evaluation that reaches it. None: never.
    evaluate_every
        Epochs between rows of the history; checkpoints and the last step have a row in any case.
    evaluation_images
        How many training images the train loss and accuracy are measured on (the first ones).
        None: all. Not allowed together with `stop_at_train_accuracy`.
    seed, dtype
        Seed of all randomness, an integer >= 0; ``"float32"`` or ``"float64"``.
    precision
        ``"bfloat16"`` trains a float32 network under autocast: products and convolutions of a step
        are taken in bfloat16, weights, optimiser and all measurements stay float32. Faster where
        the processor has units for it: ``python -m replication doctor`` tells. ``"auto"`` is
        bfloat16 where the device has them and float32 elsewhere, under one key; a stored run's
        ``run.json`` says which.
    """

    model: str
    model_options: Mapping = field(default_factory=dict)
    optimizer: str = "SGD"
    optimizer_options: Mapping = field(default_factory=dict)
    learning_rate: float = 0.01
    schedule: str = "constant"
    decay: float = 0.95
    batch_size: int = 64
    epochs: float = 10
    label_corruption: float = 0.0
    keep_marginal: bool = False
    image_corruption: str | None = None
    augment: Mapping[str, float] = field(default_factory=dict)
    freeze: Mapping[str, float] = field(default_factory=dict)
    checkpoints: tuple[float, ...] = ()
    stop_at_train_accuracy: float | None = None
    evaluate_every: float = 1
    evaluation_images: int | None = None
    seed: int = 0
    dtype: str = "float32"
    precision: str = "float32"

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        for name in [f.name for f in fields(self)]:
            value = getattr(self, name)
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{name}: expected a value that JSON can hold, found {value!r} ({error})"
                ) from None

    def key(self, split: data.Split) -> str:
        """Return the hash, 24 hex digits, that names this specification's run on `split`."""
        own = asdict(self)
        if self.precision == "float32":  # so that networks of before there was a choice are found
            del own["precision"]
        if not self.freeze:
            del own["freeze"]
        text = json.dumps([VERSION, own, split.digest], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def _check_names(self) -> None:
        as_choice(self.model, "model", models.MODELS)
        as_choice(self.optimizer, "optimizer", OPTIMIZERS)
        as_choice(self.schedule, "schedule", SCHEDULES)
        as_choice(self.dtype, "dtype", DTYPES)
        as_choice(self.precision, "precision", ("float32", "bfloat16", "auto"))
        if self.precision != "float32" and self.dtype != "float32":
            raise ValueError(f"precision: expected 'float32' with dtype {self.dtype!r}")
        if self.image_corruption is not None:
            as_choice(self.image_corruption, "image_corruption", data.KINDS)
        for name in ("model_options", "optimizer_options", "augment", "freeze"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name}: expected a mapping, found {getattr(self, name)!r}")
        if unknown := set(self.augment) - {"shift", "flip", "crop", "noise"}:
            expected = "'shift', 'flip', 'crop' and 'noise'"
            raise ValueError(f"augment: expected {expected}, found {sorted(unknown)}")

    def _check_numbers(self) -> None:
        for name, least in (("batch_size", 1), ("evaluation_images", 1), ("seed", 0)):
            if (value := getattr(self, name)) is not None or name != "evaluation_images":
                # A NumPy integer becomes a plain one, which JSON can hold.
                object.__setattr__(self, name, as_integer(value, name, least))
        for name in ("learning_rate", "decay", "epochs", "evaluate_every"):
            as_number(getattr(self, name), name, positive=True)
        for name, epoch in self.freeze.items():
            as_number(epoch, f"freeze: {name}")
        goal = self.stop_at_train_accuracy
        for name, value in (
            ("label_corruption", self.label_corruption),
            ("stop_at_train_accuracy", 0 if goal is None else goal),
            ("augment: flip", self.augment.get("flip", 0)),
        ):
            if as_number(value, name) > 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, found {value!r}")
        as_number(self.augment.get("noise", 0), "augment: noise")
        as_integer(self.augment.get("shift", 0), "augment: shift", 0)
        as_integer(self.augment.get("crop", 1), "augment: crop", 1)
        if not isinstance(self.checkpoints, tuple | list) or not all(
            isinstance(epoch, Real) and 0 <= epoch <= self.epochs for epoch in self.checkpoints
        ):
            raise ValueError(
                f"checkpoints: expected epochs in [0, {self.epochs}], found {self.checkpoints!r}"
            )
        if goal is not None and self.evaluation_images is not None:
            raise ValueError(
                "evaluation_images: expected None with stop_at_train_accuracy, which needs the "
                f"whole training set, found {self.evaluation_images}"
            )
