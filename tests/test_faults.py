"""What killed processes leave, full disks, two runs at once, a wrong clock, a dying scheduler."""

import os
import re
import resource
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from _tiny_runs import interrupt, random_split
from faults import rows_or_bytes
from test_cli import make, output_of, printed
from test_scorecard import item, put
from test_sweeps import SPECS, equal, expected, measure, run

from replication import __main__, claims, plotting, sweeps, training
from replication._core.files import atomic, is_abandoned, mark, write_json
from replication.claims import scorecard

HERE = Path(__file__).parent
TOY = random_split(320, 80)
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills, mounts and limits of POSIX")

# --- killed ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_killed_at_random_moments_goes_on():
    """`python -m tests.faults` does it more often, and with clusters and notebooks."""
    some = ["sweep", "fit", "population", "download", "scorecard"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--kills", "6", "--seed", "3", "--only", *some],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=HERE.parent,
    )
    print(done.stdout, done.stderr)  # shown when the test fails
    assert done.returncode == 0
    assert "6 kills: every next run gave the undisturbed results" in done.stdout


def dead() -> int:
    """Return the id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def of(process, place=None):
    ours, _, end = mark().split("-")
    return f"{place or ours}-{process}-{end}"


def test_what_the_dead_left_is_removed_and_what_the_living_write_is_not(tmp_path):
    gone, parent, elsewhere = of(dead()), of(os.getppid()), of(dead(), "0" * 8)
    abandoned = tmp_path / f".a.{gone}.json"
    kept = [
        *(f".a.{parent}.json", f".b.{elsewhere}.json", f"a.{gone}.json", ".gitignore"),
        *(f".{gone}.json", f".a.{gone}.old.json", f".c.{of(10**12)}.json", f".d.{mark()}"),
    ]
    for name in (*kept, abandoned.name):
        (tmp_path / name).write_text("half of it")
    (tmp_path / f".folder.{gone}").mkdir()  # of a download: has its own way
    write_json(tmp_path / "b.json", "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["b.json", f".folder.{gone}", *(name for name in kept if name != f".{gone}.json")]
    )


def test_elsewhere_a_day_without_a_change_is_death(tmp_path):
    path = tmp_path / f".a.{of(os.getpid(), '0' * 8)}.json"
    assert not is_abandoned(path)  # gone meanwhile
    path.write_text("half")
    for age, dead_by_then in ((0, False), (86_000, False), (87_000, True), (-(10**8), False)):
        os.utime(path, (time.time() - age,) * 2)
        assert is_abandoned(path) == dead_by_then


def test_a_run_killed_just_before_its_end_leaves_nothing_to_go_on_with(tmp_path):
    spec = training.Spec(model="mlp", model_options={"inputs": 64, "widths": (4,)}, epochs=1)
    run = training.fit(spec, TOY, store=tmp_path, progress=False)
    left = tmp_path / run.key / "resume.safetensors"
    left.write_bytes(b"written before run.json was")
    assert training.fit(spec, TOY, store=tmp_path, progress=False).history.equals(run.history)
    assert not left.exists()


# --- a full disk -------------------------------------------------------------------------------

ROOM = 16_384  # bytes that are left, or that a file may have


@contextmanager
def limited(_):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def filled(folder):
    filler = folder.parent / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            file.truncate(file.tell() - ROOM)
    try:
        yield
    finally:
        filler.unlink()


@pytest.fixture(params=["full", "limited"])
def disk(request, tmp_path):
    """Return a folder, and a context in which what is written there fails in the middle."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    if request.param == "limited":
        yield mounted, limited
        return
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mounted)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"may not mount a file system here ({error})")
    (mounted / "on it").mkdir()
    try:
        yield mounted / "on it", filled
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def sample(spec):
    return pd.DataFrame({"value": np.random.default_rng(spec["seed"]).normal(size=5000)})


def wide(seed):
    options = {"inputs": 64, "widths": (256,)}
    return training.Spec(model="mlp", model_options=options, epochs=1, seed=seed)


def draw(folder):
    fig, ax = plt.subplots()
    values = np.random.default_rng(0).random((50, 50))
    ax.imshow(values)
    plotting.save(fig, "noise", folder, {"value": values.ravel()}, "smoke, noise")


WRITERS = {
    "sweep": lambda f: sweeps.run(sample, [{"seed": 0}], store=f, progress=False),
    "fit": lambda f: training.fit(wide(0), TOY, store=f, progress=False),
    "population": lambda f: training.fit_population(
        [wide(0), wide(1)], TOY, store=f, progress=False
    ),
    "claims": lambda f: claims.save([item("B1", statement="it rises " * 3000)], f),
    "figure": draw,
    "scorecard": lambda f: scorecard.write(f),
}


def contents(folder):
    return {
        path.relative_to(folder): rows_or_bytes(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_told_with_the_path_and_leaves_nothing_half_written(write, disk, tmp_path):
    folder, without_room = disk
    for place in (folder, calm := tmp_path / "calm"):
        if write is WRITERS["scorecard"]:
            put(place, item("B1", statement="it rises " * 3000))
    before = contents(folder)
    write(calm)
    message = f"(No space left on device|File too large).*{re.escape(str(folder))}"
    with pytest.raises(OSError) as caught, without_room(folder):
        write(folder)
    assert re.search(message, str(caught.value))
    expected, found = contents(calm), contents(folder)
    assert found.items() <= expected.items() and len(found) < len(expected)
    assert found.items() >= before.items()
    write(folder)  # there is room again
    plt.close("all")
    assert contents(folder) == expected


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["limited"], indirect=True)
def test_a_notebook_on_a_full_disk_fails_and_runs_later(disk, monkeypatch, capfd):
    root, without_room = disk
    monkeypatch.setenv("REPLICATION_ROOT", str(root))
    (root / "notebooks").mkdir()
    make(root, "01_long", f"print('x' * {2 * ROOM})")
    command = ["figures", "--profile", "smoke"]
    with without_room(root):
        assert __main__.main(command) == 1
    told = capfd.readouterr().out
    assert re.search(r"01_long: failed after .*01_long\.ipynb: .*File too large", told)
    assert not list((root / "figures" / "smoke" / "01_long").iterdir())
    assert __main__.main(command) == 0
    assert "01_long: done" in capfd.readouterr().out
    assert len(printed(output_of(root, "01_long"))) == 2 * ROOM + 1


def test_what_fails_for_another_reason_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic(tmp_path / "a.txt"):
        (tmp_path / "elsewhere").read_text()
    with pytest.raises(OSError, match=r"^no number$"), atomic(tmp_path / "a.txt"):
        raise OSError("no number")


# --- two at once -------------------------------------------------------------------------------


def at_once(commands, **settings):
    """Start all commands, wait for them, and return what they printed; none may fail."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([sys.executable, *command], env=ENVIRONMENT | settings, **pipes)
        for command in commands
    ]
    try:
        told = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:  # one may wait for another that failed
            process.kill()
    assert [process.returncode for process in running] == [0] * len(running), told
    return [out for out, _ in told]


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
    training.fit(spec, TOY, **fits)
    equal(run(measure, store=fits["store"]), expected())

    fits["store"] = store = tmp_path / "broken off"
    interrupt(monkeypatch, spec, TOY, store, step=7)
    run(measure, SPECS[:2], store=store)
    future = time.time() + 10**9
    for path in (*store.rglob("*"), store):
        os.utime(path, (future, future))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    training.fit(spec, TOY, **fits)
    equal(run(measure, store=store), expected())
    assert measure.calls == [*SPECS, *SPECS]
    assert contents(tmp_path / "undisturbed") == contents(store)


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
        while stored() < 3 and scheduler.poll() is None:
            time.sleep(0.02)
        scheduler.kill()

    specs = [{"seed": seed} for seed in range(40)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    scheduler = subprocess.Popen([sys.executable, "-c", SCHEDULER], env=ENVIRONMENT, **pipes)
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
