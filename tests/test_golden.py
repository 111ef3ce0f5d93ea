"""Numbers change only with the VERSION of their part: results in the stores rely on it."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

MAKE = Path(__file__).parent / "golden" / "make.py"
spec = importlib.util.spec_from_file_location("golden", MAKE)
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)


@pytest.mark.parametrize("part", golden.PARTS)
def test_numbers_are_those_of_the_version(part):
    kept = json.loads(MAKE.with_name(f"{part}.json").read_text(encoding="utf-8"))
    made = golden.numbers(part)
    hint = f"raise VERSION of replication/{part} if this is wanted, then: python {MAKE.name} {part}"
    changed = []
    for name, values in made["numbers"].items():
        old = torch.tensor(kept["numbers"][name], dtype=torch.float64)
        new = torch.tensor(values, dtype=torch.float64)
        if old.shape != new.shape or not torch.allclose(old, new, rtol=1e-7, atol=1e-10):
            changed.append(name)
    assert made["version"] == kept["version"], f"make {part}.json anew: python {MAKE.name} {part}"
    assert not changed, hint
    assert made["numbers"].keys() == kept["numbers"].keys(), hint
