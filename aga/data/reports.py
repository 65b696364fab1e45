"""One report: its sections, its cleaned text, and where each character of that stood."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Int32
from pydantic import Field

from aga.config import Config
from aga.data.schema import NO_REPORT

WHOLE = "whole"

_HEADINGS = {
    "findings": ("findings", "finding", "observations"),
    "impression": ("impression", "impressions", "conclusion", "conclusions", "opinion"),
    "indication": ("indication", "indications", "clinical indication"),
    "reason": ("reason for exam", "reason for examination", "reason for this examination"),
    "history": ("history", "clinical history", "clinical information", "medical condition"),
    "comparison": ("comparison", "comparisons", "comparison study"),
    "technique": ("technique", "procedure", "procedure comments"),
    "examination": ("examination", "exam", "type of exam", "study", "final report"),
    "recommendation": ("recommendation", "recommendations"),
    "notification": ("notification", "notifications", "wet read"),
    "addendum": ("addendum",),
}
_COMBINED = ("findings and impression", "findings/impression", "impression and findings")

# Names and dates taken out of shared reports: ___, XXXX, [** ... **].
_MARKS = r"_{2,}|X{4,}|\[\*\*.*?\*\*\]"
# The 1. of a list: at the start of a section or line, or between a sentence's end and a capital.
_NUMBERING = r"^[ \t]*(?:\d{1,2}[.)]|[-*•])(?=\s)|(?<=[.!?;:]\s)\d{1,2}[.)](?=\s+[A-Z])"
_AS_SPACE = re.compile(f"{_MARKS}|{_NUMBERING}|[\\x00-\\x1f\\x7f-\\x9f]", re.MULTILINE | re.DOTALL)
_STOPS = ".,;:"
# Byte-order mark, zero-width space, soft hyphen, and the mark of a character lost in transcoding.
_INVISIBLE = frozenset("\ufeff\u200b\u00ad\ufffd")


class ReportConfig(Config):
    """Which part of a report is used.

    Attributes:
        sections: Used in this order, those that are there. A name that is not one of the known
            English headings is looked for as it is spelled: `befund`.
        fallback: Where none of them is there: use the `whole` report, or `reject` the row.
        min_characters: Rows with less cleaned text are rejected.
    """

    sections: tuple[str, ...] = Field(min_length=1)
    fallback: Literal["whole", "reject"]
    min_characters: int = Field(ge=1)


@dataclass(frozen=True)
class ParsedReport:
    """What is used of a report.

    Attributes:
        text: Cleaned text: one space between words, no de-identification marks, no list numbers.
            Empty where the report has nothing to use.
        offsets: `text[i]` stands at `raw[offsets[i]]`; a space stands where the first of the white
            space and marks that it replaces did. Offsets rise within a section.
        section: The sections used, joined by `+`; `whole` for the fallback; empty where none can be
            used; `none` where there is no report.
    """

    text: str
    offsets: Int32[np.ndarray, "characters"]
    section: str


WITHOUT_REPORT = ParsedReport("", np.zeros(0, np.int32), NO_REPORT)
"""Of a row whose source has labels but no reports."""


def parse_report(raw: str, config: ReportConfig) -> ParsedReport:
    """Take the configured sections out of a raw report and clean them.

    A heading stands at the start of a line or of a sentence, in any case, before a colon; or alone
    on its line. A section reaches to the next heading of any kind. Sections of the same name, as in
    an addendum, are joined.

    Args:
        raw: The report as the source gives it.
        config: Which sections, and what to do without them.
    """
    found = _sections(raw, config.sections)
    parts: list[tuple[str, list[int]]] = []
    used: list[str] = []
    taken: set[int] = set()
    for name in config.sections:
        for number, (names, start, end) in enumerate(found):
            cleaned = _clean(raw, start, end) if name in names and number not in taken else None
            if cleaned and cleaned[0]:
                taken.add(number)
                parts.append(cleaned)
                used += [] if name in used else [name]
    if not parts and config.fallback == WHOLE:
        says_something = any(_clean(raw, start, end)[0] for _, start, end in found)
        parts, used = ([_clean(raw, 0, len(raw))], [WHOLE]) if says_something else ([], [])
    return _joined(parts, "+".join(used))


def report_problem(raw: str, parsed: ParsedReport, config: ReportConfig) -> tuple[str, str] | None:
    """Why a parsed report cannot be used: (reason, detail), or None where it can."""
    if not raw.strip():
        return "report empty", "no text"
    if not parsed.section:
        if config.fallback == WHOLE:
            return "report empty", "nothing but white space and marks"
        return "section missing", f"none of {', '.join(config.sections)}"
    if len(parsed.text) < config.min_characters:
        detail = f"{len(parsed.text)} characters, fewer than {config.min_characters}"
        return "report too short", detail
    return None


def _joined(parts: list[tuple[str, list[int]]], section: str) -> ParsedReport:
    """Put parts behind each other; the space between two stands at the end of the first."""
    text = " ".join(part for part, _ in parts)
    offsets: list[int] = []
    for _, part_offsets in parts:
        offsets += offsets[-1:] + part_offsets
    return ParsedReport(text, np.asarray(offsets, dtype=np.int32), section)


def _sections(raw: str, wanted: tuple[str, ...]) -> list[tuple[frozenset[str], int, int]]:
    """(names, start, end) of each section's content in order; first, nameless, what is before."""
    pattern, names = _heading_pattern(wanted)
    starts: list[tuple[frozenset[str], int, int]] = [(frozenset(), 0, 0)]
    for match in pattern.finditer(raw):
        alone = match["colon"] is None
        if alone and not match["name"][0].isupper():
            continue  # the last word of a wrapped line, not a heading
        starts.append((names[_spelling(match["name"])], match.start(), match.end()))
    ends = [*(start for _, start, _ in starts[1:]), len(raw)]
    return [(name, begin, end) for (name, _, begin), end in zip(starts, ends, strict=True)]


@lru_cache(maxsize=8)
def _heading_pattern(wanted: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, frozenset[str]]]:
    names = {_spelling(name): frozenset({name}) for name in wanted}
    names |= {spelling: frozenset({name}) for name, all_ in _HEADINGS.items() for spelling in all_}
    names |= dict.fromkeys(_COMBINED, frozenset({"findings", "impression"}))
    longest_first = sorted(names, key=len, reverse=True)
    spellings = "|".join(re.escape(name).replace(r"\ ", r"[ \t]+") for name in longest_first)
    pattern = re.compile(
        rf"(?:^[ \t>*#]*|(?<=[.!?;])\s+)(?P<name>{spellings})(?:[ \t*]*(?P<colon>:)\**|[ \t*]*$)",
        re.IGNORECASE | re.MULTILINE,
    )
    return pattern, names


def _spelling(name: str) -> str:
    return " ".join(name.casefold().split())


def _clean(raw: str, start: int, end: int) -> tuple[str, list[int]]:
    """Cleaned text of `raw[start:end]` and the offset of each of its characters in `raw`."""
    part = raw[start:end]
    as_space = {at for mark in _AS_SPACE.finditer(part) for at in range(*mark.span())}
    text: list[str] = []
    offsets: list[int] = []
    for at, character in enumerate(part):
        if at in as_space or character.isspace():
            if text and text[-1] != " ":
                text.append(" ")
                offsets.append(start + at)
        elif character not in _INVISIBLE:
            if _closes_up(part, at) and (not text or text[-1] == " "):
                if not text or text[-2] in _STOPS:
                    continue  # what it closed was taken out
                text[-1], offsets[-1] = character, start + at
            else:
                text.append(character)
                offsets.append(start + at)
    if text and text[-1] == " ":
        text.pop()
        offsets.pop()
    return "".join(text), offsets


def _closes_up(part: str, at: int) -> bool:
    """Whether the character is a mark that stands against the word before: `on ___ .`."""
    return part[at] in _STOPS and (at + 1 == len(part) or part[at + 1].isspace())
