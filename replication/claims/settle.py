"""A claim, and the verdict computed from the numbers of its units."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from replication.claims.rule import NOT_TESTABLE, Part, Rule, Values, combine, decide, numbers

KINDS = ("empirical", "sanity", "theorem")
STATUSES = ("exploratory", "confirmatory")


@dataclass(frozen=True)
class Gate:
    """When a claim can be tested at all: a measured number lies within [least, most]."""

    measure: str
    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        bounds = (("at least", self.least), ("at most", self.most))
        return f"{self.measure} " + " and ".join(f"{w} {b:g}" for w, b in bounds if b is not None)

    def is_open(self, value: float | None) -> bool:
        """Tell whether the measured number, None or NaN where there is none, lies within."""
        low = -math.inf if self.least is None else self.least
        return value is not None and low <= value <= (math.inf if self.most is None else self.most)


@dataclass(frozen=True)
class Claim:
    """What a paper says, and the rule or rules that settle it.

    ``ValueError`` if a text that is needed is empty, another field is none of its kind, or an
    empirical claim has a rule of "every", which makes no inference.
    """

    id: str  #: e.g. "B1"
    paper: str  #: authors and year
    statement: str  #: the claim in our words
    rule: Rule | tuple[Rule, ...]  #: of several the main one first
    figure: str = ""  #: the paper's figure or section
    paper_value: str = "not reported"  #: what the paper reports, in words
    kind: str = "empirical"  #: or "sanity": a method does what it says; "theorem": to rounding
    gate: Gate | None = None  #: when the claim can be tested at all
    status: str = "exploratory"  #: or "confirmatory": the rule is older than its evidence
    corrected: str = ""  #: why the rule was corrected after that
    why: str = ""  #: why it is not reproduced: a hypothesis, with what would test it
    restates: str = ""  #: id of the claim whose fact it is once more: counted once, there

    def __post_init__(self):
        rules = bool(self.rules) and all(isinstance(rule, Rule) for rule in self.rules)
        inferred = rules and all(rule.test != "every" or rule.turn for rule in self.rules)
        for name, ok, expected in (
            *((n, getattr(self, n), "a text") for n in ("id", "paper", "statement", "paper_value")),
            ("rule", rules, "a Rule or a tuple of at least one"),
            ("kind", self.kind in KINDS, f"one of {', '.join(KINDS)}"),
            ("kind", self.kind != "empirical" or inferred, "sanity or theorem for 'every'"),
            ("status", self.status in STATUSES, f"one of {', '.join(STATUSES)}"),
        ):
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, as a tuple also when there is one."""
        return self.rule if isinstance(self.rule, tuple) else (self.rule,)

    @property
    def sentences(self) -> str:
        """The rules in words, numbered where there are several, and the gate."""
        several = " ".join(f"({i}) {rule}" for i, rule in enumerate(self.rules, 1))
        text = several if len(self.rules) > 1 else str(self.rules[0])
        return f"{text} Testable with {self.gate}." if self.gate else text


@dataclass(frozen=True)
class Settled:
    """A claim with what its rules gave, and where the numbers come from.

    `dataset`, `profile` and `notebook` say so, `scale` and `fidelity` (a grade) how it differs from
    the paper's setting; `note` is what was seen, and what limits the verdict; `gate` the measured
    number. `value` and `interval` are those of the main part, `units` the fewest of any part.
    """

    claim: Claim
    parts: tuple[Part, ...]
    dataset: str
    profile: str
    notebook: str
    scale: str = ""
    note: str = ""
    fidelity: str = "C"
    gate: float | None = None

    value = property(lambda self: self.parts[0].value)
    interval = property(lambda self: self.parts[0].interval)
    units = property(lambda self: min(part.units for part in self.parts))

    @property
    def verdict(self) -> str:
        """The verdict on the claim: that of the gate where it is closed, else of the parts."""
        gate = self.claim.gate
        return combine(self.parts) if not gate or gate.is_open(self.gate) else NOT_TESTABLE

    @property
    def p(self) -> float | None:
        """One-sided p value of the claim, the largest of its parts'; None where it has none."""
        values = [part.p for part in self.parts if part.p is not None]
        known = len(values) == len(self.parts) and self.verdict != NOT_TESTABLE
        return max(values) if known else None

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `save` writes: plain JSON types, None for NaN."""
        row = asdict(self)
        claim, gate = row.pop("claim"), self.claim.gate
        row |= {**claim, "rule": self.claim.sentences}
        row["gate"] = gate and {**asdict(gate), "value": self.gate}
        row |= {k: getattr(self, k) for k in ("value", "interval", "verdict", "p", "units")}
        values = [part.values for part in self.parts]
        return _plain({**row, "seeds": self.units, "values": values if values[1:] else values[0]})


def _plain(value: Any) -> Any:
    """Return `value` as JSON knows it: no tuples, no NumPy, None for NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def settle(
    claim: Claim,
    values: Values | Sequence[Values],
    note: str = "",
    gate: float | None = None,
    **where: str,
) -> Settled:
    """Compute the verdict on a claim from the numbers of its units.

    ``ValueError`` if these are not as below, not one series a rule, or outside of a rule's range.

    Parameters
    ----------
    claim, values
        The claim, its rules fixed; one number a unit, NaN or None where undefined, or ``{cluster:
        numbers}``, averaged within clusters; for "correlation" also one over pairs, ``{"r": 0.8,
        "n": 24}``, with ``"rank": True`` for Spearman's. For a tuple of rules a list of such.
    note, gate, where
        What was seen, in words; the measured number of the claim's gate; the other fields of
        `Settled`: ``dataset``, ``profile``, ``notebook`` and perhaps ``scale`` and ``fidelity``.

    Examples
    --------
    >>> rule = Rule("EV1 at initialisation minus EV1 at the end", 0.05, "a tick of the figure")
    >>> claim = Claim("B1", "Novak et al. 2018", "EV1 of conv layers falls with training", rule)
    >>> where = {"dataset": "MNIST", "profile": "full", "notebook": "04_noise_svd_mnist"}
    >>> settle(claim, [0.21, 0.19, 0.23], **where).verdict
    'reproduced'
    >>> settle(claim, [0.01, 0.02, 0.0], **where).verdict  # less than matters
    'not reproduced'
    """
    name, several = f"values of claim {claim.id}", isinstance(claim.rule, tuple)
    series: Any = values if several else [values]
    if len(series) != len(claim.rules):
        raise ValueError(f"{name} has {len(series)} series; expected {len(claim.rules)}: 1 a rule")
    parts, remarks = [], [note.strip()]
    for i, (rule, given) in enumerate(zip(claim.rules, series, strict=True), 1):
        parts.append(decide(rule, given, f"{name}, part {i}" if several else name))
        which = f"part {i}: " if len(series) > 1 else ""
        remarks.append(parts[-1].reason and which + parts[-1].reason)
    if claim.gate:
        state = "open" if claim.gate.is_open(gate) else "closed"
        remarks.append(f"gate {state}: {claim.gate}, measured {gate}")
    note = "; ".join(filter(None, remarks))
    return Settled(claim, tuple(parts), note=note, gate=gate, **where)


def settle_all(
    claims: Sequence[Claim], values: Mapping, notes: Mapping, gates: Mapping | None = None, **where
) -> list[Settled]:
    """Settle every claim of a notebook: `settle` with what is under its id in each mapping.

    What `where` holds are texts, or texts by id.
    """
    settled = []
    for claim in claims:
        own = {k: v if isinstance(v, str) else v[claim.id] for k, v in where.items()}
        note, gate = notes.get(claim.id, ""), (gates or {}).get(claim.id)
        settled.append(settle(claim, values[claim.id], note, gate, **own))
    return settled


def seen(values: Values | Sequence[Values], *names: str, digits: int = 2) -> str:
    """Return the mean of each series of a claim behind its name: what was seen, for a note."""
    texts = []
    several: Any = values if len(names) > 1 else [values]
    for name, series in zip(names, several, strict=False):
        units = numbers(series, name)[0]
        texts.append(f"{name} {units.mean() if units.size else math.nan:.{digits}g}")
    return "seen: " + ", ".join(texts)
