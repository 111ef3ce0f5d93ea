"""A sweep's tasks on the workers of a Dask cluster (extra ``cluster``)."""

import importlib.util
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import dask
from dask.system import CPU_COUNT
from distributed import (
    Client,
    Future,
    KilledWorker,
    LocalCluster,
    SpecCluster,
    Worker,
    WorkerPlugin,
    get_worker,
)
from distributed.protocol.pickle import dumps, loads
from tqdm import tqdm

from replication._core.inputs import as_integer
from replication.sweeps._store import BadResult, Computation, Job
from replication.training import _budget

REFRESH = 1.0  # seconds after which workers are counted again


class _Delivery(WorkerPlugin):
    """The computation, sent once to each worker: also to one that comes later or is restarted.

    An interrupt at the keyboard reaches the workers on this machine too; that is for the client to
    handle, so that they ignore it while a sweep runs.
    """

    def __init__(self, compute: Computation):
        self.payload = dumps(compute)

    def setup(self, worker: Worker) -> None:
        self.compute = loads(self.payload)
        del self.payload
        child = multiprocessing.parent_process() is not None
        if child and threading.current_thread() is threading.main_thread():
            self.handler = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def teardown(self, worker: Worker) -> None:
        if hasattr(self, "handler"):
            signal.signal(signal.SIGINT, self.handler)


def _task(delivery: str, specs: Sequence[Mapping]) -> list[bytes] | None:
    """Return the results; None where the budget ended the task. Dask would not let that pass."""
    try:
        return get_worker().plugins[delivery].compute(specs)
    except _budget.BudgetSpent:
        return None


def outcomes(
    compute: Computation,
    missing: Sequence[Job],
    cluster: str | Client,
    size: int,
    retries: int,
    resources: Mapping[str, float] | None,
    steps: tqdm,
) -> Iterator[tuple[Path, bytes | Exception | None]]:
    """Yield what each spec came to, in the order of completion.

    None stands for what another run has stored meanwhile. Twice as many tasks as threads are in
    flight, so that no worker waits for the next and the scheduler holds few. A spec whose workers
    died may only have been beside the culprit; it has another chance at the end, on its own. Once a
    budget is spent, what is in flight is waited for; with one, no task is sent ahead of its turn.
    """
    with _connected(cluster, len(missing), resources) as client:
        if not steps.disable and (cluster != "local" or importlib.util.find_spec("bokeh")):
            steps.write(f"dashboard: {client.dashboard_link}")
        workers, _ = _capacity(client, resources)
        if not workers and client.nthreads():
            raise ValueError(
                f"resources: no worker of the cluster offers {resources}; start some that do, with "
                "dask worker --resources or LocalCluster(..., resources=...)"
            )
        size = min(size, -(-len(missing) // max(workers, 1)))
        tasks = [missing[start : start + size] for start in range(0, len(missing), size)]
        with _delivered(client, compute) as send:
            yield from _collected(client, send, tasks, retries, resources, steps)


@contextmanager
def _delivered(client: Client, compute: Computation) -> Iterator[Callable[..., Future]]:
    """Yield what submits specs for `compute`, which all workers have meanwhile."""
    delivery = f"sweep-{uuid.uuid4().hex}"

    def send(specs: Sequence[Mapping], **options) -> Future:
        key = f"{compute.name}-{uuid.uuid4().hex}"
        return client.submit(_task, delivery, specs, key=key, pure=False, **options)

    try:
        client.register_plugin(_Delivery(compute), delivery)
        yield send
    finally:
        if client.status == "running":
            with suppress(OSError):  # the scheduler may go at any time
                client.unregister_worker_plugin(delivery)


def _collected(
    client: Client,
    send: Callable[..., Future],
    tasks: Sequence[Sequence[Job]],
    retries: int,
    resources: Mapping[str, float] | None,
    steps: tqdm,
) -> Iterator[tuple[Path, bytes | Exception | None]]:
    """Yield what comes of `tasks`, with enough of them in flight."""
    waiting = deque(tasks)
    suspects: deque[Job] = deque()
    flying: dict[str, tuple[Future, Sequence[Job], bool]] = {}
    landed: queue.SimpleQueue[Future] = queue.SimpleQueue()
    threads, counted = 0, -REFRESH

    def submit(jobs: Sequence[Job], alone: bool = False) -> None:
        again = retries if len(jobs) == 1 else 0
        future = send([spec for _, spec in jobs], retries=again, resources=resources)
        flying[future.key] = future, jobs, alone
        future.add_done_callback(landed.put)

    try:
        while waiting or suspects or flying:
            if time.monotonic() - counted > REFRESH:
                counted = time.monotonic()
                workers, threads = _capacity(client, resources)
                steps.set_postfix(workers=workers)
                _replace_lost(client)
            if _budget.is_spent():
                waiting.clear(), suspects.clear()
            ahead = 1 if _budget.is_limited() else 2
            while waiting and len(flying) < max(ahead * threads, 1):
                jobs = waiting.popleft()
                stored = {path for path, _ in jobs if path.exists()}
                yield from ((path, None) for path in stored)
                if jobs := [job for job in jobs if job[0] not in stored]:
                    submit(jobs)
            if suspects and not flying:
                submit([suspects.popleft()], alone=True)
            try:
                future = landed.get(timeout=REFRESH)
            except queue.Empty:
                continue
            _, jobs, alone = flying.pop(future.key)
            if future.status == "cancelled":
                raise ConnectionError(
                    "cluster: the scheduler is gone; what was finished is stored, so run again"
                )
            try:
                contents = future.result()
            except BadResult:
                raise
            except Exception as error:
                if isinstance(error, KilledWorker) and not alone:
                    suspects.extend(jobs)
                elif len(jobs) > 1:
                    waiting.extendleft([job] for job in reversed(jobs))
                else:
                    yield jobs[0][0], error
            else:
                _budget.progressed()
                if contents is not None:
                    yield from zip((path for path, _ in jobs), contents, strict=True)
    finally:
        if client.status == "running":
            with suppress(OSError):
                client.cancel([future for future, _, _ in flying.values()])


@contextmanager
def _connected(
    cluster: str | Client, tasks: int, resources: Mapping[str, float] | None
) -> Iterator[Client]:
    """Yield a client of `cluster`; close what was opened for it."""
    if isinstance(cluster, Client):
        if cluster.asynchronous:
            raise ValueError("cluster: expected a synchronous client, found an asynchronous one")
        yield cluster
    elif cluster == "local":
        if resources:
            raise ValueError(
                f"resources: expected none with cluster='local', whose workers offer none, found "
                f"{resources}; pass a Client of LocalCluster(..., resources={resources})"
            )
        with _local(tasks) as local, Client(local, set_as_default=False) as client:
            yield client
    elif isinstance(cluster, str) and "://" in cluster:
        with Client(cluster, set_as_default=False) as client:
            yield client
    else:
        raise ValueError(
            "cluster: expected None, 'local', an address such as 'tcp://host:8786' or a "
            f"distributed.Client, found {cluster!r}"
        )


@contextmanager
def _local(tasks: int) -> Iterator[LocalCluster]:
    """Yield processes of one thread each; failures are reported by the sweep, not by their log."""
    workers = as_integer(_wanted_workers(), "REPLICATION_WORKERS", 1)
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # Dask's own list has MALLOC_TRIM_THRESHOLD_ as well, with which glibc maps every larger tensor
    # anew: training a convnet then takes up to twice as long.
    spawning = dask.config.set({"distributed.nanny.pre-spawn-environ": single})
    left_behind = {*single, "PYTHONHASHSEED"} - set(os.environ)  # by Dask, in this process
    with spawning:
        try:
            cluster = LocalCluster(
                n_workers=min(workers, tasks),
                threads_per_worker=1,
                processes=True,
                memory_limit=0,  # a worker above its share of memory would be paused for ever
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
                env={**single, "TQDM_DISABLE": "1"},
            )
        except RuntimeError as error:
            raise RuntimeError(
                "cluster: no local worker could start; in a script, is the call below "
                'if __name__ == "__main__": ?'
            ) from error
        try:
            with cluster:
                yield cluster
        finally:
            for name in left_behind:
                os.environ.pop(name, None)


def _replace_lost(client: Client) -> None:
    """Have a cluster started from Python replace workers that it gave up.

    A local one gives up a worker that dies before it is fully started or takes long to start again;
    on a batch system jobs come to their time limit.
    """
    cluster = client.cluster
    if isinstance(cluster, SpecCluster) and len(cluster.workers) < len(cluster.worker_spec):
        cluster.scale(len(cluster.plan))


def _wanted_workers() -> object:
    text = os.environ.get("REPLICATION_WORKERS", str(CPU_COUNT))
    return int(text) if text.isdecimal() else text


def _capacity(client: Client, resources: Mapping[str, float] | None) -> tuple[int, int]:
    """Return how many workers offer `resources`, and how many tasks they run at a time."""
    places = []
    for worker in client.scheduler_info(n_workers=-1)["workers"].values():
        offered = worker.get("resources", {})
        shares = [offered.get(name, 0) // need for name, need in (resources or {}).items()]
        places.append(int(min([worker["nthreads"], *shares])))
    return sum(map(bool, places)), sum(places)
