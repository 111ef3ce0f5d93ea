"""Sweeps on Dask workers: the same tables as in one process, whatever happens to the workers."""

import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from _tiny_runs import wait
from test_sweeps import SPECS, equal, expected, run

from replication import sweeps

dask = pytest.importorskip("dask", reason="needs the extra [cluster]")
distributed = pytest.importorskip("distributed", reason="needs the extra [cluster]")

pytestmark = pytest.mark.slow

MANY = [{"sigma": i / 8, "seed": i} for i in range(12)]


def measure(spec):
    return [{"k": k, "value": spec["sigma"] * 10**k + spec["seed"]} for k in (0, 1)]


@contextmanager
def cluster(**options):
    options = {"memory_limit": 0, "silence_logs": logging.CRITICAL, "n_workers": 1} | options
    with (
        distributed.LocalCluster(dashboard_address="127.0.0.1:0", **options) as local,
        distributed.Client(local, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client():
    with cluster(n_workers=2, threads_per_worker=1) as client:
        yield client


@pytest.fixture(scope="module")
def gpu_client():
    """One worker in this process, with two threads and one GPU, or so it says."""
    with cluster(threads_per_worker=2, processes=False, resources={"GPU": 1}) as client:
        yield client


def once(spec):
    """Return whether this is the first call with `spec`, across processes."""
    try:
        os.close(os.open(spec["flag"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


# --- tables ------------------------------------------------------------------------------------


def test_the_table_is_that_of_a_serial_sweep(client, tmp_path):
    table = run(measure, MANY, store=tmp_path / "cluster", cluster=client)
    equal(table, run(measure, MANY, store=tmp_path / "serial"))
    for path in (tmp_path / "serial").rglob("*.parquet"):
        other = tmp_path / "cluster" / path.relative_to(tmp_path / "serial")
        assert other.read_bytes() == path.read_bytes()
    equal(run(measure, MANY[::-1], store=tmp_path / "cluster"), expected(MANY[::-1]))


def test_only_what_is_missing_runs_on_the_workers(client, tmp_path):
    def process(spec):
        return {"pid": os.getpid()}

    here = run(process, SPECS[:2], store=tmp_path)
    table = run(process, store=tmp_path, cluster=client.cluster.scheduler_address)
    equal(table[:2], here)
    assert os.getpid() not in set(table.pid[2:])


class Seen:
    """What the worker in this process has been given, and the thread of another run."""

    specs = ()
    other = 0


def test_what_another_run_stores_meanwhile_is_taken(gpu_client, tmp_path):
    def fn(spec):
        if Seen.other == threading.get_ident():
            return {"by": "another run"}
        Seen.specs += (spec,)
        if spec == SPECS[0]:
            Seen.other = threading.get_ident()
            sweeps.run(fn, SPECS[1:], store=tmp_path, progress=False)
            Seen.other = 0
        return {"by": "this run"}

    Seen.specs = ()
    fillers = [{"filler": number} for number in range(3)]
    specs = [SPECS[0], *fillers, *SPECS[1:]]  # four are in flight at first
    table = run(fn, specs, store=tmp_path, cluster=gpu_client, resources={"GPU": 1})
    assert table.by.tolist() == ["this run"] * 4 + ["another run"] * 3
    assert sorted(map(str, Seen.specs)) == sorted(map(str, specs[:4]))


# --- batches and resources -----------------------------------------------------------------------


def together(specs):
    if any(spec.get("broken") for spec in specs):
        raise OSError("broken")
    return [{"count": len(specs)} for _ in specs]


@pytest.mark.parametrize(
    ("missing", "batch", "counts"),
    [(5, 100, [3, 3, 3, 2, 2]), (6, 2, [2] * 6), (1, 4, [1])],
)
def test_every_worker_gets_some_of_a_batch(missing, batch, counts, client, tmp_path):
    wait(lambda: len(client.nthreads()) == 2)
    specs = [{"seed": seed} for seed in range(missing)]
    table = run(together, specs, store=tmp_path, cluster=client, batch=batch)
    assert table["count"].tolist() == counts


def test_only_the_culprit_of_a_batch_fails_on_a_cluster(client, tmp_path):
    specs = [{"seed": seed, "broken": seed == 1} for seed in range(6)]
    with pytest.raises(sweeps.SweepError, match=r"^1 of 6 specs failed(.|\n)*OSError: broken$"):
        run(together, specs, store=tmp_path, cluster=client, batch=6)
    specs.pop(1)
    table = run(together, specs, store=tmp_path)
    assert table["count"].tolist() == [1, 1, 3, 3, 3]


class Running:
    now = 0


def test_a_resource_is_for_one_task_at_a_time(gpu_client, tmp_path):
    def fn(spec):
        Running.now += 1
        time.sleep(0.02)
        most, Running.now = Running.now, Running.now - 1
        return {"most": most}

    options = {"store": tmp_path, "cluster": gpu_client}
    table = run(fn, MANY, resources={"GPU": 1}, **options)
    assert table.most.max() == 1
    with pytest.raises(ValueError, match=r"resources: no worker .* offers {'GPU': 2}"):
        run(fn, [{"seed": -1}], resources={"GPU": 2}, **options)
    assert run(fn, MANY[:1], store=tmp_path / "serial", resources={"GPU": 1}).most.tolist() == [1]


# --- failures ----------------------------------------------------------------------------------


def test_failing_specs_are_reported_and_do_not_sink_the_rest(client, tmp_path):
    def fn(spec):
        if spec["seed"] == 3:
            raise KeyError("three")
        return measure(spec)

    with pytest.raises(sweeps.SweepError, match="1 of 12 specs failed") as caught:
        run(fn, MANY, store=tmp_path, cluster=client)
    ((spec, error),) = caught.value.failures
    assert spec == MANY[3] and isinstance(error, KeyError)
    equal(run(fn, MANY, store=tmp_path, compute=False), expected(MANY[:3] + MANY[4:]))


def test_what_is_no_table_is_said_at_once(client, tmp_path):
    def fn(spec):
        return 3.5

    with pytest.raises(ValueError, match="fn: expected a mapping"):
        run(fn, MANY, store=tmp_path, cluster=client)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_failing_spec_is_tried_again(client, tmp_path):
    def fn(spec):
        if once(spec):
            raise OSError("the worker is to blame")
        return {"value": 1}

    assert len(run(fn, [{"flag": str(tmp_path / "a")}], store=tmp_path, cluster=client)) == 1


def test_a_worker_killed_in_the_middle_of_a_task_is_survived(client, tmp_path):
    def fn(spec):
        if spec["seed"] == 3 and once({"flag": flag}):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return measure(spec)

    flag = str(tmp_path / "flag")
    table = run(fn, MANY, store=tmp_path, cluster=client)
    assert os.path.exists(flag)
    equal(table, expected(MANY))


def test_a_spec_that_kills_its_workers_fails_alone(client, tmp_path):
    def fn(spec):
        if spec["seed"] == 3:
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        return measure(spec)

    def allow(failures):
        client.run_on_scheduler(lambda dask_scheduler: vars(dask_scheduler).update(failures))

    allow({"allowed_failures": 0})  # 4 deaths would be the usual number, and take longer
    try:
        killed = r"1 of 12 specs failed(.|\n)*'seed': 3.*KilledWorker"
        with pytest.raises(sweeps.SweepError, match=killed):
            run(fn, MANY, store=tmp_path, cluster=client)
    finally:
        allow({"allowed_failures": 3})
    equal(run(fn, MANY, store=tmp_path, compute=False), expected(MANY[:3] + MANY[4:]))


# --- a cluster of one's own --------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, time
import torch
from replication import sweeps

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a job in the background

offset = torch.tensor(1.0)  # of this script's own

def fn(spec):
    time.sleep(float(sys.argv[2]))
    return {
        "value": float(spec["seed"] + offset),
        "threads": torch.get_num_threads(),
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "trim": os.environ.get("MALLOC_TRIM_THRESHOLD_", ""),
        "pid": os.getpid(),
    }

if __name__ == "__main__":
    specs = [{"seed": seed} for seed in range(12)]
    before = dict(os.environ)
    table = sweeps.run(fn, specs, store=sys.argv[1], cluster="local")
    assert set(os.environ) - set(before) <= {"__DASK_PARENT_PID"}  # of importing it
    assert (table.trim == str(2**32)).all()  # else memory is mapped anew for every tensor
    assert table.value.tolist() == [seed + 1.0 for seed in range(12)]
    assert (table.threads == 1).all() and (table.omp == "1").all()
    assert os.getpid() not in set(table.pid)
    print(table.pid.nunique())
"""


@pytest.fixture
def script(tmp_path):
    """Return a function that starts the script above, quietly."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)

    def start(pause):
        command = [sys.executable, "-W", "error", path, tmp_path, str(pause)]
        settings = {"REPLICATION_WORKERS": "2", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "2"}
        env = os.environ | settings
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=env, start_new_session=True, **pipes)

    return start


def completed(*command):
    env = os.environ | {"REPLICATION_WORKERS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, *command]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=180)


def results(store):
    return [path for path in (store / "fn").glob("*") if not path.name.startswith(".")]


def gone(group):
    """Return whether no process of the group is left (but zombies, which wait for init)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            return False
    return True


def test_a_local_cluster_is_quiet_and_single_threaded(script):
    running = script(0.3)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out, err) == (0, "2\n", "")
    wait(lambda: gone(running.pid))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes through /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_run_that_is_stopped_goes_on_later(number, script, tmp_path, monkeypatch):
    running = script(0.5)
    wait(lambda: len(results(tmp_path)) >= 2)
    if number == signal.SIGINT:
        os.killpg(running.pid, number)  # as a terminal and Jupyter do
    else:
        running.kill()
    _, err = running.communicate(timeout=60)
    wait(lambda: gone(running.pid))
    finished = results(tmp_path)
    assert 2 <= len(finished) < 12
    if number == signal.SIGINT:
        assert not list((tmp_path / "fn").glob(".*"))
        assert err.count("Traceback") == 1 and err.endswith("KeyboardInterrupt\n")
    content = {path: path.read_bytes() for path in finished}
    monkeypatch.setattr(sys, "argv", ["", "", "0"])
    fn = runpy.run_path(str(tmp_path / "script.py"))["fn"]
    table = run(fn, [{"seed": seed} for seed in range(12)], store=tmp_path)
    assert table.value.tolist() == [seed + 1.0 for seed in range(12)]
    assert (table.pid == os.getpid()).sum() == 12 - len(finished)
    assert content == {path: path.read_bytes() for path in finished}


def test_a_script_without_the_guard_is_told_of_it(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    done = completed(path, tmp_path, "0")
    assert done.returncode == 1
    assert 'is the call below if __name__ == "__main__": ?' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("count", ["0", "two", "1.5"])
def test_the_number_of_workers_is_checked(count, tmp_path, monkeypatch):
    monkeypatch.setenv("REPLICATION_WORKERS", count)
    with pytest.raises(ValueError, match="REPLICATION_WORKERS: expected an integer >= 1, found"):
        run(measure, store=tmp_path, cluster="local")


# --- the recipe for Slurm ----------------------------------------------------------------------

EXAMPLE = Path(__file__).parent.parent / "examples" / "slurm.py"


def test_the_example_runs_on_this_machine(tmp_path):
    few = ["--local", "--epochs", "0.1", "--seeds", "1"]
    done = completed("-W", "error", EXAMPLE, *few, "--store", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "test_accuracy" in done.stdout
    assert len(list((tmp_path / "train").iterdir())) > 1
