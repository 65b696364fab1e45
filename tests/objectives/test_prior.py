"""PRIOR's local alignment: its loops, its gradient with targets held still, and its claims."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from baselines import (
    EXACT,
    baseline,
    block,
    check_gradients,
    check_maps,
    check_padding,
    reordered,
    shuffled,
    terms,
)
from builders import embeddings, state, without_padding
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import ValidationError
from reference import alignment, prior
from torch.autograd import gradcheck

from aga.objectives import PriorConfig
from aga.objectives.prior import sentence_means, stopped_distance
from aga.pairs import PairEmbeddings

seeds = st.integers(0, 2**31 - 1)
lengths = st.lists(st.integers(0, 6), min_size=1, max_size=4)
few = examples(max_examples=20, deadline=None)


def _numbers(pairs: PairEmbeddings) -> list[list[int]]:
    """The sentence of each content token."""
    rows = zip(pairs.sentences, pairs.content_mask, strict=True)
    return [row[mask].tolist() for row, mask in rows]


@pytest.mark.parametrize("counts", [[6, 3, 1, 5], [4], [0, 2], [0]], ids=str)
def test_prior_equals_the_reference(counts: list[int]) -> None:
    pairs = embeddings(counts)
    weights = {"contrast": 0.5, "local": 2.0}
    module = baseline("prior", temperature=0.2, contrast_temperature=0.3, weights=weights)
    found, parameters = module(pairs), state(module)
    scale = math.exp(torch.tensor(-math.log(0.3)).item())
    local = prior.local_term(without_padding(pairs), _numbers(pairs), 0.2, parameters)
    expected = {
        "contrast": alignment.info_nce(pairs.image.tolist(), pairs.text.tolist(), scale),
        "local": local,
    }
    assert found.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found.terms[name].item(), weights[name] * value, **EXACT)
    torch.testing.assert_close(module.inside(pairs)["local"].item(), local, **EXACT)
    sides = found.diagnostics["local/sentence"] + found.diagnostics["local/patch"]
    torch.testing.assert_close(sides.item(), 2 * local, **EXACT)


def test_maps_and_scores_equal_the_reference() -> None:
    pairs, module = embeddings([6, 3, 1]), baseline("prior")
    maps, scores, parameters = module.maps(pairs), module.local_scores(pairs), state(module)
    for b, (pair, numbers) in enumerate(zip(without_padding(pairs), _numbers(pairs), strict=True)):
        mask = pairs.content_mask[b]
        own = prior.sentences(pair, numbers)
        patches = [alignment.unit(v) for v in pair.patches]
        rank = [sorted(set(numbers)).index(n) for n in numbers]
        read, shares = prior.attend(
            own, patches, alignment.within(parameters, "sentence_attention")
        )
        _, back = prior.attend(patches, own, alignment.within(parameters, "patch_attention"))
        score = alignment.mean(
            [alignment.dot(s, alignment.unit(r)) for s, r in zip(own, read, strict=True)]
        )
        for got, want in (
            (maps.token_to_patch[b][mask], [shares[r] for r in rank]),
            (maps.patch_to_token[b][:, mask], [[row[r] for r in rank] for row in back]),
            (scores[b], score),
        ):
            torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), **EXACT)


@few
@given(lengths, seeds)
def test_sentence_means_are_means_of_content(lengths: list[int], seed: int) -> None:
    pairs = embeddings(lengths, seed=seed)
    means, mask = sentence_means(pairs.tokens, pairs.sentences, pairs.content_mask)
    for b in range(len(pairs)):
        for number in range(6):
            own = pairs.content_mask[b] & (pairs.sentences[b] == number)
            assert mask[b, number] == own.any()
            mean = pairs.tokens[b][own].sum(0) / max(int(own.sum()), 1)
            torch.testing.assert_close(means[b, number], mean)


@few
@given(lengths, seeds)
def test_order_does_not_matter(lengths: list[int], seed: int) -> None:
    pairs, module = embeddings(lengths, seed=seed), baseline("prior")
    torch.testing.assert_close(terms(module, reordered(pairs, seed)), terms(module, pairs))
    torch.testing.assert_close(terms(module, shuffled(pairs, seed)), terms(module, pairs))
    renumbered = replace(pairs, sentences=torch.tensor([4, 0, 2])[pairs.sentences])
    torch.testing.assert_close(terms(module, renumbered), terms(module, pairs))


@few
@given(lengths, seeds, st.integers(1, 9), st.sampled_from([0.0, 1e3, -7.0]))
def test_padding_does_not_matter(lengths: list[int], seed: int, more: int, fill: float) -> None:
    check_padding(baseline("prior"), embeddings(lengths, seed=seed), more, fill)


@few
@given(lengths, seeds)
def test_maps_are_weights_under_one_and_equal_within_a_sentence(
    lengths: list[int], seed: int
) -> None:
    pairs, module = embeddings(lengths, seed=seed), baseline("prior")
    check_maps(module, pairs, "attention")
    maps, content = module.maps(pairs), pairs.content_mask
    assert maps.token_to_patch[content].gt(0).all()
    assert maps.token_to_patch.lt(1).all()
    assert maps.patch_to_token.lt(1).all()
    same = (pairs.sentences[:, :, None] == pairs.sentences[:, None]) & content[:, :, None]
    for b, one, other in (same & content[:, None]).nonzero().tolist():
        assert maps.token_to_patch[b, one].equal(maps.token_to_patch[b, other])
        assert maps.patch_to_token[b, :, one].equal(maps.patch_to_token[b, :, other])
    scores = module.local_scores(pairs)
    assert scores[~content.any(-1)].eq(0).all()
    assert scores.abs().le(1 + 1e-9).all()


def test_dividing_the_weights_by_their_sum_changes_nothing() -> None:
    pairs, module = embeddings([6, 3]), baseline("prior")
    every = torch.ones(2, 5).bool()
    attention = module.sentence_attention
    read, weights = attention(pairs.tokens, pairs.patches, every)
    shares = weights / weights.sum(-1, keepdim=True)
    divided = attention.output(shares @ attention.value(pairs.patches))
    cosines = torch.nn.functional.cosine_similarity(read, divided, dim=-1)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


@pytest.mark.parametrize("counts", [[3, 2], [1, 3], [3, 0], [3]], ids=str)
@pytest.mark.parametrize("patches", [1, 3])
def test_the_gradient_is_that_of_the_loss_with_targets_held_still(
    monkeypatch: pytest.MonkeyPatch, counts: list[int], patches: int
) -> None:
    """Each target is drawn once, of its own shape, and stays; all else moves."""
    generator = torch.Generator().manual_seed(0)
    still = torch.randn(len(counts), patches, 4, generator=generator, dtype=torch.float64)
    monkeypatch.setattr(
        "aga.objectives.prior.stopped_distance",
        lambda predictions, _: stopped_distance(predictions, still),
    )
    module = baseline("prior", width=4, predictor=5, temperature=0.3)
    check_gradients(module, embeddings(counts, patches=patches, width=4, padded=3))


def test_no_gradient_reaches_a_target() -> None:
    predictions, targets = (torch.randn(2, 3, 4, dtype=torch.float64) for _ in range(2))
    predictions.requires_grad_()
    targets.requires_grad_()
    assert gradcheck(lambda x: stopped_distance(x, targets), (predictions,))
    stopped_distance(predictions, targets).sum().backward()
    assert targets.grad is None
    torch.testing.assert_close(
        stopped_distance(predictions, predictions), torch.zeros(2, 3).double(), **EXACT
    )


def test_a_report_of_one_sentence_has_nothing_to_tell_apart() -> None:
    pairs = embeddings([6, 3])
    pairs = replace(pairs, sentences=torch.zeros_like(pairs.sentences))
    found = baseline("prior")(pairs).diagnostics
    torch.testing.assert_close(found["local/sentence"].item(), 0.0, **EXACT)
    assert found["local/patch"] > 0


def test_every_parameter_gets_a_gradient() -> None:
    module = baseline("prior")
    module(embeddings([3, 0])).total.backward()
    assert all(p.grad is not None for p in module.parameters())


def test_other_pairs_do_not_change_the_local_term_of_a_pair() -> None:
    pairs, module = embeddings([6, 3]), baseline("prior")
    halves = [
        module.inside(PairEmbeddings(**{k: v[b : b + 1] for k, v in vars(pairs).items()}))["local"]
        for b in range(2)
    ]
    torch.testing.assert_close(module.inside(pairs)["local"], sum(halves) / 2, **EXACT)


def test_many_sentences_in_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, module = embeddings([6, 3, 0, 1]), baseline("prior")
    whole = terms(module, pairs)
    monkeypatch.setattr("aga.objectives.contrastive.CHUNK", 2)
    torch.testing.assert_close(terms(module, pairs), whole, **EXACT)


def test_half_precision_embeddings_are_raised() -> None:
    pairs, module = embeddings([6, 3], dtype=torch.bfloat16), baseline("prior").float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = (module(pairs).total, module.maps(pairs).patch_to_token, module.local_scores(pairs))
    assert {x.dtype for x in found} == {torch.float32}


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0},
        {"contrast_temperature": 0.005},
        {"predictor": 0},
        {"weights": {"contrast": 1.0, "local": 0.0}},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused(change: dict) -> None:
    with pytest.raises(ValidationError):
        PriorConfig.model_validate(block("prior", **change))
