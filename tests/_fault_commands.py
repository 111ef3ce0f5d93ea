"""What `faults` kills, besides commands of the package: small sweeps, training and a download."""

import http.server
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from replication import data, sweeps, training
from replication._core import paths
from replication._core.files import write_json
from replication._core.vision import datasets
from tests._data_files import archives, checksums
from tests._tiny_runs import random_split


def measure(spec: dict) -> list[dict]:
    """Return a few rows after a moment: one spec of the sweeps."""
    time.sleep(spec["pause"])
    values = np.random.default_rng(spec["seed"]).normal(size=50)
    return [{"k": k, "value": value} for k, value in enumerate(values)]


def sweep(count: int = 60, pause: float = 0.005, cluster: str | None = None) -> None:
    specs = [{"seed": seed, "pause": pause} for seed in range(count)]
    table = sweeps.run(measure, specs, store=paths.runs() / "s", cluster=cluster, progress=False)
    answer(json.loads(table.to_json(double_precision=15)))


def sweep_on_a_cluster() -> None:
    sweep(60, 0.1, "local")


def fit() -> None:
    spec = training.Spec(
        model="mlp",
        model_options={"inputs": 64, "widths": (64, 64)},
        **{"optimizer": "Adam", "epochs": 16, "batch_size": 16, "evaluate_every": 0.5},
        **{"checkpoints": tuple(range(16)), "augment": {"flip": 0.5}},
    )
    describe([training.fit(spec, random_split(320, 80), store=paths.runs() / "n", progress=False)])


def population() -> None:
    specs = [
        training.Spec(
            model="mlp",
            model_options={"inputs": 64, "widths": (32,)},
            **{"epochs": epochs, "batch_size": 16, "checkpoints": (1, 2, 4), "seed": seed},
            **{"label_corruption": 0.2, "dtype": "float64"},
        )
        for seed in range(6)
        for epochs in (8, 12)
    ]
    describe(
        training.fit_population(
            specs, random_split(320, 80), store=paths.runs() / "n", progress=False
        )
    )


def download() -> None:
    data.fetch("mnist")
    answer(data.load("mnist").digest)


def describe(runs: Sequence[training.Run]) -> None:
    """Write down the histories of the runs; their weights are in files."""
    answer([json.loads(run.history.to_json(double_precision=15)) for run in runs])


def answer(value: object) -> None:
    """Write down what a call returned, to be compared with the other files."""
    write_json(paths.data() / "answer.json", value)


def serve() -> int:
    """Serve a small MNIST slowly, in a process of its own; return its id."""
    files = archives(2000, 500)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files[self.path[1:]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(OSError):  # the other side was killed
                for start in range(0, len(content), 65_536):
                    self.wfile.write(content[start : start + 65_536])
                    time.sleep(0.02)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    datasets.MNIST.resources = checksums(files)
    datasets.MNIST.mirrors = [f"http://127.0.0.1:{server.server_address[1]}/"]
    if child := os.fork():
        return child
    server.serve_forever()
    os._exit(0)
