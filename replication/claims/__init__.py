"""Claims, the rules that settle them, and verdicts computed from independent units.

A rule, fixed in code before the run, is a signed statistic, the smallest effect of interest with
its source, and a test. Its verdict can be read off the 95% interval. A claim has one rule or
several parts, and perhaps a gate. ``docs/statistics.md`` has the tests and their error rates.
"""

from replication.claims._file import FILE, draw, load, ours, rules, save, table
from replication.claims.inference import FEWEST
from replication.claims.rule import VERDICTS, Part, Rule
from replication.claims.settle import Claim, Gate, Settled, seen, settle, settle_all

REPRODUCED, PARTLY, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTABLE = VERDICTS

__all__ = ["FEWEST", "FILE", "INCONCLUSIVE", "NOT_REPRODUCED", "NOT_TESTABLE", "PARTLY"]
__all__ += ["REPRODUCED", "VERDICTS", "Claim", "Gate", "Part", "Rule", "Settled"]
__all__ += ["draw", "load", "ours", "rules", "save", "seen", "settle", "settle_all", "table"]
