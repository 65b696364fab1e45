"""Claims of the docstrings: order and padding do not matter, and groups are groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import embeddings, objective, settings, take, with_padding
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from aga.pairs import PairEmbeddings

seeds = st.integers(0, 2**31 - 1)
lengths = st.lists(st.integers(0, 6), min_size=1, max_size=4)
scalings = st.sampled_from(["minmax", "softmax", "sigmoid"])
relaxations = st.sampled_from(["straight_through", "soft", "hard"])
duplicates = st.sampled_from(["negative", "ignore", "positive"])
forms = st.sampled_from(["residual", "plain", "pooled"])
changes = st.fixed_dictionaries(
    {
        "scaling": scalings,
        "gate__relaxation": relaxations,
        "gate__init": st.sampled_from([0.05, 0.5, 0.95, "uniform"]),
        "iga__duplicates": duplicates,
        "iga__patch_similarity": st.just(0.2),
        "bcga__form": forms,
    }
)
few = examples(max_examples=20, deadline=None)


def _terms(pairs: PairEmbeddings, change: dict) -> torch.Tensor:
    terms = objective(settings(**change), width=6)(pairs).terms
    return torch.stack([terms[name] for name in ("contrast", "iga", "bcga")]).detach()


@few
@given(lengths, seeds, changes)
def test_the_order_of_pairs_does_not_matter(lengths: list[int], seed: int, change: dict) -> None:
    pairs = embeddings(lengths, seed=seed)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(_terms(take(pairs, order), change), _terms(pairs, change))


@few
@given(lengths, seeds, changes)
def test_the_order_of_patches_and_tokens_does_not_matter(
    lengths: list[int], seed: int, change: dict
) -> None:
    pairs = embeddings(lengths, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    places, words = torch.randperm(5, generator=generator), torch.randperm(6, generator=generator)
    shuffled = replace(
        pairs,
        patches=pairs.patches[:, places],
        tokens=pairs.tokens[:, words],
        content_mask=pairs.content_mask[:, words],
        token_ids=pairs.token_ids[:, words],
    )
    torch.testing.assert_close(_terms(shuffled, change), _terms(pairs, change))


@few
@given(lengths, seeds, changes, st.integers(1, 9), st.sampled_from([0.0, 1e3, -7.0]))
def test_padding_does_not_matter(
    lengths: list[int], seed: int, change: dict, more: int, fill: float
) -> None:
    pairs = embeddings(lengths, seed=seed)
    padded = with_padding(pairs, more, fill)
    torch.testing.assert_close(_terms(padded, change), _terms(pairs, change))


@few
@given(lengths, seeds, changes)
def test_padding_gets_no_gradient_and_nothing_is_infinite(
    lengths: list[int], seed: int, change: dict
) -> None:
    pairs = with_padding(embeddings(lengths, seed=seed), 2, 0.0)
    pairs.tokens.requires_grad_()
    pairs.patches.requires_grad_()
    objective(settings(**change), width=6)(pairs).total.backward()
    assert pairs.tokens.grad[~pairs.content_mask].eq(0).all()
    assert pairs.tokens.grad.isfinite().all()
    assert pairs.patches.grad.isfinite().all()


@few
@given(lengths, seeds, changes)
def test_groups_are_groups(lengths: list[int], seed: int, change: dict) -> None:
    """Weights are shares that sum to 1, no group is empty, and sizes count what was chosen."""
    pairs = embeddings(lengths, seed=seed)
    groups = objective(settings(**change), width=6).groups(pairs)
    content = pairs.content_mask
    readable = content.any(1, keepdim=True).expand(-1, 5)
    for weights, sizes, thresholds, mask in (
        (groups.token_to_patch, groups.visual_sizes, groups.token_thresholds, content),
        (groups.patch_to_token, groups.language_sizes, groups.patch_thresholds, readable),
    ):
        torch.testing.assert_close(weights.sum(-1), mask.double())
        assert weights.ge(0).all()
        assert sizes[mask].ge(1).all()
        assert thresholds.gt(0).all()
        assert thresholds.lt(1).all()
        if change["gate__relaxation"] != "soft":
            assert (weights > 0).sum(-1).equal(sizes)


@pytest.mark.parametrize("kind", ["mlp", "scalar", "fixed"])
@pytest.mark.parametrize("init", [0.2, 0.5, 0.9])
def test_thresholds_start_at_init(kind: str, init: float) -> None:
    module = objective(settings(gate__kind=kind, gate__init=init), width=6, moved=False)
    groups = module.groups(embeddings([6, 3, 0]))
    for thresholds in (groups.token_thresholds, groups.patch_thresholds):
        torch.testing.assert_close(
            thresholds, torch.full_like(thresholds, init), rtol=1e-15, atol=0
        )


@pytest.mark.parametrize("kind", ["mlp", "scalar", "fixed"])
def test_uniform_thresholds_start_at_one_over_the_choices(kind: str) -> None:
    module = objective(settings(gate__kind=kind, gate__init="uniform"), width=6, moved=False)
    groups = module.groups(embeddings([6, 3, 2]))
    expected = torch.tensor([6.0, 3.0, 2.0], dtype=torch.float64)[:, None].expand(-1, 5)
    torch.testing.assert_close(groups.patch_thresholds, 1 / expected)
    torch.testing.assert_close(
        groups.token_thresholds, torch.full_like(groups.token_thresholds, 1 / 5)
    )


def test_a_constant_row_keeps_all_elements_with_equal_weight() -> None:
    pairs = embeddings([6, 4])
    same = pairs.patches[:, :1].expand_as(pairs.patches)
    groups = objective(settings(gate__init=0.9), width=6).groups(replace(pairs, patches=same))
    shares = groups.token_to_patch[pairs.content_mask]
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / 5))
    torch.testing.assert_close(
        groups.visual.vectors[pairs.content_mask], same[:, :1].expand(-1, 6, -1)[pairs.content_mask]
    )


def test_a_group_holds_its_best_element_under_any_threshold() -> None:
    """Softmax scaling spreads 1 over all patches: none reaches 0.95."""
    values = settings(scaling="softmax", gate__init=0.95, gate__kind="fixed")
    pairs = embeddings([6, 4])
    groups = objective(values, width=6).groups(pairs)
    best = groups.token_to_patch[pairs.content_mask]
    assert groups.visual_sizes[pairs.content_mask].eq(1).all()
    assert best.amax(-1).eq(1).all()


@pytest.mark.parametrize("relaxation", ["straight_through", "soft"])
def test_bfloat16_embeddings_lose_only_their_own_rounding(relaxation: str) -> None:
    """Nothing inside is computed in bfloat16, autocast or not."""
    values = settings(gate__relaxation=relaxation)
    exact = embeddings([20, 12, 30, 7] * 2, patches=36, width=32, padded=32)
    names = ("patches", "tokens", "image", "text")
    rounded = replace(exact, **{n: getattr(exact, n).bfloat16() for n in names})
    raised = replace(exact, **{n: getattr(rounded, n).double() for n in names})
    module = objective(values, width=32)
    wide, true = module(raised).total.item(), module(exact).total.item()
    module.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(rounded)
        scores = module.local_scores(rounded)
    assert found.total.dtype == scores.dtype == torch.float32
    assert found.total.item() == pytest.approx(wide, rel=1e-5)
    assert found.total.item() == pytest.approx(true, rel=2e-2)


def test_a_term_of_weight_zero_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr("aga.objectives.aga.symmetric_pair_nce", refuse)
    monkeypatch.setattr("aga.objectives.aga.weigh", refuse)
    module = objective(settings(weights__iga=0.0, weights__bcga=0.0), width=6)
    found = module(embeddings([6, 3]))
    assert list(found.terms) == ["contrast"]
    assert {name.split(".")[0] for name, p in module.named_parameters() if p.requires_grad} == {
        "contrast"
    }


def test_the_learned_temperature_never_falls_under_a_hundredth_and_can_rise_again() -> None:
    module = objective(settings(contrast__temperature=0.01), width=6)
    optimizer = torch.optim.SGD([module.contrast.log_scale], lr=1.0)
    aligned = embeddings([6, 3])
    aligned = replace(aligned, text=aligned.image + 0.0)
    with torch.no_grad():
        module.contrast.log_scale.fill_(9.0)
    module(aligned)
    assert module.contrast.temperature.item() == pytest.approx(0.01)
    optimizer.zero_grad()
    module(replace(aligned, text=aligned.image.flip(0))).total.backward()
    optimizer.step()
    assert module.contrast.temperature.item() > 0.01
