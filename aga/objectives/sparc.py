"""SPARC: the patches of each token by a fixed rule, aligned with it inside the pair.

The token side of docs/method.md, steps 2 to 6, as in *Improving fine-grained understanding in
image-text pre-training* (arXiv 2401.09865).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from aga.config import Config
from aga.objectives.base import AlignmentMaps, LossTerms, Objective, full_precision
from aga.objectives.contrastive import (
    MAX_SCALE,
    ContrastConfig,
    GlobalContrast,
    Positions,
    symmetric_pair_nce,
)
from aga.objectives.diagnostics import embedding_diagnostics, likeness_diagnostics
from aga.objectives.grouping import choose, scale
from aga.pairs import PairEmbeddings
from aga.tensors import normalize


class SparcWeights(Config):
    """Weights of the two terms, both over 0."""

    contrast: Annotated[float, Field(gt=0)]
    fine: Annotated[float, Field(gt=0)]


class SparcConfig(Config):
    """The SPARC baseline.

    Attributes:
        temperature: τ of the term inside pairs.
        contrast_temperature: τ between pairs at the start; learned, and never under 0.01.
        weights: How the terms add up.
    """

    temperature: Annotated[float, Field(gt=0)]
    contrast_temperature: Annotated[float, Field(ge=1 / MAX_SCALE)]
    weights: SparcWeights


class SparcObjective(Objective):
    """SPARC: raw products, each token's scaled to [0, 1], those from 1/P on kept.

    It has no gates: a patch joins or does not, and the gradient reaches the weights of those that
    joined.
    """

    crosses_pairs: ClassVar[bool] = True

    def __init__(self, config: SparcConfig, width: int) -> None:
        del width  # embeddings of any width
        super().__init__()
        self.config = config
        self.contrast = GlobalContrast(ContrastConfig.infonce(config.contrast_temperature))

    def losses(self, pairs: PairEmbeddings) -> LossTerms:
        """Terms `contrast` and `fine`."""
        weights, sizes = visual_group_weights(pairs)
        content = pairs.content_mask
        diagnostics = embedding_diagnostics(pairs.image, pairs.text)
        diagnostics |= likeness_diagnostics(
            normalize(pairs.tokens), normalize(pairs.patches), content
        )
        diagnostics["group/visual_size"] = sizes.sum() / content.sum().clamp(min=1)
        diagnostics["contrast/temperature"] = self.contrast.temperature
        terms = {
            "contrast": self.config.weights.contrast * self.contrast(pairs.image, pairs.text),
            "fine": self.config.weights.fine * self._fine(pairs, weights),
        }
        return LossTerms.of(terms, diagnostics)

    def inside(self, pairs: PairEmbeddings) -> dict[str, Tensor]:
        """`fine`."""
        return {"fine": self._fine(pairs, visual_group_weights(pairs)[0])}

    def maps(self, pairs: PairEmbeddings) -> AlignmentMaps:
        """The weights of each token's group; patches have no groups of their own here."""
        with torch.autocast(pairs.image.device.type, enabled=False):
            weights = visual_group_weights(full_precision(pairs))[0]
        return AlignmentMaps.of_tokens(weights)

    def _fine(self, pairs: PairEmbeddings, weights: Float[Tensor, "B L P"]) -> Float[Tensor, ""]:
        """Each token against the groups of its own report, both ways, averaged over pairs."""
        groups = normalize(torch.bmm(weights, pairs.patches))
        words = Positions(pairs.content_mask)
        tokens = normalize(pairs.tokens)
        return symmetric_pair_nce(tokens, groups, words, self.config.temperature).mean()


def visual_group_weights(
    pairs: PairEmbeddings,
) -> tuple[Float[Tensor, "B L P"], Int64[Tensor, "B L"]]:
    """How much of each patch a token's group holds, and of how many patches it is made.

    Returns:
        Weights, which sum to 1 for content tokens and are 0 for padding; and group sizes.
    """
    products = torch.bmm(pairs.tokens, pairs.patches.transpose(1, 2))
    mask = pairs.content_mask[..., None].expand_as(products)
    scaled = scale(products, mask, "minmax", 1.0)
    thresholds = products.new_full(products.shape[:2], 1 / products.shape[2])
    return choose(scaled, thresholds, mask, "hard", 1.0)
