"""Masked reductions equal plain ones on what is kept, and stay finite where nothing is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from aga.tensors import masked_logsumexp, masked_mean, masked_softmax, normalize

few = settings(max_examples=30, deadline=None)


@few
@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 1000), st.booleans())
def test_reductions_see_only_what_is_kept(kept: int, dropped: int, seed: int, first: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, kept + dropped, generator=generator, dtype=torch.float64)
    values[:, kept:] = 1e9
    mask = (torch.arange(kept + dropped) < kept).expand_as(values)
    inner = values[:, :kept]
    dim = 0 if first else 1
    arranged, kept_there = (values.T, mask.T) if first else (values, mask)
    torch.testing.assert_close(masked_mean(arranged, kept_there, dim), inner.mean(1))
    torch.testing.assert_close(masked_logsumexp(arranged, kept_there, dim), inner.logsumexp(1))
    shares = masked_softmax(arranged, kept_there, dim)
    shares = shares.T if first else shares
    torch.testing.assert_close(shares[:, :kept], inner.softmax(1))
    assert shares[:, kept:].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nothing_kept_is_zero_or_the_lowest_number(dtype: torch.dtype) -> None:
    values, mask = torch.ones(2, 3, dtype=dtype), torch.zeros(2, 3).bool()
    assert masked_mean(values, mask).eq(0).all()
    assert masked_softmax(values, mask).eq(0).all()
    assert masked_logsumexp(values, mask).eq(torch.finfo(dtype).min).all()


def test_gradients() -> None:
    values = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False, True], [False, False, True, False], [True] * 4])
    for reduction in (masked_mean, masked_softmax, masked_logsumexp):
        assert gradcheck(lambda x, f=reduction: f(x, mask), (values,))
    assert gradcheck(normalize, (values,))


def test_a_zero_vector_stays_zero_with_a_finite_gradient() -> None:
    values = torch.zeros(2, 3, requires_grad=True)
    unit = normalize(values)
    unit.sum().backward()
    assert unit.eq(0).all()
    assert values.grad.isfinite().all()


def test_unit_vectors_have_length_one() -> None:
    torch.testing.assert_close(normalize(torch.randn(4, 5)).norm(dim=-1), torch.ones(4))
