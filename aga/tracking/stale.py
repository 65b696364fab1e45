"""Runs that MLflow still shows as running: which of them nobody writes any more, and their end.

A process that is killed cannot tell MLflow so. Its spool can: a writer holds a lock on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from aga.errors import TrackingError
from aga.tracking.delivery import SPOOL_TAG, Delivery
from aga.tracking.runs import Status
from aga.tracking.spool import is_written, spool_id, status_record
from aga.tracking.store import Client, TrackingConfig, is_created, open_client, tracking_errors
from aga.tracking.writer import SpoolWriter

CLOSE_SECONDS = 20.0


class Life(StrEnum):
    """Whether a run that MLflow shows as running is."""

    WRITTEN = "written"
    """A process has its spool open."""
    STALE = "stale"
    """Nobody writes its spool: it was killed."""
    UNKNOWN = "unknown"
    """Its spool is not among those that were looked at, or its file system knows no locks."""


@dataclass(frozen=True)
class RunningRun:
    """A run that MLflow shows as running.

    Attributes:
        run_id: The MLflow run.
        name: Its name.
        life: Whether it is.
        spool: Its spool, where it is known.
        silent_seconds: Since the spool was last written, or since the run began where none is
            known. Locks do not reach other machines on every file system: a run that has spoken
            within a few heartbeats is best left alone.
    """

    run_id: str
    name: str
    life: Life
    spool: Path | None
    silent_seconds: float


def running_runs(config: TrackingConfig, home: Path, spools: Iterable[Path]) -> list[RunningRun]:
    """The runs of the experiment that MLflow shows as running; changes nothing.

    Args:
        config: The store and the experiment.
        home: Folder that the configuration's relative paths resolve against.
        spools: Those to look for them in: `<storage>/**/metrics.jsonl`.

    Raises:
        TrackingError: The store is away.
    """
    if not is_created(config, home):
        return []
    with tracking_errors("The runs cannot be listed.", config, home):
        client = open_client(config, home)
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is None:
            return []
        runs = client.search_runs(
            [experiment.experiment_id], "attributes.status = 'RUNNING'", max_results=50_000
        )
    if not runs:
        return []
    by_id = {spool_id(spool): spool for spool in spools}
    return [_examined(run, by_id.get(run.data.tags.get(SPOOL_TAG, ""))) for run in runs]


def close_run(config: TrackingConfig, home: Path, run: RunningRun) -> bool:
    """End a run as KILLED, after what its spool still holds has been sent.

    Where its spool is known, the end is written into it, so that a later replay ends there too;
    where not, nothing is known of what was lost. A run that somebody has gone on with is left.

    Returns:
        Whether it was ended.

    Raises:
        TrackingError: The store is away or refuses, or the spool cannot be written.
    """
    with tracking_errors("The run cannot be closed.", config, home):
        if run.spool is None:
            client: Client = open_client(config, home)
            client.set_terminated(run.run_id, "KILLED")
            return True
        if is_written(run.spool):
            return False
        write_end(run.spool, "KILLED")
        Delivery(config, home, run.spool).send()
    return True


def write_end(spool: Path, status: Status) -> None:
    """Write how a run ended into its spool, as whoever wrote it was killed before.

    Raises:
        TrackingError: The spool cannot be written.
    """
    try:
        written = SpoolWriter(spool).close(status_record(status), CLOSE_SECONDS)
    except OSError as error:
        raise TrackingError("The spool cannot be used.", where=spool, got=error) from error
    if not written:
        raise TrackingError("The spool cannot be written.", where=spool)


def _examined(run: Client, spool: Path | None) -> RunningRun:
    life, spoken = Life.UNKNOWN, run.info.start_time / 1000
    if spool is not None:
        try:
            spoken = spool.stat().st_mtime
            life = Life.WRITTEN if is_written(spool) else Life.STALE
        except OSError:
            life = Life.UNKNOWN
    return RunningRun(run.info.run_id, run.info.run_name, life, spool, time.time() - spoken)
