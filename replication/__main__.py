"""The command line: ``python -m replication figures | sweep | data | compare | ...``.

Heavy imports (torch, papermill) stand inside the commands, so that ``--help`` answers at once.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from replication._core import paths, profiles
from replication.papers import _compare_arguments, _notebook_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0 is success; 75, a sweep whose budget is spent; 1, a notebook or a download that failed; 2, a
    mistake in how the command was used, told in one line on stderr; 130, an interruption. A bug
    keeps its traceback.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
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
        description="Run notebooks, each into figures/PROFILE/NOTEBOOK/. One that has not changed "
        "since it last succeeded is skipped; after a failure the others go on.",
    )
    figures.add_argument(
        "--only", nargs="+", action="extend", metavar="NOTEBOOK", help="numbers or beginnings: 04"
    )
    figures.add_argument(
        "--profile",
        choices=profiles.PROFILES,
        help=f"the scale of the run (default: ${profiles.VARIABLE}, or quick)",
    )
    _notebook_arguments.add_parameters(figures, _device)
    figures.add_argument("--force", action="store_true", help="run also what is up to date")
    figures.add_argument(
        "--in-place",
        action="store_true",
        help="write the executed notebook back into notebooks/ (for maintainers)",
    )
    figures.set_defaults(command=_figures)

    sweep = commands.add_parser(
        "sweep",
        help="run notebooks without Jupyter, for a given time at a stretch",
        description=_notebook_arguments.SWEEP,
        epilog=_notebook_arguments.STATUS,
    )
    _notebook_arguments.add_sweep(sweep, _device)
    sweep.set_defaults(command=_sweep)

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
    _compare_arguments.add(compare, _device)
    compare.set_defaults(command=_compare)

    scorecard = commands.add_parser("scorecard", help="rewrite figures/SCORECARD.md")
    scorecard.set_defaults(command=_scorecard)

    front = commands.add_parser(
        "front-page",
        help="draw the README's figure and thumbnails from the numbers of figures/full",
    )
    front.set_defaults(command=_front_page)

    site = commands.add_parser(
        "site", help="write the executed notebooks, the scorecard and the API as a website"
    )
    site.add_argument("--to", type=Path, metavar="DIR", help="the folder (default: site/)")
    site.set_defaults(command=_site)

    doctor = commands.add_parser("doctor", help="what this machine has and what would be used")
    doctor.set_defaults(command=_doctor)
    return parser


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not cpu, cuda, cuda:N or auto")
    return text


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _figures(options: argparse.Namespace) -> int:
    from replication.papers import _notebook_files, _notebooks

    chosen = _notebook_arguments.parameters(options)
    if options.in_place and chosen:
        raise ValueError(
            f"--in-place runs notebooks as they stand; leave out --{', --'.join(chosen)}"
        )
    selected = _notebook_files.select(options.only)
    profile = options.profile or profiles.resolve("quick")
    if profile == "paper":
        from replication import _estimates

        print(_estimates.text(selected, {"profile": profile, **chosen}), flush=True)
    return _notebooks.run(
        selected,
        profile=profile,
        parameters=chosen,
        force=options.force,
        in_place=options.in_place,
    )


def _sweep(options: argparse.Namespace) -> int:
    from replication import _sweep_command
    from replication.papers import _notebook_files

    profile = options.profile or profiles.resolve("paper")
    return _sweep_command.run(
        _notebook_files.select(options.notebooks or None),
        profile=profile,
        parameters=_notebook_arguments.parameters(options),
        budget=options.budget,
        estimate=profile == "paper",
    )


def _data(options: argparse.Namespace) -> int:
    from replication import data
    from replication.papers._doctor import where

    for name in options.names:
        _notebook_arguments.check_data_set(name)
    if not options.names:
        for name in data.NAMES:
            print(f"{name:<17}{where(name)}")
        return 0
    failed = False
    for name in options.names:
        try:
            found = data.locate(name)
            if found is None or found.fault:
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


def _front_page(options: argparse.Namespace) -> int:
    import matplotlib

    matplotlib.use("agg")  # no display is needed
    from replication import front_page

    print(f"written to {front_page.write()}")
    return 0


def _site(options: argparse.Namespace) -> int:
    from replication import site

    print(f"open {site.build(options.to)} in a browser")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from replication.papers import _doctor

    _doctor.report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
