"""BCGA: the residual path's shortcut is what docs/method.md says."""

from __future__ import annotations

import math

import pytest
import torch
from builders import embeddings, objective, settings

from aga.objectives.bidirectional import CrossAttention

WORDS, PLACES = 24, 49


def test_weights_are_shares_averaged_over_heads() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(6, heads=2, inner=4)
    keep = torch.tensor([[True, False, True], [False] * 3])
    weights = attention.weights(torch.randn(2, 4, 6), torch.randn(2, 3, 6), keep)
    torch.testing.assert_close(weights.sum(-1), torch.tensor([[1.0] * 4, [0.0] * 4]))
    assert weights.transpose(1, 2)[~keep].eq(0).all()


def _starts(form: str) -> tuple[float, float]:
    """The term of untrained alignment, on pairs that match and on pairs that do not."""
    values = settings(
        bcga__form=form, bcga__heads=4, bcga__width=64, bcga__temperature=0.1, weights__bcga=1.0
    )
    module = objective(values, width=64, moved=False)
    pairs = embeddings([WORDS] * 8, patches=PLACES, width=64, padded=WORDS)
    matched = module(pairs).terms["bcga"].item()
    return matched, matched - module.image_dependence(pairs)["bcga/image_dependence"].item()


def test_the_residual_path_alone_solves_most_of_bcga_with_any_image() -> None:
    chance = (math.log(WORDS) + math.log(PLACES)) / 2
    matched, mismatched = _starts("residual")
    assert matched < 0.3 * chance
    assert abs(matched - mismatched) < 0.05 * chance


def test_without_it_untrained_attention_is_at_chance() -> None:
    chance = (math.log(WORDS) + math.log(PLACES)) / 2
    assert _starts("plain") == pytest.approx((chance, chance), rel=0.02)
