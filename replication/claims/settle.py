"""A claim, and the verdict computed from the numbers of its seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from replication.claims.rule import Outcome, Rule, decide, gravest


@dataclass(frozen=True)
class Claim:
    """What a paper says, and the rule or rules that settle it.

    Parameters
    ----------
    id, paper
        A short name, e.g. "B1"; authors and year, e.g. "Novak et al. 2018".
    statement
        The claim in our words.
    rule
        One `Rule`, or a tuple of rules that must all hold.
    figure, paper_value
        The paper's figure or section, or ""; what it reports.

    Raises
    ------
    ValueError
        If a text but `figure` is empty, or `rule` is neither a `Rule` nor a tuple of at least one.
    """

    id: str
    paper: str
    statement: str
    rule: Rule | tuple[Rule, ...]
    figure: str = ""
    paper_value: str = "not reported"

    def __post_init__(self):
        for name in ("id", "paper", "statement", "paper_value"):
            if not getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a text")
        if not self.rules or not all(isinstance(rule, Rule) for rule in self.rules):
            raise ValueError(f"rule is {self.rule!r}; expected a Rule or a tuple of at least one")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, as a tuple also when there is one."""
        return self.rule if isinstance(self.rule, tuple) else (self.rule,)

    @property
    def sentences(self) -> str:
        """The rules in words, numbered where there are several."""
        numbered = (f"({i}) {rule}" for i, rule in enumerate(self.rules, 1))
        return " ".join(numbered) if len(self.rules) > 1 else str(self.rules[0])


@dataclass(frozen=True)
class Settled:
    """A claim with what its rules gave, and where the numbers come from.

    `verdict`, `value`, `interval` and `seeds` are those of the `Outcome` that decides: the first
    part that is not reproduced, else the first that is inconclusive, else the first.
    """

    claim: Claim
    parts: tuple[Outcome, ...]
    dataset: str
    profile: str
    notebook: str
    scale: str = ""
    note: str = ""

    @property
    def deciding(self) -> Outcome:
        """The part that decides."""
        return self.parts[gravest([part.verdict for part in self.parts])]

    verdict = property(lambda self: self.deciding.verdict)
    value = property(lambda self: self.deciding.value)
    interval = property(lambda self: self.deciding.interval)
    seeds = property(lambda self: self.deciding.seeds)

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `save` writes: plain JSON types, None for NaN."""
        parts = [asdict(part) for part in self.parts]
        for part in parts:
            part["rule"]["threshold"] = float(part["rule"]["threshold"])  # it may be NumPy's
            part["values"] = [None if math.isnan(value) else value for value in part["values"]]
            part["interval"] = part["interval"] and list(part["interval"])
        claim = ("id", "paper", "figure", "statement", "paper_value")
        where = ("dataset", "scale", "profile", "notebook", "note")
        return {
            **{name: getattr(self.claim, name) for name in claim},
            "value": self.value,
            "interval": self.interval and list(self.interval),
            "verdict": self.verdict,
            "rule": self.claim.sentences,
            "seeds": self.seeds,
            **{name: getattr(self, name) for name in where},
            "parts": parts,
            "values": [p["values"] for p in parts] if len(parts) > 1 else parts[0]["values"],
        }


def settle(
    claim: Claim,
    values: Sequence[float] | Sequence[Sequence[float]],
    *,
    dataset: str,
    profile: str,
    notebook: str,
    scale: str = "",
    note: str = "",
) -> Settled:
    """Compute the verdict on a claim from the numbers of its seeds.

    Parameters
    ----------
    claim
        The claim, its rules fixed.
    values
        One number a seed; for a claim whose `rule` is a tuple, one such series a rule. NaN (or
        None) says that the statistic is undefined for that seed: it is dropped, counted and
        mentioned; under ``"every"`` it keeps a claim from being reproduced.
    dataset, profile, notebook
        Where the numbers come from, e.g. "MNIST", "full", "04_noise_svd_mnist".
    scale
        How this differs from the paper's setting, e.g. "5,000 of 60,000 images".
    note
        What was seen, in words. What limits the verdict is added.

    Raises
    ------
    ValueError
        If there are no values, an infinite one, or not one series a rule.

    Examples
    --------
    >>> rule = Rule("change of EV1, mean of conv1 and conv2", "<", 0.0)
    >>> claim = Claim("B1", "Novak et al. 2018", "EV1 of conv layers falls with training", rule)
    >>> where = {"dataset": "MNIST", "profile": "full", "notebook": "04_noise_svd_mnist"}
    >>> settle(claim, [-0.21, -0.19, -0.23], **where).verdict
    'reproduced'
    >>> settle(claim, [0.21, 0.19, 0.23], **where).verdict
    'not reproduced'
    """
    name, several = f"values of claim {claim.id}", isinstance(claim.rule, tuple)
    series = values if several else [values]
    if len(series) != len(claim.rules):
        raise ValueError(f"{name} has {len(series)} series; expected {len(claim.rules)}: 1 a rule")
    parts, remarks = [], [note.strip()]
    for i, (rule, numbers) in enumerate(zip(claim.rules, series, strict=True), 1):
        parts.append(decide(rule, numbers, f"{name}, part {i}" if several else name))
        which = f"part {i}: " if len(series) > 1 else ""
        remarks.append(parts[-1].reason and which + parts[-1].reason)
    note = "; ".join(filter(None, remarks))
    return Settled(claim, tuple(parts), dataset, profile, notebook, scale, note)


def settle_all(
    claims: Sequence[Claim],
    values: Mapping[str, Sequence],
    notes: Mapping[str, str],
    **where: str | Mapping[str, str],
) -> list[Settled]:
    """Settle every claim of a notebook: `settle`, with ``values[id]`` and ``notes[id]`` of each.

    `where` are its ``dataset``, ``profile``, ``notebook`` and ``scale``: texts, or texts by id.
    """
    settled = []
    for claim in claims:
        own = {k: v if isinstance(v, str) else v[claim.id] for k, v in where.items()}
        settled.append(settle(claim, values[claim.id], note=notes.get(claim.id, ""), **own))
    return settled


def seen(values: Sequence[float] | Sequence[Sequence[float]], *names: str, digits: int = 2) -> str:
    """Return the mean of each series of a claim behind its name: what was seen, for a note."""
    means = []
    for name, series in zip(names, values if len(names) > 1 else [values], strict=False):
        defined = np.asarray(series, dtype=float)
        mean = np.nanmean(defined) if np.isfinite(defined).any() else np.nan
        means.append(f"{name} {mean:.{digits}g}")
    return "seen: " + ", ".join(means)
