"""The two records that cross layers: a batch of pairs going in, their embeddings coming out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class PairBatch:
    """Image-report pairs, ready for the model.

    Attributes:
        images: Normalised pixels.
        token_ids: Vocabulary ids, padded on the right.
        attention_mask: True for every real token, special tokens included.
        content_mask: True for content tokens: neither padding nor a special token (CLS, SEP, ...).
        sentences: Number of each token's sentence in its report, from 0; -1 where it is no content.
        rows: Row numbers in `data/studies/manifest.parquet`; the only identity a batch carries.
    """

    images: Float[Tensor, "B C H W"]
    token_ids: Int64[Tensor, "B L"]
    attention_mask: Bool[Tensor, "B L"]
    content_mask: Bool[Tensor, "B L"]
    sentences: Int64[Tensor, "B L"]
    rows: Int64[Tensor, "B"]

    def __len__(self) -> int:
        return self.rows.shape[0]

    def to(self, device: torch.device | str) -> PairBatch:
        """The same batch on `device`; copies overlap with compute where memory is pinned."""
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items()}
        return PairBatch(**moved)

    def split(self, size: int) -> list[PairBatch]:
        """Its pairs in order, `size` at a time and the rest at last."""
        parts = {name: value.split(size) for name, value in vars(self).items()}
        columns = zip(*parts.values(), strict=True)
        return [PairBatch(**dict(zip(parts, column, strict=True))) for column in columns]


@dataclass(frozen=True)
class PairEmbeddings:
    """What the model makes of a batch, and all that an objective may look at.

    Attributes:
        patches: Projected patch features `V`, row-major: patch `p` is the p-th place of the image.
        tokens: Projected token features `T`.
        image: Projected global image feature `v`.
        text: Projected global text feature `t`.
        content_mask: True for content tokens, as in `PairBatch`.
        token_ids: Vocabulary ids, by which repeated words of one report are recognised.
        sentences: Number of each token's sentence, as in `PairBatch`; under `L`.
    """

    patches: Float[Tensor, "B P D"]
    tokens: Float[Tensor, "B L D"]
    image: Float[Tensor, "B D"]
    text: Float[Tensor, "B D"]
    content_mask: Bool[Tensor, "B L"]
    token_ids: Int64[Tensor, "B L"]
    sentences: Int64[Tensor, "B L"]

    def __len__(self) -> int:
        return self.image.shape[0]

    @classmethod
    def joined(cls, parts: Sequence[PairEmbeddings]) -> PairEmbeddings:
        """The pairs of all parts in order."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def features(self) -> dict[str, Tensor]:
        """What the model computed, by name; the rest comes from the batch."""
        return {name: getattr(self, name) for name in ("patches", "tokens", "image", "text")}
