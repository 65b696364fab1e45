"""Where the sentences of a report begin: rules for the way reports are written, in many languages.

Told from the text alone, so that training, a shipped bundle and a page number the same sentences.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

_REACH = 48  # characters that are looked at before a mark
NO_SENTENCE = -1  # of padding and special tokens

_CLOSING = "\"')\\]\u201d\u2019\u00bb\u300d\u300f\uff09"  # ” ’ » and the full-width ones
_CJK = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
# Full-width marks, a Hindi and two Arabic ones: they end a sentence whatever follows.
_FULL = "\u3002\uff01\uff1f\uff61\u0964\u061f\u06d4"
_END = re.compile(
    rf"[{_FULL}]+[{_CLOSING}]*\s*"
    rf"|(?<![.!?])(?P<mark>[.!?]+)[{_CLOSING}]*\s+"
    r"|(?<=[a-z)])(?P<tight>\.)(?=[A-Z][a-z])"  # normal.The
    rf"|(?<=[{_CJK}])[.!?\uff0e]+(?=[{_CJK}])"
    r"|\n[ \t]*\n\s*|\n(?=[ \t]*(?:\d{1,2}[.)]|[-*\u2022])[ \t])"
)
_LAST_WORD = re.compile(r"[^\s(\[\"'/,;:]*$")
_LIST_NUMBER = re.compile(r"\s*\(?(?:\d{1,2}|[A-Za-z])$")
_NUMBER_AND_SPACE = re.compile(r"\d\s+$")
_LETTERS = re.compile(r"(?:\w\.)+\w")  # i.v, a.p


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TITLES = _words("dr drs mr mrs ms prof hr mme mlle sr sra dra dott sig pd med")
_NEVER_LAST = _TITLES | _words(
    "vs e.g i.e eg ie cf ca viz approx st bzw z.b d.h u.a o.g v.a z.n st.p zn ggf evtl inkl incl "
    "abb aprox p.ej env"
)
# `No. 2`, `Fig. 3`, `S. 4`
_BEFORE_NUMBERS = _words("no nos nr fig figs im img ser se p pp s n vol")
# `at 9 a.m. on Monday`, but `at 9 a.m. The tube`
_BEFORE_LOWER_CASE = _words(
    "a.m p.m am pm etc al jr inf sup lat bilat ant post min max mm cm sec hr hrs pt hx dx resp usw"
)


def sentence_starts(text: str) -> list[int]:
    """Where each sentence of a text begins, rising; none of an empty text.

    A sentence ends after `.`, `!`, `?` and their forms of other scripts, where what stands before
    is no abbreviation, title, initial or list number, and at an empty line. White space between two
    sentences counts to the first of them.
    """
    starts = [0] if text else []
    margin = len(text) - len(text.lstrip())
    for end in _END.finditer(text):
        at = end.end()
        if at == len(text) or end.start() <= max(starts[-1], margin):
            continue
        if end["mark"] or end["tight"]:
            mark = end.start("mark" if end["mark"] else "tight")
            before = text[max(starts[-1], mark - _REACH) : mark]
            if _goes_on(before, end["mark"] or ".", text[at]):
                continue
        starts.append(at)
    return starts


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence; together they are the whole text."""
    return list(pairwise([*sentence_starts(text), len(text)]))


def sentence_numbers(text: str, starts: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Number of the sentence that holds each token's last character, from 0.

    Args:
        text: The text.
        starts: Where each token begins; negative for a special token.
        ends: Where each token ends, exclusive. (A token may begin with the space before it.)

    Returns:
        Per token its sentence, without gaps; `NO_SENTENCE` for special tokens.
    """
    begins = sentence_starts(text)
    return [
        NO_SENTENCE if start < 0 else bisect_right(begins, max(start, end - 1)) - 1
        for start, end in zip(starts, ends, strict=True)
    ]


def _goes_on(before: str, mark: str, following: str) -> bool:
    """Whether the sentence goes on behind a mark.

    Args:
        before: The end of the sentence up to the mark.
        mark: One or more of `.!?`.
        following: The first character behind the mark and its white space.
    """
    if mark != ".":  # `pneumonia? versus`, `heart ... normal`, `38.5 ? C` of a lost character
        return following.islower() or _NUMBER_AND_SPACE.search(before) is not None
    if following in ",;:)" or _LIST_NUMBER.fullmatch(before):
        return True
    found = _LAST_WORD.search(before)
    word = found[0] if found else ""
    spelled = word.casefold()
    if spelled in _BEFORE_LOWER_CASE or _LETTERS.fullmatch(spelled):
        return spelled in _NEVER_LAST or not following.isupper()
    return (
        spelled in _NEVER_LAST
        or (spelled in _BEFORE_NUMBERS and following.isdigit())
        or (len(word) == 1 and word.isupper() and _is_initial(before[: -len(word)]))
    )


def _is_initial(before: str) -> bool:
    """Whether a capital behind `before` is an initial: `Dr. J. Smith`, not `hepatitis C. The`."""
    previous = before.rstrip()
    found = _LAST_WORD.search(previous[:-1]) if previous.endswith(".") else None
    return found is not None and (found[0].casefold() in _TITLES or len(found[0]) == 1)
