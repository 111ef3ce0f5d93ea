"""Settings for every pytest run here, also for a plain ``pytest --nbval-lax notebooks/``."""

import os
import sys
from pathlib import Path

import pytest

# Notebooks run at their smallest scale unless told otherwise, ...
os.environ.setdefault("REPLICATION_PROFILE", "smoke")
# ... without progress bars, ...
os.environ.setdefault("TQDM_DISABLE", "1")
# ... and with the kernel settings of this checkout and not with those of the user.
os.environ.setdefault("IPYTHONDIR", str(Path(__file__).resolve().parent / ".ipython"))


def pytest_configure(config):
    """Let nbval reach its kernels without a network, as `make figures` does."""
    if not (config.getoption("nbval", False) or config.getoption("nbval_lax", False)):
        return
    import nbval.kernel

    from replication.papers._kernels import local

    nbval.kernel.KernelManager = local(nbval.kernel.KernelManager)


def pytest_runtest_setup():
    """Let every test draw the same numbers, whichever ran before it, and its fixtures too."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Skip what is marked ``gpu`` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module")
def one_thread():
    """Let torch use one thread: more wait for one another in small sums, and change their bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
