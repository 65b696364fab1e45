"""FILIP and GLoRIA, which compare the patches and tokens of all pairs."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch
from baselines import EXACT, baseline, block, check_gradients, terms
from builders import embeddings, take, without_padding
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import ValidationError
from reference import alignment, pairwise
from torch.autograd import gradcheck

from aga.objectives import FilipConfig, GloriaConfig, Objective
from aga.objectives.filip import best_matches
from aga.objectives.pairwise import blockwise, score_nce
from aga.pairs import PairEmbeddings

seeds = st.integers(0, 2**31 - 1)
lengths = st.lists(st.integers(0, 6), min_size=1, max_size=4)
few = examples(max_examples=20, deadline=None)
both = pytest.mark.parametrize("name", ["filip", "gloria"])


def _scale(temperature: float) -> float:
    """As the parameter has it: log 1/τ is rounded to float32."""
    return math.exp(torch.tensor(-math.log(temperature)).item())


@pytest.mark.parametrize("counts", [[6, 3, 1, 5], [4], [2, 0, 3], [0]], ids=str)
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_filip_equals_the_reference(counts: list[int], temperature: float) -> None:
    pairs = embeddings(counts)
    weights = {"contrast": 0.3, "fine": 0.7}
    module = baseline("filip", temperature=temperature, contrast_temperature=0.2, weights=weights)
    found = module(pairs).terms
    plain = without_padding(pairs)
    matches = (pairwise.best_words, pairwise.best_patches)
    expected = {
        "fine": 0.7 * pairwise.fine_term(plain, *matches, _scale(temperature)),
        "contrast": 0.3
        * alignment.info_nce(pairs.image.tolist(), pairs.text.tolist(), _scale(0.2)),
    }
    assert found.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(found[term].item(), value, **EXACT)
    scores = [
        (matches[0](p.patches, p.tokens) + matches[1](p.patches, p.tokens)) / 2 if p.tokens else 0.0
        for p in plain
    ]
    torch.testing.assert_close(module.local_scores(pairs).tolist(), scores, **EXACT)


@pytest.mark.parametrize("counts", [[6, 3, 1, 5], [4], [2, 0, 3], [0]], ids=str)
@pytest.mark.parametrize(("first", "second", "third"), [(4.0, 5.0, 10.0), (1.0, 2.0, 3.0)])
def test_gloria_equals_the_reference(
    counts: list[int], first: float, second: float, third: float
) -> None:
    pairs = embeddings(counts)
    weights = {"contrast": 0.3, "fine": 0.7}
    factors = {"attention_factor": first, "word_factor": second, "nce_factor": third}
    module = baseline("gloria", **factors, weights=weights)
    found, maps, own = module(pairs).terms, module.maps(pairs), module.local_scores(pairs)

    def score(patches: list, tokens: list) -> float:
        return pairwise.read_score(patches, tokens, first, second)

    plain = without_padding(pairs)
    images, texts = pairs.image.tolist(), pairs.text.tolist()
    expected = {
        "contrast": 0.3 * alignment.info_nce(images, texts, third),
        "fine": 0.7 * pairwise.fine_term(plain, score, score, third),
    }
    assert found.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(found[term].item(), value, **EXACT)
    for b, pair in enumerate(plain):
        mask = pairs.content_mask[b]
        if not pair.tokens:
            assert own[b] == 0
            continue
        torch.testing.assert_close(own[b].item(), score(pair.patches, pair.tokens), **EXACT)
        for got, want in (
            (maps.token_to_patch[b][mask], pairwise.attention(pair.patches, pair.tokens, first)),
            (maps.patch_to_token[b][:, mask], pairwise.shares(pair.patches, pair.tokens)),
        ):
            torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), **EXACT)


def test_the_committed_factors_are_those_of_docs_method() -> None:
    gloria = block("gloria")
    assert [gloria[f"{n}_factor"] for n in ("attention", "word", "nce")] == [4.0, 5.0, 10.0]
    assert block("filip")["weights"]["fine"] == 1.0


def test_two_equal_tokens_and_two_equal_patches_have_a_gradient() -> None:
    pairs = embeddings([3, 3], patches=3, width=4, padded=3)
    pairs.tokens[:, 1] = pairs.tokens[:, 0]
    pairs.patches[:, 1] = pairs.patches[:, 0]
    check_gradients(baseline("gloria", 4), pairs)


def test_two_equal_cosines_have_a_gradient() -> None:
    """At a tie of two, a maximum splits its gradient as a central difference does."""
    cosines = torch.tensor([[[0.5, 0.5, 0.1], [0.2, 0.5, 0.7], [0.9, 0.9, 0.9]]]).double()
    content = torch.tensor([[True, True, False]])
    assert gradcheck(lambda c: best_matches(c, content), (cosines.requires_grad_(),))


@both
@few
@given(lengths=lengths, seed=seeds)
def test_a_report_without_content_takes_no_part(name: str, lengths: list[int], seed: int) -> None:
    """It adds 0 and is counted; its image is no candidate either. `contrast` has every pair."""
    pairs, module = embeddings([*lengths, 0, 2], seed=seed), baseline(name)
    there = pairs.content_mask.any(1)
    pairs.patches.requires_grad_()
    found = module(pairs).terms["fine"]
    alone = module(take(pairs, there.nonzero()[:, 0])).terms["fine"]
    torch.testing.assert_close(found, alone * there.sum() / len(pairs))
    found.backward()
    assert pairs.patches.grad.isfinite().all()
    assert pairs.patches.grad[~there].eq(0).all()


@both
def test_nothing_but_padding_adds_nothing(name: str) -> None:
    pairs, module = embeddings([0, 0, 0]), baseline(name)
    assert module(pairs).terms["fine"] == 0
    assert module.local_scores(pairs).eq(0).all()


@both
def test_a_single_pair_has_nothing_to_confuse_it_with(name: str) -> None:
    assert baseline(name)(embeddings([4])).terms["fine"] == 0


@few
@given(lengths=lengths, seed=seeds)
def test_maps_of_gloria_are_shares(lengths: list[int], seed: int) -> None:
    pairs = embeddings(lengths, seed=seed)
    maps, content = baseline("gloria").maps(pairs), pairs.content_mask
    torch.testing.assert_close(maps.token_to_patch.sum(-1), content.double())
    readable = content.any(1, keepdim=True).expand(-1, 5).double()
    torch.testing.assert_close(maps.patch_to_token.sum(-1), readable)


def _gradients(module: Objective, pairs: PairEmbeddings) -> list[torch.Tensor]:
    leaves = [getattr(pairs, n).clone().requires_grad_() for n in ("patches", "tokens")]
    loss = module(replace(pairs, patches=leaves[0], tokens=leaves[1])).total
    return [loss.detach(), *torch.autograd.grad(loss, [*leaves, *module.parameters()])]


@both
@pytest.mark.parametrize("images_and_reports", [0.5, 1, 2, 3, 8, 15])
def test_blocks_change_nothing(
    name: str, images_and_reports: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the loss nor a gradient depends on how many combinations are scored at once."""
    pairs, module = embeddings([6, 3, 0, 1, 5]), baseline(name)
    whole = _gradients(module, pairs)
    monkeypatch.setattr("aga.objectives.pairwise.BLOCK", int(images_and_reports * 6 * 6))
    for expected, found in zip(whole, _gradients(module, pairs), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("combinations", [1, 2, 4, 10])
def test_a_block_is_no_larger_than_its_bound(
    combinations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 6 * 7  # tokens, and the joint width, which is more than the patches
    monkeypatch.setattr("aga.objectives.pairwise.BLOCK", combinations * size)
    sizes = []

    def score(patches: torch.Tensor, tokens: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        sizes.append(len(patches) * len(tokens))
        return torch.zeros(3, len(patches), len(tokens))

    pairs = embeddings([6, 3, 0, 1, 5], width=7)
    tokens, content = pairs.tokens.repeat(2, 1, 1), pairs.content_mask.repeat(2, 1)
    assert blockwise(score, pairs.patches, tokens, content).shape == (3, 5, 10)
    assert max(sizes) <= combinations
    assert sum(sizes) == 50


@both
def test_blocks_keep_nothing_of_the_combinations_for_the_backward_pass(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, module = embeddings([9] * 8, patches=9, width=4, padded=9), baseline(name, 4)
    pairs.patches.requires_grad_()
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for size in (2**22, 8 * 81):
        monkeypatch.setattr("aga.objectives.pairwise.BLOCK", size)
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            module(pairs)
    assert kept[0] - kept[1] >= 8 * 8 * 9 * 9  # in one block they are


def test_a_row_of_an_unreadable_pair_adds_nothing_and_is_counted() -> None:
    scores = torch.tensor([[1.0, 5.0, 2.0], [0.0, 9.0, 0.0]], dtype=torch.float64)
    readable, own = torch.tensor([True, False, True]), torch.tensor([0, 1])
    found = score_nce(scores, own, readable, 2.0)
    assert found.item() == pytest.approx(math.log(1 + math.exp(2.0)) / 2, rel=1e-12)


@both
def test_global_embeddings_do_not_touch_the_fine_term(name: str) -> None:
    pairs, module = embeddings([3, 4, 2]), baseline(name)
    other = replace(pairs, image=pairs.image + 1, text=pairs.text - 1)
    assert module(other).terms["fine"].equal(module(pairs).terms["fine"])
    assert not module(other).terms["contrast"].equal(module(pairs).terms["contrast"])
    assert module.inside(pairs) == {}


def test_filip_compares_directions_and_not_lengths() -> None:
    pairs, module = embeddings([3, 4, 2]), baseline("filip")
    longer = replace(pairs, patches=3 * pairs.patches, tokens=pairs.tokens / 2)
    torch.testing.assert_close(terms(module, longer), terms(module, pairs))
    torch.testing.assert_close(module.local_scores(longer), module.local_scores(pairs))


def test_filip_learns_its_temperature_down_to_a_hundredth() -> None:
    module = baseline("filip")
    with torch.no_grad():
        module.fine.log_scale.fill_(9.0)
    module(embeddings([3, 4, 2])).total.backward()
    assert module.fine.temperature.item() == pytest.approx(0.01)
    assert module.fine.log_scale.grad.abs() > 0


def test_filip_without_contrast_computes_none_and_says_what_that_leaves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        module = baseline("filip", weights={"contrast": 0.0, "fine": 1.0})
    assert "objective.filip.weights.contrast" in caplog.text
    assert list(module(embeddings([3, 2])).terms) == ["fine"]
    assert [name for name, _ in module.named_parameters()] == ["fine.log_scale"]


def test_a_longer_patch_turns_the_attention_of_gloria() -> None:
    """The products are not normalised: a patch of thrice the length has other shares."""
    pairs, module = embeddings([6, 6]), baseline("gloria")
    long = pairs.patches.clone()
    long[:, 0] *= 3
    before, after = (module.maps(replace(pairs, patches=p)) for p in (pairs.patches, long))
    assert not torch.allclose(before.token_to_patch, after.token_to_patch)


def test_the_score_of_gloria_grows_with_the_words() -> None:
    """One patch is all that there is to read: a word said twice adds log 2, exactly."""
    pairs, module = embeddings([1, 1], patches=1, padded=1), baseline("gloria")
    of_tokens = vars(pairs).keys() - {"patches", "image", "text"}
    twice = replace(pairs, **{n: torch.cat([getattr(pairs, n)] * 2, 1) for n in of_tokens})
    more = module.local_scores(twice) - module.local_scores(pairs)
    torch.testing.assert_close(more, torch.full_like(more, math.log(2)))


def test_gloria_learns_nothing_of_its_own() -> None:
    assert list(baseline("gloria").parameters()) == []


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (FilipConfig, {"temperature": 0.005}),
        (FilipConfig, {"contrast_temperature": 0.0}),
        (FilipConfig, {"weights": {"contrast": 1.0, "fine": 0.0}}),
        (FilipConfig, {"weights": {"contrast": -1.0, "fine": 1.0}}),
        (GloriaConfig, {"attention_factor": 0.0}),
        (GloriaConfig, {"word_factor": -5.0}),
        (GloriaConfig, {"nce_factor": 0.0}),
        (GloriaConfig, {"weights": {"contrast": 0.0, "fine": 1.0}}),
        (GloriaConfig, {"weights": {"contrast": 1.0}}),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused(config: type, change: dict) -> None:
    name = config.__name__.removesuffix("Config").lower()
    with pytest.raises(ValidationError):
        config.model_validate(block(name, **change))
