"""The objective and its parts equal slow loops to 1e-10 in float64, in every setting."""

from __future__ import annotations

import pytest
import torch
from builders import embeddings, objective, settings, state, without_padding
from reference import alignment

EXACT = {"rtol": 1e-10, "atol": 1e-12}

SETTINGS = {
    "default": {},
    "softmax": {"scaling": "softmax"},
    "sigmoid": {"scaling": "sigmoid"},
    "softmax uniform": {"scaling": "softmax", "gate__init": "uniform", "gate__kind": "fixed"},
    "scalar gate": {"gate__kind": "scalar"},
    "SPARC's rule": {"gate__kind": "fixed", "gate__init": "uniform"},
    "learned from uniform": {"gate__init": "uniform"},
    "low threshold": {"gate__init": 0.05},
    "high threshold": {"gate__init": 0.95},
    "soft": {"gate__relaxation": "soft"},
    "soft softmax": {"gate__relaxation": "soft", "scaling": "softmax"},
    "soft sigmoid": {"gate__relaxation": "soft", "scaling": "sigmoid"},
    "hard": {"gate__relaxation": "hard"},
    "duplicates are negatives": {"iga__duplicates": "negative"},
    "duplicates are positives": {"iga__duplicates": "positive", "iga__patch_similarity": 0.1},
    "duplicates are ignored": {"iga__duplicates": "ignore", "iga__patch_similarity": 0.1},
    "no patch side": {"iga__patch_weight": 0.0},
    "half patch side": {"iga__patch_weight": 0.5, "iga__temperature": 0.3},
    "plain": {"bcga__form": "plain"},
    "pooled": {"bcga__form": "pooled"},
    "one head": {"bcga__heads": 1, "bcga__temperature": 0.4},
    "sigmoid contrast": {"contrast__form": "sigmoid", "contrast__temperature": 0.2},
    "no contrast": {"weights__contrast": 0.0},
    "no iga": {"weights__iga": 0.0},
    "no bcga": {"weights__bcga": 0.0},
    "all weights": {"weights__contrast": 0.3, "weights__iga": 2.0, "weights__bcga": 0.7},
}


@pytest.mark.parametrize("tokens", [6, 4], ids=["as many tokens as D", "fewer tokens"])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_whole_objective_equals_the_reference(name: str, tokens: int) -> None:
    values = settings(**SETTINGS[name])
    module = objective(values, width=6)
    pairs = embeddings([tokens, 3, 1, 0, 4], padded=tokens)
    found = module(pairs)
    expected = alignment.objective(
        without_padding(pairs), pairs.image.tolist(), pairs.text.tolist(), values, state(module)
    )
    assert found.terms.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(found.terms[term].item(), value, **EXACT)
    torch.testing.assert_close(found.total.item(), sum(expected.values()), **EXACT)


@pytest.mark.parametrize("name", ["default", "softmax", "sigmoid", "scalar gate", "soft", "hard"])
def test_groups_and_scores_equal_the_reference(name: str) -> None:
    values = settings(**SETTINGS[name])
    module = objective(values, width=6)
    pairs = embeddings([6, 3, 1, 5])
    found, scores = module.groups(pairs), module.local_scores(pairs)
    for b, pair in enumerate(without_padding(pairs)):
        expected = alignment.groups(pair, values, state(module))
        mask = pairs.content_mask[b]
        for got, want in (
            (found.visual.vectors[b][mask], expected.visual),
            (found.language.vectors[b], expected.language),
            (found.token_to_patch[b][mask], expected.token_to_patch),
            (found.patch_to_token[b][:, mask], expected.patch_to_token),
            (found.token_thresholds[b][mask], expected.token_thresholds),
            (found.patch_thresholds[b], expected.patch_thresholds),
            (scores[b], alignment.group_score(pair, expected)),
        ):
            torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), **EXACT)
        assert found.token_to_patch[b][~mask].eq(0).all()
        assert found.patch_to_token[b][:, ~mask].eq(0).all()


@pytest.mark.parametrize("duplicates", ["negative", "ignore", "positive"])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, duplicates: str) -> None:
    """Neither the loss nor a gradient depends on how many queries are compared at once."""
    values = settings(iga__duplicates=duplicates, iga__patch_similarity=0.1)
    results = []
    for chunk in (256, 2):
        monkeypatch.setattr("aga.objectives.contrastive.CHUNK", chunk)
        module = objective(values, width=6)
        pairs = embeddings([6, 3, 0, 1])
        pairs.patches.requires_grad_()
        pairs.tokens.requires_grad_()
        loss = module(pairs).total
        loss.backward()
        gates = [p.grad for p in module.parameters()]
        results.append([loss, pairs.patches.grad, pairs.tokens.grad, *gates])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(whole, chunked, **EXACT)


def test_every_subset_of_patches_together_gives_the_whole_loss() -> None:
    """Sampling is unbiased: the mean over every possible sample is the loss of all patches."""
    from itertools import combinations

    from aga.objectives.contrastive import Positions, symmetric_pair_nce
    from aga.tensors import normalize

    pairs = embeddings([6, 6], patches=6, padded=6)
    first, second = normalize(pairs.patches), normalize(pairs.tokens)
    positions = Positions(torch.ones(2, 6).bool(), first, "ignore", 0.1)
    subsets = [torch.tensor([chosen, chosen]) for chosen in combinations(range(6), 2)]
    sampled = [symmetric_pair_nce(first, second, positions, 0.2, index) for index in subsets]
    whole = symmetric_pair_nce(first, second, positions, 0.2)
    torch.testing.assert_close(torch.stack(sampled).mean(0), whole, **EXACT)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_local_scores_are_of_the_space_that_makes_the_maps(weight: float) -> None:
    values = settings(projection="own", weights__dependence=weight)
    module, pairs = objective(values, width=6), embeddings([6, 3, 1, 0])
    patches, tokens = pairs.patches, pairs.tokens
    if not weight:
        patches, tokens = module.own_patches(patches), module.own_tokens(tokens)
    if weight:
        patches = torch.nn.functional.normalize(patches, dim=-1)
    groups = module.maps(pairs).token_to_patch @ patches
    cosines = torch.cosine_similarity(groups, tokens, dim=-1)
    expected = [
        c[m].mean() if m.any() else c.new_zeros(())
        for c, m in zip(cosines, pairs.content_mask, strict=True)
    ]
    torch.testing.assert_close(module.local_scores(pairs), torch.stack(expected), **EXACT)


def test_sampling_follows_the_seed_and_stops_in_evaluation() -> None:
    module = objective(settings(iga__max_patches=2), width=6)
    every = objective(settings(), width=6)
    pairs = embeddings([6, 3, 1])

    def sampled(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        terms = module(pairs).terms
        return torch.stack((terms["iga"], terms["bcga"])).detach()

    values = torch.stack([sampled(seed) for seed in range(100)])
    assert sampled(0).equal(values[0])
    assert values[0].ne(values[1]).all()
    whole = torch.stack([every(pairs).terms[name].detach() for name in ("iga", "bcga")])
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - whole).abs() < 4 * error).all()
    terms = module.eval()(pairs).terms
    torch.testing.assert_close(torch.stack((terms["iga"], terms["bcga"])), whole, **EXACT)
