"""A run as its workers must know it: what to train, where it is kept and tracked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from aga.cluster.config import ClusterConfig
from aga.cluster.preflight import check_storage, even_counts
from aga.config import Config
from aga.errors import TrackingError
from aga.objectives import build_objective
from aga.tracking import (
    Status,
    Tracker,
    TrackingConfig,
    is_delivered,
    last_status,
    provenance,
    replay,
    start_run,
    write_end,
)
from aga.training.accumulation import check_micro_batches
from aga.training.batches import check_batches
from aga.training.checkpoint import (
    COMMAND,
    Row,
    TrainingState,
    load_checkpoint,
    newest_good,
    only_writer,
)
from aga.training.export import started_from
from aga.training.history import finished
from aga.training.recipe import Recipe, RunData
from aga.training.run import WRITER_PATIENCE, build_network

logger = logging.getLogger(__name__)


class Job(Config):
    """What a worker must know; every path is absolute, as Ray's workers run in other folders.

    Attributes:
        recipe: Settings of the run.
        tracking: Where it is tracked.
        home: The project's folder.
        folder: The run's folder in the storage; its name is the run's name.
        parent: MLflow run that this one is a part of.
    """

    recipe: Recipe
    tracking: TrackingConfig
    home: Path
    folder: Path
    parent: str | None = None

    @classmethod
    def of(cls, recipe: Recipe, tracking: TrackingConfig, home: Path, storage: str) -> Self:
        """The job that these settings and the data below `home` make; equal ones, equal name.

        Raises:
            DataError: The data are missing, damaged, or do not belong together.
            CheckpointError: Pretrained files are missing.
        """
        name = f"{tracking.experiment}-{recipe.identity(RunData.open(home), home)}"
        folder = (home / storage).resolve() / name
        return cls(recipe=recipe, tracking=tracking, home=home.resolve(), folder=folder)

    @property
    def name(self) -> str:
        """Of the run: the experiment, and a hash of settings and data."""
        return self.folder.name

    @property
    def spool(self) -> Path:
        """File that everything tracked is written to first."""
        return self.folder / "metrics.jsonl"

    def track(self) -> Tracker:
        """Start tracking the run, or go on with it."""
        return start_run(
            self.tracking,
            self.home,
            self.name,
            spool=self.spool,
            parent=self.parent,
            params=self.recipe.model_dump(mode="json"),
            tags=provenance(self.home),
        )

    def deliver(self) -> None:
        """Send what MLflow has not received of a run that has ended; see `deliver`."""
        deliver(self.spool, self.tracking, self.home)

    def end(self, status: Status) -> None:
        """Have MLflow show how the run ended: FINISHED where its last step is saved.

        Its writer, which ends or was killed, is waited for.

        Raises:
            TrackingError: The spool cannot be written.
            CheckpointError: Another process writes this run, or its newest checkpoints are damaged.
            OSError: The storage is away.
        """
        if not self.spool.exists():
            return
        if last_status(self.spool) != "FINISHED":
            with only_writer(self.folder, WRITER_PATIENCE):
                write_end(self.spool, "FINISHED" if self.final_state() is not None else status)
        self.deliver()

    def final_state(self) -> TrainingState | None:
        """The last state of the run where it has finished; None where not, or where it never began.

        Raises:
            CheckpointError: It has checkpoints, but no good one.
        """
        newest = newest_good(self.folder)
        state = load_checkpoint(newest) if newest else None
        return state if state and finished(state.history, self.recipe.training) else None

    def history(self) -> list[Row]:
        """Rows of the epochs that are done and saved; none where the run never began."""
        newest = newest_good(self.folder)
        return load_checkpoint(newest).history if newest else []

    def even_counts(self, cluster: ClusterConfig) -> list[int]:
        """The numbers of workers that the run may have."""
        block = build_objective(self.recipe.objective, self.recipe.model.width).block
        return even_counts(self.recipe.training.batch_size, block, cluster)

    def check(self, data: RunData, *counts: int) -> None:
        """Fail on what would fail in the workers, before any is started.

        Args:
            data: The data.
            counts: Numbers of workers that there may be.

        Raises:
            ParamsError: The settings do not fit each other.
            DataError: The data are too few, or what the starting weights had seen is not readable.
            CheckpointError: The storage cannot be used.
        """
        started_from(self.recipe, self.home)
        network = build_network(self.recipe, data, self.home)
        block = network.objective.block
        check_micro_batches(network.model, self.recipe.training.micro_batch)
        for workers in counts:
            check_batches(data.studies.info.splits, self.recipe.training, workers, block)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        check_storage(self.folder, parameters, self.recipe.checkpoint)

    @contextmanager
    def held(self, patience: float = 0.0) -> Iterator[None]:
        """Hold the run for one command; a worker that a killed one left is waited for.

        Args:
            patience: Seconds to wait for another command that is ending.

        Raises:
            CheckpointError: Another command trains this run, or another process writes it.
        """
        with only_writer(self.folder, patience, COMMAND):
            with only_writer(self.folder, WRITER_PATIENCE):
                pass  # nobody does; the first worker takes it from here
            yield


def deliver(spool: Path, tracking: TrackingConfig, home: Path) -> None:
    """Send what MLflow has not received of a spool; one that is away again is only warned of."""
    if is_delivered(spool):
        return
    try:
        replay(spool, tracking, home)
    except TrackingError as error:
        logger.warning("MLflow still lacks a part of the run; repeat the command later. %s", error)
    else:
        logger.info("MLflow has received what it had not of the run")
