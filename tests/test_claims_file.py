"""The file of a notebook's claims, and its tables for a reader."""

import json
import math

import numpy as np
import pytest
from _settling import WHERE

from replication.claims import Claim, Gate, Rule, draw, load, ours, rules, save, settle, table

GOOD = [1.0, 1.1, 0.9]
R, N = "reproduced", "not reproduced"
RULE = Rule("rise", np.float32(0.5), "a tick of Fig. 2", paper=0.8)
SHARE = Rule("shares", 0.5, "half", "share")


def claim(*rules, id="B1", **more):
    return Claim(id, "Novak et al. 2018", "it rises", rules if rules[1:] else rules[0], **more)


def some():
    """Return a claim of each form: a gate, parts of every kind of values, a theorem, none known."""
    gated = claim(RULE, gate=Gate("accuracy", 0.9), status="confirmatory", why="too narrow")
    many = claim(Rule("r", test="correlation"), Rule("rise", range=(-1.0, None)), SHARE, id="B2")
    values = [{"r": 0.8, "n": 24, "rank": True}, {"a": [1.0, None], "b": [1.2], "c": [0.9]}]
    said = {"note": "seen", "gate": np.float64(0.95), "scale": "small"}
    return [
        settle(gated, [1.0, math.nan, 1.1, 0.9], **said, **WHERE),
        settle(many, [*values, [1] * 20], fidelity="A", **WHERE),
        settle(claim(Rule("gap", test="every"), id="B3", kind="theorem"), GOOD, **WHERE),
        settle(claim(RULE, id="B4"), np.float32([math.nan]), **WHERE),
    ]


def test_what_is_saved_is_read_again_and_is_plain(tmp_path):
    path = save(some(), tmp_path)
    rows = load(path)
    assert path.read_bytes() == save(some(), tmp_path / "again").read_bytes()
    assert path == tmp_path / "claims.json" and rows == [item.as_dict() for item in some()]
    needed = {"id", "paper", "statement", "kind", "paper_value", "value", "interval", "verdict"}
    needed |= {"rule", "units", "dataset", "profile", "fidelity", "status", "corrected", "why"}
    assert all(needed | {"parts", "values", "seeds", "gate", "p"} <= set(row) for row in rows)
    first, second, third, fourth = rows
    assert first["values"] == [1.0, None, 1.1, 0.9] and first["seeds"] == first["units"] == 3
    assert first["gate"] == {"measure": "accuracy", "least": 0.9, "most": None, "value": 0.95}
    assert (first["why"], first["status"], first["fidelity"]) == ("too narrow", "confirmatory", "C")
    assert first["note"].startswith("seen; undefined for 1 of 4 numbers; gate open")
    assert [part["units"] for part in second["parts"]] == [24, 3, 20] and second["units"] == 3
    assert second["values"][1] == {"a": [1.0, None], "b": [1.2], "c": [0.9]}
    assert (third["kind"], third["interval"]) == ("theorem", [0.9, 1.1])
    assert fourth["value"] is fourth["interval"] is fourth["p"] is None
    # strict JSON: no NaN, no Infinity
    json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: pytest.fail("NaN"))


def test_save_refuses_what_it_cannot_keep(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        save([], tmp_path)
    with pytest.raises(ValueError, match="B1 more than once"):
        save([some()[0], some()[0]], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda row: row.pop("verdict"), "claim B1 says verdict None; expected what `save` writes"),
        (lambda row: row.pop("parts"), r"claim B1 is malformed \(KeyError\('parts'"),
        (lambda row: row.update(note=3), "says note 3; expected"),
        (lambda row: row.update(kind="fact"), "kind is 'fact'"),
        (lambda row: row.update(verdict=N), "says verdict 'not reproduced', but its values give"),
        (lambda row: row["gate"].update(value=0.5), "its values give 'not testable at this scale'"),
        (lambda row: row["parts"][0].update(verdict=N), r"verdicts \['not reproduced'\], but"),
        (lambda row: row["parts"][0].update(values=[-1.0, -1.1, -0.9]), "values give 'not repro"),
        (lambda row: row["parts"][0]["rule"].update(smallest=2.0), "values give 'not reproduced"),
        (lambda row: row["parts"][0].pop("rule"), r"B1 is malformed \(KeyError\('rule"),
        (lambda row: row["parts"][0]["rule"].update(test="z"), "test is 'z'"),
        (lambda row: row.update(parts=[]), r"rule is \(\)"),
        (lambda row: row.update(value="1"), "says value '1', but its values give 1.0"),
        (lambda row: row.update(units=2), "says units 2, but its values give 3"),
    ],
)
def test_load_says_what_is_wrong(tmp_path, change, named):
    path = save(some(), tmp_path)
    rows = json.loads(path.read_text(encoding="utf-8"))
    change(rows[0])
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(ValueError, match=named) as caught:
        load(path)
    assert str(path) in str(caught.value)
    for text in (json.dumps(rows[1:2] * 2), "", "[", "{}", "[]", "[3]", '[{"id": "B1"}]'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"claims\.json(.* B2 more than once)?"):
            load(path)


def test_rules_read_as_sentences_with_their_source_and_the_gate():
    frame = rules([item.claim for item in some()])
    first, second, third, _ = frame["Rule"]
    parts = (
        "rise: the 95% t interval",
        "above 0.5 (a tick of Fig. 2)",
        "3 units",
        "accuracy at least",
    )
    assert all(part in first for part in parts)
    parts = "(1) r: the 95% interval by Fisher's z", "(2) rise: the 95% t interval", "log", "(3) sh"
    assert all(part in second for part in parts)
    assert third == "gap: every value lies above 0."
    assert "within ±0.5 (x)" in str(Rule("gap", 0.5, "x", "equivalence", minimum=7))


def test_table_has_a_row_a_claim_with_all_parts_and_whole_sentences():
    long = "x" * 200 + " <b> & y"
    item = settle(Claim("B9", "p", long, RULE, paper_value="0.9"), GOOD, **WHERE)
    frame = table([*some(), item])
    assert list(frame.columns) == ["Claim", "Statement", "Paper", "Ours", "Verdict"]
    assert list(frame["Claim"]) == ["B1", "B2", "B3", "B4", "B9"]
    assert list(frame.iloc[-1]) == ["B9", long, "0.9", "1 [0.7516, 1.248]", R]
    parts = frame["Ours"][1].split("; ")
    assert [part.split(" ")[0] for part in parts] == ["(1)", "(2)", "(3)"]
    assert parts[2] == "(3) share 1 [0.8316, 1] reproduced"
    assert frame["Ours"][3] == "undefined"
    assert ours(some()[2].as_dict()) == "least 0.9 [0.9, 1.1]"
    html = frame._repr_html_()
    assert "x" * 200 in html and "&lt;b&gt; &amp; y" in html


def test_the_axis_has_the_papers_number_ours_its_interval_and_the_smallest_effect():
    settled = some()[0]
    (axes,) = draw(settled).axes
    zero, interval, point, paper = axes.lines
    assert list(zero.get_xdata()) == [0, 0] and list(interval.get_xdata()) == [*settled.interval]
    assert list(point.get_xdata()) == [settled.value] and list(paper.get_xdata()) == [0.8]
    (shade,) = axes.patches
    assert (shade.get_x(), shade.get_width()) == (-0.5, 1.0)
    (axes,) = draw(settle(claim(SHARE), [1] * 20, **WHERE).as_dict()).axes
    assert axes.patches[0].get_x() == 0.0  # a share has no other side
    (axes,) = draw(some()[3]).axes
    assert len(axes.lines) == 2  # nothing is known of ours
