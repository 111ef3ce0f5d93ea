"""A claim, the rule that settles it, and the verdict computed from the seeds.

A rule is fixed in code before the run: a statistic for each seed, a threshold, the side of it on
which the claim holds, a test and the fewest seeds that count. `settle` turns the numbers of the
seeds into an interval and the interval into one of three verdicts:

* ``reproduced``: the whole interval lies strictly on the claimed side of the threshold;
* ``not reproduced``: it lies strictly on the other side, or has no width and lies on the threshold;
* ``inconclusive``: anything else, including too few seeds. `Rule` describes the tests.

A claim of several rules holds when every part does. It is reproduced when all parts are: an
intersection-union test, whose error is that of a single part without any correction (Berger 1982,
Technometrics 24, 295-300). It is not reproduced when any part is not; of this no such thing is
true: for a claim of r parts that does hold, the chance of a false ``not reproduced`` is at most
r a/2 rather than a/2, at confidence 1 - a.
"""

from replication.claims._file import FILE, load, ours, rules, save, table
from replication.claims.rule import VERDICTS, Outcome, Rule
from replication.claims.settle import Claim, Settled, seen, settle, settle_all

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = VERDICTS

__all__ = [
    "FILE",
    "INCONCLUSIVE",
    "NOT_REPRODUCED",
    "REPRODUCED",
    "VERDICTS",
    "Claim",
    "Outcome",
    "Rule",
    "Settled",
    "load",
    "ours",
    "rules",
    "save",
    "seen",
    "settle",
    "settle_all",
    "table",
]
