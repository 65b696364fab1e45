"""What the training loop tells about itself, and the clock it measures its speed with."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from aga.pairs import PairBatch
from aga.training.checkpoint import Row, TrainingState


@dataclass(frozen=True)
class StepEvent:
    """An optimizer step.

    Attributes:
        step: Steps done, this one included.
        epoch: The epoch it belongs to, counted from 1.
        metrics: `loss/train`, each term as `loss/train/<term>`, `diagnostics/<name>`,
            `gradient_norm`, `learning_rate`; means over all workers.
        pairs_per_second: Over all workers, since this process started, validation left out.
        data_wait_fraction: Share of that time spent waiting for batches.
        eta_seconds: Until the last step at that speed.
    """

    step: int
    epoch: int
    metrics: Row
    pairs_per_second: float
    data_wait_fraction: float
    eta_seconds: float


@dataclass(frozen=True)
class EpochEvent:
    """A finished and validated epoch.

    Attributes:
        row: Its row of the history: `epoch`, `step`, means of the step metrics, and the metrics of
            the validation split.
        improved: Whether it is the best so far.
    """

    row: Row
    improved: bool


@dataclass(frozen=True)
class CheckpointEvent:
    """A checkpoint is due: every `checkpoint_every` steps, at each epoch's end, before a stop.

    Attributes:
        state: What to save, before the generator goes on: its tensors are the live ones.
    """

    state: TrainingState


Event: TypeAlias = StepEvent | EpochEvent | CheckpointEvent


class Clock:
    """Measures how long training took, and how much of that it waited for batches.

    Args:
        batch_size: Pairs of a step over all workers.
        total_steps: Steps of the whole run.
    """

    def __init__(self, batch_size: int, total_steps: int) -> None:
        self._batch_size, self._total_steps = batch_size, total_steps
        self._steps = 0
        self._computing = self._waiting = 0.0
        self._mark = time.perf_counter()

    @property
    def pairs_per_second(self) -> float:
        """Over all workers, since the clock was made; validation is left out."""
        seconds = self._computing + self._waiting
        return self._steps * self._batch_size / seconds if seconds else 0.0

    def waited_for(self, batches: Iterable[PairBatch]) -> Iterator[PairBatch]:
        """The same batches; the time until each one comes counts as waiting."""
        self._lap()
        for batch in batches:
            self._waiting += self._lap()
            yield batch

    def step_event(self, step: int, epoch: int, metrics: Row) -> StepEvent:
        """The event of a step that ends now; the time since its batch came counts as computing."""
        self._computing += self._lap()
        self._steps += 1
        seconds = self._computing + self._waiting
        return StepEvent(
            step=step,
            epoch=epoch,
            metrics=metrics,
            pairs_per_second=self.pairs_per_second,
            data_wait_fraction=self._waiting / seconds,
            eta_seconds=(self._total_steps - step) * seconds / self._steps,
        )

    def _lap(self) -> float:
        now = time.perf_counter()
        lap, self._mark = now - self._mark, now
        return lap
