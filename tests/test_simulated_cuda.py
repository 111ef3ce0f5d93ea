"""On a CUDA device that is not there: the tests marked `gpu`, and how often the host waits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import simulated_cuda
import torch

from benchmarks import gpu
from benchmarks._gpu_inputs import Case

HERE = Path(__file__).parent
there = pytest.mark.skipif(not simulated_cuda.ON, reason="holds on the simulated device only")


@pytest.mark.skipif(simulated_cuda.ON, reason="it is what runs this")
def test_all_that_is_marked_gpu_holds_on_a_simulated_device():
    if reason := simulated_cuda.missing():
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    marked = [str(path) for path in HERE.glob("test_*.py") if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "simulated_cuda", "-m", "gpu", *marked]
    command += ["-p", "no:xdist", "-p", "no:cacheprovider"]
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    surroundings = os.environ | {"SIMULATED_CUDA": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout, done.stdout[-2000:]


@there
@pytest.mark.gpu
@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: x.index_put_((torch.tensor([0, 1]),), torch.ones(2)),
        lambda x: torch.equal(x, torch.ones(3)),
        lambda x: torch.nn.Linear(3, 2)(x),
        lambda x: x.normal_(generator=torch.Generator()),
        lambda x: torch.randn(3, generator=torch.Generator(), device="cuda"),
    ],
)
def test_mixed_devices_and_generators_of_another_are_caught(wrong):
    with pytest.raises(RuntimeError, match=r"cuda.* cpu"):
        wrong(torch.ones(3).cuda())


@there
@pytest.mark.gpu
def test_a_result_left_on_the_cpu_is_caught():
    for change, held in ((lambda x: x, True), (torch.Tensor.cpu, False)):
        case = Case("one", "", lambda at, change=change: [change(at(torch.ones(3).double()))])
        row = gpu.correctness(case, torch.device("cuda"))
        assert row["held"] is held and ("another device" in row["found"]) is not held
    with pytest.raises(TypeError, match="cuda:0"):
        torch.ones(3).cuda().numpy()


@there
@pytest.mark.gpu
def test_what_goes_to_the_host_is_counted():
    x = torch.arange(6.0, device="cuda").view(2, 3)
    with simulated_cuda.counted() as found:
        _ = x + 1, x @ x.T, x[:, [0, 2]], x.clone().requires_grad_().sum().backward()
    assert (found.waits, found.bytes) == (0, 0)
    for call, waits, size in [
        (lambda: x[0, 0].item(), 1, 8),
        (lambda: bool((x > 0).any()), 1, 8),
        (lambda: x.tolist(), 1, 24),
        (lambda: torch.empty(2, 3).copy_(x), 1, 24),
        (lambda: x[x > 2], 1, 0),
        (lambda: x.nonzero(), 1, 0),
    ]:
        with simulated_cuda.counted() as found:
            call()
        assert (found.waits, found.bytes) == (waits, size)
