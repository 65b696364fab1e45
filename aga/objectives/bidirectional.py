"""Bidirectional Cross-modal Grouped Alignment of the groups (docs/method.md, step 7)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from aga.config import Config
from aga.objectives.contrastive import Positions, pair_nce
from aga.objectives.grouping import Gathered
from aga.tensors import masked_mean, masked_softmax, normalize


class BcgaConfig(Config):
    """Alignment of the two kinds of group.

    Attributes:
        form: `residual`, groups attend to the other side's groups and are added to the result;
            `plain`, the same without the addition; `pooled`, the residual results of both sides,
            each averaged over its positions, shall point the same way (no negatives at all).
        width: Of queries, keys and values, all heads together. Narrower than the joint width, the
            attention costs less than the groups do.
        heads: Attention heads; a divisor of `width`.
        temperature: τ of `residual` and `plain`; `pooled` has none.
    """

    form: Literal["residual", "plain", "pooled"]
    width: Annotated[int, Field(gt=0)]
    heads: Annotated[int, Field(gt=0)]
    temperature: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        return self


class CrossAttention(nn.Module):
    """Multi-head attention from one kind of vector to the other, each key with its mask.

    Args:
        width: Of what reads, of what is read, and of what comes out.
        heads: How many; they divide `inner`.
        inner: Width of queries, keys and values; `width` where it is not given.
    """

    def __init__(self, width: int, heads: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or width
        self.heads = heads
        self.query = nn.Linear(width, inner)
        self.key_value = nn.Linear(width, 2 * inner)
        self.output = nn.Linear(inner, width)

    def forward(
        self,
        queries: Float[Tensor, "B X D"] | Gathered,
        others: Float[Tensor, "B Y D"] | Gathered,
        keep: Bool[Tensor, "B Y"],
    ) -> Float[Tensor, "B X D"]:
        """What each query reads from the kept `others`; a row of `keep` must keep one at least."""
        asked = _heads(self.query, queries, self.heads, -1).transpose(1, 2)
        both = _heads(self.key_value, others, 2, self.heads, -1)
        key, value = both.permute(2, 0, 3, 1, 4)
        read = nn.functional.scaled_dot_product_attention(
            asked, key, value, attn_mask=keep[:, None, None, :]
        )
        merged: Tensor = self.output(read.transpose(1, 2).flatten(2))
        return merged

    def weights(
        self,
        queries: Float[Tensor, "B X D"],
        others: Float[Tensor, "B Y D"],
        keep: Bool[Tensor, "B Y"],
    ) -> Float[Tensor, "B X Y"]:
        """How much each query reads from each of `others`, averaged over heads.

        Rows sum to 1; all are 0 where `keep` keeps none.
        """
        asked = _heads(self.query, queries, self.heads, -1).transpose(1, 2)
        key = _heads(self.key_value, others, 2, self.heads, -1)[:, :, 0].transpose(1, 2)
        logits = asked @ key.transpose(2, 3) / asked.shape[-1] ** 0.5
        return masked_softmax(logits, keep[:, None, None, :].expand_as(logits)).mean(1)


def _heads(linear: nn.Linear, vectors: Tensor | Gathered, *axes: int) -> Tensor:
    """`linear(vectors)`, its last axis split into `axes`."""
    made: Tensor = vectors.projected(linear) if isinstance(vectors, Gathered) else linear(vectors)
    return made.reshape(*made.shape[:-1], *axes)


class BidirectionalAlignment(nn.Module):
    """The BCGA loss with its attention and its layer norms.

    Args:
        width: Joint width `D`.
        config: Form, width and heads of the attention, temperature.
    """

    def __init__(self, width: int, config: BcgaConfig) -> None:
        super().__init__()
        self.form = config.form
        self.temperature = config.temperature
        self.visual_attention = CrossAttention(width, config.heads, config.width)
        self.language_attention = CrossAttention(width, config.heads, config.width)
        self.visual_norm = nn.LayerNorm(width)
        self.language_norm = nn.LayerNorm(width)

    def forward(
        self,
        visual: Gathered,
        language: Gathered,
        content: Bool[Tensor, "B L"],
        index: Int64[Tensor, "B Q"] | None = None,
    ) -> Float[Tensor, "B"]:
        """The loss of each pair; 0 for a report without a content token.

        Args:
            visual: Visual groups `Gⱽ`, one for each token.
            language: Language groups `Gᴸ`, one for each patch.
            content: True for content tokens.
            index: The language groups that look for their crossed one; all where None.
        """
        readable = content.any(-1, keepdim=True)
        patches = readable.expand(language.weights.shape[:2])
        # A report without content tokens lets all keys through: softmax over nothing is not a
        # number, and its loss is dropped below.
        read = self.visual_attention(visual, language, patches | ~readable)
        cross_visual = self.visual_norm(read if self.form == "plain" else visual.vectors + read)
        read = self.language_attention(language, visual, content | ~readable)
        cross_language = self.language_norm(
            read if self.form == "plain" else language.vectors + read
        )
        if self.form == "pooled":
            return self._pooled(cross_visual, cross_language, content)
        groups, crossed = normalize(visual.vectors), normalize(cross_visual)
        loss = pair_nce(groups, crossed, Positions(content), self.temperature)
        crossed, groups = language.factors(normalize(cross_language))
        other = pair_nce(groups, crossed, Positions(patches), self.temperature, index)
        return (loss + other) / 2

    @staticmethod
    def _pooled(
        cross_visual: Float[Tensor, "B L D"],
        cross_language: Float[Tensor, "B P D"],
        content: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B"]:
        """One minus the cosine of the two mean groups of each pair."""
        mask = content[..., None].expand_as(cross_visual)
        pooled_visual = masked_mean(cross_visual, mask, dim=1)
        cosine = (normalize(pooled_visual) * normalize(cross_language.mean(1))).sum(-1)
        return (1 - cosine).masked_fill(~content.any(-1), 0)
