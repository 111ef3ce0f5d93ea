"""What other people's packages print for one input, beside ours: docs/other_implementations.md."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from replication import similarity as sim

DOCS = Path(__file__).parent.parent / "docs" / "other_implementations.md"
rng = np.random.RandomState(0)
X, Y = rng.randn(30, 25), rng.randn(30, 25)


def ours() -> dict[str, float]:
    """Return ours by the expression that stands in the table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few examples
        values = {
            "cca(x, y).mean": sim.cca(X, Y).mean,
            "cka(x, y)": sim.cka(X, Y),
            "cka(x, y, unbiased=True)": sim.cka(X, Y, unbiased=True),
            "cos procrustes(x, y, angular=True)": math.cos(sim.procrustes(X, Y, angular=True)),
            'rsa(x, y, "correlation")': sim.rsa(X, Y, "correlation"),
            'rsa(x, y, "euclidean")': sim.rsa(X, Y, "euclidean"),
        }
    return values | {
        f"arccos {name}": math.acos(v) for name, v in values.items() if name[:3] != "cos"
    }


ROWS = [
    [cell.strip().strip("`") for cell in line.strip("| \n").split(" | ")]
    for line in DOCS.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and line.split(" | ")[1].strip().isdecimal()
]


def test_where_they_do_not_agree_ours_are_what_the_table_says():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few examples
        values = {
            "SVCCA": sim.svcca(X, Y).mean,
            "RBF CKA, all six readings": sim.cka(X, Y, "rbf"),
            "permutation of units, score": sim.unit_matching(X, Y),
            "PWCCA": sim.pwcca(X, Y),
        }
    table = {row[0]: row[3] for row in ROWS if row[3][:2] == "0."}
    assert table.keys() == values.keys()
    for name, shown in table.items():  # to the digits that are shown
        last = 10.0 ** (2 - len(shown))
        assert float(values[name]) == pytest.approx(float(shown), abs=0.51 * last, rel=0), name


def test_each_of_our_expressions_is_in_the_table():
    assert {row[3] for row in ROWS if len(row) > 4 and row[4] == "equal"} <= set(ours())
    assert sum(int(row[1]) for row in ROWS) == 116


@pytest.mark.parametrize("row", [row for row in ROWS if row[4] == "equal"], ids=lambda row: row[0])
def test_where_definitions_agree_numbers_do(row):
    assert ours()[row[3]] == pytest.approx(float(row[2]), abs=1e-9)
