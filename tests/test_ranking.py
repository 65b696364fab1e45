"""Retrieval hits against slow loops, chance against simulation, and what must not change a hit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aga.ranking import chance, retrieval_hits, retrieval_positions
from aga.tensors import normalize

RANKS = (1, 2, 5, 40)


def naive_positions(queries: Tensor, gallery: Tensor, keys: Tensor, aware: bool) -> list[int]:
    """Walk each query's list: right items first by score, wrong ones placed before their ties."""
    scores = normalize(queries) @ normalize(gallery).T
    positions = []
    for i, row in enumerate(scores.tolist()):
        items = [
            (-score, 1 if (j == i or (aware and keys[j] == keys[i])) else 0)
            for j, score in enumerate(row)
        ]
        ordered = sorted(items)
        first_right = next(k for k, (_, right) in enumerate(ordered) if right)
        wrong_before = sum(1 for _, right in ordered[:first_right] if not right)
        positions.append(1 + wrong_before)
    return positions


def pairs(count: int, seed: int, distinct: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Corners of a cube of length 2: cosines are exact multiples of 1/2, so ties are common."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randint(0, 2, (2, count, 4), generator=generator).double() * 2 - 1
    keys = torch.randint(0, distinct, (count,), generator=generator)
    return sides[0], sides[1], keys


@given(count=st.integers(1, 12), seed=st.integers(0, 10_000), aware=st.booleans())
@settings(deadline=None, max_examples=150)
def test_positions_equal_a_walk_down_each_list(count: int, seed: int, aware: bool) -> None:
    queries, gallery, keys = pairs(count, seed)
    found = retrieval_positions(queries, gallery, keys, chunk=5, duplicate_aware=aware)
    assert found.tolist() == naive_positions(queries, gallery, keys, aware)


@given(count=st.integers(2, 12), seed=st.integers(0, 10_000), aware=st.booleans())
@settings(deadline=None, max_examples=80)
def test_the_order_of_the_pairs_does_not_matter(count: int, seed: int, aware: bool) -> None:
    queries, gallery, keys = pairs(count, seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + 1))
    whole = retrieval_positions(queries, gallery, keys, chunk=100, duplicate_aware=aware)
    mixed = retrieval_positions(
        queries[order], gallery[order], keys[order], chunk=3, duplicate_aware=aware
    )
    assert mixed.tolist() == whole[order].tolist()


@given(count=st.integers(1, 12), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=80)
def test_more_right_answers_never_lower_a_hit(count: int, seed: int) -> None:
    queries, gallery, keys = pairs(count, seed)
    exact = retrieval_positions(queries, gallery, keys, chunk=4, duplicate_aware=False)
    aware = retrieval_positions(queries, gallery, keys, chunk=4, duplicate_aware=True)
    assert (aware <= exact).all()
    alone = torch.arange(count)
    unique = retrieval_positions(queries, gallery, alone, chunk=4, duplicate_aware=True)
    assert unique.tolist() == exact.tolist()


def test_hits_are_positions_within_each_rank() -> None:
    queries, gallery, keys = pairs(30, seed=1, distinct=9)
    positions = retrieval_positions(queries, gallery, keys, chunk=7, duplicate_aware=True)
    hits = retrieval_hits(queries, gallery, keys, RANKS, chunk=7, duplicate_aware=True)
    assert hits.tolist() == [[p <= rank for rank in RANKS] for p in positions.tolist()]
    assert hits[:, -1].all(), "a rank beyond the gallery is always a hit"


def test_a_collapsed_model_retrieves_nothing() -> None:
    same = torch.ones(20, 4)
    for aware in (True, False):
        positions = retrieval_positions(
            same, same, torch.arange(20), chunk=6, duplicate_aware=aware
        )
        assert positions.tolist() == [20] * 20


@pytest.mark.parametrize("aware", [True, False])
def test_numbers_that_are_not_finite_are_never_hits(aware: bool) -> None:
    good = torch.eye(6)
    broken = good.clone()
    broken[2] = torch.nan
    keys = torch.arange(6)
    as_query = retrieval_positions(broken, good, keys, chunk=4, duplicate_aware=aware)
    assert as_query.tolist() == [1, 1, 6, 1, 1, 1]
    as_gallery = retrieval_positions(good, broken, keys, chunk=4, duplicate_aware=aware)
    assert as_gallery.tolist() == [2, 2, 6, 2, 2, 2]


def test_right_pairs_are_found_whatever_their_length() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(50, 16, generator=generator)
    lengths = torch.rand(50, 1, generator=generator) * 100 + 0.01
    keys = torch.arange(50)
    positions = retrieval_positions(
        vectors, vectors * lengths, keys, chunk=16, duplicate_aware=False
    )
    assert positions.tolist() == [1] * 50


def test_chance_equals_combinatorics() -> None:
    keys = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4])
    counts = [3, 3, 3, 2, 2, 1, 1, 1]
    for rank in range(1, 9):
        expected = sum(1 - math.comb(8 - m, rank) / math.comb(8, rank) for m in counts) / 8
        assert chance(keys, [rank], duplicate_aware=True)[0] == pytest.approx(expected, abs=1e-12)
        assert chance(keys, [rank], duplicate_aware=False)[0] == pytest.approx(rank / 8, abs=1e-12)
    assert chance(keys, [9, 1000], duplicate_aware=True) == [1.0, 1.0]


def test_chance_equals_random_retrieval() -> None:
    generator = torch.Generator().manual_seed(3)
    keys = torch.randint(0, 12, (40,), generator=generator)
    ranks = (1, 5, 10)
    total = torch.zeros(len(ranks), dtype=torch.float64)
    repeats = 300
    for _ in range(repeats):
        queries, gallery = torch.randn(2, 40, 8, generator=generator)
        hits = retrieval_hits(queries, gallery, keys, ranks, chunk=64, duplicate_aware=True)
        total += hits.double().mean(0)
    expected = chance(keys, ranks, duplicate_aware=True)
    # 12,000 draws, correlated within a gallery: four standard errors are below 0.025.
    assert (total / repeats).tolist() == pytest.approx(expected, abs=0.025)


def test_chance_keeps_its_digits_in_a_large_gallery() -> None:
    keys = torch.arange(200_000)
    assert chance(keys, [10], duplicate_aware=True)[0] == pytest.approx(10 / 200_000, rel=1e-4)
