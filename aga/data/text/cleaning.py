"""Part of a report cleaned, and where each character of the clean text stood in the raw one."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from aga.data.text.sentences import sentence_spans

DEID = "[DEID]"  # stands for one stretch of de-identified text; one token of our tokenizers
Deidentified: TypeAlias = Literal["drop", "token"]
Traced: TypeAlias = tuple[str, list[int]]  # clean text, and the raw offset of each character

# What shared reports have in place of names and dates: ___, XXXX, [** ... **].
_MARK = r"(?:_{2,}|X{4,}|\[\*\*.{0,200}?\*\*\]|\[DEID\])"
_CJK = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
# The 1. of a list: at the start of the part or of a line, or behind the end of a sentence.
_ITEM = (
    r"(?:^|\s*\n)[ \t]*"
    rf"(?:\(?\d{{1,2}}[.)](?=\s|[A-Z][a-z]|[{_CJK}])|\d{{1,2}}\u3001|[-*\u2022](?=\s))"
)
_NUMBER = (
    r"(?<=[.!?;:])\s+\(?\d{1,2}[.)](?=\s+[A-Z])"
    rf"|(?<=[\u3002\uff1b])\d{{1,2}}[.\u3001](?=[{_CJK}])"
)
_REMOVED = re.compile(
    r"(?P<rule>^[ \t]*_{10,}[ \t]*$)"
    rf"|(?P<mark>{_MARK}(?:\s*{_MARK})*)"
    rf"|(?P<item>{_ITEM})|{_NUMBER}"
    r"|(?P<gap>[\s\x00-\x1f\x7f-\x9f]+)"
    # Byte-order mark, zero-width space, soft hyphen, the mark of a character lost in transcoding.
    "|(?P<invisible>[\ufeff\u200b\u00ad\ufffd]+)",
    re.MULTILINE | re.DOTALL,
)
_EMPTY_LINE = re.compile(r"\n[ \t\r]*\n")
_STOPS = ".,;:"
_ENDED = (*_STOPS, "!", "?", "\u3002", "\uff01", "\uff1f", "\uff0c", "\uff1b", "\uff1a", "\u3001")


def clean(raw: str, start: int, end: int, deidentified: Deidentified) -> Traced:
    """Clean `raw[start:end]`.

    One space stands between words; list numbers, ruled lines, control and invisible characters are
    gone. De-identification marks are gone too, or one `DEID` stands for each stretch of them. A
    list item, or a paragraph before another, that ends without a mark gets a full stop: in the
    clean text nothing else would show that it ends there.

    Returns:
        The text, and for each of its characters where it stood in `raw`, rising. A space stands
        where the first of the white space and marks that it replaces did; an added full stop where
        the line ended; the characters of a `DEID` within what it replaces.
    """
    part = raw[start:end]
    text = _Traced()
    done = 0
    for removed in _REMOVED.finditer(part):
        text.copy(part[done : removed.start()], done)
        at, done = removed.span()
        kind = removed.lastgroup
        if kind == "mark" and deidentified == "token":
            text.mark(at, done)
        elif kind == "item" or (kind == "gap" and _ends_paragraph(part, at, done)):
            text.end_sentence(at)
        elif kind != "invisible":
            text.space(at)
    text.copy(part[done:], done)
    return text.finished(start)


def says_something(text: str) -> bool:
    """Whether a clean text has anything but marks and stops."""
    return bool(text.replace(DEID, "").strip(_STOPS + " "))


def join(parts: list[Traced]) -> Traced:
    """Sections behind each other, each ended by a mark.

    The full stop and the space between two stand at the end of the first.
    """
    text, offsets = "", list[int]()
    for part, part_offsets in parts:
        if text:
            between = ("" if text.endswith(_ENDED) else _full_stop(text)) + " "
            text += between
            offsets += offsets[-1:] * len(between)
        text += part
        offsets += part_offsets
    return text, offsets


def cut_sentences(traced: Traced, kept: list[int | None]) -> Traced:
    """The text with some of its sentences cut short.

    Args:
        traced: A clean text.
        kept: Of each sentence, how many characters stay, to be ended by a full stop; None for all.
    """
    text, offsets = traced
    left, left_offsets = "", list[int]()
    for (start, end), count in zip(sentence_spans(text), kept, strict=True):
        stop = end if count is None else start + count
        left += text[start:stop]
        left_offsets += offsets[start:stop]
        if count:
            closing = _full_stop(left[-1]) + " "
            left += closing
            left_offsets += left_offsets[-1:] * len(closing)
    left = left.rstrip()
    return left, left_offsets[: len(left)]


class _Traced:
    """A clean text as it grows."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._offsets: list[int] = []

    def copy(self, run: str, at: int) -> None:
        """Append a stretch without white space; stops close up with the word before them."""
        if run and not run.strip(_STOPS) and (not self._text or self._text[-1] == " "):
            if not self._text or self._text[-2] in _STOPS:
                return  # what it closed was taken out
            self._drop_space()
        self._text += run
        self._offsets += range(at, at + len(run))

    def space(self, at: int) -> None:
        """Append a space, unless one is there or nothing is before it."""
        if self._text and self._text[-1] != " ":
            self._text.append(" ")
            self._offsets.append(at)

    def mark(self, start: int, end: int) -> None:
        """Append the mark; it begins and ends where what it replaces did."""
        self._text += DEID
        self._offsets += [start] * (len(DEID) - 1) + [end - 1]

    def end_sentence(self, at: int) -> None:
        """Put a full stop and a space behind the last word, unless a mark is there."""
        if self._text and self._text[-1] == " ":
            at = self._offsets[-1]
            self._drop_space()
        if self._text and not self._text[-1].endswith(_ENDED):
            self._text.append(_full_stop(self._text[-1]))
            self._offsets.append(at)
            at += 1
        self.space(at)

    def finished(self, start: int) -> Traced:
        if self._text and self._text[-1] == " ":
            self._drop_space()
        return "".join(self._text), [start + at for at in self._offsets]

    def _drop_space(self) -> None:
        self._text.pop()
        self._offsets.pop()


def _ends_paragraph(part: str, start: int, end: int) -> bool:
    """Whether white space holds an empty line and what follows does not go on in lower case."""
    return (
        end < len(part) and not part[end].islower() and bool(_EMPTY_LINE.search(part, start, end))
    )


def _full_stop(before: str) -> str:
    return "\u3002" if re.search(f"[{_CJK}]$", before) else "."
