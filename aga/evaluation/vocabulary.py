"""Which words of a report name a finding or a side: a versioned file of `aga/evaluation/words`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from aga.errors import ParamsError

Span = tuple[int, int]
_NEAR = 3  # words after a side in which a place of the chest makes it a side of the chest


@dataclass(frozen=True)
class Vocabulary:
    """Versioned words, compared without case.

    Attributes:
        version: Name of the file.
        findings: Per finding, the words that name it.
        sides: Per region of one side, the words that name its side; two regions, or none.
        followed_by: Beginnings of words, one of which must be among the next three words after a
            side: a patient who `left the hospital` is no side. Empty asks for nothing.
        sha256: Of the file.
    """

    version: str
    findings: Mapping[str, Sequence[str]]
    sides: Mapping[str, Sequence[str]]
    followed_by: Sequence[str]
    sha256: str

    def finding_spans(self, finding: str, text: str) -> list[Span]:
        """Where words of the finding stand in `text`: (start, end) characters, end exclusive."""
        return [match.span() for match in _matches(self.findings.get(finding, ()), text)]

    def side_spans(self, region: str, text: str) -> list[Span]:
        """Where words of the region's side stand in `text`."""
        matches = _matches(self.sides.get(region, ()), text)
        return [match.span() for match in matches if self._of_the_chest(text[match.end() :])]

    def _of_the_chest(self, rest: str) -> bool:
        near = re.findall(r"\w+", rest)[:_NEAR]
        beginnings = tuple(self.followed_by)
        return not beginnings or any(word.casefold().startswith(beginnings) for word in near)


def load_vocabulary(version: str) -> Vocabulary:
    """Read a vocabulary of the library.

    Raises:
        ParamsError: There is no such vocabulary, or it names one side alone.
    """
    folder = resources.files("aga.evaluation") / "words"
    known = sorted(path.name.removesuffix(".json") for path in folder.iterdir())
    if version not in known:
        raise ParamsError(
            "There is no such vocabulary",
            where="evaluation.grounding.words",
            got=version,
            expected=", ".join(known),
            fix="name one of them, or add a file to aga/evaluation/words",
        )
    content = (folder / f"{version}.json").read_bytes()
    document = json.loads(content)
    if len(document["sides"]) not in (0, 2):
        raise ParamsError(
            "A side is the other one of two",
            where=f"aga/evaluation/words/{version}.json",
            got=", ".join(document["sides"]),
            expected="two regions in `sides`, or none",
        )
    return Vocabulary(sha256=hashlib.sha256(content).hexdigest(), **document)


def _matches(words: Sequence[str], text: str) -> list[re.Match[str]]:
    if not words:
        return []
    # The longest first, so that `left-sided` is one word.
    options = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return list(re.finditer(rf"\b(?:{options})\b", text, re.IGNORECASE))
