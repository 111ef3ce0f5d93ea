"""The Makefile and .ci/run, in a copy of the tree whose path has blanks; nothing is installed."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("help", "setup", "figures", "run", "paper", "test", "test-slow", "test-notebooks")
TARGETS += ("lab", "html", "data", "bench", "rented", "clean")
VARIABLES = ("PROFILE", "NOTEBOOK", "DATASET", "DEVICE", "CLUSTER", "FORCE", "JOBS", "FOR", "ARGS")
VARIABLES += ("PYTHON", "MINUTES")
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
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # of the make that runs these tests
        monkeypatch.delenv(name, raising=False)
    return folder


def make(tree, *arguments):
    command = ["make", *arguments]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=60)
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
    for target in TARGETS:
        assert re.search(rf"^  {target} +\S", out, re.MULTILINE), target
    for variable in VARIABLES:
        assert re.search(rf"^  {variable}=", out, re.MULTILINE), variable
    assert "smoke quick full paper" in out
    assert not (tree / ".venv").exists()


SOME = "PROFILE=smoke DATASET=mnist DEVICE=cuda:1 CLUSTER=tcp://host:8786 FORCE=1 JOBS=3"
OPTIONS = "--dataset 'mnist' --device 'cuda:1' --cluster 'tcp://host:8786' --jobs '3' --force"


@pytest.mark.parametrize(
    ("arguments", "commands"),
    [
        ("figures", ["-m replication figures --profile quick"]),
        (f"figures {SOME}", [f"figures --profile smoke --only 04 05 {OPTIONS}"]),
        ("html", ["-m sphinx -q docs site"]),
        ("data DATASET=mnist", ["-m replication data mnist"]),
        ("rented MINUTES=9 ARGS=--dry", ["-m benchmarks rented --minutes 9 --dry"]),
        ("run PROFILE=full", ["-m replication run --profile full"]),
        (
            "paper DEVICE=cuda FOR=9m",
            [
                "run 04 05 --device 'cuda' --for '9m' --profile paper",
                "figures --profile paper --only 04 05 --device 'cuda'",
            ],
        ),
        (
            "test ARGS=-x",
            ["-m ruff check .", "--check .", "-m mypy", 'loadfile tests -m "not slow" -x'],
        ),
    ],
)
def test_variables_are_passed_on(tree, arguments, commands):
    several = ["NOTEBOOK=04 05"] if "DEVICE" in arguments else []
    _, out, _ = make(tree, "-n", *arguments.split(), *several)
    lines = [" ".join(line.split()) for line in out.replace("\\\n", " ").splitlines()]
    assert lines[-1].endswith(commands[-1])
    assert all(any(line.endswith(command) for line in lines) for command in commands)


def test_pytest_runs_once_with_one_thread_a_worker(tree):
    _, out, _ = make(tree, "-n", "test")
    assert out.count("-m pytest") == 1 and "OMP_NUM_THREADS=1" in out
    _, out, _ = make(tree, "-n", "test-notebooks", "JOBS=1")
    assert "-n 1 " in out and "REPLICATION_PROFILE=smoke" in out and "--nbval-lax" in out


@pytest.mark.parametrize("profile", ["huge", "", "smoke quick"])
def test_a_wrong_profile_is_refused(tree, profile):
    status, _, err = make(tree, "figures", f"PROFILE={profile}")
    assert status != 0
    assert f"PROFILE is '{profile}'; expected one of: smoke quick full paper" in err
    assert not (tree / ".venv").exists()


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
    status, _, _ = make(tree, "figures", "PYTHON=./python")
    assert status != 0
    assert not any("replication" in call for call in calls(tree))
    (tree / "fail").unlink()
    status, _, _ = make(tree, "setup", "PYTHON=./python")
    assert status == 0
    assert calls(tree)[0] == "-m venv --clear .venv"
    assert make(tree, "setup") == (0, "", "")


def test_an_old_or_absent_python_is_told(tree):
    for name in ("./old", "./absent"):
        (tree / "old").write_text("#!/bin/sh\nexit 1\n")
        (tree / "old").chmod(0o755)
        status, _, err = make(tree, "setup", f"PYTHON={name}")
        assert status != 0
        assert f"Python 3.11 or newer is needed, and '{name}' is not it" in err


def test_clean_keeps_the_environment_the_data_and_what_is_committed(tree):
    keep = [".venv/__pycache__/a", "data/runs/__pycache__/a", "figures/full/a", "replication/a.py"]
    gone = ["figures/smoke/a", "figures/quick/a", "site/a", "replication/__pycache__/a"]
    gone += [".ruff_cache/a"]
    for name in (*keep, *gone):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    status, _, err = make(tree, "clean")
    assert (status, err) == (0, "")
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
    pipes = {"capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run(["bash", script], cwd=tmp_path.parent, env=environment, **pipes)
    assert done.returncode == 0, done.stderr
    modules = [call.split()[1] for call in calls(tree) if call.startswith("-m")]
    assert modules[-7:] == ["ruff", "ruff", "mypy", *["pytest"] * 4]
    assert f"DATA={tree.parent / 'shared' / 'datasets'}" in done.stdout
