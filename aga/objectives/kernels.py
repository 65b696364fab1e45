"""The inner loops of grouping, with gradients written out (docs/method.md, steps 3 to 5).

Each does what the equations in `grouping` say, for a few pairs at a time, and keeps of all the
matrices in between only numbers of the rows. `X` are the queries, `Y` the elements; every matrix
of a block has the memory order of the similarities, so that the transposed direction costs no copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from aga.objectives.blocks import blocks

FLAT = 1e-4  # ε of step 3: a range of cosines well under it counts as constant
VARIANCE_FLOOR = 1e-6  # keeps the gradient of a standard deviation finite where all are equal


def row_statistics(
    similarity: Float[Tensor, "B X Y"], elements: Bool[Tensor, "B Y"]
) -> Float[Tensor, "B X 3"]:
    """As `grouping.statistics`."""
    result: Tensor = _RowStatistics.apply(similarity, elements)
    return result


def minmax_groups(
    similarity: Float[Tensor, "B X Y"],
    thresholds: Float[Tensor, "B X"],
    asking: Bool[Tensor, "B X"],
    elements: Bool[Tensor, "B Y"],
    relaxation: str,
    temperature: float,
) -> tuple[Float[Tensor, "B X Y"], Int64[Tensor, "B X"]]:
    """As `grouping.choose` after `grouping.scale` by `minmax`.

    Args:
        similarity: `S`.
        thresholds: `θ`.
        asking: Queries that exist.
        elements: Elements that exist.
        relaxation: How gradients pass the choice.
        temperature: Width of the soft step.
    """
    weights, sizes = _MinMaxGroups.apply(
        similarity, thresholds, asking, elements, relaxation, temperature
    )
    return weights, sizes


class _RowStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, similarity: Tensor, elements: Tensor) -> Tensor:
        kept = elements.to(similarity.dtype)
        share = kept / kept.sum(-1, keepdim=True).clamp(min=1)
        result = similarity.new_empty(*similarity.shape[:2], 3)
        for rows in _blocks(similarity):
            some, weight = similarity[rows], share[rows, :, None]
            mean = some @ weight
            variance = (some - mean).square_() @ weight
            high = _highest(some, elements[rows])
            high = high.masked_fill(~elements[rows].any(-1)[:, None, None], 0)
            result[rows] = torch.cat((mean, high, (variance + VARIANCE_FLOOR).sqrt()), dim=-1)
        ctx.save_for_backward(similarity, elements, share, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        similarity, elements, share, result = ctx.saved_tensors
        gradient = torch.empty_like(similarity)
        for rows in _blocks(similarity):
            some = similarity[rows]
            mean, high, deviation = result[rows].tensor_split(3, dim=-1)
            of_mean, of_high, of_deviation = above[rows].tensor_split(3, dim=-1)
            part = (some - mean).mul_(of_deviation / deviation).add_(of_mean)
            part.mul_(share[rows, None])
            _to_ties(part, some, high, elements[rows], of_high)
            gradient[rows] = part
        return gradient, None


class _MinMaxGroups(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        similarity: Tensor,
        thresholds: Tensor,
        asking: Tensor,
        elements: Tensor,
        relaxation: str,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        weights = torch.empty_like(similarity)
        sizes = torch.empty_like(thresholds)
        low, high, total = (similarity.new_empty(*thresholds.shape, 1) for _ in range(3))
        for rows in _blocks(similarity):
            some, theta = similarity[rows], thresholds[rows, :, None]
            low[rows], high[rows] = -_highest(-some, elements[rows]), _highest(some, elements[rows])
            scaled = _scaled(some, low[rows], high[rows], elements[rows])
            chosen = _chosen(scaled, theta, elements[rows])
            sizes[rows] = chosen.sum(-1)
            if relaxation == "soft":
                chosen = _soft(scaled, theta, temperature).mul_(elements[rows, None])
            weighed = scaled.mul_(chosen)
            total[rows] = weighed.sum(-1, keepdim=True)
            weights[rows] = weighed.mul_(_inverse(total[rows], asking[rows]))
        ctx.save_for_backward(similarity, thresholds, asking, elements, low, high, total, weights)
        ctx.relaxation, ctx.temperature = relaxation, temperature
        sizes = sizes.long() * (asking & elements.any(-1, keepdim=True))
        ctx.mark_non_differentiable(sizes)
        return weights, sizes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor, of_sizes: Any) -> tuple[Tensor | None, ...]:
        del of_sizes  # numbers of elements have none
        similarity, thresholds, asking, elements, low, high, total, weights = ctx.saved_tensors
        gradient, of_thresholds = torch.empty_like(similarity), torch.zeros_like(thresholds)
        relaxation, width = ctx.relaxation, ctx.temperature
        for rows in _blocks(similarity):
            some, kept, theta = similarity[rows], elements[rows], thresholds[rows, :, None]
            scaled = _scaled(some, low[rows], high[rows], kept)
            raw = torch.empty_like(some).copy_(above[rows])  # in the order of all others
            raw.sub_((raw * weights[rows]).sum(-1, keepdim=True))
            raw.mul_(_inverse(total[rows], asking[rows]))  # the gradient of h·Ŝ
            member = _chosen(scaled, theta, kept)
            if relaxation != "hard":
                soft = _soft(scaled, theta, width)
                slope = torch.ops.aten.sigmoid_backward(scaled, soft).mul_(raw).div_(width)
                of_thresholds[rows] = -slope.sum(-1)
                member = soft.mul_(kept[:, None]) if relaxation == "soft" else member
                raw.mul_(member).add_(slope)
            else:
                raw.mul_(member)
            # Now the gradient of Ŝ = (S − min S + ε)/(max S − min S + ε).
            span = high[rows] - low[rows] + FLAT
            of_high = (raw * scaled).sum(-1, keepdim=True).div_(-span)
            of_low = raw.sum(-1, keepdim=True).div_(-span).sub_(of_high)
            raw.div_(span)
            _to_ties(raw, some, low[rows], kept, of_low)
            _to_ties(raw, some, high[rows], kept, of_high)
            gradient[rows] = raw
        return gradient, of_thresholds, None, None, None, None


def _blocks(matrices: Tensor) -> Iterator[slice]:
    return blocks(len(matrices), matrices[0].numel(), matrices.device)


def _highest(values: Tensor, kept: Tensor) -> Tensor:
    """The highest kept value of each row; far under all values where none is kept."""
    beyond = torch.finfo(values.dtype).max / 4
    barred = torch.zeros_like(kept, dtype=values.dtype).masked_fill_(~kept, -beyond)
    return (values + barred[:, None]).amax(-1, keepdim=True)


def _scaled(values: Tensor, low: Tensor, high: Tensor, kept: Tensor) -> Tensor:
    """`Ŝ` of step 3; 0 for what is not kept."""
    return (values - low).add_(FLAT).div_(high - low + FLAT).mul_(kept[:, None])


def _chosen(scaled: Tensor, thresholds: Tensor, kept: Tensor) -> Tensor:
    """`h` of step 5 as numbers; the best has Ŝ = 1, which no threshold exceeds."""
    return (scaled >= thresholds).to(scaled.dtype).mul_(kept[:, None])


def _soft(scaled: Tensor, thresholds: Tensor, width: float) -> Tensor:
    """`s` of step 5."""
    return (scaled - thresholds).div_(width).sigmoid_()


def _inverse(total: Tensor, asking: Tensor) -> Tensor:
    """One over the sum of a group; 0 for a query that does not exist or has no element."""
    return torch.where(asking[..., None] & (total > 0), 1 / total, 0)


def _to_ties(
    gradient: Tensor, values: Tensor, extreme: Tensor, kept: Tensor, above: Tensor
) -> None:
    """Give what comes from above to the elements that are the row's extreme, in equal parts."""
    there = (values == extreme).to(values.dtype).mul_(kept[:, None])
    gradient.addcmul_(there, above / there.sum(-1, keepdim=True).clamp(min=1))
