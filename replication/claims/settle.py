"""A claim, and the verdict computed from the numbers of its seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from replication.claims.outcome import Outcome, decide, gravest
from replication.claims.rule import Rule


@dataclass(frozen=True)
class Claim:
    """What a paper says, and the rule or rules that settle it.

    Parameters
    ----------
    id
        The claim's short name, e.g. "B1".
    paper
        Authors and year, e.g. "Novak et al. 2018".
    statement
        The claim in our words.
    rule
        One `Rule`, or a tuple of rules that must all hold.
    figure
        The paper's figure or section, or "".
    paper_value
        What the paper reports.

    Raises
    ------
    ValueError
        If a text other than `figure` is empty, or `rule` is neither a `Rule` nor a tuple of some.
    """

    id: str
    paper: str
    statement: str
    rule: Rule | tuple[Rule, ...]
    figure: str = ""
    paper_value: str = "not reported"

    def __post_init__(self):
        rules = bool(self.rules) and all(isinstance(rule, Rule) for rule in self.rules)
        for name, ok, expected in (
            ("id", self.id, "a text"),
            ("paper", self.paper, "a text"),
            ("statement", self.statement, "a text"),
            ("rule", rules, "a Rule or a tuple of at least one Rule"),
            ("paper_value", self.paper_value, "a text"),
        ):
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, as a tuple also when there is one."""
        return self.rule if isinstance(self.rule, tuple) else (self.rule,)


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

    verdict = property(attrgetter("deciding.verdict"))
    value = property(attrgetter("deciding.value"))
    interval = property(attrgetter("deciding.interval"))
    seeds = property(attrgetter("deciding.seeds"))

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `save` writes: plain JSON types, None for NaN."""
        parts = [
            asdict(part)
            | {
                # a threshold may be NumPy's
                "rule": asdict(part.rule) | {"threshold": float(part.rule.threshold)},
                "values": [None if math.isnan(value) else value for value in part.values],
                "interval": part.interval and list(part.interval),
            }
            for part in self.parts
        ]
        rules = [str(rule) for rule in self.claim.rules]
        if len(rules) > 1:
            rules = [f"({i}) {rule}" for i, rule in enumerate(rules, 1)]
        return {
            "id": self.claim.id,
            "paper": self.claim.paper,
            "figure": self.claim.figure,
            "statement": self.claim.statement,
            "paper_value": self.claim.paper_value,
            "value": self.value,
            "interval": self.interval and list(self.interval),
            "verdict": self.verdict,
            "rule": " ".join(rules),
            "seeds": self.seeds,
            "dataset": self.dataset,
            "scale": self.scale,
            "profile": self.profile,
            "notebook": self.notebook,
            "note": self.note,
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
        One number a seed; for a claim whose `rule` is a tuple, one such series a rule, in the
        order of the rules. NaN (or None) says that the statistic is undefined for that seed: it is
        dropped, counted and mentioned; under ``"every"`` it keeps a claim from being reproduced.
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
    name = f"values of claim {claim.id}"
    if not isinstance(claim.rule, tuple):
        parts = (decide(claim.rule, values, name),)
    elif len(values) != len(claim.rule):
        raise ValueError(f"{name} has {len(values)} series; expected {len(claim.rule)}: 1 a rule")
    else:
        pairs = enumerate(zip(claim.rule, values, strict=True), 1)
        parts = tuple(decide(rule, series, f"{name}, part {i}") for i, (rule, series) in pairs)
    remarks = [note.strip()]
    for i, part in enumerate(parts, 1):
        which = f"part {i}: " if len(parts) > 1 else ""
        remarks.append(part.reason and which + part.reason)
    text = "; ".join(filter(None, remarks))
    return Settled(claim, parts, dataset, profile, notebook, scale, text)


def settle_all(
    claims: Sequence[Claim],
    values: Mapping[str, Sequence],
    notes: Mapping[str, str],
    **where: str | Mapping[str, str],
) -> list[Settled]:
    """Settle every claim of a notebook: `settle`, with ``values[id]`` and ``notes[id]`` of each.

    `where` are the keywords ``dataset``, ``profile``, ``notebook`` and ``scale`` of `settle`: a
    text for all claims, or a mapping of id to text.
    """

    def own(claim: Claim) -> dict[str, str]:
        return {k: v if isinstance(v, str) else v[claim.id] for k, v in where.items()}

    return [
        settle(claim, values[claim.id], note=notes.get(claim.id, ""), **own(claim))
        for claim in claims
    ]


def seen(values: Sequence[float] | Sequence[Sequence[float]], *names: str, digits: int = 2) -> str:
    """Return the mean of each series of a claim behind its name: what was seen, for a note."""
    series = values if len(names) > 1 else [values]
    means = []
    for name, each in zip(names, series, strict=False):
        each = np.asarray(each, dtype=float)
        mean = np.nanmean(each) if np.isfinite(each).any() else np.nan
        means.append(f"{name} {mean:.{digits}g}")
    return "seen: " + ", ".join(means)
