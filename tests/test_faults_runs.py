"""Two runs at once, a wrong clock, too little memory, a scheduler that dies."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from _fault_commands import toy
from _tiny_runs import interrupt
from test_cli import make, output_of, printed
from test_faults import contents
from test_sweeps import SPECS, Counted, equal, expected, measure, run

import replication
from replication import __main__, sweeps, training

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}


def at_once(commands, **settings):
    """Start all commands, wait for them, and return what they printed; none may fail."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([sys.executable, *command], env=ENVIRONMENT | settings, **pipes)
        for command in commands
    ]
    try:
        done = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:  # one may wait for another that failed
            process.kill()
    for process, (out, err) in zip(running, done, strict=True):
        assert process.returncode == 0, (out, err)
    return [out for out, _ in done]


# --- two at once -------------------------------------------------------------------------------

WORK = """
import sys, time
from pathlib import Path
from _fault_commands import fit, population, sweep
root, name, others = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
(root / f"ready-{name}").touch()
while len(list(root.glob("ready-*"))) <= others:  # so that importing does not separate them
    time.sleep(0.01)
for work in (fit, sweep, population):
    work()
"""


@pytest.mark.slow
def test_two_runs_in_one_store_end_with_the_same_files(tmp_path):
    for name, count in (("alone", 1), ("both", 2)):
        root = tmp_path / name
        root.mkdir()
        commands = [["-c", WORK, str(root), str(i), str(count - 1)] for i in range(count)]
        at_once(commands, REPLICATION_ROOT=str(root))
        for ready in root.glob("ready-*"):
            ready.unlink()
    found = contents(tmp_path / "both")
    assert len(found) > 50 and found == contents(tmp_path / "alone")


MEET = """
import os, time
from pathlib import Path
Path(f"ready-{os.getpid()}").touch()
end = time.monotonic() + 200
while len(list(Path().glob("ready-*"))) < 2 and time.monotonic() < end:
    time.sleep(0.01)
"""


@pytest.mark.slow
def test_two_runs_of_one_notebook(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    make(tmp_path, "01_one", MEET, "print('met')")
    command = ["-m", "replication", "figures", "--profile", "smoke"]
    outs = at_once([command] * 2, REPLICATION_ROOT=str(tmp_path))
    assert all(out.startswith("01_one: done in ") for out in outs)
    folder = tmp_path / "figures" / "smoke" / "01_one"
    assert sorted(file.name for file in folder.iterdir()) == ["01_one.ipynb", "run.json"]
    assert printed(output_of(tmp_path, "01_one")) == "met\n"
    assert __main__.main(command[2:]) == 0
    assert "up to date" in capfd.readouterr().out


# --- the clock ---------------------------------------------------------------------------------


def test_a_wrong_clock_changes_nothing(tmp_path, monkeypatch):
    """A run broken off in the future goes on in the past."""
    measure.calls.clear()
    spec = training.Spec(model="mlp", model_options={"inputs": 64, "widths": (8,)}, epochs=3)
    fits = {"store": tmp_path / "undisturbed", "progress": False}
    training.fit(spec, toy(), **fits)
    equal(run(measure, store=fits["store"]), expected())

    fits["store"] = store = tmp_path / "broken off"
    interrupt(monkeypatch, spec, toy(), store, step=7)
    run(measure, SPECS[:2], store=store)
    future = time.time() + 10**9
    for path in (*store.rglob("*"), store):
        os.utime(path, (future, future))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    training.fit(spec, toy(), **fits)
    equal(run(measure, store=store), expected())
    assert measure.calls == [*SPECS, *SPECS]
    assert contents(tmp_path / "undisturbed") == contents(store)


def test_only_what_is_abandoned_is_told_by_the_time_of_day():
    clock = re.compile(r"st_mtime|getmtime|time\.time\(|datetime")
    package = Path(replication.__file__).parent
    users = {p.name for p in package.rglob("*.py") if clock.search(p.read_text(encoding="utf-8"))}
    assert users == {"files.py", "_download.py"}


# --- memory and schedulers -----------------------------------------------------------------------


@pytest.mark.parametrize("batch", [None, 3])
def test_a_member_without_memory_does_not_sink_the_others(batch, tmp_path):
    broken = [True]

    @Counted
    def fn(specs):
        for spec in specs if batch else [specs]:
            if broken and spec == SPECS[1]:
                raise MemoryError
        return [{"value": spec["sigma"]} for spec in specs] if batch else {"value": specs["sigma"]}

    with pytest.raises(sweeps.SweepError, match=r"^1 of 4 specs failed(.|\n)*MemoryError"):
        run(fn, store=tmp_path, batch=batch)
    broken.clear()
    fn.calls.clear()
    table = run(fn, store=tmp_path, batch=batch)
    assert table.value.tolist() == [spec["sigma"] for spec in SPECS]
    assert fn.calls == [[SPECS[1]] if batch else SPECS[1]]


SCHEDULER = """
import asyncio
from distributed import Scheduler, Worker

async def main():
    here = {"host": "127.0.0.1", "dashboard": False}
    async with Scheduler(port=0, **here) as scheduler:
        async with Worker(scheduler.address, nthreads=1, **here):
            print(scheduler.address, flush=True)
            await scheduler.finished()

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_scheduler_that_is_killed_is_told_and_the_next_run_goes_on(tmp_path):
    pytest.importorskip("distributed")

    def fn(spec):
        time.sleep(0.1)
        return {"value": spec["seed"] / 3}

    def stored():
        return len(list(tmp_path.rglob("[!.]*.parquet")))

    def kill():
        end = time.monotonic() + 200
        while stored() < 3 and scheduler.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        scheduler.kill()

    specs = [{"seed": seed} for seed in range(40)]
    scheduler = subprocess.Popen(
        [sys.executable, "-c", SCHEDULER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    )
    with scheduler:
        address = scheduler.stdout.readline().strip()
        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(ConnectionError, match=r"the scheduler is gone; .* so run again"):
            run(fn, specs, store=tmp_path, cluster=address)
        killer.join()
    assert 3 <= stored() < 40
    table = run(fn, specs, store=tmp_path)
    assert table.value.tolist() == [seed / 3 for seed in range(40)]
