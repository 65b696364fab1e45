"""Checkpoints written in the background, to a storage that may be full or away for a while."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Self

from safetensors import SafetensorError
from torch import Tensor

from aga.errors import CheckpointError
from aga.training.checkpoint import TrainingState, save_next
from aga.training.waiting import telling

logger = logging.getLogger(__name__)

END_PATIENCE = 300.0
"""Seconds that the end of a run waits for a storage that cannot be written."""
STOP_PATIENCE = 20.0
"""Likewise of a run that was asked to end: schedulers kill after some thirty seconds."""
RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
"""Waits between the tries; the last one repeats."""
TELL_SECONDS = 10.0
"""Between two lines that tell of a wait."""
RESERVE = 16 * 2**20
"""Bytes that a checkpoint leaves free, so that logs and metrics can be written."""
# safetensors has its own class for what the system refuses.
STORAGE_FAILURES = (OSError, SafetensorError, CheckpointError)


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time, while the training goes on.

    A checkpoint that cannot be written ends nothing: it is warned of once, the next one is tried as
    if nothing had been, and the last one is tried until it is there or `close` loses patience.

    Args:
        run: The run's folder; it exists.
        keep: How many checkpoints stay.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self._run, self._keep = run, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._last: TrainingState | None = None
        self._failure: Exception | None = None

    def save(self, state: TrainingState) -> None:
        """Write a copy of a state, after the one before; a state that was just given is skipped.

        Raises:
            Exception: Whatever the writing of the one before failed with, but for the storage.
        """
        self._wait()
        last = self._last
        if last and (last.step, len(last.history)) == (state.step, len(state.history)):
            return
        # The best epoch's weights are a copy already, which nobody changes.
        self._last = replace(state, tensors=copied(state.tensors))
        self._pending = self._pool.submit(self._write, self._last)

    def close(self, patience: float) -> None:
        """Wait for the last checkpoint, and try again to write it where that failed.

        Args:
            patience: Seconds to try.

        Raises:
            CheckpointError: It could not be written.
        """
        self._wait()
        deadline, tries = time.monotonic() + patience, 0
        while self._failure is not None and self._last is not None:
            wait = RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)]
            if time.monotonic() + wait > deadline:
                raise CheckpointError(
                    "The last checkpoint cannot be written",
                    where=self._run,
                    got=self._failure,
                    fix="free or reconnect the storage, and repeat the command: it goes on from "
                    "the newest checkpoint that is there",
                ) from self._failure
            with telling("trying again to write the last checkpoint", TELL_SECONDS):
                time.sleep(wait)
                self._write(self._last)
            tries += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        # What is being written is worth having, however the run ends.
        self._pool.shutdown(wait=True)

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            with telling("waiting for a checkpoint to be written", TELL_SECONDS):
                pending.result()

    def _write(self, state: TrainingState) -> None:
        try:
            require_space(self._run, state)
            save_next(self._run, state, self._keep)
        except STORAGE_FAILURES as error:
            if self._failure is None:
                logger.warning(
                    "The checkpoint of step %d cannot be written; the training goes on and the "
                    "next one is tried: %s",
                    state.step,
                    error,
                )
            self._failure = error
            return
        if self._failure is not None:
            logger.info("checkpoints are written again, from step %d", state.step)
        self._failure = None


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, which no step changes."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def require_space(run: Path, state: TrainingState) -> None:
    """Refuse a checkpoint that would fill the disk.

    Raises:
        OSError: The disk is too full, or away.
    """
    tensors = [*state.tensors.values(), *state.best.values()]
    needed = sum(tensor.nbytes for tensor in tensors) + RESERVE
    free = shutil.disk_usage(run).free
    if free < needed:
        told = f"{os.strerror(errno.ENOSPC)}: {free / 2**20:.0f} MiB free of {needed / 2**20:.0f}"
        raise OSError(errno.ENOSPC, told, str(run))
