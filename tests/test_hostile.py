"""Files from strangers run no code, and no name given from outside leads out of its folder."""

import ast
import gzip
import io
import json
import os
import pickle
from functools import partial
from pathlib import Path

import _data_files
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from _tiny_runs import fit
from torch import nn

import replication
from replication import __main__, claims, data, plotting, sweeps
from replication.papers import _figures, own_models

ROOT = Path(replication.__file__).resolve().parent.parent

# --- no door to pickle -------------------------------------------------------------------------

MODULES = {
    *("pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "jsonpickle", "joblib"),
    *("shelve", "marshal", "copyreg", "yaml"),
}
# What unpickles, or runs what it is given, by the last part of its name or by the whole of it.
FUNCTIONS = {
    *("load_pickle", "read_pickle", "to_pickle", "read_hdf", "HDFStore", "__import__"),
    *("unsafe_load", "full_load", "PyExtensionType"),
}
WHOLE = {"torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package"}
WHOLE |= {"torch.serialization", "np.memmap", "eval", "exec", "compile"}
WHOLE |= {"builtins.eval", "builtins.exec", "builtins.compile"}
SAFE = {"allow_pickle": "False", "weights_only": "True", "pickle_module": None}


def is_door(node):
    """Return whether a node of a module could unpickle or run what a file holds."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        names = [prefix + alias.name for alias in node.names]
        return any(set(name.split(".")) & MODULES or name in WHOLE for name in names)
    if isinstance(node, ast.Name | ast.Attribute):
        name = ast.unparse(node)
        return name in WHOLE or name.split(".")[-1] in FUNCTIONS
    if isinstance(node, ast.Call):
        looks_up = ast.unparse(node.func) in ("getattr", "importlib.import_module")
        return looks_up and bool({ast.unparse(a).strip("'") for a in node.args} & MODULES)
    if isinstance(node, ast.keyword):
        return node.arg in SAFE and ast.unparse(node.value) != SAFE[node.arg]
    return False


def doors(code):
    return [ast.unparse(node) for node in ast.walk(ast.parse(code)) if is_door(node)]


DOORS = """\
import pickle
import _pickle as quick
import sklearn.externals.joblib
from marshal import loads
from torch import load
from distributed.protocol import pickle
reader = torch.load
torch.load(path, weights_only=False)
numpy.load(path, allow_pickle=trust)
frame.to_pickle(path)
yaml.unsafe_load(text)
eval(text)
importlib.import_module('pickle')
"""
NONE = """\
np.load(path)
np.load(path, allow_pickle=False)
re.compile(text)
model.load(path)
"""


def test_the_search_sees_every_door_and_passes_what_is_safe():
    assert all(doors(line) for line in DOORS.splitlines())
    assert not doors(NONE)


def sources():
    """Yield the Python of the package, the benchmarks, examples and templates, and of notebooks."""
    for folder in ("replication", "benchmarks", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, path.read_text("utf-8")
    for path in sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("templates/*.ipynb")]):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        lines = [line for line in "\n".join(code).splitlines() if line[:1] not in "%!"]
        yield path, "\n".join(lines)


def test_nothing_here_unpickles():
    # One file of a published package is read, with torch's reader that runs no code.
    safe = 'torch.load(files[0], map_location="cpu", weights_only=True)'
    texts = ((path, text.replace(safe, "None")) for path, text in sources())
    assert {(path.name, door) for path, text in texts for door in doors(text)} == set()
    assert len(list(sources())) > 100


# --- a malicious pickle by the name of a data file ---------------------------------------------


place = _data_files.place


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, place):
    (tmp_path / "root" / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)


class Trap:
    """An object whose pickle, when read, leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def of_torch(zipped):
    def write(trap):
        buffer = io.BytesIO()
        torch.save({"inputs": trap}, buffer, _use_new_zipfile_serialization=zipped)
        return buffer.getvalue()

    return write


def of_numpy(trap):
    buffer = io.BytesIO()
    np.save(buffer, np.array([trap], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def extension_type(trap):
    """Return a Parquet file in whose schema an old pyarrow unpickled (CVE-2023-47248)."""
    notes = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(trap),
    }
    field = pa.field("value", pa.int64(), metadata=notes)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"value": [1]}, schema=pa.schema([field])), buffer)
    return buffer.getvalue()


FORMS = {
    "pickle": pickle.dumps,
    "oldest pickle": lambda trap: pickle.dumps(trap, 0),
    "zipped by torch": of_torch(True),
    "by torch": of_torch(False),
    "by NumPy": of_numpy,
    "gzipped": lambda trap: gzip.compress(pickle.dumps(trap)),
    "extension type": extension_type,
}


@pytest.fixture(params=FORMS)
def content(request, tmp_path):
    """Yield what a malicious file holds; at the end nothing of it may have run."""
    yield FORMS[request.param](Trap(tmp_path / "sprung"))
    assert not (tmp_path / "sprung").exists()


def test_the_traps_would_spring(tmp_path):
    for name in ("pickle", "oldest pickle"):
        trap = tmp_path / name
        pickle.loads(FORMS[name](Trap(trap)))
        assert trap.is_dir()
    buffer = io.BytesIO(FORMS["by NumPy"](Trap(tmp_path / "array")))
    np.load(buffer, allow_pickle=True)
    assert (tmp_path / "array").is_dir()


def mlp():
    return nn.Sequential(nn.Linear(3, 2))


@pytest.mark.parametrize(
    "name", ["weights.pt", "w.safetensors", "w.pkl", "w.bin", "w.parquet", "data.npy"]
)
def test_no_pickle_is_taken_for_weights_or_data(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=name):
        own_models.load(path, mlp)
    with pytest.raises(ValueError, match=name):
        own_models.load_dataset(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match="no images"):
        own_models.load_dataset(folder)


@pytest.mark.parametrize("packed", [False, True])
def test_no_pickle_is_taken_for_an_idx_file(packed, content, place):
    for file in _data_files.write_idx(place, packed=packed).iterdir():
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"idx[13]-ubyte"):
        data.load("mnist")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_no_pickle_is_taken_for_parquet_or_opened_as_cifar(name, content, place):
    folder = place / name / "plain_text"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        (folder / f"{part}-00000-of-00001.parquet").write_bytes(content)
    with pytest.raises(ValueError, match="parquet"):
        data.load(name)
    python = place / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    python.mkdir()
    numbered = [f"data_batch_{i}" for i in range(1, 6)]
    for file in (*numbered, "test_batch", "batches.meta", "train", "test", "meta"):
        (python / file).write_bytes(content)
    with pytest.raises(ValueError, match="md5"):
        data.load(name)


def measure(spec):
    return {"value": float(spec["seed"])}


def test_no_pickle_is_taken_for_a_stored_result(content, tmp_path):
    expected = sweeps.run(measure, [{"seed": 3}], store=tmp_path, progress=False)
    (file,) = tmp_path.glob("measure/*.parquet")
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=f"computed again: {file.name}"):
        found = sweeps.run(measure, [{"seed": 3}], store=tmp_path, progress=False)
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize("pattern", ["*.safetensors", "run.json"])
def test_no_pickle_is_taken_for_a_trained_run(pattern, content, tmp_path):
    expected = fit(tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if (path / "run.json").is_file())
    for file in folder.glob(pattern):
        file.write_bytes(content)
    (folder / "resume.safetensors").write_bytes(content)
    found = fit(tmp_path)
    assert found.history.equals(expected.history)
    for name, weight in expected.state().items():
        assert torch.equal(found.state()[name], weight)


def test_no_pickle_is_taken_for_claims_or_a_notebook(content, tmp_path):
    path = tmp_path / claims.FILE
    path.write_bytes(content)
    with pytest.raises(ValueError, match=claims.FILE):
        claims.load(path)
    notebook = tmp_path / "root" / "notebooks" / "01_trap.ipynb"
    notebook.write_bytes(content)
    with pytest.raises(RuntimeError, match="not readable as a notebook"):
        _figures._read(notebook, {})


# --- names that lead elsewhere -----------------------------------------------------------------

OUTSIDE = ["../../x", "..", "/etc/passwd", "a/../../b", "..\\..\\x", "x\0y", ".", "~", "*", "a\nb"]


@pytest.fixture
def nothing_new(tmp_path):
    """Offer a notebook by name, and fail where the test has left a file or folder."""
    (tmp_path / "root" / "notebooks" / "01_real.ipynb").write_text("{}")
    before = {*tmp_path.parent.glob("*"), *tmp_path.rglob("*")}
    yield
    assert before >= {*tmp_path.parent.glob("*"), *tmp_path.rglob("*")}


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_argument_of_the_command_line_leads_outside(name, nothing_new, capsys):
    def fails(*arguments):
        try:
            status = __main__.main(arguments)
        except SystemExit as stop:  # argparse's own
            status = stop.code
        told = capsys.readouterr()
        assert status == 2, told
        assert "error" in told.err and "Traceback" not in told.err

    fails("figures", "--only", name)
    fails("figures", "--profile", name)
    fails("figures", "--device", name)
    fails("figures", "--dataset", name)
    fails("data", name)


@pytest.mark.parametrize("name", [name for name in OUTSIDE if "\0" not in name])
def test_no_profile_from_the_environment_leads_outside(name, nothing_new, monkeypatch, capsys):
    monkeypatch.setenv("REPLICATION_PROFILE", name)
    assert __main__.main(["figures"]) == 2
    assert "REPLICATION_PROFILE" in capsys.readouterr().err


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_outside(name, nothing_new, tmp_path):
    def fn(spec):
        return {"value": 1.0}

    fn.__name__ = name
    store, figure = tmp_path / "store", plt.figure(figsize=(1, 1))
    for call, told in (
        *((partial(function, name), "name: ") for function in (data.load, data.locate, data.fetch)),
        (partial(_figures.select, [name]), "there is no notebook"),
        (partial(sweeps.run, fn, [{"seed": 0}], store=store, progress=False), "fn: "),
        (partial(plotting.save, figure, name, store, {"x": [1]}, "a stamp"), "name: "),
        (partial(own_models.find, name), "model: "),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    plotting.close(figure)


@pytest.mark.parametrize("reference", ["os:system:x", "../x:f", "/tmp/x.py:f", ":f", "m:"])
def test_a_model_is_named_by_a_module_and_not_by_a_path(reference, nothing_new):
    with pytest.raises(ValueError, match="model: "):
        own_models.find(reference)


def test_specs_name_their_files_by_a_hash(tmp_path):
    for name in OUTSIDE:
        sweeps.run(measure, [{"seed": 0, "layer": name}], store=tmp_path / "s", progress=False)
    files = list(tmp_path.rglob("*.parquet"))
    assert len(files) == len(OUTSIDE)
    assert all(path.parent == tmp_path / "s" / "measure" for path in files)
    assert all(len(path.stem) == 24 and set(path.stem) <= set("0123456789abcdef") for path in files)
