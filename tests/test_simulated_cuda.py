"""On a CUDA device that is not there: the tests marked `gpu`, and how often the host waits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import simulated_cuda
import torch

from benchmarks import _gpu_cases, gpu
from benchmarks._gpu_inputs import Case, Place, labels, pictures
from replication import (
    activations,
    data,
    directions,
    models,
    similarity,
    spectra,
    training,
)

HERE = Path(__file__).parent
there = pytest.mark.skipif(not simulated_cuda.ON, reason="holds on the simulated device only")


@pytest.mark.skipif(simulated_cuda.ON, reason="it is what runs this")
def test_all_that_is_marked_gpu_holds_on_a_simulated_device():
    if torch.version.cuda or torch.version.hip:
        pytest.skip("torch is built for devices of its own: where there is one, tests run on it")
    if not shutil.which("g++"):
        assert not os.environ.get("CI"), "no g++ to compile a device guard with"
        pytest.skip("no g++ to compile a device guard with")
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


@pytest.fixture
def tf32():
    """Let the caller allow TF32."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "tf32"
    yield
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value


@there
@pytest.mark.gpu
def test_images_are_changed_on_the_cpu_where_rounding_is_the_same_for_all():
    split = data.Split(*[data.Examples(pictures().cuda(), labels().cuda())] * 2, "", ("0",), "")
    with simulated_cuda.counted() as found:
        data.standardise(data.preprocess(split, crop=4, whiten=True))
    assert found.ran == {"_to_copy"}


# What leaves the products of a network to its caller, who trains or runs it.
CALLERS = {"training.fit", "training.fit_population", "training.evaluate"}
CALLERS |= {"papers.own_models.load", "directions.projection.projected"}


@there
@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning")  # of layers wider than their examples
def test_functions_wait_no_more_than_the_table_says_and_take_nothing_in_tf32(tf32):
    """The largest counts of a function's cases; what is above is to be brought down, not noted."""
    found, loose = {}, set()
    for case in _gpu_cases.cases():
        with simulated_cuda.counted() as now:
            case.run(Place(simulated_cuda.CUDA, torch.float32))
        before = found.get(case.function, (0, 0))
        found[case.function] = tuple(map(max, before, (now.waits, now.bytes)))
        loose |= {case.function} if now.loose else set()
    assert loose == CALLERS
    table = json.loads((HERE / "waits.json").read_text())
    assert found.keys() == table.keys()
    above = {k: v for k, v in found.items() if v[0] > table[k][0] or v[1] > table[k][1]}
    assert above == {}


@there
@pytest.mark.gpu
def test_what_is_worked_out_later_is_not_taken_in_tf32_either(tf32):
    x, y = torch.randn(2, 40, 6).cuda()
    y[:, 0] = y[:, 1]  # and so least squares in place of a triangular system
    with simulated_cuda.counted() as found:
        pair = similarity.cca(x, y)
        for name in ("x_directions", "y_directions", "x_variates", "y_variates"):
            getattr(pair, name)
    assert not found.loose


@there
@pytest.mark.gpu
@pytest.mark.parametrize(("copies", "neurons", "reduced"), [(40, 10, 1), (40, 33, 0), (20, 10, 0)])
def test_groups_of_few_neurons_are_made_small_enough_to_be_batched(copies, neurons, reduced):
    groups = torch.randn(3, copies, neurons, dtype=torch.float64)
    groups[..., 1], groups[..., 2] = 0, groups[..., 3]
    with simulated_cuda.counted() as counts:
        found = torch.stack(spectra.group_singular_values(groups.cuda()))
    assert ("linalg_qr" in counts.ran) == bool(reduced)
    expected = torch.stack(spectra.group_singular_values(groups))
    assert (found.cpu() - expected).abs().max() <= 1e-14 * expected.max()


def trained(how, size, **more):
    split = data.Split(*[data.Examples(pictures(40).float(), labels(40))] * 2, "", (*"01234",), "")
    options = {"model": "mlp", "model_options": {"inputs": 36, "widths": (8,), "classes": 5}}
    specs = [
        training.Spec(**options, seed=s, epochs=2, batch_size=size, evaluate_every=100, **more)
        for s in (0, 1)
    ]
    return how(specs if how is training.fit_population else specs[0], split, device="cuda")


def on_network(function, *arguments, width=8, **options):
    model = models.build("mlp", inputs=36, widths=(width,), classes=5, batch_norm=True).cuda()
    images, targets = pictures().cuda(), labels().cuda()
    if function is activations.record:
        return function(model, images, *arguments, **options)
    if function is training.evaluate:
        return function(model, data.Examples(images.float(), targets), **options)
    return function(model, images, targets, *arguments, **options)


ABLATION, UNITS = directions.cumulative_ablation, directions.unit_ablation
LOOPS = [  # function, its arguments, what is looped over, and two lengths of the loop
    (activations.record, (), "batch_size", (64, 8)),
    (training.evaluate, (), "batch_size", (64, 8)),
    (ABLATION, ("act1", 2, "mean"), "batch_size", (64, 8)),
    (ABLATION, ("act1", 2), "width", (4, 16)),
    (ABLATION, ("act1",), "orders", (2, 5)),
    (UNITS, ("act1",), "width", (4, 16)),
    (directions.noise_curve, ("act1", [0.5]), "batch_size", (64, 8)),
    (directions.noise_curve, ("act1", [0.5]), "draws", (1, 4)),
]


@there
@pytest.mark.gpu
@pytest.mark.parametrize(("function", "arguments", "loop", "lengths"), LOOPS)
def test_the_host_does_not_wait_in_a_loop(function, arguments, loop, lengths):
    counts = []
    for length in lengths:
        with simulated_cuda.counted() as found:
            on_network(function, *arguments, **{loop: length})
        counts.append(found.waits)
    assert counts[0] == counts[1]


@there
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", [training.fit, training.fit_population])
def test_training_waits_and_sends_random_draws_and_rates_once_an_epoch(how, precision):
    counts = []
    for size in (40, 8):  # of a minibatch
        with simulated_cuda.counted() as found:
            trained(how, size, precision=precision)
        counts.append([found.waits])
        with simulated_cuda.counted() as found:
            options = {"weight_decay": 1e-3}
            trained(how, size, augment={"flip": 0.5, "shift": 1}, optimizer_options=options)
        counts[-1].append(found.sent)
    assert counts[0] == counts[1] and counts[0][1] > 0
