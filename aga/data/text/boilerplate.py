"""Sentences that are about the reporting and not about the image: who was told, who signed.

They recur in many reports, and pull a model towards the habits of a department. What merely recurs
is not dropped: `No pneumothorax.` does too, and says something about the image. Neither is what a
sentence says of the image before it tells who was told: `Large pneumothorax, discussed with Dr. A.`
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Of a report, never of a finding: a cavity `communicates with` a bronchus, a nodule `was reported`.
_TOLD = r"(?:discussed|communicated|conveyed|relayed|telephoned|transmitted|called (?:to|in))"
_WHOM = r"(?:\[DEID\]|dr\b|the (?:referring|ordering|requesting|clinical|primary|er|ed|icu)\b)"
_NOTIFICATION = "notification"
_KINDS = {
    _NOTIFICATION: re.compile(
        r"(?P<person>\b(?:was|were|been|is|are) (?:then )?(?:notified|paged|telephoned)\b"
        r"|\bnotified (?:of|by)\b|\backnowledg\w* (?:receipt|the findings?|the results?)\b)"
        r"|\bresults? notification\b|\bnotification (?:of|by|to) dr\b"
        r"|\b(?:findings?|results?|this|these|above|impression|recommendations?)\b.{0,80}?"
        r"(?P<verb>\b(?:was|were|been|be) (?:also |then |verbally |directly )*"
        rf"{_TOLD}\b)(?! (?:above|below|else))"
        r"|\bresults? (?:discussed|called|communicated|phoned)\b"
        r"|\b(?:discussed|communicated|reviewed|conveyed|relayed|reported|called) (?:with|to|by) "
        rf"{_WHOM}"
        r"|\b(?:by|via|over the|on the|per) (?:tele)?phone\b"
        r"|\btelephone (?:call|conversation|at)\b",
        re.IGNORECASE,
    ),
    "attestation": re.compile(
        r"\bI(?:,.{0,60},)? (?:have |had |did )?(?:also )?(?:personally |independently )*"
        r"(?:reviewed|examined|interpreted|viewed|supervised|edited)\b.{0,60}"
        r"\b(?:images?|films?|stud(?:y|ies)|exams?|examinations?|reports?|radiographs?)\b"
        r"|\bI (?:fully )?(?:agree|concur) with\b|\bteaching (?:physician|radiologist)\b"
        r"|\b(?:electronically|digitally) (?:signed|approved|authenticated)\b"
        r"|\b(?:dictated|transcribed|signed|electronically verified) by\b"
        r"|\battending (?:radiologist|physician).{0,60}\b(?:reviewed|agree|attest|present)"
        r"|\b(?:voice|speech) recognition\b|\bdictation (?:software|system)\b",
        re.IGNORECASE,
    ),
}
KINDS = tuple(_KINDS)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CLAUSE = re.compile(r"[,;:(]\s*|\s+(?:--?|\u2013|\u2014|and|but|so)\s+", re.IGNORECASE)
_PERSON = re.compile(
    r"\W*(?:(?:by|with|to) )?(?:\[DEID\]|(?:drs?|mr|mrs|ms|prof|pa|np|rn|md)\b)", re.IGNORECASE
)
# `which was then verbally`, before the verb that tells
_LEADS_IN = re.compile(
    r"(?:(?:^|(?<=\W))(?:was|were|is|are|has|have|had|been|being|be|will|which|that|this|these|it|and|as"
    r"|also|then|verbally|directly|immediately|personally|promptly|urgently|subsequently|discussed"
    r"|communicated|conveyed|relayed|called|reported|reviewed|transmitted|confirmed)\b[\s,]*)+$",
    re.IGNORECASE,
)
_LOOSE_END = re.compile(r"(?:[\s,;:(.\u2013\u2014-]|\s(?:and|but|so)\b)+$", re.IGNORECASE)
# Behind `notified of`, a colon or `As discussed with Dr. A,` there may be a finding, too.
_AFTER = re.compile(
    r"notified (?:[^.,;:]{0,80}?\b)?(?:of|about|regarding) (?P<of>.*?)"
    r"(?=[,;:.]|\s(?:by|at|on|via|over|in person)\b|$)"
    r"|[:;]\s(?P<list>.*)|,\s(?P<clause>there (?:is|are|has|have)\b.*)",
    re.IGNORECASE,
)
# Of a notification itself; any other word of three letters or more is taken to be of the image.
_ABOUT_TELLING = _words(
    "the and with was were are has have had been being which who whom that this these those also "
    "then verbally directly immediately subsequently personally promptly urgently via over per "
    "from for time times pm am hour hours hrs minute minutes shortly after before approximately "
    "around about day date same today yesterday discovery interpretation dictation review "
    "reviewing reading observation observed identified made done discussed discussion communicated "
    "communication conveyed relayed telephoned transmitted called call calls phoned reported "
    "reviewed paged notified notification confirmed acknowledged receipt read back yes telephone "
    "phone page pager text email electronic electronically system dashboard person documented "
    "wet radiologist radiology resident attending physician physicians doctor nurse practitioner "
    "assistant surgeon team service house officer intern fellow staff clinician provider referring "
    "ordering requesting clinical primary care emergency department patient covering caring "
    "monday tuesday wednesday thursday friday saturday sunday january february march april may "
    "june july august september october november december "
    "finding findings result results impression recommendation recommendations report reports "
    "study exam examination image images film films above below preliminary final critical "
    "important urgent significant unexpected pertinent relevant other all new regarding "
    "concerning including described noted entered online please follow followup value values "
    "his her their him them they she will would could can"
)
_WORD = re.compile(r"[^\W\d_]{3,}")


class Boilerplate(NamedTuple):
    """A sentence of which something is left out.

    Attributes:
        kind: The entry of `drop` that it falls under.
        kept: Characters of its beginning that stay; mostly 0.
    """

    kind: str
    kept: int


def boilerplate(sentence: str, drop: tuple[str, ...]) -> Boilerplate | None:
    """What is left out of a sentence, or None for nothing.

    Args:
        sentence: One clean sentence.
        drop: Names of `KINDS`; anything else is a phrase, looked for as it stands, in any case. A
            notification that begins with something else keeps that; one that goes on with
            something else, or tells it, is kept whole.
    """
    folded = sentence.casefold()
    for entry in drop:
        kind = _KINDS.get(entry)
        found = kind.search(sentence) if kind else None
        if found and entry == _NOTIFICATION:
            kept = _said_before(sentence, found)
            if kept or not _said_after(sentence, found):
                return Boilerplate(entry, kept)
        elif found or (kind is None and entry.casefold() in folded):
            return Boilerplate(entry, 0)
    return None


def _said_before(sentence: str, found: re.Match[str]) -> int:
    """How many characters before a notification are about the image."""
    verb = found.start("verb")
    end = verb if verb >= 0 else found.start()
    end = len(_LEADS_IN.sub("", sentence[:end]))
    starts = [0, *(boundary.end() for boundary in _CLAUSE.finditer(sentence, 0, end))]
    if found["person"] is not None:  # who was told is the subject: its clause says nothing
        end = starts.pop()
    while starts and not _is_of_the_image(sentence[starts[-1] : end]):
        end = starts.pop()
    if not starts or _PERSON.match(sentence):
        return 0
    return len(_LOOSE_END.sub("", sentence[:end]))


def _said_after(sentence: str, found: re.Match[str]) -> bool:
    """Whether a notification tells, or is followed by, something about the image."""
    after = _AFTER.search(sentence, found.start())
    return after is not None and _is_of_the_image(after[after.lastgroup or 0])


def _is_of_the_image(clause: str) -> bool:
    """Whether a clause has a word that is neither a name nor of the telling of findings."""
    if _PERSON.match(clause):
        return False
    words = _WORD.findall(clause.replace("[DEID]", ""))
    named = [word for word in words[1:] if word[0].isupper() and not word.isupper()]
    return any(word.casefold() not in _ABOUT_TELLING for word in words if word not in named)
