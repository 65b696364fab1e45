"""Axis letters and masked reductions shared by the model, the objectives and the evaluation.

Axis legend, used in every shape of the library (einsum uses the same letters in lower case):

    B  pairs in this process's batch      P  patches of an image     D  joint width
    N  pairs over all processes           L  tokens of a report      C  classes, or image channels
    S  sentences of a report              H, W  image height and width in pixels

Masks are True where an element is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

SHORTEST = 1e-8  # a shorter vector is divided by this instead of its length


def normalize(vectors: Float[Tensor, "*axes D"]) -> Float[Tensor, "*axes D"]:
    """L2-normalise the last axis; a zero vector stays zero."""
    units: Tensor = _Normalize.apply(vectors)
    return units


class _Normalize(torch.autograd.Function):
    """`x / max(|x|, ε)`, whose gradient as PyTorch's own composes it takes three times as long."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        units: Tensor = vectors / lengths.clamp(min=SHORTEST)
        ctx.save_for_backward(units, lengths)
        return units

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> Tensor:
        units, lengths = ctx.saved_tensors
        along = torch.einsum("...d,...d->...", above, units)[..., None]
        along = along.masked_fill(lengths < SHORTEST, 0)  # the length is no variable there
        across: Tensor = torch.addcmul(above, units, along, value=-1)
        return across.div_(lengths.clamp(min=SHORTEST))


def masked_mean(
    values: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"], dim: int = -1
) -> Float[Tensor, "*reduced"]:
    """Mean over `dim` of the kept elements; 0 where nothing is kept."""
    kept = mask.to(values.dtype)
    return (values * kept).sum(dim) / kept.sum(dim).clamp(min=1)


def masked_softmax(
    logits: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"], dim: int = -1
) -> Float[Tensor, "*axes"]:
    """Softmax over `dim` of the kept elements; dropped elements, and rows with none, are 0."""
    filled = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return filled.softmax(dim).masked_fill(~mask, 0)


def masked_logsumexp(
    logits: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"], dim: int = -1
) -> Float[Tensor, "*reduced"]:
    """log-sum-exp over `dim` of the kept elements; the dtype's lowest number where none is kept."""
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).logsumexp(dim)
