"""Adaptive Grouped Alignment: groups, their alignment inside each pair, and the total loss.

Equations: docs/method.md, steps 2 to 10.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from aga.config import Config
from aga.objectives.base import AlignmentMaps, LossTerms, Objective, full_precision
from aga.objectives.bidirectional import BcgaConfig, BidirectionalAlignment
from aga.objectives.contrastive import (
    ContrastConfig,
    Duplicates,
    GlobalContrast,
    Positions,
    symmetric_pair_nce,
)
from aga.objectives.dependence import DependenceConfig, ImageDependence
from aga.objectives.diagnostics import (
    embedding_diagnostics,
    group_diagnostics,
    likeness_diagnostics,
)
from aga.objectives.gates import GateConfig, ThresholdGate
from aga.objectives.grouping import (
    GroupingRule,
    Groups,
    Scaling,
    statistics,
    weigh,
)
from aga.pairs import PairEmbeddings
from aga.tensors import masked_mean, normalize

logger = logging.getLogger(__name__)

Weight = Annotated[float, Field(ge=0)]


class IgaConfig(Config):
    """Instance-aware Group Alignment.

    Attributes:
        temperature: τ.
        patch_weight: Weight of the patch side; 0 skips it.
        duplicates: What equal words of a report, or alike patches of an image, are to each other:
            `negative`, `ignore` (left out), or `positive` (each is a right answer for the other).
        patch_similarity: Cosine from which on two patches are alike.
        max_patches: How many patches ask, here and in BCGA, drawn anew for each pair and step while
            training, of at least twice as many; they are compared with all patches, so the
            expectation of the loss stays. None keeps all.
    """

    temperature: Annotated[float, Field(gt=0)]
    patch_weight: Weight
    duplicates: Duplicates
    patch_similarity: Annotated[float, Field(gt=0, le=1)]
    max_patches: Annotated[int, Field(gt=0)] | None


class WeightsConfig(Config):
    """Weights of the terms; a term of weight 0 is not computed. Not all can be 0."""

    contrast: Weight
    iga: Weight
    bcga: Weight
    dependence: Weight

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not any(vars(self).values()):
            raise ValueError("at least one of contrast, iga, bcga and dependence must be over 0")
        return self


class AgaConfig(Config):
    """The AGA objective; every part has its own section.

    Attributes:
        scaling: How cosines become numbers in [0, 1] before the threshold.
        scaling_temperature: Divides the cosines of `softmax` and `sigmoid` scaling.
        gate: The thresholds.
        projection: What the terms inside pairs align: the embeddings (`shared`), or projections of
            them that no other term sees (`own`), so that they regularise the encoders and leave
            the joint space to the other terms.
        iga: Alignment of positions with their groups, inside a pair.
        bcga: Alignment of the two kinds of group, inside a pair.
        dependence: Reports read in their own and in other images.
        contrast: The loss between pairs.
        weights: How the terms add up.
    """

    scaling: Scaling
    scaling_temperature: Annotated[float, Field(ge=0.05)]
    gate: GateConfig
    projection: Literal["shared", "own"]
    iga: IgaConfig
    bcga: BcgaConfig
    dependence: DependenceConfig
    contrast: ContrastConfig
    weights: WeightsConfig


class AgaObjective(Objective):
    """AGA with both gates; a part whose weight is 0 has no trainable parameters.

    Args:
        config: All settings.
        width: Joint width `D`.
    """

    crosses_pairs: ClassVar[bool] = True

    def __init__(self, config: AgaConfig, width: int) -> None:
        super().__init__()
        self.config = config
        weights = config.weights
        self.token_gate = ThresholdGate(width, config.gate)
        self.patch_gate = ThresholdGate(width, config.gate)
        self.bcga = BidirectionalAlignment(width, config.bcga) if weights.bcga else None
        self.contrast = GlobalContrast(config.contrast) if weights.contrast else None
        self.dependence = None
        if weights.dependence:
            self.dependence = ImageDependence(width, config.dependence, config.gate)
        own = config.projection == "own" and bool(weights.iga or weights.bcga)
        self.own_patches = _projection(width) if own else nn.Identity()
        self.own_tokens = _projection(width) if own else nn.Identity()
        self._freeze_idle_gates()

    def _freeze_idle_gates(self) -> None:
        """Gates that no gradient reaches are no parameters to train: DDP would wait for them."""
        weights, moves = self.config.weights, self.config.gate.relaxation != "hard"
        if not moves and self.config.gate.kind != "fixed":
            logger.warning("objective.aga.gate.relaxation: hard keeps the thresholds at their init")
        patch_side = bool(weights.bcga or (weights.iga and self.config.iga.patch_weight))
        self.token_gate.requires_grad_(moves and bool(weights.bcga or weights.iga))
        self.patch_gate.requires_grad_(moves and patch_side)

    @property
    def block(self) -> int:
        """Of the dependence term."""
        return self.dependence.config.block if self.dependence else 1

    def losses(self, pairs: PairEmbeddings) -> LossTerms:
        """Terms `contrast`, `dependence`, `iga`, `bcga`, those of a weight over 0 (step 9)."""
        weights = self.config.weights
        terms: dict[str, Tensor] = {}
        diagnostics = embedding_diagnostics(pairs.image, pairs.text)
        if self.contrast is not None:
            terms["contrast"] = weights.contrast * self.contrast(pairs.image, pairs.text)
            diagnostics["contrast/temperature"] = self.contrast.temperature
        if self.dependence is not None:
            terms["dependence"] = weights.dependence * self.dependence(pairs)
            diagnostics["dependence/temperature"] = self.dependence.temperature
        if weights.iga or weights.bcga:
            inside, watched = self._inside(pairs)
            terms |= {name: getattr(weights, name) * loss for name, loss in inside.items()}
            diagnostics |= watched
        return LossTerms.of(terms, diagnostics)

    def inside(self, pairs: PairEmbeddings) -> dict[str, Tensor]:
        """`iga` and `bcga`, those whose weight is not 0."""
        weights = self.config.weights
        return self._inside(pairs)[0] if weights.iga or weights.bcga else {}

    def _inside(self, pairs: PairEmbeddings) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The unweighted terms inside the pairs (steps 2 to 7), and their diagnostics."""
        content, pairs = pairs.content_mask, self._projected(pairs)
        tokens, patches = normalize(pairs.tokens), normalize(pairs.patches)
        groups = self._groups(pairs, tokens, patches)
        diagnostics = group_diagnostics(groups, content)
        diagnostics |= likeness_diagnostics(tokens, patches, content)
        terms: dict[str, Tensor] = {}
        asking = self._sample(patches)
        if self.config.weights.iga:
            sides = self._iga(pairs, tokens, patches, groups, asking)
            diagnostics |= {f"iga/{side}": loss for side, loss in sides.items()}
            terms["iga"] = sides["token"]
            if "patch" in sides:
                terms["iga"] = terms["iga"] + self.config.iga.patch_weight * sides["patch"]
        if self.bcga is not None:
            losses = self.bcga(groups.visual, groups.language, content, asking)
            terms["bcga"] = losses.mean()
        return terms, diagnostics

    def _projected(self, pairs: PairEmbeddings) -> PairEmbeddings:
        """The pairs in the space that the terms inside pairs align."""
        patches, tokens = self.own_patches(pairs.patches), self.own_tokens(pairs.tokens)
        return replace(pairs, patches=patches, tokens=tokens)

    def groups(self, pairs: PairEmbeddings) -> Groups:
        """The groups of the terms inside pairs, in the space that those align (step 5).

        Autograd works as usual; wrap in `torch.no_grad()` to explain or evaluate.
        """
        with torch.autocast(pairs.image.device.type, enabled=False):
            pairs = self._projected(full_precision(pairs))
            return self._groups(pairs, normalize(pairs.tokens), normalize(pairs.patches))

    def maps(self, pairs: PairEmbeddings) -> AlignmentMaps:
        """The weights `a` and `a'` of the groups (step 5).

        With the image-dependence term, what its gate lets each word choose, which is about the
        image; a patch then looks at the words that chose it.
        """
        if self.dependence is None:
            groups = self.groups(pairs)
            thresholds = groups.token_thresholds, groups.patch_thresholds
            return AlignmentMaps(groups.token_to_patch, groups.patch_to_token, "groups", thresholds)
        with torch.autocast(pairs.image.device.type, enabled=False):
            weights = self.dependence.weights(full_precision(pairs))
        return AlignmentMaps.of_tokens(weights)

    def local_scores(self, pairs: PairEmbeddings) -> Float[Tensor, "B"]:
        """Of the space that made the maps: of own projections without the dependence term."""
        if self.dependence is not None:
            return super().local_scores(replace(pairs, patches=normalize(pairs.patches)))
        with torch.autocast(pairs.image.device.type, enabled=False):
            groups = self.groups(pairs)
            cosines = (normalize(groups.visual.vectors) * normalize(groups.tokens)).sum(-1)
            return masked_mean(cosines, pairs.content_mask)

    def _groups(
        self,
        pairs: PairEmbeddings,
        tokens: Float[Tensor, "B L D"],
        patches: Float[Tensor, "B P D"],
    ) -> Groups:
        """Steps 2 to 5; `tokens` and `patches` are those of `pairs` at unit length."""
        content = pairs.content_mask
        similarity = torch.bmm(tokens, patches.transpose(1, 2))  # step 2, [B, L, P]
        every = content.new_ones(patches.shape[:2])
        readable = content.any(-1, keepdim=True).expand_as(every)
        token_to_patch, token_thresholds, visual_sizes = self._direction(
            self.token_gate, tokens, similarity, content, every
        )
        patch_to_token, patch_thresholds, language_sizes = self._direction(
            self.patch_gate, patches, similarity.transpose(1, 2), readable, content
        )
        return Groups(
            patches=pairs.patches,
            tokens=pairs.tokens,
            similarity=similarity,
            token_to_patch=token_to_patch,
            patch_to_token=patch_to_token,
            token_thresholds=token_thresholds,
            patch_thresholds=patch_thresholds,
            visual_sizes=visual_sizes,
            language_sizes=language_sizes,
        )

    def _direction(
        self,
        gate: ThresholdGate,
        queries: Float[Tensor, "B X D"],
        similarity: Float[Tensor, "B X Y"],
        asking: Bool[Tensor, "B X"],
        elements: Bool[Tensor, "B Y"],
    ) -> tuple[Float[Tensor, "B X Y"], Float[Tensor, "B X"], Int64[Tensor, "B X"]]:
        """Weights, thresholds and sizes of one direction (steps 3 to 5)."""
        config, gating = self.config, self.config.gate
        choices = elements.sum(-1).clamp(min=1).to(similarity.dtype)
        thresholds = gate(queries, statistics(similarity, elements), choices)
        rule = GroupingRule(
            config.scaling, config.scaling_temperature, gating.relaxation, gating.temperature
        )
        weights, sizes = weigh(similarity, thresholds, asking, elements, rule)
        return weights, thresholds, sizes

    def _iga(
        self,
        pairs: PairEmbeddings,
        tokens: Float[Tensor, "B L D"],
        patches: Float[Tensor, "B P D"],
        groups: Groups,
        asking: Int64[Tensor, "B Q"] | None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Step 6: `L_token` and `L_patch`, averaged over pairs; `patch` only with a weight."""
        config, content = self.config.iga, pairs.content_mask
        words = Positions(content, pairs.token_ids, config.duplicates)
        visual = normalize(groups.visual.vectors)
        losses = {"token": symmetric_pair_nce(tokens, visual, words, config.temperature).mean()}
        if config.patch_weight:
            places = Positions(
                content.any(-1, keepdim=True).expand(patches.shape[:2]),
                patches,
                config.duplicates,
                config.patch_similarity,
            )
            lengths = torch.linalg.vector_norm(pairs.tokens, dim=-1, keepdim=True)
            products = (groups.similarity * lengths).transpose(1, 2)
            sides = groups.language.factors(patches, products)
            losses["patch"] = symmetric_pair_nce(*sides, places, config.temperature, asking).mean()
        return losses

    def _sample(self, patches: Float[Tensor, "B P D"]) -> Int64[Tensor, "B Q"] | None:
        """A uniform choice of `max_patches` patches for each pair; None for all of them.

        All are taken too where they are not twice as many: both directions then read one matrix of
        all patches, which costs no more than one matrix of a sample for each.
        """
        most = self.config.iga.max_patches
        if most is None or 2 * most > patches.shape[1] or not self.training:
            return None
        return torch.rand(patches.shape[:2], device=patches.device).topk(most, dim=1).indices


def _projection(width: int) -> nn.Module:
    """A projection that only the terms inside pairs see; twice as wide inside, as heads are."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
