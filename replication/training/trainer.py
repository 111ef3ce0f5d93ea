"""One training run, step by step."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replication import data, models
from replication._core.inputs import derive_seed, generator, require_classes
from replication._core.modules import NORMS, hooked
from replication._core.precision import has_bfloat16_units
from replication.activations import evaluating
from replication.training._batched import DROPOUT
from replication.training.spec import DTYPES, Spec

Drawn = dict[str, Any]  # tensors, and of noise the generator


class Trainer:
    """The state of one training run after `step` of `last_step` steps of the optimiser.

    `rows` are the history so far, `precision` that of its steps; `images` (N, C, H, W) the training
    images as minibatches take them, before augmentation; `train` and `test` what is measured on:
    corrupted, on the device, in the run's dtype; with a crop, the centres. ValueError if the
    network or the optimiser does not take its options, a crop exceeds the images, or the network
    does not take the images, has fewer outputs than classes or cannot normalise a minibatch of 1.
    """

    def __init__(self, spec: Spec, split: data.Split, device: torch.device) -> None:
        self.spec, self.device, self.step = spec, device, 0
        self.rows: list[dict[str, float]] = []
        self.precision = spec.precision
        if spec.precision == "auto":
            self.precision = "bfloat16" if has_bfloat16_units(device) else "float32"
        self.model = new_model(spec, device)
        self.drops = any(isinstance(module, DROPOUT) for module in self.model.modules())
        if unknown := set(spec.freeze) - set(dict(self.model.named_modules())):
            raise ValueError(f"freeze: {spec.model} has no modules {sorted(unknown)}")
        options, optimizer = dict(spec.optimizer_options), getattr(torch.optim, spec.optimizer)
        try:
            self.optimizer = optimizer(self.model.parameters(), lr=spec.learning_rate, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"optimizer_options: {spec.optimizer} was given {options} ({error})"
            ) from None
        labels = training_labels(spec, split)
        images = [split.train.images, split.test.images]
        if spec.image_corruption is not None:
            # Shuffled pixels need one permutation for both; noise must not repeat in the test set.
            kind = spec.image_corruption
            streams = ["pixels", "pixels" if kind == "shuffled_pixels" else "test pixels"]
            images = [
                data.corrupt_images(x, kind, derive_seed(spec.seed, stream))
                for x, stream in zip(images, streams, strict=True)
            ]
        self.images, test_images = (x.to(device, DTYPES[spec.dtype]) for x in images)
        side, most = int(spec.augment.get("crop", 0)), min(self.images.shape[2:])
        if side > most:
            raise ValueError(f"augment: crop: expected at most {most}, found {side}")
        self.train, self.test = (
            data.Examples(data.centre_crop(x, side) if side else x, y.to(device))
            for x, y in ((self.images, labels), (test_images, split.test.labels))
        )
        self.epoch_steps = math.ceil(len(self.train) / spec.batch_size)
        self.row_steps = max(1, self.step_at(spec.evaluate_every))
        self.last_step = step_count(spec, len(self.train))
        self._require_fit()

    def _require_fit(self) -> None:
        """Raise a ValueError where the network does not take the images, labels or minibatches."""
        spec = self.spec
        alone = 1 in (spec.batch_size, len(self.train) % spec.batch_size)

        def note(module: nn.Module, arguments: tuple, output: Tensor) -> None:
            if alone and arguments[0].numel() == arguments[0].shape[1]:
                found = f"{spec.batch_size} of {len(self.train)} images: a minibatch of 1"
                raise ValueError(f"batch_size: {found} cannot be normalised by itself")

        norms = [(module, note) for module in self.model.modules() if isinstance(module, NORMS)]
        for name, half in (("train", self.train), ("test", self.test)):
            first = half.images[:1]
            try:
                with evaluating(self.model), torch.no_grad(), hooked(norms):
                    logits = self.model(first)
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            except RuntimeError as error:
                found = f"{name} images {tuple(first.shape[1:])}"
                reason = str(error).strip().split("\n")[0]
                raise ValueError(f"model: {spec.model} cannot take {found} ({reason})") from error
            require_classes(
                half.labels, logits.shape[1], f"{name} labels, of {spec.model}'s outputs"
            )

    def step_at(self, epoch: float) -> int:
        """Return the step nearest to `epoch`."""
        return round(epoch * self.epoch_steps)

    def is_measured(self) -> bool:
        """Return whether the history has a row for the current step."""
        return bool(self.rows) and self.rows[-1]["step"] == self.step

    def evaluate(self) -> None:
        """Measure the network and add a row to the history."""
        self.add_row(evaluate(self.model, self.shown()), evaluate(self.model, self.test))

    def shown(self) -> data.Examples:
        """Return the training examples that the history measures."""
        count = self.spec.evaluation_images
        return data.Examples(self.train.images[:count], self.train.labels[:count])

    def add_row(self, train: tuple[float, float], test: tuple[float, float]) -> None:
        """Add losses and accuracies to the history."""
        row = {"step": self.step, "epoch": self.step / self.epoch_steps}
        row["train_loss"], row["train_accuracy"] = train
        row["test_loss"], row["test_accuracy"] = test
        self.rows.append(row)

    def status(self) -> str:
        """Return how the run ended if it ends at this step, or "" to go on."""
        if not self.is_measured():
            return ""
        row, goal = self.rows[-1], self.spec.stop_at_train_accuracy
        if not math.isfinite(row["train_loss"]):
            return "diverged"
        if goal is not None and row["train_accuracy"] >= goal:
            return "stopped"
        return "finished" if self.step >= self.last_step else ""

    def minibatch(self) -> Tensor:
        """Return which training images the next step takes."""
        index, size = self.step % self.epoch_steps, self.spec.batch_size
        if index == 0 or not hasattr(self, "order"):  # resumed in mid-epoch: the order is not kept
            self.order = self.epoch_order()
        return self.order[index * size : (index + 1) * size]

    def epoch_order(self) -> Tensor:
        """Return the order of the training images in the current epoch."""
        source = generator(self.spec.seed, "order", self.step // self.epoch_steps)
        return torch.randperm(len(self.train), generator=source).to(self.device)

    def augmented(self, images: Tensor) -> Tensor:
        """Return the images of a minibatch as the next step sees them."""
        if not self.spec.augment:
            return images
        index = self.step % self.epoch_steps
        if index == 0 or not hasattr(self, "drawn"):
            self.drawn = self.epoch_draws()
        return augment(images, self.spec.augment, self.drawn[index])

    def epoch_draws(self) -> list[Drawn]:
        """Return what augmentation draws for each minibatch of the epoch, in one copy a kind."""
        first = self.step - self.step % self.epoch_steps
        sizes = [len(part) for part in self.train.labels.split(self.spec.batch_size)]
        drawn = [
            draw((size, *self.images.shape[1:]), self.spec.augment, source)
            for index, size in enumerate(sizes)
            for source in [generator(self.spec.seed, "augment", first + index)]
        ]
        for name in drawn[0].keys() - {"noise"}:
            there = torch.cat([each[name] for each in drawn], -1).to(self.device)
            for each, part in zip(drawn, there.split(sizes, -1), strict=True):
                each[name] = part
        return drawn

    def advance(self) -> None:
        """Take one step of the optimiser."""
        chosen, half = self.minibatch(), self.precision == "bfloat16"
        images = self.augmented(self.images[chosen])
        if half and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)  # 2 to 3 times as fast
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.model.train()
        for name, epoch in self.spec.freeze.items():
            if self.step >= self.step_at(epoch):
                self.model.get_submodule(name).requires_grad_(False).eval()

        def closure() -> Tensor:
            # Seeded at every call: a line search (L-BFGS) must see one function, not new dropout.
            if self.drops:
                self.seed_dropout()
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                logits = self.model(images)
            loss = F.cross_entropy(logits.to(images.dtype), self.train.labels[chosen])
            loss.backward()
            return loss

        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=self.drops), deterministic():
            self.optimizer.step(closure)
        self.step += 1

    def seed_dropout(self) -> None:
        """Seed the global generators, from which dropout draws, for the next step."""
        # torch.manual_seed would seed every GPU of the machine, and no one would set them back.
        seed = derive_seed(self.spec.seed, "dropout", self.step)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)

    def learning_rate(self, later: int = 0) -> float:
        """Return the learning rate of the next step, or of one so many steps `later`."""
        rate, step = self.spec.learning_rate, self.step + later
        if self.spec.schedule == "exponential":
            return rate * self.spec.decay ** (step // self.epoch_steps)
        if self.spec.schedule == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * step / self.last_step))
        if self.spec.schedule == "steps":
            passed = sum(step >= round(share * self.last_step) for share in (0.3, 0.6, 0.9))
            return rate * self.spec.decay**passed
        return rate


def training_labels(spec: Spec, split: data.Split) -> Tensor:
    """Return the labels (N,) that `fit` trains on: those of `split`, corrupted as `spec` says.

    Train accuracies and losses of a run are measured on these.
    """
    return data.corrupt_labels(
        split.train.labels,
        spec.label_corruption,
        split.num_classes,
        seed=derive_seed(spec.seed, "labels"),
        keep_marginal=spec.keep_marginal,
    )


@torch.no_grad()
def evaluate(
    model: nn.Module, examples: data.Examples, batch_size: int = 512
) -> tuple[float, float]:
    """Return the mean cross-entropy (nats) and the accuracy (share, 0 to 1) of `model`.

    It gives logits (N, classes) and is measured in eval mode; every module is put back in its own.
    The `examples`, which are on its device and in its dtype, go through `batch_size` at a time.
    ValueError if there are none, or labels beyond the classes.
    """
    if not len(examples):
        raise ValueError("examples: expected at least one, found none")
    sums = torch.zeros(2, dtype=torch.float64, device=examples.labels.device)
    batches = zip(examples.images.split(batch_size), examples.labels.split(batch_size), strict=True)
    with evaluating(model), deterministic():
        for index, (images, labels) in enumerate(batches):
            logits = model(images)
            if index == 0:  # on a GPU cross_entropy would end the process
                require_classes(examples.labels, logits.shape[1], "examples: labels")
            sums[0] += F.cross_entropy(logits.double(), labels, reduction="sum")
            sums[1] += (logits.argmax(1) == labels).sum()
    loss, correct = sums.tolist()
    return loss / len(examples), correct / len(examples)


def step_count(spec: Spec, examples: int) -> int:
    """Return how many steps `spec` takes on that many training examples if nothing stops it."""
    return max(1, round(spec.epochs * math.ceil(examples / spec.batch_size)))


def new_model(spec: Spec, device: torch.device) -> nn.Module:
    """Return the network that `spec` names with its initial weights, on `device`."""
    model = models.build(spec.model, spec.seed, DTYPES[spec.dtype], **spec.model_options)
    # Channels last makes convolutions about twice as fast on a CPU; the numbers stay in place.
    # L-BFGS views each gradient as one vector, which that layout does not allow.
    layout = torch.contiguous_format if spec.optimizer == "LBFGS" else torch.channels_last
    return model.to(device, memory_format=layout)  # type: ignore[call-overload]


def draw(shape: Sequence[int], how: Mapping[str, float], source: torch.Generator) -> Drawn:
    """Return what is random in `augment` for images of that shape; of noise the generator.

    `source` is on the CPU: a seed means the same on every device.
    """
    count, _, height, width = shape
    drawn: Drawn = {}
    if "flip" in how:
        drawn["flip"] = torch.rand(count, generator=source) < how["flip"]
    if pixels := int(how.get("shift", 0)):
        drawn["shift"] = torch.randint(2 * pixels + 1, (2, count), generator=source)
    if side := int(how.get("crop", 0)):
        most = (height - side + 1, width - side + 1)
        drawn["crop"] = torch.stack([torch.randint(m, (count,), generator=source) for m in most])
    return drawn | {"noise": source}


def augment(images: Tensor, how: Mapping[str, float], drawn: Drawn) -> Tensor:
    """Return (N, C, H, W) flipped left to right, shifted with zeros moving in, cropped, with noise.

    `how` is as `Spec.augment` says, `drawn` what `draw` gave, on the images' device: of a flip, a
    shift by axis and the place of a window for each image.
    """
    height, width = images.shape[2:]
    if "flip" in how:
        images = torch.where(drawn["flip"][:, None, None, None], images.flip(3), images)
    if pixels := int(how.get("shift", 0)):
        images = _windows(F.pad(images, (pixels,) * 4), drawn["shift"], height, width)
    if side := int(how.get("crop", 0)):
        images = _windows(images, drawn["crop"], side, side)
    if sd := how.get("noise"):
        noise = torch.randn(images.shape, generator=drawn["noise"], dtype=images.dtype)
        images = images + sd * noise.to(images.device)
    return images


def _windows(images: Tensor, corners: Tensor, height: int, width: int) -> Tensor:
    """Return of each image the window with its own upper left corner, (2, N): row, column."""
    count = partial(torch.arange, device=images.device)
    rows, columns = corners[0, :, None] + count(height), corners[1, :, None] + count(width)
    index, channel = count(len(images))[:, None, None, None], count(images.shape[1])[:, None, None]
    return images[index, channel, rows[:, None, :, None], columns[:, None, None]]


@contextmanager
def deterministic() -> Iterator[None]:
    """Let cuDNN choose only algorithms that repeat their numbers, whatever is chosen globally."""
    # Not cudnn.flags(), which also turns TF32 on and fails where the new precision API was used.
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
