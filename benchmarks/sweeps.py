"""What a sweep costs beyond its functions, and what local workers gain."""

import resource
import tempfile
import time
from pathlib import Path

import torch
from dask.system import CPU_COUNT

from benchmarks._timing import Row, cpu_seconds
from replication import data, sweeps, training

TASKS = 1000


def nothing(spec: dict) -> list[dict]:
    """Return three rows at once."""
    return [{"layer": layer, "value": spec["sigma"] * layer} for layer in range(3)]


def convnet(spec: dict) -> dict:
    """Return the last loss of notebook 01's narrow Inception on random images."""
    source = torch.Generator().manual_seed(0)
    parts = [
        data.Examples(
            torch.rand(number, 3, 32, 32, generator=source),
            torch.randint(10, (number,), generator=source),
        )
        for number in (500, 16)
    ]
    settings = training.Spec(
        model="small_inception",
        model_options={"width": 0.125},
        batch_size=50,
        evaluate_every=1000,
        **spec,
    )
    split = data.Split(*parts, "random", tuple("0123456789"), "random")
    run = training.fit(settings, split, progress=False)
    return {"loss": run.history.train_loss.iloc[-1]}


def taken(cluster: str | None, threads: int, specs: list[dict]) -> tuple[float, float, list[float]]:
    """Return seconds by the clock and of CPU that a sweep over convnets takes, and their losses."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    clock, cpu = time.perf_counter(), _cpu()
    try:
        with tempfile.TemporaryDirectory() as store:
            table = sweeps.run(convnet, specs, store=store, cluster=cluster, progress=False)
    finally:
        torch.set_num_threads(before)
    return time.perf_counter() - clock, _cpu() - cpu, table.loss.tolist()


def _cpu() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    whos = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, whos))


def rows() -> list[Row]:
    """Return the rows of this benchmark."""
    specs = [{"sigma": i / 8, "seed": i, "arm": "protocol", "copies": 64} for i in range(TASKS)]
    with tempfile.TemporaryDirectory() as folder:
        fresh = (Path(folder) / str(number) for number in range(100))
        full = Path(folder) / "full"
        sweeps.run(nothing, specs, store=full, progress=False)
        times = cpu_seconds(
            {
                "bare": lambda: [nothing(spec) for spec in specs],
                "computed": lambda: sweeps.run(nothing, specs, store=next(fresh), progress=False),
                "found": lambda: sweeps.run(nothing, specs, store=full, progress=False),
            },
            repeats=5,
        )
    overhead = (times["computed"] - times["bare"]) / TASKS
    table = [
        Row(
            f"sweep of {TASKS:,} tasks, overhead a task",
            "5 ms",
            0.005 / overhead,
            ">= 1",
            f"{1000 * overhead:.1f} ms",
        ),
        Row(
            f"sweep of {TASKS:,} finished tasks, all found again",
            "2 s",
            2 / times["found"],
            ">= 1",
            f"{times['found']:.2f} s",
        ),
    ]
    nets = [{"seed": seed, "epochs": 8} for seed in range(8)]
    local, local_cpu, losses = taken("local", 1, nets)
    for threads in sorted({1, CPU_COUNT}):
        serial, serial_cpu, exact = taken(None, threads, nets)
        error = max(abs(one - other) for one, other in zip(losses, exact, strict=True))
        table.append(
            Row(
                f"{len(nets)} Inceptions on {CPU_COUNT} local workers, by the clock, with start",
                f"one after another, {threads} thread{'s' * (threads > 1)}",
                serial / local,
                "> 1",
                f"{error:.0e}; noisy; CPU time x {local_cpu / serial_cpu:.2f}",
            )
        )
    return table
