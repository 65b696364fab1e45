"""What holds for every objective of the table; what is one objective's own is in its own file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import test_aga_reference
import test_baselines_global
import test_baselines_pairwise
import test_clip
import test_mgca
import test_prior
import test_sparc
import torch
from baselines import EXACT, VECTORS, baseline, check_gradients, terms
from builders import embeddings, objective, settings, take, with_padding
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch.nn import functional

from aga.objectives import OBJECTIVES, Objective
from aga.objectives.prior import stopped_distance
from aga.pairs import PairEmbeddings

# Where each is compared with slow loops, in float64 and to 1e-10.
REFERENCES = {
    "aga": test_aga_reference.test_the_whole_objective_equals_the_reference,
    "clip": test_clip.test_clip_equals_the_reference,
    "convirt": test_baselines_global.test_convirt_equals_the_reference,
    "siglip": test_baselines_global.test_siglip_equals_the_reference,
    "filip": test_baselines_pairwise.test_filip_equals_the_reference,
    "gloria": test_baselines_pairwise.test_gloria_equals_the_reference,
    "sparc": test_sparc.test_sparc_equals_the_reference,
    "mgca": test_mgca.test_mgca_equals_the_reference,
    "prior": test_prior.test_prior_equals_the_reference,
}
GLOBAL = {"clip", "convirt", "siglip"}  # look at one vector of each side
BETWEEN = {"filip", "gloria"}  # compare words and patches of different pairs
METHODS = {"aga": "groups", "sparc": "groups", "gloria": "attention", "mgca": "attention"}
METHODS |= {"prior": "attention"}

every = pytest.mark.parametrize("name", OBJECTIVES)
seeds = st.integers(0, 2**31 - 1)
lengths = st.lists(st.integers(0, 6), min_size=1, max_size=4)
few = examples(max_examples=12, deadline=None)


def _built(name: str, width: int = 6) -> Objective:
    """With the settings of params.yaml, and weights that follow a seed."""
    return objective(settings(), width) if name == "aga" else baseline(name, width)


def test_every_objective_has_a_reference() -> None:
    assert REFERENCES.keys() == OBJECTIVES.keys()


# Gradients

CASES = {
    "several tokens": ([3, 2], 3),
    "one token": ([1, 3], 3),
    "one patch": ([3, 2], 1),
    "a report of padding": ([3, 0, 2], 3),
    "nothing but padding": ([0, 0], 3),
    "one pair": ([3], 3),
}


@every
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_loss(
    name: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every embedding and parameter, along random directions; what is stopped is held still."""
    counts, patches = CASES[case]
    pairs = embeddings(counts, patches=patches, width=4, padded=3)
    module = _built(name, width=4)
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(len(counts), 500, generator=generator).double().softmax(1)
    targets = torch.randn(len(counts), patches, 4, generator=generator).double()
    if name == "aga":
        module = objective(settings(gate__relaxation="soft"), width=4)
    if name == "mgca":
        monkeypatch.setattr("aga.objectives.mgca.sinkhorn", lambda *_: codes)
    if name == "prior":
        monkeypatch.setattr(
            "aga.objectives.prior.stopped_distance",
            lambda predictions, _: stopped_distance(predictions, targets),
        )
    check_gradients(module, pairs)


@every
def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    """DDP waits for the gradient of every parameter: there may be none that gets none."""
    module, pairs = _built(name), embeddings([6, 0])
    pairs.image.requires_grad_()  # some objectives have no parameters
    module(pairs).total.backward()
    for parameter, values in module.named_parameters():
        assert values.requires_grad == (values.grad is not None), parameter


# Order and padding


@every
@few
@given(lengths=lengths, seed=seeds)
def test_order_does_not_matter(name: str, lengths: list[int], seed: int) -> None:
    """Neither that of pairs, nor that of patches, nor that of tokens."""
    pairs, module = embeddings(lengths, seed=seed), _built(name)
    generator = torch.Generator().manual_seed(seed)
    places, words = torch.randperm(5, generator=generator), torch.randperm(6, generator=generator)
    shuffled = replace(
        pairs,
        patches=pairs.patches[:, places],
        tokens=pairs.tokens[:, words],
        content_mask=pairs.content_mask[:, words],
        token_ids=pairs.token_ids[:, words],
        sentences=pairs.sentences[:, words],
    )
    reordered = take(pairs, torch.randperm(len(pairs), generator=generator))
    expected = terms(module, pairs)
    torch.testing.assert_close(terms(module, shuffled), expected)
    torch.testing.assert_close(terms(module, reordered), expected)


@every
@few
@given(lengths=lengths, seed=seeds, more=st.integers(1, 9), fill=st.sampled_from([0.0, 1e3, -7.0]))
def test_padding_does_not_matter(
    name: str, lengths: list[int], seed: int, more: int, fill: float
) -> None:
    """More of it changes no number, gets no gradient, and makes nothing infinite."""
    pairs, module = embeddings(lengths, seed=seed), _built(name)
    padded = with_padding(pairs, more, fill)
    torch.testing.assert_close(terms(module, padded), terms(module, pairs))
    torch.testing.assert_close(module.local_scores(padded), module.local_scores(pairs))
    leaves = [getattr(padded, field).clone().requires_grad_() for field in VECTORS]
    module(replace(padded, **dict(zip(VECTORS, leaves, strict=True)))).total.backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)
    tokens = leaves[1].grad
    assert (tokens is None) == (name in GLOBAL)
    assert tokens is None or tokens[~padded.content_mask].eq(0).all()


# Few pairs, and reports without a word


@every
@few
@given(lengths=lengths, seed=seeds)
def test_terms_inside_pairs_look_at_one_pair_at_a_time(
    name: str, lengths: list[int], seed: int
) -> None:
    """A batch has the mean of its pairs; a report without content adds 0 and is counted.

    What is watched is what is trained: the same terms are in the loss, with their weights.
    """
    pairs, module = embeddings([*lengths, 0], seed=seed), _built(name)
    singles = [module.inside(take(pairs, torch.tensor([b]))) for b in range(len(pairs))]
    found, loss = module.inside(pairs), module(pairs)
    assert bool(found) == (name not in GLOBAL | BETWEEN)
    for term, value in found.items():
        assert singles[-1][term] == 0
        weight = getattr(module.config.weights, term)
        torch.testing.assert_close(loss.terms[term], weight * value)
        torch.testing.assert_close(value, sum(one[term] for one in singles) / len(pairs))


@every
def test_no_query_attends_to_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax over nothing is not defined the same way in every attention kernel."""
    real, calls = functional.scaled_dot_product_attention, []

    def watched(*tensors: torch.Tensor, attn_mask: torch.Tensor) -> torch.Tensor:
        calls.append(attn_mask.any(-1).all().item())
        return real(*tensors, attn_mask=attn_mask)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    module, pairs = _built(name), embeddings([3, 0])
    module(pairs)
    module.local_scores(pairs)
    assert all(calls)
    assert bool(calls) == (name in {"aga", "mgca"})


@every
@few
@given(lengths=lengths, seed=seeds)
def test_maps_and_scores_see_no_padding(name: str, lengths: list[int], seed: int) -> None:
    pairs, module = embeddings([*lengths, 0], seed=seed), _built(name)
    maps, padding = module.maps(pairs), ~pairs.content_mask
    assert maps.method == METHODS.get(name, "cosine")
    for weights in (maps.token_to_patch, maps.patch_to_token.transpose(1, 2)):
        assert weights.ge(0).all()
        assert weights[padding].eq(0).all()
    scores = module.local_scores(pairs)
    assert scores.isfinite().all()
    assert scores[padding.all(-1)].eq(0).all()


# Precision


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nothing_is_computed_in_half_precision(name: str, dtype: torch.dtype) -> None:
    """Embeddings of half precision are raised first, autocast or not."""
    pairs, module = embeddings([20, 12, 30, 7], patches=36, width=32, padded=32), _built(name, 32)
    pairs = replace(pairs, **{field: getattr(pairs, field).to(dtype) for field in VECTORS})
    wide = replace(pairs, **{field: getattr(pairs, field).double() for field in VECTORS})
    exact = [module(wide).total, module.local_scores(wide), *_maps(module, wide)]
    module.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [module(pairs).total, module.local_scores(pairs), *_maps(module, pairs)]
    for narrow, value in zip(found, exact, strict=True):
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow.double(), value, rtol=1e-4, atol=1e-5)


def _maps(module: Objective, pairs: PairEmbeddings) -> list[torch.Tensor]:
    maps = module.maps(pairs)
    return [maps.token_to_patch, maps.patch_to_token]


# docs/method.md, numerical bounds. Those that choose, choose otherwise after some roundings.
LOSS, GRADIENT, CHOOSING = 2e-3, 1e-2, 5e-2


@every
@pytest.mark.parametrize("seed", range(4))
def test_bfloat16_embeddings_cost_no_more_than_the_stated_bounds(name: str, seed: int) -> None:
    pairs = embeddings([32, 16, 29, 7] * 2, patches=36, width=32, padded=32, seed=seed)
    module = _built(name, 32).float()
    losses, gradients = [], []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [getattr(pairs, field).to(dtype).requires_grad_() for field in VECTORS]
        loss = module(replace(pairs, **dict(zip(VECTORS, leaves, strict=True)))).total
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        losses.append(loss.item())
        gradients.append(torch.cat([g.float().flatten() for g in found if g is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=LOSS)
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert 0 < error < (CHOOSING if name in {"aga", "filip", "sparc"} else GRADIENT)


def test_a_batch_of_one_costs_nothing_between_pairs() -> None:
    """There is nothing to confuse a single pair with; SigLIP still asks its one question."""
    for name in OBJECTIVES.keys() - {"siglip"}:
        contrast = _built(name)(embeddings([4])).terms["contrast"]
        torch.testing.assert_close(contrast.item(), 0.0, **EXACT)
