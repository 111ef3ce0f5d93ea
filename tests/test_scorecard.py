import re
from unittest.mock import Mock

import pytest

from replication.claims import Claim, Rule, save, settle
from replication.claims.scorecard import BEGIN, END, collect, select, summary, update_readme, write

VALUES = {
    "reproduced": [1.0, 1.1, 0.9],
    "not reproduced": [-1.0, -1.1, -0.9],
    "inconclusive": [1.0, -1.0, 0.2],
}


def item(id, verdict="reproduced", paper="Novak et al. 2018", statement="it rises", **where):
    where = {"dataset": "MNIST", "profile": "full", "notebook": "04_noise"} | where
    claim = Claim(id, paper, statement, Rule("slope", ">", 0.0), "Fig. 2", "0.5")
    found = settle(claim, VALUES[verdict], **where)
    assert found.verdict == verdict
    return found


def put(folder, *items):
    places = {(i.profile, i.notebook) for i in items}
    for profile, notebook in places:
        here = [i for i in items if (i.profile, i.notebook) == (profile, notebook)]
        save(here, folder / profile / notebook)
    return folder


def some(folder):
    return put(
        folder,
        item("B10"),
        item("B2", "not reproduced", note="a | pipe\nand `EV1` <b> *fell*", scale="5k images"),
        item("B1", "inconclusive"),
        item("Z1", paper="Zhang et al. 2017", notebook="01_labels"),
        item("B1", profile="paper"),
        item("B1", "not reproduced", profile="quick"),
    )


def rows_of(text):
    """Return the lines of tables as lists of cells, split at unescaped pipes."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_collect_reads_all_and_orders_naturally(tmp_path):
    order = [f"{r['paper'][:5]} {r['id']} {r['profile']}" for r in collect(some(tmp_path))]
    assert order[:3] == ["Novak B1 quick", "Novak B1 full", "Novak B1 paper"]
    assert order[3:] == ["Novak B2 full", "Novak B10 full", "Zhang Z1 full"]


@pytest.mark.parametrize("act", [collect, write])
def test_what_is_missing_malformed_or_misplaced_is_told(tmp_path, act):
    with pytest.raises(ValueError, match=r"no claims in .*figures; run `make figures` first"):
        act(tmp_path / "figures")
    save([item("B1", profile="quick")], tmp_path / "full" / "04_noise")
    with pytest.raises(ValueError, match="B1 is of profile 'quick'"):
        act(tmp_path)
    bad = some(tmp_path) / "smoke" / "03" / "claims.json"
    bad.parent.mkdir(parents=True)
    bad.write_text("[{", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(str(bad))):
        act(tmp_path)
    assert not (tmp_path / "SCORECARD.md").exists()


def test_scorecard_shows_committed_profiles_only(tmp_path):
    text = write(some(tmp_path)).read_text(encoding="utf-8")
    assert "quick" not in text and "smoke" not in text
    assert r"<br>a \| pipe and \`EV1\` &lt;b> \*fell\* |" in text
    assert "| MNIST; 5k images; 3 seeds |" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Novak et al. 2018",
        "## Zhang et al. 2017",
    ]
    header, *body = [cells for cells in rows_of(text) if len(cells) == 9 and "---" not in cells]
    body = [cells for cells in body if cells != header]
    assert [cells[0] for cells in body] == ["B1", "B2", "B10", "Z1"]
    assert dict(zip(header, body[2], strict=True)) == {
        "Claim": "B10",
        "Figure": "Fig. 2",
        "Statement": "it rises",
        "The paper reports": "0.5",
        "Ours at full": "✔ reproduced<br>1.000 [0.752, 1.248]",
        "Ours at paper": "not run",
        "Data set, scale and seeds": "MNIST; 3 seeds",
        "Notebook": "[04_noise](<../notebooks/04_noise.ipynb>)",
        "Rule": "slope: the 95% t interval of the mean lies above 0; at least 3 seeds.",
    }
    verdicts = [[cell.split("<br>")[0] for cell in cells[4:6]] for cells in body[:2]]
    assert verdicts == [["○ inconclusive", "✔ reproduced"], ["✘ not reproduced", "not run"]]


def test_what_differs_between_profiles_is_told_of_each(tmp_path):
    put(
        tmp_path,
        item("B1", scale="100 images"),
        item("B1", profile="paper", dataset="CIFAR-10", scale="all of CIFAR-10"),
        item("B1", notebook="05_more", statement="it rises again"),
    )
    full, other = [
        cells for cells in rows_of(write(tmp_path).read_text(encoding="utf-8")) if cells[0] == "B1"
    ]
    assert full[2] == "it rises" and other[2] == "it rises again"
    assert full[6] == "full: MNIST; 100 images; 3 seeds<br>paper: all of CIFAR-10; 3 seeds"
    assert other[4:7] == ["✔ reproduced<br>1.000 [0.752, 1.248]", "not run", "MNIST; 3 seeds"]


def test_without_a_committed_profile_the_page_says_so(tmp_path):
    put(tmp_path, item("B1", profile="quick"), item("B2", profile="smoke"))
    text = write(tmp_path).read_text(encoding="utf-8")
    assert "**Profile smoke, quick only: a quick look, not the evidence.**" in text
    assert "| Paper | smoke ✔ · ✘ · ○ | quick ✔ · ✘ · ○ |" in text
    shown = [[c[4][:5], c[5][:5]] for c in rows_of(text) if c[0].startswith("B")]
    assert shown == [["not r", "✔ rep"], ["✔ rep", "not r"]]
    asked = write(tmp_path, profiles=("smoke",)).read_text(encoding="utf-8")
    assert "not the evidence" not in asked
    assert "| Paper | smoke ✔ · ✘ · ○ |" in asked and "Ours at smoke" in asked


def test_the_same_claims_give_the_same_page_and_a_failed_write_leaves_it(tmp_path, monkeypatch):
    path = write(some(tmp_path / "a"))
    before = path.read_bytes()
    assert before == write(some(tmp_path / "b")).read_bytes() == write(tmp_path / "b").read_bytes()
    put(path.parent, item("B3", notebook="09_more"))
    monkeypatch.setattr("replication._core.files.os.replace", Mock(side_effect=OSError("full")))
    with pytest.raises(OSError, match="full"):
        write(path.parent)
    assert path.read_bytes() == before
    assert [p for p in path.parent.iterdir() if p.is_file()] == [path]


def test_summary_counts_by_paper_with_a_column_a_profile(tmp_path):
    header, rule, *body = rows_of(summary(select(collect(some(tmp_path)))))
    assert header == ["Paper", "full ✔ · ✘ · ○", "paper ✔ · ✘ · ○"]
    assert set(rule) == {"---"}
    assert body == [
        ["Novak et al. 2018", "1 · 1 · 1", "1 · 0 · 0"],
        ["Zhang et al. 2017", "1 · 0 · 0", "not run"],
        ["**All**", "2 · 1 · 1", "1 · 0 · 0"],
    ]


def test_summary_says_which_profile_has_not_been_run(tmp_path):
    text = summary(select(collect(some(tmp_path)), ("full",)))
    assert rows_of(text)[0] == ["Paper", "full ✔ · ✘ · ○", "paper"]
    assert [cells[2] for cells in rows_of(text)[2:]] == ["not run"] * 3
    assert text.endswith("\n\n✔ reproduced, ✘ not reproduced, ○ inconclusive.\n")
    quick = summary(select(collect(tmp_path), ("quick",)))
    assert rows_of(quick)[0] == ["Paper", "quick ✔ · ✘ · ○"]


def test_select_falls_back_to_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))
    some(tmp_path / "figures")
    assert write() == tmp_path.resolve() / "figures" / "SCORECARD.md"
    rows = collect()
    assert {row["profile"] for row in select(rows)} == {"full", "paper"}
    assert {row["profile"] for row in select(rows, ("quick",))} == {"quick"}
    assert select(rows, ("none",)) == rows


def test_readme_changes_between_the_markers_only(tmp_path):
    rows = select(collect(some(tmp_path / "figures")))
    path = tmp_path / "README.md"
    path.write_text(f"# é\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    update_readme(path, rows)
    expected = f"# é\n{BEGIN}\n\n{summary(rows)}\n{END}\nafter\n"
    assert path.read_text(encoding="utf-8") == expected
    update_readme(path, rows)
    assert path.read_text(encoding="utf-8") == expected


@pytest.mark.parametrize(
    "text", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"]
)
def test_readme_without_its_markers_is_refused(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"README\.md must hold"):
        update_readme(path, [])
    assert path.read_text(encoding="utf-8") == text
