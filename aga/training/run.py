"""A run: built from its settings, begun or resumed in this process, its checkpoints kept.

`run_local` is the whole of it where there is one process and no Ray: a GPU box, a benchmark.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import nn

from aga.collectives import rank, world_size
from aga.data.loader import PairDataset
from aga.model import AlignmentModel
from aga.objectives import build_objective, collapse_warnings
from aga.training.accumulation import check_micro_batches
from aga.training.batches import check_batches
from aga.training.checkpoint import (
    CheckpointConfig,
    Row,
    TrainingState,
    load_checkpoint,
    newest_good,
    only_writer,
)
from aga.training.events import CheckpointEvent, EpochEvent, StepEvent
from aga.training.history import finished
from aga.training.loop import PairNetwork, TrainingContext, train
from aga.training.recipe import Recipe, RunData
from aga.training.saving import END_PATIENCE, STOP_PATIENCE, CheckpointWriter
from aga.training.seeds import fold
from aga.training.settings import TrainingConfig
from aga.training.stopping import StopAsked, TerminatedError, on_sigterm
from aga.training.validation import LOSS, MEAN_RECALL

logger = logging.getLogger(__name__)

WRITER_PATIENCE = 15.0  # seconds: a killed worker's successor may start before it is quite gone
LogMetrics: TypeAlias = Callable[[Row, int], None]


@dataclass
class Listener:
    """Who hears of a run's progress; by default nobody but the log.

    Attributes:
        log_metrics: Gets metrics and their step, in the first worker only: those of single steps as
            `step/<name>` at each heartbeat, those of the history's rows at each epoch's end.
        end_epoch: Gets each epoch's row, in every worker.
    """

    log_metrics: LogMetrics = field(default=lambda _metrics, _step: None)
    end_epoch: Callable[[Row], None] = field(default=lambda _row: None)


def run_local(
    recipe: Recipe, home: Path, *, folder: Path | None = None, device: str = "cpu"
) -> TrainingState:
    """Train in this process, without Ray.

    Sets the process's number of threads, its random seed and, on a CPU, deterministic algorithms.
    After SIGTERM it ends with the running step; the same call goes on from there.

    Args:
        recipe: The settings; relative paths resolve against `home`.
        home: Holds `data/studies` and `data/tokens`.
        folder: Where checkpoints go, and are resumed from; None keeps none.
        device: Where to compute.

    Returns:
        The final state: `best` are the weights of the best epoch, `history` the rows of all.

    Raises:
        DataError: The data are missing or do not fit the settings.
        DivergenceError: The loss is no longer a number.
        CheckpointError: `folder` is in use, holds no usable checkpoint, or cannot be written.
        TerminatedError: The process got SIGTERM.
    """
    context = build_context(recipe, RunData.open(home), home, torch.device(device))
    stop = threading.Event()
    with on_sigterm(stop.set):
        return follow(context, recipe.checkpoint, folder, Listener(), stop.is_set)


def build_context(
    recipe: Recipe, data: RunData, home: Path, device: torch.device
) -> TrainingContext:
    """Everything a process trains with, the same in every process; see `run_local`."""
    network = build_network(recipe, data, home)
    splits, block = data.studies.info.splits, network.objective.block
    check_batches(splits, recipe.training, world_size(), block)
    check_micro_batches(network.model, recipe.training.micro_batch)
    torch.set_num_threads(recipe.training.threads)
    # On a GPU it would cost speed, and kernels without a deterministic form would remain.
    torch.use_deterministic_algorithms(device.type == "cpu")
    pairs = recipe.training.pairs
    sample = None if pairs is None else (pairs, recipe.seed)
    training = PairDataset(data.studies, data.tokens, "train", data.cache, sample=sample)
    validation = PairDataset(
        data.studies, data.tokens, "validation", data.cache, training.transform
    )
    if device.type == "cuda" and world_size() > 1:
        # Batch statistics of the global batch, so that the number of workers changes nothing.
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    context = TrainingContext(
        network=network.to(device),
        training=training,
        validation=validation,
        config=recipe.training,
        optimizer=recipe.optimizer,
        checkpoint_every=recipe.checkpoint.every_steps,
        seed=recipe.seed,
        device=device,
    )
    context.batches.check_batch_size(recipe.training.batch_size, world_size())
    return context


def build_network(recipe: Recipe, data: RunData, home: Path) -> PairNetwork:
    """Model and objective with the weights that training starts from, on the CPU."""
    torch.manual_seed(fold(recipe.seed))
    image = data.studies.info.image
    model = AlignmentModel(
        recipe.image_encoder.resolved(home),
        recipe.text_encoder.resolved(home),
        recipe.model,
        channels=image.channels,
        image_size=(image.height, image.width),
        vocabulary=len(data.tokens.tokenizer),
        pad_id=data.tokens.tokenizer.pad_token_id,
        max_tokens=data.tokens.record.max_tokens,
    )
    return PairNetwork(model, build_objective(recipe.objective, model.width))


def follow(
    context: TrainingContext,
    checkpoint: CheckpointConfig,
    folder: Path | None,
    listener: Listener,
    stop_asked: StopAsked = lambda: False,
) -> TrainingState:
    """Begin or resume a run in all its processes at once, and see it to its end.

    Args:
        context: What to train.
        checkpoint: How many checkpoints to keep.
        folder: The run's folder, the same one for all processes; None saves nothing.
        listener: Who hears of it.
        stop_asked: Where it holds in any process, all of them end after the running step.

    Returns:
        The final state.

    Raises:
        TerminatedError: A stop was asked for; in all processes, after the state is saved.
        CheckpointError: The last checkpoint cannot be written.
    """
    leader = rank() == 0
    with ExitStack() as held:
        writer: CheckpointWriter | None = None
        if folder and leader:
            held.enter_context(only_writer(folder, WRITER_PATIENCE))
            writer = held.enter_context(CheckpointWriter(folder, checkpoint.keep))
        state = _agreed_start(folder) if folder else None
        if state and leader:
            logger.info(
                "resuming at step %d of %d, workers: %d",
                state.step,
                context.total_steps,
                world_size(),
            )
        heartbeat = _Heartbeat(context.config.heartbeat_seconds, context.total_steps)
        known_collapses: set[str] = set()
        for event in train(context, state, stop_asked):
            match event:
                case StepEvent() if leader and heartbeat.due():
                    heartbeat.beat(event)
                    listener.log_metrics(step_row(event), event.step)
                case EpochEvent(row):
                    if leader:
                        _announce_epoch(event, context.config)
                        _warn_of_collapses(row, known_collapses)
                        listener.log_metrics(row, int(row["step"]))
                    listener.end_epoch(row)
                case CheckpointEvent(state):
                    if writer:
                        writer.save(state)
        assert state is not None, "a run that ended has a last state"  # noqa: S101
        _close(writer, state, context)
    return state


def _close(writer: CheckpointWriter | None, state: TrainingState, context: TrainingContext) -> None:
    """Wait for the last checkpoint; a run that is not finished was asked to stop."""
    done = finished(state.history, context.config)
    try:
        if writer:
            writer.close(END_PATIENCE if done else STOP_PATIENCE)
    finally:
        # Nobody ends before the checkpoint is there: the end of one process may end all.
        if not done and world_size() > 1:
            dist.barrier()
    if not done:
        raise TerminatedError(f"The run was asked to end, and did at step {state.step}")


def step_row(event: StepEvent) -> dict[str, float]:
    """A step's metrics and speed as they are tracked: beside the epochs' means, not among them."""
    speed = {
        "pairs_per_second": event.pairs_per_second,
        "data_wait_fraction": event.data_wait_fraction,
    }
    return {f"step/{name}": value for name, value in {**event.metrics, **speed}.items()}


def _agreed_start(folder: Path) -> TrainingState | None:
    """The state to resume from: the first process chooses, so that all take the same one."""
    chosen = [newest_good(folder) if rank() == 0 else None]
    if world_size() > 1:
        dist.broadcast_object_list(chosen, src=0)
    return load_checkpoint(chosen[0]) if chosen[0] else None


class _Heartbeat:
    """A line of progress every so many seconds, the first one at the first step."""

    def __init__(self, seconds: float, total_steps: int) -> None:
        self._seconds, self._total_steps = seconds, total_steps
        self._last = -seconds

    def due(self) -> bool:
        return time.monotonic() - self._last >= self._seconds

    def beat(self, event: StepEvent) -> None:
        self._last = time.monotonic()
        logger.info(
            "epoch %d  step %d/%d  loss %.4f  %.0f pairs/s  data wait %.0f %%  ETA %s",
            event.epoch,
            event.step,
            self._total_steps,
            event.metrics["loss/train"],
            event.pairs_per_second,
            100 * event.data_wait_fraction,
            timedelta(seconds=round(event.eta_seconds)),
        )


def _announce_epoch(event: EpochEvent, config: TrainingConfig) -> None:
    row = event.row
    logger.info(
        "epoch %d/%d  loss %.4f  validation loss %.4f  mean R@10 %.3f%s",
        row["epoch"],
        config.epochs,
        row["loss/train"],
        row[LOSS],
        row[MEAN_RECALL],
        "  best so far" if event.improved else "",
    )


def _warn_of_collapses(row: Row, known: set[str]) -> None:
    """Tell of each collapse when it is first seen; `known` holds those that were told."""
    prefix = "diagnostics/"
    watched = {n.removeprefix(prefix): v for n, v in row.items() if n.startswith(prefix)}
    for name, warning in collapse_warnings(watched).items():
        if name not in known:
            logger.warning("epoch %d: %s", row["epoch"], warning)
            known.add(name)
