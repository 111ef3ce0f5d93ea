"""Downloads of data sets, over a network that fails. Nothing leaves loopback."""

import gzip
import hashlib
import http.server
import os
import socket
import threading
import time

import _data_files
import pytest
from _data_files import IDX_FILES, digits, idx, left, write_idx

from replication import data
from replication.data import _download

place = _data_files.place


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    files: dict
    asked: list


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if callable(content):
            return content(self)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

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
    from replication._core.vision import datasets

    served = _Server(("127.0.0.1", 0), _Handler)
    served.asked, served.files, resources = [], {}, []
    for part, count in (("train", 60), ("t10k", 30)):
        images, labels = digits(count)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            content, file = gzip.compress(idx(array)), f"{part}-{name}-ubyte.gz"
            served.files[f"/{file}"] = content
            resources.append((file, hashlib.md5(content).hexdigest()))
    url = f"http://127.0.0.1:{served.server_address[1]}/"
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
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
    from replication._core.vision import datasets

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [url])
        monkeypatch.setattr(datasets.CIFAR10, "url", url)
        yield url


def test_download(server, tmp_path):
    here = tmp_path / "root" / "data"
    assert data.fetch("mnist", timeout=5) == here / "MNIST" / "raw"
    assert left(here) == sorted(["MNIST", "raw", *IDX_FILES])  # no archives, nothing partial
    assert socket.getdefaulttimeout() is None
    asked = len(server.asked)
    assert data.fetch("auto", timeout=5) == here / "MNIST" / "raw" and len(server.asked) == asked
    (here / "MNIST" / "raw" / IDX_FILES[1]).unlink()  # incomplete: fetched again
    data.fetch("mnist", timeout=5)
    assert left(here) == sorted(["MNIST", "raw", *IDX_FILES])


def test_load_downloads(server):
    split = data.load("auto")
    assert split.name == "mnist" and not split.substitute and len(split.train) == 60
    assert split.source == "MNIST from torchvision's files in data/"


def test_a_damaged_download_is_no_data_set(server, tmp_path):
    server.files[f"/{IDX_FILES[3]}.gz"] = gzip.compress(b"something else")
    with pytest.raises(ValueError, match="the download failed"):
        data.fetch("mnist", timeout=5)
    assert left(tmp_path / "root" / "data") == [] and data.locate("mnist") is None
    asked = len(server.asked)
    assert data.load("auto").substitute and data.load("auto").substitute
    first = len(server.asked) - asked
    assert data.load("auto").substitute and len(server.asked) == asked + first  # not a third time


def test_a_download_that_stalls_ends(server, tmp_path):
    stop = threading.Event()

    def stall(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.wfile.write(b"x" * 1000)
        handler.wfile.flush()
        stop.wait(60)

    server.files[f"/{IDX_FILES[2]}.gz"] = stall
    with pytest.raises(ValueError, match="the download failed"):
        data.fetch("mnist", timeout=1)
    stop.set()
    assert left(tmp_path / "root" / "data") == [] and socket.getdefaulttimeout() is None


def test_an_interrupted_download_is_no_data_set(server, tmp_path, monkeypatch):
    from replication._core.vision import datasets

    class Killed(datasets.MNIST):
        def _load_data(self):
            raise KeyboardInterrupt

    Killed.__name__ = "MNIST"
    monkeypatch.setattr(datasets, "MNIST", Killed)
    with pytest.raises(KeyboardInterrupt):
        data.fetch("mnist", timeout=5)
    assert left(tmp_path / "root" / "data") == []


def test_leftovers_are_ignored_and_old_ones_removed(server, tmp_path):
    here = tmp_path / "root" / "data"
    old, new, busy = (here / f".partial-mnist-{name}" for name in ("old", "new", "busy"))
    for folder in (old, new, busy):
        write_idx(folder)
    assert data.locate("mnist") is None
    past = time.time() - 4000
    for folder in (old, busy):
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (past, past))
    os.utime(next(path for path in busy.rglob("*") if path.is_file()))
    data.fetch("mnist", timeout=5)
    assert not old.exists() and new.exists() and busy.exists()


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
    from replication._core.vision import datasets

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{port}/x.tar.gz")
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"no network: .*refused"):
        data.fetch("cifar10")
    assert time.monotonic() - begun < 8  # it waits 10 s for an answer


def test_the_mirror_that_answers_is_asked(server, silence, monkeypatch):
    from replication._core.vision import datasets

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
    assert not _download._failures
