"""SigLIP: whether an image and a report belong together, a question for each combination.

*Sigmoid Loss for Language Image Pre-Training* (arXiv 2303.15343).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from aga.config import Config
from aga.objectives.base import LossTerms, Objective
from aga.objectives.contrastive import MAX_SCALE, ContrastConfig, GlobalContrast
from aga.objectives.diagnostics import embedding_diagnostics
from aga.pairs import PairEmbeddings


class SiglipConfig(Config):
    """The SigLIP baseline.

    Attributes:
        temperature: τ at the start; learned, and never under 0.01.
        bias: At the start; learned. See `ContrastConfig`.
    """

    temperature: Annotated[float, Field(ge=1 / MAX_SCALE)]
    bias: Annotated[float, Field(le=0)]


class SiglipObjective(Objective):
    """SigLIP: the sigmoid form of the loss between pairs, and nothing else."""

    crosses_pairs: ClassVar[bool] = True

    def __init__(self, config: SiglipConfig, width: int) -> None:
        del width  # global embeddings of any width
        super().__init__()
        self.contrast = GlobalContrast(
            ContrastConfig(form="sigmoid", temperature=config.temperature, bias=config.bias)
        )

    def losses(self, pairs: PairEmbeddings) -> LossTerms:
        """One term, `contrast`."""
        diagnostics = embedding_diagnostics(pairs.image, pairs.text)
        terms = {"contrast": self.contrast(pairs.image, pairs.text)}
        return LossTerms.of(
            terms, {**diagnostics, "contrast/temperature": self.contrast.temperature}
        )
