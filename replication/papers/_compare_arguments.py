"""What ``python -m replication compare`` takes; apart from what it does, whose imports are slow."""

import argparse
from collections.abc import Callable
from pathlib import Path


def add(parser: argparse.ArgumentParser, device: Callable[[str], str]) -> None:
    """Give `parser` the arguments of `_compare_command.run`, under the names they have there."""
    take = parser.add_argument
    take("weights", nargs=2, metavar="WEIGHTS.safetensors", help="a state dict each")
    take(
        "--model",
        required=True,
        metavar="MODULE:FUNCTION",
        help="what builds the network, importable from here: returns it, or it and a transform "
        "from a PIL image to its input",
    )
    take("--model-b", metavar="MODULE:FUNCTION", help="the same for the second (default: --model)")
    take(
        "--data",
        required=True,
        help="a folder of images, a data set by its name (mnist5k is always there), or a "
        "safetensors file with a tensor 'inputs'",
    )
    take("--metric", default="svcca", help="svcca (default), cca, pwcca, cka, procrustes, ...")
    take("--layers", nargs="+", metavar="LAYER", help="only these (default: all)")
    take("--layers-b", nargs="+", metavar="LAYER", help="of the second network (default: --layers)")
    take(
        "--null",
        type=int,
        default=3,
        metavar="N",
        help="permutations of the inputs for what unrelated layers would give (default: 3)",
    )
    take("--examples", type=int, metavar="N", help="how many inputs to draw (default: up to 1000)")
    take("--out", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)")
    take("--device", type=device, default="cpu", help="cpu, cuda, cuda:N or auto")
