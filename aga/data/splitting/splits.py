"""Which split a row belongs to: no patient, and no image, is ever in two.

Patients who share an image, or copies of one, are one patient to the split, whatever their
identifiers say.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from fractions import Fraction
from itertools import chain
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from aga.config import Config
from aga.data.schema import SPLITS, Split
from aga.data.splitting.patients import (
    Copies,
    HeldOut,
    SplitRow,
    listed_patients,
    patient_groups,
    separated_repeats,
)
from aga.data.splitting.stratify import stratified
from aga.errors import DataError


class SplitConfig(Config):
    """Shares of the rows; they sum to 1. Used only where the source gives no splits of its own.

    Attributes:
        train: Share of the rows to learn from.
        validation: Share that chooses the epoch.
        test: Share that measures.
        fold: Which patients are tested, for cross-validation: with a `test` of 1/k, the folds 0 to
            k - 1 test every patient once.
        stratify: Labels whose share of the rows is kept nearly equal in all splits; None balances
            the rows alone.
        conflicts: What becomes of a patient or image in two of the source's own splits: `refuse`
            stops the stage, `keep_test` rejects the rows of the less strict split.
        near_duplicates: Whether copies of an image that are not equal to it `link` their patients
            as equal images do, or whether they are not looked for (`ignore`).
    """

    train: float = Field(gt=0, lt=1)
    validation: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)
    fold: int = Field(ge=0)
    stratify: Annotated[list[str], Field(min_length=1)] | None
    conflicts: Literal["refuse", "keep_test"]
    near_duplicates: Literal["link", "ignore"]

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test is {total:g}, not 1")
        if (self.fold + 1) * Fraction(str(self.test)) > 1:
            raise ValueError(f"fold {self.fold} of a test share of {self.test:g} is past the end")
        return self


def assign_splits(
    rows: Sequence[SplitRow],
    links: Sequence[SplitRow],
    config: SplitConfig,
    seed: int,
    copies: Copies = (),
    held_out: Sequence[HeldOut] = (),
) -> list[Split]:
    """The split of each row: a list's or the source's own, or by the order of the patients' hashes.

    Where the source gives splits but none for validation, its training patients are divided, in the
    ratio of the shares of `train` and `validation`.

    Groups of patients are ordered by the SHA-256 of seed and group, and laid end to end; a group
    belongs to the split in whose share of the rows its middle lies. A fold turns them by its number
    times the share of the test split, the last becoming the first. With `config.stratify` they are
    dealt out by `stratified`. The result depends on neither the order of the rows nor the machine.

    Args:
        rows: The rows to split.
        links: Rows that are not used but link patients: repeats of an image.
        config: Shares of the rows.
        seed: Another seed gives another split.
        copies: Near duplicates, which link their patients.
        held_out: Test lists: their patients and all who are linked to them are tested, and where
            the source has no splits nobody else is.

    Raises:
        DataError: Only some rows have a split of their own; an image or its copy is in two given
            splits; no row has a label to stratify by; a list matches nobody; or a split has no
            patient, unless the source gives `test` to all.
    """
    group_of = patient_groups(chain(rows, links), copies)
    _refuse_unmatched(held_out, group_of)
    listed = {group_of[one] for one in listed_patients(held_out) & group_of.keys()}
    given = [row.given for row in rows if row.given is not None]
    if given:
        _refuse_partly_given(rows)
        _refuse_separated(chain(rows, links), copies, group_of, listed)
        splits = _with_given(rows, given, group_of, listed, config, seed)
        _refuse_empty_given(splits)
        return splits
    counts = _group_counts(rows, group_of, config.stratify)
    split_of = _placed(counts, config, seed, listed)
    _refuse_empty(Counter(split_of.values()), len(split_of))
    return [split_of[group_of[row.patient_id]] for row in rows]


def _group_counts(
    rows: Sequence[SplitRow], group_of: Mapping[str, str], labels: Sequence[str] | None
) -> dict[str, list[int]]:
    """Of each group: rows, and rows with each of the labels."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        count = counts.setdefault(group_of[row.patient_id], [0] * (1 + len(labels or ())))
        count[0] += 1
        for place, label in enumerate(labels or (), 1):
            count[place] += label in row.labels
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    absent = [label for label, total in zip(labels or (), totals[1:], strict=True) if not total]
    if absent:
        raise DataError(
            f"No row has the label {absent[0]}",
            where="prepare.split.stratify",
            got=", ".join(absent),
            expected="labels of the source: "
            + ", ".join(sorted({label for row in rows for label in row.labels})),
        )
    return counts


def _with_given(
    rows: Sequence[SplitRow],
    given: Sequence[Split],
    group_of: Mapping[str, str],
    listed: AbstractSet[str],
    config: SplitConfig,
    seed: int,
) -> list[Split]:
    """The given splits, but for listed patients, and for validation drawn where none is given."""
    groups = [group_of[row.patient_id] for row in rows]
    splits: list[Split] = [
        "test" if group in listed else own for group, own in zip(groups, given, strict=True)
    ]
    if "validation" in given:
        return splits
    learned = [row for row, split in zip(rows, splits, strict=True) if split == "train"]
    split_of = _learned(_group_counts(learned, group_of, config.stratify), config, seed)
    return [
        split_of[group] if split == "train" else split
        for group, split in zip(groups, splits, strict=True)
    ]


def _placed(
    counts: Mapping[str, Sequence[int]], config: SplitConfig, seed: int, listed: AbstractSet[str]
) -> dict[str, Split]:
    if listed:
        others = {group: count for group, count in counts.items() if group not in listed}
        tested: dict[str, Split] = dict.fromkeys(counts.keys() & listed, "test")
        return tested | _learned(others, config, seed)
    if config.stratify is None:
        return _by_hash(counts, _shares(config), config.fold, seed)
    # First all folds, the same whichever is tested; then what is left.
    test = _shares(config)["test"]
    folds: dict[int, Fraction] = dict.fromkeys(range(int(1 / test)), test)
    rest = 1 - sum(folds.values(), Fraction(0))
    fold_of = stratified(counts, folds | ({len(folds): rest} if rest else {}), seed)
    others = {group: count for group, count in counts.items() if fold_of[group] != config.fold}
    split_of: dict[str, Split] = dict.fromkeys(counts.keys() - others.keys(), "test")
    return split_of | _learned(others, config, seed)


def _learned(
    counts: Mapping[str, Sequence[int]], config: SplitConfig, seed: int
) -> dict[str, Split]:
    """Groups of which none is tested, in the ratio of the shares of `train` and `validation`."""
    shares = _shares(config)
    train = shares["train"] / (shares["train"] + shares["validation"])
    learned: dict[Split, Fraction] = {"train": train, "validation": 1 - train}
    if config.stratify is None:
        return _by_hash(counts, learned, 0, seed)
    return stratified(counts, learned, seed)


def _shares(config: SplitConfig) -> dict[Split, Fraction]:
    return {split: Fraction(str(getattr(config, split))) for split in SPLITS}


def _by_hash(
    counts: Mapping[str, Sequence[int]], shares: Mapping[Split, Fraction], fold: int, seed: int
) -> dict[str, Split]:
    total = sum(count[0] for count in counts.values())
    test = shares.get("test", Fraction(0))
    bounds = {  # exact: a middle that lies on a bound falls the same way everywhere
        "train": shares["train"] * total,
        "validation": (1 - test) * total,
    }
    order = sorted(counts, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    before, split_of = 0, {}
    for group in order:
        size = counts[group][0]
        middle = (before + Fraction(size, 2) + fold * test * total) % total
        before += size
        split: Split = "test"
        if middle < bounds["train"]:
            split = "train"
        elif middle < bounds["validation"]:
            split = "validation"
        split_of[group] = split
    return split_of


def _refuse_partly_given(rows: Sequence[SplitRow]) -> None:
    without = [row.location for row in rows if row.given is None]
    if without:
        raise DataError(
            "Some rows name a split and others do not",
            where=", ".join(without[:5]),
            got=f"{len(without)} of {len(rows)} rows without a split",
            expected="a split in every row, or in none",
        )


def _refuse_separated(
    rows: Iterable[SplitRow],
    copies: Copies,
    group_of: Mapping[str, str],
    listed: AbstractSet[str],
) -> None:
    """Listed groups are in one split, whatever the source gives."""
    kept = (row for row in rows if group_of[row.patient_id] not in listed)
    kept_copies = [pair for pair in copies if group_of[pair[0].patient_id] not in listed]
    separated = separated_repeats(kept, kept_copies)
    if separated:
        raise DataError(
            "The same image is in two of the source's splits",
            where="; ".join(f"{one.location} {one.detail}" for one in separated[:5]),
            got=f"{len(separated)} such rows",
            expected="rows with identical pixels, and near duplicates, in one split",
            fix="`prepare.split.conflicts: keep_test` keeps what the stricter split has; for near "
            "duplicates alone, `prepare.split.near_duplicates: ignore` accepts both",
        )


def _refuse_unmatched(held_out: Sequence[HeldOut], group_of: Mapping[str, str]) -> None:
    for one in held_out:
        if not one.elsewhere and not one.patients & group_of.keys():
            raise DataError(
                f"No row is of a patient of the list {one.name}",
                got=f"{len(one.patients)} listed patients, {len(group_of)} patients in the source",
                expected="identifiers as the source states them",
                fix="build the list from the same source, take it out of leaks.lists, or name it "
                "in leaks.elsewhere, too, where it is meant for another one",
            )


def _refuse_empty_given(splits: Sequence[Split]) -> None:
    """All rows may be tested: a set that only measures."""
    counts = Counter(splits)
    empty = [split for split in SPLITS if not counts[split]]
    if empty and set(counts) != {"test"}:
        raise DataError(
            f"The source's splits leave none for the split {empty[0]}",
            got=", ".join(f"{counts[split]} rows of {split}" for split in SPLITS),
            expected="rows of each; or all of test, in data that only measure",
            fix="give some patients that split, or give no splits and let `prepare` draw them; "
            "leaks.lists and rejected rows may have emptied it",
        )


def _refuse_empty(patients: Counter[Split], groups: int) -> None:
    empty = [split for split in SPLITS if not patients[split]]
    if empty:
        raise DataError(
            f"No patient is left for the split {empty[0]}",
            got=f"{groups} patients, counting those who share an image, or copies of it, as one",
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
