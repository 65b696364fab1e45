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
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aga.cluster.config import ClusterConfig
from aga.cluster.failures import told
from aga.cluster.job import Job
from aga.cluster.pages import MakePages, name_of
from aga.cluster.preflight import check_machine, check_resources
from aga.cluster.resuming import Resume, enter, note
from aga.cluster.stopping import StopFile, on_sigterm_in_ray
from aga.cluster.survey import lack_of_room, survey
from aga.cluster.worker import LASTING, START_TIMEOUT, SWITCHES, work
from aga.data.cluster import attach
from aga.errors import AgaError, CheckpointError, ClusterError, TrackingError
from aga.tracking import Status, TrackingConfig
from aga.training.checkpoint import TrainingState, only_writer
from aga.training.export import export_bundle
from aga.training.recipe import Recipe, RunData
from aga.training.stopping import TerminatedError, on_sigterm
from aga.training.waiting import telling

logger = logging.getLogger(__name__)

BUNDLE = Path("models/encoder")
HEARTBEAT_SECONDS = 10.0  # while Ray starts
START_ATTEMPTS = 3
ELASTIC_START_TIMEOUT = "30"
"""Seconds until elastic workers try with fewer, where a node is lost that Ray still counts on."""
RESIZE_SECONDS = 60.0  # between two looks whether there is room for more of them


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
    resume: Resume = "auto",
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
        resume: Whether the run may, must or must not be there already; see `enter`.

    Raises:
        ParamsError: The settings do not fit each other, or ask for more than the cluster has.
        DataError: The data are missing, damaged or too few.
        CheckpointError: The storage cannot be used, or another process is writing this run.
        ClusterError: A node lacks the storage, the data or the software; or there was no room for
            the fewest workers for 20 minutes.
        DivergenceError: The loss is no longer a number.
        TrainingFailedError: The workers failed for good.
        TerminatedError: This process got SIGTERM; the workers have saved their state.
    """
    data = RunData.open(home)
    job = Job.of(recipe, tracking, home, cluster.storage)
    logger.info("run %s", job.name)
    made_of = recipe.made_of(data, home)
    enter(job, made_of, resume)
    state = job.final_state()
    if state is None:
        job.check(data, cluster.workers, cluster.fewest)
        with job.held():
            note(job.folder, made_of)
            with ray_session(cluster), on_sigterm_in_ray(_end_at_once):
                survey(job, cluster)
                logger.info("the nodes are fit; starting up to %d worker(s)", cluster.workers)
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
        job.end("FINISHED")
    out = job.home / BUNDLE
    names = {"run": job.name}
    logger.info("exporting the best epoch to %s", BUNDLE)
    with on_sigterm(_end_at_once):
        sha256 = export_bundle(out, recipe=recipe, data=data, home=home, state=state, names=names)
    return PretrainResult(job.name, state, out, sha256)


@contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """Ray for the time of the context: the cluster that RAY_ADDRESS names, or one on this machine.

    A Ray that is already connected is used as it is and left running. One that is started here has
    its dashboard on the loopback address; its other ports ask for the token in `~/.ray`.

    Raises:
        ParamsError: The workers do not fit.
        ClusterError: The cluster does not answer, or Ray does not start on this machine.
    """
    elastic = {} if cluster.min_workers is None else {START_TIMEOUT: ELASTIC_START_TIMEOUT}
    for name, value in {**SWITCHES, **elastic}.items():
        os.environ.setdefault(name, value)
    check_machine(cluster)
    attached = "RAY_ADDRESS" in os.environ
    import ray

    if ray.is_initialized():
        yield
        return
    with telling("starting Ray", HEARTBEAT_SECONDS):
        if attached:
            attach()
        else:
            _start_ray()
    _keep_token_private()
    logger.info("Ray is up")
    try:
        if attached:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            check_resources(nodes, cluster)
        yield
    finally:
        ray.shutdown()
        if not attached:
            del os.environ["RAY_API_SERVER_ADDRESS"]


def _start_ray() -> None:
    """A Ray of this machine's own.

    Raises:
        ClusterError: It does not come up.
    """
    import psutil  # type: ignore[import-untyped]
    import ray

    # Nobody announces that this machine will be taken away: no watcher for it.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Ray nices its workers by 15: whatever else this machine does would come before training.
    os.environ.setdefault("RAY_worker_niceness", "0")
    for attempt in range(1, START_ATTEMPTS + 1):
        port, others = _free_port(), psutil.Process().children(recursive=True)
        # Ray's cleaner of dead runs looks for this machine's only Ray otherwise, and dies of two.
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        options: dict[str, Any] = {
            "address": "local",  # or it joins whatever anybody has started on this machine
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": port,
        }
        try:
            ray.init(**options, logging_level=logging.ERROR)
        # Where it is not up within 30 seconds, Ray raises an `Exception` of no class of its own.
        except Exception as error:
            ray.shutdown()
            for process in psutil.Process().children(recursive=True):
                if process not in others:  # of this attempt: Ray itself forgets them
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            if attempt == START_ATTEMPTS:
                raise ClusterError(
                    "Ray does not start on this machine",
                    got=error,
                    expected=f"that it does within 30 s, at the latest at attempt {attempt}",
                    fix="free memory and processors, repeat the command; if it stays so, see the "
                    "logs in /tmp/ray/session_latest/logs",
                ) from error
            logger.warning("Ray did not start, trying again: %s", error)
        else:
            return


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
        AgaError: A worker raised it, as where the loss diverges or data are damaged.
        ClusterError: For 20 minutes there was no room for the fewest of elastic workers.
        TerminatedError: This process got SIGTERM; the workers have saved their state.
        TrainingFailedError: A worker failed with another error, or died; see `told`.
    """
    from ray import train
    from ray.exceptions import RayError

    from aga.cluster.listening import ListeningConfig
    from aga.cluster.trainer import Trainer

    elastic = cluster.min_workers is not None
    stop = StopFile(job.folder)
    stop.path.unlink(missing_ok=True)  # of an earlier start
    trainer = Trainer(
        work,
        counts=job.even_counts(cluster),
        # By name, so that Ray's controller need not import what only workers call.
        train_loop_config={"job": job.model_dump_json(), "make_pages": name_of(make_pages)},
        backend_config=ListeningConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=(cluster.fewest, cluster.workers) if elastic else cluster.workers,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=cluster.resources_per_worker,
        ),
        run_config=train.RunConfig(
            name=job.name,
            storage_path=str(job.folder.parent),
            failure_config=train.FailureConfig(
                # Elastic workers have a limit of time instead.
                max_failures=cluster.max_failures,
                controller_failure_limit=-1 if elastic else 3,
            ),
            callbacks=list(callbacks),
            logging_config=train.LoggingConfig(log_level="ERROR"),
        ),
    )
    room = partial(lack_of_room, cluster.resources_per_worker)
    heartbeat = telling(room, job.recipe.training.heartbeat_seconds)
    ending = on_sigterm_in_ray(partial(_ask_to_end, job, stop))
    with _marked_if_cut_off(job), ending, heartbeat:
        try:
            result = trainer.fit()
        # The second where Ray's own processes, and not the workers, were the ones that died.
        except (train.TrainingFailedError, RayError) as error:
            raise told(error, job.name) from error
    stop.path.unlink(missing_ok=True)
    if result.return_value:
        name, message = result.return_value
        raise {**LASTING, TerminatedError.__name__: TerminatedError}[name](message)


def _ask_to_end(job: Job, stop: StopFile) -> None:
    """At the first SIGTERM; a second one ends this process at once, and Ray the workers.

    Raises:
        TerminatedError: No worker trains that could save a step.
    """
    stop.make()
    try:
        with only_writer(job.folder):
            pass
    except CheckpointError:
        return  # it saves, and ends
    raise TerminatedError("Ended while no worker trained; the last checkpoint is there")


def _end_at_once() -> None:
    raise TerminatedError("Ended at once; the last checkpoint is there")


@contextmanager
def _marked_if_cut_off(job: Job) -> Iterator[None]:
    """A worker that was killed cannot say so: end its MLflow run where nobody goes on with it.

    Whatever keeps that from being noted, the failure itself is what is raised.
    """

    def mark(status: Status) -> None:
        try:
            job.end(status)
        except (TrackingError, CheckpointError, OSError) as error:
            logger.warning("run %s may stay marked as running in MLflow: %s", job.name, error)

    try:
        yield
    except AgaError:
        mark("FAILED")
        raise
    except (KeyboardInterrupt, SystemExit):
        mark("KILLED")
        raise


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _keep_token_private() -> None:
    """Ray's access token is born readable by every user of the machine."""
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)
