"""Draws of views and sentences: functions of (seed, epoch, study), fair, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aga.data.sampling import SamplingConfig, one_per_study, shown_tokens, study_numbers

SEEDS, EPOCHS = st.integers(0, 2**31 - 1), st.integers(0, 1000)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), SEEDS, EPOCHS)
def test_each_study_is_shown_once_by_one_of_its_rows(
    names: list[int], seed: int, epoch: int
) -> None:
    rows = 100 + 3 * np.arange(len(names))
    studies = study_numbers([str(name) for name in names])
    chosen = one_per_study(rows, studies, seed, epoch)
    assert chosen.tolist() == sorted(set(chosen.tolist()) & set(rows.tolist()))
    shown = [names[(row - 100) // 3] for row in chosen.tolist()]
    assert sorted(shown) == sorted(set(names))


@given(SEEDS, EPOCHS)
def test_a_draw_does_not_depend_on_the_other_studies(seed: int, epoch: int) -> None:
    studies = study_numbers(list("aabbbccccdd"))
    rows = np.arange(11)
    every = set(one_per_study(rows, studies, seed, epoch).tolist())
    without = rows[studies != 2]
    assert set(one_per_study(without, studies[without], seed, epoch).tolist()) == {
        row for row in every if studies[row] != 2
    }


def test_views_are_drawn_evenly_and_anew_in_each_epoch() -> None:
    studies = study_numbers(["a"] * 3 + ["b"] * 2)
    draws = [one_per_study(np.arange(5), studies, 1, epoch).tolist() for epoch in range(600)]
    counts = np.bincount(np.ravel(draws), minlength=5)
    np.testing.assert_allclose(counts, [200, 200, 200, 300, 300], atol=60)
    pairs = {tuple(draw) for draw in draws}
    assert len(pairs) == 6, "two studies draw independently"


REPORTS = st.lists(st.integers(0, 6), min_size=1, max_size=30).map(
    lambda numbers: np.array([-1, *sorted(numbers), -1])
)


@given(REPORTS, st.integers(1, 8), st.integers(0, 10**6), SEEDS, EPOCHS)
def test_shown_are_whole_sentences_and_all_special_tokens(
    sentences: np.ndarray, at_most: int, study: int, seed: int, epoch: int
) -> None:
    shown = shown_tokens(sentences, at_most, study, seed, epoch)
    assert shown[sentences == -1].all()
    kept = set(sentences[shown].tolist()) - {-1}
    there = set(sentences.tolist()) - {-1}
    assert len(kept) == min(at_most, len(there))
    assert shown.tolist() == [number == -1 or number in kept for number in sentences.tolist()]
    again = shown_tokens(sentences, at_most, study, seed, epoch)
    assert shown.tolist() == again.tolist()


def test_sentences_are_drawn_evenly() -> None:
    sentences = np.array([-1, 0, 1, 2, 3, -1])
    drawn = sum(shown_tokens(sentences, 2, 5, 0, epoch).astype(int) for epoch in range(800))
    np.testing.assert_allclose(drawn, [800, 400, 400, 400, 400, 800], atol=80)
    by_study = {tuple(shown_tokens(sentences, 2, study, 0, 0)) for study in range(60)}
    assert len(by_study) == 6


def test_no_sentence_at_all_is_no_setting() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        SamplingConfig.model_validate({"views": "all", "sentences": 0})
