"""Batches of pairs: which rows a step of an epoch takes, and their tensors.

No state is kept. A batch is a function of (seed, epoch, step, rank), so training resumes inside an
epoch by naming the step, and any number of processes or background threads gives the same pairs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Int64, UInt8

from aga.data.sampling import SamplingConfig, one_per_study, shown_tokens, study_numbers
from aga.data.schema import Split
from aga.data.splitting.splits import sample_rows
from aga.data.studies import StudyDataset
from aga.data.tokenizing.tokenizer import pad_tokens
from aga.data.tokenizing.tokens import TokenDataset
from aga.data.transforms import AugmentationConfig, ImageTransform, augment, pixel_statistics
from aga.errors import DataError
from aga.pairs import PairBatch

_CHANGE_SPLIT = "change prepare.split, or the split that the source states"


class PairDataset:
    """The image-report pairs of one split.

    Args:
        studies: The prepared studies.
        tokens: Their tokens.
        split: Which split.
        cache: A folder on a local disk for the uncompressed pixels.
        transform: How pixels are normalised; None takes the statistics of the training split.
        sample: How many of its pairs, and the seed that draws them (`sample_rows`); None takes all.

    Attributes:
        rows: Manifest rows of the pairs, rising.
        transform: The image transform.
        tokens: As given.

    Raises:
        DataError: The split is empty.
    """

    def __init__(
        self,
        studies: StudyDataset,
        tokens: TokenDataset,
        split: Split,
        cache: Path,
        transform: ImageTransform | None = None,
        sample: tuple[int, int] | None = None,
    ) -> None:
        self.split = split
        self.rows: Int64[np.ndarray, "N"] = studies.rows(split)
        if not len(self.rows):
            raise DataError(
                f"The {split} split is empty",
                where=studies.folder,
                fix=_CHANGE_SPLIT,
            )
        if sample is not None:
            patients = studies.manifest["patient_id"].take(pa.array(self.rows)).to_pylist()
            self.rows = self.rows[sample_rows(patients, *sample)]
        self.tokens = tokens
        self._studies = studies
        self._images = studies.images(cache)
        self.transform = transform or training_transform(studies, self._images)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(
        self,
        rows: Int64[np.ndarray, "B"],
        shown: Sequence[Bool[np.ndarray, " _"]] | None = None,
    ) -> PairBatch:
        """The pairs of these manifest rows, in this order, normalised and not augmented.

        Reports are padded to the longest of them, rounded up to a multiple of 8.

        Args:
            rows: Manifest rows.
            shown: Per row, which of its tokens are shown; None shows all.
        """
        kept: Sequence[Any] = [slice(None)] * len(rows) if shown is None else shown
        padded = pad_tokens(
            [self.tokens.token_ids(row)[of] for row, of in zip(rows, kept, strict=True)],
            [self.tokens.sentences(row)[of] for row, of in zip(rows, kept, strict=True)],
            self.tokens.tokenizer.pad_token_id,
            self.tokens.record.max_tokens,
        )
        return PairBatch(
            images=self.transform(torch.from_numpy(self._images[rows])),
            **vars(padded),
            rows=torch.from_numpy(np.array(rows)),
        )

    @cached_property
    def studies(self) -> Int64[np.ndarray, "N"]:
        """The study of each of `rows`, as `study_numbers` counts them in the manifest."""
        return study_numbers(self._studies.column("study_id").to_pylist()).take(self.rows)

    @cached_property
    def study_count(self) -> int:
        """How many studies the pairs are of."""
        return len(np.unique(self.studies))

    @cached_property
    def statements(self) -> Int64[np.ndarray, "N"]:
        """A number per row of `rows`; equal where two reports say the same."""
        keys = np.array(self._studies.statement_keys(), dtype=object)[self.rows]
        return np.unique(keys, return_inverse=True)[1].astype(np.int64)


class EpochBatches:
    """The batches of an epoch, in an order that is a function of (seed, epoch) alone.

    Args:
        dataset: The pairs.
        augmentation: How training images are changed.
        sampling: What of a study an epoch of training shows.
        loader_workers: Background threads that prepare the next batches while the consumer
            computes; 0 prepares each batch when it is asked for. The batches are the same.
    """

    def __init__(
        self,
        dataset: PairDataset,
        augmentation: AugmentationConfig,
        sampling: SamplingConfig,
        loader_workers: int,
    ) -> None:
        self._dataset = dataset
        self._augmentation = augmentation
        self._sampling = sampling
        self._workers = loader_workers

    def steps_per_epoch(self, batch_size: int, train: bool) -> int:
        """Global batches of an epoch; training drops the last incomplete one."""
        full, rest = divmod(self._pairs(train), batch_size)
        return full if train or not rest else full + 1

    def check_batch_size(self, batch_size: int, world_size: int) -> None:
        """Refuse a training batch that an epoch or the processes cannot fill.

        Raises:
            DataError: An epoch has fewer pairs, or processes cannot share the batch evenly.
        """
        if batch_size > self._pairs(train=True):
            each = "" if self._sampling.views == "all" else ", one pair per study"
            raise DataError(
                f"training.batch_size is more than an epoch of the {self._dataset.split} split has",
                got=batch_size,
                expected=f"at most {self._pairs(train=True)}{each}",
                fix="lower training.batch_size, or prepare more pairs",
            )
        if batch_size % world_size:
            raise DataError(
                "training.batch_size cannot be shared evenly by the workers",
                got=batch_size,
                expected=f"a multiple of cluster.workers, {world_size}",
                fix="change training.batch_size or cluster.workers",
            )

    def batches(
        self,
        *,
        epoch: int,
        seed: int,
        batch_size: int,
        rank: int,
        world_size: int,
        start_step: int,
        train: bool,
    ) -> Iterator[PairBatch]:
        """This process's share of each global batch, from step `start_step` of the epoch on.

        Global batch `b` is `order[b * batch_size : (b + 1) * batch_size]`; rank `r` takes the
        `r`-th of `world_size` contiguous slices of it. Training shuffles, augments and drops the
        last incomplete batch, and shows the views and sentences that the epoch draws. Otherwise
        rows come in the manifest's order and all of them; a rank whose slice of the last batch is
        empty gets one batch less.

        Args:
            epoch: Counted from 0.
            seed: The run's seed.
            batch_size: Pairs over all processes.
            rank: This process.
            world_size: Number of processes.
            start_step: Steps of this epoch that are done already.
            train: Whether to shuffle, augment and drop.

        Yields:
            Batches on the CPU, in pinned memory where there is a GPU.

        Raises:
            DataError: See `check_batch_size`.
        """
        order = self._dataset.rows
        if train:
            self.check_batch_size(batch_size, world_size)
            order = epoch_order(self._drawn_rows(seed, epoch), seed, epoch)
        steps = range(start_step, self.steps_per_epoch(batch_size, train))
        slices = (rank_slice(order, step, batch_size, rank, world_size) for step in steps)

        def load(rows: Int64[np.ndarray, "B"]) -> PairBatch:
            if not train:
                return _pinned(self._dataset.batch(rows))
            batch = self._dataset.batch(rows, self._shown(rows, seed, epoch))
            images = augment(batch.images, batch.rows, epoch, seed, self._augmentation)
            return _pinned(replace(batch, images=images))

        return _in_order(load, (rows for rows in slices if len(rows)), self._workers)

    def _pairs(self, train: bool) -> int:
        """How many pairs an epoch shows."""
        one = train and self._sampling.views == "one_per_study"
        return self._dataset.study_count if one else len(self._dataset)

    def _drawn_rows(self, seed: int, epoch: int) -> Int64[np.ndarray, "S"]:
        if self._sampling.views == "all":
            return self._dataset.rows
        return one_per_study(self._dataset.rows, self._dataset.studies, seed, epoch)

    def _shown(
        self, rows: Int64[np.ndarray, "B"], seed: int, epoch: int
    ) -> list[Bool[np.ndarray, " _"]] | None:
        at_most = self._sampling.sentences
        if at_most is None:
            return None
        places = np.searchsorted(self._dataset.rows, rows)
        studies = self._dataset.studies[places].tolist()
        return [
            shown_tokens(self._dataset.tokens.sentences(row), at_most, study, seed, epoch)
            for row, study in zip(rows, studies, strict=True)
        ]


def epoch_order(rows: Int64[np.ndarray, "N"], seed: int, epoch: int) -> Int64[np.ndarray, "N"]:
    """The rows shuffled by (seed, epoch), each once."""
    # `row_generator` counts in the highest word of this key's counter, so no draw is shared.
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 1, 0]))
    return generator.permutation(rows)


def rank_slice(
    order: Int64[np.ndarray, "N"], step: int, batch_size: int, rank: int, world_size: int
) -> Int64[np.ndarray, "B"]:
    """The rows of one process at one step: a contiguous slice of the global batch."""
    batch = order[step * batch_size : (step + 1) * batch_size]
    return batch[len(batch) * rank // world_size : len(batch) * (rank + 1) // world_size]


def training_transform(
    studies: StudyDataset, images: UInt8[np.ndarray, "N H W C"]
) -> ImageTransform:
    """The transform that normalises by the training split's pixels, whatever split it is used on.

    Raises:
        DataError: The training split is empty.
    """
    rows = studies.rows("train")
    if not len(rows):
        raise DataError("The train split is empty", where=studies.folder, fix=_CHANGE_SPLIT)
    mean, std = pixel_statistics(images, rows)
    height, width, channels = images.shape[1:]
    prepared = studies.info.config["image"]
    return ImageTransform(
        height=height,
        width=width,
        channels=channels,
        mean=mean,
        std=std,
        fit=prepared["fit"],
        mode=prepared["mode"],
        window=prepared["window"],
        frames=prepared["frames"],
    )


def _pinned(batch: PairBatch) -> PairBatch:
    """Page-locked, so that the copy to the GPU overlaps with compute; as it is without a GPU."""
    if not torch.cuda.is_available():
        return batch
    return PairBatch(**{name: value.pin_memory() for name, value in vars(batch).items()})


def _in_order(
    load: Callable[[Int64[np.ndarray, "B"]], PairBatch],
    slices: Iterator[Int64[np.ndarray, "B"]],
    workers: int,
) -> Iterator[PairBatch]:
    """`map(load, slices)`, with `workers` threads ahead of the consumer by that many batches."""
    if not workers:
        yield from map(load, slices)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
    try:
        pending = deque(pool.submit(load, rows) for rows in islice(slices, workers))
        while pending:
            batch = pending.popleft().result()
            pending.extend(pool.submit(load, rows) for rows in islice(slices, 1))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
