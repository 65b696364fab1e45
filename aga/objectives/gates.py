"""Threshold gates: how similar an element must be to join a group (docs/method.md, step 4)."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from aga.config import Config

STATISTICS = 3  # mean, maximum and standard deviation of a query's similarities
UNIFORM_LIMIT = 1e-4  # keeps the logit of 1/1 finite


class GateConfig(Config):
    """How group membership is decided.

    Attributes:
        kind: `mlp`, a threshold for each query of each pair; `scalar`, one learned threshold;
            `fixed`, `init` for ever.
        init: The threshold at the start; `uniform` is one over the number of elements to choose
            from: 1/P for a token, one over the content tokens of its report for a patch.
        hidden: Width of the MLP's hidden layer.
        temperature: Width of the soft step `s = σ((Ŝ − θ)/temperature)`; a narrower one than 0.02
            underflows in float32.
        relaxation: What passes gradients to the gate: `straight_through` (a hard choice with the
            soft one's gradient), `soft` (the soft choice itself), `hard` (nothing does: the gates
            stay as they start).
    """

    kind: Literal["mlp", "scalar", "fixed"]
    init: Annotated[float, Field(gt=0, lt=1)] | Literal["uniform"]
    hidden: Annotated[int, Field(gt=0)]
    temperature: Annotated[float, Field(ge=0.02)]
    relaxation: Literal["straight_through", "soft", "hard"]


class ThresholdGate(nn.Module):
    """A learned threshold `θ = σ(logit(init) + f(features))`, where `f` starts at 0.

    Args:
        width: Joint width `D`.
        config: Kind, start and hidden width.
    """

    def __init__(self, width: int, config: GateConfig) -> None:
        super().__init__()
        self.init = config.init
        self.offset: nn.Module | nn.Parameter | None = None
        if config.kind == "mlp":
            last = nn.Linear(config.hidden, 1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            first = nn.Linear(width + STATISTICS, config.hidden)
            self.offset = nn.Sequential(first, nn.GELU(), last)
        elif config.kind == "scalar":
            self.offset = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        queries: Float[Tensor, "B X D"],
        statistics: Float[Tensor, "B X 3"],
        choices: Float[Tensor, "B"],
    ) -> Float[Tensor, "B X"]:
        """Thresholds in (0, 1).

        Args:
            queries: Unit vectors, of the tokens or of the patches.
            statistics: Of each query's similarities; see `grouping.statistics`.
            choices: Number of elements each query of a pair may choose from; at least 1.
        """
        start = 1 / choices if self.init == "uniform" else torch.full_like(choices, self.init)
        start = start[:, None].expand(queries.shape[:2])
        if self.offset is None:
            return start
        logit = start.logit(eps=UNIFORM_LIMIT)
        if isinstance(self.offset, nn.Parameter):
            return (logit + self.offset).sigmoid()
        first, activation, last = cast("nn.Sequential", self.offset)
        weight, bias = cast("nn.Linear", first).parameters()
        # One layer of both kinds of feature, without a joint copy of them.
        hidden = nn.functional.linear(queries, weight[:, :-STATISTICS], bias)
        hidden = hidden + nn.functional.linear(statistics, weight[:, -STATISTICS:])
        offset: Tensor = last(activation(hidden))
        return (logit + offset[..., 0]).sigmoid()
