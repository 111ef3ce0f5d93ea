"""The Makefile and .ci/run, in a copy of the tree whose path has blanks; nothing is installed."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[1].split()
VARIABLES = re.findall(r"^([A-Z]+) +\?=", MAKEFILE, re.MULTILINE)
# Stands for Python: `-m venv` copies it into .venv, and every call is written down.
FAKE = """\
#!/bin/sh
case "$1" in -c) exit 0;; esac
echo "$*" >> "$CALLS"
case "$*" in
"-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python;;
*"-r requirements.lock") test ! -e fail;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    folder = tmp_path / "a b $HOME 'c"
    (folder / ".ci").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml", ".ci/run"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "python").write_text(FAKE)
    (folder / "python").chmod(0o755)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    # The last three are of the make that runs these tests.
    for name in (*VARIABLES, "MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
        monkeypatch.delenv(name, raising=False)
    return folder


PIPES = {"capture_output": True, "text": True, "timeout": 60}


def make(tree, *arguments):
    done = subprocess.run(["make", *arguments], cwd=tree, **PIPES)
    return done.returncode, done.stdout, done.stderr


def calls(tree):
    """Return what the stand-in was called with since the last time."""
    path = Path(os.environ["CALLS"])
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_make_alone_prints_help(tree):
    status, out, err = make(tree)
    assert (status, err) == (0, "")
    assert set(re.findall(r"^  ([a-z-]+) +\S", out, re.MULTILINE)) == set(TARGETS)
    assert set(re.findall(r"^  ([A-Z]+)=", out, re.MULTILINE)) == set(VARIABLES)
    assert "smoke quick full paper" in out and not (tree / ".venv").exists()


SOME = "PROFILE=smoke DATASET=mnist DEVICE=cuda:1 CLUSTER=tcp://host:8786 FORCE=1 JOBS=3"
OPTIONS = "--dataset 'mnist' --device 'cuda:1' --cluster 'tcp://host:8786' --jobs '3' --force"


PAPER = ("run 04 05 --device 'cuda' --for '9m' --profile paper",)
PAPER += ("figures --profile paper --only 04 05 --device 'cuda'",)
CHECKS = ("-m ruff check .", "--check .", "-m mypy", 'loadfile tests -m "not slow" -x')


@pytest.mark.parametrize(
    ("arguments", "commands"),
    [
        ("figures", ["-m replication figures --profile quick"]),
        (f"figures {SOME}", [f"figures --profile smoke --only 04 05 {OPTIONS}"]),
        ("html", ["-m sphinx -q docs site"]),
        ("data DATASET=mnist", ["-m replication data mnist"]),
        ("rented MINUTES=9 ARGS=--dry", ["-m benchmarks rented --minutes 9 --dry"]),
        ("run PROFILE=full", ["-m replication run --profile full"]),
        ("paper DEVICE=cuda FOR=9m", PAPER),
        ("test ARGS=-x", CHECKS),
        ("test-notebooks JOBS=1 ARGS=-x", ["--nbval-sanitize-with tests/nbval_sanitize.cfg -x"]),
    ],
)
def test_variables_are_passed_on(tree, arguments, commands):
    several = ["NOTEBOOK=04 05"] if "DEVICE" in arguments else []
    _, out, _ = make(tree, "-n", *arguments.split(), *several)
    lines = [" ".join(line.split()) for line in out.replace("\\\n", " ").splitlines()]
    assert lines[-1].endswith(commands[-1])
    assert all(any(line.endswith(command) for line in lines) for command in commands)
    if arguments.startswith("test"):  # once, with one thread a worker
        workers = "1" if "JOBS" in arguments else "auto"
        assert out.count("-m pytest") == 1 and f"-m pytest -n {workers} " in " ".join(out.split())
        assert "OMP_NUM_THREADS=1 REPLICATION_PROFILE=smoke" in out


@pytest.mark.parametrize("profile", ["huge", "", "smoke quick"])
def test_a_wrong_profile_is_refused(tree, profile):
    status, _, err = make(tree, "figures", f"PROFILE={profile}")
    assert status != 0 and not (tree / ".venv").exists()
    assert f"PROFILE is '{profile}'; expected one of: smoke quick full paper" in err


def test_the_environment_is_made_once_and_again_when_the_lock_changes(tree):
    python = "PYTHON=./python"
    installed = [
        "-m pip install --disable-pip-version-check -r requirements.lock",
        "-m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .",
    ]
    ran = "-m replication figures --profile quick"

    status, _, err = make(tree, "figures", python)
    assert (status, err) == (0, "")
    assert calls(tree) == ["-m venv --clear .venv", *installed, ran]

    (tree / "new.py").touch()  # sources, and times of files, do not matter; only the lock does
    (tree / "requirements.lock").touch()
    make(tree, "figures", python)
    assert calls(tree) == [ran]

    with (tree / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    make(tree, "figures", python)
    assert calls(tree) == ["-m pip --version", *installed, ran]


def test_an_interrupted_set_up_is_redone(tree):
    (tree / "fail").touch()
    assert make(tree, "figures", "PYTHON=./python")[0] != 0
    assert not any("replication" in call for call in calls(tree))
    (tree / "fail").unlink()
    assert make(tree, "setup", "PYTHON=./python")[0] == 0
    assert calls(tree)[0] == "-m venv --clear .venv"
    assert make(tree, "setup") == (0, "", "")


def test_an_old_or_absent_python_is_told(tree):
    for name in ("./old", "./absent"):
        (tree / "old").write_text("#!/bin/sh\nexit 1\n")
        (tree / "old").chmod(0o755)
        status, _, err = make(tree, "setup", f"PYTHON={name}")
        assert status != 0 and f"Python 3.11 or newer is needed, and '{name}' is not it" in err


def test_clean_keeps_the_environment_the_data_and_what_is_committed(tree):
    keep = [".venv/__pycache__/a", "data/runs/__pycache__/a", "figures/full/a", "replication/a.py"]
    gone = ["figures/smoke/a", "figures/quick/a", "site/a", "replication/__pycache__/a"]
    gone += [".ruff_cache/a"]
    for name in (*keep, *gone):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    assert make(tree, "clean")[::2] == (0, "")
    assert all((tree / name).exists() for name in keep)
    assert not any((tree / name).exists() for name in gone)
    assert calls(tree) == []


def test_ci_runs_the_tests_the_figures_and_looks_at_them_last(tree, tmp_path):
    script = tree / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    shutil.copy(tree / "python", tree / "python3.11")
    (tree.parent / "shared" / "datasets").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "REPLICATION_DATA"}
    environment["PATH"] = f"{tree}:{environment['PATH']}"
    with (tree / "python3.11").open("a") as fake:
        fake.write('echo "DATA=$REPLICATION_DATA"\n')
    done = subprocess.run(["bash", script], cwd=tmp_path.parent, env=environment, **PIPES)
    assert done.returncode == 0, done.stderr
    modules = [call.split()[1] for call in calls(tree) if call.startswith("-m")]
    assert modules[-7:] == ["ruff", "ruff", "mypy", *["pytest"] * 4]
    assert f"DATA={tree.parent / 'shared' / 'datasets'}" in done.stdout
