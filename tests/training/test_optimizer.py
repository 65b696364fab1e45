"""The schedule's shape, which parameters decay, and an optimizer that goes on where it stopped."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from fixtures.small_runs import same_tensors, small_recipe
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from aga.training.optimizer import (
    OptimizerConfig,
    build_optimizer,
    decays,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
)

VALUES = {
    "learning_rate": 1e-3,
    "min_learning_rate": 1e-5,
    "weight_decay": 0.05,
    "betas": [0.9, 0.98],
    "warmup_fraction": 0.1,
    "gradient_clip": 1.0,
}
CONFIG = OptimizerConfig.model_validate(VALUES)


def test_rises_linearly_then_falls_to_the_minimum() -> None:
    rates = [learning_rate(step, 101, CONFIG) for step in range(101)]
    assert rates[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(1e-3)
    assert rates[55] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[100] == pytest.approx(1e-5)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))


@given(st.integers(1, 500), st.floats(0, 0.99), st.data())
def test_stays_between_zero_and_the_highest(total: int, warmup: float, data: st.DataObject) -> None:
    config = CONFIG.model_copy(update={"warmup_fraction": warmup})
    step = data.draw(st.integers(0, total - 1))
    assert 0 < learning_rate(step, total, config) <= config.learning_rate * (1 + 1e-12)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.text.dense.weight", (4, 4), True),
        ("model.image.conv1.weight", (4, 1, 3, 3), True),
        ("model.text.dense.bias", (4,), False),
        ("model.text.LayerNorm.weight", (4,), False),
        ("objective.contrast.log_temperature", (), False),
        ("objective.token_gate.mlp.0.weight", (4, 7), False),
    ],
)
def test_what_decays(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert decays(name, torch.zeros(shape)) is expected


def test_the_gates_of_the_real_objective_are_named_as_expected() -> None:
    from aga.objectives import build_objective

    objective = build_objective(small_recipe().objective, 16)
    gates = [name for name, _ in objective.named_parameters() if "gate" in name]
    assert len(gates) >= 4
    assert not [
        name for name, p in objective.named_parameters() if "gate" in name and decays(name, p)
    ]


def test_frozen_parameters_are_left_out() -> None:
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    groups = build_optimizer(network, CONFIG).param_groups
    assert [len(group["params"]) for group in groups] == [1]


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": -1e-3}, {"min_learning_rate": 1.0}, {"betas": [0.9, 1.0]}, {"momentum": 1}],
)
def test_wrong_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        OptimizerConfig.model_validate(VALUES | change)


def network() -> nn.Module:
    torch.manual_seed(0)
    # The last layer never gets a gradient, as that of a term of weight 0.
    return nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, count: int) -> None:
    for step in range(first, first + count):
        optimizer.zero_grad(set_to_none=True)
        data = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        net["used"](data).square().mean().backward()  # type: ignore[index]
        optimizer.step()


def test_restored_optimizer_makes_the_same_steps() -> None:
    straight = network()
    optimizer = build_optimizer(straight, CONFIG)
    steps(straight, optimizer, 0, 5)

    stopped = network()
    before = build_optimizer(stopped, CONFIG)
    steps(stopped, before, 0, 2)
    moments = {name: t.clone() for name, t in optimizer_tensors(before, stopped).items()}
    assert {name.rpartition("/")[0] for name in moments} == {"used.weight", "used.bias"}
    after = build_optimizer(stopped, CONFIG)
    load_optimizer_tensors(after, stopped, moments)
    steps(stopped, after, 2, 3)
    assert same_tensors(straight.state_dict(), stopped.state_dict())
    assert same_tensors(optimizer_tensors(optimizer, straight), optimizer_tensors(after, stopped))
