"""Noise-contrastive estimation inside pairs: the inner loop, with its gradient written out.

Docs/method.md, step 6. A few pairs and a chunk of their queries at a time: logits, probabilities
and exclusions are matrices of `Q·X` numbers a pair, which stay in the processor's cache and are
never kept. The gradient of a pair's loss is what comes from above times a matrix that is known
together with the loss: so it is computed along with it, and nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from aga.objectives.blocks import blocks


@dataclass(frozen=True)
class Excluded:
    """What the queries of a block are not compared with.

    Attributes:
        dropped: Keys that take no part.
        wrong: Keys that are no right answer; None where a query has its own key alone.
    """

    dropped: Bool[Tensor, "B Q X"]
    wrong: Bool[Tensor, "B Q X"] | None


@dataclass(frozen=True)
class Side:
    """Unit vectors of a block, and where their gradient is added up, if anyone asks for it."""

    vectors: Float[Tensor, "B X D"]
    gradient: Float[Tensor, "B X D"] | None


@dataclass(frozen=True)
class Problem:
    """What the queries shall find.

    Attributes:
        share: Weight of each query in the loss of its pair.
        index: Which positions ask; all where None.
        excluded: Called with the rows of a block and the positions that ask in it (None for all).
        temperature: τ.
        both: Whether the other side asks as well; the loss is then the mean of both.
        chunk: How many queries are compared at once, at most.
    """

    share: Float[Tensor, "B Q"]
    index: Int64[Tensor, "B Q"] | None
    excluded: Callable[[slice, Tensor | None], Excluded]
    temperature: float
    both: bool
    chunk: int

    def parts(self, like: Tensor) -> list[tuple[slice, slice, Tensor | None]]:
        """Pairs, queries and their positions of each block of combinations."""
        queries = self.share.shape[1]
        index = self.index
        if index is None and queries > self.chunk:
            index = torch.arange(queries, device=like.device).expand(self.share.shape)
        return [
            (rows, part, None if index is None else index[rows, part])
            for rows in blocks(len(like), min(queries, self.chunk) * like.shape[1], like.device)
            for part in (slice(at, at + self.chunk) for at in range(0, queries, self.chunk))
        ]


def nce(
    first: Float[Tensor, "B X D"], second: Float[Tensor, "B X D"], problem: Problem
) -> Float[Tensor, "B"]:
    """NCE(first, second) of each pair, or with `both` its mean with NCE(second, first)."""
    losses: Tensor = _Nce.apply(first, second, problem, torch.is_grad_enabled())
    return losses


class _Nce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, problem: Problem, learning: bool
    ) -> Tensor:
        learning = learning and any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(x) for x in (first, second)] if learning else [None, None]
        losses = first.new_zeros(len(first))
        for rows, queries, index in problem.parts(first):
            share = problem.share[rows, queries] / (2 if problem.both else 1)
            excluded = problem.excluded(rows, index)
            one, other = (
                Side(vectors[rows], None if gradient is None else gradient[rows])
                for vectors, gradient in zip((first, second), gradients, strict=True)
            )
            losses[rows] += _compare(one, other, share, excluded, index, problem)
            if problem.both and index is not None:
                losses[rows] += _compare(other, one, share, excluded, index, problem)
        ctx.save_for_backward(*gradients)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        above = above[:, None, None]
        first, second = (gradient * above for gradient in ctx.saved_tensors)
        return first, second, None, None


def _compare(
    asking: Side,
    keys: Side,
    share: Tensor,
    excluded: Excluded,
    index: Tensor | None,
    problem: Problem,
) -> Tensor:
    """The loss of some queries of the first side, added up; adds to the gradients of both sides."""
    queries = asking.vectors
    if index is not None:
        queries = queries.gather(1, _wide(index, queries))
    logits = torch.bmm(queries, keys.vectors.transpose(1, 2)).div_(problem.temperature)
    loss, pull = _read(logits, share, excluded, index, 2)
    if problem.both and index is None:  # the same matrix, read by columns
        other, other_pull = _read(logits, share, excluded, index, 1)
        loss, pull = loss + other, pull.add_(other_pull)
    if asking.gradient is None or keys.gradient is None:
        return loss
    pull.div_(problem.temperature)
    _add_product(keys.gradient, pull.transpose(1, 2), queries)
    if index is None:
        _add_product(asking.gradient, pull, keys.vectors)
    else:
        asking.gradient.scatter_add_(1, _wide(index, queries), torch.bmm(pull, keys.vectors))
    return loss


def _read(
    logits: Tensor, share: Tensor, excluded: Excluded, index: Tensor | None, dim: int
) -> tuple[Tensor, Tensor]:
    """The loss of the queries, whose keys are along `dim`, and its gradient in the logits."""
    whole, pull = _softmax(logits, excluded.dropped, dim)
    each = share.unsqueeze(dim)
    pull.mul_(each)
    if excluded.wrong is not None:
        right, answers = _softmax(logits, excluded.wrong, dim)
        pull.addcmul_(answers, each, value=-1)
    elif index is None:
        right = logits.diagonal(dim1=1, dim2=2)
        pull.diagonal(dim1=1, dim2=2).sub_(share)
    else:
        own = index[..., None]
        right = logits.gather(2, own)[..., 0]
        pull.scatter_add_(2, own, -share[..., None])
    return ((whole - right) * share).sum(-1), pull


def _softmax(logits: Tensor, dropped: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """log-sum-exp and softmax along `dim`; of no use, but finite, where all is dropped."""
    kept = logits.masked_fill(dropped, torch.finfo(logits.dtype).min)
    top = kept.amax(dim, keepdim=True)
    kept.sub_(top).exp_()
    total = kept.sum(dim, keepdim=True)
    return (top + total.log()).squeeze(dim), kept.div_(total)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, along the memory order of `total`."""
    if total.stride(-1) == 1:
        total.baddbmm_(left, right)
    else:
        total.mT.baddbmm_(right.mT, left.mT)


def _wide(index: Tensor, vectors: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, vectors.shape[-1])
