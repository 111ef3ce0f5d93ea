"""Settings of the kernels that `make figures`, `make test` and `make lab` start."""

c = get_config()  # noqa: F821

# ipykernel 7.4 warns at every start that it listens on a local TCP port; nothing to act on here.
c.IPKernelApp.log_level = "ERROR"

# Notebooks that run unattended leave no history, and share no database that could be locked.
c.HistoryManager.enabled = False
