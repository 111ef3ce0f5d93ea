"""Examples in docstrings run; every public function of the packages of numerics has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import replication

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(replication.__path__, "replication.")
    if not module.name.endswith("__main__")
)
NUMERICS = ("similarity", "sensitivity", "directions", "memorisation")
# Shown by the example of another function: these take its result, or differ from it in one number.
BESIDE = {
    "sensitivity.cross_entropies",
    "sensitivity.cross_entropy_bounds",
    "sensitivity.fraction_inside",
    "sensitivity.jacobian_row_norm",
    "sensitivity.mean_square_gradient",
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    torch.manual_seed(0)
    found = doctest.testmod(importlib.import_module(name))
    assert not found.failed


@pytest.mark.parametrize("package", NUMERICS)
def test_public_functions_have_an_example(package):
    module = importlib.import_module(f"replication.{package}")
    functions = {
        f"{package}.{name}": getattr(module, name)
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    }
    without = {name for name, function in functions.items() if ">>>" not in function.__doc__}
    assert without == BESIDE & set(functions)
