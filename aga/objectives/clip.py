"""The baseline: symmetric InfoNCE between global embeddings, and nothing else."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from aga.config import Config
from aga.objectives.base import LossTerms, Objective
from aga.objectives.contrastive import MAX_SCALE, ContrastConfig, GlobalContrast
from aga.objectives.diagnostics import embedding_diagnostics
from aga.pairs import PairEmbeddings


class ClipConfig(Config):
    """The CLIP baseline.

    Attributes:
        temperature: τ at the start; learned, and never under 0.01.
    """

    temperature: Annotated[float, Field(ge=1 / MAX_SCALE)]


class ClipObjective(Objective):
    """CLIP: each image shall find its report among all reports, and each report its image."""

    crosses_pairs: ClassVar[bool] = True

    def __init__(self, config: ClipConfig, width: int) -> None:
        del width  # global embeddings of any width
        super().__init__()
        self.contrast = GlobalContrast(ContrastConfig.infonce(config.temperature))

    def losses(self, pairs: PairEmbeddings) -> LossTerms:
        """One term, `contrast`."""
        diagnostics = embedding_diagnostics(pairs.image, pairs.text)
        terms = {"contrast": self.contrast(pairs.image, pairs.text)}
        return LossTerms.of(
            terms, {**diagnostics, "contrast/temperature": self.contrast.temperature}
        )
