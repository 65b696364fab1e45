"""GLoRIA: each word attends to an image, and is compared with what it reads, between all pairs.

*GLoRIA: A Multimodal Global-Local Representation Learning Framework for Label-efficient Medical
Image Recognition* (ICCV 2021).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from aga.config import Config
from aga.objectives.base import AlignmentMaps, LossTerms, Objective, full_precision
from aga.objectives.contrastive import gathered_info_nce
from aga.objectives.diagnostics import embedding_diagnostics, likeness_diagnostics
from aga.objectives.pairwise import pair_scores, score_nce
from aga.pairs import PairEmbeddings
from aga.tensors import masked_logsumexp, masked_softmax, normalize

Factor = Annotated[float, Field(gt=0)]


class GloriaWeights(Config):
    """Weights of the two terms, both over 0."""

    contrast: Factor
    fine: Factor


class GloriaConfig(Config):
    """The GLoRIA baseline; factors are inverse temperatures, all of them fixed.

    Attributes:
        attention_factor: Multiplies the shares of the words before the softmax over patches.
        word_factor: Multiplies the cosines of words and contexts before they are joined.
        nce_factor: Multiplies the scores of pairs, and the cosines of global embeddings.
        weights: How the terms add up.
    """

    attention_factor: Factor
    word_factor: Factor
    nce_factor: Factor
    weights: GloriaWeights


class GloriaObjective(Objective):
    """GLoRIA: InfoNCE on attention-weighted scores and on global embeddings; nothing to learn."""

    crosses_pairs: ClassVar[bool] = True

    def __init__(self, config: GloriaConfig, width: int) -> None:
        del width  # embeddings of any width
        super().__init__()
        self.config = config

    def losses(self, pairs: PairEmbeddings) -> LossTerms:
        """Terms `contrast` and `fine`."""
        weights, content = self.config.weights, pairs.content_mask
        diagnostics = embedding_diagnostics(pairs.image, pairs.text)
        diagnostics |= likeness_diagnostics(
            normalize(pairs.tokens), normalize(pairs.patches), content
        )
        contrast = gathered_info_nce(pairs.image, pairs.text, self.config.nce_factor)
        terms = {"contrast": weights.contrast * contrast, "fine": weights.fine * self._fine(pairs)}
        return LossTerms.of(terms, diagnostics)

    def _fine(self, pairs: PairEmbeddings) -> Float[Tensor, ""]:
        """The mean of both directions; a report without a content token takes no part."""
        score = partial(cross_scores, config=self.config)
        found = pair_scores(score, pairs.patches, pairs.tokens, pairs.content_mask)
        sides = (found.of_images[0], found.of_reports[0])
        losses = [
            score_nce(side, found.own, found.readable, self.config.nce_factor) for side in sides
        ]
        return (losses[0] + losses[1]) / 2

    def maps(self, pairs: PairEmbeddings) -> AlignmentMaps:
        """The attention of each word over patches, and the shares of the words in each patch."""
        shares, attention = self._own(pairs)[:2]
        attention = attention.masked_fill(~pairs.content_mask[..., None], 0)
        return AlignmentMaps(attention, shares.transpose(1, 2), "attention")

    def local_scores(self, pairs: PairEmbeddings) -> Float[Tensor, "B"]:
        """The score of each pair, which grows with its words; 0 for a report without content."""
        return self._own(pairs)[2]

    def _own(
        self, pairs: PairEmbeddings
    ) -> tuple[Float[Tensor, "B L P"], Float[Tensor, "B L P"], Float[Tensor, "B"]]:
        """Shares, attention and score of each pair by itself."""
        with torch.autocast(pairs.image.device.type, enabled=False):
            pairs = full_precision(pairs)
            products = torch.bmm(pairs.tokens, scaled(pairs.patches).transpose(1, 2))
            tokens, content = normalize(pairs.tokens)[:, None], pairs.content_mask[:, None]
            factor = self.config.attention_factor
            shares, attention = attend(products[:, None], content, factor)
            scores = read_scores(attention, pairs.patches, tokens, content, self.config.word_factor)
        return shares[:, 0], attention[:, 0], scores[:, 0]


def scaled(patches: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
    """`V/√D`, whose products with tokens are the attention's logits."""
    return patches / math.sqrt(patches.shape[-1])


def attend(
    products: Float[Tensor, "B N L P"], content: Bool[Tensor, "#B N L"], factor: float
) -> tuple[Float[Tensor, "B N L P"], Float[Tensor, "B N L P"]]:
    """What each word has of each patch, and how it attends to them.

    Args:
        products: `s = V·T/√D` of images and reports.
        content: Tokens that count.
        factor: Multiplies the shares before the second softmax.

    Returns:
        Shares, a softmax of `s` over the content tokens, which sum to 1 for each patch and are 0
        for other tokens; and attention, a softmax of the shares over patches, which sums to 1 for
        each token.
    """
    shares = masked_softmax(products, content[..., None].expand_as(products), dim=2)
    return shares, (factor * shares).softmax(-1)


def read_scores(
    attention: Float[Tensor, "B N L P"],
    patches: Float[Tensor, "B P D"],
    tokens: Float[Tensor, "#B N L D"],
    content: Bool[Tensor, "#B N L"],
    factor: float,
) -> Float[Tensor, "B N"]:
    """`log Σ_l exp(factor · cos(context_l, token_l))` over content tokens; 0 where there is none.

    Args:
        attention: Of each word over the patches; the context is their sum, so weighted.
        patches: Patches of any length.
        tokens: Tokens of length one.
        content: Tokens that count.
        factor: Inverse temperature with which words are joined.
    """
    contexts = torch.bmm(attention.flatten(1, 2), patches).view(*attention.shape[:3], -1)
    cosines = (normalize(contexts) * tokens).sum(-1)
    scores = masked_logsumexp(factor * cosines, content.expand_as(cosines))
    return scores.masked_fill(~content.any(-1), 0)


def cross_scores(
    patches: Float[Tensor, "B P D"],
    tokens: Float[Tensor, "N L D"],
    content: Bool[Tensor, "N L"],
    config: GloriaConfig,
) -> Float[Tensor, "1 B N"]:
    """The score of every image with every report."""
    products = scaled(patches).flatten(0, 1) @ tokens.flatten(0, 1).T
    products = products.view(*patches.shape[:2], *tokens.shape[:2])
    products = products.permute(0, 2, 3, 1)  # [B, N, L, P]
    attention = attend(products, content[None], config.attention_factor)[1]
    words = normalize(tokens)[None]
    return read_scores(attention, patches, words, content[None], config.word_factor)[None]
