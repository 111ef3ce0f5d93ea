"""Many configurations to results: each computed once, kept in a file, never computed again."""

from replication.sweeps._code import fingerprint, named_by_spec
from replication.sweeps.run import SweepError, run

__all__ = ["SweepError", "fingerprint", "named_by_spec", "run"]
