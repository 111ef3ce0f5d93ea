"""The README's code runs, its commands exist and its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from replication import paths

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^make(?: .*?)?(?=\s*(?:#|$))", README, re.MULTILINE)


def test_there_is_something_to_check():
    assert CODE and len(COMMANDS) >= 4


PRINTED = ("EV1 =", "test_accuracy")  # by each block of code


@pytest.mark.parametrize(("code", "printed"), list(zip(CODE, PRINTED, strict=True)))
def test_python_runs_as_it_stands(code, printed, tmp_path):
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_make_knows_the_commands(command):
    target, *variables = command.split()[1:]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        ["make", "-n", target, *variables], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_links_lead_to_files(link):
    assert (Path(__file__).parent.parent / link).is_file()


def test_the_summary_is_that_of_the_committed_claims():
    from replication import scorecard

    block = README.partition(scorecard.BEGIN)[2].partition(scorecard.END)[0]
    rows = scorecard.select(scorecard.collect(Path(__file__).parent.parent / "figures"))
    assert block.strip() == scorecard.summary(rows).strip()


def test_every_notebook_is_listed():
    for notebook in paths.notebooks().glob("*.ipynb"):
        assert f"notebooks/{notebook.name}" in README
