"""Diagnostics are what their names say, and each collapse is named when it happens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from baselines import baseline
from builders import embeddings, objective, settings

from aga.objectives import collapse_warnings
from aga.pairs import PairEmbeddings


def _diagnostics(pairs: PairEmbeddings, **change: object) -> dict[str, torch.Tensor]:
    return objective(settings(**change), width=6)(pairs).diagnostics


def test_group_and_threshold_diagnostics_equal_plain_counts() -> None:
    pairs = embeddings([6, 3, 1, 0])
    module = objective(settings(), width=6)
    groups, found = module.groups(pairs), module(pairs).diagnostics
    sizes, thetas, patch_sizes, patch_thetas, full, single = [], [], [], [], 0, 0
    for b in range(4):
        words = int(pairs.content_mask[b].sum())
        for position in pairs.content_mask[b].nonzero()[:, 0].tolist():
            sizes.append(int((groups.token_to_patch[b, position] > 0).sum()))
            thetas.append(groups.token_thresholds[b, position].item())
        for place in range(5 if words else 0):
            size = int((groups.patch_to_token[b, place] > 0).sum())
            patch_sizes.append(size)
            patch_thetas.append(groups.patch_thresholds[b, place].item())
            full += words > 1 and size == words
            single += words > 1 and size == 1
    expected = {
        "group/visual_size": sum(sizes) / len(sizes),
        "group/visual_full": sizes.count(5) / len(sizes),
        "group/visual_single": sizes.count(1) / len(sizes),
        "group/language_size": sum(patch_sizes) / len(patch_sizes),
        "group/language_full": full / len(patch_sizes),
        "group/language_single": single / len(patch_sizes),
    }
    for side, values in (("token", thetas), ("patch", patch_thetas)):
        column = torch.tensor(values, dtype=torch.float64)
        expected[f"gate/{side}_threshold_mean"] = column.mean().item()
        expected[f"gate/{side}_threshold_p05"] = column.quantile(0.05).item()
        expected[f"gate/{side}_threshold_p95"] = column.quantile(0.95).item()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-6), name


def test_likeness_is_the_mean_cosine() -> None:
    pairs = embeddings([6, 3])
    words = [x[mask] for x, mask in zip(pairs.tokens, pairs.content_mask, strict=True)]
    for name, vectors in (("token", words), ("patch", pairs.patches)):
        cosines = [
            torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1).mean()
            for x in vectors
        ]
        found = _diagnostics(pairs)[f"embedding/{name}_cosine"]
        torch.testing.assert_close(found, torch.stack(cosines).mean())


def test_spread_is_the_deviation_of_directions() -> None:
    pairs = embeddings([6, 3, 1])
    found = _diagnostics(pairs)
    for name in ("image", "text"):
        units = torch.nn.functional.normalize(getattr(pairs, name), dim=-1)
        distances = (units - units.mean(0)).square().sum(-1)
        torch.testing.assert_close(found[f"embedding/{name}_std"], distances.mean().sqrt())


def test_a_healthy_batch_warns_of_nothing() -> None:
    assert collapse_warnings(_diagnostics(embeddings([6, 5, 4] * 4))) == {}


HEALTHY = embeddings([6, 5, 4] * 4)
COLLAPSES = {
    "all images": (replace(HEALTHY, image=HEALTHY.image[:1].expand(12, -1)), {}),
    "all reports": (replace(HEALTHY, text=HEALTHY.text[:1].expand(12, -1)), {}),
    "the patches of an image": (
        replace(HEALTHY, patches=HEALTHY.patches[:, :1].expand(-1, 5, -1)),
        {},
    ),
    "the tokens of a report": (
        replace(HEALTHY, tokens=HEALTHY.tokens[:, :1].expand(-1, 6, -1)),
        {},
    ),
    "every token chooses every patch": (HEALTHY, {"gate__kind": "fixed", "gate__init": 1e-6}),
    "every patch chooses every token": (HEALTHY, {"gate__kind": "fixed", "gate__init": 1e-6}),
    "every token chooses a single": (HEALTHY, {"gate__kind": "fixed", "gate__init": 0.9999}),
    "every patch chooses a single": (HEALTHY, {"gate__kind": "fixed", "gate__init": 0.9999}),
    "lower limit": (HEALTHY, {"contrast__temperature": 0.01}),
}


@pytest.mark.parametrize("sentence", COLLAPSES)
def test_each_collapse_is_named(sentence: str) -> None:
    pairs, change = COLLAPSES[sentence]
    warnings = collapse_warnings(_diagnostics(pairs, **change))
    assert any(sentence in warning for warning in warnings.values()), warnings


def test_one_pair_has_no_spread_and_no_warning_of_it() -> None:
    found = _diagnostics(embeddings([6]))
    assert "embedding/image_std" not in found
    assert not any("embedding" in name for name in collapse_warnings(found))


def test_a_batch_without_words_has_finite_diagnostics() -> None:
    found = _diagnostics(embeddings([0, 0]))
    assert all(value.isfinite() for value in found.values())


def test_image_dependence_compares_with_an_image_half_a_batch_away() -> None:
    """Pairs of one patient are neighbours."""
    module, pairs = objective(settings(), width=6), embeddings([6, 5, 4, 6])
    other = replace(pairs, patches=pairs.patches[[2, 3, 0, 1]])
    expected = (module(pairs).terms["iga"] - module(other).terms["iga"]).detach()
    found = module.image_dependence(pairs)["iga/image_dependence"]
    torch.testing.assert_close(found, expected)


def test_image_dependence_is_the_difference_to_another_image() -> None:
    module = objective(settings(weights__iga=2.0), width=6)
    pairs = embeddings([6, 5, 4])
    other = replace(pairs, patches=pairs.patches[[2, 0, 1]])
    found, own, swapped = module.image_dependence(pairs), module(pairs), module(other)
    for name, weight in (("iga", 2.0), ("bcga", 0.5)):
        expected = (own.terms[name] - swapped.terms[name]).detach() / weight
        torch.testing.assert_close(found[f"{name}/image_dependence"], expected)
    gap = (module.local_scores(pairs).mean() - module.local_scores(other).mean()).detach()
    torch.testing.assert_close(found["local_score/image_gap"], gap)
    assert module.image_dependence(embeddings([6])) == {}


def test_blank_dependence_is_the_difference_to_an_image_that_shows_nothing() -> None:
    module, pairs = objective(settings(), width=6), embeddings([6, 5, 4])
    blank = torch.randn(1, 5, 6, dtype=torch.float64)
    shown = replace(pairs, patches=blank.expand(3, -1, -1))
    found, own, other = (
        module.image_dependence(pairs, blank),
        module.inside(pairs),
        module.inside(shown),
    )
    for name in ("iga", "bcga"):
        expected = (own[name] - other[name]).detach()
        torch.testing.assert_close(found[f"{name}/blank_dependence"], expected)
    gap = (module.local_scores(pairs) - module.local_scores(shown)).mean().detach()
    torch.testing.assert_close(found["local_score/blank_gap"], gap)


def test_terms_that_ignore_the_image_are_named() -> None:
    """The same image for all reports: an exchange changes nothing."""
    same = replace(HEALTHY, patches=HEALTHY.patches[:1].expand(12, -1, -1))
    found = objective(settings(), width=6).image_dependence(same)
    assert [w.split(" ")[0] for w in collapse_warnings(found).values()] == ["IGA", "BCGA"]
    assert not collapse_warnings({**found, "local_score/image_gap": 0.3})  # another term looks


@pytest.mark.parametrize(
    ("name", "term"), [("sparc", "fine"), ("mgca", "local"), ("prior", "local")]
)
def test_terms_of_the_baselines_that_ignore_the_image_are_named(name: str, term: str) -> None:
    same = replace(HEALTHY, patches=HEALTHY.patches[:1].expand(12, -1, -1))
    warnings = collapse_warnings(baseline(name).image_dependence(same))
    assert list(warnings) == [f"{term}/image_dependence"]
    assert warnings[f"{term}/image_dependence"].startswith(f"the {term} term is solved without")
