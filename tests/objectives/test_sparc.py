"""SPARC: its loops, its gradient, AGA's groups where both are defined alike, and its claims."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from baselines import EXACT, baseline, block, terms
from builders import assert_maps_of_tokens, embeddings, objective, settings, without_padding
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import ValidationError
from reference import alignment, sparc

from aga.objectives import SparcConfig
from aga.objectives.sparc import visual_group_weights
from aga.tensors import normalize

seeds = st.integers(0, 2**31 - 1)
lengths = st.lists(st.integers(0, 6), min_size=1, max_size=4)
few = examples(max_examples=20, deadline=None)


@pytest.mark.parametrize("counts", [[6, 3, 1, 5], [4], [0, 2], [0]], ids=str)
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_sparc_equals_the_reference(counts: list[int], temperature: float) -> None:
    pairs = embeddings(counts)
    module = baseline("sparc", temperature=temperature, contrast_temperature=0.2)
    found = module(pairs).terms
    scale = math.exp(torch.tensor(-math.log(0.2)).item())
    expected = {
        "contrast": 0.5 * alignment.info_nce(pairs.image.tolist(), pairs.text.tolist(), scale),
        "fine": sparc.fine_term(without_padding(pairs), temperature),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].item(), value, **EXACT)
    torch.testing.assert_close(module.inside(pairs)["fine"].item(), expected["fine"], **EXACT)


def test_weights_maps_and_sizes_equal_the_reference() -> None:
    pairs = embeddings([6, 3, 1, 0])
    weights, sizes = visual_group_weights(pairs)
    maps = baseline("sparc").maps(pairs)
    assert maps.token_to_patch.equal(weights)
    assert_maps_of_tokens(maps)
    for b, pair in enumerate(without_padding(pairs)):
        mask = pairs.content_mask[b]
        expected = torch.tensor(sparc.weights(pair), dtype=torch.float64).reshape(-1, 5)
        torch.testing.assert_close(weights[b][mask], expected, **EXACT)
        assert sizes[b][mask].equal((expected > 0).sum(-1))
        assert weights[b][~mask].eq(0).all()


def test_vectors_of_length_one_make_the_groups_of_aga_at_its_fixed_uniform_threshold() -> None:
    """A product of unit vectors is a cosine: steps 2 to 6 of the token side are then the same."""
    pairs = embeddings([6, 3, 1, 0])
    pairs = replace(pairs, tokens=normalize(pairs.tokens), patches=normalize(pairs.patches))
    values = settings(
        gate__kind="fixed",
        gate__init="uniform",
        iga__patch_weight=0.0,
        iga__duplicates="negative",
        iga__temperature=0.07,
    )
    aga, module = objective(values, width=6), baseline("sparc", temperature=0.07)
    weights, sizes = visual_group_weights(pairs)
    groups = aga.groups(pairs)
    torch.testing.assert_close(weights, groups.token_to_patch, **EXACT)
    assert sizes.equal(groups.visual_sizes)
    torch.testing.assert_close(module.inside(pairs)["fine"], aga.inside(pairs)["iga"], **EXACT)
    torch.testing.assert_close(module.local_scores(pairs), aga.local_scores(pairs), **EXACT)


def test_the_similarity_is_the_raw_product() -> None:
    """A longer patch is chosen more; AGA's cosines would not see its length."""
    pairs = embeddings([6, 6])
    long = pairs.patches.clone()
    long[:, 0] *= 3
    aga = objective(settings(gate__kind="fixed", gate__init="uniform"), width=6)
    before, after = (
        visual_group_weights(replace(pairs, patches=p))[0] for p in (pairs.patches, long)
    )
    assert not torch.allclose(before, after)
    torch.testing.assert_close(
        aga.groups(pairs).token_to_patch, aga.groups(replace(pairs, patches=long)).token_to_patch
    )


@few
@given(lengths, seeds)
def test_weights_are_shares_and_no_group_is_empty(lengths: list[int], seed: int) -> None:
    pairs = embeddings(lengths, seed=seed)
    weights, sizes = visual_group_weights(pairs)
    torch.testing.assert_close(weights.sum(-1), pairs.content_mask.double())
    assert sizes[pairs.content_mask].ge(1).all()


def test_many_patches_and_tokens_in_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, module = embeddings([6, 3, 0, 1]), baseline("sparc")
    whole = terms(module, pairs)
    monkeypatch.setattr("aga.objectives.contrastive.CHUNK", 2)
    torch.testing.assert_close(terms(module, pairs), whole, **EXACT)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0},
        {"contrast_temperature": 0.005},
        {"weights": {"contrast": 0.5, "fine": 0.0}},
        {"weights": {"contrast": 0.5}},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused(change: dict) -> None:
    with pytest.raises(ValidationError):
        SparcConfig.model_validate(block("sparc", **change))
