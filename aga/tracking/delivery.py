"""A spool's events to MLflow: in order, each once, whatever happens in between.

Sending stops at the first event that fails and begins there the next time. What makes repeating
safe: the note of what was sent is written after each group; metrics carry the time of the spool, so
that MLflow recognises a repeated one; a run is found again by the spool's id, which it bears as a
tag.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from aga.errors import TrackingError
from aga.tracking.spool import Record, Sent, artifact_folder, flush, read_records
from aga.tracking.store import (
    Client,
    TrackingConfig,
    bound_requests,
    experiment_id,
    open_client,
)

log = logging.getLogger(__name__)

BATCH = 1000
"""Metrics in one request, which is what MLflow allows."""
PARAM_BATCH = 100
SPOOL_TAG = "aga.spool"
PARENT_TAG = "mlflow.parentRunId"

REFUSALS = frozenset(
    {
        "BAD_REQUEST",
        "ENDPOINT_NOT_FOUND",
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
        "PERMISSION_DENIED",
        "RESOURCE_DOES_NOT_EXIST",
        "UNAUTHENTICATED",
    }
)
"""MLflow's error codes that repeating the request does not help against."""


class Delivery:
    """Sends one spool.

    Args:
        config: Where to.
        home: Folder that the configuration's relative paths resolve against.
        spool: The file to send.

    Attributes:
        sent: How far it has been sent.
    """

    def __init__(self, config: TrackingConfig, home: Path, spool: Path) -> None:
        bound_requests()
        self._config, self._home, self._spool = config, home, spool
        self._client: Client = None
        self._warned = False
        self.sent = Sent.load(spool)

    def send(self) -> None:
        """Send every event that has not been sent.

        Raises:
            TrackingError: The store refuses an event for good.
            MlflowException, SQLAlchemyError, OSError: The store is away; call it again later.
        """
        from mlflow.exceptions import MlflowException

        try:
            # What MLflow has is on the disk: steps that a resumed run repeats are known to it.
            flush(self._spool)
            if self._client is None:
                self._client = open_client(self._config, self._home)
                self._forget_lost_run()
            for kind, records, offset in _groups(self._spool, self.sent.offset):
                run_id = self._send_group(kind, records)
                self.sent = Sent(run_id, offset)
                self.sent.save(self._spool)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            raise TrackingError(
                "The tracking store refuses what was logged.", where=self._spool, got=error
            ) from error

    def _send_group(self, kind: str, records: list[Record]) -> str:
        if kind == "start":
            return self._start(records[0])
        run_id = self.sent.run_id
        if run_id is None:
            raise TrackingError("The spool does not begin with a start.", where=self._spool)
        if kind == "metrics":
            self._metrics(run_id, records)
        elif kind == "artifact":
            self._artifact(run_id, records[0]["path"])
        else:
            self._client.set_terminated(run_id, records[0]["status"], records[0]["time"])
        return run_id

    def _forget_lost_run(self) -> None:
        """A store that does not know the run is another one: it gets the whole spool."""
        if self.sent.run_id and not self._exists(self.sent.run_id):
            self.sent = Sent()

    def _exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _start(self, record: Record) -> str:
        experiment = experiment_id(self._client, self._config, self._home)
        named = self.sent.run_id or record["run_id"]
        if named is None or not self._exists(named):
            named = self._find(experiment, record["id"])
        if named is None:
            return self._create(experiment, record)
        self._client.update_run(named, status="RUNNING")
        if record["parent"]:  # a run that goes on belongs to whoever goes on with it
            self._client.set_tag(named, PARENT_TAG, record["parent"])
        # Those of a run that was created when the answer, or the next request, was lost.
        known = self._client.get_run(named).data.params
        self._params(named, {k: v for k, v in record["params"].items() if k not in known})
        return str(named)

    def _find(self, experiment: str, spool_id: str) -> str | None:
        """The run of an earlier request whose answer was lost."""
        runs = self._client.search_runs([experiment], f"tags.`{SPOOL_TAG}` = '{spool_id}'")
        return str(runs[0].info.run_id) if runs else None

    def _create(self, experiment: str, record: Record) -> str:
        tags = {**record["tags"], SPOOL_TAG: record["id"]}
        if record["parent"]:
            tags[PARENT_TAG] = record["parent"]
        if commit := tags.get("git_commit"):
            tags["mlflow.source.git.commit"] = commit  # which the web page shows
        run = self._client.create_run(experiment, record["time"], tags, record["name"])
        run_id = str(run.info.run_id)
        self._params(run_id, record["params"])
        return run_id

    def _params(self, run_id: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in values.items()]
        for start in range(0, len(params), PARAM_BATCH):
            self._client.log_batch(run_id, params=params[start : start + PARAM_BATCH])

    def _metrics(self, run_id: str, records: list[Record]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, record["time"], record["step"])
            for record in records
            for key, value in record["values"].items()
        ]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + BATCH])

    def _artifact(self, run_id: str, name: str) -> None:
        """Store an artifact; where only its storage fails, the run's numbers go on without it.

        A server may well take numbers, and have its artifacts where this machine cannot write.
        """
        path = artifact_folder(self._spool) / name
        for attempt in (1, 2):  # once more: the whole store may have been away, and be back now
            try:
                send_artifact(self._client, run_id, path, str(PurePosixPath(name).parent))
            except Exception as error:  # every kind of storage has a library with errors of its own
                self._exists(run_id)  # raises where the whole store is away: it is sent later
                if attempt == 2 and not self._warned:
                    log.warning("MLflow does not take artifacts, the run goes on: %s", error)
                    self._warned = True
            else:
                return


def send_artifact(client: Client, run_id: str, path: Path, folder: str) -> None:
    """Store a file, or the content of a folder, below `folder` of the run's artifacts."""
    send = client.log_artifacts if path.is_dir() else client.log_artifact
    send(run_id, str(path), folder or None)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters: dotted keys, text values."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _groups(spool: Path, offset: int) -> Iterator[tuple[str, list[Record], int]]:
    """Events with the offset behind them; consecutive metrics together, as many as one batch."""
    group: list[Record] = []
    count = end = 0
    for record, after in read_records(spool, offset):
        metrics = record["kind"] == "metrics"
        size = len(record["values"]) if metrics else 0
        if group and (not metrics or count + size > BATCH):
            yield "metrics", group, end
            group, count = [], 0
        if metrics:
            group.append(record)
            count, end = count + size, after
        else:
            yield record["kind"], [record], after
    if group:
        yield "metrics", group, end
