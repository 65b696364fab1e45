"""Sentences that are about the reporting and not about the image: who was told, who signed.

They recur in many reports, and pull a model towards the habits of a department. What merely recurs
is not dropped: `No pneumothorax.` does too, and says something about the image.
"""

from __future__ import annotations

import re

# Of a report, never of a finding: a cavity `communicates with` a bronchus, a nodule `was reported`.
_TOLD = r"(?:discussed|communicated|conveyed|relayed|telephoned|transmitted|called (?:to|in))"
_WHOM = r"(?:\[DEID\]|dr\b|the (?:referring|ordering|requesting|clinical|primary|er|ed|icu)\b)"
_KINDS = {
    "notification": re.compile(
        r"\b(?:was|were|been|is|are) (?:then )?(?:notified|paged|telephoned)\b"
        r"|\bnotified (?:of|by)\b|\bresults? notification\b|\bnotification (?:of|by|to) dr\b"
        r"|\b(?:findings?|results?|this|these|above|impression|recommendations?)\b.{0,80}"
        r"\b(?:was|were|been|be) (?:also |then |verbally |directly )*"
        rf"{_TOLD}\b(?! (?:above|below|else))"
        r"|\bresults? (?:discussed|called|communicated|phoned)\b"
        r"|\b(?:discussed|communicated|reviewed|conveyed|relayed|reported|called) (?:with|to|by) "
        rf"{_WHOM}"
        r"|\b(?:by|via|over the|on the|per) (?:tele)?phone\b|\btelephone (?:call|conversation|at)\b"
        r"|\backnowledg\w* (?:receipt|the findings?|the results?)\b",
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


def boilerplate(sentence: str, drop: tuple[str, ...]) -> str | None:
    """Which entry of `drop` a sentence falls under, or None for none.

    Args:
        sentence: One clean sentence.
        drop: Names of `KINDS`; anything else is a phrase, looked for as it stands, in any case.
    """
    folded = sentence.casefold()
    for entry in drop:
        kind = _KINDS.get(entry)
        if kind.search(sentence) if kind else entry.casefold() in folded:
            return entry
    return None
