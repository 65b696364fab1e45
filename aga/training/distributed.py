"""Pretraining under Ray Train: workers on this machine, or on the cluster that RAY_ADDRESS names.

Ray starts the workers, starts them again when one dies, and tells when they cannot be started. It
is not told of checkpoints: `follow` keeps them in Ray's storage path, where a restarted worker
finds the newest good one. So there is one record of what was saved, and no way for Ray to go on
silently from a run of the same name: the name carries a hash of settings and data.

Ray is optional and imported inside functions, so that the library works where it is not installed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

import aga
from aga.collectives import rank, world_size
from aga.config import Config
from aga.errors import AgaError, CheckpointError, DataError, ParamsError
from aga.tracking import Status, TrackingConfig
from aga.training.checkpoint import Row, TrainingState
from aga.training.export import export_bundle
from aga.training.job import Job
from aga.training.loop import DivergenceError
from aga.training.pages import EpochPages, MakePages
from aga.training.preflight import check_machine, check_resources
from aga.training.run import Listener, Recipe, RunData, build_context, follow
from aga.training.survey import survey

logger = logging.getLogger(__name__)

BUNDLE = Path("models/encoder")
SWITCHES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "TOKENIZERS_PARALLELISM": "false",
    # A dead worker is noticed after this many seconds, and a report waits as long.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # On a busy machine workers took over Ray's 60 seconds to start. What can never start is refused
    # before: see `check_resources`.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
}
# Errors that starting the workers again would only repeat; others, as of a storage, may pass.
LASTING: Mapping[str, type[AgaError]] = {
    kind.__name__: kind for kind in (DivergenceError, ParamsError, DataError)
}


class ClusterConfig(Config):
    """The workers and where they save.

    Attributes:
        workers: Number of processes; they share each batch.
        cpus_per_worker: CPUs that Ray sets aside for each.
        gpus_per_worker: GPUs for each.
        storage: Folder of the runs; every node must reach it under the same path.
        max_failures: How often workers that died are started again.
    """

    workers: Annotated[int, Field(gt=0)]
    cpus_per_worker: Annotated[int, Field(gt=0)]
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)]
    storage: str
    max_failures: Annotated[int, Field(ge=0)]

    @property
    def resources_per_worker(self) -> dict[str, int]:
        """What one worker needs, in Ray's words."""
        return {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}


class TrainingFailedError(AgaError):
    """The workers died, or failed, more often than `cluster.max_failures` allows."""


@dataclass(frozen=True)
class PretrainResult:
    """What `pretrain` leaves.

    Attributes:
        run: The run's name.
        state: Its final state; `history` holds a row per epoch.
        bundle: Folder of the exported bundle.
        bundle_sha256: The bundle's identity.
    """

    run: str
    state: TrainingState
    bundle: Path
    bundle_sha256: str


def pretrain(
    recipe: Recipe,
    cluster: ClusterConfig,
    tracking: TrackingConfig,
    home: Path,
    make_pages: MakePages | None = None,
) -> PretrainResult:
    """Train with Ray, and export the best epoch to `models/encoder`.

    Repeating the call resumes a run that was cut off; one that has finished is only exported again,
    and MLflow gets what it has not received of it.

    Args:
        recipe: Settings of the run.
        cluster: Workers and storage.
        tracking: Where the run is tracked.
        home: The project's folder: holds `data/`, gets `models/`; relative paths start here.
        make_pages: Makes the pages of `tracking.explain_pairs`; a function of a module that the
            workers can import.

    Raises:
        ParamsError: The settings do not fit each other, or ask for more than the cluster has.
        DataError: The data are missing, damaged or too few.
        CheckpointError: The storage cannot be used, or another process is writing this run.
        ClusterError: A node lacks the storage, the data or the software.
        DivergenceError: The loss is no longer a number.
        TrainingFailedError: The workers failed for good.
    """
    data = RunData.open(home)
    job = Job.of(recipe, tracking, home, cluster.storage)
    logger.info("run %s", job.name)
    state = job.final_state()
    if state is None:
        job.check(data, cluster.workers)
        with ray_session(cluster):
            survey(job, data, cluster.workers, cluster.resources_per_worker)
            launch(job, cluster, make_pages=make_pages)
        state = job.final_state()
        if state is None:
            raise CheckpointError(
                "The workers ended, but their last checkpoint is not here",
                where=job.folder,
                fix="set cluster.storage to a folder that all nodes and this machine share",
            )
    else:
        logger.info("the run has finished before; exporting it again")
        job.deliver()
    out = job.home / BUNDLE
    names = {"run": job.name}
    sha256 = export_bundle(out, recipe=recipe, data=data, home=home, state=state, names=names)
    return PretrainResult(job.name, state, out, sha256)


@contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """Ray for the time of the context: the cluster that RAY_ADDRESS names, or one on this machine.

    A Ray that is already connected is used as it is and left running. One that is started here
    listens on the loopback address only; its dashboard's service frees what a dead run held.

    Raises:
        ParamsError: The workers do not fit.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    check_machine(cluster.workers, cluster.resources_per_worker)
    attached = "RAY_ADDRESS" in os.environ
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR}
    if attached:
        options["runtime_env"] = _runtime_env()
    else:
        # Nobody announces that this machine will be taken away: no watcher for it.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        options |= {"_node_ip_address": "127.0.0.1", "include_dashboard": True}
        options |= {"dashboard_host": "127.0.0.1"}
    ray.init(**options)
    _keep_token_private()
    try:
        if attached:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            check_resources(nodes, cluster.workers, cluster.resources_per_worker)
        yield
    finally:
        ray.shutdown()


def launch(
    job: Job,
    cluster: ClusterConfig,
    callbacks: Sequence[Any] = (),
    make_pages: MakePages | None = None,
) -> None:
    """Run a job's workers to the end on the Ray that is connected.

    Args:
        job: What to train.
        cluster: The workers.
        callbacks: Of class `ray.train.UserCallback`; they get each epoch's row.
        make_pages: As of `pretrain`.

    Raises:
        DivergenceError: The loss is no longer a number.
        ParamsError, DataError: As `build_context`, in a worker.
        TrainingFailedError: The workers failed for good; their MLflow run is marked FAILED.
    """
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job.model_dump_json(), "make_pages": make_pages},
        torch_config=TorchConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=cluster.resources_per_worker,
        ),
        run_config=train.RunConfig(
            name=job.name,
            storage_path=str(job.folder.parent),
            failure_config=train.FailureConfig(
                max_failures=cluster.max_failures, controller_failure_limit=3
            ),
            callbacks=list(callbacks),
            logging_config=train.LoggingConfig(log_level="ERROR"),
        ),
    )
    with _marked_if_cut_off(job):
        try:
            result = trainer.fit()
        except train.TrainingFailedError as error:
            raise TrainingFailedError(
                "The workers failed for good",
                where=job.name,
                got=_first_failure(error),
                fix="see the log above; repeating the command resumes from the last checkpoint",
            ) from error
    if result.return_value:
        name, message = result.return_value
        raise LASTING[name](message)


def work(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """A worker's whole life; runs in each of them at once.

    Args:
        config: `job`, as JSON; `make_pages`, as of `pretrain`.

    Returns:
        None after a good end; otherwise class name and text of an error of `LASTING`.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    _log_to_driver()
    job = Job.model_validate_json(config["job"])
    try:
        _train(job, config["make_pages"])
    except tuple(LASTING.values()) as error:
        # The loss diverges in every worker at once. Other errors may be one worker's alone: then
        # the rest wait for it, until raising it here makes Ray stop them all.
        if world_size() > 1 and not isinstance(error, DivergenceError):
            raise
        return type(error).__name__, str(error)
    return None


def _train(job: Job, make_pages: MakePages | None) -> None:
    from ray import train
    from ray.train.torch import get_device

    device: torch.device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where NCCL's own tensors go
    data = RunData.open(job.home)
    context = build_context(job.recipe, data, job.home, device)
    pages: EpochPages | None = None

    def end_epoch(row: Row) -> None:
        if pages is not None:
            pages.log(int(row["epoch"]))
        if row["epoch"] < job.recipe.training.epochs:
            train.report(dict(row))

    listener = Listener(end_epoch=end_epoch)
    with job.track() if rank() == 0 else nullcontext() as tracker:
        if tracker is not None:
            listener.log_metrics = tracker.log_metrics
            pages = EpochPages(make_pages, context, data, job.tracking.explain_pairs, tracker)
        state = follow(context, job.recipe.checkpoint, job.folder, listener)
    if len(state.history) == job.recipe.training.epochs:
        # Last of all: a search ends a trial's processes at the report of its last epoch.
        train.report(state.history[-1])


@contextmanager
def _marked_if_cut_off(job: Job) -> Iterator[None]:
    """A worker that was killed cannot say so: end its MLflow run where nobody goes on with it."""

    def mark(status: Status) -> None:
        if job.spool.exists():
            job.track().finish(status)

    try:
        yield
    except TrainingFailedError:
        mark("FAILED")
        raise
    except (KeyboardInterrupt, SystemExit):
        mark("KILLED")
        raise


def _log_to_driver() -> None:
    """Show the library's own lines, and none in which Ray repeats each report in full."""
    library = logging.getLogger(aga.__name__)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    library.propagate = False
    logging.getLogger().setLevel(logging.WARNING)


def _keep_token_private() -> None:
    """Ray's access token is born readable by every user of the machine."""
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)


def _runtime_env() -> dict[str, Any]:
    """What the workers of a cluster get: a submitted job brings its own copy of the code."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return {}
    return {"py_modules": [str(Path(aga.__file__).parent)]}


def _first_failure(error: Exception) -> str:
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    return str(next(iter(failures.values()), error))
