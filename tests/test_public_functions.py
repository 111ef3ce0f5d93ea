"""Properties that hold for every public function of the numerics, whatever it is given.

Each function of `_public_functions.TABLE` gives the right answer (that of the same numbers in
another form, or that of an invariance) or a ValueError that names the argument. What the checks of
`replication._core.inputs` refuse is in `test_inputs.py`: here one value of each kind shows that an
argument is checked.
"""

import importlib
import inspect
import re
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from _public_functions import EXEMPT, TABLE, N
from torch import Tensor, nn

from replication import sensitivity
from replication._core import inputs as _inputs

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:.*few examples"),
]
MODULES = (
    *("similarity", "sensitivity", "directions", "memorisation", "spectra", "activations"),
    *("directions.probe", "directions.projection", "directions.resets", "sensitivity.trajectories"),
)


def public(name):
    """Return the names a module offers: its ``__all__``, or what it defines without underscore."""
    module = importlib.import_module(f"replication.{name}")
    own = [
        key
        for key, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
        and not key.startswith("_")
    ]
    return {f"{name}.{key}" for key in getattr(module, "__all__", own)}


def test_the_table_holds_every_public_function_and_argument():
    functions = {name.split(" ")[0] for name in TABLE}
    exempt = {f"{module}.{name}" for module, names in EXEMPT.items() for name in names.split()}
    assert not functions & exempt
    assert functions | exempt == set().union(*map(public, MODULES))
    plain = {"model", "progress", "neurons", "first", "second"}
    for name, entry in TABLE.items():
        described = {*entry.arrays(), *entry.labels(), *entry.wrong_values()} | plain
        assert set(entry.arguments()) <= described, name


def of(kind):
    """Return (function, argument) for all arguments of that kind in the table."""
    return [
        pytest.param(name, argument, id=f"{name}-{argument}")
        for name, entry in TABLE.items()
        for argument in getattr(entry, kind)()
    ]


every_array = pytest.mark.parametrize("name, argument", of("arrays"))
every_label = pytest.mark.parametrize("name, argument", of("labels"))
every_function = pytest.mark.parametrize(
    "name", [n for n, entry in TABLE.items() if entry.arrays()]
)
with_model = [name for name, entry in TABLE.items() if "model" in entry.arguments()]


def parts(result: object) -> list:
    """Return all arrays and numbers in a result, by the order of its fields."""
    if isinstance(result, Tensor | np.ndarray | np.generic | bool | int | float):
        return [result]
    if isinstance(result, nn.Module):
        result = result.state_dict()
    if isinstance(result, Mapping):
        result = list(result.values())
    if is_dataclass(result):
        result = [getattr(result, f.name) for f in fields(result) if not f.name.startswith("_")]
    entries = result if isinstance(result, tuple | list) else ()
    return [part for entry in entries for part in parts(entry)]


def numbers(result: object) -> list[Tensor]:
    """Return all numbers in a result as float64."""
    tensors = (p if isinstance(p, Tensor) else torch.from_numpy(np.array(p)) for p in parts(result))
    return [tensor.detach().cpu().double() for tensor in tensors]


def same(found, expected, tolerance=0.0):
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys()
    found, expected = numbers(found), numbers(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def names(message, *arguments):
    return any(re.search(rf"(?<![\w.]){re.escape(a)}(?!\w)", message) for a in arguments)


def refused(name, argument, value, **more):
    """Assert that the function raises a ValueError whose message names the argument."""
    entry = TABLE[name]
    with pytest.raises(ValueError) as caught:
        entry.call(**entry.arguments() | more | {argument: value})
    message = str(caught.value)
    assert names(message, entry.told.get(argument, argument)), f"{argument} in {message!r}"
    assert type(caught.value) is ValueError


def outcome(name, **changed):
    """Return the result, or a mapping of the message of a ValueError that names an argument."""
    entry = TABLE[name]
    arguments = entry.arguments() | changed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            return entry.call(**arguments)
        except ValueError as error:
            known = [entry.told.get(argument, argument) for argument in arguments]
            assert names(str(error), *known, "update"), error  # the last of a stream
            assert type(error) is ValueError
            return {str(error): None}


def finite_or_refused(name, **changed):
    """Assert that the result is finite, or that the error names an argument."""
    undefined = "ablation" in name or "noise_curve" in name  # in a class without examples
    endless = "nearest_boundary" in name  # a boundary may be nowhere
    for part in numbers(outcome(name, **changed)):
        assert undefined or not part.isnan().any(), part
        assert endless or not part.isinf().any(), part


@every_array
def test_what_is_no_array_of_finite_numbers_is_refused(name, argument):
    value = TABLE[name].arrays()[argument]
    for bad, dtype in ((torch.nan, torch.float64), (torch.inf, torch.float16)):
        spoilt = value.to(dtype)
        spoilt.view(-1)[-1] = bad
        refused(name, argument, spoilt)
        refused(name, argument, spoilt.numpy())
    for wrong in ("a text", value[:0], torch.complex(value, value)):
        refused(name, argument, wrong)


@every_array
def test_other_shapes_and_degenerate_arrays_give_finite_numbers_or_are_refused(name, argument):
    value, draw = TABLE[name].arrays()[argument], torch.Generator().manual_seed(0)
    changes = [torch.full_like(value, 2.5), torch.zeros_like(value), value[:1].expand_as(value)]
    if "model" not in TABLE[name].arguments():  # a network has its own error for a wrong shape
        shapes = ((), (N,), (N, 3, 2), (99, 2))
        changes += [torch.randn(shape, generator=draw).double() for shape in shapes]
    for changed in changes:
        finite_or_refused(name, **{argument: changed})


@every_function
@pytest.mark.parametrize("count", [1, 2])
def test_few_examples_give_finite_numbers_or_are_refused(name, count):
    given = TABLE[name].arrays() | TABLE[name].labels()
    finite_or_refused(name, **{k: v[:count] for k, v in given.items() if len(v) == N})


@every_function
def test_other_dtypes_and_numpy_give_what_the_same_floats_give(name):
    entry = TABLE[name]
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.uint16, torch.bool):
        whole = not dtype.is_floating_point
        values = entry.arrays()
        if whole:  # integer targets are classes
            values = {k: (v * 40).abs().round() for k, v in values.items() if k != "targets"}
        typed = {k: v.to(dtype) for k, v in values.items()}
        if whole and entry.floating:
            refused(name, entry.floating, typed.pop(entry.floating), **typed)
            continue
        floats = torch.float64 if whole else torch.float32
        expected = outcome(name, **{k: v.to(floats) for k, v in typed.items()})
        same(outcome(name, **typed), expected)
        if dtype != torch.bfloat16:
            same(outcome(name, **{k: v.numpy() for k, v in typed.items()}), expected, 1e-12)


TENSORS = {"directions.projection.onto_directions", "directions.projection.onto_neurons"}
TENSORS |= {"directions.resets.recalibrate", "spectra.noise_spectrum"}
FLOAT64 = {"similarity.Accumulator", "memorisation.finite_sample_network"}
FLOAT64 |= {"memorisation.gaussian_kernel_interpolation", "memorisation.gradient_descent_path"}
FLOAT64 |= {"memorisation.minimum_norm_solution"}


@every_function
def test_float32_gives_about_what_float64_gives_and_results_are_as_what_was_given(name):
    entry = TABLE[name]
    floats = {k: v.float() for k, v in entry.arrays().items()}
    found = outcome(name, **floats)
    same(found, outcome(name, **{k: v.double() for k, v in floats.items()}), 1e-3)
    if "model" not in entry.arguments():  # which has a dtype of its own
        tensors = [part for part in parts(found) if isinstance(part, Tensor)]
        dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        assert dtypes <= {torch.float64 if name in FLOAT64 else torch.float32}
    assert not any(isinstance(part, np.ndarray | np.generic) for part in parts(found))
    arrays = {k: v.numpy() for k, v in (entry.arrays() | entry.labels()).items()}
    of_arrays = parts(outcome(name, **arrays))
    assert any(isinstance(part, Tensor) for part in of_arrays) == (name in TENSORS)


@every_function
def test_a_caller_s_autocast_changes_nothing(name):
    floats = {k: v.float() for k, v in TABLE[name].arrays().items()}
    arguments = TABLE[name].arguments() | floats
    if isinstance(model := arguments.get("model"), nn.Module):
        model.float()
    alone = numbers(TABLE[name].call(**arguments))
    with torch.autocast("cpu", torch.bfloat16):
        within = numbers(TABLE[name].call(**arguments))
    for a, b in zip(within, alone, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


PARTS = {"memory": 1, "batch_size": 2, "images_per_batch": 1}  # as small as can be
IN_PARTS = [name for name, entry in TABLE.items() if PARTS.keys() & entry.given.keys()]


@pytest.mark.parametrize("name", IN_PARTS)
def test_the_size_of_parts_does_not_matter(name):
    smallest = {k: v for k, v in PARTS.items() if k in TABLE[name].given}
    same(outcome(name, **smallest), outcome(name), 1e-9)


def frozen(array):
    array.flags.writeable = False
    return array


LAYOUTS = {
    "strided": lambda value: value.repeat_interleave(2, -1)[..., ::2],
    "with gradient": lambda value: value.clone().requires_grad_(),
    "read-only array": lambda value: frozen(value.numpy().copy()),
    "reversed array": lambda value: np.ascontiguousarray(value.numpy()[::-1])[::-1],
}


@every_function
def test_layouts_change_nothing_and_arguments_are_left_alone(name):
    arguments = TABLE[name].arguments()
    plain = TABLE[name].arrays()
    expected = TABLE[name].call(**arguments)
    drawn = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    for layout in LAYOUTS.values():
        changed = {argument: layout(value) for argument, value in plain.items()}
        same(TABLE[name].call(**arguments | changed), expected, 1e-9)
        for argument, value in changed.items():
            kept = value.detach().numpy() if isinstance(value, Tensor) else value
            assert np.array_equal(kept, plain[argument].numpy())
    assert torch.equal(torch.random.get_rng_state(), drawn[0])
    assert (np.random.get_state()[1] == drawn[1]).all()


@pytest.mark.parametrize("name, argument", of("scaled"))
def test_tiny_and_huge_scales(name, argument):
    entry = TABLE[name]
    for dtype, tolerance, exponents in (
        (torch.float32, 1e-3, (-12, 12)),
        (torch.float64, 1e-6, (-100, -12, 12, 100)),
    ):
        arguments = entry.arguments() | {k: v.to(dtype) for k, v in entry.arrays().items()}
        expected = numbers(entry.call(**arguments))
        for scale in (10.0**exponent for exponent in exponents):
            scaled = arguments | {argument: arguments[argument] * scale}
            growth = scale ** entry.degrees[argument]
            for a, b in zip(numbers(entry.call(**scaled)), expected, strict=True):
                finite = b[b.isfinite()].abs()  # a boundary may be nowhere
                largest = finite.max().item() if len(finite) else 0
                torch.testing.assert_close(a / growth, b, rtol=tolerance, atol=tolerance * largest)


@every_label
def test_wrong_labels_are_refused_and_any_integer_dtype_is_taken(name, argument):
    entry = TABLE[name]
    labels = entry.labels()[argument]
    for wrong in (labels.double(), labels[:-1], torch.eye(3).long()[labels], labels.tolist()):
        refused(name, argument, wrong)
    for value in (-1, 3, -(2**63), 2**63 - 1):
        wrong = torch.cat([labels[:-1], torch.tensor([value])])
        if {"model", "logits"} & set(entry.arguments()):
            refused(name, argument, wrong)
        else:  # any integers are classes
            finite_or_refused(name, **{argument: wrong})
    for dtype in (torch.uint8, torch.int16, torch.uint64):
        same(outcome(name, **{argument: labels.to(dtype)}), outcome(name))


def test_small_dtypes_hold_labels_of_many_classes():
    """Torch compares uint8 numbers with 300 as with 44."""
    g = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 100, 255], dtype=torch.uint8)
    logits, model, images = torch.randn(3, 300, generator=g), nn.Linear(2, 300), torch.ones(3, 2)
    for call in (
        lambda labels: sensitivity.cross_entropies(logits, labels),
        lambda labels: sensitivity.jacobian_row_norm(model, images, labels),
    ):
        same(call(labels), call(labels.long()))


@pytest.mark.parametrize("name, argument", of("wrong_values"))
def test_wrong_numbers_and_names_are_refused(name, argument):
    for wrong in TABLE[name].wrong_values()[argument]:
        refused(name, argument, wrong)


class Reading(nn.Module):
    """A network whose output another function changes."""

    def __init__(self, network, change):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x):
        return self.change(self.network(x))


OUTPUTS = {
    "text": lambda output: "a text",
    "none": lambda output: None,
    "tuple": lambda output: (output, output),
    "rows": lambda output: output[:1],
    "nan": lambda output: output * torch.nan,
    "flat": lambda output: output[:, 0],
}


@pytest.mark.parametrize("wrong", OUTPUTS)
@pytest.mark.parametrize("name", [name for name, entry in TABLE.items() if entry.outputs])
def test_wrong_outputs_of_a_model_are_refused(name, wrong):
    arguments = TABLE[name].arguments()
    model = Reading(arguments["model"], OUTPUTS[wrong])
    layers = arguments.get("layers", [])
    inner = [f"network.{layer}" for layer in layers if layer != "input"]
    refused(name, "model", model, **({"layers": inner} if layers else {}))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", with_model)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_models_are_left_as_they_were_whatever_the_mode_of_gradients(name, mode):
    arguments = TABLE[name].arguments()
    model = arguments["model"]
    model[1].eval()
    modes = [module.training for module in model.modules()]
    expected = TABLE[name].call(**arguments)
    with mode():
        found = TABLE[name].call(**arguments)
    same(found, expected, 1e-12)
    if not isinstance(found, nn.Module):
        assert not any(isinstance(part, Tensor) and part.requires_grad for part in parts(found))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(
        parameter.grad is None and parameter.requires_grad for parameter in model.parameters()
    )
    same(model, TABLE[name].arguments()["model"])


@pytest.mark.parametrize("name", [n for n in with_model if "weight_distance" not in n])
def test_what_is_no_model_or_holds_no_finite_weights_is_refused(name):
    for wrong in (None, torch.relu, nn.Linear):
        refused(name, "model", wrong)
    if ".resets." in name or name == "activations.record":  # which look at no output
        return
    for bad in (torch.nan, torch.inf):
        model = TABLE[name].arguments()["model"]
        with torch.no_grad():
            next(model.parameters())[0, 0] = bad
        refused(name, "model", model)


class WithoutFloat64(Tensor):
    """A tensor on a device like Apple's MPS, as far as there being no float64 goes."""

    def __deepcopy__(self, memo):
        return nn.Parameter(self.detach().clone())

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs)
        if func is Tensor.cpu:
            return result.as_subclass(Tensor)
        if isinstance(result, cls) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


@every_function
def test_where_there_is_no_float64_the_cpu_computes_or_it_is_said(name, monkeypatch):
    arguments = TABLE[name].arguments()
    changed = {k: v.float() for k, v in TABLE[name].arrays().items()}
    if "model" in arguments:
        changed["model"] = arguments["model"].float()
    expected = outcome(name, **changed)
    monkeypatch.setattr(_inputs, "lacks_float64", lambda device: True)
    _inputs._tell_of_the_cpu.cache_clear()
    changed |= {k: changed[k].as_subclass(WithoutFloat64) for k in TABLE[name].arrays()}
    for module in changed["model"].modules() if "model" in changed else ():
        for key, weight in module._parameters.items():
            module._parameters[key] = nn.Parameter(weight.detach().as_subclass(WithoutFloat64))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = TABLE[name].call(**arguments | changed)
        except ValueError as error:
            assert "model" in arguments
            assert str(error).startswith("model: expected a device with float64")
        else:
            same(found, expected)
    assert sum("has no float64" in str(w.message) for w in caught) <= 1
