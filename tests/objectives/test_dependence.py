"""The image-dependence term: slow loops, gradients, blocks, and what IGA leaves to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import (
    assert_maps_of_tokens,
    embeddings,
    objective,
    settings,
    state,
    take,
    with_padding,
    without_padding,
)
from reference import dependence
from torch.autograd import gradcheck

from aga.errors import ParamsError
from aga.objectives import AgaObjective
from aga.objectives.dependence import ImageDependence
from aga.pairs import PairEmbeddings

EXACT = {"rtol": 1e-10, "atol": 1e-12}
LENGTHS = [6, 3, 1, 0, 4, 2, 5]
ON = {"weights__dependence": 1.0, "dependence__block": 3, "dependence__threshold": 0.3}


def built(**changes: object) -> tuple[dict, AgaObjective, ImageDependence]:
    values = settings(**{**ON, **changes})
    module = objective(values, width=6)
    assert module.dependence is not None
    return values, module, module.dependence


def gate_of(module: AgaObjective) -> dict[str, list]:
    prefix = "dependence.gate."
    return {n.removeprefix(prefix): v for n, v in state(module).items() if n.startswith(prefix)}


@pytest.mark.parametrize("kind", ["mlp", "scalar", "fixed"])
@pytest.mark.parametrize("relaxation", ["straight_through", "soft", "hard"])
def test_the_term_equals_the_reference(kind: str, relaxation: str) -> None:
    values, module, term = built(gate__kind=kind, gate__relaxation=relaxation)
    pairs = embeddings(LENGTHS)
    scale = term.log_scale.exp().item()
    expected = dependence.term(without_padding(pairs), values, gate_of(module), scale)
    torch.testing.assert_close(module(pairs).terms["dependence"].item(), expected, **EXACT)


@pytest.mark.parametrize("relaxation", ["straight_through", "soft"])
@pytest.mark.parametrize("threshold", [1e-9, 0.3, 0.9])
def test_the_erased_image_is_one_more_candidate(threshold: float, relaxation: str) -> None:
    """At the lowest threshold words choose every patch, and nothing is left."""
    changes = {"dependence__threshold": threshold, "gate__relaxation": relaxation}
    values, module, term = built(dependence__erased=True, **changes)
    pairs, scale = embeddings(LENGTHS), term.log_scale.exp().item()
    expected = dependence.term(without_padding(pairs), values, gate_of(module), scale)
    found = module(pairs).terms["dependence"].item()
    torch.testing.assert_close(found, expected, **EXACT)
    plain = built(**changes)[1](pairs).terms["dependence"].item()
    assert found > plain


def test_scores_and_maps_equal_the_reference() -> None:
    values, module, term = built()
    pairs = embeddings(LENGTHS)
    tokens, patches = (
        torch.nn.functional.normalize(x, dim=-1) for x in (pairs.tokens, pairs.patches)
    )
    scores = term.scores(patches, tokens, pairs.content_mask)[0]
    gate, loops = gate_of(module), without_padding(pairs)
    for i, image in enumerate(loops):
        for r, report in enumerate(loops):
            expected = (
                dependence.found(report.tokens, image.patches, values, gate)
                if report.tokens
                else 0.0
            )
            torch.testing.assert_close(scores[i, r].item(), expected, **EXACT)
    torch.testing.assert_close(module.local_scores(pairs), scores.diagonal(), **EXACT)
    maps = module.maps(pairs)
    for b, pair in enumerate(loops):
        rows = [dependence.chosen(token, pair.patches, values, gate) for token in pair.tokens]
        found = maps.token_to_patch[b][pairs.content_mask[b]]
        torch.testing.assert_close(
            found, torch.tensor(rows, dtype=torch.float64).view_as(found), **EXACT
        )
        assert maps.token_to_patch[b][~pairs.content_mask[b]].eq(0).all()
    assert_maps_of_tokens(maps)


@pytest.mark.parametrize(("kind", "erased"), [("mlp", False), ("scalar", False), ("fixed", True)])
def test_the_gradient_is_that_of_the_loss(kind: str, erased: bool) -> None:
    """Of a soft gate: a straight-through one has another gradient on purpose."""
    _, _, term = built(gate__kind=kind, gate__relaxation="soft", dependence__erased=erased)
    pairs = embeddings([3, 2, 1, 3], patches=3, width=6, padded=3)
    parameters = [p for p in term.parameters() if p.requires_grad]

    def loss(patches: torch.Tensor, tokens: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return term(replace(pairs, patches=patches, tokens=tokens))

    inputs = (pairs.patches.requires_grad_(), pairs.tokens.requires_grad_(), *parameters)
    assert gradcheck(loss, inputs)


def test_padding_and_the_order_inside_a_block_change_nothing() -> None:
    _, module, _ = built()
    pairs = embeddings(LENGTHS)
    expected = module(pairs).terms["dependence"]
    turned = take(pairs, torch.tensor([2, 0, 1, 4, 5, 3, 6]))
    for same in (turned, with_padding(pairs, 3, 7.0)):
        torch.testing.assert_close(module(same).terms["dependence"], expected, **EXACT)


def test_a_single_pair_and_a_batch_without_words_add_nothing() -> None:
    _, module, _ = built()
    for lengths in ([4], [0, 0, 0]):
        pairs = embeddings(lengths)
        assert module(pairs).terms["dependence"].item() == 0


def test_blocks_of_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, module, _ = built()
    results = []
    for numbers in (2**22, 40):
        monkeypatch.setattr("aga.objectives.pairwise.BLOCK", numbers)
        pairs = embeddings(LENGTHS)
        pairs.patches.requires_grad_()
        loss = module(pairs).terms["dependence"]
        loss.backward()
        results.append((loss.detach(), pairs.patches.grad))
    for whole, cut in zip(*results, strict=True):
        torch.testing.assert_close(whole, cut, **EXACT)


def test_the_term_falls_where_reports_find_their_own_image() -> None:
    """A report whose words are patches of its image is told from those of other images."""
    _, module, _ = built()
    pairs = embeddings([5] * 6, padded=5)
    matched = replace(pairs, tokens=pairs.patches.clone())
    swapped = replace(matched, patches=matched.patches.roll(1, 0))
    low, high = (module(p).terms["dependence"].item() for p in (matched, swapped))
    assert low < module(pairs).terms["dependence"].item() < high
    assert module.image_dependence(matched)["local_score/image_gap"] > 0.1


def test_own_projections_keep_the_terms_inside_pairs_out_of_the_joint_space() -> None:
    own = objective(settings(**ON, projection="own"), width=6)
    pairs = embeddings(LENGTHS)
    projected = replace(
        pairs, patches=own.own_patches(pairs.patches), tokens=own.own_tokens(pairs.tokens)
    )
    shared = objective(settings(**ON), width=6)
    names = shared.state_dict().keys()
    shared.load_state_dict({n: v for n, v in own.state_dict().items() if n in names})
    for name, value in shared.inside(projected).items():
        torch.testing.assert_close(own.inside(pairs)[name], value, **EXACT)
    found, expected = own(pairs), shared(pairs)
    for name in ("contrast", "dependence"):
        torch.testing.assert_close(found.terms[name], expected.terms[name], **EXACT)
    assert own.maps(pairs).token_to_patch.equal(shared.maps(pairs).token_to_patch)


def test_several_processes_need_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, term = built()
    monkeypatch.setattr("aga.objectives.dependence.world_size", lambda: 2)
    whole: PairEmbeddings = embeddings([3] * 6)
    assert term(whole).isfinite()
    with pytest.raises(ParamsError, match=r"dependence.block"):
        term(embeddings([3] * 4))
