"""Gradients: gradcheck where the loss is smooth, a formula for the straight-through step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from baselines import check_gradients
from builders import embeddings, objective, settings
from torch.autograd import gradcheck

from aga.objectives.contrastive import Positions, pair_nce, symmetric_pair_nce
from aga.objectives.grouping import choose, scale, statistics
from aga.pairs import PairEmbeddings
from aga.tensors import normalize

SMOOTH = {"gate__relaxation": "soft"}


CASES: dict[str, Callable[[], PairEmbeddings]] = {
    "several tokens": lambda: embeddings([3, 2], patches=3, width=4, padded=3),
    "one token": lambda: embeddings([1, 3], patches=3, width=4, padded=3),
    "one patch": lambda: embeddings([3, 2], patches=1, width=4, padded=3),
    "a report of padding": lambda: embeddings([3, 0], patches=3, width=4, padded=3),
    "more tokens than D": lambda: embeddings([5, 2], patches=3, width=4, padded=5),
    "one pair": lambda: embeddings([3], patches=3, width=4, padded=3),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["residual", "pooled"])
def test_the_soft_objective_has_the_gradient_of_its_loss(case: str, form: str) -> None:
    values = settings(**SMOOTH, gate__hidden=3, bcga__form=form)
    check_gradients(objective(values, width=4), CASES[case]())


@pytest.mark.parametrize(
    "change",
    [
        {"scaling": "softmax"},
        {"scaling": "sigmoid"},
        {"gate__kind": "scalar"},
        {"gate__kind": "fixed", "gate__relaxation": "hard"},
        {"bcga__form": "plain", "contrast__form": "sigmoid"},
        {"iga__duplicates": "positive", "iga__patch_similarity": 0.3},
    ],
    ids=str,
)
def test_other_settings_have_the_gradient_of_their_loss(change: dict) -> None:
    values = settings(**{**SMOOTH, **change, "gate__hidden": 3})
    check_gradients(objective(values, width=4), embeddings([3, 2], patches=3, width=4, padded=3))


def test_two_equal_tokens_and_two_equal_patches_have_a_gradient() -> None:
    """At a tie of two, minimum and maximum split their gradient as a central difference does."""
    pairs = embeddings([3, 3], patches=3, width=4, padded=3)
    pairs.tokens[:, 1] = pairs.tokens[:, 0]
    pairs.patches[:, 1] = pairs.patches[:, 0]
    check_gradients(objective(settings(**SMOOTH, gate__hidden=3), width=4), pairs)


@pytest.mark.parametrize("scaling", ["minmax", "softmax", "sigmoid"])
def test_scaling_and_statistics_gradients(scaling: str) -> None:
    torch.manual_seed(0)
    cosines = (torch.rand(2, 3, 4, dtype=torch.float64) * 2 - 1).requires_grad_()
    elements = torch.tensor([[True, True, False, True], [True, False, False, False]])
    mask = elements[:, None, :].expand(2, 3, 4)
    assert gradcheck(lambda s: scale(s, mask, scaling, 0.5), (cosines,))
    assert gradcheck(lambda s: statistics(s, elements), (cosines,))


@pytest.mark.parametrize("duplicates", ["negative", "ignore", "positive"])
def test_pair_losses_gradients(duplicates: str) -> None:
    pairs = embeddings([4, 2, 1, 0], padded=4, patches=4, width=3)
    ids = Positions(pairs.content_mask, pairs.token_ids, duplicates)
    inputs = (pairs.tokens.requires_grad_(), pairs.patches.requires_grad_())
    index = torch.tensor([[0, 2]] * 4)
    assert gradcheck(lambda x, y: pair_nce(normalize(x), normalize(y), ids, 0.3, index), inputs)
    assert gradcheck(lambda x, y: symmetric_pair_nce(normalize(x), normalize(y), ids, 0.3), inputs)


@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_the_straight_through_gradient_is_its_formula(temperature: float) -> None:
    """Forward h; backward as if h were h + s: docs/method.md, step 5."""
    torch.manual_seed(1)
    scaled = torch.rand(2, 3, 5, dtype=torch.float64, requires_grad=True)
    theta = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 3, 5).bool()
    weights, sizes = choose(scaled, theta, mask, "straight_through", temperature)
    upstream = torch.randn_like(weights)
    weights.backward(upstream)

    with torch.no_grad():
        best = scaled == scaled.amax(-1, keepdim=True)
        hard = ((scaled >= theta[..., None]) | best).double()
        soft = ((scaled - theta[..., None]) / temperature).sigmoid()
        slope = scaled * soft * (1 - soft) / temperature
        total = (hard * scaled).sum(-1, keepdim=True)
        share = hard * scaled / total
        raw = (upstream - (upstream * share).sum(-1, keepdim=True)) / total
    torch.testing.assert_close(weights, share)
    torch.testing.assert_close(scaled.grad, raw * (hard + slope))
    torch.testing.assert_close(theta.grad, -(raw * slope).sum(-1))
    assert sizes.equal(hard.sum(-1).long())


def test_a_hard_choice_leaves_the_threshold_without_gradient() -> None:
    scaled = torch.rand(1, 2, 3, dtype=torch.float64, requires_grad=True)
    theta = torch.rand(1, 2, dtype=torch.float64, requires_grad=True)
    weights, _ = choose(scaled, theta, torch.ones(1, 2, 3).bool(), "hard", 0.1)
    weights.square().sum().backward()
    assert theta.grad is None
    assert scaled.grad is not None


@pytest.mark.parametrize("relaxation", ["straight_through", "soft"])
def test_the_loss_moves_both_gates(relaxation: str) -> None:
    module = objective(settings(gate__relaxation=relaxation), width=6, moved=False)
    module(embeddings([6, 4])).total.backward()
    for gate in (module.token_gate, module.patch_gate):
        assert gate.offset[2].bias.grad.abs() > 0


@pytest.mark.parametrize(
    ("change", "token_gate", "patch_gate"),
    [
        ({}, True, True),
        ({"gate__relaxation": "hard"}, False, False),
        ({"weights__bcga": 0.0, "iga__patch_weight": 0.0}, True, False),
        ({"weights__bcga": 0.0, "weights__iga": 0.0}, False, False),
    ],
    ids=str,
)
def test_every_trainable_parameter_gets_a_gradient(
    change: dict, token_gate: bool, patch_gate: bool
) -> None:
    """DDP waits for the gradient of every parameter: there may be none that gets none."""
    module = objective(settings(**change), width=6)
    module(embeddings([6, 4])).total.backward()
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    assert all(p.requires_grad == token_gate for p in module.token_gate.parameters())
    assert all(p.requires_grad == patch_gate for p in module.patch_gate.parameters())
