"""Writes a phantom report from the facts, and records which characters state which finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import numpy as np

from aga.data.sources.phantom import phrases
from aga.data.sources.phantom.facts import FINDINGS, Fact

Item = TypeVar("Item")
Span: TypeAlias = tuple[int, int]
Clause: TypeAlias = tuple[str, str | None]  # words, and the finding that they state


@dataclass
class Report:
    """A report that grows from its start.

    Attributes:
        text: The raw report so far.
        spans: For every finding, the (start, end) offsets in `text` of each clause that states it:
            one in the section FINDINGS and one in IMPRESSION. The full stop does not belong to it.
    """

    text: str = ""
    spans: dict[str, list[Span]] = field(default_factory=dict)

    def add(self, clauses: Sequence[Clause]) -> None:
        """Append clauses as sentences; each comes with the finding that it states, or None."""
        for number, (clause, finding) in enumerate(clauses):
            self.text += " " if number else ""
            start = len(self.text)
            self.text += clause[0].upper() + clause[1:]
            if finding is not None:
                self.spans.setdefault(finding, []).append((start, len(self.text)))
            self.text += "."


def write_report(facts: Sequence[Fact], view: str, first: bool, rng: np.random.Generator) -> Report:
    """Write a report with the sections FINDINGS and IMPRESSION.

    Each section states every fact once, with all its details. Absent findings are denied now and
    then, never a present one; sentences about nothing of note stand between.

    Args:
        facts: What is true of the image.
        view: The projection.
        first: Whether the patient has no earlier study.
        rng: Draws the words.
    """
    comparison = phrases.COMPARISONS["first" if first else "later"]
    report = Report(_pick(phrases.EXAMINATIONS, rng).format(view=view))
    report.text += f"\n\n{_pick(comparison, rng)}\n\nFINDINGS: "
    report.add(_findings(facts, rng))
    report.text += "\n\nIMPRESSION: "
    report.add(_impression(facts, rng))
    report.text += "\n"
    return report


def _findings(facts: Sequence[Fact], rng: np.random.Generator) -> list[Clause]:
    stated: list[Clause] = [(_clause(fact, 0, rng), fact.finding) for fact in _shuffled(facts, rng)]
    # Reports of many findings say less of what is absent, and so stay short.
    room = max(1, 3 - len(facts))
    denied = _negations(facts, int(rng.integers(0, room + 2)), rng)
    rest = [*denied, *_some(phrases.DISTRACTORS, int(rng.integers(0, room + 1)), rng)]
    if not facts:
        rest.append(_pick(phrases.CLEAR, rng))
    others: list[Clause] = [(text, None) for text in _shuffled(rest, rng)]
    if rng.random() < 0.3:
        return _shuffled([*stated, *others], rng)
    ending = _some(phrases.OTHERWISE, int(rng.random() < 0.2), rng) if facts else []
    return [*stated, *others, *((text, None) for text in ending)]


def _impression(facts: Sequence[Fact], rng: np.random.Generator) -> list[Clause]:
    if not facts:
        return [(_pick(phrases.NORMAL_IMPRESSION, rng), None)]
    stated: list[Clause] = [(_clause(fact, 1, rng), fact.finding) for fact in _shuffled(facts, rng)]
    return [*stated, *((text, None) for text in _negations(facts, int(rng.random() < 0.2), rng))]


def _clause(fact: Fact, section: int, rng: np.random.Generator) -> str:
    """One way to state a fact, in FINDINGS (`section` 0) or IMPRESSION (1)."""
    details = {"side": fact.side, "zone": fact.zone, "size": fact.size}
    noun = _pick(phrases.NOUNS.get(fact.finding, ("",)), rng).format(**details)
    place = _pick(phrases.PLACES, rng).format(**details)
    sentence = _pick(phrases.SENTENCES[fact.finding][section], rng)
    article = "an" if noun[:1] in tuple("aeiou") else "a"
    return sentence.format(noun=noun, a=f"{article} {noun}", place=place)


def _negations(facts: Sequence[Fact], count: int, rng: np.random.Generator) -> list[str]:
    """Up to `count` sentences that deny absent findings, none twice."""
    free = set(FINDINGS) - {fact.finding for fact in facts}
    sentences: list[str] = []
    for findings in _shuffled(list(phrases.NEGATIONS), rng):
        if len(sentences) < count and free.issuperset(findings):
            free -= set(findings)
            sentences.append(_pick(phrases.NEGATIONS[findings], rng))
    return sentences


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _some(options: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    return [options[i] for i in rng.permutation(len(options))[:count]]


def _shuffled(items: Sequence[Item], rng: np.random.Generator) -> list[Item]:
    return [items[i] for i in rng.permutation(len(items))]
