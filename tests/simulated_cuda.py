"""One CUDA device where there is none: tensors that say cuda:0, held and computed on the CPU.

``SIMULATED_CUDA=1 pytest -p simulated_cuda -m gpu`` runs tests on it, in a process of their own:
torch is patched for good. An operator on tensors of two devices, or with a generator of another
one, raises as CUDA does. Nothing is shown of TF32, algorithms, speed, memory, or of waits within
decompositions.
"""

import contextlib
import ctypes
import functools
import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

# What autograd asks of a device: streams and events, of which there is nothing to say.
GUARD = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;
struct One final : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
  Device exchangeDevice(Device) const override { return getDevice(); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  Stream getStream(Device d) const noexcept override { return Stream(Stream::DEFAULT, d); }
  Stream exchangeStream(Stream s) const noexcept override { return s; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, One); }
struct Hooks final : at::CUDAHooksInterface {
  Hooks(at::CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
};
namespace at { C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks); }
"""


def load_guard():
    """Compile the guard and load it; torch looks for one once, when it is imported."""
    home = Path(importlib.util.find_spec("torch").origin).parent
    libraries = [home / "lib" / f"lib{name}.so" for name in ("c10", "torch_cpu")]
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder) / "guard.cpp", Path(folder) / "guard.so"
        source.write_text(GUARD)
        command = ["g++", "-shared", "-fPIC", "-std=c++20", f"-I{home / 'include'}", source]
        subprocess.run([*command, *libraries, "-o", built], check=True)
        for library in (*libraries, built):
            ctypes.CDLL(str(library), mode=os.RTLD_GLOBAL)


if ON := "SIMULATED_CUDA" in os.environ:
    load_guard()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

aten, CUDA = torch.ops.aten, torch.device("cuda", 0)
COPIES = (aten._to_copy, aten.copy_)
INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
# The host has to know the result, or its size.
WAITING = (aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten.bincount)
WAITING += (aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave)
MATRIX = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.mv, aten.addmv, aten.dot)
CONVOLVED = (aten.convolution, aten.convolution_backward)
_count = SimpleNamespace()


@contextlib.contextmanager
def counted():
    """Give how often the host waits within the block, `waits`, and the `bytes` that it gets.

    And how many tensors it has `sent`, the operators that the device runs, `ran`, and those in
    float32 that may do so in TF32, `loose`.
    """
    vars(_count).update(waits=0, bytes=0, sent=0, ran=set(), loose=set())
    yield _count


class Simulated(Tensor):
    """A tensor on cuda:0, whose numbers are those of `held` on the CPU."""

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, device=CUDA, **layout
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def __getitem__(self, where):
        return super().__getitem__(indices(where))

    def __setitem__(self, where, value):
        super().__setitem__(indices(where), value)

    def __deepcopy__(self, memo):
        new = Simulated(self.held.clone()).requires_grad_(self.requires_grad)
        new._is_param = getattr(self, "_is_param", False)
        return memo.setdefault(id(self), new)

    def tolist(self):
        return self.detach().cpu().tolist()

    def numpy(self, *_, **__):
        raise TypeError("cuda:0 tensors have no NumPy array; copy to the host first")

    __array__ = numpy
    untyped_storage = property(lambda self: self.held.untyped_storage)
    data_ptr = property(lambda self: self.held.data_ptr)


class Mode(TorchDispatchMode):
    """Sees also what is made on the device, or copied to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    """Run an operator on what is held, and wrap what belongs on the device."""
    operator, given = func.overloadpacket, [*flat(args), *flat(kwargs.values())]
    name = operator.__name__
    there = [isinstance(each, Simulated) for each in given]
    device, generator = kwargs.get("device"), kwargs.get("generator")
    if device is None and not any(there):
        return func(*args, **kwargs)
    target = "cuda" if device is None else torch.device(device).type
    if any(there) and operator not in COPIES:
        checked = [args[0], *flat(args[2:3])] if operator in INDEXED else given
        if wrong := [t for t in checked if t.dim() and not isinstance(t, Simulated)]:
            shape = tuple(wrong[0].shape)
            raise RuntimeError(f"{func}: tensors on cuda:0 and cpu, the latter of shape {shape}")
    if generator is not None and generator.device.type != target:
        raise RuntimeError(f"{func}: for {target} a generator on {generator.device}")
    if any(there) and vars(_count):
        _count.ran.add(name)
        masks = operator in INDEXED and any(t.dtype == torch.bool for t in flat(args[1]))
        home = operator is aten._to_copy and target == "cpu"
        home |= operator is aten.copy_ and not there[0]
        _count.waits += home or masks or operator in WAITING
        _count.bytes += given[-1].nbytes if home else 8 * (operator is aten._local_scalar_dense)
        of = torch.backends.cudnn.conv if operator in CONVOLVED else torch.backends.cuda.matmul
        product = operator in (*MATRIX, *CONVOLVED)
        if product and given[0].dtype == torch.float32 and of.fp32_precision != "ieee":
            _count.loose.add(name)
    elif vars(_count):
        _count.sent += operator is aten._to_copy
    found = func(*held(args), **held({k: v for k, v in kwargs.items() if k != "device"}))
    known = {id(held(each)): each for each in given}  # what was written to stays what it is

    def wrapped(value):
        if isinstance(value, tuple | list):
            return type(value)(map(wrapped, value))
        new = target == "cuda" and isinstance(value, Tensor)
        return known[id(value)] if id(value) in known else Simulated(value) if new else value

    return wrapped(found)


def flat(values):
    """Return the tensors among an operator's arguments."""
    parts = [v if isinstance(v, tuple | list) else (v,) for v in values]
    return [value for part in parts for value in part if isinstance(value, Tensor)]


def held(value):
    """Return an operator's arguments with what is held in place of tensors on the device."""
    if isinstance(value, dict):
        return {key: held(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [held(each) for each in value]
    return value.held if isinstance(value, Simulated) else value


def indices(where):
    """Return an index with its lists as tensors, which torch would make out of the mode's sight."""
    if isinstance(where, list):
        return torch.tensor(where, dtype=None if where else torch.int64)
    return tuple(map(indices, where)) if isinstance(where, tuple) else where


def pytest_configure(config):
    """Make torch believe in the device, from now on."""
    answers = {"is_available": True, "device_count": 2, "current_device": 0}
    answers |= {"get_device_capability": (7, 0), "get_rng_state": torch.empty(0)}
    answers |= {"is_bf16_supported": True}
    answers |= dict.fromkeys(("_lazy_init", "synchronize", "manual_seed", "set_rng_state"))
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.device = lambda _: contextlib.nullcontext()
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else contextlib.nullcontext()
    copied = {name: getattr(torch, name) for name in ("tensor", "as_tensor")}

    def made(name, data, device=None, **options):  # torch copies data out of the mode's sight
        if isinstance(data, Tensor) and name == "as_tensor":
            return data.to(device=device, **options)
        return copied[name](data, **options).to(device or "cpu")

    torch.tensor, torch.as_tensor = (functools.partial(made, name) for name in copied)
    Tensor.new_tensor = lambda x, data, **o: torch.tensor(
        data, **{"dtype": x.dtype, "device": x.device} | o
    )
    Tensor.cuda = torch.nn.Module.cuda = lambda self: self.to(CUDA)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    Mode().__enter__()
