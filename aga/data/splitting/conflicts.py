"""Rows that two of the source's own splits share: which one stays, where one may."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from aga.data.schema import SPLITS, Reject, Split
from aga.data.splitting.patients import Copies, SplitRow


class _Place(NamedTuple):
    split: Split
    location: str


class Strictest:
    """The strictest split in which the source has a patient or an image: test, then validation.

    Args:
        rows: All usable rows; those without a split of their own are passed over.
        listed: Patients who are tested, whatever the source gives: no row of theirs conflicts.
    """

    def __init__(self, rows: Iterable[SplitRow], listed: AbstractSet[str] = frozenset()) -> None:
        self._listed = listed
        self._patients: dict[str, _Place] = {}
        self._images: dict[str, _Place] = {}
        self._copies: dict[str, _Place] = {}
        for row in rows:
            _enter(self._patients, row.patient_id, row)
            _enter(self._images, row.pixel_sha256, row)

    def heed(self, copies: Copies) -> bool:
        """Enter near duplicates, too; whether any two of them are in two splits."""
        for one, other in copies:
            _enter(self._copies, one.pixel_sha256, other)
            _enter(self._copies, other.pixel_sha256, one)
        return any(self.conflict(row) for pair in copies for row in pair)

    def conflict(self, row: SplitRow) -> Reject | None:
        """Why a row has to go: a stricter split has its patient, its image or a copy of that."""
        if row.given is None or row.patient_id in self._listed:
            return None
        known = (
            ("patient in two splits", "this patient", self._patients.get(row.patient_id)),
            ("image in two splits", "this image", self._images.get(row.pixel_sha256)),
            ("image in two splits", "a near duplicate", self._copies.get(row.pixel_sha256)),
        )
        for reason, what, place in known:
            if place and SPLITS.index(place.split) > SPLITS.index(row.given):
                detail = f"in {row.given}; {place.location} has {what} in {place.split}"
                return Reject(row.location, reason, detail, "split")
        return None


def _enter(places: dict[str, _Place], key: str, row: SplitRow) -> None:
    known = places.get(key)
    if row.given and (known is None or SPLITS.index(row.given) > SPLITS.index(known.split)):
        places[key] = _Place(row.given, row.location)
