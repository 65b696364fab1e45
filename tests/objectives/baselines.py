"""What the tests of the baselines share: their settings at a small size, and their claims."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from builders import committed
from torch.autograd import gradcheck

from aga.objectives import OBJECTIVES, Objective, ObjectiveConfig
from aga.pairs import PairEmbeddings

EXACT = {"rtol": 1e-10, "atol": 1e-12}
WIDTH = 6
VECTORS = ("patches", "tokens", "image", "text")


def block(name: str, **changes: object) -> dict:
    """The settings of an objective in params.yaml, with some values changed."""
    values = copy.deepcopy(committed()[name])
    assert changes.keys() <= values.keys(), changes
    return values | changes


def baseline(name: str, width: int = WIDTH, **changes: object) -> Objective:
    """A float64 objective whose parameters, if it draws any, follow a seed."""
    config = ObjectiveConfig.model_fields[name].annotation
    assert config is not None
    torch.manual_seed(0)
    return OBJECTIVES[name](config.model_validate(block(name, **changes)), width).double()


def terms(module: Objective, pairs: PairEmbeddings) -> torch.Tensor:
    found = module(pairs).terms
    return torch.stack([found[name] for name in sorted(found)]).detach()


def check_gradients(module: Objective, pairs: PairEmbeddings) -> None:
    """Gradcheck of the loss in the embeddings and in every parameter, along random directions."""
    leaves = [getattr(pairs, name).clone().requires_grad_() for name in VECTORS]
    parameters = [p for p in module.parameters() if p.requires_grad]

    def loss(*values: torch.Tensor) -> torch.Tensor:
        return module(replace(pairs, **dict(zip(VECTORS, values[:4], strict=True)))).total

    assert gradcheck(loss, (*leaves, *parameters), atol=1e-6, rtol=1e-5, fast_mode=True)
