"""Loss and retrieval recall on the validation split, by all workers together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from aga.collectives import rank, world_size
from aga.data.loader import PairDataset, rank_slice
from aga.data.progress import progress
from aga.errors import DataError
from aga.model import AlignmentModel
from aga.objectives.base import LossTerms, Objective
from aga.pairs import PairEmbeddings
from aga.ranking import retrieval_hits

RANK = 10
CHUNK = 1024  # queries scored at once
MEAN_RECALL = "retrieval/mean_recall_at_10"
LOSS = "loss/validation"
Metric: TypeAlias = Literal["retrieval/mean_recall_at_10", "loss/validation"]


@torch.no_grad()
def validate(
    model: AlignmentModel,
    objective: Objective,
    dataset: PairDataset,
    *,
    batch_size: int,
    micro_batch: int | None,
    device: torch.device,
    heartbeat_seconds: float,
) -> dict[str, float]:
    """Measure a model; the same numbers in every worker.

    Recall counts duplicates of the right report as right. The loss is the mean over full batches:
    a contrastive loss over fewer pairs is another quantity.

    Args:
        model: Its mode is set to evaluation.
        objective: Likewise.
        dataset: The pairs.
        batch_size: Over all workers; smaller where the split is.
        micro_batch: Pairs that are embedded at once, at most; None embeds a worker's share.
        device: Where the model is.
        heartbeat_seconds: Time between two lines of progress, of the first worker.

    Returns:
        `loss/validation`, `loss/validation/<term>`, what `Objective.image_dependence` returns as
        `diagnostics/...`, and recall at 10 of both directions and their mean.

    Raises:
        DataError: The split has fewer pairs than there are workers, or blocks for each.
    """
    model.eval()
    objective.eval()
    size = shared_batch_size(len(dataset), batch_size, objective.block)
    width = model.width
    images, texts = (torch.zeros(len(dataset), width, device=device) for _ in range(2))
    losses: list[dict[str, Tensor]] = []
    blank = None
    count = -(-len(dataset) // size)
    interval = heartbeat_seconds if rank() == 0 else math.inf
    for batch_number in progress(range(count), "validation batches", count, interval):
        rows = rank_slice(dataset.rows, batch_number, size, rank(), world_size())
        if not len(rows):
            continue
        batch = dataset.batch(rows).to(device)
        if blank is None:  # 0 is the mean of the training pixels
            blank = model.encode_images(torch.zeros_like(batch.images[:1]))[0]
        parts = batch.split(micro_batch or len(batch))
        pairs = PairEmbeddings.joined([model(part) for part in parts])
        places = torch.from_numpy(np.searchsorted(dataset.rows, rows)).to(device)
        images[places], texts[places] = pairs.image.float(), pairs.text.float()
        if batch_number < len(dataset) // size:
            losses.append(_named(objective(pairs), objective.image_dependence(pairs, blank)))
    # Each worker filled its own rows of zeros: a sum puts them together, exactly.
    if world_size() > 1:
        dist.all_reduce(images)
        dist.all_reduce(texts)
    with torch.autocast(device.type, enabled=False):  # bfloat16 scores would be full of ties
        return _means(losses) | _recall(images, texts, dataset)


def shared_batch_size(pairs: int, batch_size: int, block: int = 1) -> int:
    """The largest batch up to `batch_size` that the split fills and the workers share evenly.

    In whole blocks; a single worker whose split is smaller than a block takes all of it.

    Raises:
        DataError: There are fewer pairs than workers, or than blocks for each.
    """
    each = world_size() * block
    size = min(batch_size, pairs) // each * each
    if size or world_size() == 1:
        return size or min(batch_size, pairs)
    raise DataError(
        "The validation split is too small for this many workers",
        got=f"{pairs} pairs",
        expected=f"at least {each}",
        fix="raise prepare.split.validation or lower cluster.workers",
    )


def _named(losses: LossTerms, dependence: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        LOSS: losses.total,
        **{f"{LOSS}/{name}": term for name, term in losses.terms.items()},
        **{f"diagnostics/{name}": value for name, value in dependence.items()},
    }


def _means(losses: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means over batches and workers, which hold equally many pairs each."""
    values = torch.stack([torch.stack(list(batch.values())) for batch in losses]).double().mean(0)
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return dict(zip(losses[0], values.tolist(), strict=True))


def _recall(
    images: Float[Tensor, "N D"], texts: Float[Tensor, "N D"], dataset: PairDataset
) -> dict[str, float]:
    keys = torch.from_numpy(dataset.statements).to(images.device)
    directions = {"image_to_text": (images, texts), "text_to_image": (texts, images)}
    recalls = {}
    for name, (queries, gallery) in directions.items():
        hits = retrieval_hits(queries, gallery, keys, (RANK,), chunk=CHUNK, duplicate_aware=True)
        recalls[f"retrieval/{name}_recall_at_{RANK}"] = hits.double().mean().item()
    return recalls | {MEAN_RECALL: sum(recalls.values()) / len(recalls)}
