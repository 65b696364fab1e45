"""What every objective is: embeddings of a batch of pairs in, named and weighted loss terms out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aga.pairs import PairEmbeddings


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


class Objective(nn.Module, ABC):
    """A training objective with its own parameters (gates, temperatures, attention).

    A subclass implements `losses`. It computes in float32 or wider whatever precision the encoders
    ran in: differences of similarities decide group membership, and bfloat16 has three digits.

    Attributes:
        crosses_pairs: Whether other pairs of the batch are negatives, so that splitting a batch
            into micro-batches would change the loss.
    """

    crosses_pairs: ClassVar[bool]

    def forward(self, pairs: PairEmbeddings) -> LossTerms:
        """The loss of `pairs`; its mean over processes is the loss of the whole batch."""
        with torch.autocast(pairs.image.device.type, enabled=False):
            return self.losses(full_precision(pairs))

    def image_dependence(self, pairs: PairEmbeddings) -> dict[str, Tensor]:
        """For every term inside pairs: its value minus its value with other reports' images.

        An objective without such terms, as this base, returns nothing.
        """
        del pairs
        return {}

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
