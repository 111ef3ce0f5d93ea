"""Train one network from a specification, with checkpoints, and never lose what is done.

Every use of randomness has its own seed, derived from the specification's seed, the use and the
step: initial weights, corrupted labels, minibatch order, augmentation, dropout. A run interrupted
at any step therefore goes on as if nothing had happened.
"""

import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from replication import data
from replication._files import read_json, write_json
from replication._inputs import choose_device
from replication._progress import bar
from replication._resume import copy_weights, save_tensors
from replication._spec import Spec
from replication._steps import Training, evaluate, new_model

__all__ = ["Run", "Spec", "evaluate", "fit"]


@dataclass(frozen=True, eq=False)
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
        """Return a copy of the weights at checkpoint `epoch`; of the last ones by default.

        Raises
        ------
        ValueError
            If there is no checkpoint at `epoch`.
        """
        epoch = max(self.checkpoints) if epoch is None else epoch
        if epoch not in self.checkpoints:
            known = ", ".join(f"{e:g}" for e in self.checkpoints)
            raise ValueError(f"epoch: no checkpoint at {epoch}; expected one of {known}")
        step = self.checkpoints[epoch]
        stored = isinstance(self._states, Path)
        state = load_file(_checkpoint(self._states, step)) if stored else self._states[step]
        return {name: tensor.clone() for name, tensor in state.items()}

    def model(self, epoch: float | None = None, device: str = "cpu") -> nn.Module:
        """Return the network at checkpoint `epoch`, in eval mode.

        Raises
        ------
        ValueError
            If there is no checkpoint at `epoch` or no such device.
        """
        model = new_model(self.spec, choose_device(device))
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
        evaluation; a run with a damaged or missing file is trained again. Without a store the run
        lives in memory.
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

    training = Training(spec, split, target)
    states: dict[int, dict[str, Tensor]] = {}
    checkpoints = {0.0: 0, **{float(e): training.step_at(e) for e in sorted(spec.checkpoints)}}
    checkpoints[float(spec.epochs)] = training.last_step
    if folder is not None:
        training.resume(folder / "resume.safetensors")
        if not _has_weights(folder, training, checkpoints):
            training = Training(spec, split, target)
    with bar(
        show=progress,
        total=training.last_step,
        initial=training.step,
        desc=f"{spec.model}, seed {spec.seed}",
        unit="step",
    ) as steps:
        while True:
            if training.at_event(checkpoints):
                training.evaluate()
                if training.step in checkpoints.values() or training.status():
                    states[training.step] = copy_weights(training.model)
                    if folder is not None:
                        save_tensors(states.pop(training.step), _checkpoint(folder, training.step))
                if folder is not None:  # after the weights, which it says are there
                    training.save(folder / "resume.safetensors")
            if status := training.status():
                break
            training.advance()
            steps.update()

    rows = [{k: _finite(v) for k, v in row.items()} for row in training.rows]
    checkpoints = {e: step for e, step in checkpoints.items() if step <= training.step}
    if training.step not in checkpoints.values():
        checkpoints[training.step / training.epoch_steps] = training.step
    if folder is None:
        return Run(spec, key, status, _history(rows), checkpoints, states)
    write_json(
        folder / "run.json",
        {
            "spec": asdict(spec),
            "data": split.source,
            "status": status,
            "checkpoints": [[epoch, step] for epoch, step in checkpoints.items()],
            "history": rows,
            "torch": torch.__version__,
            "device": target.type,
        },
    )
    (folder / "resume.safetensors").unlink(missing_ok=True)
    return Run(spec, key, status, _history(rows), checkpoints, folder)


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.safetensors"


def _check(paths: Iterable[Path]) -> None:
    """Raise what safetensors raises where one of `paths` is missing or not of its full length."""
    for path in paths:
        with safe_open(path, "pt"):
            pass


def _has_weights(folder: Path, training: Training, checkpoints: Mapping[float, int]) -> bool:
    """Return whether `folder` has the weights of every checkpoint that `training` has passed."""
    steps = {step for step in checkpoints.values() if training.rows and step <= training.step}
    if training.status():
        steps.add(training.step)
    try:
        _check(_checkpoint(folder, step) for step in steps)
    except (FileNotFoundError, SafetensorError):
        return False
    return True


def _load(spec: Spec, key: str, folder: Path) -> Run | None:
    """Return the finished run in `folder`, or None where any of it is missing or damaged."""
    try:
        saved = read_json(folder / "run.json")
        checkpoints = {float(epoch): int(step) for epoch, step in saved["checkpoints"]}
        _check(_checkpoint(folder, step) for step in checkpoints.values())
        return Run(spec, key, saved["status"], _history(saved["history"]), checkpoints, folder)
    except FileNotFoundError:
        (folder / "run.json").unlink(missing_ok=True)
    except (ValueError, KeyError, TypeError, SafetensorError):
        shutil.rmtree(folder)
    return None


def _history(rows: list[dict[str, float | None]]) -> pd.DataFrame:
    # JSON has no NaN: a loss that is not finite is None in `rows`.
    return pd.DataFrame(rows).astype(float).astype({"step": int})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
