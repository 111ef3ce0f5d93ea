"""What ``figures`` and ``sweep`` take on the command line, read without heavy imports."""

import argparse
from collections.abc import Callable

from replication._core import profiles
from replication.training import _budget

SWEEP = """\
Run notebooks as plain scripts: no Jupyter is needed. What they train and measure is stored in
data/runs/ (below $REPLICATION_ROOT), one small file a result, and is not done again, also not by
`figures`; figures and claims go to figures/PROFILE/NOTEBOOK/."""
STATUS = """\
With --budget nothing new is begun once the time is over: a training stops at the present step and
stores it; another measurement, or a figure, under way goes to its end. Exit status: 0, complete;
75, the budget is spent: call again; 1, a notebook failed; 2, a mistake in how the command was
used."""


def add_parameters(parser: argparse.ArgumentParser, device: Callable[[str], str]) -> None:
    """Add what sets the parameters of notebooks."""
    parser.add_argument("--dataset", help="a data set in place of the notebook's own; or auto")
    parser.add_argument("--device", type=device, help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--cluster", help="local, or the address of a Dask scheduler")


def parameters(options: argparse.Namespace) -> dict[str, str]:
    """Return what was asked for of the notebooks' parameters; ValueError if it cannot be."""
    if options.dataset not in (None, "auto"):
        check_data_set(options.dataset)
    names = ("dataset", "device", "cluster")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def check_data_set(name: str) -> None:
    """Raise ValueError if there is no data set of that name."""
    from replication import data

    if name not in data.NAMES:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(data.NAMES)}")


def add_sweep(parser: argparse.ArgumentParser, device: Callable[[str], str]) -> None:
    """Add the arguments of ``sweep``."""
    parser.add_argument(
        "notebooks", nargs="*", metavar="NOTEBOOK", help="numbers or beginnings: 04; default: all"
    )
    parser.add_argument(
        "--profile",
        choices=profiles.PROFILES,
        help=f"the scale of the run (default: ${profiles.VARIABLE}, or paper)",
    )
    parser.add_argument("--budget", type=_time, metavar="TIME", help="90s, 9m or 2h, at least 1s")
    add_parameters(parser, device)


def _time(text: str) -> float:
    try:
        return _budget.seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
