"""Train one network from a specification, with checkpoints, and never lose what is done.

Every use of randomness has its own seed, derived from the specification's seed, the use and the
step: initial weights, corrupted labels, minibatch order, augmentation, dropout. A run interrupted
at any step therefore goes on as if nothing had happened.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from replication import data, models
from replication._files import atomic, read_json, write_json
from replication._inputs import choose_device, derive_seed, generator, nearest
from replication.activations import evaluating

FORMAT = 1  # raised when files of an earlier version must not be taken for these
SCHEDULES = ("constant", "cosine", "exponential")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What to train and how; everything that decides the result but the data themselves.

    Attributes
    ----------
    model, model_options
        Name and keyword arguments for `models.build`.
    optimizer, optimizer_options
        Name of a class in `torch.optim` and its keyword arguments, such as ``momentum``.
    learning_rate, schedule, decay
        ``"constant"``; ``"cosine"``, to 0 at the last step; ``"exponential"``, times `decay` after
        each epoch.
    batch_size, epochs
        Minibatches are drawn without replacement; the last of an epoch may be smaller. `epochs` may
        be a fraction.
    label_corruption, keep_marginal
        Arguments of `data.corrupt_labels` for the training labels; fixed over epochs.
    image_corruption
        Kind for `data.corrupt_images`, applied to training and test images.
    augment
        ``{"shift": pixels, "flip": probability}``, either or both.
    checkpoints
        Epochs, possibly fractions, after which the weights are kept, besides the first and last.
    stop_at_train_accuracy
        Stop at the first evaluation that reaches it. None: never.
    evaluate_every
        Epochs between rows of the history; checkpoints and the last step have a row in any case.
    evaluation_images
        How many training images the train loss and accuracy are measured on (the first ones).
        None: all. Not allowed together with `stop_at_train_accuracy`.
    seed, dtype
        Seed of all randomness; ``"float32"`` or ``"float64"``.
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
    checkpoints: tuple[float, ...] = ()
    stop_at_train_accuracy: float | None = None
    evaluate_every: float = 1
    evaluation_images: int | None = None
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, found, known in (
            ("model", self.model, models.MODELS),
            ("schedule", self.schedule, SCHEDULES),
            ("dtype", self.dtype, DTYPES),
        ):
            if found not in known:
                raise ValueError(f"{name}: found {found!r}; {nearest(found, known)}")
        optimizer = getattr(torch.optim, self.optimizer, None)
        if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
            known = [n for n in dir(torch.optim) if n[0].isupper()]
            raise ValueError(f"optimizer: {self.optimizer!r}; {nearest(self.optimizer, known)}")
        for name in ("learning_rate", "epochs", "batch_size", "evaluate_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, found {getattr(self, name)}")
        if unknown := set(self.augment) - {"shift", "flip"}:
            raise ValueError(f"augment: expected 'shift' and 'flip', found {sorted(unknown)}")
        if any(not 0 <= epoch <= self.epochs for epoch in self.checkpoints):
            raise ValueError(
                f"checkpoints: expected epochs in [0, {self.epochs}], found {self.checkpoints}"
            )
        if self.stop_at_train_accuracy is not None and self.evaluation_images is not None:
            raise ValueError(
                "evaluation_images: expected None with stop_at_train_accuracy, which needs the "
                f"whole training set, found {self.evaluation_images}"
            )

    def key(self, split: data.Split) -> str:
        """Return the hash that names this specification's run on `split`."""
        text = json.dumps([FORMAT, asdict(self), split.digest], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@dataclass(frozen=True)
class Run:
    """A trained network and how it got there.

    Attributes
    ----------
    spec : Spec
    key : str
    status : str
        ``"finished"``, ``"stopped"`` by the stopping rule, or ``"diverged"`` (loss not finite).
    history : pandas.DataFrame
        Columns step, epoch, train_loss, train_accuracy, test_loss, test_accuracy; a row for step 0,
        every `evaluate_every` epochs and every checkpoint. Accuracies are shares; train columns are
        measured on the (corrupted) training labels in eval mode.
    checkpoints : dict of epoch to step
    """

    spec: Spec
    key: str
    status: str
    history: pd.DataFrame
    checkpoints: dict[float, int]
    _states: "Path | dict[int, dict[str, Tensor]]" = field(repr=False)

    def state(self, epoch: float | None = None) -> dict[str, Tensor]:
        """Return the weights at checkpoint `epoch`; the last ones by default."""
        epoch = max(self.checkpoints) if epoch is None else epoch
        if epoch not in self.checkpoints:
            known = ", ".join(f"{e:g}" for e in self.checkpoints)
            raise ValueError(f"epoch: no checkpoint at {epoch}; expected one of {known}")
        step = self.checkpoints[epoch]
        if isinstance(self._states, Path):
            return load_file(_checkpoint(self._states, step))
        return self._states[step]

    def model(self, epoch: float | None = None, device: str = "cpu") -> nn.Module:
        """Return the network at checkpoint `epoch`, in eval mode."""
        model = _new_model(self.spec, choose_device(device))
        model.load_state_dict(self.state(epoch))
        return model.eval()


def fit(
    spec: Spec,
    split: data.Split,
    *,
    store: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Run:
    """Train the network that `spec` describes on `split`, or load it if `store` has it.

    Parameters
    ----------
    spec : Spec
    split : data.Split
    store : path, optional
        Folder that keeps runs, each in a subfolder named by `Spec.key`: weights as safetensors, the
        rest as JSON, every file written whole or not at all. A killed run goes on from its last
        evaluation. Without a store the run lives in memory.
    device : str
        ``"cpu"``, ``"cuda"`` or ``"auto"``. On one device the same call gives the same numbers.
    progress : bool
        Show a progress bar over steps.

    Raises
    ------
    ValueError
        For bad values of `spec` or `device`.
    """
    target = choose_device(device)
    key = spec.key(split)
    folder = None if store is None else Path(store) / key
    if folder is not None and (done := _load(spec, key, folder)) is not None:
        return done

    training = _Training(spec, split, target)
    states: dict[int, dict[str, Tensor]] = {}
    if folder is not None:
        training.resume(folder / "resume.safetensors")
    checkpoints = {0.0: 0, **{float(e): training.step_at(e) for e in sorted(spec.checkpoints)}}
    checkpoints[float(spec.epochs)] = training.last_step
    with tqdm(
        total=training.last_step,
        initial=training.step,
        desc=f"{spec.model}, seed {spec.seed}",
        unit="step",
        leave=False,
        **({} if progress else {"disable": True}),  # not False: TQDM_DISABLE then has its say
    ) as bar:
        while True:
            if training.at_event(checkpoints):
                training.evaluate()
                if training.step in checkpoints.values() or training.status():
                    states[training.step] = training.weights()
                    if folder is not None:
                        _save(states.pop(training.step), _checkpoint(folder, training.step))
                if folder is not None:
                    training.save(folder / "resume.safetensors")
            if status := training.status():
                break
            training.advance()
            bar.update()

    history = pd.DataFrame(training.rows)
    checkpoints = {e: step for e, step in checkpoints.items() if step <= training.step}
    if training.step not in checkpoints.values():
        checkpoints[history.epoch.iloc[-1]] = training.step
    if folder is None:
        return Run(spec, key, status, history, checkpoints, states)
    write_json(
        folder / "run.json",
        {
            "spec": asdict(spec),
            "data": split.source,
            "status": status,
            "checkpoints": [[epoch, step] for epoch, step in checkpoints.items()],
            "history": [{k: _finite(v) for k, v in row.items()} for row in training.rows],
            "torch": torch.__version__,
            "device": target.type,
        },
    )
    (folder / "resume.safetensors").unlink(missing_ok=True)
    return Run(spec, key, status, history, checkpoints, folder)


class _Training:
    """The state of one training run, step by step."""

    def __init__(self, spec: Spec, split: data.Split, device: torch.device) -> None:
        self.spec, self.device, self.step, self.rows = spec, device, 0, []
        self.model = _new_model(spec, device)
        options = dict(spec.optimizer_options)
        try:
            self.optimizer = getattr(torch.optim, spec.optimizer)(
                self.model.parameters(), lr=spec.learning_rate, **options
            )
        except TypeError as error:
            raise ValueError(f"optimizer_options: found {options} ({error})") from None
        labels = data.corrupt_labels(
            split.train.labels,
            spec.label_corruption,
            split.num_classes,
            seed=derive_seed(spec.seed, "labels"),
            keep_marginal=spec.keep_marginal,
        )
        images = [split.train.images, split.test.images]
        if spec.image_corruption is not None:
            # Shuffled pixels need one permutation for both; noise must not repeat in the test set.
            kind = spec.image_corruption
            streams = ["pixels", "pixels" if kind == "shuffled_pixels" else "test pixels"]
            images = [
                data.corrupt_images(x, kind, derive_seed(spec.seed, stream))
                for x, stream in zip(images, streams, strict=True)
            ]
        dtype = DTYPES[spec.dtype]
        self.train = data.Examples(images[0].to(device, dtype), labels.to(device))
        self.test = data.Examples(images[1].to(device, dtype), split.test.labels.to(device))
        self.epoch_steps = math.ceil(len(self.train) / spec.batch_size)
        self.row_steps = max(1, self.step_at(spec.evaluate_every))
        self.last_step = max(1, self.step_at(spec.epochs))

    def step_at(self, epoch: float) -> int:
        return round(epoch * self.epoch_steps)

    def at_event(self, checkpoints: Mapping[float, int]) -> bool:
        """Return whether the current step is to be evaluated and has not been."""
        due = self.step % self.row_steps == 0 or self.step in checkpoints.values()
        return due and (not self.rows or self.rows[-1]["step"] != self.step)

    def evaluate(self) -> None:
        """Add a row to the history."""
        shown = self.spec.evaluation_images
        some = data.Examples(self.train.images[:shown], self.train.labels[:shown])
        row = {"step": self.step, "epoch": self.step / self.epoch_steps}
        row["train_loss"], row["train_accuracy"] = evaluate(self.model, some)
        row["test_loss"], row["test_accuracy"] = evaluate(self.model, self.test)
        self.rows.append(row)

    def status(self) -> str:
        """Return how the run ended if it ends at this step, or "" to go on."""
        row, goal = self.rows[-1], self.spec.stop_at_train_accuracy
        if row["step"] != self.step:
            return ""
        if not math.isfinite(row["train_loss"]):
            return "diverged"
        if goal is not None and row["train_accuracy"] >= goal:
            return "stopped"
        return "finished" if self.step >= self.last_step else ""

    def advance(self) -> None:
        """Take one step of the optimiser."""
        epoch, index = divmod(self.step, self.epoch_steps)
        size = self.spec.batch_size
        if index == 0 or not hasattr(self, "order"):
            source = generator(self.spec.seed, "order", epoch)
            self.order = torch.randperm(len(self.train), generator=source).to(self.device)
        chosen = self.order[index * size : (index + 1) * size]
        source = generator(self.spec.seed, "augment", self.step)
        images = _augment(self.train.images[chosen], self.spec.augment, source)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _deterministic():
            torch.manual_seed(derive_seed(self.spec.seed, "dropout", self.step))
            self.model.train()

            def closure() -> Tensor:
                self.optimizer.zero_grad()
                loss = F.cross_entropy(self.model(images), self.train.labels[chosen])
                loss.backward()
                return loss

            self.optimizer.step(closure)
        self.step += 1

    def _learning_rate(self) -> float:
        rate = self.spec.learning_rate
        if self.spec.schedule == "exponential":
            return rate * self.spec.decay ** (self.step // self.epoch_steps)
        if self.spec.schedule == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * self.step / self.last_step))
        return rate

    def weights(self) -> dict[str, Tensor]:
        return {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}

    def save(self, path: Path) -> None:
        """Write all that is needed to go on from this step, in one file."""
        tensors = {f"model/{k}": v for k, v in self.weights().items()}
        plain: dict[str, dict] = {}
        for index, entries in self.optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{name}"] = value.detach().cpu()
                else:
                    plain.setdefault(str(index), {})[name] = value
        progress = {"step": self.step, "rows": self.rows, "plain": plain}
        _save(tensors, path, {"progress": json.dumps(progress)})

    def resume(self, path: Path) -> None:
        """Go on from `path` if it is there and whole."""
        try:
            tensors = load_file(path)
            with safe_open(path, "pt") as file:
                progress = json.loads(file.metadata()["progress"])
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            return
        state: dict[int, dict] = {int(i): dict(v) for i, v in progress["plain"].items()}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/", 2)
                state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        prefix = "model/"
        self.model.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
        self.step, self.rows = progress["step"], progress["rows"]


@torch.no_grad()
def evaluate(
    model: nn.Module, examples: data.Examples, batch_size: int = 512
) -> tuple[float, float]:
    """Return the mean cross-entropy (nats) and the accuracy (share) of `model` in eval mode."""
    loss = correct = 0.0
    batches = zip(examples.images.split(batch_size), examples.labels.split(batch_size), strict=True)
    with evaluating(model), _deterministic():
        for images, labels in batches:
            logits = model(images)
            loss += F.cross_entropy(logits.double(), labels, reduction="sum").item()
            correct += (logits.argmax(1) == labels).sum().item()
    return loss / len(examples), correct / len(examples)


def _new_model(spec: Spec, device: torch.device) -> nn.Module:
    model = models.build(spec.model, spec.seed, DTYPES[spec.dtype], **spec.model_options)
    # Channels last makes convolutions about twice as fast on a CPU; the numbers stay in place.
    return model.to(device, memory_format=torch.channels_last)


def _augment(images: Tensor, augment: Mapping[str, float], source: torch.Generator) -> Tensor:
    """Return images flipped and shifted at random, with zeros moving in; (N, C, H, W)."""
    count, _, height, width = images.shape
    if "flip" in augment:
        flip = torch.rand(count, generator=source) < augment["flip"]
        images = torch.where(flip.to(images.device)[:, None, None, None], images.flip(3), images)
    if pixels := int(augment.get("shift", 0)):
        padded = F.pad(images, (pixels,) * 4)
        moves = torch.randint(2 * pixels + 1, (2, count), generator=source).to(images.device)
        rows = (moves[0, :, None] + torch.arange(height, device=images.device))[:, None, :, None]
        columns = (moves[1, :, None] + torch.arange(width, device=images.device))[:, None, None]
        index = torch.arange(count, device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        images = padded[index, channel, rows, columns]
    return images


def _deterministic():
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.safetensors"


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    with atomic(path) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata)


def _load(spec: Spec, key: str, folder: Path) -> Run | None:
    """Return the finished run in `folder`, or None where any of it is missing or damaged."""
    try:
        saved = read_json(folder / "run.json")
        checkpoints = {float(epoch): int(step) for epoch, step in saved["checkpoints"]}
        for step in checkpoints.values():
            with safe_open(_checkpoint(folder, step), "pt") as file:
                file.keys()
        history = pd.DataFrame(saved["history"])
        status = saved["status"]
    except FileNotFoundError:
        (folder / "run.json").unlink(missing_ok=True)
        return None
    except (ValueError, KeyError, TypeError, SafetensorError):
        shutil.rmtree(folder)
        return None
    # JSON has no NaN: a diverged run's losses come back as None.
    return Run(spec, key, status, history.astype(float).astype({"step": int}), checkpoints, folder)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
