"""The guarded import of torchvision, and that nothing else imports it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from replication import data


def test_torchvision_is_imported_in_one_place():
    package = Path(data.__file__).parent
    found = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            called = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
            if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
                names += [value for value in called if isinstance(value, str)]
            if any(name.split(".")[0] == "torchvision" for name in names):
                found.add(str(file.relative_to(package)))
    assert found == {"_torchvision.py"}


def run(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(data.__file__).parent.parent,
        check=False,
    )


def test_torchvision_is_not_needed_to_read_files():
    done = run("import sys; from replication import data; data.load('mnist5k');"
               "assert not any(m.startswith('torchvision') for m in sys.modules)")  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_guarded_import():
    from replication._core import vision

    assert vision.__version__.split(".")[0].isdigit()
    assert vision.datasets.MNIST and vision.models.resnet18
    assert vision.transforms.ToTensor
    assert sys.modules["torchvision"].datasets is vision.datasets


@pytest.mark.parametrize("fails", ["operator torchvision::nms does not exist", "another reason"])
def test_the_guard_acts_for_one_reason_only(fails, monkeypatch):
    from replication._core import vision

    tries, defined = [], []

    class Library:
        def __init__(self, *arguments):
            defined.append(arguments)

        def define(self, schema):
            defined.append(schema.split("(")[0])

    def importing(name):
        tries.append(name)
        if len(tries) == 1:
            sys.modules["torchvision.half"] = sys
            raise RuntimeError(fails)
        return "module"

    kept = {name: m for name, m in sys.modules.items() if name.split(".")[0] == "torchvision"}
    monkeypatch.setattr(vision, "_library", vision._library)
    monkeypatch.setattr(vision.importlib, "import_module", importing)
    monkeypatch.setattr(torch.library, "Library", Library)
    try:
        if fails == "another reason":
            with pytest.raises(RuntimeError, match=fails):
                vision._load()
            assert defined == []
        else:
            assert vision._load() == "module"
            assert defined == [("torchvision", "DEF"), "nms", "qnms"]
            assert not any(name.startswith("torchvision") for name in sys.modules)
    finally:
        sys.modules.pop("torchvision.half", None)
        sys.modules.update(kept)
