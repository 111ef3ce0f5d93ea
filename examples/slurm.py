"""Small convnets with true and random labels, each a task of a Slurm cluster.

Needs dask-jobqueue (``pip install dask-jobqueue``). Run it where jobs are submitted from, in a
session that stays (tmux, or a small job of its own):

    python examples/slurm.py --partition cpu --jobs 16
    python examples/slurm.py --partition gpu --jobs 4 --gpu
    python examples/slurm.py --local                        # the same on this machine, to try it

It may be stopped at any time: the same command goes on from what is stored.
"""

import argparse
import sys

from replication import data, sweeps, training


def train(spec):
    """Return the last row of a network's training history; the spec decides all but the data."""
    split = data.load("mnist5k", subset=1000)
    options = {name: value for name, value in spec.items() if name != "device"}
    settings = training.Spec(
        model="mnist_convnet", model_options={"channels": (8, 16)}, learning_rate=0.05, **options
    )
    run = training.fit(settings, split, device=spec["device"], progress=False)
    return run.history.iloc[-1].to_dict() | {"status": run.status}


def slurm(partition: str, jobs: int, gpu: bool):
    """Return a cluster whose workers are Slurm jobs: one process, one thread, one GPU at most."""
    try:
        from dask_jobqueue import SLURMCluster
    except ModuleNotFoundError as error:
        sys.exit(f"needs {error.name}: pip install dask-jobqueue; or use --local")
    cluster = SLURMCluster(
        queue=partition,
        cores=1,  # one thread a worker, so that networks do not share one
        processes=1,
        memory="8 GB",
        walltime="04:00:00",
        job_extra_directives=["--gres=gpu:1"] if gpu else [],
        worker_extra_args=["--resources", "GPU=1"] if gpu else [],
        job_script_prologue=["export OMP_NUM_THREADS=1"],
        scheduler_options={"dashboard_address": ":0"},  # others use the login node, too
    )
    cluster.scale(jobs=jobs)  # a job that comes to its time limit is submitted again
    return cluster


def main() -> None:
    """Train what is missing and print the mean over seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", default="data/runs/slurm_example")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--partition", default="cpu")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--gpu", action="store_true", help="ask for one GPU a job")
    parser.add_argument("--local", action="store_true", help="processes of this machine instead")
    chosen = parser.parse_args()

    specs = [
        {"label_corruption": share, "seed": seed, "epochs": chosen.epochs}
        | {"device": "cuda" if chosen.gpu else "cpu"}
        for share in (0.0, 1.0)
        for seed in range(chosen.seeds)
    ]
    if chosen.local:
        table = sweeps.run(train, specs, store=chosen.store, cluster="local")
    else:
        from distributed import Client

        resources = {"GPU": 1} if chosen.gpu else None
        with slurm(chosen.partition, chosen.jobs, chosen.gpu) as cluster, Client(cluster) as client:
            table = sweeps.run(
                train, specs, store=chosen.store, cluster=client, resources=resources
            )
    columns = ["train_accuracy", "test_accuracy"]
    print(table.groupby("label_corruption")[columns].mean())


if __name__ == "__main__":
    main()
