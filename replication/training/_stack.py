"""Members of a population in training as one program: what is theirs along dimension 0."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replication.training import _batched, _updates
from replication.training.run import Unfinished


@dataclass
class Stack:
    """Members in training, one program: what is theirs along dimension 0."""

    members: list[Unfinished]
    weights: dict[str, Tensor]
    states: dict[str, _updates.State]
    labels: Tensor  # (members, training examples)
    order: Tensor  # (members, training examples) of this epoch

    def of(self, index: list[int]) -> "Stack":
        """Return a part of the members."""
        if len(index) == len(self.members):
            return self
        states = {k: {n: v[index] for n, v in state.items()} for k, state in self.states.items()}
        weights = {k: _batched.laid_out(value[index]) for k, value in self.weights.items()}
        members = [self.members[i] for i in index]
        return Stack(members, weights, states, self.labels[index], self.order[index])

    def write_back(self, index: int) -> None:
        """Give a member's own network and optimiser their weights and state."""
        training = self.members[index].training
        training.model.load_state_dict({k: v[index] for k, v in self.weights.items()})
        for name, parameter in training.model.named_parameters():
            state = {key: value[index].clone() for key, value in self.states[name].items()}
            if training.spec.optimizer != "SGD" and training.step:
                state["step"] = torch.tensor(float(training.step))
            training.optimizer.state[parameter] = state


def stack_of(members: list[Unfinished]) -> Stack:
    """Return members that are at the same step as one."""
    trainings = [member.training for member in members]
    weights = _batched.stacked([training.model for training in trainings])
    states: dict[str, _updates.State] = {}
    for name, _ in trainings[0].model.named_parameters():
        own = [t.optimizer.state[t.model.get_parameter(name)] for t in trainings]
        kept = [key for key, value in own[0].items() if key != "step" and value is not None]
        states[name] = {key: torch.stack([state[key] for state in own]) for key in kept}
    labels = torch.stack([training.train.labels for training in trainings])
    return Stack(members, weights, states, labels, _order(members))


def _order(members: list[Unfinished]) -> Tensor:
    return torch.stack([member.training.epoch_order() for member in members])


def minibatches(stack: Stack) -> tuple[Tensor, Tensor]:
    """Return the next step's images (members, examples, ...) and labels (members, examples)."""
    trainings = [member.training for member in stack.members]
    index, size = trainings[0].step % trainings[0].epoch_steps, trainings[0].spec.batch_size
    if index == 0:
        stack.order = _order(stack.members)
    chosen = stack.order[:, index * size : (index + 1) * size]
    shared = trainings[0].images
    if all(t.images is shared and not t.spec.augment for t in trainings):
        images = shared.index_select(0, chosen.flatten())
        images = images.view(*chosen.shape, *images.shape[1:])
    else:
        images = torch.stack(
            [t.augmented(t.images[i]) for t, i in zip(trainings, chosen, strict=True)]
        )
    return images, stack.labels.gather(1, chosen)


def dropout_masks(
    members: list[Unfinished], model: nn.Module, inputs: Mapping[str, Tensor], examples: int
) -> dict[str, Tensor]:
    """Return the dropout factors of every member, as its own network would draw them."""
    if not inputs:
        return {}
    inputs = {name: value[:examples] for name, value in inputs.items()}
    device = members[0].training.device
    drawn = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for member in members:
            member.training.seed_dropout()
            drawn.append(_batched.draw_masks(model, inputs))
    return {name: torch.stack([masks[name] for masks in drawn]) for name in inputs}


@torch.no_grad()
def evaluate(stack: Stack, program, template: nn.Module, batch_size: int = 512) -> None:
    """Add a row to the history of every member."""
    trainings = [member.training for member in stack.members]
    measured = []
    for part in ([t.shown() for t in trainings], [t.test for t in trainings]):
        shared = all(e.images.data_ptr() == part[0].images.data_ptr() for e in part)
        # `evaluation_images` may differ: the longest is measured, and each takes its own.
        counts = torch.tensor([len(examples) for examples in part])
        longest = part[int(counts.argmax())]
        loss = torch.zeros(len(part), dtype=torch.float64, device=longest.images.device)
        correct = torch.zeros_like(loss)
        for start in range(0, len(longest), batch_size):
            here = slice(start, start + batch_size)
            labels = _padded([examples.labels[here] for examples in part])
            if shared:
                images = longest.images[here][None]
            else:
                images = _padded([examples.images[here] for examples in part])
            logits = program(template, stack.weights, images, {}, False)
            counted = torch.arange(start, start + labels.shape[1])[None] < counts[:, None]
            counted = counted.to(loss.device)
            losses = F.cross_entropy(logits.double().mT, labels, reduction="none")
            loss += torch.where(counted, losses, 0.0).sum(1)
            correct += ((logits.argmax(2) == labels) & counted).sum(1)
        sizes = counts.to(loss.device)
        measured.append(zip((loss / sizes).tolist(), (correct / sizes).tolist(), strict=True))
    for training, train, test in zip(trainings, *measured, strict=True):
        training.add_row(train, test)


def _padded(parts: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(parts, batch_first=True)
