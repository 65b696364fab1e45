"""No patient and no image in two splits, whatever the data."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from aga.data.schema import SPLITS, Split
from aga.data.splits import SplitConfig, SplitRow, assign_splits, patient_groups, sample_rows
from aga.errors import DataError

SHARES = SplitConfig(train=0.7, validation=0.1, test=0.2, fold=0)


def row(patient: object, pixels: object, given: Split | None = None) -> SplitRow:
    return SplitRow(str(patient), str(pixels), f"table.csv:{patient}", given)


rows_strategy = st.lists(
    st.builds(row, st.integers(0, 40), st.integers(0, 60)), min_size=1, max_size=120
)


@given(rows_strategy, st.integers(0, 5))
def test_nothing_is_in_two_splits(rows: list[SplitRow], seed: int) -> None:
    try:
        splits = assign_splits(rows, [], SHARES, seed)
    except DataError:
        assume(False)
    for identity in ("patient_id", "pixel_sha256"):
        found: dict[str, set[str]] = {}
        for one, split in zip(rows, splits, strict=True):
            found.setdefault(getattr(one, identity), set()).add(split)
        assert all(len(these) == 1 for these in found.values())


@given(rows_strategy, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows: list[SplitRow], order: random.Random) -> None:
    try:
        splits = dict(zip(map(id, rows), assign_splits(rows, [], SHARES, 0), strict=True))
    except DataError:
        assume(False)
    shuffled = rows.copy()
    order.shuffle(shuffled)
    again = dict(zip(map(id, shuffled), assign_splits(shuffled, [], SHARES, 0), strict=True))
    assert splits == again


def test_shares_are_met_to_a_patient() -> None:
    rows = [row(number // 2, number) for number in range(2000)]
    splits = assign_splits(rows, [], SHARES, 3)
    counts = Counter(splits)
    assert abs(counts["train"] - 1400) <= 2
    assert abs(counts["validation"] - 200) <= 2
    assert abs(counts["test"] - 400) <= 2
    assert splits != assign_splits(rows, [], SHARES, 4)


def test_patients_who_share_an_image_are_one() -> None:
    rows = [row("a", 1), row("b", 1), row("b", 2), row("c", 2), row("d", 3)]
    assert patient_groups(rows) == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_an_unused_repeat_still_links_its_patient() -> None:
    rows = [row(number, number) for number in range(100)]
    repeats = [row(number, number + 1) for number in range(0, 100, 2)]
    splits = assign_splits(rows, repeats, SHARES, 0)
    assert all(splits[number] == splits[number + 1] for number in range(0, 100, 2))


def test_given_splits_are_kept() -> None:
    rows = [row(n, n, SPLITS[n % 3]) for n in range(9)]
    assert assign_splits(rows, [], SHARES, 0) == [SPLITS[n % 3] for n in range(9)]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 90)), min_size=1), st.integers(0, 5))
def test_validation_is_drawn_from_the_training_patients_where_none_is_given(
    owned: list[tuple[int, int]], seed: int
) -> None:
    """Patients and images of odd numbers are the official test split."""
    rows = [row(2 * p, 2 * i, "train") for p, i in owned] + [row(1, 1, "test"), row(3, 3, "test")]
    splits = assign_splits(rows, [], SHARES, seed)
    placed = list(zip(rows, splits, strict=True))
    assert all((one.given == "test") == (split == "test") for one, split in placed)
    for identity in ("patient_id", "pixel_sha256"):
        found: dict[str, set[str]] = {}
        for one, split in placed:
            found.setdefault(getattr(one, identity), set()).add(split)
        assert all(len(these) == 1 for these in found.values())


def test_the_drawn_validation_has_its_share_of_the_official_training_split() -> None:
    rows = [row(n // 2, n, "train" if n < 1600 else "test") for n in range(2000)]
    splits = assign_splits(rows, [], SHARES, 0)
    assert abs(splits.count("validation") - 200) <= 2, "0.1 / (0.7 + 0.1) of 1600"
    assert splits.count("test") == 400
    assert splits != assign_splits(rows, [], SHARES, 1)


def test_given_splits_that_separate_an_image_are_an_error() -> None:
    rows = [row(1, "x", "train"), row(2, "y", "test"), row(3, "x", "test")]
    with pytest.raises(DataError, match=r"(?s)same image.*table.csv:3 .*table.csv:1 "):
        assign_splits(rows, [], SHARES, 0)
    with pytest.raises(DataError, match="same image"):
        assign_splits(rows[:2], rows[2:], SHARES, 0)


def test_splits_given_for_some_rows_only_are_an_error() -> None:
    with pytest.raises(DataError, match=r"(?s)Some rows.*table.csv:2.*1 of 2"):
        assign_splits([row(1, 1, "train"), row(2, 2)], [], SHARES, 0)


def test_too_few_patients_are_an_error() -> None:
    with pytest.raises(DataError, match="No patient is left"):
        assign_splits([row("only", number) for number in range(50)], [], SHARES, 0)


@pytest.mark.parametrize("folds", [2, 4, 5])
def test_the_folds_test_every_patient_once(folds: int) -> None:
    rows = [row(number // 2, number) for number in range(200)]
    tested = Counter[str]()
    for fold in range(folds):
        test = 1 / folds
        config = SplitConfig(train=0.9 - test, validation=0.1, test=test, fold=fold)
        splits = assign_splits(rows, [], config, 0)
        assert abs(splits.count("test") - 200 / folds) <= 2
        placed = [
            (row.patient_id, split == "test") for row, split in zip(rows, splits, strict=True)
        ]
        chosen = {patient for patient, test in placed if test}
        assert not chosen & {patient for patient, test in placed if not test}
        tested.update(chosen)
    assert set(tested.values()) == {1} and len(tested) == 100


def test_a_fold_past_the_end_is_an_error() -> None:
    with pytest.raises(ValidationError, match="past the end"):
        SplitConfig(train=0.7, validation=0.1, test=0.2, fold=5)


def test_shares_sum_to_one() -> None:
    with pytest.raises(ValidationError, match="not 1"):
        SplitConfig(train=0.7, validation=0.1, test=0.1, fold=0)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_sample_grows_by_whole_patients(seed: int) -> None:
    patients = [f"p{number // 3}" for number in range(60)]
    samples = [sample_rows(patients, count, seed) for count in range(61)]
    for count, (smaller, larger) in enumerate(pairwise(samples)):
        assert len(smaller) == count
        assert set(smaller) < set(larger)
        assert larger == sorted(larger)
        taken = Counter(patients[row] for row in larger)
        assert sum(0 < size < 3 for size in taken.values()) <= 1
    assert samples[-1] == list(range(60))


def test_a_sample_is_drawn_by_its_seed() -> None:
    patients = [f"p{number}" for number in range(100)]
    assert sample_rows(patients, 20, 1) == sample_rows(patients, 20, 1)
    assert sample_rows(patients, 20, 1) != sample_rows(patients, 20, 2)
