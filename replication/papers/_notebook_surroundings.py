"""What a notebook's results depend on: code, parameters, data, versions and the environment."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from replication._core import paths, profiles
from replication._core.files import read_json
from replication.data import _locations

PACKAGE = Path(__file__).resolve().parent


@contextmanager
def environment(profile: str) -> Iterator[None]:
    """Set what the kernels inherit, and put it back afterwards."""
    before = dict(os.environ)
    os.environ[profiles.VARIABLE] = profile
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # debugpy's notice on frozen modules
    os.environ["TQDM_DISABLE"] = "1"  # nobody watches, and a bar would stay in the notebook
    os.environ.pop("MPLBACKEND", None)  # figures belong into the notebook
    # The kernel runs this very package, also where it is not installed, ...
    python_path = [str(PACKAGE.parent), *filter(None, [before.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(python_path)
    # ... and in another working directory, where relative paths would mean something else.
    for name in ("REPLICATION_ROOT", "REPLICATION_DATA"):
        if before.get(name):
            os.environ[name] = str(Path(before[name]).expanduser().resolve())
    for root in (paths.root(), PACKAGE.parent):
        if (root / ".ipython" / "profile_default" / "ipython_kernel_config.py").is_file():
            os.environ["IPYTHONDIR"] = str(root / ".ipython")
            break
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def find_surroundings() -> dict[str, Any]:
    """Return what the results depend on besides the notebook and its parameters."""

    def located(name: str) -> str:
        found, _ = _locations.find(name)
        return f"{found} {found.fingerprint}" if found else "absent"

    versions = {}
    for name in ("torch", "numpy", "scipy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return {
        "sources": {
            file.relative_to(PACKAGE).as_posix(): hashlib.blake2b(file.read_bytes()).hexdigest()
            for file in sorted(PACKAGE.rglob("*.py"))
        },
        "data": {name: located(name) for name in _locations.INFO},
        "versions": versions,
    }


def digest(notebook: Any, parameters: Mapping[str, Any], surroundings: Mapping[str, Any]) -> str:
    """Return a digest of a notebook's code, its parameters and what `find_surroundings` found."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    text = repr((code, sorted(parameters.items()), sorted(surroundings.items())))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def up_to_date(record: Path, output: Path, key: str) -> bool:
    """Tell whether `record` is of a run like this one, all of whose files are still there."""
    try:
        known = read_json(record)
        return (
            known["key"] == key
            and output.is_file()
            and all((record.parent / name).is_file() for name in known["files"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
