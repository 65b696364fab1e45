"""Fine-grained scores of every image with every report, and the contrastive loss on them.

Letters: `K` kinds of score that are computed together; `M` tokens of the longest report of all
processes. A process scores its own images with the reports of all processes. What its own reports
score with all images then lies with the other processes, as columns: the scores are gathered, a
few numbers a combination, so that no combination of patches and tokens is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from aga.collectives import gather_padded, gather_with_gradient, own_rows
from aga.tensors import masked_logsumexp

# Numbers in the largest tensor of a block of combinations, 16 MiB in float32; a score function
# holds a few of them at once. More combinations than that are scored in several blocks, which the
# backward pass computes anew, so that memory grows with B·N and not with B·N·L·P.
BLOCK = 2**22

Score = Callable[
    [Float[Tensor, "B P D"], Float[Tensor, "N L D"], Bool[Tensor, "N L"]], Float[Tensor, "K B N"]
]


@dataclass(frozen=True)
class PairScores:
    """Scores of this process's pairs with those of all processes.

    A pair whose report has no content token has no score: it neither asks nor is a candidate.

    Attributes:
        of_images: Each kind of score of the own images with all reports.
        of_reports: Each kind of score of the own reports with all images.
        own: Row of each own pair among those of all processes.
        readable: Pairs of all processes whose report has a content token.
    """

    of_images: Float[Tensor, "K B N"]
    of_reports: Float[Tensor, "K B N"]
    own: Int64[Tensor, "B"]
    readable: Bool[Tensor, "N"]


def pair_scores(
    score: Score,
    patches: Float[Tensor, "B P D"],
    tokens: Float[Tensor, "B L D"],
    content: Bool[Tensor, "B L"],
) -> PairScores:
    """Scores of all images with all reports, as far as they are this process's, with gradient.

    Args:
        score: Every kind of score of some images with some reports, `[K, images, reports]`; finite
            for a report without a content token.
        patches: Of this process's images.
        tokens: Of this process's reports; `L` may differ between processes.
        content: Tokens that count.
    """
    all_tokens, all_content = gather_padded(tokens, content)
    of_images = blockwise(score, patches, all_tokens, all_content)
    own = own_rows(patches)
    everything = gather_with_gradient(of_images.transpose(0, 1))  # images of all processes first
    of_reports = everything[..., own].permute(1, 2, 0)
    return PairScores(of_images, of_reports, own, all_content.any(-1))


def blockwise(
    score: Score,
    patches: Float[Tensor, "B P D"],
    tokens: Float[Tensor, "N M D"],
    content: Bool[Tensor, "N M"],
) -> Float[Tensor, "K B N"]:
    """`score` of all combinations, in blocks of as many as `BLOCK` allows, one at least."""
    images, reports = _block(patches, tokens)
    parts = torch.split(patches, images)
    candidates = list(zip(torch.split(tokens, reports), torch.split(content, reports), strict=True))
    if len(parts) * len(candidates) == 1:
        return score(patches, tokens, content)
    rows = []
    for part in parts:
        blocks = [
            checkpoint(score, part, *some, use_reentrant=False, preserve_rng_state=False)
            for some in candidates
        ]
        rows.append(torch.cat(blocks, dim=2))
    return torch.cat(rows, dim=1)


def _block(patches: Float[Tensor, "B P D"], tokens: Float[Tensor, "N M D"]) -> tuple[int, int]:
    """How many images and how many reports make a block."""
    combination = max(1, tokens.shape[1] * max(patches.shape[1:]))
    images = min(len(patches), max(1, BLOCK // combination))
    return images, max(1, BLOCK // (images * combination))


def score_nce(
    scores: Float[Tensor, "B N"],
    own: Int64[Tensor, "B"],
    readable: Bool[Tensor, "N"],
    scale: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """InfoNCE of one direction: each row shall find its own pair among the candidates.

    Args:
        scores: Scores of the rows' pairs with those of all processes.
        own: Candidate of each row.
        readable: Candidates that take part.
        scale: 1/τ.

    Returns:
        The mean over all rows, to which a row that does not take part adds 0.
    """
    logits = scale * scores
    right = logits.gather(1, own[:, None])[:, 0]
    losses = masked_logsumexp(logits, readable.expand_as(logits)) - right
    return losses.masked_fill(~readable[own], 0).mean()
