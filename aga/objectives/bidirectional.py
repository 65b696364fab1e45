"""Bidirectional Cross-modal Grouped Alignment of the groups (docs/method.md, step 7)."""

from __future__ import annotations

from typing import Annotated, Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from aga.config import Config
from aga.errors import ParamsError
from aga.objectives.contrastive import Positions, pair_nce
from aga.tensors import masked_mean, masked_softmax, normalize


class BcgaConfig(Config):
    """Alignment of the two kinds of group.

    Attributes:
        form: `residual`, groups attend to the other side's groups and are added to the result;
            `plain`, the same without the addition; `pooled`, the residual results of both sides,
            each averaged over its positions, shall point the same way (no negatives at all).
        heads: Attention heads; a divisor of the joint width.
        temperature: τ of `residual` and `plain`; `pooled` has none.
    """

    form: Literal["residual", "plain", "pooled"]
    heads: Annotated[int, Field(gt=0)]
    temperature: Annotated[float, Field(gt=0)]


class CrossAttention(nn.Module):
    """Multi-head attention from one kind of group to the other, each key with its mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(
        self,
        queries: Float[Tensor, "B X D"],
        others: Float[Tensor, "B Y D"],
        keep: Bool[Tensor, "B Y"],
    ) -> Float[Tensor, "B X D"]:
        """What each query reads from the kept `others`; a row of `keep` must keep one at least."""
        heads = (self.heads, -1)
        asked = self.query(queries).unflatten(-1, heads).transpose(1, 2)
        key, value = self.key_value(others).unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4)
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
        heads = (self.heads, -1)
        asked = self.query(queries).unflatten(-1, heads).transpose(1, 2)
        key = self.key_value(others).unflatten(-1, (2, *heads))[:, :, 0].transpose(1, 2)
        logits = asked @ key.transpose(2, 3) / asked.shape[-1] ** 0.5
        return masked_softmax(logits, keep[:, None, None, :].expand_as(logits)).mean(1)


class BidirectionalAlignment(nn.Module):
    """The BCGA loss with its attention and its layer norms.

    Args:
        width: Joint width `D`.
        config: Form, heads and temperature.

    Raises:
        ParamsError: `heads` does not divide `width`.
    """

    def __init__(self, width: int, config: BcgaConfig) -> None:
        super().__init__()
        if width % config.heads:
            raise ParamsError(
                "The joint width is not a multiple of the attention heads",
                where="objective.aga.bcga.heads",
                got=f"{config.heads} heads for model.width {width}",
                expected=f"a divisor of {width}",
                fix="Change objective.aga.bcga.heads or model.width.",
            )
        self.form = config.form
        self.temperature = config.temperature
        self.visual_attention = CrossAttention(width, config.heads)
        self.language_attention = CrossAttention(width, config.heads)
        self.visual_norm = nn.LayerNorm(width)
        self.language_norm = nn.LayerNorm(width)

    def forward(
        self,
        visual: Float[Tensor, "B L D"],
        language: Float[Tensor, "B P D"],
        content: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B"]:
        """The loss of each pair; 0 for a report without a content token.

        Args:
            visual: Visual groups `Gⱽ`, one for each token.
            language: Language groups `Gᴸ`, one for each patch.
            content: True for content tokens.
        """
        readable = content.any(-1, keepdim=True)
        patches = readable.expand(language.shape[:2])
        # A report without content tokens lets all keys through: softmax over nothing is not a
        # number, and its loss is dropped below.
        read = self.visual_attention(visual, language, patches | ~readable)
        cross_visual = self.visual_norm(read if self.form == "plain" else visual + read)
        read = self.language_attention(language, visual, content | ~readable)
        cross_language = self.language_norm(read if self.form == "plain" else language + read)
        if self.form == "pooled":
            return self._pooled(cross_visual, cross_language, content)
        losses = [
            pair_nce(normalize(group), normalize(cross), Positions(mask), self.temperature)
            for group, cross, mask in (
                (visual, cross_visual, content),
                (language, cross_language, patches),
            )
        ]
        return (losses[0] + losses[1]) / 2

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
