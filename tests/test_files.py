"""Files that are whole or not there, checks of what comes in, and where things lie."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from replication._core import paths
from replication._core.files import atomic, read_json, write_json
from replication._core.inputs import (
    as_integer,
    as_tensor,
    choose_device,
    derive_seed,
    generator,
    nearest,
)

# --- atomic ------------------------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", [str, Path])
def test_atomic_writes_and_replaces(tmp_path, kind):
    path = tmp_path / "new" / "folder" / "curves.tar.gz"
    for content in ("first", "second"):
        with atomic(kind(path)) as temporary:
            assert temporary.parent == path.parent and temporary != path
            assert temporary.suffix == ".gz" and temporary.name.startswith(".")
            temporary.write_text(content)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
        assert names(path.parent) == ["curves.tar.gz"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("written", [True, False])
def test_atomic_leaves_the_old_file_when_the_block_fails(tmp_path, failure, written):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(failure), atomic(path) as temporary:
        if written:
            temporary.write_text("new, but not whole")
        raise failure
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_atomic_without_a_file_written(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"


def test_atomic_names_are_unique(tmp_path):
    path = tmp_path / "a.txt"
    with atomic(path) as one, atomic(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one" and names(tmp_path) == ["a.txt"]  # the last to be renamed


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old and whole")
    script = """if True:
        import sys, time
        from replication._files import atomic
        with atomic(sys.argv[1]) as temporary, open(temporary, "w") as file:
            file.write("half of the n")
            file.flush()
            print("written", flush=True)
            time.sleep(60)
    """
    root = str(Path(paths.__file__).parent.parent)
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    with child:
        assert child.stdout.readline() == "written\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert path.read_text() == "old and whole"
    left = [name for name in names(tmp_path) if name != "a.txt"]
    assert len(left) == 1 and left[0].startswith(".a.")  # the child had begun
    write_json(path, "new")
    assert read_json(path) == "new"


# --- JSON --------------------------------------------------------------------------------------


def test_json_round_trip(tmp_path):
    value = {"name": "σ = 0.5 – “ok”", "rows": [1, 2.5, None, True], "empty": {}}
    write_json(tmp_path / "new" / "a.json", value)
    assert read_json(tmp_path / "new" / "a.json") == value
    text = (tmp_path / "new" / "a.json").read_text(encoding="utf-8")
    assert "σ = 0.5 – “ok”" in text and text.endswith("}\n") and "\n  " in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_json_refuses_what_json_does_not_know(tmp_path, value):
    write_json(tmp_path / "a.json", "old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == "old" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"not json"])
def test_read_json_names_the_file(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json is not readable as JSON .*run again"):
        read_json(path)


def test_read_json_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.json"):
        read_json(tmp_path / "missing.json")


# --- as_tensor ---------------------------------------------------------------------------------


def test_tensors_and_writeable_arrays_are_not_copied():
    tensor, array = torch.ones(2, 3), np.ones((2, 3))
    assert as_tensor(tensor, "x") is tensor
    found = as_tensor(array, "x")
    assert found.dtype == torch.float64
    array[0, 0] = 7
    assert found[0, 0] == 7


@pytest.mark.parametrize(
    "array",
    [
        np.broadcast_to(np.arange(3.0), (2, 3)),
        np.arange(6.0).reshape(2, 3)[::-1, ::-1],
        np.arange(12.0).reshape(2, 6)[:, ::2],
        np.arange(6.0).reshape(3, 2).T,
        np.array(3.0),
    ],
)
def test_arrays_of_any_layout(array):
    assert np.array_equal(as_tensor(array, "x").numpy(), array)
    array.flags.writeable = False
    assert np.array_equal(as_tensor(array, "x").numpy(), array)
    as_tensor(array, "x").zero_()
    assert array.max() > 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.int64),
        (torch.uint8, torch.uint8),
        (torch.bool, torch.bool),
    ],
)
def test_types(given, expected):
    found = as_tensor(torch.tensor([0, 1, 1]).to(given), "x")
    assert found.dtype == expected and found.tolist() == [0, 1, 1]


def test_half_arrays_are_promoted():
    assert as_tensor(np.ones(2, np.float16), "x").dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_are_found(dtype, bad):
    value = torch.zeros(3, 5, dtype=dtype)
    value[1, 2] = bad
    with pytest.raises(ValueError, match="x: expected finite numbers, found NaN or infinity"):
        as_tensor(value, "x")
    value[2, 2] = -bad  # both signs of infinity
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        as_tensor(value, "x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_huge_numbers_whose_sum_overflows_are_finite(dtype):
    value = torch.full((100,), torch.finfo(dtype).max, dtype=dtype)
    assert as_tensor(value, "x").dtype == torch.promote_types(dtype, torch.float32)
    as_tensor(torch.cat([value, -value]), "x")
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        as_tensor(torch.cat([value, value.new_tensor([torch.nan])]), "x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], "x: expected a torch tensor or NumPy array, found list"),
        (1.0, "x: expected a torch tensor or NumPy array, found float"),
        (None, "x: expected a torch tensor or NumPy array, found NoneType"),
        (torch.empty(0, 3), r"x: expected at least one entry, found shape \(0, 3\)"),
        (np.empty((2, 0)), r"x: expected at least one entry, found shape \(2, 0\)"),
        ("a text", "x: expected a torch tensor or NumPy array, found str"),
        ((row for row in torch.ones(2)), "x: expected .* found generator"),
        (torch.ones(2, dtype=torch.complex64), "x: expected real numbers, found torch.complex64"),
        (np.ones(2) + 1j, "x: expected real numbers, found torch.complex128"),
        (np.ma.masked_greater(np.ones(2), 0), "x: expected a plain array, found a masked one"),
        (torch.eye(2).to_sparse(), "x: expected a dense tensor .* found a torch.sparse_coo one"),
        (torch.ones(2, device="meta"), "x: expected a dense tensor .* found a meta one"),
        (np.zeros(2, "datetime64[s]"), "x: "),
        (np.array(["a"]), "x: .*numpy.str_"),
        (np.array([None]), "x: .*numpy.object_"),
        (np.ones(2, ">f4" if sys.byteorder == "little" else "<f4"), "x: .*byte order"),
    ],
)
def test_what_is_no_tensor(value, message):
    with pytest.raises(ValueError, match=message):
        as_tensor(value, "x")


# --- as_integer, nearest, choose_device --------------------------------------------------------


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_integers(value):
    found = as_integer(value, "n", 3)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize(
    "value", [2, -5, 3.0, 3.5, "3", None, True, np.True_, [3], np.float64(3), 2**63]
)
def test_no_integers(value):
    with pytest.raises(ValueError, match="n: expected an integer >= 3, found"):
        as_integer(value, "n", 3)


def test_the_bounds_of_an_integer():
    assert as_integer(2**63 - 1, "n", 0) == 2**63 - 1
    assert as_integer(-4, "n", -4) == -4
    with pytest.raises(ValueError, match="n: expected an integer >= 0, found True"):
        as_integer(True, "n", 0)


def test_nearest():
    known = ["conv1", "conv2", "fc1"]
    assert nearest("conv3", known) == "did you mean 'conv2' or 'conv1'?"
    assert nearest("zzz", iter(known)) == "expected one of: conv1, conv2, fc1"
    many = [f"layer{i}" for i in range(21)]
    assert nearest("zzz", many).endswith("layer18, layer19, ...")
    assert nearest("zzz", many[:20]).endswith("layer18, layer19")


def test_choose_device():
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:x"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(ValueError, match=f"device: '{name}' cannot be used here") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


def test_only_the_first_line_of_torchs_reason_is_shown(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of luck\nCompile with debugging symbols")

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(ValueError, match=r"'cpu' cannot be used here \(out of luck\)$"):
        choose_device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_cuda_where_there_is_none():
    with pytest.raises(ValueError, match="device: 'cuda' cannot be used here"):
        choose_device("cuda")


@pytest.mark.gpu
def test_cuda_where_there_is_one():
    assert choose_device("auto").type == "cuda" == choose_device("cuda:0").type


# --- seeds -------------------------------------------------------------------------------------


def test_streams_are_reproducible_and_independent():
    uses = [(0, "init", 0), (1, "init", 0), (0, "order", 0), (0, "init", 1), (2**40, "init", 0)]
    draws = [torch.randn(10_000, generator=generator(*use)) for use in uses]
    for use, draw in zip(uses, draws, strict=True):
        assert torch.equal(draw, torch.randn(10_000, generator=generator(*use)))
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(len(uses))
    assert correlations.abs().max() < 0.05  # 5 standard errors
    assert len({derive_seed(seed, "s", i) for seed in range(40) for i in range(40)}) == 1600
    assert derive_seed(1, "a/1", 0) != derive_seed(1, "a", 1)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    torch.randn(3, generator=generator(0, "init"))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_stay_what_they_were():
    """A change here would change every network and every perturbation."""
    assert derive_seed(0, "init") == 4213802666853728012
    assert derive_seed(7, "perturbation/False", 3) == 1355148237123164922
    assert all(0 <= derive_seed(seed, "x") < 2**63 for seed in range(99))


# --- paths -------------------------------------------------------------------------------------


@pytest.fixture
def no_root(monkeypatch):
    monkeypatch.delenv("REPLICATION_ROOT", raising=False)


def test_the_root_is_the_checkout(no_root):
    assert paths.root() == Path(__file__).resolve().parent.parent
    assert (paths.root() / "pyproject.toml").is_file()


def test_an_installed_package_uses_the_working_folder(no_root, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "r" / "paths.py"))
    monkeypatch.chdir(tmp_path)
    assert paths.root() == tmp_path


def test_the_root_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for chosen, expected in [(str(tmp_path / "a"), "a"), ("~/b", "b"), (f"{tmp_path}/a/../c", "c")]:
        monkeypatch.setenv("REPLICATION_ROOT", chosen)
        root = tmp_path.resolve() / expected
        assert paths.root() == root
        assert paths.notebooks() == root / "notebooks"
        assert paths.data() == root / "data"
        assert paths.runs() == root / "data" / "runs"
        assert paths.figures() == root / "figures"
        assert not root.exists()  # nothing is created by asking
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPLICATION_ROOT", "")
    assert paths.root() == Path(__file__).resolve().parent.parent
