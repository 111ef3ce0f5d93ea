"""The command line, on small notebooks in a folder of their own."""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import Mock

import nbformat
import pytest

from replication import __main__, claims, data
from replication._core import paths, profiles
from replication.data import Location
from replication.papers import _figures, _kernels

V4 = nbformat.v4
kernel = pytest.mark.slow  # starts one


@pytest.fixture
def root(tmp_path, monkeypatch):
    # Braces because papermill formats the paths it is given, blanks because people have them.
    folder = tmp_path / "a {b} c"
    (folder / "notebooks").mkdir(parents=True)
    monkeypatch.setenv("REPLICATION_ROOT", str(folder))
    return folder


def make(root, name, *cells, parameters="profile = 'quick'"):
    notebook = V4.new_notebook()
    first = V4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook.cells = [V4.new_markdown_cell("# Title"), first, *map(V4.new_code_cell, cells)]
    path = root / "notebooks" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def output_of(root, name, profile="smoke"):
    return nbformat.read(root / "figures" / profile / name / f"{name}.ipynb", as_version=4)


def printed(notebook):
    return "".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream"
    )


def without_bar(text):
    """Return what stderr shows besides the progress bar, which overwrites its own line."""
    lines = [line for part in text.split("\n") for line in part.split("\r")]
    return [line for line in lines if line.strip() and "notebook" not in line]


def figures(capfd, *more):
    """Return what a run of the notebooks at smoke, which succeeds, prints."""
    assert __main__.main(["figures", "--profile", "smoke", *more]) == 0
    return capfd.readouterr().out


LOOK = """\
import json, os, sys
from replication import papers
import matplotlib.pyplot as plt
print(json.dumps([papers.resolve(profile), profile, sys.executable, os.getcwd()]))
print(plt.get_backend())
"""


@kernel
def test_a_run_its_repetition_and_what_makes_it_run_again(root, monkeypatch, capfd, tmp_path):
    # Neither the caller's profile, nor a kernel of the same name, nor a backend gets in the way.
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = ["/bin/false", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("REPLICATION_PROFILE", "paper")
    monkeypatch.setenv("MPLBACKEND", "agg")
    path = make(root, "01_one", LOOK)
    before = dict(os.environ)

    assert __main__.main(["figures", "--profile", "smoke"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("01_one: done in ")
    assert "1/1" in err and without_bar(err) == []
    assert dict(os.environ) == before
    seen, backend = printed(output_of(root, "01_one")).splitlines()
    assert json.loads(seen) == ["smoke", "smoke", sys.executable, str(root)]
    assert "inline" in backend
    folder = root / "figures" / "smoke" / "01_one"
    assert sorted(file.name for file in folder.iterdir()) == ["01_one.ipynb", "run.json"]

    stamp = (folder / "run.json").stat().st_mtime_ns
    assert "up to date" in figures(capfd)
    assert (folder / "run.json").stat().st_mtime_ns == stamp
    assert "done in" in figures(capfd, "--force")

    make(root, "01_one", "print('changed')")
    assert "done in" in figures(capfd)
    assert printed(output_of(root, "01_one")) == "changed\n"
    assert nbformat.read(path, as_version=4).cells[2].outputs == []


@kernel
def test_failures_do_not_stop_the_others(root, capfd):
    both = "profile = ''\ndevice = ''"
    make(root, "01_raises", "raise KeyError('no such\\nthing')", parameters=both)
    make(root, "02_dies", "import os; os._exit(3)", parameters="profile: str = ''\ndevice = 'x'")
    make(root, "03_lacks", "open('ran', 'w')")
    make(root, "04_works", "print(device)", parameters="profile = ''\ndevice = 'auto'  # any")
    status = __main__.main(["figures", "--profile", "smoke", "--device", "cpu"])
    out, err = capfd.readouterr()
    assert status == 1
    assert "01_raises: failed after" in out and "KeyError: 'no such" in out
    assert "02_dies: failed after" in out and "DeadKernelError" in out
    assert "03_lacks: not run: it has no parameter device (it has profile)" in out
    assert "04_works: done" in out and printed(output_of(root, "04_works")) == "cpu\n"
    # The last line: a kernel that dies while it is shut down may say so before it.
    assert without_bar(err)[-1] == "replication: error: failed: 01_raises, 02_dies, 03_lacks"
    assert not (root / "ran").exists()
    kept = root / "figures" / "smoke" / "01_raises" / "01_raises.ipynb"
    assert str(kept) in out
    errors = [o for c in output_of(root, "01_raises").cells for o in c.get("outputs", [])]
    assert [o.ename for o in errors if o.output_type == "error"] == ["KeyError"]
    for name in ("01_raises", "02_dies", "03_lacks"):
        assert not (root / "figures" / "smoke" / name / "run.json").exists()


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@kernel
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_a_killed_run_is_run_again(root, capfd, monkeypatch, request):
    # What a killed run leaves behind, it leaves here; the path of a socket must be short.
    place = tempfile.TemporaryDirectory(prefix="killed-")
    request.addfinalizer(place.cleanup)
    monkeypatch.setenv("TMPDIR", place.name)
    make(
        root,
        "01_slow",
        "from pathlib import Path; import os, time\n"
        "if not Path('pid').exists():\n"
        "    Path('pid.new').write_text(str(os.getpid())); Path('pid.new').rename('pid')\n"
        "    time.sleep(60)",
        "print('to the end')",
    )
    command = [sys.executable, "-m", "replication", "figures", "--profile", "smoke"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while not (root / "pid").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    folder = root / "figures" / "smoke" / "01_slow"
    assert not (folder / "run.json").exists()

    assert "01_slow: done" in figures(capfd)
    assert printed(output_of(root, "01_slow")) == "to the end\n"
    assert sorted(file.name for file in folder.iterdir()) == ["01_slow.ipynb", "run.json"]
    if Path("/proc/self/stat").exists():  # the orphaned kernel ends by itself
        deadline = time.monotonic() + 60
        while not gone(kernel := int((root / "pid").read_text())) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert gone(kernel)


@kernel
def test_in_place_writes_back_without_what_is_volatile_and_only_what_succeeds(root, capfd):
    failing = make(root, "02_fails", "1 / 0")
    untouched = failing.read_bytes()
    slider = "import ipywidgets; ipywidgets.IntSlider()"
    path = make(root, "01_here", "from replication import papers; print(profile)", slider)
    before = json.loads(path.read_text())
    volatile = {"execution": {"iopub.execute_input": "2025-01-01"}, "scrolled": True}
    before["cells"][2]["metadata"] = {"tags": ["nbval-check-output"], **volatile}
    path.write_text(json.dumps(before))
    assert __main__.main(["figures", "--profile", "smoke", "--in-place"]) == 1
    assert failing.read_bytes() == untouched
    assert "02_fails: failed" in (out := capfd.readouterr().out) and "ZeroDivisionError" in out
    text = path.read_text()
    after = json.loads(text)
    assert text == json.dumps(after, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    cells = after["cells"]
    for key in ("id", "source"):
        assert [c[key] for c in cells] == [c[key] for c in before["cells"]]
    parameters, checked = {"tags": ["parameters"]}, {"tags": ["nbval-check-output"]}
    assert [c["metadata"] for c in cells] == [{}, parameters, checked, {}]
    assert [c.get("execution_count") for c in cells] == [None, 1, 2, 3]
    assert cells[2]["outputs"][0]["text"] == ["quick\n"]  # no parameter is passed
    assert cells[3]["outputs"] == []
    assert after["metadata"].keys() == {"kernelspec", "language_info"}
    assert after["metadata"]["language_info"] == {"name": "python"}
    # What was run in place need not be run again.
    assert "up to date" in figures(capfd, "--only", "01")


def test_the_key_depends_on_code_parameters_package_data_and_versions(root):
    around = {"sources": "1", "data": {"mnist": "None"}, "versions": {"torch": "2"}}

    def key(cell="1", title="# Title", parameters=None, **changed):
        notebook = nbformat.read(make(root, "01_one", cell), as_version=4)
        notebook.cells[0].source = title
        return _figures._digest(notebook, parameters or {"profile": "smoke"}, around | changed)

    others = [key("2"), key(parameters={"profile": "quick"})]
    others += [key(parameters={"profile": "smoke", "device": "cpu"})]
    others += [key(**{part: "else"}) for part in around]
    assert len({key(), *others}) == 1 + len(others)
    assert key(title="# Another title") == key()
    assert set(_figures._surroundings()) == set(around)


def test_a_missing_figure_is_not_up_to_date(tmp_path):
    output, record = tmp_path / "n.ipynb", tmp_path / "run.json"
    (tmp_path / "a.png").touch()
    output.touch()
    record.write_text(json.dumps({"key": "k", "files": ["a.png", "n.ipynb"]}))
    assert _figures._up_to_date(record, output, "k")
    assert not _figures._up_to_date(record, output, "other")
    (tmp_path / "a.png").unlink()
    assert not _figures._up_to_date(record, output, "k")
    for broken in ("{", "[]", '{"key": "k"}'):
        record.write_text(broken)
        assert not _figures._up_to_date(record, output, "k")


def test_only_takes_numbers_and_beginnings(root):
    for name in ("01_one", "02_two", "03_three"):
        make(root, name)
    (root / "notebooks" / "scratch.ipynb").touch()
    stems = lambda wanted: [path.stem for path in _figures.select(wanted)]  # noqa: E731
    assert stems(None) == ["01_one", "02_two", "03_three"]
    assert stems(["02"]) == ["02_two"]
    assert stems(["03_thr", "01", "01_one"]) == ["01_one", "03_three"]
    for wanted in ("04", "", "scratch"):
        with pytest.raises(ValueError, match=r"01_one, 02_two, 03_three"):
            _figures.select([wanted])


@kernel
def test_a_notebook_without_usable_parameters_is_refused(root):
    broken = make(root, "03_broken")
    broken.write_text("{")
    untagged = make(root, "02_untagged")
    nbformat.write(V4.new_notebook(cells=[V4.new_code_cell("1")]), untagged)
    for path in (make(root, "01_syntax", parameters="profile =="), untagged):
        with pytest.raises(RuntimeError, match=r"has no parameter profile \(it has none\)"):
            _figures._read(path, {"profile": "smoke"})
    with pytest.raises(RuntimeError, match="not readable as a notebook"):
        _figures._read(broken, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("figures --only 77", "there is no notebook '77'; there are 01_one"),
        ("figures --dataset minst", "there is no data set 'minst'; there are mnist"),
        ("figures --in-place --device cpu", "leave out --device"),
        ("data minst", "there is no data set 'minst'"),
        ("figures --profile huge", "invalid choice: 'huge'"),
        ("figures --device gpu", "'gpu' is not cpu, cuda, cuda:N or auto"),
        ("figures --jobs -1", "processes must be at least 1"),
        ("", "required: COMMAND"),
        ("paint", "invalid choice: 'paint'"),
    ],
)
def test_a_mistake_is_told_with_status_2(root, capsys, arguments, message):
    make(root, "01_one")
    try:
        status, usage = __main__.main(arguments.split()), False
    except SystemExit as ended:  # argparse, which prints the usage first
        status, usage = ended.code, True
    out, err = capsys.readouterr()
    assert (status, out) == (2, "") and message in err
    assert usage or (err.startswith("replication: error: ") and err.count("\n") == 1)


def test_what_is_missing_or_wrong_around_the_command(root, capsys, monkeypatch):
    assert __main__.main(["figures"]) == 2
    assert "there are no notebooks in" in capsys.readouterr().err
    make(root, "01_one")
    monkeypatch.setenv("REPLICATION_PROFILE", "huge")
    assert __main__.main(["figures"]) == 2
    assert "REPLICATION_PROFILE is 'huge'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "papermill", None)
    assert __main__.main(["figures", "--profile", "smoke"]) == 2
    assert "needs papermill: pip install -e '.[notebooks]'" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback_and_an_interruption_is_130(root, monkeypatch, capsys):
    monkeypatch.setattr(_figures, "select", Mock(side_effect=TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        __main__.main(["figures"])
    monkeypatch.setattr(_figures, "select", Mock(side_effect=KeyboardInterrupt()))
    assert __main__.main(["figures"]) == 130
    assert capsys.readouterr().err == "replication: interrupted\n"


def test_doctor_tells_what_there_is_and_what_runs_took(root, capsys):
    for name, text in (("00_a", '{"seconds": 12.3}'), ("01_b", '{"seconds": 30}'), ("02_c", "{")):
        (root / "figures" / "quick" / name).mkdir(parents=True)
        (root / "figures" / "quick" / name / "run.json").write_text(text)
    assert __main__.main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in ("python", "torch threads", "cuda", "safetensors", *data.NAMES):
        assert part in out
    assert str(paths.root()) in out
    assert "  quick          00_a 12 s; 2 notebooks 42 s\n  full           none\n" in out


def test_data_lists_fetches_and_goes_on(root, capsys, monkeypatch):
    def at(name, folder, fault=""):
        return Location(name, "torchvision", "data/", Path(folder), (), (), fault)

    there = {"mnist": at("mnist", "/some/where")}
    there["cifar100"] = at("cifar100", "/here", "no test file")
    fetched = []

    def fetch(name):
        fetched.append(name)
        if name == "cifar10":
            raise OSError("no answer\nfrom the network")
        there[name] = at(name, "/downloaded")

    monkeypatch.setattr(data, "locate", there.get)
    monkeypatch.setattr(data, "fetch", fetch)
    assert __main__.main(["data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(data.NAMES) and fetched == []
    assert any(line.startswith("mnist ") and line.endswith(": /some/where") for line in lines)
    assert any("incomplete: no test file; `python -m replication" in line for line in lines)
    assert any("`python -m replication data cifar10` downloads it" in line for line in lines)

    assert __main__.main(["data", "mnist", "cifar10", "fashion_mnist", "cifar100"]) == 1
    assert fetched == ["cifar10", "fashion_mnist", "cifar100"]
    out, err = capsys.readouterr()
    assert out.count("/downloaded") == 2
    assert err == "replication: error: cifar10: no answer from the network\n"


def test_help_needs_no_heavy_import():
    code = "import sys; from replication import __main__; __main__._parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "papermill", "numpy", "matplotlib"}.isdisjoint(done.stdout.split())


def test_the_environment_wins_over_a_notebooks_profile(monkeypatch):
    monkeypatch.delenv("REPLICATION_PROFILE", raising=False)
    assert profiles.resolve("full") == "full"
    with pytest.raises(ValueError, match=r"profile is 'huge'; expected one of smoke, quick"):
        profiles.resolve("huge")
    monkeypatch.setenv("REPLICATION_PROFILE", "smoke")
    assert profiles.resolve("full") == "smoke"


def test_only_what_the_scorecard_shows_changes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))
    assert not _figures._changes_scorecard("full")
    for profile, changes in (("smoke", True), ("full", False)):
        folder = tmp_path / "figures" / profile / "01_one"
        folder.mkdir(parents=True)
        (folder / "claims.json").write_text("[]")
        assert _figures._changes_scorecard("smoke") is changes
        assert _figures._changes_scorecard("full")


@pytest.mark.skipif(os.name != "posix", reason="Unix sockets")
def test_kernels_need_no_network_interface(tmp_path):
    manager = _kernels.own()(kernel_name="python3")
    folder = Path(manager.ip).parent
    assert manager.transport == "ipc"
    assert folder.is_dir() and folder.stat().st_mode & 0o077 == 0  # nobody else may listen
    assert len(manager.ip) < 100
    del manager
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_consoles_that_cannot_print_all_signs(root, encoding):
    source = Path(__main__.__file__).parents[1] / "figures" / "full" / "04_noise_svd_mnist"
    folder = root / "figures" / "full" / source.name
    folder.mkdir(parents=True)
    (folder / claims.FILE).write_bytes((source / claims.FILE).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "replication", "scorecard"],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0 and b"? reproduced" in done.stdout
    assert "✔ reproduced" in (root / "figures" / "SCORECARD.md").read_text(encoding="utf-8")
