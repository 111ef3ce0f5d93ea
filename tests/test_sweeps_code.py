"""Which changes of a measuring function's code give its results another key, and which do not."""

import importlib.util
import sys
import textwrap

import pytest
import torch

from replication import similarity
from replication.sweeps import fingerprint, named_by_spec

SOURCE = """
    import functools
    import math

    import numpy as np

    from replication import data, models, similarity, training
    from replication.sweeps import named_by_spec

    SCALES = {"few": (1, 2), "many": (3, 4)}
    OTHER = 5

    def helper(x, power=2):
        return x**power

    def unused(x):
        return x + 1

    class Table:
        def total(self, spec):
            return helper(spec["x"]) + OTHER

    @named_by_spec
    def network(seed):
        return training.Spec(model="mlp", seed=seed)

    @functools.lru_cache
    def cached(x):
        return np.sum(x) + math.pi

    def measure(spec):
        '''What it measures.'''
        network(0)
        table = Table()  # a comment
        low = [helper(s) for s in SCALES[spec["scale"]]]
        return {"value": table.total(spec) + cached(1.0), "low": low, "cka": similarity.cka}
"""


@pytest.fixture
def code(tmp_path):
    """Return the fingerprint of `measure` in a module of this text, changed as told."""
    names = []

    def of(*changes):
        text = textwrap.dedent(SOURCE)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        name = f"measured_{len(names)}"
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("measured", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["measured"] = module
        names.append(name)
        spec.loader.exec_module(module)
        return fingerprint(module.measure)[0]

    yield of
    sys.modules.pop("measured", None)


@pytest.mark.parametrize(
    "change",
    [
        ("x**power", "x**power + 0"),
        ("power=2", "power=3"),
        ('"few": (1, 2)', '"few": (1, 3)'),
        ("OTHER = 5", "OTHER = 6"),
        ("+ OTHER", "- OTHER"),
        ("math.pi", "math.e"),
        ("cached(1.0)", "cached(2.0)"),
        ("similarity.cka", "similarity.cca"),
    ],
)
def test_what_changes_results_changes_the_key(code, change):
    assert code(change) != code()


@pytest.mark.parametrize(
    "change",
    [
        ("  # a comment", ""),
        ("'''What it measures.'''", "'''Another sentence.'''"),
        ("x + 1", "x + 2"),
        ("def unused", "def renamed"),
        ('model="mlp"', 'model="tiny10"'),
        ('spec["x"]', "spec['x']"),
        ("low = [", "low = [\n            "),
    ],
)
def test_what_changes_no_result_keeps_the_key(code, change):
    assert code(change) == code()


def test_the_version_of_a_part_is_in_the_key(code, monkeypatch):
    before = code()
    monkeypatch.setattr(similarity, "VERSION", similarity.VERSION + 1)
    assert code() != before


def closure(power, table=None):
    def measure(spec):
        return {"value": spec["x"] ** power, "table": table}

    return measure


def test_closures_of_one_name_are_told_apart():
    table = torch.arange(3.0)
    keys = [closure(2), closure(3), closure(2, table), closure(2, table + 1)]
    assert len({fingerprint(fn)[0] for fn in keys}) == 4
    assert fingerprint(closure(2, table.clone())) == fingerprint(closure(2, table))


def test_code_without_a_source_is_told_by_what_was_compiled():
    def typed(text):
        space = {"__name__": "__main__"}
        exec(f"def measure(spec):\n    return {text}", space)
        return fingerprint(space["measure"])[0]

    assert typed("{'x': 1}") != typed("{'x': 2}")
    assert typed("{'x': len(spec)}") != typed("{'x': abs(spec)}")
    assert typed("{'x': 1}") == typed("{'x': 1}")


SETTINGS = {"full": {"seeds": 3}}


def test_a_table_of_profiles_is_not_to_be_read_by_a_measurement():
    def measure(spec):
        return {"seeds": SETTINGS["full"]["seeds"]}

    @named_by_spec
    def recipe():
        return SETTINGS["full"]

    def by_recipe(spec):
        return recipe()

    with pytest.raises(ValueError, match="SETTINGS is read"):
        fingerprint(measure)
    fingerprint(by_recipe)


def test_a_function_may_refer_to_itself():
    def outer():
        def measure(spec):
            return measure(spec) if spec else {}

        return measure

    assert fingerprint(outer()) == fingerprint(outer())
