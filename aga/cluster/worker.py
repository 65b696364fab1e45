"""What runs in each worker that Ray starts: a whole life, from opening the data to the last report.

Ray is optional and imported inside functions, so that the library works where it is not installed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

import aga
from aga.cluster.failures import noting_traceback
from aga.cluster.job import Job
from aga.cluster.pages import EpochPages, MakePages, named
from aga.cluster.stopping import StopFile, sigterm_heard, tell_end
from aga.collectives import rank, world_size
from aga.errors import AgaError, DataError, ParamsError
from aga.training.checkpoint import Row
from aga.training.recipe import RunData
from aga.training.run import Listener, build_context, follow
from aga.training.step_metrics import DivergenceError
from aga.training.stopping import TerminatedError

logger = logging.getLogger(__name__)

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
SWITCHES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "TOKENIZERS_PARALLELISM": "false",
    # A dead worker is noticed after this many seconds, and a report waits as long.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # How long Ray waits for room for all workers, as while a lost node is away; four times at most.
    # On a busy machine it took over Ray's own 60 seconds. What can never start is refused before:
    # see `check_resources`.
    START_TIMEOUT: "300",
}
# Errors that starting the workers again would only repeat; others, as of a storage, may pass.
LASTING: Mapping[str, type[AgaError]] = {
    kind.__name__: kind for kind in (DivergenceError, ParamsError, DataError)
}


class WorkerTerminatedError(AgaError):
    """A worker was asked to end, and nobody asked the run to."""


def work(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """A worker's whole life; runs in each of them at once.

    Args:
        config: `job`, as JSON; `make_pages`, by `name_of`.

    Returns:
        None after a good end; otherwise class name and text of an error of `LASTING`, or of
        `TerminatedError` where the driver asked for it.

    Raises:
        WorkerTerminatedError: A worker got SIGTERM, or there will be more workers; Ray starts them
            again.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    _log_to_driver()
    job = Job.model_validate_json(config["job"])
    try:
        with noting_traceback():
            _train(job, named(config["make_pages"]))
    except tuple(LASTING.values()) as error:
        # The loss diverges in every worker at once. Other errors may be one worker's alone: then
        # the rest wait for it, until raising it here makes Ray stop them all.
        if world_size() > 1 and not isinstance(error, DivergenceError):
            raise
        return lasting_kind(error), str(error)
    except TerminatedError as error:
        if not StopFile(job.folder).is_there():
            raise WorkerTerminatedError(
                "A worker was asked to end, as before its machine is taken away",
                got=error,
                fix="repeat the command: it goes on from there",
            ) from error
        return type(error).__name__, str(error)
    finally:
        tell_end()
    return None


def lasting_kind(error: AgaError) -> str:
    """The key of `LASTING` for an error: its class, or one that it is a kind of."""
    return next(name for name, kind in LASTING.items() if isinstance(error, kind))


def _train(job: Job, make_pages: MakePages | None) -> None:
    from ray import train
    from ray.train.torch import get_device

    device: torch.device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where NCCL's own tensors go
    if rank() == 0:
        logger.info("%d worker(s) are there and open the data", world_size())
    data = RunData.open(job.home)
    context = build_context(job.recipe, data, job.home, device)
    if rank() == 0:
        logger.info("%d pairs, %d steps", len(context.training), context.total_steps)
    pages: EpochPages | None = None

    def end_epoch(row: Row) -> None:
        if pages is not None:
            pages.log(int(row["epoch"]))
        if row["epoch"] < job.recipe.training.epochs:
            train.report(dict(row))

    file = StopFile(job.folder)

    def stop_asked() -> bool:
        # One looks for the file, and tells the others: a storage is asked once in a step.
        return sigterm_heard() or (rank() == 0 and file.is_there())

    listener = Listener(end_epoch=end_epoch)
    with job.track() if rank() == 0 else nullcontext() as tracker:
        if tracker is not None:
            listener.log_metrics = tracker.log_metrics
            pages = EpochPages(make_pages, context, data, job.tracking.explain_pairs, tracker)
        state = follow(context, job.recipe.checkpoint, job.folder, listener, stop_asked)
    if len(state.history) == job.recipe.training.epochs:
        # Last of all: a search ends a trial's processes at the report of its last epoch.
        train.report(state.history[-1])


def _log_to_driver() -> None:
    """Show the library's own lines, and none in which Ray repeats each report in full."""
    library = logging.getLogger(aga.__name__)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    library.propagate = False
    logging.getLogger().setLevel(logging.WARNING)
