"""Put a training run aside in one file and take it up again, to the last bit."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor, nn

from replication._core.files import atomic
from replication.training.trainer import Trainer


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write `tensors` as safetensors, whole or not at all."""
    # Not save_file: it has a temporary file of its own, which a killed process would leave.
    content = serialized({k: v.contiguous() for k, v in tensors.items()}, metadata)
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights and buffers on the CPU, by their names in `model`."""
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}


def save(path: Path, run: Trainer) -> None:
    """Write all that is needed to go on from the run's step: tensors, and the rest as JSON."""
    tensors = {f"model/{k}": v for k, v in copy_weights(run.model).items()}
    plain: dict[str, dict] = {}

    def put_aside(key: str, value: object) -> object:
        """Return what JSON can hold of `value`; a tensor within a list becomes its key."""
        if isinstance(value, Tensor):
            tensors[key] = value.detach().cpu().clone()
            return key
        if isinstance(value, list):
            return [put_aside(f"{key}/{i}", entry) for i, entry in enumerate(value)]
        return value

    for index, entries in run.optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            rest = put_aside(f"optimizer/{index}/{name}", value)
            if not isinstance(value, Tensor):
                plain.setdefault(str(index), {})[name] = rest
    progress = {"step": run.step, "rows": run.rows, "plain": plain}
    save_tensors(tensors, path, {"progress": json.dumps(progress)})


def load(path: Path, run: Trainer) -> None:
    """Let the run go on from what `save` wrote; as it is, if that is missing or damaged."""
    try:
        # One handle: another process on the same run may replace the file between two. Copies: a
        # tensor as it lies in the file is not aligned, and then a dot product may round otherwise.
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
        return

    def take_up(value: object) -> object:
        if isinstance(value, list):
            return [take_up(entry) for entry in value]
        return tensors[value] if isinstance(value, str) else value

    state: dict[int, dict] = {
        int(index): {name: take_up(value) for name, value in entries.items()}
        for index, entries in progress["plain"].items()
    }
    weights = {}
    for key, value in tensors.items():
        kind, _, place = key.partition("/")
        index, _, name = place.partition("/")
        if kind == "model":
            weights[place] = value
        elif "/" not in name:  # else it is within a list
            state.setdefault(int(index), {})[name] = value
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": state, "param_groups": groups})
    # That has cast all to the weights' dtype, but NAdam keeps a float32 beside float64 weights.
    for index, parameter in enumerate(run.model.parameters()):
        for name, value in state.get(index, {}).items():
            if isinstance(value, Tensor):
                held = run.optimizer.state[parameter]
                held[name] = value.to(held[name].device)
    run.model.load_state_dict(weights)
    run.step, run.rows = progress["step"], progress["rows"]
