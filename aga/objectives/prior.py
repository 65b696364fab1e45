"""PRIOR's local alignment: sentences and patches read each other with sigmoid attention.

The local alignment module of *Prototype Representation Joint Learning from Medical Images and
Reports* (arXiv 2307.12577) and its global term; its reconstruction of images and reports, and the
sentence prototypes that serve it, are not here. A sentence is the mean of its content tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

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
from aga.pairs import PairEmbeddings
from aga.tensors import masked_mean, normalize


class PriorWeights(Config):
    """Weights of the two terms, both over 0."""

    contrast: Annotated[float, Field(gt=0)]
    local: Annotated[float, Field(gt=0)]


class PriorConfig(Config):
    """The PRIOR baseline.

    Attributes:
        temperature: τ of a report's sentences.
        contrast_temperature: τ between pairs at the start; learned, and never under 0.01.
        predictor: Hidden width of the predictor on the image side.
        weights: How the terms add up.
    """

    temperature: Annotated[float, Field(gt=0)]
    contrast_temperature: Annotated[float, Field(ge=1 / MAX_SCALE)]
    predictor: Annotated[int, Field(gt=0)]
    weights: PriorWeights


class SigmoidAttention(nn.Module):
    """One-head attention whose weights do not compete: σ(q·k/√D), each by itself.

    What is read is a sum without bias. Losses look at its direction only, so that it does not
    matter whether the weights are divided by their sum.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(
        self,
        queries: Float[Tensor, "B X D"],
        others: Float[Tensor, "B Y D"],
        keep: Bool[Tensor, "B Y"],
    ) -> tuple[Float[Tensor, "B X D"], Float[Tensor, "B X Y"]]:
        """What each query reads from the kept `others`, and the weight of each of these."""
        logits = torch.bmm(self.query(queries), self.key(others).transpose(1, 2))
        weights = (logits / queries.shape[-1] ** 0.5).sigmoid() * keep[:, None]
        return self.output(torch.bmm(weights, self.value(others))), weights


@dataclass(frozen=True)
class _Reading:
    """Unit vectors of both sides, and what each reads from the other.

    Attributes:
        sentences: 0 where there is none.
        patches: Of the image.
        mask: Sentences that exist.
        for_sentences: What each sentence reads from the patches; of any length.
        for_patches: What each patch reads from the sentences; of any length.
        sentence_to_patch: Weights.
        patch_to_sentence: Weights.
    """

    sentences: Float[Tensor, "B S D"]
    patches: Float[Tensor, "B P D"]
    mask: Bool[Tensor, "B S"]
    for_sentences: Float[Tensor, "B S D"]
    for_patches: Float[Tensor, "B P D"]
    sentence_to_patch: Float[Tensor, "B S P"]
    patch_to_sentence: Float[Tensor, "B P S"]


class PriorObjective(Objective):
    """PRIOR's global and local alignment.

    Args:
        config: All settings.
        width: Joint width `D`.
    """

    crosses_pairs: ClassVar[bool] = True

    def __init__(self, config: PriorConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.contrast = GlobalContrast(ContrastConfig.infonce(config.contrast_temperature))
        self.sentence_attention = SigmoidAttention(width)
        self.patch_attention = SigmoidAttention(width)
        # A layer norm where SimSiam has batch norms: a loss inside a pair must not see others.
        self.predictor = nn.Sequential(
            nn.Linear(width, config.predictor),
            nn.LayerNorm(config.predictor),
            nn.GELU(),
            nn.Linear(config.predictor, width),
        )

    def losses(self, pairs: PairEmbeddings) -> LossTerms:
        """Terms `contrast` and `local`."""
        weights = self.config.weights
        diagnostics = embedding_diagnostics(pairs.image, pairs.text)
        diagnostics |= likeness_diagnostics(
            normalize(pairs.tokens), normalize(pairs.patches), pairs.content_mask
        )
        sides = self._local(pairs)
        diagnostics |= {f"local/{side}": loss for side, loss in sides.items()}
        diagnostics["contrast/temperature"] = self.contrast.temperature
        terms = {
            "contrast": weights.contrast * self.contrast(pairs.image, pairs.text),
            "local": weights.local * (sides["sentence"] + sides["patch"]) / 2,
        }
        return LossTerms.of(terms, diagnostics)

    def inside(self, pairs: PairEmbeddings) -> dict[str, Tensor]:
        """`local`."""
        sides = self._local(pairs)
        return {"local": (sides["sentence"] + sides["patch"]) / 2}

    def maps(self, pairs: PairEmbeddings) -> AlignmentMaps:
        """The attention of each token's sentence over the patches, and of each patch over those.

        All tokens of a sentence have the same numbers, each between 0 and 1; they do not sum to 1.
        """
        with torch.autocast(pairs.image.device.type, enabled=False):
            reading = self._read(full_precision(pairs))
            member = _membership(pairs.sentences, pairs.content_mask, reading.patches.dtype)
            token_to_patch = torch.bmm(member.transpose(1, 2), reading.sentence_to_patch)
            patch_to_token = torch.bmm(reading.patch_to_sentence, member)
        return AlignmentMaps(token_to_patch, patch_to_token, "attention")

    def local_scores(self, pairs: PairEmbeddings) -> Float[Tensor, "B"]:
        """Mean over sentences of the cosine of the sentence and what it read from the image."""
        with torch.autocast(pairs.image.device.type, enabled=False):
            reading = self._read(full_precision(pairs))
            cosines = (reading.sentences * normalize(reading.for_sentences)).sum(-1)
            return masked_mean(cosines, reading.mask)

    def _read(self, pairs: PairEmbeddings) -> _Reading:
        """Sentences and patches, and what each reads from the other side."""
        means, mask = sentence_means(pairs.tokens, pairs.sentences, pairs.content_mask)
        sentences, patches = normalize(means), normalize(pairs.patches)
        every = mask.new_ones(patches.shape[:2])
        for_sentences, sentence_to_patch = self.sentence_attention(sentences, patches, every)
        for_patches, patch_to_sentence = self.patch_attention(patches, sentences, mask)
        return _Reading(
            sentences=sentences,
            patches=patches,
            mask=mask,
            for_sentences=for_sentences,
            for_patches=for_patches,
            sentence_to_patch=sentence_to_patch,
            patch_to_sentence=patch_to_sentence,
        )

    def _local(self, pairs: PairEmbeddings) -> dict[str, Float[Tensor, ""]]:
        """InfoNCE among the sentences of each report, and SimSiam on the patches, by side."""
        reading, temperature = self._read(pairs), self.config.temperature
        sentence = symmetric_pair_nce(
            reading.sentences,
            normalize(reading.for_sentences),
            Positions(reading.mask),
            temperature,
        )
        ours, theirs = reading.patches, reading.for_patches
        forth = stopped_distance(self.predictor(ours), theirs)
        back = stopped_distance(self.predictor(normalize(theirs)), ours)
        readable = reading.mask.any(-1)
        patch = ((forth + back) / 2).mean(-1).masked_fill(~readable, 0)
        return {"sentence": sentence.mean(), "patch": patch.mean()}


def sentence_means(
    tokens: Float[Tensor, "B L D"],
    sentences: Int64[Tensor, "B L"],
    content: Bool[Tensor, "B L"],
) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B S"]]:
    """The mean of the content tokens of each sentence, and which sentences exist.

    There is room for as many sentences as tokens, so that no number has to come from the device.

    Args:
        tokens: Token embeddings.
        sentences: Number of each token's sentence, under `L`; any number where it is no content.
        content: True for content tokens.

    Returns:
        Means, 0 for a sentence that does not exist; and the sentences that do.
    """
    member = _membership(sentences, content, tokens.dtype)
    sizes = member.sum(-1, keepdim=True)
    return torch.bmm(member, tokens) / sizes.clamp(min=1), sizes[..., 0] > 0


def stopped_distance(
    predictions: Float[Tensor, "*axes D"], targets: Float[Tensor, "*axes D"]
) -> Float[Tensor, "*axes"]:
    """One minus the cosine of predictions and targets; no gradient reaches the targets."""
    return 1 - (normalize(predictions) * normalize(targets.detach())).sum(-1)


def _membership(
    sentences: Int64[Tensor, "B L"], content: Bool[Tensor, "B L"], dtype: torch.dtype
) -> Float[Tensor, "B S L"]:
    """1 where a content token belongs to a sentence."""
    numbers = torch.arange(sentences.shape[1], device=sentences.device)[:, None]
    return ((sentences[:, None] == numbers) & content[:, None]).to(dtype)
