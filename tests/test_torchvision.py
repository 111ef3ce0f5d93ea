"""The guarded import of torchvision, and that nothing else imports it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import replication
from replication._core import vision

PACKAGE = Path(replication.__file__).parent


def test_torchvision_is_imported_in_one_place():
    importing = re.compile(r"^\s*(import|from) torchvision|import_module\(.torchvision", re.M)
    files = [file for file in PACKAGE.rglob("*.py") if importing.search(file.read_text("utf-8"))]
    assert [file.relative_to(PACKAGE).as_posix() for file in files] == ["_core/vision.py"]


def test_torchvision_is_not_needed_to_read_files():
    code = (
        "import sys; from replication import data; from replication.papers import own_models;"
        "data.load('mnist5k');"
        "assert not any(m.startswith('torchvision') for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=PACKAGE.parent, check=True)


def test_the_guarded_import():
    assert vision.datasets.MNIST and vision.models.resnet18 and vision.transforms.ToTensor
    assert sys.modules["torchvision"].datasets is vision.datasets


@pytest.mark.parametrize("fails", ["operator torchvision::nms does not exist", "another reason"])
def test_the_guard_acts_for_one_reason_only(fails, monkeypatch):
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
