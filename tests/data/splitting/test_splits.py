"""No patient and no image in two splits, whatever the data."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from aga.data.schema import SPLITS, Split
from aga.data.splitting.patients import HeldOut, SplitRow, patient_groups
from aga.data.splitting.splits import SplitConfig, assign_splits, sample_rows
from aga.errors import DataError

DEFAULTS = {"train": 0.7, "validation": 0.1, "test": 0.2, "fold": 0}
DEFAULTS |= {"stratify": None, "conflicts": "refuse", "near_duplicates": "link"}


def shares(**changes: object) -> SplitConfig:
    return SplitConfig.model_validate(DEFAULTS | changes)


SHARES = shares()


def row(
    patient: object, pixels: object, given: Split | None = None, labels: tuple[str, ...] = ()
) -> SplitRow:
    return SplitRow(str(patient), str(pixels), f"table.csv:{patient}", given, labels=labels)


rows_strategy = st.lists(
    st.builds(row, st.integers(0, 40), st.integers(0, 60)), min_size=20, max_size=120
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
    try:
        splits = assign_splits(rows, [], SHARES, seed)
    except DataError:
        assume(False)
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


@pytest.mark.parametrize("missing", SPLITS)
def test_given_splits_that_leave_one_empty_are_an_error(missing: Split) -> None:
    """But for validation, which is drawn from enough training patients."""
    rows = [row(n, n, split) for n, split in enumerate(SPLITS) if split != missing]
    with pytest.raises(DataError, match=rf"(?s)none for the split {missing}.*0 rows of {missing}"):
        assign_splits(rows, [], SHARES, 0)
    alone = [one for one in rows if one.given == "test"]
    if alone:
        assert assign_splits(alone, [], SHARES, 0) == ["test"], "data that only measure"


def test_lists_that_empty_a_given_split_are_an_error() -> None:
    rows = [row(n, n, SPLITS[n % 3]) for n in range(3)]
    with pytest.raises(DataError, match=r"(?s)none for the split validation.*leaks.lists"):
        assign_splits(rows, [], SHARES, 0, held_out=[HeldOut("mine", frozenset({"1"}))])


def test_too_few_patients_are_an_error() -> None:
    with pytest.raises(DataError, match="No patient is left"):
        assign_splits([row("only", number) for number in range(50)], [], SHARES, 0)


@pytest.mark.parametrize("folds", [2, 4, 5])
def test_the_folds_test_every_patient_once(folds: int) -> None:
    rows = [row(number // 2, number) for number in range(200)]
    tested = Counter[str]()
    for fold in range(folds):
        test = 1 / folds
        config = shares(train=0.9 - test, test=test, fold=fold)
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
        shares(fold=5)


def test_shares_sum_to_one() -> None:
    with pytest.raises(ValidationError, match="not 1"):
        shares(test=0.1)


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


def test_near_duplicates_link_their_patients() -> None:
    rows = [row(number, number) for number in range(100)]
    copies = [(rows[number], rows[number + 1]) for number in range(0, 100, 2)]
    splits = assign_splits(rows, [], SHARES, 0, copies)
    assert all(splits[number] == splits[number + 1] for number in range(0, 100, 2))
    assert splits != assign_splits(rows, [], SHARES, 0)


def test_given_splits_that_separate_near_duplicates_are_an_error() -> None:
    rows = [row(1, "x", "train"), row(2, "y", "test"), row(3, "z", "validation")]
    copies = [(rows[0], rows[1])]
    with pytest.raises(DataError, match=r"(?s)table.csv:2 in test; a near.*ble.csv:1, .*ignore"):
        assign_splits(rows, [], SHARES, 0, copies)
    assert assign_splits(rows, [], SHARES, 0) == ["train", "test", "validation"]


def test_listed_patients_and_who_is_linked_to_them_are_all_that_is_tested() -> None:
    rows = [row(number // 2, number) for number in range(200)]
    copies = [(rows[0], rows[50])]  # patients 0 and 25
    splits = assign_splits(
        rows, [], SHARES, 0, copies, held_out=[HeldOut("mine", frozenset({"0", "7"}))]
    )
    tested = {row.patient_id for row, split in zip(rows, splits, strict=True) if split == "test"}
    assert tested == {"0", "7", "25"}
    assert abs(splits.count("validation") - 194 / 8) <= 2


def test_listed_patients_are_tested_whatever_the_source_gives() -> None:
    rows = [row(n, n, SPLITS[n % 3]) for n in range(9)]
    splits = assign_splits(
        rows, [], SHARES, 0, held_out=[HeldOut("mine", frozenset({"0", "elsewhere"}))]
    )
    assert splits == ["test", *(SPLITS[n % 3] for n in range(1, 9))]


def test_a_list_that_names_nobody_is_an_error() -> None:
    rows = [row(number, number) for number in range(20)]
    lists = [HeldOut("one.json", frozenset({"3"})), HeldOut("two.json", frozenset({"p00001"}))]
    with pytest.raises(DataError, match=r"(?s)No row is of .* list two.json.*1 listed.*20 pat"):
        assign_splits(rows, [], SHARES, 0, held_out=lists)
    lists[1] = replace(lists[1], elsewhere=True)
    assert assign_splits(rows, [], SHARES, 0, held_out=lists).count("test") == 1


LABELS = ("rare", "common", "usual")


def labelled(seed: int) -> list[SplitRow]:
    """500 rows of some 240 patients, with labels by chance."""
    generator = random.Random(seed)
    frequency = dict(zip(LABELS, (0.05, 0.3, 0.6), strict=True))
    return [
        row(
            generator.randrange(300),
            number,
            labels=tuple(name for name in LABELS if generator.random() < frequency[name]),
        )
        for number in range(500)
    ]


@given(st.integers(0, 10_000), st.integers(0, 3))
@settings(max_examples=20)
def test_stratified_splits_keep_the_labels_shares(data: int, seed: int) -> None:
    rows = labelled(data)
    config = shares(stratify=list(LABELS))
    splits = assign_splits(rows, [], config, seed)
    assert abs(splits.count("test") - 100) <= 10
    for label in LABELS:
        has = [split for one, split in zip(rows, splits, strict=True) if label in one.labels]
        for split, share in {"train": 0.7, "validation": 0.1, "test": 0.2}.items():
            # Whole patients are dealt, so that one in four hundred draws is off by three rows.
            assert abs(has.count(split) - share * len(has)) <= 4, (label, split)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    again = assign_splits([rows[place] for place in order], [], config, seed)
    assert again == [splits[place] for place in order]


def test_rare_labels_need_stratifying() -> None:
    rows = [row(number, number, labels=("rare",) if number < 10 else ()) for number in range(200)]

    def tested(config: SplitConfig, seed: int) -> int:
        splits = assign_splits(rows, [], config, seed)
        return splits[:10].count("test")

    assert {tested(shares(stratify=["rare"]), seed) for seed in range(10)} == {2}
    assert len({tested(SHARES, seed) for seed in range(10)}) > 2


@pytest.mark.parametrize("folds", [2, 4, 5])
def test_stratified_folds_test_every_patient_once(folds: int) -> None:
    rows = [row(n // 2, n, labels=("rare",) if n % 20 < 2 else ()) for n in range(400)]
    tested = Counter[str]()
    for fold in range(folds):
        config = shares(train=0.9 - 1 / folds, test=1 / folds, fold=fold, stratify=["rare"])
        splits = assign_splits(rows, [], config, 0)
        places = [place for place, split in enumerate(splits) if split == "test"]
        assert abs(sum("rare" in rows[place].labels for place in places) - 40 / folds) <= 2
        tested.update({rows[place].patient_id for place in places})
    assert set(tested.values()) == {1} and len(tested) == 200


def test_a_label_that_no_row_has_is_an_error() -> None:
    rows = [row(number, number, labels=("effusion",)) for number in range(20)]
    with pytest.raises(DataError, match=r"(?s)label efusion.*prepare.split.stratify.*effusion"):
        assign_splits(rows, [], shares(stratify=["efusion"]), 0)
