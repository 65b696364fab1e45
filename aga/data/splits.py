"""Which split a row belongs to: no patient, and no image, is ever in two.

Patients who share an identical image are one patient to the split, whatever their identifiers say.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from aga.config import Config
from aga.data.schema import SPLITS, Reject, Split
from aga.errors import DataError


class SplitConfig(Config):
    """Shares of the rows; they sum to 1. Used only where the source gives no splits of its own.

    Attributes:
        train: Share of the rows to learn from.
        validation: Share that chooses the epoch.
        test: Share that measures.
        fold: Which patients are tested, for cross-validation: with a `test` of 1/k, the folds 0 to
            k - 1 test every patient once.
    """

    train: float = Field(gt=0, lt=1)
    validation: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)
    fold: int = Field(ge=0)

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test is {total:g}, not 1")
        if (self.fold + 1) * Fraction(str(self.test)) > 1:
            raise ValueError(f"fold {self.fold} of a test share of {self.test:g} is past the end")
        return self


@dataclass(frozen=True)
class SplitRow:
    """What splitting needs to know of a row.

    Attributes:
        patient_id: The source's patient identifier.
        pixel_sha256: Hash of the prepared pixels.
        location: Where the source states the row.
        given: The source's own split, or None.
    """

    patient_id: str
    pixel_sha256: str
    location: str
    given: Split | None = None


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


def patient_groups(rows: Iterable[SplitRow]) -> dict[str, str]:
    """Patients who may not be separated.

    Args:
        rows: The rows; rows with equal pixels link their patients.

    Returns:
        Patient id to the alphabetically first patient id of its group.
    """
    groups = Groups()
    patients = set()
    for row in rows:
        patients.add(row.patient_id)
        groups.link(("patient", row.patient_id), ("pixels", row.pixel_sha256))
    first: dict[Hashable, str] = {}
    for patient in sorted(patients):
        first.setdefault(groups.root(("patient", patient)), patient)
    return {patient: first[groups.root(("patient", patient))] for patient in patients}


def assign_splits(
    rows: Sequence[SplitRow], links: Sequence[SplitRow], config: SplitConfig, seed: int
) -> list[Split]:
    """The split of each row: the source's own, or by the order of the patients' hashes.

    Where the source gives splits but none for validation, its training patients are divided, in the
    ratio of the shares of `train` and `validation`.

    Groups of patients are ordered by the SHA-256 of seed and group, and laid end to end; a group
    belongs to the split in whose share of the rows its middle lies. A fold turns them by its number
    times the share of the test split, the last becoming the first. The result depends on neither
    the order of the rows nor the machine.

    Args:
        rows: The rows to split.
        links: Rows that are not used but link patients: repeats of an image.
        config: Shares of the rows.
        seed: Another seed gives another split.

    Raises:
        DataError: Only some rows have a split of their own; an image is in two given splits; or
            there are too few patients for the shares.
    """
    given = [row.given for row in rows if row.given is not None]
    if given:
        _refuse_bad_given(rows, links)
        return given if "validation" in given else _with_validation(rows, links, config, seed)
    group_of = patient_groups([*rows, *links])
    sizes = Counter(group_of[row.patient_id] for row in rows)
    split_of = _by_hash(sizes, config, seed)
    _refuse_empty(Counter(split_of.values()), len(sizes))
    return [split_of[group_of[row.patient_id]] for row in rows]


def separated_repeats(rows: Iterable[SplitRow]) -> list[Reject]:
    """Rows whose image is, pixel for pixel, also in another given split."""
    first: dict[str, SplitRow] = {}
    found = []
    for row in rows:
        other = first.setdefault(row.pixel_sha256, row)
        if row.given != other.given:
            detail = f"in {row.given}; {other.location} is in {other.given}"
            found.append(Reject(row.location, "image in two splits", detail, "split"))
    return found


def _by_hash(sizes: Counter[str], config: SplitConfig, seed: int) -> dict[str, Split]:
    total = sum(sizes.values())
    bounds = {  # exact: a middle that lies on a bound falls the same way everywhere
        "train": Fraction(str(config.train)) * total,
        "validation": (1 - Fraction(str(config.test))) * total,
    }
    turn = config.fold * Fraction(str(config.test)) * total
    split_of = {}
    for group, place in _places(sizes, seed).items():
        middle = (place + turn) % total
        split: Split = "test"
        if middle < bounds["train"]:
            split = "train"
        elif middle < bounds["validation"]:
            split = "validation"
        split_of[group] = split
    return split_of


def _places(sizes: Counter[str], seed: int) -> dict[str, Fraction]:
    """Where the middle of each group lies when they are laid end to end in hashed order."""
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    before, places = 0, {}
    for group in order:
        places[group] = before + Fraction(sizes[group], 2)
        before += sizes[group]
    return places


def _with_validation(
    rows: Sequence[SplitRow], links: Sequence[SplitRow], config: SplitConfig, seed: int
) -> list[Split]:
    """The given splits, but for the training patients that become the validation split."""
    group_of = patient_groups([*rows, *links])
    sizes = Counter(group_of[row.patient_id] for row in rows if row.given == "train")
    train, validation = Fraction(str(config.train)), Fraction(str(config.validation))
    bound = train / (train + validation) * sum(sizes.values())
    drawn = {group for group, place in _places(sizes, seed).items() if place >= bound}
    return [
        "validation" if row.given == "train" and group_of[row.patient_id] in drawn else row.given
        for row in rows
        if row.given is not None
    ]


def _refuse_bad_given(rows: Sequence[SplitRow], links: Sequence[SplitRow]) -> None:
    without = [row.location for row in rows if row.given is None]
    if without:
        raise DataError(
            "Some rows name a split and others do not",
            where=", ".join(without[:5]),
            got=f"{len(without)} of {len(rows)} rows without a split",
            expected="a split in every row, or in none",
        )
    separated = separated_repeats([*rows, *links])
    if separated:
        raise DataError(
            "The same image is in two of the source's splits",
            where="; ".join(f"{one.location} {one.detail}" for one in separated[:5]),
            got=f"{len(separated)} such rows",
            expected="rows with identical pixels in one split",
            fix="put them in one split, or remove the column and let `prepare` split",
        )


def _refuse_empty(patients: Counter[Split], groups: int) -> None:
    empty = [split for split in SPLITS if not patients[split]]
    if empty:
        raise DataError(
            f"No patient is left for the split {empty[0]}",
            got=f"{groups} patients, counting those who share an image as one",
            fix="add patients, or change prepare.split in params.yaml",
        )


def sample_rows(patients: Sequence[str], count: int, seed: int) -> list[int]:
    """Some rows, patient by patient in an order drawn by `seed`.

    The rows of a smaller count are among those of a larger one, so that learning curves add data
    and exchange none; only the last patient may be taken in part.

    Args:
        patients: Of each row.
        count: How many rows; at most as many as there are.
        seed: Seed of the order.

    Returns:
        Their numbers, rising.
    """
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        rows.setdefault(patient, []).append(row)
    generator = np.random.Generator(np.random.Philox(key=seed))
    order = generator.permutation(np.array(sorted(rows), dtype=object))
    return sorted([row for patient in order for row in rows[patient]][:count])
