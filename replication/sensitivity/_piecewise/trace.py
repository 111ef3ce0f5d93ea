"""From a network to its program, through torch.fx, whatever its `forward` is like."""

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from replication._core.modules import IDLE, is_altered, weight_of
from replication.sensitivity._piecewise.layers import SUPPORTED, step_of
from replication.sensitivity._piecewise.program import Affine, AnyStep, MaxPool, Program

FUNCTIONS: dict[object, type[nn.Module]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu", "relu_"), nn.ReLU),
    **{F.relu6: nn.ReLU6, F.leaky_relu: nn.LeakyReLU},
    **{F.hardtanh: nn.Hardtanh, F.hardsigmoid: nn.Hardsigmoid},
    **{F.max_pool2d: nn.MaxPool2d, F.avg_pool2d: nn.AvgPool2d},
    **{F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d, F.gelu: nn.GELU, F.silu: nn.SiLU},
    **dict.fromkeys((F.tanh, torch.tanh, "tanh"), nn.Tanh),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid"), nn.Sigmoid),
}
IDLE_FUNCTIONS = (F.dropout, F.dropout2d, "contiguous")
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
SHAPES = (torch.flatten, torch.reshape, "flatten", "view", "reshape")
JOINS = (torch.cat, torch.concat)
MEANS = (torch.mean, "mean")
SIZES = (getattr, "size", "dim")


def trace(
    model: nn.Module, example: Tensor, dtype: torch.dtype, name: str, output: bool = False
) -> Program:
    """Return the program of `model`, which is in eval mode, with its weights in `dtype`.

    It ends with the input of the last nonlinear step, or with the network's output if `output`.
    `example` (...) gives the shape of one example; `name` is the caller's argument it is from.

    Raises
    ------
    ValueError
        If the network cannot be traced, does not take such examples, mixes examples, or has a layer
        that is neither affine nor piecewise linear.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype: expected torch.float32 or torch.float64, found {dtype}")
    for layer, module in model.named_modules():
        if is_altered(module):
            raise ValueError(
                f"model: {layer!r} has forward hooks or a patched forward, which may do anything; "
                "remove them"
            )
    terms = torch.zeros(2, *example.shape, dtype=dtype, device=weight_of(model, example).device)
    terms[0] = 1
    recorder = _Recorder(terms, name)
    end = recorder.follow(model)

    steps = recorder.steps
    last = {source: i for i, step in enumerate(steps) for source in step.sources}
    last[end.index] = len(steps)
    row_size = widest = 0
    for i, step in enumerate(steps):
        released = tuple({slot for slot in step.sources if last[slot] == i})
        steps[i] = replace(step, released=released)
        if not isinstance(step, Affine):
            alive = sum(recorder.sizes[slot] for slot in range(i + 1) if last.get(slot, -1) >= i)
            alive += 2 * step.windows.numel() if isinstance(step, MaxPool) else 0
            row_size, widest = row_size + alive, max(widest, alive)
    row_size += 4 * max(widest, *recorder.sizes)
    while not output and steps and isinstance(steps[-1], Affine):
        steps.pop()
    scale, offset = end.terms.flatten(1)
    return Program(tuple(steps), end.index if output else None, scale, offset, row_size)


@dataclass(frozen=True)
class _Slot:
    """A tensor in the network: its number, and the sizes of its terms as if two examples.

    The terms of one example are at most ``terms[0] * r + terms[1]``, r being that of its row.
    """

    index: int
    terms: Tensor  # (2, ...)


class _Recorder:
    """Follows a network with slots in the place of tensors and notes steps and sizes of slots."""

    def __init__(self, terms: Tensor, name: str) -> None:
        self.input, self.name = _Slot(0, terms), name
        self.steps: list[AnyStep] = []
        self.sizes = [terms[0].numel()]
        self.calls: Counter[str] = Counter()

    def follow(self, model: nn.Module) -> _Slot:
        """Return the slot of the network's output."""
        tracer = fx.Tracer()
        if tracer.is_leaf_module(model, ""):  # a layer by itself, whose code would be traced
            return self.module(model, "", self.input)
        try:
            graph = tracer.trace(model)
        except Exception as error:  # whatever the network's own code raises
            raise ValueError(f"model: torch.fx cannot trace it ({error})") from error
        values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            arguments, options = map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "placeholder":
                default = node.args[0] if node.args else None
                values[node] = default if values else self.input
            elif node.op != "output":
                values[node] = self.node(model, node, arguments, options)
        if not isinstance(arguments[0], _Slot):
            raise ValueError(f"model: expected one tensor as output, found {node.args[0]}")
        return arguments[0]

    def module(self, layer: nn.Module, name: str, source: _Slot) -> _Slot:
        """Return the slot that a layer writes; called again in the same pass it is ``name#2``."""
        if isinstance(layer, IDLE):
            return source
        self.calls[name] += 1
        label = name if self.calls[name] == 1 else f"{name}#{self.calls[name]}"
        return self.add(step_of(layer, source.terms, label), [source], label)

    def node(self, model: nn.Module, node: fx.Node, arguments: tuple, options: dict) -> object:
        """Return the slot that a node of a graph writes, or what it gives if no tensor."""
        target: Any = node.target
        options = dict(options)
        if not arguments and "input" in options:
            arguments = (options.pop("input"),)
        flat = [x for a in arguments for x in (a if isinstance(a, list | tuple) else [a])]
        sources = [argument for argument in flat if isinstance(argument, _Slot)]
        one = len(sources) == 1 and arguments[0] is sources[0]
        if node.op == "call_module" and one and len(arguments) == 1:
            return self.module(model.get_submodule(target), target, sources[0])
        if target in IDLE_FUNCTIONS and one:
            return sources[0]
        if target in FUNCTIONS and one:
            options = {k: v for k, v in options.items() if k not in ("inplace", "training")}
            return self.module(FUNCTIONS[target](*arguments[1:], **options), node.name, sources[0])

        def linear(function: Callable[..., Tensor]) -> _Slot:
            return self.add(Affine(function, function, function), sources, node.name)

        call = getattr(torch.Tensor, target) if node.op == "call_method" else target
        if target in SUMS and len(sources) == len(arguments) == 2 and not options:
            return linear(operator.add)
        if target in JOINS and sources and len(sources) == len(arguments[0]):
            return linear(lambda *xs: target(xs, *arguments[1:], **options))
        if one and _is_linear(target, arguments[1:], options):
            return linear(lambda x: call(x, *arguments[1:], **options))
        if target in SHAPES and one:
            shape = call(sources[0].terms, *arguments[1:], **options).shape[1:]
            return linear(lambda x: x.reshape(len(x), *shape))
        if (target in SIZES and one) or (not sources and node.op != "get_attr"):
            value = call(*(sources[0].terms, *arguments[1:]) if one else arguments, **options)
            if not isinstance(value, Tensor):
                return value
        raise ValueError(f"model: {node.format_node()} is not supported; {SUPPORTED}")

    def add(self, step: AnyStep, sources: list[_Slot], label: str) -> _Slot:
        """Add a step that reads `sources`, and return the slot it writes."""
        forward = step.absolute if isinstance(step, Affine) else step.forward
        try:
            terms = forward(*[source.terms for source in sources])
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{self.name}: examples of shape {tuple(self.input.terms.shape[1:])} do not fit "
                f"the model, whose {label!r} says: {error}"
            ) from None
        if terms.ndim < 2 or len(terms) != 2:
            raise ValueError(
                f"model: expected {label!r} to give one row an example, found shape "
                f"{tuple(terms.shape)} for 2"
            )
        if not terms.isfinite().all():
            raise ValueError(f"model: expected finite weights, but {label!r} gives NaN or infinity")
        if isinstance(step, Affine):
            zeros = [torch.zeros_like(source.terms[:1]) for source in sources]
            terms = torch.cat([terms[:1], terms[1:] + step.forward(*zeros).abs()])
        else:
            inputs = sources[0].terms.flatten(1)
            if isinstance(step, MaxPool):
                inputs = step.candidates(inputs).amax(2)
            else:
                terms = torch.stack([torch.ones_like(terms[0]), forward(0 * terms[0]).abs()])
            step = replace(step, scale=inputs[0].clone(), offset=inputs[1].clone())
        slot = _Slot(len(self.steps) + 1, terms)
        slots = tuple(source.index for source in sources)
        self.steps.append(replace(step, sources=slots, target=slot.index))
        self.sizes.append(terms[0].numel())
        return slot


def _is_linear(target: object, arguments: tuple, options: dict) -> bool:
    """Return whether a function of a tensor and these is linear, one example at a time."""
    if target is operator.getitem:
        return isinstance(arguments[0], tuple) and arguments[0][0] == slice(None)
    if target is F.pad:
        given = dict(zip(("pad", "mode", "value"), arguments, strict=False)) | options
        return given.get("mode", "constant") == "constant" and not given.get("value")
    return target in MEANS
