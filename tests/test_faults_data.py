"""Data folders that are full, read-only, used by two downloads, or left by one that was killed."""

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import test_data_downloads
import test_faults
from _data_files import IDX_FILES, left, write_idx
from _fault_commands import toy
from test_faults import dead, of, wide

from replication import __main__, data, sweeps, training
from replication._core import paths
from replication._core.vision import datasets

pytestmark = pytest.mark.skipif(os.name != "posix", reason="mounts and limits of POSIX")
place, online = test_data_downloads.place, test_data_downloads.online
server, disk = test_data_downloads.server, test_faults.disk


@contextmanager
def read_only(folder):
    """Make a folder read-only, also for root, to whom permissions mean nothing."""
    if os.getuid():
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)
        return
    for command in (["mount", "--bind"], ["mount", "-o", "remount,ro,bind"]):
        done = subprocess.run([*command, str(folder), str(folder)], capture_output=True, text=True)
        if done.returncode:
            subprocess.run(["umount", str(folder)], capture_output=True)
            pytest.skip(f"may not mount a file system here ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_data_folder_is_read_and_a_download_says_what_to_do(server, tmp_path, capsys):
    here, elsewhere = paths.data(), tmp_path / "runs"
    write_idx(here, "FashionMNIST")
    with read_only(here):
        assert len(data.load("fashion_mnist").train) == 60
        told = r"^data/ cannot be written to \(.*\): .*another folder .*\$REPLICATION_DATA$"
        with pytest.raises(ValueError, match=told):
            data.fetch("mnist", timeout=5)
        assert __main__.main(["data", "mnist"]) == 1
        assert "data/ cannot be written to" in capsys.readouterr().err
        with pytest.raises(ValueError, match="was not downloaded"):
            data.load("mnist")
        assert data.load("auto").substitute and "cannot be written" in capsys.readouterr().out
        # what is measured may be kept elsewhere; where it may not, the file is named
        sweeps.run(test_faults.sample, [{"seed": 0}], store=elsewhere, progress=False)
        training.fit(wide(0), toy(), store=elsewhere, progress=False)
        with pytest.raises(OSError, match=re.escape(str(paths.runs()))):
            training.fit(wide(0), toy(), store=paths.runs(), progress=False)
    assert data.fetch("mnist", timeout=5).is_dir()


def test_a_finished_store_may_be_read_only(tmp_path):
    def work():
        table = sweeps.run(test_faults.sample, [{"seed": 0}], store=tmp_path, progress=False)
        return table, training.fit(wide(0), toy(), store=tmp_path, progress=False)

    table, run = work()
    (tmp_path / run.key / "resume.safetensors").write_bytes(b"left by a killed run")
    with read_only(tmp_path):
        again, loaded = work()
    assert again.equals(table) and loaded.history.equals(run.history)


def test_a_download_onto_a_full_disk(server, disk, monkeypatch):
    root, without_room = disk
    monkeypatch.setenv("REPLICATION_ROOT", str(root))
    paths.data().mkdir()
    told = r"the download failed: (No space left on device|File too large) for data/; free some"
    with without_room(root), pytest.raises(ValueError, match=told):
        data.fetch("mnist", timeout=5)
    assert left(paths.data()) == []
    data.fetch("mnist", timeout=5)
    assert len(data.load("mnist").train) == 60


def test_a_killed_download_is_cleared_by_the_next_and_a_living_one_is_not(server):
    gone, living = (f".partial-mnist.{of(pid)}" for pid in (dead(), os.getppid()))
    for name in (gone, living):
        write_idx(paths.data() / name)
    data.fetch("mnist", timeout=5)
    assert sorted(path.name for path in paths.data().iterdir()) == [living, "MNIST"]


FETCH = """
import json, sys
from replication import data
from replication._torchvision import datasets
datasets.MNIST.mirrors, datasets.MNIST.resources = json.loads(sys.argv[1])
print(data.fetch("mnist", timeout=60))
"""


@pytest.mark.slow
def test_two_downloads_at_once(server):
    """They wait for one another before the last file, and move into place together."""
    met, name = threading.Barrier(2, timeout=200), f"/{IDX_FILES[3]}.gz"
    content = server.files[name]

    def meet(handler):
        met.wait()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    server.files[name] = meet
    given = json.dumps([datasets.MNIST.mirrors, datasets.MNIST.resources])
    command = [sys.executable, "-c", FETCH, given]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "no_proxy": "*"}
    both = [
        subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert out.strip() == str(paths.data() / "MNIST" / "raw")
    assert left(paths.data()) == sorted(["MNIST", "raw", *IDX_FILES])
    assert len(data.load("mnist").train) == 60
