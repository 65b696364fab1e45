"""One report: its sections, its cleaned text, and where each character of that stood."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32
from pydantic import Field, field_validator

from aga.config import Config
from aga.data.schema import NO_REPORT
from aga.data.text.boilerplate import boilerplate
from aga.data.text.cleaning import (
    Deidentified,
    Traced,
    clean,
    cut_sentences,
    join,
    says_something,
)
from aga.data.text.sections import SPELLINGS, Section, find_sections, last_paragraph
from aga.data.text.sentences import sentence_spans

WHOLE, LAST_PARAGRAPH = "whole", "last_paragraph"


class ReportConfig(Config):
    """Which part of a report is used, and how it is cleaned.

    Attributes:
        prefer: The first of these that a report has is used: sections joined by `+`, all of which
            it must have; `last_paragraph`, the last one under no heading; or `whole`. A row with
            none of them is rejected. A name that is not one of the known English sections is a
            heading, looked for as it is spelled: `befund+beurteilung`.
        deidentified: De-identification marks are dropped, or each becomes the token `[DEID]`.
        drop_sentences: Sentences left out: the kinds `notification`, but for what it says of the
            image, and `attestation`, and any phrases of your own.
        min_characters: Rows with less cleaned text are rejected.
    """

    prefer: tuple[str, ...] = Field(min_length=1)
    deidentified: Deidentified
    drop_sentences: tuple[str, ...]
    min_characters: int = Field(ge=1)

    @field_validator("prefer")
    @classmethod
    def _can_be_met(cls, prefer: tuple[str, ...]) -> tuple[str, ...]:
        known = {spelled: name for name, all_ in SPELLINGS.items() for spelled in all_}
        for entry in prefer:
            names = _names(entry)
            if not all(names) or len(set(names)) < len(names):
                raise ValueError(f"{entry!r} is not section names joined by +, each once")
            if len(names) > 1 and {WHOLE, LAST_PARAGRAPH} & set(names):
                raise ValueError(f"{entry!r}: whole and last_paragraph stand alone")
            for name in names:
                if name not in SPELLINGS and name.casefold() in known:
                    raise ValueError(f"the section {name!r} is called {known[name.casefold()]!r}")
        if WHOLE in prefer[:-1] or len(set(prefer)) < len(prefer):
            raise ValueError("nothing after `whole`, and nothing twice, is ever used")
        return prefer

    @field_validator("drop_sentences")
    @classmethod
    def _says_what(cls, phrases: tuple[str, ...]) -> tuple[str, ...]:
        if not all(phrase.strip() for phrase in phrases):
            raise ValueError("a blank phrase is in every sentence")
        return phrases

    @property
    def own_headings(self) -> tuple[str, ...]:
        """The names of `prefer` that are headings as they are spelled."""
        names = {name for entry in self.prefer for name in _names(entry)}
        return tuple(sorted(names - SPELLINGS.keys() - {WHOLE, LAST_PARAGRAPH}))


@dataclass(frozen=True)
class ParsedReport:
    """What is used of a report.

    Attributes:
        text: Cleaned text; see `cleaning.clean`. Empty where the report has nothing to use.
        offsets: `text[i]` stands at `raw[offsets[i]]`; for what is not in the raw report, such as a
            full stop behind a section, where it would stand. Offsets rise within a section.
        section: The entry of `prefer` that is used; empty where none can be; `none` where there is
            no report.
        dropped: Sentences left out of it, or cut short, by entry of `drop_sentences`.
    """

    text: str
    offsets: Int32[np.ndarray, " characters"]
    section: str
    dropped: Counter[str] = field(default_factory=Counter)


WITHOUT_REPORT = ParsedReport("", np.zeros(0, np.int32), NO_REPORT)
"""Of a row whose source has labels but no reports."""


def parse_report(raw: str, config: ReportConfig) -> ParsedReport:
    """Take the preferred part out of a raw report and clean it.

    Sections of the same name, as in an addendum, are joined; a part that says nothing, or only what
    is dropped, is not there.

    Args:
        raw: The report as the source gives it.
        config: Which part, and how it is cleaned.
    """
    sections = find_sections(raw, config.own_headings)
    for entry in config.prefer:
        parts = _parts(raw, sections, entry, config)
        if parts:
            text, offsets = join([part.traced for part in parts])
            dropped = sum((part.dropped for part in parts), Counter[str]())
            return ParsedReport(text, np.asarray(offsets, np.int32), entry, dropped)
    return ParsedReport("", np.zeros(0, np.int32), "")


def report_problem(raw: str, parsed: ParsedReport, config: ReportConfig) -> tuple[str, str] | None:
    """Why a parsed report cannot be used: (reason, detail), or None where it can."""
    if not raw.strip():
        return "report empty", "no text"
    if not parsed.section:
        if _parts(raw, find_sections(raw, config.own_headings), WHOLE, config):
            return "section missing", f"none of {', '.join(config.prefer)}"
        return "report empty", "nothing but white space, headings, marks and dropped sentences"
    if len(parsed.text) < config.min_characters:
        detail = f"{len(parsed.text)} characters, fewer than {config.min_characters}"
        return "report too short", detail
    return None


class _Part(NamedTuple):
    """A cleaned stretch of a report, and how many of its sentences were left out, by kind."""

    traced: Traced
    dropped: Counter[str]

    @property
    def is_said(self) -> bool:
        """Whether there is anything but marks and stops."""
        return says_something(self.traced[0])


def _parts(raw: str, sections: Sequence[Section], entry: str, config: ReportConfig) -> list[_Part]:
    """The parts of an entry of `prefer`, in its order; none where one of them says nothing."""
    if entry == WHOLE:  # headings alone say nothing
        whole = _part(raw, (0, len(raw)), config)
        content = any(_part(raw, (s.start, s.end), config).is_said for s in sections)
        return [whole] if content and whole.is_said else []
    if entry == LAST_PARAGRAPH:
        span = last_paragraph(raw, sections)
        part = _part(raw, span or (0, 0), config)
        return [part] if part.is_said else []
    parts: dict[tuple[int, int], _Part] = {}  # one heading may name two sections
    for name in _names(entry):
        spans = [(s.start, s.end) for s in sections if name in s.names]
        found = {span: _part(raw, span, config) for span in spans}
        said = {span: part for span, part in found.items() if part.is_said}
        if not said:
            return []
        parts |= said
    return list(parts.values())


def _part(raw: str, span: tuple[int, int], config: ReportConfig) -> _Part:
    traced = clean(raw, *span, config.deidentified)
    text = traced[0]
    found = [
        boilerplate(text[start:end], config.drop_sentences) for start, end in sentence_spans(text)
    ]
    if not any(found):
        return _Part(traced, Counter())
    left = cut_sentences(traced, [one.kept if one else None for one in found])
    return _Part(left, Counter(one.kind for one in found if one))


def _names(entry: str) -> list[str]:
    return entry.split("+")
