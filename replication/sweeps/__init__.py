"""Many configurations to results: each computed once, kept in a file, never computed again."""

from replication.sweeps.run import SweepError, load, run

__all__ = ["SweepError", "load", "run"]
