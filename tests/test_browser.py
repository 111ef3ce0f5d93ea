"""When `.ci/run` asks for a browser, and what the tests say where there is none."""

import shutil
import subprocess
from pathlib import Path

import _browser
import pytest

ROOT = Path(__file__).resolve().parent.parent
ASKED = ["update", "install --yes --no-install-recommends chromium"]

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "timeout"))), reason="no bash or no timeout on this machine"
)


@pytest.fixture
def run(tmp_path):
    """Return a function that runs .ci/run with stand-ins, and what apt-get and make were told."""
    (tmp_path / "a b" / ".ci").mkdir(parents=True)
    script = shutil.copy(ROOT / ".ci" / "run", tmp_path / "a b" / ".ci" / "run")
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()

    def stand_in(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    for name in ("dirname", "sh", "timeout"):
        (folder / name).symlink_to(shutil.which(name))
    stand_in(folder / "make", f'echo "make $1: $NO_CHROMIUM" >> {log}')
    stand_in(tmp_path / "a b" / ".venv" / "bin" / "python", "exit 0")

    def call(user=0, apt="exit 0", browser=None, **environment):
        stand_in(folder / "id", f"echo {user}")
        if apt is not None:
            stand_in(folder / "apt-get", f'echo "apt-get $*" >> {log}\n{apt}')
        if browser:
            stand_in(folder / browser, "exit 0")
        done = subprocess.run(
            [shutil.which("bash"), script],
            env={"PATH": str(folder), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        lines = log.read_text().splitlines()
        asked = [line for line in lines if line.startswith("apt-get")]
        told = [line.partition(": ")[2] for line in lines if line.startswith("make test")]
        return asked, told[0]

    return call


@pytest.mark.parametrize("ci", [{}, {"CI": "true"}, {"CI": "1"}])
def test_as_root_in_ci_a_browser_is_asked_for(run, ci):
    asked, told = run(**ci)
    assert len(asked) == len(ASKED)
    for line, end in zip(asked, ASKED, strict=True):
        assert line.endswith(end)
    assert told == ""


@pytest.mark.parametrize("name", _browser.NAMES)
def test_not_where_there_is_one(run, name):
    assert run(browser=name) == ([], "")


@pytest.mark.parametrize("case", [{"user": 1000}, {"apt": None}, {"CI": "false"}])
def test_not_on_a_machine_of_somebody(run, case):
    assert run(**case) == ([], "")


def test_not_twice(run):
    assert run(NO_CHROMIUM="it was tried") == ([], "it was tried")


@pytest.mark.parametrize("fails", ["exit 100", "case $* in *install*) exit 1;; esac"])
def test_a_failure_is_told_to_the_tests_and_ends_nothing(run, fails, monkeypatch):
    asked, told = run(apt=fails)
    assert asked and "apt-get install chromium failed" in told
    monkeypatch.setenv("NO_CHROMIUM", told)
    assert _browser.absence().endswith(told)


def test_elsewhere_the_reason_says_what_to_do(monkeypatch):
    monkeypatch.delenv("NO_CHROMIUM", raising=False)
    assert _browser.absence() == "no Chromium on this machine: apt-get install chromium"


def test_time_is_bounded():
    text = (ROOT / ".ci" / "run").read_text()
    assert text.count("apt-get -q") == 2  # and both within the one limit
    limited = text.partition("timeout --kill-after=10 120 sh -c '")[2].partition("'")[0]
    assert limited.count("apt-get -q") == 2
