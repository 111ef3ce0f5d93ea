"""Files from strangers run no code, and no name given from outside leads out of its folder."""

import ast
import gzip
import io
import json
import os
import pickle
from pathlib import Path

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
from replication.data import _download
from replication.papers import _figures, own_models

ROOT = Path(replication.__file__).resolve().parent.parent

# --- no door to pickle -------------------------------------------------------------------------

MODULES = {
    *("pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "jsonpickle", "joblib"),
    *("shelve", "marshal", "copyreg", "yaml"),
}
# Functions that unpickle, or run what they are given, by the name they are called with.
FUNCTIONS = {
    *("load_pickle", "read_pickle", "to_pickle", "read_hdf", "HDFStore"),
    *("unsafe_load", "full_load", "__import__", "PyExtensionType"),
}
ATTRIBUTES = {"torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package"}
ATTRIBUTES |= {"yaml.load", "np.memmap", "torch.serialization"}


def doors(tree):
    """Yield what in a module could unpickle or run what a file holds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = []
        for name in names:
            if set(name.split(".")) & MODULES or name in ATTRIBUTES:
                yield name
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            own = called.removeprefix("builtins.") in ("eval", "exec", "compile")
            if own or called.split(".")[-1] in FUNCTIONS:
                yield called
            constants = {a.value for a in node.args if isinstance(a, ast.Constant)}
            if called in ("getattr", "importlib.import_module") and constants & MODULES:
                yield called
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ATTRIBUTES:
            yield ast.unparse(node)
        if isinstance(node, ast.keyword):
            safe = ast.unparse(node.value) == {"allow_pickle": "False", "weights_only": "True"}.get(
                node.arg
            )
            if node.arg in ("allow_pickle", "weights_only", "pickle_module") and not safe:
                yield node.arg


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import _pickle as quick",
        "from joblib import load",
        "import sklearn.externals.joblib",
        "import shelve",
        "from marshal import loads",
        "import yaml",
        "from torch import load",
        "torch.load(path)",
        "reader = torch.load",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=trust)",
        "pd.read_pickle(path)",
        "frame.to_pickle(path)",
        "pandas.read_hdf(path)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "exec(text)",
        "importlib.import_module('pickle')",
        "from distributed.protocol import pickle",
    ],
)
def test_the_search_sees_every_door(code):
    assert list(doors(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    ["np.load(path)", "np.load(path, allow_pickle=False)", "re.compile(text)", "model.load(path)"],
)
def test_the_search_passes_what_is_safe(code):
    assert not list(doors(ast.parse(code)))


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
    found = {(path.name, door) for path, text in sources() for door in doors(ast.parse(text))}
    assert found == set()
    assert len(list(sources())) > 100


# --- a malicious pickle by the name of a data file ---------------------------------------------


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "data").mkdir(parents=True)
    (root / "notebooks").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("REPLICATION_ROOT", str(root))
    monkeypatch.setenv("REPLICATION_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("REPLICATION_OFFLINE", "1")
    monkeypatch.setattr(_download, "_failures", {})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "elsewhere"


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
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_no_pickle_is_taken_for_an_idx_file(file, packed, content, place):
    raw = place / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            (raw / f"{part}-{kind}{'.gz' if packed else ''}").write_bytes(content)
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
def test_names_of_data_sets_and_notebooks_are_looked_up(name, nothing_new):
    for function in (data.load, data.locate, data.fetch):
        with pytest.raises(ValueError, match="name: "):
            function(name)
    with pytest.raises(ValueError, match="there is no notebook"):
        _figures.select([name])


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_function_or_store_key_leads_outside(name, nothing_new, tmp_path):
    def fn(spec):
        return {"value": 1.0}

    fn.__name__ = name
    with pytest.raises(ValueError, match="fn: "):
        sweeps.run(fn, [{"seed": 0}], store=tmp_path / "store", progress=False)


def test_specs_name_their_files_by_a_hash(tmp_path):
    for name in OUTSIDE:
        sweeps.run(measure, [{"seed": 0, "layer": name}], store=tmp_path / "s", progress=False)
    files = list(tmp_path.rglob("*.parquet"))
    assert len(files) == len(OUTSIDE)
    assert all(path.parent == tmp_path / "s" / "measure" for path in files)
    assert all(len(path.stem) == 24 and set(path.stem) <= set("0123456789abcdef") for path in files)


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_of_a_figure_leads_outside(name, nothing_new, tmp_path):
    fig = plt.figure(figsize=(1, 1))
    try:
        with pytest.raises(ValueError, match="name: "):
            plotting.save(fig, name, tmp_path / "figures", {"x": [1]}, "a stamp")
    finally:
        plotting.close(fig)


@pytest.mark.parametrize(
    "reference", [*OUTSIDE, "os:system:x", "../x:f", "/tmp/x.py:f", ":f", "m:"]
)
def test_a_model_is_named_by_a_module_and_not_by_a_path(reference, nothing_new):
    with pytest.raises(ValueError, match="model: "):
        own_models.find(reference)
