"""Where runs and models are kept: a sqlite file of this project, or an MLflow server."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import Field, field_validator

from aga.config import Config
from aga.errors import TrackingError

SQLITE = "sqlite:///"
Client: TypeAlias = Any
"""`mlflow.MlflowClient`; MLflow is optional, so that its name is not known here."""


class TrackingConfig(Config):
    """Where runs are tracked.

    Attributes:
        uri: `sqlite:///<path>`, or the `http(s)://` address of an MLflow server. A server's user
            and password belong into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
        artifacts: Folder of the artifacts beside the sqlite store. A server has its own place.
        experiment: Name of the experiment that runs belong to.
        explain_pairs: Validation pairs whose words and patches are logged as pages after each
            epoch, where the source declares that its data may be shown; 0 logs none.
    """

    uri: str
    artifacts: str = Field(min_length=1)
    experiment: str = Field(pattern=r"^[\w. -]+$")
    explain_pairs: int = Field(ge=0, le=32)

    @field_validator("uri")
    @classmethod
    def _supported(cls, uri: str) -> str:
        file = uri.removeprefix(SQLITE)
        if uri.startswith(SQLITE) and file.strip("/") and ":memory:" not in file:
            return uri
        if not uri.startswith(("http://", "https://")):
            raise ValueError("must be sqlite:///<path of a file>, or http(s)://<server>")
        if "@" in uri:
            raise ValueError(
                "holds credentials; put them into the environment as MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD"
            )
        return uri


def tracking_uri(config: TrackingConfig, home: Path) -> str:
    """The store's address, absolute: Ray's workers run in other folders."""
    if not config.uri.startswith(SQLITE):
        return config.uri
    return f"{SQLITE}{_database(config, home)}"


def mlflow_ui_command(config: TrackingConfig, home: Path) -> str:
    """The shell command that shows the runs, from any folder; for a server, its address.

    The command listens on this machine only, sends no telemetry, and starts none of MLflow's nine
    processes for background jobs, which nothing here uses.
    """
    if not config.uri.startswith(SQLITE):
        return config.uri
    command = ["env", "MLFLOW_DISABLE_TELEMETRY=true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"]
    command += [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--backend-store-uri", tracking_uri(config, home)]
    command += ["--default-artifact-root", _artifact_root(config, home)]
    return shlex.join(command)


def open_client(config: TrackingConfig, home: Path) -> Client:
    """A client of the store and of the model registry in it; creates a sqlite store if needed.

    Raises:
        TrackingError: MLflow is not installed.
    """
    require_mlflow()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    uri = tracking_uri(config, home)
    with _creation_lock(config, home):
        if not is_created(config, home):
            _create_store(_database(config, home))
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        if config.uri.startswith(SQLITE):
            client.search_experiments(max_results=1)  # names a store that is damaged, here
        return client


def is_created(config: TrackingConfig, home: Path) -> bool:
    """Whether there is a store to ask; a server is taken to have one."""
    return not config.uri.startswith(SQLITE) or _database(config, home).exists()


def experiment_id(client: Client, config: TrackingConfig, home: Path) -> str:
    """Id of the configured experiment, which is created where it does not exist.

    Raises:
        TrackingError: It has been deleted in the store.
    """
    from mlflow.exceptions import MlflowException

    sqlite = config.uri.startswith(SQLITE)
    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is None:
        try:
            return str(
                client.create_experiment(
                    config.experiment,
                    artifact_location=_artifact_root(config, home) if sqlite else None,
                )
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(config.experiment)
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            "The experiment has been deleted in the tracking store.",
            where=tracking_uri(config, home),
            got=config.experiment,
            fix=f"`mlflow experiments restore -x {experiment.experiment_id}`, or another "
            "tracking.experiment in params.yaml",
        )
    return str(experiment.experiment_id)


def require_mlflow() -> None:
    """Check that MLflow is installed, without importing it.

    Raises:
        TrackingError: It is not; the message names the extra to install.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise TrackingError("MLflow is not installed.", fix="pip install 'aga[tracking]'")


def import_mlflow(config: TrackingConfig) -> None:
    """Import what a thread that sends will use, in the thread that calls.

    Two threads that import packages with circular imports at once may each see half a module: the
    training's could be the one that fails.

    Raises:
        TrackingError: MLflow is not installed.
    """
    require_mlflow()
    importlib.import_module("mlflow.entities")
    if config.uri.startswith(SQLITE):
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
        importlib.import_module("mlflow.store.model_registry.sqlalchemy_store")


def bound_requests() -> None:
    """Let a request to a server that is away fail in seconds; MLflow's defaults take minutes.

    For whoever sends a spool, which keeps what was not sent. What the user has set in the
    environment stays. MLflow itself tries nothing twice: it would create a second run where only
    the answer to the first was late.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")


def store_failures() -> tuple[type[Exception], ...]:
    """What MLflow raises when a store is away, refuses a request, or is damaged."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


@contextlib.contextmanager
def tracking_errors(
    what: str, config: TrackingConfig, home: Path, fix: str | None = None
) -> Iterator[None]:
    """Turn what MLflow raises in this context into a `TrackingError`."""
    require_mlflow()
    try:
        yield
    except store_failures() as error:
        raise TrackingError(what, where=tracking_uri(config, home), got=error, fix=fix) from error


def _database(config: TrackingConfig, home: Path) -> Path:
    return (home / config.uri.removeprefix(SQLITE)).resolve()


def _artifact_root(config: TrackingConfig, home: Path) -> str:
    return (home / config.artifacts).resolve().as_uri()


def _create_store(database: Path) -> None:
    """Create a sqlite store beside its place, and move it there.

    The first request creates the tables, in seconds, by migrations that are safe neither against a
    second process nor against being killed: "duplicate column name", ever after.
    """
    from mlflow import MlflowClient

    for unfinished in database.parent.glob(f"{database.name}.new*"):
        unfinished.unlink()
    new = database.with_name(f"{database.name}.new")
    MlflowClient(tracking_uri=f"{SQLITE}{new}").search_experiments(max_results=1)
    new.replace(database)


@contextlib.contextmanager
def _creation_lock(config: TrackingConfig, home: Path) -> Iterator[None]:
    """One process at a time per sqlite store; a lock dies with its process. Servers need none."""
    if not config.uri.startswith(SQLITE):
        yield
        return
    database = _database(config, home)
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(database.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
