"""AdamW, which parameters decay, and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import AdamW

from aga.config import Config


class OptimizerConfig(Config):
    """Settings of the optimizer and of the learning rate.

    Attributes:
        learning_rate: The highest one, reached after the warm-up.
        min_learning_rate: The last one.
        weight_decay: Of matrices and kernels; see `decays`.
        betas: Decay rates of AdamW's two moments.
        warmup_fraction: Share of all steps in which the learning rate rises.
        gradient_clip: Largest L2 norm of all gradients together.
    """

    learning_rate: Annotated[float, Field(gt=0)]
    min_learning_rate: Annotated[float, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]
    gradient_clip: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError("min_learning_rate is above learning_rate")
        return self


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The learning rate of a step: a linear rise, then half a cosine down; a pure function.

    Args:
        step: Counted from 0; at most `total_steps - 1`.
        total_steps: Steps of the whole run.
        config: Heights and the share of the rise.
    """
    warmup = round(config.warmup_fraction * total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - 1 - warmup)
    height = 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_learning_rate + height * (config.learning_rate - config.min_learning_rate)


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay pulls a parameter towards zero.

    Not norms, biases and temperatures, which have fewer than two axes; nor threshold gates, whose
    zero is a threshold of one half and no simpler function.
    """
    return parameter.ndim >= 2 and "gate" not in name


def build_optimizer(network: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW over the parameters that want a gradient, in two groups: with weight decay, without."""
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trained if decays(name, p)]},
        {"params": [p for name, p in trained if not decays(name, p)], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )


def optimizer_tensors(optimizer: AdamW, network: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: `<parameter>/exp_avg`, ...; shares their memory."""
    names: dict[Tensor, str] = {p: name for name, p in network.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def load_optimizer_tensors(
    optimizer: AdamW, network: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave; a parameter that never had a gradient has none."""
    state: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        state.setdefault(parameter, {})[key] = tensor
    names = {parameter: name for name, parameter in network.named_parameters()}
    ordered = [names[p] for group in optimizer.param_groups for p in group["params"]]
    packed = optimizer.state_dict()
    packed["state"] = {i: state[name] for i, name in enumerate(ordered) if name in state}
    optimizer.load_state_dict(packed)
