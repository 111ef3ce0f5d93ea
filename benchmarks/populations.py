"""Populations of networks as one program against training one after another."""

import torch

from benchmarks._timing import Row, cpu_seconds
from replication import data, training

CASES = (
    ("49-32-32-10, batch 32, 128 members", 7, (32, 32), 32, 128, 200, ">= 10"),
    ("784-64-10, batch 64, 64 members", 28, (64,), 64, 64, 100, ">= 2"),
    ("784-128-128-10, batch 128, 32 members", 28, (128, 128), 128, 32, 60, ">= 1.3"),
)


def images(size: int, count: int) -> data.Split:
    """Return random images with random labels."""
    source = torch.Generator().manual_seed(0)
    parts = [
        data.Examples(
            torch.rand(number, 1, size, size, generator=source),
            torch.randint(10, (number,), generator=source),
        )
        for number in (count, 16)
    ]
    return data.Split(*parts, "random", tuple("0123456789"), "random")


def row(what: str, split: data.Split, target: str, members: int, repeats: int, **settings) -> Row:
    """Return the row of one population; a small evaluation before and one after its steps."""
    settings |= {"evaluate_every": 1000, "evaluation_images": 16}
    specs = [
        training.Spec(seed=seed, learning_rate=0.01 + 1e-4 * seed, **settings)
        for seed in range(members)
    ]
    kept = {}
    times = cpu_seconds(
        {
            "loop": lambda: kept.update(
                loop=[training.fit(spec, split, progress=False) for spec in specs]
            ),
            "ours": lambda: kept.update(ours=training.fit_population(specs, split, progress=False)),
        },
        repeats=repeats,
    )
    steps = sum(max(run.checkpoints.values()) for run in kept["ours"])
    error = max(
        (one.state()[name] - other.state()[name]).abs().max().item()
        for one, other in zip(kept["loop"], kept["ours"], strict=True)
        for name in one.state()
    )
    return Row(
        f"{what}, {steps / times['ours']:,.0f} networks x steps a second",
        "training.fit, one after another",
        times["loop"] / times["ours"],
        target,
        f"{error:.0e} in float32 weights",
    )


def rows() -> list[Row]:
    """Return the rows of this benchmark."""
    table = []
    for name, size, widths, batch, members, steps, target in CASES:
        split = images(size, 10 * batch)
        options = {"inputs": size * size, "widths": widths}
        table.append(
            row(
                f"SGD of {name}",
                split,
                target,
                members,
                3,
                model="mlp",
                model_options=options,
                batch_size=batch,
                epochs=steps / 10,
                optimizer_options={"momentum": 0.9},
            )
        )
    table.append(
        row(
            "SGD of a small convnet, batch 64, 4 members",
            images(28, 640),
            ">= 0.95",
            4,
            3,
            model="mnist_convnet",
            model_options={"channels": (8, 16)},
            batch_size=64,
            epochs=2,
        )
    )
    return table
