"""The alignment model: shapes, independence of pairs, gradients, and what rebuilds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from aga.encoders.image import ImageEncoderConfig
from aga.encoders.text import TextEncoderConfig
from aga.model import AlignmentModel, ModelArchitecture, ModelConfig
from aga.pairs import PairBatch

PARAMS = YAML(typ="safe").load(Path(__file__).parents[1] / "params.yaml")


def build(projection: str = "mlp", positions: str = "none") -> AlignmentModel:
    torch.manual_seed(0)
    return AlignmentModel(
        ImageEncoderConfig(
            architecture="resnet10t",
            options={"channels": [8, 16, 24, 32]},
            weights=None,
            patch_layer=2,
        ),
        TextEncoderConfig(path=None, width=16, layers=1, heads=2, dropout=0.1),
        ModelConfig(width=12, projection=projection, positions=positions),
        channels=1,
        image_size=(32, 48),
        vocabulary=40,
        pad_id=0,
        max_tokens=20,
    )


def batch(pairs: int) -> PairBatch:
    generator = torch.Generator().manual_seed(pairs)
    attention = torch.arange(8) < torch.randint(3, 9, (pairs, 1), generator=generator)
    return PairBatch(
        images=torch.randn(pairs, 1, 32, 48, generator=generator),
        token_ids=torch.randint(4, 40, (pairs, 8), generator=generator) * attention,
        attention_mask=attention,
        content_mask=attention & (torch.arange(8) > 0),
        sentences=(torch.arange(8) // 3).expand(pairs, 8),
        rows=torch.arange(pairs),
    )


def test_names_and_shapes_of_the_default_model(golden: Callable[[str, object], None]) -> None:
    model = AlignmentModel(
        ImageEncoderConfig(**PARAMS["image_encoder"]),
        TextEncoderConfig(**PARAMS["text_encoder"]),
        ModelConfig(**PARAMS["model"]),
        channels=1,
        image_size=(PARAMS["prepare"]["image"]["size"],) * 2,
        vocabulary=PARAMS["tokenizer"]["vocabulary"],
        pad_id=0,
        max_tokens=PARAMS["tokenizer"]["max_tokens"],
    )
    golden("model_parameters", {name: str(list(v.shape)) for name, v in model.state_dict().items()})


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_embeddings_have_the_joint_width(projection: str) -> None:
    pairs = batch(3)
    out = build(projection)(pairs)
    assert out.patches.shape == (3, 4 * 6, 12)
    assert out.tokens.shape == (3, 8, 12)
    assert out.image.shape == out.text.shape == (3, 12)
    assert torch.equal(out.content_mask, pairs.content_mask)
    assert torch.equal(out.token_ids, pairs.token_ids)


@torch.no_grad()
def test_a_pair_does_not_depend_on_its_batch() -> None:
    model, pairs = build().eval(), batch(4)
    together = model(pairs)
    alone = model(PairBatch(**{name: value[2:3] for name, value in vars(pairs).items()}))
    for name in ("patches", "image", "text"):
        torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[2])
    kept = pairs.attention_mask[2]
    torch.testing.assert_close(alone.tokens[0, kept], together.tokens[2, kept])


def test_every_parameter_gets_a_gradient() -> None:
    model = build()
    out = model(batch(3))
    sum(getattr(out, n).square().sum() for n in ("patches", "tokens", "image", "text")).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_the_four_projections_are_their_own() -> None:
    model = build()
    projections = ("patch", "token", "image", "text")
    for name in projections:
        model.zero_grad()
        field = {"patch": "patches", "token": "tokens"}.get(name, name)
        getattr(model(batch(2)), field).sum().backward()
        reached = [
            other
            for other in projections
            if any(p.grad is not None for p in getattr(model, f"{other}_projection").parameters())
        ]
        assert reached == [name]


def test_the_architecture_rebuilds_the_model() -> None:
    model = build().eval()
    text = model.architecture.model_dump_json()
    again = AlignmentModel.from_architecture(ModelArchitecture.model_validate_json(text)).eval()
    again.load_state_dict(model.state_dict())
    assert again.architecture == model.architecture
    assert again.width == 12
    assert torch.equal(again(batch(2)).patches, model(batch(2)).patches)


def test_one_seed_gives_one_model() -> None:
    first, second = build().state_dict(), build().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_learned_positions_tell_equal_patches_apart() -> None:
    """What a patch is told of its place depends on the place alone, before it is projected."""
    torch.manual_seed(1)
    plain, placed = build().eval(), build(positions="learned").eval()
    assert plain.patch_positions is None
    positions = placed.patch_positions
    assert positions is not None and positions.shape == (4 * 6, 16)
    images = torch.randn(2, 1, 32, 48)
    features, _ = placed.image_encoder(images)
    expected = placed.patch_projection(features + positions)
    torch.testing.assert_close(placed.encode_images(images)[0], expected)
    assert not torch.allclose(placed.patch_projection(features), expected)
