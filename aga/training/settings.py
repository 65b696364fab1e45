"""Settings of the training loop: the block `training` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from aga.config import Config
from aga.data.sampling import SamplingConfig
from aga.data.transforms import AugmentationConfig
from aga.training.validation import Metric


class SelectConfig(Config):
    """Which epoch is the best.

    Attributes:
        metric: A metric of the validation split.
        mode: Whether a higher or a lower value is better.
    """

    metric: Metric
    mode: Literal["min", "max"]


class TrainingConfig(Config):
    """Settings of the loop.

    Attributes:
        pairs: How many pairs of the training split to learn from, drawn by the seed, patient by
            patient; None takes all.
        epochs: At most this many.
        batch_size: Pairs of a step over all workers.
        micro_batch: At most this many pairs of a worker's share go through the encoders at once;
            the loss stays that of the whole batch. None takes them all at once.
        precision: What the encoders compute in; weights and objectives stay in fp32.
        threads: CPU threads of a worker.
        augmentation: How training images are changed.
        sampling: What of a study an epoch shows.
        loader_workers: Threads that prepare batches ahead; 0 prepares them in between.
        select: Which epoch is exported.
        patience: Epochs without a better one before training stops; 0 never stops early.
        heartbeat_seconds: Time between two lines of progress.
    """

    pairs: Annotated[int, Field(gt=0)] | None
    epochs: Annotated[int, Field(gt=0)]
    batch_size: Annotated[int, Field(gt=1)]
    micro_batch: Annotated[int, Field(gt=0)] | None
    precision: Literal["fp32", "bf16"]
    threads: Annotated[int, Field(gt=0)]
    augmentation: AugmentationConfig
    sampling: SamplingConfig
    loader_workers: Annotated[int, Field(ge=0)]
    select: SelectConfig
    patience: Annotated[int, Field(ge=0)]
    heartbeat_seconds: Annotated[float, Field(gt=0)]
