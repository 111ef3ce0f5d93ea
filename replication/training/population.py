"""Many networks as one batched program: public as `training.fit_population`."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from replication import data
from replication._core.inputs import choose_device
from replication._core.progress import bar
from replication.training import _batched
from replication.training.fit import INTERVAL, Run, Unfinished, complete, folder_of, stored
from replication.training.spec import DTYPES, Spec
from replication.training.trainer import Trainer, deterministic, new_model, step_count


def fit_population(
    specs: Sequence[Spec],
    split: data.Split,
    *,
    store: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> list[Run]:
    """Train the networks that `specs` describe on `split`, those that can be as one program.

    Networks that share architecture, optimiser, batch size and precision are trained as one; seed,
    labels, learning rate and its schedule, weight decay, augmentation, length and stopping rule are
    each network's own. Where that is no faster, one follows another. A network is what `fit` makes
    of its specification, but for rounding.

    Parameters
    ----------
    specs : sequence of Spec
        In any order and mixture; equal ones are trained once. The runs are in this order.
    split, store, device, progress
        As in `fit`; a store may be shared with it.
    """
    specs = list(specs)
    for index, spec in enumerate(specs):
        if not isinstance(spec, Spec):
            raise ValueError(f"specs[{index}]: expected a Spec, found {type(spec).__name__}")
    target = choose_device(device)
    keys = [spec.key(split) for spec in specs]
    by_key = dict(zip(keys, specs, strict=True))
    found = ((key, stored(spec, key, folder_of(store, key))) for key, spec in by_key.items())
    runs = {key: run for key, run in found if run is not None}
    missing = {key: spec for key, spec in by_key.items() if key not in runs}
    total = sum(step_count(spec, len(split.train)) for spec in missing.values())
    with bar(show=progress, total=total, desc="population", unit="step") as steps:
        for group in _groups(missing):
            first = missing[group[0]]
            placed = _placed(split, first, target)
            model = new_model(first, target)
            size = members_at_once(model, first, len(group), target)
            for start in range(0, len(group), size):
                members = [
                    Unfinished(missing[key], key, placed, target, folder_of(store, key))
                    for key in group[start : start + size]
                ]
                steps.update(sum(member.training.step for member in members))
                # After an interruption members may be at different steps.
                step_of = attrgetter("training.step")
                for _, together in groupby(sorted(members, key=step_of), step_of):
                    for run in _train(list(together), model, target, steps):
                        runs[run.key] = run
    return [runs[key] for key in keys]


def strategy(model: nn.Module, members: int, device: torch.device) -> str:
    """Return how networks of one architecture are trained fastest.

    ``"products"``, ``"vmap"`` or ``"solo"``, one after another. On a CPU at one thread, batched
    products take 1/13 of the time for 128 members of 49-32-32-10 (the loop's time goes into calls),
    3/4 for 784-128-128-10, and as long for networks of a million weights, where it goes into
    arithmetic. Mapped convolutions take 8 times as long on a CPU.
    """
    if members == 1:
        return "solo"
    weights = sum(parameter.numel() for parameter in model.parameters())
    gpu = device.type != "cpu"
    if _batched.is_fully_connected(model):
        return "products" if gpu or weights <= 500_000 else "solo"
    return "vmap" if gpu and _batched.is_mapped(model) else "solo"


def members_at_once(model: nn.Module, spec: Spec, members: int, device: torch.device) -> int:
    """Return how many networks to train as one program, 1 to train them one after another."""
    optimizer = getattr(torch.optim, spec.optimizer)
    try:
        known = _batched.has_rule(optimizer(model.parameters(), lr=1, **spec.optimizer_options))
    except (TypeError, ValueError):
        known = False  # the member says what is wrong with its options
    # On a CPU bfloat16 pays where the arithmetic is long, and there one follows another anyway.
    short = spec.precision != "float32" and device.type == "cpu"
    if not known or short or spec.freeze or strategy(model, members, device) == "solo":
        return 1
    weights = sum(parameter.numel() for parameter in model.parameters())
    # On a CPU, what a step goes through (weights, gradients, state) should fit the cache.
    most = max(4, (1 << 18) // weights) if device.type == "cpu" else (1 << 28) // weights
    return max(1, min(members, 256, most))


@dataclass
class Stack:
    """Members in training as one program: what is theirs along dimension 0."""

    members: list[Unfinished]
    weights: dict[str, Tensor]
    states: dict[str, _batched.State]
    labels: Tensor  # (members, training examples)
    decays: Tensor  # (members,), of weights
    order: Tensor  # (members, training examples) of this epoch
    rates: Tensor  # (members, steps), of learning, of this epoch

    @property
    def trainings(self) -> list[Trainer]:
        """The members' own states."""
        return [member.training for member in self.members]

    def of(self, index: list[int]) -> "Stack":
        """Return a part of the members."""
        if len(index) == len(self.members):
            return self
        states = {k: {n: v[index] for n, v in state.items()} for k, state in self.states.items()}
        weights = {k: _batched.laid_out(value[index]) for k, value in self.weights.items()}
        members = [self.members[i] for i in index]
        rest = (self.labels, self.decays, self.order, self.rates)
        return Stack(members, weights, states, *(value[index] for value in rest))

    def write_back(self, index: int) -> None:
        """Give a member's own network and optimiser their weights and state."""
        training = self.members[index].training
        training.model.load_state_dict({k: v[index] for k, v in self.weights.items()})
        for name, parameter in training.model.named_parameters():
            state = {key: value[index].clone() for key, value in self.states[name].items()}
            if training.spec.optimizer != "SGD" and training.step:
                state["step"] = torch.tensor(float(training.step))
            training.optimizer.state[parameter] = state


def _stack_of(members: list[Unfinished]) -> Stack:
    """Return members that are at the same step as one."""
    trainings = [member.training for member in members]
    weights = _batched.stacked([training.model for training in trainings])
    states: dict[str, _batched.State] = {}
    for name, _ in trainings[0].model.named_parameters():
        own = [t.optimizer.state[t.model.get_parameter(name)] for t in trainings]
        kept = [key for key, value in own[0].items() if key != "step" and value is not None]
        states[name] = {key: torch.stack([state[key] for state in own]) for key in kept}
    labels = torch.stack([training.train.labels for training in trainings])
    decays = [training.optimizer.param_groups[0]["weight_decay"] for training in trainings]
    return Stack(
        members, weights, states, labels, trainings[0].images.new_tensor(decays), *_epoch(trainings)
    )


def _epoch(trainings: list[Trainer]) -> tuple[Tensor, Tensor]:
    """Return the orders of the images and the learning rates of this epoch, by member."""
    first = trainings[0]
    steps = [index - first.step % first.epoch_steps for index in range(first.epoch_steps)]
    rates = [[training.learning_rate(later) for later in steps] for training in trainings]
    order = torch.stack([training.epoch_order() for training in trainings])
    return order, first.images.new_tensor(rates)


def _minibatches(stack: Stack) -> tuple[Tensor, Tensor]:
    """Return the next step's images (members, examples, ...) and labels (members, examples)."""
    trainings = stack.trainings
    index, size = trainings[0].step % trainings[0].epoch_steps, trainings[0].spec.batch_size
    if index == 0:
        stack.order, stack.rates = _epoch(trainings)
    chosen = stack.order[:, index * size : (index + 1) * size]
    shared = trainings[0].images
    if all(t.images is shared and not t.spec.augment for t in trainings):
        images = shared.index_select(0, chosen.flatten())
        images = images.view(*chosen.shape, *images.shape[1:])
    else:
        pairs = zip(trainings, chosen, strict=True)
        images = torch.stack([t.augmented(t.images[index]) for t, index in pairs])
    return images, stack.labels.gather(1, chosen)


def _dropout_masks(
    trainings: list[Trainer], model: nn.Module, inputs: Mapping[str, Tensor], examples: int
) -> dict[str, Tensor]:
    """Return the dropout factors of every member, as its own network would draw them."""
    if not inputs:
        return {}
    inputs = {name: value[:examples] for name, value in inputs.items()}
    device = trainings[0].device
    drawn = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for training in trainings:
            training.seed_dropout()
            drawn.append(_batched.draw_masks(model, inputs))
    return {name: torch.stack([masks[name] for masks in drawn]) for name in inputs}


@torch.no_grad()
def _evaluate(stack: Stack, program: Callable, batch_size: int = 512) -> None:
    """Add a row to the history of every member."""
    trainings = stack.trainings
    measured = []
    for part in ([t.shown() for t in trainings], [t.test for t in trainings]):
        shared = all(e.images.data_ptr() == part[0].images.data_ptr() for e in part)
        # `evaluation_images` may differ: the longest is measured, and each takes its own.
        counts = torch.tensor([len(examples) for examples in part])
        longest = part[int(counts.argmax())]
        loss = torch.zeros(len(part), dtype=torch.float64, device=longest.images.device)
        correct = torch.zeros_like(loss)
        for start in range(0, len(longest), batch_size):
            batch = slice(start, start + batch_size)
            labels = pad_sequence([examples.labels[batch] for examples in part], True)
            if shared:
                images = longest.images[batch][None]
            else:
                images = pad_sequence([examples.images[batch] for examples in part], True)
            logits = program(stack.weights, images, {}, False)
            counted = torch.arange(start, start + labels.shape[1])[None] < counts[:, None]
            counted = counted.to(loss.device)
            losses = F.cross_entropy(logits.double().mT, labels, reduction="none")
            loss += torch.where(counted, losses, 0.0).sum(1)
            correct += ((logits.argmax(2) == labels) & counted).sum(1)
        measured.append(torch.stack([loss, correct], 1) / counts.to(loss.device)[:, None])
    rows = torch.stack(measured, 1).tolist()
    for training, (train, test) in zip(trainings, rows, strict=True):
        training.add_row(tuple(train), tuple(test))


def _train(
    members: list[Unfinished], model: nn.Module, device: torch.device, steps: tqdm
) -> Iterator[Run]:
    """Train members that are at the same step, and yield each run as it ends."""
    how = strategy(model, len(members), device)
    if how == "solo":
        for member in members:
            yield complete(member, steps)
        return
    stack = _stack_of(members)
    inputs = _batched.dropout_inputs(model, _minibatches(stack)[0][0])
    program = partial(_batched.products, model)
    if how == "vmap":
        masked = _batched.with_masks(new_model(members[0].spec, device))
        program = partial(_batched.vmapped, masked)
    half = members[0].training.precision == "bfloat16"
    by_hand = how == "products" and not half and _batched.has_gradients(model)
    kept = time.monotonic()
    with deterministic():
        while True:
            if due := [i for i, member in enumerate(stack.members) if member.is_due()]:
                _evaluate(stack.of(due), program)
                for index in due:
                    stack.write_back(index)
                    stack.members[index].keep()
            going = []
            for index, member in enumerate(stack.members):
                if member.training.status():
                    steps.update(member.training.last_step - member.training.step)
                    yield member.finish()
                else:
                    going.append(index)
            if not going:
                return
            stack = stack.of(going)
            _advance(stack, program, by_hand, model, inputs)
            steps.update(len(going))
            if time.monotonic() - kept > INTERVAL:
                for index, member in enumerate(stack.members):
                    if not member.is_due():  # an evaluation comes first
                        stack.write_back(index)
                        member.put_aside()
                kept = time.monotonic()


def _advance(
    stack: Stack, program: Callable, by_hand: bool, model: nn.Module, inputs: Mapping[str, Tensor]
) -> None:
    """Take one step of every member's optimiser."""
    first = stack.members[0].training
    images, labels = _minibatches(stack)
    masks = _dropout_masks(stack.trainings, model, inputs, images.shape[1])
    trained = {name: stack.weights[name] for name, _ in model.named_parameters()}
    if by_hand:
        gradients = _batched.gradients(model, stack.weights, images, labels, masks)
    else:
        leaves = {name: weight.detach().requires_grad_() for name, weight in trained.items()}
        half = first.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            logits = program({**stack.weights, **leaves}, images, masks, True)
        logits = logits.to(images.dtype).flatten(0, 1)
        losses = F.cross_entropy(logits, labels.flatten(), reduction="sum")
        by_leaf = torch.autograd.grad(losses / labels.shape[1], list(leaves.values()))
        gradients = dict(zip(leaves, by_leaf, strict=True))
    groups = [training.optimizer.param_groups[0] for training in stack.trainings]
    decays = stack.decays if any(group["weight_decay"] for group in groups) else None
    rates, name = stack.rates[:, first.step % first.epoch_steps], first.spec.optimizer
    _batched.update(name, trained, gradients, stack.states, first.step, rates, decays, groups[0])
    for training in stack.trainings:
        training.step += 1


def _groups(specs: Mapping[str, Spec]) -> list[list[str]]:
    """Return the keys of the specifications that one program could train."""
    groups: dict[str, list[str]] = {}
    for key, spec in specs.items():
        options = {k: v for k, v in spec.optimizer_options.items() if k != "weight_decay"}
        shared = [spec.model, spec.model_options, spec.optimizer, options, spec.batch_size]
        shared += [spec.dtype, spec.precision, spec.image_corruption is None, spec.freeze]
        shared.append(spec.augment.get("crop"))
        groups.setdefault(json.dumps(shared, sort_keys=True), []).append(key)
    return list(groups.values())


def _placed(split: data.Split, spec: Spec, device: torch.device) -> data.Split:
    """Return the split where and as it is trained on, for all members to share."""
    if spec.image_corruption is not None:  # of the images as they are, by each member
        return split
    train, test = (
        data.Examples(part.images.to(device, DTYPES[spec.dtype]), part.labels)
        for part in (split.train, split.test)
    )
    return replace(split, train=train, test=test)
