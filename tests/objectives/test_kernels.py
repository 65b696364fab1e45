"""The inner loops with written-out gradients equal the plain equations, in any block size."""

from __future__ import annotations

import pytest
import torch
from builders import embeddings, objective, settings
from torch import Tensor
from torch.autograd import gradcheck

from aga.objectives import blocks
from aga.objectives.contrastive import Positions, pair_nce, symmetric_pair_nce
from aga.objectives.grouping import (
    Gathered,
    GroupingRule,
    choose,
    scale,
    statistics,
    weigh,
)
from aga.tensors import normalize

EXACT = {"rtol": 1e-10, "atol": 1e-12}
RELAXATIONS = ["straight_through", "soft", "hard"]


def _inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Similarities, thresholds, queries and elements: ties, a constant row, a pair of padding."""
    torch.manual_seed(0)
    similarity = torch.rand(5, 7, 6, dtype=torch.float64) * 2 - 1
    similarity[1, :, 1] = similarity[1, :, 0]
    similarity[0, 0] = 0.3
    asking, elements = torch.rand(5, 7) > 0.3, torch.rand(5, 6) > 0.3
    asking[4] = elements[4] = False
    return similarity, torch.rand(5, 7, dtype=torch.float64), asking, elements


def _plain_statistics(similarity: Tensor, elements: Tensor) -> Tensor:
    rows = []
    for pair, kept in zip(similarity, elements, strict=True):
        some = pair[:, kept]
        if some.numel():
            variance = some.var(-1, correction=0)
            columns = (some.mean(-1), some.amax(-1), (variance + 1e-6).sqrt())
        else:
            columns = (pair.sum(-1) * 0, pair.sum(-1) * 0, pair.sum(-1) * 0 + 1e-3)
        rows.append(torch.stack(columns, -1))
    return torch.stack(rows)


@pytest.fixture(params=[1, 2**18], ids=["pair by pair", "at once"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocks.BLOCK, "cpu", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_minmax_groups_equal_scaling_and_choosing(relaxation: str, transposed: bool) -> None:
    similarity, thresholds, asking, elements = _inputs()
    if transposed:
        similarity = similarity.mT.contiguous().mT
    leaves = (similarity.requires_grad_(), thresholds.requires_grad_())
    rule = GroupingRule("minmax", 1.0, relaxation, 0.1)
    weights, sizes = weigh(*leaves, asking, elements, rule)
    mask = asking[:, :, None] & elements[:, None, :]
    scaled = scale(similarity, mask, "minmax", 1.0)
    expected, counts = choose(scaled, thresholds, mask, relaxation, 0.1)
    torch.testing.assert_close(weights, expected, **EXACT)
    assert sizes.equal(counts)
    above = torch.randn_like(weights)
    found = torch.autograd.grad(weights, leaves, above)
    plain = torch.autograd.grad(expected, leaves, above, allow_unused=True, materialize_grads=True)
    for got, want in zip(found, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("transposed", [False, True])
def test_statistics_equal_plain_ones(transposed: bool) -> None:
    similarity, _, _, elements = _inputs()
    if transposed:
        similarity = similarity.mT.contiguous().mT
    similarity.requires_grad_()
    found, expected = statistics(similarity, elements), _plain_statistics(similarity, elements)
    torch.testing.assert_close(found, expected, **EXACT)
    above = torch.randn_like(found)
    got, want = (torch.autograd.grad(x, similarity, above)[0] for x in (found, expected))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("chunk", [1024, 2])
@pytest.mark.parametrize("duplicates", ["negative", "ignore", "positive"])
def test_losses_inside_pairs_are_cross_entropies(
    monkeypatch: pytest.MonkeyPatch, duplicates: str, chunk: int
) -> None:
    """Against one softmax a query, written without masks, gradients included."""
    monkeypatch.setattr("aga.objectives.contrastive.CHUNK", chunk)
    torch.manual_seed(1)
    first, second = (torch.randn(3, 5, 4, dtype=torch.float64).requires_grad_() for _ in "xy")
    ids = torch.tensor([[0, 1, 0, 2, 1], [0, 0, 0, 0, 0], [4, 3, 2, 1, 0]])
    mask = torch.tensor([[True, True, True, False, True], [True] * 5, [False] * 5])

    def plain(x: Tensor, y: Tensor, asked: list[int]) -> Tensor:
        losses = []
        for b in range(3):
            kept = [i for i in range(5) if mask[b, i]]
            each = [
                _plain_nce(x[b], y[b], i, kept, ids[b].tolist(), duplicates)
                for i in asked
                if i in kept
            ]
            losses.append(torch.stack(each).mean() if each else x[b].sum() * 0)
        return torch.stack(losses)

    positions, sample = Positions(mask, ids, duplicates), torch.tensor([[4, 0]] * 3)
    for index, asked in ((None, list(range(5))), (sample, [4, 0])):
        x, y = normalize(first), normalize(second)
        cases = (
            (pair_nce(x, y, positions, 0.2, index), plain(x, y, asked)),
            (
                symmetric_pair_nce(x, y, positions, 0.2, index),
                (plain(x, y, asked) + plain(y, x, asked)) / 2,
            ),
        )
        for found, expected in cases:
            torch.testing.assert_close(found, expected, **EXACT)
            above = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
            got, want = (
                torch.autograd.grad(z, (first, second), above, retain_graph=True)
                for z in (found, expected)
            )
            for one, other in zip(got, want, strict=True):
                torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("chunk", [1024, 2])
def test_the_memory_order_of_vectors_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("aga.objectives.contrastive.CHUNK", chunk)
    torch.manual_seed(1)
    first, second = (normalize(torch.randn(3, 5, 4, dtype=torch.float64)) for _ in "xy")
    positions, results = Positions(torch.ones(3, 5).bool()), []
    for turned in (False, True):
        leaves = [
            (x.mT.contiguous().mT if turned else x.clone()).requires_grad_()
            for x in (first, second)
        ]
        loss = symmetric_pair_nce(*leaves, positions, 0.2).sum()
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for plain, found in zip(*results, strict=True):
        torch.testing.assert_close(found, plain, **EXACT)


def _plain_nce(
    queries: Tensor, keys: Tensor, i: int, kept: list[int], ids: list[int], duplicates: str
) -> Tensor:
    alike = [j for j in kept if ids[j] == ids[i] and j != i and duplicates != "negative"]
    compared = [j for j in kept if duplicates != "ignore" or j not in alike]
    right = [i, *alike] if duplicates == "positive" else [i]
    logits = keys @ queries[i] / 0.2
    return logits[compared].logsumexp(0) - logits[right].logsumexp(0)


def test_a_cold_temperature_neither_underflows_nor_overflows() -> None:
    torch.manual_seed(0)
    first, second = (normalize(torch.randn(2, 6, 3)).requires_grad_() for _ in "xy")
    loss = symmetric_pair_nce(first, second, Positions(torch.ones(2, 6).bool()), 1e-3)
    wide = symmetric_pair_nce(
        first.double(), second.double(), Positions(torch.ones(2, 6).bool()), 1e-3
    )
    torch.testing.assert_close(loss.double(), wide, rtol=1e-4, atol=1e-4)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss.sum(), (first, second)))


def test_nothing_is_differentiated_where_nobody_asks() -> None:
    first, second = (normalize(torch.randn(2, 6, 3)).requires_grad_() for _ in "xy")
    with torch.no_grad():
        assert not pair_nce(first, second, Positions(torch.ones(2, 6).bool()), 0.1).requires_grad
    loss = pair_nce(first, second.detach(), Positions(torch.ones(2, 6).bool()), 0.1).sum()
    assert torch.autograd.grad(loss, first)[0].abs().sum() > 0


def test_unit_vectors_have_the_gradient_of_a_direction() -> None:
    vectors = torch.randn(3, 4, dtype=torch.float64)
    vectors[1] *= 1e-9  # under the shortest length that counts
    assert gradcheck(normalize, (vectors[[0, 2]].requires_grad_(),))
    for values in (vectors, torch.zeros(1, 4, dtype=torch.float64)):
        each = values.clone().requires_grad_()
        plain = torch.nn.functional.normalize(each, dim=-1, eps=1e-8)
        above = torch.randn_like(each)
        found = torch.autograd.grad(normalize(each), each, above)[0]
        torch.testing.assert_close(normalize(each), plain, **EXACT)
        torch.testing.assert_close(found, torch.autograd.grad(plain, each, above)[0], **EXACT)


def test_factors_give_cosines_with_groups_and_their_gradient() -> None:
    """In float32 too: the length of a group from products of its tokens loses no digit."""
    for dtype, bounds in ((torch.float64, EXACT), (torch.float32, {"rtol": 1e-4, "atol": 1e-5})):
        pairs = embeddings([40, 9, 1, 0], patches=50, width=64, padded=40, dtype=dtype)
        leaves = (pairs.patches.requires_grad_(), pairs.tokens.requires_grad_())
        groups = objective(settings(), width=64).to(dtype).groups(pairs)
        units = normalize(pairs.patches)
        expected = units @ normalize(groups.language.vectors).mT
        above = torch.randn_like(expected)
        want = torch.autograd.grad(expected, leaves, above, retain_graph=True)
        scale = max(float(x.abs().max()) for x in want)
        for products in (None, units @ pairs.tokens.mT):
            left, right = groups.language.factors(units, products)
            assert left.shape[-1] == right.shape[-1] == 40
            torch.testing.assert_close(left @ right.mT, expected, **bounds)
            got = torch.autograd.grad(left @ right.mT, leaves, above, retain_graph=True)
            for one, other in zip(got, want, strict=True):
                torch.testing.assert_close(one / scale, other / scale, **bounds)


def test_groups_that_cancel_have_no_cosine_beyond_one() -> None:
    """What rounding leaves of such a length would be divided by next to nothing."""
    torch.manual_seed(0)
    for length in (1.0, 64.0):
        tokens = length * normalize(torch.randn(200, 2, 16))
        tokens[:, 1] = -tokens[:, 0] + 1e-4 * length * torch.randn(200, 16)
        groups = Gathered(torch.full((200, 1, 2), 0.5), tokens)
        units = normalize(torch.randn(200, 9, 16))
        left, right = groups.factors(units)
        assert (left @ right.mT).abs().max() < 1.01


def test_factors_are_the_vectors_themselves_where_those_are_narrower() -> None:
    groups = Gathered(torch.rand(2, 5, 4, dtype=torch.float64), _normal(2, 4, 3))
    units = normalize(_normal(2, 7, 3))
    left, right = groups.factors(units)
    torch.testing.assert_close(left, units, **EXACT)
    torch.testing.assert_close(right, normalize(groups.vectors), **EXACT)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_a_map_of_groups_is_the_map_of_what_they_are_made_of(shape: tuple[int, int]) -> None:
    weights = torch.rand(2, *shape, dtype=torch.float64)
    weights[0, 1] = 0  # a group that does not exist
    groups, linear = Gathered(weights, _normal(2, shape[1], 4)), torch.nn.Linear(4, 6).double()
    torch.testing.assert_close(groups.projected(linear), linear(groups.vectors), **EXACT)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)
