"""The checks of what comes in that all functions share, devices and seeds.

That each public function makes them is in `test_public_functions.py`.
"""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from replication._core.inputs import (
    as_choice,
    as_images,
    as_integer,
    as_labels,
    as_list,
    as_model,
    as_names,
    as_number,
    as_tensor,
    choose_device,
    derive_seed,
    generator,
    like,
    nearest,
    require_classes,
)


def test_tensors_and_writeable_arrays_are_not_copied():
    tensor, array = torch.ones(2, 3), np.ones((2, 3))
    assert as_tensor(tensor, "x") is tensor
    as_tensor(array, "x")[0, 0] = 7
    assert array[0, 0] == 7


@pytest.mark.parametrize(
    "array",
    [
        np.broadcast_to(np.arange(3.0), (2, 3)),
        np.arange(6.0).reshape(2, 3)[::-1, ::-1],
        np.arange(12.0).reshape(2, 6)[:, ::2],
        np.arange(6.0).reshape(3, 2).T,
        np.array(3.0),
    ],
)
def test_arrays_of_any_layout(array):
    assert np.array_equal(as_tensor(array, "x").numpy(), array)
    array.flags.writeable = False
    assert np.array_equal(as_tensor(array, "x").numpy(), array)
    as_tensor(array, "x").zero_()
    assert array.max() > 0


PROMOTED = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
PROMOTED |= dict.fromkeys((torch.uint16, torch.uint32, torch.uint64), torch.int64)
KEPT = (torch.float32, torch.float64, torch.int8, torch.int64, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", [*PROMOTED, *KEPT], ids=str)
def test_half_types_and_wide_unsigned_ones_are_promoted(dtype):
    value = torch.tensor([0, 1, 1]).to(dtype)
    for given in (value, value.numpy()) if dtype != torch.bfloat16 else (value,):
        tensor = as_tensor(given, "x")
        assert tensor.dtype == PROMOTED.get(dtype, dtype) and tensor.tolist() == [0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_are_found_and_huge_numbers_are_finite(dtype, bad):
    value = torch.zeros(3, 5, dtype=dtype)
    value[1, 2] = bad
    with pytest.raises(ValueError, match="x: expected finite numbers, found NaN or infinity"):
        as_tensor(value, "x")
    value[2, 2] = -bad  # both signs of infinity
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        as_tensor(value, "x")
    huge = torch.full((100,), torch.finfo(dtype).max, dtype=dtype)  # whose sum overflows
    assert as_tensor(huge, "x").dtype == PROMOTED.get(dtype, dtype)
    as_tensor(torch.cat([huge, -huge]), "x")
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        as_tensor(torch.cat([huge, huge.new_tensor([bad])]), "x")


NO_TENSORS = [
    ([1.0, 2.0], "expected a torch tensor or NumPy array, found list"),
    (None, "expected a torch tensor or NumPy array, found NoneType"),
    (torch.empty(0, 3), r"expected at least one entry, found shape \(0, 3\)"),
    (np.empty((2, 0)), r"expected at least one entry, found shape \(2, 0\)"),
    (torch.ones(2, dtype=torch.complex64), "expected real numbers, found torch.complex64"),
    (np.ones(2) + 1j, "expected real numbers, found torch.complex128"),
    (np.ma.masked_greater(np.ones(2), 0), "expected a plain array, found a masked one"),
    (torch.eye(2).to_sparse(), "expected a dense tensor .* found a torch.sparse_coo one"),
    (torch.ones(2, device="meta"), "expected a dense tensor .* found a meta one"),
    (np.array([1, 2**64 - 1], np.uint64), r"expected integers below 2\*\*63, found larger ones"),
    (np.array(["a"]), ".*numpy.str_"),
    (np.ones(2, ">f4" if sys.byteorder == "little" else "<f4"), ".*byte order"),
]


@pytest.mark.parametrize(("value", "message"), NO_TENSORS)
def test_what_is_no_tensor(value, message):
    with pytest.raises(ValueError, match=f"^x: {message}"):
        as_tensor(value, "x")


NO_INTEGERS = (2, -5, 3.0, 3.5, np.nan, "3", None, True, np.True_, [3], 1j, np.float64(3), 2**63)
NO_NUMBERS = (-1.0, np.nan, np.inf, -np.inf, "1", None, True, np.True_, [1.0], 1j)
NO_LABELS = (torch.ones(3), torch.ones(2).long(), torch.ones(3, 1).long())
KNOWN = ["zero", "mean"]
REFUSED = [
    (lambda v: as_integer(v, "x", 3), "x: expected an integer >= 3, found", NO_INTEGERS),
    (lambda v: as_number(v, "x"), "x: expected a finite number >= 0, found", NO_NUMBERS),
    (lambda v: as_number(v, "x", True), "x: expected a finite number > 0, found", (0, -1.0)),
    (lambda v: as_list(v, "x"), "x: expected a sequence, found", ("text", b"text", 3, None)),
    (lambda v: as_names(v, "x"), "x: expected (names|a sequence), found", ("a", [3], ["a", None])),
    (lambda v: as_labels(v, 3, "x"), r"x: expected integers of shape \(3,\), found", NO_LABELS),
    (lambda v: as_choice(v, "x", KNOWN), "x: found .*; did you mean 'zero'", ("zer", ["zero"])),
    (lambda v: as_choice(v, "x", KNOWN), "x: found .*; expected one of: zero, mean", ("", 3)),
    (lambda v: require_classes(torch.tensor([0, v]), 3), "labels: expected 0 to 2, found", (3, -1)),
    (as_model, r"model: expected a torch\.nn\.Module, found", (None, torch.relu, nn.Linear)),
    (as_images, r"images: expected \(N, C, H, W\), found the shape", (torch.ones(2, 3),)),
    (as_images, "images: expected floating point", (torch.ones(1, 1, 2, 2).int(),)),
]


@pytest.mark.parametrize(("check", "message", "values"), REFUSED)
def test_wrong_values_are_refused(check, message, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{message}"):
            check(value)


def test_right_values_come_back():
    for value in (3, np.int64(3), np.uint8(3), torch.tensor(3)):
        assert as_integer(value, "n", 3) == 3 and type(as_integer(value, "n", 3)) is int
    assert as_integer(2**63 - 1, "n", 0) == 2**63 - 1 and as_integer(-4, "n", -4) == -4
    for value in (0, 2, 0.5, np.float32(0.5), np.int64(2)):
        assert as_number(value, "n") == value and type(as_number(value, "n")) is float
    assert as_list(torch.tensor([1, 2]), "n") == as_list(np.array([1, 2]), "n") == [1, 2]
    assert as_names(("a", "b"), "n") == ["a", "b"] and as_choice("mean", "n", KNOWN) == "mean"
    assert as_labels(np.array([0, 2]), 2).tolist() == [0, 2]
    require_classes(torch.tensor([0, 2]), 3)
    images = torch.ones(1, 1, 2, 2, requires_grad=True)
    assert not as_images(images).requires_grad
    assert isinstance(like(np.ones(1))(images), np.ndarray) and like(images)(images) is images


def test_nearest():
    known = ["conv1", "conv2", "fc1"]
    assert nearest("conv3", known) == "did you mean 'conv2' or 'conv1'?"
    assert nearest("zzz", iter(known)) == "expected one of: conv1, conv2, fc1"
    many = [f"layer{i}" for i in range(21)]
    assert nearest("zzz", many).endswith("layer18, layer19, ...")
    assert nearest("zzz", many[:20]).endswith("layer18, layer19")


def test_choose_device():
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    there = torch.cuda.is_available()
    assert choose_device("auto").type == ("cuda" if there else "cpu")
    for name in ["gpu", "cuda:99", ""] + ["cuda"] * (not there):
        with pytest.raises(ValueError, match=f"device: '{name}' cannot be used here") as caught:
            choose_device(name)
        assert "\n" not in str(caught.value)


def test_streams_are_reproducible_and_independent():
    uses = [(0, "init", 0), (1, "init", 0), (0, "order", 0), (0, "init", 1), (2**40, "init", 0)]
    before = torch.get_rng_state()
    draws = [torch.randn(10_000, generator=generator(*use)) for use in uses]
    for use, draw in zip(uses, draws, strict=True):
        assert torch.equal(draw, torch.randn(10_000, generator=generator(*use)))
    assert torch.equal(torch.get_rng_state(), before)  # the global one is left alone
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(len(uses))
    assert correlations.abs().max() < 0.05  # 5 standard errors
    assert len({derive_seed(seed, "s", i) for seed in range(40) for i in range(40)}) == 1600
    assert derive_seed(1, "a/1", 0) != derive_seed(1, "a", 1)


def test_seeds_stay_what_they_were():
    """A change here would change every network and every perturbation."""
    assert derive_seed(0, "init") == 4213802666853728012
    assert derive_seed(7, "perturbation/False", 3) == 1355148237123164922
    assert all(0 <= derive_seed(seed, "x") < 2**63 for seed in range(99))
