"""What the tests of the objectives share: settings, embeddings, and pairs without padding."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from reference.alignment import Pair
from ruamel.yaml import YAML

from aga.objectives import AgaConfig, AgaObjective, ObjectiveConfig
from aga.objectives.base import AlignmentMaps
from aga.pairs import PairEmbeddings

PARAMS = Path(__file__).parents[2] / "params.yaml"


@cache
def committed() -> dict:
    """The block `objective` of params.yaml; copy what is changed."""
    return YAML(typ="safe").load(PARAMS)["objective"]


def settings(**changes: object) -> dict:
    """The block `objective.aga` of params.yaml at a small size; `gate__kind` goes deeper."""
    values = copy.deepcopy(committed()["aga"])
    changes = {"gate__hidden": 5, "bcga__width": 4, "bcga__heads": 2} | changes
    for name, value in changes.items():
        *path, key = name.split("__")
        block = values
        for step in path:
            block = block[step]
        assert key in block, name
        block[key] = value
    return values


def objective(values: dict, width: int, *, moved: bool = True, seed: int = 0) -> AgaObjective:
    """A float64 objective; `moved` gives all of its parameters random values, gates included."""
    torch.manual_seed(seed)
    module = AgaObjective(AgaConfig.model_validate(values), width).double()
    if moved:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if not name.startswith("contrast"):
                    parameter.copy_(0.4 * torch.randn_like(parameter))
    return module


def objective_config(name: str, **changes: object) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({**committed(), "name": name, "aga": settings(**changes)})


def embeddings(
    lengths: list[int],
    *,
    patches: int = 5,
    width: int = 6,
    padded: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> PairEmbeddings:
    """Random embeddings; `lengths` content tokens a pair, anywhere among `padded` positions.

    Words repeat: ids are drawn from a vocabulary of three. Sentences are up to three, of tokens
    anywhere. Padding holds ids, sentences and vectors like any position, so that whoever looks at
    it is found out.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(lengths)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    order = torch.rand(count, padded, generator=generator).argsort(1)
    return PairEmbeddings(
        patches=draw(count, patches, width),
        tokens=draw(count, padded, width),
        image=draw(count, width),
        text=draw(count, width),
        content_mask=order < torch.tensor(lengths)[:, None],
        token_ids=torch.randint(0, 3, (count, padded), generator=generator),
        sentences=torch.randint(0, min(padded, 3), (count, padded), generator=generator),
    )


def without_padding(pairs: PairEmbeddings) -> list[Pair]:
    return [
        Pair(
            patches=pairs.patches[b].tolist(),
            tokens=pairs.tokens[b][mask].tolist(),
            ids=pairs.token_ids[b][mask].tolist(),
        )
        for b, mask in enumerate(pairs.content_mask)
    ]


def state(module: AgaObjective) -> dict[str, list]:
    return {name: value.tolist() for name, value in module.state_dict().items()}


def take(pairs: PairEmbeddings, index: torch.Tensor) -> PairEmbeddings:
    """The pairs at `index`."""
    return PairEmbeddings(**{name: value[index] for name, value in vars(pairs).items()})


def with_padding(pairs: PairEmbeddings, more: int, fill: float) -> PairEmbeddings:
    """`more` positions of padding at the end of every report, holding `fill`."""
    count, _, width = pairs.tokens.shape
    blank = pairs.tokens.new_full((count, more, width), fill)
    return replace(
        pairs,
        tokens=torch.cat((pairs.tokens, blank), 1),
        content_mask=torch.cat((pairs.content_mask, torch.zeros(count, more).bool()), 1),
        token_ids=torch.cat((pairs.token_ids, torch.zeros(count, more).long()), 1),
        sentences=torch.cat((pairs.sentences, torch.full((count, more), -1)), 1),
    )


def assert_maps_of_tokens(maps: AlignmentMaps) -> None:
    """A patch looks at the tokens that chose it, by their share; at none where none did."""
    back = maps.token_to_patch.transpose(1, 2)
    whole = back.sum(-1, keepdim=True)
    torch.testing.assert_close(maps.patch_to_token * whole, back)
    chosen = whole.squeeze(-1) > 0
    torch.testing.assert_close(maps.patch_to_token.sum(-1), chosen.to(back.dtype))
    assert maps.thresholds is None
