"""Where the project keeps its files.

Everything hangs off one root: the checkout that holds this package, or the folder named by the
environment variable ``REPLICATION_ROOT``. Data sets are also looked for in ``REPLICATION_DATA``.
"""

import os
from pathlib import Path


def root() -> Path:
    """Return the folder that holds ``notebooks/``, ``data/`` and ``figures/``."""
    chosen = os.environ.get("REPLICATION_ROOT")
    if chosen:
        return Path(chosen).expanduser().resolve()
    checkout = Path(__file__).resolve().parent.parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def notebooks() -> Path:
    """Return the folder of the notebooks."""
    return root() / "notebooks"


def data() -> Path:
    """Return the folder into which data sets are downloaded."""
    return root() / "data"


def runs() -> Path:
    """Return the folder of trained networks and measured results."""
    return data() / "runs"


def evidence() -> Path:
    """Return the folder of committed results."""
    return data() / "evidence"


def figures() -> Path:
    """Return the folder of figures, claims and the scorecard."""
    return root() / "figures"
