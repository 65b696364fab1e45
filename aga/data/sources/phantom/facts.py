"""What a phantom study says: findings at named places, and the key that two equal reports share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

SIDES = ("left", "right")
ZONES = ("upper", "mid", "lower")
SIZES = ("small", "large")
NORMAL = "normal"

Cell = tuple[str, str]


@dataclass(frozen=True)
class Kind:
    """Which details a finding has; a detail that it lacks is empty in every `Fact` of it."""

    sided: bool = True
    zoned: bool = True
    sized: bool = False


KINDS = {
    "nodule": Kind(),
    "opacity": Kind(),
    "consolidation": Kind(),
    "cavity": Kind(),
    "calcification": Kind(),
    "effusion": Kind(zoned=False, sized=True),
    "pneumothorax": Kind(zoned=False, sized=True),
    "cardiomegaly": Kind(sided=False, zoned=False),
    "line": Kind(zoned=False),
}
FINDINGS = tuple(KINDS)


@dataclass(frozen=True)
class Fact:
    """One finding of one study.

    Attributes:
        finding: One of `FINDINGS`.
        side: The patient's side, "left" or "right"; the patient's left is on the image's right. For
            `line` it is the side of entry. Empty for `cardiomegaly`.
        zone: "upper", "mid" or "lower" third of the lung, for findings inside a lung.
        size: "small" or "large", for findings whose reports say so.
    """

    finding: str
    side: str = ""
    zone: str = ""
    size: str = ""

    @property
    def key(self) -> str:
        """The stated details in a fixed order: `nodule|left|upper|small`, `cardiomegaly`."""
        details = (self.finding, self.side, self.zone, self.size)
        return "|".join(detail for detail in details if detail)

    @property
    def cells(self) -> frozenset[Cell]:
        """The (side, zone) cells of the lungs that the finding takes up; no two share one."""
        if self.finding == "cardiomegaly":
            return frozenset({("left", "lower")})
        if self.finding == "line":
            return frozenset()
        if self.zone:
            return frozenset({(self.side, self.zone)})
        zones = ("lower",) if self.finding == "effusion" else ("upper", "mid")
        return frozenset((self.side, zone) for zone in zones)


def _all_facts(finding: str) -> tuple[Fact, ...]:
    kind = KINDS[finding]
    sides = SIDES if kind.sided else ("",)
    zones = ZONES if kind.zoned else ("",)
    sizes = SIZES if kind.sized else ("",)
    return tuple(Fact(finding, *details) for details in product(sides, zones, sizes))


ALL_FACTS = {finding: _all_facts(finding) for finding in FINDINGS}


def draw_facts(rng: np.random.Generator, probabilities: Sequence[float]) -> tuple[Fact, ...]:
    """Draw a study's findings: never one twice, and never two in one cell of the lungs.

    Args:
        rng: Source of randomness.
        probabilities: Probability of 0, 1, 2, ... findings.

    Returns:
        The facts, in the order of `FINDINGS`.
    """
    facts: list[Fact] = []
    for _ in range(rng.choice(len(probabilities), p=probabilities)):
        taken = frozenset[Cell]().union(*(fact.cells for fact in facts))
        chosen = {fact.finding for fact in facts}
        free = [
            [fact for fact in ALL_FACTS[finding] if not fact.cells & taken]
            for finding in FINDINGS
            if finding not in chosen
        ]
        options = [places for places in free if places]
        if not options:
            break
        places = options[rng.integers(len(options))]
        facts.append(places[rng.integers(len(places))])
    return tuple(sorted(facts, key=lambda fact: FINDINGS.index(fact.finding)))


def statement_of(facts: Iterable[Fact]) -> str:
    """The key of what a report states; equal for two reports that state the same facts."""
    return ";".join(sorted(fact.key for fact in facts)) or NORMAL


def labels_of(facts: Iterable[Fact]) -> dict[str, int]:
    """Every finding's label: 1 where the study has it, else 0."""
    present = {fact.finding for fact in facts}
    return {finding: int(finding in present) for finding in FINDINGS}
