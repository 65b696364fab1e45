"""FILIP: each patch looks for its best word, each word for its best patch, between all pairs.

*FILIP: Fine-grained Interactive Language-Image Pre-Training* (arXiv 2111.07783).
"""

from __future__ import annotations

import logging
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from aga.config import Config
from aga.objectives.base import LossTerms, Objective, full_precision
from aga.objectives.contrastive import MAX_SCALE, ContrastConfig, GlobalContrast, LearnedScale
from aga.objectives.diagnostics import embedding_diagnostics, likeness_diagnostics
from aga.objectives.pairwise import pair_scores, score_nce
from aga.pairs import PairEmbeddings
from aga.tensors import masked_mean, normalize

logger = logging.getLogger(__name__)


class FilipWeights(Config):
    """Weights of the two terms; a `contrast` of weight 0 is not computed."""

    contrast: Annotated[float, Field(ge=0)]
    fine: Annotated[float, Field(gt=0)]


class FilipConfig(Config):
    """The FILIP baseline.

    Attributes:
        temperature: τ of the fine-grained scores at the start; learned, and never under 0.01.
        contrast_temperature: The same of the global embeddings.
        weights: How the terms add up; FILIP itself has no `contrast`.
    """

    temperature: Annotated[float, Field(ge=1 / MAX_SCALE)]
    contrast_temperature: Annotated[float, Field(ge=1 / MAX_SCALE)]
    weights: FilipWeights


class FilipObjective(Objective):
    """FILIP: InfoNCE on the scores of best matches, a matrix of its own for each direction."""

    crosses_pairs: ClassVar[bool] = True

    def __init__(self, config: FilipConfig, width: int) -> None:
        del width  # embeddings of any width
        super().__init__()
        self.config = config
        self.fine = LearnedScale(config.temperature)
        self.contrast: GlobalContrast | None = None
        if config.weights.contrast:
            contrast = ContrastConfig.infonce(config.contrast_temperature)
            self.contrast = GlobalContrast(contrast)
        else:
            logger.warning(
                "objective.filip.weights.contrast: 0 leaves the global embeddings, with which "
                "retrieval and zero-shot compare, untrained"
            )

    def losses(self, pairs: PairEmbeddings) -> LossTerms:
        """Terms `fine`, and with a weight `contrast`."""
        weights, content = self.config.weights, pairs.content_mask
        patches, tokens = normalize(pairs.patches), normalize(pairs.tokens)
        diagnostics = embedding_diagnostics(pairs.image, pairs.text)
        diagnostics |= likeness_diagnostics(tokens, patches, content)
        diagnostics["fine/temperature"] = self.fine.temperature
        terms = {"fine": weights.fine * self._fine(patches, tokens, content)}
        if self.contrast is not None:
            diagnostics["contrast/temperature"] = self.contrast.temperature
            terms["contrast"] = weights.contrast * self.contrast(pairs.image, pairs.text)
        return LossTerms.of(terms, diagnostics)

    def _fine(
        self,
        patches: Float[Tensor, "B P D"],
        tokens: Float[Tensor, "B L D"],
        content: Bool[Tensor, "B L"],
    ) -> Float[Tensor, ""]:
        """The mean of both directions; a report without a content token takes no part."""
        found, scale = pair_scores(cross_matches, patches, tokens, content), self.fine.scale()
        image_to_text = score_nce(found.of_images[0], found.own, found.readable, scale)
        text_to_image = score_nce(found.of_reports[1], found.own, found.readable, scale)
        return (image_to_text + text_to_image) / 2

    def local_scores(self, pairs: PairEmbeddings) -> Float[Tensor, "B"]:
        """The mean of both directions' scores of each pair; 0 for a report without content."""
        with torch.autocast(pairs.image.device.type, enabled=False):
            pairs = full_precision(pairs)
            tokens, patches = normalize(pairs.tokens), normalize(pairs.patches)
            cosines = torch.bmm(tokens, patches.transpose(1, 2))
            return best_matches(cosines, pairs.content_mask).mean(0)


def best_matches(
    cosines: Float[Tensor, "*pairs L P"], content: Bool[Tensor, "*#pairs L"]
) -> Float[Tensor, " 2 *pairs"]:
    """The mean over patches of the best word's cosine; that over words of the best patch's.

    Both are 0 for a report without a content token.
    """
    # Cosines lie within [-1, 1], so -2 never is the best of a report that has a word.
    words = cosines.masked_fill(~content[..., None], -2).amax(-2).mean(-1)
    words = words.masked_fill(~content.any(-1), 0)
    places = masked_mean(cosines.amax(-1), content.expand(cosines.shape[:-1]))
    return torch.stack((words, places))


def cross_matches(
    patches: Float[Tensor, "B P D"], tokens: Float[Tensor, "N L D"], content: Bool[Tensor, "N L"]
) -> Float[Tensor, "2 B N"]:
    """`best_matches` of every image with every report; vectors of length one."""
    cosines = patches.flatten(0, 1) @ tokens.flatten(0, 1).T
    cosines = cosines.view(*patches.shape[:2], *tokens.shape[:2])
    return best_matches(cosines.permute(0, 2, 3, 1), content)  # [B, N, L, P]
