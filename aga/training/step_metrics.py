"""The numbers of a step: of all workers, and finite, or the run ends and says which are not."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from aga.collectives import world_size
from aga.errors import AgaError
from aga.objectives.base import LossTerms

SHOWN = 64  # ids in the message, at most


class DivergenceError(AgaError):
    """The loss or its gradient is no longer a number."""


def step_metrics(losses: LossTerms, gradient_norm: Tensor) -> dict[str, Tensor]:
    """A step's numbers in this worker."""
    return {
        "loss/train": losses.total,
        **{f"loss/train/{name}": value for name, value in losses.terms.items()},
        **{f"diagnostics/{name}": value for name, value in losses.diagnostics.items()},
        "gradient_norm": gradient_norm,
    }


def agreed(named: Mapping[str, Tensor], stop: bool) -> tuple[dict[str, float], bool]:
    """Means over the workers, and whether any wants to stop; one exchange, one read of the device.

    Args:
        named: Numbers of this worker.
        stop: Whether it wants to stop.
    """
    values = torch.stack([value.detach().float() for value in named.values()])
    values = torch.cat([values, values.new_tensor([float(stop)])])
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    *means, wants = values.tolist()
    return dict(zip(named, means, strict=True)), wants > 0


def require_finite(metrics: Mapping[str, float], step: int, rows: Tensor) -> None:
    """Stop where the loss, one of its terms or the gradient is not finite.

    Args:
        metrics: Of the step, equal in all workers; diagnostics may be anything.
        step: Its number, counted from 1.
        rows: This worker's manifest rows of the batch, as many as every other worker has.

    Raises:
        DivergenceError: In all workers at once.
    """
    watched = {name: value for name, value in metrics.items() if not name.startswith("diagn")}
    if all(math.isfinite(value) for value in watched.values()):
        return
    ids = [row_id(int(row)) for row in _of_all_workers(rows)]
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    raise DivergenceError(
        "The loss or its gradient is not finite",
        where=f"step {step}, the batch of {len(ids)} pairs {' '.join(ids[:SHOWN])}{more}",
        got=", ".join(f"{name} {value:.4g}" for name, value in watched.items()),
        expected="finite numbers",
        fix="lower optimizer.learning_rate or optimizer.gradient_clip, lengthen "
        "optimizer.warmup_fraction, or set training.precision to fp32",
    )


def row_id(row: int) -> str:
    """Eight hex digits by which a row of the manifest is found again, and which are no row."""
    return hashlib.sha256(str(row).encode()).hexdigest()[:8]


def _of_all_workers(rows: Tensor) -> list[int]:
    if world_size() == 1:
        found: list[int] = rows.tolist()
        return found
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows)
    return [int(row) for part in parts for row in part]
