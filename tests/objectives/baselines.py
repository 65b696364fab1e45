"""What the tests of the baselines share: their settings at a small size, and their claims."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from builders import PARAMS, take, with_padding
from ruamel.yaml import YAML
from torch.autograd import gradcheck

from aga.objectives import OBJECTIVES, Objective, ObjectiveConfig
from aga.pairs import PairEmbeddings

EXACT = {"rtol": 1e-10, "atol": 1e-12}
WIDTH = 6


def block(name: str, **changes: object) -> dict:
    """The settings of an objective in params.yaml, with some values changed."""
    values = copy.deepcopy(YAML(typ="safe").load(PARAMS)["objective"][name])
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


def shuffled(pairs: PairEmbeddings, seed: int) -> PairEmbeddings:
    """The same pairs, their patches and their tokens each in another order."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(pairs.patches.shape[1], generator=generator)
    words = torch.randperm(pairs.tokens.shape[1], generator=generator)
    return replace(
        pairs,
        patches=pairs.patches[:, places],
        tokens=pairs.tokens[:, words],
        content_mask=pairs.content_mask[:, words],
        token_ids=pairs.token_ids[:, words],
        sentences=pairs.sentences[:, words],
    )


def reordered(pairs: PairEmbeddings, seed: int) -> PairEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    return take(pairs, torch.randperm(len(pairs), generator=generator))


def check_padding(module: Objective, pairs: PairEmbeddings, more: int, fill: float) -> None:
    """More padding changes no term, gets no gradient, and makes nothing infinite."""
    padded = with_padding(pairs, more, fill)
    torch.testing.assert_close(terms(module, padded), terms(module, pairs))
    padded.tokens.requires_grad_()
    padded.patches.requires_grad_()
    module(padded).total.backward()
    assert padded.tokens.grad is not None
    assert padded.tokens.grad[~padded.content_mask].eq(0).all()
    assert padded.tokens.grad.isfinite().all()
    assert padded.patches.grad is not None
    assert padded.patches.grad.isfinite().all()


def check_gradients(module: Objective, pairs: PairEmbeddings) -> None:
    """Gradcheck of the loss in the embeddings and in every parameter, along random directions."""
    names = ["patches", "tokens", "image", "text"]
    leaves = [getattr(pairs, name).clone().requires_grad_() for name in names]
    parameters = [p for p in module.parameters() if p.requires_grad]

    def loss(*values: torch.Tensor) -> torch.Tensor:
        return module(replace(pairs, **dict(zip(names, values[:4], strict=True)))).total

    assert gradcheck(loss, (*leaves, *parameters), atol=1e-6, rtol=1e-5, fast_mode=True)


def check_maps(module: Objective, pairs: PairEmbeddings, method: str) -> None:
    """No entry is negative, and padding looks at nothing and is looked at by nothing."""
    maps = module.maps(pairs)
    padding = ~pairs.content_mask
    assert maps.method == method
    assert maps.token_to_patch.ge(0).all()
    assert maps.patch_to_token.ge(0).all()
    assert maps.token_to_patch[padding].eq(0).all()
    assert maps.patch_to_token.transpose(1, 2)[padding].eq(0).all()
