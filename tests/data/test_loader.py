"""Which rows a step takes, and what the batches hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.studies import phantom_rows, write_studies
from hypothesis import given, settings
from hypothesis import strategies as st

from aga.data.loader import (
    EpochBatches,
    PairDataset,
    epoch_order,
    rank_slice,
    training_transform,
)
from aga.data.sampling import SamplingConfig
from aga.data.studies import StudyDataset
from aga.data.tokenizing.tokens import TokenDataset, TokenizerConfig, tokenize
from aga.data.transforms import AugmentationConfig, augment
from aga.errors import DataError
from aga.pairs import PairBatch

AUGMENTATION = AugmentationConfig(
    rotation=5.0, translation=0.04, scale=0.05, brightness=0.1, contrast=0.1, noise=0.02
)
EVERYTHING = SamplingConfig(views="all", sentences=None)
TOKENIZER = TokenizerConfig(
    path=None, vocabulary=120, lowercase=True, min_patients=1, max_tokens=30
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_studies(folder / "studies", phantom_rows(60))
    tokenize(folder / "studies", folder / "tokens", TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def studies(folder: Path) -> StudyDataset:
    return StudyDataset.open(folder / "studies")


@pytest.fixture(scope="module")
def tokens(folder: Path, studies: StudyDataset) -> TokenDataset:
    return TokenDataset.open(folder / "tokens", studies)


@pytest.fixture(scope="module")
def train(studies: StudyDataset, tokens: TokenDataset, folder: Path) -> PairDataset:
    return PairDataset(studies, tokens, "train", folder / "cache")


@pytest.fixture(scope="module")
def held_out(studies: StudyDataset, tokens: TokenDataset, folder: Path) -> PairDataset:
    return PairDataset(studies, tokens, "test", folder / "cache")


def run(
    dataset: PairDataset,
    workers: int = 0,
    sampling: SamplingConfig = EVERYTHING,
    **changes: object,
) -> Iterator[PairBatch]:
    settings = {
        "epoch": 0,
        "seed": 0,
        "batch_size": 8,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "train": True,
    }
    return EpochBatches(dataset, AUGMENTATION, sampling, workers).batches(**settings | changes)


def rows_of(batches: Iterator[PairBatch]) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


def assert_equal(one: PairBatch, other: PairBatch) -> None:
    for name, value in vars(one).items():
        assert torch.equal(value, getattr(other, name)), name


# --- what a batch holds


def test_a_batch_holds_the_named_rows_in_the_named_order(
    train: PairDataset, studies: StudyDataset, tokens: TokenDataset, folder: Path
) -> None:
    rows = np.array([12, 3, 33])
    batch = train.batch(rows)
    assert batch.rows.tolist() == rows.tolist()
    pixels = torch.from_numpy(studies.images(folder / "cache")[rows])
    assert torch.equal(batch.images, train.transform(pixels))
    for index, row in enumerate(rows):
        length = len(tokens.token_ids(row))
        assert batch.token_ids[index, :length].tolist() == tokens.token_ids(row).tolist()
        assert (batch.token_ids[index, length:] == tokens.tokenizer.pad_token_id).all()
        assert batch.attention_mask[index].sum() == length
        assert batch.content_mask[index, :length].tolist() == tokens.content(row).tolist()
        assert batch.sentences[index, :length].tolist() == tokens.sentences(row).tolist()
    assert ((batch.sentences >= 0) == batch.content_mask).all()
    assert batch.sentences.amax() > 0


def test_content_is_all_but_the_special_tokens(train: PairDataset) -> None:
    batch = train.batch(train.rows)
    tokenizer = train.tokens.tokenizer
    special = torch.tensor([tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id])
    assert torch.equal(batch.content_mask, ~torch.isin(batch.token_ids, special))


def test_reports_are_padded_to_a_multiple_of_eight_but_never_beyond_max_tokens(
    train: PairDataset, tokens: TokenDataset
) -> None:
    lengths = {row: len(tokens.token_ids(row)) for row in train.rows}
    shortest = min(lengths, key=lengths.__getitem__)
    assert train.batch(np.array([shortest])).token_ids.shape[1] == -(-lengths[shortest] // 8) * 8
    assert max(lengths.values()) > 24
    assert train.batch(train.rows).token_ids.shape[1] == TOKENIZER.max_tokens


def test_every_split_is_normalised_by_the_training_pixels(
    train: PairDataset, held_out: PairDataset, studies: StudyDataset
) -> None:
    assert held_out.transform == train.transform
    pixels = train.batch(train.rows).images
    assert abs(float(pixels.mean())) < 1e-5
    assert float(pixels.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert (train.transform.mode, train.transform.fit) == ("grey", "pad")


def test_rgb_images(tmp_path: Path) -> None:
    studies = write_studies(tmp_path / "studies", phantom_rows(10), mode="rgb")
    transform = training_transform(studies, studies.images(tmp_path / "cache"))
    assert (transform.mode, transform.channels, len(transform.mean)) == ("rgb", 3, 3)


def test_statement_keys_join_what_says_the_same(tmp_path: Path) -> None:
    texts = ["Small nodule.", "small NODULE.", "A tiny nodule.", "A nodule.", "A nodule."]
    statements = [None, None, "small nodule.", "x", "small nodule."]
    rows = [
        {"text": text, "split": "train", "statement": statement}
        for text, statement in zip(texts, statements, strict=True)
    ]
    keys = write_studies(tmp_path / "studies", rows).statement_keys()
    assert keys[0] == keys[1]
    assert keys[2] == keys[4]
    assert len(set(keys)) == 3


def test_statements_are_those_of_the_split(held_out: PairDataset, studies: StudyDataset) -> None:
    every = studies.statement_keys()
    said = [every[row] for row in held_out.rows]
    same = held_out.statements[:, None] == held_out.statements
    assert same.tolist() == [[a == b for a in said] for b in said]


# --- which rows a step takes


@given(
    count=st.integers(1, 80),
    batch_size=st.integers(1, 20),
    world_size=st.integers(1, 6),
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 1000),
)
def test_ranks_share_each_global_batch_and_no_row_comes_twice(
    count: int, batch_size: int, world_size: int, seed: int, epoch: int
) -> None:
    rows = np.arange(100, 100 + count)
    order = epoch_order(rows, seed, epoch)
    seen: list[int] = []
    for step in range(-(-count // batch_size)):
        shares = [rank_slice(order, step, batch_size, r, world_size) for r in range(world_size)]
        union = np.concatenate(shares).tolist()
        assert union == order[step * batch_size : (step + 1) * batch_size].tolist()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        seen += union
    assert sorted(seen) == rows.tolist()


def test_order_is_a_function_of_seed_and_epoch() -> None:
    rows = np.arange(50)
    orders = [tuple(epoch_order(rows, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert orders[4] == tuple(epoch_order(rows, 1, 1))


@settings(deadline=None, max_examples=15)
@given(
    per_rank=st.integers(1, 4),
    world_size=st.sampled_from([1, 2, 3, 4]),
    epoch=st.integers(0, 50),
    seed=st.integers(0, 2**31 - 1),
)
def test_processes_together_see_the_batches_of_one(
    train: PairDataset, per_rank: int, world_size: int, epoch: int, seed: int
) -> None:
    common = {"batch_size": per_rank * world_size, "epoch": epoch, "seed": seed}
    alone = list(run(train, **common))
    ranks = [list(run(train, rank=r, world_size=world_size, **common)) for r in range(world_size)]
    assert len(alone) == len(train) // common["batch_size"]
    for step, whole in enumerate(alone):
        parts = [batches[step] for batches in ranks]
        assert torch.equal(torch.cat([part.rows for part in parts]), whole.rows)
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


@settings(deadline=None, max_examples=15)
@given(start_step=st.integers(0, 6), workers=st.sampled_from([0, 1, 3]), epoch=st.integers(0, 9))
def test_resuming_at_a_step_equals_the_tail(
    train: PairDataset, start_step: int, workers: int, epoch: int
) -> None:
    whole = list(run(train, epoch=epoch))
    tail = list(run(train, workers, epoch=epoch, start_step=start_step))
    assert len(tail) == max(len(whole) - start_step, 0)
    for one, other in zip(tail, whole[start_step:], strict=True):
        assert_equal(one, other)


def test_an_epoch_that_other_numbers_of_processes_go_on_with_shows_each_row_once(
    train: PairDataset,
) -> None:
    whole = [row for rows in rows_of(run(train, batch_size=4)) for row in rows]
    seen: list[int] = []
    for step in range(len(whole) // 4):
        world_size = (1, 2, 4)[step % 3]
        for rank in range(world_size):
            share = run(train, batch_size=4, start_step=step, rank=rank, world_size=world_size)
            seen += rows_of([next(share)])[0]
    assert seen == whole
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("workers", [1, 2, 5, 20])
def test_background_threads_change_nothing(train: PairDataset, workers: int) -> None:
    expected = list(run(train, 0))
    assert len(expected) == 5
    for one, other in zip(run(train, workers), expected, strict=True):
        assert_equal(one, other)


def test_training_augments_and_evaluation_does_not(train: PairDataset) -> None:
    batch = next(run(train))
    plain = train.batch(batch.rows.numpy())
    assert torch.equal(batch.images, augment(plain.images, batch.rows, 0, 0, AUGMENTATION))
    assert not torch.equal(batch.images, plain.images)
    assert torch.equal(batch.token_ids, plain.token_ids)
    evaluated = next(run(train, train=False))
    assert_equal(evaluated, train.batch(evaluated.rows.numpy()))


def test_training_drops_the_incomplete_batch_and_evaluation_keeps_it(
    train: PairDataset, held_out: PairDataset
) -> None:
    batches = EpochBatches(train, AUGMENTATION, EVERYTHING, 0)
    assert len(train) == 42
    assert (batches.steps_per_epoch(8, True), batches.steps_per_epoch(8, False)) == (5, 6)
    assert (batches.steps_per_epoch(42, True), batches.steps_per_epoch(42, False)) == (1, 1)
    evaluated = run(held_out, train=False, batch_size=5)
    assert torch.cat([batch.rows for batch in evaluated]).tolist() == held_out.rows.tolist()
    assert len(rows_of(run(held_out, train=False, batch_size=100))) == 1


def test_evaluation_by_several_processes_misses_no_row(held_out: PairDataset) -> None:
    seen = [
        row
        for rank in range(5)
        for rows in rows_of(run(held_out, train=False, batch_size=9, rank=rank, world_size=5))
        for row in rows
    ]
    assert len(held_out) == 12
    assert sorted(seen) == held_out.rows.tolist()


# --- threads


class CountedPairs(PairDataset):
    """A dataset that counts the batches it was asked for."""

    calls = 0

    def batch(self, rows: np.ndarray, shown: None = None) -> PairBatch:
        self.calls += 1
        return super().batch(rows, shown)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_threads_prepare_the_next_batches_while_the_consumer_computes(
    studies: StudyDataset, tokens: TokenDataset, folder: Path, workers: int
) -> None:
    dataset = CountedPairs(studies, tokens, "train", folder / "cache")
    batches = run(dataset, workers)
    for taken in (1, 2):
        next(batches)
        deadline = time.monotonic() + 30
        while dataset.calls < taken + workers and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert dataset.calls == taken + workers, "that many ahead, and no more"
    batches.close()


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_stopping_early_leaves_no_thread(train: PairDataset) -> None:
    batches = run(train, 3)
    next(batches)
    assert loader_threads()
    batches.close()
    assert not loader_threads()


class BrokenPairs(PairDataset):
    """A dataset that fails on its third batch."""

    calls = 0

    def batch(self, rows: np.ndarray, shown: None = None) -> PairBatch:
        self.calls += 1
        if self.calls == 3:
            raise DataError("The disk went away")
        return super().batch(rows, shown)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_thread_reaches_the_consumer(
    studies: StudyDataset, tokens: TokenDataset, folder: Path, workers: int
) -> None:
    batches = run(BrokenPairs(studies, tokens, "train", folder / "cache"), workers)
    next(batches)
    next(batches)
    with pytest.raises(DataError, match="went away"):
        next(batches)
    assert not loader_threads()


# --- what is refused


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    studies = write_studies(tmp_path / "studies", [{"text": "lung", "split": "train"}] * 3)
    tokenize(studies.folder, tmp_path / "tokens", TOKENIZER)
    tokens = TokenDataset.open(tmp_path / "tokens", studies)
    with pytest.raises(DataError, match="validation split is empty"):
        PairDataset(studies, tokens, "validation", tmp_path / "cache")


def test_a_split_smaller_than_the_batch_is_refused_before_the_first_step(
    train: PairDataset,
) -> None:
    with pytest.raises(DataError, match=r"(?s)training\.batch_size.*got: +43.*at most 42"):
        run(train, batch_size=43)


def test_a_batch_that_processes_cannot_share_is_refused(train: PairDataset) -> None:
    with pytest.raises(DataError, match=r"(?s)training\.batch_size.*cluster\.workers, 3"):
        run(train, batch_size=8, world_size=3)


def test_orders_of_neighbouring_epochs_are_unrelated() -> None:
    rows = np.arange(1000)
    orders = [epoch_order(rows, 0, epoch) for epoch in range(5)]
    for one, other in pairwise(orders):
        assert (one == other).mean() < 0.01


# --- views and sentences of an epoch


@pytest.fixture(scope="module")
def with_views(tmp_path_factory: pytest.TempPathFactory) -> PairDataset:
    """24 training studies of one to three images; reports of four sentences or fewer."""
    folder = tmp_path_factory.mktemp("views")
    rows = [row | {"split": "train"} for row in phantom_rows(24) for _ in range(3)]
    studies = [f"s{number // 3}" for number in range(72)]
    kept = [number for number in range(72) if number % 3 <= number // 3 % 3]
    rows = [rows[number] | {"study_id": studies[number]} for number in kept]
    write_studies(folder / "studies", rows)
    tokenize(folder / "studies", folder / "tokens", TOKENIZER)
    dataset = StudyDataset.open(folder / "studies")
    tokens = TokenDataset.open(folder / "tokens", dataset)
    return PairDataset(dataset, tokens, "train", folder / "cache")


SAMPLED = SamplingConfig(views="one_per_study", sentences=2)


def test_an_epoch_shows_one_view_of_each_study_and_other_epochs_others(
    with_views: PairDataset,
) -> None:
    assert (len(with_views), with_views.study_count) == (48, 24)
    steps = EpochBatches(with_views, AUGMENTATION, SAMPLED, 0).steps_per_epoch
    assert (steps(8, True), steps(8, False)) == (3, 6)
    epochs = []
    for epoch in range(24):
        rows = np.concatenate(rows_of(run(with_views, sampling=SAMPLED, epoch=epoch)))
        assert sorted(with_views.studies[rows]) == sorted(set(with_views.studies))
        epochs.append(set(rows.tolist()))
    assert set().union(*epochs) == set(range(48)), "each view has its turn"


def test_sampled_reports_hold_whole_sentences_of_theirs(with_views: PairDataset) -> None:
    tokens = with_views.tokens
    drawn: dict[int, set[tuple[int, ...]]] = {}
    for epoch in range(6):
        for batch in run(with_views, sampling=SAMPLED, epoch=epoch):
            for index, row in enumerate(batch.rows.tolist()):
                length = int(batch.attention_mask[index].sum())
                ids, sentences = tokens.token_ids(row), tokens.sentences(row)
                shown = np.isin(sentences, [-1, *batch.sentences[index, :length].tolist()])
                assert batch.token_ids[index, :length].tolist() == ids[shown].tolist()
                numbers = set(batch.sentences[index].tolist()) - {-1}
                assert len(numbers) == min(2, len(set(sentences.tolist()) - {-1}))
                study = int(with_views.studies[row])
                drawn.setdefault(study, set()).add((epoch, *sorted(numbers)))
            assert batch.token_ids.shape[1] % 8 == 0 or batch.token_ids.shape[1] == 30
    assert all(len(choices) == 6 for choices in drawn.values()), "one choice per study and epoch"
    long = drawn[max(drawn, key=lambda study: len({c[1:] for c in drawn[study]}))]
    assert len({choice[1:] for choice in long}) > 1, "another one in another epoch"


@pytest.mark.parametrize("workers", [0, 3])
def test_sampled_epochs_resume_at_a_step_and_are_shared_by_processes(
    with_views: PairDataset, workers: int
) -> None:
    whole = list(run(with_views, sampling=SAMPLED, epoch=2))
    tail = list(run(with_views, workers, SAMPLED, epoch=2, start_step=1))
    for one, other in zip(tail, whole[1:], strict=True):
        assert_equal(one, other)
    ranks = [
        list(run(with_views, sampling=SAMPLED, epoch=2, rank=rank, world_size=2))
        for rank in range(2)
    ]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([one[step].rows for one in ranks]), batch.rows)
        assert torch.equal(torch.cat([one[step].images for one in ranks]), batch.images)
        lengths = torch.cat([one[step].attention_mask.sum(1) for one in ranks])
        assert torch.equal(lengths, batch.attention_mask.sum(1))


def test_evaluation_shows_every_view_and_sentence(with_views: PairDataset) -> None:
    sampled = run(with_views, sampling=SAMPLED, train=False)
    for one, other in zip(sampled, run(with_views, train=False), strict=True):
        assert_equal(one, other)


def test_a_batch_larger_than_the_studies_is_refused(with_views: PairDataset) -> None:
    with pytest.raises(DataError, match=r"(?s)got: +25.*at most 24, one pair per study"):
        run(with_views, sampling=SAMPLED, batch_size=25)
