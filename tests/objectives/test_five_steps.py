"""The losses of five steps of each objective, as they were when last reviewed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from builders import embeddings, objective_config
from torch import nn

from aga.objectives import OBJECTIVES, build_objective
from aga.training.optimizer import OptimizerConfig, build_optimizer, learning_rate

STEPS, WIDTH = 5, 8
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-2,
    min_learning_rate=1e-3,
    weight_decay=0.05,
    betas=(0.9, 0.98),
    warmup_fraction=0.2,
    gradient_clip=1.0,
)


def _losses(name: str) -> list[float]:
    """Of linear encoders on one batch; float64, so that no processor's rounding moves a choice."""
    torch.manual_seed(0)
    network = nn.ModuleDict(
        {
            "patches": nn.Linear(6, WIDTH),
            "tokens": nn.Linear(6, WIDTH),
            "objective": build_objective(objective_config(name), WIDTH),
        }
    ).double()
    optimizer, losses = build_optimizer(network, OPTIMIZER), []
    batch = embeddings([6, 3, 5, 1, 0, 4], width=6)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, OPTIMIZER)
        patches, tokens = network["patches"](batch.patches), network["tokens"](batch.tokens)
        image, text = patches.mean(1).tanh(), tokens.mean(1).tanh()
        pairs = replace(batch, patches=patches, tokens=tokens, image=image, text=text)
        loss = network["objective"](pairs).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(f"{loss.item():.6g}"))
    return losses


def test_five_steps(golden: Callable[..., None]) -> None:
    """Each falls, and by as much as before."""
    losses = {name: _losses(name) for name in OBJECTIVES}
    assert all(steps == sorted(steps, reverse=True) for steps in losses.values()), losses
    golden("five_steps", losses, rtol=1e-4)
