"""Properties that hold for every public function of the numerics, whatever it is given.

Each function of `test_inputs_table.TABLE` gives the right answer (that of the same numbers in
another form, or that of an invariance) or a ValueError that names the argument.
"""

import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_inputs_table import TABLE, Reading, numbers
from torch import Tensor, nn

from replication import sensitivity


def rounds(count):
    """Return settings that do not depend on the machine or on what ran before."""
    slow = [HealthCheck.too_slow]  # a busy machine is no fault of the test
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=slow,
    )


few, fewest = rounds(4), rounds(2)
seeds = st.integers(0, 10**6)
sizes = st.tuples(st.integers(10, 16), st.integers(3, 4))


def cases(attribute):
    """Return (function, argument) for all entries of that attribute in the table."""
    return [
        pytest.param(name, argument, id=f"{name}-{argument}")
        for name, entry in TABLE.items()
        for argument in getattr(entry, attribute)
    ]


def refused(name, arguments, argument, what=""):
    """Assert that the function raises a ValueError whose message begins by naming the argument."""
    entry = TABLE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(ValueError) as caught:
            entry.call(**arguments)
    told = re.escape(entry.name_of(argument))
    message = str(caught.value)
    assert re.search(rf"(?<![\w.]){told}(?!\w)", message), f"{argument} in {message!r}"
    assert what in message
    assert type(caught.value) is ValueError


def same(found, expected, tolerance=0.0):
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys()
    found, expected = numbers(found), numbers(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(
            a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True
        )


def arrays_of(entry, arguments):
    return {name: arguments[name] for name in entry.arrays}


def spoilt(value, where, bad):
    flat = value.clone().flatten()
    flat[where % flat.numel()] = bad
    return flat.view_as(value)


@pytest.mark.parametrize("name, argument", cases("arrays"))
@few
@given(
    seeds,
    sizes,
    st.integers(0, 10**6),
    st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.booleans(),
)
def test_nan_and_infinity_are_refused(name, argument, seed, size, where, bad, dtype, as_array):
    entry = TABLE[name]
    arguments = entry.arguments(seed, *size)
    value = spoilt(arguments[argument].to(dtype), where, bad)
    if as_array and dtype != torch.bfloat16:
        value = value.numpy()
    refused(name, arguments | {argument: value}, argument)


NO_ARRAYS = {  # one of each kind: `test_files` has them all, of the check that is shared
    "empty": lambda value: value[:0],
    "complex": lambda value: torch.complex(value, value),
    "text": lambda value: "a text",
}


@pytest.mark.parametrize("form", NO_ARRAYS)
@pytest.mark.parametrize("name, argument", cases("arrays"))
def test_what_is_no_array_of_numbers_is_refused(name, argument, form):
    arguments = TABLE[name].arguments()
    refused(name, arguments | {argument: NO_ARRAYS[form](arguments[argument])}, argument)


# Images of a shape that a network does not take are its own error, and stay that.
without_model = [
    case for case in cases("arrays") if "model" not in TABLE[case.values[0]].arguments()
]


@pytest.mark.parametrize("name, argument", without_model)
@pytest.mark.parametrize("shape", [(), (14, 3, 2), (99, 2)], ids=str)
def test_other_shapes_give_finite_numbers_or_are_refused(name, argument, shape):
    value = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    finite_or_refused(name, TABLE[name].arguments() | {argument: value})


def finite_or_refused(name, arguments):
    """Assert that the result is finite, or that the error names an argument."""
    entry = TABLE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            found = numbers(entry.call(**arguments))
        except ValueError as error:
            known = [*map(entry.name_of, arguments), "update"]  # the last of a stream
            assert any(re.search(rf"(?<!\w){re.escape(k)}(?!\w)", str(error)) for k in known), error
            assert type(error) is ValueError
            return
    if name == "sensitivity.nearest_boundary":  # a boundary may be nowhere
        return
    # A class without examples has no accuracy of its own: documented as NaN.
    undefined = (name.startswith("directions.") and "ablation" in name) or "noise_curve" in name
    for part in found:
        part = part.double()
        assert not (part.isinf().any() or (part.isnan().any() and not undefined)), part


@pytest.mark.parametrize("kind", ["constant", "zero", "one example", "copies", "two examples"])
@pytest.mark.parametrize("name, argument", cases("arrays"))
def test_degenerate_arrays_give_finite_numbers_or_are_refused(name, argument, kind):
    entry = TABLE[name]
    arguments = entry.arguments()
    change = {
        "constant": lambda value: torch.full_like(value, 2.5),
        "zero": torch.zeros_like,
        "one example": lambda value: value[:1],
        "two examples": lambda value: value[:2],
        "copies": lambda value: value[:1].expand_as(value),
    }[kind]
    changed = {argument: change(arguments[argument])}
    if "example" in kind and argument not in entry.single:
        together = {*entry.arrays, *entry.labels} - set(entry.single)
        changed = {each: change(arguments[each]) for each in together}
    finite_or_refused(name, arguments | changed)


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]
INTEGERS += [torch.uint16, torch.uint32, torch.uint64]
DTYPES = [torch.bfloat16, torch.float32, torch.int64, torch.uint16, torch.bool]


def outcome(entry, arguments):
    """Return the result, or the message of the ValueError."""
    try:
        return entry.call(**arguments)
    except ValueError as error:
        return {str(error): None}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name, entry in TABLE.items() if entry.arrays])
def test_dtypes_give_what_the_same_numbers_in_floats_give(name, dtype):
    entry = TABLE[name]
    arguments = entry.arguments(3)
    floats = torch.float64 if dtype in INTEGERS else torch.float32
    given_, expected = {}, {}
    for argument, value in arrays_of(entry, arguments).items():
        if argument in entry.kept and dtype in INTEGERS:
            continue
        value = (value * 40).abs().round().clamp(max=120) if dtype in INTEGERS else value
        given_[argument] = value.to(dtype)
        expected[argument] = given_[argument].to(floats)
    if dtype in INTEGERS and entry.floating:
        refused(name, arguments | given_, entry.floating[0])
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = outcome(entry, arguments | expected)
        same(outcome(entry, arguments | given_), result)
        if dtype != torch.bfloat16:
            forms = {argument: value.numpy() for argument, value in given_.items()}
            same(outcome(entry, arguments | forms), result, 1e-12)


LAYOUTS = {
    "strided": lambda value: value.repeat_interleave(2, -1)[..., ::2],
    "with gradient": lambda value: value.clone().requires_grad_(),
    "read-only array": lambda value: frozen(value.numpy().copy()),
    "reversed array": lambda value: np.ascontiguousarray(value.numpy()[::-1])[::-1],
}


def held(value):
    return value.detach().numpy().copy() if isinstance(value, Tensor) else value.copy()


def frozen(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name for name, entry in TABLE.items() if entry.arrays])
@fewest
@given(seeds, sizes)
def test_layouts_change_nothing_and_arguments_are_left_alone(name, layout, seed, size):
    entry = TABLE[name]
    plain = entry.arguments(seed, *size)
    changed = {argument: LAYOUTS[layout](plain[argument]) for argument in entry.arrays}
    before = {argument: held(value) for argument, value in changed.items()}
    drawn = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*few examples", UserWarning)
        same(entry.call(**plain | changed), entry.call(**plain), 1e-9)
    for argument, value in changed.items():
        assert np.array_equal(held(value), before[argument])
    assert torch.equal(torch.random.get_rng_state(), drawn[0])
    assert (np.random.get_state()[1] == drawn[1]).all()


@pytest.mark.parametrize(
    "dtype, exponent", [(torch.float32, 12), (torch.float64, 12), (torch.float64, 100)]
)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name, argument", cases("degrees"))
@fewest
@given(seeds)
def test_tiny_and_huge_scales(name, argument, dtype, exponent, sign, seed):
    entry, scale = TABLE[name], 10.0 ** (sign * exponent)
    arguments = entry.arguments(seed)
    arguments |= {k: v.to(dtype) for k, v in arrays_of(entry, arguments).items()}
    scaled = arguments | {argument: arguments[argument] * scale}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*few examples", UserWarning)
        expected, found = numbers(entry.call(**arguments)), numbers(entry.call(**scaled))
    tolerance = 1e-3 if dtype == torch.float32 else 1e-6
    growth = scale ** entry.degrees[argument]
    for a, b in zip(found, expected, strict=True):
        finite = b[b.isfinite()].double().abs()  # a boundary may be nowhere
        largest = finite.max().item() if len(finite) else 0
        torch.testing.assert_close(
            a.double() / growth, b.double(), rtol=tolerance, atol=tolerance * largest
        )


WRONG_LABELS = {
    "floats": (lambda labels: labels.double(), ""),
    "too few": (lambda labels: labels[:-1], ""),
    "one-hot": (lambda labels: torch.eye(3, dtype=torch.int64)[labels], ""),
    "a list": (lambda labels: labels.tolist(), ""),
}


@pytest.mark.parametrize("wrong", WRONG_LABELS)
@pytest.mark.parametrize("name, argument", cases("labels"))
def test_wrong_labels_are_refused(name, argument, wrong):
    arguments = TABLE[name].arguments()
    change, what = WRONG_LABELS[wrong]
    refused(name, arguments | {argument: change(arguments[argument])}, argument, what)


@pytest.mark.parametrize("name, argument", cases("labels"))
@few
@given(seeds, st.integers(0, 10**6), st.sampled_from([-1, -100, 3, 2**40, -(2**63), 2**63 - 1]))
def test_labels_out_of_range_are_refused(name, argument, seed, where, wrong):
    entry = TABLE[name]
    arguments = entry.arguments(seed)
    arguments[argument] = spoilt(arguments[argument], where, wrong)
    if entry.classes is not None and not 0 <= wrong < entry.classes:
        refused(name, arguments, argument)
    else:  # any integers are classes
        finite_or_refused(name, arguments)


@pytest.mark.parametrize("name, argument", cases("labels"))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint64], ids=str)
def test_labels_of_any_integer_dtype(name, argument, dtype):
    entry = TABLE[name]
    arguments = entry.arguments()
    labels = arguments[argument].to(dtype)
    plain = labels.to(torch.int64)
    same(entry.call(**arguments | {argument: labels}), entry.call(**arguments | {argument: plain}))


def test_small_dtypes_hold_labels_of_many_classes():
    """Torch compares uint8 numbers with 300 as with 44."""
    g = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 100, 255], dtype=torch.uint8)
    logits = torch.randn(3, 300, generator=g)
    same(
        sensitivity.cross_entropies(logits, labels),
        sensitivity.cross_entropies(logits, labels.long()),
    )
    model, images = nn.Linear(2, 300), torch.randn(3, 2, generator=g)
    same(
        sensitivity.jacobian_row_norm(model, images, labels),
        sensitivity.jacobian_row_norm(model, images, labels.long()),
    )


NO_INTEGERS = ["3", 1.5, float("nan"), True, 2**70, [1], 1j]


@pytest.mark.parametrize("name, argument", cases("integers"))
def test_what_is_no_such_integer_is_refused(name, argument):
    entry = TABLE[name]
    least = entry.integers[argument]
    for wrong in NO_INTEGERS if least is None else [*NO_INTEGERS, least - 1]:
        refused(name, entry.arguments() | {argument: wrong}, argument)


@pytest.mark.parametrize("name, argument", cases("numbers"))
def test_what_is_no_such_number_is_refused(name, argument):
    entry = TABLE[name]
    for wrong in entry.numbers[argument]:
        refused(name, entry.arguments() | {argument: wrong}, argument)


@pytest.mark.parametrize("name, argument", cases("choices"))
def test_what_is_no_such_name_is_refused(name, argument):
    entry = TABLE[name]
    for wrong in ["nothing of the kind", "", 3, float("nan"), ["a"], b"zero"]:
        given_ = [wrong] if argument == "layers" and isinstance(wrong, str) else wrong
        refused(name, entry.arguments() | {argument: given_}, argument)


OUTPUTS = {
    "text": lambda output: "a text",
    "none": lambda output: None,
    "tuple": lambda output: (output, output),
    "rows": lambda output: output[:1],
    "nan": lambda output: output * torch.nan,
    "flat": lambda output: output[:, 0],
}
NUMERICS = ("sensitivity", "directions", "spectra")
with_model = [name for name, entry in TABLE.items() if "model" in entry.arguments()]


@pytest.mark.parametrize("name, wrong", cases("outputs"))
def test_wrong_outputs_of_a_model_are_refused(name, wrong):
    arguments = TABLE[name].arguments()
    model = Reading(arguments["model"], OUTPUTS[wrong])
    if "layers" in arguments:
        layers = arguments["layers"]
        named = [layers] if isinstance(layers, str) else layers
        arguments["layers"] = [f"network.{layer}" for layer in named if layer != "input"]
    refused(name, arguments | {"model": model}, "model")
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("wrong", [None, torch.relu, nn.Linear], ids=["none", "function", "class"])
@pytest.mark.parametrize(
    "name", [n for n in with_model if n != "directions.resets.weight_distance"]
)
def test_what_is_no_model_is_refused(name, wrong):
    refused(name, TABLE[name].arguments() | {"model": wrong}, "model")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", [n for n in with_model if n.split(".")[0] in NUMERICS and ".resets." not in n]
)
def test_weights_that_are_not_finite_are_told(name, bad):
    arguments = TABLE[name].arguments()
    with torch.no_grad():
        next(arguments["model"].parameters())[0, 0] = bad
    refused(name, arguments, "model")
