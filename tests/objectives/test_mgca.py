"""MGCA: its loops, its gradient with codes held still, and its claims."""

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
from reference import alignment, mgca
from torch.autograd import gradcheck

from aga.objectives import MgcaConfig
from aga.objectives.mgca import sinkhorn, swapped_prediction

PROTOTYPES = {"count": 7, "temperature": 0.2, "epsilon": 0.05, "iterations": 3}
seeds = st.integers(0, 2**31 - 1)
lengths = st.lists(st.integers(0, 6), min_size=1, max_size=4)
few = examples(max_examples=20, deadline=None)


@pytest.mark.parametrize("counts", [[6, 3, 1, 5], [4], [0, 2], [0]], ids=str)
@pytest.mark.parametrize("iterations", [1, 3])
def test_mgca_equals_the_reference(counts: list[int], iterations: int) -> None:
    pairs = embeddings(counts)
    prototypes = PROTOTYPES | {"iterations": iterations}
    weights = {"contrast": 0.5, "local": 2.0, "prototype": 3.0}
    module = baseline("mgca", prototypes=prototypes, weights=weights)
    found, parameters = module(pairs), state(module)
    images, texts = pairs.image.tolist(), pairs.text.tolist()
    scale = math.exp(torch.tensor(-math.log(0.07)).item())
    local = mgca.local_term(without_padding(pairs), 0.1, parameters)
    expected = {
        "contrast": alignment.info_nce(images, texts, scale),
        "local": local,
        "prototype": mgca.prototype_term(images, texts, parameters["prototypes"], prototypes),
    }
    assert found.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found.terms[name].item(), weights[name] * value, **EXACT)
    torch.testing.assert_close(module.inside(pairs)["local"].item(), local, **EXACT)
    sides = found.diagnostics["local/token"] + found.diagnostics["local/patch"]
    torch.testing.assert_close(sides.item(), 2 * local, **EXACT)


def test_maps_and_scores_equal_the_reference() -> None:
    pairs, module = embeddings([6, 3, 1]), baseline("mgca")
    maps, scores, parameters = module.maps(pairs), module.local_scores(pairs), state(module)
    for b, pair in enumerate(without_padding(pairs)):
        mask = pairs.content_mask[b]
        tokens = [alignment.unit(t) for t in pair.tokens]
        patches = [alignment.unit(v) for v in pair.patches]
        own = alignment.within(parameters, "token_attention")
        read = alignment.attend(tokens, patches, 1, own)
        score = alignment.mean(
            [alignment.dot(t, alignment.unit(r)) for t, r in zip(tokens, read, strict=True)]
        )
        back = alignment.within(parameters, "patch_attention")
        for got, want in (
            (maps.token_to_patch[b][mask], mgca.attention(tokens, patches, own)),
            (maps.patch_to_token[b][:, mask], mgca.attention(patches, tokens, back)),
            (scores[b], score),
        ):
            torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), **EXACT)


def test_the_maps_are_the_weights_that_the_attention_reads_with() -> None:
    pairs, module = embeddings([6, 3]), baseline("mgca")
    attention = module.token_attention
    every = torch.ones(2, 5).bool()
    _, value = attention.key_value(pairs.patches).chunk(2, -1)
    weights = attention.weights(pairs.tokens, pairs.patches, every)
    read = attention.output(weights @ value)
    torch.testing.assert_close(read, attention(pairs.tokens, pairs.patches, every), **EXACT)


@few
@given(lengths, seeds)
def test_attention_is_shares(lengths: list[int], seed: int) -> None:
    pairs, module = embeddings(lengths, seed=seed), baseline("mgca")
    maps, content = module.maps(pairs), pairs.content_mask
    torch.testing.assert_close(maps.token_to_patch.sum(-1), content.double())
    readable = content.any(-1, keepdim=True).expand(-1, 5)
    torch.testing.assert_close(maps.patch_to_token.sum(-1), readable.double())
    assert module.local_scores(pairs).abs().le(1 + 1e-9).all()


@few
@given(st.integers(1, 6), st.integers(1, 9), seeds)
def test_codes_are_shares_and_many_iterations_use_all_prototypes_equally(
    pairs: int, count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(pairs, count, generator=generator, dtype=torch.float64) * 2 - 1
    for iterations in (1, 3):
        shares = sinkhorn(scores, 0.05, iterations).sum(1)
        torch.testing.assert_close(shares, torch.ones(pairs, dtype=torch.float64))
    used = sinkhorn(scores, 0.5, 500).sum(0)
    equal = torch.full((count,), pairs / count, dtype=torch.float64)
    torch.testing.assert_close(used, equal, rtol=1e-3, atol=1e-3)


def test_cold_codes_stay_finite_in_float32() -> None:
    scores = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])
    assert sinkhorn(scores, 0.001, 3).isfinite().all()


def test_codes_have_no_gradient() -> None:
    """The gradient is the same as if the codes had been numbers."""
    torch.manual_seed(0)
    image, text = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    pairs = replace(embeddings([2, 2, 2], width=4), image=image, text=text)
    module = baseline("mgca", width=4, prototypes=PROTOTYPES)
    (module(pairs).terms["prototype"]).backward()
    sides = [torch.nn.functional.normalize(x, dim=-1) for x in (image, text, module.prototypes)]
    scores = [sides[0] @ sides[2].T, sides[1] @ sides[2].T]
    numbers = [sinkhorn(s, 0.05, 3).detach() for s in scores]
    expected = torch.autograd.grad(swapped_prediction(*scores, *numbers, 0.2), (image, text))
    torch.testing.assert_close((image.grad, text.grad), expected, **EXACT)
    assert gradcheck(
        lambda *s: swapped_prediction(*s, *numbers, 0.2),
        [s.detach().requires_grad_() for s in scores],
    )


def test_the_length_of_a_prototype_does_not_matter() -> None:
    pairs, module = embeddings([3, 2, 4]), baseline("mgca")
    before = terms(module, pairs)
    with torch.no_grad():
        module.prototypes.mul_(torch.rand(500, 1, dtype=torch.float64) + 0.5)
    torch.testing.assert_close(terms(module, pairs), before, **EXACT)


def test_the_global_temperature_is_not_learned_and_all_else_gets_a_gradient() -> None:
    module = baseline("mgca")
    module(embeddings([3, 0])).total.backward()
    still = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert still == {"contrast.log_scale"}
    assert all((p.grad is not None) == p.requires_grad for p in module.parameters())


def test_many_patches_in_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, module = embeddings([6, 3, 0, 1]), baseline("mgca")
    whole = terms(module, pairs)
    monkeypatch.setattr("aga.objectives.contrastive.CHUNK", 2)
    torch.testing.assert_close(terms(module, pairs), whole, **EXACT)


@pytest.mark.parametrize(
    "change",
    [
        {"local_temperature": 0.0},
        {"contrast_temperature": 0.005},
        {"weights": {"contrast": 1.0, "local": 0.0, "prototype": 1.0}},
        {"prototypes": PROTOTYPES | {"count": 0}},
        {"prototypes": PROTOTYPES | {"epsilon": 0.0}},
        {"prototypes": PROTOTYPES | {"iterations": 0}},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused(change: dict) -> None:
    with pytest.raises(ValidationError):
        MgcaConfig.model_validate(block("mgca", **change))
