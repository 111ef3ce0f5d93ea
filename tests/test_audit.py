"""Rules are registered, and what git knows of them is held against when evidence was measured."""

import subprocess
from dataclasses import replace

import pytest

from replication import papers, sweeps
from replication._core import paths
from replication.claims import Claim, Rule, scorecard
from replication.papers import _audit, _evidence

NAME = "01_made_up"


def test_the_register_has_the_rules_of_the_code():
    """After a rule was changed: ``python -m replication audit --register``, and commit it."""
    assert _audit.changed() == []


def test_every_empirical_claim_says_why_it_may_fail_and_what_would_test_that():
    assert [c.id for _, c in _audit.claims() if c.kind == "empirical" and not c.why] == []


def test_no_claim_is_called_confirmatory_whose_rule_is_younger_than_its_evidence():
    said = [claim.id for _, claim in _audit.claims() if claim.status == "confirmatory"]
    command = ["git", "rev-parse", "--is-shallow-repository"]
    told = subprocess.run(command, cwd=paths.root(), capture_output=True, text=True, check=False)
    if told.stdout.strip() != "false":
        pytest.skip("no whole history here")
    assert said and (_audit.audit().loc[said, "status"] == "confirmatory").all()


def test_the_scorecard_has_verdicts_by_the_rules_of_the_code_only():
    """After a rule was changed its notebook is run again at full, or at quick for the pilot."""
    now = {claim.id: claim.sentences for _, claim in _audit.claims()}
    rows = scorecard.select(scorecard.collect())
    assert [row["id"] for row in rows if row["rule"] != now.get(row["id"])] == []
    assert {row["id"] for row in rows} == now.keys()


@pytest.fixture
def history(tmp_path, monkeypatch):
    """Return what changes a rule, measures and commits in a repository of one claim's own."""
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))
    claim = Claim("B1", "made up", "grows", Rule("growth"))
    monkeypatch.setattr(_audit, "claims", lambda: iter([(NAME, claim)]))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")

    def git(*words, minute=0):
        when = f"2026-01-01T00:{minute:02d}:00+0000"
        for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
            monkeypatch.setenv(f"{name}_DATE", when)
            monkeypatch.setenv(f"{name}_NAME", "made")
            monkeypatch.setenv(f"{name}_EMAIL", "made@up")
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)

    def change(minute, **fields):
        nonlocal claim
        claim = replace(claim, **fields)
        monkeypatch.setattr(_audit, "claims", lambda: iter([(NAME, claim)]))
        _audit.register()
        git("add", "-A")
        git("commit", "-m", "rules", minute=minute)

    def measure(spec):
        return {"value": 1.0}

    def evidence(minute):
        stamp = {"date": f"2026-01-01T00:{minute:02d}+00:00", "processor": "p", "torch": "t"}
        monkeypatch.setattr(sweeps._store, "provenance", lambda: stamp)
        experiments = {"all": papers.Experiment(measure, [{"seed": minute}])}
        experiments["all"].run(paths.runs() / NAME, progress=False)
        _evidence.collect(NAME, experiments)

    git("init")
    return change, evidence


def test_a_rule_of_before_its_evidence_is_confirmatory_and_one_of_after_is_not(history):
    change, evidence = history
    change(10)
    assert _audit.audit().loc["B1", "status"] == ""
    evidence(20)
    assert _audit.audit().loc["B1", "status"] == "confirmatory"
    rule, measured = _audit.told()["B1"]
    assert rule.startswith("rule of ") and rule.endswith(", 2026-01-01")
    assert measured == "measured 2026-01-01 to 2026-01-01"
    change(30, rule=Rule("growth", 0.1, "a tick"), corrected="the tick was overlooked")
    row = _audit.audit().loc["B1"]
    assert (row.status, row.corrected) == ("exploratory", "the tick was overlooked")


def test_words_that_are_no_rule_change_nothing(history):
    change, evidence = history
    change(10)
    evidence(20)
    change(30, why="it may not", statement="grows a lot")
    assert _audit.audit().loc["B1", "status"] == "confirmatory"


def test_a_rule_that_is_not_committed_is_not_confirmatory(history, monkeypatch):
    change, evidence = history
    change(10)
    evidence(20)
    claim = Claim("B1", "made up", "grows", Rule("another growth"))
    monkeypatch.setattr(_audit, "claims", lambda: iter([(NAME, claim)]))
    assert _audit.changed() == ["B1"]
    _audit.register()
    row = _audit.audit().loc["B1"]
    assert (row["rule of"], row.status) == ("not committed", "exploratory")


def test_without_a_history_audit_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path))
    with pytest.raises(ValueError, match="has no history"):
        _audit.audit()
    assert _audit.told() == {}
