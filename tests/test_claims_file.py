"""Claims kept in a file, and as a reader sees them: sentences, digits, a table."""

import json
import math
from unittest.mock import Mock

import numpy as np
import pytest
from _settling import WHERE, claim, rule

from replication.claims import Claim, load, ours, save, settle, table
from replication.claims._file import _digits

R, N = "reproduced", "not reproduced"
TESTS = ("t", "sign", "bootstrap", "every")
GOOD = [1.0, 1.1, 0.9]


def some():
    two = (rule(), rule("<", 2.0, "sign"))
    return [
        settle(claim(rule()), [1.0, math.nan, 1.1, 0.9], **WHERE, scale="small", note="EV1 | é"),
        settle(claim(*two, id="B2", figure="Fig. 3"), [GOOD, [2.0, 2.0, 2.0]], **WHERE),
        settle(claim(rule(), id="B3"), [math.nan], **WHERE),
        settle(claim(rule(test="bootstrap"), id="B4"), [1.0, 1.1, 0.9, 1.2, 0.8], **WHERE),
    ]


def test_saved_claims_come_back(tmp_path):
    path = save(some(), tmp_path / "full" / "04")
    assert path == tmp_path / "full" / "04" / "claims.json"
    rows = load(path)
    assert rows == [item.as_dict() for item in some()]
    assert [row["id"] for row in rows] == ["B1", "B2", "B3", "B4"]
    first, second, third, _ = rows
    assert first["values"] == [1.0, None, 1.1, 0.9] and first["seeds"] == 3
    assert (first["scale"], first["verdict"], first["paper_value"]) == ("small", R, "not reported")
    assert second["values"] == [GOOD, [2.0, 2.0, 2.0]] and len(second["parts"]) == 2
    assert second["rule"] == "(1) {} (2) {}".format(*map(str, (rule(), rule("<", 2.0, "sign"))))
    assert third["value"] is None and third["interval"] is None and third["values"] == [None]
    # strict JSON: no NaN, no Infinity
    json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: pytest.fail("NaN"))


def test_numpy_numbers_can_be_saved(tmp_path):
    odd = rule(">", np.float32(0.5), confidence=0.9)
    save([settle(claim(odd), np.float32([1.0, 1.1, 0.9]), **WHERE)], tmp_path)
    assert load(tmp_path / "claims.json")[0]["verdict"] == R


def test_the_same_claims_give_the_same_bytes_and_a_failed_write_leaves_them(tmp_path, monkeypatch):
    path = save(some(), tmp_path / "a")
    before = path.read_bytes()
    assert before == save(some(), tmp_path / "b").read_bytes()
    monkeypatch.setattr("replication._core.files.os.replace", Mock(side_effect=OSError("full")))
    with pytest.raises(OSError, match="full"):
        save(some()[:1], tmp_path / "a")
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_save_refuses_what_it_cannot_keep(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        save([], tmp_path)
    with pytest.raises(ValueError, match="B1 more than once"):
        save([some()[0], some()[0]], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda row: row.pop("verdict"), "claim B1 lacks verdict"),
        (lambda row: [row.pop("seeds"), row.pop("rule")], "claim B1 lacks rule, seeds"),
        (lambda row: row.update(verdict="yes"), "says verdict 'yes', but its parts give"),
        (lambda row: row.update(verdict=N), "says verdict 'not reproduced', but its parts"),
        (lambda row: row["parts"][0].update(verdict=N), "but its values give 'reproduced'"),
        (lambda row: row["parts"][0].update(values=[-1.0, -1.1, -0.9]), "its values give 'not r"),
        (lambda row: row["parts"][0].pop("rule"), r"B1 is malformed \(KeyError\('rule"),
        (lambda row: row["parts"][0]["rule"].update(test="z"), "test is 'z'"),
        (lambda row: row["parts"][0]["rule"].update(bar=1), "B1 is malformed .*bar"),
        (lambda row: row.update(parts=[]), "B1 has no parts"),
        (lambda row: row.update(parts=[3]), "B1 is malformed"),
        (lambda row: row.update(value="1"), "says value '1', but its parts give 1.0"),
        (lambda row: row.update(interval=[1.0]), "says interval"),
        (lambda row: row.update(seeds=2), "says seeds 2, but its parts give 3"),
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
    path.write_text(json.dumps(rows[1:2] * 2), encoding="utf-8")
    with pytest.raises(ValueError, match="B2 more than once"):
        load(path)


@pytest.mark.parametrize("text", ["", "[", "{}", "[]", "[3]", '[{"id": "B1"}]'])
def test_load_refuses_another_file(tmp_path, text):
    path = tmp_path / "claims.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"claims\.json"):
        load(path)


def test_a_rule_reads_as_a_sentence():
    assert str(rule("<", -0.5)) == (
        "change of EV1: the 95% t interval of the mean lies below -0.5; at least 3 seeds."
    )
    for test in TESTS:
        text = str(rule(">", 0.25, test, minimum_seeds=7, confidence=0.9))
        assert "above 0.25" in text and "at least 7 seeds" in text and text.endswith(".")
        assert ("90%" in text) == (test != "every")


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (-0.21, (-0.2567, -0.1612), "-0.2100 [-0.2567, -0.1612]"),
        (0.21234, (-0.251, 0.661), "0.212 [-0.251, 0.661]"),
        (1234.5, (1000.0, 1469.0), "1234 [1000, 1469]"),
        (0.5, (0.5, 0.5), "0.5 [0.5, 0.5]"),
        (-1e-9, (-1.0, 1.0), "0.00 [-1.00, 1.00]"),
        (2e-7, (1e-7, 3e-7), "2e-07 [1e-07, 3e-07]"),
        (0.0, (0.0, 0.0), "0 [0, 0]"),
        (0.123456, None, "0.1235"),
    ],
)
def test_numbers_have_sensible_digits(value, interval, text):
    assert _digits(value, interval) == text


def test_ours_says_what_the_number_is():
    assert ours(settle(claim(rule(test="every")), GOOD, **WHERE).as_dict()).startswith("worst seed")
    share = settle(claim(rule(test="sign")), [1.0] * 6, **WHERE).as_dict()
    assert ours(share) == "share of seeds 1.000 [0.541, 1.000]"


def test_table_has_a_row_a_claim_and_whole_sentences():
    long = "x" * 200 + " <b> & y"
    item = settle(Claim("B9", "p", long, rule(), paper_value="0.9"), GOOD, **WHERE)
    frame = table([*some(), item])
    assert list(frame.columns) == ["Claim", "Statement", "Paper", "Ours", "Verdict"]
    assert list(frame["Claim"]) == ["B1", "B2", "B3", "B4", "B9"]
    assert frame.iloc[-1].to_dict() == {
        "Claim": "B9",
        "Statement": long,
        "Paper": "0.9",
        "Ours": "1.000 [0.752, 1.248]",
        "Verdict": R,
    }
    html = frame._repr_html_()
    assert "x" * 200 in html and "&lt;b&gt; &amp; y" in html
