"""The image-dependence term: a report finds more of itself in its own image than in another one.

Terms inside a pair can be solved without looking at the image (docs/method.md, step 11). This one
cannot: every report is read in a few images, its own and those of its neighbours in the batch.
Letter `M`: the pairs of a block, which are compared with each other.
"""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from aga.collectives import world_size
from aga.config import Config
from aga.errors import ParamsError
from aga.objectives.contrastive import MAX_SCALE, LearnedScale
from aga.objectives.gates import GateConfig, ThresholdGate
from aga.objectives.grouping import Relaxation, choose, statistics
from aga.objectives.pairwise import blockwise, score_nce
from aga.pairs import PairEmbeddings
from aga.tensors import masked_mean, masked_softmax, normalize


class DependenceConfig(Config):
    """How a report is read in images.

    Attributes:
        block: Pairs that are compared with each other. A batch is cut into blocks of so many; each
            report is read in the images of its block, so `block - 1` of them are not its own.
        patch_temperature: A patch whose cosine with a token is this much under the best one's has
            1/e of its weight.
        threshold: Of the gate at the start, on weights of which the best is 1.
        temperature: τ between the pairs of a block at the start; learned, and never under 0.01.
        erased: Whether each report is also read in its own image without the patches that its
            words chose: a counterfactual that needs no other patient.
    """

    block: Annotated[int, Field(ge=2)]
    patch_temperature: Annotated[float, Field(gt=0)]
    threshold: Annotated[float, Field(gt=0, lt=1)]
    temperature: Annotated[float, Field(ge=1 / MAX_SCALE)]
    erased: bool


class ImageDependence(LearnedScale):
    """The term with its gate and its learned temperature.

    Args:
        width: Joint width `D`.
        config: Blocks and temperatures.
        gate: Kind and relaxation of the threshold; its `init` is replaced by `threshold`.
    """

    def __init__(self, width: int, config: DependenceConfig, gate: GateConfig) -> None:
        super().__init__(config.temperature)
        self.config = config
        self.gate_config = gate.model_copy(update={"init": config.threshold})
        self.gate = ThresholdGate(width, self.gate_config)
        self.gate.requires_grad_(gate.relaxation != "hard")

    def forward(self, pairs: PairEmbeddings) -> Float[Tensor, ""]:
        """InfoNCE of the scores of each block, both ways, averaged over the pairs.

        A report without a content token takes no part and adds 0.

        Raises:
            ParamsError: Several processes, and blocks that do not divide a process's pairs: then
                the loss would depend on the number of processes.
        """
        block, count = self.config.block, len(pairs)
        if world_size() > 1 and count % block:
            raise ParamsError(
                "The pairs of a process are not whole blocks",
                where="objective.aga.dependence.block",
                got=f"{count} pairs in blocks of {block}",
                expected="a divisor of training.batch_size / cluster.workers",
            )
        scale, tokens, patches = self.scale(), normalize(pairs.tokens), normalize(pairs.patches)
        total = pairs.patches.new_zeros(())
        for start in range(0, count, block):
            part = slice(start, start + block)
            content = pairs.content_mask[part]
            of_images = blockwise(self.scores, patches[part], tokens[part], content)[0]
            of_reports, readable = of_images.T, content.any(-1)
            own = torch.arange(len(of_images), device=of_images.device)
            loss = score_nce(of_images, own, readable, scale)
            if self.config.erased:
                erased = self.erased_scores(patches[part], tokens[part], content)
                of_reports = torch.cat((of_reports, erased[:, None]), dim=1)
                readable = torch.cat((readable, readable.new_ones(1)))
            loss = (loss + score_nce(of_reports, own, readable, scale)) / 2
            total = total + len(own) * loss
        return total / count

    def erased_scores(
        self,
        patches: Float[Tensor, "B P D"],
        tokens: Float[Tensor, "B L D"],
        content: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B"]:
        """How much of each report is left in its own image without what its words chose.

        Each token reads the patches that it did not choose, by their softmax weights. A token that
        chose all of them finds nothing, 0. No gradient reaches the choice of what is erased.
        Arguments as in `scores`.
        """
        cosines = torch.bmm(tokens, patches.transpose(1, 2))
        left = self._chosen(cosines, tokens, content, "hard").detach() == 0
        weights = masked_softmax(cosines / self.config.patch_temperature, left)
        matches = (normalize(torch.bmm(weights, patches)) * tokens).sum(-1)
        return masked_mean(matches, content)

    def scores(
        self,
        patches: Float[Tensor, "B P D"],
        tokens: Float[Tensor, "N L D"],
        content: Bool[Tensor, "N L"],
    ) -> Float[Tensor, "1 B N"]:
        """How much of each report is found in each image; 0 for a report without content.

        The mean over content tokens of the cosine of the token and what it chose in the image.

        Args:
            patches: Of the images, of length one: a long patch shall not outshine the chosen ones.
            tokens: Of the reports, of length one.
            content: Tokens that count.
        """
        images, reports = len(patches), len(tokens)
        cosines = patches.flatten(0, 1) @ tokens.flatten(0, 1).T
        cosines = cosines.view(images, -1, *tokens.shape[:2]).permute(0, 2, 3, 1)
        asking = tokens.expand(images, *tokens.shape).flatten(0, 1)
        kept = content.expand(images, *content.shape).flatten(0, 1)
        weights = self._chosen(cosines.flatten(0, 1), asking, kept)
        chosen = torch.bmm(weights.view(images, -1, weights.shape[-1]), patches)
        matches = (normalize(chosen).view(images, reports, -1, tokens.shape[-1]) * tokens).sum(-1)
        return masked_mean(matches, content.expand_as(matches))[None]

    def weights(self, pairs: PairEmbeddings) -> Float[Tensor, "B L P"]:
        """What each token chooses in its own image; rows sum to 1, those of padding are 0."""
        tokens = normalize(pairs.tokens)
        cosines = torch.bmm(tokens, normalize(pairs.patches).transpose(1, 2))
        return self._chosen(cosines, tokens, pairs.content_mask)

    def _chosen(
        self,
        cosines: Float[Tensor, "B L P"],
        tokens: Float[Tensor, "B L D"],
        content: Bool[Tensor, "B L"],
        relaxation: Relaxation | None = None,
    ) -> Float[Tensor, "B L P"]:
        """Softmax weights with the best at 1, those under the token's threshold left out.

        By the relaxation of the gate where no other one is given.
        """
        best = cosines.amax(-1, keepdim=True)
        scaled = ((cosines - best) / self.config.patch_temperature).exp()
        every = content.new_ones(cosines.shape[0], cosines.shape[2])
        choices = cosines.new_full(cosines.shape[:1], cosines.shape[2])
        thresholds = self.gate(tokens, statistics(cosines, every), choices)
        gate, mask = self.gate_config, content[..., None].expand_as(cosines)
        relaxation = relaxation or gate.relaxation
        return choose(scaled * mask, thresholds, mask, relaxation, gate.temperature)[0]
