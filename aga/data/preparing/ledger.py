"""What rows of a source must agree on, checked row by row as they stream past."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from aga.data.preparing.seen import FirstSeen, identity
from aga.data.schema import Reject, Study


class Ledger:
    """Remembers the identities of the rows so far and names the first contradiction of a new one.

    A study may have several rows, one per image; they share patient, report and split. A study's
    image stands in one row. A patient has one given split. Identities are kept as hashes on disk,
    so that memory does not grow with the rows.

    Args:
        listed: Patients who are tested, whatever splits the source gives them.
        one_split: Whether any other patient must have one given split.
    """

    def __init__(self, listed: AbstractSet[str] = frozenset(), *, one_split: bool = True) -> None:
        self._listed = listed
        self._one_split = one_split
        self._seen = FirstSeen()

    def conflict(self, study: Study) -> Reject | None:
        """Enter a row; say how it contradicts an earlier one, or None where it does not."""
        patient = identity(study.patient_id).hex()
        report = identity(study.report or "").hex()
        known = self._earlier("study", study.study_id, note=(patient, report, study.location))
        if known is not None and known[0] != patient:
            detail = f"{known[2]} has this study id for another patient"
            return Reject(study.location, "duplicate study id", detail, "study_id")
        if known is not None and known[1] != report:
            detail = f"{known[2]} has this study id with another report"
            return Reject(study.location, "duplicate study id", detail, "study_id")
        image = self._earlier("image", study.study_id, str(study.image), note=(study.location,))
        if image is not None:
            detail = f"{image[0]} has this study id with the same image"
            return Reject(study.location, "duplicate study id", detail, "study_id")
        return self._split_conflict(study)

    def _split_conflict(self, study: Study) -> Reject | None:
        if study.split is None or not self._one_split or study.patient_id in self._listed:
            return None
        known = self._earlier("split", study.patient_id, note=(study.split, study.location))
        if known is None or known[0] == study.split:
            return None
        detail = f"in {study.split}; {known[1]} has this patient in {known[0]}"
        return Reject(study.location, "patient in two splits", detail, "split")

    def _earlier(self, *names: str, note: tuple[str, ...]) -> list[str] | None:
        """The note of the first row of these names; its last entry, a location, may hold spaces."""
        known = self._seen.earlier(identity(*names), " ".join(note))
        return None if known is None else known.split(" ", len(note) - 1)
