"""What a program calls to track a run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from aga.errors import TrackingError
from aga.tracking.delivery import PARENT_TAG, Delivery, flattened, send_artifact
from aga.tracking.spool import Sent, now, status_record
from aga.tracking.store import (
    TrackingConfig,
    import_mlflow,
    open_client,
    tracking_errors,
)
from aga.tracking.writer import SpoolWriter

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

SEND_SECONDS = 2.0
RETRY_SECONDS = 20.0
START_SECONDS = 30.0
"""How long `Tracker.run_id` waits for the first contact with the store, which usually fails at once
or succeeds in under two seconds; creating a sqlite store takes about seven."""


def start_run(
    config: TrackingConfig,
    home: Path,
    name: str,
    *,
    spool: Path,
    run_id: str | None = None,
    parent: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Tracker:
    """Start tracking a run, or go on with it; a store that is away changes nothing but a warning.

    Args:
        config: Where to.
        home: Folder that the configuration's relative paths resolve against.
        name: Name of the run in MLflow.
        spool: Local file that everything is written to first. Where it exists, this is the same
            run: the MLflow run is continued, and no step is logged twice.
        run_id: MLflow run to continue where the spool is not there, on another machine.
        parent: MLflow run that this one is a part of; a run that is continued moves to it.
        params: Settings; nested ones get dotted keys. Logged when the MLflow run is created.
        tags: Tags, as of `provenance`. Likewise.

    Returns:
        The tracker. Finish it, or use it in a `with` statement.

    Raises:
        TrackingError: MLflow is not installed, or the spool cannot be written.
    """
    import_mlflow(config)
    try:
        writer = SpoolWriter(spool)
        writer.append_start(
            {
                "kind": "start",
                "id": writer.id,
                "time": now(),
                "name": name,
                "run_id": run_id,
                "parent": parent,
                "params": flattened(params or {}),
                "tags": dict(tags or {}),
            }
        )
    except (OSError, ValueError) as error:
        raise TrackingError("The spool cannot be used.", where=spool, got=error) from error
    return Tracker(writer, Delivery(config, home, spool))


class Tracker:
    """A run that is being tracked; `start_run` makes it.

    Every call hands its event over in memory and returns; one background thread writes the spool,
    another one sends it. Nothing here raises, or waits, because of a server, a store or a disk; the
    exceptions are `run_id` and `finish`, which wait for a limited time. Call it from one thread.
    """

    def __init__(self, writer: SpoolWriter, delivery: Delivery) -> None:
        self._writer, self._delivery = writer, delivery
        self._sender = _Sender(delivery)
        self._sender.start()

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None where the store has not been reached.

        Waits for the first attempt to reach it, at most `START_SECONDS`.
        """
        self._sender.tried.wait(START_SECONDS)
        return self._delivery.sent.run_id

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers at a step. A step not beyond a metric's last one is a repetition: ignored."""
        self._writer.append_metrics(values, step)

    def log_page(self, path: str, page: str) -> None:
        """Keep a page as an artifact of the run at `path`: `explain/epoch-003/row-12.html`.

        A page of a path that has been logged is a repetition: ignored. Pages with images or report
        texts are for data that may be shown; the caller asks `DatasetInfo.may_be_shown`.
        """
        self._writer.append_artifact(path, page.encode("utf-8"))

    def finish(self, status: Status = "FINISHED", timeout: float = 60.0) -> bool:
        """End the run, and wait at most `timeout` seconds for what has not been written and sent.

        A store that has never been reached is not waited for.

        Returns:
            Whether MLflow has everything. If not, the spool keeps it, and `replay` sends it.
        """
        deadline = time.monotonic() + timeout
        spooled = self._writer.close(status_record(status), timeout)
        sent = self._sender.stop(max(0.0, deadline - time.monotonic()))
        if not spooled:
            log.warning("%d events of this run were not tracked", self._writer.dropped)
        elif not sent:
            log.warning(
                "MLflow has not received all of this run. Nothing is lost: repeat the command when "
                "the store is back, and the rest is sent"
            )
        return spooled and sent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")


class _Sender(threading.Thread):
    """Sends a spool until it is stopped."""

    def __init__(self, delivery: Delivery) -> None:
        super().__init__(name="tracking", daemon=True)
        self.tried = threading.Event()
        self._delivery = delivery
        self._stopping = threading.Event()
        self._complete = self._told = False
        self._deadline = 0.0

    def stop(self, timeout: float) -> bool:
        """Send what there is and end; whether all of it was sent within `timeout` seconds."""
        self._deadline = time.monotonic() + timeout
        self._stopping.set()
        self.join(timeout)
        return self._complete

    def run(self) -> None:
        """Send, wait, and again; until stopped."""
        wait = SEND_SECONDS
        while wait:
            last = self._stopping.is_set()  # nothing is spooled after it was set
            try:
                self._delivery.send()
                self._complete, wait = last, 0.0 if last else SEND_SECONDS
            except TrackingError as error:
                wait = 0.0 if last else RETRY_SECONDS
                self._tell(logging.ERROR, f"MLflow is wanting, the run goes on: {error}")
            # Whatever a store, a proxy or a disk makes of a request: a thread that died of it would
            # send nothing for the rest of the run.
            except Exception as error:
                wait = self._patience() if last else RETRY_SECONDS
                self._tell(
                    logging.WARNING, f"MLflow is away, the run goes on and is sent later: {error}"
                )
            finally:
                self.tried.set()
            (time.sleep if last else self._stopping.wait)(wait)

    def _patience(self) -> float:
        """At the end, seconds until the next attempt; a store that never answered gets none."""
        known = self._delivery.sent.run_id is not None
        return SEND_SECONDS if known and time.monotonic() + SEND_SECONDS < self._deadline else 0.0

    def _tell(self, level: int, message: str) -> None:
        """Tell of the first failure; the ones that follow it are mostly the same."""
        if not self._told:
            log.log(level, message)
        self._told = True


def is_delivered(spool: Path) -> bool:
    """Whether MLflow has received every event of a spool, as the note beside it tells."""
    return not spool.exists() or Sent.load(spool).offset >= spool.stat().st_size


def replay(spool: Path, config: TrackingConfig, home: Path) -> str:
    """Send what MLflow has not received of a run that has ended; nothing is sent twice.

    Returns:
        The MLflow run.

    Raises:
        TrackingError: There is no such spool, or the store is away or refuses.
    """
    if not spool.is_file():
        raise TrackingError("There is no spool to replay.", where=spool)
    with tracking_errors("The spool cannot be replayed.", config, home):
        delivery = Delivery(config, home, spool)
        delivery.send()
    if delivery.sent.run_id is None:
        raise TrackingError("The spool is empty.", where=spool)
    return delivery.sent.run_id


def attach_artifact(
    config: TrackingConfig, home: Path, run_id: str, path: Path, folder: str = ""
) -> None:
    """Add a file, or a folder's content, to a run that may have ended, as a report of it.

    Raises:
        TrackingError: The run is not there, or the store is away or refuses.
    """
    with tracking_errors("The artifact cannot be attached to the run.", config, home):
        send_artifact(open_client(config, home), run_id, path, folder)


def close_children(config: TrackingConfig, home: Path, parent: str, status: Status) -> int:
    """End the runs of a parent that are still marked as running, because they were killed.

    Returns:
        How many.

    Raises:
        TrackingError: The parent is not there, or the store is away or refuses.
    """
    with tracking_errors("The runs of the parent cannot be closed.", config, home):
        client = open_client(config, home)
        experiment = client.get_run(parent).info.experiment_id
        children = client.search_runs(
            [experiment],
            f"tags.`{PARENT_TAG}` = '{parent}' and attributes.status = 'RUNNING'",
            max_results=50_000,
        )
        for child in children:
            client.set_terminated(child.info.run_id, status)
    return len(children)
