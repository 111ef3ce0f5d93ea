"""Downloads of data sets over a network and onto disks that fail. Nothing leaves loopback."""

import gzip
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import _data_files
import pytest
from _data_files import IDX_FILES, archives, checksums, left, write_idx
from _tiny_runs import random_split
from test_faults import dead, limited, of

from replication import __main__, data, sweeps, training
from replication._core import paths
from replication._core.vision import datasets
from replication.data import _download

place = _data_files.place
WHOLE = sorted(["MNIST", "raw", *IDX_FILES])  # no archives, nothing partial


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what the server's `files` has: bytes, or a function of the handler."""

    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.files[self.path]
        if callable(content):
            content(self)
        else:
            self.send(content)

    def send(self, content, length=None):
        self.send_response(200)
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def online(monkeypatch):
    """Let the package ask loopback, without a proxy, and keep the progress bars to ourselves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            socket.create_connection(listener.getsockname(), timeout=1).close()
        except OSError as error:
            pytest.skip(f"needs a loopback interface ({error})")
    monkeypatch.delenv("REPLICATION_OFFLINE")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server(online, monkeypatch):
    """Serve a tiny MNIST as torchvision would find it."""
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    files = archives(60, 30)
    served.asked, served.files = [], {f"/{name}": content for name, content in files.items()}
    url = f"http://127.0.0.1:{served.server_address[1]}/"
    monkeypatch.setattr(datasets.MNIST, "resources", checksums(files))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [url])
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture
def silence(online, monkeypatch):
    """Be a network that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [url])
        monkeypatch.setattr(datasets.CIFAR10, "url", url)
        yield url


def test_download(server):
    raw = paths.data() / "MNIST" / "raw"
    assert data.fetch("mnist", timeout=5) == raw and left(paths.data()) == WHOLE
    assert socket.getdefaulttimeout() is None
    asked = len(server.asked)
    assert data.fetch("auto", timeout=5) == raw and len(server.asked) == asked
    (raw / IDX_FILES[1]).unlink()  # incomplete: fetched again
    data.fetch("mnist", timeout=5)
    assert left(paths.data()) == WHOLE
    assert data.load("auto").source == "MNIST from torchvision's files in data/"


def test_a_damaged_download_is_no_data_set(server):
    server.files[f"/{IDX_FILES[3]}.gz"] = gzip.compress(b"something else")
    with pytest.raises(ValueError, match=r"the download into data/ failed: .*corrupted"):
        data.fetch("mnist", timeout=5)
    assert left(paths.data()) == [] and data.locate("mnist") is None
    assert data.load("auto").substitute
    asked = len(server.asked)
    assert data.load("auto").substitute and len(server.asked) == asked  # not a third time


def test_a_download_that_stalls_ends(server):
    stop = threading.Event()

    def stall(handler):
        handler.send(b"x" * 1000, 100_000)
        handler.wfile.flush()
        stop.wait(60)

    server.files[f"/{IDX_FILES[2]}.gz"] = stall
    with pytest.raises(ValueError, match="the download into data/ failed: timed out"):
        data.fetch("mnist", timeout=1)
    stop.set()
    assert left(paths.data()) == [] and socket.getdefaulttimeout() is None


def test_an_interrupted_download_is_no_data_set(server, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.MNIST, "_load_data", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.fetch("mnist", timeout=5)
    assert left(paths.data()) == []


def test_a_killed_download_is_cleared_by_the_next_and_a_living_one_is_not(server):
    gone, living = (f".partial-mnist.{of(pid)}" for pid in (dead(), os.getppid()))
    for name in (gone, living):
        write_idx(paths.data() / name)
    assert data.locate("mnist") is None
    data.fetch("mnist", timeout=5)
    assert sorted(path.name for path in paths.data().iterdir()) == [living, "MNIST"]


def test_a_silent_network_is_left_in_time_and_asked_once(silence, monkeypatch, capsys):
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"no answer from the network within 0\.3 s"):
        data.fetch("mnist", timeout=0.3)
    assert time.monotonic() - begun < 8  # and not the 10 s that are the default
    fetch, calls = _download.fetch, []
    monkeypatch.setattr(_download, "fetch", lambda name: calls.append(name) or fetch(name, 0.3))
    assert data.load("auto").substitute and data.load("auto").substitute
    for name in ("mnist", "cifar10"):
        with pytest.raises(ValueError, match="no answer from the network"):
            data.load(name)
    assert calls == ["mnist"]
    assert capsys.readouterr().out.count("no answer from the network") == 1


def test_a_refusing_network_fails_at_once(online, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{port}/x.tar.gz")
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"no network: .*refused"):
        data.fetch("cifar10")
    assert time.monotonic() - begun < 8  # it waits 10 s for an answer


def test_the_mirror_that_answers_is_asked(server, silence, monkeypatch):
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    monkeypatch.setattr(datasets.MNIST, "mirrors", [silence, url])
    begun = time.monotonic()
    assert data.fetch("mnist", timeout=30).is_dir() and time.monotonic() - begun < 25


def test_nothing_is_asked_offline(monkeypatch):
    monkeypatch.setattr(_download, "first_answer", lambda *a: pytest.fail("asked the network"))
    for name in ("mnist", "cifar100"):
        with pytest.raises(ValueError, match="REPLICATION_OFFLINE is set"):
            data.fetch(name)
    assert data.fetch("mnist5k").is_dir()
    assert data.load("auto").substitute and not _download._failures


@contextmanager
def read_only(folder):
    """Make a folder read-only, also for root, to whom permissions mean nothing."""
    if os.name != "posix":
        pytest.skip("mounts and limits of POSIX")
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


def square(spec):
    return [{"value": spec["seed"] ** 2}]


def train(store):
    spec = training.Spec(model="mlp", model_options={"inputs": 64, "widths": (8,)}, epochs=1)
    return training.fit(spec, random_split(320, 80), store=store, progress=False)


def test_a_read_only_data_folder_is_read_and_a_download_says_what_to_do(server, tmp_path, capsys):
    write_idx(paths.data(), "FashionMNIST")
    with read_only(paths.data()):
        assert len(data.load("fashion_mnist").train) == 60
        with pytest.raises(ValueError, match=r"^the download .* Read-only .*REPLICATION_DATA$"):
            data.fetch("mnist", timeout=5)
        assert __main__.main(["data", "mnist"]) == 1
        assert "Read-only" in capsys.readouterr().err
        with pytest.raises(ValueError, match="was not downloaded"):
            data.load("mnist")
        assert data.load("auto").substitute and "Read-only" in capsys.readouterr().out
        # what is measured may be kept elsewhere; where it may not, the file is named
        sweeps.run(square, [{"seed": 0}], store=tmp_path / "runs", progress=False)
        train(tmp_path / "runs")
        with pytest.raises(OSError, match=re.escape(str(paths.runs()))):
            train(paths.runs())
    assert data.fetch("mnist", timeout=5).is_dir()


def test_a_finished_store_may_be_read_only(tmp_path):
    def work():
        return sweeps.run(square, [{"seed": 0}], store=tmp_path, progress=False), train(tmp_path)

    table, run = work()
    (tmp_path / run.key / "resume.safetensors").write_bytes(b"left by a killed run")
    with read_only(tmp_path):
        again, loaded = work()
    assert again.equals(table) and loaded.history.equals(run.history)


def test_a_download_onto_a_full_disk(server):
    message = r"the download into data/ failed: .*File too large"
    with limited(None), pytest.raises(ValueError, match=message):
        data.fetch("mnist", timeout=5)
    assert left(paths.data()) == []
    data.fetch("mnist", timeout=5)
    assert len(data.load("mnist").train) == 60


FETCH = """
import json, sys
from replication import data
from replication._core.vision import datasets
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
        handler.send(content)

    server.files[name] = meet
    known = json.dumps([datasets.MNIST.mirrors, datasets.MNIST.resources])
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    both = [
        subprocess.Popen([sys.executable, "-c", FETCH, known], env=env, stdout=-1, text=True)
        for _ in range(2)
    ]
    for process in both:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and out.strip() == str(paths.data() / "MNIST" / "raw")
    assert left(paths.data()) == WHOLE and len(data.load("mnist").train) == 60
