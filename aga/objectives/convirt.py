"""ConVIRT: InfoNCE between global embeddings, the images' direction weighing more.

*Contrastive Learning of Medical Visual Representations from Paired Images and Text*
(arXiv 2010.00747).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from aga.config import Config
from aga.objectives.base import LossTerms, Objective
from aga.objectives.contrastive import gathered_info_nce
from aga.objectives.diagnostics import embedding_diagnostics
from aga.pairs import PairEmbeddings


class ConvirtConfig(Config):
    """The ConVIRT baseline.

    Attributes:
        temperature: τ, fixed.
        image_weight: Weight of the images that ask for their report; the reports that ask for
            their image have the rest to 1.
    """

    temperature: Annotated[float, Field(gt=0)]
    image_weight: Annotated[float, Field(ge=0, le=1)]


class ConvirtObjective(Objective):
    """ConVIRT: CLIP with a fixed temperature and a weight for each direction; nothing to learn."""

    crosses_pairs: ClassVar[bool] = True

    def __init__(self, config: ConvirtConfig, width: int) -> None:
        del width  # global embeddings of any width
        super().__init__()
        self.config = config

    def losses(self, pairs: PairEmbeddings) -> LossTerms:
        """One term, `contrast`."""
        scale, share = 1 / self.config.temperature, self.config.image_weight
        terms = {"contrast": gathered_info_nce(pairs.image, pairs.text, scale, share)}
        return LossTerms.of(terms, embedding_diagnostics(pairs.image, pairs.text))
