"""The command line: ``python -m replication figures | run | data | compare | ...``.

Heavy imports (torch, papermill) stand inside the commands, so that ``--help`` answers at once.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from replication._core import paths, profiles


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0 is success; 75, a run that was stopped and goes on when called again; 1, a notebook or a
    download that failed; 2, a mistake in how the command was used, told in one line on stderr; 130,
    an interruption. A bug keeps its traceback.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (ValueError, OSError) as error:
        print(f"replication: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("replication: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="replication", description="Replications of papers on a network's inner activations."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    figures = commands.add_parser(
        "figures",
        help="run notebooks: figures, plotted numbers, claims",
        description="Run notebooks, each into figures/PROFILE/NOTEBOOK/, as many at once as cores. "
        "One that has not changed since it last succeeded is skipped; after a failure the others "
        "go on.",
    )
    figures.add_argument(
        "--only", nargs="+", action="extend", metavar="NOTEBOOK", help="numbers or beginnings: 04"
    )
    _add_parameters(figures, "quick")
    figures.add_argument(
        "--jobs", type=_count, metavar="N", help="notebooks at once, one thread each"
    )
    figures.add_argument("--force", action="store_true", help="run also what is up to date")
    figures.add_argument(
        "--in-place",
        action="store_true",
        help="write the executed notebook back into notebooks/ (for maintainers)",
    )
    figures.set_defaults(command=_figures)

    run = commands.add_parser(
        "run",
        help="train and measure what notebooks show, without Jupyter, for a given time",
        description="Train and measure what notebooks show. Results are kept in data/runs/ (below "
        "$REPLICATION_ROOT) and not computed again, also not by `figures`. SIGINT, SIGTERM or the "
        "end of --for stop it at any moment with status 75, and at most half a minute of training "
        "is lost; the same command goes on.",
    )
    run.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="numbers: 04; default: all")
    _add_parameters(run, "full")
    run.add_argument("--for", dest="limit", metavar="TIME", help="90s, 9m or 2h, at least 1s")
    run.set_defaults(command=_run)

    data = commands.add_parser(
        "data", help="list the data sets and where each was found, or fetch the ones named"
    )
    data.add_argument("names", nargs="*", metavar="NAME", help="data sets to fetch when missing")
    data.set_defaults(command=_data)

    compare = commands.add_parser(
        "compare",
        help="compare the layers of two networks of your own",
        description="Compare every layer of one network to every layer of another, over the same "
        "inputs; write a figure (PNG) and the numbers (JSON).",
    )
    _add_compare(compare)
    compare.set_defaults(command=_compare)

    scorecard = commands.add_parser("scorecard", help="rewrite figures/SCORECARD.md")
    scorecard.set_defaults(command=_scorecard)

    doctor = commands.add_parser("doctor", help="what this machine has and what would be used")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_parameters(parser: argparse.ArgumentParser, default: str) -> None:
    """Add what sets the parameters of notebooks."""
    parser.add_argument(
        "--profile",
        choices=profiles.PROFILES,
        help=f"the scale (default: ${profiles.VARIABLE}, or {default})",
    )
    parser.add_argument("--dataset", help="a data set in place of the notebook's own; or auto")
    parser.add_argument("--device", type=_device, help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--cluster", help="local, or the address of a Dask scheduler")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `papers._compare.run`, under the names they have there."""
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
    take("--device", type=_device, default="cpu", help="cpu, cuda, cuda:N or auto")


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not cpu, cuda, cuda:N or auto")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _check_data_set(name: str | None) -> None:
    from replication import data

    if name not in (None, "auto", *data.NAMES):
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(data.NAMES)}")


def _figures(options: argparse.Namespace) -> int:
    from replication.papers import _figures

    _check_data_set(options.dataset)
    names = ("dataset", "device", "cluster")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.in_place and chosen:
        raise ValueError(
            f"--in-place runs notebooks as they stand; leave out --{', --'.join(chosen)}"
        )
    return _figures.run(
        _figures.select(options.only),
        profile=options.profile or profiles.resolve("quick"),
        parameters=chosen,
        force=options.force,
        in_place=options.in_place,
        jobs=options.jobs,
    )


def _run(options: argparse.Namespace) -> int:
    from replication.papers import _figures, _run

    _check_data_set(options.dataset)
    return _run.run(
        _figures.select(options.notebooks or None),
        profile=options.profile or profiles.resolve("full"),
        dataset=options.dataset,
        device=options.device,
        cluster=options.cluster,
        limit=None if options.limit is None else _run.seconds(options.limit),
    )


def _data(options: argparse.Namespace) -> int:
    from replication import data
    from replication.papers._doctor import where

    for name in options.names:
        _check_data_set(name)
    failed = False
    for name in options.names or data.NAMES:
        try:
            location = data.locate(name)
            if options.names and (location is None or location.fault):
                data.fetch(name)
            print(f"{name:<17}{where(name)}")
        except (ValueError, OSError) as error:
            print(f"replication: error: {name}: {_one_line(error)}", file=sys.stderr)
            failed = True
    return int(failed)


def _compare(options: argparse.Namespace) -> int:
    from replication.papers import _compare

    if os.getcwd() not in sys.path:  # `python -m` has it, another way to start may not
        sys.path.insert(0, os.getcwd())
    given = {name: value for name, value in vars(options).items() if name != "command"}
    return _compare.run(**given)


def _scorecard(options: argparse.Namespace) -> int:
    from replication.claims import scorecard

    path = scorecard.write()
    rows = scorecard.select(scorecard.collect())
    readme = paths.root() / "README.md"
    if readme.is_file() and scorecard.BEGIN in readme.read_text(encoding="utf-8"):
        scorecard.update_readme(readme, rows)
    print(scorecard.summary(rows).rstrip())
    print(f"\nwritten to {path}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from replication.papers import _doctor

    _doctor.report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
