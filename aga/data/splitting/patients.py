"""Who may not be separated: patients, and those who share an image or copies of one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from aga.data.schema import Reject, Split


@dataclass(frozen=True, slots=True)
class SplitRow:
    """What splitting needs to know of a row.

    Attributes:
        patient_id: The source's patient identifier.
        pixel_sha256: Hash of the prepared pixels.
        location: Where the source states the row.
        given: The source's own split, or None.
        perceptual_hash: Of the prepared pixels.
        labels: Findings that the row is known to have.
    """

    patient_id: str
    pixel_sha256: str
    location: str
    given: Split | None = None
    perceptual_hash: str = ""
    labels: tuple[str, ...] = ()


Copies = Sequence[tuple[SplitRow, SplitRow]]
"""Pairs of rows whose images are near duplicates."""


class Groups:
    """Disjoint sets of keys, merged as links between them become known (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def link(self, first: Hashable, second: Hashable) -> None:
        """Put two keys, and all that is linked to either, into one group."""
        first, second = self.root(first), self.root(second)
        if first != second:
            self._parent[second] = first

    def root(self, key: Hashable) -> Hashable:
        """The key that stands for the group of `key`; the same for all of the group."""
        parent = self._parent.setdefault(key, key)
        while parent != key:
            grandparent = self._parent[parent]
            self._parent[key] = grandparent
            key, parent = parent, grandparent
        return key


def patient_groups(rows: Iterable[SplitRow], copies: Copies = ()) -> dict[str, str]:
    """Patients who may not be separated.

    Args:
        rows: The rows; rows with equal pixels link their patients.
        copies: Rows that link their patients, too.

    Returns:
        Patient id to the alphabetically first patient id of its group.
    """
    groups = Groups()
    patients = set()
    for row in rows:
        patients.add(row.patient_id)
        groups.link(("patient", row.patient_id), ("pixels", row.pixel_sha256))
    for one, other in copies:
        groups.link(("patient", one.patient_id), ("patient", other.patient_id))
    first: dict[Hashable, str] = {}
    for patient in sorted(patients):
        first.setdefault(groups.root(("patient", patient)), patient)
    return {patient: first[groups.root(("patient", patient))] for patient in patients}


def separated_repeats(rows: Iterable[SplitRow], copies: Copies = ()) -> list[Reject]:
    """Rows whose image is, pixel for pixel or as a near duplicate, also in another given split."""
    first: dict[str, SplitRow] = {}
    found = []
    for row in rows:
        other = first.setdefault(row.pixel_sha256, row)
        if row.given != other.given:
            detail = f"in {row.given}; {other.location} is in {other.given}"
            found.append(Reject(row.location, "image in two splits", detail, "split"))
    for one, row in copies:
        if row.given != one.given and row.pixel_sha256 != one.pixel_sha256:
            detail = f"in {row.given}; a near duplicate, {one.location}, is in {one.given}"
            found.append(Reject(row.location, "image in two splits", detail, "split"))
    return found
