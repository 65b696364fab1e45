"""MGCA: pairs, words and patches, and clusters of pairs, aligned all at once.

*Multi-Granularity Cross-modal Alignment* (arXiv 2210.06044). Padding takes no part. The paper
weights each token by the attention that the encoder's last layer pays to it from the class token;
here all tokens of a report, and all patches of an image, weigh the same: a CNN has no such number.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from aga.collectives import gather_with_gradient, rank
from aga.config import Config
from aga.objectives.base import AlignmentMaps, LossTerms, Objective, full_precision
from aga.objectives.bidirectional import CrossAttention
from aga.objectives.contrastive import (
    MAX_SCALE,
    ContrastConfig,
    GlobalContrast,
    Positions,
    symmetric_pair_nce,
)
from aga.objectives.diagnostics import embedding_diagnostics, likeness_diagnostics
from aga.pairs import PairEmbeddings
from aga.tensors import masked_mean, normalize

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


class PrototypeConfig(Config):
    """Alignment of clusters.

    Attributes:
        count: `K`, how many prototypes there are.
        temperature: Of the predictions.
        epsilon: ε of Sinkhorn; small values make codes of few prototypes.
        iterations: Of Sinkhorn.
    """

    count: Count
    temperature: Positive
    epsilon: Positive
    iterations: Count


class MgcaWeights(Config):
    """Weights of the three terms, all over 0."""

    contrast: Positive
    local: Positive
    prototype: Positive


class MgcaConfig(Config):
    """The MGCA baseline.

    Attributes:
        contrast_temperature: τ between pairs; never learned.
        local_temperature: τ of words and patches, inside pairs.
        prototypes: Alignment of clusters.
        weights: How the terms add up.
    """

    contrast_temperature: Annotated[float, Field(ge=1 / MAX_SCALE)]
    local_temperature: Positive
    prototypes: PrototypeConfig
    weights: MgcaWeights


class MgcaObjective(Objective):
    """MGCA with one attention for each direction and one set of prototypes for both sides.

    Args:
        config: All settings.
        width: Joint width `D`.
    """

    crosses_pairs: ClassVar[bool] = True

    def __init__(self, config: MgcaConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.contrast = GlobalContrast(
            ContrastConfig.infonce(config.contrast_temperature)
        ).requires_grad_(False)
        self.token_attention = CrossAttention(width, heads=1)
        self.patch_attention = CrossAttention(width, heads=1)
        self.prototypes = nn.Parameter(normalize(torch.randn(config.prototypes.count, width)))

    def losses(self, pairs: PairEmbeddings) -> LossTerms:
        """Terms `contrast`, `local` and `prototype`."""
        weights = self.config.weights
        tokens, patches = normalize(pairs.tokens), normalize(pairs.patches)
        diagnostics = embedding_diagnostics(pairs.image, pairs.text)
        diagnostics |= likeness_diagnostics(tokens, patches, pairs.content_mask)
        sides = self._local(pairs)
        diagnostics |= {f"local/{side}": loss for side, loss in sides.items()}
        terms = {
            "contrast": weights.contrast * self.contrast(pairs.image, pairs.text),
            "local": weights.local * (sides["token"] + sides["patch"]) / 2,
            "prototype": weights.prototype * self._prototype(pairs),
        }
        return LossTerms.of(terms, diagnostics)

    def inside(self, pairs: PairEmbeddings) -> dict[str, Tensor]:
        """`local`."""
        sides = self._local(pairs)
        return {"local": (sides["token"] + sides["patch"]) / 2}

    def maps(self, pairs: PairEmbeddings) -> AlignmentMaps:
        """The attention of each content token over the patches, and of each patch over those."""
        with torch.autocast(pairs.image.device.type, enabled=False):
            pairs = full_precision(pairs)
            tokens, patches = normalize(pairs.tokens), normalize(pairs.patches)
            content = pairs.content_mask
            every = content.new_ones(patches.shape[:2])
            token_to_patch = self.token_attention.weights(tokens, patches, every)
            patch_to_token = self.patch_attention.weights(patches, tokens, content)
        token_to_patch = token_to_patch.masked_fill(~content[..., None], 0)
        return AlignmentMaps(token_to_patch, patch_to_token, "attention")

    def local_scores(self, pairs: PairEmbeddings) -> Float[Tensor, "B"]:
        """Mean over content tokens of the cosine of the token and what it read from the image."""
        with torch.autocast(pairs.image.device.type, enabled=False):
            pairs = full_precision(pairs)
            tokens = normalize(pairs.tokens)
            read, _ = self._read(tokens, normalize(pairs.patches), pairs)
            return masked_mean((tokens * normalize(read)).sum(-1), pairs.content_mask)

    def _read(
        self,
        tokens: Float[Tensor, "B L D"],
        patches: Float[Tensor, "B P D"],
        pairs: PairEmbeddings,
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B P D"]]:
        """What each token reads from the patches, and each patch from the content tokens."""
        content = pairs.content_mask
        every = content.new_ones(patches.shape[:2])
        # Softmax over nothing is not a number: a report without content tokens lets all through,
        # and what is read from it is dropped.
        some = content | ~content.any(-1, keepdim=True)
        return (
            self.token_attention(tokens, patches, every),
            self.patch_attention(patches, tokens, some),
        )

    def _local(self, pairs: PairEmbeddings) -> dict[str, Float[Tensor, ""]]:
        """Each position against what its own pair's positions read, both ways, by side."""
        tokens, patches = normalize(pairs.tokens), normalize(pairs.patches)
        for_tokens, for_patches = (normalize(x) for x in self._read(tokens, patches, pairs))
        words = Positions(pairs.content_mask)
        places = Positions(pairs.content_mask.any(-1, keepdim=True).expand(patches.shape[:2]))
        temperature = self.config.local_temperature
        return {
            "token": symmetric_pair_nce(tokens, for_tokens, words, temperature).mean(),
            "patch": symmetric_pair_nce(patches, for_patches, places, temperature).mean(),
        }

    def _prototype(self, pairs: PairEmbeddings) -> Float[Tensor, ""]:
        """This process's share of the term; the mean over processes is that of all `N` pairs."""
        config, prototypes = self.config.prototypes, normalize(self.prototypes)
        image = normalize(pairs.image) @ prototypes.T
        text = normalize(pairs.text) @ prototypes.T
        with torch.no_grad():
            scores = gather_with_gradient(torch.cat((image, text), dim=-1)).chunk(2, dim=-1)
            image_codes, text_codes = (
                sinkhorn(side, config.epsilon, config.iterations).narrow(
                    0, rank() * len(image), len(image)
                )
                for side in scores
            )
        return swapped_prediction(image, text, image_codes, text_codes, config.temperature)


def sinkhorn(scores: Float[Tensor, "N K"], epsilon: float, iterations: int) -> Float[Tensor, "N K"]:
    """Codes: soft assignments of the pairs to the prototypes, near an equal use of all prototypes.

    Args:
        scores: Cosines of pairs and prototypes, of all processes.
        epsilon: Divides the scores.
        iterations: How often prototypes, then pairs, are put to equal shares.

    Returns:
        Shares; those of a pair sum to 1.
    """
    logits = scores / epsilon
    for _ in range(iterations):
        logits = logits.log_softmax(0).log_softmax(1)
    return logits.exp()


def swapped_prediction(
    image: Float[Tensor, "B K"],
    text: Float[Tensor, "B K"],
    image_codes: Float[Tensor, "B K"],
    text_codes: Float[Tensor, "B K"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of each image with its report's codes, and of each report with its image's.

    Args:
        image: Cosines of images and prototypes.
        text: Cosines of reports and prototypes.
        image_codes: What a report shall predict.
        text_codes: What an image shall predict.
        temperature: Divides the cosines.
    """
    from_image = nn.functional.cross_entropy(image / temperature, text_codes)
    from_text = nn.functional.cross_entropy(text / temperature, image_codes)
    return (from_image + from_text) / 2
