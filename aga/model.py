"""The alignment model: encoders and projections, from a batch of pairs to its embeddings."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from aga.config import Config
from aga.encoders.image import ImageEncoder, ImageEncoderConfig
from aga.encoders.text import TextArchitecture, TextEncoder, TextEncoderConfig
from aga.pairs import PairBatch, PairEmbeddings

POSITION_STD = 0.02  # of the places' vectors at the start


class ModelConfig(Config):
    """Settings of the joint space.

    Attributes:
        width: The joint width D.
        projection: Form of the four projections into it.
        positions: `learned` adds to every patch feature a vector of its place before it is
            projected: a convolution sees a finding alike on either side. `none` adds nothing.
    """

    width: Annotated[int, Field(gt=0)]
    projection: Literal["linear", "mlp"]
    positions: Literal["none", "learned"]


class ModelArchitecture(Config):
    """All that rebuilds a model of the same parameter names and shapes; holds no path."""

    image: ImageEncoderConfig
    text: TextArchitecture
    model: ModelConfig
    channels: int
    image_size: tuple[int, int]
    vocabulary: int
    pad_id: int
    max_tokens: int


class AlignmentModel(nn.Module):
    """Embeds images and reports in one space (docs/method.md, step 1).

    Args:
        image: Settings of the image encoder.
        text: Settings of the text encoder.
        model: Settings of the joint space.
        channels: Channels C of the images.
        image_size: Height H and width W of the images in pixels.
        vocabulary: Number of the tokenizer's ids.
        pad_id: Id of its padding token.
        max_tokens: Longest report in tokens, special tokens included.

    Raises:
        ParamsError: The settings do not fit each other.
        CheckpointError: Weights to start from are missing or do not belong to the architecture.
    """

    def __init__(
        self,
        image: ImageEncoderConfig,
        text: TextEncoderConfig | TextArchitecture,
        model: ModelConfig,
        *,
        channels: int,
        image_size: tuple[int, int],
        vocabulary: int,
        pad_id: int,
        max_tokens: int,
    ) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(image, channels=channels, image_size=image_size)
        self.text_encoder = TextEncoder(
            text, vocabulary=vocabulary, pad_id=pad_id, max_tokens=max_tokens
        )
        self.patch_positions = None
        if model.positions == "learned":
            patches = math.prod(self.image_encoder.grid(*image_size))
            places = POSITION_STD * torch.randn(patches, self.image_encoder.patch_width)
            self.patch_positions = nn.Parameter(places)
        self.patch_projection = _projection(self.image_encoder.patch_width, model)
        self.token_projection = _projection(self.text_encoder.width, model)
        self.image_projection = _projection(self.image_encoder.global_width, model)
        self.text_projection = _projection(self.text_encoder.width, model)
        self.architecture = ModelArchitecture(
            image=image.model_copy(update={"weights": None}),
            text=self.text_encoder.architecture,
            model=model,
            channels=channels,
            image_size=image_size,
            vocabulary=vocabulary,
            pad_id=pad_id,
            max_tokens=max_tokens,
        )

    @classmethod
    def from_architecture(cls, architecture: ModelArchitecture) -> Self:
        """A model of the same parameter names and shapes, with random weights."""
        return cls(**dict(architecture))

    @property
    def width(self) -> int:
        """The joint width D."""
        return self.architecture.model.width

    def forward(self, batch: PairBatch) -> PairEmbeddings:
        """Embed a batch; nothing is L2-normalised here, the objectives do that (step 2)."""
        patches, image = self.encode_images(batch.images)
        tokens, text = self.encode_texts(batch.token_ids, batch.attention_mask)
        return PairEmbeddings(
            patches=patches,
            tokens=tokens,
            image=image,
            text=text,
            content_mask=batch.content_mask,
            token_ids=batch.token_ids,
            sentences=batch.sentences,
        )

    def encode_images(
        self, images: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, "B P D"], Float[Tensor, "B D"]]:
        """Patch embeddings `V`, row-major, and global embeddings `v` of normalised images."""
        patches, features = self.image_encoder(images)
        if self.patch_positions is not None:
            patches = patches + self.patch_positions
        return self.patch_projection(patches), self.image_projection(features)

    def encode_texts(
        self, token_ids: Int64[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B D"]]:
        """Token embeddings `T` and global embeddings `t` of padded reports."""
        tokens, features = self.text_encoder(token_ids, attention_mask)
        return self.token_projection(tokens), self.text_projection(features)


def _projection(features: int, config: ModelConfig) -> nn.Module:
    # No batch normalisation: an embedding must not depend on which pairs share its batch.
    if config.projection == "linear":
        return nn.Linear(features, config.width)
    return nn.Sequential(
        nn.Linear(features, config.width), nn.GELU(), nn.Linear(config.width, config.width)
    )
