"""Training objectives: what the embeddings of a batch of pairs shall be like.

Contract: `Objective.forward(PairEmbeddings) -> LossTerms`. An objective owns its parameters (gates,
temperatures, attention), computes in float32 or wider whatever the encoders ran in, and gives the
same loss and gradients on any number of processes. One file holds one objective and its
configuration; `contrastive`, `pairwise`, `grouping`, `gates` and `bidirectional` hold the parts. A
new objective is one more file, one field of `ObjectiveConfig`, one entry of `OBJECTIVES`, one
block of params.yaml and one reference test.

May import `aga.pairs`, `aga.collectives`, `aga.tensors`, `aga.errors` and `aga.config`; knows
nothing of data, encoders or training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import JsonValue

from aga.config import Config
from aga.errors import CheckpointError
from aga.objectives.aga import AgaConfig, AgaObjective
from aga.objectives.base import AlignmentMaps, LossTerms, Objective
from aga.objectives.clip import ClipConfig, ClipObjective
from aga.objectives.convirt import ConvirtConfig, ConvirtObjective
from aga.objectives.diagnostics import collapse_warnings
from aga.objectives.filip import FilipConfig, FilipObjective
from aga.objectives.gloria import GloriaConfig, GloriaObjective
from aga.objectives.grouping import Groups
from aga.objectives.mgca import MgcaConfig, MgcaObjective
from aga.objectives.prior import PriorConfig, PriorObjective
from aga.objectives.siglip import SiglipConfig, SiglipObjective
from aga.objectives.sparc import SparcConfig, SparcObjective

__all__ = [
    "OBJECTIVES",
    "AgaConfig",
    "AgaObjective",
    "AlignmentMaps",
    "ClipConfig",
    "ClipObjective",
    "ConvirtConfig",
    "ConvirtObjective",
    "FilipConfig",
    "FilipObjective",
    "GloriaConfig",
    "GloriaObjective",
    "Groups",
    "LossTerms",
    "MgcaConfig",
    "MgcaObjective",
    "Objective",
    "ObjectiveConfig",
    "PriorConfig",
    "PriorObjective",
    "ShippedObjective",
    "SiglipConfig",
    "SiglipObjective",
    "SparcConfig",
    "SparcObjective",
    "build_objective",
    "collapse_warnings",
]


# By the name that params.yaml gives them, which is also the name of their settings.
OBJECTIVES: Mapping[str, Callable[[Any, int], Objective]] = {
    "aga": AgaObjective,
    "clip": ClipObjective,
    "convirt": ConvirtObjective,
    "siglip": SiglipObjective,
    "filip": FilipObjective,
    "gloria": GloriaObjective,
    "mgca": MgcaObjective,
    "prior": PriorObjective,
    "sparc": SparcObjective,
}


class ObjectiveConfig(Config):
    """Which objective trains the encoder, and the settings of each.

    Attributes:
        name: The objective in use; the others' settings are validated but not used.
        aga: Adaptive Grouped Alignment.
        clip: The baseline.
        convirt: The baseline with a weight for each direction.
        siglip: The baseline of yes-no questions.
        filip: The baseline of best matches between pairs.
        gloria: The baseline of attention between pairs.
        sparc: The baseline with fixed groups.
        mgca: The baseline with attention and prototypes.
        prior: The baseline of sentences.
    """

    name: Literal["aga", "clip", "convirt", "siglip", "filip", "gloria", "sparc", "mgca", "prior"]
    aga: AgaConfig
    clip: ClipConfig
    convirt: ConvirtConfig
    siglip: SiglipConfig
    filip: FilipConfig
    gloria: GloriaConfig
    sparc: SparcConfig
    mgca: MgcaConfig
    prior: PriorConfig


def build_objective(config: ObjectiveConfig, width: int) -> Objective:
    """The configured objective, with fresh parameters.

    Args:
        config: Which one, and its settings.
        width: Joint width `D` of the embeddings.

    Raises:
        ParamsError: The settings do not fit `width`.
    """
    return OBJECTIVES[config.name](getattr(config, config.name), width)


class ShippedObjective(Config):
    """The objective of a bundle: its own settings only, so that a new one changes no old bundle."""

    name: str
    settings: dict[str, JsonValue]

    @classmethod
    def of(cls, config: ObjectiveConfig) -> ShippedObjective:
        """The one in use."""
        own: Config = getattr(config, config.name)
        return cls(name=config.name, settings=own.model_dump(mode="json"))

    def build(self, width: int) -> Objective:
        """The objective, with fresh parameters.

        Raises:
            ValidationError: The settings are not those of this version of the objective.
        """
        if self.name not in OBJECTIVES:
            raise CheckpointError(
                "The objective is not known to this version of the library.",
                got=self.name,
                expected=", ".join(OBJECTIVES),
            )
        settings = ObjectiveConfig.model_fields[self.name].annotation
        return OBJECTIVES[self.name](settings.model_validate(self.settings), width)  # type: ignore[union-attr]
