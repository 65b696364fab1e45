"""Who may not be separated: patients, and those who share an image or copies of one."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from aga.data.schema import Reject, Split


@dataclass(frozen=True, slots=True)
class SplitRow:
    """What splitting needs to know of a row.

    Attributes:
        patient_id: The source's patient identifier.
        pixel_sha256: Hash of the prepared pixels.
        location: Where the source states the row.
        given: The source's own split, or None.
        labels: Findings that the row is known to have.
    """

    patient_id: str
    pixel_sha256: str
    location: str
    given: Split | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A test list.

    Attributes:
        name: What it is called.
        patients: Its patients.
        elsewhere: Whether they may all be patients of other sources.
    """

    name: str
    patients: frozenset[str]
    elsewhere: bool = False


def listed_patients(held_out: Iterable[HeldOut]) -> frozenset[str]:
    """All patients of some lists."""
    return frozenset().union(*(one.patients for one in held_out))


_DIGEST = 16  # bytes, of which no two images share all
Copies = Sequence[tuple[SplitRow, SplitRow]]
"""Pairs of rows whose images are near duplicates."""


class Groups:
    """Disjoint sets of the numbers from 0, merged as links become known (union-find).

    Args:
        count: How many numbers.
    """

    def __init__(self, count: int) -> None:
        self._parent = array("q", range(count))

    def link(self, first: int, second: int) -> bool:
        """Put two numbers, and all that is linked to either, into one set; False if they were."""
        first, second = self.root(first), self.root(second)
        self._parent[second] = first
        return first != second

    def root(self, number: int) -> int:
        """The number that stands for the set of a number; the same for all of the set."""
        while (parent := self._parent[number]) != number:
            self._parent[number] = number = self._parent[parent]
        return number


def patient_groups(rows: Iterable[SplitRow], copies: Copies = ()) -> dict[str, str]:
    """Patients who may not be separated.

    Args:
        rows: The rows; rows with equal pixels link their patients.
        copies: Rows that link their patients, too.

    Returns:
        Patient id to the alphabetically first patient id of its group.
    """
    numbers: dict[str, int] = {}
    patients, digests = array("q"), bytearray()  # of each row
    for row in rows:
        patients.append(numbers.setdefault(row.patient_id, len(numbers)))
        digests += blake2b(row.pixel_sha256.encode(), digest_size=_DIGEST).digest()
    groups = Groups(len(numbers))
    images = np.frombuffer(digests, f"S{_DIGEST}")
    _, first_with, image = np.unique(images, return_index=True, return_inverse=True)
    for place in np.flatnonzero(first_with[image] != np.arange(len(images))):
        groups.link(patients[first_with[image[place]]], patients[place])
    for one, other in copies:
        groups.link(numbers[one.patient_id], numbers[other.patient_id])
    first: dict[int, str] = {}
    for patient in sorted(numbers):
        first.setdefault(groups.root(numbers[patient]), patient)
    return {patient: first[groups.root(number)] for patient, number in numbers.items()}


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
