"""Imports point one way, without a circle: which package may know which."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "replication"
NUMERICS = ("similarity", "sensitivity", "directions", "memorisation", "spectra")
GROUND = ("_core", "activations")
# Each part of the package, and those that it may import besides itself.
MAY_KNOW = {
    "_core": (),
    "activations": ("_core",),
    "plotting": ("_core",),
    "models": ("_core",),
    "data": ("_core",),
    **dict.fromkeys(NUMERICS, (*GROUND, *NUMERICS)),
    "training": (*GROUND, "models", "data"),
    "sweeps": ("_core",),
    "claims": ("_core",),
}
MAY_KNOW["papers"] = tuple(MAY_KNOW)
MAY_KNOW["__main__"] = (*MAY_KNOW,)
LAZY = {("similarity", "plotting")}  # a grid draws itself, where matplotlib is wanted


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> set[str]:
    """Return the names that a file imports from this package, wherever in it they stand."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("replication.")}


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def part(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("name", [name for name in FILES if name.count(".")])
def test_a_module_imports_nothing_above_it(name):
    known = {part(other) for other in imports(TREES[name])} - {part(name)}
    lazy = {other for mine, other in LAZY if mine == part(name)}
    assert known - lazy <= set(MAY_KNOW[part(name)])


def dependencies(name: str) -> set[str]:
    """Return the modules that importing `name` imports, its package's `__init__` apart."""
    found = set()
    for other in imports(TREES[name]):
        module = other if other in FILES else other.rpartition(".")[0]
        lazy = (part(name), part(other)) in LAZY
        # `from replication.x import y` within x asks for the module y, not for what x exports.
        if module in FILES and module != name and not lazy and not name.startswith(f"{module}."):
            found.add(module)
    return found


def test_there_is_no_circle_of_modules():
    order = TopologicalSorter({name: dependencies(name) for name in FILES})
    assert len(list(order.static_order())) >= len(FILES)  # a circle raises CycleError


def test_the_top_is_small():
    names = {path.stem for path in PACKAGE.iterdir()} - {"__pycache__", "py", "__init__"}
    assert names == set(MAY_KNOW)
