"""The command line: ``python -m replication figures | run | verify | data | compare | ...``.

Heavy imports (torch, papermill) stand inside the commands, so that ``--help`` answers at once.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from replication._core import paths, profiles


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0 is success; 75, a run that was stopped and goes on when called again; 1, a notebook or a
    download that failed; 2, a mistake in how the command was used, told in one line on stderr; 130,
    an interruption. A bug keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):  # a console of ASCII or cp1252 has no check marks
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
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

    def add(name: str, command: Callable, help: str, description: str | None = None) -> Callable:
        """Add a command and return what takes its arguments."""
        own = commands.add_parser(name, help=help, description=description or help)
        own.set_defaults(command=command)
        return own.add_argument

    take = add(
        "figures",
        _figures,
        "run notebooks: figures, plotted numbers, claims",
        "Run notebooks, each into figures/PROFILE/NOTEBOOK/, as many at once as cores. One that "
        "has not changed since it last succeeded is skipped; after a failure the others go on.",
    )
    take("--only", nargs="+", action="extend", metavar="NOTEBOOK", help="numbers: 04")
    _take_parameters(take, "quick")
    take("--jobs", type=int, metavar="N", help="notebooks at once, one thread each")
    take("--force", action="store_true", help="run also what is up to date")
    take("--in-place", action="store_true", help="write the outputs back into notebooks/")

    take = add(
        "run",
        _run,
        "train and measure what notebooks show, without Jupyter, for a given time",
        "Train and measure what notebooks show. Results are kept in data/runs/ (below "
        "$REPLICATION_ROOT) and not computed again, also not by `figures`. SIGINT, SIGTERM or the "
        "end of --for stop it at any moment with status 75, and at most half a minute of training "
        "is lost; the same command goes on.",
    )
    take("notebooks", nargs="*", metavar="NOTEBOOK", help="numbers: 04; default: all")
    _take_parameters(take, "full")
    take("--for", dest="limit", metavar="TIME", help="90s, 9m or 2h, at least 1s")
    take("--only", nargs="+", action="extend", metavar="TITLE", help="only these experiments")

    take = add(
        "evidence",
        _evidence,
        "list the committed results of notebooks, and add what data/runs has",
        "Bring the results of data/runs/ into data/evidence/ and list what is there.",
    )
    take("notebooks", nargs="*", metavar="NOTEBOOK", help="numbers: 04; default: all")
    _take_parameters(take, "full")
    take = add("verify", _verify, "compute some committed results anew; status 1 if any differs")
    take("notebooks", nargs="+", metavar="NOTEBOOK", help="numbers: 04")
    _take_parameters(take, "full")
    take("--sample", type=int, default=3, metavar="K", help="how many results (default: 3)")
    take("--seed", type=int, default=0, metavar="N", help="of the draw (default: 0)")

    take = add("audit", _audit, "the history of rules against that of the evidence they judge")
    take("--register", action="store_true", help="write down the rules, to be committed")

    take = add("data", _data, "list the data sets and where each was found, or fetch those named")
    take("names", nargs="*", metavar="NAME", help="data sets to fetch when missing")

    take = add(
        "compare",
        _compare,
        "compare the layers of two networks of your own",
        "Compare every layer of one network to every layer of another, over the same inputs; "
        "write a figure (PNG) and the numbers (JSON).",
    )
    _take_compare(take)
    add("scorecard", _scorecard, "rewrite figures/SCORECARD.md")
    add("doctor", _doctor, "what this machine has and what would be used")
    return parser


def _take_parameters(take: Callable, default: str) -> None:
    """Take what sets the parameters of notebooks."""
    scale = f"the scale (default: ${profiles.VARIABLE}, or {default})"
    take("--profile", choices=profiles.PROFILES, help=scale)
    take("--dataset", help="a data set in place of the notebook's own; or auto")
    take("--device", type=_device, help="cpu, cuda, cuda:N or auto")
    take("--cluster", help="local, or the address of a Dask scheduler")


def _take_compare(take: Callable) -> None:
    """Take the arguments of `papers._compare.run`, under the names they have there."""
    builder = "returns the network, or it and a transform from a PIL image to its input"
    inputs = "a folder of images, a data set's name, or a safetensors file with a tensor 'inputs'"
    prefix = "what names in the files begin with and the network's do not: model. (Lightning)"
    null = "permutations of the inputs for what unrelated layers would give (default: 3)"
    take("weights", nargs=2, metavar="WEIGHTS.safetensors", help="a state dict each")
    take("--model", required=True, metavar="MODULE:FUNCTION", help=builder)
    take("--model-b", metavar="MODULE:FUNCTION", help="the same for the second (default: --model)")
    take("--prefix", default="", help=prefix)
    take("--prefix-b", metavar="PREFIX", help="of the second file (default: --prefix)")
    take("--data", required=True, help=inputs)
    take("--metric", default="svcca", help="svcca (default), cca, pwcca, cka, procrustes, ...")
    take("--unbiased", action="store_true", help="unbiased cka: about 0 for unrelated layers")
    take("--layers", nargs="+", metavar="LAYER", help="names or patterns, as 'blocks.*' (all)")
    take("--layers-b", nargs="+", metavar="LAYER", help="of the second network (default: --layers)")
    take("--null", type=int, default=3, metavar="N", help=null)
    take("--examples", type=int, metavar="N", help="how many inputs to draw (default: up to 1000)")
    take("--out", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)")
    take("--device", type=_device, default="cpu", help="cpu, cuda, cuda:N or auto")


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not cpu, cuda, cuda:N or auto")
    return text


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _check_data_set(name: str | None) -> None:
    from replication import data

    if name not in (None, "auto", *data.NAMES):
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(data.NAMES)}")


def _chosen(options: argparse.Namespace) -> dict[str, str]:
    """Return the parameters that were given, the data set among them known."""
    _check_data_set(options.dataset)
    parameters = {name: getattr(options, name) for name in ("dataset", "device", "cluster")}
    return {name: value for name, value in parameters.items() if value is not None}


def _figures(options: argparse.Namespace) -> int:
    from replication.papers import _figures

    chosen = _chosen(options)
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

    return _run.run(
        _figures.select(options.notebooks or None),
        profile=options.profile or profiles.resolve("full"),
        limit=None if options.limit is None else _run.seconds(options.limit),
        only=options.only,
        **_chosen(options),
    )


def _plans(options: argparse.Namespace) -> Iterator[tuple[str, dict]]:
    """Yield the name and the experiments of each notebook that has some."""
    from replication.papers import _figures, _run

    chosen = _chosen(options)
    chosen.pop("cluster", None)
    for path in _figures.select(options.notebooks or None):
        if (paper := _run.module(path)) is not None:
            yield path.stem, paper.plan(options.profile or profiles.resolve("full"), **chosen)


def _evidence(options: argparse.Namespace) -> int:
    from replication.papers import _evidence

    for name, experiments in _plans(options):
        _evidence.report(name, experiments)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from replication.papers import _evidence

    sample, seed = options.sample, options.seed
    return int(sum(_evidence.verify(*plan, sample, seed) for plan in _plans(options)) > 0)


def _audit(options: argparse.Namespace) -> int:
    from replication.papers import _audit

    if options.register:
        print(f"written to {_audit.register()}")
        return 0
    print(_audit.audit().to_string())
    if changed := _audit.changed():
        print(f"not as registered: {', '.join(changed)}; `audit --register` writes them down")
    return int(bool(changed))


def _data(options: argparse.Namespace) -> int:
    from replication import data
    from replication.papers._doctor import where

    for name in options.names:
        _check_data_set(name)
    status = 0
    for name in options.names or data.NAMES:
        try:
            location = data.locate(name)
            if options.names and (location is None or location.fault):
                data.fetch(name)
            print(f"{name:<17}{where(name)}")
        except (ValueError, OSError) as error:
            print(f"replication: error: {name}: {_one_line(error)}", file=sys.stderr)
            status = 1
    return status


def _compare(options: argparse.Namespace) -> int:
    from replication.papers import _compare

    if os.getcwd() not in sys.path:  # `python -m` has it, another way to start may not
        sys.path.insert(0, os.getcwd())
    return _compare.run(**{k: value for k, value in vars(options).items() if k != "command"})


def _scorecard(options: argparse.Namespace) -> int:
    from replication.claims import scorecard
    from replication.papers import _audit

    path = scorecard.write(history=_audit.told())
    rows = scorecard.select(scorecard.collect())
    readme = paths.root() / "README.md"
    if readme.is_file() and scorecard.BEGIN in readme.read_text(encoding="utf-8"):
        scorecard.update_readme(readme, rows)
    print(f"{scorecard.summary(rows)}\nwritten to {path}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from replication.papers import _doctor

    _doctor.report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
