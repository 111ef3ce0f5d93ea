"""`training.fit` against a loop written by hand, and bfloat16 against float32."""

import os
import statistics
import subprocess
import sys
from dataclasses import replace

import torch
from torch.nn import functional as F

from benchmarks._timing import Row, cpu_seconds
from replication import data, models, training
from replication._core.processes import KEPT_MEMORY, ONE_THREAD
from replication.training.trainer import Trainer

NETWORKS = {  # name in the table: model, its options, side and channels, batch, steps, target
    "Tiny-10": ("tiny10", {}, (3, 32), 128, 8, 1.8),
    "11-layer convnet": ("morcos_convnet", {}, (3, 32), 32, 2, 2.3),
    "MNIST convnet": ("mnist_convnet", {}, (1, 28), 64, 12, 1.8),
    "MLP 3072-2000-2000-10": (
        *("mlp", {"inputs": 3072, "widths": [2000, 2000]}),
        *((3, 32), 128, 40, 2.0),
    ),
}


def by_hand(
    spec: training.Spec, split: data.Split, layout: torch.memory_format = torch.channels_last
) -> dict[str, torch.Tensor]:
    """Train as `spec` says with a plain loop over the batches in their order."""
    model = models.build(spec.model, spec.seed, **spec.model_options).to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=spec.learning_rate)
    trainer = Trainer(spec, split, torch.device("cpu"))
    model.train()
    for chosen in trainer.epoch_order().split(spec.batch_size):
        optimizer.zero_grad()
        images = split.train.images[chosen].contiguous(memory_format=layout)
        with torch.autocast("cpu", enabled=spec.precision == "bfloat16"):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), split.train.labels[chosen])
        loss.backward()
        optimizer.step()
    return model.state_dict()


def pair(name: str, spec: training.Spec, split: data.Split, target: float) -> list[Row]:
    """Return the rows of one network."""
    half, kept = replace(spec, precision="bfloat16"), {}
    times = cpu_seconds(
        {
            "hand": lambda: kept.update(hand=by_hand(spec, split)),
            "fit": lambda: kept.update(fit=training.fit(spec, split, progress=False).state()),
            "half": lambda: training.fit(half, split, progress=False),
            "half by hand": lambda: by_hand(half, split),
            "usual": lambda: by_hand(spec, split, torch.contiguous_format),
            "usual half": lambda: by_hand(half, split, torch.contiguous_format),
        },
        repeats=3,
    )
    error = max((kept["fit"][k] - v).abs().max().item() for k, v in kept["hand"].items())
    by_loop = "a loop written by hand", times["hand"] / times["fit"], ">= 0.9"
    by_half = "fit in float32", times["fit"] / times["half"], f">= {target} with AMX"
    formats = {
        "float32": times["usual"] / times["hand"],
        "bfloat16": times["usual half"] / times["half by hand"],
    }
    return [
        *(
            Row(f"channels last in {kind}, {name}", "channels first, by hand", ratio, ">= 0.95", "")
            for kind, ratio in formats.items()
            if spec.model != "mlp"
        ),
        Row(f"fit, {name}", *by_loop, f"{error:.0e} in float32 weights"),
        Row(f"fit in bfloat16, {name}", *by_half, ""),
    ]


def example(name: str) -> tuple[training.Spec, data.Split]:
    """Return an epoch of few steps of one network, and its data; evaluations on one image."""
    model, options, (channels, side), batch, steps, _ = NETWORKS[name]
    count, source = batch * steps, torch.Generator().manual_seed(0)
    images = torch.rand(count, channels, side, side, generator=source)
    labels = torch.randint(10, (count,), generator=source)
    train, test = data.Examples(images, labels), data.Examples(images[:1], labels[:1])
    split = data.Split(train, test, "made", tuple("0123456789"), "made")
    options = {"model": model, "model_options": options, "batch_size": batch}
    return training.Spec(**options, epochs=1, evaluation_images=1), split


def memory(name: str) -> Row:
    """Return the row of bfloat16 training in processes that keep their memory, as `run`'s do."""
    plain = {key: value for key, value in os.environ.items() if key not in KEPT_MEMORY} | ONE_THREAD
    command = [sys.executable, "-m", "benchmarks.training", name]
    taken: dict[bool, list[float]] = {False: [], True: []}
    for kept in 3 * (False, True):
        env = plain | KEPT_MEMORY if kept else plain
        done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
        taken[kept].append(float(done.stdout))
    ratio = statistics.median(taken[False]) / statistics.median(taken[True])
    return Row(f"fit in bfloat16 with kept memory, {name}", "glibc's defaults", ratio, ">= 1", "")


def rows() -> list[Row]:
    """Return the rows of this benchmark."""
    table = []
    for name, (*_, target) in NETWORKS.items():
        table += [*pair(name, *example(name), target), memory(name)]
    return table


if __name__ == "__main__":
    spec, split = example(sys.argv[1])
    half = replace(spec, precision="bfloat16", epochs=2)
    fits = {"fit": lambda: training.fit(half, split, progress=False)}
    print(cpu_seconds(fits, repeats=3)["fit"])
