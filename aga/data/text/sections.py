"""Where the sections of a report stand: headings as real reports write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

PREAMBLE = "preamble"  # what stands before the first heading, or directly below FINAL REPORT

SPELLINGS = {
    "findings": ("findings", "finding", "observations"),
    "impression": (
        *("impression", "impressions", "conclusion", "conclusions", "opinion"),
        *("interpretation", "summary", "final impression"),
    ),
    "indication": (
        *("indication", "indications", "clinical indication", "indication for study"),
        *("indication for exam", "reason", "reason for exam", "reason for the exam"),
        *("reason for examination", "reason for this examination", "reason for study"),
        *("history", "clinical history", "clinical information", "medical condition"),
    ),
    "comparison": (
        "comparison",
        "comparisons",
        "comparison study",
        "comparison film",
        "compared to",
    ),
    "technique": ("technique", "procedure", "procedure comments"),
    "examination": ("examination", "exam", "type of exam", "type of examination", "study"),
    "recommendation": ("recommendation", "recommendations"),
    "notification": ("notification", "notifications"),
    "wet_read": ("wet read", "preliminary report", "preliminary read"),
    "addendum": ("addendum", "addenda", "final addendum"),
    PREAMBLE: ("final report", "radiology report"),
}
_BOTH = ("findings", "impression")
_TOGETHER = ("findings {} impression", "impression {} findings")

# `CHEST, PA AND LATERAL:` and `PORTABLE CHEST RADIOGRAPH:` head the findings of older reports.
_VIEWS_HEADING = (
    r"(?-i:(?!COMPARI|REASON|INDICAT|HISTORY|CLINICAL|EXAM|STUDY|PROCED|TECHN|FINAL|TYPE)"
    r"(?=[A-Z][^:\n]{0,120}\b(?:PA|AP|LATERAL|PORTABLE|FRONTAL|VIEWS?|FILMS?|RADIOGRAPHS?|UPRIGHT|SUPINE)\b)"
    r"(?:[A-Z][A-Z0-9 ,()&/-]{0,60}?\b)?CHEST\b(?! WALL)[A-Z0-9 ,()&/-]{0,60})"
)
_BEGIN = r"^[ \t>*#]*+|(?<=[.!?;])\s+|(?<=[\u3002\uff01\uff1f\uff1b])\s*"
_COLON = (
    r"(?:[ \t]*\([^()\n]{0,40}\))?[ \t*]*(?::(?!\d\d)|\uff1a)\**|[ \t]+[-\u2013\u2014]{1,2}(?=\s)"
)
_ALONE = r"[ \t*]*\r?$"
# `FINDINGS The lungs`, `IMPRESSION 1. No`: only a heading where it is in capitals.
_SHOUTED = r"[ \t]+(?=(?-i:[A-Z][a-z])|\d{1,2}[.)]\s|__)"
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")


@dataclass(frozen=True)
class Section:
    """Part of a raw report.

    Attributes:
        names: What it is: one name, or `findings` and `impression` where one heading names both.
        start: Where its content begins, behind the heading.
        end: Where it ends: before the next heading of any kind.
        headed: Whether a heading stands before it.
    """

    names: frozenset[str]
    start: int
    end: int
    headed: bool


def find_sections(raw: str, own: tuple[str, ...] = ()) -> list[Section]:
    """All sections in the order in which they stand; the first is what no heading precedes.

    A heading stands at the start of a line or of a sentence before a colon or dash, in any case;
    alone on its line; or at the start of a line in capitals before text that is not.

    Args:
        raw: The report as the source gives it.
        own: Further headings, as they are spelled; each is the name of its section.
    """
    pattern, names = _headings(own)
    found = [Section(frozenset({PREAMBLE}), 0, len(raw), headed=False)]
    for match in pattern.finditer(raw):
        name, views = match["name"], match["views"]
        if name and match["alone"] is not None and not name[0].isupper():
            continue  # the last word of a wrapped line
        if name and match["shouted"] is not None and not name.isupper():
            continue  # `Findings Suggest`
        before = found.pop()
        found.append(Section(before.names, before.start, match.start(), before.headed))
        meant = frozenset({"findings"}) if views else names[_spelling(name)]
        found.append(Section(meant, match.end(), len(raw), meant != {PREAMBLE}))
    return found


def last_paragraph(raw: str, sections: Sequence[Section]) -> tuple[int, int] | None:
    """Start and end of the last paragraph that stands under no heading of its own.

    Reports without FINDINGS describe the image there: below the reason for the exam, after an empty
    line.
    """
    for section in reversed(sections):
        if section.names <= {"wet_read", "notification", "addendum"}:
            continue
        breaks = [match.span() for match in _PARAGRAPH.finditer(raw, section.start, section.end)]
        starts = [section.start, *(end for _, end in breaks)]
        ends = [*(start for start, _ in breaks), section.end]
        paragraphs = list(zip(starts, ends, strict=True))[1 if section.headed else 0 :]
        for start, end in reversed(paragraphs):
            if any(character.isalnum() for character in raw[start:end]):
                return start, end
    return None


@lru_cache(maxsize=8)
def _headings(own: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, frozenset[str]]]:
    names = {_spelling(name): frozenset({name}) for name in own}
    for name, spellings in SPELLINGS.items():
        names |= dict.fromkeys(spellings, frozenset({name}))
    joined = {form.format(word) for form in _TOGETHER for word in ("and", "/", "&")}
    names |= dict.fromkeys(joined, frozenset(_BOTH))
    longest_first = sorted(names, key=len, reverse=True)
    any_name = "|".join(re.escape(name) for name in longest_first)
    any_name = any_name.replace(r"\ /\ ", r"[ \t]*/[ \t]*").replace(r"\ ", r"[ \t]+")
    pattern = re.compile(
        rf"(?:{_BEGIN})(?:(?P<name>{any_name})"
        rf"(?:[ \t]+version[ \t]*\#?\d+)?"
        rf"(?:{_COLON}|(?P<alone>{_ALONE})|(?P<shouted>{_SHOUTED}))"
        rf"|(?P<views>{_VIEWS_HEADING}):(?!\d\d))",
        re.IGNORECASE | re.MULTILINE,
    )
    return pattern, names


def _spelling(name: str) -> str:
    words = name.casefold().replace("/", " / ")
    return " ".join(words.split())
