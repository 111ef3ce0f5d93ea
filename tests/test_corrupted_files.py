"""Files that a bad disk has changed: read as they are, named in an error, or made again.

Every kind of file that the package reads is damaged in the same seeded ways. A file that is read
gives a ValueError that names it, or something of the right form; where the file is a cache, the
result is the undisturbed one, and a sweep says that it was computed again.
"""

import json
import random
import warnings

import _data_files
import nbformat
import pandas as pd
import pytest
import torch
from _data_files import write_cifar10, write_idx
from _tiny_runs import fit
from safetensors.torch import save_file
from torch import nn

from replication import claims, data, sweeps
from replication.papers import _figures, own_models

ROUNDS = range(24)
place = _data_files.place


# --- what happens to a file --------------------------------------------------------------------


def truncated(content, source):
    return content[: source.randrange(len(content))]


def flipped(content, source):
    changed = bytearray(content)
    for _ in range(source.choice([1, 1, 8])):
        changed[source.randrange(len(changed))] ^= 1 << source.randrange(8)
    return bytes(changed)


def flipped_early(content, source):
    head = flipped(content[: min(len(content), 200)], source)
    return head + content[len(head) :]


def zeroed(content, source):
    start = source.randrange(len(content))
    stop = min(len(content), start + source.choice([1, 64, 4096]))
    return content[:start] + bytes(stop - start) + content[stop:]


def inserted(content, source):
    place = source.randrange(len(content))
    return content[:place] + source.randbytes(source.randrange(1, 20)) + content[place:]


def repeated(content, source):
    return content + content[: source.randrange(1, len(content))]


def replaced(content, source):
    return source.choice([b"", b"\n", b"\0" * 64, b"{}", b"[]", b"null", source.randbytes(300)])


DAMAGES = (truncated, flipped, flipped_early, zeroed, inserted, repeated, replaced)
ODD = (None, True, -1, 0, 1.5, 10**400, float("nan"), float("inf"), "", "x", [], {}, [[]], {"a": 1})


def places(value, path=()):
    """Yield the path of every entry of nested lists and mappings."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries if isinstance(value, dict | list) else ():
        yield from places(entry, (*path, key)) if isinstance(entry, dict | list) else [(*path, key)]


def misused(content, source):
    """Return JSON of which one entry is missing or of another type."""
    value = json.loads(content)
    *way, last = source.choice(list(places(value)))
    holder = value
    for key in way:
        holder = holder[key]
    if source.random() < 0.3:
        del holder[last]
    else:
        holder[last] = source.choice(ODD)
    return json.dumps(value).encode()


def damage(path, seed, plain=False):
    """Change the file in one of the ways, by seed; return whether its content is another."""
    source = random.Random(f"{path.name}/{seed}")
    content = path.read_bytes()
    ways = (misused,) if plain else DAMAGES
    path.write_bytes(source.choice(ways)(content, source))
    return path.read_bytes() != content


# --- files that are read -----------------------------------------------------------------------


def idx_file(name, packed=False):
    """Return how a data set with that file is written, and its path returned."""

    def write(base):
        return write_idx(base / "elsewhere", packed=packed) / f"{name}{'.gz' * packed}"

    return write


def write_parquet(base):
    return write_cifar10(base / "elsewhere" / "cifar10") / "train-00000-of-00001.parquet"


def mlp():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


def write_weights(base):
    path = base / "weights.safetensors"
    save_file(mlp().state_dict(), path)
    return path


def write_inputs(base):
    path = base / "inputs.safetensors"
    save_file({"inputs": torch.rand(6, 3), "labels": torch.arange(6)}, path)
    return path


def write_claims(base):
    where = {"dataset": "MNIST", "profile": "full", "notebook": "04"}
    rule = claims.Rule("change", 0.1, "a tick")
    both = claims.Claim("B2", "Novak et al. 2018", "both", (rule, rule))
    one = claims.Claim("B1", "Novak et al. 2018", "one", rule)
    settled = [
        claims.settle(one, [1.0, 1.1, float("nan"), 0.9], **where),
        claims.settle(both, [[1.0, 1.2, 0.9], [-1.0, -2.0, -1.5]], **where),
    ]
    return claims.save(settled, base)


def write_notebook(base):
    cell = nbformat.v4.new_code_cell("profile = 'quick'", metadata={"tags": ["parameters"]})
    path = base / "01_book.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    return path


def read_notebook(path):
    """Read it as `make figures` does before anything of it is run."""
    try:
        return _figures._read(path, {"profile": "quick"}).cells[0].source
    except RuntimeError as failure:
        raise ValueError(f"{path.name}: {failure}") from None


def load_digits(path):
    return data.load("mnist")


# How a whole one is written, and how it is read.
KINDS = {
    "IDX images": (idx_file("train-images-idx3-ubyte"), load_digits),
    "IDX labels": (idx_file("t10k-labels-idx1-ubyte"), load_digits),
    "gzipped IDX": (idx_file("train-images-idx3-ubyte", packed=True), load_digits),
    "Parquet": (write_parquet, lambda path: data.load("cifar10")),
    "weights": (write_weights, lambda path: own_models.load(path, mlp)),
    "inputs": (write_inputs, lambda path: list(own_models.load_dataset(path))),
    "claims": (write_claims, claims.load),
    "notebook": (write_notebook, read_notebook),
}
CASES = [*((kind, False) for kind in KINDS), ("claims", True), ("notebook", True)]


@pytest.mark.parametrize(("kind", "plain"), CASES)
def test_a_damaged_file_is_named(kind, plain, tmp_path):
    write, read = KINDS[kind]
    path = write(tmp_path)
    whole = path.read_bytes()
    read(path)
    told = 0
    for seed in ROUNDS:
        path.write_bytes(whole)
        damage(path, seed, plain)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                read(path)
            except ValueError as error:
                told += 1
                assert path.name.split(".")[0] in str(error), error
                assert len(str(error)) < 2000
    assert told >= len(ROUNDS) // 4, told  # some damage is none, as a pixel of another value
    path.write_bytes(whole)
    read(path)


# --- files that are caches ---------------------------------------------------------------------


def measure(spec):
    return [{"step": i, "value": i / 3 + spec["seed"], "name": "a"} for i in range(30)]


SPECS = [{"seed": 0}, {"seed": 1}]


def test_a_damaged_result_of_a_sweep_is_computed_again(tmp_path):
    expected = sweeps.run(measure, SPECS, store=tmp_path, progress=False)
    files = sorted(tmp_path.glob("measure/*.parquet"))
    whole = [file.read_bytes() for file in files]
    for seed in range(60):
        for file, content in zip(files, whole, strict=True):
            file.write_bytes(content)
        changed = damage(files[seed % 2], seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = sweeps.run(measure, SPECS, store=tmp_path, progress=False)
        pd.testing.assert_frame_equal(found, expected)
        if changed and files[seed % 2].read_bytes() == whole[seed % 2]:  # it was written again
            assert any("computed again" in str(each.message) for each in caught)


def equal_runs(found, expected):
    assert found.history.equals(expected.history) and found.status == expected.status
    assert found.checkpoints == expected.checkpoints
    for epoch in expected.checkpoints:
        for name, weight in expected.state(epoch).items():
            assert torch.equal(found.state(epoch)[name], weight)


@pytest.mark.parametrize("plain", [False, True], ids=["bytes", "entries"])
def test_a_damaged_summary_of_a_run_is_made_again(plain, tmp_path):
    expected = fit(tmp_path)
    (file,) = tmp_path.glob("*/run.json")
    whole = file.read_bytes()
    for seed in ROUNDS:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(whole)
        damage(file, seed, plain)
        equal_runs(fit(tmp_path), expected)


def test_damaged_weights_of_a_run_are_made_again(tmp_path):
    expected = fit(tmp_path)
    files = sorted(tmp_path.glob("*/step-*.safetensors"))
    whole = {file: file.read_bytes() for file in (*files, files[0].parent / "run.json")}
    for seed in ROUNDS:
        files[0].parent.mkdir(exist_ok=True)
        for file, content in whole.items():
            file.write_bytes(content)
        source = random.Random(seed)
        file = source.choice(files)
        way = source.choice([truncated, repeated, replaced])  # which change its length
        file.write_bytes(way(whole[file], source))
        equal_runs(fit(tmp_path), expected)
