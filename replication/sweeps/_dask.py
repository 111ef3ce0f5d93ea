"""A sweep's tasks on the workers of a Dask cluster (extra ``cluster``).

Dask gives the tasks of a dead worker to others and, after `allowed_failures` deaths, names the task
by `KilledWorker`; it tries failing ones again (`retries`) and lets a cluster grow (`adapt`).
"""

import importlib.util
import logging
import multiprocessing
import os
import signal
import threading
import uuid
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import dask
from dask.system import CPU_COUNT
from distributed import Client, Future, KilledWorker, LocalCluster, WorkerPlugin, as_completed
from distributed.comm import CommClosedError
from tqdm import tqdm

from replication._core.inputs import as_integer
from replication._core.processes import KEPT_MEMORY, ONE_THREAD
from replication.sweeps._store import BadResult, Computation, Job, part, tasks


def outcomes(
    compute: Computation,
    missing: Sequence[Job],
    cluster: str | Client,
    size: int,
    resources: Mapping[str, float] | None,
    steps: tqdm,
) -> Generator[tuple[Path, bytes | Exception | None], None, None]:
    """Yield what each spec came to, in the order of completion, as `run`'s `_serial` does.

    Twice as many tasks as threads are in flight, so that no worker waits for the next and the
    scheduler holds few. A spec whose workers died may only have been beside the culprit; it has
    another chance at the end, on its own.
    """
    with connected(cluster, len(missing), resources) as client:
        if not steps.disable and (cluster != "local" or importlib.util.find_spec("bokeh")):
            steps.write(f"dashboard: {client.dashboard_link}")
        workers = _offering(client, resources)
        waiting = tasks(missing, min(size, -(-len(missing) // max(workers, 1))))
        suspects: deque[Job] = deque()
        flying: dict[Future, Sequence[Job]] = {}
        landed = as_completed(loop=client.loop)

        def submit(jobs: Sequence[Job]) -> None:
            future = client.submit(
                compute,
                [spec for _, spec in jobs],
                key=f"{compute.name}-{uuid.uuid4().hex}",
                pure=False,
                retries=int(len(jobs) == 1),  # of more, each is given by itself
                resources=resources,
            )
            flying[future] = jobs
            landed.add(future)

        try:
            while waiting or suspects or flying:
                while waiting and len(flying) < max(2 * sum(client.nthreads().values()), 1):
                    jobs, stored = part(waiting.popleft())
                    yield from ((path, None) for path, _ in stored)
                    if jobs:
                        submit(jobs)
                last = not waiting and not flying
                if last and suspects:
                    submit([suspects.popleft()])
                if not flying:
                    continue
                future = next(landed)
                jobs = flying.pop(future)
                if future.status == "cancelled":
                    raise CommClosedError
                try:
                    contents = future.result()
                except BadResult:
                    raise
                except Exception as error:
                    if isinstance(error, KilledWorker) and not last:
                        suspects.extend(jobs)
                    elif len(jobs) > 1:
                        waiting.extendleft([job] for job in reversed(jobs))
                    else:
                        yield jobs[0][0], error
                else:
                    yield from zip((path for path, _ in jobs), contents, strict=True)
        except CommClosedError as error:
            raise ConnectionError(
                "cluster: the scheduler is gone; what was finished is stored, so run again"
            ) from error
        finally:
            if client.status == "running":
                with suppress(OSError):  # the scheduler may go at any time
                    client.cancel(list(flying))


def _offering(client: Client, resources: Mapping[str, float] | None) -> int:
    """Return how many workers offer `resources`; without any a task would wait for ever."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    offers = [worker.get("resources", {}) for worker in workers]
    wanted = (resources or {}).items()
    offering = sum(all(offer.get(name, 0) >= need for name, need in wanted) for offer in offers)
    if workers and not offering:
        raise ValueError(
            f"resources: no worker of the cluster offers {resources}; start some that do, with "
            "dask worker --resources or LocalCluster(..., resources=...)"
        )
    return offering


@contextmanager
def connected(
    cluster: str | Client, tasks: int = CPU_COUNT, resources: Mapping[str, float] | None = None
) -> Iterator[Client]:
    """Yield a client of `cluster`, for so many tasks; close what was opened for it."""
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
            client.register_plugin(_Quiet())
            yield client
    elif isinstance(cluster, str) and "://" in cluster:
        with Client(cluster, set_as_default=False) as client:
            yield client
    else:
        raise ValueError(
            "cluster: expected None, 'local', an address such as 'tcp://host:8786' or a "
            f"distributed.Client, found {cluster!r}"
        )


class _Quiet(WorkerPlugin):
    """Ctrl-C reaches the workers on this machine too; it is for the client to handle.

    Nor do they hold tqdm's lock between processes, which a killed one would leave behind.
    """

    def setup(self, worker: object) -> None:
        tqdm.set_lock(threading.RLock())
        child = multiprocessing.parent_process() is not None
        if child and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _local(tasks: int) -> Iterator[LocalCluster]:
    """Yield processes of one thread each; failures are reported by the sweep, not by their log."""
    text = os.environ.get("REPLICATION_WORKERS", str(CPU_COUNT))
    workers = as_integer(int(text) if text.isdecimal() else text, "REPLICATION_WORKERS", 1)
    own = ONE_THREAD | KEPT_MEMORY  # in place of Dask's list, with which memory is given back
    spawning = dask.config.set({"distributed.nanny.pre-spawn-environ": own})
    left_behind = {*own, "PYTHONHASHSEED"} - set(os.environ)  # by Dask, in this process
    with spawning:
        try:
            cluster = LocalCluster(
                n_workers=min(workers, tasks),
                threads_per_worker=1,
                processes=True,
                memory_limit=0,  # a worker above its share of memory would be paused for ever
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
                env={**own, "TQDM_DISABLE": "1"},
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
