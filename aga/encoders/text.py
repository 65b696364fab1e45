"""Text encoder: a transformers model, giving token features and their mean as the global one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, JsonValue, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig
from transformers.utils import logging as transformers_logging

from aga.config import Config
from aga.errors import CheckpointError, ParamsError
from aga.tensors import masked_mean

# Where a model came from, not what it is.
PROVENANCE = frozenset({"_name_or_path", "architectures", "dtype", "transformers_version"})


class TextEncoderConfig(Config):
    """Settings of the text encoder.

    Attributes:
        path: Folder of a transformers model (config.json, model.safetensors), or None to build a
            BERT of the sizes below from scratch. With a path, the sizes are the folder's own.
        width: Features E of a token.
        layers: Transformer layers.
        heads: Attention heads; they divide the width.
        dropout: Probability of dropping a hidden feature or an attention weight in training.
    """

    path: str | None
    width: Annotated[int, Field(gt=0)]
    layers: Annotated[int, Field(gt=0)]
    heads: Annotated[int, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        return self

    def resolved(self, home: Path) -> TextEncoderConfig:
        """The same settings with `path` as an absolute path; relative ones start at `home`."""
        if self.path is None:
            return self
        return self.model_copy(update={"path": str((home / self.path).resolve())})


class TextArchitecture(Config):
    """A transformers configuration without weights: what a bundle stores, so it needs no path.

    Attributes:
        settings: The model's own configuration, `model_type` included.
    """

    settings: dict[str, JsonValue]


class TextEncoder(nn.Module):
    """Token features and a global feature of reports.

    Args:
        config: A folder or sizes to start from; or a bare architecture, with random weights.
        vocabulary: Number of vocabulary ids.
        pad_id: Id of the padding token.
        max_tokens: Longest report in tokens, special tokens included, and longest padded batch.

    Attributes:
        width: Features E of a token and of a report.

    Raises:
        ParamsError: The folder is not a transformers model, or does not fit vocabulary or length.
        CheckpointError: The folder's weights are damaged or incomplete.
    """

    def __init__(
        self,
        config: TextEncoderConfig | TextArchitecture,
        *,
        vocabulary: int,
        pad_id: int,
        max_tokens: int,
    ) -> None:
        super().__init__()
        if isinstance(config, TextArchitecture):
            self.backbone = _from_architecture(config)
        elif config.path is None:
            self.backbone = _from_sizes(config, vocabulary, pad_id, max_tokens)
        else:
            self.backbone = _from_folder(Path(config.path))
            _check_fit(self.backbone.config, Path(config.path), vocabulary, max_tokens)
        # Unused here; left in, it would never get a gradient, which DDP takes for an error.
        self.backbone.pooler = None
        self.width: int = self.backbone.config.hidden_size

    @property
    def architecture(self) -> TextArchitecture:
        """From which an encoder of the same names and shapes can be built, without any path."""
        settings = json.loads(self.backbone.config.to_json_string(use_diff=False))
        return TextArchitecture(
            settings={key: value for key, value in settings.items() if key not in PROVENANCE}
        )

    def forward(
        self, token_ids: Int64[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B E"]]:
        """Encode padded reports; what stands behind the mask changes no kept token.

        Returns:
            Features of every token (of padding too: they mean nothing), and their mean over the
            attention mask, special tokens included. The mean, and not the first token, because not
            every transformers model was trained to summarise a text in its first token.
        """
        hidden = self.backbone(
            input_ids=token_ids, attention_mask=attention_mask.long()
        ).last_hidden_state
        # [B L] -> [B L 1], broadcast over the features
        return hidden, masked_mean(hidden, attention_mask[..., None].expand_as(hidden), dim=1)


def _from_sizes(config: TextEncoderConfig, vocabulary: int, pad_id: int, max_tokens: int) -> Any:
    return AutoModel.from_config(
        BertConfig(
            vocab_size=vocabulary,
            pad_token_id=pad_id,
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=max_tokens,
            type_vocab_size=1,
        )
    )


def _from_architecture(architecture: TextArchitecture) -> Any:
    config = AutoConfig.for_model(**architecture.settings)
    return AutoModel.from_config(config, dtype=torch.float32)


def _from_folder(path: Path) -> Any:
    try:
        with _without_bar():
            model, report = AutoModel.from_pretrained(
                path,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
            )
    except (OSError, ValueError) as error:
        raise ParamsError(
            "The text encoder's folder does not hold a transformers model.",
            where=f"text_encoder.path: {path}",
            got=error,
            expected="a folder with config.json and model.safetensors",
        ) from error
    except SafetensorError as error:
        raise CheckpointError(
            "The text encoder's weights are damaged.", where=path, got=error
        ) from error
    # The head of a masked language model is not ours, and its pooler is not used.
    lacking = {str(name) for name in (*report["missing_keys"], *report["mismatched_keys"])}
    lacking = {name for name in lacking if not name.startswith("pooler.")}
    if lacking:
        raise CheckpointError(
            "The text encoder's weights are incomplete.",
            where=path,
            got=f"missing or of another shape: {', '.join(sorted(lacking))}",
            expected="every tensor of the architecture in config.json",
        )
    return model


@contextmanager
def _without_bar() -> Iterator[None]:
    """Reading a local file is no wait; transformers draws its bar into log files too."""
    before = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()


def _check_fit(settings: Any, path: Path, vocabulary: int, max_tokens: int) -> None:
    if vocabulary > settings.vocab_size:
        raise ParamsError(
            "The tokenizer has more ids than the text encoder.",
            where=f"text_encoder.path: {path}",
            got=vocabulary,
            expected=f"at most {settings.vocab_size}",
            fix="set tokenizer.path to the tokenizer that belongs to the text encoder; where that "
            "has no unused id for [DEID], set prepare.report.deidentified to drop",
        )
    if max_tokens > settings.max_position_embeddings:
        raise ParamsError(
            "Reports may be longer than the text encoder can read.",
            where="tokenizer.max_tokens",
            got=max_tokens,
            expected=f"at most {settings.max_position_embeddings}",
        )
