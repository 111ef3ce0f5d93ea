"""Settings of the kernels that `make figures`, `make test` and `make lab` start."""

c = get_config()  # noqa: F821

# ipykernel 7.4 warns at every start that it listens on a local TCP port, and prints a traceback of
# its own when a run is interrupted: nothing to act on. Errors of a notebook's code are not logged
# but shown in the notebook.
c.IPKernelApp.log_level = "CRITICAL"

# Notebooks that run unattended leave no history, and share no database that could be locked.
c.HistoryManager.enabled = False
