"""Collective operations of a training run; each is the identity for one process.

Why the gradients come out right: DistributedDataParallel averages parameter gradients over the `W`
processes. Let process `r` compute a loss `L_r` on gathered embeddings, and let the global loss be
the mean of all `L_r`. The backward of `gather_with_gradient` sums over the processes, so the
embeddings of process `r` receive `d(sum of all L)/dx_r`; after DDP's mean over processes a
parameter has `d(mean of all L)/d(parameter)`, which is the gradient one process would compute on
the whole batch. Losses inside one pair gather nothing: with equal local batches the mean of their
local means is already the global mean.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def world_size() -> int:
    """Number of processes of the run; 1 where no process group is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process in the run, from 0; 0 where no process group is initialised."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def own_rows(local: Tensor) -> Int64[Tensor, "B"]:
    """Where this process's rows stand among those of all processes, in the order of `local`."""
    count = len(local)
    return rank() * count + torch.arange(count, device=local.device)


class _Gather(torch.autograd.Function):
    """All-gather along the first axis; the backward sums over processes, then takes its slice."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = local.shape[0]
        return _all_gather(local)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.narrow(0, rank() * ctx.rows, ctx.rows)


def _all_gather(local: Tensor) -> Tensor:
    gathered = local.new_empty(world_size() * local.shape[0], *local.shape[1:])
    dist.all_gather(list(gathered.chunk(world_size())), local.contiguous())
    return gathered


def gather_with_gradient(local: Float[Tensor, " B *axes"]) -> Float[Tensor, " N *axes"]:
    """The rows of all processes, in rank order; gradients flow back to every process.

    Args:
        local: This process's rows. Every process must hold the same number of them, of one shape.

    Returns:
        Rows `rank() * B` up to `(rank() + 1) * B` are `local`; `local` itself for one process.
    """
    if world_size() == 1:
        return local
    gathered: Tensor = _Gather.apply(local)
    return gathered


def gather_padded(
    tokens: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]
) -> tuple[Float[Tensor, "N M D"], Bool[Tensor, "N M"]]:
    """The token vectors of all processes with their masks, padded to the longest process's `L`.

    Args:
        tokens: As for `gather_with_gradient`, but `L` may differ between processes.
        mask: Tokens that are kept.

    Returns:
        Vectors, with gradient to every process, and masks; those of the added positions are 0 and
        False. The arguments themselves for one process.
    """
    if world_size() == 1:
        return tokens, mask
    longest = torch.tensor(tokens.shape[1], device=tokens.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    more = int(longest) - tokens.shape[1]
    tokens = torch.nn.functional.pad(tokens, (0, 0, 0, more))
    mask = torch.nn.functional.pad(mask, (0, more))
    # As bytes: not every backend sends booleans.
    return gather_with_gradient(tokens), _all_gather(mask.to(torch.uint8)).bool()
