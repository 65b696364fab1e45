"""PRIOR's local alignment: its loops, its gradient with targets held still, and its claims."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from baselines import EXACT, baseline, block, terms
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
def test_the_numbers_of_sentences_do_not_matter(lengths: list[int], seed: int) -> None:
    pairs, module = embeddings(lengths, seed=seed), baseline("prior")
    renumbered = replace(pairs, sentences=torch.tensor([4, 0, 2])[pairs.sentences])
    torch.testing.assert_close(terms(module, renumbered), terms(module, pairs))


@few
@given(lengths, seeds)
def test_maps_are_weights_under_one_and_equal_within_a_sentence(
    lengths: list[int], seed: int
) -> None:
    pairs, module = embeddings(lengths, seed=seed), baseline("prior")
    maps, content = module.maps(pairs), pairs.content_mask
    assert maps.token_to_patch[content].gt(0).all()
    assert maps.token_to_patch.lt(1).all()
    assert maps.patch_to_token.lt(1).all()
    same = (pairs.sentences[:, :, None] == pairs.sentences[:, None]) & content[:, :, None]
    for b, one, other in (same & content[:, None]).nonzero().tolist():
        assert maps.token_to_patch[b, one].equal(maps.token_to_patch[b, other])
        assert maps.patch_to_token[b, :, one].equal(maps.patch_to_token[b, :, other])
    assert module.local_scores(pairs).abs().le(1 + 1e-9).all()


def test_attention_reads_only_what_exists() -> None:
    pairs, attention = embeddings([6, 3]), baseline("prior").patch_attention
    keep = torch.tensor([[True, False, True, True, False, False]] * 2)
    read, weights = attention(pairs.patches, pairs.tokens, keep)
    kept = pairs.tokens[:, keep[0]]
    expected, _ = attention(pairs.patches, kept, torch.ones(2, 3).bool())
    torch.testing.assert_close(read, expected, **EXACT)
    assert weights[..., ~keep[0]].eq(0).all()


def test_dividing_the_weights_by_their_sum_changes_nothing() -> None:
    pairs, module = embeddings([6, 3]), baseline("prior")
    every = torch.ones(2, 5).bool()
    attention = module.sentence_attention
    read, weights = attention(pairs.tokens, pairs.patches, every)
    shares = weights / weights.sum(-1, keepdim=True)
    divided = attention.output(shares @ attention.value(pairs.patches))
    cosines = torch.nn.functional.cosine_similarity(read, divided, dim=-1)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


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


def test_many_sentences_in_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, module = embeddings([6, 3, 0, 1]), baseline("prior")
    whole = terms(module, pairs)
    monkeypatch.setattr("aga.objectives.contrastive.CHUNK", 2)
    torch.testing.assert_close(terms(module, pairs), whole, **EXACT)


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
