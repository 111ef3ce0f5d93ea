import re

import numpy as np
import pytest
from scipy import stats

from replication.claims import Claim, Rule, save, scorecard, settle
from replication.claims.scorecard import adjusted, collect, select, summary, update_readme, write

BEGIN, END = scorecard.BEGIN, scorecard.END

VALUES = {
    "reproduced": [1.0, 1.1, 0.9],
    "not reproduced": [-1.0, -1.1, -0.9],
    "inconclusive": [1.0, -1.0, 0.2],
}


def item(id, verdict="reproduced", paper="Novak et al. 2018", statement="it rises", **where):
    own = {key: where.pop(key) for key in ("kind", "why", "corrected", "status") if key in where}
    where = {"dataset": "MNIST", "profile": "full", "notebook": "04_noise"} | where
    claim = Claim(id, paper, statement, Rule("slope", 0.3, "a tick"), "Fig. 2", "0.5", **own)
    settled = settle(claim, VALUES[verdict], **where)
    assert settled.verdict == verdict
    return settled


def put(folder, *items):
    places = {(i.profile, i.notebook) for i in items}
    for profile, notebook in places:
        here = [i for i in items if (i.profile, i.notebook) == (profile, notebook)]
        save(here, folder / profile / notebook)
    return folder


def some(folder):
    return put(
        folder,
        item("B10", why="never shown"),
        item("B2", "not reproduced", note="a | pipe\nand `EV1` <b> *fell*", scale="5k images"),
        item("B1", "inconclusive", why="few | nets", corrected="misread", status="confirmatory"),
        item("Z1", paper="Zhang et al. 2017", notebook="01_labels", kind="sanity"),
        item("B10", profile="paper", fidelity="A"),
        item("B1", "not reproduced", profile="quick"),
    )


def rows_of(text):
    """Return the lines of tables as lists of cells, split at unescaped pipes."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_collect_reads_all_and_orders_naturally(tmp_path):
    order = [f"{r['paper'][:5]} {r['id']} {r['profile']}" for r in collect(some(tmp_path))]
    assert order[:3] == ["Novak B1 quick", "Novak B1 full", "Novak B2 full"]
    assert order[3:] == ["Novak B10 full", "Novak B10 paper", "Zhang Z1 full"]


@pytest.mark.parametrize("act", [collect, write])
def test_what_is_missing_malformed_or_misplaced_is_told(tmp_path, act):
    with pytest.raises(ValueError, match=r"no claims in .*figures; run `make figures` first"):
        act(tmp_path / "figures")
    save([item("B1", profile="quick")], tmp_path / "full" / "04_noise")
    with pytest.raises(ValueError, match=r"B1 is of \('quick', '04_noise'\); its folder says"):
        act(tmp_path)
    bad = some(tmp_path) / "smoke" / "03" / "claims.json"
    bad.parent.mkdir(parents=True)
    bad.write_text("[{", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(str(bad))):
        act(tmp_path)
    assert not (tmp_path / "SCORECARD.md").exists()


def test_select_takes_the_best_evidence_of_a_claim_or_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))
    some(tmp_path / "figures")
    assert write() == tmp_path.resolve() / "figures" / "SCORECARD.md"
    rows = select(collect())
    places = [(row["id"], row["profile"]) for row in rows]
    assert places == [("B1", "full"), ("B2", "full"), ("B10", "paper"), ("Z1", "full")]
    put(tmp_path / "figures", item("B10", profile="paper"))  # the same fidelity: the larger
    assert {row["profile"] for row in select(collect()) if row["id"] == "B10"} == {"paper"}
    put(tmp_path / "figures", item("B10", fidelity="B"))
    assert {row["profile"] for row in select(collect()) if row["id"] == "B10"} == {"full"}
    quick = [row for row in collect() if row["profile"] == "quick"]
    assert select(quick) == quick
    unknown = [row | {"units": 0} for row in collect() if row["profile"] != "quick"]
    chosen = {row["id"]: row["profile"] for row in select([*unknown, *quick])}
    assert chosen["B1"] == "quick" and chosen["Z1"] == "full"
    table = rows_of(summary(select([*unknown, *quick])))
    assert [row[0] for row in table[2:]] == ["quick"]


def test_the_committed_quick_claims_come_before_this_machines_own(tmp_path):
    own, committed = item("B1", profile="quick"), item("B1", "inconclusive", profile="quick")
    save([own], tmp_path / "quick" / "04_noise")
    save([committed], tmp_path / scorecard.PILOT / "04_noise")
    assert [row["verdict"] for row in collect(tmp_path)] == ["inconclusive"]


def test_summary_counts_empirical_claims_by_fidelity_and_verdict(tmp_path):
    header, rule, *body = rows_of(summary(select(collect(some(tmp_path)))))
    assert header[0] == "Empirical claims at fidelity" and len(header) == 6
    assert header[1:4] == ["✔ reproduced", "◐ partly", "✘ not reproduced"]
    assert set(rule) == {"---"}
    assert body == [["A", "1", "0", "0", "0", "0"], ["C", "0", "0", "1", "1", "0"]]
    again = [row | {"restates": "B1"} for row in collect(tmp_path)]
    assert len(rows_of(summary(select(again)))) == 2  # the same facts once more: none is counted


def test_scorecard_shows_all_that_a_referee_asks_for(tmp_path):
    folder = some(tmp_path)
    history = {"B2": ("rule of 1a2b3c4d5, 2026-01-01", "measured 2026-01-02 to 2026-01-03")}
    text = write(folder, history).read_text(encoding="utf-8")
    assert "; quick;" not in text and "Not the evidence" not in text and " of 4" not in text
    assert r"<br>a \| pipe and \`EV1\` &lt;b> \*fell\* |" in text
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads == ["## Novak et al. 2018", "## Zhang et al. 2017"]
    header, *body = [cells for cells in rows_of(text) if len(cells) == 11 and "---" not in cells]
    lines = {cells[0]: dict(zip(header, cells, strict=True)) for cells in body if cells != header}
    assert list(lines) == ["B1", "B2", "B10", "Z1"]
    p = stats.ttest_1samp(VALUES["inconclusive"], 0.3, alternative="greater").pvalue
    assert lines["B1"] == {
        "Claim": "B1",
        "Statement": "it rises<br>empirical, confirmatory<br>Fig. 2",
        "The paper reports": "0.5",
        "Ours": "0.06667 [-2.434, 2.567]<br>3 units could have shown 3.6",
        "Axis": "![](axes/04_noise_B1.svg)",
        "Verdict": "○ inconclusive",
        "Evidence": "fidelity C; 3 units; full; MNIST",
        "p; Holm; BH": f"{p:.2g}; 1; {1.5 * p:.2g}",
        "Why": r"few \| nets",
        "Rule": "slope: the 95% t interval of the mean lies above 0.3 (a tick); at least 3 units."
        "<br>Corrected: misread",
        "Notebook": "[04_noise](<../notebooks/04_noise.ipynb>)",
    }
    assert lines["B10"]["Why"] == ""  # it is reproduced
    assert lines["B2"]["Rule"].endswith("units.<br>" + "<br>".join(history["B2"]))
    assert lines["B2"]["Evidence"] == "fidelity C; 3 units; full; MNIST; 5k images"
    assert ";" not in lines["Z1"]["p; Holm; BH"]  # no empirical claim: not corrected
    for cells in lines.values():
        assert "<svg" in (folder / cells["Axis"][4:-1]).read_text(encoding="utf-8")


def test_without_evidence_the_page_says_so(tmp_path):
    put(tmp_path, item("B1", profile="quick"), item("B2", profile="smoke"))
    text = write(tmp_path).read_text(encoding="utf-8")
    assert "**Not the evidence: run `make figures PROFILE=full` for that.**" in text
    assert [c[6].split("; ")[2] for c in rows_of(text) if c[0].startswith("B")] == [
        "quick",
        "smoke",
    ]


def test_p_values_are_adjusted_as_holm_and_benjamini_and_hochberg_say():
    p = [0.01, 0.04, 0.03, 0.005]
    holm, bh = np.transpose(adjusted(p))
    assert holm == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm 1979, by hand
    assert bh == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert adjusted([]) == [] and adjusted([0.9, 0.8]) == [(1.0, 0.9), (1.0, 0.9)]


def test_the_same_claims_give_the_same_page(tmp_path):
    path = write(some(tmp_path / "a"))
    other = write(some(tmp_path / "b")).parent
    before = path.read_bytes()
    assert before == (other / path.name).read_bytes() == write(other).read_bytes()
    axis = "axes/04_noise_B1.svg"
    assert (path.parent / axis).read_bytes() == (other / axis).read_bytes()


def test_readme_changes_between_its_markers_only_and_must_have_them(tmp_path):
    rows = select(collect(some(tmp_path / "figures")))
    path = tmp_path / "README.md"
    path.write_text(f"# é\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    update_readme(path, rows)
    expected = f"# é\n{BEGIN}\n\n{summary(rows)}\n{END}\nafter\n"
    assert path.read_text(encoding="utf-8") == expected
    update_readme(path, rows)
    assert path.read_text(encoding="utf-8") == expected
    for wrong in ("", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(ValueError, match=r"README\.md must hold"):
            update_readme(path, [])
        assert path.read_text(encoding="utf-8") == wrong
