"""Train one network, or take up its training, and what is kept of it.

A run's files are weights as safetensors and the rest as JSON.
"""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from replication import data
from replication._core.files import read_json, write_json
from replication._core.inputs import choose_device
from replication._core.progress import bar
from replication.training import _checkpoint
from replication.training.spec import Spec
from replication.training.trainer import Trainer, new_model

RESUME = "resume.safetensors"  # of an unfinished run: all that is needed to go on
INTERVAL = 30.0  # seconds of training that a killed run may lose
REPORT = 60.0  # seconds between lines in the log of a long run
SCRATCH = "REPLICATION_SCRATCH"  # variable: where runs without a store are kept until it is removed


@dataclass(frozen=True, eq=False)
class Run:
    """A trained network and how it got there.

    Attributes
    ----------
    spec, key
        The specification and the hash that names its run.
    status : str
        ``"finished"``, ``"stopped"`` by the stopping rule, or ``"diverged"`` (loss not finite).
    history : pandas.DataFrame
        Columns step, epoch, train_loss, train_accuracy, test_loss, test_accuracy; a row for step 0,
        every `evaluate_every` epochs and every checkpoint. Accuracies are shares; train columns are
        measured on the (corrupted) training labels in eval mode. A loss that is not finite is NaN.
    checkpoints : dict of epoch to step
        The first, the last and those asked for, as far as the run came.
    """

    spec: Spec
    key: str
    status: str
    history: pd.DataFrame
    checkpoints: dict[float, int]
    _states: "Path | dict[int, dict[str, Tensor]]" = field(repr=False)

    def state(self, epoch: float | None = None) -> dict[str, Tensor]:
        """Return a copy of the weights at checkpoint `epoch`, by default the last."""
        epoch = max(self.checkpoints) if epoch is None else epoch
        if epoch not in self.checkpoints:
            known = ", ".join(f"{e:g}" for e in self.checkpoints)
            raise ValueError(f"epoch: no checkpoint at {epoch}; expected one of {known}")
        step, states = self.checkpoints[epoch], self._states
        state = load_file(_weights(states, step)) if isinstance(states, Path) else states[step]
        return {name: tensor.clone() for name, tensor in state.items()}

    def model(self, epoch: float | None = None, device: str = "cpu") -> nn.Module:
        """Return the network at checkpoint `epoch`, by default the last, in eval mode."""
        model = new_model(self.spec, choose_device(device))
        model.load_state_dict(self.state(epoch))
        return model.eval()


class Unfinished:
    """A run in training, kept in memory or in `folder`, from whose files it goes on if whole."""

    def __init__(
        self, spec: Spec, key: str, split: data.Split, device: torch.device, folder: Path | None
    ) -> None:
        self.spec, self.key, self.source, self.folder = spec, key, split.source, folder
        self.training = Trainer(spec, split, device)
        self._states: dict[int, dict[str, Tensor]] = {}
        asked = {float(e): self.training.step_at(e) for e in sorted(spec.checkpoints)}
        self._checkpoints = {0.0: 0, **asked, float(spec.epochs): self.training.last_step}
        if folder is not None:
            _checkpoint.load(folder / RESUME, self.training)
            if not self._has_weights(folder):
                self.training = Trainer(spec, split, device)

    def _has_weights(self, folder: Path) -> bool:
        """Return whether `folder` has the weights of every checkpoint that was passed."""
        now = self.training
        steps = {step for step in self._checkpoints.values() if now.rows and step <= now.step}
        try:
            _check(folder, steps | ({now.step} if now.status() else set()))
        except (FileNotFoundError, SafetensorError):
            return False
        return True

    def is_due(self) -> bool:
        """Return whether the current step is to be evaluated and has not been."""
        now = self.training
        due = now.step % now.row_steps == 0 or now.step in self._checkpoints.values()
        return due and not now.is_measured()

    def keep(self) -> None:
        """Keep the weights, after an evaluation, and all that is needed to go on."""
        training, folder = self.training, self.folder
        if training.step in self._checkpoints.values() or training.status():
            weights = _checkpoint.copy_weights(training.model)
            if folder is None:
                self._states[training.step] = weights
            else:
                _checkpoint.save_tensors(weights, _weights(folder, training.step))
        self.put_aside()  # after the weights, which it says are there

    def put_aside(self) -> None:
        """Keep the present step, which needs no evaluation or has it, to go on from there."""
        if self.folder is not None:
            _checkpoint.save(self.folder / RESUME, self.training)

    def finish(self) -> Run:
        """Return the run at its end, and write down that it is there."""
        training, folder = self.training, self.folder
        status = training.status()
        rows = [  # JSON has no NaN
            {k: v if math.isfinite(v) else None for k, v in row.items()} for row in training.rows
        ]
        checkpoints = {e: step for e, step in self._checkpoints.items() if step <= training.step}
        if training.step not in checkpoints.values():
            checkpoints[training.step / training.epoch_steps] = training.step
        if folder is None:
            return Run(self.spec, self.key, status, _history(rows), checkpoints, self._states)
        record: dict[str, Any] = {"spec": asdict(self.spec), "data": self.source, "status": status}
        record |= {"checkpoints": [list(entry) for entry in checkpoints.items()], "history": rows}
        record |= {"torch": torch.__version__, "device": training.device.type}
        record |= {"precision": training.precision}
        write_json(folder / "run.json", record | {"digest": _digest(record)})
        (folder / RESUME).unlink(missing_ok=True)
        return Run(self.spec, self.key, status, _history(rows), checkpoints, folder)


def complete(run: Unfinished, steps: tqdm) -> Run:
    """Train a network to its end, a step at a time."""
    training, began = run.training, time.monotonic()
    start, kept, told, flop = training.step, began, began, 0
    while True:
        if run.is_due():
            training.evaluate()
            run.keep()
            kept = time.monotonic()
        if training.status():
            return run.finish()
        if flop or SCRATCH not in os.environ:
            training.advance()
        else:  # counted once, for the log of ``python -m replication run``
            with FlopCounterMode(display=False) as counter:
                training.advance()
            flop = counter.get_total_flops()
        steps.update()
        if flop and time.monotonic() - told > REPORT:
            told = time.monotonic()
            print(_progress(training, (training.step - start) / (told - began), flop), flush=True)
        if time.monotonic() - kept > INTERVAL:
            if not run.is_due():  # an evaluation comes first
                run.put_aside()
            kept = time.monotonic()


def _progress(training: Trainer, rate: float, flop: int) -> str:
    """Return a line for a log: `rate` is in steps a second, `flop` a step's operations."""
    spec, left = training.spec, (training.last_step - training.step) / rate / 3600
    done = f"{spec.model}, seed {spec.seed}: step {training.step:,} of {training.last_step:,}"
    return f"{done}, {left:.2f} h left, {flop * rate / 1e9:.0f} GFLOP/s"


def stored(spec: Spec, key: str, folder: Path | None) -> Run | None:
    """Return the finished run in `folder`, or None where any of it is missing or damaged."""
    if folder is None:
        return None
    try:
        saved = read_json(folder / "run.json")
        digest = saved.pop("digest", None)  # which older runs have not
        if digest not in (None, _digest(saved)):
            raise ValueError("run.json has changed since it was written")
        checkpoints = {float(epoch): int(step) for epoch, step in saved["checkpoints"]}
        _check(folder, checkpoints.values())
        if (left := folder / RESUME).exists():  # killed between the last two steps
            with suppress(OSError):  # a store may be read-only
                left.unlink()
        return Run(spec, key, saved["status"], _history(saved["history"]), checkpoints, folder)
    except FileNotFoundError:
        (folder / "run.json").unlink(missing_ok=True)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, SafetensorError):
        shutil.rmtree(folder)
    return None


def _digest(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _weights(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.safetensors"


def _check(folder: Path, steps: Iterable[int]) -> None:
    """Raise what safetensors raises where weights are missing or not of their full length."""
    for step in steps:
        with safe_open(_weights(folder, step), "pt"):
            pass


def _history(rows: list[dict[str, float | None]]) -> pd.DataFrame:
    values = np.array([list(row.values()) for row in rows], dtype=float)
    return pd.DataFrame(values, columns=list(rows[0])).astype({"step": int})


def folder_of(store: str | Path | None, key: str) -> Path | None:
    """Return where the run is kept: below `store`, or the scratch folder; None for in memory."""
    root = store or os.environ.get(SCRATCH)
    return Path(root) / key if root else None


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
    spec, split
        What to train, and on what.
    store : path, optional
        Folder that keeps runs, each in a subfolder named by `Spec.key`: weights as safetensors, the
        rest as JSON, every file whole or not there. A killed run loses at most half a minute; one
        with a damaged or missing file is trained again. Without a store the run lives in memory, or
        in the folder that ``python -m replication run`` names by REPLICATION_SCRATCH.
    device : str
        ``"cpu"``, ``"cuda"`` or ``"auto"``. On one device the same call gives the same numbers.
    progress : bool
        Show a progress bar over steps.
    """
    target, key = choose_device(device), spec.key(split)
    folder = folder_of(store, key)
    if (done := stored(spec, key, folder)) is not None:
        return done
    run = Unfinished(spec, key, split, target, folder)
    name, at = f"{spec.model}, seed {spec.seed}", run.training
    with bar(show=progress, desc=name, unit="step", initial=at.step, total=at.last_step) as steps:
        return complete(run, steps)
