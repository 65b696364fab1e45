"""Text encoder: padding changes nothing, folders are read strictly, bundles need no path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from aga.encoders.text import TextArchitecture, TextEncoder, TextEncoderConfig
from aga.errors import CheckpointError, ParamsError

SIZES = {"path": None, "width": 16, "layers": 2, "heads": 4, "dropout": 0.1}
VOCABULARY, PAD = 50, 3


def build(config: TextEncoderConfig | TextArchitecture, max_tokens: int = 30) -> TextEncoder:
    torch.manual_seed(0)
    encoder = TextEncoder(config, vocabulary=VOCABULARY, pad_id=PAD, max_tokens=max_tokens)
    return encoder.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A masked language model as published: with its head, without a pooler."""
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=PAD,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def from_folder(folder: Path, max_tokens: int = 30) -> TextEncoder:
    return build(TextEncoderConfig(**{**SIZES, "path": str(folder)}), max_tokens)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 20), padding=st.integers(1, 10), seed=st.integers(0, 99))
@torch.no_grad()
def test_padding_changes_no_token_and_no_text(length: int, padding: int, seed: int) -> None:
    encoder = build(TextEncoderConfig(**SIZES))
    ids = torch.randint(4, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(2, length, dtype=torch.bool)
    tokens, text = encoder(ids, mask)
    # Whatever stands there, not only the padding id
    filler = torch.randint(0, VOCABULARY, (2, padding))
    longer = torch.cat([ids, filler], dim=1)
    masked = torch.cat([mask, torch.zeros(2, padding, dtype=torch.bool)], dim=1)
    padded_tokens, padded_text = encoder(longer, masked)
    torch.testing.assert_close(padded_tokens[:, :length], tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded_text, text, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_text_is_the_mean_of_its_tokens() -> None:
    encoder = build(TextEncoderConfig(**SIZES))
    ids = torch.randint(4, VOCABULARY, (2, 6))
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    tokens, text = encoder(ids, mask)
    torch.testing.assert_close(text[0], tokens[0].mean(0))
    torch.testing.assert_close(text[1], tokens[1, :4].mean(0))


def test_the_longest_report_fits() -> None:
    encoder = build(TextEncoderConfig(**SIZES), max_tokens=30)
    tokens, _ = encoder(torch.full((1, 30), 5), torch.ones(1, 30, dtype=torch.bool))
    assert tokens.shape == (1, 30, encoder.width)


def test_every_parameter_gets_a_gradient(folder: Path) -> None:
    for encoder in (build(TextEncoderConfig(**SIZES)), from_folder(folder)):
        ids = torch.randint(4, VOCABULARY, (2, 6))
        tokens, text = encoder.train()(ids, torch.ones(2, 6, dtype=torch.bool))
        (tokens.square().sum() + text.square().sum()).backward()
        assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


def test_a_folder_gives_its_weights_and_sizes(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder = from_folder(folder)
    assert "\r" not in "".join(capfd.readouterr()), "a progress bar in a log"
    stored = load_file(folder / "model.safetensors")
    state = encoder.backbone.state_dict()
    assert len(state) == sum(name.startswith("bert.") for name in stored)
    assert all(torch.equal(stored[f"bert.{name}"], value) for name, value in state.items())
    assert (encoder.width, encoder.backbone.config.num_hidden_layers) == (16, 1)


def test_an_architecture_rebuilds_the_model_without_its_folder(folder: Path) -> None:
    encoder = from_folder(folder)
    stored = TextArchitecture.model_validate_json(encoder.architecture.model_dump_json())
    assert str(folder.parent) not in stored.model_dump_json()
    again = build(stored)
    again.load_state_dict(encoder.state_dict())
    ids, mask = torch.arange(4, 12)[None], torch.ones(1, 8, dtype=torch.bool)
    assert torch.equal(again(ids, mask)[0], encoder(ids, mask)[0])
    assert again.architecture == encoder.architecture


def test_incomplete_weights_are_refused_by_name(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    del state["bert.embeddings.word_embeddings.weight"]
    state["bert.embeddings.LayerNorm.weight"] = torch.zeros(3)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        from_folder(folder)
    assert "embeddings.word_embeddings.weight" in str(caught.value)
    assert "embeddings.LayerNorm.weight" in str(caught.value)
    assert "pooler" not in str(caught.value)


def test_damaged_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="damaged"):
        from_folder(folder)


def test_pickled_weights_are_not_opened(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ParamsError, match=r"text_encoder\.path"):
        from_folder(folder)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"text_encoder\.path"):
        from_folder(tmp_path / "absent")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(ParamsError, match=r"text_encoder\.path"):
        from_folder(tmp_path)


def test_a_folder_that_does_not_fit_is_refused(folder: Path) -> None:
    config = TextEncoderConfig(**{**SIZES, "path": str(folder)})
    with pytest.raises(ParamsError, match=r"(?s)more ids.*51.*at most 50.*tokenizer.path"):
        TextEncoder(config, vocabulary=51, pad_id=PAD, max_tokens=30)
    with pytest.raises(ParamsError, match=r"(?s)tokenizer.max_tokens.*33.*at most 32"):
        from_folder(folder, max_tokens=33)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="must divide"):
        TextEncoderConfig(**{**SIZES, "heads": 3})


def test_resolved_makes_the_path_absolute(tmp_path: Path) -> None:
    config = TextEncoderConfig(**{**SIZES, "path": "models/bert"})
    assert config.resolved(tmp_path).path == str((tmp_path / "models/bert").resolve())
    assert TextEncoderConfig(**SIZES).resolved(tmp_path).path is None
