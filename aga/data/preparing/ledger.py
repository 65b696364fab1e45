"""What rows of a source must agree on, checked row by row as they stream past."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from aga.data.schema import Reject, Split, Study


@dataclass(frozen=True, slots=True)
class _Known:
    """A study as its first row gave it."""

    patient: bytes
    report: bytes
    location: str


class Ledger:
    """Remembers the identities of the rows so far and names the first contradiction of a new one.

    A study may have several rows, one per image; they share patient, report and split. A study's
    image stands in one row. A patient has one given split. Identities are kept as hashes of 16
    bytes, so that a row costs half a kilobyte of memory however long its names are.
    """

    def __init__(self) -> None:
        self._studies: dict[bytes, _Known] = {}
        self._images: dict[bytes, str] = {}
        self._splits: dict[bytes, tuple[Split, str]] = {}

    def conflict(self, study: Study) -> Reject | None:
        """Enter a row; say how it contradicts an earlier one, or None where it does not."""
        patient = _identity(study.patient_id)
        new = _Known(patient, _identity(study.report or ""), study.location)
        known = self._studies.setdefault(_identity(study.study_id), new)
        if known.patient != new.patient:
            detail = f"{known.location} has this study id for another patient"
            return Reject(study.location, "duplicate study id", detail, "study_id")
        if known.report != new.report:
            detail = f"{known.location} has this study id with another report"
            return Reject(study.location, "duplicate study id", detail, "study_id")
        image = _identity(study.study_id, str(study.image))
        if image in self._images:
            detail = f"{self._images[image]} has this study id with the same image"
            return Reject(study.location, "duplicate study id", detail, "study_id")
        self._images[image] = study.location
        return self._split_conflict(study, patient)

    def _split_conflict(self, study: Study, patient: bytes) -> Reject | None:
        if study.split is None:
            return None
        split, where = self._splits.setdefault(patient, (study.split, study.location))
        if split == study.split:
            return None
        detail = f"in {study.split}; {where} has this patient in {split}"
        return Reject(study.location, "patient in two splits", detail, "split")


def _identity(*names: str) -> bytes:
    digest = blake2b(digest_size=16)
    for name in names:
        content = name.encode("utf-8", "surrogatepass")
        digest.update(b"%d " % len(content) + content)
    return digest.digest()
