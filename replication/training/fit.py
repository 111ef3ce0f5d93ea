"""Train one network from a specification, with checkpoints, and never lose what is done.

Every use of randomness has its own seed, derived from the specification's seed, the use and the
step: initial weights, corrupted labels, minibatch order, augmentation, dropout. A run interrupted
at any step therefore goes on as if nothing had happened.
"""

from pathlib import Path

from replication import data
from replication._core.inputs import choose_device
from replication._core.progress import bar
from replication.training import _budget
from replication.training.run import Run, Unfinished, complete, stored
from replication.training.spec import Spec


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
        evaluation, one that a budget (``python -m replication sweep --budget``) ended from the very
        step; a run with a damaged or missing file is trained again. Without a store the run lives
        in memory; under a budget it is put aside until the sweep has the result of its spec.
    device : str
        ``"cpu"``, ``"cuda"`` or ``"auto"``. On one device the same call gives the same numbers.
    progress : bool
        Show a progress bar over steps.

    Raises
    ------
    ValueError
        For bad values of `spec` or `device`.
    BudgetSpent
        If there is a budget and it is spent, once the present step is stored.
    """
    target = choose_device(device)
    key = spec.key(split)
    folder = _budget.folder_of(store, key)
    if (done := stored(spec, key, folder)) is not None:
        return done
    run = Unfinished(spec, key, split, target, folder)
    with bar(
        show=progress,
        total=run.training.last_step,
        initial=run.training.step,
        desc=f"{spec.model}, seed {spec.seed}",
        unit="step",
    ) as steps:
        return complete(run, steps)
