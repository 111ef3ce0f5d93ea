"""Settings for every pytest run here, also for a plain ``pytest --nbval-lax notebooks/``."""

import os
from pathlib import Path

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

    from replication._kernels import local

    nbval.kernel.KernelManager = local(nbval.kernel.KernelManager)
