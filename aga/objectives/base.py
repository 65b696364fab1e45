"""What every objective is: embeddings of a batch of pairs in, named and weighted loss terms out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aga.pairs import PairEmbeddings
from aga.tensors import masked_mean, normalize

Method = Literal["groups", "attention", "cosine"]


@dataclass(frozen=True)
class LossTerms:
    """The loss of one batch.

    Attributes:
        total: What is minimised; the sum of `terms`.
        terms: Each term by name, its weight already applied, with gradient.
        diagnostics: Named scalars to watch, without gradient; see `aga.objectives.diagnostics`.
    """

    total: Float[Tensor, ""]
    terms: dict[str, Tensor]
    diagnostics: dict[str, Tensor]

    @classmethod
    def of(cls, terms: dict[str, Tensor], diagnostics: Mapping[str, Tensor]) -> LossTerms:
        """The record of `terms`, which must not be empty; detaches the diagnostics."""
        total = torch.stack(list(terms.values())).sum()
        return cls(total, terms, {name: value.detach() for name, value in diagnostics.items()})


@dataclass(frozen=True)
class AlignmentMaps:
    """What the words of each pair look at, and what its patches; no entry is negative.

    Attributes:
        token_to_patch: How much each token looks at each patch; rows of padding are 0.
        patch_to_token: How much each patch looks at each token; columns of padding are 0.
        method: What the numbers are: weights of groups, attention, or cosines.
        thresholds: Of the gates that chose, of tokens and of patches; None where no gate did, or
            only tokens choose.
    """

    token_to_patch: Float[Tensor, "B L P"]
    patch_to_token: Float[Tensor, "B P L"]
    method: Method
    thresholds: tuple[Float[Tensor, "B L"], Float[Tensor, "B P"]] | None = None

    @classmethod
    def of_tokens(cls, weights: Float[Tensor, "B L P"]) -> AlignmentMaps:
        """Of groups that only tokens have: a patch looks at those that chose it, by their share.

        Args:
            weights: Of each token's group; a row of `patch_to_token` sums to 1, or is 0 for a
                patch that no token chose.
        """
        back = weights.transpose(1, 2)
        least = torch.finfo(weights.dtype).tiny
        return cls(weights, back / back.sum(-1, keepdim=True).clamp(min=least), "groups")


class Objective(nn.Module, ABC):
    """A training objective with its own parameters (gates, temperatures, attention).

    A subclass implements `losses`, and `inside` and `maps` where it has terms inside pairs. Its
    constructor takes its configuration and the joint width `D`. It computes in float32 or wider
    whatever precision the encoders ran in: differences of similarities decide group membership,
    and bfloat16 has three digits.

    Attributes:
        crosses_pairs: Whether other pairs of the batch are negatives, so that splitting a batch
            into micro-batches would change the loss.
    """

    crosses_pairs: ClassVar[bool]

    @property
    def block(self) -> int:
        """Consecutive pairs that are compared with each other: a process holds whole blocks."""
        return 1

    def forward(self, pairs: PairEmbeddings) -> LossTerms:
        """The loss of `pairs`; its mean over processes is the loss of the whole batch."""
        with torch.autocast(pairs.image.device.type, enabled=False):
            return self.losses(full_precision(pairs))

    def inside(self, pairs: PairEmbeddings) -> dict[str, Tensor]:
        """Every term that looks at one pair at a time, by name, without its weight.

        An objective without such terms, as this base, returns nothing. Inputs as in `losses`.
        """
        del pairs
        return {}

    def maps(self, pairs: PairEmbeddings) -> AlignmentMaps:
        """What each word looks at, and what each patch; of this base, their positive cosines.

        Autograd works as usual.
        """
        with torch.autocast(pairs.image.device.type, enabled=False):
            pairs = full_precision(pairs)
            cosines = normalize(pairs.tokens) @ normalize(pairs.patches).transpose(1, 2)
            cosines = cosines.clamp(min=0).masked_fill(~pairs.content_mask[..., None], 0)
        return AlignmentMaps(cosines, cosines.transpose(1, 2), "cosine")

    def local_scores(self, pairs: PairEmbeddings) -> Float[Tensor, "B"]:
        """How well the words of each report are found in its image (docs/method.md, step 10).

        Of this base: the mean over content tokens of the cosine of the token and the mean of the
        patches that it looks at, weighted as it looks; 0 for a report without a content token.
        """
        with torch.autocast(pairs.image.device.type, enabled=False):
            pairs = full_precision(pairs)
            weights = self.maps(pairs).token_to_patch
            cosines = normalize(weights @ pairs.patches) * normalize(pairs.tokens)
            return masked_mean(cosines.sum(-1), pairs.content_mask)

    @torch.no_grad()
    def image_dependence(
        self, pairs: PairEmbeddings, blank: Float[Tensor, "1 P D"] | None = None
    ) -> dict[str, Tensor]:
        """What the terms inside pairs, and the local scores, owe to the image.

        Args:
            pairs: Pairs of several patients.
            blank: Patches of an image that shows nothing.

        Returns:
            For every term inside pairs `<term>/image_dependence`, its value minus its value with
            the images of other reports, half a batch away, and `<term>/blank_dependence`, likewise
            with `blank`; near 0 the term is solved without looking at the image. And
            `local_score/image_gap` and `local_score/blank_gap`: how much more of itself a report
            finds in its own image. The first of each is absent for a single pair, the second
            without `blank`.
        """
        others = {}
        if len(pairs) > 1:
            # Far apart in the batch: pairs of one patient follow each other.
            others["image"] = pairs.patches.roll(len(pairs) // 2, 0)
        if blank is not None:
            others["blank"] = blank.expand_as(pairs.patches)
        found: dict[str, Tensor] = {}
        with torch.autocast(pairs.image.device.type, enabled=False):
            pairs = full_precision(pairs)
            own, score = self.inside(pairs), self.local_scores(pairs).mean()
            for name, patches in others.items():
                with_other = replace(pairs, patches=patches.to(pairs.patches.dtype))
                terms = self.inside(with_other)
                found |= {f"{term}/{name}_dependence": own[term] - terms[term] for term in own}
                found[f"local_score/{name}_gap"] = score - self.local_scores(with_other).mean()
        return found

    @abstractmethod
    def losses(self, pairs: PairEmbeddings) -> LossTerms:
        """The loss of `pairs`, whose embeddings are float32 or float64; autocast is off."""


def full_precision(pairs: PairEmbeddings) -> PairEmbeddings:
    """The same embeddings with every half-precision tensor as float32; others are not copied."""
    raised = {}
    for field in fields(pairs):
        value: Tensor = getattr(pairs, field.name)
        narrow = value.dtype in (torch.float16, torch.bfloat16)
        raised[field.name] = value.float() if narrow else value
    return PairEmbeddings(**raised)
