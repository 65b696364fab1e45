"""What rows of a source must agree on, checked row by row as they stream past."""

from __future__ import annotations

import hashlib
from pathlib import Path

from aga.data.schema import Reject, Split, Study


class Ledger:
    """Remembers the identities of the rows so far and names the first contradiction of a new one.

    A study may have several rows, one per image; they share patient, report and split. A study's
    image stands in one row. A patient has one given split.
    """

    def __init__(self) -> None:
        self._studies: dict[str, tuple[str, bytes, str]] = {}
        self._images: dict[tuple[str, Path], str] = {}
        self._splits: dict[str, tuple[Split, str]] = {}

    def conflict(self, study: Study) -> Reject | None:
        """Enter a row; say how it contradicts an earlier one, or None where it does not."""
        report = hashlib.sha256((study.report or "").encode("utf-8", "surrogatepass")).digest()
        patient, known, where = self._studies.setdefault(
            study.study_id, (study.patient_id, report, study.location)
        )
        if patient != study.patient_id:
            detail = f"{where} has this study id for another patient"
            return Reject(study.location, "duplicate study id", detail, "study_id")
        if known != report:
            detail = f"{where} has this study id with another report"
            return Reject(study.location, "duplicate study id", detail, "study_id")
        image = (study.study_id, study.image)
        if image in self._images:
            detail = f"{self._images[image]} has this study id with the same image"
            return Reject(study.location, "duplicate study id", detail, "study_id")
        self._images[image] = study.location
        return self._split_conflict(study)

    def _split_conflict(self, study: Study) -> Reject | None:
        if study.split is None:
            return None
        split, where = self._splits.setdefault(study.patient_id, (study.split, study.location))
        if split == study.split:
            return None
        detail = f"in {study.split}; {where} has this patient in {split}"
        return Reject(study.location, "patient in two splits", detail, "split")
