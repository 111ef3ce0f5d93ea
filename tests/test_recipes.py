"""The recipes of docs/recipes.md run as they stand, where their packages are at hand."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from replication._core import vision  # before torchvision, which may need help

ROOT = Path(__file__).parent.parent
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^## (.*?)\n.*?```python\n(.*?)```", RECIPES, re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("ignore")  # of the other packages
@pytest.mark.parametrize("code", [code for _, code in BLOCKS], ids=[title for title, _ in BLOCKS])
def test_recipe(code):
    needed = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    if absent := [name for name in needed if not importlib.util.find_spec(name)]:
        pytest.skip(f"{', '.join(absent)} not installed")
    assert vision.models
    exec(code, {})


def test_the_recipes_of_what_is_always_here_run():
    always = {"torch", "torchvision", "tempfile", "replication"}
    names = [set(re.findall(r"^(?:import|from) (\w+)", c, re.MULTILINE)) for _, c in BLOCKS]
    assert sum(found <= always for found in names) == 4 and len(BLOCKS) == 8


@pytest.mark.slow
def test_the_example_notebook_runs():
    cells = json.loads((ROOT / "examples" / "compare_two_networks.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    exec("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code"), {})
