"""Files that are whole or not there, and where things lie."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from replication._core import paths
from replication._core.files import atomic, read_json, write_json

ROOT = Path(__file__).resolve().parent.parent


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
    with pytest.raises(FileNotFoundError), atomic(path):
        pass  # nothing is written
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_atomic_names_are_unique(tmp_path):
    path = tmp_path / "a.txt"
    with atomic(path) as first, atomic(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and names(tmp_path) == ["a.txt"]  # the last to be renamed


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old and whole")
    script = """if True:
        import sys, time
        from replication._core.files import atomic
        with atomic(sys.argv[1]) as temporary, open(temporary, "w") as file:
            file.write("half of the n")
            file.flush()
            print("written", flush=True)
            time.sleep(60)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with child:
        assert child.stdout.readline() == "written\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert path.read_text() == "old and whole"
    (left,) = (name for name in names(tmp_path) if name != "a.txt")
    assert left.startswith(".a.")  # the child had begun
    write_json(path, "new")
    assert read_json(path) == "new"


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


DEEP = [b"[" * 100_000, b"1" * 100_000, b'{"a":' * 50_000]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"not json", *DEEP])
def test_read_json_names_the_file(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json is not readable as JSON .*run again"):
        read_json(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"broken\.json"):
        read_json(path)


def test_the_root_is_the_checkout_or_the_working_folder_of_an_installed_package(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("REPLICATION_ROOT", raising=False)
    assert paths.root() == ROOT and (ROOT / "pyproject.toml").is_file()
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
    assert paths.root() == ROOT
